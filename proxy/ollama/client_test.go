package ollama

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/api"
	"go.uber.org/goleak"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start connects a client to a simulated Ollama. Call it inside a bubble.
func start(t *testing.T, sim ollamasim.Config, cfg Config) (*Client, *ollamasim.Sim) {
	t.Helper()
	s := ollamasim.New(sim)
	dial, stop := s.Serve()
	cfg.Dial = dial
	c := New(&url.URL{Scheme: "http", Host: "ollama.test"}, cfg)
	t.Cleanup(func() {
		c.Close()
		stop()
	})
	return c, s
}

func ask(name, text string) *api.ChatRequest {
	return &api.ChatRequest{
		Model:    name,
		Messages: []api.Message{{Role: "user", Content: text}},
		Options:  map[string]any{"num_ctx": 4096},
	}
}

func TestChat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{})
		var text strings.Builder
		var last api.ChatResponse
		pieces := 0
		err := c.Chat(t.Context(), ask("mistral", "Is this job description biased?"), func(r *api.ChatResponse) error {
			pieces++
			text.WriteString(r.Message.Content)
			last = *r
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(text.String(), "[simulated] Bias score") {
			t.Errorf("answered %q, want a bias analysis that owns up to be simulated", text.String())
		}
		if !last.Done || last.DoneReason != "stop" || last.EvalCount != pieces-1 || last.PromptEvalCount == 0 || last.LoadDuration != 3*time.Second {
			t.Errorf("last piece %+v after %d, want stop, as many tokens as pieces before it, a load of 3 s", last, pieces)
		}
		if n := s.Counts(); n.Started != 1 || n.Finished != 1 || n.Loads != 1 {
			t.Errorf("counts %+v, want one chat and one load", n)
		}
	})
}

// What breaks is never a success, and says what it was.
func TestFaults(t *testing.T) {
	const before = -1 // no piece arrives
	for _, tt := range []struct {
		fault  ollamasim.Fault
		pieces int
		want   error
		status int
	}{
		{fault: ollamasim.Fault{Kind: ollamasim.Refuse}, pieces: before, want: ErrUnreachable},
		{fault: ollamasim.Fault{Kind: ollamasim.Refuse}, pieces: before, want: syscall.ECONNREFUSED},
		{fault: ollamasim.Fault{Kind: ollamasim.QueueFull}, pieces: before, status: 503},
		{fault: ollamasim.Fault{Kind: ollamasim.FailLoad}, pieces: before, status: 500},
		{fault: ollamasim.Fault{Kind: ollamasim.HangFirst}, pieces: before, want: ErrFirstByte},
		{fault: ollamasim.Fault{Kind: ollamasim.HangMid, After: 3}, pieces: 3, want: ErrStalled},
		{fault: ollamasim.Fault{Kind: ollamasim.CutMid, After: 3}, pieces: 3, want: ErrAborted},
		{fault: ollamasim.Fault{Kind: ollamasim.CutMid}, pieces: before, want: io.ErrUnexpectedEOF},
		{fault: ollamasim.Fault{Kind: ollamasim.ErrorLine, After: 3}, pieces: 3, status: 500},
		{fault: ollamasim.Fault{Kind: ollamasim.ErrorLine}, pieces: before, status: 500},
		{fault: ollamasim.Fault{Kind: ollamasim.NoDone, After: 3}, pieces: 3, want: ErrAborted},
		{fault: ollamasim.Fault{Kind: ollamasim.NoDone}, pieces: before, want: io.ErrUnexpectedEOF},
		{fault: ollamasim.Fault{Kind: ollamasim.CrashMid, After: 3}, pieces: 3, want: ErrAborted},
		{fault: ollamasim.Fault{Kind: ollamasim.CrashMid}, pieces: before, want: ErrAborted},
	} {
		t.Run(fmt.Sprint(tt.fault.Kind, tt.fault.After), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.fault.Times = 1
				c, s := start(t, ollamasim.Config{Faults: []ollamasim.Fault{tt.fault}}, Config{Limits: Limits{First: time.Minute, Idle: time.Minute}})
				pieces := 0
				chat := func() error {
					return c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { pieces++; return nil })
				}
				err := chat()
				if pieces != max(tt.pieces, 0) {
					t.Errorf("%d pieces before the fault, want %d", pieces, max(tt.pieces, 0))
				}
				var e *StatusError
				switch {
				case tt.want != nil && !errors.Is(err, tt.want):
					t.Errorf("got %v, want %v", err, tt.want)
				case tt.status != 0 && (!errors.As(err, &e) || e.Status != tt.status || e.Message == ""):
					t.Errorf("got %v, want status %d and a message", err, tt.status)
				}
				// The slot is free again and the client has recovered.
				if err := chat(); err != nil {
					t.Errorf("the next chat: %v", err)
				}
				if n := s.Counts(); n.Started != n.Finished+n.Cancelled+n.Failed {
					t.Errorf("counts do not reconcile: %+v", n)
				}
			})
		})
	}
}

