package cache

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"sync"
	"time"
)

// ErrLagged is what a reader gets that fell so far behind that what it has yet
// to read was given up.
var ErrLagged = errors.New("cache: the reader fell too far behind")

// lagFactor bounds what is held for slow readers, in multiples of a flight's cap.
const lagFactor = 16

// Recording is an answer that can be read while it is being made. One
// goroutine appends; any number read.
type Recording struct {
	limit int // bytes beyond which chunks that everybody has read are dropped

	mu      sync.Mutex
	chunks  [][]byte
	dropped int // chunks before chunks[0]
	size    int // bytes ever appended
	held    int // bytes of chunks
	opening any
	began   time.Time // of the first chunk
	done    bool
	err     error
	readers []*Reader
}

// Append adds chunks that came together: readers are woken once. The recording
// keeps each chunk: it must not change later.
func (r *Recording) Append(chunks ...[]byte) {
	if len(chunks) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() {
		r.began = time.Now()
	}
	for _, chunk := range chunks {
		r.chunks = append(r.chunks, chunk)
		r.size += len(chunk)
		r.held += len(chunk)
		if r.size > r.limit {
			r.trimLocked()
			for r.held > lagFactor*r.limit && r.cutLocked() {
				r.trimLocked()
			}
		}
	}
	r.wakeLocked()
}

// Open tells the readers how the work began, before its first chunk. It is
// not part of the answer and is not kept, and wakes nobody.
func (r *Recording) Open(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opening = v
}

func (r *Recording) finish(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.err = true, err
	r.wakeLocked()
}

// whole reports whether no chunk was dropped, i.e. whether a new reader could
// still read it from the start.
func (r *Recording) whole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size <= r.limit
}

// Begun reports whether anything was appended.
func (r *Recording) Begun() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size > 0
}

// wakeLocked wakes the readers that wait for a chunk or, when there is no use
// in it any longer, for the end.
func (r *Recording) wakeLocked() {
	for _, reader := range r.readers {
		if r.done || !reader.whole || r.size > r.limit {
			reader.wakeLocked()
		}
	}
}

// trimLocked drops what the slowest reader has read.
func (r *Recording) trimLocked() {
	slowest := r.dropped + len(r.chunks)
	for _, reader := range r.readers {
		slowest = min(slowest, reader.next)
	}
	n := slowest - r.dropped
	for _, chunk := range r.chunks[:n] {
		r.held -= len(chunk)
	}
	clear(r.chunks[:n])
	r.chunks = r.chunks[n:]
	r.dropped = slowest
}

// cutLocked gives up the readers that are furthest behind, but for those that
// lack only the newest chunk. It reports whether there were any.
func (r *Recording) cutLocked() bool {
	before := len(r.readers)
	r.readers = slices.DeleteFunc(r.readers, func(reader *Reader) bool {
		if reader.next != r.dropped || len(r.chunks) == 1 {
			return false
		}
		reader.lagged = true
		reader.wakeLocked()
		return true
	})
	return len(r.readers) < before
}

// Reader reads one recording from its first chunk to its last. It is for one
// goroutine.
type Reader struct {
	rec   *Recording
	leave func()
	once  sync.Once
	more  chan struct{} // buffered(1): a token is left when what is waited for has come, and now and then besides

	// Guarded by rec.mu.
	next   int // index of the next chunk, counted from the start
	lagged bool
	waits  bool // for a token
	whole  bool // for the end alone
}

// read returns a reader of all of the recording; nil when its beginning may have
// been dropped.
func (r *Recording) read(leave func()) *Reader {
	reader := &Reader{rec: r, leave: leave}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size > r.limit {
		return nil
	}
	if !r.done {
		reader.more = make(chan struct{}, 1)
		r.readers = append(r.readers, reader)
	}
	return reader
}

func (r *Reader) wakeLocked() {
	if !r.waits {
		return
	}
	r.waits = false
	select {
	case r.more <- struct{}{}:
	default: // the last token is still there
	}
}

// Next returns the next chunk, waiting for it while the recording is being
// made. It returns io.EOF after the last chunk, the error the work failed with,
// or the cause for which ctx ended. The chunk must not be changed.
func (r *Reader) Next(ctx context.Context) ([]byte, error) {
	for {
		chunk, err := r.poll()
		if chunk != nil || err != nil {
			return chunk, err
		}
		select {
		case <-r.more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Wait reports whether Next would return at once: for who wants the answer
// whole, every Next up to the end, or at least as many as the work makes before
// it outgrows what is held of it. Until then more can be received from when it
// is time to ask again; it may be early.
func (r *Reader) Wait(whole bool) (more <-chan struct{}, ready bool) {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	if r.rec.done || (!whole || r.rec.size > r.rec.limit) && r.readyLocked() {
		return nil, true
	}
	r.waits, r.whole = true, whole
	return r.more, false
}

// Ready reports whether Next would return at once.
func (r *Reader) Ready() bool {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return r.readyLocked()
}

func (r *Reader) readyLocked() bool {
	return r.next < r.rec.dropped+len(r.rec.chunks) || r.rec.done
}

// Failed returns the error the work ended with before it made a first chunk,
// or nil.
func (r *Reader) Failed() error {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	if r.rec.dropped+len(r.rec.chunks) > 0 {
		return nil
	}
	return r.rec.err
}

// Began is when the first chunk was made; zero when there is none yet or when
// the recording was kept.
func (r *Reader) Began() time.Time {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return r.rec.began
}

// Opening returns what the work told of its beginning; nil when it has not
// begun or when the recording was kept.
func (r *Reader) Opening() any {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return r.rec.opening
}

// poll returns the next chunk or the end; neither means to wait.
func (r *Reader) poll() (chunk []byte, err error) {
	rec := r.rec
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if r.lagged {
		return nil, ErrLagged
	}
	if i := r.next - rec.dropped; i < len(rec.chunks) {
		chunk = rec.chunks[i]
		r.next++
		if rec.size > rec.limit {
			rec.trimLocked()
		}
		return chunk, nil
	}
	switch {
	case !rec.done:
		r.waits, r.whole = true, false
		return nil, nil
	case rec.err != nil:
		return nil, rec.err
	default:
		return nil, io.EOF
	}
}

// Chunks ranges over what is left. The range ends after the last chunk, or
// after a pair with an error.
func (r *Reader) Chunks(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			chunk, err := r.Next(ctx)
			if errors.Is(err, io.EOF) || !yield(chunk, err) || err != nil {
				return
			}
		}
	}
}

// Close leaves the recording. When the last reader leaves an unfinished one,
// its work is cancelled.
func (r *Reader) Close() {
	r.once.Do(func() {
		r.rec.mu.Lock()
		if at := slices.Index(r.rec.readers, r); at >= 0 {
			r.rec.readers = slices.Delete(r.rec.readers, at, at+1)
		}
		if r.rec.size > r.rec.limit {
			r.rec.trimLocked()
		}
		r.rec.mu.Unlock()
		r.leave()
	})
}
