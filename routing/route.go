package routing

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"tenure/routing/task"
)

// Auto is the virtual model whose task is read off the conversation.
const Auto = "recruit-auto"

// virtual is what every virtual model's name begins with; the task follows
// after one of / - and :.
const virtual = "recruit"

// Causes of a decision beside those of package task.
const (
	Forced  = "forced"  // the client named the task or the model
	Missing = "missing" // the task's model is not pulled: a fallback
	Context = "context" // the prompt does not fit the task's model: a fallback

	Broken     = "breaker" // the task's model failed too often and is given a rest: a fallback
	Unloadable = "load"    // the task's model would not load: a fallback
)

// Request is what the router may look at.
type Request struct {
	Model string // as the client wrote it
	task.Input
}

// Decision is what to do, and why.
type Decision struct {
	Task       string
	Confidence float64     // 1 when forced
	Cause      string      // one of the causes
	Candidates []Candidate // in order of preference, never empty
	Parameters Parameters
	Detection  *task.Result // how the task was read off the conversation; nil when forced
}

// Background reports a job that a chat application does for itself, such as
// naming a chat: nobody waits for it.
func (d *Decision) Background() bool { return d.Detection != nil && d.Detection.Background }

// Candidate is a model that may do the work.
type Candidate struct {
	Model
	Digest string // of the installed model; empty when the server was not heard of yet
}

// Parameters fill what the client left open.
type Parameters struct {
	MaxTokens   int
	Temperature *float64 // nil: the model's own
	CacheTTL    time.Duration
	KeepSampled bool
	Timeouts    Timeouts
}

// Installed is a model that the server has.
type Installed struct {
	Name   string // in the one spelling that canonical gives
	Digest string
	Model  Model // how to load it when the catalog does not know it
}

var (
	// ErrUnknownModel refuses what is neither a virtual model nor one of the server's.
	ErrUnknownModel = errors.New("routing: unknown model")
	// ErrNotPulled tells that the catalog's model, and its fallbacks, are not installed.
	ErrNotPulled = errors.New("routing: model is not pulled")
	// ErrNotHeard tells that the server was not heard of yet, so that nobody
	// knows whether it has the model.
	ErrNotHeard = errors.New("routing: the server's models are not known yet")
)

// ModelError names the model that a request cannot have. It is ErrUnknownModel,
// ErrNotPulled or ErrNotHeard.
type ModelError struct {
	Asked string // as the client wrote it
	Pull  string // what to pull, with ErrNotPulled
	Err   error
}

func (e *ModelError) Error() string { return fmt.Sprintf("%v: %s", e.Err, e.Asked) }
func (e *ModelError) Unwrap() error { return e.Err }

// Router resolves requests. It is safe for concurrent use.
type Router struct {
	catalog   *Catalog
	canonical func(string) string
	installed atomic.Pointer[map[string]Installed]
}

// NewRouter returns a router over a catalog. canonical spells a model's name as
// one way, whatever its client wrote.
func NewRouter(c *Catalog, canonical func(string) string) *Router {
	return &Router{catalog: c, canonical: canonical}
}

// Catalog returns the catalog.
func (r *Router) Catalog() *Catalog { return r.catalog }

// SetInstalled tells what the server has. Until it is called the catalog's
// models are taken to be there.
func (r *Router) SetInstalled(models []Installed) {
	m := make(map[string]Installed, len(models))
	for _, i := range models {
		m[i.Name] = i
	}
	r.installed.Store(&m)
}

// Names lists the models that a client may ask for: the virtual ones, then
// what the server has.
func (r *Router) Names() []string {
	names := []string{Auto}
	for _, t := range r.catalog.Tasks {
		names = append(names, virtual+"/"+t.Name)
	}
	if p := r.installed.Load(); p != nil {
		return append(names, sortedKeys(*p)...)
	}
	for _, m := range r.catalog.Models {
		names = append(names, m.Name)
	}
	return names
}