// A server that died while nobody asked is unreachable, although a connection
// to it was kept.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{})
		chat := func() error {
			return c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return nil })
		}
		if err := chat(); err != nil {
			t.Fatal(err)
		}
		s.Inject(ollamasim.Fault{Kind: ollamasim.Refuse}) // closes what is open, refuses what is new
		if err := chat(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v, want ErrUnreachable", err)
		}
		s.Clear()
		if err := chat(); err != nil {
			t.Errorf("then: %v", err)
		}
	})
}

func TestCancel(t *testing.T) {
	left := errors.New("client left")
	for _, tt := range []struct {
		name  string
		fault ollamasim.Kind
		after time.Duration
	}{
		{name: "loading", after: 500 * time.Millisecond},
		{name: "hanging before the first byte", fault: ollamasim.HangFirst, after: 10 * time.Second},
		{name: "writing", after: 1100 * time.Millisecond},
		{name: "hanging", fault: ollamasim.HangMid, after: 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var faults []ollamasim.Fault
				if tt.fault != "" {
					faults = append(faults, ollamasim.Fault{Kind: tt.fault, Times: 1})
				}
				c, s := start(t, ollamasim.Config{Length: 1000, Faults: faults}, Config{})
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(tt.after, func() { cancel(left) })
				began := time.Now()
				err := c.Chat(ctx, ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return nil })
				if !errors.Is(err, left) || time.Since(began) != tt.after {
					t.Errorf("got %v after %v, want %q after %v", err, time.Since(began), left, tt.after)
				}
				synctest.Wait()
				if n := s.Counts(); n.Cancelled != 1 {
					t.Errorf("counts %+v, want the one chat cancelled", n)
				}
			})
		})
	}
}

// A slot that a client took along is found out, and the model loaded anew;
// one that came free costs the next caller a token's time.
func TestLeakedSlot(t *testing.T) {
	for _, tt := range []struct {
		leak    bool
		revived uint64
		least   time.Duration
		most    time.Duration
	}{
		{false, 0, 0, 50 * time.Millisecond},
		{true, 1, 5 * time.Second, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, s := start(t, ollamasim.Config{}, Config{})
			if _, err := c.Load(t.Context(), spec("phi3:mini", 4096)); err != nil {
				t.Fatal(err)
			}
			if tt.leak {
				s.Inject(ollamasim.Fault{Kind: ollamasim.LeakSlot, Times: 1})
			}
			full := errors.New("that will do")
			if err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return full }); !errors.Is(err, full) {
				t.Fatal(err)
			}
			began, first := time.Now(), time.Duration(0)
			err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error {
				if first == 0 {
					first = time.Since(began)
				}
				return nil
			})
			if err != nil || first < tt.least || first > tt.most || c.Revived() != tt.revived {
				t.Errorf("leak %v: %v, first piece after %v, %d revived", tt.leak, err, first, c.Revived())
			}
			if n := s.Counts(); n.Loads != 1+int(tt.revived) || n.Unloads != int(tt.revived) || n.Evictions+n.Reloads != 0 {
				t.Errorf("leak %v: counts %+v", tt.leak, n)
			}
		})
	}
}

// A model that is slow, or has others to answer, has lost nothing.
func TestKeptSlot(t *testing.T) {
	left := errors.New("left")
	for _, tt := range []struct {
		name   string
		token  time.Duration
		length int
		others int
	}{
		{"slow", 6 * time.Second, 3, 0},
		{"busy", 10 * time.Millisecond, 1200, 1}, // queued at Ollama: it has fewer slots than it is thought to have
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				models := ollamasim.Catalog()
				for i := range models {
					models[i].Token = tt.token
				}
				c, s := start(t, ollamasim.Config{Models: models, Length: tt.length}, Config{})
				if _, err := c.Load(t.Context(), spec("phi3:mini", 4096)); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					var others sync.WaitGroup
					if err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error {
						for range tt.others {
							others.Go(func() {
								if err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return nil }); err != nil {
									t.Error(err)
								}
							})
						}
						synctest.Wait()
						return left
					}); !errors.Is(err, left) {
						t.Fatal(err)
					}
					if err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return nil }); err != nil {
						t.Error("the next:", err)
					}
					others.Wait()
				}
				if n := s.Counts(); n.Loads != 1 || n.Unloads != 0 || c.Revived() != 0 {
					t.Errorf("counts %+v, %d revived", n, c.Revived())
				}
			})
		})
	}
}

