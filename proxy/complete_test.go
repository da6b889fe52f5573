package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/routing"
)

func TestTasksGoToTheirModels(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, c := range []struct{ model, task, real string }{
			{"recruit/resume_parsing", "resume_parsing", "deepseek-llm:7b"},
			{"recruit-bias_detection", "bias_detection", "mistral"},
			{"recruit:matching_logic", "matching_logic", "llama3"},
			{"recruit/script_generation", "script_generation", "llama3"},
			{"recruit/report_generation", "report_generation", "phi3:mini"},
			{"recruit/general", "general", "phi3:mini"},
			{"mistral", "general", "mistral"},
			{"mistral:latest", "general", "mistral"},
		} {
			a := r.chat(c.model, "Jane Doe, nurse, ten years", "")
			if a.status != http.StatusOK {
				t.Fatalf("%s: %d %s", c.model, a.status, a.body)
			}
			if got := a.header.Get("Tenure-Model"); got != c.real {
				t.Errorf("%s: Tenure-Model %s, want %s", c.model, got, c.real)
			}
			if got := a.header.Get("Tenure-Task"); got != c.task {
				t.Errorf("%s: Tenure-Task %s, want %s", c.model, got, c.task)
			}
			if !strings.Contains(a.body, `"model":"`+c.model+`"`) {
				t.Errorf("%s: the answer names another model: %s", c.model, a.body)
			}
			for _, h := range []string{"Tenure-Confidence", "Tenure-Cause", "Tenure-Cache", "Tenure-Residency", "Tenure-Queued-Ms", "X-Request-Id"} {
				if a.header.Get(h) == "" {
					t.Errorf("%s: no header %s", c.model, h)
				}
			}
		}
		r.rest()
	})
}

func TestAutoReadsTheTask(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		a := r.chat("recruit-auto", "Write a short InMail to a nurse about our night shifts.", "")
		if got := a.header.Get("Tenure-Task"); got != "script_generation" {
			t.Errorf("Tenure-Task %s, want script_generation", got)
		}
	})
}

// A chat application's own jobs go to the light model, wait behind people and
// cause no swap, whatever the chat they quote is about.
func TestChatApplicationsJobs(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		before := r.scheduler.State()
		const job = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### Output:\nJSON format: { \"title\": \"...\" }\n" +
			"### Chat History:\n<chat_history>\nUSER: Parse this CV into JSON.\nASSISTANT: {}\n</chat_history>"
		a := r.chat("recruit-auto", job, `,"stream":false,"max_tokens":1000`)
		if a.header.Get("Tenure-Task") != "general" || a.header.Get("Tenure-Model") != "phi3:mini" {
			t.Errorf("task %s by %s, want general by phi3:mini", a.header.Get("Tenure-Task"), a.header.Get("Tenure-Model"))
		}
		after := r.scheduler.State()
		if after.Grants["batch"] != 1 || after.Counters.Loads != before.Counters.Loads {
			t.Errorf("%d batch grants, %d loads more; want 1 and none", after.Grants["batch"], after.Counters.Loads-before.Counters.Loads)
		}
	})
}

// events splits a stream into its data and its comments.
func events(t *testing.T, body string) (data, comments []string) {
	t.Helper()
	for block := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		switch {
		case strings.HasPrefix(block, "data: "):
			data = append(data, strings.TrimPrefix(block, "data: "))
		case strings.HasPrefix(block, ": "):
			comments = append(comments, strings.TrimPrefix(block, ": "))
		default:
			t.Errorf("neither data nor comment: %q", block)
		}
	}
	return data, comments
}

