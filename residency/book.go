package residency

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Grant answers a Ticket: with Err nil it is a lease that must be released,
// otherwise the request is over.
type Grant struct {
	Ticket Ticket
	Cold   bool // a load happened while it waited
	Waited time.Duration
	Err    error
}

// Effects is what a driver must do after an event, in this order: answer the
// Grants, start the Unloads and the Load (reporting back with Unloaded and
// Loaded), and call Tick at Wake. Its slices are valid until the next event.
type Effects struct {
	Grants    []Grant
	Unloads   []Model
	Load      Model
	HasLoad   bool
	Wake      time.Time // zero: no need
	Decisions []Decision
}

// Book is the state machine of residency: events in, Effects out, the time an
// argument that never runs backwards. It is not safe for concurrent use.
//
// What it promises, whatever the policy: the ledger (bytes and count of all
// models not Absent) is within the limits whenever a load starts; a T0 model
// is never a victim; a victim admits nobody; it is unloaded only when idle;
// a load starts only after every victim is confirmed gone; one move at a time;
// at most Slots requests run on a model; each ticket is answered once, and
// within a model and class in order.
type Book struct {
	cfg    Config
	policy Policy
	view   View
	names  map[string]int
	ledger ledger
	slots  []slot
	free   int32 // head of the list of unused slots, -1: none
	move   move
	fx     Effects
	count  Counters
	closed bool
	began  time.Time
	from   time.Time // exposed time is counted from here
	flows  map[string]workflow
	linger int // seat whose linger was already told, -1: none
	record bool
	doubt  bool // a model in the queue may have become impossible
}

// move is the one transition under way.
type move struct {
	on      bool
	load    int // seat, or -1 when it only evicts
	victims []int
	plan    Plan
	loading bool
}

// NewBook returns an empty book that starts at now.
func NewBook(cfg Config, p Policy, now time.Time) *Book {
	cfg = cfg.withDefaults()
	b := &Book{cfg: cfg, policy: p, names: map[string]int{}, flows: map[string]workflow{}, free: -1, linger: -1, began: now, from: now, record: cfg.OnDecision != nil}
	b.ledger = newLedger(cfg)
	b.move.load = -1
	b.view.Now, b.view.IdleSince, b.view.MaxWait = now, now, cfg.MaxWait
	b.view.Budget, b.view.MaxModels = b.ledger.limits()
	return b
}

// Ask queues a request for m. The answer may already be among the Effects. An
// error (ErrClosed, ErrTooBig, ErrQueueFull) means that it was not taken.
func (b *Book) Ask(now time.Time, m Model, c Class) (Ticket, Effects, error) {
	b.begin(now)
	if b.closed {
		return 0, b.fx, ErrClosed
	}
	i := b.seat(m)
	if !b.possible(i) {
		b.refuse(i, ErrTooBig)
		return 0, b.fx, ErrTooBig
	}
	if b.view.Seats[i].Queue[c].Len >= b.cfg.QueueLimit {
		b.refuse(i, ErrQueueFull)
		return 0, b.fx, ErrQueueFull
	}
	t := b.enqueue(i, c)
	b.arrived(i, c)
	b.doubt = b.doubt || m.Tier == T0
	b.step()
	return t, b.fx, nil
}

// Cancel withdraws a request that waits. It reports false if the ticket was
// answered before; then the caller holds a lease (or an error) to deal with.
func (b *Book) Cancel(now time.Time, t Ticket) (Effects, bool) {
	b.begin(now)
	s, ok := b.lookup(t, waiting)
	if !ok {
		return b.fx, false
	}
	i := int(b.slots[s].seat)
	b.dequeue(s)
	b.discard(s)
	b.count.Cancelled++
	if b.move.on && b.move.load == i && !b.move.loading && b.view.Seats[i].Queued() == 0 && b.move.plan.demanded() {
		b.callOff()
	}
	b.step()
	return b.fx, true
}

