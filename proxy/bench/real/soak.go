package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tenure/proxy"
	"tenure/proxy/ollama/ollamasim"
)

const (
	soakClients = 10
	soakSeats   = 3
	disturb     = 2 * time.Minute  // between two disturbances of Ollama, at most
	recovery    = 20 * time.Second // after one, errors of the server are explained
	kindOfKept  = 200              // different questions whose answers are kept
)

// soaker plays mixed traffic and keeps the books.
type soaker struct {
	at *site
	w  io.Writer

	mu         sync.Mutex
	ends       map[string]int // of requests, by how
	sent       int
	last       time.Time // when Ollama was last disturbed, or well again
	disturbed  bool
	late       int // errors of the server with nothing to explain them
	violations []string
	samples    []soakSample
	outages    []outage
}

// soakSample is tenure and Ollama at a moment.
type soakSample struct {
	at         time.Time
	rss        float64 // MiB
	goroutines int
	leases     int
	waiting    int
	residents  int // by Ollama's account
}

// outage is a part of Ollama's log in which it was taken down: what it
// unloaded there, nobody evicted.
type outage struct {
	from, to int // moves
	killed   bool
}

// soak plays mixed traffic for o.soak and fails if anything was lost, leaked,
// overcommitted or evicted that must not be.
func soak(ctx context.Context, o options, w io.Writer) (err error) {
	g, err := newGround(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	s := scenario{name: "soak", seats: soakSeats, models: everyModel(), start: kept(), settings: []string{
		// Ollama loses the slot of an answer that was left now and then; it is
		// given back after 5 to 20 s, and those behind it wait that long.
		"TENURE_QUEUE_TIMEOUT=60s", "TENURE_QUEUE_LIMIT=64", "TENURE_IDLE_TIMEOUT=20s",
	}}
	at, err := g.open(ctx, &s, through)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, at.close()) }()
	if err := at.warm(ctx, &s); err != nil {
		return err
	}
	k := &soaker{at: at, w: w, ends: map[string]int{}}
	k.rest(ctx)
	atRest, err := k.sample(ctx)
	if err != nil {
		return err
	}
	k.say("at rest: %.1f MiB, %d goroutines", atRest.rss, atRest.goroutines)
	began := time.Now()

	playing, stop := context.WithTimeout(ctx, o.soak)
	defer stop()
	var all sync.WaitGroup
	for i := range soakClients {
		all.Go(func() { k.client(playing, rand.New(rand.NewPCG(o.seed, uint64(i)))) })
	}
	all.Go(func() { k.trouble(playing, o.soak) })
	all.Go(func() { k.observe(playing, began) })
	all.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := k.close(ctx, atRest); err != nil {
		return err
	}
	if len(k.violations) > 0 {
		return fmt.Errorf("%d violations, the first: %s", len(k.violations), k.violations[0])
	}
	k.say("no violation")
	return nil
}

func (k *soaker) say(format string, args ...any) { fmt.Fprintf(k.w, format+"\n", args...) }

func (k *soaker) violated(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	k.say("VIOLATION %s", text)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.violations = append(k.violations, text)
}

// client sends one request after another, of all kinds.
func (k *soaker) client(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil {
		k.mu.Lock()
		n := k.sent
		k.sent++
		k.mu.Unlock()
		t := tasks()[rng.IntN(len(tasks()))]
		q := question{model: "recruit/" + t.name, text: k.at.g.text("the soak", n), items: t.items(rng) / 2, seed: n}
		asking, leave := context.WithCancel(context.WithoutCancel(ctx)) // who asks when the time is over is still answered
		left := func() bool { return false }
		want := "answered"
		switch dice := rng.IntN(100); {
		case dice < 35:
		case dice < 55:
			q.whole = true
		case dice < 65: // somebody who leaves within the answer
			q.items = 40
			left = after(leave, time.Duration(100+rng.IntN(900))*time.Millisecond)
			want = "left"
		case dice < 75: // and who leaves at once, waiting or not
			left = after(leave, time.Duration(rng.IntN(60))*time.Millisecond)
			want = "left early"
		case dice < 78:
			q.text += strings.Repeat(k.at.g.texts[0], 40)
			want = "too long"
		case dice < 88:
			q.flex, q.whole = true, rng.IntN(2) == 0
		case dice < 91:
			q.model, want = "nobody", "unknown model"
		case dice < 95:
			q.model = t.model
		default: // whose answer is kept
			q.seed, q.kept, q.items = rng.IntN(kindOfKept), true, 0
			q.text = k.at.g.text("the kept", q.seed)
		}
		r, err := ask(asking, k.at.g.client, k.at.base, q)
		gone := left()
		leave()
		k.end(&r, err, gone, want)
		pause(ctx, time.Duration(rng.IntN(400))*time.Millisecond)
	}
}

