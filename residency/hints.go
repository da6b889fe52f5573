package residency

import "time"

// Step is one request of a declared workflow.
type Step struct {
	Model Model
	Work  time.Duration // expected; 0 takes the learnt mean
}

// workflow is a declared run of steps; the first is the one being asked.
type workflow struct {
	at    time.Time
	steps []Step
}

const (
	workflowLife = 10 * time.Minute // a run not heard of for so long is forgotten
	stepLate     = time.Minute      // a step that much later than declared is not awaited any longer
	maxWorkflows = 256              // hints are only hints: beyond, the newest are ignored
	minHitRate   = 0.8              // prefetching on worse hints evicts useful models
	minHits      = 10               // hits and misses before the rate is trusted
)

// Expect declares what a workflow run will ask for: steps[0] is about to be
// asked, the others follow one after the other. Each call replaces the run's last; no
// steps end it. It moves nothing by itself but lets a policy prefetch.
func (b *Book) Expect(now time.Time, key string, steps []Step) Effects {
	b.begin(now)
	if b.closed {
		return b.fx
	}
	if len(steps) < 2 {
		delete(b.flows, key)
	} else if _, known := b.flows[key]; known || len(b.flows) < maxWorkflows {
		b.flows[key] = workflow{b.view.Now, append([]Step(nil), steps...)}
	}
	for _, step := range steps {
		b.seat(step.Model)
	}
	for i := range b.view.Seats {
		b.view.Seats[i].NextUse = time.Time{}
	}
	for key, f := range b.flows {
		if b.view.Now.Sub(f.at) > workflowLife {
			delete(b.flows, key)
			continue
		}
		at := f.at
		for _, step := range f.steps {
			s := &b.view.Seats[b.names[step.Model.Name]]
			s.NextUse = sooner(s.NextUse, at)
			if step.Work == 0 {
				step.Work = s.Service
			}
			at = at.Add(step.Work)
		}
	}
	if n := b.count.PrefetchHits + b.count.PrefetchMisses; n >= minHits {
		b.view.Mistrust = float64(b.count.PrefetchHits) < minHitRate*float64(n)
	}
	b.step()
	return b.fx
}

// expected reports whether a declared workflow is about to use the model.
func (s *Seat) expected(now time.Time) bool {
	return !s.NextUse.IsZero() && now.Before(s.NextUse.Add(stepLate))
}
