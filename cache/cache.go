package cache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed is the cause with which unfinished work is cancelled by Close.
var ErrClosed = errors.New("cache: closed")

// errAbandoned cancels work that nobody reads any more.
var errAbandoned = errors.New("cache: the last reader left")

// PanicError is what readers get of work that panicked.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("cache: work panicked: %v", e.Value) }

// mostIdle is how many goroutines wait for work.
const mostIdle = 16

// Outcome tells where an answer comes from.
type Outcome uint8

const (
	Miss   Outcome = iota // the work was started for this caller
	Shared                // someone else's unfinished work was joined
	Hit                   // a finished answer was kept
	Bypass                // as Miss, for an answer that nobody else may read
)

func (o Outcome) String() string {
	return [...]string{"miss", "shared", "hit", "bypass"}[o]
}

// Fill makes an answer: it appends chunks until it returns. ttl is how long the
// answer may be kept; zero means not at all. After an error nothing is kept,
// and readers get the error after the chunks that came before it.
type Fill func(ctx context.Context, rec *Recording) (ttl time.Duration, err error)

// Owner is whose answer it is, and what for; see [Cache.Drop].
type Owner struct{ Tenant, Task string }

// covers reports whether o names another, or leaves open what it does not.
func (o Owner) covers(other Owner) bool {
	return (o.Tenant == "" || o.Tenant == other.Tenant) && (o.Task == "" || o.Task == other.Task)
}

// Request says what is asked of the cache.
type Request struct {
	Key     Key
	Owner   Owner
	MaxAge  time.Duration // a kept answer older than this does not count; zero: any age
	Refresh bool          // make the answer anew, and keep it in place of the old one
	Rank    int           // urgency, 0 first: work of a later rank is not joined, for it may wait long
}

// Config sizes a Cache.
type Config struct {
	Bytes       int64 // kept answers; zero: none is kept, unfinished ones are still shared
	FlightBytes int   // of one unfinished answer, beyond which it takes no more joiners and is not kept; zero: 1 MiB
}

// Cache keeps finished answers and shares unfinished ones. It is safe for
// concurrent use.
type Cache struct {
	store *store // nil when nothing is kept
	limit int

	ctx    context.Context //nolint:containedctx // the lifetime of all work, ended by Close
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	workers sync.WaitGroup
	tasks   chan func() // taken by those who are idle
	idle    atomic.Int64

	keeping sync.RWMutex // held while an answer goes from its flight to the store
	mu      sync.Mutex   // after keeping
	flights map[Key]*flight
	closed  bool
}

// flight is work in progress and those who read it.
type flight struct {
	key     Key
	owner   Owner
	rank    int
	rec     *Recording
	cancel  context.CancelCauseFunc
	readers int    // guarded by Cache.mu
	landed  *entry // the answer, when it is there and about to be kept; guarded by Cache.mu

	before *flight       // which it replaced when that had landed: it is kept first, for this one may fail
	after  chan struct{} // closed when it is kept; made by the first that replaced it, guarded by Cache.mu
}