// Release ends the lease of t. A ticket that holds none is ignored.
func (b *Book) Release(now time.Time, t Ticket) Effects {
	b.begin(now)
	s, ok := b.lookup(t, running)
	if !ok {
		return b.fx
	}
	sl := &b.slots[s]
	seat := &b.view.Seats[sl.seat]
	if sl.epoch == seat.epoch {
		seat.Leases--
		seat.Running[sl.class]--
		seat.LastUsed = b.view.Now
		if seat.Leases == 0 && seat.Queued() == 0 {
			seat.idleAt = b.view.Now
		}
	} else {
		seat.Orphans--
	}
	learn(&seat.Service, b.view.Now.Sub(sl.start), serviceMemory)
	if b.view.Running--; b.view.Running == 0 {
		b.view.IdleSince = b.view.Now
	}
	b.discard(s)
	b.step()
	return b.fx
}

// Loaded reports that the load ordered by an Effects ended; size 0 keeps the
// estimate.
func (b *Book) Loaded(now time.Time, name string, size Bytes, err error) Effects {
	b.begin(now)
	i, ok := b.names[name]
	if !ok || b.view.Seats[i].Phase != Loading {
		return b.fx
	}
	s := &b.view.Seats[i]
	took := b.view.Now.Sub(s.started)
	b.count.LoadSeconds += took.Seconds()
	plan := b.move.plan
	b.endMove()
	if err != nil {
		b.setPhase(i, Absent)
		b.failed(i, err)
		b.step()
		return b.fx
	}
	b.setPhase(i, Ready)
	b.ledger.measure(s.Model, size)
	b.resize(i)
	learn(&s.LoadTime, took, loadMemory)
	s.failures, s.RetryAt = 0, time.Time{}
	s.LoadedAt, s.LastUsed, s.idleAt = b.view.Now, b.view.Now, b.view.Now
	s.foreseen = plan.Reason == Prefetch
	b.count.Loads++
	b.decide(Decision{Action: ActLoaded, Model: s.Model.Name, Reason: plan.Reason, Size: s.Size, Took: took})
	b.step()
	return b.fx
}

// Unloaded reports that the unload ordered by an Effects ended. After an error
// the model counts as still resident.
func (b *Book) Unloaded(now time.Time, name string, err error) Effects {
	b.begin(now)
	i, ok := b.names[name]
	if !ok || b.view.Seats[i].Phase != Unloading {
		return b.fx
	}
	s := &b.view.Seats[i]
	took := b.view.Now.Sub(s.started)
	if err != nil {
		b.setPhase(i, Ready)
		s.LastUsed = b.view.Now
		b.decide(Decision{Action: ActUnloadFail, Model: s.Model.Name, For: b.moveFor(), Reason: b.move.plan.Reason, Took: took, Err: err.Error()})
		b.unloadFailed(i, err)
		b.step()
		return b.fx
	}
	b.setPhase(i, Absent)
	b.evicted(i)
	b.count.Unloads++
	b.count.Evictions[b.move.plan.Reason]++
	b.decide(Decision{Action: ActUnloaded, Model: s.Model.Name, For: b.moveFor(), Reason: b.move.plan.Reason, Size: s.Size, Took: took})
	b.step()
	return b.fx
}

// Tick lets time pass: the policy is asked again.
func (b *Book) Tick(now time.Time) Effects {
	b.begin(now)
	b.step()
	return b.fx
}

// Want asks for m to be resident whenever there is room or an idle lower
// claim.
func (b *Book) Want(now time.Time, m Model) Effects {
	b.begin(now)
	if b.closed {
		return b.fx
	}
	i := b.seat(m)
	if !b.possible(i) {
		b.refuse(i, ErrTooBig)
		return b.fx
	}
	b.view.Seats[i].Wanted, b.doubt = true, true
	b.step()
	return b.fx
}

