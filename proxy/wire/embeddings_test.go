package wire

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/wire/wiretest"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
)

func TestEmbeddingsRefused(t *testing.T) {
	for _, tt := range []struct{ name, body, code, param string }{
		{"no JSON", `{"model":"a","input":"x"`, codeInvalidJSON, ""},
		{"same key twice", `{"model":"a","input":"x","input":"y"}`, codeInvalidJSON, "input"},
		{"key by another case", `{"model":"a","Input":"x"}`, codeInvalidJSON, "input"},
		{"no model", `{"input":"x"}`, codeMissing, "model"},
		{"no input", `{"model":"a"}`, codeMissing, "input"},
		{"null input", `{"model":"a","input":null}`, codeMissing, "input"},
		{"empty text", `{"model":"a","input":""}`, codeInvalidValue, "input"},
		{"no texts", `{"model":"a","input":[]}`, codeInvalidValue, "input"},
		{"one text empty", `{"model":"a","input":["x",""]}`, codeInvalidValue, "input[1]"},
		{"no tokens", `{"model":"a","input":[[1],[]]}`, codeInvalidValue, "input[1]"},
		{"input as a number", `{"model":"a","input":7}`, codeInvalidType, "input"},
		{"input as an object", `{"model":"a","input":{"text":"x"}}`, codeInvalidType, "input"},
		{"a text among tokens", `{"model":"a","input":[1,"x"]}`, codeInvalidType, "input[1]"},
		{"a token among texts", `{"model":"a","input":["x",1]}`, codeInvalidType, "input[1]"},
		{"null among texts", `{"model":"a","input":["x",null]}`, codeInvalidType, "input[1]"},
		{"tokens too deep", `{"model":"a","input":[[[1]]]}`, codeInvalidType, "input[0][0]"},
		{"negative token", `{"model":"a","input":[-1]}`, codeInvalidValue, "input[0]"},
		{"fraction of a token", `{"model":"a","input":[[1.5]]}`, codeInvalidType, "input[0][0]"},
		{"number beyond the tokens", `{"model":"a","input":[[1,200000]]}`, codeInvalidValue, "input[0][1]"},
		{"number of no token", `{"model":"a","input":[[100256]]}`, codeInvalidValue, "input[0]"},
		{"unknown encoding", `{"model":"a","input":"x","encoding_format":"hex"}`, codeInvalidValue, "encoding_format"},
		{"no dimensions", `{"model":"a","input":"x","dimensions":0}`, codeInvalidValue, "dimensions"},
		{"dimensions as a text", `{"model":"a","input":"x","dimensions":"8"}`, codeInvalidType, "dimensions"},
		{"too many inputs", `{"model":"a","input":["x"` + strings.Repeat(`,"x"`, 2048) + `]}`, codeInvalidValue, "input[2048]"},
		{"too many tokens", `{"model":"a","input":[1` + strings.Repeat(`,1`, 300_000) + `]}`, codeInvalidValue, "input[300000]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeEmbeddings([]byte(tt.body), Limits{})
			wantRefusal(t, err, tt.code, tt.param)
		})
	}
}

