package residency

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sleeper is a Loader that takes time and keeps its own ledger, so that an
// overcommitment shows here even if the book believed otherwise.
type sleeper struct {
	t        testing.TB
	mu       sync.Mutex
	resident map[string]Bytes
	loads    []string
	fail     func(m Model) error
	budget   Bytes
	busy     map[string]int
}

func newSleeper(t testing.TB, budget Bytes) *sleeper {
	t.Helper()
	return &sleeper{t: t, resident: map[string]Bytes{}, budget: budget, busy: map[string]int{}}
}

func (l *sleeper) Load(ctx context.Context, m Model) (Bytes, error) {
	l.mu.Lock()
	l.loads = append(l.loads, m.Name)
	used := m.Size
	for _, b := range l.resident {
		used += b
	}
	if used > l.budget {
		l.t.Errorf("loading %s makes %v of %v", m.Name, used, l.budget)
	}
	fail := l.fail
	l.mu.Unlock()
	select {
	case <-time.After(m.LoadTime):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if fail != nil {
		if err := fail(m); err != nil {
			return 0, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resident[m.Name] = m.Size
	return m.Size, nil
}

func (l *sleeper) Unload(ctx context.Context, m Model) error {
	l.mu.Lock()
	if n := l.busy[m.Name]; n > 0 {
		l.t.Errorf("unloading %s with %d requests in flight", m.Name, n)
	}
	l.mu.Unlock()
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.resident, m.Name)
	return nil
}

// use holds a lease for d as a request would.
func (l *sleeper) use(lease *Lease, d time.Duration) {
	l.mu.Lock()
	if _, ok := l.resident[lease.Model.Name]; !ok {
		l.t.Errorf("lent %s, which is not resident", lease.Model.Name)
	}
	l.busy[lease.Model.Name]++
	if l.busy[lease.Model.Name] > max(lease.Model.Slots, 1) {
		l.t.Errorf("%s: %d requests in %d slots", lease.Model.Name, l.busy[lease.Model.Name], lease.Model.Slots)
	}
	l.mu.Unlock()
	time.Sleep(d)
	l.mu.Lock()
	l.busy[lease.Model.Name]--
	l.mu.Unlock()
	lease.Release()
}

func catalog() (phi, deepseek, mistral, llama Model) {
	phi = Model{Name: "phi", Size: 2 * GiB, Tier: T0, Slots: 1, LoadTime: time.Second}
	deepseek = Model{Name: "deepseek", Size: 7 * GiB, Tier: T1, Slots: 1, LoadTime: 3 * time.Second}
	mistral = Model{Name: "mistral", Size: 7 * GiB, Tier: T1, Slots: 1, LoadTime: 3 * time.Second}
	llama = Model{Name: "llama", Size: 8 * GiB, Tier: T2, Slots: 1, LoadTime: 5 * time.Second}
	return phi, deepseek, mistral, llama
}

// bench starts a scheduler over a sleeping loader inside a bubble.
func bench(t *testing.T, cfg Config, p Policy, f func(s *Scheduler, l *sleeper)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Budget = 20 * GiB
		l := newSleeper(t, 20*GiB)
		s := New(cfg, p, l)
		f(s, l)
		synctest.Wait()
		s.mu.Lock()
		if err := s.book.check(false); err != nil {
			t.Error(err)
		}
		s.mu.Unlock()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestSwapWaitsForTheVictim(t *testing.T) {
	var told []Decision
	bench(t, Config{MaxModels: 3, OnDecision: func(d Decision) { told = append(told, d) }}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, deepseek, mistral, llama := catalog()
		s.Preload(phi)
		s.Preload(deepseek)
		s.Preload(mistral)
		time.Sleep(10 * time.Second)
		a, err := s.Acquire(t.Context(), deepseek, Interactive)
		if err != nil || a.Cold || a.Waited != 0 {
			t.Fatalf("warm lease: %+v, %v", a, err)
		}
		b, _ := s.Acquire(t.Context(), mistral, Interactive)
		b2 := b
		go l.use(a, 9*time.Second)
		go l.use(b2, 4*time.Second)
		time.Sleep(time.Second)
		start := time.Now()
		c, err := s.Acquire(t.Context(), llama, Interactive)
		// Both are busy, so deepseek, used first, was chosen and drained: 8 s
		// left of it, .3 s unload, 5 s load.
		if want := 13300 * time.Millisecond; err != nil || !c.Cold || time.Since(start) != want || c.Waited != want {
			t.Fatalf("cold lease after %v (%v), want %v: %v", time.Since(start), c.Waited, want, err)
		}
		c.Release()
		c.Release()
		st := s.State()
		if st.Counters.Loads != 4 || st.Counters.Unloads != 1 || st.Evictions["rent"] != 1 || st.Leases != 0 {
			t.Errorf("state %+v", st)
		}
		if st.Used != 17*GiB || len(st.Residents) != 3 || !st.Residents[0].Pinned {
			t.Errorf("residents %+v", st.Residents)
		}
	})
	var swap []Action
	for _, d := range told {
		if d.For == "llama" || d.Model == "llama" {
			swap = append(swap, d.Action)
		}
	}
	want := []Action{ActClose, ActUnload, ActUnloaded, ActLoad, ActLoaded}
	if len(swap) < len(want) {
		t.Fatalf("decisions %v, want %v", swap, want)
	}
	for i, a := range want {
		if swap[i] != a {
			t.Errorf("decisions %v, want %v", swap, want)
		}
	}
}

func TestOneLoadForAllWaiters(t *testing.T) {
	bench(t, Config{}, Latency(), func(s *Scheduler, l *sleeper) {
		t := l.t
		_, deepseek, _, _ := catalog()
		deepseek.Slots = 4
		// The first to ask leaves; the load goes on for the others.
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("client left"))
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Acquire(ctx, deepseek, Interactive); err == nil || err.Error() != "client left" {
				t.Errorf("the leader got %v", err)
			}
		})
		for range 4 {
			wg.Go(func() {
				lease, err := s.Acquire(t.Context(), deepseek, Interactive)
				if err != nil || lease.Waited != 3*time.Second {
					t.Errorf("waited %v: %v", lease.Waited, err)
					return
				}
				l.use(lease, time.Second)
			})
		}
		wg.Wait()
		if len(l.loads) != 1 {
			t.Errorf("loads %v", l.loads)
		}
	})
}

