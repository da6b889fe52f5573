package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/residency"
)

var errBroken = errors.New("broken")

// breaks fails every fifth load of a model.
func breaks(nth int) error {
	if nth%5 == 4 {
		return errBroken
	}
	return nil
}

// sleeper loads and unloads by letting time pass. Moves come one at a time, so
// it needs no lock.
type sleeper struct {
	unload time.Duration
	loads  map[string]int
}

func (s sleeper) Load(_ context.Context, m residency.Model) (residency.Bytes, error) {
	nth := s.loads[m.Name]
	s.loads[m.Name]++
	time.Sleep(m.LoadTime)
	return 0, breaks(nth)
}

func (s sleeper) Unload(context.Context, residency.Model) error {
	time.Sleep(s.unload)
	return nil
}

// trace is random requests, never two at one instant, and who of them gives up
// when.
func trace(seed uint64, models int) ([]request, []quit) {
	rng := rand.New(rand.NewPCG(seed, 3))
	rs := make([]request, 40+rng.IntN(60))
	var quits []quit
	at := time.Duration(0)
	for i := range rs {
		at += time.Duration(rng.ExpFloat64() * float64(1500*time.Millisecond))
		rs[i] = request{id: i, at: at, model: rng.IntN(models), class: residency.Class(rng.IntN(4) / 3), work: time.Duration(1e9 + rng.Int64N(3e9))}
		if rng.IntN(4) == 0 {
			quits = append(quits, quit{at + time.Duration(rng.Int64N(12e9)), i})
		}
	}
	slices.SortFunc(quits, func(a, b quit) int { return int(a.at - b.at) })
	return rs, quits
}

// TestAgreesWithScheduler plays the same random traces through the simulator
// and through the real scheduler, goroutines, timers and all, with loads that
// fail and clients that give up. Every request must start at the same
// nanosecond, or not at all in both.
func TestAgreesWithScheduler(t *testing.T) {
	policies := []residency.Policy{residency.LRU{}, residency.FIFO{}, residency.Latency(), residency.Balanced(), residency.Economy()}
	seeds := uint64(40)
	if testing.Short() {
		seeds = 5
	}
	asked, served := 0, 0
	for seed := range seeds {
		for _, p := range policies {
			t.Run(fmt.Sprintf("%T/%d", p, seed), func(t *testing.T) {
				models := Models(1 + int(seed%3))
				cfg := residency.Config{Budget: 20 * residency.GiB, MaxModels: 3, MaxWait: 15 * time.Second, LoadAttempts: 1}
				rs, quits := trace(seed, len(models))
				want := simulated(t, cfg, p, models, rs, quits)
				got := scheduled(t, cfg, p, models, rs, quits)
				asked += len(rs)
				for i := range rs {
					if want[i] > 0 {
						served++
					}
					if want[i] != got[i] {
						t.Fatalf("request %d (%s, asked at %v): simulated start %v, scheduled start %v", i, models[rs[i].model].Name, rs[i].at, want[i], got[i])
					}
				}
			})
		}
	}
	t.Logf("%d requests, %d of them served", asked, served)
	if served < asked/2 || served > asked*19/20 {
		t.Errorf("%d of %d requests were served: the traces test too little", served, asked)
	}
}

func simulated(t *testing.T, cfg residency.Config, p residency.Policy, models []residency.Model, rs []request, quits []quit) []time.Duration {
	t.Helper()
	src := &source{heap: slices.Clone(rs)}
	e := newEngine(Physics{Unload: 300 * time.Millisecond}, models, cfg.Budget, src)
	e.times = func(m, _ int) time.Duration { return models[m].LoadTime }
	e.srv = newBookServer(e, cfg, p)
	e.rec.keep = true
	e.quits = slices.Clone(quits)
	e.broken = func(_, nth int) error { return breaks(nth) }
	if err := e.run(0, nil); err != nil {
		t.Fatal(err)
	}
	starts := make([]time.Duration, len(rs))
	for _, g := range e.rec.grants {
		starts[g.id] = g.at
	}
	return starts
}

func scheduled(t *testing.T, cfg residency.Config, p residency.Policy, models []residency.Model, rs []request, quits []quit) []time.Duration {
	t.Helper()
	starts := make([]time.Duration, len(rs))
	synctest.Test(t, func(t *testing.T) {
		epoch := time.Now()
		s := residency.New(cfg, p, sleeper{300 * time.Millisecond, map[string]int{}})
		patience := map[int]time.Duration{}
		for _, q := range quits {
			patience[q.id] = q.at
		}
		var wg sync.WaitGroup
		for _, r := range rs {
			wg.Go(func() {
				time.Sleep(r.at)
				ctx := t.Context()
				if at, ok := patience[r.id]; ok {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, at-r.at)
					defer cancel()
				}
				lease, err := s.Acquire(ctx, models[r.model], r.class)
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errBroken) {
						t.Error(err)
					}
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
