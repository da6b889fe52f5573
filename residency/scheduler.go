package residency

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

// Config bounds a Scheduler. Zero fields take the defaults given.
type Config struct {
	Budget       Bytes         // GPU memory for models
	MaxModels    int           // resident models at once; default 3
	QueueLimit   int           // waiting requests per model and class, beyond: ErrQueueFull; default 256
	MaxWait      time.Duration // interactive requests older than this go first; default 40 s
	LoadTimeout  time.Duration // for one load or unload; default 5 min
	LoadBackoff  time.Duration // after the first failed load, doubling up to 32 times; default 1 s
	LoadAttempts int           // failed loads in a row that fail the queue; default 3
	Margin       Bytes         // added to every measured size
	Passthrough  bool          // Acquire grants at once, nothing is managed

	// OnDecision is told every decision, in order, from one goroutine and
	// outside any lock. It should not block for long: decisions queue up.
	OnDecision func(Decision)
}

func (c Config) withDefaults() Config {
	if c.MaxModels <= 0 {
		c.MaxModels = 3
	}
	if c.QueueLimit <= 0 {
		c.QueueLimit = 256
	}
	if c.MaxWait <= 0 {
		c.MaxWait = 40 * time.Second
	}
	if c.LoadTimeout <= 0 {
		c.LoadTimeout = 5 * time.Minute
	}
	if c.LoadBackoff <= 0 {
		c.LoadBackoff = time.Second
	}
	if c.LoadAttempts <= 0 {
		c.LoadAttempts = 3
	}
	return c
}

// Scheduler drives a Book in real time: it lends residents out, queues for the
// absent, and has a Loader move models. It is safe for concurrent use and must
// be closed.
type Scheduler struct {
	cfg    Config
	loader Loader
	cancel context.CancelCauseFunc
	start  func(move func(context.Context, Model), m Model) // runs a move on the scheduler's own context: whoever asked may leave
	wg     sync.WaitGroup
	timer  *time.Timer   // the book's wake-up, reset under mu
	news   chan struct{} // buffered(1): decisions wait to be told

	mu       sync.Mutex // never held across I/O, a blocking send or a callback
	book     *Book
	waiters  map[Ticket]chan Grant   // buffered(1), answered once
	unloads  map[string][]chan error // callers of Unload, buffered(1)
	wake     time.Time
	told     []Decision
	foreign  map[string]Bytes
	passing  int // leases of a passthrough scheduler
	shutdown bool
}

// New starts a scheduler over an empty GPU.
func New(cfg Config, p Policy, l Loader) *Scheduler {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &Scheduler{
		cfg: cfg, loader: l, cancel: cancel, book: NewBook(cfg, p, time.Now()),
		timer: time.NewTimer(time.Hour), news: make(chan struct{}, 1),
		waiters: map[Ticket]chan Grant{}, unloads: map[string][]chan error{},
	}
	s.timer.Stop()
	s.start = func(move func(context.Context, Model), m Model) {
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeoutCause(ctx, cfg.LoadTimeout, ErrLoadTimeout)
			defer cancel()
			move(ctx, m)
		})
	}
	s.wg.Go(func() { s.run(ctx) })
	return s
}

// Lease is the right to run one request on a resident model.
type Lease struct {
	Model  Model
	Waited time.Duration
	Cold   bool // a load happened while it waited

	once    sync.Once
	release func()
}

// Release gives the lease back. Call it when the work upstream has really
// ended, not merely when its client left; calls after the first do nothing.
func (l *Lease) Release() { l.once.Do(l.release) }

// Acquire waits until m is resident with a free slot and lends it. It fails
// with a *QueueFullError, ErrTooBig, ErrClosed, a *LoadError, or the cause of
// ctx's end.
func (s *Scheduler) Acquire(ctx context.Context, m Model, c Class) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if s.cfg.Passthrough {
		return s.pass(m)
	}
	s.mu.Lock()
	t, fx, err := s.book.Ask(time.Now(), m, c)
	if err != nil {
		err = s.refusalLocked(err, m, c)
		s.applyLocked(fx)
		s.mu.Unlock()
		return nil, err
	}
	for _, g := range fx.Grants {
		if g.Ticket == t && g.Err == nil && len(fx.Grants) == 1 {
			s.applyLocked(fx)
			s.mu.Unlock()
			return s.lease(t, m, g), nil
		}
	}
	w := make(chan Grant, 1)
	s.waiters[t] = w
	s.applyLocked(fx)
	s.mu.Unlock()

	var g Grant
	select {
	case g = <-w:
	case <-ctx.Done():
		s.mu.Lock()
		if _, still := s.waiters[t]; still {
			delete(s.waiters, t)
			fx, _ := s.book.Cancel(time.Now(), t)
			s.applyLocked(fx)
			s.mu.Unlock()
			return nil, context.Cause(ctx)
		}
		s.mu.Unlock()
		// The grant came first; nobody else will give the lease back.
		if g = <-w; g.Err == nil {
			s.release(t)
		}
		return nil, context.Cause(ctx)
	}
	if g.Err != nil {
		return nil, g.Err
	}
	return s.lease(t, m, g), nil
}

func (s *Scheduler) lease(t Ticket, m Model, g Grant) *Lease {
	return &Lease{Model: m, Waited: g.Waited, Cold: g.Cold, release: func() { s.release(t) }}
}

