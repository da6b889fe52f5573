//go:build clients

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/ollama/ollamatest"
	"tenure/proxy/wire/wiretest"

	"github.com/ollama/ollama/types/model"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// endpointModels are those that the suites of embeddings and completions name,
// two of them after OpenAI's.
func endpointModels() []ollamasim.Model {
	embedder, coder := ollamasim.Embedder(), ollamasim.Catalog()[0]
	coder.Name, coder.Weights = ollamatest.Coder, 1<<30
	coder.Capabilities = []model.Capability{model.CapabilityCompletion, model.CapabilityInsert}
	models := []ollamasim.Model{embedder, coder, embedder, coder}
	models[2].Name, models[3].Name = "text-embedding-3-small", "gpt-3.5-turbo-instruct"
	return models
}

// endpointSchemas are those of answers beside chat completions; nil: there is
// no specification.
type endpointSchemas struct{ completion, embeddings, response, event *jsonschema.Schema }

func newEndpointSchemas(t *testing.T, s *wiretest.Spec) endpointSchemas {
	t.Helper()
	return endpointSchemas{
		completion: s.Schema(t, "CreateCompletionResponse"), embeddings: s.Schema(t, "CreateEmbeddingResponse"),
		response: s.Schema(t, "Response"), event: s.Schema(t, "ResponseStreamEvent"),
	}
}

func (s endpointSchemas) of(path string) *jsonschema.Schema {
	return map[string]*jsonschema.Schema{
		"/v1/completions": s.completion, "/v1/embeddings": s.embeddings, "/v1/responses": s.response,
	}[path]
}

// eventBlocks are a stream's events without its comments; a part of one where
// the client left is none.
func (c *checker) eventBlocks(t *testing.T, where string, a *record) []string {
	t.Helper()
	if a.header.Get("Cache-Control") != "no-cache" || a.header.Get("X-Accel-Buffering") != "no" || a.header.Get("Content-Encoding") != "" {
		t.Errorf("%s: headers %v", where, a.header)
	}
	var blocks []string
	for block := range strings.SplitAfterSeq(a.body.String(), "\n\n") {
		if text, whole := strings.CutSuffix(block, "\n\n"); whole && !strings.HasPrefix(text, ": ") {
			blocks = append(blocks, text)
		}
	}
	return blocks
}

// completionStream checks a stream of completions: one finish_reason for every
// choice, usage once, [DONE] or an error at the end.
func (c *checker) completionStream(t *testing.T, where string, a *record) {
	t.Helper()
	finished, usage, end := map[int]bool{}, 0, ""
	for _, block := range c.eventBlocks(t, where, a) {
		data, ok := strings.CutPrefix(block, "data: ")
		if !ok || end != "" {
			t.Errorf("%s: no event, or after the end: %q", where, block)
		}
		if data == "[DONE]" || strings.HasPrefix(data, `{"error":`) {
			end = data
			continue
		}
		var e struct {
			Choices []struct {
				Index        int
				FinishReason *string `json:"finish_reason"`
			}
			Usage *struct{}
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		for _, choice := range e.Choices {
			if finished[choice.Index] {
				t.Errorf("%s: after the finish_reason: %s", where, data)
			}
			finished[choice.Index] = choice.FinishReason != nil
		}
		if e.Usage != nil {
			usage++
		}
		c.events++
		// The schema is that of a body, where nothing is pending.
		data = strings.ReplaceAll(data, `"finish_reason":null`, `"finish_reason":"stop"`)
		c.validate(t, where, c.endpoints.completion, []byte(strings.ReplaceAll(data, `,"usage":null`, "")))
	}
	good := end == "[DONE]" && usage <= 1 && len(finished) > 0
	for _, done := range finished {
		good = good && done
	}
	if a.whole && !good && !strings.HasPrefix(end, `{"error":`) {
		t.Errorf("%s: the stream has no good end:\n%s", where, a.body.String())
	}
}

// responseStream checks a stream of events: their names and numbers, and that
// the last one tells how it ended.
func (c *checker) responseStream(t *testing.T, where string, a *record) {
	t.Helper()
	last := ""
	for i, block := range c.eventBlocks(t, where, a) {
		name, data, ok := strings.Cut(block, "\ndata: ")
		var e struct {
			Type   string
			Number int `json:"sequence_number"`
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil || !ok || name != "event: "+e.Type || e.Number != i || i == 0 && e.Type != "response.created" {
			t.Errorf("%s: event %d: %q (%v)", where, i, block, err)
		}
		c.events++
		c.validate(t, where, c.endpoints.event, []byte(data))
		last = e.Type
	}
	if a.whole && last != "response.completed" && last != "response.incomplete" && last != "error" {
		t.Errorf("%s: the stream has no good end: %s", where, last)
	}
}