func TestEmbeddingsAccepted(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       Embeddings
	}{
		{"a text", `{"model":"a","input":"x"}`, Embeddings{Input: []string{"x"}}},
		{"texts", `{"model":"a","input":["x","y"],"encoding_format":"float"}`, Embeddings{Input: []string{"x", "y"}}},
		// The numbers are those of OpenAI's tiktoken for "hello world".
		{"tokens", `{"model":"a","input":[15339,1917]}`, Embeddings{Input: []string{"hello world"}}},
		{"arrays of tokens", `{"model":"a","input":[[15339,1917],[15339]],"encoding_format":"base64"}`, Embeddings{Input: []string{"hello world", "hello"}, Base64: true}},
		{"part of a character", `{"model":"a","input":[[9468,239]]}`, Embeddings{Input: []string{"\ufffd"}}}, // two of the four bytes of an emoji
		{
			"without effect", `{"model":"a","input":"x","user":"u","dimensions":8,"truncate":true,"frobnicate":1,"encoding_format":null}`,
			Embeddings{Input: []string{"x"}, Dimensions: 8, User: "u", Ignored: []string{"truncate", "frobnicate"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Model = "a"
			got, err := DecodeEmbeddings([]byte(tt.body), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// embedded answers a request with a model that says what it is told, and
// returns the body.
func embedded(t *testing.T, body string, vector func(text string) []float32) (string, error) {
	t.Helper()
	e, err := DecodeEmbeddings([]byte(body), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	requests, err := e.Requests(Params{Model: "real", Context: 512, Capabilities: []string{"embedding"}})
	if err != nil {
		t.Fatal(err)
	}
	recorder := NewEmbeddingsRecorder(e)
	var chunks [][]byte
	for _, q := range requests {
		texts := q.Input.([]string)
		if q.Model != "real" || q.Options["num_ctx"] != 512 || q.Truncate == nil || *q.Truncate || len(texts) > embedBatch {
			t.Errorf("asked %+v", q)
		}
		answer := api.EmbedResponse{PromptEvalCount: 2 * len(texts)}
		for _, text := range texts {
			answer.Embeddings = append(answer.Embeddings, vector(text))
		}
		made, err := recorder.Batch(q, &answer)
		if err != nil {
			return "", err
		}
		chunks = append(chunks, made...)
	}
	if p, c, ok := FinishCounts(chunks[len(chunks)-1]); !ok || p != 2*len(e.Input) || c != 0 {
		t.Errorf("counts %d, %d, %v", p, c, ok)
	}
	return string(e.Encoder(Stamp{ID: "1"}).AppendBody(nil, slices.Values(chunks))), nil
}

func TestEmbeddingsAnswer(t *testing.T) {
	vector := func(text string) []float32 { return []float32{0.6, -0.1, float32(len(text)), 1e-8} }
	const usage = `],"model":"a","usage":{"prompt_tokens":4,"total_tokens":4}}`
	for body, want := range map[string]string{
		`{"model":"a","input":["x","yy"]}`: `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.6,-0.1,1,1e-08]},` +
			`{"object":"embedding","index":1,"embedding":[0.6,-0.1,2,1e-08]}` + usage,
		// struct.pack("<4f", 0.6, -0.1, 1, 1e-8) in Python.
		`{"model":"a","input":["x","yy"],"encoding_format":"base64"}`: `{"object":"list","data":[{"object":"embedding","index":0,"embedding":"mpkZP83MzL0AAIA/d8wrMg=="},` +
			`{"object":"embedding","index":1,"embedding":"mpkZP83MzL0AAABAd8wrMg=="}` + usage,
		`{"model":"a","input":["x","yy"],"dimensions":4}`: `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.6,-0.1,1,1e-08]},` +
			`{"object":"embedding","index":1,"embedding":[0.6,-0.1,2,1e-08]}` + usage,
		`{"model":"a","input":["x","yy"],"dimensions":1}`: `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1]},` +
			`{"object":"embedding","index":1,"embedding":[1]}` + usage,
	} {
		got, err := embedded(t, body, vector)
		if err != nil || got != want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", body, err, got, want)
		}
	}
}

// TestEmbeddingsInOrder: batches do not show.
func TestEmbeddingsInOrder(t *testing.T) {
	input := make([]string, 2*embedBatch+1)
	for i := range input {
		input[i] = strings.Repeat("x", i+1)
	}
	text, err := json.Marshal(map[string]any{"model": "a", "input": input, "dimensions": 2})
	if err != nil {
		t.Fatal(err)
	}
	body, err := embedded(t, string(text), func(text string) []float32 { return []float32{1, float32(len(text)), 9} })
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Data []struct {
			Index     int
			Embedding []float64
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || len(got.Data) != len(input) {
		t.Fatalf("%d vectors (%v)", len(got.Data), err)
	}
	for i, d := range got.Data {
		if n := math.Hypot(d.Embedding[0], d.Embedding[1]); d.Index != i || math.Abs(n-1) > 1e-6 || math.Abs(d.Embedding[1]/d.Embedding[0]-float64(i+1)) > 1e-3 {
			t.Fatalf("at %d: index %d, %v of length %v", i, d.Index, d.Embedding, n)
		}
	}
}

func TestEmbeddingsFail(t *testing.T) {
	_, err := embedded(t, `{"model":"a","input":"x","dimensions":3}`, func(string) []float32 { return []float32{0, 1} })
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 400 || e.Param != "dimensions" {
		t.Errorf("more dimensions than there are: %v", err)
	}
	e, err := DecodeEmbeddings([]byte(`{"model":"a","input":["x","y"]}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Requests(Params{Model: "chats", Capabilities: []string{"completion"}})
	if e := refusal(t, err); e.Param != "model" || !strings.Contains(e.Message, "Name an embedding model") {
		t.Errorf("a model that chats: %+v", e)
	}
	requests, err := e.Requests(Params{Model: "m"}) // nothing is known of it
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewEmbeddingsRecorder(e).Batch(requests[0], &api.EmbedResponse{Embeddings: [][]float32{{1}}})
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 502 {
		t.Errorf("a vector for two inputs: %v", err)
	}
}

func TestEmbeddingsKey(t *testing.T) {
	keyOf := func(body string, p Params) string {
		e, err := DecodeEmbeddings([]byte(body), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return string(e.AppendKey(nil, p))
	}
	base := keyOf(`{"model":"a","input":["x","y"]}`, Params{})
	for _, body := range []string{`{"model":"b","input":["x","y"],"user":"u","encoding_format":"base64"}`, `{"input":[[87],[88]],"model":"a"}`} {
		if keyOf(body, Params{}) != base {
			t.Errorf("another key for %s", body)
		}
	}
	for _, body := range []string{`{"model":"a","input":["xy"]}`, `{"model":"a","input":["y","x"]}`, `{"model":"a","input":["x","y"],"dimensions":8}`} {
		if keyOf(body, Params{}) == base {
			t.Errorf("the same key for %s", body)
		}
	}
	if keyOf(`{"model":"a","input":["x","y"]}`, Params{Context: 1}) == base {
		t.Error("the same key for another context")
	}
}

// TestEmbeddingsMeetSpec holds a request with every field, and its answer,
// against OpenAI's schemas. They know base64 only in the request.
func TestEmbeddingsMeetSpec(t *testing.T) {
	s := wiretest.Open(t)
	const every = `{"model":"a","input":["x",[15339]],"encoding_format":"float","dimensions":2,"user":"u"}`
	request := strings.Replace(every, `["x",[15339]]`, `[[15339],[1]]`, 1)
	wiretest.Validate(t, s.Schema(t, "CreateEmbeddingRequest"), []byte(request))
	for _, name := range s.Properties("CreateEmbeddingRequest") {
		if _, ok := embeddingsKeys.place[name]; !ok {
			t.Errorf("the decoder does not know %s", name)
		}
	}
	body, err := embedded(t, every, func(string) []float32 { return []float32{3, 4, 5} })
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Validate(t, s.Schema(t, "CreateEmbeddingResponse"), []byte(body))
}

// FuzzDecodeEmbeddings holds the scan against encoding/json: what it accepts, a
// lenient reader sees the same way.
func FuzzDecodeEmbeddings(f *testing.F) {
	for _, seed := range []string{
		`{"model":"a","input":"x"}`, `{"model":"a","input":["x","\ud83d\ude00"],"encoding_format":"base64","dimensions":8}`,
		`{"model":"a","input":[15339,1917]}`, `{"model":"a","input":[[15339],["x"]]}`, `{"model":"a","input":[[9468,239],[1e1]],"user":null}`,
		`{"model":"a","input":"x","Input":"y"}`, `{"model":"a","input":[1,"x"]}`, `{"model":"a","input":[],"input":["x"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := DecodeEmbeddings(body, Limits{PromptTokens: 1000})
		if err != nil {
			if r := refusal(t, err); !json.Valid(r.AppendJSON(nil)) {
				t.Fatalf("the refusal is not JSON: %s", r.AppendJSON(nil))
			}
			return
		}
		var want struct {
			Model          string
			Input          json.RawMessage
			EncodingFormat string `json:"encoding_format"`
			Dimensions     float64
		}
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if e.Model != want.Model || e.Base64 != (want.EncodingFormat == "base64") || e.Dimensions != int(want.Dimensions) {
			t.Errorf("got %+v, want %+v", e, want)
		}
		if !slices.Equal(e.Input, texts(t, want.Input)) || slices.Contains(e.Input, "") {
			t.Errorf("input %q of %s", e.Input, want.Input)
		}
	})
}

// texts reads a prompt as encoding/json sees it.
func texts(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}
	}
	detokenized := func(raw []byte) string {
		var numbers []float64
		if err := json.Unmarshal(raw, &numbers); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		var tokens []uint
		for _, n := range numbers {
			tokens = append(tokens, uint(n))
		}
		text, err := cl100k().Decode(tokens)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ToValidUTF8(text, "\ufffd")
	}
	var several []json.RawMessage
	if err := json.Unmarshal(raw, &several); err != nil {
		t.Fatal(err)
	}
	if isNumber(several[0][0]) {
		return []string{detokenized(raw)}
	}
	var all []string
	for _, raw := range several {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = detokenized(raw)
		}
		all = append(all, text)
	}
	return all
}
