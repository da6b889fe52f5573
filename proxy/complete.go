package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tenure/cache"
	"tenure/proxy/alarm"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/routing"
)

// keyVersion is part of every cache key: raise it when the same request would
// be translated or routed to another answer than before.
const keyVersion = "1"

// complete is the one pipeline: decode, route, find or make the answer, encode.
func (s *Server) complete(ep endpoint) func(*exchange) error {
	return func(x *exchange) error {
		body, err := x.body(s.cfg.BodyBytes)
		if err != nil {
			return err
		}
		request, err := ep.decode(body, s.cfg.Limits)
		x.decoded()
		if err != nil {
			return err
		}
		x.asked = request.Head()
		if s.cfg.WholeTimeout > 0 && !x.asked.Stream {
			stop := x.limit(&s.clock, s.cfg.WholeTimeout)
			defer stop()
		}
		if err := s.permit(x, x.asked.Model); err != nil {
			return err
		}
		decision, err := s.router.Route(request.question())
		if err != nil {
			return err
		}
		reader, err := s.answer(x, ep, request, decision)
		if err != nil {
			return err
		}
		defer reader.Close()
		if x.asked.Stream {
			return s.stream(x, reader)
		}
		return s.reply(x, reader)
	}
}

// answer returns a reader whose first chunk is there: of the task's model, or
// of the next fallback when that cannot answer: one with more room when the
// prompt does not fit, any when the model would not load or is given a rest.
func (s *Server) answer(x *exchange, ep endpoint, request ask, d routing.Decision) (*cache.Reader, error) {
	control, err := parseCacheControl(x.gin.Request.Header)
	if err != nil {
		return nil, err
	}
	x.decision, x.cause = d, d.Cause
	unheeded := s.declare(x, d.Task)
	room := 0
	var unable struct { // the roomiest model that could not answer, and why
		err  error
		room int
	}
	for _, candidate := range d.Candidates {
		facts := s.backend.facts(candidate.Digest)
		model := s.seat(candidate)
		if model.Context <= room {
			continue // no more room than one that was too small
		}
		if request.leastTokens(model.Context+1) > model.Context {
			s.measured.overflowed(model.Name)
			room, x.cause = model.Context, routing.Context
			continue
		}
		job := job{
			request: request, model: model, class: x.urgency(class(x.asked.ServiceTier, &d)), decision: &d,
			timeouts: d.Parameters.Timeouts.Or(s.cfg.Timeouts),
			params: wire.Params{
				Model: candidate.Name, Context: model.Context, MaxTokens: d.Parameters.MaxTokens, MaxTokensCap: s.cfg.MaxTokens,
				Temperature: d.Parameters.Temperature, Capabilities: facts.Capabilities,
			},
		}
		x.model = candidate.Name
		reader, outcome, age := s.cache.Do(s.cacheRequest(x, ep, &job, candidate.Digest, control), s.fill(&job))
		x.outcome, x.cached = outcome, true
		x.present(request, candidate.Digest, slices.Concat(request.IgnoredFor(job.params), unheeded), age)
		err := s.await(x, reader)
		if err == nil {
			return reader, nil
		}
		reader.Close()
		cause := fallback(err)
		if cause == "" {
			return nil, err
		}
		x.cause = cause
		if cause == routing.Context {
			s.measured.overflowed(model.Name)
			room = model.Context
		} else if model.Context > unable.room {
			unable.err, unable.room = err, model.Context
		}
		x.retract()
	}
	if unable.room > room {
		return nil, unable.err
	}
	return nil, &tooLongError{param: x.asked.Prompt}
}

// seat is a candidate as the scheduler knows it, alone with its weights.
func seat(c routing.Candidate, facts ollama.Facts) residency.Model {
	m := residency.Model{
		Name: c.Name, Size: residency.Bytes(c.Memory * float64(residency.GiB)), Tier: residency.Tier(c.Tier),
		Context: c.Context, Slots: c.Slots, LoadTime: c.Load,
	}
	if facts.Context > 0 {
		// Ollama would clamp it in silence; asking for what it will give keeps
		// the request's and the runner's context equal.
		m.Context = min(m.Context, facts.Context)
	}
	return m
}

// class is how urgent a request is. Nobody waits for a chat application's own
// jobs.
func class(tier string, d *routing.Decision) residency.Class {
	if d.Background() {
		return residency.Batch
	}
	return residency.ClassOf(tier)
}

