package wire

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
)

// A native request means to a model what the same chat completion does.
func TestNativeIsAChat(t *testing.T) {
	const image = "iVBORw0KGgo="
	for name, c := range map[string]struct{ generate, native, chat string }{
		"chat": {
			native: `{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"u","images":["` + image + `"]}]}`,
			chat:   `{"model":"m","stream":true,"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"u"},{"type":"image_url","image_url":{"url":"data:image/png;base64,` + image + `"}}]}]}`,
		},
		"options": {
			native: `{"model":"m","stream":false,"messages":[{"role":"user","content":"u"}],"options":{"num_predict":7,"temperature":0,"top_p":0.5,"min_p":0.1,"top_k":3,"seed":4,"stop":["x"],"frequency_penalty":1,"presence_penalty":1,"repeat_penalty":1.1}}`,
			chat:   `{"model":"m","messages":[{"role":"user","content":"u"}],"max_tokens":7,"temperature":0,"top_p":0.5,"min_p":0.1,"top_k":3,"seed":4,"stop":["x"],"frequency_penalty":1,"presence_penalty":1,"repeat_penalty":1.1}`,
		},
		"no limit": {
			native: `{"model":"m","stream":false,"messages":[{"role":"user","content":"u"}],"options":{"num_predict":-1}}`,
			chat:   `{"model":"m","messages":[{"role":"user","content":"u"}]}`,
		},
		"json": {
			native: `{"model":"m","format":"json","messages":[{"role":"user","content":"u"}]}`,
			chat:   `{"model":"m","stream":true,"response_format":{"type":"json_object"},"messages":[{"role":"user","content":"u"}]}`,
		},
		"schema": {
			native: `{"model":"m","format":{"type":"object"},"messages":[{"role":"user","content":"u"}],"think":false}`,
			chat:   `{"model":"m","stream":true,"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}},"messages":[{"role":"user","content":"u"}],"reasoning_effort":"none"}`,
		},
		"tools": {
			native: `{"model":"m","messages":[{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool","tool_name":"f","content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}`,
			chat:   `{"model":"m","stream":true,"messages":[{"role":"assistant","content":"","tool_calls":[{"id":"","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","name":"f","content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}`,
		},
		"generate": {
			generate: `{"model":"m","system":"s","prompt":"p","raw":false,"suffix":"","context":[],"images":["` + image + `"]}`,
			chat:     `{"model":"m","stream":true,"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"p"},{"type":"image_url","image_url":{"url":"data:image/png;base64,` + image + `"}}]}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := DecodeNativeChat([]byte(c.native), Limits{})
			if c.generate != "" {
				n, err = DecodeNativeGenerate([]byte(c.generate), Limits{})
			}
			if err != nil {
				t.Fatal(err)
			}
			chat := decoded(t, []byte(c.chat))
			if n.Stream != chat.Stream {
				t.Errorf("stream %v, want %v", n.Stream, chat.Stream)
			}
			p := Params{Model: "m", Context: 4096}
			if diff := cmp.Diff(chat.AppendKey(nil, p), n.AppendKey(nil, p)); diff != "" {
				t.Errorf("another key: %s", diff)
			}
			want, err := chat.Request(p)
			if err != nil {
				t.Fatal(err)
			}
			got, err := n.Request(p)
			if err != nil {
				t.Fatal(err)
			}
			wantJSON, _ := json.Marshal(want)
			gotJSON, _ := json.Marshal(got)
			if diff := cmp.Diff(string(wantJSON), string(gotJSON)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNativeRefuses(t *testing.T) {
	const rest = `,"messages":[{"role":"user","content":"u"}]}`
	for body, param := range map[string]string{
		`{"model":"m","Model":"n"` + rest:                                                "model",
		`{"model":""` + rest:                                                             "model",
		`{"model":"m","format":"xml"` + rest:                                             "format",
		`{"model":"m","options":{"temperature":"warm"}` + rest:                           "options.temperature",
		`{"model":"m","messages":[{"content":"u"}]}`:                                     "messages[0].role",
		`{"model":"m","messages":[{"role":"user","content":"u","images":["aGVsbG8="]}]}`: "messages[0].images[0]",
		`{"model":"m","messages":[],"keep_alive":0}`:                                     "keep_alive",
		`{"model":"m","keep_alive":"0s"}`:                                                "keep_alive",
	} {
		_, err := DecodeNativeChat([]byte(body), Limits{})
		if e, ok := errors.AsType[*Error](err); !ok || e.Param != param {
			t.Errorf("%s: %+v, want %s refused", body, err, param)
		}
	}
	for body, param := range map[string]string{
		`{"model":"m","prompt":"p","raw":true}`:        "raw",
		`{"model":"m","prompt":"p","context":[1]}`:     "context[0]",
		`{"model":"m","prompt":"p","suffix":"s"}`:      "suffix",
		`{"model":"m","prompt":"p","template":"{{}}"}`: "template",
		`{"model":"m","prompt":"","keep_alive":0}`:     "keep_alive",
	} {
		_, err := DecodeNativeGenerate([]byte(body), Limits{})
		if e, ok := errors.AsType[*Error](err); !ok || e.Param != param {
			t.Errorf("%s: %+v, want %s refused", body, err, param)
		}
	}
}

func TestNativeIgnores(t *testing.T) {
	n, err := DecodeNativeChat([]byte(`{"model":"m","keep_alive":"5m","truncate":true,"shift":false,"think":true,"options":{"num_ctx":8192,"mirostat":1},"messages":[{"role":"user","content":"u"}]}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"keep_alive", "truncate", "options.num_ctx", "options.mirostat", "think"}
	if diff := cmp.Diff(want, n.IgnoredFor(Params{Capabilities: []string{"completion"}})); diff != "" {
		t.Error(diff)
	}
}

// What Ollama says comes through as it was, for Ollama's own types to read.
func TestNativeAnswers(t *testing.T) {
	lines := []api.ChatResponse{
		{Message: api.Message{Thinking: "hm \"so\""}},
		{Message: api.Message{Content: "Grüße\n<b>"}},
		{Message: api.Message{Content: "!"}, Logprobs: []api.Logprob{{TokenLogprob: api.TokenLogprob{Token: "!", Logprob: -0.5, Bytes: []int{33}}, TopLogprobs: []api.TokenLogprob{{Token: "?", Logprob: -2}}}}},
		{
			Done: true, DoneReason: "stop",
			Metrics: api.Metrics{PromptEvalCount: 7, EvalCount: 3, LoadDuration: time.Second, PromptEvalDuration: 2 * time.Millisecond, EvalDuration: 3 * time.Hour},
		},
	}
	for _, generate := range []bool{false, true} {
		n, err := DecodeNativeChat([]byte(`{"model":"recruit-auto","logprobs":true,"messages":[{"role":"user","content":"u"}]}`), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		n.generate = generate
		rec, stamp := NewRecorder(n.Chat, Params{}), Stamp{ID: "1", Created: 1700000000}
		var chunks [][]byte
		var stream []byte
		e := n.Encoder(stamp)
		for _, line := range lines {
			made, err := rec.Line(0, &line)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range made {
				chunks = append(chunks, c)
				stream = e.AppendEvents(stream, c)
			}
		}
		stream = e.AppendEnd(stream)
		body := n.Encoder(stamp).AppendBody(nil, slices.Values(chunks))
		for form, doc := range map[string]string{"stream": string(stream), "body": string(body) + "\n"} {
			var text, thinking string
			var logprobs []api.Logprob
			var last api.ChatResponse
			for line := range strings.Lines(doc) {
				if last.Done {
					t.Errorf("%s: a line after the last", form)
				}
				last = api.ChatResponse{}
				if err := json.Unmarshal([]byte(line), &last); err != nil {
					t.Fatalf("%s: %s: %v", form, line, err)
				}
				if generate {
					var g api.GenerateResponse
					if err := json.Unmarshal([]byte(line), &g); err != nil {
						t.Fatal(err)
					}
					last.Message.Content, last.Message.Thinking = g.Response, g.Thinking
				} else if last.Message.Role != "assistant" {
					t.Errorf("%s: role %q", form, last.Message.Role)
				}
				text, thinking = text+last.Message.Content, thinking+last.Message.Thinking
				logprobs = append(logprobs, last.Logprobs...)
				if last.Model != "recruit-auto" || last.CreatedAt.Unix() != stamp.Created {
					t.Errorf("%s: model %q at %v", form, last.Model, last.CreatedAt)
				}
			}
			if text != "Grüße\n<b>!" || thinking != `hm "so"` {
				t.Errorf("%s: text %q, thinking %q", form, text, thinking)
			}
			if diff := cmp.Diff(lines[2].Logprobs, logprobs); diff != "" {
				t.Errorf("%s: %s", form, diff)
			}
			want := lines[3].Metrics
			want.TotalDuration = want.LoadDuration + want.PromptEvalDuration + want.EvalDuration
			if diff := cmp.Diff(want, last.Metrics); diff != "" || !last.Done || last.DoneReason != "stop" {
				t.Errorf("%s: done %v (%s): %s", form, last.Done, last.DoneReason, diff)
			}
		}
	}
}

func TestNativeToolCalls(t *testing.T) {
	n, err := DecodeNativeChat([]byte(`{"model":"m",`+twoTools+`,"messages":[{"role":"user","content":"u"}]}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var arguments api.ToolCallFunctionArguments
	if err := json.Unmarshal([]byte(`{"id":5,"note":"a \"b\""}`), &arguments); err != nil {
		t.Fatal(err)
	}
	rec := NewRecorder(n.Chat, Params{Capabilities: []string{"tools"}})
	made, err := rec.Line(0, &api.ChatResponse{Done: true, DoneReason: "stop", Message: api.Message{ToolCalls: []api.ToolCall{
		{Function: api.ToolCallFunction{Name: "find", Arguments: arguments}}, {Function: api.ToolCallFunction{Name: "ping"}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var got api.ChatResponse
	if err := json.Unmarshal(n.Encoder(Stamp{}).AppendBody(nil, slices.Values(made)), &got); err != nil {
		t.Fatal(err)
	}
	calls := got.Message.ToolCalls
	if len(calls) != 2 || calls[0].Function.Name != "find" || calls[0].Function.Arguments.String() != arguments.String() || calls[1].Function.Index != 1 || got.DoneReason != "stop" {
		t.Errorf("%+v, done_reason %q", calls, got.DoneReason)
	}
}

func TestNativeErrors(t *testing.T) {
	e := &Error{Status: http.StatusBadRequest, Message: `no "such"`}
	if got, want := string((&nativeAnswer{}).AppendErrorEvent(nil, e)), `{"error":"no \"such\""}`+"\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzDecodeNative(f *testing.F) {
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"u","images":["iVBORw0KGgo="]}],"options":{"stop":"x"},"format":"json","think":"low"}`))
	f.Add([]byte(`{"model":"m","prompt":"p","system":"s","stream":false,"keep_alive":-1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var want struct {
			Model    string
			Stream   *bool
			Prompt   string
			Messages []struct{ Role, Content string }
		}
		lenient := json.Unmarshal(body, &want)
		for _, generate := range []bool{false, true} {
			n, err := decodeNative(body, Limits{}, generate)
			if err != nil {
				if e, ok := errors.AsType[*Error](err); !ok || !json.Valid(e.AppendNative(nil)) {
					t.Fatalf("refused with %#v", err)
				}
				continue
			}
			if !json.Valid(body) {
				t.Fatal("accepted what is not JSON")
			}
			if lenient != nil {
				continue // members of the other endpoint's, of another type
			}
			if n.Model != want.Model || want.Stream != nil && n.Stream != *want.Stream {
				t.Errorf("model %q, stream %v", n.Model, n.Stream)
			}
			if last := len(n.Messages) - 1; generate && last >= 0 && n.Messages[last].Text != want.Prompt {
				t.Errorf("prompt %q, want %q", n.Messages[last].Text, want.Prompt)
			}
			if !generate && len(want.Messages) == 1 && n.Messages[0].Text != want.Messages[0].Content {
				t.Errorf("content %q, want %q", n.Messages[0].Text, want.Messages[0].Content)
			}
		}
	})
}

func FuzzDecodeNativeEmbed(f *testing.F) {
	f.Add([]byte(`{"model":"m","input":["a","b"],"prompt":"p","truncate":true,"dimensions":0,"options":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, old := range []bool{false, true} {
			n, err := decodeNativeEmbed(body, Limits{}, old)
			if err != nil {
				if _, ok := errors.AsType[*Error](err); !ok {
					t.Fatalf("refused with %#v", err)
				}
				continue
			}
			var want struct {
				Model  string
				Prompt any
			}
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatalf("accepted what encoding/json refuses: %v", err)
			}
			if n.Model != want.Model || old && n.Input[0] != want.Prompt {
				t.Errorf("%+v, want %+v", n.Embeddings, want)
			}
		}
	})
}