// New returns an empty cache. Close it after its last use.
func New(cfg Config) (*Cache, error) {
	c := &Cache{limit: cfg.FlightBytes, flights: map[Key]*flight{}, tasks: make(chan func())}
	if c.limit == 0 {
		c.limit = 1 << 20
	}
	if cfg.Bytes > 0 {
		s, err := newStore(cfg.Bytes)
		if err != nil {
			return nil, err
		}
		c.store = s
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c, nil
}

// Do returns a reader of the answer to q: of a kept one, of one that is being
// made for somebody else, or of one that fill makes now. The reader must be
// closed. age is how long ago a kept answer was finished.
func (c *Cache) Do(q Request, fill Fill) (r *Reader, o Outcome, age time.Duration) {
	private := q.Key == Key{}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !private && !q.Refresh {
		// Flights before the store: an answer is kept before its flight leaves
		// the map, so whoever finds no flight finds what it left.
		f := c.flights[q.Key]
		if f != nil && f.landed == nil && f.rank <= q.Rank {
			if r := c.joinLocked(f); r != nil {
				return r, Shared, 0
			}
		}
		if e, age, ok := c.kept(q, f); ok {
			rec := &Recording{chunks: e.chunks, done: true, limit: math.MaxInt}
			return rec.read(func() {}), Hit, age
		}
	}
	f := &flight{key: q.Key, owner: q.Owner, rank: q.Rank, rec: &Recording{limit: c.limit}}
	if c.closed {
		f.rec.finish(ErrClosed)
		return f.rec.read(func() {}), Bypass, 0
	}
	if !private {
		if old := c.flights[q.Key]; old != nil && old.landed != nil {
			f.before = old
			if old.after == nil { // not of one that gave up
				old.after = make(chan struct{})
			}
		}
		c.flights[q.Key] = f // in place of one that may not be joined, if there is one
	}
	var ctx context.Context
	ctx, f.cancel = context.WithCancelCause(c.ctx)
	r = c.joinLocked(f)
	c.work.Add(1)
	c.start(func() {
		defer c.work.Done()
		c.fly(ctx, f, fill)
	})
	if private {
		return r, Bypass, 0
	}
	return r, Miss, 0
}

// kept returns the kept answer to q, or the one that f, its flight, is about to
// keep.
func (c *Cache) kept(q Request, f *flight) (e *entry, age time.Duration, ok bool) {
	switch {
	case f != nil && f.landed != nil:
		e = f.landed
	case c.store == nil:
		return nil, 0, false
	default:
		if e, ok = c.store.get(q.Key); !ok {
			return nil, 0, false
		}
	}
	age = time.Since(e.kept)
	return e, age, q.MaxAge == 0 || age <= q.MaxAge
}

// fly does the work of a flight, keeps its answer and lets go of it. Its
// readers do not wait for the store: whoever asks meanwhile finds the answer in the flight.
func (c *Cache) fly(ctx context.Context, f *flight, fill Fill) {
	defer f.cancel(nil)
	ttl, err := guarded(ctx, f.rec, fill)
	var e *entry
	if err == nil && ttl > 0 && c.store != nil && f.rec.whole() {
		e = &entry{key: f.key, owner: f.owner, chunks: f.rec.chunks, kept: time.Now()}
	}
	c.mu.Lock()
	if f.landed = e; e == nil {
		c.forgetLocked(f)
	}
	c.mu.Unlock()
	f.rec.finish(err)
	if e == nil {
		return
	}
	runtime.Gosched() // to those who were woken
	if f.before != nil {
		<-f.before.after
	}
	c.keeping.RLock()
	defer c.keeping.RUnlock()
	if c.current(f) {
		c.store.put(e, ttl)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetLocked(f)
	f.landed = nil
	if f.after != nil {
		close(f.after)
	}
}

// guarded turns a panic of the work into its error: there is no server above
// this goroutine that would.
func guarded(ctx context.Context, rec *Recording, fill Fill) (ttl time.Duration, err error) {
	defer func() {
		if v := recover(); v != nil {
			ttl, err = 0, &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fill(ctx, rec)
}

// joinLocked returns one more reader of a flight; nil when it comes too late to
// read all of it.
func (c *Cache) joinLocked(f *flight) *Reader {
	r := f.rec.read(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if f.readers--; f.readers == 0 && f.landed == nil {
			c.forgetLocked(f) // nobody may join work that is being cancelled
			f.cancel(errAbandoned)
		}
	})
	if r != nil {
		f.readers++
	}
	return r
}

// start does work in a goroutine: in one that is idle, if there is one. Its
// stack has grown to what such work takes.
func (c *Cache) start(work func()) {
	select {
	case c.tasks <- work:
		return
	default:
	}
	c.workers.Go(func() {
		for {
			work()
			work = nil // who is idle holds no request's text
			if c.idle.Add(1) > mostIdle {
				c.idle.Add(-1)
				return
			}
			select {
			case work = <-c.tasks:
				c.idle.Add(-1)
			case <-c.ctx.Done():
				return
			}
		}
	})
}

// current reports whether a flight is the newest of its key: the answer of one
// that was replaced before it was there is not kept.
func (c *Cache) current(f *flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	newest := c.flights[f.key]
	return newest == f || newest != nil && newest.before == f
}

func (c *Cache) forgetLocked(f *flight) {
	switch {
	case c.flights[f.key] != f:
	case f.before != nil && f.before.landed != nil:
		c.flights[f.key] = f.before
	default:
		delete(c.flights, f.key)
	}
}

// Drop forgets the kept answers of an owner, of all owners for the zero one,
// and returns how many there were. What is being made goes to its readers, and
// is neither kept nor joined.
func (c *Cache) Drop(o Owner) int {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	keys := map[Key]struct{}{}
	c.mu.Lock()
	for _, f := range c.flights {
		if o.covers(f.owner) {
			delete(c.flights, f.key)
			if f.landed != nil || f.before != nil && f.before.landed != nil {
				keys[f.key] = struct{}{}
			}
		}
	}
	c.mu.Unlock()
	if c.store == nil {
		return 0
	}
	return c.store.drop(o, keys)
}

// Close cancels unfinished work with [ErrClosed], waits for it and forgets
// what was kept. Later calls of Do return readers that fail.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel(ErrClosed)
	c.work.Wait()
	c.workers.Wait()
	if c.store != nil {
		c.store.close()
	}
}
