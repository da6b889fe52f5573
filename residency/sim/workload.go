package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"tenure/residency"
)

// Indices of the four models of the base catalog.
const (
	phi = iota
	deepseek
	mistral
	llama
)

// task is one stage of the recruiting pipeline: a model and its uniform range
// of work, in seconds at full speed.
type task struct {
	model  int
	lo, hi float64
}

// tasks are parsing, bias detection, matching, script and report.
func tasks() [5]task {
	return [5]task{{deepseek, 2, 3}, {mistral, 1, 2}, {llama, 3, 4}, {llama, 4, 5}, {phi, .5, 1}}
}

// mixOf is the share of each task in independent arrivals.
func mixOf(name string) ([5]float64, error) {
	switch name {
	case "pipeline":
		return [5]float64{.2, .2, .2, .2, .2}, nil
	case "t1":
		return [5]float64{.35, .35, .08, .07, .15}, nil
	}
	return [5]float64{}, fmt.Errorf("mix %q: want pipeline or t1", name)
}

// Models is the base catalog: 2, 7, 7 and 8 GB of 20, so that two of the large
// ones fit beside the small one and never three.
func Models(slots int) []residency.Model {
	g := residency.GiB
	return []residency.Model{
		{Name: "phi3:mini", Size: 2 * g, Tier: residency.T0, Slots: slots, LoadTime: time.Second},
		{Name: "deepseek-llm:7b", Size: 7 * g, Tier: residency.T1, Slots: slots, LoadTime: 3 * time.Second},
		{Name: "mistral", Size: 7 * g, Tier: residency.T1, Slots: slots, LoadTime: 3 * time.Second},
		{Name: "llama3", Size: 8 * g, Tier: residency.T2, Slots: slots, LoadTime: 5 * time.Second},
	}
}

const warmLoad = 2 * time.Second // from the page cache, once a model was read

// source gives a workload's requests in order of arrival. Closed-loop ones
// depend on when earlier requests end, and on nothing else of the scheduler:
// every policy meets the same requests.
type source struct {
	open   func() (request, bool) // independent arrivals, in order
	next   request
	has    bool
	heap   []request // arrivals already due by what ended
	follow func(now time.Duration, r request, push func(request))

	work   time.Duration // of all requests given out
	chain  time.Duration // longest chain of dependent work
	lastAt time.Duration // latest arrival plus work, for open arrivals
}

func (s *source) fill() {
	if s.open != nil && !s.has {
		if s.next, s.has = s.open(); !s.has {
			s.open = nil
		}
	}
}

func (s *source) peek() (request, bool) {
	s.fill()
	switch {
	case len(s.heap) == 0:
		return s.next, s.has
	case !s.has || s.heap[0].at <= s.next.at:
		return s.heap[0], true
	}
	return s.next, true
}

func (s *source) take() request {
	r, _ := s.peek()
	if s.has && r.id == s.next.id {
		s.has = false
		s.lastAt = max(s.lastAt, r.at+r.work)
	} else {
		s.heap = slices.Delete(s.heap, 0, 1)
	}
	s.work += r.work
	return r
}

func (s *source) empty() bool {
	_, ok := s.peek()
	return !ok
}

func (s *source) push(r request) {
	i, _ := slices.BinarySearchFunc(s.heap, r, func(a, b request) int {
		if a.at != b.at {
			return int(min(max(a.at-b.at, -1), 1))
		}
		return a.id - b.id
	})
	s.heap = slices.Insert(s.heap, i, r)
}

func (s *source) after(now time.Duration, r request) {
	if s.follow != nil {
		s.follow(now, r, s.push)
	}
}

// Settle is how long the models loaded at start have to come in before the
// workload begins.
const settle = 20 * time.Second

// workload builds the source of a setup.
func (s Setup) workload() (*source, error) {
	mix, err := mixOf(s.Mix)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(s.Seed, 1))
	src := &source{}
	switch s.Workload {
	case "poisson", "gamma":
		src.open = s.arrivals(rng, mix, 0)
	case "batch":
		s.batch(rng, src)
		if s.Rho > 0 {
			src.open = s.arrivals(rand.New(rand.NewPCG(s.Seed, 2)), mix, s.Requests)
		}
	case "pipeline":
		s.pipeline(rng, src)
	case "starvation":
		s.starvation(rng, src)
	case "alternating":
		s.alternating(rng, src)
	case "loyal":
		s.loyal(rng, src)
	}
	return src, nil
}

func draw(rng *rand.Rand, t task) time.Duration {
	return time.Duration((t.lo + (t.hi-t.lo)*rng.Float64()) * 1e9)
}

func pick(rng *rand.Rand, mix [5]float64) task {
	u := rng.Float64()
	all := tasks()
	for i, p := range mix {
		if u -= p; u < 0 {
			return all[i]
		}
	}
	return all[len(all)-1]
}

// speedup is the throughput of a full model against one request at a time.
func (s Setup) speedup() float64 {
	n := float64(s.Slots)
	return n / (1 + s.Physics.Beta*(n-1))
}