func TestQueueFull(t *testing.T) {
	bench(t, Config{QueueLimit: 2}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, _, _, _ := catalog()
		lease, err := s.Acquire(t.Context(), phi, Interactive)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				lease, err := s.Acquire(t.Context(), phi, Interactive)
				if err != nil {
					t.Error(err)
					return
				}
				l.use(lease, time.Second)
			})
		}
		synctest.Wait()
		_, err = s.Acquire(t.Context(), phi, Interactive)
		full, ok := errors.AsType[*QueueFullError](err)
		if !ok || !errors.Is(err, ErrQueueFull) || full.RetryAfter <= 0 {
			t.Errorf("third in line got %v", err)
		}
		lease.Release()
		wg.Wait()
		if st := s.State(); st.Counters.Refused != 1 || st.Grants["interactive"] != 3 {
			t.Errorf("counters %+v", st.Counters)
		}
	})
}

func TestTooBig(t *testing.T) {
	bench(t, Config{}, Latency(), func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, _, _, _ := catalog()
		s.Preload(phi)
		if _, err := s.Acquire(t.Context(), Model{Name: "huge", Size: 19 * GiB, Tier: T2}, Interactive); !errors.Is(err, ErrTooBig) {
			t.Errorf("beside a pinned model got %v", err)
		}
	})
}

