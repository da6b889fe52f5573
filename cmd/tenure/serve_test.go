package main

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy"
)

// A client may use a connection again that was idle for as long as any client
// keeps one, which for Go's is 90 s: was it closed first, the request would
// fail. Answers do not close it either.
func TestIdleConnectionsStayOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := proxy.HTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }), slog.New(slog.DiscardHandler))
		pipe := make(pipes, 1)
		served := make(chan error)
		go func() { served <- server.Serve(pipe) }()
		client, end := net.Pipe()
		pipe <- end
		answers := bufio.NewReader(client)
		for _, idle := range []time.Duration{0, 61 * time.Second, 91 * time.Second} {
			time.Sleep(idle)
			if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatalf("after %v: %v", idle, err)
			}
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatalf("after %v: %v", idle, err)
			}
			if body, err := io.ReadAll(resp.Body); string(body) != "hello" || err != nil || resp.Close {
				t.Errorf("after %v: %q, %v, Connection %q", idle, body, err, resp.Header.Get("Connection"))
			}
			_ = resp.Body.Close() // it was read whole
		}
		began := time.Now()
		if _, err := answers.ReadByte(); !errors.Is(err, io.EOF) || time.Since(began) > 3*time.Minute {
			t.Errorf("a connection nobody uses: %v after %v, want its end", err, time.Since(began))
		}
		_ = client.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// pipes is a listener that accepts what is put in.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error {
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
