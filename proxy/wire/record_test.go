package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
	"pgregory.net/rapid"
)

const twoTools = `"tools":[{"type":"function","function":{"name":"find","parameters":{"type":"object","properties":{"id":{"type":"integer"}}}}},{"type":"function","function":{"name":"ping"}}]`

func decoded(tb testing.TB, body []byte) *Chat {
	tb.Helper()
	c, err := DecodeChat(body, Limits{})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// record feeds the pieces of one answer and returns the body's choice and what
// the stream's deltas add up to.
func record(t interface{ Fatalf(string, ...any) }, c *Chat, p Params, pieces []string) (choice, streamed message, err error) {
	rec := NewRecorder(c, p)
	var chunks [][]byte
	for i, piece := range pieces {
		resp := &api.ChatResponse{Message: api.Message{Content: piece}}
		if i == len(pieces)-1 {
			resp.Done, resp.DoneReason = true, "stop"
		}
		made, err := rec.Line(0, resp)
		if err != nil {
			return choice, streamed, err
		}
		chunks = append(chunks, made...)
	}
	a := Answer{ID: "chatcmpl-1", Model: "m", Created: 1}
	var body struct {
		Choices []struct {
			Message      message
			FinishReason string `json:"finish_reason"`
		}
	}
	if err := json.Unmarshal(a.AppendBody(nil, slices.Values(chunks)), &body); err != nil {
		t.Fatalf("body: %v", err)
	}
	choice = body.Choices[0].Message
	choice.Finish = body.Choices[0].FinishReason

	for _, chunk := range chunks {
		data := a.AppendEvents(nil, chunk)
		if len(data) == 0 {
			continue
		}
		var event struct {
			Choices []struct {
				Delta        message
				FinishReason *string `json:"finish_reason"`
			}
		}
		if err := json.Unmarshal(bytes.TrimPrefix(data, []byte("data: ")), &event); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		d := event.Choices[0].Delta
		streamed.Content += d.Content
		streamed.Reasoning += d.Reasoning
		streamed.Calls = append(streamed.Calls, d.Calls...)
		if r := event.Choices[0].FinishReason; r != nil {
			streamed.Finish += *r
		}
	}
	for i := range streamed.Calls {
		streamed.Calls[i].Index = 0 // a body has none
	}
	return choice, streamed, nil
}

type message struct {
	Content   string
	Reasoning string `json:"reasoning_content"`
	Calls     []struct {
		Index    int
		ID       string
		Function struct{ Name, Arguments string }
	} `json:"tool_calls"`
	Finish string `json:"-"`
}

// cut splits text anywhere between characters.
func cut(t *rapid.T, text string) []string {
	var pieces []string
	for text != "" {
		n := rapid.IntRange(1, len(text)).Draw(t, "n")
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n++
		}
		pieces = append(pieces, text[:n])
		text = text[n:]
	}
	return append(pieces, "")
}

// TestPiecesDoNotMatter: however the server cuts its answer, the client gets
// the same, as a body and as a stream.
func TestPiecesDoNotMatter(t *testing.T) {
	answers := map[string]string{
		"text":    "Hello \"world\" 😀\n<think>no</think>",
		"thought": " <think>\nlet me \"see\" </thin </think>\n\nYes <think>.",
		"open":    "<think>never closed </thi",
		"tag":     "<thin",
		"blank":   " \n ",
		"answer":  "{ \"answer\" :\"a \\\"b\\\" \\u00e9 \\ud83d\\ude00 \\ud83dx \\\\ 日本 \\n.\" }",
		"call":    "{\"tool\": \"find\", \"arguments\": {\"id\": 7}}",
	}
	want := map[string]message{
		"text":    {Content: "Hello \"world\" 😀\n<think>no</think>", Finish: "stop"},
		"thought": {Content: "Yes <think>.", Reasoning: "let me \"see\" </thin ", Finish: "stop"},
		"open":    {Reasoning: "never closed </thi", Finish: "stop"},
		"tag":     {Content: "<thin", Finish: "stop"},
		"blank":   {Content: " \n ", Finish: "stop"},
		"answer":  {Content: "a \"b\" é 😀 \ufffdx \\ 日本 \n.", Finish: "stop"},
	}
	call := message{Finish: "tool_calls"}
	if err := json.Unmarshal([]byte(`{"tool_calls":[{"id":"call_1_0_0","function":{"name":"find","arguments":"{\"id\": 7}"}}]}`), &call); err != nil {
		t.Fatal(err)
	}
	want["call"] = call
	tools := decoded(t, []byte(with(twoTools)))
	for name, text := range answers {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				c := &Chat{N: 1}
				if name == "answer" || name == "call" {
					c = tools
				}
				body, stream, err := record(t, c, Params{Capabilities: []string{}}, cut(t, text))
				if err != nil {
					t.Fatalf("%v", err)
				}
				if diff := cmp.Diff(want[name], body); diff != "" {
					t.Errorf("body: -want +got\n%s", diff)
				}
				if diff := cmp.Diff(want[name], stream); diff != "" {
					t.Errorf("stream: -want +got\n%s", diff)
				}
			})
		})
	}
}

