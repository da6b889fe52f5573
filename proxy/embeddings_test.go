package proxy

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

const embedder = "nomic-embed-text"

func withEmbedder() rigConfig {
	return rigConfig{sim: ollamasim.Config{Models: append(ollamasim.Catalog(), ollamasim.Embedder())}}
}

func (r *rig) embed(model, input, more string, header ...string) reply {
	r.t.Helper()
	return r.do(http.MethodPost, "http://api/v1/embeddings", `{"model":"`+model+`","input":`+input+more+`}`, header...)
}

// vectors are those of an answer, whichever way they are written.
func (a reply) vectors(t *testing.T) [][]float32 {
	t.Helper()
	var e struct {
		Data []struct {
			Index     int
			Embedding json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s: no vectors (%v)", a.status, a.body, err)
	}
	var all [][]float32
	for i, d := range e.Data {
		if d.Index != i {
			t.Errorf("index %d at %d", d.Index, i)
		}
		var v []float32
		var text []byte
		if d.Embedding[0] == '[' {
			if err := json.Unmarshal(d.Embedding, &v); err != nil {
				t.Fatal(err)
			}
		} else if err := json.Unmarshal(d.Embedding, &text); err != nil { // []byte: base64
			t.Fatal(err)
		}
		for at := 0; at+4 <= len(text); at += 4 {
			v = append(v, math.Float32frombits(binary.LittleEndian.Uint32(text[at:])))
		}
		all = append(all, v)
	}
	return all
}

func same(a, b [][]float32) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

func TestEmbeddings(t *testing.T) {
	inBubble(t, withEmbedder(), func(t *testing.T, r *rig) {
		first := r.embed(embedder, `["a nurse","a cook"]`, "")
		vectors := first.vectors(t)
		if len(vectors) != 2 || len(vectors[0]) != 768 || same(vectors[:1], vectors[1:]) {
			t.Fatalf("%d vectors", len(vectors))
		}
		for name, want := range map[string]string{"Tenure-Model": embedder, "Tenure-Residency": "cold", "Tenure-Cache": "miss", "Tenure-Task": "general"} {
			if got := first.header.Get(name); got != want {
				t.Errorf("%s %q, want %q", name, got, want)
			}
		}
		if !strings.Contains(first.body, `"model":"`+embedder+`","usage":{"prompt_tokens":4,"total_tokens":4}`) {
			t.Errorf("model or usage: %.300s", first.body[max(0, len(first.body)-200):])
		}
		synctest.Wait()

		// The same answer, whichever way it is asked for. The simulated model
		// counts four bytes to a token; the numbers are cl100k_base's.
		for _, again := range []reply{
			r.embed(embedder+":latest", `["a nurse","a cook"]`, `,"encoding_format":"base64","user":"u"`),
			r.embed(embedder, `[[64,29198],[64,4394]]`, ""),
		} {
			if got := again.header.Get("Tenure-Cache"); got != "hit" || !same(again.vectors(t), vectors) {
				t.Errorf("Tenure-Cache %s, same vectors: %v", got, same(again.vectors(t), vectors))
			}
		}
		var text struct{ Data []struct{ Embedding string } }
		coded := r.embed(embedder, `["a nurse","a cook"]`, `,"encoding_format":"base64"`)
		if err := json.Unmarshal([]byte(coded.body), &text); err != nil {
			t.Errorf("base64: %v", err)
		} else if raw, err := base64.StdEncoding.DecodeString(text.Data[1].Embedding); err != nil || len(raw) != 4*768 {
			t.Errorf("%d bytes (%v)", len(raw), err)
		}

		short := r.embed(embedder, `"a nurse"`, `,"dimensions":8`).vectors(t)
		sum := 0.0
		for i, f := range short[0] {
			sum += float64(f) * float64(f)
			if ratio := float64(f / vectors[0][i]); math.Abs(ratio/float64(short[0][0]/vectors[0][0])-1) > 1e-4 {
				t.Errorf("dimension %d was not only scaled", i)
			}
		}
		if len(short[0]) != 8 || math.Abs(sum-1) > 1e-5 {
			t.Errorf("%d dimensions, length² %v", len(short[0]), sum)
		}
		many := r.embed(embedder, `["x"`+strings.Repeat(`,"x"`, 999)+`]`, "").vectors(t)
		if len(many) != 1000 || !same(many[:1], many[999:]) {
			t.Errorf("%d vectors", len(many))
		}
		metrics := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body
		if !strings.Contains(metrics, `tenure_tokens_total{direction="prompt",model="`+embedder+`",task="general"} 1018`) { // four times 4, 2, and 1000
			t.Errorf("tokens are not counted:\n%s", grep(metrics, "tenure_tokens_total"))
		}
		r.rest()
	})
}

func grep(text, what string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, what) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestEmbeddingsFail(t *testing.T) {
	inBubble(t, withEmbedder(), func(t *testing.T, r *rig) {
		started := r.sim.Counts().Started
		for _, c := range []struct {
			name, model, input, more string
			status                   int
			code, param              string
		}{
			{"virtual", "recruit-auto", `"x"`, "", 400, "invalid_value", "model"},
			{"task", "recruit/matching_logic", `"x"`, "", 400, "invalid_value", "model"},
			{"chats", "mistral", `"x"`, "", 400, "invalid_value", "model"},
			{"unknown", "nobody", `"x"`, "", 404, "model_not_found", "model"},
			{"empty", embedder, `""`, "", 400, "invalid_value", "input"},
			{"too many words", embedder, `["x","` + strings.Repeat("word ", 2100) + `"]`, "", 400, "context_length_exceeded", "input"},
		} {
			if e := r.embed(c.model, c.input, c.more).failure(t); e.Status != c.status || e.Code != c.code || e.Param != c.param {
				t.Errorf("%s: got %+v", c.name, e)
			}
		}
		if n := r.sim.Counts().Started; n != started {
			t.Errorf("Ollama was asked %d times", n-started)
		}
		if e := r.embed("recruit-auto", `"x"`, "").failure(t); !strings.Contains(e.Message, "Name an embedding model") {
			t.Errorf("no remedy: %s", e.Message)
		}
		if e := r.embed(embedder, `"`+strings.Repeat("x", 10_000)+`"`, "").failure(t); e.Code != "context_length_exceeded" || e.Param != "input" {
			t.Errorf("too long by Ollama's count: %+v", e)
		}
		if e := r.embed(embedder, `"x"`, `,"dimensions":769`).failure(t); e.Status != 400 || e.Param != "dimensions" {
			t.Errorf("too many dimensions: %+v", e)
		}
		r.rest()
	})
}

// Two who ask the same at once share the work; who leaves ends it.
func TestEmbeddingsSharedAndLeft(t *testing.T) {
	cfg := withEmbedder()
	cfg.residency.Budget = 20 * residency.GiB
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		var all sync.WaitGroup
		outcomes := make(chan string, 2)
		for range 2 {
			all.Go(func() { outcomes <- r.embed(embedder, `"the same"`, "").header.Get("Tenure-Cache") })
		}
		all.Wait()
		if a, b := <-outcomes, <-outcomes; a+b != "missshared" && a+b != "sharedmiss" {
			t.Errorf("outcomes %s and %s", a, b)
		}
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangFirst, Model: embedder})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := r.send(ctx, http.MethodPost, "http://api/v1/embeddings", `{"model":"`+embedder+`","input":"hangs"}`); err == nil {
			t.Error("answered by a model that hangs")
		}
		r.rest()
		synctest.Wait() // the seat is given back before Ollama notices
		if n := r.sim.Counts(); n.Cancelled != 1 {
			t.Errorf("%d cancelled upstream, want 1", n.Cancelled)
		}
		if e := r.embed(embedder, `"hangs again"`, ""); e.status == http.StatusOK {
			t.Error("the fault is gone")
		} else if f := e.failure(t); f.Code != "first_byte_timeout" {
			t.Errorf("got %+v", f)
		}
	})
}
