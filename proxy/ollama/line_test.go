package ollama

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
)

// What line reads, encoding/json reads in the same way.
func FuzzLine(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","created_at":"2026-01-01T00:00:00.123Z","message":{"role":"assistant","content":"a \"word\"\nand \\ ü"},"done":false}`,
		`{"model":"m","created_at":"2026-01-01T00:00:00+02:00","message":{"role":"assistant","content":"","thinking":"hm"},"done":true,"done_reason":"stop","total_duration":1234567890,"load_duration":0,"prompt_eval_count":7,"prompt_eval_duration":12,"eval_count":3,"eval_duration":99}`,
		`{"message":{"role":"assistant","content":"\u003c","tool_calls":[{}]},"logprobs":[]}`,
		`{"message":{"content":"\u003c\u00fc\u12"}}`, `{"message":{"content":"\u+123"}}`, `{"error":"boom"}`, `{"done":true}`, `{"done":true,"done":false}`, `{"Done":true}`, `{"eval_count":007}`, `{"eval_count":-1}`, `{"done":true} x`,
		`{"message":{"content":"` + "\xff" + `"}}`, `{"message":{"content":"\ud800"}}`, `{"message":{"content":"\"}}`, `{"model":"\q"}`, `{"message":{"content":"a"},"message":{"role":"b"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got api.ChatResponse
		if l := (line{data: data}); !l.chat(&got) {
			return
		}
		var l chatLine
		if err := json.Unmarshal(data, &l); err != nil {
			t.Fatalf("%q was read, though %v", data, err)
		}
		want := api.ChatResponse{CreatedAt: l.CreatedAt, Message: api.Message(l.Message), Done: l.Done, DoneReason: l.DoneReason, Metrics: l.Metrics}
		if diff := cmp.Diff(want, got); diff != "" || l.Error != "" {
			t.Errorf("%q: %s", data, diff)
		}
	})
}

// Ollama's usual lines are read without encoding/json.
func TestUsualLinesAreKnown(t *testing.T) {
	for _, piece := range []api.ChatResponse{
		{Model: "llama3", Message: api.Message{Role: "assistant", Content: " a \"word\"\n\tand\\more <ü>\u2028"}},
		{Model: "llama3", Message: api.Message{Role: "assistant", Thinking: "well"}},
		{Model: "llama3", Done: true, DoneReason: "stop", Message: api.Message{Role: "assistant"}, Metrics: api.Metrics{
			TotalDuration: 5_000_000_000, LoadDuration: 1, PromptEvalCount: 26, PromptEvalDuration: 2, EvalCount: 298, EvalDuration: 4_799_921_000,
		}},
	} {
		data, err := json.Marshal(&piece)
		if err != nil {
			t.Fatal(err)
		}
		var got api.ChatResponse
		piece.Model = ""
		if l := (line{data: data}); !l.chat(&got) || cmp.Diff(piece, got) != "" {
			t.Errorf("%s: %s", data, cmp.Diff(piece, got))
		}
	}
}
