package ollamasim

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ollama/ollama/types/model"
)

// Config describes the simulated machine and server. The zero value is a 24 GB
// card with the four models of Catalog and Ollama's defaults.
type Config struct {
	Models    []Model       // on the disk; nil means Catalog()
	Registry  []Model       // what can be pulled; nil means Catalog()
	Bandwidth int64         // to the registry, in bytes a second; 0 means 100 MB/s
	VRAM      uint64        // bytes that models may take; 0 means 23.5 GiB
	NoGPU     bool          // models live in main memory: size_vram is 0 and space has no end
	MaxLoaded int           // OLLAMA_MAX_LOADED_MODELS; 0 means 3
	Parallel  int           // OLLAMA_NUM_PARALLEL; 0 means 1
	Queue     int           // OLLAMA_MAX_QUEUE; 0 means 512
	Context   int           // OLLAMA_CONTEXT_LENGTH; 0 means 4096
	KeepAlive time.Duration // OLLAMA_KEEP_ALIVE; 0 means 5 min, negative for ever
	Version   string        // "" means "0.17.4"
	Speed     float64       // 2 halves every duration; 0 means 1
	Length    int           // tokens of a free text; 0 leaves its natural length
	Faults    []Fault       // as if each had been passed to Inject
	Moved     func(Move)    // hears of each; it must not call back
}

// Move is a model that came into memory or left it. A crash is silent.
type Move struct {
	What  What
	Model string // canonical
}

// What a Move is.
type What string

// An Evict is the server's own order to unload: to make room, or to load the
// same model with another context. An Unload follows.
const (
	Load   What = "load"
	Unload What = "unload"
	Evict  What = "evict"
)

// Counts tell what happened. All but Evictions and Reloads grow in a healthy run.
type Counts struct {
	Loads     int // models brought into memory
	Unloads   int // models gone from memory, for whatever reason but a crash
	Evictions int // unloads that the server itself ordered to make room
	Reloads   int // unloads because a request asked for another num_ctx
	Started   int // answers begun: chat, generate and embed with a prompt, past the first checks
	Finished  int // answers given to the end
	Cancelled int // answers whose client left
	Failed    int // answers that a fault or a crash ended
}

// Sim is a simulated Ollama. Make one with New; it is safe for concurrent use.
type Sim struct {
	cfg    Config
	models map[string]*Model // by canonical name; never changes
	loader chan struct{}     // held by the one request that may load
	routes http.Handler

	mu     sync.Mutex
	loaded map[string]*runner // by the file of the weights, whatever the name
	read   map[*Model]bool    // loaded before: its file is in the page cache
	taken  uint64             // see Take

	fetched map[*Model]int64 // bytes that were pulled of models that are not on the disk yet
	queued  int              // requests that wait for the loader
	faults  []Fault
	counts  Counts
	dead    chan struct{} // closed by a crash, then replaced
}

// New returns a running server with nothing loaded.
func New(cfg Config) *Sim {
	if cfg.Models == nil {
		cfg.Models = Catalog()
	}
	if cfg.Registry == nil {
		cfg.Registry = Catalog()
	}
	cfg.Bandwidth = cmp.Or(cfg.Bandwidth, 100_000_000)
	cfg.VRAM = cmp.Or(cfg.VRAM, 47<<29)
	cfg.MaxLoaded = cmp.Or(cfg.MaxLoaded, 3)
	cfg.Parallel = cmp.Or(cfg.Parallel, 1)
	cfg.Queue = cmp.Or(cfg.Queue, 512)
	cfg.Context = cmp.Or(cfg.Context, 4096)
	cfg.KeepAlive = cmp.Or(cfg.KeepAlive, 5*time.Minute)
	cfg.Version = cmp.Or(cfg.Version, "0.17.4")
	cfg.Speed = cmp.Or(cfg.Speed, 1)
	if cfg.Moved == nil {
		cfg.Moved = func(Move) {}
	}
	s := &Sim{
		cfg:    cfg,
		models: make(map[string]*Model),
		loader: make(chan struct{}, 1),
		loaded: make(map[string]*runner),
		read:   make(map[*Model]bool),
		faults: slices.Clone(cfg.Faults),
		dead:   make(chan struct{}),

		fetched: make(map[*Model]int64),
	}
	for i := range cfg.Registry {
		s.models[canonical(cfg.Registry[i].Name)] = &cfg.Registry[i]
		s.fetched[&cfg.Registry[i]] = 0
	}
	for i := range cfg.Models { // what is there, is not fetched
		s.models[canonical(cfg.Models[i].Name)] = &cfg.Models[i]
	}
	s.routes = s.mux()
	return s
}

