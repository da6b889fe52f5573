package clients_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/shared"
)

func openaiGo(opts ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{option.WithBaseURL(base), option.WithAPIKey(key), option.WithMaxRetries(0)}, opts...)...)
}

func params(model, text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
}

func TestOpenAIGoModels(t *testing.T) {
	c := openaiGo()
	page, err := c.Models.List(t.Context())
	if err != nil || len(page.Data) < 10 {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, m := range page.Data { // a slash goes as %2F
		if got, err := c.Models.Get(t.Context(), m.ID); err != nil || got.ID != m.ID {
			t.Errorf("%s: %+v, %v", m.ID, got, err)
		}
	}
}

func TestOpenAIGoChat(t *testing.T) {
	c := openaiGo(option.WithBaseURL(base + "/"))
	p := params("recruit/general", "Hello.")
	p.N, p.Seed, p.Logprobs, p.MaxCompletionTokens = openai.Int(2), openai.Int(7), openai.Bool(true), openai.Int(4)
	a, err := c.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if a.Model != p.Model || len(a.Choices) != 2 || a.Choices[0].Message.Content == "" || a.Choices[0].FinishReason != "length" || a.Usage.TotalTokens == 0 {
		t.Errorf("%s", a.RawJSON())
	}
	if a.JSON.ID.Raw() == "" || a.Choices[0].JSON.Logprobs.Raw() == "" || a.Choices[0].Message.JSON.Refusal.Raw() != "null" {
		t.Errorf("fields are missing: %s", a.RawJSON())
	}
}

func TestOpenAIGoStream(t *testing.T) {
	c := openaiGo()
	for _, usage := range []bool{true, false} {
		p := params("phi3:mini", "Hello.")
		if usage {
			p.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
		}
		stream := c.Chat.Completions.NewStreaming(t.Context(), p)
		var sum openai.ChatCompletionAccumulator
		for stream.Next() {
			if !sum.AddChunk(stream.Current()) {
				t.Errorf("the accumulator refuses %s", stream.Current().RawJSON())
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		if len(sum.Choices) != 1 || sum.Choices[0].Message.Content == "" || sum.Choices[0].FinishReason != "stop" || (sum.Usage.TotalTokens > 0) != usage {
			t.Errorf("usage %v: %+v", usage, sum.ChatCompletion)
		}
	}
}

func TestOpenAIGoTools(t *testing.T) {
	c := openaiGo()
	tool := openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "lookup_candidate", Strict: openai.Bool(true), Parameters: lookup})
	required := openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("required")}
	named := openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "lookup_candidate"})
	for _, model := range []string{"mistral", "phi3:mini"} {
		for _, choice := range []openai.ChatCompletionToolChoiceOptionUnionParam{required, named} {
			p := params(model, "Hello.")
			p.Tools, p.ToolChoice = []openai.ChatCompletionToolUnionParam{tool}, choice
			a, err := c.Chat.Completions.New(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			if calls := a.Choices[0].Message.ToolCalls; len(calls) != 1 || calls[0].ID == "" || a.Choices[0].FinishReason != "tool_calls" {
				t.Fatalf("%s: %s", model, a.RawJSON())
			}
			checkLookup(t, a.Choices[0].Message.ToolCalls[0].Function.Arguments)

			stream := c.Chat.Completions.NewStreaming(t.Context(), p)
			var sum openai.ChatCompletionAccumulator
			for stream.Next() {
				sum.AddChunk(stream.Current())
			}
			if err := stream.Err(); err != nil || len(sum.Choices) != 1 || len(sum.Choices[0].Message.ToolCalls) != 1 {
				t.Fatalf("%s: %+v, %v", model, sum.ChatCompletion, err)
			}
			checkLookup(t, sum.Choices[0].Message.ToolCalls[0].Function.Arguments)
		}
	}
}

