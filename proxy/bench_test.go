package proxy

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/routing"
)

// instantOllama has one model and answers at once.
func instantOllama(b testing.TB) *url.URL {
	b.Helper()
	mux := http.NewServeMux()
	reply := func(pattern, text string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/x-ndjson")
			_, _ = io.WriteString(w, text)
		})
	}
	reply("GET /api/version", `{"version":"0.17.4"}`)
	reply("GET /api/tags", `{"models":[{"name":"phi3:mini","digest":"abcdef0123456789","size":1000}]}`)
	reply("GET /api/ps", `{"models":[{"name":"phi3:mini","size":1000,"size_vram":1000,"context_length":100000}]}`)
	reply("POST /api/show", `{"capabilities":["completion"],"model_info":{"general.architecture":"llama","llama.context_length":100000}}`)
	reply("POST /api/generate", `{"done":true,"done_reason":"load"}`)
	reply("POST /api/chat", `{"message":{"role":"assistant","content":"`+strings.Repeat("some words ", 30)+`"},"done":false}`+"\n"+
		`{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":9,"eval_count":9}`+"\n")
	s := httptest.NewServer(mux)
	b.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

// benchServer is a server with everything but listeners.
func benchServer(b testing.TB) http.Handler {
	b.Helper()
	catalog, err := routing.ParseCatalog([]byte("models: {\"phi3:mini\": {tier: 0, memory: 1, num_ctx: 100000, slots: 64}}\n"+
		"tasks:\n  general: {model: \"phi3:mini\", max_tokens: 100, cache_ttl: 1h}\n  resume_parsing: {model: \"phi3:mini\", max_tokens: 100, temperature: 0, cache_ttl: 1h}\n"), ShortName)
	if err != nil {
		b.Fatal(err)
	}
	client := ollama.New(instantOllama(b), ollama.Config{})
	policy, err := residency.Preset("latency")
	if err != nil {
		b.Fatal(err)
	}
	scheduler := residency.New(residency.Config{Budget: 20 * residency.GiB}, policy, client)
	answers, err := cache.New(cache.Config{Bytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	s := New(Config{BodyBytes: 1 << 20, Limits: wire.Limits{MaxTokens: 1000}}, Parts{
		Router: routing.NewRouter(catalog, ShortName), Residency: scheduler, Cache: answers, Ollama: client,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), //nolint:sloglint // writing the line is part of what is measured
	})
	if err := s.look(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		answers.Close()
		if err := scheduler.Close(); err != nil {
			b.Error(err)
		}
		client.Close()
	})
	return s.API()
}

func ask10K(b testing.TB, h http.Handler, question string) {
	b.Helper()
	body := `{"model":"recruit/resume_parsing","messages":[{"role":"user","content":"` + question +
		strings.Repeat("Jane Doe, ten years of night shifts and triage. ", 210) + `"}]}`
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(body))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		b.Fatalf("%d %s", w.Code, w.Body)
	}
}

func BenchmarkMiss10K(b *testing.B) {
	h := benchServer(b)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		ask10K(b, h, strconv.Itoa(n))
	}
}

func BenchmarkHit10K(b *testing.B) {
	h := benchServer(b)
	ask10K(b, h, "same")
	b.ReportAllocs()
	for b.Loop() {
		ask10K(b, h, "same")
	}
}

// The gates of the whole path, the test's own recorder and, for a miss, the
// server that plays Ollama included: a tenth above what was measured.
func TestAllocationsOfTheHop(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector sync.Pool drops at random")
	}
	h := benchServer(t)
	n := 0
	for _, c := range []struct {
		name string
		most float64
		ask  func()
	}{
		{"hit", 68, func() { ask10K(t, h, "same") }},
		{"miss", 183, func() { n++; ask10K(t, h, strconv.Itoa(n)) }},
	} {
		c.ask() // connected, and kept
		if got := testing.AllocsPerRun(200, c.ask); got > c.most {
			t.Errorf("a %s makes %.0f allocations, want at most %.0f", c.name, got, c.most)
		}
	}
}
