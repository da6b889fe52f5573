package residency

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// The model check explores every state that a small book can reach: a pinned
// model and three others of which two fit, queues and slots of at most two,
// with cancels, failing loads and unloads, and lost models. Thresholds are abstracted away: at
// each decision point every plan that the guards allow is tried, and none.

// scripted plans what it is told, once, and otherwise nothing.
type scripted struct{ next *Plan }

func (s scripted) Plan(*View) Plan {
	p := *s.next
	*s.next = Plan{}
	return p
}

func (scripted) Starts(*View, int, Class) bool { return true }

// world is a book and what the driver owes it.
type world struct {
	b         *Book
	loading   []string
	unloading []string
}

func (w *world) clone() *world {
	b := *w.b
	b.view.Seats = slices.Clone(b.view.Seats)
	b.view.victims, b.view.chosen = nil, nil
	b.slots = slices.Clone(b.slots)
	b.move.victims = slices.Clone(b.move.victims)
	b.fx = Effects{Wake: b.fx.Wake}
	return &world{b: &b, loading: slices.Clone(w.loading), unloading: slices.Clone(w.unloading)}
}

// key tells states apart by what can matter later; the ages of requests cannot,
// as every plan is tried at every age.
func (w *world) key() string {
	b := w.b
	var k []byte
	flag := func(f bool) int {
		if f {
			return 1
		}
		return 0
	}
	put := func(vs ...int) {
		for _, v := range vs {
			k = append(k, byte(v+1))
		}
	}
	for i := range b.view.Seats {
		s := &b.view.Seats[i]
		put(int(s.Phase), s.Leases, s.Orphans, s.Queue[Interactive].Len, min(s.failures, b.cfg.LoadAttempts), flag(b.view.absent(i)))
	}
	put(flag(b.move.on), b.move.load, flag(b.move.loading), int(b.move.plan.Reason), len(b.move.victims))
	put(b.move.victims...)
	for _, name := range append(w.loading, w.unloading...) {
		put(b.names[name])
	}
	return string(k)
}

// absorb takes effects over and checks what must hold between book and world.
func (w *world) absorb(fx Effects) error {
	for _, m := range fx.Unloads {
		s := &w.b.view.Seats[w.b.names[m.Name]]
		if s.Leases+s.Orphans > 0 {
			return fmt.Errorf("I4: unloading %s with %d running", m.Name, s.Leases)
		}
		w.unloading = append(w.unloading, m.Name)
	}
	if fx.HasLoad {
		if len(w.unloading) > 0 {
			return fmt.Errorf("I7: loading %s before %v are gone", fx.Load.Name, w.unloading)
		}
		w.loading = append(w.loading, fx.Load.Name)
	}
	return w.b.check(false)
}

// plans lists every move the guards allow in the book's present state.
func (w *world) plans() []Plan {
	var plans []Plan
	v := &w.b.view
	if w.b.move.on {
		return nil
	}
	for x := range v.Seats {
		if !v.absent(x) {
			continue
		}
		for mask := range 1 << len(v.Seats) {
			var victims []int
			var freed Bytes
			ok := true
			for y := range v.Seats {
				if mask&(1<<y) != 0 {
					ok = ok && v.evictable(y)
					victims = append(victims, y)
					freed += v.Seats[y].Size
				}
			}
			if ok && len(victims) <= 1 && v.fits(x, freed, len(victims)) {
				reason := Rent
				if v.Seats[x].Queued() == 0 {
					reason = Prefetch
				}
				plans = append(plans, Plan{Load: x, Victims: victims, Reason: reason})
			}
		}
	}
	return plans
}

type edge struct {
	to      int
	drained int // seat at which a request ended while it was closing, -1: none
}

