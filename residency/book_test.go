package residency

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// rig drives a book with chosen events and stands in for the world: it keeps
// the loads and unloads under way and what became of every ticket.
type rig struct {
	b         *Book
	now       time.Time
	models    []Model
	loading   []Model
	unloading []Model
	waiting   []Ticket
	running   []Ticket
	asked     int
	ended     int
	over      bool
	real      map[string]Bytes // what is really in memory, kept apart from the book
	budget    Bytes
	wake      time.Time
}

func newRig(cfg Config, p Policy, models []Model) *rig {
	start := time.Unix(0, 0)
	cfg.OnDecision = func(Decision) {}
	return &rig{b: NewBook(cfg, p, start), now: start, models: models, real: map[string]Bytes{}, budget: cfg.Budget}
}

// apply takes the effects over and checks the book and the world.
func (r *rig) apply(fx Effects) error {
	for _, g := range fx.Grants {
		if !remove(&r.waiting, g.Ticket) {
			return fmt.Errorf("I8: ticket %x was granted twice or never asked", g.Ticket)
		}
		if g.Err != nil {
			r.ended++
			continue
		}
		r.running = append(r.running, g.Ticket)
	}
	for _, m := range fx.Unloads {
		for _, t := range r.running {
			s, _ := r.b.lookup(t, running)
			if r.b.view.Seats[r.b.slots[s].seat].Model.Name == m.Name {
				return fmt.Errorf("I4: unloading %s while it runs a request", m.Name)
			}
		}
		r.unloading = append(r.unloading, m)
	}
	if fx.HasLoad {
		r.loading = append(r.loading, fx.Load)
		used := Bytes(0)
		r.real[fx.Load.Name] = fx.Load.Size
		for _, b := range r.real {
			used += b
		}
		if used > r.budget {
			return fmt.Errorf("I1: loading %s makes %v of %v", fx.Load.Name, used, r.budget)
		}
		if len(r.unloading) > 0 || len(r.loading) > 1 {
			return fmt.Errorf("I7: loading %s beside unloads %v, loads %v", fx.Load.Name, r.unloading, r.loading)
		}
	}
	r.wake = fx.Wake
	if err := r.b.check(r.over); err != nil {
		return err
	}
	return r.prompt()
}

// roomBesidePinned reports whether seat i fits once every model that may leave
// has left: in a budget that shrank, it need not.
func roomBesidePinned(v *View, i int) bool {
	need, n := v.Seats[i].Size, 1
	for j := range v.Seats {
		if s := &v.Seats[j]; j != i && s.Model.Tier == T0 && s.Phase != Absent {
			need += s.Size
			n++
		}
	}
	return need <= v.Budget && n <= v.MaxModels
}

// prompt holds L4: with nothing running or moving and somebody waiting for a
// model that may be loaded, an impatient policy swaps at once or lingers.
func (r *rig) prompt() error {
	p, ok := r.b.policy.(CARP)
	v := &r.b.view
	if !ok || p.Patient || v.Running > 0 || r.b.move.on || r.b.closed {
		return nil
	}
	for i := range v.Seats {
		if v.Seats[i].Queued() > 0 && v.absent(i) && roomBesidePinned(v, i) && (r.wake.IsZero() || r.wake.Sub(v.Now) > p.LingerMax) {
			return fmt.Errorf("L4: %s waits for an idle GPU until %v, at most %v is allowed", v.Seats[i].Model.Name, r.wake.Sub(v.Now), p.LingerMax)
		}
	}
	return nil
}

func remove(list *[]Ticket, t Ticket) bool {
	for i, u := range *list {
		if u == t {
			*list = append((*list)[:i], (*list)[i+1:]...)
			return true
		}
	}
	return false
}

func (r *rig) ask(m Model, c Class) error {
	t, fx, err := r.b.Ask(r.now, m, c)
	if err == nil {
		r.asked++
		r.waiting = append(r.waiting, t)
	}
	return r.apply(fx)
}

func (r *rig) release(i int) error {
	t := r.running[i]
	remove(&r.running, t)
	r.ended++
	return r.apply(r.b.Release(r.now, t))
}

func (r *rig) cancel(i int) error {
	t := r.waiting[i]
	fx, ok := r.b.Cancel(r.now, t)
	if !ok {
		return fmt.Errorf("ticket %x waits but cannot be cancelled", t)
	}
	remove(&r.waiting, t)
	r.ended++
	return r.apply(fx)
}

func (r *rig) loaded(i int, err error) error {
	m := r.loading[i]
	r.loading = append(r.loading[:i], r.loading[i+1:]...)
	if err != nil {
		delete(r.real, m.Name)
	}
	return r.apply(r.b.Loaded(r.now, m.Name, 0, err))
}

