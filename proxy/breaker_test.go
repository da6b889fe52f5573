package proxy

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/routing"
)

// What dies before the first token is asked for once more, and its client does
// not notice; what dies later, hangs or dies twice is not.
func TestTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault ollamasim.Fault
		again bool
		code  string // empty: an answer
	}{
		{"the runner is dead", ollamasim.Fault{Kind: ollamasim.DeadRunner, Times: 1}, true, ""},
		{"the runner dies", ollamasim.Fault{Kind: ollamasim.ErrorLine, Times: 1}, true, ""},
		{"the connection breaks", ollamasim.Fault{Kind: ollamasim.CutMid, Times: 1}, true, ""},
		{"twice", ollamasim.Fault{Kind: ollamasim.CutMid}, true, "upstream_aborted"},
		{"later", ollamasim.Fault{Kind: ollamasim.CutMid, After: 2, Times: 1}, false, "upstream_aborted"},
		{"it hangs", ollamasim.Fault{Kind: ollamasim.HangFirst, Times: 1}, false, "first_byte_timeout"},
		{"its queue is full", ollamasim.Fault{Kind: ollamasim.QueueFull, Times: 1}, false, "upstream_busy"},
		{"it says nothing", ollamasim.Fault{Kind: ollamasim.NoDone, Times: 1}, false, "upstream_aborted"},
	} {
		for _, stream := range []string{"", `,"stream":true`} {
			t.Run(c.name+stream, func(t *testing.T) {
				inBubble(t, rigConfig{idle: 5 * time.Second}, func(t *testing.T, r *rig) {
					r.sim.Inject(c.fault)
					a := r.chat("mistral", "hello", stream)
					r.sim.Clear()
					if c.code == "" && (a.status != http.StatusOK || strings.Contains(a.body, `"error"`)) || !strings.Contains(a.body, c.code) {
						t.Errorf("%d %s, want %q", a.status, a.body, c.code)
					}
					metrics := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body
					if again := strings.Contains(metrics, `tenure_answers_tried_again_total{model="mistral"} 1`); again != c.again {
						t.Errorf("tried again: %v, want %v", again, c.again)
					}
					time.Sleep(time.Minute)
					if a := r.chat("mistral", "hello", ""); a.status != http.StatusOK {
						t.Errorf("afterwards: %d %s", a.status, a.body)
					}
					r.rest()
				})
			})
		}
	}
}

// What was waited for a seat is not waited for again by a second try.
func TestTriedAgainInTime(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{Timeouts: routing.Timeouts{Queue: 9 * time.Second}}}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.DeadRunner, Model: "llama3", Times: 1})
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Model: "llama3", Delay: time.Second})
		began := time.Now()
		e := r.chat("llama3", "hello", "").failure(t) // two loads, over 5 s each, and a swap
		if took := time.Since(began); e.Code != "queue_timeout" || took.Round(time.Second) != 9*time.Second {
			t.Errorf("%s after %v, want queue_timeout after 9 s", e.Code, took)
		}
	})
}

// breakers is what the admin side tells of a model's breaker.
func (r *rig) breaker(model string) Breaker {
	r.t.Helper()
	var st State
	if err := json.Unmarshal([]byte(r.do(http.MethodGet, "http://admin/admin/state", "", "Host", "localhost").body), &st); err != nil {
		r.t.Fatal(err)
	}
	for _, b := range st.Breakers {
		if b.Model == model {
			return b
		}
	}
	return Breaker{}
}

