package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"tenure/cache"
	"tenure/proxy/alarm"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/residency/gpu"
	"tenure/routing"

	"github.com/gin-gonic/gin"
)

// Config adjusts a Server. Times of zero mean no limit.
type Config struct {
	Keys     []Key    // of the API; these and KeysFile none: open to whoever reaches the listener
	KeysFile string   // more keys, with limits; reread when it changes; see ParseKeys
	AdminKey Key      // of the admin side; the zero Key: open to whoever reaches the listener
	Version  string   // of the program
	Origins  []string // whose web pages may call the API; see cors

	Limits       wire.Limits
	MaxTokens    int              // most tokens of an answer, whatever the client asks for; 0: no cap
	Loopback     bool             // only this machine reaches the API: without keys, neither does a web page
	BodyBytes    int64            // of a request; larger ones are refused with 413
	HeldBytes    int64            // of all requests that wait or run; more are refused with 429; 0: no limit
	Timeouts     routing.Timeouts // of tasks whose catalog entry has none of its own
	Breaking     Breaking
	WholeTimeout time.Duration // longest time from a request's arrival to an answer that is no stream
	StallTimeout time.Duration // a client that takes nothing for this long is cut off

	Connections           int // at once, see Limit; 0: no limit
	ConnectionsPerAddress int // at once, see Limit; 0: no limit

	Preload     bool // load T1 models at start, too
	AllowRemote bool // use models that Ollama would send elsewhere
	Simulated   bool // the backend is the simulator: every answer says so
}

// Parts are what a Server puts to work. It closes none of them.
type Parts struct {
	Router    *routing.Router
	Residency *residency.Scheduler
	Cache     *cache.Cache
	Ollama    *ollama.Client
	Journal   *Journal // nil: an empty one that nobody fills
	Log       *slog.Logger
	Sizes     *Sizes // what the scheduler's Loader learnt, see Measuring; nil: nothing

	GPU   func() (gpu.Reading, error) // nil: nothing can be read
	NoGPU error                       // why, then
}

// Server serves the API and the admin side.
type Server struct {
	cfg       Config
	keys      *keyring
	router    *routing.Router
	residency *residency.Scheduler
	cache     *cache.Cache
	ollama    *ollama.Client
	log       *slog.Logger
	metrics   *metrics
	started   time.Time
	journal   *Journal
	measured  measures
	watched   watched
	breakers  *breakers
	bodies    allowance
	buffers   buffers
	clock     alarm.Clock

	backend  backend
	cards    cardWatch
	sizes    *Sizes
	planning sync.Mutex // one plan at a time: it takes a core
	draining atomic.Bool
}

// New returns a server. Watch must run for it to know its backend.
func New(cfg Config, p Parts) *Server {
	if p.Journal == nil {
		p.Journal = NewJournal()
	}
	s := &Server{
		cfg: cfg, keys: newKeyring(cfg.Keys, cfg.KeysFile, p.Log), router: p.Router, residency: p.Residency, cache: p.Cache, ollama: p.Ollama, log: p.Log,
		metrics: newMetrics(p.Residency, p.Ollama), started: time.Now(), journal: p.Journal, cards: cardWatch{read: p.GPU, why: p.NoGPU}, sizes: p.Sizes,
	}
	s.breakers = newBreakers(cfg.Breaking, func(model string) {
		s.log.Warn("breaker opened", "model", model, "pause", cfg.Breaking.Pause)
	})
	s.metrics.registry.MustRegister(gpuCollector{s}, s.breakers)
	s.bodies.most = cfg.HeldBytes
	return s
}

