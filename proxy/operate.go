package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"tenure/cache"
	"tenure/residency"
	"tenure/routing"

	"github.com/gin-gonic/gin"
)

// operate registers what an operator sees and does.
func (s *Server) operate(g *gin.RouterGroup) {
	g.GET("/admin/decisions", s.getDecisions)
	g.GET("/admin/decisions/stream", s.streamDecisions)
	g.GET("/admin/memory", func(c *gin.Context) {
		st := s.residency.State()
		c.JSON(http.StatusOK, s.memory(&st))
	})
	g.POST("/admin/preload", s.postPreload)
	g.DELETE("/admin/cache", s.deleteCache)
	g.POST("/admin/plan", s.postPlan)
	g.GET("/admin/workflows", s.listWorkflows)
	g.GET("/admin/workflows/:name", s.getWorkflow)
	g.GET("/admin/recommendations", func(c *gin.Context) { c.JSON(http.StatusOK, s.recommend()) })
}

// changesOnly keeps web pages from driving the admin side. A page can send a
// form or plain text anywhere, but not the admin key, and not JSON either
// without asking first; that question is never answered.
func (s *Server) changesOnly(c *gin.Context) {
	if c.Request.Method == http.MethodGet || c.Request.Method == http.MethodHead || s.cfg.AdminKey != (Key{}) {
		return // reading, or operatorOnly has seen the key
	}
	if err := new(http.CrossOriginProtection).Check(c.Request); err != nil {
		refuse(c, problem(err, outcomeKey, http.StatusForbidden, "cross_origin", 0, "The admin side takes no changes from web pages of elsewhere."))
		return
	}
	if kind, _, err := mime.ParseMediaType(c.GetHeader("Content-Type")); err != nil || kind != "application/json" {
		refuse(c, problem(err, outcomeCaller, http.StatusUnsupportedMediaType, "unsupported_media_type", 0,
			"A change needs the header Content-Type: application/json, or the admin key."))
	}
}

// deleteCache forgets kept answers: those of ?tenant= and ?task=, or all. What
// is not understood must not mean all.
func (s *Server) deleteCache(c *gin.Context) {
	query := c.Request.URL.Query()
	for name, values := range query {
		if name != "tenant" && name != "task" || len(values) != 1 || values[0] == "" {
			refuse(c, problem(nil, outcomeCaller, http.StatusBadRequest, "invalid_value", 0,
				"Only tenant and task, each once and with a value, say which answers to forget; neither means all."))
			return
		}
	}
	owner := cache.Owner{Tenant: query.Get("tenant"), Task: query.Get("task")}
	if owner.Task != "" && !slices.ContainsFunc(s.router.Catalog().Tasks, func(t routing.Task) bool { return t.Name == owner.Task }) {
		refuse(c, problem(nil, outcomeCaller, http.StatusNotFound, "task_not_found", 0, "The catalog has no task of this name."))
		return
	}
	n := s.cache.Drop(owner)
	s.log.Info("kept answers forgotten", "tenant", owner.Tenant, "task", owner.Task, "answers", n)
	c.JSON(http.StatusOK, gin.H{"forgotten": n})
}

const (
	adminBody   = 1 << 20         // bytes of a change
	longestWait = 5 * time.Minute // for a change to be carried out
)

// Preloaded is what was done about one model. Done is one of the constants.
type Preloaded struct {
	Done   string        `json:"done"`
	Reason string        `json:"reason,omitempty"`
	Took   time.Duration `json:"took_ns,omitempty"`
}

// What may have been done.
const (
	DoneLoaded   = "loaded"   // it is there, now or before
	DoneLoading  = "loading"  // on its way
	DoneWaiting  = "waiting"  // comes as soon as there is room
	DoneUnloaded = "unloaded" // it is gone, now or before
	DoneRefused  = "refused"
	DoneFailed   = "failed" // Ollama did not do it
)

