package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/residency/gpu"
	"tenure/routing"

	"github.com/gin-gonic/gin"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	goleak.VerifyTestMain(m)
}

// rig is the whole program but for its command line, before a simulated
// Ollama, in a bubble: loads take their seconds, and the test none.
type rig struct {
	t         *testing.T
	sim       *ollamasim.Sim
	server    *Server
	scheduler *residency.Scheduler
	cache     *cache.Cache
	api       *pipeListener
	admin     *pipeListener
	client    *http.Client
	log       *lockedBuffer
}

type rigConfig struct {
	sim       ollamasim.Config
	proxy     Config
	residency residency.Config
	idle      time.Duration           // silence of the model that is too long, before its first token and after; 0: 2 min
	dial      func(dialFunc) dialFunc // on the way to Ollama; nil: nothing is
	catalog   *routing.Catalog        // nil: the built-in one
	gpu       func(*ollamasim.Sim) (gpu.Reading, error)
	ledger    string // file; "": none
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// inBubble runs a test in a bubble around a rig that is up and has loaded what
// it preloads.
func inBubble(t *testing.T, cfg rigConfig, test func(*testing.T, *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, cfg)
		time.Sleep(11 * time.Second) // T0 and T1 are loaded, and the watcher is between two looks
		test(t, r)
	})
}

func newRig(t *testing.T, cfg rigConfig) *rig {
	t.Helper()
	if cfg.proxy.BodyBytes == 0 {
		cfg.proxy.BodyBytes = 1 << 20
	}
	if cfg.idle == 0 {
		cfg.idle = 2 * time.Minute
	}
	cfg.proxy.Timeouts = cfg.proxy.Timeouts.Or(routing.Timeouts{FirstByte: cfg.idle, Idle: cfg.idle})
	cfg.proxy.Preload = true
	if cfg.residency.Budget == 0 {
		cfg.residency.Budget = 20 * residency.GiB
	}
	r := &rig{t: t, sim: ollamasim.New(cfg.sim), log: &lockedBuffer{}, api: newPipeListener(), admin: newPipeListener()}
	log := slog.New(slog.NewJSONHandler(r.log, nil))
	dial, stopSim := r.sim.Serve()
	if cfg.dial != nil {
		dial = cfg.dial(dial)
	}
	if cfg.catalog == nil {
		cfg.catalog = routing.Builtin()
	}
	client := ollama.New(&url.URL{Scheme: "http", Host: "ollama.test"}, ollama.Config{Dial: dial, Load: cfg.residency.LoadTimeout, Log: log})
	policy, err := residency.Preset("latency")
	if err != nil {
		t.Fatal(err)
	}
	journal := NewJournal()
	cfg.residency.OnDecision = journal.Record
	sizes := OpenSizes(cfg.ledger, cfg.residency.Budget, log)
	r.scheduler = residency.New(cfg.residency, policy, Measuring(client, sizes, nil))
	if r.cache, err = cache.New(cache.Config{Bytes: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	parts := Parts{
		Router: routing.NewRouter(cfg.catalog, ShortName), Residency: r.scheduler, Cache: r.cache, Ollama: client, Journal: journal, Log: log,
		NoGPU: gpu.ErrUnavailable, Sizes: sizes,
	}
	if cfg.gpu != nil {
		parts.GPU = func() (gpu.Reading, error) { return cfg.gpu(r.sim) }
	}
	r.server = New(cfg.proxy, parts)
	r.server.buffers.scribble = true // whatever an endpoint's decoder keeps of a body is spoilt

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.server.Watch(ctx) })
	api, admin := HTTPServer(r.server.API(), log), HTTPServer(r.server.Admin(), log)
	running.Go(func() { _ = api.Serve(r.api) })
	running.Go(func() { _ = admin.Serve(r.admin) })
	// Like any client it gives up idle connections before the server does: in a
	// bubble they would meet at the same instant.
	transport := &http.Transport{IdleConnTimeout: idleTime * 3 / 4, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "api") {
			return r.api.dial(ctx)
		}
		return r.admin.dial(ctx)
	}}
	r.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		r.sim.Clear()
		r.cache.Close()
		if err := r.scheduler.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		transport.CloseIdleConnections()
		_ = api.Close()
		_ = admin.Close()
		running.Wait()
		time.Sleep(time.Second) // net/http lingers on connections that it ends
		client.Close()
		stopSim()
	})
	return r
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   string
}

// content is the text of a chat completion that is not a stream.
func (a reply) content(t *testing.T) string {
	t.Helper()
	var c struct {
		Choices []struct {
			Message struct{ Content *string }
		}
	}
	if err := json.Unmarshal([]byte(a.body), &c); err != nil || len(c.Choices) == 0 || c.Choices[0].Message.Content == nil {
		t.Fatalf("%d %s: no content (%v)", a.status, a.body, err)
	}
	return *c.Choices[0].Message.Content
}

// failure is the error of an answer, which must have all four keys.
func (a reply) failure(t *testing.T) wire.Error {
	t.Helper()
	var e struct {
		Error map[string]any
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %q (%s): not an error in JSON: %v", a.status, a.body, a.header.Get("Content-Type"), err)
	}
	for _, key := range []string{"message", "type", "param", "code"} {
		if _, ok := e.Error[key]; !ok {
			t.Errorf("%s: the key %q is missing", a.body, key)
		}
	}
	text := func(key string) string { s, _ := e.Error[key].(string); return s }
	return wire.Error{Status: a.status, Type: text("type"), Code: text("code"), Param: text("param"), Message: text("message")}
}

func (r *rig) send(ctx context.Context, method, url, body string, header ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(data)}, err
}

func (r *rig) do(method, url, body string, header ...string) reply {
	r.t.Helper()
	a, err := r.send(r.t.Context(), method, url, body, header...)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

// chat sends a chat request with one user message.
func (r *rig) chat(model, text, more string, header ...string) reply {
	r.t.Helper()
	return r.do(http.MethodPost, "http://api/v1/chat/completions", chatBody(model, text, more), header...)
}

func chatBody(model, text, more string) string {
	content, err := json.Marshal(text)
	if err != nil {
		panic(err) // text is a string
	}
	return `{"model":"` + model + `","messages":[{"role":"user","content":` + string(content) + `}]` + more + `}`
}

// rest waits until nobody holds a seat and checks that all is well.
func (r *rig) rest() {
	r.t.Helper()
	for range 600 {
		if r.scheduler.State().Leases == 0 {
			break
		}
		time.Sleep(time.Second)
	}
	st := r.scheduler.State()
	if st.Leases != 0 || len(st.Waiting) != 0 {
		r.t.Errorf("not at rest: %d leases, waiting %v", st.Leases, st.Waiting)
	}
	if n := r.sim.Counts(); n.Evictions != 0 || n.Reloads != 0 {
		r.t.Errorf("Ollama evicted %d and reloaded %d models by itself", n.Evictions, n.Reloads)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// pipeListener is a network of net.Pipes: unlike sockets, they wait in ways
// that a bubble understands.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, errors.New("closed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
