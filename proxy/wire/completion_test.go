package wire

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/wire/wiretest"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

func TestCompletionRefused(t *testing.T) {
	for _, tt := range []struct{ name, body, code, param string }{
		{"no JSON", `{"model":"a","prompt":"x"`, codeInvalidJSON, ""},
		{"same key twice", `{"model":"a","prompt":"x","prompt":"y"}`, codeInvalidJSON, "prompt"},
		{"key by another case", `{"model":"a","Prompt":"x"}`, codeInvalidJSON, "prompt"},
		{"no model", `{"prompt":"x"}`, codeMissing, "model"},
		{"no prompt", `{"model":"a"}`, codeMissing, "prompt"},
		{"empty prompt", `{"model":"a","prompt":""}`, codeInvalidValue, "prompt"},
		{"no prompts", `{"model":"a","prompt":[]}`, codeInvalidValue, "prompt"},
		{"one prompt empty", `{"model":"a","prompt":["x",""]}`, codeInvalidValue, "prompt[1]"},
		{"messages", `{"model":"a","prompt":[{"role":"user"}]}`, codeInvalidType, "prompt[0]"},
		{"n over the limit", `{"model":"a","prompt":"x","n":9}`, codeInvalidValue, "n"},
		{"too many choices", `{"model":"a","n":2,"prompt":["x"` + strings.Repeat(`,"x"`, 64) + `]}`, codeInvalidValue, "n"},
		{"too many prompts", `{"model":"a","prompt":["x"` + strings.Repeat(`,"x"`, 128) + `]}`, codeInvalidValue, "prompt[128]"},
		{"logprobs as a switch", `{"model":"a","prompt":"x","logprobs":true}`, codeInvalidType, "logprobs"},
		{"logprobs over 20", `{"model":"a","prompt":"x","logprobs":21}`, codeInvalidValue, "logprobs"},
		{"echo as a number", `{"model":"a","prompt":"x","echo":1}`, codeInvalidType, "echo"},
		{"suffix as a list", `{"model":"a","prompt":"x","suffix":["y"]}`, codeInvalidType, "suffix"},
		{"temperature too high", `{"model":"a","prompt":"x","temperature":3}`, codeInvalidValue, "temperature"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeCompletion([]byte(tt.body), Limits{})
			wantRefusal(t, err, tt.code, tt.param)
		})
	}
}

func completion(t *testing.T, body string) *Completion {
	t.Helper()
	c, err := DecodeCompletion([]byte(body), Limits{})
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return c
}

