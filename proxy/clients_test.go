package proxy

import (
	"bufio"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/routing"
)

// A whole answer comes, or its failure does, before Node's fetch gives up on
// the headers at 300 s and its clients ask again, which nobody could help. The
// model is stopped. A stream takes the time it takes.
func TestWholeAnswerInTime(t *testing.T) {
	const ours, nodes = 290 * time.Second, 300 * time.Second
	cfg := rigConfig{idle: time.Hour, proxy: Config{WholeTimeout: ours, Timeouts: routing.Timeouts{Queue: time.Hour, Total: time.Hour}}}
	for _, c := range []struct {
		name  string
		fault ollamasim.Fault
	}{
		{"the model is slow", ollamasim.Fault{Kind: ollamasim.HangMid, After: 2}},
		{"the model is silent", ollamasim.Fault{Kind: ollamasim.HangFirst}},
		{"the load is slow", ollamasim.Fault{Kind: ollamasim.SlowLoad, Delay: 10 * time.Minute}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, cfg, func(t *testing.T, r *rig) {
				// Chat's client is Node's: it waits for headers so long and no longer.
				r.client.Transport.(*http.Transport).ResponseHeaderTimeout = nodes
				r.sim.Inject(c.fault)
				began := time.Now()
				a := r.chat("llama3", "hello", "")
				if took := time.Since(began); took != ours {
					t.Errorf("answered after %v, want %v", took, ours)
				}
				e := a.failure(t)
				if e.Status != http.StatusGatewayTimeout || e.Code != "total_timeout" || !strings.Contains(e.Message, "stream") || a.header.Get("X-Should-Retry") != "false" {
					t.Errorf("got %+v, x-should-retry %q", e, a.header.Get("X-Should-Retry"))
				}
				seated := c.fault.Kind != ollamasim.SlowLoad
				if got := a.header.Get("Tenure-Residency"); seated != (got == "cold") {
					t.Errorf("Tenure-Residency: %q; it had a seat: %v", got, seated)
				}
				synctest.Wait()
				if n := r.scheduler.State().Leases; n != 0 {
					t.Errorf("%d seats are still taken", n)
				}
				r.sim.Clear()
				time.Sleep(15 * time.Minute) // the load is over
				r.rest()
			})
		})
	}
	t.Run("a stream", func(t *testing.T) {
		inBubble(t, rigConfig{proxy: Config{WholeTimeout: 3 * time.Second}}, func(t *testing.T, r *rig) {
			if a := r.chat("llama3", "hello", `,"stream":true`); !strings.HasSuffix(a.body, "data: [DONE]\n\n") { // its load takes 5 s
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	})
}

// OpenAI's clients are told when asking again cannot help, and only then.
func TestShouldRetry(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{errWholeTimeout, false},
		{&residency.LoadError{Model: "llama3", Err: errors.New("no memory")}, false},
		{&residency.LoadError{Model: "llama3", Err: ollama.ErrUnreachable}, true},
		{&residency.QueueFullError{RetryAfter: time.Second}, true},
		{ollama.ErrUnreachable, true},
		{ollama.ErrAborted, true},
		{errDraining, true},
	} {
		if e := explain(c.err); e.Final == c.want {
			t.Errorf("%v: final %v", c.err, e.Final)
		}
	}
}

// A client that leaves once it has read the finish_reason, before [DONE], has
// had its answer: it is no failure, and the answer is kept.
func TestClientLeavesAfterFinish(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, question := range []string{"Jane Doe, nurse", "John Roe, cook", "Max Poe, clerk"} {
			body := chatBody("recruit/resume_parsing", question, `,"stream":true,"stream_options":{"include_usage":true}`)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api/v1/chat/completions", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := r.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(resp.Body)
			for lines.Scan() && !strings.Contains(lines.Text(), `"finish_reason":"stop"`) {
			}
			if err := resp.Body.Close(); err != nil || lines.Text() == "" {
				t.Fatalf("no finish_reason: %v, %v", err, lines.Err())
			}
			synctest.Wait()
			if a := r.chat("recruit/resume_parsing", question, ""); a.header.Get("Tenure-Cache") != "hit" {
				t.Errorf("%s: asked again: Tenure-Cache %s, want hit", question, a.header.Get("Tenure-Cache"))
			}
		}
		synctest.Wait()
		if n := r.sim.Counts(); n.Cancelled != 0 || n.Started != 3 {
			t.Errorf("Ollama: %d asked, %d cancelled; want 3 and none", n.Started, n.Cancelled)
		}
		if log := r.log.String(); strings.Contains(log, outcomeCancelled) || strings.Count(log, `"outcome":"ok"`) != 6 {
			t.Errorf("the log:\n%s", log)
		}
		r.rest()
	})
}