// Refused reports whether what was asked will not happen.
func (p Preloaded) Refused() bool { return p.Done == DoneRefused || p.Done == DoneFailed }

// postPreload loads and unloads: {"phi3:mini":true,"mistral":false}. What is to
// go goes first, so that one call can swap. With ?wait=30s it answers when all
// is done or the time is over. The status is 409 if anything was refused.
func (s *Server) postPreload(c *gin.Context) {
	var asked map[string]bool
	d := json.NewDecoder(http.MaxBytesReader(c.Writer, c.Request.Body, adminBody))
	if err := d.Decode(&asked); err != nil || len(asked) == 0 {
		refuse(c, problem(err, outcomeCaller, http.StatusBadRequest, "invalid_json", 0,
			`The body must name models: {"phi3:mini":true,"mistral":false}. true loads, false unloads.`))
		return
	}
	wait := time.Duration(0)
	if text := c.Query("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > longestWait {
			refuse(c, badQuery(err, "wait", "a duration up to 5m"))
			return
		}
	}
	want := map[string]bool{}
	for name, load := range asked {
		name = ShortName(name)
		if other, twice := want[name]; twice && other != load {
			refuse(c, problem(nil, outcomeCaller, http.StatusBadRequest, "invalid_value", 0, "The model "+clip(name)+" is to be both loaded and unloaded."))
			return
		}
		want[name] = load
	}
	done := s.Preload(c.Request.Context(), want, wait)
	status := http.StatusOK
	for _, p := range done {
		if p.Refused() {
			status = http.StatusConflict
		}
	}
	c.JSON(status, gin.H{"models": done})
}

// Preload loads the models that map to true and unloads the others, and tells
// for each what was done. It waits for loads as long as wait.
func (s *Server) Preload(ctx context.Context, want map[string]bool, wait time.Duration) map[string]Preloaded {
	done := map[string]Preloaded{}
	names := slices.Sorted(maps.Keys(want))
	if s.residency.State().Passthrough {
		for _, name := range names {
			done[name] = Preloaded{Done: DoneRefused, Reason: "residency is not managed: A5000_OPTIMIZATION is false"}
		}
		return done
	}
	for _, name := range names {
		if !want[name] {
			done[name] = s.unload(ctx, name)
		}
	}
	since, until := s.journal.Find(DecisionQuery{Limit: 1}).Last, time.Now().Add(wait)
	pending := map[string]residency.Model{}
	for _, name := range names {
		if !want[name] {
			continue
		}
		m, err := s.modelNamed(name)
		if err != nil {
			done[name] = Preloaded{Done: DoneRefused, Reason: explain(err).Refusal.Message}
			continue
		}
		s.watched.excuse(m.Name, false)
		s.residency.Preload(m)
		pending[name] = m
	}
	for {
		next, _ := s.journal.wait()
		st := s.residency.State()
		busy := false
		for name, m := range pending {
			done[name] = s.preloaded1(&st, m, since)
			busy = busy || done[name].Done == DoneLoading
		}
		left := time.Until(until)
		if !busy || left <= 0 {
			return done
		}
		select {
		case <-next:
		case <-time.After(left):
		case <-ctx.Done():
			return done
		}
	}
}

// modelNamed is a model that Ollama has, as it would be loaded.
func (s *Server) modelNamed(name string) (residency.Model, error) {
	d, err := s.router.Route(routing.Request{Model: name})
	if err != nil {
		return residency.Model{}, err
	}
	return s.seat(d.Candidates[0]), nil
}

