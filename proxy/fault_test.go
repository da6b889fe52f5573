package proxy

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// Whatever the backend does, the client gets a status before the first byte,
// an error event and never [DONE] after it; nothing of it is kept, the seat
// comes back, and the next request is served.
func TestFaults(t *testing.T) {
	const first, mid = true, false
	for _, c := range []struct {
		kind   ollamasim.Kind
		when   bool
		status int
		code   string
	}{
		{ollamasim.Refuse, first, http.StatusServiceUnavailable, "upstream_unreachable"},
		{ollamasim.QueueFull, first, http.StatusTooManyRequests, "upstream_busy"},
		{ollamasim.HangFirst, first, http.StatusGatewayTimeout, "first_byte_timeout"},
		{ollamasim.HangMid, mid, http.StatusGatewayTimeout, "idle_timeout"},
		{ollamasim.CutMid, mid, http.StatusBadGateway, "upstream_aborted"},
		{ollamasim.ErrorLine, mid, http.StatusBadGateway, "upstream_error"},
		{ollamasim.NoDone, mid, http.StatusBadGateway, "upstream_aborted"},
		{ollamasim.CrashMid, mid, http.StatusBadGateway, "upstream_aborted"},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			inBubble(t, rigConfig{idle: 5 * time.Second}, func(t *testing.T, r *rig) {
				for _, stream := range []string{"", `,"stream":true`} {
					fault := ollamasim.Fault{Kind: c.kind, After: 2, Times: 1}
					if c.kind == ollamasim.Refuse {
						fault.Times = 0 // the kept connection and the new one
					}
					r.sim.Inject(fault)
					a := r.chat("recruit/resume_parsing", "Jane Doe, nurse", stream)
					r.sim.Clear()
					switch {
					case stream == "" || c.when == first && c.kind != ollamasim.HangFirst:
						if e := a.failure(t); e.Status != c.status || e.Code != c.code {
							t.Errorf("stream %q: got %+v, want %d %s", stream, e, c.status, c.code)
						}
						if retry := a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable; retry != (a.header.Get("Retry-After") != "") {
							t.Errorf("%d with Retry-After %q", a.status, a.header.Get("Retry-After"))
						}
					case c.kind == ollamasim.HangFirst:
						if e := a.failure(t); e.Code != c.code {
							t.Errorf("stream: got %+v", e)
						}
					default:
						data, _ := events(t, a.body)
						if last := data[len(data)-1]; !strings.HasPrefix(last, `{"error":{`) || !strings.Contains(last, c.code) {
							t.Errorf("last event %q, want the error %s", last, c.code)
						}
						if len(data) < 2 || slices.Contains(data, "[DONE]") {
							t.Errorf("events %q, want what came and no [DONE]", data)
						}
					}
					time.Sleep(time.Minute) // a slot is probed, a crash seen, a model loaded again
				}
				a := r.chat("recruit/resume_parsing", "Jane Doe, nurse", "")
				if a.status != http.StatusOK || a.header.Get("Tenure-Cache") != "miss" {
					t.Errorf("afterwards: %d, Tenure-Cache %s: %s", a.status, a.header.Get("Tenure-Cache"), a.body)
				}
				r.rest()
			})
		})
	}
}

// Who was sent comments while waiting is sent an event before the error: some
// clients read a comment and the error after it as one, and lose its text.
func TestLoadFailsAfterKeepAlive(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Model: "llama3", Delay: 11 * time.Second})
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.FailLoad, Model: "llama3"})
		a := r.chat("llama3", "hello", `,"stream":true`)
		data, comments := events(t, a.body)
		if len(comments) == 0 || len(data) != 2 || !strings.Contains(data[0], `"role":"assistant"`) || !strings.HasPrefix(data[1], `{"error":{`) {
			t.Errorf("comments %q, events %q", comments, data)
		}
		if i := strings.Index(a.body, `data: {"error"`); !strings.HasSuffix(strings.TrimSpace(a.body[:i]), "}") {
			t.Errorf("a comment stands just before the error: %q", a.body)
		}
	})
}

func TestLoadFails(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.FailLoad, Model: "llama3"})
		e := r.chat("llama3", "hello", "").failure(t)
		if e.Status != http.StatusBadGateway || e.Code != "model_load_failed" {
			t.Errorf("got %+v", e)
		}
		if a := r.chat("phi3:mini", "hello", ""); a.status != http.StatusOK {
			t.Errorf("another model: %d %s", a.status, a.body)
		}
		r.sim.Clear()
		time.Sleep(5 * time.Minute)
		if a := r.chat("llama3", "hello", ""); a.status != http.StatusOK {
			t.Errorf("once it loads: %d %s", a.status, a.body)
		}
		r.rest()
	})
}

// Ollama crashes and comes back with nothing loaded: the book is put right,
// T0 first, and requests are served.
func TestOllamaRestarts(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		before := r.scheduler.State().Counters.Loads
		r.sim.Crash()
		time.Sleep(30 * time.Second)
		st := r.scheduler.State()
		if st.Counters.Lost != 3 || st.Counters.Loads != before+3 {
			t.Errorf("lost %d, loaded %d more; want 3 and 3", st.Counters.Lost, st.Counters.Loads-before)
		}
		if loaded := r.sim.Loaded(); len(loaded) != 3 {
			t.Errorf("loaded %v", loaded)
		}
		if a := r.chat("recruit/resume_parsing", "Jane Doe", ""); a.header.Get("Tenure-Residency") != "warm" {
			t.Errorf("%d, residency %s", a.status, a.header.Get("Tenure-Residency"))
		}
		r.rest()
	})
}

