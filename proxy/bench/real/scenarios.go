package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// scenario is a workload, the same for both ways.
type scenario struct {
	name     string
	what     string
	seats    int      // models in memory at once, Ollama's limit and tenure's
	flat     bool     // no T0 and no T1
	bytes    bool     // there is a card, and bytes are what counts
	workflow bool     // tenure can be told which one
	paging   bool     // more models than seats: see also what the seat that T0 keeps costs, and what the other preset does
	models   []string // that are asked
	start    []string // in memory at the start; nil: whatever the warm-up left
	settings []string // of tenure
	run      func(context.Context, *driver)
	// judge holds the medians to what tenure is to reach.
	judge func(plain, ours *summary) []verdict
}

func (s *scenario) ways() []string {
	list := []string{straight, through}
	if s.workflow {
		list = append(list, told)
	}
	if s.paging {
		list = append(list, equal, balanced)
	}
	return list
}

// outcome is what became of one run.
type outcome struct {
	tally
	replies  []reply
	makespan time.Duration
	failed   int           // errors of the network
	load     time.Duration // of llama3, the last time, by tenure
}

// driver sends a scenario's requests.
type driver struct {
	at       *site
	scenario *scenario

	told bool // tenure is told which workflow it is

	mu     sync.Mutex
	taken  []reply
	failed int
}

func (d *driver) outcome(makespan time.Duration) outcome {
	return outcome{replies: d.taken, makespan: makespan, failed: d.failed}
}

// ask sends one request and waits for its answer. n tells requests of a
// scenario apart.
func (d *driver) ask(ctx context.Context, model string, n, items int, header map[string]string) {
	r, err := ask(ctx, d.at.g.client, d.at.base, question{model: model, text: d.at.g.text(d.scenario.name, n), items: items, seed: n, header: header})
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failed++
		return
	}
	d.taken = append(d.taken, r)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// task is one of the catalog's five, with the length of its answers: about a
// twelfth of the time that an A5000 is expected to take, as loads are.
type task struct {
	name     string
	model    string
	from, to int // items
}

func tasks() []task {
	return []task{
		{"resume_parsing", deepseek, 8, 14},
		{"bias_detection", mistral, 4, 8},
		{"matching_logic", llama3, 14, 18},
		{"script_generation", llama3, 18, 24},
		{"report_generation", phi3, 2, 4},
	}
}

func (t task) items(rng *rand.Rand) int { return t.from + rng.IntN(t.to-t.from+1) }

func everyModel() []string { return []string{llama3, phi3, deepseek, mistral} }

func kept() []string { return []string{phi3, deepseek, mistral} }

// scenarios lists them all; short, each is a quarter as long.
func scenarios(short bool) []scenario {
	size := func(n int) int {
		if short {
			return max(n/4, 1)
		}
		return n
	}
	list := []scenario{
		{
			name: "S1r", what: "one seat; two clients, each with its own model, ask again at once", seats: 1, flat: true,
			models: []string{deepseek, llama3}, run: loyal(size(40), 20*time.Millisecond, deepseek, llama3),
			judge: func(plain, ours *summary) []verdict {
				return []verdict{atMost("loads", ours.loads, 8), noRefusal(ours)}
			},
		},
		{
			name: "S1s", what: "three seats; four clients, each with its own model", seats: 3, paging: true, models: everyModel(), start: kept(),
			run: loyal(size(56), 20*time.Millisecond, everyModel()...), judge: fewerLoadsSameP95,
		},
		{
			name: "S2", what: "three seats; the five tasks at random, Poisson arrivals, 2.5 a second", seats: 3, paging: true, models: everyModel(), start: kept(),
			run: poisson(size(80), 2.5), judge: fewerLoadsSameP95,
		},
		{
			name: "S3", what: "three seats hogged by two clients each; one request for the fourth model after 2 s", seats: 3, models: everyModel(), start: kept(),
			settings: []string{"TENURE_MAX_WAIT=" + hogMaxWait.String()}, run: hog(size(20)), judge: judgeHog,
		},
		{
			name: "S4", what: "three seats; 60 requests at once for the absent model", seats: 3, models: everyModel(), start: kept(),
			run: burst(size(60)), judge: func(plain, ours *summary) []verdict {
				return []verdict{atMost("loads", ours.loads, 1), noRefusal(ours), noT0(ours)}
			},
		},
	}
	// The same by bytes: phi3:mini takes no other's place.
	for _, s := range list {
		if !s.paging {
			continue
		}
		s.name, s.what = s.name+"-bytes", "room for phi3:mini and two others"+strings.TrimPrefix(s.what, "three seats")
		s.seats, s.bytes, s.paging = 4, true, false
		list = append(list, s)
	}
	for _, c := range []struct{ clients, candidates int }{{1, 8}, {4, 16}, {8, 24}} {
		list = append(list, scenario{
			name: fmt.Sprintf("pipeline-%d", c.clients), what: fmt.Sprintf("three seats; so many clients run the five steps of the pipeline, for %d candidates", size(c.candidates)),
			seats: 3, workflow: c.clients == 1, models: everyModel(), start: kept(), run: pipeline(c.clients, size(c.candidates)), judge: asFast,
		})
	}
	return append(list, scenario{
		name: "four-seats", what: "everything fits; four clients, each with its own model", seats: 4, models: everyModel(), start: everyModel(),
		run: loyal(size(120), 0, everyModel()...), judge: func(plain, ours *summary) []verdict {
			return append(asFast(plain, ours), atMost("loads and unloads", ours.loads+ours.unloads, 0), slower("mean answer", plain.mean, ours.mean))
		},
	})
}

