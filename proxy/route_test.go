package proxy

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// POST /v1/route tells what a chat request would do, without a word of it and
// without asking a model.
func TestRouteIsADryRun(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		body := chatBody("recruit-auto", "Write a short InMail to Zebulon about our night shifts.", "")
		a := r.do("POST", "http://api/v1/route", body)
		var e Explanation
		if err := json.Unmarshal([]byte(a.body), &e); err != nil {
			t.Fatalf("%s: %v", a.body, err)
		}
		chat := r.do("POST", "http://api/v1/chat/completions", body)
		if e.Task != chat.header.Get("Tenure-Task") || e.Model != chat.header.Get("Tenure-Model") || e.Cause != chat.header.Get("Tenure-Cause") {
			t.Errorf("told %s by %s (%s), did %v", e.Task, e.Model, e.Cause, chat.header)
		}
		if strings.Contains(a.body, "Zebulon") {
			t.Errorf("the explanation quotes the request: %s", a.body)
		}
		var keys map[string]json.RawMessage
		if err := json.Unmarshal([]byte(a.body), &keys); err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{"task", "confidence", "scores", "cause", "evidence", "documents", "flags", "model", "parameters"} {
			if v := string(keys[k]); v == "" || v == "null" {
				t.Errorf("%s is %q", k, v)
			}
		}
		if n := r.sim.Counts().Started; n != 1 {
			t.Errorf("models were asked %d times, want once, by the chat", n)
		}
		if e := r.do("POST", "http://api/v1/route", "{}").failure(t); e.Status != http.StatusBadRequest {
			t.Errorf("nothing asked: %+v", e)
		}
		forced := r.do("POST", "http://api/v1/route", chatBody("recruit/bias_detection", "x", ""))
		if err := json.Unmarshal([]byte(forced.body), &e); err != nil || e.Cause != "forced" || !slices.Equal(e.Fallbacks, []string{"llama3"}) || e.Parameters.NumCtx != 8192 {
			t.Errorf("forced: %s", forced.body)
		}
	})
}
