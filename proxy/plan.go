package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/residency/sim"
	"tenure/routing"

	"github.com/gin-gonic/gin"
)

// BatchPlan is what POST /admin/plan answers and `tenure plan` prints: how work
// is best run, and what to expect of it. Times are seconds, sizes GiB.
type BatchPlan struct {
	Strategy string   `json:"strategy"`        // one of the constants
	Preload  []string `json:"preload_models"`  // of the work: to be in memory at its start
	Swap     []string `json:"swap_models"`     // of the work: brought in over others
	Memory   float64  `json:"total_memory_gb"` // of the work's models and those always loaded, all together
	Budget   float64  `json:"budget_gb"`
	Seconds  float64  `json:"estimated_time"`
	Bound    float64  `json:"lower_bound"`     // no schedule takes less
	Gap      float64  `json:"certificate_gap"` // estimated_time over lower_bound
	Requests int      `json:"requests"`        // or runs of workflows
	Batch    int      `json:"batch_size"`      // of them, to keep open at once
	Rule     string   `json:"rule"`            // by which models take turns
	Tried    int      `json:"rules_tried"`
	Loads    int      `json:"loads"`
	MinLoads int      `json:"min_loads"` // exact: no schedule needs fewer

	Order []PlannedLoad     `json:"order"`
	Work  []PlannedWork     `json:"work"`
	From  map[string]string `json:"times_from"` // of answers, by model: "measured", "catalog" or "guess"
}

// The strategies.
const (
	PreloadAll = "preload_all" // whatever the work needs has room at once
	HotSwap    = "hot_swap"    // models must leave for others on the way
)

// PlannedLoad is one load of a plan.
type PlannedLoad struct {
	At     float64  `json:"at"`
	Load   string   `json:"load"`
	Unload []string `json:"unload"` // for it
}

// PlannedWork is when work of one kind is expected to be done.
type PlannedWork struct {
	Name   string  `json:"name"`
	Count  int     `json:"count"`
	First  float64 `json:"first"`
	Median float64 `json:"median"`
	Last   float64 `json:"last"`
}

// Planner collects work and plans it. It simulates: no model is called. It is
// not for concurrent use.
type Planner struct {
	Router    *routing.Router
	Limits    wire.Limits
	Budget    residency.Bytes
	MaxModels int
	Resident  []residency.Model // in memory at the start

	Margin residency.Bytes // on top of every model's size

	seat   func(routing.Candidate) residency.Model                      // as learnt; nil: as the catalog has it
	expect func(task, model string) (took time.Duration, source string) // likewise

	batch  sim.Batch
	kinds  map[string]int // chains, by what makes them one
	from   map[string]string
	order  []int
	spread bool // counts were given: there is no order to keep
}

const unknownAnswer = 2 * time.Second // where nothing tells how long one takes

// Named adds n requests of a task, or n runs of a workflow.
func (p *Planner) Named(name string, n int) error {
	tasks, ok := p.Router.Catalog().Workflows[name]
	if !ok {
		tasks = []string{name}
	}
	if !ok && !slices.ContainsFunc(p.Router.Catalog().Tasks, func(t routing.Task) bool { return t.Name == name }) {
		known := p.Router.Catalog().WorkflowNames()
		for _, t := range p.Router.Catalog().Tasks {
			known = append(known, t.Name)
		}
		return fmt.Errorf("no task and no workflow of the catalog is called %q; it has %s", clip(name), strings.Join(known, ", "))
	}
	var stages []sim.Stage
	for _, t := range tasks {
		d, err := p.Router.Route(routing.Request{Model: "recruit/" + t})
		if err != nil {
			return err
		}
		stages = append(stages, p.stage(t, d.Candidates[0]))
	}
	return p.add(name, name, n, stages)
}

