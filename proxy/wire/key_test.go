package wire

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func keyOf(t *testing.T, body string, p Params) []byte {
	t.Helper()
	c, err := DecodeChat([]byte(body), Limits{})
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return c.AppendKey(nil, p)
}

// with puts a member into the plainest request.
func with(member string) string {
	return strings.TrimSuffix(`{"model":"a",`+user+`,`+member, ",") + `}`
}

const schemaAB = `"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"number","minimum":1}}}}}`

// TestKeyTellsApart: whatever changes the output changes the key.
func TestKeyTellsApart(t *testing.T) {
	seen := map[string]string{}
	for _, body := range []string{
		with(""),
		with(`"temperature":0`), with(`"temperature":0.1`), with(`"top_p":0`), with(`"min_p":0`), with(`"top_k":0`), with(`"top_k":1`),
		with(`"frequency_penalty":0`), with(`"presence_penalty":0`), with(`"repeat_penalty":0`), with(`"seed":0`), with(`"seed":1`),
		with(`"max_tokens":5`), with(`"max_completion_tokens":6`), with(`"n":2`), with(`"logprobs":true`), with(`"logprobs":true,"top_logprobs":1`),
		with(`"stop":"a"`), with(`"stop":["a","b"]`), with(`"stop":"ab"`), with(`"reasoning_effort":"none"`), with(`"reasoning_effort":"low"`),
		with(`"response_format":{"type":"json_object"}`), with(schemaAB),
		with(strings.Replace(schemaAB, `"name"`, `"strict":true,"name"`, 1)),
		with(strings.Replace(schemaAB, `"number"`, `"integer"`, 1)),
		with(strings.Replace(schemaAB, `"a":{"type":"string"},"b":{"type":"number","minimum":1}`, `"b":{"type":"number","minimum":1},"a":{"type":"string"}`, 1)),
		with(`"tools":[{"type":"function","function":{"name":"f"}}]`),
		with(`"functions":[{"name":"f"}]`),
		with(`"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"`),
		with(`"tools":[{"type":"function","function":{"name":"f"}}],"parallel_tool_calls":false`),
		with(`"tools":[{"type":"function","function":{"name":"f","description":"d"}}]`),
		with(`"tools":[{"type":"function","function":{"name":"f","strict":true}}]`),
		with(`"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`),
		with(`"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]`),
		`{"model":"a","messages":[{"role":"user","content":"h"},{"role":"user","content":"i"}]}`,
		`{"model":"a","messages":[{"role":"system","content":"hi"}]}`,
		`{"model":"a","messages":[{"role":"user","content":"hi "}]}`,
		`{"model":"a","messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoA"}}]}]}`,
		`{"model":"a","messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoB"}}]}]}`,
		`{"model":"a","messages":[{"role":"tool","content":"hi"}]}`,
		`{"model":"a","messages":[{"role":"tool","content":"hi","tool_call_id":"x"}]}`,
		`{"model":"a","messages":[{"role":"tool","content":"hi","name":"x"}]}`,
		`{"model":"a","messages":[{"role":"assistant","tool_calls":[{"id":"x","function":{"name":"f","arguments":"{}"}}]}]}`,
		`{"model":"a","messages":[{"role":"assistant","tool_calls":[{"id":"x","function":{"name":"f","arguments":"{ }"}}]}]}`,
	} {
		k := string(keyOf(t, body, Params{Capabilities: []string{"thinking", "tools"}}))
		if other, ok := seen[k]; ok {
			t.Errorf("one key for\n%s\n%s", body, other)
		}
		seen[k] = body
	}
	half := 0.5
	for _, p := range []Params{{Context: 1}, {MaxTokens: 7}, {MaxTokensCap: 8}, {Temperature: &half}} {
		if other, ok := seen[string(keyOf(t, with(""), p))]; ok {
			t.Errorf("one key for %+v and %s", p, other)
		}
	}
}

// TestKeyHolds: spelling, delivery and who asks do not matter.
func TestKeyHolds(t *testing.T) {
	base := `{"model":"a","messages":[{"role":"user","content":"h\u0069"}],"temperature":1,` + schemaAB + `}`
	want := keyOf(t, base, Params{})
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, []byte(base), "", "\t"); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{
		spaced.String(),
		`{"temperature":1.0,"messages":[{"content":"hi","role":"user"}],` + strings.ReplaceAll(schemaAB, `"minimum":1`, `"minimum":1.0`) + `,"model":"a"}`,
		strings.Replace(base, `"model":"a"`, `"model":"b","stream":true,"stream_options":{"include_usage":true},"user":"u","metadata":{"a":"b"},"service_tier":"flex","store":true`, 1),
		strings.Replace(base, `"h\u0069"`, `[{"type":"text","text":"hi"}]`, 1),
		strings.Replace(base, `"name":"n"`, `"name":"other"`, 1),
		strings.Replace(base, `{"model"`, `{"max_tokens":1024,"model"`, 1), // the default, spelt out
	} {
		if got := keyOf(t, body, Params{}); !bytes.Equal(got, want) {
			t.Errorf("another key for %s", body)
		}
	}
	zero := 0.0
	if !bytes.Equal(keyOf(t, with(`"temperature":0`), Params{}), keyOf(t, with(""), Params{Temperature: &zero})) {
		t.Error("a default that applies and the same value from the client have different keys")
	}
}

func TestKeysForRouting(t *testing.T) {
	c, err := DecodeChat([]byte(with(schemaAB+`,"tools":[{"type":"function","function":{"name":"save_cv","parameters":{"type":"object","properties":{"skills":{"type":"array","items":{"type":"object","properties":{"level":{}}}},"properties":{"type":"string"}}}}}]`)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.SchemaKeys(), " "); got != "a b" {
		t.Errorf("schema keys %q, want a b", got)
	}
	if got := strings.Join(c.ToolKeys(), " "); got != "save_cv skills level properties" {
		t.Errorf("tool keys %q, want save_cv skills level properties", got)
	}
	if !c.WantsJSON() {
		t.Error("does not want JSON")
	}
}
