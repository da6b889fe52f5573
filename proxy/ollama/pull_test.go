package ollama

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// empty is a server with nothing on its disk.
func empty(faults ...ollamasim.Fault) ollamasim.Config {
	return ollamasim.Config{Models: []ollamasim.Model{}, Faults: faults}
}

func TestPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, empty(), Config{})
		if _, err := c.Show(t.Context(), "mistral"); err == nil {
			t.Fatal("the model is there before it was pulled")
		}
		var seen []Progress
		began := time.Now()
		if err := c.Pull(t.Context(), "mistral", func(p Progress) { seen = append(seen, p) }); err != nil {
			t.Fatal(err)
		}
		// 4.37 GB at 100 MB/s.
		if took := time.Since(began); took < 43*time.Second || took > 44*time.Second {
			t.Errorf("took %v", took)
		}
		last := seen[len(seen)-1]
		if last.Status != "success" || last.Completed != last.Total || last.Total != 4_372_824_384 || last.Interrupts != 0 || len(seen) < 20 {
			t.Errorf("%d steps, the last %+v", len(seen), last)
		}
		for i := 1; i < len(seen); i++ {
			if seen[i].Completed < seen[i-1].Completed {
				t.Errorf("backwards: %+v after %+v", seen[i], seen[i-1])
			}
		}
		models, err := c.Installed(t.Context())
		if err != nil || len(models) != 1 || models[0].Name != "mistral:latest" {
			t.Errorf("installed %+v, %v", models, err)
		}
		if _, err := c.Load(t.Context(), residency.Model{Name: "mistral", Context: 4096}); err != nil {
			t.Errorf("what was pulled cannot be loaded: %v", err)
		}
	})
}

// A pull that breaks, by whatever, goes on where it was.
func TestPullGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, empty(
			ollamasim.Fault{Kind: ollamasim.CutMid, After: 5, Times: 3},
			ollamasim.Fault{Kind: ollamasim.ErrorLine, After: 2, Times: 1},
			ollamasim.Fault{Kind: ollamasim.Refuse, Times: 2},
		), Config{})
		began := time.Now()
		var last Progress
		if err := c.Pull(t.Context(), "mistral", func(p Progress) { last = p }); err != nil {
			t.Fatal(err)
		}
		if last.Interrupts != 6 || last.Completed != 4_372_824_384 {
			t.Errorf("%+v, want 6 interruptions", last)
		}
		// As long as one that does not break, and the pauses.
		if took := time.Since(began); took > 60*time.Second {
			t.Errorf("took %v: what had been fetched was fetched again", took)
		}
	})
}

func TestPullGivesUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sim    ollamasim.Config
		model  string
		want   error
		within time.Duration
	}{
		{"no such model", empty(), "mistrall", ErrUnknownModel, 0},
		{"no progress", empty(ollamasim.Fault{Kind: ollamasim.CutMid}), "mistral", ErrAborted, 20 * time.Second},
		{"nobody there", empty(ollamasim.Fault{Kind: ollamasim.Refuse}), "mistral", ErrUnreachable, 20 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := start(t, tt.sim, Config{})
				began := time.Now()
				if err := c.Pull(t.Context(), tt.model, func(Progress) {}); !errors.Is(err, tt.want) || time.Since(began) > tt.within {
					t.Errorf("got %v after %v, want %v within %v", err, time.Since(began), tt.want, tt.within)
				}
			})
		})
	}
}

// A full disk is not asked twice.
func TestPullFullDisk(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = w.Write([]byte(`{"status":"pulling manifest"}` + "\n" + `{"error":"write /models/x: no space left on device"}` + "\n"))
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(base, Config{})
	defer c.Close()
	var e *StatusError
	if err := c.Pull(t.Context(), "mistral", func(Progress) {}); !errors.As(err, &e) || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

func TestPullCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, empty(), Config{})
		left := errors.New("left")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Second, func() { cancel(left) })
		if err := c.Pull(ctx, "mistral", func(Progress) {}); !errors.Is(err, left) {
			t.Errorf("got %v", err)
		}
		began := time.Now()
		if err := c.Pull(t.Context(), "mistral", func(Progress) {}); err != nil || time.Since(began) > 36*time.Second {
			t.Errorf("the second pull: %v after %v, want what is left of 44 s", err, time.Since(began))
		}
	})
}
