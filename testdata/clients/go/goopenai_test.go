package clients_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sashabaranov/go-openai"
)

func goOpenAI(secret string) *openai.Client {
	cfg := openai.DefaultConfig(secret)
	cfg.BaseURL = base
	return openai.NewClientWithConfig(cfg)
}

func question(model, text string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{Model: model, Messages: []openai.ChatCompletionMessage{{Role: "user", Content: text}}}
}

func goTool() openai.Tool {
	return openai.Tool{Type: "function", Function: &openai.FunctionDefinition{Name: "lookup_candidate", Strict: true, Parameters: lookup}}
}

// drain reads a stream to its end.
func drain(s *openai.ChatCompletionStream) (chunks []openai.ChatCompletionStreamResponse, err error) {
	for {
		chunk, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return chunks, nil
		}
		if err != nil {
			return chunks, err
		}
		chunks = append(chunks, chunk)
	}
}

func TestGoOpenAIModels(t *testing.T) {
	list, err := goOpenAI(key).ListModels(t.Context())
	if err != nil || len(list.Models) < 10 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, m := range list.Models { // a slash goes as it is
		if got, err := goOpenAI(key).GetModel(t.Context(), m.ID); err != nil || got.ID != m.ID {
			t.Errorf("%s: %+v, %v", m.ID, got, err)
		}
	}
}