// after calls leave after d. The function that it returns tells whether that has
// been, and else sees that it will not be.
func after(leave func(), d time.Duration) (left func() bool) {
	timer := time.AfterFunc(d, leave)
	return func() bool { return !timer.Stop() }
}

// end books how a request ended.
func (k *soaker) end(r *reply, err error, gone bool, want string) {
	how := "answered"
	switch {
	case err != nil && gone:
		how = "left"
	case err != nil:
		k.violated("no answer to a request %q: %v", want, err)
		how = "lost"
	case !r.inForm:
		k.violated("a request %q ended out of form: status %d, %d characters", want, r.status, r.chars)
		how = "out of form"
	case r.status != http.StatusOK:
		how = fmt.Sprintf("%d %s", r.status, r.code)
	case r.code != "":
		how = "broken off, " + r.code
	case want == "too long" || want == "unknown model":
		k.violated("a request %q was answered", want)
	case r.chars == 0:
		how = "empty"
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends[how]++
	server := r.status >= http.StatusInternalServerError || r.status == http.StatusOK && r.code != ""
	switch r.code {
	case "queue_timeout":
		server = !r.flex // nobody waits so long for an interactive answer; batch work may
	case "context_length_exceeded":
		server = false // also within a stream: who waits for long is sent the headers before it is known
	}
	if server && !k.disturbed && time.Since(k.last) > recovery {
		k.late++
		k.say("unexplained: %s, %s, after %v", how, r.model, r.took)
	}
}

// trouble kills, stops and halts Ollama in turns.
func (k *soaker) trouble(ctx context.Context, whole time.Duration) {
	every := min(disturb, whole/4)
	for i := 0; ; i++ {
		pause(ctx, every)
		if ctx.Err() != nil {
			return
		}
		if err := k.disturb(i); err != nil {
			k.violated("Ollama did not come back: %v", err)
			return
		}
	}
}

func (k *soaker) disturb(i int) (err error) {
	mark := func(on bool) (moves int) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.last, k.disturbed = time.Now(), on
		_, moves, err = k.at.since(0)
		return moves
	}
	from := mark(true)
	kind := []string{"killed", "halted for 3 s", "stopped"}[i%3]
	k.say("Ollama is %s", kind)
	background := context.Background() // it is to be well again even when the time is over
	switch i % 3 {
	case 0:
		err = k.at.ollama.Kill()
	case 1:
		if err = k.at.ollama.Pause(); err == nil {
			pause(background, 3*time.Second)
			err = k.at.ollama.Resume()
		}
	case 2:
		err = k.at.ollama.Stop()
	}
	if err != nil {
		return err
	}
	if i%3 != 1 {
		pause(background, time.Second)
		if err := k.at.ollama.Restart(background); err != nil {
			return err
		}
	}
	to := mark(false)
	k.outages = append(k.outages, outage{from, to, i%3 != 1})
	return err
}

// observe looks every other second, and tells every minute.
func (k *soaker) observe(ctx context.Context, began time.Time) {
	told := began
	for {
		pause(ctx, 2*time.Second)
		if ctx.Err() != nil {
			return
		}
		s, err := k.sample(ctx)
		if err != nil {
			if ctx.Err() == nil {
				k.violated("tenure's admin side: %v", err)
			}
			continue
		}
		k.samples = append(k.samples, s)
		if time.Since(told) < time.Minute {
			continue
		}
		told = time.Now()
		k.mu.Lock()
		k.say("%3.0f min: %d sent, %d answered, %d left; %d leases, %d wait, %d models; %.1f MiB, %d goroutines",
			time.Since(began).Minutes(), k.sent, k.ends["answered"], k.ends["left"], s.leases, s.waiting, s.residents, s.rss, s.goroutines)
		k.mu.Unlock()
	}
}

// sample looks once, and checks what must hold at any moment.
func (k *soaker) sample(ctx context.Context) (s soakSample, err error) {
	var st proxy.State
	if err := k.at.admin(ctx, "/admin/state", &st); err != nil {
		return s, err
	}
	var metrics string
	if err := k.at.admin(ctx, "/metrics", &metrics); err != nil {
		return s, err
	}
	s = soakSample{at: time.Now(), rss: metric(metrics, "process_resident_memory_bytes") / (1 << 20), goroutines: int(metric(metrics, "go_goroutines")), leases: st.Residency.Leases}
	for _, line := range st.Residency.Waiting {
		s.waiting += line.Count
	}
	if running, err := k.at.direct.Running(ctx); err == nil { // it may be away
		s.residents = len(running)
	}
	if n := len(st.Residency.Residents); n > soakSeats || s.residents > soakSeats || st.Residency.Used > st.Residency.Budget {
		k.violated("overcommitted: the book has %d models of %v, Ollama %d", n, st.Residency.Used, s.residents)
	}
	return s, nil
}