func TestReadiness(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		status := func(path string) int { return r.do(http.MethodGet, "http://api"+path, "").status }
		if status("/healthz") != http.StatusOK || status("/readyz") != http.StatusOK {
			t.Errorf("healthz %d, readyz %d", status("/healthz"), status("/readyz"))
		}
		r.server.ollama.Close()
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.Refuse})
		time.Sleep(30 * time.Second)
		r.server.ollama.Close()
		time.Sleep(30 * time.Second)
		if status("/healthz") != http.StatusOK || status("/readyz") != http.StatusServiceUnavailable {
			t.Errorf("without Ollama: healthz %d, readyz %d", status("/healthz"), status("/readyz"))
		}
		if a := r.do(http.MethodGet, "http://api/v1/models", ""); a.status != http.StatusOK || !strings.Contains(a.body, "llama3") {
			t.Errorf("without Ollama: models %d %s", a.status, a.body)
		}
		r.sim.Clear()
		time.Sleep(30 * time.Second)
		if status("/readyz") != http.StatusOK {
			t.Errorf("Ollama is back: readyz %d", status("/readyz"))
		}
		r.server.Drain()
		if status("/healthz") != http.StatusOK || status("/readyz") != http.StatusServiceUnavailable {
			t.Errorf("draining: healthz %d, readyz %d", status("/healthz"), status("/readyz"))
		}
		if e := r.chat("mistral", "hello", "").failure(t); e.Status != http.StatusServiceUnavailable || e.Code != "shutting_down" {
			t.Errorf("draining: %+v", e)
		}
	})
}

// Closing the cache ends answers under way with an error event.
func TestCutStreamSaysSo(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		done := make(chan reply)
		go func() { done <- r.chat("recruit/script_generation", "an InMail", `,"stream":true`) }()
		for r.sim.Counts().Started == 0 {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond) // it speaks
		r.cache.Close()
		data, _ := events(t, (<-done).body)
		if last := data[len(data)-1]; !strings.Contains(last, "shutting_down") || len(data) < 2 {
			t.Errorf("%d events, the last %q", len(data), last)
		}
	})
}

// Serve lets what is under way finish, and cuts what takes longer than grace.
func TestServeStopsGracefully(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes time.Duration
		cut   bool
	}{{"in time", 5 * time.Second, false}, {"too long", time.Minute, true}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := contextWithStop()
				end := make(chan struct{})
				l := newPipeListener()
				h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					select {
					case <-time.After(c.takes):
						_, _ = io.WriteString(w, "whole")
					case <-end:
						_, _ = io.WriteString(w, "cut")
					}
				})}
				served := make(chan error)
				go func() {
					served <- Serve(ctx, map[*http.Server]func() error{h: func() error { return h.Serve(l) }}, 10*time.Second, func() { close(end) })
				}()
				got := make(chan string)
				go func() {
					conn, err := l.dial(t.Context())
					if err != nil {
						got <- err.Error()
						return
					}
					defer conn.Close()
					_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
					body, _ := io.ReadAll(conn)
					got <- string(body)
				}()
				time.Sleep(time.Second)
				stop()
				body := <-got
				if !strings.HasSuffix(body, map[bool]string{false: "whole", true: "cut"}[c.cut]) {
					t.Errorf("got %q", body)
				}
				if err := <-served; err != nil {
					t.Errorf("Serve: %v", err)
				}
			})
		})
	}
}

// No word of a request or an answer is logged, whatever goes wrong.
func TestLogsHoldNoContent(t *testing.T) {
	inBubble(t, rigConfig{idle: 5 * time.Second}, func(t *testing.T, r *rig) {
		const secret = "Xanthippe Quillfeather"
		for _, k := range append(ollamasim.Kinds(), "") {
			if k != "" {
				r.sim.Inject(ollamasim.Fault{Kind: k, After: 1, Times: 1, Delay: time.Second})
			}
			r.chat("llama3", secret, "")
			r.chat("llama3", secret, `,"stream":true,"user":"`+secret+`"`)
			r.sim.Clear()
			time.Sleep(time.Minute)
		}
		r.chat("recruit-auto", secret, "")
		r.chat(secret, "hello", "")
		r.do(http.MethodPost, "http://api/v1/chat/completions", `{"model":"mistral","messages":["`+secret+`"]}`)
		r.do(http.MethodPost, "http://api/v1/chat/completions", secret)
		log := r.log.String()
		if strings.Count(log, "request served") < 20 {
			t.Fatalf("the log is too short to prove anything:\n%s", log)
		}
		for _, word := range append(strings.Fields(secret), "simulated]") {
			if strings.Contains(log, word) {
				t.Errorf("the log holds %q", word)
			}
		}
		if m := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body; strings.Contains(m, "Xanthippe") {
			t.Error("the metrics hold the request")
		}
	})
}

func TestPassthrough(t *testing.T) {
	inBubble(t, rigConfig{residency: residency.Config{Passthrough: true}}, func(t *testing.T, r *rig) {
		a := r.chat("recruit/bias_detection", "young and dynamic", "")
		if a.status != http.StatusOK || !r.scheduler.State().Passthrough {
			t.Errorf("%d, state %+v", a.status, r.scheduler.State())
		}
		if n := r.scheduler.State().Counters.Loads; n != 0 {
			t.Errorf("%d loads were ordered", n)
		}
	})
}
