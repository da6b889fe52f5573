package proxy

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
)

// asked sends a request for a stream over a connection of its own, of which
// nothing is read but what the caller reads.
func (r *rig) asked(body string) net.Conn {
	r.t.Helper()
	conn, err := r.api.dial(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "+
			strconv.Itoa(len(body))+"\r\n\r\n"+body)
	}()
	return conn
}

// read reads an answer to its end.
func read(t *testing.T, conn net.Conn) string {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

const shared = "recruit/resume_parsing" // at temperature 0: who asks the same shares it

// Who began a shared answer leaves: the others get all of it, and the model is
// asked once.
func TestLeaderLeaves(t *testing.T) {
	for _, stream := range []string{"", `,"stream":true`} {
		inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			go func() {
				_, _ = r.send(ctx, http.MethodPost, "http://api/v1/chat/completions", chatBody(shared, "Jane Doe, nurse", `,"stream":true`))
			}()
			synctest.Wait()
			follower := make(chan reply, 1)
			go func() { follower <- r.chat(shared, "Jane Doe, nurse", stream) }()
			time.Sleep(100 * time.Millisecond) // it speaks
			leave()
			synctest.Wait()
			a := <-follower
			if n := r.sim.Counts(); a.status != http.StatusOK || strings.Contains(a.body, `"error"`) || n.Started != 1 || n.Cancelled != 0 {
				t.Errorf("the follower got %d %s; Ollama was asked %d times and left %d times", a.status, a.body, n.Started, n.Cancelled)
			}
			if again := r.chat(shared, "Jane Doe, nurse", ""); again.header.Get("Tenure-Cache") != "hit" {
				t.Errorf("afterwards: cache %s, want it kept", again.header.Get("Tenure-Cache"))
			}
			r.rest()
		})
	}
}

// A follower that reads slowly holds up neither the model nor who reads beside
// it, and gets all of it in the end.
func TestFollowerIsSlow(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{StallTimeout: time.Minute}}, func(t *testing.T, r *rig) {
		alone := r.chat(shared, "Jane Doe, alone", `,"stream":true`)
		began := time.Now()
		r.chat(shared, "Jane Doe, timed", `,"stream":true`)
		usual := time.Since(began)

		began = time.Now()
		fast := make(chan reply, 1)
		go func() { fast <- r.chat(shared, "Jane Doe, nurse", `,"stream":true`) }()
		synctest.Wait()
		slow := r.asked(chatBody(shared, "Jane Doe, nurse", `,"stream":true`))
		defer slow.Close()
		a := <-fast
		if took := time.Since(began); took > usual+100*time.Millisecond || a.status != http.StatusOK {
			t.Errorf("%d after %v, alone it takes %v", a.status, took, usual)
		}
		synctest.Wait()
		if n := r.scheduler.State().Leases; n != 0 {
			t.Errorf("%d seats are held by somebody who reads", n)
		}
		time.Sleep(20 * time.Second) // less than its stall
		body := read(t, slow)
		if want := strings.Count(a.body, "data: "); strings.Count(body, "data: ") != want || !strings.HasSuffix(body, "data: [DONE]\n\n") || len(alone.body) == 0 {
			t.Errorf("the slow one got %d of %d events", strings.Count(body, "data: "), want)
		}
		if n := r.sim.Counts(); n.Started != 3 || n.Cancelled != 0 {
			t.Errorf("Ollama: %+v", n)
		}
		r.rest()
	})
}

// A client that stalls is cut off while its neighbour, and the model, go on.
func TestStalledFollowerIsCut(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{StallTimeout: 100 * time.Millisecond}, sim: ollamasim.Config{Length: 400}}, func(t *testing.T, r *rig) {
		fast := make(chan reply, 1)
		ask := chatBody("mistral", "tell", `,"stream":true,"temperature":0`)
		go func() { fast <- r.do(http.MethodPost, "http://api/v1/chat/completions", ask) }()
		synctest.Wait()
		stalled := r.asked(ask)
		defer stalled.Close()
		time.Sleep(2 * time.Second)
		if log := r.log.String(); !strings.Contains(log, "caller_stalled") {
			t.Errorf("it was not cut off:\n%s", log)
		}
		if n := r.scheduler.State().Leases; n != 1 {
			t.Errorf("%d seats are taken, want the one of the answer that goes on", n)
		}
		if a := <-fast; !strings.HasSuffix(a.body, "data: [DONE]\n\n") {
			t.Errorf("its neighbour got %q", a.body)
		}
		if n := r.sim.Counts(); n.Started != 1 || n.Cancelled != 0 {
			t.Errorf("Ollama: %+v", n)
		}
		r.rest()
	})
}

// When all have left, the model is stopped at once, and nothing is kept.
func TestAllReadersLeave(t *testing.T) {
	inBubble(t, rigConfig{sim: ollamasim.Config{Length: 400}}, func(t *testing.T, r *rig) {
		ask := chatBody("mistral", "tell", `,"stream":true,"temperature":0`)
		var leave []context.CancelFunc
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			leave = append(leave, cancel)
			go func() { _, _ = r.send(ctx, http.MethodPost, "http://api/v1/chat/completions", ask) }()
			time.Sleep(100 * time.Millisecond)
		}
		leave[0]()
		synctest.Wait()
		if n := r.sim.Counts(); n.Started != 1 || n.Cancelled != 0 {
			t.Errorf("one has left: %+v", n)
		}
		leave[1]()
		synctest.Wait() // and no time passes
		if n := r.sim.Counts(); n.Cancelled != 1 {
			t.Errorf("both have left: %+v", n)
		}
		if n := r.scheduler.State().Leases; n != 0 {
			t.Errorf("%d seats are still taken", n)
		}
		if a := r.do(http.MethodPost, "http://api/v1/chat/completions", ask); a.header.Get("Tenure-Cache") != "miss" || !strings.HasSuffix(a.body, "data: [DONE]\n\n") {
			t.Errorf("asked again: cache %s", a.header.Get("Tenure-Cache"))
		}
		r.rest()
	})
}
