//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tenure/proxy"
	"tenure/proxy/bench/spawn"
	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/ollama/ollamatest"
	"tenure/residency"

	"github.com/ollama/ollama/types/model"
	"github.com/sashabaranov/go-openai"
)

// An ollamaBackend is an Ollama that can die and come back at the same address.
type ollamaBackend struct {
	url     *url.URL
	moves   func() []ollamasim.Move
	kill    func()
	restart func()
	// hang makes Ollama fall silent within the answer that begins next (ahead)
	// or that is under way; resume ends it.
	hang   func(ahead bool)
	resume func()
}

// TestE2E runs the program, as a process, before both backends: what passes on
// the simulated Ollama passes on the real one.
func TestE2E(t *testing.T) {
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "tenure")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("building tenure: %v\n%s", err, out)
	}
	for _, backend := range []struct {
		name  string
		start func(*testing.T, string) *ollamaBackend
	}{{"simulated", startSimulated}, {"real", startReal}} {
		t.Run(backend.name, func(t *testing.T) {
			texts, err := ollamatest.Documents(root)
			if err != nil {
				t.Fatal(err)
			}
			r := &rig{bin: bin, texts: texts, back: backend.start(t, root), simulated: backend.name == "simulated"}
			r.start(t)
			// In this order: they share one tenure and its books.
			for _, step := range []struct {
				name string
				run  func(*testing.T)
			}{
				{"preload", r.preload},
				{"tasks", r.tasks},
				{"router", r.router},
				{"cache", r.cached},
				{"other endpoints", r.endpoints},
				{"swaps", r.swaps},
				{"concurrent", r.concurrent},
				{"long prompt", r.longPrompt},
				{"schema", r.schema},
				{"refusals", r.refusals},
				{"cancel mid-stream", r.cancelMidStream},
				{"cancel in the queue", r.cancelInQueue},
				{"killed", r.killed},
				{"books", r.books},
				{"stop", r.stop},
				{"started again", r.startedAgain},
				{"hung", r.hung},
			} {
				if !t.Run(step.name, step.run) {
					t.Fatal("the steps after this one would tell nothing")
				}
			}
		})
	}
}

func startSimulated(t *testing.T, _ string) *ollamaBackend {
	t.Helper()
	back, _ := startSim(t)
	return back
}

func startSim(t *testing.T) (*ollamaBackend, *ollamasim.Sim) {
	t.Helper()
	var mu sync.Mutex
	var moves []ollamasim.Move
	coder := ollamasim.Catalog()[0]
	coder.Name, coder.Capabilities = ollamatest.Coder, append(coder.Capabilities, model.CapabilityInsert)
	models := append(ollamasim.Catalog(), ollamasim.Embedder(), coder)
	sim := ollamasim.New(ollamasim.Config{Speed: 10, Models: models, Moved: func(m ollamasim.Move) {
		mu.Lock()
		defer mu.Unlock()
		moves = append(moves, m)
	}})
	addr := "127.0.0.1:0"
	var srv *http.Server
	var serving sync.WaitGroup
	listen := func() {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().String()
		srv = &http.Server{Handler: sim, ReadHeaderTimeout: time.Minute}
		serving.Go(func() { _ = srv.Serve(l) })
	}
	kill := func() {
		sim.Crash()
		_ = srv.Close()
		serving.Wait()
	}
	listen()
	t.Cleanup(kill)
	return &ollamaBackend{
		url: &url.URL{Scheme: "http", Host: addr},
		moves: func() []ollamasim.Move {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(moves)
		},
		kill: kill, restart: listen,
		hang: func(ahead bool) {
			if ahead {
				sim.Inject(ollamasim.Fault{Kind: ollamasim.HangMid, After: 50, Times: 1})
			}
		},
		resume: sim.Clear,
	}, sim
}

func startReal(t *testing.T, root string) *ollamaBackend {
	t.Helper()
	s, err := ollamatest.Start(t.Context(), root, ollamatest.Config{Log: filepath.Join(t.ArtifactDir(), "ollama.log")})
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { must(s.Stop()) })
	return &ollamaBackend{
		url: s.URL(),
		moves: func() []ollamasim.Move {
			moves, err := s.Moves()
			must(err)
			return moves
		},
		kill:    func() { must(s.Kill()) },
		restart: func() { must(s.Restart(context.Background())) },
		hang: func(ahead bool) {
			if !ahead {
				must(s.Pause())
			}
		},
		resume: func() { must(s.Resume()) },
	}
}

