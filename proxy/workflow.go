package proxy

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"tenure/residency"
	"tenure/routing"

	"github.com/gin-gonic/gin"
)

// Workflow is what GET /admin/workflows/{name} tells: a run from where the GPU
// stands now, one request a task, on a GPU that nobody else uses.
type Workflow struct {
	Name    string         `json:"name"`
	Tasks   []WorkflowTask `json:"tasks"`
	Models  []string       `json:"models"`          // in order of first use
	Preload []string       `json:"preload_models"`  // not resident now, and all fit together with what the run needs
	Swap    []string       `json:"swap_models"`     // will be loaded on the way, over others
	Loads   int            `json:"expected_loads"`  // of a run from here
	Swaps   int            `json:"expected_swaps"`  // models that must leave for them
	Seconds float64        `json:"expected_time_s"` // loads and answers
	Work    float64        `json:"expected_answers_s"`
	Missing []string       `json:"missing,omitempty"` // models that are not pulled
}

// WorkflowTask is one step.
type WorkflowTask struct {
	Task     string  `json:"task"`
	Model    string  `json:"model"`
	Tier     string  `json:"tier"`
	Resident bool    `json:"resident"`
	Seconds  float64 `json:"expected_s"`
	Source   string  `json:"source"` // of expected_s: "measured", "catalog" or "none"
}

func (s *Server) listWorkflows(c *gin.Context) {
	list := []Workflow{}
	for _, name := range s.router.Catalog().WorkflowNames() {
		list = append(list, s.workflow(name))
	}
	c.JSON(http.StatusOK, gin.H{"workflows": list})
}

func (s *Server) getWorkflow(c *gin.Context) {
	name := c.Param("name")
	if _, ok := s.router.Catalog().Workflows[name]; !ok {
		refuse(c, problem(nil, outcomeCaller, http.StatusNotFound, "workflow_not_found", 0,
			"There is no such workflow. GET /admin/workflows lists those there are."))
		return
	}
	c.JSON(http.StatusOK, s.workflow(name))
}

// workflow plays a run through on a copy of the seats as they are.
func (s *Server) workflow(name string) Workflow {
	w := Workflow{Name: name, Models: []string{}, Preload: []string{}, Swap: []string{}}
	st := s.residency.State()
	p := newPlay(&st)
	var models []residency.Model
	var times []time.Duration
	for _, task := range s.router.Catalog().Workflows[name] {
		m, ok := s.taskModel(task)
		if !ok {
			w.Missing = append(w.Missing, m.Name)
		}
		took, source := s.expectedAnswer(task, m.Name)
		w.Tasks = append(w.Tasks, WorkflowTask{
			Task: task, Model: m.Name, Tier: m.Tier.String(), Resident: p.has(m.Name), Seconds: seconds3(took), Source: source,
		})
		if !slices.Contains(w.Models, m.Name) {
			w.Models = append(w.Models, m.Name)
		}
		models, times = append(models, m), append(times, took)
	}
	var work, loading time.Duration
	for i, m := range models {
		work += times[i]
		if p.has(m.Name) {
			continue
		}
		left := p.admit(m, models[i+1:], s.likelyLoad)
		w.Loads++
		w.Swaps += left
		loading += s.likelyLoad(m)
		switch {
		case left > 0:
			w.Swap = append(w.Swap, m.Name)
		case !slices.Contains(w.Preload, m.Name):
			w.Preload = append(w.Preload, m.Name)
		}
	}
	w.Work, w.Seconds = seconds3(work), seconds3(work+loading)
	return w
}

// taskModel is the model that a request for a task would get now. It is the
// catalog's, and false, when none is pulled.
func (s *Server) taskModel(task string) (residency.Model, bool) {
	d, err := s.router.Route(routing.Request{Model: "recruit/" + task})
	if err == nil {
		return s.seat(d.Candidates[0]), true
	}
	c := s.router.Catalog()
	for _, t := range c.Tasks {
		for _, m := range c.Models {
			if t.Name == task && m.Name == t.Model {
				return s.seat(routing.Candidate{Model: m}), false
			}
		}
	}
	return residency.Model{}, false
}

