package proxy

import (
	"context"
	"slices"
	"sync"
	"time"

	"tenure/residency"
	"tenure/residency/gpu"
)

const (
	// reserve is what is left free on the cards beside models and other
	// processes: Ollama wants 457 MiB and the largest buffer of one layer
	// beyond what it predicts, 0.5 to 0.9 GiB for models of 7B.
	reserve = residency.GiB
	// noticeable is a change of memory that is worth a word in the log; less
	// comes and goes with every window of a desktop.
	noticeable = 512 * residency.MiB
)

// Source says where figures of memory come from.
type Source string

// From the best to the least: the driver, Ollama's own estimate of what is
// resident, the catalog.
const (
	SourceNVML     Source = "nvml"
	SourceOllama   Source = "ollama ps"
	SourceEstimate Source = "estimate"
)

// CardState is what is known of the GPU beside the models' own books.
type CardState struct {
	Source Source `json:"source"`
	Why    string `json:"why,omitempty"` // the source is not the driver
	OnCPU  bool   `json:"on_cpu"`        // Ollama put every resident model into main memory
	gpu.Reading
	Taken     residency.Bytes `json:"taken_bytes"`     // by others than Ollama, the driver's share included
	Processes []gpu.Process   `json:"other_processes"` // they hold it, as far as the driver tells
	Unclaimed residency.Bytes `json:"unclaimed_bytes"` // of Taken, what no process of them holds
	Reserve   residency.Bytes `json:"reserve_bytes"`   // kept free
	Limit     residency.Bytes `json:"available_bytes"` // for models: what is left; 0 when not known
	At        time.Time       `json:"at,omitzero"`     // of the reading
}

// cardWatch is the watch over the cards.
type cardWatch struct {
	read func() (gpu.Reading, error) // nil: there is nothing to read
	why  error

	mu     sync.Mutex
	state  CardState
	before residency.Bytes // taken at the last look
	looked bool
}

// watchCards follows the cards until ctx ends.
func (s *Server) watchCards(ctx context.Context) {
	if s.cards.read == nil {
		return
	}
	for {
		pause := watchEvery
		if up, _ := s.backend.reachable(); !up || !s.lookAtCards() {
			pause = watchAgain
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// lookAtCards reads the cards once and tells the scheduler what there is for
// models. It reports false when another look is due soon.
//
// A rise of what others take counts once two looks have seen it: for some
// seconds after an unload the driver has not taken the memory back, and nobody
// holds it.
func (s *Server) lookAtCards() (settled bool) {
	before := s.residency.State()
	reading, err := s.cards.read()
	if err != nil || reading.Total() == 0 {
		s.blind(err)
		return true
	}
	after := s.residency.State()
	if reading.Ollama() == 0 && (moving(before) || moving(after)) {
		return false // whose the memory is cannot be told: the last figure holds
	}
	m := &s.cards
	taken := taken(reading, after)
	m.mu.Lock()
	counted := taken
	if m.looked {
		counted = min(taken, m.before)
	}
	last, first := m.state.Taken, !m.looked
	m.before, m.looked = taken, true
	others := reading.Others()
	m.state = CardState{
		Source: SourceNVML, Reading: reading, Taken: counted, Processes: others, Reserve: reserve,
		Limit: reading.Total() - min(reading.Total(), counted+reserve), At: time.Now(),
	}
	for _, p := range others {
		m.state.Unclaimed += p.Used
	}
	m.state.Unclaimed = counted - min(counted, m.state.Unclaimed)
	limit := m.state.Limit
	m.mu.Unlock()

	s.residency.Memory(limit)
	if diff := max(counted, last) - min(counted, last); first || diff >= noticeable {
		s.log.Info("gpu memory", "taken_by_others", counted.String(), "processes", len(others), "for_models", limit.String())
	}
	return taken-counted < noticeable
}

// taken is what the cards hold beside what is Ollama's by both accounts: its
// processes', and the models that are known. A runner that outlived a killed
// server is in the first only, and its memory is as lost as any other's.
// Where no process could be told to be Ollama's, the models alone count.
func taken(r gpu.Reading, st residency.State) residency.Bytes {
	known := st.Used
	for _, size := range st.Foreign {
		known += size
	}
	switch named := r.Ollama(); {
	case st.Passthrough: // nothing is managed, no model is known
		known = named
	case named > 0:
		known = min(known, named)
	}
	return r.Used() - min(r.Used(), known)
}

// moving reports whether a model is on its way in or out, so that what it is
// counted with and what it holds differ.
func moving(st residency.State) bool {
	return slices.ContainsFunc(st.Residents, func(r residency.Resident) bool {
		return r.Phase == residency.Loading || r.Phase == residency.Unloading
	})
}

// blind forgets what was read: old figures bound nothing.
func (s *Server) blind(err error) {
	m := &s.cards
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		err = gpu.ErrUnavailable
	}
	if m.looked || m.why == nil {
		s.log.Warn("gpu not read", "err", logText(err))
	}
	m.looked, m.why, m.state = false, err, CardState{}
	s.residency.Memory(residency.Unlimited)
}

// cardState is the last look, or why there is none.
func (s *Server) cardState(residents []residency.Resident, seen []OllamaResident) CardState {
	s.cards.mu.Lock()
	st := s.cards.state
	why := s.cards.why
	s.cards.mu.Unlock()
	st.OnCPU = len(seen) > 0 && !slices.ContainsFunc(seen, func(r OllamaResident) bool { return r.VRAM > 0 })
	if st.Source != "" {
		return st
	}
	st.Source = SourceEstimate
	if slices.ContainsFunc(residents, func(r residency.Resident) bool { return r.Measured }) {
		st.Source = SourceOllama
	}
	if why != nil {
		st.Why = why.Error()
	}
	return st
}
