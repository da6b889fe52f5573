// Package clients_test is the suite of the Go clients of OpenAI's API. The
// tests of tag clients in cmd/tenure run it against the real program.
package clients_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"
)

var (
	stageURL = os.Getenv("TENURE_URL")
	key      = os.Getenv("TENURE_KEY")
	base     = stageURL + "/v1"
	isReal   = os.Getenv("TENURE_BACKEND") == "real"
)

// simulated skips a test that counts on the simulated Ollama's words.
func simulated(t *testing.T) {
	t.Helper()
	if isReal {
		t.Skip("the test models say what they like")
	}
}

// inject switches a fault on until the test ends.
func inject(t *testing.T, fault map[string]any) {
	t.Helper()
	if isReal {
		t.Skip("the real Ollama does not fail on command")
	}
	body, err := json.Marshal(fault)
	if err != nil {
		t.Fatal(err)
	}
	post(t, "fault", body)
	t.Cleanup(func() { post(t, "clear", nil) })
}

func post(t *testing.T, path string, body []byte) {
	t.Helper()
	resp, err := http.Post(stageURL+"/stage/"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, resp.Status)
	}
}

func cancelled(t *testing.T) int {
	t.Helper()
	resp, err := http.Get(stageURL + "/stage/cancelled")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var n int
	if err := json.NewDecoder(resp.Body).Decode(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func waitForCancel(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); cancelled(t) != before+1; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("cancelled upstream: %d before, %d after", before, cancelled(t))
		}
	}
}

// lookup is the schema of a tool's arguments, and of an answer.
var lookup = map[string]any{
	"type":                 "object",
	"properties":           map[string]any{"name": map[string]any{"type": "string", "maxLength": 20}, "limit": map[string]any{"type": "integer"}},
	"required":             []string{"name", "limit"},
	"additionalProperties": false,
}

// long is the schema of an answer that takes seconds.
var long = map[string]any{
	"type": "array", "minItems": 60, "maxItems": 60,
	"items": map[string]any{"type": "string", "minLength": 60, "maxLength": 80},
}

// checkObject checks an answer in JSON, or that it is said to be cut, which the
// test models' answers may be.
func checkObject(t *testing.T, text, finish string) {
	t.Helper()
	if cut := finish == "length"; cut != !json.Valid([]byte(text)) || cut && !isReal {
		t.Errorf("%s: %q", finish, text)
	}
}

// checkLookup checks a text against it.
func checkLookup(t *testing.T, text string) {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Errorf("%q: %v", text, err)
		return
	}
	_, name := v["name"].(string)
	_, limit := v["limit"].(float64)
	if !name || !limit || len(v) != 2 {
		t.Errorf("not what was asked for: %s", text)
	}
}