// OpenAI's clients number their retries: they are told from new demand in the
// log and the metrics, and served like any request.
func TestRetriesAreMarked(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, try := range []string{"", "0", "1", "2", "-1", "many", "1e9"} {
			if a := r.chat("phi3:mini", "hello", "", "X-Stainless-Retry-Count", try); a.status != http.StatusOK {
				t.Errorf("%q: %d %s", try, a.status, a.body)
			}
		}
		metrics := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body
		for _, want := range []string{"tenure_requests_received_total 7\n", "tenure_request_retries_total 2\n"} {
			if !strings.Contains(metrics, "\n"+want) {
				t.Errorf("the metrics lack %q", want)
			}
		}
		synctest.Wait()
		if log := r.log.String(); strings.Count(log, `"try":`) != 2 || !strings.Contains(log, `"try":2`) {
			t.Errorf("the log:\n%s", log)
		}
	})
}

// The wait is told in seconds, rounded up, and in milliseconds, which OpenAI's
// clients look at first.
func TestRetryAfter(t *testing.T) {
	for d, want := range map[time.Duration][2]int64{
		time.Nanosecond:         {1, 100},
		340 * time.Millisecond:  {1, 340},
		time.Second:             {1, 1000},
		2500 * time.Millisecond: {3, 2500},
		time.Hour:               {60, 60_000},
	} {
		if got := [2]int64{int64(retryAfter(d)), retryAfterMs(d)}; got != want {
			t.Errorf("%v: %v, want %v", d, got, want)
		}
	}
	// Room for another request of this key comes after 100 ms.
	file := keyFile(t, Client{Name: "fast", RPM: 600})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		ask := func() reply {
			return r.do(http.MethodPost, "http://api/v1/route", chatBody("phi3:mini", "x", ""), bearer("fast")...)
		}
		a := ask()
		for a.status == http.StatusOK {
			a = ask()
		}
		if e := a.failure(t); e.Code != "rate_limit_exceeded" || a.header.Get("Retry-After") != "1" || a.header.Get("Retry-After-Ms") != "100" || a.header.Get("X-Should-Retry") != "" {
			t.Errorf("%+v, headers %v", e, a.header)
		}
		time.Sleep(100 * time.Millisecond) // as it was told
		if a := ask(); a.status != http.StatusOK {
			t.Errorf("after the wait: %d %s", a.status, a.body)
		}
	})
}

// A panic is an error like any other to its client.
func TestPanicIsAnError(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		g := newEngine()
		g.GET("/v1/panic", r.server.serve("panic", func(*exchange) error { panic("of a test") }))
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/panic", nil))
		e := reply{w.Code, w.Header(), w.Body.String()}.failure(t)
		if e.Status != http.StatusInternalServerError || e.Code != "internal_error" || w.Header().Get("X-Request-Id") == "" || strings.Contains(e.Message, "of a test") {
			t.Errorf("%+v, headers %v", e, w.Header())
		}
	})
}

// The log knows a request under the id that its client was told, which is the
// client's own where it sent one.
func TestRequestIDIsTheLogs(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, a := range []reply{
			r.chat("phi3:mini", "hello", ""), r.chat("phi3:mini", "hello", `,"stream":true`), r.chat("gpt-4o", "hello", ""),
			r.chat("phi3:mini", "hello", "", "X-Request-Id", "mine-7"),
		} {
			synctest.Wait()
			if id := a.header.Get("X-Request-Id"); id == "" || strings.Count(r.log.String(), `"request":"`+id+`"`) != 1 {
				t.Errorf("the log does not know %q", id)
			}
		}
		if !strings.Contains(r.log.String(), `"request":"mine-7"`) {
			t.Error("the client's own id was not taken")
		}
	})
}

// Images and documents make bodies of tens of megabytes.
func TestLargeBodies(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{BodyBytes: 32 << 20}}, func(t *testing.T, r *rig) {
		large := `,"prediction":{"type":"content","content":"` + strings.Repeat("x", 20<<20) + `"}`
		if a := r.chat("phi3:mini", "hello", large); a.status != http.StatusOK {
			t.Errorf("20 MiB: %d %.300s", a.status, a.body)
		}
	})
}

// What is not served is told in OpenAI's form, at once.
func TestUnservedRoutes(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, path := range []string{
			"/v1/moderations", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/images/generations", "/v1/rerank", "/v1/fim/completions",
			"/v1/assistants", "/openai/deployments/x/chat/completions", "/chat/completions",
		} {
			if e := r.do(http.MethodPost, "http://api"+path, "{}").failure(t); e.Status != http.StatusNotFound || e.Code != "unknown_url" {
				t.Errorf("%s: %+v", path, e)
			}
		}
		if a := r.do(http.MethodHead, "http://api/", ""); a.status != http.StatusOK || a.body != "" {
			t.Errorf("HEAD /: %d %q", a.status, a.body)
		}
	})
}

// Whatever a client sends, headers are printable ASCII.
func TestHeadersArePlain(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		a := r.chat("recruit-auto", "Grüße, Zoë", `,"größe":1,"a\r\nb":2,"verbosity":"low"`, "X-Request-Id", "é")
		if a.status != http.StatusOK || a.header.Get("Tenure-Ignored") != "verbosity" {
			t.Fatalf("%d, ignored %q", a.status, a.header.Get("Tenure-Ignored"))
		}
		for name, values := range a.header {
			if strings.ContainsFunc(name+strings.Join(values, ""), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%s: %q", name, values)
			}
		}
	})
}
