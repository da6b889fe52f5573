package residency

import (
	"math"
	"slices"
	"time"
)

// LRU serves residents at once and the absent in order of arrival; the least
// recently used models make room. It is the plain baseline, and collapses
// under load: every request for an absent model costs a swap.
type LRU struct{}

// Plan implements Policy.
func (LRU) Plan(v *View) Plan {
	if p := pinned(v); p.Reason != NoReason {
		return p
	}
	x, wake := oldestAbsent(v)
	if x < 0 {
		p := warm(v, 0)
		p.Wake = sooner(p.Wake, wake)
		return p
	}
	if p := displace(v, x, longestUnused); p.Reason != NoReason {
		return p
	}
	return Plan{Wake: wake}
}

// Starts implements Policy: whatever is resident is served.
func (LRU) Starts(*View, int, Class) bool { return true }

// FIFO serves strictly in order of arrival, across all models: nobody
// overtakes, so one absent model at the front holds everybody up. The least
// recently used models make room.
type FIFO struct{}

// Plan implements Policy.
func (FIFO) Plan(v *View) Plan {
	if p := pinned(v); p.Reason != NoReason {
		return p
	}
	x, wake := oldestAbsent(v)
	if x < 0 {
		p := warm(v, 0)
		p.Wake = sooner(p.Wake, wake)
		return p
	}
	if at, _ := v.Seats[x].Oldest(); !first(v, at) {
		return Plan{Wake: wake}
	}
	if p := displace(v, x, longestUnused); p.Reason != NoReason {
		return p
	}
	return Plan{Wake: wake}
}

// Starts implements Policy.
func (FIFO) Starts(v *View, i int, c Class) bool { return first(v, v.Seats[i].Queue[c].Oldest) }

// first reports whether nobody who could be served asked before at.
func first(v *View, at time.Time) bool {
	for i := range v.Seats {
		if s := &v.Seats[i]; s.Phase == Absent && !v.absent(i) {
			continue // its load failed: it backs off and holds nobody up
		} else if o, ok := s.Oldest(); ok && o.Before(at) {
			return false
		}
	}
	return true
}

// oldestAbsent is the absent model with the longest wait, -1 if none, and when
// one that backs off may be tried again.
func oldestAbsent(v *View) (x int, wake time.Time) {
	x = -1
	var oldest time.Time
	for i := range v.Seats {
		s := &v.Seats[i]
		at, ok := s.Oldest()
		if !ok || s.Phase != Absent {
			continue
		}
		if !v.absent(i) {
			wake = sooner(wake, s.RetryAt)
			continue
		}
		if x < 0 || at.Before(oldest) {
			x, oldest = i, at
		}
	}
	return x, wake
}

// longestUnused orders victims: idle before busy, then least recently used.
func longestUnused(a, b *Seat) bool {
	if a.Idle() != b.Idle() {
		return a.Idle()
	}
	return a.LastUsed.Before(b.LastUsed)
}

// displace loads x over the first victims in the given order that make room.
// A victim that proves unneeded once the others are found is spared.
func displace(v *View, x int, before func(a, b *Seat) bool) Plan {
	v.victims = v.victims[:0]
	var freed Bytes
	for !v.fits(x, freed, len(v.victims)) {
		best := -1
		for i := range v.Seats {
			if v.evictable(i) && i != x && !slices.Contains(v.victims, i) && (best < 0 || before(&v.Seats[i], &v.Seats[best])) {
				best = i
			}
		}
		if best < 0 {
			return Plan{}
		}
		v.victims = append(v.victims, best)
		freed += v.Seats[best].Size
	}
	for k := 0; k < len(v.victims); {
		size := v.Seats[v.victims[k]].Size
		if v.fits(x, freed-size, len(v.victims)-1) {
			v.victims = append(v.victims[:k], v.victims[k+1:]...)
			freed -= size
		} else {
			k++
		}
	}
	p := Plan{Load: x, Victims: v.victims, Reason: Room}
	if len(p.Victims) > 0 {
		p.Reason = Rent
		p.Rent = rentOf(&v.Seats[x], v.Now)
	}
	return p
}

// rentOf is what all who wait for the model have waited, in request-seconds.
func rentOf(s *Seat, now time.Time) float64 {
	return s.Queue[Interactive].Rent(now) + s.Queue[Batch].Rent(now)
}

// pinned brings a T0 model in that is wanted or asked for: before anything
// else, over whatever is in the way.
func pinned(v *View) Plan {
	for i := range v.Seats {
		s := &v.Seats[i]
		if s.Model.Tier != T0 || !v.absent(i) || (!s.Wanted && s.Queued() == 0) {
			continue
		}
		p := displace(v, i, longestUnused)
		if p.Reason != NoReason && s.Queued() == 0 {
			p.Reason = Preloaded
		}
		return p
	}
	return Plan{}
}

// warm brings wanted models in while nobody waits for an absent one: into
// free room at once, and over idle models of a lower claim once the whole GPU
// has been idle for a while. A model nobody wanted has a lower claim than one
// that was, unless it is asked for more often.
func warm(v *View, after time.Duration) Plan {
	var wake time.Time
	for i := range v.Seats {
		s := &v.Seats[i]
		if !s.Wanted || s.Phase != Absent {
			continue
		}
		if !v.absent(i) {
			wake = sooner(wake, s.RetryAt)
			continue
		}
		if v.fits(i, 0, 0) {
			return Plan{Load: i, Reason: Preloaded}
		}
		if v.Running > 0 {
			continue
		}
		if at := v.IdleSince.Add(after); v.Now.Before(at) {
			wake = sooner(wake, at)
			continue
		}
		p := displace(v, i, func(a, b *Seat) bool { return lower(a, s, v.Now) && (!lower(b, s, v.Now) || longestUnused(a, b)) })
		ok := p.Reason != NoReason
		for _, y := range p.Victims {
			ok = ok && lower(&v.Seats[y], s, v.Now)
		}
		if ok {
			p.Reason, p.Rent = Returned, 0
			return p
		}
		for j := range v.Seats {
			if y := &v.Seats[j]; v.evictable(j) && y.Model.Tier > s.Model.Tier {
				wake = sooner(wake, v.Now.Add(y.quiet(v.Now)))
			}
		}
	}
	return Plan{Wake: wake}
}

// quiet is how long without a request it takes until the model's rate has
// fallen to idleRate.
func (s *Seat) quiet(now time.Time) time.Duration {
	d := rateTau * math.Log(s.rates(now)/idleRate)
	return time.Duration(max(d, 1) * float64(time.Second))
}

// rates is what is left of the arrival rates of both classes: a claim to a seat
// fades with the time since the last request, however long the book has run.
func (s *Seat) rates(now time.Time) float64 {
	return s.decayed(now, Interactive) + s.decayed(now, Batch)
}

// lower reports whether an idle model y has a lower claim to stay than wanted x
// has to return.
func lower(y, x *Seat, now time.Time) bool {
	return y.Idle() && y.Model.Tier > x.Model.Tier && !y.expected(now) && y.rates(now) <= x.rates(now)+idleRate
}

// idleRate is an arrival rate too low to hold a seat against a kept-warm
// model: one request in four minutes.
const idleRate = 1.0 / 240
