package sim

import (
	"fmt"
	"math"
	"time"

	"tenure/residency"
)

// Physics is how fast requests run and models move.
type Physics struct {
	Beta     float64 // slowdown per further request on the same model
	Gamma    float64 // 1: busy models share the GPU; 0: they run independently
	LoadSlow float64 // slowdown of requests while a model loads
	Unload   time.Duration
}

// BasePhysics is two requests at 1.6 times the rate of one, as llama.cpp
// shows it (160 tok/s alone, 252 for two), and time-slicing between processes.
func BasePhysics() Physics {
	return Physics{Beta: .25, Gamma: 1, LoadSlow: .1, Unload: 300 * time.Millisecond}
}

// request is one request of a workload.
type request struct {
	id     int
	at     time.Duration
	model  int
	class  residency.Class
	work   time.Duration
	client int // closed-loop workloads: whose it is
	item   int // pipelines: the candidate
	step   int // and the stage
	token  uint64
}

// server is a scheduler under simulation. It is told what happens and answers
// through the engine's start, load, unload and wake.
type server interface {
	arrive(r request)
	done(r request)
	loaded(model int, err error)
	unloaded(model int)
	tick()
	quit(id int)
}

// engine is the world: a clock, a GPU and the requests on it.
type engine struct {
	phys     Physics
	models   []residency.Model
	times    func(model int, nth int) time.Duration // of the nth load
	srv      server
	now      time.Duration
	src      *source
	live     []job
	busy     []int // requests running, by model
	nbusy    int
	moves    []moving
	seen     []int
	resident []bool // in memory, loading and unloading included
	used     residency.Bytes
	budget   residency.Bytes
	wakeAt   time.Duration
	events   int
	rec      *recorder
	moved    func(model int, load bool) // told of every load and unload begun, if set
	quits    []quit                     // who leaves the queue when, in order
	broken   func(model, nth int) error // of the nth load; nil: all work
	err      error
}

type job struct {
	r     request
	left  float64 // nanoseconds of work at full speed
	start time.Duration
}

type moving struct {
	model int
	due   time.Duration
	load  bool
	err   error
}

// quit is a client that gives up if it still waits.
type quit struct {
	at time.Duration
	id int
}

const never = time.Duration(math.MaxInt64)

func newEngine(phys Physics, models []residency.Model, budget residency.Bytes, src *source) *engine {
	n := len(models)
	return &engine{phys: phys, models: models, src: src, budget: budget, busy: make([]int, n), seen: make([]int, n), resident: make([]bool, n), wakeAt: never, rec: &recorder{}}
}

// start begins r's service.
func (e *engine) start(r request) {
	if !e.resident[r.model] || e.busy[r.model] >= e.models[r.model].Slots {
		e.fail("request %d started on %s: resident %v, %d running", r.id, e.models[r.model].Name, e.resident[r.model], e.busy[r.model])
	}
	if e.busy[r.model]++; e.busy[r.model] == 1 {
		e.nbusy++
	}
	e.live = append(e.live, job{r: r, left: float64(r.work), start: e.now})
	e.rec.started(e.now, r)
}

// load begins loading a model.
func (e *engine) load(m int) {
	if e.resident[m] {
		e.fail("%s is loaded twice", e.models[m].Name)
	}
	e.resident[m] = true
	if e.used += e.models[m].Size; e.used > e.budget {
		e.rec.overcommits++
	}
	e.rec.loads++
	if e.moved != nil {
		e.moved(m, true)
	}
	var err error
	if e.broken != nil {
		err = e.broken(m, e.seen[m])
	}
	e.moves = append(e.moves, moving{m, e.now + e.times(m, e.seen[m]), true, err})
	e.seen[m]++
}

// unload begins unloading a model.
func (e *engine) unload(m int) {
	if e.busy[m] > 0 {
		e.fail("%s is unloaded with %d requests running", e.models[m].Name, e.busy[m])
	}
	if e.models[m].Tier == residency.T0 {
		e.rec.t0++
	}
	if e.moved != nil {
		e.moved(m, false)
	}
	e.moves = append(e.moves, moving{m, e.now + e.phys.Unload, false, nil})
}

func (e *engine) fail(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf("at %v: "+format, append([]any{e.now}, args...)...)
	}
}

// pace is the rate of a request on model m now.
func (e *engine) pace(m int) float64 {
	slow := 1 + e.phys.Beta*float64(e.busy[m]-1)
	switch {
	case e.nbusy < 2 || e.phys.Gamma == 0:
	case e.phys.Gamma == 1:
		slow *= float64(e.nbusy)
	default:
		slow *= math.Pow(float64(e.nbusy), e.phys.Gamma)
	}
	for _, mv := range e.moves {
		if mv.load {
			slow *= 1 + e.phys.LoadSlow
			break
		}
	}
	return 1 / slow
}