// A model that fails time and again is given a rest: its tasks go to their
// fallbacks, what has none is refused, kept answers are served. Then one
// request tries.
func TestBreaker(t *testing.T) {
	const pause = 30 * time.Second
	cfg := rigConfig{idle: 5 * time.Second, proxy: Config{Breaking: Breaking{Faults: 3, Pause: pause}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		kept := r.chat("recruit/resume_parsing", "kept", "")
		ill := ollamasim.Fault{Kind: ollamasim.ErrorLine, Model: "deepseek-llm:7b", After: 1}
		r.sim.Inject(ill)
		for i := range 3 {
			if e := r.chat("recruit/resume_parsing", strings.Repeat("x", i+1), "").failure(t); e.Code != "upstream_error" {
				t.Fatalf("fault %d: %+v", i, e)
			}
		}
		if b := r.breaker("deepseek-llm:7b"); b.State != "open" || b.Opened != 1 {
			t.Fatalf("after three faults: %+v", b)
		}
		time.Sleep(time.Second) // a slot is probed
		asked := r.sim.Counts().Started
		for _, stream := range []string{"", `,"stream":true`} {
			a := r.chat("recruit/resume_parsing", "someone else", stream)
			if a.status != http.StatusOK || a.header.Get("Tenure-Model") != "mistral" || a.header.Get("Tenure-Cause") != "breaker" {
				t.Errorf("open: %d by %s, cause %s", a.status, a.header.Get("Tenure-Model"), a.header.Get("Tenure-Cause"))
			}
		}
		if n := r.sim.Counts().Started; n != asked+1 {
			t.Errorf("open: %d requests reached Ollama, want mistral's one, its answer kept", n-asked)
		}
		a := r.chat("deepseek-llm:7b", "hello", "")
		if e := a.failure(t); e.Status != http.StatusServiceUnavailable || e.Code != "model_unavailable" || a.header.Get("Retry-After") != "29" {
			t.Errorf("without a fallback: %+v, Retry-After %q", e, a.header.Get("Retry-After"))
		}
		if a := r.chat("recruit/resume_parsing", "kept", ""); a.header.Get("Tenure-Cache") != "hit" || a.body == "" || kept.status != http.StatusOK {
			t.Errorf("a kept answer: %d %s", a.status, a.header.Get("Tenure-Cache"))
		}
		metrics := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body
		for _, want := range []string{
			`tenure_breaker_state{model="deepseek-llm:7b"} 2`, `tenure_breaker_opened_total{model="deepseek-llm:7b"} 1`,
			`cause="breaker",model="mistral",outcome="ok"`, `outcome="upstream_breaker_open"`,
		} {
			if !strings.Contains(metrics, want) {
				t.Errorf("the metrics lack %s", want)
			}
		}

		// One tries, and fails.
		time.Sleep(pause + time.Second)
		if b := r.breaker("deepseek-llm:7b"); b.State != "half-open" {
			t.Errorf("after the pause: %+v", b)
		}
		if e := r.chat("deepseek-llm:7b", "try", "").failure(t); e.Code != "upstream_error" {
			t.Errorf("the one that tries: %+v", e)
		}
		if b := r.breaker("deepseek-llm:7b"); b.State != "open" || b.Opened != 2 {
			t.Errorf("after it failed: %+v", b)
		}
		// One tries, and is answered; the others wait for its seat and are served.
		r.sim.Clear()
		time.Sleep(pause + time.Second)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if a := r.chat("deepseek-llm:7b", "try", `,"temperature":1`); a.status != http.StatusOK {
					t.Errorf("well again: %d %s", a.status, a.body)
				}
			})
		}
		all.Wait()
		if b := r.breaker("deepseek-llm:7b"); b.State != "closed" || b.Faults != 0 {
			t.Errorf("at last: %+v", b)
		}
		r.rest()
	})
}