// Line adds a line of an OpenAI batch file, routed as the server would.
func (p *Planner) Line(line []byte) error {
	var l struct {
		Body json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return errors.New("not a JSON object")
	}
	if len(l.Body) == 0 {
		return errors.New("no body")
	}
	q, err := Question(l.Body, p.Limits)
	if err != nil {
		return err
	}
	d, err := p.Router.Route(q)
	if err != nil {
		return err
	}
	c := d.Candidates[0]
	kind := d.Task
	for _, t := range p.Router.Catalog().Tasks {
		if t.Name == d.Task && d.Cause == routing.Forced && t.Model != c.Name {
			kind = c.Name // asked for by its own name
		}
	}
	return p.add(kind+"\x00"+c.Name, kind, 1, []sim.Stage{p.stage(d.Task, c)})
}

// stage is one request, whose model the batch comes to know.
func (p *Planner) stage(task string, c routing.Candidate) sim.Stage {
	m := seat(c, ollama.Facts{})
	work, source := p.Router.Catalog().Expected(task), "catalog"
	if p.expect != nil {
		m = p.seat(c)
		work, source = p.expect(task, c.Name)
	}
	if work <= 0 {
		work, source = unknownAnswer, "guess"
	}
	if p.from == nil {
		p.from = map[string]string{}
	}
	if p.from[c.Name] != "measured" {
		p.from[c.Name] = source
	}
	p.know(m)
	return sim.Stage{Model: c.Name, Work: work}
}

func (p *Planner) know(m residency.Model) {
	if !slices.ContainsFunc(p.batch.Models, func(k residency.Model) bool { return k.Name == m.Name }) {
		m.Slots, m.Size = max(m.Slots, 1), m.Size+p.Margin
		p.batch.Models = append(p.batch.Models, m)
	}
}

// add counts work of a kind.
func (p *Planner) add(kind, name string, n int, stages []sim.Stage) error {
	if n < 1 || len(p.order)+n > mostPlanned {
		return fmt.Errorf("a count of %d: at least 1, and at most %d in all", n, mostPlanned)
	}
	if p.kinds == nil {
		p.kinds = map[string]int{}
	}
	i, ok := p.kinds[kind]
	if !ok {
		i = len(p.batch.Chains)
		p.kinds[kind] = i
		p.batch.Chains = append(p.batch.Chains, sim.Chain{Name: name, Stages: stages})
	}
	p.batch.Chains[i].Count += n
	p.order = append(p.order, slices.Repeat([]int{i}, n)...)
	p.spread = p.spread || n > 1
	return nil
}

// mostPlanned bounds the time that a plan takes to some seconds.
const mostPlanned = 20_000

// Plan plans what was added.
func (p *Planner) Plan() (BatchPlan, error) {
	b := p.batch
	used := map[string]bool{}
	for _, m := range b.Models {
		used[m.Name] = true
	}
	b.Budget, b.MaxModels = p.Budget, p.MaxModels
	if !p.spread {
		b.Order = p.order
	}
	for _, m := range p.Resident {
		p.know(m)
		b.Resident = append(b.Resident, m.Name)
	}
	b.Models = p.batch.Models
	found, err := sim.PlanBatch(b)
	if err != nil {
		return BatchPlan{}, err
	}
	plan := BatchPlan{
		Strategy: PreloadAll, Preload: []string{}, Swap: []string{}, Budget: gib(p.Budget), Requests: len(p.order), Batch: found.Window,
		Seconds: seconds3(found.Makespan), Bound: seconds3(found.LowerBound), Gap: math.Round(found.Gap*1000) / 1000,
		Rule: found.Rule, Tried: found.Tried, Loads: found.Loads, MinLoads: found.MinLoads, Order: []PlannedLoad{}, From: p.from,
	}
	var together residency.Bytes
	count := 0
	for _, m := range b.Models {
		if used[m.Name] || m.Tier == residency.T0 {
			together += m.Size
			count++
		}
	}
	plan.Memory = gib(together)
	if together > p.Budget || count > p.MaxModels {
		plan.Strategy = HotSwap
	}
	for _, m := range b.Models {
		if used[m.Name] && (plan.Strategy == PreloadAll || slices.Contains(b.Resident, m.Name)) {
			plan.Preload = append(plan.Preload, m.Name)
		}
	}
	for _, m := range found.Moves {
		plan.Order = append(plan.Order, PlannedLoad{At: seconds3(m.At), Load: m.Load, Unload: append([]string{}, m.Unload...)})
		list := &plan.Swap
		if len(m.Unload) == 0 {
			list = &plan.Preload
		}
		if used[m.Load] && !slices.Contains(plan.Preload, m.Load) && !slices.Contains(plan.Swap, m.Load) {
			*list = append(*list, m.Load)
		}
	}
	for _, c := range found.Chains {
		plan.Work = append(plan.Work, PlannedWork{c.Name, c.Count, seconds3(c.First), seconds3(c.Median), seconds3(c.Last)})
	}
	return plan, nil
}