// rig is a tenure process before a backend.
type rig struct {
	bin       string
	texts     map[string]string
	back      *ollamaBackend
	simulated bool

	tenure     *spawn.Process
	log        string // its standard error
	api, admin string // base URLs
	client     *openai.Client

	crash int // moves of the backend before it was killed
}

// start starts tenure, which ends with t at the latest.
func (r *rig) start(t *testing.T, settings ...string) {
	t.Helper()
	r.log = filepath.Join(t.ArtifactDir(), "tenure.log")
	stderr, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close() // the process has its own
	r.tenure, err = spawn.Tenure(r.bin, stderr, append([]string{
		"OLLAMA_HOST=" + r.back.url.Host, "MAX_CONCURRENT_MODELS=3", "TENURE_LOG_LEVEL=debug",
	}, settings...)...)
	if err != nil {
		t.Fatalf("%v, see %s", err, r.log)
	}
	r.api, r.admin = r.tenure.API, r.tenure.Admin
	tenure := r.tenure // of this start
	t.Cleanup(func() {
		if err := tenure.Kill(); err != nil {
			t.Error(err)
		}
		if log, err := os.ReadFile(r.log); t.Failed() && err == nil {
			lines := strings.Split(string(log), "\n")
			t.Logf("tenure's last words:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	cfg := openai.DefaultConfig("unused")
	cfg.BaseURL = r.api + "/v1"
	r.client = openai.NewClientWithConfig(cfg)
}

func (r *rig) state(t *testing.T) proxy.State {
	t.Helper()
	var s proxy.State
	status, body := r.get(t, r.admin+"/admin/state")
	if err := json.Unmarshal([]byte(body), &s); status != http.StatusOK || err != nil {
		t.Fatalf("state: %d %s %v", status, body, err)
	}
	return s
}

// metric is the sum of a metric over its labels.
func (r *rig) metric(t *testing.T, name string) (total float64) {
	t.Helper()
	_, text := r.get(t, r.admin+"/metrics")
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Error(err)
		}
		total += v
	}
	return total
}

func (r *rig) get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, req)
}

func (r *rig) post(t *testing.T, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.api+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return send(t, req)
}

func send(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// eventually waits until ok, and says what was waited for when it never is.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// ready returns the models that have a seat and answer, sorted.
func (r *rig) ready(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range r.state(t).Residency.Residents {
		if m.Phase == residency.Ready {
			names = append(names, m.Model.Name)
		}
	}
	slices.Sort(names)
	return names
}

func request(model, text string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{Model: model, Messages: []openai.ChatCompletionMessage{{Role: "user", Content: text}}}
}

// answer is what came of a chat.
type answer struct {
	text   string
	finish openai.FinishReason
	usage  openai.Usage
	model  string
	header http.Header
}

func (r *rig) chat(t *testing.T, req openai.ChatCompletionRequest) answer {
	t.Helper()
	resp, err := r.client.CreateChatCompletion(t.Context(), req)
	if err != nil {
		t.Fatalf("%s: %v", req.Model, err)
	}
	return answer{
		text: resp.Choices[0].Message.Content, finish: resp.Choices[0].FinishReason, usage: resp.Usage,
		model: resp.Model, header: resp.Header(),
	}
}

func (r *rig) chatStream(t *testing.T, req openai.ChatCompletionRequest) answer {
	t.Helper()
	req.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
	stream, err := r.client.CreateChatCompletionStream(t.Context(), req)
	if err != nil {
		t.Fatalf("%s: %v", req.Model, err)
	}
	defer stream.Close()
	a := answer{header: stream.Header()}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a
		}
		if err != nil {
			t.Fatalf("%s: %v", req.Model, err)
		}
		a.model = chunk.Model
		if chunk.Usage != nil {
			a.usage = *chunk.Usage
		}
		for _, c := range chunk.Choices {
			a.text += c.Delta.Content
			if c.FinishReason != "" {
				a.finish = c.FinishReason
			}
		}
	}
}

