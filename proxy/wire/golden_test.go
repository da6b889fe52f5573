package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden is one conversation from the client's bytes to the client's bytes.
type golden struct {
	t       *testing.T
	archive *txtar.Archive
}

func (g *golden) in(name string) []byte {
	for _, f := range g.archive.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// out compares with what the archive holds, or puts it there.
func (g *golden) out(name string, got []byte) {
	g.t.Helper()
	if len(got) > 0 && got[len(got)-1] != '\n' {
		got = append(got, '\n')
	}
	if want := g.in(name); !*update {
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			g.t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		return
	}
	g.archive.Files = slices.DeleteFunc(g.archive.Files, func(f txtar.File) bool { return f.Name == name })
	g.archive.Files = append(g.archive.Files, txtar.File{Name: name, Data: got})
}

func indented(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestChat translates requests to Ollama and Ollama's lines to answers. An
// archive in testdata/chat holds request.json, params.json, and the lines of
// choice i as lines.ndjson or lines.i.ndjson; the rest is the outcome, which
// -update rewrites.
func TestChat(t *testing.T) { eachGolden(t, "testdata/chat", (*golden).run) }

// eachGolden runs every archive of a folder, and with -update writes them back.
func eachGolden(t *testing.T, folder string, run func(*golden)) {
	files, err := filepath.Glob(filepath.Join(folder, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			run(&golden{t, archive})
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func (g *golden) run() {
	t := g.t
	var p Params
	if raw := g.in("params.json"); raw != nil {
		if err := json.Unmarshal(raw, &p); err != nil {
			t.Fatalf("params.json: %v", err)
		}
	}
	c, err := DecodeChat(g.in("request.json"), Limits{})
	var req *api.ChatRequest
	if err == nil {
		req, err = c.Request(p)
	}
	if err != nil {
		g.out("error.json", appendJSON(t, err))
		return
	}
	if ignored := c.IgnoredFor(p); len(ignored) > 0 {
		g.out("ignored", []byte(strings.Join(ignored, "\n")))
	}
	for i := range c.N {
		g.out(numbered("upstream", i, ".json"), indented(t, c.ForChoice(req, i)))
	}
	if g.in("lines.ndjson") == nil {
		return
	}
	rec := NewRecorder(c, p)
	answer := Answer{ID: "chatcmpl-1", Model: c.Model, Created: 1700000000, IncludeUsage: c.IncludeUsage, ServiceTier: c.ServiceTier}
	stream := answer
	var events []byte
	var chunks [][]byte
	for i := range c.N {
		for line := range bytes.Lines(g.in(numbered("lines", i, ".ndjson"))) {
			var resp api.ChatResponse
			if err := json.Unmarshal(line, &resp); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			made, err := rec.Line(i, &resp)
			if err != nil {
				g.out("error.json", appendJSON(t, err))
				return
			}
			for _, chunk := range made {
				chunks = append(chunks, chunk)
				events = stream.AppendEvents(events, chunk)
			}
		}
	}
	if !rec.Done() {
		t.Error("the recorder is not done after the last line")
	}
	g.out("stream.sse", stream.AppendEnd(events))
	g.out("body.json", indented(t, json.RawMessage(answer.AppendBody(nil, slices.Values(chunks)))))
}

func numbered(name string, i int, ext string) string {
	if i == 0 {
		return name + ext
	}
	return name + "." + string(rune('0'+i)) + ext
}

func appendJSON(t *testing.T, err error) []byte {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %T (%v), want *Error", err, err)
	}
	return e.AppendJSON(nil)
}
