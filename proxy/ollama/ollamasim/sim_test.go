package ollamasim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// post asks s and returns status and body.
func post(t *testing.T, s *Sim, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body)))
	return w.Code, strings.TrimSpace(w.Body.String())
}

// chat returns the plain answer to one question.
func chat(t *testing.T, s *Sim, name, text, more string) api.ChatResponse {
	t.Helper()
	body := fmt.Sprintf(`{"model":%q,"stream":false,"messages":[{"role":"user","content":%q}]%s}`, name, text, more)
	status, answer := post(t, s, "/api/chat", body)
	var r api.ChatResponse
	if err := json.Unmarshal([]byte(answer), &r); status != http.StatusOK || err != nil {
		t.Fatalf("%s: %d %s", name, status, answer)
	}
	return r
}

// A fourth model on three seats: the server evicts by itself, the first by
// name among equals, and says so in its counts.
func TestOwnEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		for _, name := range []string{"phi3:mini", "deepseek-llm:7b", "mistral"} {
			chat(t, s, name, "Hello", "")
		}
		if n := s.Counts(); n.Evictions != 0 {
			t.Fatalf("counts %+v, want no eviction yet", n)
		}
		chat(t, s, "llama3", "Hello", "")
		if want := []string{"llama3:latest", "mistral:latest", "phi3:mini"}; !slices.Equal(s.Loaded(), want) {
			t.Errorf("loaded %v, want %v", s.Loaded(), want)
		}
		if n := s.Counts(); n.Evictions != 1 || n.Loads != 4 || n.Unloads != 1 {
			t.Errorf("counts %+v, want one eviction", n)
		}
	})
}

// Memory, not number: 7+7+8 GiB do not fit in 20.
func TestOvercommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{VRAM: 20 << 30, MaxLoaded: 8, Context: 8192})
		for _, name := range []string{"mistral", "deepseek-llm:7b", "llama3"} {
			chat(t, s, name, "Hello", "")
		}
		if n := s.Counts(); n.Evictions != 1 {
			t.Errorf("counts %+v, want one eviction", n)
		}
	})
}

// What never fits takes everything and runs partly on the CPU, in silence.
func TestPartialOffload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{VRAM: 5 << 30})
		chat(t, s, "phi3:mini", "Hello", "")
		chat(t, s, "mistral", "Hello", "")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/ps", nil))
		var ps api.ProcessResponse
		if err := json.Unmarshal(w.Body.Bytes(), &ps); err != nil {
			t.Fatal(err)
		}
		if len(ps.Models) != 1 || ps.Models[0].SizeVRAM != 5<<30 || ps.Models[0].Size <= 5<<30 {
			t.Errorf("ps %+v, want mistral alone, 5 GiB of it on the GPU", ps.Models)
		}
	})
}

func TestReloadOnContextChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		chat(t, s, "mistral", "Hello", `,"options":{"num_ctx":8192}`)
		chat(t, s, "mistral", "Hello", `,"options":{"num_ctx":4096}`)
		if n := s.Counts(); n.Reloads != 1 || n.Loads != 2 || n.Evictions != 0 {
			t.Errorf("counts %+v, want one reload", n)
		}
	})
}

func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		chat(t, s, "phi3:mini", "Hello", "")
		chat(t, s, "mistral", "Hello", `,"keep_alive":-1`)
		chat(t, s, "llama3", "Hello", `,"keep_alive":"10m"`)
		chat(t, s, "mistral", "Hello", "") // leaves it as it is
		time.Sleep(6 * time.Minute)
		if want := []string{"llama3:latest", "mistral:latest"}; !slices.Equal(s.Loaded(), want) {
			t.Errorf("after 6 min: %v, want %v", s.Loaded(), want)
		}
		time.Sleep(time.Hour)
		if want := []string{"mistral:latest"}; !slices.Equal(s.Loaded(), want) {
			t.Errorf("after an hour: %v, want %v", s.Loaded(), want)
		}
		status, body := post(t, s, "/api/generate", `{"model":"mistral","keep_alive":0}`)
		if status != http.StatusOK || !strings.Contains(body, `"done_reason":"unload"`) || len(s.Loaded()) != 1 {
			t.Errorf("unload: %d %s with %v loaded, want an answer before it is gone", status, body, s.Loaded())
		}
		time.Sleep(time.Second)
		if len(s.Loaded()) != 0 {
			t.Errorf("loaded %v, want nothing", s.Loaded())
		}
	})
}

