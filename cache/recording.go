package cache

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
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
	done    bool
	err     error
	grew    chan struct{} // closed, and replaced, whenever there is more to read
	readers map[*Reader]struct{}
}

func newRecording(limit int) *Recording {
	return &Recording{limit: limit, grew: make(chan struct{}), readers: map[*Reader]struct{}{}}
}

// Append adds chunks that came together: readers are woken once. The recording
// keeps each chunk: it must not change later.
func (r *Recording) Append(chunks ...[]byte) {
	if len(chunks) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
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
// not part of the answer and is not kept.
func (r *Recording) Open(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opening = v
	r.wakeLocked()
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

func (r *Recording) wakeLocked() {
	close(r.grew)
	r.grew = make(chan struct{})
}

// trimLocked drops what the slowest reader has read.
func (r *Recording) trimLocked() {
	slowest := r.dropped + len(r.chunks)
	for reader := range r.readers {
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
	cut := false
	for reader := range r.readers {
		if reader.next == r.dropped && len(r.chunks) > 1 {
			delete(r.readers, reader)
			reader.lagged, cut = true, true
		}
	}
	return cut
}

// Reader reads one recording from its first chunk to its last.
type Reader struct {
	rec   *Recording
	next  int // index of the next chunk, counted from the start; guarded by rec.mu
	leave func()
	once  sync.Once

	lagged bool // guarded by rec.mu
}

func (r *Recording) read(leave func()) *Reader {
	reader := &Reader{rec: r, leave: leave}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.done {
		r.readers[reader] = struct{}{}
	}
	return reader
}

// Next returns the next chunk, waiting for it while the recording is being
// made. It returns io.EOF after the last chunk, the error the work failed with,
// or the cause for which ctx ended. The chunk must not be changed.
func (r *Reader) Next(ctx context.Context) ([]byte, error) {
	for {
		chunk, more, err := r.poll()
		if chunk != nil || err != nil {
			return chunk, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// More returns a channel that is closed once Next would not wait, or once
// the work has told how it began.
func (r *Reader) More() <-chan struct{} {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	if r.next < r.rec.dropped+len(r.rec.chunks) || r.rec.done {
		ready := make(chan struct{})
		close(ready)
		return ready
	}
	return r.rec.grew
}

// Ready reports whether Next would return at once.
func (r *Reader) Ready() bool {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
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

// Opening returns what the work told of its beginning; nil when it has not
// begun or when the recording was kept.
func (r *Reader) Opening() any {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return r.rec.opening
}

// poll returns the next chunk, the end, or a channel to wait on.
func (r *Reader) poll() (chunk []byte, more <-chan struct{}, err error) {
	rec := r.rec
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if r.lagged {
		return nil, nil, ErrLagged
	}
	if i := r.next - rec.dropped; i < len(rec.chunks) {
		chunk = rec.chunks[i]
		r.next++
		if rec.size > rec.limit {
			rec.trimLocked()
		}
		return chunk, nil, nil
	}
	switch {
	case !rec.done:
		return nil, rec.grew, nil
	case rec.err != nil:
		return nil, nil, rec.err
	default:
		return nil, nil, io.EOF
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
		delete(r.rec.readers, r)
		if r.rec.size > r.rec.limit {
			r.rec.trimLocked()
		}
		r.rec.mu.Unlock()
		r.leave()
	})
}
