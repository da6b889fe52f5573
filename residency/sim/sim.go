package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"tenure/residency"
)

// Setup describes a run. Its zero fields take Defaults.
type Setup struct {
	Workload string // poisson, gamma, pipeline, batch, starvation, alternating or loyal
	Mix      string // pipeline: a fifth of each task; t1: mostly parsing and bias detection
	Rho      float64
	CV       float64 // of the gaps between arrivals, for gamma
	Requests int
	Clients  int
	Window   int // lines a batch client keeps open
	Slots    int
	MaxWait  time.Duration
	Seed     uint64
	Horizon  time.Duration // of starvation
	Budget   residency.Bytes
	Physics  Physics

	Preset       string  // of CARP: latency, balanced or economy
	Hints        bool    // pipeline clients declare their workflow
	ServiceScale float64 // falsifies what CARP has learnt of service times
	LoadScale    float64 // and of loads
	Greedy       bool    // CARP without full-batch gate and just-in-time swaps
	NoLinger     bool    // CARP without lingers

	Limit    int                 // events, 0: no limit
	Progress func(done int) bool // called now and then with the requests finished; false ends the run

	policy    residency.Policy // instead of CARP's preset
	queue     int              // instead of an unlimited one
	maxModels int
	order     []int           // of Ollama's victims, see newOllama
	cold      residency.Class // of the third model's requests in starvation
}

// WithDefaults fills the zero fields with the reference's base case.
func (s Setup) WithDefaults() Setup {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	if s.Mix == "" {
		s.Mix = "pipeline"
	}
	if s.Workload == "" {
		s.Workload = "poisson"
	}
	if s.Rho == 0 && s.Workload != "batch" {
		s.Rho = .7
	}
	if s.CV == 0 {
		s.CV = 4
	}
	switch s.Workload {
	case "alternating":
		def(&s.Requests, 40)
		if s.Budget == 0 {
			s.Budget = 12 * residency.GiB
		}
	case "batch":
		def(&s.Requests, 1000)
	case "pipeline":
		def(&s.Requests, 320)
	case "loyal":
		def(&s.Requests, 560)
	}
	def(&s.Requests, 6000)
	def(&s.Clients, 1)
	def(&s.Window, 64)
	def(&s.Slots, 2)
	if s.MaxWait == 0 {
		s.MaxWait = time.Minute
	}
	if s.Horizon == 0 {
		s.Horizon = time.Hour
	}
	if s.Budget == 0 {
		s.Budget = 20 * residency.GiB
	}
	if s.Physics == (Physics{}) {
		s.Physics = BasePhysics()
	}
	if s.Preset == "" {
		s.Preset = "latency"
	}
	def(&s.queue, 1<<30)
	def(&s.maxModels, 3)
	return s
}

// Check reports a setup that cannot be played.
func (s Setup) Check() error {
	switch {
	case s.Rho < 0 || s.Rho > 10:
		return fmt.Errorf("rho %v: want 0 to 10", s.Rho)
	case s.CV < .05 || s.CV > 50:
		return fmt.Errorf("cv %v: want .05 to 50", s.CV)
	case s.Requests < 1 || s.Clients < 1 || s.Window < 1:
		return errors.New("requests, clients and window: want 1 or more")
	case s.Slots < 1 || s.Slots > 64:
		return fmt.Errorf("slots %d: want 1 to 64", s.Slots)
	case !slices.Contains([]string{"poisson", "gamma", "pipeline", "batch", "starvation", "alternating", "loyal"}, s.Workload):
		return fmt.Errorf("workload %q: want poisson, gamma, pipeline, batch, starvation, alternating or loyal", s.Workload)
	case s.MaxWait <= 0:
		return fmt.Errorf("t-max %v: want more than 0", s.MaxWait)
	}
	if _, err := mixOf(s.Mix); err != nil {
		return err
	}
	_, err := residency.Preset(s.Preset)
	return err
}