// expectedAnswer is how long an answer takes: as measured, else the middle of
// what the catalog expects.
func (s *Server) expectedAnswer(task, model string) (took time.Duration, source string) {
	if f, _ := s.measured.of(task, model); f.count > 0 {
		return f.mean(), "measured"
	}
	if took = s.router.Catalog().Expected(task); took > 0 {
		return took, "catalog"
	}
	return 0, "none"
}

// likelyLoad is how long a load takes: as measured, else as the catalog expects.
func (s *Server) likelyLoad(m residency.Model) time.Duration {
	if mean, loads := s.journal.loadTime(m.Name); loads > 0 {
		return mean
	}
	return m.LoadTime
}

// play is the seats of a GPU that only one run uses.
type play struct {
	seats  []residency.Resident
	budget residency.Bytes
	count  int
}

func newPlay(st *residency.State) *play {
	p := &play{seats: slices.Clone(st.Residents), budget: st.Budget, count: st.MaxModels - len(st.Foreign)}
	for _, b := range st.Foreign {
		p.budget -= min(b, p.budget)
	}
	return p
}

func (p *play) has(model string) bool {
	return slices.ContainsFunc(p.seats, func(r residency.Resident) bool { return r.Model.Name == model })
}

func (p *play) fits(m residency.Model) bool {
	used := m.Size
	for _, r := range p.seats {
		used += r.Size
	}
	return used <= p.budget && len(p.seats) < p.count
}

// admit loads m and returns how many others had to leave: those that need not
// come back, then those whose return costs least, of equals the one that is
// needed last.
func (p *play) admit(m residency.Model, next []residency.Model, load func(residency.Model) time.Duration) (left int) {
	for !p.fits(m) {
		victim, latest, cost := -1, 0, time.Duration(0)
		for i, r := range p.seats {
			if r.Pinned {
				continue
			}
			use, back := slices.IndexFunc(next, func(n residency.Model) bool { return n.Name == r.Model.Name }), load(r.Model)
			if use < 0 {
				use, back = len(next), 0
			}
			if victim < 0 || back < cost || back == cost && use > latest {
				victim, latest, cost = i, use, back
			}
		}
		if victim < 0 {
			break // it cannot be: the request would be refused
		}
		p.seats = slices.Delete(p.seats, victim, victim+1)
		left++
	}
	p.seats = append(p.seats, residency.Resident{Model: m, Size: m.Size, Pinned: m.Tier == residency.T0})
	return left
}

// declare passes a request's workflow on to the scheduler, which may load the
// next steps' models before they are asked for. A client names the workflow,
// and if several run at once a name for its run, in the header
//
//	Tenure-Workflow: full_recruitment_pipeline; run=42
//
// or in metadata.workflow and metadata.run. It is a hint: a wrong one costs
// nothing but a mention in Tenure-Ignored.
func (s *Server) declare(x *exchange, task string) (ignored []string) {
	header := x.gin.GetHeader("Tenure-Workflow")
	name, run := x.asked.Metadata["workflow"], x.asked.Metadata["run"]
	if header != "" {
		var parameter string
		name, parameter, _ = strings.Cut(header, ";")
		name = strings.TrimSpace(name)
		run, _ = strings.CutPrefix(strings.TrimSpace(parameter), "run=")
	}
	tasks := s.router.Catalog().Workflows[name]
	at := slices.Index(tasks, task)
	if at < 0 {
		if header != "" {
			return []string{"Tenure-Workflow"}
		}
		return nil
	}
	steps := make([]residency.Step, 0, len(tasks)-at)
	for _, t := range tasks[at:] {
		m, _ := s.taskModel(t)
		took, _ := s.expectedAnswer(t, m.Name)
		steps = append(steps, residency.Step{Model: m, Work: took})
	}
	s.residency.Expect(x.tenant+"\x00"+name+"\x00"+clip(run), steps)
	return nil
}
