package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/ollama/ollamasim"

	"github.com/ollama/ollama/api"
)

// native is Ollama's own client in Go, before this proxy.
func (r *rig) native() *api.Client {
	return api.NewClient(&url.URL{Scheme: "http", Host: "api"}, r.client)
}

func TestNativeChat(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		ask := func(stream bool) (text string, last api.ChatResponse, lines int) {
			err := r.native().Chat(t.Context(), &api.ChatRequest{
				Model: "recruit/resume_parsing", Stream: &stream, Messages: []api.Message{{Role: "user", Content: "Jane Doe, nurse"}},
			}, func(resp api.ChatResponse) error {
				text, last, lines = text+resp.Message.Content, resp, lines+1
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return text, last, lines
		}
		streamed, last, lines := ask(true)
		if streamed == "" || lines < 2 || !last.Done || last.DoneReason != "stop" || last.EvalCount == 0 || last.PromptEvalCount == 0 || last.Model != "recruit/resume_parsing" {
			t.Errorf("%d lines, %q, last %+v", lines, streamed, last)
		}
		whole, last, lines := ask(false)
		if whole != streamed || lines != 1 || !last.Done {
			t.Errorf("%d lines, %q, last %+v; want one with %q", lines, whole, last, streamed)
		}
		// The two forms share an answer with each other and with chat completions.
		before := r.sim.Counts()
		a := r.chat("recruit/resume_parsing", "Jane Doe, nurse", "")
		if a.content(t) != streamed || a.header.Get("Tenure-Cache") != "hit" || r.sim.Counts() != before {
			t.Errorf("%s: %s", a.header.Get("Tenure-Cache"), a.body)
		}
		r.rest()
	})
}

func TestNativeGenerate(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		var text string
		var last api.GenerateResponse
		err := r.native().Generate(t.Context(), &api.GenerateRequest{Model: "recruit-auto:latest", Prompt: "Write a short InMail to a nurse about our night shifts."}, func(g api.GenerateResponse) error {
			text, last = text+g.Response, g
			return nil
		})
		if err != nil || text == "" || !last.Done || last.EvalCount == 0 {
			t.Errorf("%v: %q, last %+v", err, text, last)
		}
		a := r.do(http.MethodPost, "http://api/api/generate", `{"model":"recruit-auto","prompt":"Write a short InMail to a nurse.","stream":false,"keep_alive":"10m","options":{"num_ctx":9000}}`)
		if got := a.header.Get("Tenure-Task"); got != "script_generation" {
			t.Errorf("task %q, want script_generation", got)
		}
		if got, want := a.header.Get("Tenure-Ignored"), "keep_alive, options.num_ctx"; got != want {
			t.Errorf("ignored %q, want %q", got, want)
		}
		r.rest()
	})
}

// A request without a prompt loads the model, through residency like any other,
// and is never answered from the cache. To unload is not the client's business.
func TestNativeLoads(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for range 2 {
			a := r.do(http.MethodPost, "http://api/api/generate", `{"model":"recruit/matching_logic","keep_alive":-1}`)
			if a.status != http.StatusOK || !strings.Contains(a.body, `"done":true,"done_reason":"load"`) || a.header.Get("Tenure-Cache") != "bypass" {
				t.Errorf("%d %s %s", a.status, a.header.Get("Tenure-Cache"), a.body)
			}
		}
		if !slices.ContainsFunc(r.sim.Loaded(), func(name string) bool { return strings.HasPrefix(name, "llama3") }) {
			t.Errorf("llama3 is not resident: %v", r.sim.Loaded())
		}
		for _, body := range []string{`{"model":"llama3","keep_alive":0}`, `{"model":"llama3","messages":[],"keep_alive":"0"}`} {
			path := "http://api/api/generate"
			if strings.Contains(body, "messages") {
				path = "http://api/api/chat"
			}
			if a := r.do(http.MethodPost, path, body); a.status != http.StatusForbidden {
				t.Errorf("%s: %d %s, want 403", body, a.status, a.body)
			}
		}
		r.rest()
	})
}

// Vectors are those of /v1/embeddings, and one cache keeps them.
func TestNativeEmbeds(t *testing.T) {
	inBubble(t, withEmbedder(), func(t *testing.T, r *rig) {
		want := r.embed(embedder, `["a nurse","a cook"]`, "").vectors(t)
		got, err := r.native().Embed(t.Context(), &api.EmbedRequest{Model: embedder, Input: []string{"a nurse", "a cook"}})
		if err != nil || !slices.EqualFunc(got.Embeddings, want, slices.Equal) || got.Model != embedder || got.PromptEvalCount != 4 {
			t.Errorf("%v: %+v, want %v", err, got, want)
		}
		a := r.do(http.MethodPost, "http://api/api/embed", `{"model":"`+embedder+`","input":["a nurse","a cook"],"truncate":true,"keep_alive":0,"options":{"num_ctx":1}}`)
		if a.header.Get("Tenure-Cache") != "hit" || a.header.Get("Tenure-Ignored") != "truncate, keep_alive, options" {
			t.Errorf("%v", a.header)
		}
		old, err := r.native().Embeddings(t.Context(), &api.EmbeddingRequest{Model: embedder, Prompt: "a cook"})
		if err != nil || len(old.Embedding) != len(want[1]) || float32(old.Embedding[0]) != want[1][0] {
			t.Errorf("%v: %+v, want %v", err, old, want[1])
		}
		for _, c := range []struct{ path, body, says string }{
			{"embed", `{"model":"mistral","input":"x"}`, "makes no embeddings"},
			{"embed", `{"model":"` + embedder + `"}`, "'input'"},
			{"embed", `{"model":"` + embedder + `","input":""}`, "input"},
			{"embeddings", `{"model":"` + embedder + `","prompt":""}`, "'prompt'"},
			{"embeddings", `{"model":"` + embedder + `","prompt":"` + strings.Repeat("word ", 9000) + `"}`, "'prompt'"},
		} {
			a := r.do(http.MethodPost, "http://api/api/"+c.path, c.body)
			if a.status != http.StatusBadRequest || !strings.HasPrefix(a.body, `{"error":"`) || !strings.Contains(a.body, c.says) {
				t.Errorf("%.60s: %d %s", c.body, a.status, a.body)
			}
		}
		r.rest()
	})
}

