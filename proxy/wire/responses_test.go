package wire

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/wire/wiretest"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestResponses is TestChat for testdata/responses.
func TestResponses(t *testing.T) { eachGolden(t, "testdata/responses", (*golden).respond) }

func (g *golden) respond() {
	t := g.t
	var p Params
	if err := json.Unmarshal(g.in("params.json"), &p); err != nil {
		t.Fatalf("params.json: %v", err)
	}
	r, err := DecodeResponses(g.in("request.json"), Limits{})
	var req *api.ChatRequest
	if err == nil {
		req, err = r.Request(p)
	}
	if err != nil {
		g.out("error.json", appendJSON(t, err))
		return
	}
	if ignored := r.IgnoredFor(p); len(ignored) > 0 {
		g.out("ignored", []byte(strings.Join(ignored, "\n")))
	}
	g.out("upstream.json", indented(t, req))
	recorder := NewRecorder(r.Chat, p)
	stamp := Stamp{ID: "1", Created: 1700000000}
	stream := r.Encoder(stamp)
	var events []byte
	var chunks [][]byte
	for line := range bytes.Lines(g.in("lines.ndjson")) {
		var resp api.ChatResponse
		if err := json.Unmarshal(line, &resp); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		made, err := recorder.Line(0, &resp)
		if err != nil {
			t.Fatal(err)
		}
		for _, chunk := range made {
			chunks = append(chunks, chunk)
			events = stream.AppendEvents(events, chunk)
		}
	}
	g.out("stream.sse", stream.AppendEnd(events))
	g.out("body.json", indented(t, json.RawMessage(r.Encoder(stamp).AppendBody(nil, slices.Values(chunks)))))
}

// numberedEvent is what the order of events shows in.
type numberedEvent struct {
	Type     string
	Sequence int `json:"sequence_number"`
	Response json.RawMessage
	Delta    string
	Text     string
	ItemID   string `json:"item_id"`
	Index    int    `json:"output_index"`
}

// eventsOf reads a stream, whose event lines must name the events.
func eventsOf(t *testing.T, stream string) (all []numberedEvent, texts []string) {
	t.Helper()
	for block := range strings.SplitSeq(strings.TrimSpace(stream), "\n\n") {
		name, data, ok := strings.Cut(block, "\ndata: ")
		var e numberedEvent
		if err := json.Unmarshal([]byte(data), &e); err != nil || !ok || name != "event: "+e.Type {
			t.Fatalf("%q is no event (%v)", block, err)
		}
		all, texts = append(all, e), append(texts, data)
	}
	return all, texts
}

// TestResponsesForm pins what clients need of every stream: numbers without
// gaps, the response first and last, the last one the same as the body, and
// deltas that make up the text.
func TestResponsesForm(t *testing.T) {
	files, _ := filepath.Glob("testdata/responses/*.txtar")
	seen := 0
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{t, archive}
		if g.in("stream.sse") == nil {
			continue
		}
		seen++
		events, _ := eventsOf(t, string(g.in("stream.sse")))
		text := map[string]string{}
		for i, e := range events {
			if e.Sequence != i {
				t.Errorf("%s: event %d has number %d", file, i, e.Sequence)
			}
			text[e.ItemID] += e.Delta
			if e.Text != "" && text[e.ItemID] != e.Text {
				t.Errorf("%s: deltas %q, text %q", file, text[e.ItemID], e.Text)
			}
		}
		last := events[len(events)-1]
		if events[0].Type != "response.created" || events[1].Type != "response.in_progress" || last.Type != "response.completed" && last.Type != "response.incomplete" {
			t.Errorf("%s: begins with %s, %s, ends with %s", file, events[0].Type, events[1].Type, last.Type)
		}
		if diff := cmp.Diff(string(g.in("body.json")), string(indented(t, last.Response))); diff != "" {
			t.Errorf("%s: body (-) and last event (+) differ:\n%s", file, diff)
		}
	}
	if seen == 0 {
		t.Error("no golden file has a stream")
	}
}

