// Package ollama is tenure's one client of Ollama: it streams answers, moves
// models in and out of GPU memory (it is residency's Loader) and reads what is
// installed and resident. It speaks the native API, version 0.17, because only
// there can the context size, truncation and timing figures be had.
//
// Three promises hold for every request it makes. Inference never sends
// keep_alive, so only Load and Unload decide how long a model stays. Nothing
// is truncated or shifted in silence: a prompt that does not fit is an error.
// And an answer that stops without saying that it is complete is ErrAborted,
// never a success; Ollama's own Go client returns nil there.
//
// Package ollamasim holds a simulated Ollama to test against.
package ollama

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"tenure/proxy/alarm"
	"tenure/residency"
)

var (
	// ErrUnreachable means that no connection could be made: nothing was sent.
	ErrUnreachable = errors.New("ollama: unreachable")
	// ErrAborted means that an answer began, or was waited for, and ended
	// before it was complete. It matches io.ErrUnexpectedEOF.
	ErrAborted = fmt.Errorf("ollama: answer ended early: %w", io.ErrUnexpectedEOF)
	// ErrUnfinished is the ErrAborted of a server that is well: it ended the
	// answer in order, without its last line. Ollama does so with a model that
	// repeats one token.
	ErrUnfinished = fmt.Errorf("ollama: answer without its last line: %w", ErrAborted)
	// ErrFirstByte means that an answer did not begin within Limits.First.
	ErrFirstByte = errors.New("ollama: no first byte")
	// ErrStalled means that a stream fell silent for Limits.Idle.
	ErrStalled = errors.New("ollama: no sign of life")
	// ErrNoGPU means that a model was loaded into main memory although
	// Config.RequireGPU forbids it. The model is unloaded again.
	ErrNoGPU = errors.New("ollama: model is not in GPU memory")
)

// StatusError is Ollama's own refusal. Message is its text and may quote the
// request's model name, never its content.
type StatusError struct {
	// Status is the HTTP status. An error line within a stream carries none
	// and counts as 500, which is what Ollama answers before the first byte.
	Status  int
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("ollama: %d: %s", e.Status, e.Message)
}

// GPU says what to make of a model that Ollama loaded into main memory.
type GPU string

// With GPUAuto, it is an error once any model was seen in GPU memory: before
// that, the machine may have no GPU.
const (
	GPUAuto  GPU = "auto"
	GPUTrue  GPU = "true"
	GPUFalse GPU = "false"
)

// Config adjusts a Client. The zero value is ready for use.
type Config struct {
	Log *slog.Logger // nil discards
	// Dial replaces the network, for tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	Connect time.Duration // limit for a connection to be made; 0 means 5 s
	Call    time.Duration // limit for the small calls: version, tags, ps, show; 0 means 15 s
	Load    time.Duration // limit for a load; 0 means 5 min
	Unload  time.Duration // limit for an unload; 0 means 1 min
	Probe   time.Duration // how long a slot whose client left may take to be free again at most, see left; 0 means 20 s
	Limits  Limits        // of streams whose context has none of its own
	// Settle is how long Unload waits for the driver to take memory back after
	// a model in GPU memory has left /api/ps. Ollama itself allows 5 s; a load
	// that starts sooner finds too little free memory and makes Ollama evict.
	Settle time.Duration

	RequireGPU GPU // "" means GPUAuto
}

// Limits bound the silence of a stream. Zero means no limit.
type Limits struct {
	First time.Duration // from the request to the first line
	Idle  time.Duration // between two lines
}

type limitsKey struct{}

// WithLimits returns a context whose streams have limits of their own.
func WithLimits(ctx context.Context, l Limits) context.Context {
	return context.WithValue(ctx, limitsKey{}, l)
}

type loadedKey struct{}

// WithLoaded returns a context whose streams are answered by the model that was
// loaded as name: of the same weights as theirs, whose slots it lends.
func WithLoaded(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, loadedKey{}, name)
}

func (c *Client) limits(ctx context.Context) Limits {
	if l, ok := ctx.Value(limitsKey{}).(Limits); ok {
		return l
	}
	return c.cfg.Limits
}