// metric is the sum of a metric over its labels.
func metric(text, name string) (sum float64) {
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err == nil {
			sum += v
		}
	}
	return sum
}

// rest waits until nobody asks, waits or is served.
func (k *soaker) rest(ctx context.Context) {
	k.at.g.client.CloseIdleConnections()
	err := k.at.settle(ctx, func(st *proxy.State) bool { return st.Residency.Leases == 0 && len(st.Residency.Waiting) == 0 })
	if err != nil {
		k.violated("not at rest 30 s after the last request: %v", err)
	}
	pause(ctx, 3*time.Second) // connections are closed, collections made
}

// close checks what must hold at the end, and prints the books.
func (k *soaker) close(ctx context.Context, before soakSample) error {
	k.rest(ctx)
	var after soakSample
	for range 10 { // what was cancelled last ends in its own time
		var err error
		if after, err = k.sample(ctx); err != nil {
			return err
		}
		if after.goroutines <= before.goroutines+restGoroutines {
			break
		}
		pause(ctx, 2*time.Second)
	}
	moves, err := k.at.ollama.Moves()
	if err != nil {
		return err
	}
	var metrics string
	if err := k.at.admin(ctx, "/metrics", &metrics); err != nil {
		return err
	}
	k.judgeMoves(moves, int(metric(metrics, "tenure_model_revivals_total")))
	if received, ended := metric(metrics, "tenure_requests_received_total"), metric(metrics, "tenure_requests_total"); received != ended {
		k.violated("%v requests received, %v ended", received, ended)
	}
	var st proxy.State
	if err := k.at.admin(ctx, "/admin/state", &st); err != nil {
		return err
	}
	if n := st.Residency.Counters.Unsound; n != 0 {
		k.violated("%d unsound plans", n)
	}
	if after.goroutines > before.goroutines+restGoroutines {
		k.violated("%d goroutines at the end, %d at the start", after.goroutines, before.goroutines)
	}
	if k.late > 0 {
		k.violated("%d errors of the server with nothing to explain them", k.late)
	}
	n := len(k.samples)
	early, late := meanRSS(k.samples[n/4:n/4+max(n/10, 1)]), meanRSS(k.samples[n-max(n/10, 1):])
	if late > early*flatRatio+flatMiB {
		k.violated("memory grew from %.1f MiB after the first quarter to %.1f MiB", early, late)
	}
	k.say("memory: %.1f MiB at the start, %.1f after the first quarter, %.1f at the end, %.1f at rest; goroutines: %d at the start, %d at rest",
		before.rss, early, late, after.rss, before.goroutines, after.goroutines)
	k.say("requests: %d; disturbances of Ollama: %d", k.sent, len(k.outages))
	for _, how := range slices.Sorted(maps.Keys(k.ends)) {
		k.say("  %6d %s", k.ends[how], how)
	}
	return nil
}

const (
	restGoroutines = 16  // more at the end than at the start: the cache keeps as many that are idle
	flatRatio      = 1.2 // of resident memory, for what a collector leaves behind
	flatMiB        = 4
)

func meanRSS(samples []soakSample) float64 {
	sum := 0.0
	for _, s := range samples {
		sum += s.rss
	}
	return sum / float64(len(samples))
}

// judgeMoves replays what Ollama did by its own log.
func (k *soaker) judgeMoves(moves []ollamasim.Move, revived int) {
	counts := map[ollamasim.What]int{}
	here := map[string]bool{}
	most, t0 := 0, 0
	for i, m := range moves {
		down := slices.ContainsFunc(k.outages, func(o outage) bool { return o.killed && o.from <= i && i < o.to })
		if slices.ContainsFunc(k.outages, func(o outage) bool { return o.killed && o.to == i }) {
			clear(here)
		}
		if down {
			continue
		}
		counts[m.What]++
		switch m.What {
		case ollamasim.Load:
			here[m.Model] = true
			most = max(most, len(here))
		case ollamasim.Unload:
			delete(here, m.Model)
			if m.Model == phi3 {
				t0++
			}
		case ollamasim.Evict: // the unload follows
		}
	}
	k.say("Ollama: %d loads, %d unloads, %d evictions of its own; at most %d models at once; T0 unloaded %d times, %d of them to give it its lost slot back",
		counts[ollamasim.Load], counts[ollamasim.Unload], counts[ollamasim.Evict], most, t0, min(t0, revived))
	if counts[ollamasim.Evict] > 0 {
		k.violated("Ollama evicted %d times by itself", counts[ollamasim.Evict])
	}
	if most > soakSeats {
		k.violated("%d models at once, for %d seats", most, soakSeats)
	}
	if t0 > revived {
		k.violated("T0 was unloaded %d times", t0-revived)
	}
}
