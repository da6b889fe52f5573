package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"tenure/cache"
	"tenure/proxy/alarm"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/routing"

	"github.com/gin-gonic/gin"
)

// Key is the hash of a key that a client may present. What the key was cannot
// be read back from memory.
type Key struct {
	hash [sha256.Size]byte
	name string // for logs, and to keep tenants' answers apart
}

// HashKey returns the Key of a secret.
func HashKey(secret string) Key {
	h := sha256.Sum256([]byte(secret))
	return Key{hash: h, name: hex.EncodeToString(h[:4])}
}

// find returns the key that secret hashes to. It takes the same time for every
// secret.
func find(keys []Key, secret string) (Key, bool) {
	h := sha256.Sum256([]byte(secret))
	at := -1
	for i := range keys {
		if subtle.ConstantTimeCompare(keys[i].hash[:], h[:]) == 1 {
			at = i
		}
	}
	if at < 0 {
		return Key{}, false
	}
	return keys[at], true
}

// presented is the secret a request carries, in any of the headers that
// clients use.
func presented(h http.Header) string {
	if scheme, token, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	if k := h.Get("Api-Key"); k != "" {
		return k
	}
	return h.Get("X-Api-Key")
}

// exchange is one request and what became of it: all that the log and the
// metrics will tell.
type exchange struct {
	gin     *gin.Context
	ctx     context.Context //nolint:containedctx // the request's, for as long as it is served
	id      string
	route   string
	try     uint64 // how often the client has sent it before, as it says
	tenant  string
	holder  *holder // of the key it came with; nil: none is needed
	leave   func()  // gives back what the key's limits count; nil: nothing
	bodies  *allowance
	held    int // of bodies
	buffers *buffers
	raw     *buffer // the body, until it is decoded; nil: none
	started time.Time

	asked     wire.Head
	decision  routing.Decision
	model     string // the real one
	cause     string
	outcome   cache.Outcome
	cached    bool // outcome is set
	admission *admission
	stamp     wire.Stamp
	encoder   wire.Encoder
	late      []string // headers that came after the headers were sent
	unsent    []byte   // of a stream
	firstByte time.Duration
	prompt    int
	answer    int
	err       *Error
}

func (x *exchange) age() time.Duration { return time.Since(x.started) }

// limit ends the exchange's work at this age.
func (x *exchange) limit(clock *alarm.Clock, age time.Duration) (stop context.CancelFunc) {
	x.ctx, stop = clock.Context(x.ctx, max(age-x.age(), 1), errWholeTimeout)
	return stop
}

// gone is why nobody waits for the answer any more.
func (x *exchange) gone() error {
	if err := context.Cause(x.ctx); errors.Is(err, errWholeTimeout) {
		return err
	}
	return errClientGone
}

// serve wraps a handler with what every request gets: an id, the check of its
// key, one line of log, one count, and an answer even when it panics.
func (s *Server) serve(route string, handle func(*exchange) error) gin.HandlerFunc {
	return func(g *gin.Context) {
		x := &exchange{gin: g, ctx: g.Request.Context(), id: requestID(g.Request.Header), route: route, try: tries(g.Request.Header), bodies: &s.bodies, buffers: &s.buffers, started: time.Now()}
		g.Header("X-Request-Id", x.id)
		if s.cfg.Simulated {
			g.Header("Tenure-Backend", "simulated")
		}
		s.metrics.received.Inc()
		if x.try > 0 {
			s.metrics.retries.Inc()
		}
		defer s.finish(x)
		defer func() {
			x.bodies.give(x.held)
			if x.leave != nil {
				x.leave()
			}
		}()
		defer func() {
			if v := recover(); v != nil {
				s.fail(x, s.panicked(x, v, debug.Stack()))
			}
		}()
		err := s.admit(x)
		if err == nil {
			err = handle(x)
		}
		if p, ok := errors.AsType[*cache.PanicError](err); ok {
			err = s.panicked(x, p.Value, p.Stack)
		}
		if err != nil {
			s.fail(x, err)
		}
	}
}

