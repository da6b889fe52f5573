package ollamasim

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Faults of the server's inner life, which a look from outside does not show.
const (
	// Wedge: no load completes any more, while everything else answers. It is
	// what Ollama does when a model on its way out is used again with a
	// keep_alive (ollama/ollama#17408). An unload of Fault.Model ends it; with
	// Model "" only Clear does.
	Wedge Kind = "wedge"
	// DeadRunner: the model's process has died while the model is still
	// listed. The next answer fails, and the one after loads it again.
	DeadRunner Kind = "dead-runner"
)

var errRunner = errors.New("llama runner process no longer running: -1")

// wedged blocks while a Wedge is on. A client that leaves is let go; the real
// server would not notice.
func (s *Sim) wedged(ctx context.Context, dead <-chan struct{}) error {
	const look = 100 * time.Millisecond
	for {
		s.mu.Lock()
		on := slices.ContainsFunc(s.faults, func(f Fault) bool { return f.Kind == Wedge })
		s.mu.Unlock()
		if !on {
			return nil
		}
		t := time.NewTimer(look)
		select {
		case <-t.C:
		case <-dead:
			t.Stop()
			return errCrashed
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// unwedgeLocked ends the Wedge that waits for the model to be unloaded.
func (s *Sim) unwedgeLocked(m *Model) {
	s.faults = slices.DeleteFunc(slices.Clone(s.faults), func(f Fault) bool {
		return f.Kind == Wedge && f.Model != "" && canonical(f.Model) == canonical(m.Name)
	})
}

// diesNow reports whether v finds that the model's process has died, and takes
// the model off the list.
func (s *Sim) diesNow(v visit) bool {
	if v.empty {
		return false
	}
	if _, ok := s.hit(DeadRunner, v.model.Name); !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.loaded[v.model.file()]; r != nil {
		delete(s.loaded, v.model.file())
		r.leave()
	}
	return true
}

// Spill moves part of a resident model to main memory, as a reload beside
// somebody else's program on the GPU would.
func (s *Sim) Spill(name string, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.loaded {
		if canonical(r.model.Name) == canonical(name) {
			r.vram -= min(bytes, r.vram)
		}
	}
}
