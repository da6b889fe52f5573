package ollamasim

import (
	"math"
	"slices"
	"time"
)

// Kind is what goes wrong. The names serve as settings, too.
type Kind string

// Faults. Those that strike within an answer do so after Fault.After tokens;
// they leave alone an answer that has no more than that.
const (
	Refuse    Kind = "refuse"     // no connection; over a real network: closed without an answer
	QueueFull Kind = "queue-full" // 503
	HangFirst Kind = "hang-first" // silence before the first byte
	HangMid   Kind = "hang-mid"   // silence within the answer
	CutMid    Kind = "cut-mid"    // the connection breaks within a line
	ErrorLine Kind = "error-line" // an {"error"} line ends the answer
	NoDone    Kind = "no-done"    // the answer ends cleanly, without "done":true
	CrashMid  Kind = "crash-mid"  // the whole server crashes, see Crash
	LeakSlot  Kind = "leak-slot"  // a client that leaves a stream takes its slot along, until the model is unloaded
	SlowLoad  Kind = "slow-load"  // a load takes Fault.Delay longer
	FailLoad  Kind = "fail-load"  // a load ends in 500
)

// Kinds lists every Kind.
func Kinds() []Kind {
	return []Kind{Refuse, QueueFull, HangFirst, HangMid, CutMid, ErrorLine, NoDone, CrashMid, LeakSlot, SlowLoad, FailLoad, Wedge, DeadRunner}
}

// Fault goes wrong for the requests it fits.
type Fault struct {
	Kind  Kind
	Model string        // "" fits every model
	After int           // tokens that still come
	Delay time.Duration // of SlowLoad
	Times int           // how often it strikes; 0 means until Clear
}

// Inject switches f on, beside what is on already.
func (s *Sim) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
}

// Clear switches every fault off. Answers that hang go on hanging.
func (s *Sim) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// hit reports whether a fault of kind k strikes now, and uses it up.
func (s *Sim) hit(k Kind, name string) (Fault, bool) { return s.hitWithin(k, name, math.MaxInt) }

// hitWithin is hit for an answer of so many tokens.
func (s *Sim) hitWithin(k Kind, name string, tokens int) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.faults, func(f Fault) bool {
		return f.Kind == k && f.After < tokens && (f.Model == "" || canonical(f.Model) == canonical(name))
	})
	if i < 0 {
		return Fault{}, false
	}
	f := s.faults[i]
	switch f.Times {
	case 0:
	case 1:
		s.faults = slices.Delete(slices.Clone(s.faults), i, i+1)
	default:
		s.faults[i].Times--
	}
	return f, true
}