func explore(limit int) (states int, err error) {
	phi, deepseek, mistral, llama := catalog()
	models := []Model{phi, deepseek, mistral, llama}
	for i := range models {
		models[i].Slots = 2
	}
	models[0].Slots = 1
	const (
		line      = 2 // requests queued at most per model
		badUnload = 1 // which models fail how; more would only multiply the states
		loser     = 2
		badLoad   = 3
	)
	now := time.Unix(0, 0)
	next := &Plan{}
	start := &world{b: NewBook(Config{Budget: 20 * GiB, MaxModels: 3, LoadAttempts: 2}, scripted{next}, now)}
	for i, m := range models {
		start.b.seat(m)
		if i < 3 { // the first three are in memory
			start.b.setPhase(i, Ready)
		}
	}
	index := map[string]int{start.key(): 0}
	worlds := []*world{start}
	edges := [][]edge{nil}
	served := []bool{true} // nobody waits

	for at := 0; at < len(worlds); at++ {
		if len(worlds) > limit {
			return len(worlds), fmt.Errorf("more than %d states", limit)
		}
		from := worlds[at]
		worlds[at] = nil // its successors are made now; only the index is needed later
		try := func(name string, drained int, act func(w *world) (Effects, error)) error {
			w := from.clone()
			fx, err := act(w)
			if err == nil {
				err = w.absorb(fx)
			}
			if err != nil {
				return fmt.Errorf("%s in %q: %w", name, from.key(), err)
			}
			k := w.key()
			to, seen := index[k]
			if !seen {
				to = len(worlds)
				index[k] = to
				worlds = append(worlds, w)
				edges = append(edges, nil)
				served = append(served, w.b.view.Waiting[Interactive] == 0)
			}
			edges[at] = append(edges[at], edge{to, drained})
			return nil
		}
		var events []func() error
		add := func(name string, drained int, act func(w *world) (Effects, error)) {
			events = append(events, func() error { return try(name, drained, act) })
		}
		add("wait", -1, func(w *world) (Effects, error) { return w.b.Tick(w.b.view.Now.Add(time.Hour)), nil })
		for _, p := range from.plans() {
			add("plan", -1, func(w *world) (Effects, error) {
				*next = p
				return w.b.Tick(w.b.view.Now), nil
			})
		}
		for i, m := range models {
			s := &from.b.view.Seats[i]
			if i > 0 && s.Queued() < line {
				add("ask "+m.Name, -1, func(w *world) (Effects, error) {
					_, fx, err := w.b.Ask(w.b.view.Now, m, Interactive)
					return fx, err
				})
			}
			if s.Queued() > 0 {
				add("cancel "+m.Name, -1, func(w *world) (Effects, error) {
					fx, ok := w.b.Cancel(w.b.view.Now, w.b.ticket(w.b.view.Seats[i].Queue[Interactive].tail))
					if !ok {
						return fx, errors.New("a waiting ticket cannot be cancelled")
					}
					return fx, nil
				})
			}
			if s.Leases+s.Orphans > 0 {
				drained := -1
				if s.Phase == Closing {
					drained = i
				}
				add("release "+m.Name, drained, func(w *world) (Effects, error) {
					for k := range w.b.slots {
						if w.b.slots[k].state == running && int(w.b.slots[k].seat) == i {
							return w.b.Release(w.b.view.Now, w.b.ticket(int32(k))), nil
						}
					}
					return Effects{}, errors.New("no ticket holds the lease")
				})
			}
			if (s.Phase == Ready || s.Phase == Closing) && s.Orphans == 0 && i == loser {
				add("lose "+m.Name, -1, func(w *world) (Effects, error) { return w.b.Lost(w.b.view.Now, m.Name), nil })
			}
		}
		for _, broken := range []error{nil, errors.New("broken")} {
			for _, name := range from.loading {
				if broken != nil && name != models[badLoad].Name {
					continue
				}
				add("loaded "+name, -1, func(w *world) (Effects, error) {
					w.loading = slices.DeleteFunc(w.loading, func(n string) bool { return n == name })
					return w.b.Loaded(w.b.view.Now, name, 0, broken), nil
				})
			}
			for _, name := range from.unloading {
				if broken != nil && name != models[badUnload].Name {
					continue
				}
				add("unloaded "+name, -1, func(w *world) (Effects, error) {
					w.unloading = slices.DeleteFunc(w.unloading, func(n string) bool { return n == name })
					return w.b.Unloaded(w.b.view.Now, name, broken), nil
				})
			}
		}
		for _, event := range events {
			if err := event(); err != nil {
				return len(worlds), err
			}
		}
	}
	if err := allServable(edges, served); err != nil {
		return len(edges), err
	}
	return len(edges), noLivelock(edges)
}

