// Package alarm bounds waits that nearly always end in time: a request's
// clocks, a connection's deadlines. Each set as a timer of the runtime wakes a
// thread, to watch it, and costs more than what it watches over. A [Clock]
// keeps its alarms itself, under one timer that is touched only when an alarm
// comes before all others.
package alarm

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Clock rings alarms. The zero value is ready for use, by many goroutines.
type Clock struct {
	mu     sync.Mutex
	alarms alarms
	timer  *time.Timer
	fires  time.Time // when the timer does, at the latest with the first alarm; zero: it does not
}

// Alarm calls a function at a time that can be put off. It is for one
// goroutine.
type Alarm struct {
	clock *Clock
	ring  func()
	when  time.Time
	at    int // its place in the heap; none: -1
}

// New returns an alarm that is not set yet. ring must not block; it is called
// from a goroutine of its own and may come to run when the alarm has been put
// off or stopped meanwhile.
func (c *Clock) New(ring func()) *Alarm { return &Alarm{clock: c, ring: ring, at: -1} }

// Set makes a ring at when, and no sooner.
func (a *Alarm) Set(when time.Time) {
	c := a.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	a.when = when
	if a.at < 0 {
		heap.Push(&c.alarms, a)
	} else {
		heap.Fix(&c.alarms, a.at)
	}
	c.windLocked()
}

// Stop makes a not ring.
func (a *Alarm) Stop() {
	a.clock.mu.Lock()
	defer a.clock.mu.Unlock()
	if a.at >= 0 {
		heap.Remove(&a.clock.alarms, a.at)
	}
}

// windLocked sees to it that the timer fires in time. One that fires too soon,
// because its alarm was put off, costs less than moving it would.
func (c *Clock) windLocked() {
	if len(c.alarms) == 0 {
		return
	}
	first := c.alarms[0].when
	if !c.fires.IsZero() && !first.Before(c.fires) {
		return
	}
	c.fires = first
	if c.timer == nil {
		c.timer = time.AfterFunc(time.Until(first), c.fire)
	} else {
		c.timer.Reset(time.Until(first))
	}
}

func (c *Clock) fire() {
	c.mu.Lock()
	now := time.Now()
	var due []*Alarm
	for len(c.alarms) > 0 && !c.alarms[0].when.After(now) {
		due = append(due, heap.Pop(&c.alarms).(*Alarm)) //nolint:forcetypeassert // nothing else is pushed
	}
	c.fires = time.Time{}
	c.windLocked()
	c.mu.Unlock()
	for _, a := range due {
		a.ring()
	}
}

// Context returns a context that ends with its parent or, with a cause, after
// d; never for that when d is not positive. Unlike one of package context, it
// tells nobody of its deadline and ends as if it was cancelled.
func (c *Clock) Context(parent context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	if d <= 0 {
		return ctx, func() { cancel(nil) }
	}
	a := c.New(func() { cancel(cause) })
	a.Set(time.Now().Add(d))
	return ctx, func() {
		a.Stop()
		cancel(nil)
	}
}

// alarms are a heap, the first to ring on top.
type alarms []*Alarm

func (h alarms) Len() int           { return len(h) }
func (h alarms) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h alarms) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *alarms) Push(x any) {
	a := x.(*Alarm) //nolint:forcetypeassert // nothing else is pushed
	a.at = len(*h)
	*h = append(*h, a)
}

// Pop implements heap.Interface.
func (h *alarms) Pop() any {
	last := len(*h) - 1
	a := (*h)[last]
	(*h)[last], *h = nil, (*h)[:last]
	a.at = -1
	return a
}
