package cache

import (
	"sync"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// store keeps finished recordings in ristretto, whose habits stay in this file:
// a Set is asynchronous and may be dropped, keys are kept as hashes only, and
// an item over MaxCost vanishes without a trace.
type store struct {
	ristretto *ristretto.Cache[[]byte, *entry]
	maxItem   int64

	closing sync.RWMutex // held against close: what waits for ristretto then waits for ever
	closed  bool

	mu   sync.Mutex
	live map[*entry]struct{} // what ristretto holds: it cannot be asked
}

type entry struct {
	key    Key // compared whole: ristretto tells keys apart by 128 bits of hash
	owner  Owner
	chunks [][]byte
	kept   time.Time
}

const (
	// entryOverhead is what an entry costs beside its chunks: the struct, the
	// slice headers and ristretto's own books, rounded up.
	entryOverhead = 512
	// usualEntry is the size of a usual answer, used only to size the
	// admission counters: ten per entry expected, as ristretto advises.
	usualEntry = 4 << 10
	// largestShare: one answer may take this part of the store at most; one
	// big item evicts hundreds of small ones otherwise.
	largestShare = 50
)

func newStore(bytes int64) (*store, error) {
	s := &store{maxItem: bytes / largestShare, live: map[*entry]struct{}{}}
	r, err := ristretto.NewCache(&ristretto.Config[[]byte, *entry]{
		NumCounters: max(10*bytes/usualEntry, 1000),
		MaxCost:     bytes,
		// Gets are counted in rings of this size; with the usual 64 a small
		// office's newcomers are never counted and never admitted.
		BufferItems: 8,
		Metrics:     true,
		OnExit:      s.left,
	})
	if err != nil {
		return nil, err
	}
	s.ristretto = r
	return s, nil
}

// left hears of every entry that ristretto lets go of, for whatever reason.
func (s *store) left(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, e)
}

func (s *store) get(k Key) (*entry, bool) {
	e, ok := s.ristretto.Get(k[:])
	if !ok || e.key != k {
		return nil, false
	}
	return e, true
}

// put keeps an entry and returns when it can be got, or was refused.
func (s *store) put(e *entry, ttl time.Duration) {
	cost := int64(entryOverhead)
	for _, c := range e.chunks {
		cost += int64(cap(c)) + 24
	}
	if cost > s.maxItem {
		return
	}
	s.mu.Lock()
	s.live[e] = struct{}{}
	s.mu.Unlock()
	if !s.ristretto.SetWithTTL(e.key[:], e, cost, ttl) {
		s.left(e)
		return
	}
	s.ristretto.Wait()
}

// drop lets go of the entries of an owner, and counts the keys they make with
// the given ones.
func (s *store) drop(o Owner, keys map[Key]struct{}) int {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return 0
	}
	s.mu.Lock()
	for e := range s.live {
		if o.covers(e.owner) {
			keys[e.key] = struct{}{}
		}
	}
	s.mu.Unlock()
	for k := range keys {
		s.ristretto.Del(k[:])
	}
	s.ristretto.Wait()
	return len(keys)
}

// close must come after the last put.
func (s *store) close() {
	s.closing.Lock()
	defer s.closing.Unlock()
	s.closed = true
	s.ristretto.Close()
}
