package sim

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"tenure/residency"
)

// Stage is one request of a chain.
type Stage struct {
	Model string        `json:"model"`
	Work  time.Duration `json:"work_ns"` // expected, alone on the GPU
}

// Chain is Count like items of work: a JSONL line is a chain of one stage, a
// candidate of a workflow one of several, each started when the last has
// ended.
type Chain struct {
	Name   string  `json:"name"`
	Count  int     `json:"count"`
	Stages []Stage `json:"stages"`
}

// Batch is what to plan.
type Batch struct {
	Models    []residency.Model
	Resident  []string // in memory at the start
	Budget    residency.Bytes
	MaxModels int
	Physics   Physics
	Chains    []Chain
	Order     []int // chains in the order of the file; nil spreads them evenly
}

// Move is a swap of a plan.
type Move struct {
	At     time.Duration `json:"at_ns"`
	Load   string        `json:"load"`
	Unload []string      `json:"unload,omitempty"`
}

// Progress is when a chain's items are expected to be done.
type Progress struct {
	Name   string        `json:"name"`
	Count  int           `json:"count"`
	First  time.Duration `json:"first_ns"`
	Median time.Duration `json:"median_ns"`
	Last   time.Duration `json:"last_ns"`
}

// Plan is the best rule found for a batch and what to expect of it. Gap is its
// certificate: no schedule can beat the makespan by more.
type Plan struct {
	Rule       string        `json:"rule"`
	Window     int           `json:"window"` // items in progress at once
	Makespan   time.Duration `json:"makespan_ns"`
	LowerBound time.Duration `json:"lower_bound_ns"`
	Gap        float64       `json:"gap"` // makespan over lower bound
	Loads      int           `json:"loads"`
	MinLoads   int           `json:"min_loads"` // exact: no schedule needs fewer
	Moves      []Move        `json:"moves"`
	Chains     []Progress    `json:"chains"`
	Tried      int           `json:"tried"` // rules simulated
}

// rule is one way to run a batch.
type rule struct {
	name   string
	window int
	policy residency.CARP
	hints  bool
}

// PlanBatch simulates a portfolio of rules with expected times and keeps the
// one with the least makespan, where a load counts .2 s and a second of median
// completion .1 s: results that come soon are worth a little time. Execution
// stays with the online policy, which corrects itself: a plan is a window and
// an expectation, no timetable.
func PlanBatch(b Batch) (Plan, error) {
	if b.Physics == (Physics{}) {
		b.Physics = BasePhysics()
	}
	items, err := b.items()
	if err != nil {
		return Plan{}, err
	}
	minLoads, err := b.MinLoads()
	if err != nil {
		return Plan{}, err
	}
	lazy := residency.Latency()
	lazy.Beta = b.Physics.Beta
	greedy := lazy
	greedy.Greedy = true
	best, score, tried := Plan{}, 0.0, 0
	for _, w := range []int{2, 4, 8, 16, 32, 64, len(items)} {
		if w > len(items) {
			continue
		}
		for _, r := range []rule{
			{"full batches, just-in-time swaps", w, lazy, false},
			{"full batches, just-in-time swaps, prefetch", w, lazy, true},
			{"greedy", w, greedy, false},
			{"greedy, prefetch", w, greedy, true},
		} {
			p, err := b.play(items, r)
			if err != nil {
				return Plan{}, err
			}
			tried++
			s := p.Makespan.Seconds() + .2*float64(p.Loads) + .1*medianOf(p.Chains)
			if tried == 1 || s < score {
				best, score = p, s
			}
		}
	}
	best.MinLoads, best.Tried = minLoads, tried
	return best, nil
}

func medianOf(ps []Progress) float64 {
	sum, n := 0.0, 0
	for _, p := range ps {
		sum += p.Median.Seconds() * float64(p.Count)
		n += p.Count
	}
	return sum / float64(max(n, 1))
}