// run plays events until the workload has ended, in order of time and, at one
// instant, of kind: completions, moves, arrivals, timer.
func (e *engine) run(limit int, progress func(done int) bool) error {
	for e.err == nil {
		next, kind, which := never, 0, -1
		for k := range e.live {
			left := e.live[k].left
			if p := e.pace(e.live[k].r.model); p != 1 {
				left /= p
			}
			if at := e.now + time.Duration(math.Ceil(max(left, 0))); at < next {
				next, kind, which = at, 1, k
			}
		}
		for k, mv := range e.moves {
			if mv.due < next {
				next, kind, which = mv.due, 2, k
			}
		}
		if r, ok := e.src.peek(); ok && r.at < next {
			next, kind = r.at, 3
		}
		if e.wakeAt < next {
			next, kind = e.wakeAt, 4
		}
		if len(e.quits) > 0 && e.quits[0].at < next {
			next, kind = e.quits[0].at, 5
		}
		if kind == 0 {
			if e.rec.open > 0 {
				e.fail("deadlock: %d requests wait and nothing is going to happen", e.rec.open)
			}
			return e.err
		}
		if kind == 4 && e.rec.open == 0 && e.src.empty() {
			return e.err // only housekeeping is left
		}
		e.advance(next)
		e.events++
		switch kind {
		case 1:
			e.finish(which)
		case 2:
			mv := e.moves[which]
			e.moves = append(e.moves[:which], e.moves[which+1:]...)
			if !mv.load || mv.err != nil {
				e.resident[mv.model] = false
				e.used -= e.models[mv.model].Size
			}
			if mv.load {
				e.srv.loaded(mv.model, mv.err)
			} else {
				e.srv.unloaded(mv.model)
			}
		case 3:
			r := e.src.take()
			e.rec.arrived(e.now, r)
			e.srv.arrive(r)
		case 4:
			e.wakeAt = never
			e.srv.tick()
		case 5:
			id := e.quits[0].id
			e.quits = e.quits[1:]
			e.srv.quit(id)
		}
		if progress != nil && e.events%(1<<17) == 0 && !progress(e.rec.finished) {
			return e.err
		}
		if limit > 0 && e.events >= limit {
			return e.err
		}
	}
	return e.err
}

// advance lets time pass.
func (e *engine) advance(to time.Duration) {
	dt := to - e.now
	if dt <= 0 {
		return
	}
	if len(e.live) == 0 && e.rec.open > 0 {
		e.rec.exposed += dt
	}
	for k := range e.live {
		j := &e.live[k]
		if p := e.pace(j.r.model); p != 1 {
			j.left -= float64(dt) * p
		} else {
			j.left -= float64(dt)
		}
	}
	e.now = to
}

func (e *engine) finish(k int) {
	r := e.live[k].r
	e.live = append(e.live[:k], e.live[k+1:]...)
	if e.busy[r.model]--; e.busy[r.model] == 0 {
		e.nbusy--
	}
	e.rec.ended(e.now, r)
	e.src.after(e.now, r)
	e.srv.done(r)
}

// bookServer runs the real Book.
type bookServer struct {
	e       *engine
	book    *residency.Book
	tickets map[residency.Ticket]request
	epoch   time.Time
	index   map[string]int
	hints   func(r request) (key string, steps []residency.Step)
}

func newBookServer(e *engine, cfg residency.Config, p residency.Policy) *bookServer {
	epoch := time.Unix(0, 0).UTC()
	b := &bookServer{e: e, book: residency.NewBook(cfg, p, epoch), tickets: map[residency.Ticket]request{}, epoch: epoch, index: map[string]int{}}
	for i, m := range e.models {
		b.index[m.Name] = i
	}
	return b
}

func (b *bookServer) clock() time.Time { return b.epoch.Add(b.e.now) }

func (b *bookServer) arrive(r request) {
	if b.hints != nil {
		if key, steps := b.hints(r); key != "" {
			b.apply(b.book.Expect(b.clock(), key, steps))
		}
	}
	t, fx, err := b.book.Ask(b.clock(), b.e.models[r.model], r.class)
	if err != nil {
		b.e.rec.refused(r)
		b.e.src.after(b.e.now, r)
	} else {
		b.tickets[t] = r
	}
	b.apply(fx)
}

func (b *bookServer) done(r request) {
	b.apply(b.book.Release(b.clock(), residency.Ticket(r.token)))
}

func (b *bookServer) loaded(m int, err error) {
	b.apply(b.book.Loaded(b.clock(), b.e.models[m].Name, 0, err))
}

// quit withdraws a request that waits.
func (b *bookServer) quit(id int) {
	for t, r := range b.tickets {
		if r.id == id {
			delete(b.tickets, t)
			fx, ok := b.book.Cancel(b.clock(), t)
			if !ok {
				b.e.fail("request %d waits and cannot be cancelled", id)
			}
			b.e.rec.refused(r)
			b.apply(fx)
			return
		}
	}
}

func (b *bookServer) unloaded(m int) {
	b.apply(b.book.Unloaded(b.clock(), b.e.models[m].Name, nil))
}

func (b *bookServer) tick() { b.apply(b.book.Tick(b.clock())) }

func (b *bookServer) apply(fx residency.Effects) {
	for _, g := range fx.Grants {
		r, ok := b.tickets[g.Ticket]
		if !ok {
			b.e.fail("ticket %x was granted twice", g.Ticket)
			return
		}
		delete(b.tickets, g.Ticket)
		if g.Err != nil {
			b.e.rec.refused(r)
			b.e.src.after(b.e.now, r)
			continue
		}
		r.token = uint64(g.Ticket)
		b.e.start(r)
	}
	for _, m := range fx.Unloads {
		b.e.unload(b.index[m.Name])
	}
	if fx.HasLoad {
		b.e.load(b.index[fx.Load.Name])
	}
	b.e.wakeAt = never
	if !fx.Wake.IsZero() {
		b.e.wakeAt = max(fx.Wake.Sub(b.epoch), b.e.now)
	}
}

// present puts a model in memory before time begins.
func (b *bookServer) present(m int) {
	fx := b.book.Want(b.clock(), b.e.models[m])
	if !fx.HasLoad {
		b.apply(fx)
		return
	}
	b.e.resident[m] = true
	b.e.used += b.e.models[m].Size
	b.e.seen[m]++
	b.apply(b.book.Loaded(b.clock(), b.e.models[m].Name, 0, nil))
}