// TestResponsesMeetSpec holds every body and event against OpenAI's schemas.
func TestResponsesMeetSpec(t *testing.T) {
	s := wiretest.Open(t)
	whole, event := s.Schema(t, "Response"), s.Schema(t, "ResponseStreamEvent")
	for schema, bad := range map[*jsonschema.Schema]string{
		whole: `{"id":"x","object":"response","created_at":1,"model":"m"}`,
		event: `{"type":"response.output_text.delta","delta":"x","sequence_number":1}`,
	} {
		if doc, err := jsonschema.UnmarshalJSON(strings.NewReader(bad)); err != nil || schema.Validate(doc) == nil {
			t.Fatalf("the schema takes %v (%v)", bad, err)
		}
	}
	files, _ := filepath.Glob("testdata/responses/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{t, archive}
		if g.in("error.json") != nil {
			wiretest.Validate(t, s.Schema(t, "ErrorResponse"), g.in("error.json"))
			continue
		}
		wiretest.Validate(t, whole, g.in("body.json"))
		_, texts := eventsOf(t, string(g.in("stream.sse")))
		for _, text := range texts {
			wiretest.Validate(t, event, []byte(text))
		}
	}
	_, texts := eventsOf(t, failed(t))
	for _, text := range texts {
		wiretest.Validate(t, event, []byte(text))
	}
	for _, name := range s.Properties("CreateResponse") {
		if _, ok := responsesKeys.place[name]; !ok {
			t.Errorf("the decoder does not know %s", name)
		}
	}
}