// Loads come one after the other; slots of one model are shared out.
func TestSerial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Queue: 3, Length: 100})
		began := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex
		status := make(map[int]int)
		for _, name := range []string{"phi3:mini", "mistral", "mistral", "llama3", "llama3"} {
			all.Go(func() {
				code, _ := post(t, s, "/api/chat", fmt.Sprintf(`{"model":%q,"stream":false,"messages":[{"role":"user","content":"Hi"}]}`, name))
				mu.Lock()
				status[code]++
				mu.Unlock()
			})
			synctest.Wait() // in this order
		}
		all.Wait()
		// The first holds the loader and counts as queued until it is loaded.
		if status[200] != 3 || status[503] != 2 {
			t.Errorf("statuses %v, want 3 times 200 and 2 times 503", status)
		}
		// 1 s and 3 s of loading, then two answers of 100 tokens, 13 ms each.
		if took := time.Since(began); took < 6600*time.Millisecond || took > 6700*time.Millisecond {
			t.Errorf("took %v, want some 6.6 s", took)
		}
	})
}

func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		chat(t, s, "mistral", "Hello", "")
		s.Crash()
		if len(s.Loaded()) != 0 {
			t.Errorf("loaded %v after a crash", s.Loaded())
		}
		chat(t, s, "mistral", "Hello", "")
		if n := s.Counts(); n.Loads != 2 || n.Unloads != 0 {
			t.Errorf("counts %+v, want two loads and no unload", n)
		}
	})
}

func TestText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		one := chat(t, s, "phi3:mini", "Write a report.", "")
		if again := chat(t, s, "phi3:mini", "Write a report.", `,"options":{"num_ctx":4096}`); again.Message.Content != one.Message.Content {
			t.Errorf("the same request answered %q, then %q", one.Message.Content, again.Message.Content)
		}
		if !strings.HasPrefix(one.Message.Content, "[simulated] Summary") {
			t.Errorf("got %q", one.Message.Content)
		}
		cut := chat(t, s, "phi3:mini", "Write a report.", `,"options":{"num_predict":5}`)
		if cut.DoneReason != "length" || cut.EvalCount != 5 || !strings.HasPrefix(one.Message.Content, cut.Message.Content) {
			t.Errorf("num_predict 5: %+v", cut)
		}
		stop := chat(t, s, "phi3:mini", "Write a report.", `,"options":{"stop":["candidates"]}`)
		if before, _, _ := strings.Cut(one.Message.Content, "candidates"); stop.DoneReason != "stop" || stop.Message.Content != before {
			t.Errorf("stop: %q, want %q", stop.Message.Content, before)
		}
		long := chat(t, New(Config{Length: 500}), "phi3:mini", "Write a report.", "")
		if long.EvalCount != 500 {
			t.Errorf("length 500: %d tokens", long.EvalCount)
		}
		full := chat(t, New(Config{Length: 5000}), "phi3:mini", "Write a report.", `,"shift":false,"options":{"num_ctx":128}`)
		if full.DoneReason != "length" || full.EvalCount+full.PromptEvalCount != 128 {
			t.Errorf("shift false: %+v", full)
		}
	})
}

func TestTools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		const tools = `,"tools":[{"type":"function","function":{"name":"get_salary_band","parameters":{"type":"object",
			"required":["level"],"properties":{"level":{"type":"string","enum":["junior","senior"]}}}}}]`
		r := chat(t, s, "mistral", "What is the salary for a senior?", tools)
		if len(r.Message.ToolCalls) != 1 || r.Message.ToolCalls[0].Function.Name != "get_salary_band" || r.Message.Content != "" {
			t.Fatalf("got %+v, want a call", r.Message)
		}
		if level, _ := r.Message.ToolCalls[0].Function.Arguments.Get("level"); level != "junior" && level != "senior" {
			t.Errorf("level %v", level)
		}
		if r := chat(t, s, "mistral", "Good morning", tools); len(r.Message.ToolCalls) != 0 {
			t.Errorf("got %+v, want no call", r.Message)
		}
	})
}

// Whatever the schema, what is written satisfies it.
func TestSatisfy(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		schema := schemas(3).Draw(rt, "schema")
		text, err := json.Marshal(map[string]any{
			"$defs":      map[string]any{"node": nodeSchema()},
			"type":       "object",
			"required":   []any{"a"},
			"properties": map[string]any{"a": schema, "tree": map[string]any{"$ref": "#/$defs/node"}},
		})
		if err != nil {
			rt.Fatal(err)
		}
		checkSatisfied(rt, text, rapid.Uint64().Draw(rt, "seed"))
	})
}