func canonical(name string) string { return strings.ToLower(model.ParseName(name).DisplayShortest()) }

// ServeHTTP answers as Ollama does.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.hit(Refuse, ""); ok {
		panic(http.ErrAbortHandler)
	}
	s.routes.ServeHTTP(w, r)
}

// Counts returns what has happened so far.
func (s *Sim) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// Loaded returns the names of the models in memory, sorted.
func (s *Sim) Loaded() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, r := range s.loaded {
		names = append(names, canonical(r.model.Name))
	}
	slices.Sort(names)
	return names
}

// Crash ends the server as SIGKILL does and starts it again at once: answers
// under way are cut off, nothing is loaded any more. Inject Refuse first for a
// server that stays away.
func (s *Sim) Crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.loaded {
		r.leave()
	}
	clear(s.loaded)
	close(s.dead)
	s.dead = make(chan struct{})
}

var (
	errBusy    = errors.New("server busy, please try again.  maximum pending requests exceeded")
	errCrashed = errors.New("server crashed")
	errLoad    = errors.New("llama runner process has terminated: exit status 2")
)

// runner is a model in memory. All but slots and gone is guarded by Sim.mu.
type runner struct {
	model    *Model
	asked    int // num_ctx it was loaded for: another one means a reload
	context  int // what that came to: no more than the model was trained for
	size     uint64
	vram     uint64
	keep     time.Duration // how long it stays once idle
	expires  time.Time
	refs     int
	stopping bool // on its way out, takes no more requests
	timer    *time.Timer
	slots    chan struct{} // one element for each answer under way
	gone     chan struct{} // closed when it has left memory
}

const forever = time.Duration(math.MaxInt64)

func (r *runner) leave() {
	if r.timer != nil {
		r.timer.Stop()
	}
	close(r.gone)
}

// visit is one request's use of a model.
type visit struct {
	model  *Model
	numCtx int            // 0 means the server's default
	keep   *time.Duration // nil means as it is
	empty  bool           // no prompt: only to load
}

