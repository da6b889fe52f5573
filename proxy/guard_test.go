package proxy

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/routing"
)

// The operator's cap holds whatever a client asks for, and is no reason to
// refuse it.
func TestMaxTokensIsACap(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{MaxTokens: 5}}, func(t *testing.T, r *rig) {
		a := r.chat("mistral", "tell me everything", `,"max_tokens":16000`)
		if a.status != http.StatusOK || !strings.Contains(a.body, `"completion_tokens":5,`) || !strings.Contains(a.body, `"finish_reason":"length"`) {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// A body that ends early, or is no body, is the client's mistake and told so.
func TestUnreadableBody(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		conn, err := r.api.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			_, _ = io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n")
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "invalid_body") {
			t.Errorf("%s %s (%v)", resp.Status, body, err)
		}
	})
}

// Without keys, on loopback, a web page from elsewhere cannot make a browser
// ask, whether it was resolved to this machine or only posts to it.
func TestForeignWebPages(t *testing.T) {
	for _, c := range []struct {
		cfg          Config
		host, origin string
		want         int
	}{
		{Config{Loopback: true}, "localhost:11435", "", 200},
		{Config{Loopback: true}, "127.0.0.1:11435", "http://localhost:3000", 200},
		{Config{Loopback: true}, "evil.test", "", 403},
		{Config{Loopback: true}, "localhost:11435", "https://evil.test", 403},
		{Config{Loopback: true}, "localhost:11435", "null", 403},
		{Config{}, "box.example", "https://box.example", 200}, // told to listen openly
	} {
		inBubble(t, rigConfig{proxy: c.cfg}, func(t *testing.T, r *rig) {
			header := []string{"Host", c.host}
			if c.origin != "" {
				header = append(header, "Origin", c.origin)
			}
			if a := r.chat("phi3:mini", "hello", "", header...); a.status != c.want {
				t.Errorf("%+v from %q for %q: %d, want %d", c.cfg, c.origin, c.host, a.status, c.want)
			}
		})
	}
}

// What is said of the seat is said of the model that answered.
func TestFallbackTellsItsOwnSeat(t *testing.T) {
	inBubble(t, rigConfig{sim: ollamasim.Config{}}, func(t *testing.T, r *rig) {
		r.chat("llama3", "hello", "") // mistral or deepseek makes room
		if err := r.scheduler.Unload(t.Context(), "mistral"); err != nil && !errors.Is(err, residency.ErrAbsent) {
			t.Fatal(err)
		}
		a := r.chat("recruit/resume_parsing", strings.Repeat("x", 5*4096), "")
		if a.header.Get("Tenure-Model") != "mistral" || a.header.Get("Tenure-Residency") != "cold" || a.header.Get("Tenure-Queued-Ms") == "0" {
			t.Errorf("%s %s after %s ms", a.header.Get("Tenure-Model"), a.header.Get("Tenure-Residency"), a.header.Get("Tenure-Queued-Ms"))
		}
	})
}

// A person does not wait for the place of a batch that asks the same.
func TestInteractiveDoesNotJoinBatch(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		outcome := make(chan string, 2)
		go func() { r.chat("mistral", "hello", `,"temperature":0.5`) }() // the seat is taken
		synctest.Wait()
		go func() {
			outcome <- r.chat("recruit/bias_detection", "same", `,"service_tier":"flex"`).header.Get("Tenure-Cache")
		}()
		synctest.Wait()
		outcome <- r.chat("recruit/bias_detection", "same", "").header.Get("Tenure-Cache")
		if a, b := <-outcome, <-outcome; a != "miss" || b != "miss" {
			t.Errorf("got %s and %s, want both to have asked", a, b)
		}
		r.rest()
	})
}

// CVs do not leave this machine: what Ollama runs elsewhere is not there.
func TestRemoteModelsAreLeftOut(t *testing.T) {
	remote := ollamasim.Catalog()[3]
	remote.Name, remote.RemoteHost = "far:cloud", "https://far.test"
	for _, allowed := range []bool{false, true} {
		cfg := rigConfig{sim: ollamasim.Config{Models: append(ollamasim.Catalog(), remote)}, proxy: Config{AllowRemote: allowed}}
		inBubble(t, cfg, func(t *testing.T, r *rig) {
			if listed := strings.Contains(r.do("GET", "http://api/v1/models", "").body, "far:cloud"); listed != allowed {
				t.Errorf("allowed %v, listed %v", allowed, listed)
			}
			if a := r.chat("far:cloud", "hello", ""); !allowed && a.failure(t).Status != http.StatusNotFound {
				t.Errorf("asked all the same: %d", a.status)
			}
		})
	}
}

// Ollama's own words may quote an answer: they are for the client, not the log.
func TestOllamasWordsAreNotLogged(t *testing.T) {
	err := &ollama.StatusError{Status: 500, Message: "cannot parse Xanthippe"}
	if got := logText(errors.Join(errors.New("asking"), err)); strings.Contains(got, "Xanthippe") || !strings.Contains(got, "500") {
		t.Errorf("got %q", got)
	}
	if got := explain(err); !strings.Contains(got.Refusal.Message, "Xanthippe") {
		t.Errorf("the client is not told: %+v", got)
	}
}

// A client that reads nothing is cut off, and its seat comes back.
func TestStalledClientIsCut(t *testing.T) {
	for _, stream := range []string{"", `,"stream":true`} {
		inBubble(t, rigConfig{proxy: Config{StallTimeout: 5 * time.Second}}, func(t *testing.T, r *rig) {
			conn, err := r.api.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			body := chatBody("mistral", "hello", stream)
			go func() {
				_, _ = io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "+
					strconv.Itoa(len(body))+"\r\n\r\n"+body)
			}()
			time.Sleep(30 * time.Second)
			r.rest()
			if log := r.log.String(); !strings.Contains(log, "caller_stalled") && !strings.Contains(log, "caller_cancelled") {
				t.Errorf("stream %q: nobody noticed:\n%s", stream, log)
			}
		})
	}
}

// An answer without end is ended.
func TestTotalTimeout(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{Timeouts: routing.Timeouts{Total: 300 * time.Millisecond}}}, func(t *testing.T, r *rig) {
		if e := r.chat("mistral", "tell me everything", "").failure(t); e.Status != http.StatusGatewayTimeout || e.Code != "total_timeout" {
			t.Errorf("got %+v", e)
		}
		r.rest()
	})
}