func (r *rig) unloaded(i int, err error) error {
	m := r.unloading[i]
	r.unloading = append(r.unloading[:i], r.unloading[i+1:]...)
	if err == nil {
		delete(r.real, m.Name)
	}
	return r.apply(r.b.Unloaded(r.now, m.Name, err))
}

// settle lets everything under way end, time pass, and asks that nobody is
// left waiting: no lost wake-up, no starvation, no livelock.
func (r *rig) settle() error {
	for range 10_000 {
		var err error
		switch {
		case len(r.unloading) > 0:
			err = r.unloaded(0, nil)
		case len(r.loading) > 0:
			err = r.loaded(0, nil)
		case len(r.running) > 0:
			err = r.release(0)
		case len(r.waiting) == 0:
			if r.asked != r.ended {
				return fmt.Errorf("I8: %d asked, %d ended", r.asked, r.ended)
			}
			return nil
		case r.wake.IsZero():
			return fmt.Errorf("L4: %d wait, nothing runs or moves, and no wake-up is set", len(r.waiting))
		default:
			if r.wake.After(r.now) {
				r.now = r.wake
			}
			err = r.apply(r.b.Tick(r.now))
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("L3: %d still wait after 10,000 events", len(r.waiting))
}

func drawModels(t *rapid.T) []Model {
	n := rapid.IntRange(1, 5).Draw(t, "models")
	models := make([]Model, n)
	for i := range models {
		tier := rapid.SampledFrom([]Tier{T1, T1, T2}).Draw(t, "tier")
		if i == 0 && rapid.Bool().Draw(t, "pinned") {
			tier = T0
		}
		models[i] = Model{
			Name: string(rune('a' + i)), Tier: tier, Slots: rapid.IntRange(1, 3).Draw(t, "slots"),
			Size: Bytes(rapid.IntRange(1, 10).Draw(t, "GiB")) * GiB, LoadTime: 2 * time.Second,
		}
	}
	return models
}

func policies() []Policy { return []Policy{LRU{}, FIFO{}, Latency(), Balanced(), Economy()} }

// TestBookInvariants throws random events at the book under every policy.
func TestBookInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(policies()).Draw(t, "policy")
		r := newRig(Config{Budget: 12 * GiB, MaxModels: rapid.IntRange(2, 4).Draw(t, "cap"), QueueLimit: 6, MaxWait: 20 * time.Second}, p, drawModels(t))
		must := func(err error) {
			if err != nil {
				t.Fatalf("%T: %v", p, err)
			}
		}
		model := func() Model { return rapid.SampledFrom(r.models).Draw(t, "model") }
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { must(r.b.check(r.over)) },
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
					err := error(nil)
					if rapid.IntRange(0, 5).Draw(t, "fails") == 0 {
						err = errors.New("load failed")
					}
					must(r.loaded(0, err))
				}
			},
			"unloaded": func(t *rapid.T) {
				if len(r.unloading) > 0 {
					err := error(nil)
					if rapid.IntRange(0, 8).Draw(t, "fails") == 0 {
						err = errors.New("unload failed")
					}
					must(r.unloaded(rapid.IntRange(0, len(r.unloading)-1).Draw(t, "which"), err))
				}
			},
			"wait": func(t *rapid.T) {
				r.now = r.now.Add(time.Duration(rapid.IntRange(-2000, 30_000).Draw(t, "ms")) * time.Millisecond)
				must(r.apply(r.b.Tick(r.now)))
			},
			"want": func(*rapid.T) { must(r.apply(r.b.Want(r.now, model()))) },
			"lost": func(*rapid.T) {
				name := model().Name
				if i, ok := r.b.names[name]; ok && (r.b.view.Seats[i].Phase == Ready || r.b.view.Seats[i].Phase == Closing) {
					delete(r.real, name)
				}
				must(r.apply(r.b.Lost(r.now, name)))
			},
			"expect": func(t *rapid.T) {
				var steps []Step
				for range rapid.IntRange(0, 4).Draw(t, "steps") {
					steps = append(steps, Step{Model: model(), Work: 2 * time.Second})
				}
				must(r.apply(r.b.Expect(r.now, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "run"), steps)))
			},
			"drop": func(*rapid.T) {
				fx, _ := r.b.Drop(r.now, model().Name)
				must(r.apply(fx))
			},
		})
		must(r.settle())
	})
}

