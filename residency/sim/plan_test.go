package sim

import (
	"testing"
	"time"

	"tenure/residency"
)

func base(chains ...Chain) Batch {
	return Batch{
		Models: Models(2), Resident: []string{"phi3:mini", "deepseek-llm:7b", "mistral"},
		Budget: 20 * residency.GiB, MaxModels: 3, Chains: chains,
	}
}

func pipelineChain(n int) Chain {
	c := Chain{Name: "pipeline", Count: n}
	for _, t := range tasks() {
		c.Stages = append(c.Stages, Stage{Models(1)[t.model].Name, time.Duration((t.lo + t.hi) / 2 * 1e9)})
	}
	return c
}

func TestMinLoads(t *testing.T) {
	chain := func(names ...string) Chain {
		c := Chain{Count: 3}
		for _, n := range names {
			c.Stages = append(c.Stages, Stage{n, time.Second})
		}
		return c
	}
	const p, d, m, l = "phi3:mini", "deepseek-llm:7b", "mistral", "llama3"
	for _, c := range []struct {
		resident []string
		chain    Chain
		want     int
	}{
		{[]string{p, d, m}, chain(d, m, l, l, p), 1}, // evict deepseek once it is done with
		{[]string{p, m, l}, chain(d, m, l, l, p), 2}, // deepseek in, then llama back or kept
		{[]string{p, d, m}, chain(d, l, m, d, l, p), 2},
		{[]string{p, d, m}, chain(d, m, p), 0},
		{nil, chain(p), 1},
	} {
		b := base(c.chain)
		b.Resident = c.resident
		if got, err := b.MinLoads(); err != nil || got != c.want {
			t.Errorf("%v from %v: %d loads, want %d: %v", c.chain.Stages, c.resident, got, c.want, err)
		}
	}
	b := base(chain("llama3"))
	b.Budget = 9 * residency.GiB // llama3 does not fit beside the pinned model
	if _, err := b.MinLoads(); err == nil {
		t.Error("an impossible batch was planned")
	}
}

func TestPlanBatch(t *testing.T) {
	one := func(name, model string, n int, work time.Duration) Chain {
		return Chain{name, n, []Stage{{model, work}}}
	}
	for _, c := range []struct {
		name  string
		batch Batch
		gap   float64
		loads int
	}{
		{"1,000 lines", base(one("parsing", "deepseek-llm:7b", 300, 2500*time.Millisecond), one("bias", "mistral", 300, 1500*time.Millisecond), one("matching", "llama3", 400, 3500*time.Millisecond)), 1.03, 10},
		{"64 candidates", base(pipelineChain(64)), 1.06, 64},
		{"one candidate", base(pipelineChain(1)), 1.30, 1},
	} {
		start := time.Now()
		p, err := PlanBatch(c.batch)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s, window %d: %v, %.3f of the bound, %d loads (at least %d), %d rules in %v", c.name, p.Rule, p.Window, p.Makespan.Round(time.Second), p.Gap, p.Loads, p.MinLoads, p.Tried, time.Since(start).Round(time.Millisecond))
		if p.Gap > c.gap || p.Gap < 1 {
			t.Errorf("%s: %.3f of the lower bound, want at most %.2f", c.name, p.Gap, c.gap)
		}
		if p.Loads > c.loads || p.Loads < p.MinLoads || len(p.Moves) != p.Loads {
			t.Errorf("%s: %d loads in %d moves, at least %d", c.name, p.Loads, len(p.Moves), p.MinLoads)
		}
		n := 0
		for _, ch := range p.Chains {
			n += ch.Count
			if ch.First > ch.Median || ch.Median > ch.Last || ch.Last > p.Makespan {
				t.Errorf("%s: progress %+v", c.name, ch)
			}
		}
		want := 0
		for _, ch := range c.batch.Chains {
			want += ch.Count
		}
		if n != want {
			t.Errorf("%s: %d items end, want %d", c.name, n, want)
		}
	}
	if _, err := PlanBatch(base(one("x", "unknown", 1, time.Second))); err == nil {
		t.Error("a model that does not exist was planned")
	}
}
