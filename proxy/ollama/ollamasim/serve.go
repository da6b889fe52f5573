package ollamasim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
)

func (s *Sim) mux() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.HandlerFunc) { mux.HandleFunc(pattern, h) }
	handle("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Ollama is running") })
	handle("GET /api/version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"version": s.cfg.Version})
	})
	handle("GET /api/tags", s.tags)
	handle("GET /api/ps", s.ps)
	handle("POST /api/show", s.show)
	handle("POST /api/chat", s.chat)
	handle("POST /api/generate", s.generate)
	handle("POST /api/embed", s.embed)
	handle("POST /api/pull", s.pull)
	return mux
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client left: nobody to tell
}

func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	reply(w, status, map[string]string{"error": fmt.Sprintf(format, args...)})
}

// decode reads a request's body, or refuses it.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return false
	}
	if len(bytes.TrimSpace(data)) == 0 {
		refuse(w, http.StatusBadRequest, "missing request body")
		return false
	}
	// Like Ollama, which decodes a stream, whatever follows the value is let be.
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(into); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return false
	}
	return true
}

func (s *Sim) tags(w http.ResponseWriter, _ *http.Request) {
	list := api.ListResponse{Models: []api.ListModelResponse{}}
	for _, m := range s.onDisk() {
		list.Models = append(list.Models, api.ListModelResponse{
			Name: canonical(m.Name), Model: canonical(m.Name), RemoteHost: m.RemoteHost,
			ModifiedAt: modified(), Size: m.Disk, Digest: m.digest(), Details: m.details(),
		})
	}
	reply(w, http.StatusOK, list)
}

func (s *Sim) ps(w http.ResponseWriter, _ *http.Request) {
	list := api.ProcessResponse{Models: []api.ProcessModelResponse{}}
	s.mu.Lock()
	for _, r := range s.loaded {
		list.Models = append(list.Models, api.ProcessModelResponse{
			Name: canonical(r.model.Name), Model: canonical(r.model.Name), Digest: r.model.digest(), Details: r.model.details(),
			Size: int64(r.size), SizeVRAM: int64(r.vram), ContextLength: r.context, ExpiresAt: r.expires,
		})
	}
	s.mu.Unlock()
	slices.SortFunc(list.Models, func(a, b api.ProcessModelResponse) int {
		return cmp.Or(cmp.Compare(b.ExpiresAt.Unix(), a.ExpiresAt.Unix()), cmp.Compare(a.Name, b.Name))
	})
	reply(w, http.StatusOK, list)
}

func (s *Sim) show(w http.ResponseWriter, r *http.Request) {
	var req api.ShowRequest
	if !decode(w, r, &req) {
		return
	}
	name := cmp.Or(req.Model, req.Name) //nolint:staticcheck // Name is the older spelling, still accepted
	if name == "" {
		refuse(w, http.StatusBadRequest, "model is required")
		return
	}
	m := s.lookup(name)
	if m == nil {
		refuse(w, http.StatusNotFound, "model '%s' not found", name)
		return
	}
	reply(w, http.StatusOK, m.show())
}

func (s *Sim) chat(w http.ResponseWriter, r *http.Request) {
	var req api.ChatRequest
	if !decode(w, r, &req) {
		return
	}
	if req.Model == "" {
		refuse(w, http.StatusBadRequest, "model is required")
		return
	}
	j := job{
		model: req.Model, messages: req.Messages, options: req.Options, format: req.Format, tools: req.Tools, think: req.Think,
		keep: req.KeepAlive, stream: req.Stream == nil || *req.Stream, truncate: req.Truncate == nil || *req.Truncate,
		shift: req.Shift == nil || *req.Shift, empty: len(req.Messages) == 0,
	}
	j.encode = func(p piece) any {
		return api.ChatResponse{
			Model: req.Model, CreatedAt: time.Now().UTC(), Done: p.done, DoneReason: p.reason, Metrics: p.metrics,
			Message: api.Message{Role: "assistant", Content: p.text, ToolCalls: p.calls},
		}
	}
	s.serve(w, r, j, "chat")
}