// arrivals is a renewal process with gamma distributed gaps of coefficient of
// variation CV (1: Poisson), at a rate that loads the GPU to Rho. Beside a
// batch it lasts as long as there are lines, otherwise for Requests.
func (s Setup) arrivals(rng *rand.Rand, mix [5]float64, beside int) func() (request, bool) {
	mean := 0.0
	for i, t := range tasks() {
		mean += mix[i] * (t.lo + t.hi) / 2
	}
	gap := mean / s.speedup() / s.Rho
	cv := s.CV
	if s.Workload != "gamma" {
		cv = 1
	}
	at, id := settle, beside
	last := func() bool { return id == s.Requests }
	if beside > 0 {
		// As much interactive work as the batch leaves time for.
		total := float64(s.Requests) * 12.75 / 5 / s.speedup()
		end := settle + time.Duration(total/(1-min(s.Rho, .9))*1e9)
		last = func() bool { return at > end }
	}
	return func() (request, bool) {
		if last() {
			return request{}, false
		}
		at += time.Duration(gapOf(rng, cv) * gap * 1e9)
		t := pick(rng, mix)
		r := request{id: id, at: at, model: t.model, work: draw(rng, t), client: -1}
		id++
		return r, true
	}
}

// gapOf draws from a gamma distribution of mean 1 by Marsaglia and Tsang's
// method ("A simple method for generating gamma variables", 2000).
func gapOf(rng *rand.Rand, cv float64) float64 {
	if cv == 1 {
		return rng.ExpFloat64()
	}
	shape := 1 / (cv * cv)
	boost := 1.0
	k := shape
	if k < 1 {
		boost = math.Pow(rng.Float64(), 1/k)
		k++
	}
	d := k - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := rng.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(rng.Float64()) < .5*x*x+d-d*v+d*math.Log(v) {
			return d * v * boost / shape
		}
	}
}

// batch is Requests lines of independent tasks in file order, from a client
// that keeps Window of them open.
func (s Setup) batch(rng *rand.Rand, src *source) {
	mix, _ := mixOf(s.Mix)
	lines := make([]request, s.Requests)
	for i := range lines {
		t := pick(rng, mix)
		lines[i] = request{id: i, at: settle, model: t.model, class: residency.Batch, work: draw(rng, t)}
	}
	sent := min(s.Window, len(lines))
	for _, r := range lines[:sent] {
		src.push(r)
	}
	src.follow = func(now time.Duration, r request, push func(request)) {
		if r.class == residency.Batch && sent < len(lines) {
			next := lines[sent]
			next.at = now
			sent++
			push(next)
		}
	}
}

// pipeline is Clients that each take one candidate after the other through the
// five stages, Requests/5 candidates in all.
func (s Setup) pipeline(rng *rand.Rand, src *source) {
	all := tasks()
	n := max(1, s.Requests/len(all))
	candidates := make([][len(all)]request, n)
	for c := range candidates {
		for k, t := range all {
			candidates[c][k] = request{id: c*len(all) + k, model: t.model, work: draw(rng, t), item: c, step: k}
		}
	}
	sent := 0
	admit := func(now time.Duration, client int, push func(request)) {
		if sent < n {
			r := candidates[sent][0]
			r.at, r.client = now, client
			sent++
			push(r)
		}
	}
	for c := range s.Clients {
		admit(settle, c, src.push)
	}
	total := time.Duration(0)
	for _, c := range candidates {
		for _, r := range c {
			total += r.work
		}
	}
	src.chain = total / time.Duration(s.Clients)
	src.follow = func(now time.Duration, r request, push func(request)) {
		if r.step+1 < len(all) {
			next := candidates[r.item][r.step+1]
			next.at, next.client = now, r.client
			push(next)
			return
		}
		admit(now, r.client, push)
	}
}

// starvation keeps two models busy from closed loops for Horizon while a third
// is asked for once in two minutes.
func (s Setup) starvation(rng *rand.Rand, src *source) {
	all := tasks()
	id := 0
	end := settle + s.Horizon
	hot := func(now time.Duration, client int, push func(request)) {
		if now < end {
			t := all[client%2]
			push(request{id: id, at: now, model: t.model, work: draw(rng, t), client: client})
			id++
		}
	}
	for c := range 2 * (s.Slots + 1) {
		hot(settle, c, src.push)
	}
	for at := settle + 60*time.Second; at < end; at += 120 * time.Second {
		src.push(request{id: id, at: at, model: llama, class: s.cold, work: draw(rng, all[2]), client: -1})
		id++
	}
	src.follow = func(now time.Duration, r request, push func(request)) {
		if r.client >= 0 {
			hot(now, r.client, push)
		}
	}
}

// alternating is two clients, each asking its own model again as soon as it has
// been answered; the budget holds one of the two.
func (s Setup) alternating(rng *rand.Rand, src *source) {
	sent := 0
	ask := func(now time.Duration, client int, push func(request)) {
		if sent < s.Requests {
			t := tasks()[client*2] // parsing and matching
			push(request{id: sent, at: now, model: t.model, work: draw(rng, t), client: client})
			sent++
		}
	}
	ask(settle, 0, src.push)
	ask(settle, 1, src.push)
	think := 200 * time.Millisecond
	src.follow = func(now time.Duration, r request, push func(request)) { ask(now+think, r.client, push) }
}

// loyal is a client for each of the four models, asking it again as soon as it
// has been answered.
func (s Setup) loyal(rng *rand.Rand, src *source) {
	sent := 0
	ask := func(now time.Duration, client int, push func(request)) {
		if sent < s.Requests {
			push(request{id: sent, at: now, model: client, work: time.Duration((1 + rng.Float64()) * 1e9), client: client})
			sent++
		}
	}
	for c := range 4 {
		ask(settle, c, src.push)
	}
	think := 200 * time.Millisecond
	src.follow = func(now time.Duration, r request, push func(request)) { ask(now+think, r.client, push) }
}
