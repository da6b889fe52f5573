//go:build clients

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
)

// native checks an answer of Ollama's own API: that it is of the type that
// Ollama's package reads, and nothing else; that a stream ends in one done or in
// an error.
func (c *checker) native(t *testing.T, where, kind string, a *record) {
	t.Helper()
	var shape func() any
	lines := false
	switch a.path {
	case "/api/chat":
		shape, lines = func() any { return new(api.ChatResponse) }, true
	case "/api/generate":
		shape, lines = func() any { return new(api.GenerateResponse) }, true
	case "/api/embed":
		shape = func() any { return new(api.EmbedResponse) }
	case "/api/embeddings":
		shape = func() any { return new(api.EmbeddingResponse) }
	case "/api/tags":
		shape = func() any { return new(api.ListResponse) }
	case "/api/ps":
		shape = func() any { return new(api.ProcessResponse) }
	default:
		shape = func() any { return new(map[string]any) }
	}
	if a.status != http.StatusOK {
		c.errors++
		shape = func() any { return new(struct{ Error string }) }
	}
	stream := kind == "application/x-ndjson"
	if kind != "application/json" && (!stream || !lines || a.status != http.StatusOK) {
		t.Errorf("%s: content type %q", where, kind)
	}
	if !stream {
		if a.whole {
			c.bodies++
			c.shaped(t, where, a.body.Bytes(), shape())
			if lines && a.status == http.StatusOK && !bytes.Contains(a.body.Bytes(), []byte(`"done":true`)) {
				t.Errorf("%s: not done: %s", where, a.body.Bytes())
			}
		}
		return
	}
	ended := false
	for line := range bytes.Lines(a.body.Bytes()) {
		if !bytes.HasSuffix(line, []byte("\n")) && !a.whole {
			continue // where the client left
		}
		if ended || len(bytes.TrimSpace(line)) == 0 {
			t.Errorf("%s: empty, or after the end: %q", where, line)
		}
		c.events++
		if bytes.HasPrefix(line, []byte(`{"error":`)) {
			ended = true
			c.errors++
			c.shaped(t, where, line, new(struct{ Error string }))
			continue
		}
		c.shaped(t, where, line, shape())
		ended = bytes.Contains(line, []byte(`"done":true`))
	}
	if a.whole && !ended {
		t.Errorf("%s: the stream has no good end:\n%s", where, a.body.String())
	}
}

func (c *checker) shaped(t *testing.T, where string, text []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Errorf("%s: %v\n%s", where, err, text)
	}
	switch v := into.(type) {
	case *struct{ Error string }:
		if v.Error == "" {
			t.Errorf("%s: an error without words: %s", where, text)
		}
	case *api.ChatResponse:
		if v.Model == "" || v.CreatedAt.IsZero() || v.Message.Role != "assistant" || v.Done != (v.DoneReason != "") {
			t.Errorf("%s: %s", where, text)
		}
	case *api.GenerateResponse:
		if v.Model == "" || v.CreatedAt.IsZero() || v.Done != (v.DoneReason != "") {
			t.Errorf("%s: %s", where, text)
		}
	}
}

// isNative tells Ollama's own API from OpenAI's.
func isNative(path string) bool { return strings.HasPrefix(path, "/api/") }