func TestGoOpenAIChat(t *testing.T) {
	q := question("recruit/general", "Hello.")
	q.MaxTokens, q.Stop, q.N, q.LogProbs = 900, []string{"never said"}, 2, true
	a, err := goOpenAI(key).CreateChatCompletion(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if a.Model != q.Model || len(a.Choices) != 2 || a.Choices[1].Index != 1 || a.Choices[0].Message.Content == "" || a.Choices[0].FinishReason != "stop" {
		t.Errorf("%+v", a)
	}
	if a.Usage.TotalTokens != a.Usage.PromptTokens+a.Usage.CompletionTokens || a.Usage.PromptTokens == 0 {
		t.Errorf("%+v", a.Usage)
	}
	q = question("phi3:mini", "Hello.")
	q.MaxCompletionTokens = 3
	if a, err = goOpenAI(key).CreateChatCompletion(t.Context(), q); err != nil || a.Choices[0].FinishReason != "length" || a.Usage.CompletionTokens != 3 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestGoOpenAIStream(t *testing.T) {
	for _, usage := range []bool{true, false} {
		q := question("phi3:mini", "Hello.")
		if usage {
			q.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
		}
		s, err := goOpenAI(key).CreateChatCompletionStream(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		chunks, err := drain(s)
		_ = s.Close()
		if err != nil {
			t.Fatal(err)
		}
		last := chunks[len(chunks)-1]
		if got := last.Usage != nil && len(last.Choices) == 0 && last.Usage.TotalTokens > 0; got != usage {
			t.Errorf("usage %v: %+v", usage, last)
		}
		if chunks[0].Choices[0].Delta.Role != "assistant" {
			t.Errorf("the first: %+v", chunks[0])
		}
	}
}

func TestGoOpenAITools(t *testing.T) {
	named := openai.ToolChoice{Type: "function", Function: openai.ToolFunction{Name: "lookup_candidate"}}
	for _, model := range []string{"mistral", "phi3:mini"} {
		for _, choice := range []any{"required", named} {
			q := question(model, "Hello.")
			q.Tools, q.ToolChoice = []openai.Tool{goTool()}, choice
			a, err := goOpenAI(key).CreateChatCompletion(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			calls := a.Choices[0].Message.ToolCalls
			if len(calls) != 1 || calls[0].ID == "" || calls[0].Type != "function" || a.Choices[0].FinishReason != "tool_calls" {
				t.Fatalf("%s, %v: %+v", model, choice, a)
			}
			checkLookup(t, calls[0].Function.Arguments)

			s, err := goOpenAI(key).CreateChatCompletionStream(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			chunks, err := drain(s)
			_ = s.Close()
			if err != nil {
				t.Fatal(err)
			}
			var arguments strings.Builder
			for _, c := range chunks {
				for _, call := range c.Choices[0].Delta.ToolCalls {
					if call.Index == nil || *call.Index != 0 {
						t.Errorf("index: %+v", call)
					}
					arguments.WriteString(call.Function.Arguments)
				}
			}
			checkLookup(t, arguments.String())
		}
	}
}

func TestGoOpenAIToolsAutoAndNone(t *testing.T) {
	simulated(t)
	q := question("mistral", "Use the lookup tool.")
	q.Tools = []openai.Tool{goTool()}
	a, err := goOpenAI(key).CreateChatCompletion(t.Context(), q)
	if err != nil || len(a.Choices[0].Message.ToolCalls) != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	q.ToolChoice = "none"
	if a, err = goOpenAI(key).CreateChatCompletion(t.Context(), q); err != nil || len(a.Choices[0].Message.ToolCalls) != 0 || a.Choices[0].Message.Content == "" {
		t.Errorf("%+v, %v", a, err)
	}
}

type schema map[string]any

func (s schema) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]any(s)) }

func TestGoOpenAIStructured(t *testing.T) {
	q := question("phi3:mini", "Answer in JSON.")
	q.ResponseFormat = &openai.ChatCompletionResponseFormat{
		Type:       openai.ChatCompletionResponseFormatTypeJSONSchema,
		JSONSchema: &openai.ChatCompletionResponseFormatJSONSchema{Name: "lookup", Strict: true, Schema: schema(lookup)},
	}
	a, err := goOpenAI(key).CreateChatCompletion(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	checkLookup(t, a.Choices[0].Message.Content)
	q.ResponseFormat = &openai.ChatCompletionResponseFormat{Type: openai.ChatCompletionResponseFormatTypeJSONObject}
	if a, err = goOpenAI(key).CreateChatCompletion(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	checkObject(t, a.Choices[0].Message.Content, string(a.Choices[0].FinishReason))
}

func TestGoOpenAIErrors(t *testing.T) {
	hot := question("phi3:mini", "Hello.")
	hot.Temperature = 9
	for _, c := range []struct {
		name, secret string
		ask          openai.ChatCompletionRequest
		status       int
		code         string
	}{
		{"range", key, hot, 400, ""},
		{"key", "not-the-key", question("phi3:mini", "Hello."), 401, "invalid_api_key"},
		{"model", key, question("no-such-model", "Hello."), 404, "model_not_found"},
		{"context", key, question("phi3:mini", strings.Repeat("word ", 20000)), 400, "context_length_exceeded"},
		{"size", key, question("phi3:mini", strings.Repeat("x", 2<<20)), 413, "request_too_large"},
	} {
		_, err := goOpenAI(c.secret).CreateChatCompletion(t.Context(), c.ask)
		e, ok := errors.AsType[*openai.APIError](err)
		if !ok || e.HTTPStatusCode != c.status || c.code != "" && e.Code != c.code || e.Message == "" || e.Type != "invalid_request_error" {
			t.Errorf("%s: %#v", c.name, err)
		}
	}
	inject(t, map[string]any{"kind": "queue-full", "times": 1})
	_, err := goOpenAI(key).CreateChatCompletion(t.Context(), question("phi3:mini", "Busy?"))
	if e, ok := errors.AsType[*openai.APIError](err); !ok || e.HTTPStatusCode != http.StatusTooManyRequests {
		t.Errorf("busy: %#v", err)
	}
}

// This client shows the text of an error within a stream only in one exact form.
func TestGoOpenAIStreamFails(t *testing.T) {
	for _, kind := range []string{"error-line", "cut-mid", "no-done"} {
		inject(t, map[string]any{"kind": kind, "after": 3, "times": 1})
		s, err := goOpenAI(key).CreateChatCompletionStream(t.Context(), question("phi3:mini", "Fail with "+kind))
		if err != nil {
			t.Fatal(err)
		}
		chunks, err := drain(s)
		_ = s.Close()
		if e, ok := errors.AsType[*openai.APIError](err); !ok || e.Message == "" || len(chunks) == 0 {
			t.Errorf("%s: after %d chunks %#v", kind, len(chunks), err)
		}
	}
}

func TestGoOpenAIAbort(t *testing.T) {
	before := cancelled(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q := question("phi3:mini", "Wait for me.")
	q.MaxCompletionTokens = 3000
	q.ResponseFormat = &openai.ChatCompletionResponseFormat{
		Type:       openai.ChatCompletionResponseFormatTypeJSONSchema,
		JSONSchema: &openai.ChatCompletionResponseFormatJSONSchema{Name: "texts", Schema: schema(long)},
	}
	s, err := goOpenAI(key).CreateChatCompletionStream(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	waitForCancel(t, before)
	if _, err := goOpenAI(key).CreateChatCompletion(t.Context(), question("phi3:mini", "Hello.")); err != nil {
		t.Error(err)
	}
}

func TestGoOpenAIWhileLoading(t *testing.T) {
	inject(t, map[string]any{"kind": "slow-load", "model": "llama3", "delay": 11})
	s, err := goOpenAI(key).CreateChatCompletionStream(t.Context(), question("llama3", "Hello."))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Header().Get("Tenure-Residency") != "" {
		t.Error("the headers did not come while it loaded")
	}
	if chunks, err := drain(s); err != nil || len(chunks) < 3 {
		t.Errorf("%d chunks, %v", len(chunks), err)
	}
}
