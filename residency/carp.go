package residency

import (
	"fmt"
	"math/bits"
	"time"
)

// CARP is the cost-aware residency policy. Residents are always served. An
// absent model x is swapped in when its waiting requests have paid, in
// request-seconds, what the swap would cost the others: next to nothing when
// the victims or the whole GPU are idle, much when they are busy, and
// regardless of cost once somebody has waited for MaxWait. That is the
// rent-or-buy rule of paging with delay with a demand-aware price.
//
// A zero field is a zero, not a default: start from Latency, Balanced or
// Economy.
type CARP struct {
	Theta     float64 // share of the price asked while all victims are idle
	ThetaBusy float64 // while one has work
	ThetaHot  float64 // while somebody talks to one: its next request is likely at once
	Eta       float64 // loads charged for every other waiting request
	Kappa     float64 // loads that any swap costs on top
	Patient   bool    // an idle GPU is no reason to swap at once

	BatchMaxWait time.Duration // a model with batch work makes progress within this
	BatchWeight  float64       // of a batch request against an interactive one
	BatchCap     float64       // of a whole queue of batch requests
	Quantum      time.Duration // a loaded model's batch work is protected for
	LingerMax    time.Duration // upper limit of a linger; the victim's load time if that is shorter
	Greedy       bool          // no full-batch gate and no just-in-time swaps: for GPUs that run models truly in parallel
	Beta         float64       // slowdown of a request per further one on the same model

	// ServiceScale and LoadScale falsify what was learnt, to study the damage.
	// 0 means 1.
	ServiceScale, LoadScale float64
}

// Latency is CARP for the shortest wait.
func Latency() CARP {
	return CARP{
		Theta: .5, ThetaBusy: 2, ThetaHot: 20, Eta: 1, BatchMaxWait: 15 * time.Minute, BatchWeight: .02, BatchCap: 1,
		Quantum: 20 * time.Second, LingerMax: 5 * time.Second, Beta: .25,
	}
}

// Balanced trades a little wait for fewer swaps.
func Balanced() CARP {
	c := Latency()
	c.Kappa = 2.5
	return c
}

// Economy makes about half the swaps of plain scheduling at no worse 99th
// percentile; its mean wait is higher under light load.
func Economy() CARP {
	c := Latency()
	c.Kappa, c.Patient = 5, true
	return c
}

// Preset returns CARP as "latency", "balanced" or "economy".
func Preset(name string) (Policy, error) {
	switch name {
	case "latency":
		return Latency(), nil
	case "balanced":
		return Balanced(), nil
	case "economy":
		return Economy(), nil
	}
	return nil, fmt.Errorf("policy preset %q: want latency, balanced or economy", name)
}

// Starts implements Policy. Interactive requests always start. Batch work
// waits for a full batch: half a batch of a second model would take half the
// GPU from a full one.
func (p CARP) Starts(v *View, i int, c Class) bool {
	s := &v.Seats[i]
	return c == Interactive || p.Greedy || s.Leases > 0 || s.Queue[Batch].Len >= s.Model.Slots || v.Running == 0
}

// Plan implements Policy.
func (p CARP) Plan(v *View) Plan {
	if m := pinned(v); m.Reason != NoReason {
		return m
	}
	if m := p.overdue(v); m.Reason != NoReason {
		return m
	}
	best, wake := p.worthwhile(v)
	if best.Reason != NoReason || best.Linger {
		best.Wake = sooner(best.Wake, wake)
		return best
	}
	if m := p.prefetch(v); m.Reason != NoReason {
		return m
	}
	if v.Waiting[Interactive]+v.Waiting[Batch] == 0 {
		m := warm(v, p.LingerMax)
		m.Wake = sooner(m.Wake, wake)
		return m
	}
	return Plan{Wake: wake}
}

// overdue brings in the model whose request is longest overdue.
func (p CARP) overdue(v *View) Plan {
	x, oldest := -1, time.Time{}
	for c := range Class(classes) {
		for i := range v.Seats {
			if at, ok := p.due(v, i, c); ok && !v.Now.Before(at) && v.absent(i) && (x < 0 || at.Before(oldest)) {
				x, oldest = i, at
			}
		}
		if x < 0 {
			continue
		}
		if victims, _, ok := p.victims(v, x, c == Interactive); ok {
			return Plan{Load: x, Victims: victims, Reason: Overdue, Rent: p.rent(v, x)}
		}
	}
	return Plan{}
}