// job is one answer to be made by one model.
type job struct {
	request  ask
	model    residency.Model
	class    residency.Class
	params   wire.Params
	decision *routing.Decision
	timeouts routing.Timeouts
	ttl      time.Duration // how long the answer may be kept
}

// cacheRequest decides whether an answer may be shared and kept, and names it.
// Cacheable is what is asked at temperature 0, and what the client or the
// catalog explicitly wants kept.
func (s *Server) cacheRequest(x *exchange, ep endpoint, j *job, digest string, control cacheControl) cache.Request {
	temperature, known := j.request.EffectiveTemperature(j.params)
	exact := known && temperature == 0
	j.ttl = j.decision.Parameters.CacheTTL
	if j.ttl == 0 || !exact && !j.decision.Parameters.KeepSampled {
		j.ttl = control.maxAge // kept only for who asks for it
	}
	if control.noStore || !exact && j.ttl == 0 {
		return cache.Request{}
	}
	if digest == "" {
		return cache.Request{} // the model's weights are not known yet
	}
	options := s.buffers.take(0)
	defer s.buffers.give(options)
	options.bytes = j.request.AppendKey(options.bytes, j.params)
	return cache.Request{
		Key:    cache.KeyOf([]byte(keyVersion), []byte(x.tenant), []byte(ep.name), []byte(j.decision.Task), []byte(digest), options.bytes),
		Owner:  cache.Owner{Tenant: x.tenant, Task: j.decision.Task},
		MaxAge: control.maxAge, Refresh: control.noCache, Rank: int(j.class),
	}
}

// admission is how a job came to its seat.
type admission struct {
	waited time.Duration
	cold   bool
}

func (a *admission) seat() string {
	if a.cold {
		return "cold"
	}
	return "warm"
}

// fill makes an answer. When the model's process or Ollama dies before the first
// token, nobody has seen anything of it and it is asked for once more: it has
// no other effect than itself.
func (s *Server) fill(j *job) cache.Fill {
	return func(ctx context.Context, rec *cache.Recording) (time.Duration, error) {
		work, err := j.request.work(j.params)
		if err != nil {
			return 0, err
		}
		ttl, err := s.try(ctx, rec, j, work)
		if err == nil || rec.Begun() || !diedFirst(err) || ctx.Err() != nil {
			return ttl, err
		}
		s.metrics.again.WithLabelValues(j.model.Name).Inc()
		return s.try(ctx, rec, j, work)
	}
}

// try is one try: a seat, the model's stream, the seat given back.
func (s *Server) try(ctx context.Context, rec *cache.Recording, j *job, work work) (time.Duration, error) {
	name := j.model.Name
	if err := s.breakers.refused(name); err != nil {
		return 0, err
	}
	lease, err := s.acquire(ctx, j)
	if err != nil {
		s.breakers.failed(name, err)
		return 0, err
	}
	defer lease.Release()
	done, err := s.breakers.allow(name)
	if err != nil {
		return 0, err
	}
	verdict := errUndone
	defer func() { done(verdict) }()
	rec.Open(&admission{waited: lease.Waited, cold: lease.Cold})
	if j.timeouts.Queue > 0 {
		j.timeouts.Queue = max(j.timeouts.Queue-lease.Waited, time.Second) // what was waited is not waited again
	}

	ctx, cancel := s.clock.Context(ctx, j.timeouts.Total, errTotalTimeout)
	defer cancel()
	if j.params.Model != name {
		ctx = ollama.WithLoaded(ctx, name)
	}
	ctx = ollama.WithLimits(ctx, ollama.Limits{First: j.timeouts.FirstByte, Idle: j.timeouts.Idle})
	meter := meter{began: time.Now()}
	whole, err := work(ctx, s.ollama, rec, &meter)
	verdict = err
	if err != nil {
		s.runnerLost(name, meter.began, err)
		return 0, fmt.Errorf("asking %s: %w", name, err)
	}
	s.measured.served(j, lease, &meter)
	if !whole {
		return 0, nil // whose limit it was, the client's, ours or the context's, is not told
	}
	return j.ttl, nil
}

