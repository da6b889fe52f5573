package residency

import (
	"math"
	"time"
)

// View is all a policy may look at: values, no clock and no lock. It is lent
// for the length of one call and must not be changed.
type View struct {
	Now       time.Time
	Budget    Bytes         // memory for our models: what foreign models and other processes take is already off
	MaxModels int           // resident models allowed, likewise
	Used      Bytes         // taken by every model that is not Absent
	Count     int           // models that are not Absent
	MaxWait   time.Duration // after which an interactive request is overdue
	Running   int           // leases out
	Waiting   [classes]int  // requests queued, by class
	IdleSince time.Time     // when Running last became 0
	Mistrust  bool          // declared workflows have proved wrong too often
	Seats     []Seat

	victims, chosen []int // scratch of the policy being asked, so that it allocates nothing
}

// Seat is one model with its queues and what was learnt about it.
type Seat struct {
	Model    Model
	Phase    Phase
	Size     Bytes // as the ledger counts it, or would
	Measured bool
	Wanted   bool         // Preload asked for it
	Leases   int          // requests running on this load of the model
	Orphans  int          // leases left over from a load that was lost
	Running  [classes]int // Leases by class
	Queue    [classes]Queue

	LastUsed  time.Time // last grant, release or load
	LoadedAt  time.Time
	EvictedAt time.Time // last unloaded; rent is counted from here at the earliest
	BatchAt   time.Time // last batch grant
	RetryAt   time.Time // a failed load is not tried again before

	Service  time.Duration // mean time a lease is held
	LoadTime time.Duration // mean time of a load
	Gap      time.Duration // mean time from falling idle to the next request; 0: not known
	NextUse  time.Time     // when a declared workflow will ask for it; zero: not declared

	since    time.Time        // the book's beginning
	rate     [classes]float64 // requests, weighted by age as of rateAt, over rateTau
	rateAt   [classes]time.Time
	failures int
	epoch    uint32 // counts losses, tells orphans apart
	idleAt   time.Time
	started  time.Time // of the load or unload under way
	foreseen bool      // loaded by prefetch and not asked for since
}

// Queue is the waiting line of one class at one model, first come first served.
type Queue struct {
	Len    int
	Oldest time.Time // when the head asked; meaningless when Len is 0

	head, tail int32
	base       time.Time // reference point of sum, set when the line forms
	sum        int64     // microseconds from base to each waiter's start of rent
}

const rateTau = 60.0 // seconds over which arrival rates are averaged

// Rent is what the line has waited since the model was last resident, in
// request-seconds.
func (q *Queue) Rent(now time.Time) float64 {
	if q.Len == 0 {
		return 0
	}
	return float64(q.Len)*now.Sub(q.base).Seconds() - float64(q.sum)/1e6
}

// Rate is the recent arrival rate of a class in requests per second. The mean
// is over the time there was to count in: soon after a start it would otherwise
// be far too low, and swaps too cheap.
func (s *Seat) Rate(now time.Time, c Class) float64 {
	if s.rate[c] == 0 {
		return 0
	}
	counted := max(now.Sub(s.since).Seconds(), rateTau/4)
	return -s.decayed(now, c) / math.Expm1(-counted/rateTau)
}

// decayed is the exponentially weighted count of a class's requests, over
// rateTau.
func (s *Seat) decayed(now time.Time, c Class) float64 {
	return s.rate[c] * math.Exp(-now.Sub(s.rateAt[c]).Seconds()/rateTau)
}

// Queued is the number of requests waiting for the model.
func (s *Seat) Queued() int { return s.Queue[Interactive].Len + s.Queue[Batch].Len }

// Idle reports whether nobody uses the model or waits for it.
func (s *Seat) Idle() bool { return s.Leases == 0 && s.Orphans == 0 && s.Queued() == 0 }

// Free is the number of requests that could start now if the model were Ready.
func (s *Seat) Free() int { return s.Model.Slots - s.Leases - s.Orphans }

// Oldest is the time the longest waiting request of either class asked.
func (s *Seat) Oldest() (at time.Time, ok bool) {
	for c := range s.Queue {
		if q := &s.Queue[c]; q.Len > 0 && (!ok || q.Oldest.Before(at)) {
			at, ok = q.Oldest, true
		}
	}
	return at, ok
}

// absent reports whether the model could be loaded now if there were room.
func (v *View) absent(i int) bool {
	s := &v.Seats[i]
	return s.Phase == Absent && !v.Now.Before(s.RetryAt)
}

// evictable reports whether the model could be a victim at all.
func (v *View) evictable(i int) bool {
	s := &v.Seats[i]
	return s.Phase == Ready && s.Model.Tier != T0
}

// fits reports whether x fits once freed bytes and n models are gone.
func (v *View) fits(x int, freed Bytes, n int) bool {
	return v.Used-freed+v.Seats[x].Size <= v.Budget && v.Count-n+1 <= v.MaxModels
}

// Plan is the next move: load Seats[Load] after Victims are gone. The zero
// Plan (NoReason) moves nothing. Wake asks to be consulted again at that time
// even if nothing happens; zero means only on the next event.
type Plan struct {
	Load      int
	Victims   []int
	Reason    Reason
	Rent      float64 // request-seconds behind the decision
	Threshold float64 // and what they had to reach
	Linger    bool    // Wake ends a linger: Seats[Load] would swap now but waits
	Wake      time.Time
}

// Policy decides who is served next. Both methods must be pure functions of
// the view: no clock, no state, no I/O.
type Policy interface {
	// Plan names the next move. It is asked only while no move is under way,
	// after every event. A plan that would evict a pinned model, or not make
	// enough room, is a bug: it is refused and counted.
	Plan(v *View) Plan
	// Starts reports whether the head of Seats[i]'s queue of class c may start
	// now that the model is Ready and has a free slot. A false is asked again
	// after the next event.
	Starts(v *View, i int, c Class) bool
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