func TestNativeLists(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		list, err := r.native().List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(list.Models, func(m api.ListModelResponse) bool { return m.Name == "recruit/bias_detection" })
		own := slices.IndexFunc(list.Models, func(m api.ListModelResponse) bool { return m.Name == "mistral" })
		if at < 0 || own < 0 || list.Models[at].Digest != list.Models[own].Digest || list.Models[own].Size == 0 || list.Models[own].Details.Family == "" {
			t.Errorf("%+v", list.Models)
		}
		running, err := r.native().ListRunning(t.Context())
		if err != nil || !slices.ContainsFunc(running.Models, func(m api.ProcessModelResponse) bool {
			return m.Name == "phi3:mini" && m.SizeVRAM > 0 && m.ContextLength == 4096
		}) {
			t.Errorf("%v: %+v", err, running)
		}
		if version, err := r.native().Version(t.Context()); err != nil || version == "" {
			t.Errorf("%q, %v", version, err)
		}
		if err := r.native().Heartbeat(t.Context()); err != nil {
			t.Error(err)
		}
		shown, err := r.native().Show(t.Context(), &api.ShowRequest{Model: "recruit/bias_detection"})
		if err != nil || shown.ModelInfo["general.architecture"] == nil || !strings.Contains(shown.Parameters, "num_ctx") || !strings.Contains(shown.Parameters, " 8192\n") {
			t.Errorf("%v: %+v", err, shown)
		}
	})
}

// Errors come in the one form that Ollama's clients read.
func TestNativeRefusals(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{Keys: []Key{HashKey("k")}}}, func(t *testing.T, r *rig) {
		const chat = `"messages":[{"role":"user","content":"u"}]}`
		for _, c := range []struct {
			method, path, body string
			key                bool
			status             int
		}{
			{http.MethodPost, "/api/chat", `{"model":"recruit-auto",` + chat, false, http.StatusUnauthorized},
			{http.MethodPost, "/api/chat", `{"model":"no-such",` + chat, true, http.StatusNotFound},
			{http.MethodPost, "/api/chat", `{"model":"mistral","options":[],` + chat, true, http.StatusBadRequest},
			{http.MethodPost, "/api/show", `{}`, true, http.StatusBadRequest},
			{http.MethodPost, "/api/show", `{"model":"no-such"}`, true, http.StatusNotFound},
			{http.MethodPost, "/api/pull", `{"model":"mistral"}`, true, http.StatusForbidden},
			{http.MethodPost, "/api/create", `{}`, true, http.StatusForbidden},
			{http.MethodPost, "/api/push", `{}`, true, http.StatusForbidden},
			{http.MethodPost, "/api/copy", `{}`, true, http.StatusForbidden},
			{http.MethodDelete, "/api/delete", `{"model":"mistral"}`, true, http.StatusForbidden},
			{http.MethodPost, "/api/blobs/sha256:0", `x`, true, http.StatusForbidden},
			{http.MethodGet, "/api/nothing", ``, true, http.StatusNotFound},
			{http.MethodGet, "/api/chat", ``, true, http.StatusMethodNotAllowed},
		} {
			var header []string
			if c.key {
				header = []string{"Authorization", "Bearer k"}
			}
			a := r.do(c.method, "http://api"+c.path, c.body, header...)
			var e map[string]string
			if err := json.Unmarshal([]byte(a.body), &e); err != nil || len(e) != 1 || e["error"] == "" || a.status != c.status {
				t.Errorf("%s %s: %d %s, want %d and an error (%v)", c.method, c.path, a.status, a.body, c.status, err)
			}
		}
		if list := r.sim.Counts(); list.Evictions != 0 {
			t.Error("a refusal reached Ollama")
		}
	})
}

// A stream that fails ends in a line that Ollama's client takes for an error.
func TestNativeStreamFails(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.CutMid, After: 2})
		lines := 0
		err := r.native().Chat(context.Background(), &api.ChatRequest{Model: "mistral", Messages: []api.Message{{Role: "user", Content: "u"}}}, func(api.ChatResponse) error {
			lines++
			return nil
		})
		if err == nil || lines == 0 || !strings.Contains(err.Error(), "stopped before its answer was complete") {
			t.Errorf("after %d lines: %v", lines, err)
		}
		if status, ok := errors.AsType[api.StatusError](err); ok {
			t.Errorf("a status after the stream began: %+v", status)
		}
		r.rest()
	})
}
