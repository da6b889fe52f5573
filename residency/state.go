package residency

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// State is a snapshot for people and dashboards.
type State struct {
	Now         time.Time        `json:"now"`
	Budget      Bytes            `json:"budget_bytes"`    // configured; nothing is off yet
	Available   Bytes            `json:"available_bytes"` // of it, after what other processes and foreign models take
	MaxModels   int              `json:"max_models"`
	Used        Bytes            `json:"used_bytes"` // by our models in any phase but absent
	Residents   []Resident       `json:"residents"`
	Waiting     []Line           `json:"waiting"`
	Foreign     map[string]Bytes `json:"foreign,omitempty"`
	Passthrough bool             `json:"passthrough"`
	Leases      int              `json:"leases"`
	Counters    Counters         `json:"counters"`
	Evictions   map[string]int   `json:"evictions"` // by reason
	Grants      map[string]int   `json:"grants"`    // by class
}

// Resident is a model that holds memory.
type Resident struct {
	Model    Model     `json:"model"`
	Phase    Phase     `json:"phase"`
	Leases   int       `json:"leases"`
	Pinned   bool      `json:"pinned"`
	Wanted   bool      `json:"wanted"`
	LastUsed time.Time `json:"last_used"`
	Size     Bytes     `json:"size_bytes"` // as counted, margin included
	Measured bool      `json:"measured"`
}

// Line is a queue that is not empty.
type Line struct {
	Model  string        `json:"model"`
	Class  Class         `json:"class"`
	Count  int           `json:"count"`
	Since  time.Time     `json:"since"` // when the first in line asked
	Expect time.Duration `json:"expected_wait_ns"`
}

// State returns a snapshot; it shares nothing with the scheduler.
func (s *Scheduler) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.book.State(time.Now())
	st.Foreign, st.Passthrough = maps.Clone(s.foreign), s.cfg.Passthrough
	st.Leases += s.passing
	return st
}

// State returns a snapshot as of now.
func (b *Book) State(now time.Time) State {
	st := State{
		Now: now, Budget: b.cfg.Budget, Available: b.view.Budget, MaxModels: b.cfg.MaxModels, Used: b.view.Used, Leases: b.view.Running,
		Counters: b.count, Evictions: map[string]int{}, Grants: map[string]int{},
	}
	for r, n := range b.count.Evictions {
		if n > 0 {
			st.Evictions[Reason(r).String()] = int(n)
		}
	}
	for c, n := range b.count.Grants {
		st.Grants[Class(c).String()] = int(n)
	}
	for i := range b.view.Seats {
		s := &b.view.Seats[i]
		if s.Phase != Absent {
			st.Residents = append(st.Residents, Resident{
				Model: s.Model, Phase: s.Phase, Leases: s.Leases + s.Orphans, Pinned: s.Model.Tier == T0,
				Wanted: s.Wanted, LastUsed: s.LastUsed, Size: s.Size, Measured: s.Measured,
			})
		}
		for c := range Class(classes) {
			if q := &s.Queue[c]; q.Len > 0 {
				st.Waiting = append(st.Waiting, Line{Model: s.Model.Name, Class: c, Count: q.Len, Since: q.Oldest, Expect: b.EstimateWait(s.Model, c)})
			}
		}
	}
	slices.SortFunc(st.Residents, func(a, b Resident) int {
		return cmp.Or(cmp.Compare(a.Model.Tier, b.Model.Tier), cmp.Compare(a.Model.Name, b.Model.Name))
	})
	slices.SortFunc(st.Waiting, func(a, b Line) int { return a.Since.Compare(b.Since) })
	return st
}

// EstimateWait predicts the wait of a request for m that asked now: those
// before it at the learnt service time, plus a swap if the model is absent.
func (b *Book) EstimateWait(m Model, c Class) time.Duration {
	i, ok := b.names[m.Name]
	if !ok {
		return m.LoadTime
	}
	s := &b.view.Seats[i]
	before := s.Queue[Interactive].Len
	if c == Batch {
		before += s.Queue[Batch].Len
	}
	service := max(s.Service, time.Second)
	wait := time.Duration(max(0, before-s.Free()+1)) * service / time.Duration(s.Model.Slots)
	if s.Phase == Ready {
		return wait
	}
	if b.view.fits(i, 0, 0) {
		return wait + s.LoadTime
	}
	// Room must be made: a victim that works drains first, and one with a
	// backlog is left in peace until MaxWait.
	swap := s.LoadTime
	if b.view.Running > 0 {
		swap += service + b.cfg.MaxWait/4
	}
	return wait + min(swap, b.cfg.MaxWait)
}
