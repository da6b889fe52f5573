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
)

func (r *rig) respond(body string, header ...string) reply {
	r.t.Helper()
	return r.do(http.MethodPost, "http://api/v1/responses", body, header...)
}

// output is the text of a response, and the calls in it.
func (a reply) output(t *testing.T) (text string, calls []string) {
	t.Helper()
	var r struct {
		Object, Status string
		Output         []struct {
			Type, Name string
			Content    []struct{ Text string }
		}
	}
	if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.status != http.StatusOK || r.Object != "response" {
		t.Fatalf("%d %s: no response (%v)", a.status, a.body, err)
	}
	for _, item := range r.Output {
		switch item.Type {
		case "message":
			text += item.Content[0].Text
		case "function_call":
			calls = append(calls, item.Name)
		}
	}
	return text, calls
}

// named splits a stream of named events into their names and their data.
func named(t *testing.T, body string) (names, data []string) {
	t.Helper()
	for block := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		if strings.HasPrefix(block, ": ") {
			continue
		}
		name, text, ok := strings.Cut(block, "\ndata: ")
		if !ok || !strings.HasPrefix(name, "event: ") {
			t.Fatalf("%q is no event", block)
		}
		names, data = append(names, strings.TrimPrefix(name, "event: ")), append(data, text)
	}
	return names, data
}

// A response is a chat: it has the chat's answer, out of the chat's recording,
// as a body and as events.
func TestResponses(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		chat := r.chat("recruit/resume_parsing", "Jane Doe, nurse", "").content(t)
		synctest.Wait()
		whole := r.respond(`{"model":"recruit/resume_parsing","input":"Jane Doe, nurse","store":true}`)
		text, _ := whole.output(t)
		for name, want := range map[string]string{
			"Tenure-Cache": "hit", "Tenure-Ignored": "store", "Tenure-Task": "resume_parsing", "Tenure-Model": "deepseek-llm:7b", "Content-Type": "application/json",
		} {
			if got := whole.header.Get(name); got != want {
				t.Errorf("%s %q, want %q", name, got, want)
			}
		}
		if text != chat || !strings.Contains(whole.body, `"store":false`) || !strings.Contains(whole.body, `"model":"recruit/resume_parsing"`) {
			t.Errorf("chat %q, response %s", chat, whole.body)
		}
		stream := r.respond(`{"model":"recruit/resume_parsing","input":[{"role":"user","content":"Jane Doe, nurse"}],"stream":true}`)
		names, data := named(t, stream.body)
		if stream.header.Get("Tenure-Cache") != "hit" || names[0] != "response.created" || names[len(names)-1] != "response.completed" || strings.Contains(stream.body, "[DONE]") {
			t.Errorf("Tenure-Cache %s, events %q", stream.header.Get("Tenure-Cache"), names)
		}
		var last struct{ Response json.RawMessage }
		if err := json.Unmarshal([]byte(data[len(data)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if streamed, _ := (reply{status: 200, body: string(last.Response)}).output(t); streamed != chat {
			t.Errorf("streamed %q, want %q", streamed, chat)
		}
		if a := r.respond(`{"model":"recruit-auto","instructions":"Be brief.","input":"Write a short InMail to a nurse about our night shifts."}`); a.header.Get("Tenure-Task") != "script_generation" {
			t.Errorf("Tenure-Task %s, want script_generation", a.header.Get("Tenure-Task"))
		}
		cut := r.respond(`{"model":"mistral","input":"Tell me all.","max_output_tokens":3}`)
		if !strings.Contains(cut.body, `"status":"incomplete"`) || !strings.Contains(cut.body, `"incomplete_details":{"reason":"max_output_tokens"}`) {
			t.Errorf("cut: %s", cut.body)
		}
		r.rest()
	})
}

func TestResponsesTools(t *testing.T) {
	const tools = `"tools":[{"type":"function","name":"find","parameters":{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}}]`
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for model, more := range map[string]string{"phi3:mini": `,"tool_choice":"required"`, "deepseek-llm:7b": `,"tool_choice":{"type":"function","name":"find"}`, "mistral": ""} {
			a := r.respond(`{"model":"` + model + `","input":"Use the tool find.",` + tools + more + `}`)
			if _, calls := a.output(t); len(calls) != 1 || calls[0] != "find" || !strings.Contains(a.body, `"call_id":"call_`) {
				t.Errorf("%s: %s", model, a.body)
			}
		}
		back := r.respond(`{"model":"phi3:mini","input":[{"role":"user","content":"Use the tool find."},{"type":"function_call","call_id":"c","name":"find","arguments":"{}"},` +
			`{"type":"function_call_output","call_id":"c","output":"found"}],` + tools + `,"tool_choice":"none"}`)
		if text, calls := back.output(t); text == "" || len(calls) > 0 {
			t.Errorf("with the result: %s", back.body)
		}
		schema := r.respond(`{"model":"phi3:mini","input":"Parse.","text":{"format":{"type":"json_schema","name":"cv","strict":true,"schema":{"type":"object","properties":{"years":{"type":"integer"}},"required":["years"]}}}}`)
		var got struct{ Years *int }
		if text, _ := schema.output(t); json.Unmarshal([]byte(text), &got) != nil || got.Years == nil {
			t.Errorf("by schema: %s", schema.body)
		}
	})
}