// preloaded1 tells how far a load that was asked for has come.
func (s *Server) preloaded1(st *residency.State, m residency.Model, since uint64) Preloaded {
	moving, pinned := false, m.Size
	var holders []string
	for _, r := range st.Residents {
		if r.Model.Name == m.Name && r.Phase == residency.Ready {
			return Preloaded{Done: DoneLoaded, Took: s.loadSince(m.Name, since)}
		}
		if r.Model.Name == m.Name {
			return Preloaded{Done: DoneLoading}
		}
		moving = moving || r.Phase != residency.Ready
		holders = append(holders, r.Model.Name)
		if r.Pinned {
			pinned += r.Size
		}
	}
	for _, e := range s.journal.Find(DecisionQuery{After: since, Model: m.Name}).Decisions {
		if e.Action == residency.ActLoadFail {
			return Preloaded{Done: DoneFailed, Reason: "Ollama did not load it; it is tried again: " + e.Err}
		}
	}
	switch {
	case pinned > st.Budget:
		return Preloaded{Done: DoneRefused, Reason: fmt.Sprintf("it takes %v; beside what is always loaded the budget of %v has no room for it", m.Size, st.Budget)}
	case moving:
		return Preloaded{Done: DoneLoading, Reason: "another model is being moved first"}
	}
	return Preloaded{Done: DoneWaiting, Reason: fmt.Sprintf("%s hold the memory; it comes in when one of them leaves, or on an idle GPU over one with a lower claim",
		strings.Join(append(holders, slices.Sorted(maps.Keys(st.Foreign))...), ", "))}
}

// loadSince is how long the model's load took if it came after an entry of the
// journal, else 0.
func (s *Server) loadSince(model string, id uint64) (took time.Duration) {
	for _, e := range s.journal.Find(DecisionQuery{After: id, Model: model}).Decisions {
		if e.Action == residency.ActLoaded && e.Model == model {
			took = e.Took
		}
	}
	return took
}

// unload takes a model out of memory, unless it is always loaded or in use.
func (s *Server) unload(ctx context.Context, name string) Preloaded {
	began := time.Now()
	err := s.residency.Unload(ctx, name)
	switch {
	case err == nil:
		s.watched.excuse(name, true)
		return Preloaded{Done: DoneUnloaded, Took: time.Since(began)}
	case errors.Is(err, residency.ErrPinned):
		return Preloaded{Done: DoneRefused, Reason: "it is a T0 model: always loaded. The catalog says so (TENURE_CATALOG)"}
	case errors.Is(err, residency.ErrBusy):
		return Preloaded{Done: DoneRefused, Reason: s.busyReason(name)}
	case errors.Is(err, residency.ErrAbsent):
		if _, foreign := s.residency.State().Foreign[name]; foreign {
			return s.unloadForeign(ctx, name)
		}
		m, err := s.modelNamed(name)
		switch {
		case err != nil:
			return Preloaded{Done: DoneRefused, Reason: explain(err).Refusal.Message}
		case m.Name != name:
			return s.unload(ctx, m.Name)
		}
		s.watched.excuse(name, true)
		return Preloaded{Done: DoneUnloaded, Reason: "it was not loaded"}
	}
	return Preloaded{Done: DoneFailed, Reason: logText(err)}
}

// unloadForeign takes a model out that somebody else loaded.
func (s *Server) unloadForeign(ctx context.Context, name string) Preloaded {
	began := time.Now()
	if err := s.ollama.Unload(ctx, residency.Model{Name: name}); err != nil {
		return Preloaded{Done: DoneFailed, Reason: logText(err)}
	}
	return Preloaded{Done: DoneUnloaded, Reason: "tenure had not loaded it", Took: time.Since(began)}
}

func (s *Server) busyReason(name string) string {
	st := s.residency.State()
	for _, r := range st.Residents {
		if r.Model.Name == name && r.Leases > 0 {
			return fmt.Sprintf("%d requests run on it", r.Leases)
		}
	}
	for _, w := range st.Waiting {
		if w.Model == name {
			return fmt.Sprintf("%d requests wait for it", w.Count)
		}
	}
	return "models are being moved; try again in a moment"
}

// memoryHigh is the share of the budget above which a warning is due.
const memoryHigh = .9