func (s *Sim) generate(w http.ResponseWriter, r *http.Request) {
	var req api.GenerateRequest
	if !decode(w, r, &req) {
		return
	}
	j := job{
		model: req.Model, options: req.Options, format: req.Format, think: req.Think, insert: req.Suffix != "",
		keep: req.KeepAlive, stream: req.Stream == nil || *req.Stream, truncate: req.Truncate == nil || *req.Truncate,
		shift: req.Shift == nil || *req.Shift, empty: req.Prompt == "",
	}
	if req.System != "" {
		j.messages = append(j.messages, api.Message{Role: "system", Content: req.System})
	}
	j.messages = append(j.messages, api.Message{Role: "user", Content: req.Prompt + req.Suffix})
	j.encode = func(p piece) any {
		g := api.GenerateResponse{
			Model: req.Model, CreatedAt: time.Now().UTC(), Done: p.done, DoneReason: p.reason, Metrics: p.metrics, Response: p.text,
		}
		if p.done && !req.Raw && p.reason != "load" && p.reason != "unload" {
			g.Context = []int{1, 2, 3} // token numbers; nobody reads them
		}
		return g
	}
	s.serve(w, r, j, "generate")
}

// job is a chat or a generate.
type job struct {
	model    string
	messages []api.Message
	options  map[string]any
	format   json.RawMessage
	tools    api.Tools
	think    *api.ThinkValue
	keep     *api.Duration
	insert   bool // a suffix is given
	stream   bool
	truncate bool
	shift    bool
	empty    bool // load or unload only
	encode   func(piece) any
}

// piece is one line of a stream.
type piece struct {
	text    string
	calls   []api.ToolCall
	done    bool
	reason  string
	metrics api.Metrics
}

// option reads a whole number among a request's options.
func option(options map[string]any, name string, or int) int {
	if f, ok := options[name].(float64); ok {
		return int(f)
	}
	return or
}

func keepAlive(d *api.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	return &d.Duration
}

// serve answers a chat or a generate, in Ollama's order: unload, refuse, load,
// wait for a slot, read the prompt, write.
func (s *Sim) serve(w http.ResponseWriter, r *http.Request, j job, verb string) {
	began := time.Now()
	m := s.lookup(j.model)
	if m == nil {
		refuse(w, http.StatusNotFound, "model '%s' not found", j.model)
		return
	}
	if j.empty && j.keep != nil && j.keep.Duration == 0 {
		s.mu.Lock()
		if r := s.loaded[m.file()]; r != nil {
			s.expireLocked(r)
		}
		s.unwedgeLocked(m)
		s.mu.Unlock()
		reply(w, http.StatusOK, j.encode(piece{done: true, reason: "unload"}))
		return
	}
	switch {
	case j.think != nil && j.think.Bool() && !m.can(model.CapabilityThinking):
		refuse(w, http.StatusBadRequest, "%q does not support thinking", j.model)
		return
	case !m.can(model.CapabilityCompletion):
		refuse(w, http.StatusBadRequest, "%q does not support %s", j.model, verb)
		return
	case len(j.tools) > 0 && !m.can(model.CapabilityTools):
		refuse(w, http.StatusBadRequest, "%s does not support tools", qualified(j.model))
		return
	case j.insert && !m.can(model.CapabilityInsert):
		refuse(w, http.StatusBadRequest, "%s does not support insert", qualified(j.model))
		return
	}
	s.visit(w, r, visit{model: m, numCtx: option(j.options, "num_ctx", 0), keep: keepAlive(j.keep), empty: j.empty}, func(ctx context.Context, dead <-chan struct{}, run *runner) error {
		loaded := time.Since(began)
		if j.empty {
			reply(w, http.StatusOK, j.encode(piece{done: true, reason: "load"}))
			return nil
		}
		return s.answer(ctx, dead, w, run, j, began, loaded)
	})
}

// qualified is the full name, which some of Ollama's refusals quote.
func qualified(name string) string { return model.ParseName(name).String() }

