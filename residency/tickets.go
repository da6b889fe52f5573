package residency

import "time"

// Ticket names one request to a Book from Ask until Release or Cancel. The
// zero Ticket names none.
type Ticket uint64

// slot holds one ticket.
type slot struct {
	gen        uint32
	seat       int32
	next, prev int32
	epoch      uint32
	class      Class
	state      slotState
	since      time.Time
	start      time.Time
}

type slotState uint8

const (
	unused slotState = iota
	waiting
	running
)

func (b *Book) enqueue(i int, c Class) Ticket {
	s := b.free
	if s < 0 {
		s = int32(len(b.slots))
		b.slots = append(b.slots, slot{next: -1})
	}
	sl := &b.slots[s]
	b.free = sl.next
	*sl = slot{gen: sl.gen + 1, seat: int32(i), class: c, state: waiting, since: b.view.Now, next: -1}
	q := &b.view.Seats[i].Queue[c]
	sl.prev = q.tail
	if q.Len == 0 {
		q.head, q.base, q.sum = s, b.view.Now, 0
		q.Oldest = b.view.Now
	} else {
		b.slots[q.tail].next = s
	}
	q.tail = s
	q.Len++
	q.sum += b.view.Now.Sub(q.base).Microseconds()
	b.view.Waiting[c]++
	return b.ticket(s)
}

// dequeue takes a waiting slot out of its line.
func (b *Book) dequeue(s int32) {
	sl := &b.slots[s]
	seat := &b.view.Seats[sl.seat]
	q := &seat.Queue[sl.class]
	if sl.prev >= 0 {
		b.slots[sl.prev].next = sl.next
	} else {
		q.head = sl.next
	}
	if sl.next >= 0 {
		b.slots[sl.next].prev = sl.prev
	} else {
		q.tail = sl.prev
	}
	from := sl.since
	if seat.EvictedAt.After(from) {
		from = seat.EvictedAt
	}
	q.sum -= from.Sub(q.base).Microseconds()
	if q.Len--; q.Len > 0 {
		q.Oldest = b.slots[q.head].since
	}
	b.view.Waiting[sl.class]--
	sl.next, sl.prev = -1, -1
}

// discard frees the slot; its ticket is void from here on.
func (b *Book) discard(s int32) {
	b.slots[s].state = unused
	b.slots[s].next = b.free
	b.free = s
}

func (b *Book) ticket(s int32) Ticket {
	return Ticket(b.slots[s].gen)<<32 | Ticket(s)
}

func (b *Book) lookup(t Ticket, want slotState) (int32, bool) {
	s := int64(t & (1<<32 - 1))
	if s >= int64(len(b.slots)) {
		return 0, false
	}
	sl := &b.slots[s]
	return int32(s), sl.gen == uint32(t>>32) && sl.state == want
}