// Drop unloads a model that nobody uses and forgets that it was wanted.
func (b *Book) Drop(now time.Time, name string) (Effects, error) {
	b.begin(now)
	if b.closed {
		return b.fx, ErrClosed
	}
	i, ok := b.names[name]
	if !ok {
		return b.fx, ErrAbsent
	}
	s := &b.view.Seats[i]
	if s.Model.Tier == T0 {
		return b.fx, ErrPinned
	}
	if s.Phase == Absent {
		s.Wanted = false // nor is it to come back
		return b.fx, ErrAbsent
	}
	if b.move.on || s.Phase != Ready || !s.Idle() {
		return b.fx, ErrBusy
	}
	s.Wanted = false
	b.start(Plan{Load: -1, Victims: []int{i}, Reason: Operator})
	b.step()
	return b.fx, nil
}

// Lost records that a model is no longer resident though nobody unloaded it.
// Its leases stay counted against its slots until they are released.
func (b *Book) Lost(now time.Time, name string) Effects {
	b.begin(now)
	i, ok := b.names[name]
	if !ok {
		return b.fx
	}
	s := &b.view.Seats[i]
	if s.Phase != Ready && s.Phase != Closing {
		return b.fx // absent already, or a load or unload under way will tell
	}
	s.Orphans += s.Leases
	s.Leases, s.Running = 0, [classes]int{}
	s.epoch++
	b.setPhase(i, Absent)
	b.evicted(i)
	b.count.Lost++
	b.decide(Decision{Action: ActLost, Model: name, Size: s.Size})
	b.step()
	return b.fx
}

// Foreign records the memory of n models that are not ours.
func (b *Book) Foreign(now time.Time, size Bytes, n int) Effects {
	b.begin(now)
	b.ledger.foreign, b.ledger.foreignCount = size, n
	b.view.Budget, b.view.MaxModels = b.ledger.limits()
	b.step()
	return b.fx
}

// Close answers every waiting request with ErrClosed; nothing is admitted or
// moved from here on.
func (b *Book) Close(now time.Time) Effects {
	b.begin(now)
	b.closed = true
	for i := range b.view.Seats {
		b.failQueue(i, ErrClosed)
	}
	return b.fx
}

// begin opens an event: the effects are emptied and the clock moves on.
func (b *Book) begin(now time.Time) {
	b.fx = Effects{Grants: b.fx.Grants[:0], Unloads: b.fx.Unloads[:0], Decisions: b.fx.Decisions[:0], Wake: b.fx.Wake}
	if now.Before(b.view.Now) {
		now = b.view.Now // a clock set back must not undo waiting or wake-ups
	}
	if b.view.Running == 0 && b.view.Waiting[Interactive]+b.view.Waiting[Batch] > 0 {
		b.count.ExposedSeconds += now.Sub(b.from).Seconds()
	}
	b.view.Now, b.from = now, now
}

// step brings the book to rest: it admits, advances the move under way, and
// asks the policy until there is nothing left to do.
func (b *Book) step() {
	for !b.closed {
		if b.doubt {
			b.failImpossible()
		}
		b.dispatch()
		if b.move.on && b.advance() {
			continue
		}
		if b.move.on || !b.plan() {
			break
		}
	}
}

// dispatch starts whatever may start.
func (b *Book) dispatch() {
	for again := true; again; {
		again = false
		for i := range b.view.Seats {
			s := &b.view.Seats[i]
			if s.Phase != Ready {
				continue
			}
			for c := range Class(classes) {
				for s.Queue[c].Len > 0 && s.Free() > 0 && b.policy.Starts(&b.view, i, c) {
					b.grant(i, c)
					again = true
				}
			}
		}
	}
}