// visit runs do with the model loaded, and turns what went wrong into what a
// client would see.
func (s *Sim) visit(w http.ResponseWriter, r *http.Request, v visit, do func(ctx context.Context, dead <-chan struct{}, run *runner) error) {
	ctx := r.Context()
	s.mu.Lock()
	dead := s.dead
	s.mu.Unlock()
	count := func(n *int) {
		if !v.empty {
			s.mu.Lock()
			*n++
			s.mu.Unlock()
		}
	}
	count(&s.counts.Started)
	err := func() error {
		if _, ok := s.hit(QueueFull, v.model.Name); ok {
			return errBusy
		}
		if s.diesNow(v) {
			return errRunner
		}
		run, err := s.acquire(ctx, v)
		if err != nil {
			return err
		}
		defer s.release(run)
		return do(ctx, dead, run)
	}()
	switch {
	case err == nil:
		count(&s.counts.Finished)
	case ctx.Err() != nil:
		count(&s.counts.Cancelled)
	default:
		count(&s.counts.Failed)
	}
	var e *refusal
	switch {
	case err == nil || ctx.Err() != nil || errors.Is(err, errTold):
	case errors.Is(err, errBusy):
		refuse(w, http.StatusServiceUnavailable, "%v", err)
	case errors.As(err, &e):
		refuse(w, e.status, "%s", e.text)
	case errors.Is(err, errCrashed), errors.Is(err, errCut):
		panic(http.ErrAbortHandler)
	default:
		refuse(w, http.StatusInternalServerError, "%v", err)
	}
}

// refusal is an answer with a status, before the first byte.
type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string { return e.text }

var (
	errTold = errors.New("the client has been told")
	errCut  = errors.New("connection cut")
)

const tooLong = "the input length exceeds the context length"

