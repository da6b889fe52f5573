package ollamasim

import (
	"cmp"
	"context"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/ollama/ollama/api"
)

// pullSteps is how many lines of progress a model takes.
const pullSteps = 20

// lookup finds a model on the disk.
func (s *Sim) lookup(name string) *Model {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.models[canonical(name)]
	if _, missing := s.fetched[m]; missing {
		return nil
	}
	return m
}

// onDisk lists the models that are there, those of the configuration first.
func (s *Sim) onDisk() []*Model {
	var list []*Model
	for i := range s.cfg.Models {
		list = append(list, &s.cfg.Models[i])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.cfg.Registry {
		m := &s.cfg.Registry[i]
		if _, missing := s.fetched[m]; !missing && s.models[canonical(m.Name)] == m {
			list = append(list, m)
		}
	}
	return list
}

// pull fetches a model of the registry, and goes on where it was cut off. The
// faults CutMid and ErrorLine strike after as many lines of progress as they
// have tokens.
func (s *Sim) pull(w http.ResponseWriter, r *http.Request) {
	var req api.PullRequest
	if !decode(w, r, &req) {
		return
	}
	name := cmp.Or(req.Model, req.Name) //nolint:staticcheck // Name is the older spelling, still accepted
	if name == "" {
		refuse(w, http.StatusBadRequest, "invalid model name")
		return
	}
	out := newOutput(w, job{})
	if err := out.line(api.ProgressResponse{Status: "pulling manifest"}); err != nil {
		return
	}
	m := s.models[canonical(name)]
	if m == nil {
		_ = out.fail("pull model manifest: file does not exist")
		return
	}
	if !s.fetch(r.Context(), out, m) {
		return
	}
	for _, status := range []string{"verifying sha256 digest", "writing manifest", "success"} {
		if out.line(api.ProgressResponse{Status: status}) != nil {
			return
		}
	}
}

// fetch reports whether the model is on the disk now.
func (s *Sim) fetch(ctx context.Context, out *output, m *Model) bool {
	s.mu.Lock()
	dead := s.dead
	done, missing := s.fetched[m]
	s.mu.Unlock()
	digest := "sha256:" + m.digest()
	progress := func(done int64) bool {
		return out.line(api.ProgressResponse{Status: "pulling " + m.digest()[:12], Digest: digest, Total: m.Disk, Completed: done}) == nil
	}
	if !missing {
		return progress(m.Disk)
	}
	strike, struck := s.midFault(m.Name, math.MaxInt)
	step := max(m.Disk/pullSteps, 1)
	for lines := 0; done < m.Disk; lines++ {
		if struck && lines >= strike.After {
			if strike.Kind == ErrorLine {
				_ = out.fail("max retries exceeded: EOF")
				return false
			}
			_, _ = io.WriteString(out.w, `{"status":"pul`) // half a line
			out.flush()
			panic(http.ErrAbortHandler)
		}
		n := min(step, m.Disk-done)
		if err := s.pause(ctx, dead, time.Duration(float64(n)/float64(s.cfg.Bandwidth)*float64(time.Second))); err != nil {
			return false
		}
		done += n
		s.mu.Lock()
		s.fetched[m] = done
		s.mu.Unlock()
		if !progress(done) {
			return false
		}
	}
	s.mu.Lock()
	delete(s.fetched, m)
	s.mu.Unlock()
	return true
}
