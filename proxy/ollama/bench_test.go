package ollama

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
)

// BenchmarkChat reads an answer of 200 pieces, beside Ollama's own client.
func BenchmarkChat(b *testing.B) {
	answer := strings.Repeat(`{"model":"m","created_at":"2026-01-05T09:00:00.123456Z","message":{"role":"assistant","content":" word"},"done":false}`+"\n", 200) +
		`{"model":"m","created_at":"2026-01-05T09:00:00.123456Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}` + "\n"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("tenure", func(b *testing.B) {
		c := New(base, Config{})
		defer c.Close()
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Chat(b.Context(), ask("m", "x"), func(*api.ChatResponse) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("api.Client", func(b *testing.B) {
		hc := &http.Client{Transport: &http.Transport{}}
		defer hc.CloseIdleConnections()
		c := api.NewClient(base, hc)
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Chat(b.Context(), ask("m", "x"), func(api.ChatResponse) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