func TestMeasuredSizeReplacesEstimate(t *testing.T) {
	_, deepseek, _, _ := catalog()
	deepseek.Context = 4096
	r := newRig(Config{Budget: 20 * GiB, Margin: GiB}, LRU{}, nil)
	if err := r.ask(deepseek, Interactive); err != nil {
		t.Fatal(err)
	}
	r.b.Loaded(r.now, "deepseek", 5*GiB, nil)
	if s := r.b.State(r.now).Residents[0]; s.Size != 6*GiB || !s.Measured || r.b.view.Used != 6*GiB {
		t.Errorf("measured 5 GiB with a margin of 1: %+v, used %v", s, r.b.view.Used)
	}
	// Another context is another size: back to the estimate once it is absent.
	r.b.Lost(r.now, "deepseek")
	deepseek.Context = 8192
	r.b.Want(r.now, deepseek)
	if s := r.b.State(r.now).Residents[0]; s.Size != 7*GiB || s.Measured {
		t.Errorf("never measured at this context: %+v", s)
	}
}

// A model that measures larger than its estimate is relieved by evicting an
// idle one, without anybody asking.
func TestOvercommitIsRelieved(t *testing.T) {
	_, deepseek, mistral, _ := catalog()
	r := newRig(Config{Budget: 15 * GiB}, LRU{}, nil)
	r.b.Want(r.now, deepseek)
	r.b.Loaded(r.now, "deepseek", 0, nil)
	r.b.Want(r.now, mistral)
	fx := r.b.Loaded(r.now, "mistral", 10*GiB, nil)
	if len(fx.Unloads) != 1 || fx.Unloads[0].Name != "deepseek" {
		t.Errorf("17 of 15 GiB used: %+v", fx)
	}
}

func TestUnits(t *testing.T) {
	if got := (5*GiB + 600*MiB).String(); got != "5.6 GiB" {
		t.Error(got)
	}
	if got := (300 * MiB).String(); got != "300.0 MiB" {
		t.Error(got)
	}
	var tier Tier
	if err := tier.UnmarshalText([]byte("T2")); err != nil || tier != T2 || tier.String() != "T2" {
		t.Error(tier, err)
	}
	if err := tier.UnmarshalText([]byte("warm")); err == nil {
		t.Error("tier warm was accepted")
	}
	if ClassOf("flex") != Batch || ClassOf("priority") != Interactive || ClassOf("") != Interactive {
		t.Error("service tiers are mapped wrongly")
	}
}

// A clock that is set back must neither undo waiting nor postpone what is due.
func TestClockSetBack(t *testing.T) {
	phi, deepseek, _, _ := catalog()
	deepseek.Size = 19 * GiB // conflicts with phi, which is not pinned here
	phi.Tier = T1
	r := newRig(Config{Budget: 20 * GiB, MaxWait: 20 * time.Second}, Latency(), nil)
	for _, step := range []func() error{
		func() error { return r.ask(phi, Interactive) },
		func() error { return r.loaded(0, nil) },
		func() error { return r.ask(deepseek, Interactive) }, // must wait: phi is busy
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	rent := func() float64 { return r.b.view.Seats[1].Queue[Interactive].Rent(r.b.view.Now) }
	r.now = r.now.Add(3 * time.Second)
	r.b.Tick(r.now)
	before := rent()
	r.now = r.now.Add(-2 * time.Second)
	r.b.Tick(r.now)
	if rent() < before || before != 3 {
		t.Errorf("rent fell from %v to %v", before, rent())
	}
}

// reckless is a policy with every bug a plan can have.
type reckless struct{ plan Plan }

func (p reckless) Plan(*View) Plan             { return p.plan }
func (reckless) Starts(*View, int, Class) bool { return true }

func TestUnsoundPlansAreRefused(t *testing.T) {
	phi, deepseek, mistral, llama := catalog()
	for _, p := range []Plan{
		{Load: 3, Victims: []int{0}, Reason: Rent},      // pinned
		{Load: 3, Reason: Rent},                         // no room
		{Load: 3, Victims: []int{1, 1}, Reason: Rent},   // counted twice
		{Load: 3, Victims: []int{1, 3}, Reason: Rent},   // its own victim
		{Load: 1, Victims: []int{2}, Reason: Rent},      // resident already
		{Load: -1, Victims: []int{3}, Reason: Prefetch}, // absent already
	} {
		b := NewBook(Config{Budget: 20 * GiB}, reckless{p}, time.Unix(0, 0))
		for i, m := range []Model{phi, deepseek, mistral, llama} {
			b.seat(m)
			if i < 3 {
				b.setPhase(i, Ready)
			}
		}
		_, fx, err := b.Ask(time.Unix(1, 0), llama, Interactive)
		if err != nil || b.count.Unsound != 1 || b.move.on || len(fx.Unloads) > 0 || fx.HasLoad {
			t.Errorf("%+v was carried out: %+v, %v", p, fx, err)
		}
		if _, fx, _ := b.Ask(time.Unix(2, 0), deepseek, Interactive); len(fx.Grants) != 1 {
			t.Errorf("%+v keeps residents from being served", p)
		}
	}
}