// Shortfall is what a model was loaded with too little of; also a metric's label.
type Shortfall string

// What can be short.
const (
	ShortContext Shortfall = "context" // tokens: fewer than asked and trained for
	ShortVRAM    Shortfall = "vram"    // bytes: part of the model is in main memory
)

// Client talks to one Ollama. It is safe for concurrent use and follows no
// redirect and no HTTP proxy: what it is sent stays on the way to its base URL.
type Client struct {
	base *url.URL
	cfg  Config
	link *link
	gpu  atomic.Bool // some model was seen in GPU memory

	clock    alarm.Clock
	payloads sync.Pool // of *payload
	lines    sync.Pool // of *[4 << 10]byte, most lines of an answer fit into

	life    context.Context //nolint:containedctx // of the probes, ended by Close
	end     context.CancelFunc
	work    sync.WaitGroup
	revived atomic.Uint64
	mu      sync.Mutex
	streams map[string]int           // under way, by canonical name
	probes  map[string]chan struct{} // by canonical name; closed when its slot is known to be free
	short   map[Shortfall]uint64
}

var _ residency.Loader = (*Client)(nil)

// New returns a client of the Ollama at base, see ParseHost.
func New(base *url.URL, cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.RequireGPU == "" {
		cfg.RequireGPU = GPUAuto
	}
	for _, d := range []struct {
		at *time.Duration
		or time.Duration
	}{{&cfg.Connect, 5 * time.Second}, {&cfg.Call, 15 * time.Second}, {&cfg.Load, 5 * time.Minute}, {&cfg.Unload, time.Minute}, {&cfg.Probe, 20 * time.Second}} {
		if *d.at <= 0 {
			*d.at = d.or
		}
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	life, end := context.WithCancel(context.Background())
	c := &Client{
		life: life, end: end, base: base, cfg: cfg,
		streams: make(map[string]int), probes: make(map[string]chan struct{}), short: make(map[Shortfall]uint64),
	}
	c.link = newLink(base, func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, cfg.Connect)
		defer cancel()
		conn, err := dial(ctx, "tcp", base.Host)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return conn, nil
	})
	return c
}

// URL is where the server is, without a password.
func (c *Client) URL() string { return c.base.Redacted() }

// Close ends the probes and drops idle connections. No call may follow.
func (c *Client) Close() {
	c.end()
	c.work.Wait()
	c.link.drop()
}

// open sends one request and returns the body of a 200. Other statuses become
// a *StatusError. A payload is sent as it is, and given back.
func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var document []byte
	switch in := in.(type) {
	case nil:
	case *payload:
		defer c.giveBack(in)
		document = in.bytes
	default:
		var err error
		if document, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("asking %s: %w", path, err)
		}
	}
	resp, err := c.link.send(ctx, method, path, document)
	if err != nil {
		return nil, c.failure(ctx, path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

// failure names why no answer came: the caller left, nobody listens, or the
// connection ended.
func (c *Client) failure(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("asking %s: %w", path, context.Cause(ctx))
	}
	if errors.Is(err, ErrUnreachable) {
		return fmt.Errorf("asking %s: %w", path, err)
	}
	return fmt.Errorf("asking %s: %w: %w", path, ErrAborted, err)
}

func refusal(resp *http.Response) error {
	var e struct {
		Error string `json:"error"`
	}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what could be read is what there is to tell
	if json.Unmarshal(data, &e) != nil || e.Error == "" {
		e.Error = string(bytes.TrimSpace(data))
	}
	if e.Error == "" {
		e.Error = http.StatusText(resp.StatusCode)
	}
	return &StatusError{Status: resp.StatusCode, Message: e.Error}
}

// call makes a request whose answer is one JSON document.
func (c *Client) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return c.ask(ctx, method, path, in, out)
}

func (c *Client) ask(ctx context.Context, method, path string, in, out any) error {
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxDocument))
	if err != nil {
		return c.failure(ctx, path, err)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decoding %s: %w", path, err)
	}
	return nil
}

// maxDocument bounds one answer: /api/show carries licences and templates,
// /api/embed vectors.
const maxDocument = 64 << 20
