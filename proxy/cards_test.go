package proxy

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/residency/gpu"
)

const oneGiB = uint64(1 << 30)

// card reads the simulated card. Processes have names, or, as seen from within
// a container, none.
func card(named bool) func(*ollamasim.Sim) (gpu.Reading, error) {
	return func(s *ollamasim.Sim) (gpu.Reading, error) {
		total, models, others := s.Card()
		c := gpu.Card{Total: residency.Bytes(total), Used: residency.Bytes(models + others)}
		c.Free = c.Total - c.Used
		if named {
			c.Processes = append(c.Processes, gpu.NewProcess(10, residency.Bytes(models), "/usr/bin/ollama"))
			if others > 0 {
				c.Processes = append(c.Processes, gpu.NewProcess(666, residency.Bytes(others), "/opt/train/python3"))
			}
		}
		return gpu.Reading{Driver: "550", Cards: []gpu.Card{c}}, nil
	}
}

// swaps asks each of the four models in turn.
func (r *rig) swaps() {
	r.t.Helper()
	for _, model := range []string{"llama3", "mistral", "deepseek-llm:7b", "phi3:mini", "llama3"} {
		if a := r.chat(model, "a word, please", `,"max_tokens":1`); a.status != 200 {
			r.t.Errorf("%s: %d %s", model, a.status, a.body)
		}
	}
}

// A process takes 6 GiB of a card of 22 and gives them back. While it holds
// them, fewer models are resident, Ollama never has to evict by itself, and the
// state tells who has the memory.
func TestForeignProcess(t *testing.T) {
	for name, named := range map[string]bool{"named": true, "nameless": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, rigConfig{sim: ollamasim.Config{VRAM: 22 * oneGiB}, gpu: card(named)}, func(t *testing.T, r *rig) {
				st := r.server.State()
				if st.GPU.Source != SourceNVML || st.GPU.Taken != 0 || st.Residency.Available != 20*residency.GiB || len(st.Residency.Residents) != 3 {
					t.Fatalf("at rest: %+v, %+v", st.GPU, st.Residency)
				}

				r.sim.Take(6 * oneGiB)
				time.Sleep(2 * watchEvery)
				st = r.server.State()
				if st.GPU.Taken != 6*residency.GiB || st.Residency.Available != 15*residency.GiB || st.Residency.Budget != 20*residency.GiB || st.GPU.Limit != st.Residency.Available {
					t.Errorf("6 of 22 GiB taken, 1 reserved: %+v, %v available", st.GPU, st.Residency.Available)
				}
				if named && (len(st.GPU.Processes) != 1 || st.GPU.Processes[0].PID != 666 || st.GPU.Unclaimed != 0) {
					t.Errorf("others: %+v, want process 666", st.GPU)
				}
				if !named && st.GPU.Unclaimed != 6*residency.GiB {
					t.Errorf("unclaimed: %+v, want 6 GiB", st.GPU)
				}
				if len(st.Residency.Residents) != 2 {
					t.Errorf("in 15 GiB: %+v, want two", st.Residency.Residents)
				}
				r.swaps()
				r.rest()
				metrics := r.do("GET", "http://admin/metrics", "", "Host", "localhost").body
				for _, want := range []string{"tenure_gpu_taken_bytes 6.442450944e+09", "tenure_budget_available_bytes 1.610612736e+10", `tenure_gpu_memory_bytes{gpu="0",state="total"} 2.3622320128e+10`} {
					if !strings.Contains(metrics, want) {
						t.Errorf("metrics lack %s", want)
					}
				}

				r.sim.Take(0)
				time.Sleep(10 * time.Minute) // the kept-warm come back to an idle GPU
				st = r.server.State()
				if st.GPU.Taken != 0 || st.Residency.Available != 20*residency.GiB || len(st.Residency.Residents) != 3 {
					t.Errorf("given back: %+v, %+v", st.GPU, st.Residency)
				}
				r.rest()
			})
		})
	}
}

// Without the driver's figures the same process makes Ollama evict: it is they
// that prevent it.
func TestForeignProcessUnseen(t *testing.T) {
	inBubble(t, rigConfig{sim: ollamasim.Config{VRAM: 22 * oneGiB}}, func(t *testing.T, r *rig) {
		r.sim.Take(6 * oneGiB)
		r.swaps()
		if r.sim.Counts().Evictions == 0 {
			t.Error("Ollama evicted nothing: the test of the driver's figures proves nothing")
		}
		st := r.server.State()
		if st.GPU.Source != SourceOllama || st.GPU.Why == "" || st.Residency.Available != 20*residency.GiB {
			t.Errorf("source: %+v", st.GPU)
		}
	})
}

