package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const user = `"messages":[{"role":"user","content":"hi"}]`

func image(url string) string {
	return `{"model":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"` + url + `"}}]}]}`
}

// refused decodes what must be refused.
func refused(t *testing.T, body string) *Error {
	t.Helper()
	c, err := DecodeChat([]byte(body), Limits{})
	if err == nil {
		t.Fatalf("accepted as %+v", c)
	}
	return refusal(t, err)
}

// refusal is what every refusal of a request must be.
func refusal(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %T, want *Error", err)
	}
	if e.Status != 400 || e.Type != "invalid_request_error" || e.Message == "" {
		t.Errorf("got %+v, want a 400 with a type and a message", e)
	}
	return e
}

func wantRefusal(t *testing.T, err error, code, param string) {
	t.Helper()
	if e := refusal(t, err); e.Code != code || e.Param != param {
		t.Errorf("got code %q, param %q (%s), want %q, %q", e.Code, e.Param, e.Message, code, param)
	}
}

func TestRefused(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, tt := range []struct{ name, body, code, param string }{
		{"empty", ``, codeInvalidJSON, ""},
		{"blank", " \n", codeInvalidJSON, ""},
		{"not an object", `[]`, codeInvalidType, ""},
		{"null", `null`, codeInvalidType, ""},
		{"cut", `{"model":"a"`, codeInvalidJSON, ""},
		{"cut in a string", `{"model":"a`, codeInvalidJSON, ""},
		{"cut in an escape", `{"model":"\u00`, codeInvalidJSON, ""},
		{"bad escape", `{"model":"\x61"}`, codeInvalidJSON, ""},
		{"control character", "{\"model\":\"a\n\"}", codeInvalidJSON, ""},
		{"trailing comma", `{"model":"a",}`, codeInvalidJSON, ""},
		{"no comma", `{"model":"a" "n":1}`, codeInvalidJSON, ""},
		{"unquoted key", `{model:"a"}`, codeInvalidJSON, ""},
		{"leading zero", `{"seed":01}`, codeInvalidJSON, ""},
		{"bare minus", `{"seed":-}`, codeInvalidJSON, ""},
		{"no fraction", `{"seed":1.}`, codeInvalidJSON, ""},
		{"unknown word", `{"stream":tru}`, codeInvalidJSON, ""},
		{"not a number", `{"temperature":NaN}`, codeInvalidType, "temperature"},
		{"byte order mark", "\ufeff{}", codeInvalidType, ""},
		{"bad UTF-8", "{\"model\":\"a\xff\"}", codeInvalidJSON, ""},
		{"trailing data", `{"model":"a",` + user + `} {}`, codeInvalidJSON, ""},
		{"trailing NUL", `{"model":"a",` + user + "}\x00", codeInvalidJSON, ""},
		{"same key twice", `{"model":"a","model":"b",` + user + `}`, codeInvalidJSON, "model"},
		{"same key twice, once escaped", `{"model":"a","\u006dodel":"b",` + user + `}`, codeInvalidJSON, "model"},
		{"key by another case", `{"model":"a","Model":"b",` + user + `}`, codeInvalidJSON, "model"},
		{"key by another case alone", `{"MODEL":"b",` + user + `}`, codeInvalidJSON, "model"},
		{"key by Unicode case", `{"model":"a",` + user + `,"\u017fTREAM":true}`, codeInvalidJSON, "stream"},
		{"unknown key twice", `{"x":1,"y":2,"x":3,"model":"a",` + user + `}`, codeInvalidJSON, ""},
		{"key twice in a message", `{"model":"a","messages":[{"role":"user","content":"a","content":"b"}]}`, codeInvalidJSON, "messages[0].content"},
		{"key by another case in a message", `{"model":"a","messages":[{"role":"user","content":"a","Content":"b"}]}`, codeInvalidJSON, "messages[0].content"},
		{"null and again", `{"model":"a","temperature":null,"temperature":1,` + user + `}`, codeInvalidJSON, "temperature"},
		{"key twice in an ignored value", `{"model":"a",` + user + `,"store":{"a":1,"a":2}}`, codeInvalidJSON, "store"},
		{"deep", `{"model":"a",` + user + `,"store":` + deep(200) + `}`, codeInvalidJSON, "store"},
		{"no model", `{` + user + `}`, codeMissing, "model"},
		{"null model", `{"model":null,` + user + `}`, codeMissing, "model"},
		{"empty model", `{"model":"",` + user + `}`, codeMissing, "model"},
		{"model of the wrong type", `{"model":7,` + user + `}`, codeInvalidType, "model"},
		{"no messages", `{"model":"a"}`, codeMissing, "messages"},
		{"empty messages", `{"model":"a","messages":[]}`, codeMissing, "messages"},
		{"messages of the wrong type", `{"model":"a","messages":"hi"}`, codeInvalidType, "messages"},
		{"message of the wrong type", `{"model":"a","messages":["hi"]}`, codeInvalidType, "messages[0]"},
		{"null message", `{"model":"a","messages":[null]}`, codeInvalidType, "messages[0]"},
		{"no role", `{"model":"a","messages":[{"content":"hi"}]}`, codeMissing, "messages[0].role"},
		{"unknown role", `{"model":"a","messages":[{"role":"boss","content":"hi"}]}`, codeInvalidValue, "messages[0].role"},
		{"no content", `{"model":"a","messages":[{"role":"user"}]}`, codeMissing, "messages[0].content"},
		{"content of the wrong type", `{"model":"a","messages":[{"role":"user","content":"a"},{"role":"user","content":7}]}`, codeInvalidType, "messages[1].content"},
		{"part of the wrong type", `{"model":"a","messages":[{"role":"user","content":[7]}]}`, codeInvalidType, "messages[0].content[0]"},
		{"part without a type", `{"model":"a","messages":[{"role":"user","content":[{"text":"a"}]}]}`, codeMissing, "messages[0].content[0].type"},
		{"unknown part", `{"model":"a","messages":[{"role":"user","content":[{"type":"smell"}]}]}`, codeInvalidValue, "messages[0].content[0].type"},
		{"audio part", `{"model":"a","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"input_audio","input_audio":{}}]}]}`, codeUnsupported, "messages[0].content[1].type"},
		{"temperature as a string", `{"model":"a",` + user + `,"temperature":"0"}`, codeInvalidType, "temperature"},
		{"temperature too high", `{"model":"a",` + user + `,"temperature":2.1}`, codeInvalidValue, "temperature"},
		{"temperature overflows", `{"model":"a",` + user + `,"temperature":1e999}`, codeInvalidValue, "temperature"},
		{"top_p below", `{"model":"a",` + user + `,"top_p":-0.1}`, codeInvalidValue, "top_p"},
		{"max_tokens negative", `{"model":"a",` + user + `,"max_tokens":-1}`, codeInvalidValue, "max_tokens"},
		{"max_tokens a fraction", `{"model":"a",` + user + `,"max_tokens":1.5}`, codeInvalidType, "max_tokens"},
		{"seed overflows", `{"model":"a",` + user + `,"seed":99999999999999999999}`, codeInvalidValue, "seed"},
		{"n over the limit", `{"model":"a",` + user + `,"n":9}`, codeInvalidValue, "n"},
		{"n of 0", `{"model":"a",` + user + `,"n":0}`, codeInvalidValue, "n"},
		{"stream as a number", `{"model":"a",` + user + `,"stream":1}`, codeInvalidType, "stream"},
		{"stream_options as a flag", `{"model":"a",` + user + `,"stream_options":true}`, codeInvalidType, "stream_options"},
		{"include_usage as a string", `{"model":"a",` + user + `,"stream_options":{"include_usage":"yes"}}`, codeInvalidType, "stream_options.include_usage"},
		{"stop of the wrong type", `{"model":"a",` + user + `,"stop":[1]}`, codeInvalidType, "stop[0]"},
		{"too many stops", `{"model":"a",` + user + `,"stop":[` + strings.Repeat(`"x",`, 32) + `"x"]}`, codeInvalidValue, "stop[32]"},
		{"top_logprobs over 20", `{"model":"a",` + user + `,"top_logprobs":21}`, codeInvalidValue, "top_logprobs"},
		{"unknown effort", `{"model":"a",` + user + `,"reasoning_effort":"some"}`, codeInvalidValue, "reasoning_effort"},
		{"unknown format", `{"model":"a",` + user + `,"response_format":{"type":"yaml"}}`, codeInvalidValue, "response_format.type"},
		{"format as a string", `{"model":"a",` + user + `,"response_format":"json_object"}`, codeInvalidType, "response_format"},
		{"no schema", `{"model":"a",` + user + `,"response_format":{"type":"json_schema"}}`, codeMissing, "response_format.json_schema"},
		{"schema of the wrong type", `{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":[]}}}`, codeInvalidType, "response_format.json_schema.schema"},
		{"invalid schema", `{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"thing"}}}}`, codeInvalidValue, "response_format.json_schema.schema"},
		{"schema with a bad pattern", `{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"pattern":"("}}}}`, codeInvalidValue, "response_format.json_schema.schema"},
		{"schema that reads a file", `{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"$ref":"file:///etc/passwd"}}}}`, codeInvalidValue, "response_format.json_schema.schema"},
		{"schema that fetches", `{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"$ref":"http://127.0.0.1/x"}}}}`, codeInvalidValue, "response_format.json_schema.schema"},
		{"metadata of the wrong type", `{"model":"a",` + user + `,"metadata":{"cv":7}}`, codeInvalidType, "metadata"},
		{"user of the wrong type", `{"model":"a",` + user + `,"user":7}`, codeInvalidType, "user"},
		{"image by address", image("https://example.org/x.png"), codeInvalidValue, "messages[0].content[0].image_url.url"},
		{"image by a file's address", image("file:///etc/passwd"), codeInvalidValue, "messages[0].content[0].image_url.url"},
		{"image not in base64", image("data:image/png,abc"), codeInvalidValue, "messages[0].content[0].image_url.url"},
		{"image in bad base64", image("data:image/png;base64,!!!!"), codeInvalidValue, "messages[0].content[0].image_url.url"},
		{"no image", image("data:image/png;base64,aGVsbG8="), codeInvalidValue, "messages[0].content[0].image_url.url"},
		{"image as a number", `{"model":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":7}]}]}`, codeInvalidType, "messages[0].content[0].image_url"},
		{"image without a url", `{"model":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}`, codeMissing, "messages[0].content[0].image_url.url"},
		{"image part without an image", `{"model":"a","messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, codeMissing, "messages[0].content[0].image_url"},
		{"text part without a text", `{"model":"a","messages":[{"role":"user","content":[{"type":"text"}]}]}`, codeMissing, "messages[0].content[0].text"},
		{"tools as an object", with(`"tools":{}`), codeInvalidType, "tools"},
		{"tool without a function", with(`"tools":[{"type":"function"}]`), codeMissing, "tools[0].function"},
		{"tool without a name", with(`"tools":[{"type":"function","function":{}}]`), codeMissing, "tools[0].function.name"},
		{"custom tool", with(`"tools":[{"type":"custom","custom":{"name":"x"}}]`), codeUnsupported, "tools[0].type"},
		{"two tools of one name", with(`"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]`), codeInvalidValue, "tools[1].function.name"},
		{"invalid parameters", with(`"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"thing"}}}]`), codeInvalidValue, "tools[0].function.parameters"},
		{"parameters as a string", with(`"tools":[{"type":"function","function":{"name":"f","parameters":"{}"}}]`), codeInvalidType, "tools[0].function.parameters"},
		{"unknown tool_choice", with(twoTools + `,"tool_choice":"maybe"`), codeInvalidValue, "tool_choice"},
		{"tool_choice of an unknown kind", with(twoTools + `,"tool_choice":{"type":"custom","custom":{"name":"find"}}`), codeInvalidValue, "tool_choice"},
		{"tool_choice names no tool", with(twoTools + `,"tool_choice":{"type":"function","function":{"name":"lose"}}`), codeInvalidValue, "tool_choice"},
		{"allowed_tools name no tool", with(twoTools + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"lose"}}]}}`), codeInvalidValue, "tool_choice"},
		{"tool_choice without tools", with(`"tool_choice":"required"`), codeInvalidValue, "tool_choice"},
		{"function_call names no function", with(`"functions":[{"name":"f"}],"function_call":{"name":"g"}`), codeInvalidValue, "function_call"},
		{"call without a function", `{"model":"a","messages":[{"role":"assistant","tool_calls":[{"id":"x"}]}]}`, codeMissing, "messages[0].tool_calls[0].function"},
		{"call without a name", `{"model":"a","messages":[{"role":"assistant","tool_calls":[{"id":"x","function":{"arguments":"{}"}}]}]}`, codeMissing, "messages[0].tool_calls[0].function.name"},
		{"schema that goes round", with(`"response_format":{"type":"json_schema","json_schema":{"schema":{"$ref":"#"}}}`), codeInvalidValue, "response_format.json_schema.schema"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeChat([]byte(tt.body), Limits{})
			wantRefusal(t, err, tt.code, tt.param)
		})
	}
}

// TestRefusalTellsNothing: what the client wrote stays out of messages.
func TestRefusalTellsNothing(t *testing.T) {
	const secret = "jane.doe"
	for _, body := range []string{
		`{"model":"a","messages":[{"role":"` + secret + `","content":"x"}]}`,
		`{"model":"a",` + user + `,"` + secret + `":1,"` + secret + `":2}`,
		`{"model":"a",` + user + `,"metadata":{"` + secret + `":1}}`,
		`{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"properties":{"` + secret + `":{"type":"` + secret + `"}}}}}}`,
		`{"model":"a",` + user + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"$ref":"http://` + secret + `"}}}}`,
	} {
		e := refused(t, body)
		if strings.Contains(e.Message+e.Param+e.Code, secret) {
			t.Errorf("%+v repeats what the client wrote", e)
		}
	}
}