func TestCompletionRequests(t *testing.T) {
	c := completion(t, `{"model":"a","prompt":["one",[15339]],"n":2,"seed":7,"temperature":0,"stop":"END","suffix":"after","logprobs":3,"max_tokens":0,"best_of":5,"logit_bias":{},"user":"u"}`)
	if !slices.Equal(c.IgnoredFor(Params{}), []string{"logit_bias", "best_of"}) {
		t.Errorf("ignored %q", c.Ignored)
	}
	got, err := c.Requests(Params{Model: "real", Context: 512, MaxTokens: 100, Capabilities: []string{"insert"}})
	if err != nil {
		t.Fatal(err)
	}
	var want []*api.GenerateRequest
	for i, prompt := range []string{"one", "one", "hello", "hello"} {
		want = append(want, &api.GenerateRequest{
			Model: "real", Prompt: prompt, Suffix: "after", Stream: new(true), Truncate: new(false), Shift: new(false),
			Think: &api.ThinkValue{Value: false}, Logprobs: true, TopLogprobs: 3,
			Options: map[string]any{"num_ctx": 512, "num_predict": 100, "temperature": 0.0, "seed": 7 + i%2, "stop": []string{"END"}},
		})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	_, err = c.Requests(Params{Model: "real", Capabilities: []string{"completion"}})
	if e := refusal(t, err); e.Param != "suffix" || e.Code != codeUnsupported {
		t.Errorf("a model that cannot insert: %+v", e)
	}
}

// told records two answers of two lines for each choice and returns the stream
// and the body.
func told(t *testing.T, c *Completion, more ...api.Logprob) (stream, body string) {
	t.Helper()
	p := Params{Model: "real"}
	requests, err := c.Requests(p)
	if err != nil {
		t.Fatal(err)
	}
	recorder := c.Recorder(p)
	var chunks [][]byte
	events := c.Encoder(Stamp{ID: "1", Created: 1700000000})
	var out []byte
	line := func(i int, g api.GenerateResponse) {
		made, err := recorder.Generated(i, &g)
		if err != nil {
			t.Fatal(err)
		}
		for _, chunk := range made {
			chunks = append(chunks, chunk)
			out = events.AppendEvents(out, chunk)
		}
	}
	for i := range requests {
		line(i, api.GenerateResponse{Thinking: "hm"})
		line(i, api.GenerateResponse{Response: "say ", Logprobs: more})
		line(i, api.GenerateResponse{Response: `"é"`, Done: true, DoneReason: "length", Metrics: api.Metrics{PromptEvalCount: 3 + i, EvalCount: 2}})
	}
	if !recorder.Done() || !recorder.Truncated() {
		t.Error("the recorder is not done, or nothing was cut")
	}
	return string(events.AppendEnd(out)), string(c.Encoder(Stamp{ID: "1", Created: 1700000000}).AppendBody(nil, slices.Values(chunks)))
}

func TestCompletionAnswer(t *testing.T) {
	const head = `{"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"a","choices":[`
	choice := func(text, index, reason string) string {
		return `{"text":"` + text + `","index":` + index + `,"logprobs":null,"finish_reason":` + reason + `}`
	}
	stream, body := told(t, completion(t, `{"model":"a","prompt":["one","two"],"echo":true,"stream_options":{"include_usage":true}}`))
	// Prompts count by themselves: 3 and 4; so do answers: 2 and 2.
	const usage = `"usage":{"prompt_tokens":7,"completion_tokens":4,"total_tokens":11}}`
	if want := head + choice(`onesay \"é\"`, "0", `"length"`) + "," + choice(`twosay \"é\"`, "1", `"length"`) + "]," + usage; body != want {
		t.Errorf("body\n%s\nwant\n%s", body, want)
	}
	var want strings.Builder
	for i, prompt := range []string{"one", "two"} {
		index := string(rune('0' + i))
		for _, c := range []string{choice(prompt, index, "null"), choice("say ", index, "null"), choice(`\"é\"`, index, "null"), choice("", index, `"length"`)} {
			want.WriteString("data: " + head + c + "],\"usage\":null}\n\n")
		}
	}
	want.WriteString("data: " + head + "]," + usage + "\n\ndata: [DONE]\n\n")
	if diff := cmp.Diff(want.String(), stream); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// n choices of one prompt: it counts once, as the longest was counted.
	_, body = told(t, completion(t, `{"model":"a","prompt":"one","n":2}`))
	if !strings.HasSuffix(body, `"usage":{"prompt_tokens":4,"completion_tokens":4,"total_tokens":8}}`) {
		t.Errorf("usage: %s", body)
	}
}

func TestCompletionLogprobs(t *testing.T) {
	token := func(s string, l float64) api.TokenLogprob { return api.TokenLogprob{Token: s, Logprob: l} }
	given := []api.Logprob{
		{TokenLogprob: token("sé", -0.5), TopLogprobs: []api.TokenLogprob{token("sé", -0.5), token("to", -1)}},
		{TokenLogprob: token("y ", -2), TopLogprobs: []api.TokenLogprob{token("t", -1)}},
	}
	const want = `"logprobs":{"tokens":["sé","y "],"token_logprobs":[-0.5,-2],"top_logprobs":[{"sé":-0.5,"to":-1},{"t":-1,"y ":-2}],"text_offset":[3,5]}`
	stream, body := told(t, completion(t, `{"model":"a","prompt":"one","echo":true,"logprobs":1}`), given...)
	for _, got := range []string{stream, body} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nhas no\n%s", got, want)
		}
	}
}

func TestCompletionKey(t *testing.T) {
	keyOf := func(body string) string { return string(completion(t, body).AppendKey(nil, Params{})) }
	base := keyOf(`{"model":"a","prompt":["x","y"]}`)
	for _, body := range []string{
		`{"model":"b","prompt":["x","y"],"stream":true,"user":"u"}`, `{"model":"a","prompt":[[87],[88]],"echo":true,"best_of":1}`,
	} {
		if keyOf(body) != base {
			t.Errorf("another key for %s", body)
		}
	}
	for _, body := range []string{
		`{"model":"a","prompt":"xy"}`, `{"model":"a","prompt":["y","x"]}`, `{"model":"a","prompt":["x","y"],"suffix":"z"}`,
		`{"model":"a","prompt":["x","y"],"n":2}`, `{"model":"a","prompt":["x","y"],"logprobs":0}`, `{"model":"a","prompt":["x","y"],"temperature":0}`,
	} {
		if keyOf(body) == base {
			t.Errorf("the same key for %s", body)
		}
	}
}

