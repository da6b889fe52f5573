package proxy

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/residency/gpu"
)

func openSizes(t *testing.T, file string) (*Sizes, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s := OpenSizes(file, 20*residency.GiB, slog.New(slog.NewTextHandler(&log, nil)))
	s.installed([]ollama.Installed{{Name: "mistral:latest", Digest: "d1"}})
	return s, &log
}

func TestSizesSurviveARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "ledger.json")
	mistral := residency.Model{Name: "mistral", Size: 7 * residency.GiB, Context: 8192, LoadTime: 3 * time.Second}
	s, log := openSizes(t, file)
	if got := s.estimate(mistral, "d1"); got != mistral {
		t.Errorf("nothing was learnt, yet %+v", got)
	}
	s.learn(mistral, 5*residency.GiB, 10*time.Second)
	s.learn(mistral, 6*residency.GiB, 20*time.Second)
	s.learn(residency.Model{Name: "unheard-of", Context: 1}, residency.GiB, time.Second)

	s, log2 := openSizes(t, file)
	if log.Len()+log2.Len() > 0 {
		t.Errorf("logged %s%s", log, log2)
	}
	want := mistral
	want.Size, want.LoadTime = 6*residency.GiB, 13*time.Second // the last size, a mean of the times
	if got := s.estimate(mistral, "d1"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// Pulled anew, with another context or more slots it is another size.
	if got := s.estimate(mistral, "d2"); got != mistral {
		t.Errorf("another digest: %+v", got)
	}
	other := mistral
	other.Context = 4096
	if got := s.estimate(other, "d1"); got != other {
		t.Errorf("another context: %+v", got)
	}
	other = mistral
	other.Slots = 2
	if got := s.estimate(other, "d1"); got != other {
		t.Errorf("more slots: %+v", got)
	}
	// More than could ever be loaded is not believed, or the model would never
	// be loaded again.
	s.learn(mistral, 21*residency.GiB, time.Second)
	if got := s.estimate(mistral, "d1"); got.Size != mistral.Size {
		t.Errorf("21 of 20 GiB: %+v", got)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("files left: %v %v", left, err)
	}
}

// What is not a ledger is named in the log, not used, and not overwritten.
func TestSizesLeaveOtherFilesAlone(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":         "[settings]\nkey = value\n",
		"other JSON":       `{"format":"something","version":1}`,
		"a later version":  `{"format":"tenure ledger","version":2,"models":[]}`,
		"impossible":       `{"format":"tenure ledger","version":1,"models":[{"digest":"d1","num_ctx":8192,"slots":1,"size_bytes":0}]}`,
		"cut off":          `{"format":"tenure ledger","version":1,"models":[{"digest":"d1","num`,
		"a negative time":  `{"format":"tenure ledger","version":1,"models":[{"digest":"d1","num_ctx":8192,"slots":1,"size_bytes":5,"load_ns":-1}]}`,
		"negative context": `{"format":"tenure ledger","version":1,"models":[{"digest":"d1","num_ctx":-8192,"slots":1,"size_bytes":5}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s, log := openSizes(t, file)
			if !strings.Contains(log.String(), "ledger not used") {
				t.Errorf("no warning: %q", log)
			}
			mistral := residency.Model{Name: "mistral", Context: 8192}
			s.learn(mistral, 5*residency.GiB, time.Second)
			if got := s.estimate(mistral, "d1"); got.Size != 5*residency.GiB {
				t.Errorf("not even in memory: %+v", got)
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != text {
				t.Errorf("%v, overwritten with %s", err, after)
			}
		})
	}
}

// A folder that cannot be written to costs a warning and nothing else.
func TestSizesWithoutAFolder(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, log := openSizes(t, filepath.Join(blocked, "ledger.json"))
	s.learn(residency.Model{Name: "mistral", Context: 1}, residency.GiB, time.Second)
	if !strings.Contains(log.String(), "ledger not") {
		t.Errorf("no warning: %q", log)
	}
}

// loads is a Loader that says a size.
type loads struct {
	residency.Loader
	size residency.Bytes
	err  error
}

func (l loads) Load(context.Context, residency.Model) (residency.Bytes, error) { return l.size, l.err }

// Where the card gives away more than Ollama says, that counts; where it gives
// away so much more that it must be somebody else's, it does not.
func TestMeasuring(t *testing.T) {
	const g = residency.GiB
	ollamas := func(used residency.Bytes) gpu.Reading {
		return gpu.Reading{Cards: []gpu.Card{{Total: 24 * g, Used: used, Processes: []gpu.Process{gpu.NewProcess(1, used, "/usr/bin/ollama")}}}}
	}
	nameless := func(used residency.Bytes) gpu.Reading {
		return gpu.Reading{Cards: []gpu.Card{{Total: 24 * g, Used: used}}}
	}
	for _, tt := range []struct {
		name          string
		before, after gpu.Reading
		says, want    residency.Bytes
	}{
		{"less than it says", ollamas(2 * g), ollamas(7 * g), 6 * g, 6 * g},
		{"more than it says", ollamas(2 * g), ollamas(9 * g), 6 * g, 7 * g},
		{"somebody else", ollamas(2 * g), ollamas(18 * g), 6 * g, 6 * g},
		{"nameless", nameless(3 * g), nameless(10 * g), 6 * g, 7 * g},
		{"shrunk", nameless(10 * g), nameless(3 * g), 6 * g, 6 * g},
	} {
		t.Run(tt.name, func(t *testing.T) {
			readings := []gpu.Reading{tt.before, tt.after}
			l := Measuring(loads{size: tt.says}, nil, func() (gpu.Reading, error) {
				r := readings[0]
				readings = readings[1:]
				return r, nil
			})
			if got, err := l.Load(t.Context(), residency.Model{}); err != nil || got != tt.want {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
	failed := errors.New("no")
	s, _ := openSizes(t, "")
	if _, err := Measuring(loads{size: g, err: failed}, s, nil).Load(t.Context(), residency.Model{Name: "mistral", Context: 1}); !errors.Is(err, failed) || len(s.known) > 0 {
		t.Errorf("a failed load: %v, learnt %v", err, s.known)
	}
}

// The second run counts with what the first one measured, before it has loaded
// the model itself.
func TestSecondRunKnowsSizes(t *testing.T) {
	models := ollamasim.Catalog()
	models[3].Weights += 2 << 30 // llama3 takes 10 GiB; the catalog thinks 8
	file := filepath.Join(t.TempDir(), "ledger.json")
	for run, want := range []residency.Bytes{8 * residency.GiB, 10 * residency.GiB} {
		cfg := rigConfig{sim: ollamasim.Config{Models: models}, ledger: file}
		inBubble(t, cfg, func(t *testing.T, r *rig) {
			done := make(chan reply, 1)
			go func() { done <- r.chat("llama3", "hello", "") }()
			time.Sleep(3 * time.Second)
			size := residency.Bytes(0)
			for _, m := range r.scheduler.State().Residents {
				if m.Model.Name == "llama3" && m.Phase == residency.Loading {
					size = m.Size
				}
			}
			if size != want {
				t.Errorf("run %d loads llama3 as %v, want %v: %+v", run, size, want, r.scheduler.State().Residents)
			}
			if a := <-done; a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}
