package proxy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"tenure/proxy/ollama"
	"tenure/residency"
)

// actReconcile marks the journal's entries about what Ollama did by itself, or
// what was done about it.
const actReconcile residency.Action = "reconcile"

// Findings, as the journal, the log and tenure_reconciliations_total name them.
const (
	whatRestart  = "restart"  // Ollama was away and is back
	whatVanished = "vanished" // a model is gone that nobody here unloaded
	whatAppeared = "appeared" // a model of the catalog is there that nobody here loaded: unloaded
	whatForeign  = "foreign"  // another model is there: counted
	whatCPU      = "cpu"      // part of a model moved to main memory: loaded again
	whatContext  = "context"  // a model has another context than it was loaded with: loaded again
	whatPin      = "pin"      // a model would expire: pinned again
	whatRunner   = "runner"   // a model's process died while Ollama lists it: loaded again
	whatWedge    = "wedge"    // no load completes though Ollama answers
	whatRescue   = "rescue"   // a model that had been unloaded was unloaded again, to free the others
)

const (
	// forEver is how far off the end of a pinned model is at least. Ollama
	// writes keep_alive -1 as some 292 years.
	forEver = 365 * 24 * time.Hour
	// A load that takes stuckFactor times what is expected, and no less than
	// stuckLeast, is stuck: a cold disk is slow, too.
	stuckFactor = 5
	stuckLeast  = 20 * time.Second
	// sweepEvery is the pause between two unloads of a model that somebody
	// keeps loading past tenure.
	sweepEvery = time.Minute
	// Models that vanish so many times within so long are not accidents.
	vanishesMany = 7
	vanishesIn   = 2 * time.Minute
	evictsWhy    = "Ollama evicts by itself: OLLAMA_MAX_LOADED_MODELS must be at least MAX_CONCURRENT_MODELS, MEMORY_THRESHOLD no more than the GPU has, and no other client may load models"
	// holdWithin is how long a repair waits for a model to itself.
	holdWithin = time.Second
)

// watched is what the watcher remembers between two looks.
type watched struct {
	mu      sync.Mutex
	met     bool                 // Ollama has answered before
	excused map[string]bool      // the operator unloaded it: a restart does not bring it back
	lost    map[string]time.Time // when a dead runner was last reported
	stuck   stuck
	evicts  bool // Ollama evicts by itself

	// Of the watcher's goroutine alone.
	seen    map[string]shape     // ready models, as they were first seen
	strange map[string]time.Time // models that are not ours: when they were last unloaded, or zero
	gone    []time.Time          // when models vanished lately
	high    bool                 // memory is above memoryHigh
}

// shape is what may change of a model while it is resident.
type shape struct {
	vram    residency.Bytes
	context int
	told    bool
}

// stuck is a load that does not end.
type stuck struct {
	model   string // loading now
	since   time.Time
	loads   uint64 // completed when it was noticed
	limit   time.Duration
	noticed bool
	quiet   time.Time // since when nothing loads, while noticed
	tried   []string  // residents that were unloaded in vain
}

// stuckOn names the model whose load shows that Ollama is wedged.
func (w *watched) stuckOn() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stuck.noticed {
		return ""
	}
	return w.stuck.model
}