// A schema like those that SDKs derive from classes.
func TestSatisfyRecord(t *testing.T) {
	const schema = `{"type":"object","additionalProperties":false,"required":["name","skills","seniority","years","contact"],
		"properties":{"name":{"type":"string","maxLength":12},"skills":{"type":"array","minItems":1,"maxItems":5,"items":{"$ref":"#/$defs/Skill"}},
		"seniority":{"enum":["junior","mid","senior"]},"years":{"type":"integer","minimum":0,"maximum":50},"contact":{"anyOf":[{"$ref":"#/$defs/Contact"},{"type":"null"}]},
		"born":{"type":["string","null"],"format":"date"},"ratio":{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}},
		"$defs":{"Skill":{"type":"object","required":["name"],"properties":{"name":{"type":"string"},"level":{"type":"integer","minimum":1,"maximum":5}}},
		"Contact":{"allOf":[{"type":"object","properties":{"email":{"type":"string","format":"email"}},"required":["email"]},{"properties":{"id":{"const":7}},"required":["id"]}]}}}`
	for seed := range uint64(200) {
		checkSatisfied(t, []byte(schema), seed)
	}
}

func TestUnsatisfiable(t *testing.T) {
	for _, schema := range []string{
		`{`, `{"type":"wish"}`, `{"$ref":"#/nowhere"}`, `{"$ref":"other.json"}`, `{"$ref":"#"}`, `{"enum":[]}`, `{"type":"integer","minimum":3,"maximum":2}`,
	} {
		if got, err := satisfy([]byte(schema), rand.New(rand.NewPCG(1, 1))); err == nil {
			t.Errorf("%s: got %s, want an error", schema, got)
		}
	}
}

func checkSatisfied(t interface {
	Fatalf(format string, args ...any)
}, schema []byte, seed uint64,
) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("s.json", doc); err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	compiled, err := c.Compile("s.json")
	if err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	text, err := satisfy(schema, rand.New(rand.NewPCG(seed, 0)))
	if err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%s: wrote %s: %v", schema, text, err)
	}
	if err := compiled.Validate(value); err != nil {
		t.Fatalf("%s: wrote %s: %v", schema, text, err)
	}
}

func nodeSchema() map[string]any {
	return map[string]any{
		"type": "object", "required": []any{"value", "children"},
		"properties": map[string]any{
			"value":    map[string]any{"type": "integer"},
			"children": map[string]any{"type": "array", "maxItems": 2, "items": map[string]any{"$ref": "#/$defs/node"}},
			"parent":   map[string]any{"anyOf": []any{map[string]any{"$ref": "#/$defs/node"}, map[string]any{"type": "null"}}},
		},
	}
}

// schemas draws schemas that have a solution.
func schemas(depth int) *rapid.Generator[map[string]any] {
	return rapid.Custom(func(t *rapid.T) map[string]any {
		kinds := []string{"string", "integer", "number", "boolean", "null", "enum", "const"}
		if depth > 0 {
			kinds = append(kinds, "object", "array", "anyOf", "union")
		}
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		s := map[string]any{"type": kind}
		switch kind {
		case "string":
			if rapid.Bool().Draw(t, "bounded") {
				low := rapid.IntRange(0, 40).Draw(t, "min")
				s["minLength"], s["maxLength"] = low, low+rapid.IntRange(0, 10).Draw(t, "more")
			}
		case "integer", "number":
			low := rapid.IntRange(-1000, 1000).Draw(t, "min")
			if rapid.Bool().Draw(t, "low") {
				s["minimum"] = low
			}
			if rapid.Bool().Draw(t, "high") {
				s["exclusiveMaximum"] = low + rapid.IntRange(2, 50).Draw(t, "span")
			}
		case "enum":
			return map[string]any{"enum": []any{"a", 1, nil}}
		case "const":
			return map[string]any{"const": rapid.StringMatching(`[a-z]{0,5}`).Draw(t, "const")}
		case "object":
			properties := make(map[string]any)
			required := []any{}
			for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"name", "score", "skills", "é"}), 0, 4, rapid.ID).Draw(t, "keys") {
				properties[k] = schemas(depth-1).Draw(t, k)
				if rapid.Bool().Draw(t, "required") {
					required = append(required, k)
				}
			}
			s["properties"], s["required"], s["additionalProperties"] = properties, required, false
		case "array":
			s["items"] = schemas(depth-1).Draw(t, "items")
			low := rapid.IntRange(0, 3).Draw(t, "min")
			s["minItems"], s["maxItems"] = low, low+rapid.IntRange(0, 2).Draw(t, "more")
		case "anyOf":
			return map[string]any{"anyOf": []any{schemas(depth-1).Draw(t, "one"), schemas(depth-1).Draw(t, "two")}}
		case "union":
			s["type"] = []any{"null", "integer"}
		}
		return s
	})
}
