package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tenure/residency"
)

// memory is what there is room for: the head to head counts three seats; a
// card counts bytes, of which the small model takes few.
type memory struct {
	budget residency.Bytes
	models int
}

// counted plays S1s (four loyal clients) or S2 (the five tasks, Poisson) of
// the head to head on a real Ollama: its requests, and times as measured there.
// Waits are in real seconds. flat: every model may leave. No policy: Ollama.
func counted(t *testing.T, loyal, flat bool, card memory, seed uint64, p residency.Policy) (loads, p95 float64) {
	t.Helper()
	src := &source{}
	const (
		n     = 12 // requests that warm up, one after another
		think = 20 * time.Millisecond
		begin = 10 * time.Second
	)
	work := func(items int) time.Duration {
		return 10*time.Millisecond + time.Duration(items)*16500*time.Microsecond
	}
	warm := 0
	warming := func(now time.Duration, push func(request)) {
		if warm < n {
			push(request{id: -1 - warm, at: now, model: []int{llama, phi, deepseek, mistral}[warm%4], work: work(6)})
			warm++
		}
	}
	warming(2*time.Second, src.push)
	follow := func(time.Duration, request, func(request)) {}
	if loyal {
		rng := rand.New(rand.NewPCG(seed, 1))
		var works [56]time.Duration
		for i := range works {
			works[i] = work(6 + rng.IntN(7))
		}
		ask := func(now time.Duration, id int, push func(request)) {
			if id < len(works) {
				push(request{id: id, at: now, model: []int{llama, phi, deepseek, mistral}[id%4], work: works[id]})
			}
		}
		for c := range 4 {
			ask(begin, c, src.push)
		}
		follow = func(now time.Duration, r request, push func(request)) { ask(now+think, r.id+4, push) }
	} else {
		rng, at := rand.New(rand.NewPCG(seed, 2)), begin
		for id := range 80 {
			kind := [5]struct{ model, from, to int }{{deepseek, 8, 14}, {mistral, 4, 8}, {llama, 14, 18}, {llama, 18, 24}, {phi, 2, 4}}[rng.IntN(5)]
			items := kind.from + rng.IntN(kind.to-kind.from+1)
			at += time.Duration(rng.ExpFloat64() / 2.5 * 1e9)
			src.push(request{id: id, at: at, model: kind.model, work: work(items)})
		}
	}
	src.follow = func(now time.Duration, r request, push func(request)) {
		if r.id < 0 {
			warming(now, push)
			return
		}
		follow(now, r, push)
	}
	models := Models(1)
	for i := range models {
		models[i].LoadTime = 300 * time.Millisecond
		if flat {
			models[i].Tier = residency.T2
		}
	}
	s := Setup{
		Slots: 1, MaxWait: 4 * time.Second, Budget: card.budget, maxModels: card.models, policy: p,
		order: []int{deepseek, phi, mistral, llama}, // by the generated models' digests
	}.WithDefaults()
	e := newEngine(Physics{Beta: .25, Gamma: 1, LoadSlow: .05, Unload: 13 * time.Millisecond}, models, s.Budget, src)
	chance := rand.New(rand.NewPCG(seed, 3))
	e.times = func(int, int) time.Duration {
		if chance.Float64() < .12 { // Ollama happened to look at the right time
			return 50 * time.Millisecond
		}
		return 285*time.Millisecond + time.Duration(chance.IntN(43))*time.Millisecond
	}
	e.moved = func(_ int, load bool) {
		if load && e.now >= begin {
			loads++
		}
	}
	e.rec.keep = true
	policy := "carp"
	if p == nil {
		policy = "ollama"
	}
	srv, err := s.server(e, policy)
	if err != nil {
		t.Fatal(err)
	}
	e.srv = srv
	for _, m := range []int{phi, deepseek, mistral} {
		srv.preload(m)
	}
	if err := e.run(0, nil); err != nil {
		t.Fatal(err)
	}
	var waits []float64
	for i, g := range e.rec.grants {
		if g.id >= 0 {
			waits = append(waits, e.rec.waits[residency.Interactive][i])
		}
	}
	slices.Sort(waits)
	return loads, quantile(waits, .95)
}

// TestHeadToHead simulates what the head to head measures, with many more
// lists of requests: how many loads buy what 95th percentile.
func TestHeadToHead(t *testing.T) {
	const lists = 200
	card := memory{40 * residency.GiB, 3}
	play := func(loyal, flat bool, p residency.Policy) (loads, p95 float64) {
		for seed := range uint64(lists) {
			l, w := counted(t, loyal, flat, card, seed, p)
			loads += l / lists
			p95 += w / lists
		}
		return loads, p95
	}
	show := func(what string, flat bool, p residency.Policy) (l1, w1, l2, w2 float64) {
		l1, w1 = play(true, flat, p)
		l2, w2 = play(false, flat, p)
		t.Logf("%-20s S1s %4.1f loads, p95 %.2f s; S2 %4.1f loads, p95 %.2f s", what, l1, w1, l2, w2)
		return l1, w1, l2, w2
	}
	o1, v1, o2, v2 := show("ollama", false, nil)
	l1, w1, l2, w2 := show("carp", false, residency.Latency())
	if w1 > v1 || l1 > o1 {
		t.Errorf("S1s: %.1f loads and a p95 of %.2f s against %.1f and %.2f", l1, w1, o1, v1)
	}
	if l2 > 1.15*o2 || w2 > 1.3*v2 {
		t.Errorf("S2: %.1f loads and a p95 of %.2f s against %.1f and %.2f", l2, w2, o2, v2)
	}
	show("carp, no T0", true, residency.Latency())
	for _, c := range []struct {
		name   string
		change func(*residency.CARP)
	}{
		{"ThetaHot .65", func(p *residency.CARP) { p.ThetaHot = .65 }},
		{"ThetaHot 1", func(p *residency.CARP) { p.ThetaHot = 1 }},
		{"ThetaHot 2", func(p *residency.CARP) { p.ThetaHot = 2 }},
		{"ThetaHot 10", func(p *residency.CARP) { p.ThetaHot = 10 }},
		{"Theta 2", func(p *residency.CARP) { p.Theta = 2 }},
		{"Eta 0", func(p *residency.CARP) { p.Eta = 0 }},
		{"Kappa .5", func(p *residency.CARP) { p.Kappa = .5 }},
		{"Kappa 1", func(p *residency.CARP) { p.Kappa = 1 }},
		{"balanced", func(p *residency.CARP) { *p = residency.Balanced() }},
		{"economy", func(p *residency.CARP) { *p = residency.Economy() }},
	} {
		p := residency.Latency()
		c.change(&p)
		show(c.name, false, p)
	}

	card = memory{20 * residency.GiB, 4}
	o1, v1, o2, v2 = show("by bytes: ollama", false, nil)
	l1, w1, l2, w2 = show("by bytes: carp", false, residency.Latency())
	if w1 > v1 || l1 > .6*o1 {
		t.Errorf("S1s by bytes: %.1f loads and a p95 of %.2f s against %.1f and %.2f", l1, w1, o1, v1)
	}
	if w2 > 1.02*v2 || l2 > .8*o2 {
		t.Errorf("S2 by bytes: %.1f loads and a p95 of %.2f s against %.1f and %.2f", l2, w2, o2, v2)
	}
}