// Policies lists what Run can play.
func Policies() []string { return []string{"fifo", "lru", "ollama", "llama-swap", "carp"} }

// Run plays the setup's workload through one policy. An error means that the
// setup is wrong or the scheduler broke a promise (deadlock, a request started
// on an absent model, an unload under a running request).
func Run(s Setup, policy string) (Result, error) {
	s = s.WithDefaults()
	if err := s.Check(); err != nil {
		return Result{}, err
	}
	src, err := s.workload()
	if err != nil {
		return Result{}, err
	}
	e := newEngine(s.Physics, Models(s.Slots), s.Budget, src)
	e.times = timesOf(e)
	srv, err := s.server(e, policy)
	if err != nil {
		return Result{}, err
	}
	e.srv = srv
	for _, m := range s.base() {
		srv.preload(m)
	}
	loads0 := len(s.base())
	if err := e.run(s.Limit, s.Progress); err != nil {
		return Result{}, fmt.Errorf("%s: %w", policy, err)
	}
	res := e.rec.result(s, policy, src, loads0)
	res.Events = e.events
	if b, ok := srv.(*bookServer); ok {
		n := b.book.State(b.clock()).Counters
		if n.Unsound > 0 {
			return Result{}, fmt.Errorf("%s: %d unsound plans", policy, n.Unsound)
		}
		res.Prefetches = int(n.Prefetches)
	}
	return res, nil
}

// base is the models resident when the workload begins.
func (s Setup) base() []int {
	if s.Workload == "alternating" {
		return []int{phi}
	}
	base := []int{phi}
	used := Models(1)[phi].Size
	for _, m := range []int{deepseek, mistral} {
		if size := Models(1)[m].Size; used+size <= s.Budget {
			base = append(base, m)
			used += size
		}
	}
	return base
}

type preloader interface {
	server
	preload(m int)
}

func (s Setup) server(e *engine, policy string) (preloader, error) {
	var p residency.Policy
	switch policy {
	case "ollama":
		return newOllama(e, s.maxModels, s.order), nil
	case "llama-swap":
		return newLlamaSwap(e, s.maxModels), nil
	case "fifo":
		p = residency.FIFO{}
	case "lru":
		p = residency.LRU{}
	case "carp":
		preset, err := residency.Preset(s.Preset)
		if err != nil {
			return nil, err
		}
		c, _ := preset.(residency.CARP)
		c.ServiceScale, c.LoadScale, c.Greedy, c.Beta = s.ServiceScale, s.LoadScale, s.Greedy, s.Physics.Beta
		if s.NoLinger {
			c.LingerMax = 0
		}
		p = c
	default:
		return nil, fmt.Errorf("policy %q: want one of %v", policy, Policies())
	}
	if s.policy != nil {
		p = s.policy
	}
	b := newBookServer(e, residency.Config{Budget: s.Budget, MaxModels: s.maxModels, QueueLimit: s.queue, MaxWait: s.MaxWait}, p)
	if s.Hints && s.Workload == "pipeline" {
		b.hints = pipelineHints(e.models)
	}
	return b, nil
}

// pipelineHints declares the rest of a candidate's stages and those of the
// client's next one.
func pipelineHints(models []residency.Model) func(r request) (string, []residency.Step) {
	all := tasks()
	return func(r request) (string, []residency.Step) {
		var steps []residency.Step
		for _, t := range append(all[r.step:], all[:]...) {
			steps = append(steps, residency.Step{Model: models[t.model], Work: time.Duration((t.lo + t.hi) / 2 * 1e9)})
		}
		return strconv.Itoa(r.client), steps
	}
}

// timesOf is cold loads once and loads from the page cache after.
func timesOf(e *engine) func(m, nth int) time.Duration {
	return func(m, nth int) time.Duration {
		if nth == 0 {
			return e.models[m].LoadTime
		}
		return min(warmLoad, e.models[m].LoadTime)
	}
}
