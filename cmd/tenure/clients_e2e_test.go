//go:build clients && e2e

package main

import (
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"testing"

	"tenure/proxy/ollama/ollamatest"
)

// TestE2EClients runs the suites of the clients before the real Ollama, one
// after the other: all but what needs an Ollama that fails on command, or one
// that says what a test wants it to.
func TestE2EClients(t *testing.T) {
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	upstream := httputil.NewSingleHostReverseProxy(startReal(t, root).url)
	upstream.FlushInterval = -1
	upstream.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} // tenure left
	var cancelled atomic.Int64
	s := &stage{cancelled: func() int { return int(cancelled.Load()) }}
	s.open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if r.Context().Err() != nil {
				cancelled.Add(1)
			}
		}()
		upstream.ServeHTTP(w, r)
	}))
	t.Run("Python", s.python)
	t.Run("Node", s.node)
	t.Run("Go", s.golang)
}