// due is when the head of a queue becomes overdue. Batch work is judged by
// progress, not age: a thousand lines share one arrival, and aging them would
// turn priorities round.
func (p CARP) due(v *View, i int, c Class) (time.Time, bool) {
	s := &v.Seats[i]
	q := &s.Queue[c]
	if q.Len == 0 {
		return time.Time{}, false
	}
	if c == Interactive {
		return q.Oldest.Add(v.MaxWait), true
	}
	since := q.Oldest
	if s.BatchAt.After(since) {
		since = s.BatchAt
	}
	return since.Add(p.BatchMaxWait), true
}

// worthwhile is the swap that has best earned its price, and otherwise the time
// at which the first one will have.
func (p CARP) worthwhile(v *View) (best Plan, wake time.Time) {
	const eps = 1e-3
	score := 0.0
	idle := v.Running == 0
	var held Plan // the linger that ends first, should nothing better be found
	for x := range v.Seats {
		s := &v.Seats[x]
		if s.Phase != Absent || s.Queued() == 0 {
			continue
		}
		if !v.absent(x) {
			wake = sooner(wake, s.RetryAt)
			continue
		}
		for c := range Class(classes) {
			if at, ok := p.due(v, x, c); ok && at.After(v.Now) {
				wake = sooner(wake, at)
			}
		}
		batch := s.Queue[Interactive].Len == 0
		victims, price, ok := p.victims(v, x, !batch)
		if !ok {
			continue
		}
		reason := Rent
		switch {
		case len(victims) == 0:
			reason, price = Room, 0
		case idle && !p.Patient:
			if at := p.lingers(v, victims); at.After(v.Now) {
				if held.Wake.IsZero() || at.Before(held.Wake) {
					held = Plan{Load: x, Linger: true, Rent: p.rent(v, x), Wake: at}
				}
				continue
			}
			reason, price = Idle, 0
		case batch && !p.Greedy && p.runway(v) > 1.25*p.load(s)+.5:
			continue // what is resident still keeps the GPU busy: the next release asks again
		default:
			price += p.load(s) * (p.Kappa + p.Eta*p.others(v, x))
		}
		rent, slope := p.rent(v, x), p.weight(s, Interactive)+p.weight(s, Batch)
		if idle {
			rent, slope = rentOf(s, v.Now), float64(s.Queued()) // nobody is there for batch work to outweigh
		}
		if rent < price {
			if slope > 0 {
				wake = sooner(wake, v.Now.Add(time.Duration((price-rent)/slope*float64(time.Second))+time.Microsecond))
			}
			continue
		}
		if r := (rent + eps) / (price + eps); r > score {
			score = r
			v.chosen = append(v.chosen[:0], victims...)
			best = Plan{Load: x, Victims: v.chosen, Reason: reason, Rent: rent, Threshold: price}
		}
	}
	if best.Reason == NoReason {
		best = held
	}
	return best, wake
}

// victims is the cheapest set of models that makes room for x and what taking
// their seats costs them. interactive: on behalf of an interactive request.
func (p CARP) victims(v *View, x int, interactive bool) (set []int, cost float64, ok bool) {
	const most = 12 // 2^12 subsets; more residents than that do not share one GPU
	var who [most]int
	var harm [most]float64
	var busy, hot uint
	n := 0
	if v.fits(x, 0, 0) {
		return nil, 0, true
	}
	for i := range v.Seats {
		if n < most && v.evictable(i) && !p.protected(v, i, interactive) {
			who[n], harm[n] = i, p.harm(v, x, i)
			switch s := &v.Seats[i]; {
			case v.Now.Before(p.pausing(s)), !s.Idle() && p.hot(s):
				hot |= 1 << n
			case !s.Idle():
				busy |= 1 << n
			}
			n++
		}
	}
	best := uint(0)
	for mask := uint(1); mask < 1<<n; mask++ {
		var freed Bytes
		sum := 0.0
		for m := mask; m != 0; m &= m - 1 {
			k := bits.TrailingZeros(m)
			freed += v.Seats[who[k]].Size
			sum += harm[k]
		}
		if !v.fits(x, freed, bits.OnesCount(mask)) {
			continue
		}
		switch {
		case mask&hot != 0:
			sum *= p.ThetaHot
		case mask&busy != 0:
			sum *= p.ThetaBusy
		default:
			sum *= p.Theta
		}
		if best == 0 || sum < cost || (sum == cost && preferred(v, who[:n], mask, best)) {
			best, cost = mask, sum
		}
	}
	v.victims = v.victims[:0]
	for m := best; m != 0; m &= m - 1 {
		v.victims = append(v.victims, who[bits.TrailingZeros(m)])
	}
	return v.victims, cost, best != 0
}

