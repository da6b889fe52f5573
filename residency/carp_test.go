package residency

import (
	"slices"
	"testing"
	"time"
)

// desk is a rig with the four base models, the first three resident and idle,
// and nothing learnt yet.
func desk(t *testing.T, p Policy) (r *rig, phi, deepseek, mistral, llama Model) {
	t.Helper()
	phi, deepseek, mistral, llama = catalog()
	r = newRig(Config{Budget: 20 * GiB, MaxModels: 3, MaxWait: 40 * time.Second}, p, nil)
	for _, m := range []Model{phi, deepseek, mistral} {
		r.do(t, r.ask(m, Interactive))
		r.now = r.now.Add(m.LoadTime)
		r.do(t, r.loaded(0, nil))
		r.now = r.now.Add(time.Second)
		r.do(t, r.release(0))
	}
	r.now = r.now.Add(10 * time.Minute) // arrival rates decay
	r.do(t, r.apply(r.b.Tick(r.now)))
	return r, phi, deepseek, mistral, llama
}

func (r *rig) do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until lets time pass, waking the book when it asked for it.
func (r *rig) until(t *testing.T, at time.Time) {
	t.Helper()
	for !r.wake.IsZero() && !r.wake.After(at) {
		r.now = r.wake
		r.do(t, r.apply(r.b.Tick(r.now)))
	}
	r.now = at
	r.do(t, r.apply(r.b.Tick(r.now)))
}

func (r *rig) phase(m Model) Phase { return r.b.view.Seats[r.b.names[m.Name]].Phase }

func TestIdleGPUSwapsAtOnce(t *testing.T) {
	r, phi, deepseek, mistral, llama := desk(t, Latency())
	// Mistral was used last and more: deepseek goes.
	r.do(t, r.ask(mistral, Interactive))
	r.do(t, r.release(0))
	r.do(t, r.ask(llama, Interactive))
	if len(r.unloading) != 1 || r.unloading[0].Name != deepseek.Name || r.phase(phi) != Ready || r.phase(mistral) != Ready {
		t.Errorf("unloading %v; phi %v, mistral %v", r.unloading, r.phase(phi), r.phase(mistral))
	}
}

func TestPatientPresetWaits(t *testing.T) {
	for _, load := range []time.Duration{200 * time.Millisecond, 2 * time.Second, 5 * time.Second} { // whatever the disk
		r, _, _, _, llama := desk(t, Economy())
		llama.LoadTime = load
		asked := r.now
		r.do(t, r.ask(llama, Interactive))
		if len(r.unloading) != 0 {
			t.Fatal("economy swapped for a single fresh request")
		}
		r.until(t, asked.Add(49*load/10))
		if len(r.unloading) != 0 {
			t.Errorf("a load of %v: economy swapped before the rent reached Kappa", load)
		}
		r.until(t, asked.Add(6*load))
		if len(r.unloading) != 1 {
			t.Errorf("a load of %v: no swap after six, Kappa is five", load)
		}
	}
}

func TestPatiencePutsNoBatchOff(t *testing.T) {
	r, _, _, _, llama := desk(t, Economy())
	asked := r.now
	r.do(t, r.ask(llama, Batch))
	r.until(t, asked.Add(6*llama.LoadTime))
	if len(r.unloading) != 1 {
		t.Errorf("a batch request waits on for an idle GPU")
	}
}

func TestOverdueBeatsPrice(t *testing.T) {
	r, _, deepseek, mistral, llama := desk(t, Latency())
	// Four clients keep each resident busy, so a swap for one request never pays.
	for range 4 {
		r.do(t, r.ask(deepseek, Interactive))
		r.do(t, r.ask(mistral, Interactive))
	}
	asked := r.now
	r.do(t, r.ask(llama, Interactive))
	for at := time.Second; at < 40*time.Second; at += time.Second {
		r.until(t, asked.Add(at))
		if at%(3*time.Second) == 0 {
			for _, m := range []Model{deepseek, mistral} {
				r.do(t, r.ask(m, Interactive))
				r.do(t, r.release(0))
			}
		}
		if r.b.move.on {
			t.Fatalf("a swap for one request against eight after %v: %v", at, r.b.move.plan.Reason)
		}
	}
	r.until(t, asked.Add(40*time.Second))
	if !r.b.move.on || r.b.move.plan.Reason != Overdue {
		t.Errorf("40 s passed, MaxWait, and nobody moves: %+v", r.b.move)
	}
}

