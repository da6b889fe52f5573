package ollama

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ollama/ollama/api"
)

// A payload's bytes go to no other request while anybody may read them.
func TestPayloadIsLentOnce(t *testing.T) {
	var c Client
	for _, step := range []struct {
		name        string
		sent, again bool
	}{{"not sent", false, false}, {"sent", true, false}, {"sent again", true, true}} {
		p := c.payload()
		p.bytes = append(p.bytes, "a request"...)
		req, err := p.request(t.Context(), http.MethodPost)
		if err != nil {
			t.Fatal(err)
		}
		if step.sent {
			httptrace.ContextClientTrace(req.Context()).WroteRequest(httptrace.WroteRequestInfo{})
		}
		if step.again {
			if _, err := req.GetBody(); err != nil {
				t.Fatal(err)
			}
		}
		c.giveBack(p)
		// The pool may forget what it was given, but cannot know what it was not.
		if next := c.payload(); next == p && (!step.sent || step.again) {
			t.Errorf("%s: the payload was lent again", step.name)
		}
	}
}

// A request of any size arrives as it is, also behind a path of the server's
// and when its connection turns out to be dead.
func TestRequestsArriveWhole(t *testing.T) {
	var got string
	var drop atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if drop.Swap(false) {
			panic(http.ErrAbortHandler)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/behind/api/chat" || r.ContentLength != int64(len(body)) || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s of %d bytes (%v), %d read", r.URL, r.ContentLength, err, len(body))
		}
		got = string(body)
		_, _ = io.WriteString(w, `{"done":true}`+"\n")
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL + "/behind")
	if err != nil {
		t.Fatal(err)
	}
	c := New(base, Config{})
	defer c.Close()
	for _, size := range []int{1, 15 << 10, 64 << 10, 3 << 20} {
		for _, dead := range []bool{false, size == 1} {
			drop.Store(dead)
			text := strings.Repeat("x", size)
			if err := c.Chat(t.Context(), ask("m", text), func(*api.ChatResponse) error { return nil }); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(got, text) {
				t.Errorf("%d bytes arrived of %d", len(got), size)
			}
		}
	}
}