// preferred breaks ties between two sets of victims: fewer, then the higher
// tier, then the longest unused.
func preferred(v *View, who []int, a, b uint) bool {
	if na, nb := bits.OnesCount(a), bits.OnesCount(b); na != nb {
		return na < nb
	}
	sa, sb := &v.Seats[who[bits.TrailingZeros(a)]], &v.Seats[who[bits.TrailingZeros(b)]]
	if sa.Model.Tier != sb.Model.Tier {
		return sa.Model.Tier > sb.Model.Tier
	}
	return sa.LastUsed.Before(sb.LastUsed)
}

// protected reports whether a resident must not be closed yet: it still owes
// service to those it was loaded for, or to somebody overdue.
func (p CARP) protected(v *View, i int, interactive bool) bool {
	s := &v.Seats[i]
	if q := &s.Queue[Interactive]; q.Len > 0 && (!q.Oldest.After(s.LoadedAt) || v.Now.Sub(q.Oldest) >= v.MaxWait) {
		return true
	}
	return !interactive && s.Queue[Batch].Len > 0 && v.Now.Sub(s.LoadedAt) < p.Quantum
}

// harm is the waiting, in request-seconds, that losing its seat to x inflicts
// on y: on those present for the whole absence, and on those expected to come.
func (p CARP) harm(v *View, x, y int) float64 {
	sx, sy := &v.Seats[x], &v.Seats[y]
	t := p.load(sx) + p.visit(sx) + p.load(sy)
	if !sy.Idle() {
		t += .5 * p.service(sy)
	}
	t = min(t, max(10, v.MaxWait.Seconds()/4)) // a wrong estimate must not make a swap unaffordable
	n := p.weight(sy, Interactive) + .5*(float64(sy.Running[Interactive])+p.BatchWeight*float64(sy.Running[Batch]))
	if sx.Queue[Interactive].Len > 0 {
		n += p.weight(sy, Batch)
	}
	if p.hot(sy) {
		n++ // whoever it serves now asks again at once, and would find it gone
	}
	harm := n*t + (sy.Rate(v.Now, Interactive)+p.BatchWeight*sy.Rate(v.Now, Batch))*t*t/2
	if in := max(0, sy.NextUse.Sub(v.Now).Seconds()); sy.expected(v.Now) && in < t {
		harm += t - in
	}
	return harm
}

// visit is how long x would hold the seat against interactive demand: for its
// own, or else for a quantum of batch work.
func (p CARP) visit(s *Seat) float64 {
	each := p.service(s) / p.speedup(s)
	if n := s.Queue[Interactive].Len; n > 0 {
		return max(p.service(s), float64(n)*each)
	}
	return max(p.service(s), min(float64(s.Queue[Batch].Len)*each, p.Quantum.Seconds()))
}

// runway is how long what is resident keeps the GPU busy, in seconds.
func (p CARP) runway(v *View) float64 {
	sum := 0.0
	for i := range v.Seats {
		if s := &v.Seats[i]; s.Phase == Ready {
			sum += (float64(s.Queued()) + .5*float64(s.Leases)) * p.service(s) / p.speedup(s)
		}
	}
	return sum
}

// others is how many wait for models other than x, by weight.
func (p CARP) others(v *View, x int) float64 {
	n := 0.0
	for i := range v.Seats {
		if i != x {
			n += p.weight(&v.Seats[i], Interactive) + p.weight(&v.Seats[i], Batch)
		}
	}
	return n
}