// items spells the chains out in order.
func (b Batch) items() ([]int, error) {
	total := 0
	for _, c := range b.Chains {
		if len(c.Stages) == 0 {
			return nil, fmt.Errorf("chain %q has no stages", c.Name)
		}
		for _, s := range c.Stages {
			if b.model(s.Model) < 0 {
				return nil, fmt.Errorf("chain %q: model %q is not in the catalog", c.Name, s.Model)
			}
		}
		total += c.Count
	}
	if total == 0 {
		return nil, errors.New("nothing to plan")
	}
	if b.Order != nil {
		return b.Order, nil
	}
	// Spread evenly: the k-th of n items of a chain sits at (k+1/2)/n.
	items := make([]int, 0, total)
	done := make([]int, len(b.Chains))
	for len(items) < total {
		pick, at := -1, 0.0
		for c, ch := range b.Chains {
			if done[c] < ch.Count {
				if x := (float64(done[c]) + .5) / float64(ch.Count); pick < 0 || x < at {
					pick, at = c, x
				}
			}
		}
		done[pick]++
		items = append(items, pick)
	}
	return items, nil
}

func (b Batch) model(name string) int {
	return slices.IndexFunc(b.Models, func(m residency.Model) bool { return m.Name == name })
}

// bound is the makespan that no schedule can beat.
func (b Batch) bound(items []int) time.Duration {
	work, longest := 0.0, 0.0
	for _, c := range items {
		chain := 0.0
		for _, s := range b.Chains[c].Stages {
			n := float64(max(b.Models[b.model(s.Model)].Slots, 1))
			work += s.Work.Seconds() * (1 + b.Physics.Beta*(n-1)) / n
			chain += s.Work.Seconds()
		}
		longest = max(longest, chain)
	}
	if b.Physics.Gamma < 1 {
		// Models that run in parallel add up their speeds, at most one each.
		work /= float64(max(min(b.MaxModels, len(b.Models)), 1))
	}
	return time.Duration(max(work, longest) * 1e9)
}

// play simulates one rule.
func (b Batch) play(items []int, r rule) (Plan, error) {
	src := &source{}
	sent, id := 0, 0
	type place struct{ item, step int }
	places := map[int]place{}
	push := func(now time.Duration, p place) {
		st := b.Chains[items[p.item]].Stages[p.step]
		places[id] = p
		src.push(request{id: id, at: now, model: b.model(st.Model), class: residency.Batch, work: st.Work, client: p.item, step: p.step})
		id++
	}
	for ; sent < min(r.window, len(items)); sent++ {
		push(0, place{sent, 0})
	}
	ends := make([][]time.Duration, len(b.Chains))
	src.follow = func(now time.Duration, q request, _ func(request)) {
		p := places[q.id]
		delete(places, q.id)
		if p.step+1 < len(b.Chains[items[p.item]].Stages) {
			push(now, place{p.item, p.step + 1})
			return
		}
		ends[items[p.item]] = append(ends[items[p.item]], now)
		if sent < len(items) {
			push(now, place{sent, 0})
			sent++
		}
	}
	models := slices.Clone(b.Models)
	for i := range models {
		models[i].Slots = max(models[i].Slots, 1)
	}
	e := newEngine(b.Physics, models, b.Budget, src)
	e.times = func(m, _ int) time.Duration { return models[m].LoadTime }
	srv := newBookServer(e, residency.Config{Budget: b.Budget, MaxModels: b.MaxModels, QueueLimit: 1 << 30, MaxWait: time.Hour}, r.policy)
	if r.hints {
		srv.hints = func(q request) (string, []residency.Step) {
			var steps []residency.Step
			for _, s := range b.Chains[items[q.client]].Stages[q.step:] {
				steps = append(steps, residency.Step{Model: models[b.model(s.Model)], Work: s.Work})
			}
			return strconv.Itoa(q.client), steps
		}
	}
	e.srv = srv
	for _, name := range b.Resident {
		if m := b.model(name); m >= 0 {
			srv.present(m)
		}
	}
	before := e.rec.loads
	var moves []Move
	var gone []string
	e.moved = func(m int, load bool) {
		if !load {
			gone = append(gone, models[m].Name)
			return
		}
		moves = append(moves, Move{At: e.now, Load: models[m].Name, Unload: gone})
		gone = nil
	}
	if err := e.run(0, nil); err != nil {
		return Plan{}, err
	}
	p := Plan{Rule: r.name, Window: r.window, Makespan: e.rec.end, LowerBound: b.bound(items), Loads: e.rec.loads - before, Moves: moves}
	p.Gap = p.Makespan.Seconds() / p.LowerBound.Seconds()
	for c, chain := range b.Chains {
		if t := ends[c]; len(t) > 0 {
			p.Chains = append(p.Chains, Progress{chain.Name, len(t), t[0], t[len(t)/2], t[len(t)-1]})
		}
	}
	return p, nil
}