// The stream and the JSON of one question are one answer: kept under one key,
// with the same text.
func TestStreamAndJSONShareAnAnswer(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		stream := r.chat("recruit/resume_parsing", "Jane Doe, nurse", `,"stream":true,"stream_options":{"include_usage":true}`)
		if got := stream.header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
			t.Fatalf("content type %q", got)
		}
		data, _ := events(t, stream.body)
		var text strings.Builder
		roles, finishes, usages := 0, 0, 0
		for _, d := range data[:len(data)-1] {
			var chunk struct {
				Choices []struct {
					Delta struct{ Role, Content string }
					Reply *string `json:"finish_reason"`
				}
				Usage *struct{}
			}
			if err := json.Unmarshal([]byte(d), &chunk); err != nil {
				t.Fatalf("%s: %v", d, err)
			}
			if chunk.Usage != nil {
				usages++
			}
			for _, c := range chunk.Choices {
				text.WriteString(c.Delta.Content)
				if c.Delta.Role != "" {
					roles++
				}
				if c.Reply != nil {
					finishes++
				}
			}
		}
		if data[len(data)-1] != "[DONE]" || roles != 1 || finishes != 1 || usages != 1 {
			t.Errorf("last %q, %d roles, %d finish reasons, %d usages; want [DONE] and one of each", data[len(data)-1], roles, finishes, usages)
		}
		synctest.Wait()
		plain := r.chat("recruit/resume_parsing", "Jane Doe, nurse", "")
		if got := plain.header.Get("Tenure-Cache"); got != "hit" {
			t.Errorf("Tenure-Cache %s, want hit", got)
		}
		if plain.content(t) != text.String() {
			t.Errorf("stream %q, JSON %q", &text, plain.content(t))
		}
		again := r.chat("recruit/resume_parsing", "Jane Doe, nurse", `,"stream":true`)
		if got := again.header.Get("Tenure-Cache"); got != "hit" || !strings.HasSuffix(again.body, "data: [DONE]\n\n") {
			t.Errorf("Tenure-Cache %s, stream %q", got, again.body)
		}
		if n := r.sim.Counts().Started; n != 1 {
			t.Errorf("the model was asked %d times, want once", n)
		}
	})
}

func TestCacheControl(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		ask := func(model, more string, header ...string) string {
			a := r.chat(model, "Jane Doe, nurse", more, header...)
			if a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
			synctest.Wait()
			return a.header.Get("Tenure-Cache")
		}
		for _, c := range []struct{ name, model, more, control, want string }{
			{"first", "recruit/resume_parsing", "", "", "miss"},
			{"again", "recruit/resume_parsing", "", "", "hit"},
			{"other key order and fields that change nothing", "recruit/resume_parsing", `,"user":"u","temperature":0`, "", "hit"},
			{"another seed", "recruit/resume_parsing", `,"seed":7`, "", "miss"},
			{"no-store", "recruit/resume_parsing", "", "no-store", "bypass"},
			{"no-cache", "recruit/resume_parsing", "", "no-cache", "miss"},
			{"another temperature", "recruit/resume_parsing", `,"temperature":0.5`, "", "bypass"},
			{"sampled", "recruit/script_generation", "", "", "bypass"},
			{"sampled, to be kept", "recruit/script_generation", "", "max-age=60", "miss"},
			{"sampled, kept", "recruit/script_generation", "", "max-age=60", "hit"},
			{"cut", "recruit/matching_logic", `,"max_tokens":3`, "", "miss"},
			{"cut, not kept", "recruit/matching_logic", `,"max_tokens":3`, "", "miss"},
			{"at temperature 0, to be kept", "recruit/script_generation", `,"temperature":0`, "max-age=60", "miss"},
			{"at temperature 0, kept", "recruit/script_generation", `,"temperature":0`, "max-age=60", "hit"},
			{"own name, the model's temperature", "mistral", "", "", "bypass"},
			{"own name, temperature 0", "mistral", `,"temperature":0`, "", "miss"},
			{"own name, kept", "mistral", `,"temperature":0`, "", "hit"},
		} {
			var header []string
			if c.control != "" {
				header = []string{"Cache-Control", c.control}
			}
			if got := ask(c.model, c.more, header...); got != c.want {
				t.Errorf("%s: Tenure-Cache %s, want %s", c.name, got, c.want)
			}
		}
		// go-openai's headers of a stream.
		if got := ask("recruit/resume_parsing", "", "Cache-Control", "no-cache", "Accept", "text/event-stream"); got != "hit" {
			t.Errorf("an event-stream client's no-cache: Tenure-Cache %s, want hit", got)
		}
		time.Sleep(2 * time.Minute)
		if got := ask("recruit/resume_parsing", "", "Cache-Control", "max-age=60"); got != "miss" {
			t.Errorf("older than max-age: Tenure-Cache %s, want miss", got)
		}
	})
}