func TestFreshModelIsProtected(t *testing.T) {
	r, _, deepseek, mistral, llama := desk(t, Latency())
	for _, m := range []Model{llama, llama, llama} {
		r.do(t, r.ask(m, Interactive))
	}
	r.now = r.now.Add(300 * time.Millisecond)
	r.do(t, r.unloaded(0, nil))
	gone := deepseek
	if r.phase(gone) != Absent {
		gone = mistral
	}
	r.now = r.now.Add(5 * time.Second)
	r.do(t, r.loaded(0, nil))
	// One of three runs. Both of the others now want what was evicted, and even
	// overdue they may not take llama before its gate is served.
	for range 50 {
		r.do(t, r.ask(gone, Interactive))
	}
	r.until(t, r.now.Add(time.Minute))
	if r.phase(llama) != Ready {
		t.Errorf("llama is %v with two of those it was loaded for still waiting", r.phase(llama))
	}
}

func TestLinger(t *testing.T) {
	for _, c := range []struct{ load, typing, most time.Duration }{
		{2 * time.Second, 500 * time.Millisecond, 1500 * time.Millisecond},
		{40 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond}, // a pause longer than a load
	} {
		r, _, deepseek, _, llama := desk(t, Latency())
		for i := range r.b.view.Seats {
			r.b.view.Seats[i].LoadTime = c.load
		}
		conflict := llama
		conflict.Size = 18 * GiB // needs every seat but the pinned one
		// A chat: a request, an answer, some typing, the next one.
		for range 6 {
			r.do(t, r.ask(deepseek, Interactive))
			r.until(t, r.now.Add(c.load))
			r.do(t, r.release(0))
			r.until(t, r.now.Add(c.typing))
		}
		r.do(t, r.ask(deepseek, Interactive))
		r.until(t, r.now.Add(c.load/2))
		r.do(t, r.ask(conflict, Interactive))
		r.until(t, r.now.Add(c.load/2))
		r.do(t, r.release(0))
		if r.b.move.on {
			t.Fatalf("the seat was taken between two requests %v apart", c.typing)
		}
		lingers := r.b.count.Lingers
		idle := r.now
		r.until(t, idle.Add(c.typing*7/5))
		if r.b.move.on || lingers != 1 {
			t.Errorf("moving %v after 1.4 times the gap of %v, %d lingers", r.b.move.on, c.typing, lingers)
		}
		r.until(t, idle.Add(c.most))
		if !r.b.move.on {
			t.Errorf("nobody came for %v, three times the usual gap, and the GPU still idles", c.most)
		}
	}
}

func TestFullBatchGate(t *testing.T) {
	r, _, deepseek, mistral, _ := desk(t, Latency())
	deepseek.Slots, mistral.Slots = 2, 2
	for _, m := range []Model{deepseek, mistral} { // a resident model keeps its configuration, so load both anew
		r.b.Lost(r.now, m.Name)
		delete(r.real, m.Name)
		r.do(t, r.ask(m, Batch))
		r.do(t, r.loaded(0, nil))
	}
	if len(r.running) != 1 || len(r.waiting) != 1 {
		t.Fatalf("%d run, %d wait: half a batch of mistral must not run beside deepseek", len(r.running), len(r.waiting))
	}
	r.do(t, r.ask(mistral, Batch))
	if len(r.running) != 3 {
		t.Errorf("%d run: a full batch may", len(r.running))
	}
}