func TestResponsesFail(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			name, method, path, body string
			status                   int
			code, param              string
		}{
			{"unknown model", "POST", "", `{"model":"nobody","input":"x"}`, 404, "model_not_found", "model"},
			{"earlier response", "POST", "", `{"model":"mistral","input":"x","previous_response_id":"resp_1"}`, 400, "previous_response_not_found", "previous_response_id"},
			{"too long", "POST", "", `{"model":"deepseek-llm:7b","input":"` + strings.Repeat("word ", 5000) + `"}`, 400, "context_length_exceeded", "input"},
			{"too long by Ollama's count", "POST", "", `{"model":"deepseek-llm:7b","input":"` + strings.Repeat("x", 30_000) + `"}`, 400, "context_length_exceeded", "input"},
			{"image", "POST", "", `{"model":"mistral","input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,iVBORw0KGgo="}]}]}`, 400, "unsupported_parameter", "input"},
			{"get", "GET", "/resp_1", "", 404, "response_not_found", "response_id"},
			{"its items", "GET", "/resp_1/input_items", "", 404, "response_not_found", "response_id"},
			{"delete", "DELETE", "/resp_1", "", 404, "response_not_found", "response_id"},
			{"cancel", "POST", "/resp_1/cancel", "", 404, "response_not_found", "response_id"},
			{"what else there is", "POST", "/compact", "{}", 404, "unknown_url", ""},
		} {
			a := r.do(c.method, "http://api/v1/responses"+c.path, c.body)
			if e := a.failure(t); e.Status != c.status || e.Code != c.code || e.Param != c.param {
				t.Errorf("%s: got %+v", c.name, e)
			}
		}
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.ErrorLine, Model: "mistral", After: 2, Times: 1})
		names, data := named(t, r.respond(`{"model":"mistral","input":"Jane Doe","stream":true}`).body)
		if n := len(names); names[n-1] != "error" || names[n-2] != "response.failed" || !strings.Contains(data[n-1], `"error":{"message":`) {
			t.Errorf("a stream that breaks: %q", names)
		}
		synctest.Wait()
		before := r.sim.Counts().Cancelled // the broken stream may look like a client that left
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangMid, Model: "mistral", After: 2, Times: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := r.send(ctx, http.MethodPost, "http://api/v1/responses", `{"model":"mistral","input":"hangs","stream":true}`); err == nil {
			t.Error("answered by a model that hangs")
		}
		r.rest()
		synctest.Wait()
		if n := r.sim.Counts().Cancelled - before; n != 1 {
			t.Errorf("%d cancelled upstream, want 1", n)
		}
	})
}

// Who waits for a model to be loaded gets comments, then the events from their
// beginning, also where the load fails.
func TestResponsesWait(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Model: "llama3", Delay: 20 * time.Second, Times: 1})
		a := r.respond(`{"model":"llama3","input":"x","stream":true}`)
		names, _ := named(t, a.body)
		if !strings.HasPrefix(a.body, ": ") || names[0] != "response.created" || names[len(names)-1] != "response.completed" {
			t.Errorf("begins with %.40q, events %q", a.body, names)
		}
		r.rest()
	})
}