// TestCompletionsMeetSpec holds requests and answers against OpenAI's schemas.
// Theirs of an answer is that of a body: an event's finish_reason is null until
// the last.
func TestCompletionsMeetSpec(t *testing.T) {
	s := wiretest.Open(t)
	const every = `{"model":"a","prompt":["x","y"],"best_of":1,"echo":true,"frequency_penalty":0,"logit_bias":{"1":1},"logprobs":0,"max_tokens":16,"n":1,
		"presence_penalty":0,"seed":1,"stop":"z","stream":false,"stream_options":{"include_usage":true},"suffix":null,"temperature":1,"top_p":1,"user":"u"}`
	request, err := jsonschema.UnmarshalJSON(strings.NewReader(every))
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Validate(t, s.Schema(t, "CreateCompletionRequest"), []byte(every))
	for _, name := range s.Properties("CreateCompletionRequest") {
		if _, ok := completionKeys.place[name]; !ok {
			t.Errorf("the decoder does not know %s", name)
		}
		if _, ok := request.(map[string]any)[name]; !ok {
			t.Errorf("the request lacks %s", name)
		}
	}
	answer := s.Schema(t, "CreateCompletionResponse")
	stream, body := told(t, completion(t, every), api.Logprob{TokenLogprob: api.TokenLogprob{Token: "say ", Logprob: -1}})
	wiretest.Validate(t, answer, []byte(body))
	for event := range strings.SplitSeq(strings.TrimSpace(stream), "\n\n") {
		data, ok := strings.CutPrefix(event, "data: ")
		if !ok {
			t.Errorf("%q is no event", event)
		}
		if data != "[DONE]" {
			data = strings.ReplaceAll(data, `"finish_reason":null`, `"finish_reason":"stop"`)
			wiretest.Validate(t, answer, []byte(strings.ReplaceAll(data, `,"usage":null`, "")))
		}
	}
}

// FuzzDecodeCompletion holds the scan against encoding/json: what it accepts, a
// lenient reader sees the same way.
func FuzzDecodeCompletion(f *testing.F) {
	for _, seed := range []string{
		`{"model":"a","prompt":"x"}`, `{"model":"a","prompt":["x","\ud83d\ude00"],"n":2,"best_of":2,"echo":true}`,
		`{"model":"a","prompt":[15339,1917],"suffix":"z","logprobs":3,"stop":["a","b"]}`, `{"model":"a","prompt":[[15339],["x"]]}`,
		`{"model":"a","prompt":"x","stream":true,"stream_options":{"include_usage":true},"temperature":0.5,"seed":-1e2}`,
		`{"model":"a","prompt":"x","Prompt":"y"}`, `{"model":"a","prompt":[],"prompt":["x"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := DecodeCompletion(body, Limits{PromptTokens: 1000})
		if err != nil {
			if r := refusal(t, err); !json.Valid(r.AppendJSON(nil)) {
				t.Fatalf("the refusal is not JSON: %s", r.AppendJSON(nil))
			}
			return
		}
		var want struct {
			Model  string
			Prompt json.RawMessage
			Suffix string
			Stream bool
			Echo   bool
		}
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if c.Model != want.Model || c.Suffix != want.Suffix || c.Stream != want.Stream || c.Echo != want.Echo {
			t.Errorf("got %+v, want %+v", c, want)
		}
		if !slices.Equal(c.Prompts, texts(t, want.Prompt)) || slices.Contains(c.Prompts, "") {
			t.Errorf("prompts %q of %s", c.Prompts, want.Prompt)
		}
		requests, err := c.Requests(Params{Model: "m"})
		if err != nil || len(requests) != len(c.Prompts)*c.N {
			t.Fatalf("%d requests for %d prompts, n %d (%v)", len(requests), len(c.Prompts), c.N, err)
		}
		if _, err := json.Marshal(requests); err != nil {
			t.Errorf("the requests upstream cannot be written: %v", err)
		}
	})
}
