package sim

import (
	"slices"

	"tenure/residency"
)

// ollama models server/sched.go of Ollama: requests for a loaded model bypass
// the queue and wait at the runner; all others share one FIFO whose head is
// handled alone. The victim is the first idle runner by keep-alive and path,
// so an idle pinned model goes before a busy one; if all are busy the first is
// marked and waited for, while new requests still join it.
type ollama struct {
	e       *engine
	state   []ollamaState
	lines   [][]request // at each runner, in order
	pending []request
	max     int
	target  int // model being loaded for the head, -1: none
	marked  int // victim waited for, -1: none
	order   []int
}

type ollamaState uint8

const (
	gone ollamaState = iota
	coming
	up
	going
)

func newOllama(e *engine, maxModels int, order []int) *ollama {
	o := &ollama{e: e, state: make([]ollamaState, len(e.models)), lines: make([][]request, len(e.models)), max: maxModels, target: -1, marked: -1}
	// A pinned model has the longest keep-alive and goes last. The others tie
	// and go by blob path, which is a digest, so by chance: this is one of
	// six orders. DESIGN.md gives the figures of all.
	if o.order = order; order == nil {
		o.order = []int{llama, deepseek, mistral, phi}
	}
	return o
}

func (o *ollama) arrive(r request) {
	if o.state[r.model] == up {
		o.serve(r)
		return
	}
	o.pending = append(o.pending, r)
	o.process()
}

// serve hands a request to the runner, which runs it when a slot is free.
func (o *ollama) serve(r request) {
	if o.e.busy[r.model] < o.e.models[r.model].Slots {
		o.e.start(r)
		return
	}
	o.lines[r.model] = append(o.lines[r.model], r)
}

func (o *ollama) done(r request) {
	if l := o.lines[r.model]; len(l) > 0 {
		o.lines[r.model] = l[1:]
		o.e.start(l[0])
	}
	if o.marked == r.model && o.e.busy[r.model] == 0 {
		o.unload(r.model)
	}
	o.process()
}

// process handles the head of the queue, as far as it goes without waiting.
func (o *ollama) process() {
	for len(o.pending) > 0 && o.target < 0 && o.marked < 0 {
		r := o.pending[0]
		if o.state[r.model] == up {
			o.pending = o.pending[1:]
			o.serve(r)
			continue
		}
		count := 0
		for _, s := range o.state {
			if s != gone {
				count++
			}
		}
		if count < o.max && o.e.used+o.e.models[r.model].Size <= o.e.budget {
			o.target, o.state[r.model] = r.model, coming
			o.e.load(r.model)
			return
		}
		victim := -1
		for _, m := range o.order {
			if o.state[m] == up && (victim < 0 || (o.e.busy[victim] > 0 && o.e.busy[m] == 0)) {
				victim = m
			}
		}
		if victim < 0 {
			return
		}
		o.marked = victim
		if o.e.busy[victim] == 0 {
			o.unload(victim)
		}
	}
}

func (o *ollama) unload(m int) {
	if o.state[m] == up {
		o.state[m] = going
		o.e.unload(m)
	}
}

func (o *ollama) loaded(m int, _ error) {
	o.state[m] = up
	if o.target == m {
		o.target = -1
	}
	o.process()
}

func (o *ollama) unloaded(m int) {
	o.state[m], o.marked = gone, -1
	// Whoever joined while it was on its way out waits for a runner again.
	o.pending = append(o.pending, o.lines[m]...)
	o.lines[m] = nil
	o.process()
}

func (o *ollama) tick() {}

func (o *ollama) quit(int) {}

// llamaSwap models internal/router of llama-swap with a matrix of model sets:
// residents are always served; a request for an absent model is granted when
// its victim has nothing in flight; until then it is retried whenever something
// falls idle. The victim is static: evict costs are equal unless configured,
// and ties go by name.
type llamaSwap struct {
	e       *engine
	state   []ollamaState
	lines   [][]request
	flying  []int // in flight or queued at the runner
	pending []request
	max     int
}

func newLlamaSwap(e *engine, maxModels int) *llamaSwap {
	n := len(e.models)
	return &llamaSwap{e: e, state: make([]ollamaState, n), lines: make([][]request, n), flying: make([]int, n), max: maxModels}
}

func (l *llamaSwap) arrive(r request) {
	if l.state[r.model] == up {
		l.serve(r)
		return
	}
	l.pending = append(l.pending, r)
	l.retry()
}

func (l *llamaSwap) serve(r request) {
	l.flying[r.model]++
	if l.e.busy[r.model] < l.e.models[r.model].Slots {
		l.e.start(r)
		return
	}
	l.lines[r.model] = append(l.lines[r.model], r)
}

func (l *llamaSwap) done(r request) {
	l.flying[r.model]--
	if q := l.lines[r.model]; len(q) > 0 {
		l.lines[r.model] = q[1:]
		l.e.start(q[0])
	}
	if l.flying[r.model] == 0 {
		l.retry()
	}
}

// retry starts the first swap that is possible; one at a time.
func (l *llamaSwap) retry() {
	if slices.Contains(l.state, coming) || slices.Contains(l.state, going) {
		return
	}
	for _, r := range l.pending {
		if l.state[r.model] != gone {
			continue
		}
		count := 0
		for _, s := range l.state {
			if s != gone {
				count++
			}
		}
		if count < l.max && l.e.used+l.e.models[r.model].Size <= l.e.budget {
			l.state[r.model] = coming
			l.e.load(r.model)
			return
		}
		victim := -1
		for m := range l.e.models {
			if l.state[m] == up && l.e.models[m].Tier != residency.T0 && (victim < 0 || l.e.models[m].Name < l.e.models[victim].Name) {
				victim = m
			}
		}
		if victim >= 0 && l.flying[victim] == 0 {
			l.state[victim] = going
			l.e.unload(victim)
			return
		}
	}
}

func (l *llamaSwap) loaded(m int, _ error) {
	l.state[m] = up
	// Requests are collated by model: all that wait for it are granted.
	rest := l.pending[:0]
	for _, r := range l.pending {
		if r.model == m {
			l.serve(r)
		} else {
			rest = append(rest, r)
		}
	}
	l.pending = rest
	l.retry()
}

func (l *llamaSwap) unloaded(m int) {
	l.state[m] = gone
	l.retry()
}

func (l *llamaSwap) tick() {}

func (l *llamaSwap) quit(int) {}

// preload puts the models of the warm start in place.
func (o *ollama) preload(m int)    { o.state[m] = coming; o.e.load(m) }
func (l *llamaSwap) preload(m int) { l.state[m] = coming; l.e.load(m) }

func (b *bookServer) preload(m int) { b.apply(b.book.Want(b.clock(), b.e.models[m])) }
