package residency

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// memory is the rig's event: loads from here on are judged against the new
// budget, and what is resident already may be over it.
func (r *rig) memory(available Bytes) error {
	running := len(r.running)
	r.budget = min(12*GiB, available)
	err := r.apply(r.b.Memory(r.now, available))
	if err == nil && len(r.running) < running {
		err = errors.New("a lease ended")
	}
	return err
}

// over reports whether what is resident exceeds the budget in force.
func (r *rig) exceeds() bool { return r.b.view.Used > r.b.view.Budget }

// A GPU whose free memory comes and goes: whatever the policy, no load begins
// that does not fit at that moment, no lease ends, and nobody is forgotten.
func TestMemoryInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(policies()).Draw(t, "policy")
		r := newRig(Config{Budget: 12 * GiB, MaxModels: 3, QueueLimit: 6, MaxWait: 20 * time.Second}, p, drawModels(t))
		must := func(err error) {
			if err != nil {
				t.Fatalf("%T: %v", p, err)
			}
		}
		model := func() Model { return rapid.SampledFrom(r.models).Draw(t, "model") }
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {
				must(r.b.check(true))
				if idle := r.b.relieve(); r.exceeds() && !r.b.move.on && idle.Reason != NoReason {
					t.Fatalf("%T: %v of %v resident, an idle model could leave and does not", p, r.b.view.Used, r.b.view.Budget)
				}
			},
			"memory": func(t *rapid.T) {
				r.over = true // what was loaded before may be too much now
				must(r.memory(Bytes(rapid.IntRange(0, 14).Draw(t, "GiB")) * GiB))
			},
			"ask": func(t *rapid.T) {
				must(r.ask(model(), rapid.SampledFrom([]Class{Interactive, Batch}).Draw(t, "class")))
			},
			"release": func(t *rapid.T) {
				if len(r.running) > 0 {
					must(r.release(rapid.IntRange(0, len(r.running)-1).Draw(t, "which")))
				}
			},
			"cancel": func(t *rapid.T) {
				if len(r.waiting) > 0 {
					must(r.cancel(rapid.IntRange(0, len(r.waiting)-1).Draw(t, "which")))
				}
			},
			"loaded": func(t *rapid.T) {
				if len(r.loading) > 0 {
					must(r.loaded(0, nil))
				}
			},
			"unloaded": func(t *rapid.T) {
				if len(r.unloading) > 0 {
					must(r.unloaded(0, nil))
				}
			},
			"wait": func(t *rapid.T) {
				r.now = r.now.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms")) * time.Millisecond)
				must(r.apply(r.b.Tick(r.now)))
			},
			"want": func(*rapid.T) { must(r.apply(r.b.Want(r.now, model()))) },
		})
		// Once the memory is back, everybody is served.
		r.over = true
		must(r.memory(Unlimited))
		must(r.settle())
		if r.exceeds() {
			t.Errorf("%T: %v of %v at rest", p, r.b.view.Used, r.b.view.Budget)
		}
	})
}

// The rig judges a load against the budget at its time even while what was
// resident before may exceed it.
func TestRigJudgesLoadsOnly(t *testing.T) {
	_, deepseek, mistral, _ := catalog()
	r := newRig(Config{Budget: 12 * GiB}, LRU{}, nil)
	if err := errors.Join(r.ask(deepseek, Interactive), r.loaded(0, nil)); err != nil {
		t.Fatal(err)
	}
	r.over = true
	if err := r.memory(5 * GiB); err != nil {
		t.Fatal(err)
	}
	if err := r.apply(Effects{Load: mistral, HasLoad: true}); err == nil {
		t.Error("7 GiB more in 5 GiB were let pass")
	}
}

// A process takes 6 GiB of the card: of two models of 7 GiB one leaves, and
// they take turns until the memory is given back.
func TestMemoryTakenAndGivenBack(t *testing.T) {
	bench(t, Config{MaxModels: 3}, Latency(), func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, deepseek, mistral, _ := catalog()
		for _, m := range []Model{phi, deepseek, mistral} {
			s.Preload(m)
		}
		ask := func(m Model) bool {
			t.Helper()
			lease, err := s.Acquire(t.Context(), m, Interactive)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			lease.Release()
			return lease.Cold
		}
		both := func(available Bytes, residents int) {
			t.Helper()
			st := s.State()
			if st.Budget != 20*GiB || st.Available != available || len(st.Residents) != residents || st.Used > available {
				t.Errorf("want %d residents within %v: %+v", residents, available, st)
			}
		}
		time.Sleep(10 * time.Second)
		both(20*GiB, 3)

		held, err := s.Acquire(t.Context(), mistral, Interactive)
		if err != nil {
			t.Fatal(err)
		}
		s.Memory(14 * GiB)
		time.Sleep(5 * time.Second)
		both(14*GiB, 2) // the idle one left, who works stays
		held.Release()
		if !ask(deepseek) || !ask(mistral) || !ask(deepseek) {
			t.Error("both stay resident in 14 GiB")
		}
		both(14*GiB, 2)

		s.Memory(20 * GiB)
		time.Sleep(10 * time.Second)
		both(20*GiB, 3)
		if ask(deepseek) || ask(mistral) {
			t.Error("with the memory back one of them was loaded again")
		}

		// Less than even the pinned model takes: it stays, and who works too.
		held, err = s.Acquire(t.Context(), mistral, Interactive)
		if err != nil {
			t.Fatal(err)
		}
		s.Memory(GiB)
		time.Sleep(10 * time.Second)
		if st := s.State(); len(st.Residents) != 2 || st.Leases != 1 {
			t.Errorf("with 1 GiB left: %+v", st)
		}
		held.Release()
		time.Sleep(10 * time.Second)
		if st := s.State(); len(st.Residents) != 1 || st.Residents[0].Model.Name != "phi" {
			t.Errorf("once idle, only the pinned stays: %+v", st.Residents)
		}
		s.Memory(Unlimited)
		time.Sleep(20 * time.Second)
		both(20*GiB, 3)
	})
}