// An unload that follows a client's leaving is not undone by its probe.
func TestUnloadAfterLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{})
		full := errors.New("that will do")
		if err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return full }); !errors.Is(err, full) {
			t.Fatal(err)
		}
		if err := c.Unload(t.Context(), spec("phi3:mini", 4096)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := s.Counts(); len(s.Loaded()) > 0 || n.Loads != 1 {
			t.Errorf("%v loaded, %d loads, want nothing and one", s.Loaded(), n.Loads)
		}
	})
}

// An error of the callback ends the stream and comes back unchanged.
func TestEachFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{Length: 1000}, Config{})
		full := errors.New("recording full")
		if err := c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return full }); err != full { //nolint:errorlint // unchanged is the promise
			t.Errorf("got %v, want %v", err, full)
		}
		synctest.Wait()
		if n := s.Counts(); n.Cancelled != 1 {
			t.Errorf("counts %+v, want the chat cancelled", n)
		}
	})
}

// Whatever the caller sets, no request truncates, shifts or moves a model.
func TestInferenceFlags(t *testing.T) {
	var got map[string]any
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = nil
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"done":true,"embeddings":[[1]]}`)
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(base, Config{})
	defer c.Close()
	keep := &api.Duration{Duration: time.Hour}
	check := func(err error, want map[string]any) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := got["keep_alive"]; ok {
			t.Errorf("keep_alive %v was sent", got["keep_alive"])
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s = %v was sent, want %v", k, got[k], v)
			}
		}
	}
	chat := api.ChatRequest{Model: "m", Stream: new(false), Truncate: new(true), KeepAlive: keep}
	check(c.Chat(t.Context(), &chat, func(*api.ChatResponse) error { return nil }),
		map[string]any{"stream": true, "truncate": false, "shift": false})
	if chat.KeepAlive != keep || *chat.Stream {
		t.Error("the caller's request was changed")
	}
	check(c.Generate(t.Context(), &api.GenerateRequest{Model: "m", KeepAlive: keep}, func(*api.GenerateResponse) error { return nil }),
		map[string]any{"stream": true, "truncate": false, "shift": false})
	_, err = c.Embed(t.Context(), &api.EmbedRequest{Model: "m", Input: "x", Truncate: new(true), KeepAlive: keep})
	check(err, map[string]any{"truncate": false})
}

func TestEmbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{Models: []ollamasim.Model{ollamasim.Embedder()}}, Config{})
		r, err := c.Embed(t.Context(), &api.EmbedRequest{Model: "nomic-embed-text", Input: []string{"a", "b"}, Dimensions: 8})
		if err != nil || len(r.Embeddings) != 2 || len(r.Embeddings[0]) != 8 {
			t.Fatalf("got %+v, %v, want two vectors of 8", r, err)
		}
		var e *StatusError
		_, err = c.Embed(t.Context(), &api.EmbedRequest{Model: "nomic-embed-text", Input: strings.Repeat("word ", 5000)})
		if !errors.As(err, &e) || e.Status != 400 || !strings.Contains(e.Message, "context length") {
			t.Errorf("got %v, want a 400 about the context length", err)
		}
		s.Inject(ollamasim.Fault{Kind: ollamasim.HangFirst, Times: 1})
		began := time.Now()
		ctx := WithLimits(t.Context(), Limits{First: 7 * time.Second})
		if _, err = c.Embed(ctx, &api.EmbedRequest{Model: "nomic-embed-text", Input: "a"}); !errors.Is(err, ErrFirstByte) || time.Since(began) != 7*time.Second {
			t.Errorf("got %v after %v, want no first byte after 7 s", err, time.Since(began))
		}
	})
}

func TestContextOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, ollamasim.Config{}, Config{})
		var e *StatusError
		err := c.Chat(t.Context(), ask("phi3:mini", strings.Repeat("word ", 5000)), func(*api.ChatResponse) error { return nil })
		if !errors.As(err, &e) || e.Status != 400 || e.Message != "the input length exceeds the context length" {
			t.Errorf("got %v, want a 400 about the context length", err)
		}
	})
}

// A line may be long, but not endless.
func TestLongLine(t *testing.T) {
	for _, tt := range []struct {
		size int
		want error
	}{{1 << 20, nil}, {maxLine + 1, ErrAborted}} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, "{\"message\":{\"content\":%q},\"done\":true}\n", strings.Repeat("x", tt.size))
		}))
		base, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		c := New(base, Config{})
		err = c.Chat(t.Context(), ask("m", "x"), func(*api.ChatResponse) error { return nil })
		if !errors.Is(err, tt.want) {
			t.Errorf("line of %d bytes: got %v, want %v", tt.size, err, tt.want)
		}
		c.Close()
		srv.Close()
	}
}

// A redirect would carry the prompt elsewhere.
func TestNoRedirect(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(base, Config{})
	defer c.Close()
	var e *StatusError
	err = c.Chat(t.Context(), ask("m", "x"), func(*api.ChatResponse) error { return nil })
	if !errors.As(err, &e) || e.Status != http.StatusTemporaryRedirect {
		t.Errorf("got %v, want a status error", err)
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte(`{"message":{"role":"assistant","content":"a"}}` + "\n" + `{"done":true}` + "\n"))
	f.Add([]byte(`{"error":"x"}`))
	f.Add([]byte("{\"done\":true}\n\n{\"done\":tr"))
	f.Add([]byte(`{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}`))
	var answer []byte
	mux := http.NewServeMux()
	mux.HandleFunc("/api/chat", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(answer) })
	srv := httptest.NewServer(mux)
	f.Cleanup(srv.Close)
	base, err := url.Parse(srv.URL)
	if err != nil {
		f.Fatal(err)
	}
	c := New(base, Config{})
	f.Cleanup(c.Close)
	f.Fuzz(func(t *testing.T, data []byte) {
		answer = data
		done := false
		err := c.Chat(t.Context(), ask("m", "x"), func(r *api.ChatResponse) error {
			if done {
				t.Error("a piece after the last one")
			}
			done = r.Done
			return nil
		})
		if (err == nil) != done {
			t.Errorf("done %v, yet error %v", done, err)
		}
	})
}

func TestParseHost(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "http://127.0.0.1:11434"},
		{"gpu", "http://gpu:11434"},
		{"gpu:8080", "http://gpu:8080"},
		{" gpu ", "http://gpu:11434"},
		{":8080", "http://127.0.0.1:8080"},
		{"0.0.0.0", "http://127.0.0.1:11434"},
		{"0.0.0.0:8080", "http://127.0.0.1:8080"},
		{"[::]:8080", "http://localhost:8080"},
		{"::", "http://localhost:11434"},
		{"::1", "http://[::1]:11434"},
		{"[::1]", "http://[::1]:11434"},
		{"[fe80::1]:1", "http://[fe80::1]:1"},
		{"http://gpu", "http://gpu:80"},
		{"https://gpu", "https://gpu:443"},
		{"https://gpu:8443/ollama", "https://gpu:8443/ollama"},
		{"gpu/", "http://gpu:11434"},
		{"ollama.com", "https://ollama.com:443"},
		{"ftp://gpu", ""},
		{"gpu:0", ""},
		{"gpu:66000", ""},
		{"gpu:http", ""},
		{"user@gpu", ""},
		{"two hosts", ""},
		{"[::1", ""},
		{"a:b:c", ""},
	} {
		u, err := ParseHost(tt.in)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("%q: got %v, want an error", tt.in, u)
		case tt.want != "" && (err != nil || u.String() != tt.want):
			t.Errorf("%q: got %v, %v, want %s", tt.in, u, err, tt.want)
		}
	}
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"mistral":         "mistral:latest",
		" Mistral ":       "mistral:latest",
		"library/mistral": "mistral:latest",
		"registry.ollama.ai/library/mistral:latest":  "mistral:latest",
		"https://registry.ollama.ai/library/mistral": "mistral:latest",
		"phi3:mini":                   "phi3:mini",
		"PHI3:Mini":                   "phi3:mini",
		"me/mistral":                  "me/mistral:latest",
		"hf.co/Org/Model-GGUF:Q4_K_M": "hf.co/org/model-gguf:q4_k_m",
		"localhost:5000/a/b:c":        "localhost:5000/a/b:c",
		"":                            "",
		"not a model":                 "not a model",
	} {
		if got := Canonical(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		if again := Canonical(want); again != want {
			t.Errorf("%q is not stable: %q", want, again)
		}
	}
}

func spec(name string, context int) residency.Model {
	return residency.Model{Name: name, Context: context, Slots: 1}
}
