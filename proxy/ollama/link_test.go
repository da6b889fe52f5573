package ollama

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/api"

	"tenure/proxy/ollama/ollamasim"
)

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
	c, _ := connect(t, srv, srv.URL+"/behind")
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

// dialed counts the connections that are made.
func dialed(c *Client) *atomic.Int32 {
	var n atomic.Int32
	dial := c.link.dial
	c.link.dial = func(ctx context.Context) (net.Conn, error) {
		n.Add(1)
		return dial(ctx)
	}
	return &n
}

// connect returns a client of a server, and how many connections it has made.
func connect(t *testing.T, srv *httptest.Server, at string) (*Client, *atomic.Int32) {
	t.Helper()
	t.Cleanup(srv.Close)
	base, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	c := New(base, Config{})
	t.Cleanup(c.Close)
	return c, dialed(c)
}

// An answer that was read leaves its connection to the next request; one that
// was left, that the server ends with it, or that came before the request was
// read does not.
func TestConnectionsAreUsedAgain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   int32 // connections for three requests
	}{
		{"whole", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"version":"1"}`) }, 1},
		{"refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }, 1},
		{"announced", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.WriteString(w, `{"version":"1"}`)
		}, 1},
		{"last", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			_, _ = io.WriteString(w, `{"version":"1"}`)
		}, 3},
		{"too long", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.answer)
			c, made := connect(t, srv, srv.URL)
			for range 3 {
				_, err := c.Version(t.Context())
				if e, ok := errors.AsType[*StatusError](err); err != nil && (!ok || e.Status != http.StatusTeapot) {
					t.Error(err)
				}
			}
			if made.Load() != tt.want {
				t.Errorf("%d connections, want %d", made.Load(), tt.want)
			}
		})
	}
}

// What a server says to a connection for being idle is no answer to what is
// asked next.
func TestIdleConnectionTimedOut(t *testing.T) {
	var l net.ListenConfig
	at, err := l.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer at.Close()
	c := New(&url.URL{Scheme: "http", Host: at.Addr().String()}, Config{})
	defer c.Close()
	said := make(chan struct{})
	serving.Go(func() {
		for i := range 2 {
			conn, err := at.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"version\":\"1\"}")
			if i == 0 {
				<-said // the answer was read
				_, _ = io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				said <- struct{}{}
			}
			_ = conn.Close()
		}
	})
	if _, err := c.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
	said <- struct{}{}
	<-said
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

// A refusal is read although the server would not read all that it was sent.
func TestRefusedWhileSending(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	c, made := connect(t, srv, srv.URL)
	for range 2 {
		err := c.Chat(t.Context(), ask("m", strings.Repeat("x", 32<<20)), func(*api.ChatResponse) error { return nil })
		if e, ok := errors.AsType[*StatusError](err); !ok || e.Status != http.StatusRequestEntityTooLarge {
			t.Errorf("got %v, want status 413", err)
		}
	}
	if made.Load() != 2 {
		t.Errorf("%d connections, want 2", made.Load())
	}
}

// Connections that are kept are not too many, and not for long.
func TestKeptConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, ollamasim.Config{}, Config{})
		made := dialed(c)
		for _, tt := range []struct {
			name  string
			pause time.Duration
			want  int32
		}{{"at first", 0, 20}, {"those kept", 0, 4}, {"in time", idleTime, 4}, {"late", idleTime + 1, 20}} {
			time.Sleep(tt.pause)
			made.Store(0)
			var open []io.ReadCloser
			for range 20 {
				body, err := c.open(t.Context(), http.MethodGet, "/api/version", nil)
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, body)
			}
			for _, body := range open {
				if _, err := io.Copy(io.Discard, body); err != nil {
					t.Error(err)
				}
				if err := body.Close(); err != nil {
					t.Error(err)
				}
			}
			if made.Load() != tt.want {
				t.Errorf("%s: %d connections made, want %d", tt.name, made.Load(), tt.want)
			}
		}
	})
}

// A request that the server does not read ends with its context.
func TestCancelWhileSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer server.Close()
		c := New(&url.URL{Scheme: "http", Host: "ollama.test"}, Config{
			Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil },
		})
		defer c.Close()
		left := errors.New("left")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, left)
		defer cancel()
		if err := c.Chat(ctx, ask("m", "hello"), func(*api.ChatResponse) error { return nil }); !errors.Is(err, left) {
			t.Errorf("got %v, want %q", err, left)
		}
	})
}

// A server may be reached by TLS only, and ask for a password.
func TestSecureServer(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" || r.TLS == nil {
			t.Errorf("asked by %q with %q, TLS %v", user, password, r.TLS != nil)
		}
		_, _ = io.WriteString(w, `{"version":"1"}`)
	}))
	c, _ := connect(t, srv, strings.Replace(srv.URL, "://", "://me:secret@", 1))
	if _, err := c.Version(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("with a certificate that nobody knows: %v", err)
	}
	c.link.tls.RootCAs = x509.NewCertPool()
	c.link.tls.RootCAs.AddCert(srv.Certificate())
	for range 2 {
		if _, err := c.Version(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