// advance moves the transition on and reports whether the book changed so that
// another look is due.
func (b *Book) advance() bool {
	if b.move.loading {
		return false
	}
	gone := true
	for _, y := range b.move.victims {
		s := &b.view.Seats[y]
		if s.Phase == Closing && s.Leases == 0 && s.Orphans == 0 {
			b.setPhase(y, Unloading)
			s.started = b.view.Now
			b.fx.Unloads = append(b.fx.Unloads, s.Model)
			b.decide(Decision{Action: ActUnload, Model: s.Model.Name, For: b.moveFor(), Reason: b.move.plan.Reason, Size: s.Size})
		}
		gone = gone && s.Phase != Closing && s.Phase != Unloading
	}
	if !gone {
		return false
	}
	x := b.move.load
	if x < 0 || !b.view.fits(x, 0, 0) || b.view.Seats[x].Phase != Absent {
		b.endMove() // it only evicted, or the room went to a foreign model meanwhile
		return true
	}
	s := &b.view.Seats[x]
	b.move.loading = true
	b.setPhase(x, Loading)
	s.started = b.view.Now
	b.fx.Load, b.fx.HasLoad = s.Model, true
	b.decide(Decision{
		Action: ActLoad, Model: s.Model.Name, Reason: b.move.plan.Reason, Size: s.Size,
		Waiting: s.Queue[Interactive].Len, WaitingB: s.Queue[Batch].Len, Rent: b.move.plan.Rent, Threshold: b.move.plan.Threshold,
	})
	return false
}

// plan asks for the next move and reports whether one began.
func (b *Book) plan() bool {
	p := b.relieve()
	if p.Reason == NoReason {
		p = b.policy.Plan(&b.view)
	}
	if p.Reason == NoReason {
		b.fx.Wake = p.Wake
		if p.Linger && b.linger != p.Load {
			s := &b.view.Seats[p.Load]
			b.linger = p.Load
			b.count.Lingers++
			b.decide(Decision{Action: ActLinger, Model: s.Model.Name, Waiting: s.Queue[Interactive].Len, WaitingB: s.Queue[Batch].Len, Rent: p.Rent})
		} else if !p.Linger {
			b.linger = -1
		}
		return false
	}
	b.linger = -1
	if !b.sound(p) {
		// A bug in the policy. Residents are served all the same; the rest waits
		// for a better plan at the next event.
		b.count.Unsound++
		return false
	}
	b.start(p)
	return true
}

// relieve evicts an idle model when what is resident measured larger than the
// budget; the policy need not know.
func (b *Book) relieve() Plan {
	if b.view.Used <= b.view.Budget {
		return Plan{}
	}
	victim := -1
	for i := range b.view.Seats {
		s := &b.view.Seats[i]
		if b.view.evictable(i) && s.Idle() && (victim < 0 || s.LastUsed.Before(b.view.Seats[victim].LastUsed)) {
			victim = i
		}
	}
	if victim < 0 {
		return Plan{}
	}
	b.view.victims = append(b.view.victims[:0], victim)
	return Plan{Load: -1, Victims: b.view.victims, Reason: Overcommit}
}

// start closes the victims of p.
func (b *Book) start(p Plan) {
	b.move = move{on: true, load: p.Load, victims: append(b.move.victims[:0], p.Victims...), plan: p}
	b.move.plan.Victims = nil
	b.fx.Wake = time.Time{} // what ends the move is an event
	for _, y := range b.move.victims {
		b.setPhase(y, Closing)
		if !b.record {
			continue
		}
		d := Decision{Action: ActClose, Model: b.view.Seats[y].Model.Name, For: b.moveFor(), Reason: p.Reason, Rent: p.Rent, Threshold: p.Threshold}
		if p.Load >= 0 {
			d.Waiting, d.WaitingB = b.view.Seats[p.Load].Queue[Interactive].Len, b.view.Seats[p.Load].Queue[Batch].Len
		}
		b.decide(d)
	}
	if p.Load >= 0 && p.Reason == Prefetch {
		b.count.Prefetches++
	}
}

// sound reports whether a plan keeps the book's promises: victims that may be
// victims, and room for the load once they are gone.
func (b *Book) sound(p Plan) bool {
	var freed Bytes
	for k, y := range p.Victims {
		if !b.view.evictable(y) || y == p.Load || slices.Contains(p.Victims[:k], y) {
			return false
		}
		freed += b.view.Seats[y].Size
	}
	return p.Load < 0 || (b.view.Seats[p.Load].Phase == Absent && b.view.fits(p.Load, freed, len(p.Victims)))
}

// callOff gives up the move's load; victims not yet on their way out reopen.
func (b *Book) callOff() {
	b.move.load = -1
	for _, y := range b.move.victims {
		if b.view.Seats[y].Phase == Closing {
			b.setPhase(y, Ready)
			b.decide(Decision{Action: ActReopen, Model: b.view.Seats[y].Model.Name, Reason: b.move.plan.Reason})
		}
	}
}

