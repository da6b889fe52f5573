package cache

import (
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// store keeps finished recordings in ristretto, whose habits stay in this file:
// a Set is asynchronous and may be dropped, keys are kept as hashes only, and
// an item over MaxCost vanishes without a trace.
type store struct {
	ristretto *ristretto.Cache[[]byte, *entry]
	maxItem   int64
}

type entry struct {
	key    Key // compared whole: ristretto tells keys apart by 128 bits of hash
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
	r, err := ristretto.NewCache(&ristretto.Config[[]byte, *entry]{
		NumCounters: max(10*bytes/usualEntry, 1000),
		MaxCost:     bytes,
		// Gets are counted in rings of this size; with the usual 64 a small
		// office's newcomers are never counted and never admitted.
		BufferItems: 8,
		Metrics:     true,
	})
	if err != nil {
		return nil, err
	}
	return &store{ristretto: r, maxItem: bytes / largestShare}, nil
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
	if s.ristretto.SetWithTTL(e.key[:], e, cost, ttl) {
		s.ristretto.Wait()
	}
}

func (s *store) clear() { s.ristretto.Clear() }

func (s *store) close() { s.ristretto.Close() }