// Tenants never share an answer.
func TestTenantsAreApart(t *testing.T) {
	const a, b = "key-of-tenant-number-a", "key-of-tenant-number-b"
	inBubble(t, rigConfig{proxy: Config{Keys: []Key{HashKey(a), HashKey(b)}}}, func(t *testing.T, r *rig) {
		for _, c := range []struct{ key, want string }{{a, "miss"}, {a, "hit"}, {b, "miss"}, {b, "hit"}} {
			got := r.chat("recruit/resume_parsing", "Jane Doe, nurse", "", "Authorization", "Bearer "+c.key)
			synctest.Wait()
			if got.header.Get("Tenure-Cache") != c.want {
				t.Errorf("%s: %s, want %s", c.key, got.header.Get("Tenure-Cache"), c.want)
			}
		}
	})
}

// The answer tells the tier it was served in, and which weights made it.
func TestTierAndFingerprint(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for asked, want := range map[string]string{`,"service_tier":"flex"`: "flex", `,"service_tier":"auto"`: "default", "": ""} {
			var got struct {
				ServiceTier string `json:"service_tier"`
				Fingerprint string `json:"system_fingerprint"`
			}
			a := r.chat("mistral", "hello", asked)
			if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.ServiceTier != want || !strings.HasPrefix(got.Fingerprint, "fp_") {
				t.Errorf("%q: got %+v (%v), want %q", asked, got, err, want)
			}
		}
		if n := r.scheduler.State().Grants["batch"]; n != 1 {
			t.Errorf("%d batch grants, want 1: flex is batch work", n)
		}
	})
}

func TestSharedFlight(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		outcomes := map[string]int{}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				a := r.chat("recruit/matching_logic", "Jane Doe against nurse, night shift", "")
				mu.Lock()
				defer mu.Unlock()
				outcomes[a.header.Get("Tenure-Cache")]++
			})
		}
		wg.Wait()
		if outcomes["miss"] != 1 || outcomes["shared"] != 4 || r.sim.Counts().Started != 1 {
			t.Errorf("outcomes %v, the model was asked %d times", outcomes, r.sim.Counts().Started)
		}
	})
}

func words(n int) string { return strings.Repeat("word ", n) }

// A prompt that does not fit goes to the task's next fallback with room.
func TestPromptTooLong(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		a := r.chat("recruit/resume_parsing", words(5000), "")
		if a.status != http.StatusOK || a.header.Get("Tenure-Model") != "mistral" || a.header.Get("Tenure-Cause") != "context" {
			t.Errorf("5,000 words: %d %s, cause %s; want mistral for context", a.status, a.header.Get("Tenure-Model"), a.header.Get("Tenure-Cause"))
		}
		for _, stream := range []string{"", `,"stream":true`} {
			e := r.chat("recruit/resume_parsing", words(20000), stream).failure(t)
			if e.Status != http.StatusBadRequest || e.Code != "context_length_exceeded" || !strings.Contains(e.Message, "maximum context length") {
				t.Errorf("20,000 words: %+v", e)
			}
		}
		e := r.chat("phi3:mini", words(5000), "").failure(t)
		if e.Code != "context_length_exceeded" {
			t.Errorf("a model by its own name: %+v", e)
		}
		r.rest()
	})
}

// What only Ollama can tell to be too long falls back all the same: few words,
// many tokens.
func TestPromptTooLongByOllamasCount(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		a := r.chat("recruit/resume_parsing", strings.Repeat("x", 5*4096), "")
		if a.status != http.StatusOK || a.header.Get("Tenure-Model") != "mistral" || a.header.Get("Tenure-Cause") != "context" {
			t.Errorf("%d %s, cause %s; want mistral for context: %s", a.status, a.header.Get("Tenure-Model"), a.header.Get("Tenure-Cause"), a.body)
		}
		r.rest()
	})
}

func TestModelNotPulled(t *testing.T) {
	some := ollamasim.Catalog()[:3] // no llama3
	inBubble(t, rigConfig{sim: ollamasim.Config{Models: some}}, func(t *testing.T, r *rig) {
		a := r.chat("recruit/matching_logic", "Jane Doe, nurse", "")
		if a.header.Get("Tenure-Model") != "mistral" || a.header.Get("Tenure-Cause") != "missing" {
			t.Errorf("model %s, cause %s; want mistral for missing", a.header.Get("Tenure-Model"), a.header.Get("Tenure-Cause"))
		}
		e := r.chat("llama3", "Jane Doe, nurse", "").failure(t)
		if e.Status != http.StatusNotFound || e.Code != "model_not_found" || !strings.Contains(e.Message, "ollama pull llama3") {
			t.Errorf("got %+v", e)
		}
	})
}