func (b *Book) endMove() {
	b.move.on, b.move.loading, b.move.load, b.move.victims = false, false, -1, b.move.victims[:0]
}

func (b *Book) moveFor() string {
	if b.move.load < 0 {
		return ""
	}
	return b.view.Seats[b.move.load].Model.Name
}

// demanded reports whether the plan answers waiting requests, so that it is
// pointless once they are gone.
func (p *Plan) demanded() bool {
	return p.Reason != Preloaded && p.Reason != Returned && p.Reason != Prefetch
}

// failed handles a load that did not work: back off, then fail the queue.
func (b *Book) failed(i int, err error) {
	s := &b.view.Seats[i]
	b.count.LoadFailures++
	s.failures++
	s.RetryAt = b.view.Now.Add(b.cfg.LoadBackoff << min(s.failures-1, 5))
	b.decide(Decision{Action: ActLoadFail, Model: s.Model.Name, Size: s.Size, Err: err.Error()})
	// Nobody is to wait for a second load that may take as long.
	if s.failures < b.cfg.LoadAttempts && !errors.Is(err, ErrPermanent) && !errors.Is(err, ErrLoadTimeout) {
		return
	}
	b.decide(Decision{Action: ActFail, Model: s.Model.Name, Waiting: s.Queue[Interactive].Len, WaitingB: s.Queue[Batch].Len, Err: err.Error()})
	b.failQueue(i, &LoadError{Model: s.Model.Name, Err: err})
}

// unloadFailed gives up the move whose victim i would not leave. Whoever the
// room was for is treated as if its load had failed, so it backs off too.
func (b *Book) unloadFailed(i int, err error) {
	x := b.move.load
	b.callOff()
	// Other victims may still be on their way out: the move lasts until they
	// are gone, but this one is no longer part of it.
	b.move.victims = slices.DeleteFunc(b.move.victims, func(y int) bool { return y == i })
	if x >= 0 {
		b.failed(x, fmt.Errorf("unloading %s: %w", b.view.Seats[i].Model.Name, err))
	}
}

// failQueue answers everybody who waits for i with err.
func (b *Book) failQueue(i int, err error) {
	for c := range Class(classes) {
		for b.view.Seats[i].Queue[c].Len > 0 {
			s := b.view.Seats[i].Queue[c].head
			b.fx.Grants = append(b.fx.Grants, Grant{Ticket: b.ticket(s), Waited: b.view.Now.Sub(b.slots[s].since), Err: err})
			b.dequeue(s)
			b.discard(s)
			b.count.Failed++
		}
	}
}

// grant starts the head of a queue.
func (b *Book) grant(i int, c Class) {
	seat := &b.view.Seats[i]
	s := seat.Queue[c].head
	sl := &b.slots[s]
	b.dequeue(s)
	sl.state, sl.start, sl.epoch = running, b.view.Now, seat.epoch
	seat.Leases++
	seat.Running[c]++
	seat.LastUsed = b.view.Now
	seat.foreseen = false
	if c == Batch {
		seat.BatchAt = b.view.Now
	}
	b.view.Running++
	b.count.Grants[c]++
	b.fx.Grants = append(b.fx.Grants, Grant{Ticket: b.ticket(s), Cold: seat.LoadedAt.After(sl.since), Waited: b.view.Now.Sub(sl.since)})
}

// setPhase keeps the totals in step with the phase.
func (b *Book) setPhase(i int, p Phase) {
	s := &b.view.Seats[i]
	switch {
	case s.Phase == Absent && p != Absent:
		b.view.Used += s.Size
		b.view.Count++
	case s.Phase != Absent && p == Absent:
		b.view.Used -= s.Size
		b.view.Count--
	}
	s.Phase = p
	b.doubt = b.doubt || p == Absent
}