func TestLoadFailure(t *testing.T) {
	bench(t, Config{LoadAttempts: 2, LoadBackoff: 4 * time.Second}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		_, deepseek, mistral, _ := catalog()
		broken := errors.New("out of memory")
		l.fail = func(m Model) error {
			if m.Name == deepseek.Name {
				return broken
			}
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			start := time.Now()
			_, err := s.Acquire(t.Context(), deepseek, Interactive)
			load, ok := errors.AsType[*LoadError](err)
			// Two loads of 3 s. Between them mistral loads while the backoff runs.
			if !ok || load.Model != "deepseek" || !errors.Is(err, broken) || time.Since(start) != 10*time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
		wg.Go(func() {
			time.Sleep(time.Second)
			lease, err := s.Acquire(t.Context(), mistral, Interactive)
			if err != nil || lease.Waited != 5*time.Second {
				t.Errorf("mistral waited %v: %v", lease.Waited, err)
				return
			}
			lease.Release()
		})
		wg.Wait()
		// A missing model is not tried twice.
		l.fail = func(Model) error { return ErrPermanent }
		start := time.Now()
		if _, err := s.Acquire(t.Context(), Model{Name: "missing", Size: GiB, LoadTime: time.Second}, Batch); !errors.Is(err, ErrPermanent) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// A load that took all its time is not tried again while somebody waits.
func TestLoadTimesOut(t *testing.T) {
	bench(t, Config{LoadTimeout: 2 * time.Second}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		_, deepseek, _, _ := catalog() // its load takes 3 s
		start := time.Now()
		_, err := s.Acquire(t.Context(), deepseek, Interactive)
		if !errors.Is(err, ErrLoadTimeout) || time.Since(start) != 2*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestLostModelIsLoadedAgain(t *testing.T) {
	bench(t, Config{}, Latency(), func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, _, _, _ := catalog()
		s.Preload(phi)
		time.Sleep(2 * time.Second)
		lease, err := s.Acquire(t.Context(), phi, Interactive)
		if err != nil || lease.Cold {
			t.Fatal(lease, err)
		}
		s.Lost("phi")
		time.Sleep(2 * time.Second) // a T0 model comes back by itself
		st := s.State()
		if len(st.Residents) != 1 || st.Residents[0].Phase != Ready || st.Residents[0].Leases != 1 {
			t.Errorf("after the loss: %+v", st.Residents)
		}
		lease.Release()
		if lease, err = s.Acquire(t.Context(), phi, Interactive); err != nil || lease.Waited != 0 {
			t.Fatal(lease, err)
		}
		lease.Release()
		if st := s.State(); st.Leases != 0 || st.Counters.Lost != 1 {
			t.Errorf("leases %d, lost %d", st.Leases, st.Counters.Lost)
		}
	})
}

func TestForeignModelsShrinkTheRoom(t *testing.T) {
	bench(t, Config{MaxModels: 3}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		_, deepseek, mistral, _ := catalog()
		s.Foreign(map[string]Bytes{"other": 8 * GiB})
		for _, m := range []Model{deepseek, mistral} {
			lease, err := s.Acquire(t.Context(), m, Interactive)
			if err != nil {
				t.Fatal(err)
			}
			lease.Release()
		}
		if st := s.State(); len(st.Residents) != 1 || st.Foreign["other"] != 8*GiB {
			t.Errorf("%d residents beside a foreign model of 8 GiB: %+v", len(st.Residents), st.Residents)
		}
	})
}

func TestOperatorUnload(t *testing.T) {
	bench(t, Config{}, Latency(), func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, deepseek, _, _ := catalog()
		s.Preload(phi)
		s.Preload(deepseek)
		time.Sleep(5 * time.Second)
		if err := s.Unload(t.Context(), "phi"); !errors.Is(err, ErrPinned) {
			t.Errorf("unloading a T0 model: %v", err)
		}
		lease, err := s.Acquire(t.Context(), deepseek, Interactive)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unload(t.Context(), "deepseek"); !errors.Is(err, ErrBusy) {
			t.Errorf("unloading a busy model: %v", err)
		}
		lease.Release()
		if err := s.Unload(t.Context(), "deepseek"); err != nil {
			t.Error(err)
		}
		if _, still := l.resident["deepseek"]; still {
			t.Error("Unload returned before the model was gone")
		}
		if err := s.Unload(t.Context(), "deepseek"); !errors.Is(err, ErrAbsent) {
			t.Errorf("unloading it again: %v", err)
		}
	})
}

func TestCloseFailsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newSleeper(t, 20*GiB)
		s := New(Config{Budget: 20 * GiB}, LRU{}, l)
		_, deepseek, _, _ := catalog()
		done := make(chan error)
		go func() {
			_, err := s.Acquire(t.Context(), deepseek, Interactive)
			done <- err
		}()
		synctest.Wait()
		go s.Close()
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("a waiter got %v", err)
		}
		synctest.Wait()
		if _, err := s.Acquire(t.Context(), deepseek, Interactive); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestCancelAgainstGrant(t *testing.T) {
	// The context ends at the very instant the lease before is released, so
	// the race goes both ways; in neither may a lease leak.
	for range 200 {
		bench(t, Config{}, Latency(), func(s *Scheduler, l *sleeper) {
			t := l.t
			phi, _, _, _ := catalog()
			first, err := s.Acquire(t.Context(), phi, Interactive)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(time.Second)
				first.Release()
			})
			wg.Go(func() {
				if lease, err := s.Acquire(ctx, phi, Interactive); err == nil {
					lease.Release()
				}
			})
			wg.Wait()
			if st := s.State(); st.Leases != 0 || len(st.Waiting) != 0 {
				t.Fatalf("left over: %d leases, %v waiting", st.Leases, st.Waiting)
			}
		})
	}
}

func TestDisplacedModelReturns(t *testing.T) {
	bench(t, Config{MaxModels: 3}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, deepseek, mistral, llama := catalog()
		for _, m := range []Model{phi, deepseek, mistral} {
			s.Preload(m)
		}
		time.Sleep(10 * time.Second)
		lease, err := s.Acquire(t.Context(), llama, Interactive)
		if err != nil {
			t.Fatal(err)
		}
		lease.Release()
		time.Sleep(10 * time.Second)
		if st := s.State(); st.Evictions["return"] != 0 {
			t.Error("the borrowed model left before it was clear that nobody comes back for it")
		}
		time.Sleep(100 * time.Second)
		st := s.State()
		for _, r := range st.Residents {
			if r.Model.Tier == T2 {
				t.Errorf("%s still sits in a kept-warm model's seat: %+v", r.Model.Name, st.Residents)
			}
		}
		if st.Evictions["return"] != 1 {
			t.Errorf("evictions %v", st.Evictions)
		}
	})
}

func TestPassthrough(t *testing.T) {
	bench(t, Config{Passthrough: true}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		_, deepseek, _, _ := catalog()
		a, err := s.Acquire(t.Context(), deepseek, Interactive)
		if err != nil || a.Waited != 0 {
			t.Fatal(a, err)
		}
		if st := s.State(); !st.Passthrough || st.Leases != 1 || len(l.loads) != 0 {
			t.Errorf("state %+v, loads %v", st, l.loads)
		}
		a.Release()
	})
}
