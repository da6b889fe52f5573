//go:build e2e

package main

import (
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/ollama/ollamatest"

	"github.com/sashabaranov/go-openai"
)

// endpoints asks what stands beside chat completions.
func (r *rig) endpoints(t *testing.T) {
	t.Run("embeddings", r.embeddings)
	t.Run("completions", r.completions)
	t.Run("responses", r.responses)
}

func (r *rig) postTo(t *testing.T, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.api+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return send(t, req)
}

func (r *rig) embeddings(t *testing.T) {
	input := []string{r.texts["job"][:200], "a nurse", r.texts["job"][:200]}
	embed := func(format openai.EmbeddingEncodingFormat, dimensions int) openai.EmbeddingResponse {
		t.Helper()
		answer, err := r.client.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{
			Input: input, Model: openai.EmbeddingModel(ollamatest.Embedder), EncodingFormat: format, Dimensions: dimensions,
		})
		if err != nil || len(answer.Data) != len(input) || answer.Usage.PromptTokens == 0 {
			t.Fatalf("%+v, %v", answer, err)
		}
		return answer
	}
	plain, coded, short := embed("", 0), embed(openai.EmbeddingEncodingFormatBase64, 0), embed("", 4)
	for i := range input {
		v := plain.Data[i].Embedding
		if !slices.Equal(v, coded.Data[i].Embedding) || plain.Data[i].Index != i || len(short.Data[i].Embedding) != 4 {
			t.Errorf("vector %d: %v, %v, %v", i, v, coded.Data[i].Embedding, short.Data[i].Embedding)
		}
		for _, v := range [][]float32{v, short.Data[i].Embedding} {
			sum := 0.0
			for _, f := range v {
				sum += float64(f) * float64(f)
			}
			if math.Abs(sum-1) > 1e-3 {
				t.Errorf("vector %d has length² %v", i, sum)
			}
		}
	}
	if slices.Equal(plain.Data[0].Embedding, plain.Data[1].Embedding) {
		t.Error("two texts have one vector")
	}
	if status, body := r.postTo(t, "/v1/embeddings", `{"model":"`+ollamatest.Embedder+`","input":"`+strings.Repeat("Kubernetes, ", 3000)+`"}`); status != 400 || !strings.Contains(body, "context_length_exceeded") {
		t.Errorf("too long: %d %s", status, body)
	}
	if status, body := r.postTo(t, "/v1/embeddings", `{"model":"mistral","input":"x"}`); status != 400 || !strings.Contains(body, "Name an embedding model") {
		t.Errorf("by a model that chats: %d %s", status, body)
	}
}

func (r *rig) completions(t *testing.T) {
	type completion struct {
		Choices []struct {
			Text   string
			Index  int
			Reason string `json:"finish_reason"`
		}
		Usage struct {
			Prompt int `json:"prompt_tokens"`
			Answer int `json:"completion_tokens"`
		}
	}
	for _, c := range []struct {
		body    string
		choices int
	}{
		{`{"model":"phi3:mini","prompt":["Candidate","Recruiter"],"n":2,"max_tokens":5}`, 4},
		{`{"model":"` + ollamatest.Coder + `","prompt":"Candidate","suffix":"hired","max_tokens":5}`, 1},
	} {
		status, body := r.postTo(t, "/v1/completions", c.body)
		var got completion
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 || len(got.Choices) != c.choices || got.Usage.Prompt == 0 || got.Usage.Answer == 0 {
			t.Fatalf("%s: %d %s (%v)", c.body, status, body, err)
		}
		for i, choice := range got.Choices {
			if choice.Index != i || choice.Reason != "length" && choice.Reason != "stop" {
				t.Errorf("%s: %s", c.body, body)
			}
		}
	}
	if status, body := r.postTo(t, "/v1/completions", `{"model":"phi3:mini","prompt":"a","suffix":"b"}`); status != 400 || !strings.Contains(body, `"param":"suffix"`) {
		t.Errorf("suffix: %d %s", status, body)
	}
	if status, body := r.postTo(t, "/v1/completions", `{"model":"phi3:mini","prompt":"Candidate","stream":true,"max_tokens":5}`); status != 200 || !strings.HasSuffix(body, "data: [DONE]\n\n") {
		t.Errorf("stream: %d %s", status, body)
	}
}

func (r *rig) responses(t *testing.T) {
	const tool = `"tools":[{"type":"function","name":"save","parameters":{"type":"object","properties":{"years":{"type":"integer","maximum":99,"minimum":0}},"required":["years"],"additionalProperties":false},"strict":true}],"tool_choice":"required"`
	status, body := r.postTo(t, "/v1/responses", `{"model":"phi3:mini","input":"Save it.",`+tool+`}`)
	var got struct {
		Output []struct{ Type, Arguments string }
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 || len(got.Output) != 1 || got.Output[0].Type != "function_call" || !json.Valid([]byte(got.Output[0].Arguments)) {
		t.Errorf("tool: %d %s (%v)", status, body, err)
	}
	status, body = r.postTo(t, "/v1/responses", `{"model":"phi3:mini","input":"Hello","stream":true,"max_output_tokens":20}`)
	if status != 200 || !strings.HasPrefix(body, "event: response.created\n") || strings.Count(body, "event: response.output_text.delta\n") == 0 ||
		strings.Count(body, "event: response.completed\n")+strings.Count(body, "event: response.incomplete\n") != 1 {
		t.Errorf("stream: %d %s", status, body)
	}
}