func (s *Server) panicked(x *exchange, v any, stack []byte) error {
	s.log.Error("request panicked", "request", x.id, "panic", v, "stack", string(stack))
	return problem(errors.New("panic"), outcomeInternal, http.StatusInternalServerError, "internal_error", 0,
		"An internal error occurred. The log tells more under this request's id.")
}

// requestID takes the client's id when it is harmless, else a new one.
func requestID(h http.Header) string {
	id := h.Get("X-Request-Id")
	if len(id) == 0 || len(id) > 128 {
		return newID("req_")
	}
	for _, r := range id {
		if r <= ' ' || r > '~' || r == '"' {
			return newID("req_")
		}
	}
	return id
}

// newID returns a prefix and 32 random digits.
func newID(prefix string) string {
	var id [16]byte
	binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	return string(hex.AppendEncode(append(make([]byte, 0, 40), prefix...), id[:]))
}

// tries is how often OpenAI's clients say that they have sent a request before.
func tries(h http.Header) uint64 {
	n, _ := strconv.ParseUint(h.Get("X-Stainless-Retry-Count"), 10, 8) // what is no number marks nothing
	return n
}

func (s *Server) admit(x *exchange) error {
	if err := smallHead(x.gin.Request); err != nil {
		return err
	}
	if s.draining.Load() {
		return errDraining
	}
	if s.keys.open() {
		if s.cfg.Loopback && fromWebPage(x.gin.Request) && !s.listed(x.gin.Request.Header.Get("Origin")) {
			return problem(nil, outcomeKey, http.StatusForbidden, "host_not_allowed", 0,
				"Without keys only this machine may ask, by a loopback host name and from no foreign web page.")
		}
		return nil
	}
	h, ok := s.keys.find(presented(x.gin.Request.Header))
	if !ok {
		return problem(nil, outcomeKey, http.StatusUnauthorized, "invalid_api_key", 0,
			"The API key is missing or wrong. Send it as: Authorization: Bearer KEY")
	}
	return x.enter(h)
}

// fromWebPage reports a request that a web page from elsewhere made a browser
// on this machine send: its Host or its Origin is not this machine.
func fromWebPage(r *http.Request) bool {
	if !loopbackHost(r.Host) {
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || !loopbackHost(u.Host)
}

// body reads the request's body whole, up to limit bytes. It is good until
// decoded is called.
func (x *exchange) body(limit int64) ([]byte, error) {
	if enc := x.gin.Request.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, problem(nil, outcomeCaller, http.StatusBadRequest, "unsupported_encoding", 0,
			"Compressed bodies are not accepted: send it without Content-Encoding.")
	}
	if x.gin.Request.ContentLength > limit {
		return nil, x.tooLarge(limit)
	}
	// The size that is announced saves growing the buffer; it is not trusted.
	lent := x.buffers.take(int(min(max(x.gin.Request.ContentLength, 4<<10), 64<<10)) + 1)
	body := lent.bytes
	r := http.MaxBytesReader(x.gin.Writer, x.gin.Request.Body, limit)
	for {
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if !x.bodies.take(n) {
			x.gin.Header("Connection", "close")
			return nil, tooMuchHeld()
		}
		x.held += n
		if errors.Is(err, io.EOF) {
			lent.bytes, x.raw = body, lent
			return body, nil
		}
		if err != nil {
			return nil, x.unread(err, limit)
		}
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
	}
}

// decoded gives back the body's buffer: what was decoded holds no part of it.
func (x *exchange) decoded() {
	x.buffers.give(x.raw)
	x.raw = nil
}

