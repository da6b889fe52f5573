//go:build e2e

package proxy

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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
)

// TestE2EReconcile does to a real Ollama what other clients of it do, and
// waits for tenure to put it right.
func TestE2EReconcile(t *testing.T) {
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	server, err := ollamatest.Start(t.Context(), root, ollamatest.Config{Log: filepath.Join(t.ArtifactDir(), "ollama.log")})
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	client := ollama.New(server.URL(), ollama.Config{Log: logger})
	policy, err := residency.Preset("latency")
	if err != nil {
		t.Fatal(err)
	}
	journal := NewJournal()
	scheduler := residency.New(residency.Config{Budget: 20 * residency.GiB, MaxModels: 3, OnDecision: journal.Record}, policy, client)
	answers, err := cache.New(cache.Config{Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Preload: true, BodyBytes: 1 << 20}, Parts{
		Router: routing.NewRouter(routing.Builtin(), ShortName), Residency: scheduler, Cache: answers, Ollama: client, Journal: journal, Log: logger,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { s.Watch(ctx) })
	admin := httptest.NewServer(s.Admin())
	t.Cleanup(func() {
		admin.Close()
		answers.Close()
		if err := scheduler.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		watching.Wait()
		client.Close()
		http.DefaultClient.CloseIdleConnections()
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})

	behind := func(body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL().JoinPath("/api/generate").String(), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %v", body, resp.Status, err)
		}
	}
	// settled waits until Ollama lists the three kept models, all pinned and
	// with the catalog's contexts.
	want := map[string]int{"phi3:mini": 4096, "deepseek-llm:7b": 4096, "mistral": 8192}
	settled := func() bool {
		running, err := client.Running(t.Context())
		if err != nil || len(running) != len(want) {
			return false
		}
		for _, r := range running {
			if r.Context != want[ShortName(r.Name)] || time.Until(r.ExpiresAt) < forEver {
				return false
			}
		}
		st := scheduler.State()
		for _, r := range st.Residents {
			if r.Phase != residency.Ready {
				return false
			}
		}
		return len(st.Residents) == len(want) && len(st.Foreign) == 0
	}
	within := func(what string, d time.Duration, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(d); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				running, err := client.Running(t.Context())
				t.Fatalf("%s: not within %v: Ollama has %+v (%v), the book %+v", what, d, running, err, scheduler.State().Residents)
			}
		}
	}
	noticed := func(what string) func() bool {
		before := len(journal.Find(DecisionQuery{}).Decisions)
		return func() bool {
			for _, e := range journal.Find(DecisionQuery{After: uint64(before)}).Decisions {
				if e.What == what {
					return settled()
				}
			}
			return false
		}
	}

	within("start", time.Minute, settled)
	time.Sleep(2 * watchEvery) // all is seen
	ok := noticed(whatPin)
	behind(`{"model":"mistral","keep_alive":30,"options":{"num_ctx":8192}}`)
	within("a lost pin", time.Minute, ok)
	ok = noticed(whatVanished)
	behind(`{"model":"phi3:mini","keep_alive":0}`)
	within("an unload behind our back", time.Minute, ok)
	time.Sleep(2 * watchEvery)
	ok = noticed(whatContext)
	behind(`{"model":"mistral","keep_alive":-1,"options":{"num_ctx":2048}}`)
	within("another context", time.Minute, ok)
	time.Sleep(2 * watchEvery)
	ok = noticed(whatVanished)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	within("a restart", time.Minute, ok)

	// By hand: a swap, and back.
	for _, c := range []struct{ body, gone string }{
		{`{"mistral":false,"llama3":true}`, "mistral"}, {`{"llama3":false,"mistral":true}`, "llama3"},
	} {
		body, gone := c.body, c.gone
		done := s.Preload(t.Context(), map[string]bool{"phi3:mini": true}, time.Minute)
		if done["phi3:mini"].Done != DoneLoaded {
			t.Errorf("phi3:mini: %+v", done)
		}
		resp, err := http.Post(admin.URL+"/admin/preload?wait=1m", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Models map[string]Preloaded }
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %+v %v", body, resp.StatusCode, answer, err)
		}
		running, err := client.Running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range running {
			if ShortName(r.Name) == gone {
				t.Errorf("%s: %s is still there", body, gone)
			}
		}
	}
	moves, err := server.Moves()
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