// TestNestedBracketsAreCheap: depth is refused where it is met, not after the
// whole body was read into something.
func TestNestedBracketsAreCheap(t *testing.T) {
	bodies := [][]byte{
		[]byte(strings.Repeat("[", 200_000)),
		[]byte(`{"model":"a",` + user + `,"x":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`),
		[]byte(`{"model":"a",` + user + `,"tools":` + strings.Repeat(`[{"function":`, 100_000) + `}`),
		[]byte(strings.Repeat(`{"a":`, 200_000)),
	}
	for _, body := range bodies {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := DecodeChat(body, Limits{}); err == nil {
			t.Error("accepted")
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 64<<10 {
			t.Errorf("refusing %.20q… of %d bytes took %d bytes", body, len(body), used)
		}
	}
}

// TestManyKeys: looking for duplicates must not turn quadratic, nor take memory
// beyond a bound.
func TestManyKeys(t *testing.T) {
	object := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(`"k` + strconv.Itoa(i) + `":0,`)
		}
		return "{" + strings.TrimSuffix(b.String(), ",") + "}"
	}
	for _, body := range []string{
		`{"model":"a",` + user + `,"x":` + object(mostNames) + `}`,
		`{"model":"a",` + user + `,"x":[` + strings.Repeat(object(mostNames)+",", 50) + `0]}`,
	} {
		start := time.Now()
		if _, err := DecodeChat([]byte(body), Limits{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%d bytes of keys took %v", len(body), took)
		}
	}
	for _, body := range []string{
		`{"model":"a",` + user + `,"x":` + object(1_000_000) + `}`,
		`{"model":"a",` + user + `,` + object(1_000_000)[1:],
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := DecodeChat([]byte(body), Limits{})
		runtime.ReadMemStats(&after)
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != codeInvalidJSON || !strings.Contains(e.Message, "4096") {
			t.Errorf("a million keys: %v", err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20+uint64(len(body)) { // the conversion of body is ours
			t.Errorf("refusing a million keys took %d bytes", used)
		}
	}
}

func TestAccepted(t *testing.T) {
	num := func(f float64) *float64 { return &f }
	for _, tt := range []struct {
		name, body string
		want       func(*Chat)
	}{
		{"nulls are absent", `{"model":"a",` + user + `,"temperature":null,"stop":null,"tools":null,"n":null,"stream":null,"metadata":null,"response_format":null,"max_tokens":null,"store":null,"stream_options":null}`, func(*Chat) {}},
		{"temperature 0", `{"model":"a",` + user + `,"temperature":0}`, func(c *Chat) { c.Temperature = num(0) }},
		{"smaller of two limits", `{"model":"a",` + user + `,"max_tokens":9,"max_completion_tokens":5}`, func(c *Chat) { c.MaxTokens = new(5) }},
		{"smaller of two limits, turned", `{"model":"a",` + user + `,"max_completion_tokens":5,"max_tokens":4}`, func(c *Chat) { c.MaxTokens = new(4) }},
		{"limit 0 is none", `{"model":"a",` + user + `,"max_completion_tokens":0,"max_tokens":4}`, func(c *Chat) { c.MaxTokens = new(4) }},
		{"whole number as a fraction", `{"model":"a",` + user + `,"seed":4.0e1}`, func(c *Chat) { c.Seed = new(40) }},
		{"one stop", `{"model":"a",` + user + `,"stop":"END"}`, func(c *Chat) { c.Stop = []string{"END"} }},
		{"half a surrogate pair", `{"model":"a","messages":[{"role":"user","content":"hi\ud800"}]}`, func(c *Chat) { c.Messages[0].Text = "hi\ufffd" }},
		{"ignored fields", `{"model":"a",` + user + `,"verbosity":"low","frobnicate":[1,{"A":2,"a":3}],"x y":1}`, func(c *Chat) { c.Ignored = []string{"verbosity", "frobnicate"} }},
		{"top_logprobs without logprobs", `{"model":"a",` + user + `,"top_logprobs":2}`, func(c *Chat) { c.Ignored = []string{"top_logprobs"} }},
		{"system messages merge", `{"model":"a","messages":[{"role":"system","content":"a"},{"role":"developer","content":"b"},{"role":"user","content":"hi"},{"role":"system","content":"c"}]}`, func(c *Chat) {
			c.Messages = []Message{{Role: "system", Text: "a\n\nb"}, {Role: "user", Text: "hi"}, {Role: "system", Text: "c"}}
		}},
		{"assistant without content", `{"model":"a","messages":[{"role":"assistant"}]}`, func(c *Chat) { c.Messages = []Message{{Role: "assistant"}} }},
		{"text format", `{"model":"a",` + user + `,"response_format":{"type":"text"}}`, func(*Chat) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DecodeChat([]byte(tt.body), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			want := &Chat{Model: "a", Messages: []Message{{Role: "user", Text: "hi"}}, N: 1}
			tt.want(want)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(Chat{}), cmp.AllowUnexported(Format{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestLimits: each limit refuses what lies just beyond it, by name.
func TestLimits(t *testing.T) {
	png := `{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoAAAAN"}}`
	for _, tt := range []struct {
		lim         Limits
		body, param string
	}{
		{Limits{Messages: 1}, `{"model":"a","messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}`, "messages[1]"},
		{Limits{Tools: 1}, with(twoTools), "tools[1]"},
		{Limits{Parts: 1}, `{"model":"a","messages":[{"role":"user","content":["a","b"]}]}`, "messages[0].content[1]"},
		{Limits{Parts: 1}, `{"model":"a","messages":[{"role":"user","content":["a"]},{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{}"}}]}]}`, "messages[1].tool_calls[0]"},
		{Limits{Metadata: 1}, with(`"metadata":{"a":"b","c":"d"}`), "metadata"},
		{Limits{Images: 1}, `{"model":"a","messages":[{"role":"user","content":[` + png + `,` + png + `]}]}`, "messages[0].content[1].image_url"},
		{Limits{ImageBytes: 9}, `{"model":"a","messages":[{"role":"user","content":[` + png + `]}]}`, "messages[0].content[0].image_url.url"},
		{Limits{Depth: 2}, with(""), "messages[0]"},
		{Limits{Choices: 1}, with(`"n":2`), "n"},
		{Limits{MaxTokens: 9}, with(`"max_tokens":10`), "max_tokens"},
		{Limits{Stops: 1}, with(`"stop":["a","b"]`), "stop[1]"},
		{Limits{SchemaBytes: 50}, with(schemaAB), "response_format.json_schema.schema"},
	} {
		if _, err := DecodeChat([]byte(tt.body), Limits{}); err != nil {
			t.Errorf("%+v: refused without it: %v", tt.lim, err)
		}
		_, err := DecodeChat([]byte(tt.body), tt.lim)
		if e, ok := errors.AsType[*Error](err); !ok || e.Param != tt.param || e.Status != 400 {
			t.Errorf("%+v: got %+v, want param %s", tt.lim, err, tt.param)
		}
	}
}

// lenient is the part of a request that encoding/json reads for the oracle.
type lenient struct {
	Model    string
	Stream   bool
	Messages []struct {
		Role    string
		Content json.RawMessage
	}
}

// flat is the text of a message's content as any reader would see it.
func flat(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	if raw[0] == '"' {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, raw := range parts {
		if raw[0] == '"' {
			texts = append(texts, flat(t, raw))
			continue
		}
		var part struct{ Type, Text, Refusal string }
		if err := json.Unmarshal(raw, &part); err != nil {
			t.Fatal(err)
		}
		switch part.Type {
		case "text", "input_text", "output_text":
			texts = append(texts, part.Text)
		case "refusal":
			texts = append(texts, part.Refusal)
		}
	}
	return strings.Join(texts, "\n")
}

// FuzzDecodeChat holds the scan against encoding/json: what it accepts, a
// lenient reader of the same bytes sees the same way; what is not JSON it
// refuses.
func FuzzDecodeChat(f *testing.F) {
	for _, seed := range []string{
		`{"model":"a",` + user + `}`,
		`{"model":"a","model":"b",` + user + `}`,
		`{"model":"a","\u006dodel":"b",` + user + `}`,
		`{"model":"a","Model":"b",` + user + `}`,
		`{"model":"\ud83d\ude00\ud800x","stream":true,"messages":[{"role":"developer","content":"x"},{"role":"system","content":[{"type":"text","text":"y"},"z"]}]}`,
		`{"model":"a",` + user + `,"temperature":0.5,"stop":["a"],"seed":-1e2,"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","properties":{"a":{"$ref":"#/$defs/a"}},"$defs":{"a":{}}}}}}`,
		`{"model":"a",` + user + `,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":{"type":"function","function":{"name":"f"}}}`,
		`{"model":"a","messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"r"}]}`,
		`{"model":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]}]}`,
		` { "model" : "a" , "messages" : [ { "role" : "user" , "content" : "b" } ] , "x" : [ 1.5e+3 , true , null ] } `,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := DecodeChat(body, Limits{})
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Status != 400 || e.Message == "" {
				t.Fatalf("refused with %#v", err)
			}
			if !json.Valid(e.AppendJSON(nil)) {
				t.Fatalf("the refusal is not JSON: %s", e.AppendJSON(nil))
			}
			return
		}
		var want lenient
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if c.Model != want.Model || c.Stream != want.Stream {
			t.Errorf("model %q, stream %v, want %q, %v", c.Model, c.Stream, want.Model, want.Stream)
		}
		var messages []Message
		for _, m := range want.Messages {
			text, role := flat(t, m.Content), m.Role
			switch role {
			case "developer":
				role = "system"
			case "function":
				role = "tool"
			}
			if n := len(messages); role == "system" && n > 0 && messages[n-1].Role == role {
				messages[n-1].Text += "\n\n" + text
				continue
			}
			messages = append(messages, Message{Role: role, Text: text})
		}
		same := slices.EqualFunc(messages, c.Messages, func(a, b Message) bool { return a.Role == b.Role && a.Text == b.Text })
		if !same {
			t.Errorf("messages %+v, want %+v", c.Messages, messages)
		}
		for _, schema := range append([][]byte{c.Format.Schema}, parameters(c)...) {
			if len(schema) > 0 && !json.Valid(schema) {
				t.Errorf("%s is not JSON", schema)
			}
		}
		req, err := c.Request(Params{Model: "m"})
		if err != nil {
			return
		}
		if _, err := json.Marshal(req); err != nil {
			t.Errorf("the request upstream cannot be written: %v", err)
		}
	})
}

func parameters(c *Chat) [][]byte {
	var all [][]byte
	for _, tool := range c.Tools {
		all = append(all, tool.Parameters)
	}
	return all
}

// keyed is a decoded request that a key is made of.
type keyed interface {
	AppendKey(dst []byte, p Params) []byte
}

// decoders are the functions that read a body which the pipeline gives back
// before it makes a key of what was read.
func decoders() map[string]func([]byte) (keyed, error) {
	return map[string]func([]byte) (keyed, error){
		"DecodeChat":             func(b []byte) (keyed, error) { return DecodeChat(b, Limits{}) },
		"DecodeNativeChat":       func(b []byte) (keyed, error) { return DecodeNativeChat(b, Limits{}) },
		"DecodeNativeGenerate":   func(b []byte) (keyed, error) { return DecodeNativeGenerate(b, Limits{}) },
		"DecodeCompletion":       func(b []byte) (keyed, error) { return DecodeCompletion(b, Limits{}) },
		"DecodeEmbeddings":       func(b []byte) (keyed, error) { return DecodeEmbeddings(b, Limits{}) },
		"DecodeNativeEmbed":      func(b []byte) (keyed, error) { return DecodeNativeEmbed(b, Limits{}) },
		"DecodeNativeEmbeddings": func(b []byte) (keyed, error) { return DecodeNativeEmbeddings(b, Limits{}) },
		"DecodeResponses":        func(b []byte) (keyed, error) { return DecodeResponses(b, Limits{}) },
	}
}

// keptNothing decodes a body, overwrites it, and looks for a difference.
func keptNothing(t testing.TB, body []byte) (accepted int) {
	t.Helper()
	p := Params{Model: "m", Context: 4096}
	for name, decode := range decoders() {
		own := bytes.Clone(body)
		request, err := decode(own)
		if err != nil {
			was := err.Error()
			for i := range own {
				own[i] = '#'
			}
			if err.Error() != was {
				t.Errorf("%s: the refusal of %q changes with the body", name, body)
			}
			continue
		}
		accepted++
		before := request.AppendKey(nil, p)
		for i := range own {
			own[i] = '#'
		}
		if after := request.AppendKey(nil, p); !bytes.Equal(before, after) {
			t.Errorf("%s keeps a part of the body: the key of %q became %q", name, before, after)
		}
	}
	return accepted
}

// everything is a body in which each decoder finds all that it reads.
const everything = `{"model":"recruit\/parse","messages":[{"role":"system","content":"a"},{"role":"developer","content":"b"},{"role":"user","name":"n","content":["x",{"type":"text","text":"y\n"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoAAAAN"}}]},{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool","tool_call_id":"c","content":"r"}],"stop":["END","\u0041"],"user":"u","service_tier":"flex","metadata":{"k":"v"},"unknown":[1],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{"type":"object","properties":{"z":{"enum":["p","q"]}}}}}}`

func FuzzDecodersKeepNoBody(f *testing.F) {
	for _, seed := range []string{
		everything,
		`{"model":"a","messages":[{"role":"user","content":"x","images":["iVBORw0KGgoAAAAN"]}],"format":{"type":"object","properties":{"z":{"type":"string"}}},"options":{"stop":["E"],"seed":7},"think":"low"}`,
		`{"model":"a","prompt":"p","system":"s","images":["iVBORw0KGgoAAAAN"],"format":"json"}`,
		`{"model":"a","prompt":["p","q\n"],"suffix":"s","stop":"E"}`,
		`{"model":"a","input":["p","q\n"],"dimensions":7,"encoding_format":"base64"}`,
		`{"model":"a","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"r"}],"instructions":"i","tools":[{"type":"function","name":"f","parameters":{"type":"object"}}],"tool_choice":{"type":"function","name":"f"},"text":{"format":{"type":"json_schema","name":"s","schema":{"type":"object"}}}}`,
	} {
		if keptNothing(f, []byte(seed)) == 0 {
			f.Errorf("no decoder reads %s", seed)
		}
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) { keptNothing(t, body) })
}

// TestDecodersAreHeldToTheirBodies: every function of this package that decodes
// a request stands in decoders.
func TestDecodersAreHeldToTheirBodies(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	known := decoders()
	found := 0
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Decode\w+)\(body \[\]byte, lim Limits\)`).FindAllSubmatch(src, -1) {
			found++
			if known[string(m[1])] == nil {
				t.Errorf("%s is not among decoders: its bodies are given back, does it keep a part of one?", m[1])
			}
		}
	}
	if found != len(known) {
		t.Errorf("%d decoders found, %d known", found, len(known))
	}
}