// All four models in turn: each swap is ordered by us, and Ollama agrees on
// their number.
func TestSwapsAreOurs(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for i := range 12 {
			model := []string{"phi3:mini", "deepseek-llm:7b", "mistral", "llama3"}[i%4]
			if a := r.chat(model, "hello", ""); a.status != http.StatusOK {
				t.Fatalf("%s: %d %s", model, a.status, a.body)
			}
		}
		time.Sleep(time.Minute)
		r.rest()
		ours, theirs := r.scheduler.State().Counters, r.sim.Counts()
		if int(ours.Loads) != theirs.Loads || int(ours.Unloads) != theirs.Unloads || ours.Unloads == 0 {
			t.Errorf("we ordered %d loads and %d unloads, Ollama made %d and %d", ours.Loads, ours.Unloads, theirs.Loads, theirs.Unloads)
		}
	})
}

func TestClientLeaves(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		leave := func(model string, after time.Duration, more string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			if _, err := r.send(ctx, http.MethodPost, "http://api/v1/chat/completions", chatBody(model, "hello", more)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the answer came before the client left: %v", err)
			}
			synctest.Wait()
		}
		leave("mistral", 100*time.Millisecond, "")
		leave("mistral", 100*time.Millisecond, `,"stream":true`)
		if n := r.sim.Counts(); n.Cancelled != 2 {
			t.Errorf("while it answers: Ollama saw %d of 2 leave", n.Cancelled)
		}
		// In the queue: the seat is taken by another.
		done := make(chan reply)
		go func() { done <- r.chat("mistral", "a long one", "") }()
		synctest.Wait()
		leave("mistral", 50*time.Millisecond, "")
		if n := r.scheduler.State().Counters.Cancelled; n != 1 {
			t.Errorf("in the queue: %d cancelled, want 1", n)
		}
		if a := <-done; a.status != http.StatusOK {
			t.Errorf("the one that stayed got %d", a.status)
		}
		r.rest()
	})
}

func TestQueueFull(t *testing.T) {
	inBubble(t, rigConfig{residency: residency.Config{QueueLimit: 3}}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		statuses := map[int]int{}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				a := r.chat("mistral", strings.Repeat("x", i), "")
				if a.status == http.StatusTooManyRequests {
					e := a.failure(t)
					if e.Code != "queue_full" || e.Type != "rate_limit_error" || a.header.Get("Retry-After") == "" {
						t.Errorf("got %+v, Retry-After %q", e, a.header.Get("Retry-After"))
					}
				}
				mu.Lock()
				defer mu.Unlock()
				statuses[a.status]++
			})
		}
		wg.Wait()
		if statuses[http.StatusOK] != 4 || statuses[http.StatusTooManyRequests] != 4 {
			t.Errorf("statuses %v, want 4 served and 4 refused", statuses)
		}
		r.rest()
	})
}

func TestQueueTimeout(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{Timeouts: routing.Timeouts{Queue: 2 * time.Second}}}, func(t *testing.T, r *rig) {
		e := r.chat("llama3", "hello", "").failure(t) // its load takes 5 s
		if e.Status != http.StatusTooManyRequests || e.Code != "queue_timeout" {
			t.Errorf("got %+v", e)
		}
	})
}

// Who waits long for a stream is sent headers and comments, and later what the
// headers could not say.
func TestLongWaitForAStream(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Delay: 30 * time.Second})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api/v1/chat/completions",
			strings.NewReader(chatBody("llama3", "hello", `,"stream":true`)))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got := time.Since(start); got != headersAfter {
			t.Errorf("headers after %v, want %v", got, headersAfter)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		data, comments := events(t, string(body))
		if len(comments) < 3 || comments[0] != "keep-alive" || !strings.Contains(comments[len(comments)-1], "Tenure-Residency: cold; Tenure-Queued-Ms: ") {
			t.Errorf("comments %q", comments)
		}
		if data[len(data)-1] != "[DONE]" {
			t.Errorf("last event %q", data[len(data)-1])
		}
	})
}