// failed is a stream that breaks after its first text.
func failed(t *testing.T) string {
	t.Helper()
	r, err := DecodeResponses([]byte(`{"model":"m","input":"x"}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	e := r.Encoder(Stamp{ID: "1", Created: 1})
	out := e.AppendEvents(nil, []byte{kindRole, 0})
	out = e.AppendEvents(out, append([]byte{kindText, 0}, "so"...))
	return string(e.AppendErrorEvent(out, &Error{Status: 502, Type: "server_error", Code: "upstream_aborted", Message: "It stopped."}))
}

// TestResponsesFail: an error is there in every form that clients look for, and
// no event says that all went well.
func TestResponsesFail(t *testing.T) {
	stream := failed(t)
	events, texts := eventsOf(t, stream)
	n := len(events)
	if events[n-2].Type != "response.failed" || events[n-1].Type != "error" || events[n-1].Sequence != n-1 {
		t.Fatalf("ends with %+v", events[n-2:])
	}
	if !strings.Contains(texts[n-2], `"status":"failed","background":false,"error":{"code":"server_error","message":"It stopped."}`) {
		t.Errorf("got %s", texts[n-2])
	}
	const want = `"code":"upstream_aborted","message":"It stopped.","param":null,"error":{"message":"It stopped.","type":"server_error","param":null,"code":"upstream_aborted"}}`
	if !strings.HasSuffix(texts[n-1], want) {
		t.Errorf("got %s", texts[n-1])
	}
	if strings.Contains(stream, "response.completed") {
		t.Error("it says that it is complete")
	}
	// Comments alone came before it: it begins as every stream does.
	r, err := DecodeResponses([]byte(`{"model":"m","input":"x"}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	e := r.Encoder(Stamp{ID: "1"})
	out := e.AppendErrorEvent(e.AppendOpening(nil), &Error{Status: 429, Code: "queue_timeout", Message: "No seat."})
	events, texts = eventsOf(t, string(out))
	if events[0].Type != "response.created" || !strings.Contains(texts[2], `"code":"rate_limit_exceeded"`) {
		t.Errorf("got %q", texts)
	}
}

func TestResponsesRefused(t *testing.T) {
	const tool = `{"type":"function","name":"f"}`
	for _, tt := range []struct{ name, more, code, param string }{
		{"no JSON", `"input":"x"`, codeInvalidJSON, ""},
		{"same key twice", `"input":"x","input":"y"}`, codeInvalidJSON, "input"},
		{"key by another case", `"Input":"x"}`, codeInvalidJSON, "input"},
		{"same key twice in an item", `"input":[{"role":"user","content":"x","content":"y"}]}`, codeInvalidJSON, "input[0]"},
		{"no input", `"store":false}`, codeMissing, "input"},
		{"empty input", `"input":""}`, codeInvalidValue, "input"},
		{"no items", `"input":[],"instructions":"x"}`, codeMissing, "input"},
		{"thoughts alone", `"input":[{"type":"reasoning","id":"rs_1","summary":[]}]}`, codeMissing, "input"},
		{"input as a number", `"input":7}`, codeInvalidType, "input"},
		{"item as a text", `"input":["x"]}`, codeInvalidType, "input[0]"},
		{"item without a role", `"input":[{"type":"message","content":"x"}]}`, codeMissing, "input[0].role"},
		{"item without content", `"input":[{"role":"user"}]}`, codeMissing, "input[0].content"},
		{"unknown part", `"input":[{"role":"user","content":[{"type":"smell"}]}]}`, codeInvalidValue, "input[0].content[0].type"},
		{"file", `"input":[{"role":"user","content":[{"type":"input_file","file_id":"x"}]}]}`, codeUnsupported, "input[0].content[0].type"},
		{"image by id", `"input":[{"role":"user","content":[{"type":"input_image","detail":"auto","file_id":"x"}]}]}`, codeMissing, "input[0].content[0].image_url"},
		{"image by address", `"input":[{"role":"user","content":[{"type":"input_image","image_url":"https://example.org/x.png"}]}]}`, codeInvalidValue, "input[0].content[0].image_url"},
		{"call without a name", `"input":[{"type":"function_call","call_id":"c","arguments":"{}"}]}`, codeMissing, "input[0].name"},
		{"result without an id", `"input":[{"type":"function_call_output","output":"x"}]}`, codeMissing, "input[0].call_id"},
		{"reference", `"input":[{"type":"item_reference","id":"msg_1"}]}`, codeUnsupported, "input[0]"},
		{"reference without a type", `"input":[{"id":"msg_1"}]}`, codeUnsupported, "input[0]"},
		{"another item", `"input":[{"type":"web_search_call","id":"x","status":"completed","action":{"content":7}}]}`, codeUnsupported, "input[0].type"},
		{"earlier response", `"input":"x","previous_response_id":"resp_1"}`, "previous_response_not_found", "previous_response_id"},
		{"conversation", `"input":"x","conversation":"conv_1"}`, codeUnsupported, "conversation"},
		{"in the background", `"input":"x","background":true}`, codeUnsupported, "background"},
		{"stored prompt", `"input":"x","prompt":{"id":"p"}}`, codeUnsupported, "prompt"},
		{"hosted tool", `"input":"x","tools":[` + tool + `,{"type":"web_search"}]}`, codeUnsupported, "tools[1]"},
		{"unknown tool", `"input":"x","tools":[{"type":"spoon"}]}`, codeUnsupported, "tools[0]"},
		{"tool in a chat's form", `"input":"x","tools":[{"type":"function","function":{"name":"f"}}]}`, codeMissing, "tools[0].name"},
		{"two tools of one name", `"input":"x","tools":[` + tool + `,` + tool + `]}`, codeInvalidValue, "tools[1].name"},
		{"choice of a hosted tool", `"input":"x","tools":[` + tool + `],"tool_choice":{"type":"file_search"}}`, codeUnsupported, "tool_choice"},
		{"choice of no tool", `"input":"x","tools":[` + tool + `],"tool_choice":{"type":"function","name":"g"}}`, codeInvalidValue, "tool_choice"},
		{"choice without a name", `"input":"x","tools":[` + tool + `],"tool_choice":{"type":"function"}}`, codeInvalidValue, "tool_choice"},
		{"choice without tools", `"input":"x","tool_choice":"required"}`, codeInvalidValue, "tool_choice"},
		{"format without a schema", `"input":"x","text":{"format":{"type":"json_schema","name":"n"}}}`, codeMissing, "text.format.schema"},
		{"unknown format", `"input":"x","text":{"format":{"type":"grammar"}}}`, codeInvalidValue, "text.format.type"},
		{"unknown effort", `"input":"x","reasoning":{"effort":"some"}}`, codeInvalidValue, "reasoning.effort"},
		{"unknown truncation", `"input":"x","truncation":"some"}`, codeInvalidValue, "truncation"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeResponses([]byte(`{"model":"a",`+tt.more), Limits{})
			wantRefusal(t, err, tt.code, tt.param)
		})
	}
	_, err := DecodeResponses([]byte(`{"input":"x"}`), Limits{})
	if e := refusal(t, err); e.Param != "model" {
		t.Errorf("no model: %+v", e)
	}
	for more, want := range map[string]string{
		`"tools":[{"type":"code_interpreter","container":{}}]}`: "tools of code_interpreter", `"tools":[{"type":"jane.doe"}]}`: "tools of this type",
		`"input":[{"type":"item_reference","id":"x"}]}`: "store: false",
	} {
		_, err := DecodeResponses([]byte(`{"model":"a",`+more), Limits{})
		if e := refusal(t, err); !strings.Contains(e.Message, want) || strings.Contains(e.Message, "jane") {
			t.Errorf("%s: %s", more, e.Message)
		}
	}
}

