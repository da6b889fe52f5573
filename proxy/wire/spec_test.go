package wire

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/wire/wiretest"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestAnswersMeetSpec holds every body, event and error of the golden files
// against OpenAI's schemas.
func TestAnswersMeetSpec(t *testing.T) {
	s := wiretest.Open(t)
	body := s.Schema(t, "CreateChatCompletionResponse")
	event := s.Schema(t, "CreateChatCompletionStreamResponse")
	refusal := s.Schema(t, "ErrorResponse")
	for schema, bad := range map[*jsonschema.Schema]any{
		body:    map[string]any{"id": "x", "object": "chat.completion", "created": 1, "model": "m"},
		event:   map[string]any{"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []any{map[string]any{"index": 0, "delta": map[string]any{"role": "robot"}, "finish_reason": nil}}},
		refusal: map[string]any{"error": map[string]any{"message": "m", "type": "t"}},
	} {
		if schema.Validate(bad) == nil {
			t.Fatalf("the schema takes %v", bad)
		}
	}
	files, _ := filepath.Glob("testdata/chat/*.txtar")
	seen := map[string]int{}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			for _, f := range archive.Files {
				seen[f.Name]++
				switch f.Name {
				case "body.json":
					wiretest.Validate(t, body, f.Data)
				case "error.json":
					wiretest.Validate(t, refusal, f.Data)
				case "stream.sse":
					for data := range bytes.SplitSeq(bytes.TrimSpace(f.Data), []byte("\n\n")) {
						if data, ok := bytes.CutPrefix(data, []byte("data: ")); !ok {
							t.Errorf("%q is no event", data)
						} else if string(data) != "[DONE]" {
							wiretest.Validate(t, event, data)
						}
					}
				}
			}
		})
	}
	for _, name := range []string{"body.json", "stream.sse", "error.json"} {
		if seen[name] == 0 {
			t.Errorf("no golden file has a %s", name)
		}
	}
}

// TestStreamForm pins what clients need of every stream, with no spec at hand:
// the role first, one finish_reason for each choice, [DONE] at the very end.
func TestStreamForm(t *testing.T) {
	files, _ := filepath.Glob("testdata/chat/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			if f.Name != "stream.sse" {
				continue
			}
			text := string(f.Data)
			first, _, _ := strings.Cut(text, "\n")
			choices := strings.Count(text, `"role":"assistant"`)
			switch finished := strings.Count(text, `"finish_reason":"`); {
			case !strings.Contains(first, `"delta":{"role":"assistant","content":""`):
				t.Errorf("%s begins with %s", file, first)
			case choices == 0 || finished != choices:
				t.Errorf("%s: %d choices, %d finish reasons", file, choices, finished)
			case !strings.HasSuffix(strings.TrimSpace(text), "\n\ndata: [DONE]"):
				t.Errorf("%s does not end with [DONE]", file)
			case strings.Contains(text, `"error"`):
				t.Errorf("%s has the key error in a good event", file)
			}
		}
	}
}

// TestEveryField sends all fields of the schema at once.
func TestEveryField(t *testing.T) {
	body, err := os.ReadFile("testdata/every-field.json")
	if err != nil {
		t.Fatal(err)
	}
	c := decoded(t, body)
	want := strings.Fields(`messages.name audio logit_bias modalities moderation prediction prompt_cache_key prompt_cache_options prompt_cache_retention
		safety_identifier store stream_options.include_obfuscation verbosity web_search_options functions function_call`)
	if !slices.Equal(c.Ignored, want) {
		t.Errorf("ignored %q, want %q", c.Ignored, want)
	}
	for _, p := range []Params{{Model: "m"}, {Model: "m", Capabilities: []string{"completion", "vision"}}, {Model: "m", Capabilities: []string{"tools", "thinking", "vision"}}} {
		if _, err := c.Request(p); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// TestEveryFieldIsAll compares that request with the specification: all of its
// properties are in it and known to the decoder by name.
func TestEveryFieldIsAll(t *testing.T) {
	s := wiretest.Open(t)
	body, err := os.ReadFile("testdata/every-field.json")
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Validate(t, s.Schema(t, "CreateChatCompletionRequest"), body)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	names := s.Properties("CreateChatCompletionRequest")
	if len(names) < 30 {
		t.Fatalf("only %d properties found: %q", len(names), names)
	}
	for _, name := range names {
		if _, ok := doc.(map[string]any)[name]; !ok {
			t.Errorf("the request lacks %s", name)
		}
		if _, ok := chatKeys.place[name]; !ok {
			t.Errorf("the decoder does not know %s", name)
		}
	}
}

// TestDocNamesFields: the lists in the package's documentation are complete.
func TestDocNamesFields(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(string(doc), func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z')
	})
	for _, name := range slices.Concat(chatKeys.names, embeddingsKeys.names, completionKeys.names, responsesKeys.names) {
		if !slices.Contains(words, name) {
			t.Errorf("doc.go does not mention %s", name)
		}
	}
}