// planner is a Planner that knows what the server has learnt.
func (s *Server) planner() *Planner {
	st := s.residency.State()
	p := &Planner{
		Router: s.router, Limits: s.cfg.Limits, Budget: st.Available, MaxModels: st.MaxModels - len(st.Foreign), expect: s.expectedAnswer,
		seat: func(c routing.Candidate) residency.Model {
			m := s.seat(c)
			m.LoadTime = s.likelyLoad(m)
			for _, r := range st.Residents {
				if r.Model.Name == m.Name {
					m.Size = r.Size
				}
			}
			return m
		},
	}
	for _, r := range st.Residents {
		r.Model.Size, r.Model.LoadTime = r.Size, s.likelyLoad(r.Model)
		p.Resident = append(p.Resident, r.Model)
	}
	return p
}

// postPlan plans a list of names, or of lines of a batch file:
//
//	["resume_parsing", {"name":"bias_detection","count":30}, {"body":{…}}]
//
// The list's elements may also stand one after another, as in a batch file.
func (s *Server) postPlan(c *gin.Context) {
	p := s.planner()
	body := json.NewDecoder(http.MaxBytesReader(c.Writer, c.Request.Body, s.cfg.BodyBytes))
	n := 0 // elements
	for values := 0; ; values++ {
		var raw json.RawMessage
		err := body.Decode(&raw)
		if errors.Is(err, io.EOF) && values > 0 {
			break
		}
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			refuse(c, problem(err, outcomeCaller, http.StatusRequestEntityTooLarge, "request_too_large", 0, fmt.Sprintf("The body is over %d bytes.", tooLarge.Limit)))
			return
		}
		elements := []json.RawMessage{raw}
		if err == nil && bytes.HasPrefix(raw, []byte("[")) {
			err = json.Unmarshal(raw, &elements)
		}
		for _, e := range elements {
			n++
			if err == nil {
				err = p.element(e)
			}
		}
		if err != nil {
			refuse(c, problem(err, outcomeCaller, http.StatusBadRequest, "invalid_plan", 0, fmt.Sprintf("Element %d: %s. "+
				`The body lists tasks, workflows, or lines of a batch file: ["resume_parsing",{"name":"bias_detection","count":30}].`, max(n, 1), planProblem(err))))
			return
		}
	}
	s.planning.Lock()
	defer s.planning.Unlock()
	plan, err := p.Plan()
	if err != nil {
		refuse(c, problem(err, outcomeCaller, http.StatusBadRequest, "invalid_plan", 0, "This cannot be planned: "+err.Error()+"."))
		return
	}
	c.JSON(http.StatusOK, plan)
}

// element adds one element of a list.
func (p *Planner) element(raw json.RawMessage) error {
	var name string
	if json.Unmarshal(raw, &name) == nil {
		return p.Named(name, 1)
	}
	var e struct {
		Name  string          `json:"name"`
		Count *int            `json:"count"`
		Body  json.RawMessage `json:"body"`
	}
	switch err := json.Unmarshal(raw, &e); {
	case err != nil:
		return errors.New("neither a name nor an object with name and count, or body")
	case e.Body != nil:
		return p.Line(raw)
	case e.Count == nil:
		return p.Named(e.Name, 1)
	}
	return p.Named(e.Name, *e.Count)
}

// planProblem says in words what is wrong; never with a word of a request.
func planProblem(err error) string {
	if _, ok := errors.AsType[*json.SyntaxError](err); ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "not JSON"
	}
	if _, ok := errors.AsType[*routing.ModelError](err); ok {
		return explain(err).Refusal.Message
	}
	return err.Error()
}