// API returns the handler of the OpenAI side, and of Ollama's own beside it.
func (s *Server) API() http.Handler {
	g := newEngine()
	g.NoRoute(s.serve("unknown", s.unknownURL))
	g.NoMethod(s.serve("unknown", s.wrongMethod))
	g.GET("/", s.root)
	g.HEAD("/", s.root)
	s.health(g)
	g.GET("/v1/models", s.serve("models", s.listModels))
	g.GET("/v1/models/*id", s.serve("models", s.getModel))
	g.POST("/v1/chat/completions", s.serve("chat", s.complete(chatCompletions())))
	g.POST("/v1/responses", s.serve("responses", s.complete(responses())))
	for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodPost} {
		g.Handle(method, "/v1/responses/*id", s.serve("responses", s.storedResponse))
	}
	g.POST("/v1/completions", s.serve("completions", s.complete(completions())))
	g.POST("/v1/embeddings", s.serve("embeddings", s.complete(embeddings())))
	g.POST("/v1/route", s.serve("route", s.route))
	s.native(g)
	return s.cors(g)
}

// Drain makes the server refuse new work and report itself unready; what is
// under way goes on.
func (s *Server) Drain() {
	s.draining.Store(true)
	s.journal.end() // who follows it would hold the shutdown up
}

func newEngine() *gin.Engine {
	g := gin.New()
	g.HandleMethodNotAllowed = true
	g.RedirectTrailingSlash = false
	g.RemoveExtraSlash = true // a base URL that ends in a slash is no error
	g.ContextWithFallback = true
	return g
}

func (s *Server) health(g *gin.Engine) {
	live := func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "ok"}) }
	ready := func(c *gin.Context) {
		switch reachable, since := s.backend.reachable(); {
		case s.draining.Load():
			c.JSON(http.StatusServiceUnavailable, gin.H{"status": "draining"})
		case since.IsZero():
			c.JSON(http.StatusServiceUnavailable, gin.H{"status": "starting"}) // Ollama has not been asked yet
		case !reachable:
			c.JSON(http.StatusServiceUnavailable, gin.H{"status": "ollama unreachable", "since": since.UTC().Format(time.RFC3339)})
		case s.watched.stuckOn() != "":
			c.JSON(http.StatusServiceUnavailable, gin.H{"status": "ollama completes no load", "model": s.watched.stuckOn()})
		default:
			c.JSON(http.StatusOK, gin.H{"status": "ready"})
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		g.Handle(method, "/healthz", live)
		g.Handle(method, "/readyz", ready)
	}
}

func (s *Server) root(c *gin.Context) {
	c.String(http.StatusOK, "tenure is running\n")
}

func (s *Server) unknownURL(x *exchange) error {
	return problem(nil, outcomeCaller, http.StatusNotFound, "unknown_url", 0,
		fmt.Sprintf("Unknown request URL: %s %s", x.gin.Request.Method, clip(x.gin.Request.URL.Path)))
}

func (s *Server) wrongMethod(x *exchange) error {
	return problem(nil, outcomeCaller, http.StatusMethodNotAllowed, "method_not_allowed", 0,
		fmt.Sprintf("%s is not allowed here: %s", x.gin.Request.Method, clip(x.gin.Request.URL.Path)))
}

// Serve runs the handler on a listener that http.Server owns until ctx ends,
// then drains: no new connection, grace for what is under way, then cut ends
// the rest and they get a second to say so to their clients.
func Serve(ctx context.Context, servers map[*http.Server]func() error, grace time.Duration, cut func()) error {
	failed := make(chan error, len(servers))
	var wg sync.WaitGroup
	for _, serve := range servers {
		wg.Go(func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	if shutdown(servers, grace) != nil {
		cut()
		if shutdown(servers, time.Second) != nil {
			for h := range servers {
				_ = h.Close() // nothing is left to be done about it
			}
		}
	}
	wg.Wait()
	return err
}

func shutdown(servers map[*http.Server]func() error, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	errs := make(chan error, len(servers))
	for h := range servers {
		go func() { errs <- h.Shutdown(ctx) }()
	}
	var all error
	for range servers {
		all = errors.Join(all, <-errs)
	}
	return all
}