func (s *Scheduler) release(t Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyLocked(s.book.Release(time.Now(), t))
}

// pass lends without managing.
func (s *Scheduler) pass(m Model) (*Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shutdown {
		return nil, ErrClosed
	}
	s.passing++
	return &Lease{Model: m, release: func() {
		s.mu.Lock()
		s.passing--
		s.mu.Unlock()
	}}, nil
}

// refusalLocked gives a refusal what the caller needs to know.
func (s *Scheduler) refusalLocked(err error, m Model, c Class) error {
	if errors.Is(err, ErrQueueFull) {
		return &QueueFullError{RetryAfter: s.book.EstimateWait(m, c)}
	}
	return fmt.Errorf("%s: %w", m.Name, err)
}

// Preload asks for m to be resident: at once if there is room, else when only
// an idle model of a lower claim is in the way. It does not wait. A T0 model
// is never evicted once it is in; a T1 model returns after it was displaced.
func (s *Scheduler) Preload(m Model) {
	if s.cfg.Passthrough {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyLocked(s.book.Want(time.Now(), m))
}

// Unload removes an idle model and waits until it is gone. It fails with
// ErrAbsent, ErrPinned for a T0 model, ErrBusy while the model is in use or
// another move is under way, or with what the Loader said.
func (s *Scheduler) Unload(ctx context.Context, name string) error {
	s.mu.Lock()
	fx, err := s.book.Drop(time.Now(), name)
	if err != nil {
		s.applyLocked(fx)
		s.mu.Unlock()
		return fmt.Errorf("unloading %s: %w", name, err)
	}
	done := make(chan error, 1)
	s.unloads[name] = append(s.unloads[name], done)
	s.applyLocked(fx)
	s.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Lost tells that a model is gone though nobody here unloaded it: Ollama
// restarted, or its runner died. Who waits for it is served after a new load.
func (s *Scheduler) Lost(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyLocked(s.book.Lost(time.Now(), name))
}

// Foreign tells which models occupy memory that this scheduler did not load.
// Each call replaces the last; they shrink the budget and the count.
func (s *Scheduler) Foreign(models map[string]Bytes) {
	var size Bytes
	for _, b := range models {
		size += b
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foreign = make(map[string]Bytes, len(models))
	maps.Copy(s.foreign, models)
	s.applyLocked(s.book.Foreign(time.Now(), size, len(models)))
}

// Expect declares what a workflow run will ask for next, so that its models can
// be prefetched: steps[0] is about to be asked, the others follow. Each call
// replaces the run's last, no steps end it, and a run not heard of for ten
// minutes is forgotten.
func (s *Scheduler) Expect(run string, steps []Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyLocked(s.book.Expect(time.Now(), run, steps))
}

// EstimateWait is how long a request for m would wait if it asked now, from
// learnt service and load times. It is a guess, never 0 for a model with a
// queue.
func (s *Scheduler) EstimateWait(m Model, c Class) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book.EstimateWait(m, c)
}

// Close fails everybody who waits with ErrClosed, cancels loads, and returns
// when the scheduler's goroutines have ended and all decisions were told.
// Leases still out may be released afterwards.
func (s *Scheduler) Close() error {
	s.mu.Lock()
	if !s.shutdown {
		s.shutdown = true
		s.applyLocked(s.book.Close(time.Now()))
		s.cancel(ErrClosed)
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.tell() // what the last loads decided while they were cancelled
	return nil
}

// applyLocked carries out what the book decided. Waiters have buffered
// channels and loads run in goroutines, so it never blocks.
func (s *Scheduler) applyLocked(fx Effects) {
	for _, g := range fx.Grants {
		// A ticket without waiter is its own caller's, still inside Ask.
		if w, ok := s.waiters[g.Ticket]; ok {
			delete(s.waiters, g.Ticket)
			w <- g
		}
	}
	for _, m := range fx.Unloads {
		s.start(s.unload, m)
	}
	if fx.HasLoad {
		s.start(s.load, fx.Load)
	}
	if len(fx.Decisions) > 0 {
		s.told = append(s.told, fx.Decisions...)
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
	if !fx.Wake.Equal(s.wake) {
		s.wake = fx.Wake
		s.timer.Stop()
		if !fx.Wake.IsZero() {
			s.timer.Reset(time.Until(fx.Wake))
		}
	}
}

func (s *Scheduler) load(ctx context.Context, m Model) {
	size, err := s.loader.Load(ctx, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyLocked(s.book.Loaded(time.Now(), m.Name, size, err))
}

func (s *Scheduler) unload(ctx context.Context, m Model) {
	err := s.loader.Unload(ctx, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, done := range s.unloads[m.Name] {
		done <- err
	}
	delete(s.unloads, m.Name)
	s.applyLocked(s.book.Unloaded(time.Now(), m.Name, err))
}

// run wakes the book when it asked for it and tells decisions.
func (s *Scheduler) run(ctx context.Context) {
	for {
		select {
		case <-s.timer.C:
			s.mu.Lock()
			s.wake = time.Time{}
			s.applyLocked(s.book.Tick(time.Now()))
			s.mu.Unlock()
		case <-s.news:
			s.tell()
		case <-ctx.Done():
			s.tell()
			return
		}
	}
}

func (s *Scheduler) tell() {
	s.mu.Lock()
	told := s.told
	s.told = nil
	s.mu.Unlock()
	for _, d := range told {
		s.cfg.OnDecision(d)
	}
}
