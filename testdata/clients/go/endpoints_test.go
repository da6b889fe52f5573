package clients_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/responses"
	goopenai "github.com/sashabaranov/go-openai"
)

const embedder = "nomic-embed-text"

func TestOpenAIGoEmbeddings(t *testing.T) {
	c := openaiGo()
	ask := func(texts ...string) (*openai.CreateEmbeddingResponse, error) {
		return c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
			Model: embedder, Dimensions: openai.Int(8), Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: texts},
		})
	}
	a, err := ask("a nurse", "a cook")
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Data) != 2 || a.Data[1].Index != 1 || len(a.Data[1].Embedding) != 8 || a.Usage.TotalTokens == 0 {
		t.Errorf("%s", a.RawJSON())
	}
	var refused *openai.Error
	if _, err := ask("x", strings.Repeat("word ", 20000)); !errors.As(err, &refused) || refused.StatusCode != 400 || refused.Code != "context_length_exceeded" {
		t.Errorf("too long: %v", err)
	}
}

func TestGoOpenAIEmbeddings(t *testing.T) {
	c := goOpenAI(key)
	var vectors [2][]float32
	for i, format := range []goopenai.EmbeddingEncodingFormat{goopenai.EmbeddingEncodingFormatFloat, goopenai.EmbeddingEncodingFormatBase64} {
		a, err := c.CreateEmbeddings(t.Context(), goopenai.EmbeddingRequestStrings{Input: []string{"a nurse"}, Model: embedder, EncodingFormat: format})
		if err != nil || len(a.Data) != 1 {
			t.Fatalf("%s: %+v, %v", format, a, err)
		}
		vectors[i] = a.Data[0].Embedding
	}
	for i := range vectors[0] {
		if vectors[0][i] != vectors[1][i] {
			t.Fatalf("at %d: %v as a number, %v in base64", i, vectors[0][i], vectors[1][i])
		}
	}
}

func TestOpenAIGoCompletions(t *testing.T) {
	c := openaiGo()
	a, err := c.Completions.New(t.Context(), openai.CompletionNewParams{
		Model: "phi3:mini", N: openai.Int(2), Echo: openai.Bool(true), MaxTokens: openai.Int(8),
		Prompt: openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"A nurse.", "A cook."}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Choices) != 4 || !strings.HasPrefix(a.Choices[3].Text, "A cook.") || a.Choices[3].Index != 3 || a.Usage.TotalTokens == 0 {
		t.Errorf("%s", a.RawJSON())
	}
	stream := c.Completions.NewStreaming(t.Context(), openai.CompletionNewParams{
		Model: "phi3:mini", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("A nurse.")}, MaxTokens: openai.Int(8),
	})
	text := ""
	for stream.Next() {
		text += stream.Current().Choices[0].Text
	}
	if err := stream.Err(); err != nil || text == "" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestOpenAIGoResponses(t *testing.T) {
	c := openaiGo()
	p := responses.ResponseNewParams{Model: "phi3:mini", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Look up Jane.")}, MaxOutputTokens: openai.Int(300)}
	a, err := c.Responses.New(t.Context(), p)
	if err != nil || a.OutputText() == "" || a.Usage.TotalTokens == 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	p.Tools = []responses.ToolUnionParam{{OfFunction: &responses.FunctionToolParam{Name: "lookup_candidate", Parameters: lookup, Strict: openai.Bool(true)}}}
	p.ToolChoice = responses.ResponseNewParamsToolChoiceUnion{OfToolChoiceMode: openai.Opt(responses.ToolChoiceOptionsRequired)}
	stream := c.Responses.NewStreaming(t.Context(), p)
	arguments, last := "", ""
	for stream.Next() {
		e := stream.Current()
		if last = e.Type; e.Type == "response.function_call_arguments.done" {
			arguments = e.Arguments
		}
	}
	if err := stream.Err(); err != nil || last != "response.completed" || !json.Valid([]byte(arguments)) {
		t.Errorf("ends with %q, arguments %q, %v", last, arguments, err)
	}
	if _, err := c.Responses.Get(t.Context(), a.ID, responses.ResponseGetParams{}); err == nil {
		t.Error("a response was stored")
	}
}

func TestOpenAIGoResponsesStreamFails(t *testing.T) {
	inject(t, map[string]any{"kind": "error-line", "After": 2, "Times": 1})
	c := openaiGo()
	stream := c.Responses.NewStreaming(t.Context(), responses.ResponseNewParams{
		Model: "phi3:mini", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Hello.")},
	})
	for stream.Next() {
	}
	if stream.Err() == nil {
		t.Error("a stream that broke is taken for one that ended")
	}
}
