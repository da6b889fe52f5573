package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

// answerText is what the mock answers, some 300 bytes.
var answerText = strings.Repeat("a plain answer of ten words to any question asked ", 6) //nolint:gochecknoglobals // a constant that Go cannot write as such

// mockModel is the one model of the mock, big enough to be nobody's fallback.
const mockModel = "phi3:mini"

// streamChunks is the length of a streamed answer.
const streamChunks = 100

// listenAndTell serves h on a free port and prints its address, for the parent.
func listenAndTell(ctx context.Context, w io.Writer, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, l.Addr())
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s.Serve(l)
}

// serveReverse is the plain reverse proxy that anybody would write.
func serveReverse(ctx context.Context, w io.Writer, upstream string) error {
	target, err := url.Parse(upstream)
	if err != nil {
		return err
	}
	return listenAndTell(ctx, w, &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 256},
	})
}

// serveGin reads each body and answers with the bytes of a file.
func serveGin(ctx context.Context, w io.Writer, file string) error {
	answer, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	gin.SetMode(gin.ReleaseMode)
	g := gin.New()
	g.POST("/v1/chat/completions", func(c *gin.Context) {
		if _, err := io.Copy(io.Discard, c.Request.Body); err != nil {
			return // the client left
		}
		c.Data(http.StatusOK, "application/json", answer)
	})
	return listenAndTell(ctx, w, g)
}

// serveMock answers at once: OpenAI's side for the plain proxies, Ollama's for
// tenure, with the same text in as many chunks. A streamed chunk carries the
// time at which it was sent.
func serveMock(ctx context.Context, w io.Writer) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		stream := wantsStream(r)
		if !stream {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":%q,"refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`, answerText)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		pace(r.Context(), w, time.Millisecond, func(i int) string {
			return `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"` + stamp() + `"},"logprobs":null,"finish_reason":null}]}` + "\n\n"
		})
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	})
	mux.HandleFunc("POST /api/chat", func(w http.ResponseWriter, r *http.Request) {
		temperature := temperatureOf(r)
		w.Header().Set("Content-Type", "application/x-ndjson")
		line := func(text, more string) string {
			return `{"model":"` + mockModel + `","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"` + text + `"},"done":` + more + "}\n"
		}
		switch temperature {
		case streamTemperature:
			pace(r.Context(), w, time.Millisecond, func(int) string { return line(stamp(), "false") })
		case heldTemperature:
			pace(r.Context(), w, time.Second, func(int) string { return line("a word ", "false") })
		default:
			_, _ = io.WriteString(w, line(answerText, "false"))
		}
		_, _ = io.WriteString(w, line("", `true,"done_reason":"stop","prompt_eval_count":1,"eval_count":1`))
	})
	reply := func(pattern string, v any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	type object = map[string]any
	reply("GET /api/version", object{"version": "0.17.4"})
	reply("GET /api/tags", object{"models": []object{{"name": mockModel, "model": mockModel, "digest": strings.Repeat("ab", 32), "size": 1 << 20}}})
	reply("GET /api/ps", object{"models": []object{{"name": mockModel, "model": mockModel, "size": 1 << 20, "size_vram": 1 << 20, "context_length": 1 << 20}}})
	reply("POST /api/show", object{"capabilities": []string{"completion"}, "model_info": object{"general.architecture": "llama", "llama.context_length": 1 << 20}})
	reply("POST /api/generate", object{"model": mockModel, "done": true, "done_reason": "load"})
	return listenAndTell(ctx, w, mux)
}

func wantsStream(r *http.Request) bool {
	var body struct{ Stream bool }
	decode(r, &body)
	return body.Stream
}

// temperatureOf: how an answer is to be streamed is asked for by temperatures
// of their own, because tenure streams from Ollama always.
func temperatureOf(r *http.Request) float64 {
	var body struct{ Options struct{ Temperature float64 } }
	decode(r, &body)
	return body.Options.Temperature
}

// decode reads the body to its end: a server that answers before makes Go's
// transport drop the connection now and then.
func decode(r *http.Request, v any) {
	data, err := io.ReadAll(r.Body)
	if err == nil {
		_ = json.Unmarshal(data, v) // the zero value will do
	}
}

const (
	streamTemperature = 0.5  // chunks with stamps, as fast as models go at best
	heldTemperature   = 0.25 // a stream that is held open: a chunk a second
)

// pace writes and flushes chunk after chunk.
func pace(ctx context.Context, w http.ResponseWriter, apart time.Duration, chunk func(int) string) {
	rc := http.NewResponseController(w)
	tick := time.NewTicker(apart)
	defer tick.Stop()
	for i := range streamChunks {
		if _, err := io.WriteString(w, chunk(i)); err != nil {
			return
		}
		if rc.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stamp is the time now, in nanoseconds, as text.
func stamp() string { return "@" + strconv.FormatInt(time.Now().UnixNano(), 10) }