// weight is what a queue counts for. However long, batch work never counts for
// more than BatchCap interactive requests.
func (p CARP) weight(s *Seat, c Class) float64 {
	n := float64(s.Queue[c].Len)
	if c == Interactive {
		return n
	}
	return min(n*p.BatchWeight, p.BatchCap)
}

// rent is what x has waited, by weight.
func (p CARP) rent(v *View, x int) float64 {
	s := &v.Seats[x]
	sum := s.Queue[Interactive].Rent(v.Now)
	if n := s.Queue[Batch].Len; n > 0 {
		sum += s.Queue[Batch].Rent(v.Now) * p.weight(s, Batch) / float64(n)
	}
	return sum
}

// lingers is the time before which an idle victim's next request is likely:
// those whose requests follow closely keep the seat for as long as one usually
// takes to come, but not longer than a load.
func (p CARP) lingers(v *View, victims []int) (until time.Time) {
	for _, y := range victims {
		if at := p.pausing(&v.Seats[y]); at.After(until) {
			until = at
		}
	}
	return until
}

// pausing is the time before which the next request of a hot model is likely,
// and zero for others.
func (p CARP) pausing(s *Seat) time.Time {
	if !p.hot(s) {
		return time.Time{}
	}
	return s.LastUsed.Add(min(s.Gap+s.Gap/2+50*time.Millisecond, p.lingerMost(s)))
}

// hot reports whether a model falls idle only for less than a load would take.
func (p CARP) hot(s *Seat) bool { return s.Gap > 0 && s.Gap < p.lingerMost(s) }

// lingerMost is a load, or as long as nobody minds waiting where loads are
// quicker: the next one may take far longer than what was learnt.
func (p CARP) lingerMost(s *Seat) time.Duration {
	return min(max(s.LoadTime, 300*time.Millisecond), p.LingerMax)
}

// prefetch loads what declared workflows need next over an idle model that is
// needed later.
func (p CARP) prefetch(v *View) Plan {
	if v.Mistrust || v.Waiting[Interactive]+v.Waiting[Batch] > 0 {
		return Plan{} // who waits already is surer than who will come
	}
	best := Plan{}
	var soonest time.Time
	for x := range v.Seats {
		sx := &v.Seats[x]
		if !v.absent(x) || sx.Queued() > 0 || !sx.expected(v.Now) || (!soonest.IsZero() && !sx.NextUse.Before(soonest)) {
			continue
		}
		if v.fits(x, 0, 0) {
			best, soonest = Plan{Load: x, Reason: Prefetch}, sx.NextUse
			continue
		}
		y := -1
		var latest time.Time
		for i := range v.Seats {
			s := &v.Seats[i]
			if !v.evictable(i) || !s.Idle() || !v.fits(x, s.Size, 1) {
				continue
			}
			if at := p.nextUse(v, s); at.After(sx.NextUse) && at.After(latest) {
				y, latest = i, at
			}
		}
		if y >= 0 {
			v.chosen = append(v.chosen[:0], y)
			best, soonest = Plan{Load: x, Victims: v.chosen, Reason: Prefetch}, sx.NextUse
		}
	}
	return best
}

// nextUse is when an idle model will be asked for: as declared, else guessed
// from its rate.
func (p CARP) nextUse(v *View, s *Seat) time.Time {
	if s.expected(v.Now) {
		return s.NextUse
	}
	rate := max(s.rates(v.Now), 1e-4)
	return v.Now.Add(time.Duration(float64(time.Second) / rate))
}

func (p CARP) speedup(s *Seat) float64 {
	n := float64(s.Model.Slots)
	return n / (1 + p.Beta*(n-1))
}

// service is the work of one request in seconds. A lease is held about twice
// as long, for it shares the GPU; and overestimates do more harm than
// underestimates.
func (p CARP) service(s *Seat) float64 {
	if s.Service == 0 {
		return 2 * scale(p.ServiceScale)
	}
	return .5 * s.Service.Seconds() * scale(p.ServiceScale)
}

func (p CARP) load(s *Seat) float64 { return s.LoadTime.Seconds() * scale(p.LoadScale) }

func scale(f float64) float64 {
	if f == 0 {
		return 1
	}
	return f
}
