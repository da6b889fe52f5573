//go:build clients

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestClientsOpenWebUI plays what Open WebUI asks in one chat, through its
// connection to OpenAI and through that to Ollama: the lists of models, the
// answers, what it asks on its own account after each, and questions about
// documents. Its own jobs go to the light model and move no other; a question
// about documents goes by what is asked.
//
// The requests have the paths, headers, fields and the order of Open WebUI
// 0.12.4, and its templates' headings, tags and opening sentences; their other
// guidelines are told in other words.
func TestClientsOpenWebUI(t *testing.T) {
	for _, connection := range []string{"openai", "ollama"} {
		t.Run(connection, func(t *testing.T) {
			s := newStage(t)
			text, err := os.ReadFile(filepath.Join(repository(t), "testdata/clients/openwebui", connection+".jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			for !slices.Contains(s.sim.Loaded(), "phi3:mini") { // is always, once it is there
				select {
				case <-t.Context().Done():
					t.Fatal("phi3:mini was not loaded")
				case <-time.After(20 * time.Millisecond):
				}
			}
			jobs, answers := 0, 0
			for line := range bytes.Lines(text) {
				var r said
				if err := json.Unmarshal(line, &r); err != nil {
					t.Fatal(err)
				}
				before := s.sim.Counts().Unloads
				header, body := s.say(t, r)
				if strings.Contains(string(r.Body), `"messages"`) {
					answers++
				}
				if got := header.Get("Tenure-Task"); got != r.Task {
					t.Errorf("%s: task %q, want %q", r.Name, got, r.Task)
				}
				if got := header.Get("Tenure-Model"); r.Model != "" && got != r.Model {
					t.Errorf("%s: answered by %s, want %s", r.Name, got, r.Model)
				}
				if r.Job {
					jobs++
					if n := s.sim.Counts().Unloads - before; n != 0 || header.Get("Tenure-Residency") != "warm" {
						t.Errorf("%s: %d models unloaded, model %s; want none, warm", r.Name, n, header.Get("Tenure-Residency"))
					}
				}
				if r.Method == http.MethodGet && r.Name != "ps" && r.Name != "version" && !strings.Contains(body, `"recruit-auto"`) {
					t.Errorf("%s: recruit-auto is not listed: %s", r.Name, body)
				}
			}
			if jobs < 9 || answers < 14 {
				t.Errorf("only %d answers, %d of them jobs", answers, jobs)
			}
		})
	}
}

// said is a request of Open WebUI's, and what becomes of it.
type said struct {
	Name, Method, Path string
	Header             map[string]string
	Body               json.RawMessage
	Task, Model        string
	Job                bool // asked on Open WebUI's own account
}

// say sends r as Open WebUI's HTTP client does, and returns a good answer.
func (s *stage) say(t *testing.T, r said) (http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), r.Method, s.url+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+clientKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Python/3.11 aiohttp/3.14.5")
	for k, v := range r.Header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s (%v)", r.Name, resp.StatusCode, body, err)
	}
	return resp.Header, string(body)
}
