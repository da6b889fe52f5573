package ollamatest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
	"go.uber.org/goleak"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// target is a fresh Ollama, simulated or real, that nobody else uses.
type target struct {
	url   *url.URL
	moves func() (loads, unloads, evictions int)
	kill  func() // the server dies and comes back
}

// TestSimulated holds the stand-in to what TestE2EConformance holds the server to.
func TestSimulated(t *testing.T) {
	conform(t, func(t *testing.T) target {
		t.Helper()
		coder := ollamasim.Catalog()[0]
		coder.Name, coder.Capabilities = Coder, []model.Capability{model.CapabilityCompletion, model.CapabilityInsert}
		sim := ollamasim.New(ollamasim.Config{NoGPU: true, Speed: 100, Models: append(ollamasim.Catalog(), ollamasim.Embedder(), coder)})
		srv := httptest.NewServer(sim)
		t.Cleanup(srv.Close)
		base, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		return target{
			url: base,
			moves: func() (int, int, int) {
				n := sim.Counts()
				return n.Loads, n.Unloads, n.Evictions + n.Reloads
			},
			kill: sim.Crash,
		}
	})
}

// An exchange is one request and what is promised of the answer.
type exchange struct {
	name   string
	method string // "" means POST
	path   string
	body   string
	status int    // 0 means 200
	text   string // "error" of the answer; without one, a part of the body
	first  string // sorted keys of the first line
	last   string // sorted keys of the last line; "" means that there is one line
	reason string // "done_reason" of the last line
}

const (
	piece   = "created_at done message model"
	figures = " prompt_eval_count prompt_eval_duration"
	message = "created_at done done_reason eval_count eval_duration load_duration message model" + figures + " total_duration"
	result  = "created_at done done_reason eval_count eval_duration load_duration model" + figures + " response total_duration"
	whole   = "context created_at done done_reason eval_count eval_duration load_duration model" + figures + " response total_duration"
	moved   = "created_at done done_reason model response"
	greets  = `"messages":[{"role":"user","content":"Hello, who are you?"}]`
	long    = `{"type":"array","minItems":40,"maxItems":40,"items":{"type":"string","minLength":60,"maxLength":80}}`
)

func overlong() string { return strings.Repeat("Kubernetes, ", 3000) }