func (w *watched) trouble() string {
	if model := w.stuckOn(); model != "" {
		return "Ollama answers but completes no load: " + model + " is overdue. Restart Ollama if it does not end by itself"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.evicts {
		return "Models keep vanishing, as when " + evictsWhy
	}
	return ""
}

// vanished counts models that were gone at one look, and reports whether it has
// just become clear that something keeps taking them away.
func (w *watched) vanished(n int) bool {
	now := time.Now()
	w.gone = slices.DeleteFunc(w.gone, func(at time.Time) bool { return now.Sub(at) > vanishesIn })
	for range n {
		w.gone = append(w.gone, now)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.evicts
	w.evicts = len(w.gone) >= vanishesMany || before && len(w.gone) > 0
	return w.evicts && !before
}

// excuse records whether the operator wants a model not to be preloaded.
func (w *watched) excuse(model string, excused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.excused == nil {
		w.excused = map[string]bool{}
	}
	w.excused[model] = excused
}

func (w *watched) isExcused(model string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.excused[model]
}

// found tells of a finding: in the log, the metrics and the journal.
func (s *Server) found(what, model, whom string, took time.Duration) {
	s.log.Warn("reconciled", "what", what, "model", model, "for", whom)
	s.metrics.reconciled.WithLabelValues(what).Inc()
	s.journal.add(what, residency.Decision{At: time.Now(), Action: actReconcile, Model: model, For: whom, Took: took})
}

// greeted counts a server that is back; the first time is no finding.
func (s *Server) greeted() {
	s.watched.mu.Lock()
	again := s.watched.met
	s.watched.met = true
	s.watched.stuck = stuck{} // a new process is not wedged
	s.watched.mu.Unlock()
	if again {
		s.found(whatRestart, "", "", 0)
	}
}

// repair compares what the book lends out with what Ollama lists, and puts
// right what can be. before and now are the book before and after Ollama was
// asked: what moved in between is left alone.
func (s *Server) repair(ctx context.Context, before, now *residency.State, running []ollama.Resident) {
	listed := map[string]ollama.Resident{}
	for _, r := range running {
		listed[ShortName(r.Name)] = r
	}
	ready := map[string]bool{}
	for _, r := range before.Residents {
		ready[r.Model.Name] = r.Phase == residency.Ready
	}
	seen := map[string]shape{}
	for _, r := range now.Residents {
		name := r.Model.Name
		l, there := listed[name]
		if !there || !ready[name] || r.Phase != residency.Ready {
			continue
		}
		first, known := s.watched.seen[name]
		if !known {
			first = shape{vram: l.VRAM, context: l.Context}
		}
		what := ""
		switch {
		case l.Context != first.context:
			what = whatContext
		case l.VRAM < first.vram:
			what = whatCPU
		case time.Now().Before(l.ExpiresAt) && time.Until(l.ExpiresAt) < forEver && r.Leases == 0:
			s.pin(ctx, r.Model)
		}
		if what != "" {
			if !first.told {
				s.found(what, name, "", 0)
				first.told = true
			}
			if r.Leases == 0 && s.reload(ctx, r.Model) {
				continue // it is seen anew after the load
			}
		}
		seen[name] = first
	}
	s.watched.seen = seen
}

// hold takes every slot of a resident model, so that nobody runs on it and
// nobody unloads it. It gives up at once when the model is in use.
func (s *Server) hold(ctx context.Context, m residency.Model) (release func(), ok bool) {
	ctx, cancel := context.WithTimeout(ctx, holdWithin)
	defer cancel()
	var leases []*residency.Lease
	release = func() {
		for _, l := range leases {
			l.Release()
		}
	}
	for range max(m.Slots, 1) {
		l, err := s.residency.Acquire(ctx, m, residency.Batch)
		if err != nil {
			release()
			return nil, false
		}
		leases = append(leases, l)
	}
	return release, true
}

// pin makes a resident model stay for good again.
func (s *Server) pin(ctx context.Context, m residency.Model) {
	release, ok := s.hold(ctx, m)
	if !ok {
		return
	}
	defer release()
	s.found(whatPin, m.Name, "", 0)
	if _, err := s.ollama.Load(ctx, m); err != nil {
		s.log.Warn("model not pinned again", "model", m.Name, "err", logText(err))
	}
}

// reload takes an idle model out so that the book loads it anew. It reports
// whether it did.
func (s *Server) reload(ctx context.Context, m residency.Model) bool {
	release, ok := s.hold(ctx, m)
	if !ok {
		return false
	}
	defer release()
	if err := s.ollama.Unload(ctx, m); err != nil {
		s.log.Warn("model not unloaded", "model", m.Name, "err", logText(err))
		return false
	}
	s.residency.Lost(m.Name)
	return true
}

// strangers deals with models that nobody here loaded. Those of the catalog are
// tenure's to move: at the second look they are unloaded. Others are counted.
func (s *Server) strangers(ctx context.Context, foreign map[string]residency.Bytes) {
	managed := map[string]bool{}
	for _, m := range s.router.Catalog().Models {
		managed[m.Name] = true
	}
	strange := map[string]time.Time{}
	for _, name := range slices.Sorted(maps.Keys(foreign)) {
		at, known := s.watched.strange[name]
		switch {
		case !known && !managed[name]:
			s.found(whatForeign, name, "", 0)
		case !known:
			s.found(whatAppeared, name, "", 0)
		case managed[name] && time.Since(at) > sweepEvery:
			at = time.Now()
			if err := s.ollama.Unload(ctx, residency.Model{Name: name}); err != nil {
				s.log.Warn("model that appeared not unloaded", "model", name, "err", logText(err))
			} else {
				delete(foreign, name)
			}
		}
		strange[name] = at
	}
	s.watched.strange = strange
}

// runnerLost notices that a model's process died: Ollama goes on listing it,
// and would load it again without its pin. began is when the request was sent
// that failed.
func (s *Server) runnerLost(model string, began time.Time, err error) {
	if !runnerDied(err) {
		return
	}
	s.watched.mu.Lock()
	if s.watched.lost == nil {
		s.watched.lost = map[string]time.Time{}
	}
	known := began.Before(s.watched.lost[model])
	if !known {
		s.watched.lost[model] = time.Now()
	}
	s.watched.mu.Unlock()
	if known {
		return // it ran beside the one that told of it
	}
	s.found(whatRunner, model, "", 0)
	s.residency.Lost(model)
}

// unstick watches over the load under way. One that takes far longer than
// expected, while everything else answers, shows a wedged scheduler: Ollama
// waits for a model to leave that was used again. Unloading that model once
// more frees it: those that are on their way out, or else, one at a time, the
// idle ones. Until a load completes the server is not ready.
func (s *Server) unstick(ctx context.Context, st *residency.State, running []ollama.Resident) {
	var loading *residency.Model
	for i := range st.Residents {
		if st.Residents[i].Phase == residency.Loading {
			loading = &st.Residents[i].Model
		}
	}
	s.watched.mu.Lock()
	w := &s.watched.stuck
	switch {
	case w.noticed && st.Counters.Loads > w.loads:
		s.log.Info("ollama completes loads again", "model", w.model)
		*w = stuck{}
	case w.noticed && loading == nil && w.quiet.IsZero():
		w.quiet = time.Now()
	case w.noticed && loading == nil && time.Since(w.quiet) > time.Minute:
		*w = stuck{} // the next load tells
	}
	if loading == nil {
		if !w.noticed {
			*w = stuck{}
		}
		s.watched.mu.Unlock()
		return
	}
	w.quiet = time.Time{}
	if w.model != loading.Name {
		w.model, w.since = loading.Name, time.Now()
		w.limit = max(stuckFactor*s.expectedLoad(*loading), stuckLeast)
	}
	overdue := time.Since(w.since)
	if overdue < w.limit {
		s.watched.mu.Unlock()
		return
	}
	first := !w.noticed
	if first {
		w.noticed, w.loads = true, st.Counters.Loads
	}
	w.limit = overdue + w.limit // and once more when as much time again has passed
	tried := w.tried
	s.watched.mu.Unlock()

	if first {
		s.found(whatWedge, loading.Name, "", overdue)
	}
	victims := s.stopping(loading.Name, st, running)
	if !first || len(victims) == 0 {
		s.sacrifice(ctx, loading.Name, st, tried, overdue)
	}
	for _, victim := range victims {
		s.found(whatRescue, victim, loading.Name, overdue)
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := s.ollama.Unload(ctx, residency.Model{Name: victim}); err != nil {
			s.log.Warn("model not unloaded", "model", victim, "err", logText(err))
		}
		cancel()
	}
}

// sacrifice unloads one idle resident that is not always loaded. Ollama may
// wait for one to leave that it lists as pinned: one that it chose itself to
// make room for somebody else's model. Any that leaves wakes it. The book loads
// it again afterwards.
func (s *Server) sacrifice(ctx context.Context, loading string, st *residency.State, tried []string, overdue time.Duration) {
	for _, r := range slices.Backward(st.Residents) { // the weakest claim first
		name := r.Model.Name
		if r.Phase != residency.Ready || r.Pinned || r.Leases > 0 || slices.Contains(tried, name) {
			continue
		}
		if !s.reload(ctx, r.Model) {
			continue
		}
		s.found(whatRescue, name, loading, overdue)
		s.watched.mu.Lock()
		s.watched.stuck.tried = append(s.watched.stuck.tried, name)
		s.watched.mu.Unlock()
		return
	}
}

// expectedLoad is how long a model's load should take: the larger of the
// catalog's figure and what was seen.
func (s *Server) expectedLoad(m residency.Model) time.Duration {
	mean, _ := s.journal.loadTime(m.Name)
	return max(mean, m.LoadTime)
}

// stopping are the models that Ollama may be waiting for: those that it lists
// and the book does not lend out, those it lists as expired, and the last that
// was unloaded for the load under way.
func (s *Server) stopping(loading string, st *residency.State, running []ollama.Resident) []string {
	lent := map[string]bool{loading: true}
	for _, r := range st.Residents {
		lent[r.Model.Name] = true
	}
	var list []string
	add := func(name string) {
		if name != loading && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	for _, r := range running {
		name := ShortName(r.Name)
		if _, foreign := st.Foreign[name]; !lent[name] && !foreign || time.Until(r.ExpiresAt) <= 0 {
			add(name)
		}
	}
	unloaded := s.journal.Find(DecisionQuery{Model: loading}).Decisions
	for _, e := range slices.Backward(unloaded) {
		if e.Action == residency.ActUnloaded && e.For == loading && !lent[e.Model] {
			add(e.Model)
			break
		}
	}
	return list
}

// observeMemory warns when the memory for models runs full.
func (s *Server) observeMemory(st *residency.State) {
	m := s.memory(st)
	if high := m.Warning != ""; high != s.watched.high {
		s.watched.high = high
		if high {
			s.log.Warn("memory for models is nearly full", "used", fmt.Sprintf("%.1f GiB", m.Usage), "utilization", m.Utilization)
		}
	}
}