func TestOpenAIGoToolsAutoAndNone(t *testing.T) {
	simulated(t)
	c := openaiGo()
	p := params("mistral", "Use the lookup tool.")
	p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "lookup_candidate", Parameters: lookup})}
	a, err := c.Chat.Completions.New(t.Context(), p)
	if err != nil || len(a.Choices[0].Message.ToolCalls) != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	p.ToolChoice.OfAuto = openai.String("none")
	if a, err = c.Chat.Completions.New(t.Context(), p); err != nil || len(a.Choices[0].Message.ToolCalls) != 0 || a.Choices[0].Message.Content == "" {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestOpenAIGoStructured(t *testing.T) {
	c := openaiGo()
	p := params("phi3:mini", "Answer in JSON.")
	p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "lookup", Strict: openai.Bool(true), Schema: lookup},
	}
	a, err := c.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	checkLookup(t, a.Choices[0].Message.Content)
	p.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfJSONObject: &shared.ResponseFormatJSONObjectParam{}}
	if a, err = c.Chat.Completions.New(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	checkObject(t, a.Choices[0].Message.Content, a.Choices[0].FinishReason)
}

func TestOpenAIGoNulls(t *testing.T) {
	p := params("phi3:mini", "Hello.")
	p.Temperature, p.Seed = param.Null[float64](), param.Null[int64]()
	c := openaiGo()
	if _, err := c.Chat.Completions.New(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func TestOpenAIGoErrors(t *testing.T) {
	c := openaiGo()
	hot := params("phi3:mini", "Hello.")
	hot.Temperature = openai.Float(9)
	check := func(name string, err error, status int, code string) {
		t.Helper()
		e, ok := errors.AsType[*openai.Error](err)
		if !ok || e.StatusCode != status || code != "" && e.Code != code || e.Message == "" || e.Type == "" {
			t.Errorf("%s: %#v", name, err)
		}
	}
	ask := func(p openai.ChatCompletionNewParams, opts ...option.RequestOption) error {
		_, err := c.Chat.Completions.New(t.Context(), p, opts...)
		return err
	}
	check("range", ask(hot), 400, "")
	check("key", ask(params("phi3:mini", "Hello."), option.WithAPIKey("not-the-key")), 401, "invalid_api_key")
	check("model", ask(params("no-such-model", "Hello.")), 404, "model_not_found")
	check("context", ask(params("phi3:mini", strings.Repeat("word ", 20000))), 400, "context_length_exceeded")
	check("size", ask(params("phi3:mini", strings.Repeat("x", 2<<20))), 413, "request_too_large")
	inject(t, map[string]any{"kind": "queue-full", "times": 1})
	check("busy", ask(params("phi3:mini", "Busy?")), http.StatusTooManyRequests, "upstream_busy")
	inject(t, map[string]any{"kind": "queue-full", "times": 1})
	began := time.Now()
	if err := ask(params("phi3:mini", "Busy again?"), option.WithMaxRetries(2)); err != nil || time.Since(began) < 3*time.Second {
		t.Errorf("busy is not retried as Retry-After asks: %v after %v", err, time.Since(began))
	}
}

func TestOpenAIGoStreamFails(t *testing.T) {
	c := openaiGo()
	for _, kind := range []string{"error-line", "cut-mid", "no-done"} {
		inject(t, map[string]any{"kind": kind, "after": 3, "times": 1})
		stream := c.Chat.Completions.NewStreaming(t.Context(), params("phi3:mini", "Fail with "+kind))
		chunks := 0
		for stream.Next() {
			chunks++
		}
		if err := stream.Err(); err == nil || chunks == 0 || !strings.Contains(err.Error(), "upstream_") {
			t.Errorf("%s: after %d chunks %v", kind, chunks, err)
		}
	}
}

func TestOpenAIGoAbort(t *testing.T) {
	before := cancelled(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	c := openaiGo()
	p := params("phi3:mini", "Wait for me.")
	p.MaxCompletionTokens = openai.Int(3000)
	p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "texts", Schema: long},
	}
	if _, err := c.Chat.Completions.New(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	waitForCancel(t, before)
	if _, err := c.Chat.Completions.New(t.Context(), params("phi3:mini", "Hello.")); err != nil {
		t.Error(err)
	}
}