// MinLoads is the least number of loads with which the batch can be done,
// exactly: Dijkstra over (stages finished, models resident). All items of a
// chain are alike, so a stage of a chain is finished as a whole; finishing all
// that the residents allow never costs a load later.
func (b Batch) MinLoads() (int, error) {
	var chains []Chain // distinct by their sequence of models, consecutive repeats merged
	seen := map[string]bool{}
	for _, c := range b.Chains {
		var merged []Stage
		var key strings.Builder
		for _, s := range c.Stages {
			if len(merged) == 0 || merged[len(merged)-1].Model != s.Model {
				merged = append(merged, s)
				key.WriteString(s.Model + "\x00")
			}
		}
		if c.Count > 0 && !seen[key.String()] {
			seen[key.String()] = true
			chains = append(chains, Chain{Stages: merged})
		}
	}
	if len(chains) > maxChains || len(b.Models) > maxPlanModels {
		return 0, fmt.Errorf("%d kinds of chains over %d models: the exact count of loads is limited to %d over %d", len(chains), len(b.Models), maxChains, maxPlanModels)
	}
	start := node{}
	for _, name := range b.Resident {
		if m := b.model(name); m >= 0 {
			start.resident |= 1 << m
		}
	}
	var goal [maxChains]int8
	for i, c := range chains {
		goal[i] = int8(len(c.Stages))
	}
	finish := func(n node) node {
		for again := true; again; {
			again = false
			for i, c := range chains {
				for int(n.done[i]) < len(c.Stages) && n.resident&(1<<b.model(c.Stages[n.done[i]].Model)) != 0 {
					n.done[i]++
					again = true
				}
			}
		}
		return n
	}
	todo := &nodeHeap{{finish(start), 0}}
	best := map[node]int{}
	for todo.Len() > 0 {
		at := heap.Pop(todo).(costed) //nolint:forcetypeassert // the heap holds nothing else
		if at.done == goal {
			return at.cost, nil
		}
		if c, ok := best[at.node]; ok && c <= at.cost {
			continue
		}
		best[at.node] = at.cost
		for x := range b.Models {
			if at.resident&(1<<x) != 0 {
				continue
			}
			// Any subset of the unpinned residents may stay, if x fits beside it.
			var loose uint32
			for y := range b.Models {
				if at.resident&(1<<y) != 0 && b.Models[y].Tier != residency.T0 {
					loose |= 1 << y
				}
			}
			for drop := loose; ; drop = (drop - 1) & loose {
				rest := at.resident&^drop | 1<<x
				if b.holds(rest) {
					heap.Push(todo, costed{finish(node{at.done, rest}), at.cost + 1})
				}
				if drop == 0 {
					break
				}
			}
		}
	}
	return 0, errors.New("a model of the batch does not fit in memory")
}

const (
	maxChains     = 12
	maxPlanModels = 10
)

func (b Batch) holds(set uint32) bool {
	var used residency.Bytes
	for m := set; m != 0; m &= m - 1 {
		used += b.Models[bits.TrailingZeros32(m)].Size
	}
	return used <= b.Budget && bits.OnesCount32(set) <= b.MaxModels
}

// node is a state of the search: stages finished of each kind of chain.
type node struct {
	done     [maxChains]int8
	resident uint32
}

type costed struct {
	node
	cost int
}

type nodeHeap []costed

func (h nodeHeap) Len() int           { return len(h) }
func (h nodeHeap) Less(i, j int) bool { return cmp.Less(h[i].cost, h[j].cost) }
func (h nodeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *nodeHeap) Push(x any)        { *h = append(*h, x.(costed)) } //nolint:forcetypeassert // only costed is pushed
func (h *nodeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