// answer writes the text.
func (s *Sim) answer(ctx context.Context, dead <-chan struct{}, w http.ResponseWriter, run *runner, j job, began time.Time, loaded time.Duration) error {
	prompt := promptTokens(j.messages)
	if prompt > run.context {
		if !j.truncate {
			return &refusal{http.StatusBadRequest, tooLong}
		}
		prompt = run.context
	}
	c, err := compose(j, run.model, s.cfg.Length)
	if err != nil {
		return &refusal{http.StatusInternalServerError, err.Error()}
	}
	if room := run.context - prompt; !j.shift && len(c.tokens) > room {
		c.tokens, c.reason = c.tokens[:room], "length"
	}
	select {
	case run.slots <- struct{}{}:
		defer func() {
			if j.stream && ctx.Err() != nil {
				if _, ok := s.hit(LeakSlot, run.model.Name); ok {
					return
				}
			}
			<-run.slots
		}()
	case <-dead:
		return errCrashed
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, ok := s.hit(HangFirst, run.model.Name); ok {
		return hang(ctx, dead)
	}
	reading := run.model.Prompt * time.Duration(prompt)
	if err := s.pause(ctx, dead, reading); err != nil {
		return err
	}
	out := newOutput(w, j)
	strike, struck := s.midFault(run.model.Name, len(c.tokens))
	writing := time.Now()
	for i, token := range c.tokens {
		if struck && i >= strike.After {
			return s.strike(ctx, dead, out, strike)
		}
		if err := s.pause(ctx, dead, run.model.Token); err != nil {
			return err
		}
		if err := out.write(piece{text: token}); err != nil {
			return err
		}
	}
	if len(c.calls) > 0 {
		if err := out.write(piece{calls: c.calls}); err != nil {
			return err
		}
	}
	return out.write(piece{done: true, reason: c.reason, metrics: api.Metrics{
		TotalDuration: time.Since(began), LoadDuration: loaded,
		PromptEvalCount: prompt, PromptEvalDuration: s.scaled(reading),
		EvalCount: len(c.tokens), EvalDuration: time.Since(writing),
	}})
}

func (s *Sim) midFault(name string, tokens int) (Fault, bool) {
	for _, k := range []Kind{HangMid, CutMid, ErrorLine, NoDone, CrashMid} {
		if f, ok := s.hitWithin(k, name, tokens); ok {
			return f, true
		}
	}
	return Fault{}, false
}

func (s *Sim) strike(ctx context.Context, dead <-chan struct{}, out *output, f Fault) error {
	switch f.Kind {
	case HangMid:
		return hang(ctx, dead)
	case CutMid:
		_, _ = io.WriteString(out.w, `{"model":"`) // half a line
		out.flush()
		return errCut
	case ErrorLine:
		return out.fail("an error was encountered while running the model: unexpected EOF")
	case CrashMid:
		s.Crash()
		return errCrashed
	default: // NoDone
		return out.end()
	}
}

func hang(ctx context.Context, dead <-chan struct{}) error {
	select {
	case <-dead:
		return errCrashed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// output writes pieces as they come, or all at once.
type output struct {
	w       http.ResponseWriter
	j       job
	started bool
	text    strings.Builder
	calls   []api.ToolCall
}

func newOutput(w http.ResponseWriter, j job) *output { return &output{w: w, j: j} }

func (o *output) write(p piece) error {
	if !o.j.stream {
		o.text.WriteString(p.text)
		o.calls = append(o.calls, p.calls...)
		if p.done {
			p.text, p.calls = o.text.String(), o.calls
			reply(o.w, http.StatusOK, o.j.encode(p))
		}
		return nil
	}
	return o.line(o.j.encode(p))
}

func (o *output) line(v any) error {
	if !o.started {
		o.started = true
		o.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	if err := json.NewEncoder(o.w).Encode(v); err != nil {
		return err
	}
	o.flush()
	return nil
}

func (o *output) flush() { _ = http.NewResponseController(o.w).Flush() }

// fail ends the answer with an error: a line, if the first byte is out.
func (o *output) fail(text string) error {
	if !o.started {
		return &refusal{http.StatusInternalServerError, text}
	}
	_ = o.line(map[string]string{"error": text})
	return errTold
}

// end ends the answer as if nothing were missing. A plain answer is what has
// been written so far, with "done":false.
func (o *output) end() error {
	if !o.j.stream {
		reply(o.w, http.StatusOK, o.j.encode(piece{text: o.text.String(), calls: o.calls}))
	}
	return errTold
}

func (s *Sim) embed(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var req api.EmbedRequest
	if !decode(w, r, &req) {
		return
	}
	var input []string
	switch in := req.Input.(type) {
	case nil:
	case string:
		if in != "" {
			input = []string{in}
		}
	case []any:
		for _, v := range in {
			text, ok := v.(string)
			if !ok {
				refuse(w, http.StatusBadRequest, "invalid input type")
				return
			}
			input = append(input, text)
		}
	default:
		refuse(w, http.StatusBadRequest, "invalid input type")
		return
	}
	m := s.lookup(req.Model)
	if m == nil {
		refuse(w, http.StatusNotFound, "model %q not found, try pulling it first", req.Model)
		return
	}
	s.visit(w, r, visit{model: m, numCtx: option(req.Options, "num_ctx", 0), keep: keepAlive(req.KeepAlive), empty: len(input) == 0}, func(ctx context.Context, dead <-chan struct{}, run *runner) error {
		resp := api.EmbedResponse{Model: req.Model, Embeddings: [][]float32{}}
		if len(input) == 0 {
			reply(w, http.StatusOK, resp)
			return nil
		}
		if _, ok := s.hit(HangFirst, m.Name); ok {
			return hang(ctx, dead)
		}
		resp.LoadDuration = time.Since(began)
		for _, text := range input {
			n := textTokens(text)
			if n > run.context {
				if req.Truncate != nil && !*req.Truncate {
					return &refusal{http.StatusBadRequest, tooLong}
				}
				n = run.context
			}
			resp.PromptEvalCount += n
			resp.Embeddings = append(resp.Embeddings, vector(m, text, req.Dimensions))
		}
		if err := s.pause(ctx, dead, m.Prompt*time.Duration(resp.PromptEvalCount)); err != nil {
			return err
		}
		resp.TotalDuration = time.Since(began)
		reply(w, http.StatusOK, resp)
		return nil
	})
}