// resize takes the model's size from the ledger.
func (b *Book) resize(i int) {
	s := &b.view.Seats[i]
	size, measured := b.ledger.size(s.Model)
	if s.Phase != Absent {
		b.view.Used += size - s.Size
	}
	s.Size, s.Measured, b.doubt = size, measured, true
}

// evicted restarts the rent of those who wait: otherwise a victim with a
// backlog would swap straight back.
func (b *Book) evicted(i int) {
	s := &b.view.Seats[i]
	s.EvictedAt = b.view.Now
	if s.foreseen {
		s.foreseen = false
		b.count.PrefetchMisses++
	}
	for c := range s.Queue {
		q := &s.Queue[c]
		q.sum = int64(q.Len) * b.view.Now.Sub(q.base).Microseconds()
	}
}

// seat finds or makes the seat of m. While the model is resident it keeps the
// configuration it was loaded with.
func (b *Book) seat(m Model) int {
	m.Slots = max(m.Slots, 1)
	i, ok := b.names[m.Name]
	if !ok {
		i = len(b.view.Seats)
		b.names[m.Name] = i
		b.view.Seats = append(b.view.Seats, Seat{Model: m, LoadTime: m.LoadTime, since: b.began})
		for c := range b.view.Seats[i].Queue {
			b.view.Seats[i].Queue[c].head, b.view.Seats[i].Queue[c].tail = -1, -1
		}
		b.resize(i)
	} else if s := &b.view.Seats[i]; s.Phase == Absent && s.Model != m {
		s.Model = m
		b.resize(i)
	}
	return i
}

// possible reports whether the model can ever be loaded beside the pinned
// ones. Foreign models come and go, so they do not count here.
func (b *Book) possible(i int) bool {
	need, n := b.view.Seats[i].Size, 1
	for j := range b.view.Seats {
		if s := &b.view.Seats[j]; j != i && s.Model.Tier == T0 && (s.Wanted || s.Phase != Absent || s.Queued() > 0) {
			need += s.Size
			n++
		}
	}
	return b.view.Seats[i].Phase == Ready || (need <= b.cfg.Budget && n <= b.cfg.MaxModels)
}

// failImpossible ends the wait for models that no longer fit beside the pinned
// ones.
func (b *Book) failImpossible() {
	b.doubt = false
	for i := range b.view.Seats {
		if b.view.Seats[i].Phase == Absent && b.view.Seats[i].Queued() > 0 && !b.possible(i) {
			b.failQueue(i, ErrTooBig)
		}
	}
}

func (b *Book) refuse(i int, err error) {
	b.count.Refused++
	s := &b.view.Seats[i]
	b.decide(Decision{Action: ActRefuse, Model: s.Model.Name, Waiting: s.Queue[Interactive].Len, WaitingB: s.Queue[Batch].Len, Size: s.Size, Err: err.Error()})
}

// arrived learns from a request for seat i.
func (b *Book) arrived(i int, c Class) {
	s := &b.view.Seats[i]
	s.rate[c] = s.decayed(b.view.Now, c) + 1/rateTau
	s.rateAt[c] = b.view.Now
	if !s.idleAt.IsZero() && s.Leases == 0 && s.Queued() == 1 {
		learn(&s.Gap, min(b.view.Now.Sub(s.idleAt), gapLoads*s.LoadTime), gapMemory)
		s.idleAt = time.Time{}
	}
	if s.foreseen {
		s.foreseen = false
		b.count.PrefetchHits++
	}
}

func (b *Book) decide(d Decision) {
	if b.record {
		d.At = b.view.Now
		b.fx.Decisions = append(b.fx.Decisions, d)
	}
}

const (
	serviceMemory = 0.1 // weight of the newest measurement
	loadMemory    = 0.3
	gapMemory     = 0.5

	gapLoads = 3 // a gap of more loads is no conversation, however much longer: the next one counts anew
)

// learn moves a mean towards a measurement; the first one replaces nothing
// known.
func learn(mean *time.Duration, d time.Duration, weight float64) {
	if *mean == 0 {
		*mean = d
		return
	}
	*mean += time.Duration(weight * float64(d-*mean))
}