// acquire returns v's model loaded as asked. A resident model is served past
// the queue; the others are loaded one after the other, first come first
// served, and that is when Ollama evicts. The caller releases.
func (s *Sim) acquire(ctx context.Context, v visit) (*runner, error) {
	v.numCtx = cmp.Or(v.numCtx, v.model.NumCtx, s.cfg.Context)
	s.mu.Lock()
	dead := s.dead
	if r := s.usableLocked(v); r != nil {
		s.mu.Unlock()
		return r, nil
	}
	if s.queued >= s.cfg.Queue {
		s.mu.Unlock()
		return nil, errBusy
	}
	s.queued++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.queued--
		s.mu.Unlock()
	}()

	select {
	case s.loader <- struct{}{}:
		defer func() { <-s.loader }()
	case <-dead:
		return nil, errCrashed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		s.mu.Lock()
		if r := s.usableLocked(v); r != nil {
			s.mu.Unlock()
			return r, nil
		}
		victim := s.victimLocked(v)
		if victim == nil {
			s.mu.Unlock()
			if err := s.wedged(ctx, dead); err != nil {
				return nil, err
			}
			return s.load(ctx, dead, v)
		}
		if victim.keep != 0 {
			if victim.model == v.model {
				s.counts.Reloads++
			} else {
				s.counts.Evictions++
			}
			s.cfg.Moved(Move{Evict, canonical(victim.model.Name)})
		}
		s.expireLocked(victim)
		s.mu.Unlock()
		select {
		case <-victim.gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// usableLocked takes a reference on v's model when it is there as asked.
func (s *Sim) usableLocked(v visit) *runner {
	r := s.loaded[v.model.file()]
	if r == nil || r.stopping || r.asked != v.numCtx {
		return nil
	}
	s.retainLocked(r, v)
	return r
}

func (s *Sim) retainLocked(r *runner, v visit) {
	r.refs++
	if v.keep != nil {
		r.keep = *v.keep
	}
	if r.timer != nil {
		r.timer.Stop()
	}
}

// victimLocked returns what must leave before v's model can be loaded, or nil.
// It is Ollama's choice: shortest keep_alive first, then by name, an idle one
// if there is any. Neither use nor size count.
func (s *Sim) victimLocked(v visit) *runner {
	if r := s.loaded[v.model.file()]; r != nil {
		return r
	}
	if len(s.loaded) == 0 || len(s.loaded) < s.cfg.MaxLoaded && (s.cfg.NoGPU || s.size(v) <= s.freeLocked()) {
		return nil
	}
	order := slices.SortedFunc(maps.Values(s.loaded), func(a, b *runner) int {
		return cmp.Or(cmp.Compare(a.keep, b.keep), cmp.Compare(a.model.Name, b.model.Name))
	})
	if i := slices.IndexFunc(order, func(r *runner) bool { return r.refs == 0 }); i >= 0 {
		return order[i]
	}
	return order[0]
}

func (s *Sim) size(v visit) uint64 {
	return v.model.Weights + v.model.kvPerToken()*uint64(min(v.numCtx, v.model.Trained)*s.cfg.Parallel)
}

func (s *Sim) freeLocked() uint64 {
	free := s.cfg.VRAM - min(s.cfg.VRAM, s.taken)
	for _, r := range s.loaded {
		free -= min(free, r.vram)
	}
	return free
}

// load brings v's model in. It holds the loader, so there is room until it is done.
func (s *Sim) load(ctx context.Context, dead <-chan struct{}, v visit) (*runner, error) {
	s.mu.Lock()
	took := v.model.Cold
	if s.read[v.model] {
		took = v.model.Warm
	}
	s.mu.Unlock()
	if f, ok := s.hit(SlowLoad, v.model.Name); ok {
		took += f.Delay
	}
	if err := s.pause(ctx, dead, took); err != nil {
		return nil, err
	}
	if _, ok := s.hit(FailLoad, v.model.Name); ok {
		return nil, errLoad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-dead:
		return nil, errCrashed
	default:
	}
	r := &runner{
		model:   v.model,
		asked:   v.numCtx,
		context: min(v.numCtx, v.model.Trained),
		size:    s.size(v),
		keep:    s.cfg.KeepAlive,
		slots:   make(chan struct{}, s.cfg.Parallel),
		gone:    make(chan struct{}),
	}
	if r.keep < 0 {
		r.keep = forever
	}
	if !s.cfg.NoGPU {
		r.vram = min(r.size, s.freeLocked()) // what does not fit runs on the CPU, in silence
	}
	s.retainLocked(r, v)
	r.expires = time.Now().Add(r.keep)
	s.loaded[v.model.file()] = r
	s.read[v.model] = true
	s.counts.Loads++
	s.cfg.Moved(Move{Load, canonical(r.model.Name)})
	return r, nil
}

// release gives back what acquire took.
func (s *Sim) release(r *runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.refs--
	if r.refs > 0 || s.loaded[r.model.file()] != r {
		return
	}
	r.expires = time.Now().Add(r.keep)
	switch {
	case r.keep == 0:
		s.expireLocked(r)
	case r.keep < forever:
		r.timer = time.AfterFunc(r.keep, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if r.refs == 0 {
				s.expireLocked(r)
			}
		})
	}
}

// expireLocked unloads r, once it is idle.
func (s *Sim) expireLocked(r *runner) {
	if s.loaded[r.model.file()] != r || r.stopping {
		return
	}
	r.keep, r.expires = 0, time.Now()
	if r.refs > 0 {
		return // release comes back here
	}
	r.stopping = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.timer = time.AfterFunc(s.scaled(unloading), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.loaded[r.model.file()] == r {
			delete(s.loaded, r.model.file())
			s.counts.Unloads++
			s.cfg.Moved(Move{Unload, canonical(r.model.Name)})
			r.leave()
		}
	})
}

// unloading is how long an idle model takes to vanish from /api/ps.
const unloading = 170 * time.Millisecond

func (s *Sim) scaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) / s.cfg.Speed)
}

// pause lets d pass, at the server's speed.
func (s *Sim) pause(ctx context.Context, dead <-chan struct{}, d time.Duration) error {
	if d = s.scaled(d); d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-dead:
		return errCrashed
	case <-ctx.Done():
		return ctx.Err()
	}
}
