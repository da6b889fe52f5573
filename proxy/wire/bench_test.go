package wire

import (
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
)

// chat10K is a chat with a document of 10 KB, as résumés are.
func chat10K() []byte {
	cv := strings.Repeat(`Jane Doe, \"JD\" — ten years of Go and Kubernetes in Zürich.\n`, 160)
	return []byte(`{"model":"recruit/resume_parsing","messages":[{"role":"system","content":"You parse résumés."},{"role":"user","content":"` + cv + `"}],"temperature":0,"stream":true,"stream_options":{"include_usage":true}}`)
}

// recording is an answer of n tokens.
func recording(tb testing.TB, n int) [][]byte {
	tb.Helper()
	c := &Chat{N: 1}
	rec := NewRecorder(c, Params{})
	var chunks [][]byte
	for i := range n {
		resp := &api.ChatResponse{Message: api.Message{Content: " token"}, Done: i == n-1, DoneReason: "stop"}
		made, err := rec.Line(0, resp)
		if err != nil {
			tb.Fatal(err)
		}
		chunks = append(chunks, made...)
	}
	return chunks
}

func BenchmarkDecode(b *testing.B) {
	body := chat10K()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		decoded(b, body)
	}
}

func BenchmarkDecodeSchema(b *testing.B) {
	body := []byte(with(schemaAB))
	b.ReportAllocs()
	for b.Loop() {
		decoded(b, body)
	}
}

func BenchmarkKey(b *testing.B) {
	c := decoded(b, chat10K())
	var key []byte
	b.ReportAllocs()
	for b.Loop() {
		key = c.AppendKey(key[:0], Params{Context: 4096})
	}
}

func BenchmarkLine(b *testing.B) {
	rec := NewRecorder(&Chat{N: 1}, Params{})
	resp := &api.ChatResponse{Message: api.Message{Content: " token"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rec.Line(0, resp); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvents(b *testing.B) {
	chunks := recording(b, 300)
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		a := Answer{ID: "chatcmpl-1", Model: "recruit/resume_parsing", Created: 1, IncludeUsage: true}
		out = out[:0]
		for _, chunk := range chunks {
			out = a.AppendEvents(out, chunk)
		}
		out = a.AppendEnd(out)
	}
	b.SetBytes(int64(len(out)))
}

func BenchmarkBody(b *testing.B) {
	chunks := recording(b, 300)
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		a := Answer{ID: "chatcmpl-1", Model: "recruit/resume_parsing", Created: 1}
		out = a.AppendBody(out[:0], slices.Values(chunks))
	}
	b.SetBytes(int64(len(out)))
}

// TestAllocations holds the hot paths to what they need: a key and the events
// of a chunk none of their own, a line one for each chunk, a decoded chat some
// for its parts and none for its length.
func TestAllocations(t *testing.T) {
	c := decoded(t, chat10K())
	key := c.AppendKey(nil, Params{Context: 4096})
	chunks := recording(t, 100)
	a := Answer{ID: "chatcmpl-1", Model: "m", Created: 1, IncludeUsage: true}
	out := make([]byte, 0, 64<<10)
	out = a.AppendEvents(out, chunks[0])
	rec := NewRecorder(&Chat{N: 1}, Params{})
	resp := &api.ChatResponse{Message: api.Message{Content: " token"}}
	line := func() {
		if _, err := rec.Line(0, resp); err != nil {
			t.Fatal(err)
		}
	}
	line() // the first makes the role
	body := chat10K()
	for _, tt := range []struct {
		name string
		most float64
		f    func()
	}{
		{"key", 0, func() { key = c.AppendKey(key[:0], Params{Context: 4096}) }},
		{"events", 0, func() {
			out = out[:0]
			for _, chunk := range chunks {
				out = a.AppendEvents(out, chunk)
			}
			out = a.AppendEnd(out)
		}},
		{"line", 1, line},
		{"body", 8, func() { out = a.AppendBody(out[:0], slices.Values(chunks)) }},
		{"decode", 16, func() { decoded(t, body) }},
	} {
		if got := testing.AllocsPerRun(100, tt.f); got > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", tt.name, got, tt.most)
		}
	}
}
