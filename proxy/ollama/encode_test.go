package ollama

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/ollama/ollama/api"
	"pgregory.net/rapid"
)

// What goes out is what encoding/json would send.
func TestEncodeChat(t *testing.T) {
	text := rapid.StringOf(rapid.RuneFrom([]rune("aä<&\"\\\n\t\x00\u2028😀\ufffd")))
	rapid.Check(t, func(t *rapid.T) {
		req := &api.ChatRequest{
			Model: text.Draw(t, "model"), Stream: new(true), Truncate: new(false), Shift: new(false),
			Options: map[string]any{"stop": []string{text.Draw(t, "stop"), `"messages":null`}, "seed": rapid.Int32().Draw(t, "seed"), "num_ctx": rapid.IntRange(0, 1<<20).Draw(t, "num_ctx"), "top_p": rapid.Float64().Draw(t, "top_p")},
		}
		if rapid.Bool().Draw(t, "format") {
			req.Format, req.TopLogprobs = json.RawMessage(`"json"`), 1
		}
		for range rapid.IntRange(0, 3).Draw(t, "messages") {
			m := api.Message{Role: text.Draw(t, "role"), Content: text.Draw(t, "content")}
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0:
				m.Images = []api.ImageData{[]byte("image")}
			case 1:
				m.ToolCalls = []api.ToolCall{{Function: api.ToolCallFunction{Name: text.Draw(t, "tool")}}}
			case 2:
				m.ToolName = text.Draw(t, "tool")
			}
			req.Messages = append(req.Messages, m)
		}
		plain, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := appendChat(nil, req)
		if err != nil {
			t.Fatal(err)
		}
		var want, got map[string]any
		if err := json.Unmarshal(plain, &want); err != nil {
			t.Fatal(err)
		}
		if want["messages"] == nil {
			want["messages"] = []any{} // nobody asks nothing
		}
		if err := json.Unmarshal(encoded, &got); err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s, want %s", encoded, plain)
		}
	})
}