// Canonical spells the name of a model as Names does, whatever its client wrote.
func (r *Router) Canonical(name string) string {
	switch t, isVirtual := r.taskNamed(name); {
	case !isVirtual:
		return r.canonical(name)
	case t == "":
		return Auto
	default:
		return virtual + "/" + t
	}
}

// Route resolves a request. The error is a *ModelError.
func (r *Router) Route(q Request) (Decision, error) {
	name, isVirtual := r.taskNamed(q.Model)
	switch {
	case !isVirtual:
		return r.own(q.Model)
	case name == "":
		found := r.catalog.Detect(q.Input)
		return r.forTask(q.Model, Decision{
			Task: found.Task, Confidence: found.Confidence, Cause: found.Cause, Detection: &found,
		})
	default:
		return r.forTask(q.Model, Decision{Task: name, Confidence: 1, Cause: Forced})
	}
}

// taskNamed reads a virtual model's name: its task, or "" for the automatic one.
func (r *Router) taskNamed(model string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(model, virtual)
	if !ok || rest == "" {
		return "", false
	}
	if !strings.ContainsAny(rest[:1], "/-:") {
		return "", false
	}
	// Clients of Ollama add the tag they take to be the default.
	rest = strings.TrimSuffix(rest[1:], ":latest")
	if rest == "auto" {
		return "", true
	}
	_, ok = r.catalog.task(rest)
	return rest, ok
}

// forTask completes a decision whose task is known.
func (r *Router) forTask(asked string, d Decision) (Decision, error) {
	t, ok := r.catalog.task(d.Task)
	if !ok {
		// A replaced catalog need not have every task that can be detected.
		t, _ = r.catalog.task(task.General)
		d.Task = t.Name
	}
	for _, name := range append([]string{t.Model}, t.Fallback...) {
		m, known := r.catalog.model(name)
		if i, here := r.lookup(name); here && known {
			d.Candidates = append(d.Candidates, Candidate{Model: m, Digest: i.Digest})
		}
	}
	if len(d.Candidates) == 0 {
		return Decision{}, &ModelError{Asked: asked, Pull: t.Model, Err: ErrNotPulled}
	}
	if d.Candidates[0].Name != t.Model {
		d.Cause = Missing
	}
	d.Parameters = t.parameters()
	return d, nil
}

func (t *Task) parameters() Parameters {
	return Parameters{
		MaxTokens: t.MaxTokens, Temperature: t.Temperature, CacheTTL: t.CacheTTL, KeepSampled: t.KeepSampled, Timeouts: t.Timeouts,
	}
}

// own resolves a model that was asked for by its own name.
func (r *Router) own(asked string) (Decision, error) {
	name := r.canonical(asked)
	m, known := r.catalog.model(name)
	i, here := r.lookup(name)
	switch {
	case !here && known:
		return Decision{}, &ModelError{Asked: asked, Pull: name, Err: ErrNotPulled}
	case !here && asked != "" && !strings.HasPrefix(asked, virtual) && r.installed.Load() == nil:
		return Decision{}, &ModelError{Asked: asked, Err: ErrNotHeard}
	case !here:
		return Decision{}, &ModelError{Asked: asked, Err: ErrUnknownModel}
	case !known:
		m = i.Model
	}
	t, _ := r.catalog.task(task.General)
	return Decision{
		Task: t.Name, Confidence: 1, Cause: Forced,
		Candidates: []Candidate{{Model: m, Digest: i.Digest}},
		Parameters: t.parameters(),
	}, nil
}

// lookup finds a model on the server, as far as it was heard of.
func (r *Router) lookup(name string) (Installed, bool) {
	p := r.installed.Load()
	if p == nil {
		_, known := r.catalog.model(name)
		return Installed{Name: name}, known
	}
	i, ok := (*p)[name]
	return i, ok
}