// check looks at what every good answer has.
func (r *rig) check(t *testing.T, a answer, asked, task, model string) {
	t.Helper()
	if a.model != asked || a.header.Get("Tenure-Task") != task || a.header.Get("Tenure-Model") != model {
		t.Errorf("%s: answered as %q by task %q, model %q, want %q, %q", asked, a.model, a.header.Get("Tenure-Task"), a.header.Get("Tenure-Model"), task, model)
	}
	if a.text == "" || a.finish != openai.FinishReasonStop && a.finish != openai.FinishReasonLength || a.usage.CompletionTokens == 0 || a.usage.PromptTokens == 0 {
		t.Errorf("%s: %q, finish %q, usage %+v", asked, a.text, a.finish, a.usage)
	}
	if r.simulated && !strings.HasPrefix(a.text, "[simulated] ") {
		t.Errorf("%s: %q does not own up to be simulated", asked, a.text)
	}
}

// T0 and T1 are there without having been asked for.
func (r *rig) preload(t *testing.T) {
	eventually(t, "preload", func() bool { return slices.Equal(r.ready(t), []string{"deepseek-llm:7b", "mistral", "phi3:mini"}) })
	if status, body := r.get(t, r.api+"/readyz"); status != http.StatusOK {
		t.Errorf("readyz: %d %s", status, body)
	}
	if v := r.state(t).Ollama.Version; v != "0.17.4" {
		t.Errorf("version %q", v)
	}
	list, err := r.client.ListModels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range list.Models {
		ids = append(ids, m.ID)
	}
	for _, want := range []string{"recruit-auto", "recruit/resume_parsing", "llama3", "phi3:mini"} {
		if !slices.Contains(ids, want) {
			t.Errorf("%s is not among %v", want, ids)
		}
	}
}

// work is the five tasks, in the order of the pipeline.
func (r *rig) work() []struct{ task, model, text string } {
	return []struct{ task, model, text string }{
		{"resume_parsing", "deepseek-llm:7b", "Extract name, skills, employers and education from this resume.\n\n" + r.texts["cv"]},
		{"bias_detection", "mistral", "Find biased or discriminatory wording in this job description.\n\n" + r.texts["job"]},
		{"matching_logic", "llama3", "How well does this candidate match the persona? Score from 0 to 100.\n\n" + r.texts["persona"] + "\n\n" + r.texts["cv"]},
		{"script_generation", "llama3", "Write a phone script to approach this candidate.\n\n" + r.texts["cv"]},
		{"report_generation", "phi3:mini", "Write a summary report with scores of these interviews.\n\n" + r.texts["interviews"]},
	}
}

// Every task, whole and as a stream, goes to its model.
func (r *rig) tasks(t *testing.T) {
	for _, w := range r.work() {
		name := "recruit/" + w.task
		whole := r.chat(t, request(name, w.text))
		r.check(t, whole, name, w.task, w.model)
		stream := r.chatStream(t, request(name, w.text))
		r.check(t, stream, name, w.task, w.model)
		if w.task == "script_generation" { // its temperature is not 0
			if got := stream.header.Get("Tenure-Cache"); got != "bypass" {
				t.Errorf("%s: cache %q, want bypass", name, got)
			}
			continue
		}
		if got := whole.header.Get("Tenure-Cache"); got != "miss" {
			t.Errorf("%s: cache %q at first, want miss", name, got)
		}
		if got := stream.header.Get("Tenure-Cache"); got != "hit" || stream.text != whole.text || stream.usage != whole.usage {
			t.Errorf("%s: cache %q, %q after %q, want the same again from the cache", name, got, stream.text, whole.text)
		}
	}
}

// recruit-auto finds the task by itself.
func (r *rig) router(t *testing.T) {
	for _, w := range r.work() {
		r.check(t, r.chat(t, request("recruit-auto", w.text)), "recruit-auto", w.task, w.model)
	}
}