func exchanges() []exchange {
	return []exchange{
		{name: "liveness", method: "GET", path: "/", text: "Ollama is running"},
		{name: "liveness, HEAD", method: "HEAD", path: "/"},
		{name: "unknown path", method: "GET", path: "/nowhere", status: 404, text: "404 page not found"},
		{name: "wrong verb", method: "GET", path: "/api/chat", status: 405},
		{name: "version", method: "GET", path: "/api/version", text: "0.17.4", first: "version"},
		{name: "tags", method: "GET", path: "/api/tags", text: `"mistral:latest"`, first: "models"},
		{name: "nothing loaded", method: "GET", path: "/api/ps", text: `{"models":[]}`},
		{name: "show nobody", path: "/api/show", body: `{"model":"nobody"}`, status: 404, text: "model 'nobody' not found"},
		{name: "show nothing", path: "/api/show", body: `{}`, status: 400, text: "model is required"},
		{name: "show", path: "/api/show", body: `{"model":"phi3:mini"}`, text: `"capabilities":["completion"]`},
		{name: "show a tool user", path: "/api/show", body: `{"model":"MISTRAL"}`, text: `"capabilities":["completion","tools"]`},

		{name: "chat without body", path: "/api/chat", status: 400, text: "missing request body", first: "error"},
		{name: "chat with half a body", path: "/api/chat", body: `{"model":`, status: 400, text: "unexpected EOF"},
		{name: "chat with a wrong type", path: "/api/chat", body: `{"model":1}`, status: 400, text: "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"},
		{name: "chat without model", path: "/api/chat", body: `{` + greets + `}`, status: 400, text: "model is required"},
		{name: "chat with nobody", path: "/api/chat", body: `{"model":"nobody",` + greets + `}`, status: 404, text: "model 'nobody' not found"},
		{name: "generate with nobody", path: "/api/generate", body: `{"model":"nobody","prompt":"x"}`, status: 404, text: "model 'nobody' not found"},
		{name: "embed with nobody", path: "/api/embed", body: `{"model":"nobody","input":"x"}`, status: 404, text: `model "nobody" not found, try pulling it first`},
		{name: "unload nobody", path: "/api/generate", body: `{"model":"nobody","keep_alive":0}`, status: 404, text: "model 'nobody' not found"},
		{name: "unload what is not loaded", path: "/api/generate", body: `{"model":"phi3:mini","keep_alive":0}`, first: moved, reason: "unload"},
		{name: "a keep_alive that is none", path: "/api/generate", body: `{"model":"phi3:mini","keep_alive":"-1"}`, status: 400, text: `time: missing unit in duration "-1"`},

		{name: "load", path: "/api/generate", body: `{"model":"phi3:mini","keep_alive":-1}`, first: moved, reason: "load"},
		{name: "load by chat", path: "/api/chat", body: `{"model":"phi3:mini"}`, first: "created_at done done_reason message model", reason: "load"},
		{name: "load by embed", path: "/api/embed", body: `{"model":"phi3:mini"}`, first: "embeddings model", text: `"embeddings":[]`},
		{name: "loaded", method: "GET", path: "/api/ps", text: `"name":"phi3:mini"`},
		{name: "chat at once", path: "/api/chat", body: `{"model":"phi3:mini","stream":false,` + greets + `}`, first: message, reason: "*"},
		{name: "chat", path: "/api/chat", body: `{"model":"phi3:mini",` + greets + `}`, first: piece, last: message, reason: "*"},
		{name: "generate at once", path: "/api/generate", body: `{"model":"phi3:mini","stream":false,"prompt":"Hello"}`, first: whole, reason: "*"},
		{name: "generate raw", path: "/api/generate", body: `{"model":"phi3:mini","stream":false,"raw":true,"prompt":"Hello"}`, first: result, reason: "*"},
		{name: "generate", path: "/api/generate", body: `{"model":"phi3:mini","prompt":"Hello"}`, first: "created_at done model response", last: whole, reason: "*"},
		{name: "length", path: "/api/chat", body: `{"model":"phi3:mini","options":{"num_predict":3},` + greets + `}`, first: piece, last: message, text: `"eval_count":3`, reason: "length"},
		{name: "a name in capitals", path: "/api/chat", body: `{"model":"Library/PHI3:Mini","stream":false,` + greets + `}`, text: `"model":"Library/PHI3:Mini"`, first: message, reason: "*"},

		{name: "too long", path: "/api/chat", body: `{"model":"phi3:mini","truncate":false,"messages":[{"role":"user","content":"` + overlong() + `"}]}`, status: 400, text: "the input length exceeds the context length"},
		{name: "too long at once", path: "/api/generate", body: `{"model":"phi3:mini","truncate":false,"stream":false,"prompt":"` + overlong() + `"}`, status: 400, text: "the input length exceeds the context length"},
		{name: "too long to embed", path: "/api/embed", body: `{"model":"phi3:mini","truncate":false,"input":"` + overlong() + `"}`, status: 400, text: "the input length exceeds the context length"},
		{name: "thinking", path: "/api/chat", body: `{"model":"phi3:mini","think":true,` + greets + `}`, status: 400, text: `"phi3:mini" does not support thinking`},
		{name: "tools", path: "/api/chat", body: `{"model":"phi3:mini","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}],` + greets + `}`, status: 400, text: "registry.ollama.ai/library/phi3:mini does not support tools"},
		{name: "suffix", path: "/api/generate", body: `{"model":"phi3:mini","prompt":"a","suffix":"b"}`, status: 400, text: "registry.ollama.ai/library/phi3:mini does not support insert"},
		{name: "show an embedder", path: "/api/show", body: `{"model":"nomic-embed-text"}`, text: `"capabilities":["embedding"]`},
		{name: "show a coder", path: "/api/show", body: `{"model":"coder"}`, text: `"capabilities":["completion","insert"]`},
		{name: "suffix where it can", path: "/api/generate", body: `{"model":"coder","stream":false,"think":false,"prompt":"a","suffix":"b"}`, first: whole, reason: "*"},
		{name: "embed with an embedder", path: "/api/embed", body: `{"model":"nomic-embed-text","truncate":false,"input":["a","b"],"options":{"num_ctx":2048}}`, first: "embeddings load_duration model prompt_eval_count total_duration"},
		{name: "too long for an embedder", path: "/api/embed", body: `{"model":"nomic-embed-text","truncate":false,"options":{"num_ctx":2048},"input":"` + overlong() + `"}`, status: 400, text: "the input length exceeds the context length"},
		{name: "chat with an embedder", path: "/api/chat", body: `{"model":"nomic-embed-text",` + greets + `}`, status: 400, text: `"nomic-embed-text" does not support chat`},
		{name: "unload the embedder", path: "/api/generate", body: `{"model":"nomic-embed-text","keep_alive":0}`, first: moved, reason: "unload"},
		{name: "unload the coder", path: "/api/generate", body: `{"model":"coder","keep_alive":0}`, first: moved, reason: "unload"},
		{name: "strange format", path: "/api/chat", body: `{"model":"phi3:mini","format":"xml",` + greets + `}`, status: 500, text: `invalid format: "\"xml\""; expected "json" or a valid JSON Schema object`},
		{name: "wrong schema", path: "/api/chat", body: `{"model":"phi3:mini","format":{"type":"wish"},` + greets + `}`, status: 500, text: "invalid JSON schema in format"},
		{name: "schema", path: "/api/chat", body: `{"model":"phi3:mini","stream":false,"format":{"type":"object","required":["fit"],"properties":{"fit":{"enum":["yes"]}}},` + greets + `}`, text: `yes`, first: message, reason: "stop"},
		{name: "stop string", path: "/api/chat", body: `{"model":"phi3:mini","stream":false,"format":{"enum":["alpha beta"]},"options":{"stop":["beta"]},` + greets + `}`, text: `"content":"\"alpha "`, first: message, reason: "stop"},
		{name: "any JSON", path: "/api/chat", body: `{"model":"phi3:mini","stream":false,"format":"json","options":{"num_predict":50},` + greets + `}`, first: message, reason: "*"},
		{name: "tools nobody asked for", path: "/api/generate", body: `{"model":"phi3:mini","tools":[{"type":"function","function":{"name":"f"}}],"prompt":"Hello","stream":false}`, first: whole, reason: "*"},
		{name: "embed", path: "/api/embed", body: `{"model":"phi3:mini","input":["a","b"],"dimensions":3}`, first: "embeddings load_duration model prompt_eval_count total_duration"},
		{name: "embed a number", path: "/api/embed", body: `{"model":"phi3:mini","input":1}`, status: 400, text: "invalid input type"},
		{name: "embed numbers", path: "/api/embed", body: `{"model":"phi3:mini","input":[1]}`, status: 400, text: "invalid input type"},
	}
}

