package proxy

import "sync"

// mostPooled is the largest buffer that is kept for the next request.
const mostPooled = 1 << 20

// buffers lends byte buffers: for bodies until they are decoded, for keys until
// they are hashed. Nothing but bytes is pooled, and nothing may keep a part of
// a buffer that was given back.
type buffers struct {
	pool     sync.Pool
	scribble bool // over what is given back, so that a test sees who kept a part
}

// buffer is one that is lent.
type buffer struct{ bytes []byte }

// take lends an empty buffer, with room for size bytes or for what it had.
func (b *buffers) take(size int) *buffer {
	lent, ok := b.pool.Get().(*buffer)
	if !ok {
		lent = &buffer{}
	}
	if cap(lent.bytes) < size {
		lent.bytes = make([]byte, 0, size)
	}
	lent.bytes = lent.bytes[:0]
	return lent
}

// give takes a buffer back.
func (b *buffers) give(lent *buffer) {
	if b.scribble {
		all := lent.bytes[:cap(lent.bytes)]
		for i := range all {
			all[i] = '#'
		}
	}
	if cap(lent.bytes) <= mostPooled {
		b.pool.Put(lent)
	}
}