// acquire waits for a seat, and no longer than the queue's clock allows.
func (s *Server) acquire(ctx context.Context, j *job) (*residency.Lease, error) {
	ctx, cancel := s.clock.Context(ctx, j.timeouts.Queue, errQueueTimeout)
	defer cancel()
	lease, err := s.residency.Acquire(ctx, j.model, j.class)
	if errors.Is(err, errQueueTimeout) {
		return nil, &queueTimeoutError{retry: max(s.residency.EstimateWait(j.model, j.class), time.Second)}
	}
	return lease, err
}

// await returns when the answer's first chunk is there, for who wants it whole
// when its last is, or tells why it will not come. Who waits for a stream for
// long is sent the headers meanwhile.
func (s *Server) await(x *exchange, reader *cache.Reader) error {
	var late chan struct{}
	var patience *alarm.Alarm
	if x.asked.Stream {
		late = make(chan struct{}, 1)
		patience = s.clock.New(func() { late <- struct{}{} })
		patience.Set(time.Now().Add(headersAfter))
		defer patience.Stop()
	}
	for {
		more, ready := reader.Wait(!x.asked.Stream)
		if ready {
			x.opened(reader)
			return reader.Failed()
		}
		select {
		case <-more:
		case <-late:
			x.opened(reader)
			if err := x.keepAlive(s.cfg.StallTimeout); err != nil {
				return err
			}
			patience.Set(time.Now().Add(keepAliveEvery))
		case <-x.ctx.Done():
			x.opened(reader)
			return x.gone()
		}
	}
}

// reply writes the whole answer as one JSON document.
func (s *Server) reply(x *exchange, reader *cache.Reader) error {
	chunks, size := make([][]byte, 0, 8), 512 // with what stands around the text
	if began := reader.Began(); !began.IsZero() {
		x.firstByte = max(began.Sub(x.started), 1)
	}
	for {
		chunk, err := reader.Next(x.ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return x.readerError(err)
		}
		x.count(chunk)
		chunks = append(chunks, chunk)
		size += len(chunk)
	}
	body := x.encoder.AppendBody(make([]byte, 0, size), slices.Values(chunks))
	set(x.gin.Writer.Header(), "Content-Type", "application/json", "Content-Length", strconv.Itoa(len(body)))
	x.gin.Writer.WriteHeader(http.StatusOK)
	return x.send(body, s.cfg.StallTimeout)
}

// readerError tells an answer that nobody waits for from one that failed, be
// it for a prompt after the first one that does not fit.
func (x *exchange) readerError(err error) error {
	if x.ctx.Err() != nil {
		return x.gone()
	}
	if overflow(err) {
		return &tooLongError{param: x.asked.Prompt}
	}
	return err
}

// count takes the tokens from the chunk that has them: the last of a choice.
func (x *exchange) count(chunk []byte) (last bool) {
	if x.firstByte == 0 {
		x.firstByte = max(x.age(), 1) // zero: none came
	}
	prompt, answer, last := wire.FinishCounts(chunk)
	if last {
		x.prompt, x.answer = prompt, answer
	}
	return last
}

// cacheControl is what a client says of its answer's freshness.
type cacheControl struct {
	noCache, noStore bool
	maxAge           time.Duration // zero: not said
}

// parseCacheControl reads the request's wish. A bare no-cache beside an Accept
// of text/event-stream is none: event-stream clients, go-openai among them,
// send it with every stream, and mean the proxies on the way. max-age=0 is how
// they say it.
func parseCacheControl(h http.Header) (c cacheControl, err error) {
	values := h.Values("Cache-Control")
	if len(values) == 1 && strings.EqualFold(values[0], "no-cache") && strings.HasPrefix(h.Get("Accept"), "text/event-stream") {
		return c, nil
	}
	for _, v := range values {
		for directive := range strings.SplitSeq(v, ",") {
			name, arg, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch strings.ToLower(name) {
			case "no-cache":
				c.noCache = true
			case "no-store":
				c.noStore = true
			case "max-age":
				n, err := strconv.ParseUint(strings.Trim(arg, `"`), 10, 31)
				if err != nil {
					return c, problem(err, outcomeCaller, http.StatusBadRequest, "invalid_value", 0,
						"Cache-Control: max-age needs a number of seconds.")
				}
				c.maxAge = time.Duration(n) * time.Second
				c.noCache = c.noCache || n == 0
			}
		}
	}
	return c, nil
}