// A runner that outlived its server looks like Ollama's but is nobody's model.
func TestOrphanedRunner(t *testing.T) {
	var orphan atomic.Uint64
	look := func(s *ollamasim.Sim) (gpu.Reading, error) {
		r, err := card(true)(s)
		if held := residency.Bytes(orphan.Load()); held > 0 {
			r.Cards[0].Used += held
			r.Cards[0].Processes = append(r.Cards[0].Processes, gpu.NewProcess(11, held, "/usr/bin/ollama"))
		}
		return r, err
	}
	inBubble(t, rigConfig{gpu: look}, func(t *testing.T, r *rig) {
		orphan.Store(5 * oneGiB)
		time.Sleep(2 * watchEvery)
		if st := r.server.State(); st.GPU.Taken != 5*residency.GiB || st.GPU.Unclaimed != 5*residency.GiB {
			t.Errorf("%+v, want 5 GiB that nobody claims", st.GPU)
		}
	})
}

// Memory that the driver has not taken back yet after an unload is in nobody's
// hands for a moment: one look's figure shrinks nothing.
func TestOneLookIsNoLook(t *testing.T) {
	var looks atomic.Int32
	var ghost atomic.Bool
	look := func(s *ollamasim.Sim) (gpu.Reading, error) {
		r, err := card(true)(s)
		looks.Add(1)
		if ghost.CompareAndSwap(true, false) {
			r.Cards[0].Used += 7 * residency.GiB
		}
		return r, err
	}
	inBubble(t, rigConfig{gpu: look}, func(t *testing.T, r *rig) {
		ghost.Store(true)
		before := looks.Load()
		time.Sleep(watchEvery + watchAgain + time.Millisecond) // the second look is over, whoever wakes first
		if st := r.server.State(); ghost.Load() || st.GPU.Taken != 0 || st.Residency.Available != 20*residency.GiB {
			t.Errorf("%+v, %v available", st.GPU, st.Residency.Available)
		}
		if n := looks.Load() - before; n < 2 {
			t.Errorf("%d looks: a rise is looked at again soon", n)
		}
	})
}

// A driver that stops answering bounds nothing any more, and is reported.
func TestBlind(t *testing.T) {
	var broken atomic.Bool
	look := func(s *ollamasim.Sim) (gpu.Reading, error) {
		if broken.Load() {
			return gpu.Reading{}, errors.New("card 0: GPU is lost")
		}
		return card(true)(s)
	}
	inBubble(t, rigConfig{gpu: look}, func(t *testing.T, r *rig) {
		r.sim.Take(6 * oneGiB)
		time.Sleep(2 * watchEvery)
		broken.Store(true)
		time.Sleep(2 * watchEvery)
		st := r.server.State()
		if st.GPU.Source != SourceOllama || !strings.Contains(st.GPU.Why, "GPU is lost") || st.Residency.Available != 20*residency.GiB {
			t.Errorf("%+v, %v available", st.GPU, st.Residency.Available)
		}
		if n := strings.Count(r.log.String(), "gpu not read"); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		broken.Store(false)
		time.Sleep(2 * watchEvery)
		if st := r.server.State(); st.GPU.Source != SourceNVML || st.GPU.Why != "" {
			t.Errorf("answers again: %+v", st.GPU)
		}
	})
}

// Models in main memory are said to be there.
func TestOnCPU(t *testing.T) {
	inBubble(t, rigConfig{sim: ollamasim.Config{NoGPU: true}}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery)
		if st := r.server.State(); !st.GPU.OnCPU || st.GPU.Source != SourceOllama {
			t.Errorf("%+v, want the CPU, by Ollama's account", st.GPU)
		}
	})
}

// Where nothing is managed the figures are told all the same, and what Ollama's
// processes hold is not blamed on others.
func TestMemoryUnmanaged(t *testing.T) {
	cfg := rigConfig{gpu: card(true), residency: residency.Config{Passthrough: true}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		if a := r.chat("mistral", "hello", ""); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		r.sim.Take(3 * oneGiB)
		time.Sleep(2 * watchEvery)
		if st := r.server.State(); st.GPU.Taken != 3*residency.GiB || st.GPU.Used() < 10*residency.GiB {
			t.Errorf("%+v, want 3 GiB taken beside Ollama's", st.GPU)
		}
	})
}