// allServable reports a state from which no sequence of events serves everybody.
func allServable(edges [][]edge, served []bool) error {
	back := make([][]int, len(edges))
	for from, es := range edges {
		for _, e := range es {
			back[e.to] = append(back[e.to], from)
		}
	}
	ok := slices.Clone(served)
	var todo []int
	for i, s := range served {
		if s {
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, from := range back[at] {
			if !ok[from] {
				ok[from] = true
				todo = append(todo, from)
			}
		}
	}
	if i := slices.Index(ok, false); i >= 0 {
		return fmt.Errorf("state %d can never serve those who wait", i)
	}
	return nil
}

// noLivelock reports a cycle in which requests of a closing victim keep ending
// though it never leaves: a drain that never ends.
func noLivelock(edges [][]edge) error {
	for seat := range 4 {
		// Depth-first over drain edges of this seat only: a state reached again
		// on the way is a cycle. Other events may happen between them, so edges
		// that leave the victim closing count too; they are those between states
		// that both have a drain edge of it.
		closing := make([]bool, len(edges))
		for at, es := range edges {
			closing[at] = slices.ContainsFunc(es, func(e edge) bool { return e.drained == seat })
		}
		comp := components(edges, closing)
		for at, es := range edges {
			for _, e := range es {
				if e.drained == seat && closing[at] && closing[e.to] && comp[at] == comp[e.to] {
					return fmt.Errorf("L3: seat %d drains for ever between states %d and %d", seat, at, e.to)
				}
			}
		}
	}
	return nil
}

// components are the strongly connected components of the kept states (Tarjan,
// iterative).
func components(edges [][]edge, keep []bool) []int {
	n := len(edges)
	comp, low, num, pos := make([]int, n), make([]int, n), make([]int, n), make([]int, n)
	on := make([]bool, n)
	var stack, path []int
	count, found := 0, 0
	for root := range n {
		if !keep[root] || num[root] != 0 {
			continue
		}
		path = append(path[:0], root)
		for len(path) > 0 {
			at := path[len(path)-1]
			if num[at] == 0 {
				count++
				num[at], low[at], on[at] = count, count, true
				stack = append(stack, at)
			}
			if pos[at] < len(edges[at]) {
				to := edges[at][pos[at]].to
				pos[at]++
				switch {
				case !keep[to]:
				case num[to] == 0:
					path = append(path, to)
				case on[to]:
					low[at] = min(low[at], num[to])
				}
				continue
			}
			path = path[:len(path)-1]
			if len(path) > 0 {
				low[path[len(path)-1]] = min(low[path[len(path)-1]], low[at])
			}
			if low[at] == num[at] {
				found++
				for {
					v := stack[len(stack)-1]
					stack = stack[:len(stack)-1]
					on[v], comp[v] = false, found
					if v == at {
						break
					}
				}
			}
		}
	}
	return comp
}

func TestModelCheck(t *testing.T) {
	if testing.Short() {
		t.Skip("explores every state of a small book")
	}
	start := time.Now()
	n, err := explore(1_000_000)
	if err != nil {
		t.Fatalf("after %d states: %v", n, err)
	}
	t.Logf("%d states, %v", n, time.Since(start).Round(time.Millisecond))
	if n < 1000 {
		t.Errorf("only %d states: the check explored too little", n)
	}
}
