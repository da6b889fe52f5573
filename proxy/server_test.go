package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func contextWithStop() (context.Context, context.CancelFunc) {
	return context.WithCancel(context.Background())
}

func TestBadRequests(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		const chat = "/v1/chat/completions"
		for _, c := range []struct {
			name, method, path, body string
			status                   int
			code, param              string
		}{
			{"not JSON", "POST", chat, `{"model":`, 400, "invalid_json", ""},
			{"an array", "POST", chat, `[]`, 400, "", ""},
			{"nothing", "POST", chat, ``, 400, "", ""},
			{"no model", "POST", chat, `{"messages":[{"role":"user","content":"x"}]}`, 400, "", "model"},
			{"model of another type", "POST", chat, `{"model":7,"messages":[{"role":"user","content":"x"}]}`, 400, "", "model"},
			{"no messages", "POST", chat, `{"model":"mistral"}`, 400, "", "messages"},
			{"empty messages", "POST", chat, `{"model":"mistral","messages":[]}`, 400, "", "messages"},
			{"messages of another type", "POST", chat, `{"model":"mistral","messages":"x"}`, 400, "", "messages"},
			{"role of another type", "POST", chat, `{"model":"mistral","messages":[{"role":1,"content":"x"}]}`, 400, "", "messages[0].role"},
			{"temperature out of range", "POST", chat, chatBody("mistral", "x", `,"temperature":9`), 400, "", "temperature"},
			{"max_tokens of another type", "POST", chat, chatBody("mistral", "x", `,"max_tokens":"many"`), 400, "", "max_tokens"},
			{"key twice", "POST", chat, chatBody("mistral", "x", `,"model":"llama3"`), 400, "", "model"},
			{"key in another case", "POST", chat, chatBody("mistral", "x", `,"Model":"llama3"`), 400, "", ""},
			{"unknown model", "POST", chat, chatBody("gpt-4o", "x", ""), 404, "model_not_found", "model"},
			{"unknown task", "POST", chat, chatBody("recruit/cooking", "x", ""), 404, "model_not_found", "model"},
			{"too large", "POST", chat, chatBody("mistral", strings.Repeat("x", 1<<20), ""), 413, "request_too_large", ""},
			{"unknown path", "GET", "/v1/moderations", "", 404, "unknown_url", ""},
			{"wrong verb", "GET", chat, "", 405, "method_not_allowed", ""},
			{"wrong verb", "DELETE", "/v1/models", "", 405, "method_not_allowed", ""},
			{"unknown model", "GET", "/v1/models/gpt-4o", "", 404, "model_not_found", "model"},
		} {
			a := r.do(c.method, "http://api"+c.path, c.body)
			e := a.failure(t)
			if e.Status != c.status || c.code != "" && e.Code != c.code || c.param != "" && e.Param != c.param || e.Type != "invalid_request_error" {
				t.Errorf("%s %s, %s: got %+v, want %d %s %s", c.method, c.path, c.name, e, c.status, c.code, c.param)
			}
			if a.header.Get("X-Request-Id") == "" {
				t.Errorf("%s %s, %s: no request id", c.method, c.path, c.name)
			}
		}
		a := r.do("POST", "http://api"+chat, chatBody("mistral", "x", ""), "Content-Encoding", "gzip")
		if e := a.failure(t); e.Status != http.StatusBadRequest || e.Code != "unsupported_encoding" {
			t.Errorf("compressed: %+v", e)
		}
	})
}

func TestModels(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		var list struct {
			Object string
			Data   []modelObject
		}
		if err := json.Unmarshal([]byte(r.do("GET", "http://api/v1/models", "").body), &list); err != nil {
			t.Fatal(err)
		}
		if list.Object != "list" || len(list.Data) != 11 || list.Data[0].ID != "recruit-auto" {
			t.Errorf("got %+v", list)
		}
		for _, m := range list.Data {
			if m.Object != "model" || m.Created == 0 || m.OwnedBy == "" {
				t.Errorf("incomplete: %+v", m)
			}
		}
		for _, path := range []string{"recruit-auto", "recruit/resume_parsing", "recruit%2Fresume_parsing", "recruit:general", "llama3", "deepseek-llm:7b"} {
			a := r.do("GET", "http://api/v1/models/"+path, "")
			if a.status != http.StatusOK {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := r.do("GET", "http://api//v1/models", ""); a.status != http.StatusOK {
			t.Errorf("a slash too many: %d", a.status)
		}
	})
}