// unread tells why a body was not read to its end. What comes next on the
// connection is not known.
func (x *exchange) unread(err error, limit int64) error {
	x.gin.Header("Connection", "close")
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return x.tooLarge(limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return problem(err, outcomeCaller, http.StatusRequestTimeout, "request_timeout", 0, "The request's body did not arrive in time.")
	}
	if x.ctx.Err() != nil {
		return errClientGone
	}
	return problem(err, outcomeCaller, http.StatusBadRequest, "invalid_body", 0, "The request's body could not be read to its end.")
}

func (x *exchange) tooLarge(limit int64) error {
	x.gin.Header("Connection", "close") // what comes is not worth reading
	return problem(nil, outcomeCaller, http.StatusRequestEntityTooLarge, "request_too_large", 0,
		"The request's body is over the limit of "+strconv.FormatInt(limit, 10)+" bytes.")
}

// fail tells the client of an error: as the whole answer, or as the last event
// of a stream that has begun.
func (s *Server) fail(x *exchange, err error) {
	x.err = explain(err)
	if x.err.Refusal.Status == statusClientGone {
		x.gin.Abort() // nobody is there to be told
		return
	}
	if x.gin.Writer.Written() {
		s.failStream(x)
		return
	}
	h := x.gin.Writer.Header()
	h.Set("Content-Type", "application/json")
	if x.err.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(retryAfter(x.err.RetryAfter)))
		h.Set("Retry-After-Ms", strconv.FormatInt(retryAfterMs(x.err.RetryAfter), 10))
	}
	if x.err.Final {
		h.Set("X-Should-Retry", "false")
	}
	if x.err.Refusal.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	x.gin.Writer.WriteHeader(x.err.Refusal.Status)
	_, _ = x.gin.Writer.Write(x.err.append(nil, x.gin.Request)) // the client may have left; there is no other to tell
}

// finish counts the request and logs it: ids, names, numbers, never content.
func (s *Server) finish(x *exchange) {
	outcome, status := outcomeOK, x.gin.Writer.Status()
	if x.err != nil {
		outcome, status = x.err.Outcome, x.err.Refusal.Status
	}
	s.metrics.request(x, outcome)
	level := slog.LevelInfo
	if x.err != nil && x.err.Refusal.Status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	if !s.log.Enabled(x.ctx, level) {
		return
	}
	attrs := append(make([]slog.Attr, 0, 16),
		slog.String("request", x.id), slog.String("route", x.route), slog.Int("status", status),
		slog.String("outcome", outcome), slog.Duration("took", x.age()),
	)
	if x.try > 0 {
		attrs = append(attrs, slog.Uint64("try", x.try))
	}
	if x.holder != nil {
		attrs = append(attrs, slog.String("key", x.holder.Name))
	}
	if x.model != "" {
		attrs = append(attrs, slog.String("task", x.decision.Task), slog.String("cause", x.cause), slog.String("model", x.model))
	}
	if x.cached {
		attrs = append(attrs, slog.String("cache", x.outcome.String()))
	}
	if x.admission != nil {
		attrs = append(attrs, slog.Duration("queued", x.admission.waited), slog.Bool("cold", x.admission.cold))
	}
	if x.prompt+x.answer > 0 {
		attrs = append(attrs, slog.Int("prompt_tokens", x.prompt), slog.Int("completion_tokens", x.answer))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("code", x.err.Refusal.Code))
		if x.err.Err != nil && level == slog.LevelWarn {
			attrs = append(attrs, slog.String("err", logText(x.err.Err)))
		}
	}
	// By the handler: the logger would look up the place of this line first,
	// which nobody is told.
	line := slog.NewRecord(time.Now(), level, "request served", 0)
	line.AddAttrs(attrs...)
	_ = s.log.Handler().Handle(x.ctx, line) // as the logger does
}

// logText is an error as the log may have it. Ollama's own words stay out: a
// tool call it could not read, for one, is quoted in its error.
func logText(err error) string {
	if e, ok := errors.AsType[*ollama.StatusError](err); ok {
		return "ollama answered " + strconv.Itoa(e.Status)
	}
	return err.Error()
}
