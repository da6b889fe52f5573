package ollama

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// All four in turn on three seats: what Load and Unload order is what happens.
func TestSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{Settle: time.Second})
		load := func(name string, context int, want residency.Bytes, took time.Duration) {
			t.Helper()
			began := time.Now()
			size, err := c.Load(t.Context(), spec(name, context))
			if err != nil || size != want || time.Since(began) != took {
				t.Fatalf("%s: got %v, %v after %v, want %v after %v", name, size, err, time.Since(began), want, took)
			}
		}
		load("phi3:mini", 4096, 2*residency.GiB, time.Second)
		load("deepseek-llm:7b", 4096, 7*residency.GiB, 3*time.Second)
		load("mistral", 8192, 7*residency.GiB, 3*time.Second)
		load("mistral", 8192, 7*residency.GiB, 0) // there already
		began := time.Now()
		if err := c.Unload(t.Context(), spec("mistral", 8192)); err != nil {
			t.Fatal(err)
		}
		// 170 ms to leave /api/ps, an eighth to be noticed, 1 s for the driver.
		if took := time.Since(began); took < 1170*time.Millisecond || took > 1170*time.Millisecond+170*time.Millisecond/7 {
			t.Errorf("unload took %v", took)
		}
		if err := c.Unload(t.Context(), spec("mistral", 8192)); err != nil {
			t.Errorf("unloading what is not there: %v", err)
		}
		load("llama3", 8192, 8*residency.GiB, 5*time.Second)
		if want := []string{"deepseek-llm:7b", "llama3:latest", "phi3:mini"}; !cmp.Equal(s.Loaded(), want) {
			t.Errorf("loaded %v, want %v", s.Loaded(), want)
		}
		time.Sleep(time.Hour) // they are there for good
		if n := s.Counts(); n.Loads != 4 || n.Unloads != 1 || n.Evictions != 0 || n.Reloads != 0 {
			t.Errorf("counts %+v, want 4 loads, 1 unload", n)
		}
	})
}

// A swap asks for no more than it needs: whoever waits for the seat waits for
// every answer.
func TestSwapAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{})
		asked := make(map[string]int)
		dial := c.link.dial
		c.link.dial = func(ctx context.Context) (net.Conn, error) {
			conn, err := dial(ctx)
			return &tapped{conn, func(path string) { asked[path]++ }}, err
		}
		for _, name := range []string{"phi3:mini", "mistral"} {
			if _, err := c.Load(t.Context(), spec(name, 4096)); err != nil {
				t.Fatal(err)
			}
		}
		clear(asked)
		if err := c.Unload(t.Context(), spec("mistral", 4096)); err != nil {
			t.Fatal(err)
		}
		if asked["/api/show"] != 0 || asked["/api/generate"] != 1 {
			t.Errorf("an unload asked %v, want one /api/generate and /api/ps only", asked)
		}
		if n := asked["/api/ps"]; n < 3 || n > 30 {
			t.Errorf("an unload looked %d times", n)
		}
		clear(asked)
		if _, err := c.Load(t.Context(), spec("llama3", 4096)); err != nil {
			t.Fatal(err)
		}
		if want := map[string]int{"/api/show": 1, "/api/generate": 1, "/api/ps": 1}; !cmp.Equal(asked, want) {
			t.Errorf("a load asked %v, want %v", asked, want)
		}
		if want := []string{"llama3:latest", "phi3:mini"}; !cmp.Equal(s.Loaded(), want) {
			t.Errorf("loaded %v, want %v", s.Loaded(), want)
		}
	})
}

// A second name of the same weights: Ollama lists the model under the first.
func TestUnloadByAnotherName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		models := ollamasim.Catalog()
		alias := models[2]
		alias.Name, alias.File = "recruiter", models[2].Name
		c, s := start(t, ollamasim.Config{Models: append(models, alias)}, Config{Settle: time.Second})
		for _, name := range []string{"phi3:mini", "mistral", "recruiter"} {
			if _, err := c.Load(t.Context(), spec(name, 4096)); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if err := c.Unload(t.Context(), spec("recruiter", 4096)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 1170*time.Millisecond {
			t.Errorf("gone after %v, before its memory was back", took)
		}
		if want := []string{"phi3:mini"}; !cmp.Equal(s.Loaded(), want) {
			t.Errorf("loaded %v, want %v", s.Loaded(), want)
		}
	})
}

// A chat with the same num_ctx as the load finds the model as it is.
func TestNoReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{})
		// More than it was trained for: Ollama compares what was asked.
		if _, err := c.Load(t.Context(), spec("deepseek-llm:7b", 8192)); err != nil {
			t.Fatal(err)
		}
		req := ask("deepseek-llm:7b", "Parse this.")
		req.Options["num_ctx"] = 8192
		if err := c.Chat(t.Context(), req, func(*api.ChatResponse) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if n := s.Counts(); n.Reloads != 0 || n.Loads != 1 {
			t.Errorf("counts %+v, want one load", n)
		}
		r, err := c.Running(t.Context())
		if err != nil || len(r) != 1 || r[0].Context != 4096 || r[0].ExpiresAt.Before(time.Now().AddDate(100, 0, 0)) {
			t.Errorf("running %+v, %v, want 4096 tokens for ever", r, err)
		}
	})
}

func TestLoadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{}, Config{Load: 10 * time.Second})
		_, err := c.Load(t.Context(), spec("nobody", 4096))
		if !errors.Is(err, residency.ErrPermanent) {
			t.Errorf("unknown model: got %v, want a permanent error", err)
		}
		s.Inject(ollamasim.Fault{Kind: ollamasim.FailLoad, Times: 1})
		if _, err = c.Load(t.Context(), spec("mistral", 8192)); err == nil || errors.Is(err, residency.ErrPermanent) {
			t.Errorf("failing load: got %v, want an error worth another try", err)
		}
		s.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Delay: time.Minute, Times: 1})
		began := time.Now()
		if _, err = c.Load(t.Context(), spec("mistral", 8192)); err == nil || time.Since(began) != 10*time.Second {
			t.Errorf("slow load: got %v after %v, want an error after 10 s", err, time.Since(began))
		}
		synctest.Wait()
		if _, err = c.Load(t.Context(), spec("mistral", 8192)); err != nil {
			t.Errorf("then: %v", err)
		}
	})
}

// A runner that is busy for ever cannot be unloaded.
func TestUnloadTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, ollamasim.Config{Faults: []ollamasim.Fault{{Kind: ollamasim.HangMid, Times: 1}}}, Config{Limits: Limits{First: time.Hour, Idle: time.Hour}})
		hung := make(chan error, 1)
		go func() {
			hung <- c.Chat(t.Context(), ask("phi3:mini", "Summarise."), func(*api.ChatResponse) error { return nil })
		}()
		time.Sleep(time.Minute)
		began := time.Now()
		if err := c.Unload(t.Context(), spec("phi3:mini", 4096)); err == nil || time.Since(began) != time.Minute {
			t.Errorf("got %v after %v, want an error after a minute", err, time.Since(began))
		}
		if err := <-hung; !errors.Is(err, ErrFirstByte) {
			t.Errorf("the chat: %v", err)
		}
	})
}

func TestWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c, _ := start(t, ollamasim.Config{VRAM: 4 << 30}, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		size, err := c.Load(t.Context(), spec("mistral", 8192))
		if err != nil || size != 7*residency.GiB {
			t.Fatalf("got %v, %v, want the size it has as a whole", size, err)
		}
		if vram, context := c.Shortfalls(ShortVRAM), c.Shortfalls(ShortContext); vram != 1 || context != 0 {
			t.Errorf("%d loads short of memory and %d of context, want one", vram, context)
		}
		if want := fmt.Sprintf("model=mistral short=vram want=%d got=%d", 7<<30, 4<<30); !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q: %s", want, log.String())
		}
	})
}

func TestRequireGPU(t *testing.T) {
	for _, tt := range []struct {
		gpu  GPU
		fail bool
	}{{GPUAuto, false}, {GPUFalse, false}, {GPUTrue, true}} {
		t.Run(string(tt.gpu), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := start(t, ollamasim.Config{NoGPU: true}, Config{RequireGPU: tt.gpu})
				size, err := c.Load(t.Context(), spec("phi3:mini", 4096))
				switch {
				case tt.fail && (!errors.Is(err, ErrNoGPU) || len(s.Loaded()) > 0):
					t.Errorf("got %v with %v loaded, want ErrNoGPU and nothing", err, s.Loaded())
				case !tt.fail && (err != nil || size != 2*residency.GiB):
					t.Errorf("got %v, %v, want its size", size, err)
				}
			})
		})
	}
	// Where a GPU was seen, a model that found no place on it is a mistake.
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{NoGPU: true}, Config{})
		c.gpu.Store(true)
		if _, err := c.Load(t.Context(), spec("phi3:mini", 4096)); !errors.Is(err, ErrNoGPU) || len(s.Loaded()) > 0 {
			t.Errorf("got %v with %v loaded, want ErrNoGPU and nothing", err, s.Loaded())
		}
	})
}

func TestEmbeddingModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := start(t, ollamasim.Config{Models: []ollamasim.Model{ollamasim.Embedder()}}, Config{})
		m := spec("nomic-embed-text", 2048)
		if _, err := c.Load(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if want := []string{"nomic-embed-text:latest"}; !cmp.Equal(s.Loaded(), want) {
			t.Errorf("loaded %v", s.Loaded())
		}
		if err := c.Unload(t.Context(), m); err != nil || len(s.Loaded()) > 0 {
			t.Errorf("got %v with %v still loaded", err, s.Loaded())
		}
	})
}

func TestFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		models := ollamasim.Catalog()
		models[0].NumCtx = 2048
		c, _ := start(t, ollamasim.Config{Models: models}, Config{})
		v, err := c.Version(t.Context())
		if err != nil || v != "0.17.4" {
			t.Errorf("version %q, %v", v, err)
		}
		installed, err := c.Installed(t.Context())
		if err != nil || len(installed) != 4 || installed[2].Name != "mistral:latest" || len(installed[2].Digest) != 64 {
			t.Errorf("installed %+v, %v", installed, err)
		}
		phi, err := c.Show(t.Context(), "phi3:mini")
		if err != nil {
			t.Fatal(err)
		}
		if phi.Context != 131072 || phi.NumCtx != 2048 || phi.KVPerToken() != 384<<10 || phi.Can("tools") || !phi.Can("completion") || len(phi.Blob) != len("sha256-")+64 {
			t.Errorf("phi3:mini: %+v, %d bytes a token", phi, phi.KVPerToken())
		}
		mistral, err := c.Show(t.Context(), "mistral")
		if err != nil || mistral.KVPerToken() != 128<<10 || !mistral.Can("tools") || mistral.Blob == phi.Blob {
			t.Errorf("mistral: %+v, %d bytes a token, %v", mistral, mistral.KVPerToken(), err)
		}
	})
}

// tapped tells of every request's path.
type tapped struct {
	net.Conn
	tell func(path string)
}

func (c *tapped) Write(p []byte) (int, error) {
	if line, _, ok := bytes.Cut(p, []byte(" HTTP/1.1\r\n")); ok {
		_, path, _ := strings.Cut(string(line), " ")
		c.tell(path)
	}
	return c.Conn.Write(p)
}