func TestJustInTimeSwap(t *testing.T) {
	r, _, deepseek, _, llama := desk(t, Latency())
	for range 8 {
		r.do(t, r.ask(deepseek, Batch))
	}
	for range 8 {
		r.do(t, r.ask(llama, Batch))
	}
	swapped := -1
	for i := range 8 {
		r.until(t, r.now.Add(3*time.Second))
		r.do(t, r.release(0))
		if r.b.move.on {
			swapped = i
			break
		}
	}
	// A load takes 5 s, so the swap begins when about 6.75 s of work are left,
	// well after the first and before the last of eight requests.
	if swapped < 1 || swapped > 6 {
		t.Errorf("the swap began after request %d of 8", swapped+1)
	}
}

func TestPrefetch(t *testing.T) {
	r, phi, deepseek, mistral, llama := desk(t, Latency())
	steps := []Step{{Model: mistral, Work: 2 * time.Second}, {Model: llama, Work: 4 * time.Second}, {Model: phi, Work: time.Second}}
	r.do(t, r.apply(r.b.Expect(r.now, "run", steps)))
	if len(r.unloading) != 1 || r.unloading[0].Name != deepseek.Name {
		t.Fatalf("llama is needed next and deepseek is not: unloading %v", r.unloading)
	}
	r.do(t, r.ask(mistral, Interactive))
	r.do(t, r.unloaded(0, nil))
	r.do(t, r.loaded(0, nil))
	r.do(t, r.release(0))
	r.do(t, r.ask(llama, Interactive))
	if len(r.running) != 1 || r.b.count.PrefetchHits != 1 {
		t.Errorf("%d running, %d hits: llama should have been there", len(r.running), r.b.count.PrefetchHits)
	}
	// Wrong declarations end prefetching.
	r.do(t, r.release(0))
	for range 12 {
		r.now = r.now.Add(2 * time.Minute)
		r.do(t, r.apply(r.b.Expect(r.now, "liar", []Step{{Model: phi}, {Model: deepseek}})))
		r.do(t, settleMoves(r))
		r.do(t, r.apply(r.b.Expect(r.now, "liar", nil)))
		r.now = r.now.Add(2 * time.Minute)
		r.do(t, r.ask(llama, Interactive))
		r.do(t, settleMoves(r))
		for len(r.running) > 0 {
			r.do(t, r.release(0))
		}
	}
	if !r.b.view.Mistrust && r.b.count.PrefetchMisses > minHits {
		t.Errorf("%d misses and still trusted", r.b.count.PrefetchMisses)
	}
	if n := r.b.count.Prefetches; n > 14 {
		t.Errorf("%d prefetches on declarations that never came true", n)
	}
}

// settleMoves ends the moves under way.
func settleMoves(r *rig) error {
	for len(r.loading)+len(r.unloading) > 0 {
		var err error
		if len(r.unloading) > 0 {
			err = r.unloaded(0, nil)
		} else {
			err = r.loaded(0, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestPresets(t *testing.T) {
	for _, name := range []string{"latency", "balanced", "economy"} {
		if _, err := Preset(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := Preset("fastest"); err == nil {
		t.Error("preset fastest was accepted")
	}
	if !slices.Contains(policies(), Policy(Economy())) {
		t.Error("the property tests do not cover every preset")
	}
}

// A rate is right soon after the start, and a burst is none.
func TestRateFromTheStart(t *testing.T) {
	phi, deepseek, _, _ := catalog()
	r := newRig(Config{Budget: 20 * GiB}, Latency(), nil)
	rate := func(m Model) float64 { return r.b.view.Seats[r.b.names[m.Name]].Rate(r.now, Interactive) }
	for range 10 {
		r.do(t, r.ask(deepseek, Interactive))
	}
	if got := rate(deepseek); got > 1 {
		t.Errorf("%.2f requests a second after ten at once", got)
	}
	for second := range 200 {
		r.now = r.now.Add(time.Second)
		r.do(t, r.ask(phi, Interactive))
		if got := rate(phi); second >= 15 && (got < .9 || got > 1.1) {
			t.Fatalf("%.2f requests a second after %d s of one a second", got, second)
		}
	}
	r.now = r.now.Add(10 * time.Minute)
	if got := rate(phi); got > 1e-3 {
		t.Errorf("%.4f requests a second after ten minutes without any", got)
	}
}
