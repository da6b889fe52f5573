package residency

import (
	"errors"
	"fmt"
	"slices"
)

// check holds the book to its invariants. over says that a measurement or a
// foreign model may have pushed the ledger over its limits.
func (b *Book) check(over bool) error {
	var used Bytes
	var count, run int
	var wait [classes]int
	for i := range b.view.Seats {
		s := &b.view.Seats[i]
		name := s.Model.Name
		if s.Phase != Absent {
			used += s.Size
			count++
		}
		if s.Leases > 0 && s.Phase != Ready && s.Phase != Closing {
			return fmt.Errorf("I3: %s runs %d requests while %v", name, s.Leases, s.Phase)
		}
		if s.Leases+s.Orphans > s.Model.Slots && s.Orphans == 0 {
			return fmt.Errorf("I9: %s runs %d requests in %d slots", name, s.Leases, s.Model.Slots)
		}
		if s.Running[Interactive]+s.Running[Batch] != s.Leases || s.Leases < 0 || s.Orphans < 0 {
			return fmt.Errorf("%s: leases %d, by class %v, orphans %d", name, s.Leases, s.Running, s.Orphans)
		}
		victim := b.move.on && slices.Contains(b.move.victims, i)
		if (s.Phase == Closing || s.Phase == Unloading) && !victim {
			return fmt.Errorf("I6: %s is %v outside any move", name, s.Phase)
		}
		if victim && s.Model.Tier == T0 {
			return fmt.Errorf("I2: %s is %v and a victim", name, s.Model.Tier)
		}
		if s.Phase == Loading && (!b.move.loading || b.move.load != i) {
			return fmt.Errorf("I6: %s is loading outside any move", name)
		}
		run += s.Leases + s.Orphans
		for c := range Class(classes) {
			q := &s.Queue[c]
			n, prev := 0, int32(-1)
			var sum int64
			for k := q.head; k >= 0 && q.Len > 0; k = b.slots[k].next {
				sl := &b.slots[k]
				if sl.state != waiting || int(sl.seat) != i || sl.class != c || sl.prev != prev {
					return fmt.Errorf("I8: line %s/%v is broken at %d: %+v", name, c, n, *sl)
				}
				if prev >= 0 && sl.since.Before(b.slots[prev].since) {
					return fmt.Errorf("I10: line %s/%v is out of order", name, c)
				}
				if n == 0 && !q.Oldest.Equal(sl.since) {
					return fmt.Errorf("line %s/%v: oldest is %v, head asked at %v", name, c, q.Oldest, sl.since)
				}
				from := sl.since
				if s.EvictedAt.After(from) {
					from = s.EvictedAt
				}
				sum += from.Sub(q.base).Microseconds()
				prev = k
				n++
			}
			if n != q.Len || (n > 0 && sum != q.sum) {
				return fmt.Errorf("line %s/%v: %d of %d, rent base %d of %d", name, c, n, q.Len, sum, q.sum)
			}
			wait[c] += n
			if n > 0 && s.Phase == Ready && s.Free() > 0 && !b.closed && b.policy.Starts(&b.view, i, c) {
				return fmt.Errorf("L: %s/%v waits beside a free slot", name, c)
			}
		}
	}
	tickets := 0
	for _, sl := range b.slots {
		if sl.state != unused {
			tickets++
		}
	}
	switch {
	case b.count.Unsound > 0:
		return fmt.Errorf("%T made an unsound plan", b.policy)
	case used != b.view.Used || count != b.view.Count:
		return fmt.Errorf("ledger says %v in %d models, counted %v in %d", b.view.Used, b.view.Count, used, count)
	case !over && (used > b.view.Budget || count > b.view.MaxModels):
		return fmt.Errorf("I1: %v of %v, %d of %d models", used, b.view.Budget, count, b.view.MaxModels)
	case run != b.view.Running || wait != b.view.Waiting:
		return fmt.Errorf("running %d, counted %d; waiting %v, counted %v", b.view.Running, run, b.view.Waiting, wait)
	case tickets != run+wait[Interactive]+wait[Batch]:
		return fmt.Errorf("I8: %d tickets for %d running and %v waiting", tickets, run, wait)
	case b.move.on && !b.move.loading && len(b.move.victims) == 0:
		return errors.New("I6: an empty move lingers")
	}
	return nil
}
