//go:build e2e

package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/ollama/ollamatest"
	"tenure/residency"
	"tenure/routing"

	"github.com/ollama/ollama/api"
)

// realRig is tenure before a real Ollama.
type realRig struct {
	t         *testing.T
	ollama    *ollamatest.Server
	client    *ollama.Client
	server    *Server
	scheduler *residency.Scheduler
	journal   *Journal
	admin     string
	api       string
}

func newRealRig(t *testing.T, cfg Config, env ...string) *realRig {
	t.Helper()
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	r := &realRig{t: t, journal: NewJournal()}
	if r.ollama, err = ollamatest.Start(t.Context(), root, ollamatest.Config{Log: filepath.Join(t.ArtifactDir(), "ollama.log"), Env: env}); err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	r.client = ollama.New(r.ollama.URL(), ollama.Config{Log: logger})
	policy, err := residency.Preset("latency")
	if err != nil {
		t.Fatal(err)
	}
	r.scheduler = residency.New(residency.Config{Budget: 20 * residency.GiB, MaxModels: 3, OnDecision: r.journal.Record}, policy, r.client)
	answers, err := cache.New(cache.Config{Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	cfg.BodyBytes, cfg.Limits.MaxTokens = 1<<20, 8192
	r.server = New(cfg, Parts{
		Router: routing.NewRouter(routing.Builtin(), ShortName), Residency: r.scheduler, Cache: answers, Ollama: r.client, Journal: r.journal, Log: logger,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { r.server.Watch(ctx) })
	admin, api := httptest.NewServer(r.server.Admin()), httptest.NewServer(r.server.API())
	r.admin, r.api = admin.URL, api.URL
	t.Cleanup(func() {
		admin.Close()
		api.Close()
		answers.Close()
		if err := r.scheduler.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		watching.Wait()
		r.client.Close()
		http.DefaultClient.CloseIdleConnections()
		if err := r.ollama.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return r
}

// behind asks Ollama past tenure.
func (r *realRig) behind(ctx context.Context, c *http.Client, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.ollama.URL().JoinPath("/api/generate").String(), strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", body, resp.Status)
	}
	return nil
}

// within waits for ok.
func (r *realRig) within(what string, d time.Duration, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			running, err := r.client.Running(r.t.Context())
			r.t.Fatalf("%s: not within %v: Ollama has %+v (%v), the book %+v", what, d, running, err, r.scheduler.State().Residents)
		}
	}
}

// found reports whether the journal has a finding beyond an entry.
func (r *realRig) found(what string, after uint64) bool {
	for _, e := range r.journal.Find(DecisionQuery{After: after}).Decisions {
		if e.What == what {
			return true
		}
	}
	return false
}

// TestE2EReconcile does to a real Ollama what other clients of it do, and
// waits for tenure to put it right.
func TestE2EReconcile(t *testing.T) {
	r := newRealRig(t, Config{Preload: true})
	behind := func(body string) {
		t.Helper()
		if err := r.behind(t.Context(), http.DefaultClient, body); err != nil {
			t.Fatal(err)
		}
	}
	// settled waits until Ollama lists the three kept models, all pinned and
	// with the catalog's contexts.
	want := map[string]int{"phi3:mini": 4096, "deepseek-llm:7b": 4096, "mistral": 8192}
	settled := func() bool {
		running, err := r.client.Running(t.Context())
		if err != nil || len(running) != len(want) {
			return false
		}
		for _, m := range running {
			if m.Context != want[ShortName(m.Name)] || time.Until(m.ExpiresAt) < forEver {
				return false
			}
		}
		st := r.scheduler.State()
		for _, m := range st.Residents {
			if m.Phase != residency.Ready {
				return false
			}
		}
		return len(st.Residents) == len(want) && len(st.Foreign) == 0
	}
	noticed := func(what string) func() bool {
		before := r.journal.Find(DecisionQuery{Limit: 1}).Last
		return func() bool { return r.found(what, before) && settled() }
	}

	r.within("start", time.Minute, settled)
	time.Sleep(2 * watchEvery) // all is seen
	ok := noticed(whatPin)
	behind(`{"model":"mistral","keep_alive":30,"options":{"num_ctx":8192}}`)
	r.within("a lost pin", time.Minute, ok)
	ok = noticed(whatVanished)
	behind(`{"model":"phi3:mini","keep_alive":0}`)
	r.within("an unload behind our back", time.Minute, ok)
	time.Sleep(2 * watchEvery)
	ok = noticed(whatContext)
	behind(`{"model":"mistral","keep_alive":-1,"options":{"num_ctx":2048}}`)
	r.within("another context", time.Minute, ok)
	time.Sleep(2 * watchEvery)
	ok = noticed(whatVanished)
	if err := r.ollama.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.ollama.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.within("a restart", time.Minute, ok)

	// By hand: a swap, and back.
	for _, c := range []struct{ body, gone string }{
		{`{"mistral":false,"llama3":true}`, "mistral"}, {`{"llama3":false,"mistral":true}`, "llama3"},
	} {
		body, gone := c.body, c.gone
		done := r.server.Preload(t.Context(), map[string]bool{"phi3:mini": true}, time.Minute)
		if done["phi3:mini"].Done != DoneLoaded {
			t.Errorf("phi3:mini: %+v", done)
		}
		resp, err := http.Post(r.admin+"/admin/preload?wait=1m", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Models map[string]Preloaded }
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %+v %v", body, resp.StatusCode, answer, err)
		}
		running, err := r.client.Running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range running {
			if ShortName(m.Name) == gone {
				t.Errorf("%s: %s is still there", body, gone)
			}
		}
	}
	moves, err := r.ollama.Moves()
	if err != nil {
		t.Fatal(err)
	}
	evictions := 0
	for _, m := range moves {
		if m.What == ollamasim.Evict {
			evictions++
		}
	}
	if evictions > 1 { // the one that the other context asked for
		t.Errorf("Ollama evicted %d times by itself: %v", evictions, moves)
	}
}

// TestE2EWedge wedges a real Ollama the way ollama/ollama#17408 tells: a model
// that it has chosen to leave is used again with a keep_alive. From then on no
// load completes, though everything looks well.
func TestE2EWedge(t *testing.T) {
	r := newRealRig(t, Config{}, "OLLAMA_MAX_LOADED_MODELS=2")
	r.within("the first load", time.Minute, func() bool { return len(r.scheduler.State().Residents) == 1 })
	if done := r.server.Preload(t.Context(), map[string]bool{"mistral": true}, time.Minute); done["mistral"].Done != DoneLoaded {
		t.Fatal(done)
	}

	// Both are kept busy by streams that nobody reads.
	long := `"format":{"type":"array","minItems":900,"maxItems":900,"items":{"type":"string","minLength":60,"maxLength":80}}`
	models := map[string]string{"phi3:mini": "4096", "mistral": "8192"}
	var busy []net.Conn
	for model, context := range models {
		conn, err := net.Dial("tcp", r.ollama.URL().Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(2048)
		body := `{"model":"` + model + `","prompt":"hello",` + long + `,"options":{"num_predict":40000,"num_ctx":` + context + `}}`
		fmt.Fprintf(conn, "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		busy = append(busy, conn)
	}
	time.Sleep(1500 * time.Millisecond)
	// A third model has one of them chosen; both are used again; then they end.
	foreign := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		foreign <- r.behind(ctx, http.DefaultClient, `{"model":"llama3","options":{"num_ctx":2048}}`)
	}()
	time.Sleep(time.Second)
	var revived sync.WaitGroup
	for model, context := range models {
		revived.Go(func() {
			if err := r.behind(t.Context(), http.DefaultClient, `{"model":"`+model+`","keep_alive":-1,"options":{"num_ctx":`+context+`}}`); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(time.Second)
	for _, conn := range busy {
		_ = conn.Close()
	}
	revived.Wait()
	if err := <-foreign; err == nil {
		t.Skip("this Ollama did not wedge")
	}

	answered := make(chan string, 1)
	go func() {
		resp, err := http.Post(r.api+"/v1/chat/completions", "application/json",
			strings.NewReader(`{"model":"deepseek-llm:7b","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}`))
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		answered <- resp.Status
	}()
	r.within("the wedge is noticed", 40*time.Second, func() bool { return r.found(whatWedge, 0) })
	select {
	case status := <-answered:
		if status != "200 OK" {
			t.Errorf("answered %s", status)
		}
	case <-time.After(time.Minute):
		t.Error("not rescued within a minute")
	}
	if !r.found(whatRescue, 0) {
		t.Error("it was not tenure that rescued it")
	}
	r.within("ready again", 20*time.Second, func() bool { return r.server.watched.stuckOn() == "" })
}

// A model made from another, with a prompt of its own, is answered by the
// other's runner: nothing is loaded for it.
func TestE2EDerived(t *testing.T) {
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := ollamatest.Prepare(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	models := t.TempDir() // other tests run on the prepared ones
	if err := os.CopyFS(models, os.DirFS(prepared)); err != nil {
		t.Fatal(err)
	}
	r := newRealRig(t, Config{Preload: true}, "OLLAMA_MODELS="+models)
	r.within("the kept models are loaded", time.Minute, func() bool {
		running, err := r.client.Running(t.Context())
		return err == nil && len(running) == 3 && !slices.ContainsFunc(r.scheduler.State().Residents, func(m residency.Resident) bool { return m.Phase != residency.Ready })
	})
	err = api.NewClient(r.ollama.URL(), http.DefaultClient).Create(t.Context(),
		&api.CreateRequest{Model: "recruiter", From: "mistral", System: "You write to nurses."}, func(api.ProgressResponse) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r.within("it is seen", time.Minute, func() bool { return slices.Contains(r.server.router.Names(), "recruiter") })
	before, err := r.ollama.Moves()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		for _, name := range []string{"mistral", "recruiter"} {
			body := fmt.Sprintf(`{"model":%q,"max_tokens":4,"messages":[{"role":"user","content":"hello %d"}]}`, name, i)
			resp, err := http.Post(r.api+"/v1/chat/completions", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Tenure-Model") != name || resp.Header.Get("Tenure-Residency") != "warm" {
				t.Errorf("%s: %s by %s, %s", name, resp.Status, resp.Header.Get("Tenure-Model"), resp.Header.Get("Tenure-Residency"))
			}
		}
	}
	after, err := r.ollama.Moves()
	if err != nil || len(after) != len(before) {
		t.Errorf("Ollama moved models: %v (%v)", after[len(before):], err)
	}
}