// Who waits in the queue of a model while its breaker opens goes elsewhere at
// once, and not one by one into the same trouble.
func TestBreakerEmptiesTheQueue(t *testing.T) {
	cfg := rigConfig{idle: 10 * time.Second, proxy: Config{Breaking: Breaking{Faults: 2, Pause: 5 * time.Minute}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangFirst, Model: "deepseek-llm:7b"})
		began := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex
		models, codes := map[string]int{}, map[string]int{}
		for i := range 12 {
			all.Go(func() {
				a := r.chat("recruit/resume_parsing", strings.Repeat("x", i), "")
				mu.Lock()
				defer mu.Unlock()
				if a.status == http.StatusOK {
					models[a.header.Get("Tenure-Model")]++
				} else {
					codes[a.failure(t).Code]++
				}
			})
		}
		all.Wait()
		if models["mistral"] != 10 || codes["first_byte_timeout"] != 2 {
			t.Errorf("answered by %v, refused %v; want 2 to have run into the clock and mistral to have served the rest", models, codes)
		}
		if took := time.Since(began); took > 3*time.Minute {
			t.Errorf("it took %v", took)
		}
		r.sim.Clear()
	})
}

// A caller's mistakes, limits, a network that breaks and an Ollama that is away
// are no model's fault.
func TestBreakerCountsModelsFaults(t *testing.T) {
	cfg := rigConfig{proxy: Config{Breaking: Breaking{Faults: 2, Pause: time.Minute}, Timeouts: routing.Timeouts{Queue: 2 * time.Second, Total: 20 * time.Second}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		for range 3 {
			r.chat("mistral", words(20000), "")                                                                                            // too long
			r.chat("mistral", "hello", `,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"nothing"}}}`) // refused
			r.sim.Inject(ollamasim.Fault{Kind: ollamasim.QueueFull, Times: 1})
			r.chat("mistral", "hello", "")
			r.sim.Inject(ollamasim.Fault{Kind: ollamasim.NoDone, After: 2, Times: 1}) // it repeated itself
			r.chat("mistral", "hello", "")
			r.sim.Inject(ollamasim.Fault{Kind: ollamasim.CutMid, After: 2, Times: 1}) // the network
			r.chat("mistral", "hello", "")
			r.sim.Inject(ollamasim.Fault{Kind: ollamasim.Refuse})
			r.server.ollama.Close()
			r.chat("mistral", "hello", "")
			r.sim.Clear()
			r.chat("llama3", "hello", "") // queue_timeout: its load takes longer
			time.Sleep(time.Minute)
		}
		for _, model := range []string{"mistral", "llama3"} {
			if b := r.breaker(model); b.Opened != 0 {
				t.Errorf("%s: %+v", model, b)
			}
		}
		if a := r.chat("mistral", "hello", ""); a.status != http.StatusOK {
			t.Errorf("at last: %d %s", a.status, a.body)
		}
	})
}

// A model that will not load is replaced by the task's fallback, and failed
// loads count for its breaker.
func TestFallbackWhenLoadFails(t *testing.T) {
	for name, cfg := range map[string]rigConfig{
		"fails":    {proxy: Config{Breaking: Breaking{Faults: 2, Pause: time.Minute}}},
		"too slow": {proxy: Config{Breaking: Breaking{Faults: 2, Pause: time.Minute}}, residency: residency.Config{LoadTimeout: 3 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, cfg, func(t *testing.T, r *rig) {
				if name == "fails" {
					r.sim.Inject(ollamasim.Fault{Kind: ollamasim.FailLoad, Model: "llama3"})
				}
				for i, cause := range []string{"load", "load", "breaker"} {
					a := r.chat("recruit/matching_logic", strings.Repeat("x", i+1), "")
					if a.status != http.StatusOK || a.header.Get("Tenure-Model") != "mistral" || a.header.Get("Tenure-Cause") != cause {
						t.Errorf("%d by %s, cause %s; want mistral for %s", a.status, a.header.Get("Tenure-Model"), a.header.Get("Tenure-Cause"), cause)
					}
				}
				// What does not fit the fallback is not told to be too long for all.
				if e := r.chat("llama3", "hello", "").failure(t); e.Code != "model_unavailable" {
					t.Errorf("by its own name: %+v", e)
				}
				r.sim.Clear()
			})
		})
	}
}