// TestResponsesAreChats: the same conversation has the same key, whichever way
// it is told.
func TestResponsesAreChats(t *testing.T) {
	for response, chat := range map[string]string{
		`{"model":"a","input":"hi","temperature":0,"store":true,"stream":true}`:                                                                                             `{"model":"b",` + user + `,"temperature":0}`,
		`{"model":"a","instructions":"s","input":[{"role":"developer","content":"t"},{"role":"user","content":[{"type":"input_text","text":"hi"}]}],"max_output_tokens":7}`: `{"model":"a","messages":[{"role":"system","content":"s"},{"role":"system","content":"t"},{"role":"user","content":"hi"}],"max_tokens":7}`,
		`{"model":"a","input":[{"role":"user","content":"hi"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"r"}],
			"tools":[{"type":"function","name":"f","strict":true}],"tool_choice":{"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"f"}]}}`: `{"model":"a","messages":[{"role":"user","content":"hi"},
			{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"r"}],
			"tools":[{"type":"function","function":{"name":"f","strict":true}}],"tool_choice":{"type":"function","function":{"name":"f"}}}`,
		`{"model":"a","input":"hi","text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}}},"reasoning":{"effort":"low"}}`: `{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}},"reasoning_effort":"low"}`,
	} {
		r, err := DecodeResponses([]byte(response), Limits{})
		if err != nil {
			t.Fatalf("%s: %v", response, err)
		}
		if p := (Params{}); !bytes.Equal(r.AppendKey(nil, p), keyOf(t, chat, p)) {
			t.Errorf("two keys for\n%s\n%s", response, chat)
		}
	}
}

// FuzzDecodeResponses holds the scan against encoding/json: what it accepts, a
// lenient reader sees the same way.
func FuzzDecodeResponses(f *testing.F) {
	files, _ := filepath.Glob("testdata/responses/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	f.Add([]byte(`{"model":"a","input":[{"id":"x","type":null}]}`))
	f.Add([]byte(`{"model":"a","input":"x","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"name":"f"}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := DecodeResponses(body, Limits{})
		if err != nil {
			if e := refusal(t, err); !json.Valid(e.AppendJSON(nil)) {
				t.Fatalf("the refusal is not JSON: %s", e.AppendJSON(nil))
			}
			return
		}
		var want struct {
			Model        string
			Stream       bool
			Instructions string
			Input        json.RawMessage
		}
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if r.Model != want.Model || r.Stream != want.Stream || r.Instructions != want.Instructions {
			t.Errorf("got %+v, want %+v", r, want)
		}
		var got strings.Builder
		for _, m := range r.Messages {
			got.WriteString(m.Text)
		}
		texts := []string{want.Instructions}
		var items []struct {
			Type            string
			Content, Output json.RawMessage
		}
		if json.Unmarshal(want.Input, &items) != nil {
			texts = append(texts, flat(t, want.Input))
		}
		for _, item := range items {
			switch item.Type {
			case "", "message":
				texts = append(texts, flat(t, item.Content))
			case "function_call_output":
				texts = append(texts, flat(t, item.Output))
			}
		}
		for _, text := range texts {
			if !strings.Contains(got.String(), text) {
				t.Errorf("texts %q, which lack %q", &got, text)
			}
		}
		answer := r.Encoder(Stamp{ID: "1"}).AppendBody(nil, slices.Values([][]byte{{kindRole, 0}, append([]byte{kindFinish, 0}, "stop"...)}))
		if !json.Valid(answer) {
			t.Errorf("the answer is not JSON: %s", answer)
		}
		req, err := r.Request(Params{Model: "m"})
		if err != nil {
			return
		}
		if _, err := json.Marshal(req); err != nil {
			t.Errorf("the request upstream cannot be written: %v", err)
		}
	})
}