// loyal is one client a model: n requests in all.
func loyal(n int, think time.Duration, models ...string) func(context.Context, *driver) {
	return func(ctx context.Context, d *driver) {
		rng := rand.New(rand.NewPCG(d.at.g.seed, 1))
		items := make([]int, n)
		for i := range items {
			items[i] = 6 + rng.IntN(7)
		}
		var clients sync.WaitGroup
		for c, m := range models {
			clients.Go(func() {
				for i := c; i < n && ctx.Err() == nil; i += len(models) {
					d.ask(ctx, m, i, items[i], nil)
					pause(ctx, think)
				}
			})
		}
		clients.Wait()
	}
}

// poisson is independent requests, rate a second.
func poisson(n int, rate float64) func(context.Context, *driver) {
	return func(ctx context.Context, d *driver) {
		rng := rand.New(rand.NewPCG(d.at.g.seed, 2))
		var under sync.WaitGroup
		start, at := time.Now(), 0.0
		for i := range n {
			t := tasks()[rng.IntN(len(tasks()))]
			items := t.items(rng)
			at += rng.ExpFloat64() / rate
			pause(ctx, time.Until(start.Add(time.Duration(at*float64(time.Second)))))
			under.Go(func() { d.ask(ctx, t.model, i, items, nil) })
		}
		under.Wait()
	}
}

// hog is two clients for each of three models, n requests each, and one
// request for the fourth.
func hog(n int) func(context.Context, *driver) {
	return func(ctx context.Context, d *driver) {
		var clients sync.WaitGroup
		for c := range 6 {
			clients.Go(func() {
				for i := range n {
					d.ask(ctx, kept()[c%3], c*n+i, 8, nil)
				}
			})
		}
		pause(ctx, 2*time.Second)
		d.ask(ctx, llama3, 0, 8, map[string]string{"X-Victim": "1"})
		clients.Wait()
	}
}

func burst(n int) func(context.Context, *driver) {
	return func(ctx context.Context, d *driver) {
		var clients sync.WaitGroup
		for i := range n {
			clients.Go(func() { d.ask(ctx, llama3, i, 4, nil) })
		}
		clients.Wait()
	}
}

// pipeline runs the five tasks one after another for each candidate.
func pipeline(clients, candidates int) func(context.Context, *driver) {
	return func(ctx context.Context, d *driver) {
		rng := rand.New(rand.NewPCG(d.at.g.seed, 3))
		items := make([]int, candidates*len(tasks()))
		for i := range items {
			items[i] = tasks()[i%len(tasks())].items(rng)
		}
		next := make(chan int, candidates)
		for i := range candidates {
			next <- i
		}
		close(next)
		var under sync.WaitGroup
		for range clients {
			under.Go(func() {
				for candidate := range next {
					for step, t := range tasks() {
						n, model := candidate*len(tasks())+step, t.model
						var header map[string]string
						if d.told {
							header = map[string]string{"Tenure-Workflow": fmt.Sprintf("full_recruitment_pipeline; run=%d", candidate)}
						}
						if d.at.tenure != nil {
							model = "recruit/" + t.name // the same model, by its task
						}
						d.ask(ctx, model, n, items[n], header)
					}
				}
			})
		}
		under.Wait()
	}
}

// victims are the replies to the request for the fourth model.
func (o *outcome) victims() (list []reply) {
	for _, r := range o.replies {
		if r.header["X-Victim"] != "" {
			list = append(list, r)
		}
	}
	return list
}

// services are the times from first to last token, sorted.
func (o *outcome) services() []time.Duration {
	var list []time.Duration
	for _, r := range o.replies {
		list = append(list, r.took-r.wait)
	}
	slices.Sort(list)
	return list
}
