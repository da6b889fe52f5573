package residency

import (
	"math"
	"time"
)

// Unlimited is as much memory as there could be: only the configured budget
// counts.
const Unlimited Bytes = math.MaxUint64

// Memory records how much of the GPU there is for models, foreign ones
// included: its size without what other processes hold. The budget in force is
// the lesser of this and the configured one. A budget that shrinks below what
// is resident ends no lease: it stops loads, and idle models leave until the
// rest fits.
func (b *Book) Memory(now time.Time, available Bytes) Effects {
	b.begin(now)
	b.ledger.available = available
	b.view.Budget, b.view.MaxModels = b.ledger.limits()
	b.step()
	return b.fx
}

// Memory tells how much of the GPU there is for models, by what the driver
// says; see [Book.Memory]. Each call replaces the last; Unlimited takes it
// back.
func (s *Scheduler) Memory(available Bytes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyLocked(s.book.Memory(time.Now(), available))
}