// TestBrokenReplies: what the grammar should have prevented is an error.
func TestBrokenReplies(t *testing.T) {
	plain := Params{Capabilities: []string{}}
	for _, tt := range []struct{ name, member, reply string }{
		{"union, no JSON", twoTools, `Jane`},
		{"union, unfinished answer", twoTools, `{"answer":"Ja`},
		{"union, unknown tool", twoTools, `{"tool":"drop","arguments":{}}`},
		{"union, no arguments", twoTools, `{"tool":"find"}`},
		{"union, arguments of the wrong type", twoTools, `{"tool":"find","arguments":[7]}`},
		{"union, neither", twoTools, `{}`},
		{"required, answered", twoTools + `,"tool_choice":"required"`, `{"answer":"no"}`},
		{"named, no JSON", twoTools + `,"tool_choice":{"type":"function","function":{"name":"find"}}`, `seven`},
		{"named, no object", twoTools + `,"tool_choice":{"type":"function","function":{"name":"find"}}`, `7`},
		{"strict arguments", strings.Replace(twoTools, `"name":"find"`, `"name":"find","strict":true`, 1) + `,"tool_choice":"required"`, `{"tool":"find","arguments":{"id":"7"}}`},
		{"schema within a union", twoTools + `,` + strings.Replace(schemaAB, `"name"`, `"strict":true,"name"`, 1), `{"answer":{"b":0}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := record(t, decoded(t, []byte(with(tt.member))), plain, []string{tt.reply})
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Status != 502 || e.Type != "server_error" || e.Code != "invalid_output" {
				t.Errorf("got %+v, want a 502 invalid_output", err)
			}
		})
	}
}

// TestStopCutsAnswer: the client's stop sequence may cut what would otherwise
// have to be whole.
func TestStopCutsAnswer(t *testing.T) {
	body, _, err := record(t, decoded(t, []byte(with(twoTools+`,"stop":"X"`))), Params{Capabilities: []string{}}, []string{`{"answer":"Ja`, ""})
	if err != nil || body.Content != "Ja" {
		t.Errorf("got %+v, %v", body, err)
	}
	if _, _, err := record(t, decoded(t, []byte(with(`"response_format":{"type":"json_object"},"stop":"X"`))), Params{}, []string{`{"a`, ""}); err != nil {
		t.Error(err)
	}
}

func TestFinish(t *testing.T) {
	rec := NewRecorder(&Chat{N: 2}, Params{})
	done := func(i int, reason string, prompt, tokens int) [][]byte {
		t.Helper()
		chunks, err := rec.Line(i, &api.ChatResponse{Done: true, DoneReason: reason, Metrics: api.Metrics{PromptEvalCount: prompt, EvalCount: tokens}})
		if err != nil {
			t.Fatal(err)
		}
		return chunks
	}
	if rec.FinishReason() != "" || rec.Done() {
		t.Error("done before the first line")
	}
	if chunks := done(1, "length", 7, 5); rec.Done() || len(chunks) != 2 {
		t.Errorf("one of two is done: Done %v, %d chunks", rec.Done(), len(chunks))
	}
	chunks := done(0, "stop", 7, 3)
	if !rec.Done() || rec.FinishReason() != "stop" || !rec.Truncated() {
		t.Errorf("Done %v, FinishReason %q, Truncated %v", rec.Done(), rec.FinishReason(), rec.Truncated())
	}
	prompt, completion, ok := FinishCounts(chunks[len(chunks)-1])
	if prompt != 7 || completion != 8 || !ok {
		t.Errorf("counts %d, %d, %v, want 7, 8, true", prompt, completion, ok)
	}
	if _, _, ok := FinishCounts(chunks[0]); ok {
		t.Error("another chunk has counts")
	}
	if chunks := done(0, "stop", 7, 3); len(chunks) != 0 {
		t.Errorf("a line after the last makes %d chunks", len(chunks))
	}
}

// TestEscaped: whatever the model writes, a reader of the JSON reads.
func TestEscaped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "s")
		var got string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil {
			t.Fatal(err)
		}
		if want := string([]rune(s)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if back := unescape(appendEscaped(nil, s)); back != got {
			t.Errorf("unescaped %q, want %q", back, got)
		}
	})
}

func TestErrorEvent(t *testing.T) {
	e := &Error{Status: 502, Type: "server_error", Message: "gone \"away\""}
	got := string((&Answer{}).AppendErrorEvent(nil, e))
	want := `data: {"error":{"message":"gone \"away\"","type":"server_error","param":null,"code":null}}` + "\n\n"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