// What is asked twice at once is answered once; what must not be kept is not.
func (r *rig) cached(t *testing.T) {
	req := request("recruit/report_generation", "Write a report on the interviews of today.\n\n"+r.texts["interviews"])
	var both sync.WaitGroup
	answers := make([]answer, 2)
	for i := range answers {
		both.Go(func() { answers[i] = r.chat(t, req) })
	}
	both.Wait()
	got := []string{answers[0].header.Get("Tenure-Cache"), answers[1].header.Get("Tenure-Cache")}
	slices.Sort(got)
	// The second may be so late that the first is done.
	if got[1] != "miss" && got[1] != "shared" || got[0] == got[1] || answers[0].text != answers[1].text {
		t.Errorf("cache %v, want one miss and one shared; %q and %q", got, answers[0].text, answers[1].text)
	}
	again, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.api+"/v1/chat/completions", bytes.NewReader(body(t, req)))
	if err != nil {
		t.Fatal(err)
	}
	again.Header.Set("Cache-Control", "no-store")
	resp, err := http.DefaultClient.Do(again)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Tenure-Cache") != "bypass" {
		t.Errorf("no-store: %d, cache %q, want bypass", resp.StatusCode, resp.Header.Get("Tenure-Cache"))
	}
}

func body(t *testing.T, req openai.ChatCompletionRequest) []byte {
	t.Helper()
	data, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Four models in turn on three seats, twice round: real swaps, none of Ollama's
// own making.
func (r *rig) swaps(t *testing.T) {
	before := r.state(t).Residency.Counters
	for round := range 2 {
		for _, model := range []string{"phi3:mini", "deepseek-llm:7b", "mistral", "llama3"} {
			a := r.chat(t, request(model, fmt.Sprintf("Hello %s, this is round %d.", model, round)))
			r.check(t, a, model, "general", model)
		}
	}
	after := r.state(t).Residency.Counters
	if after.Loads < before.Loads+2 || after.Unloads < before.Unloads+2 {
		t.Errorf("%d loads and %d unloads, want two at least", after.Loads-before.Loads, after.Unloads-before.Unloads)
	}
	r.compare(t)
}

// Many clients at once, for all models: each gets its answer.
func (r *rig) concurrent(t *testing.T) {
	var all sync.WaitGroup
	for i := range 24 {
		w := r.work()[i%5]
		all.Go(func() {
			req := request("recruit/"+w.task, w.text+"\n\nCandidate number "+strconv.Itoa(i))
			ask := r.chat
			if i%2 == 1 {
				ask = r.chatStream
			}
			r.check(t, ask(t, req), req.Model, w.task, w.model)
		})
	}
	all.Wait()
	r.compare(t)
}

// A prompt that does not fit the task's model goes to the next one with room;
// one that fits none is refused.
func (r *rig) longPrompt(t *testing.T) {
	fits := request("recruit/resume_parsing", strings.Repeat("Kubernetes, ", 2400))
	a := r.chat(t, fits)
	r.check(t, a, fits.Model, "resume_parsing", "mistral")
	if got := a.header.Get("Tenure-Cause"); got != "context" {
		t.Errorf("cause %q, want context", got)
	}
	var e *openai.APIError
	_, err := r.client.CreateChatCompletion(t.Context(), request("recruit/resume_parsing", strings.Repeat("Kubernetes, ", 20000)))
	if !errors.As(err, &e) || e.HTTPStatusCode != http.StatusBadRequest || e.Code != "context_length_exceeded" {
		t.Errorf("got %v, want 400 context_length_exceeded", err)
	}
}

// schemaOf asks for n long strings: a long answer, that ends.
func schemaOf(n int) *openai.ChatCompletionResponseFormat {
	return &openai.ChatCompletionResponseFormat{Type: "json_schema", JSONSchema: &openai.ChatCompletionResponseFormatJSONSchema{
		Name: "texts", Strict: true,
		Schema: json.RawMessage(fmt.Sprintf(`{"type":"array","minItems":%d,"maxItems":%d,"items":{"type":"string","minLength":60,"maxLength":80}}`, n, n)),
	}}
}

func (r *rig) schema(t *testing.T) {
	req := request("recruit/bias_detection", "Rate this text.\n\n"+r.texts["job"])
	req.ResponseFormat = &openai.ChatCompletionResponseFormat{Type: "json_schema", JSONSchema: &openai.ChatCompletionResponseFormatJSONSchema{
		Name: "rating", Strict: true, Schema: json.RawMessage(`{"type":"object","additionalProperties":false,"required":["biased","words"],
			"properties":{"biased":{"type":"boolean"},"words":{"type":"array","maxItems":2,"items":{"type":"string","maxLength":10}}}}`),
	}}
	var rating struct {
		Biased *bool    `json:"biased"`
		Words  []string `json:"words"`
	}
	if a := r.chat(t, req); json.Unmarshal([]byte(a.text), &rating) != nil || rating.Biased == nil || len(rating.Words) > 2 {
		t.Errorf("%q does not satisfy the schema", a.text)
	}
}

// Mistakes are told in OpenAI's shape, with all four keys.
func (r *rig) refusals(t *testing.T) {
	for _, tt := range []struct {
		body   string
		status int
		code   string
	}{
		{`{"model":`, 400, ""},
		{`{"model":"phi3:mini","messages":[]}`, 400, ""},
		{`{"model":"phi3:mini","messages":7}`, 400, ""},
		{`{"model":"nobody","messages":[{"role":"user","content":"Hello"}]}`, 404, "model_not_found"},
		{`{"model":"recruit/nothing","messages":[{"role":"user","content":"Hello"}]}`, 404, "model_not_found"},
	} {
		status, body := r.post(t, tt.body)
		var e struct {
			Error map[string]any `json:"error"`
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != tt.status {
			t.Errorf("%s: %d %s, want %d", tt.body, status, body, tt.status)
			continue
		}
		if got := slices.Sorted(maps.Keys(e.Error)); !slices.Equal(got, []string{"code", "message", "param", "type"}) {
			t.Errorf("%s: the error has %v", tt.body, got)
		}
		if tt.code != "" && e.Error["code"] != tt.code {
			t.Errorf("%s: code %v, want %s", tt.body, e.Error["code"], tt.code)
		}
	}
}

// long starts a long answer of phi3:mini and returns once it has begun.
func (r *rig) long(t *testing.T, ctx context.Context, text string) *openai.ChatCompletionStream { //nolint:revive // t comes first in a test's helper
	t.Helper()
	req := request("phi3:mini", text)
	req.ResponseFormat, req.MaxCompletionTokens = schemaOf(60), 3000
	stream, err := r.client.CreateChatCompletionStream(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("a long answer began with: %v", err)
		}
	}
	return stream
}

func (r *rig) cancelMidStream(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	stream := r.long(t, ctx, "Write, and I shall leave.")
	defer stream.Close()
	if n := r.state(t).Residency.Leases; n != 1 {
		t.Errorf("%d seats taken during a stream, want 1", n)
	}
	leave()
	eventually(t, "the seat given back", func() bool { return r.state(t).Residency.Leases == 0 })
	r.check(t, r.chat(t, request("phi3:mini", "Are you free?")), "phi3:mini", "general", "phi3:mini")
}

func (r *rig) cancelInQueue(t *testing.T) {
	before := r.state(t).Residency.Counters.Cancelled
	first := r.long(t, t.Context(), "Write at length.")
	defer first.Close()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	gone := make(chan error, 1)
	go func() {
		_, err := r.client.CreateChatCompletion(ctx, request("phi3:mini", "I wait in the queue."))
		gone <- err
	}()
	waiting := func() (n int) {
		for _, line := range r.state(t).Residency.Waiting {
			n += line.Count
		}
		return n
	}
	eventually(t, "one in the queue", func() bool { return waiting() == 1 })
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	eventually(t, "an empty queue", func() bool { return waiting() == 0 })
	if n := r.state(t).Residency.Counters.Cancelled; n != before+1 {
		t.Errorf("%d left the queue, want one", n-before)
	}
	for {
		_, err := first.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the answer under way: %v", err)
		}
	}
}

