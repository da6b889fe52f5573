package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"

	"github.com/ollama/ollama/types/model"
)

func (r *rig) completion(model, prompt, more string, header ...string) reply {
	r.t.Helper()
	return r.do(http.MethodPost, "http://api/v1/completions", `{"model":"`+model+`","prompt":`+prompt+more+`}`, header...)
}

// texts are those of a completion's choices, in their order.
func (a reply) texts(t *testing.T) []string {
	t.Helper()
	var c struct {
		Choices []struct {
			Text  string
			Index int
		}
	}
	if err := json.Unmarshal([]byte(a.body), &c); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s (%v)", a.status, a.body, err)
	}
	var all []string
	for i, choice := range c.Choices {
		if choice.Index != i {
			t.Errorf("index %d at %d", choice.Index, i)
		}
		all = append(all, choice.Text)
	}
	return all
}

func TestCompletions(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		one := r.completion("recruit-auto", `"Write a short InMail to a nurse about our night shifts."`, `,"temperature":0`)
		if got := one.header.Get("Tenure-Task"); got != "script_generation" {
			t.Errorf("Tenure-Task %s, want script_generation", got)
		}
		if len(one.texts(t)) != 1 || !strings.Contains(one.body, `"model":"recruit-auto"`) || !strings.Contains(one.body, `"id":"cmpl-`) {
			t.Errorf("got %s", one.body)
		}

		// Prompt by prompt, n choices each; a stream is the same answer.
		const two = `["Jane Doe, nurse","John Roe, cook"]`
		whole := r.completion("recruit/resume_parsing", two, `,"n":2,"seed":1`)
		texts := whole.texts(t)
		if len(texts) != 4 || texts[0] == texts[1] || texts[0] == texts[2] {
			t.Fatalf("texts %q", texts)
		}
		synctest.Wait()
		stream := r.completion("recruit/resume_parsing", two, `,"n":2,"seed":1,"stream":true,"stream_options":{"include_usage":true}`)
		if got := stream.header.Get("Tenure-Cache"); got != "hit" {
			t.Errorf("Tenure-Cache %s, want hit", got)
		}
		data, _ := events(t, stream.body)
		streamed, finished, usage := make([]string, 4), 0, 0
		for _, d := range data[:len(data)-1] {
			var e struct {
				Choices []struct {
					Text   string
					Index  int
					Reason *string `json:"finish_reason"`
				}
				Usage *struct {
					Prompt int `json:"prompt_tokens"`
				}
			}
			if err := json.Unmarshal([]byte(d), &e); err != nil {
				t.Fatal(err)
			}
			for _, c := range e.Choices {
				streamed[c.Index] += c.Text
				if c.Reason != nil {
					finished++
				}
			}
			if e.Usage != nil {
				usage = e.Usage.Prompt
			}
		}
		// The simulated model reads 4 tokens of template and 4 bytes a token.
		if finished != 4 || data[len(data)-1] != "[DONE]" || strings.Join(streamed, "|") != strings.Join(texts, "|") || usage != 4+4+4+4 {
			t.Errorf("%d finished, %d tokens, last %s, texts %q", finished, usage, data[len(data)-1], streamed)
		}

		echo := r.completion("recruit/resume_parsing", two, `,"n":2,"seed":1,"echo":true`)
		if got := echo.texts(t); got[0] != "Jane Doe, nurse"+texts[0] || got[3] != "John Roe, cook"+texts[3] || echo.header.Get("Tenure-Cache") != "hit" {
			t.Errorf("echo %q", got)
		}
		cut := r.completion("phi3:mini", `[15339]`, `,"max_tokens":2,"best_of":3,"logit_bias":{"1":1}`)
		if got := cut.header.Get("Tenure-Ignored"); got != "logit_bias, best_of" || !strings.Contains(cut.body, `"finish_reason":"length"`) {
			t.Errorf("ignored %q: %s", got, cut.body)
		}
		r.rest()
	})
}

func TestCompletionsSuffix(t *testing.T) {
	coder := ollamasim.Catalog()[0]
	coder.Name, coder.Capabilities = "coder", []model.Capability{model.CapabilityCompletion, model.CapabilityInsert}
	inBubble(t, rigConfig{sim: ollamasim.Config{Models: append(ollamasim.Catalog(), coder)}}, func(t *testing.T, r *rig) {
		if a := r.completion("coder", `"func add("`, `,"suffix":"return a + b }"`); a.status != http.StatusOK || a.texts(t)[0] == "" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if e := r.completion("mistral", `"func add("`, `,"suffix":"}"`).failure(t); e.Status != 400 || e.Param != "suffix" {
			t.Errorf("got %+v", e)
		}
	})
}

func TestCompletionsFail(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			name, model, prompt string
			status              int
			code, param         string
		}{
			{"unknown", "nobody", `"x"`, 404, "model_not_found", "model"},
			{"empty", "mistral", `""`, 400, "invalid_value", "prompt"},
			{"too many words", "deepseek-llm:7b", `["x","` + strings.Repeat("word ", 5000) + `"]`, 400, "context_length_exceeded", "prompt"},
			{"too long by Ollama's count", "deepseek-llm:7b", `["x","` + strings.Repeat("x", 30_000) + `"]`, 400, "context_length_exceeded", "prompt"},
		} {
			if e := r.completion(c.model, c.prompt, "").failure(t); e.Status != c.status || e.Code != c.code || e.Param != c.param {
				t.Errorf("%s: got %+v", c.name, e)
			}
		}
		// A prompt that does not fit the task's model goes to one with room.
		a := r.completion("recruit/resume_parsing", `"`+strings.Repeat("word ", 5000)+`"`, "")
		if a.status != http.StatusOK || a.header.Get("Tenure-Cause") != "context" || a.header.Get("Tenure-Model") != "mistral" {
			t.Errorf("%d by %s, cause %s", a.status, a.header.Get("Tenure-Model"), a.header.Get("Tenure-Cause"))
		}

		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.ErrorLine, Model: "mistral", After: 2, Times: 1})
		broken, _ := events(t, r.completion("mistral", `"Jane Doe"`, `,"stream":true`).body)
		if last := broken[len(broken)-1]; !strings.HasPrefix(last, `{"error":{`) {
			t.Errorf("last event %s", last)
		}
		r.rest()
		synctest.Wait()
		before := r.sim.Counts().Cancelled // an error line and the end of its connection may meet
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangMid, Model: "mistral", After: 2, Times: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := r.send(ctx, http.MethodPost, "http://api/v1/completions", `{"model":"mistral","prompt":"hangs","stream":true}`); err == nil {
			t.Error("answered by a model that hangs")
		}
		r.rest()
		synctest.Wait() // the seat is given back before Ollama notices
		if n := r.sim.Counts().Cancelled - before; n != 1 {
			t.Errorf("%d cancelled upstream, want 1", n)
		}
	})
}
