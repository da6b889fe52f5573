package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/residency"
)

// sleeper loads and unloads by letting time pass.
type sleeper struct{ unload time.Duration }

func (sleeper) Load(_ context.Context, m residency.Model) (residency.Bytes, error) {
	time.Sleep(m.LoadTime)
	return 0, nil
}

func (s sleeper) Unload(context.Context, residency.Model) error {
	time.Sleep(s.unload)
	return nil
}

// trace is random requests, never two at one instant.
func trace(seed uint64, models int) []request {
	rng := rand.New(rand.NewPCG(seed, 3))
	rs := make([]request, 40+rng.IntN(60))
	at := time.Duration(0)
	for i := range rs {
		at += time.Duration(rng.ExpFloat64() * float64(1500*time.Millisecond))
		rs[i] = request{id: i, at: at, model: rng.IntN(models), class: residency.Class(rng.IntN(4) / 3), work: time.Duration(1e9 + rng.Int64N(3e9))}
	}
	return rs
}

// TestAgreesWithScheduler plays the same random traces through the simulator
// and through the real scheduler, goroutines, timers and all. Every request
// must start at the same nanosecond.
func TestAgreesWithScheduler(t *testing.T) {
	policies := []residency.Policy{residency.LRU{}, residency.FIFO{}, residency.Latency(), residency.Balanced(), residency.Economy()}
	seeds := uint64(40)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		for _, p := range policies {
			t.Run(fmt.Sprintf("%T/%d", p, seed), func(t *testing.T) {
				models := Models(1 + int(seed%3))
				cfg := residency.Config{Budget: 20 * residency.GiB, MaxModels: 3, MaxWait: 15 * time.Second}
				rs := trace(seed, len(models))
				want := simulated(t, cfg, p, models, rs)
				got := scheduled(t, cfg, p, models, rs)
				for i := range rs {
					if want[i] != got[i] {
						t.Fatalf("request %d (%s, asked at %v): simulated start %v, scheduled start %v", i, models[rs[i].model].Name, rs[i].at, want[i], got[i])
					}
				}
			})
		}
	}
}

func simulated(t *testing.T, cfg residency.Config, p residency.Policy, models []residency.Model, rs []request) []time.Duration {
	t.Helper()
	src := &source{heap: slices.Clone(rs)}
	e := newEngine(Physics{Unload: 300 * time.Millisecond}, models, cfg.Budget, src)
	e.times = func(m, _ int) time.Duration { return models[m].LoadTime }
	e.srv = newBookServer(e, cfg, p)
	e.rec.keep = true
	if err := e.run(0, nil); err != nil {
		t.Fatal(err)
	}
	starts := make([]time.Duration, len(rs))
	for _, g := range e.rec.grants {
		starts[g.id] = g.at
	}
	return starts
}

func scheduled(t *testing.T, cfg residency.Config, p residency.Policy, models []residency.Model, rs []request) []time.Duration {
	t.Helper()
	starts := make([]time.Duration, len(rs))
	synctest.Test(t, func(t *testing.T) {
		epoch := time.Now()
		s := residency.New(cfg, p, sleeper{300 * time.Millisecond})
		var wg sync.WaitGroup
		for _, r := range rs {
			wg.Go(func() {
				time.Sleep(r.at)
				lease, err := s.Acquire(t.Context(), models[r.model], r.class)
				if err != nil {
					t.Error(err)
					return
				}
				starts[r.id] = time.Since(epoch)
				time.Sleep(r.work)
				lease.Release()
			})
		}
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return starts
}