// Ollama dies in the middle of an answer: an error event and no [DONE], nothing
// kept, a clear status while it is away, and service again by itself.
func (r *rig) killed(t *testing.T) {
	req := request("phi3:mini", "Write until you die.")
	req.ResponseFormat, req.MaxCompletionTokens, req.Stream = schemaOf(60), 3000, true
	// go-openai leaves a temperature of 0 out.
	cacheable := bytes.Replace(body(t, req), []byte(`{`), []byte(`{"temperature":0,`), 1)
	ask := func() *http.Response {
		t.Helper()
		httpReq, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.api+"/v1/chat/completions", bytes.NewReader(cacheable))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(httpReq)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Tenure-Cache") != "miss" {
			t.Fatalf("status %d, cache %q, want a fresh answer", resp.StatusCode, resp.Header.Get("Tenure-Cache"))
		}
		return resp
	}
	resp := ask()
	defer resp.Body.Close()
	var tail []string
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() != "" {
			tail = append(tail, lines.Text())
		}
		if len(tail) == 5 {
			r.back.kill()
			r.crash = len(r.moves())
		}
	}
	last := tail[len(tail)-1]
	if !strings.Contains(last, `"error"`) || !strings.Contains(last, "upstream_aborted") || slices.Contains(tail, "data: [DONE]") {
		t.Errorf("the stream ended in %q", last)
	}

	var e *openai.APIError
	_, err := r.client.CreateChatCompletion(t.Context(), request("phi3:mini", "Are you there?"))
	if !errors.As(err, &e) || e.HTTPStatusCode != http.StatusServiceUnavailable || e.Code != "upstream_unreachable" {
		t.Errorf("without Ollama: %v, want 503 upstream_unreachable", err)
	}
	eventually(t, "not ready", func() bool {
		status, _ := r.get(t, r.api+"/readyz")
		return status == http.StatusServiceUnavailable
	})
	if status, _ := r.get(t, r.api+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d, want 200: tenure itself is well", status)
	}

	r.back.restart()
	eventually(t, "ready again", func() bool {
		status, _ := r.get(t, r.api+"/readyz")
		return status == http.StatusOK
	})
	eventually(t, "T0 and T1 loaded again", func() bool {
		return slices.Equal(r.ready(t), []string{"deepseek-llm:7b", "mistral", "phi3:mini"})
	})
	r.check(t, r.chat(t, request("phi3:mini", "Are you there again?")), "phi3:mini", "general", "phi3:mini")
	again := ask()
	defer again.Body.Close()
	whole, err := io.ReadAll(again.Body)
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(whole)), "data: [DONE]") {
		t.Errorf("asked again: %v, want a whole answer", err)
	}
	if got := r.moves()[r.crash:]; len(got) != 3 {
		t.Errorf("since the crash %v, want three loads", got)
	}
}