// conform is the table of everything that tenure relies on.
func conform(t *testing.T, start func(*testing.T) target) {
	t.Helper()
	t.Run("exchanges", func(t *testing.T) {
		at := start(t)
		for _, x := range exchanges() {
			t.Run(x.name, func(t *testing.T) { check(t, at, x) })
		}
		if loads, unloads, evictions := at.moves(); loads != 3 || unloads != 2 || evictions != 0 {
			t.Errorf("%d loads, %d unloads, %d evictions, want three loads and two unloads", loads, unloads, evictions)
		}
	})
	t.Run("residency", func(t *testing.T) { moveAll(t, start(t)) })
	t.Run("own eviction", func(t *testing.T) { evict(t, start(t)) })
	t.Run("reload", func(t *testing.T) { reload(t, start(t)) })
	t.Run("shift", func(t *testing.T) { shift(t, start(t)) })
	t.Run("cancel", func(t *testing.T) { cancel(t, start(t)) })
	t.Run("unload while busy", func(t *testing.T) { unloadBusy(t, start(t)) })
	t.Run("kill", func(t *testing.T) { kill(t, start(t)) })
}

func check(t *testing.T, at target, x exchange) {
	t.Helper()
	method := x.method
	if method == "" {
		method = http.MethodPost
	}
	want := x.status
	if want == 0 {
		want = http.StatusOK
	}
	req, err := http.NewRequestWithContext(t.Context(), method, at.url.JoinPath(x.path).String(), strings.NewReader(x.body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.TrimSpace(string(data))
	shown := body[:min(len(body), 400)]
	if resp.StatusCode != want {
		t.Fatalf("status %d, want %d: %s", resp.StatusCode, want, shown)
	}
	var lines []map[string]any
	scan := bufio.NewScanner(strings.NewReader(body))
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var line map[string]any
		if json.Unmarshal(scan.Bytes(), &line) == nil {
			lines = append(lines, line)
		}
	}
	if want >= 400 && len(lines) == 1 {
		if lines[0]["error"] != x.text {
			t.Errorf("error %q, want %q", lines[0]["error"], x.text)
		}
	} else if !strings.Contains(body, x.text) {
		t.Errorf("no %q in %s", x.text, shown)
	}
	if x.first == "" {
		return
	}
	if len(lines) == 0 || x.last == "" && len(lines) != 1 || x.last != "" && len(lines) < 2 {
		t.Fatalf("%d lines: %s", len(lines), shown)
	}
	last := lines[len(lines)-1]
	if got := keys(lines[0]); got != x.first {
		t.Errorf("first line has %q, want %q", got, x.first)
	}
	if got := keys(last); x.last != "" && got != x.last {
		t.Errorf("last line has %q, want %q", got, x.last)
	}
	switch {
	case x.reason == "":
	case last["done"] != true:
		t.Errorf("the last line is not done: %v", last)
	case x.reason == "*" && last["done_reason"] != "stop" && last["done_reason"] != "length", x.reason != "*" && last["done_reason"] != x.reason:
		t.Errorf("done_reason %v, want %s", last["done_reason"], x.reason)
	}
}

func keys(m map[string]any) string {
	var k []string
	for key := range m {
		k = append(k, key)
	}
	slices.Sort(k)
	return strings.Join(k, " ")
}

func client(t *testing.T, at target) *ollama.Client {
	t.Helper()
	c := ollama.New(at.url, ollama.Config{})
	t.Cleanup(c.Close)
	return c
}

func spec(name string, context int) residency.Model {
	return residency.Model{Name: name, Context: context, Slots: 1}
}

// catalogSpecs are the four models as tenure loads them.
func catalogSpecs() []residency.Model {
	return []residency.Model{spec("phi3:mini", 4096), spec("deepseek-llm:7b", 4096), spec("mistral", 8192), spec("llama3", 8192)}
}

func moveAll(t *testing.T, at target) {
	t.Helper()
	c := client(t, at)
	for i, m := range catalogSpecs() {
		if i == 3 {
			if err := c.Unload(t.Context(), spec("mistral", 8192)); err != nil {
				t.Fatal(err)
			}
		}
		size, err := c.Load(t.Context(), m)
		if err != nil || size == 0 {
			t.Fatalf("loading %s: %v, %v", m.Name, size, err)
		}
		f, err := c.Show(t.Context(), m.Name)
		if err != nil || f.Architecture == "" || f.Context < 4096 || f.KVPerToken() == 0 || !strings.HasPrefix(f.Blob, "sha256-") || !f.Can("completion") {
			t.Errorf("%s: %+v, %v", m.Name, f, err)
		}
		running, err := c.Running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(running, func(r ollama.Resident) bool { return r.Name == ollama.Canonical(m.Name) })
		if i < 0 {
			t.Fatalf("%s is not among %+v", m.Name, running)
		}
		r := running[i]
		if r.Context != m.Context || r.Size != size || r.VRAM != 0 || len(r.Digest) != 64 || r.ExpiresAt.Before(time.Now().AddDate(100, 0, 0)) {
			t.Errorf("resident %+v, want context %d, size %v, no end", r, m.Context, size)
		}
		// The same context again does not move it.
		err = c.Chat(t.Context(), &api.ChatRequest{
			Model: m.Name, Messages: []api.Message{{Role: "user", Content: "Hello"}}, Options: map[string]any{"num_ctx": m.Context},
		}, func(*api.ChatResponse) error { return nil })
		if err != nil {
			t.Errorf("chat with %s: %v", m.Name, err)
		}
	}
	installed, err := c.Installed(t.Context())
	if err != nil || len(installed) != 6 {
		t.Errorf("installed %+v, %v", installed, err)
	}
	if loads, unloads, evictions := at.moves(); loads != 4 || unloads != 1 || evictions != 0 {
		t.Errorf("%d loads, %d unloads, %d evictions, want 4, 1, 0", loads, unloads, evictions)
	}
}

// Without Unload, the fourth model on three seats costs another its seat.
func evict(t *testing.T, at target) {
	t.Helper()
	c := client(t, at)
	for _, m := range catalogSpecs() {
		if _, err := c.Load(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if running, err := c.Running(t.Context()); err != nil || len(running) != 3 {
		t.Errorf("running %+v, %v, want three", running, err)
	}
	if loads, unloads, evictions := at.moves(); loads != 4 || unloads != 1 || evictions != 1 {
		t.Errorf("%d loads, %d unloads, %d evictions, want 4, 1, 1", loads, unloads, evictions)
	}
}

// Another num_ctx reloads; more than the model was trained for is clamped, and
// compared as it was asked.
func reload(t *testing.T, at target) {
	t.Helper()
	c := client(t, at)
	contexts := func(asked, want int) {
		t.Helper()
		if _, err := c.Load(t.Context(), spec("deepseek-llm:7b", asked)); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Running(t.Context()); err != nil || len(r) != 1 || r[0].Context != want {
			t.Errorf("running %+v, %v, want context %d", r, err, want)
		}
	}
	contexts(2048, 2048)
	contexts(8192, 4096)
	contexts(8192, 4096)
	if loads, unloads, evictions := at.moves(); loads != 2 || unloads != 1 || evictions != 1 {
		t.Errorf("%d loads, %d unloads, %d reloads, want 2, 1, 1", loads, unloads, evictions)
	}
	contexts(4096, 4096)
	if loads, _, _ := at.moves(); loads != 3 {
		t.Errorf("%d loads, want 3: the clamped figure is another one", loads)
	}
}

// A full context ends the answer; the window does not slide.
func shift(t *testing.T, at target) {
	t.Helper()
	c := client(t, at)
	var last api.ChatResponse
	err := c.Chat(t.Context(), &api.ChatRequest{
		Model: "phi3:mini", Messages: []api.Message{{Role: "user", Content: "Hello"}}, Format: json.RawMessage(long),
		Options: map[string]any{"num_ctx": 256, "num_predict": 2000},
	}, func(r *api.ChatResponse) error { last = *r; return nil })
	// The real server's last token may or may not count.
	if err != nil || last.DoneReason != "length" || last.PromptEvalCount+last.EvalCount < 255 || last.PromptEvalCount+last.EvalCount > 257 {
		t.Errorf("%+v, %v, want the end at 256 tokens", last, err)
	}
}

// longChat takes a while, on the real server as well.
func longChat() *api.ChatRequest {
	return &api.ChatRequest{
		Model: "phi3:mini", Messages: []api.Message{{Role: "user", Content: "Hello"}}, Format: json.RawMessage(long),
		Options: map[string]any{"num_ctx": 4096, "num_predict": 3000},
	}
}

// Clients that leave: whoever comes next is served, although the real server
// loses a slot now and then.
func cancel(t *testing.T, at target) {
	t.Helper()
	c := ollama.New(at.url, ollama.Config{})
	t.Cleanup(c.Close)
	if _, err := c.Load(t.Context(), spec("phi3:mini", 4096)); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		ctx, leave := context.WithCancel(t.Context())
		pieces := 0
		err := c.Chat(ctx, longChat(), func(*api.ChatResponse) error {
			if pieces++; pieces == 5+i {
				leave()
			}
			return nil
		})
		leave()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want context.Canceled", err)
		}
		began := time.Now()
		short := longChat()
		short.Options["num_predict"] = 3
		if err := c.Chat(t.Context(), short, func(*api.ChatResponse) error { return nil }); err != nil {
			t.Fatalf("the next chat: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Fatalf("the next chat took %v", took)
		}
	}
	t.Logf("%d of 30 slots were lost and recovered", c.Revived())
	if loads, unloads, evictions := at.moves(); loads != 1+int(c.Revived()) || unloads != int(c.Revived()) || evictions != 0 {
		t.Errorf("%d loads, %d unloads, %d evictions; %d models were revived", loads, unloads, evictions, c.Revived())
	}
}

// An unload lets what is under way finish, and is not done before.
func unloadBusy(t *testing.T, at target) {
	t.Helper()
	c := client(t, at)
	m := spec("phi3:mini", 4096)
	if _, err := c.Load(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	writing, done := make(chan struct{}), make(chan error, 1)
	go func() {
		pieces := 0
		done <- c.Chat(t.Context(), longChat(), func(*api.ChatResponse) error {
			if pieces++; pieces == 5 {
				close(writing)
			}
			return nil
		})
	}()
	<-writing
	if err := c.Unload(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the chat under way: %v", err)
		}
	case <-time.After(time.Second):
		t.Errorf("unloaded while a chat was under way, which ended in %v", <-done)
	}
	if r, err := c.Running(t.Context()); err != nil || len(r) != 0 {
		t.Errorf("running %+v, %v, want nothing", r, err)
	}
}

func kill(t *testing.T, at target) {
	t.Helper()
	c := client(t, at)
	pieces := 0
	err := c.Chat(t.Context(), longChat(), func(*api.ChatResponse) error {
		if pieces++; pieces == 5 {
			at.kill()
		}
		return nil
	})
	if !errors.Is(err, ollama.ErrAborted) {
		t.Errorf("got %v, want ErrAborted", err)
	}
	if r, err := c.Running(t.Context()); err != nil || len(r) != 0 {
		t.Errorf("afterwards %+v, %v, want nothing", r, err)
	}
	if _, err := c.Load(t.Context(), spec("phi3:mini", 4096)); err != nil {
		t.Errorf("loading again: %v", err)
	}
}