func TestKeys(t *testing.T) {
	const good, other = "a-key-that-opens-the-api", "a-key-of-somebody-else-x"
	cfg := rigConfig{proxy: Config{Keys: []Key{HashKey(good)}, AdminKey: HashKey(other)}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			header, value string
			ok            bool
		}{
			{"Authorization", "Bearer " + good, true},
			{"Authorization", "bearer " + good, true},
			{"Api-Key", good, true},
			{"X-Api-Key", good, true},
			{"Authorization", "Bearer " + other, false},
			{"Authorization", good, false},
			{"Authorization", "Bearer", false},
			{"X-Nothing", "", false},
		} {
			a := r.chat("phi3:mini", "hello", "", c.header, c.value)
			if c.ok && a.status != http.StatusOK {
				t.Errorf("%s %s: %d", c.header, c.value, a.status)
			}
			if !c.ok {
				if e := a.failure(t); e.Status != http.StatusUnauthorized || e.Code != "invalid_api_key" {
					t.Errorf("%s %s: %+v", c.header, c.value, e)
				}
			}
		}
		if a := r.do("GET", "http://api/v1/models", ""); a.status != http.StatusUnauthorized {
			t.Errorf("models without a key: %d", a.status)
		}
		if a := r.do("GET", "http://api/healthz", ""); a.status != http.StatusOK {
			t.Errorf("health without a key: %d", a.status)
		}
		for key, want := range map[string]int{other: 200, good: 401, "": 401} {
			if a := r.do("GET", "http://admin/admin/state", "", "Authorization", "Bearer "+key); a.status != want {
				t.Errorf("admin with %q: %d, want %d", key, a.status, want)
			}
		}
		if log := r.log.String(); strings.Contains(log, good) || strings.Contains(log, other) {
			t.Error("a key is in the log")
		}
	})
}

// Without a key the admin side answers only to who calls it by a loopback name:
// a web page whose host was made to resolve here does not.
func TestAdminChecksHost(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for host, want := range map[string]int{
			"localhost": 200, "localhost:11436": 200, "127.0.0.1:11436": 200, "[::1]:11436": 200, "LOCALHOST": 200,
			"evil.test": 403, "localhost.evil.test": 403, "10.0.0.1": 403, "127.0.0.1.evil.test:80": 403,
		} {
			for _, path := range []string{"/admin/state", "/metrics"} {
				if a := r.do("GET", "http://admin"+path, "", "Host", host); a.status != want {
					t.Errorf("%s for %s: %d, want %d", path, host, a.status, want)
				}
			}
		}
	})
}

func TestState(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery)
		var st State
		if err := json.Unmarshal([]byte(r.do("GET", "http://admin/admin/state", "", "Host", "localhost").body), &st); err != nil {
			t.Fatal(err)
		}
		if !st.Ollama.Reachable || st.Ollama.Version == "" || len(st.Ollama.Installed) != 4 || len(st.Ollama.Resident) != 3 {
			t.Errorf("ollama: %+v", st.Ollama)
		}
		if len(st.Residency.Residents) != 3 || st.Residency.Residents[0].Model.Name != "phi3:mini" || !st.Residency.Residents[0].Pinned {
			t.Errorf("residency: %+v", st.Residency)
		}
	})
}

// counters reads one metric's samples, by their labels.
func counters(t *testing.T, text, name string) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
			continue
		}
		i := strings.LastIndex(rest, " ")
		v, err := strconv.ParseFloat(rest[i+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		got[rest[:i]] = v
	}
	return got
}

// Every request that came in is counted once by how it ended, and every answer
// once by where it came from.
func TestCountersReconcile(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for range 2 {
			r.chat("recruit/resume_parsing", "Jane", "")
			synctest.Wait()
			r.chat("recruit/script_generation", "an InMail", `,"stream":true`)
			r.chat("gpt-4o", "x", "")
			r.do("POST", "http://api/v1/chat/completions", "{")
			r.do("GET", "http://api/v1/models", "")
			r.do("GET", "http://api/v1/nothing", "")
			r.chat("phi3:mini", words(5000), "")
		}
		text := r.do("GET", "http://admin/metrics", "", "Host", "localhost").body
		sum := func(name string) (n float64) {
			for _, v := range counters(t, text, name) {
				n += v
			}
			return n
		}
		if received, ended := sum("tenure_requests_received_total"), sum("tenure_requests_total"); received != 14 || ended != 14 {
			t.Errorf("%v received, %v ended; want 14", received, ended)
		}
		cached := counters(t, text, "tenure_cache_requests_total")
		if cached[`{outcome="miss"}`] != 1 || cached[`{outcome="hit"}`] != 1 || cached[`{outcome="bypass"}`] != 2 {
			t.Errorf("cache: %v", cached)
		}
		st := r.scheduler.State()
		if got := sum("tenure_model_loads_total"); got != float64(st.Counters.Loads) || got != float64(r.sim.Counts().Loads) {
			t.Errorf("loads: %v, the book %d, Ollama %d", got, st.Counters.Loads, r.sim.Counts().Loads)
		}
		if sum("tenure_grants_total") != 3 || sum("tenure_time_to_first_token_seconds_count") != 4 || sum("tenure_queue_wait_seconds_count") != 3 {
			t.Errorf("grants %v, first tokens %v, waits %v; want 3, 4, 3", sum("tenure_grants_total"),
				sum("tenure_time_to_first_token_seconds_count"), sum("tenure_queue_wait_seconds_count"))
		}
		if sum("tenure_budget_bytes") != 20<<30 || sum("tenure_resident_bytes") == 0 || sum("tenure_model_load_seconds_total") == 0 {
			t.Errorf("budget %v, resident %v", sum("tenure_budget_bytes"), sum("tenure_resident_bytes"))
		}
	})
}