// MemoryState is what GET /admin/memory tells. Figures are GiB, named as
// users of an earlier system know them.
type MemoryState struct {
	Usage       float64        `json:"current_usage_gb"` // by our models and by foreign ones
	Free        float64        `json:"free_memory_gb"`   // of the budget
	Total       float64        `json:"total_memory_gb"`  // the budget
	Utilization float64        `json:"memory_utilization"`
	Loaded      int            `json:"loaded_models_count"`
	MaxModels   int            `json:"max_models"`
	Warning     string         `json:"warning,omitempty"` // above 90 %
	Models      []ModelMemory  `json:"models"`
	Sources     []MemorySource `json:"sources"`
}

// ModelMemory is one model's part.
type ModelMemory struct {
	Name   string  `json:"name"`
	Tier   string  `json:"tier"`  // "T0" to "T2", or "foreign"
	State  string  `json:"state"` // its phase, or "foreign"
	Usage  float64 `json:"usage_gb"`
	Source string  `json:"source"`  // "measured", "estimate" or "ollama"
	OnCPU  float64 `json:"cpu_gb"`  // the part that Ollama put into main memory
	Listed bool    `json:"listed"`  // whether Ollama lists it
	Ctx    int     `json:"context"` // tokens a slot
}

// MemorySource is what one source says of all models together.
type MemorySource struct {
	Source string  `json:"source"`
	Usage  float64 `json:"usage_gb"`
	Means  string  `json:"means"`
}

func gib(b residency.Bytes) float64 {
	return math.Round(float64(b)/float64(residency.GiB)*1000) / 1000
}

// memory puts the ledger's figures beside Ollama's.
func (s *Server) memory(st *residency.State) MemoryState {
	s.backend.mu.Lock()
	listed := map[string]OllamaResident{}
	var reported, onGPU residency.Bytes
	for _, r := range s.backend.resident {
		name := ShortName(r.Name)
		listed[name] = OllamaResident{Name: name, Size: r.Size, VRAM: r.VRAM, Context: r.Context}
		reported += r.Size
		onGPU += r.VRAM
	}
	s.backend.mu.Unlock()

	used, count := st.Used, len(st.Residents)+len(st.Foreign)
	for _, b := range st.Foreign {
		used += b
	}
	if st.Passthrough {
		used, count = reported, len(listed) // there is no ledger
	}
	m := MemoryState{
		Usage: gib(used), Free: gib(st.Budget - min(used, st.Budget)), Total: gib(st.Budget),
		Utilization: math.Round(float64(used)/float64(max(st.Budget, 1))*1000) / 1000,
		Loaded:      count, MaxModels: st.MaxModels, Models: []ModelMemory{},
		Sources: []MemorySource{
			{"ledger", gib(used), "what tenure counts against the budget: measured after each load, estimated before, foreign models as Ollama reports them"},
			{"ollama", gib(reported), "what /api/ps reported at the last look, every 5 s, main memory included"},
			{"ollama_vram", gib(onGPU), "the part of it in GPU memory"},
		},
	}
	if m.Utilization > memoryHigh {
		m.Warning = fmt.Sprintf("%.0f %% of the memory for models is in use", m.Utilization*100)
	}
	for _, r := range st.Residents {
		l, ok := listed[r.Model.Name]
		delete(listed, r.Model.Name)
		source := "estimate"
		if r.Measured {
			source = "measured"
		}
		m.Models = append(m.Models, ModelMemory{
			Name: r.Model.Name, Tier: r.Model.Tier.String(), State: r.Phase.String(), Usage: gib(r.Size), Source: source,
			OnCPU: gib(l.Size - min(l.VRAM, l.Size)), Listed: ok, Ctx: r.Model.Context,
		})
	}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		l := listed[name]
		m.Models = append(m.Models, ModelMemory{
			Name: name, Tier: "foreign", State: "foreign", Usage: gib(l.Size), Source: "ollama",
			OnCPU: gib(l.Size - min(l.VRAM, l.Size)), Listed: true, Ctx: l.Context,
		})
	}
	return m
}