func (r *rig) moves() []ollamasim.Move { return r.back.moves() }

// count sums up what Ollama did.
func (r *rig) count() map[ollamasim.What]int {
	n := make(map[ollamasim.What]int)
	for _, m := range r.moves() {
		n[m.What]++
	}
	return n
}

// compare holds what tenure ordered against what Ollama did.
func (r *rig) compare(t *testing.T) {
	t.Helper()
	var loads, unloads, revived int
	var did map[ollamasim.What]int
	agree := func() bool {
		st := r.state(t).Residency.Counters
		// A model whose slot Ollama lost is loaded anew beside the books.
		revived = int(r.metric(t, "tenure_model_revivals_total"))
		loads, unloads, did = int(st.Loads)+revived, int(st.Unloads)+revived, r.count()
		return did[ollamasim.Load] == loads && did[ollamasim.Unload] == unloads
	}
	// A move under way is in one of the books first.
	for range 100 {
		if agree() {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("loads: tenure ordered %d, Ollama did %d; unloads: tenure ordered %d, Ollama did %d; Ollama evicted %d by itself and lost %d slots",
		loads, did[ollamasim.Load], unloads, did[ollamasim.Unload], did[ollamasim.Evict], revived)
	if !agree() {
		t.Errorf("the books differ: %+v, Ollama's are %v", r.state(t).Residency.Counters, r.moves())
	}
	if did[ollamasim.Evict] != 0 {
		t.Errorf("Ollama evicted by itself: %v", r.moves())
	}
}

// At the end all books agree, T0 never left, and no text is in the log.
func (r *rig) books(t *testing.T) {
	eventually(t, "rest", func() bool { return r.state(t).Residency.Leases == 0 })
	r.compare(t)
	revived := r.metric(t, "tenure_model_revivals_total") // the only reason to unload a T0 model
	if moves := r.moves(); revived == 0 && slices.Contains(moves, ollamasim.Move{What: ollamasim.Unload, Model: "phi3:mini"}) {
		t.Errorf("T0 was unloaded: %v", moves)
	}
	received, ended := r.metric(t, "tenure_requests_received_total"), r.metric(t, "tenure_requests_total")
	if received == 0 || received != ended {
		t.Errorf("%v requests received, %v ended", received, ended)
	}
	if loads := r.metric(t, "tenure_model_loads_total") + revived; int(loads) != r.count()[ollamasim.Load] {
		t.Errorf("/metrics tells of %v loads, Ollama did %d", loads, r.count()[ollamasim.Load])
	}
	if n := r.state(t).Residency.Counters.Unsound; n != 0 {
		t.Errorf("the policy made %d unsound plans", n)
	}
	log, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "residency decided") {
		t.Error("the log tells nothing of residency")
	}
	for _, private := range []string{"Lindqvist", "Nordpay", "rockstar", "Candidate B", "[simulated]"} {
		if strings.Contains(string(log), private) {
			t.Errorf("%q of a request is in the log", private)
		}
	}
}

// A new tenure finds what the last one left: it keeps what it would load
// anyway and clears away the rest.
func (r *rig) startedAgain(t *testing.T) {
	loaded := make(map[string]bool)
	for _, m := range r.moves()[r.crash:] {
		loaded[m.Model] = m.What == ollamasim.Load
	}
	if !loaded["llama3:latest"] {
		t.Fatalf("llama3 was to be left behind: %v", r.moves())
	}
	before := len(r.moves())
	r.start(t)
	eventually(t, "preload", func() bool { return slices.Equal(r.ready(t), []string{"deepseek-llm:7b", "mistral", "phi3:mini"}) })
	for _, m := range r.moves()[before:] {
		if m.What == ollamasim.Evict || m.What == ollamasim.Load && loaded[m.Model] || m.What == ollamasim.Unload && m.Model != "llama3:latest" {
			t.Errorf("%s of %s, want llama3 unloaded and the missing one loaded: %v", m.What, m.Model, r.moves()[before:])
		}
	}
	if foreign := r.state(t).Residency.Foreign; len(foreign) != 0 {
		t.Errorf("foreign models: %v", foreign)
	}
}

// An Ollama that falls silent within an answer, its connections open: the
// client is told, the seat comes back, and all is well once it goes on.
func (r *rig) hung(t *testing.T) {
	r.start(t, "TENURE_IDLE_TIMEOUT=2s")
	eventually(t, "preload", func() bool { return slices.Contains(r.ready(t), "phi3:mini") })
	r.back.hang(true)
	stream := r.long(t, t.Context(), "Write until you hang.")
	defer stream.Close()
	r.back.hang(false)
	began := time.Now()
	var err error
	for err == nil {
		_, err = stream.Recv()
	}
	var e *openai.APIError
	if !errors.As(err, &e) || e.Code != "idle_timeout" || time.Since(began) > 10*time.Second {
		t.Errorf("after %v: %v, want idle_timeout after 2 s", time.Since(began), err)
	}
	eventually(t, "the seat given back", func() bool { return r.state(t).Residency.Leases == 0 })
	r.back.resume()
	r.check(t, r.chat(t, request("phi3:mini", "Are you awake?")), "phi3:mini", "general", "phi3:mini")
}

// Told to stop, tenure finishes what streams and exits in peace.
func (r *rig) stop(t *testing.T) {
	r.chat(t, request("llama3", "You will be left behind."))
	stream := r.long(t, t.Context(), "Write while I stop you.")
	defer stream.Close()
	if err := r.tenure.Terminate(); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the answer under way: %v", err)
		}
	}
	select {
	case <-r.tenure.Exited():
		if err := r.tenure.Err(); err != nil {
			t.Errorf("exit: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still running 20 s after its last answer")
	}
}
