package main

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// simulate serves a simulated Ollama, twenty times as fast as a real one, and
// returns the settings with which a command finds it and no tenure.
func simulate(t *testing.T, cfg ollamasim.Config) (*ollamasim.Sim, []string) {
	t.Helper()
	cfg.Speed = 20
	sim := ollamasim.New(cfg)
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	return sim, []string{"OLLAMA_HOST=" + srv.URL, "TENURE_ADMIN_LISTEN=127.0.0.1:1", "TENURE_NVML=false"}
}

func command(t *testing.T, environ []string, args ...string) (code int, out string) {
	t.Helper()
	var b bytes.Buffer
	code = run(t.Context(), args, environ, &b, &b)
	return code, b.String()
}

func without(models []ollamasim.Model, names ...string) []ollamasim.Model {
	return slices.DeleteFunc(models, func(m ollamasim.Model) bool { return slices.Contains(names, m.Name) })
}

func TestCheck(t *testing.T) {
	remote := ollamasim.Catalog()[0]
	remote.Name, remote.RemoteHost = "gpt-oss:120b-cloud", "https://ollama.com:443"
	baked := ollamasim.Catalog()
	baked[3].NumCtx, baked[3].Trained = 2048, 6000
	for _, tt := range []struct {
		name    string
		sim     ollamasim.Config
		environ []string
		code    int
		want    []string
	}{
		{
			name: "all is well", code: 0,
			want: []string{"Ollama 0.17.4 at http", "phi3:mini         T0     yes      1 x 4096", "2.0 GiB   1.5 GiB", "errors 0, warnings 0", "TENURE_NVML=false", "some are swapped"},
		},
		{
			name: "enough for all", code: 0, environ: []string{"MEMORY_THRESHOLD=40", "MAX_CONCURRENT_MODELS=4"},
			want: []string{"All 4 models fit together", "nothing is ever swapped"},
		},
		{
			name: "a model with a fallback is missing", code: 3, sim: ollamasim.Config{Models: without(ollamasim.Catalog(), "mistral")},
			want: []string{"WARNING  mistral is not pulled: bias_detection is answered by llama3", "-> tenure pull mistral", "7.0 GiB (estimate)"},
		},
		{
			name: "nobody is left for a task", code: 4, sim: ollamasim.Config{Models: without(ollamasim.Catalog(), "mistral", "llama3")},
			want: []string{"ERROR    mistral is not pulled: bias_detection by none"},
		},
		{name: "newer", code: 3, sim: ollamasim.Config{Version: "0.32.6"}, want: []string{"since 0.30 it runs models by another program"}},
		{name: "older", code: 3, sim: ollamasim.Config{Version: "0.9.0"}, want: []string{"older than what tenure is tested with"}},
		{name: "unknown version", code: 3, sim: ollamasim.Config{Version: "0.0.0"}, want: []string{"which tells nothing"}},
		{
			name: "a model that runs elsewhere is left out", code: 0, sim: ollamasim.Config{Models: append(ollamasim.Catalog(), remote)},
			want: []string{"NOTE     gpt-oss:120b-cloud runs at https://ollama.com:443: tenure leaves it out"},
		},
		{
			name: "or is not", code: 3, sim: ollamasim.Config{Models: append(ollamasim.Catalog(), remote)}, environ: []string{"TENURE_ALLOW_REMOTE=true"},
			want: []string{"WARNING  gpt-oss:120b-cloud"},
		},
		{name: "too small a card", code: 4, environ: []string{"MEMORY_THRESHOLD=8"}, want: []string{"ERROR    deepseek-llm:7b never fits"}},
		{name: "too small to keep all loaded", code: 3, environ: []string{"MEMORY_THRESHOLD=12"}, want: []string{"What is to be kept loaded does not fit together"}},
		{
			name: "contexts", code: 0, sim: ollamasim.Config{Models: baked},
			want: []string{"llama3 was trained for 6000 tokens and gets no more of the catalog's 8192", "llama3 has num_ctx 2048 in its Modelfile"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, environ := simulate(t, tt.sim)
			code, out := command(t, append(environ, tt.environ...), "check")
			if code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("lacks %q", want)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

func TestCheckWithoutOllama(t *testing.T) {
	code, out := command(t, []string{"OLLAMA_HOST=127.0.0.1:1"}, "check")
	if code != 4 || !strings.Contains(out, "ERROR    Ollama does not answer at http://127.0.0.1:1") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// loadAsStranger has somebody else load a model.
func loadAsStranger(t *testing.T, environ []string, m residency.Model) {
	t.Helper()
	base, err := ollama.ParseHost(strings.TrimPrefix(environ[0], "OLLAMA_HOST="))
	if err != nil {
		t.Fatal(err)
	}
	c := ollama.New(base, ollama.Config{})
	defer c.Close()
	if _, err := c.Load(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// What is resident tells of Ollama's settings, and of other clients.
func TestCheckResidents(t *testing.T) {
	stranger := ollamasim.Catalog()[2]
	stranger.Name = "stranger"
	models := append(ollamasim.Catalog(), stranger)
	// As the real one is sized: its weights are its file.
	models[1].Weights = uint64(models[1].Disk)
	_, environ := simulate(t, ollamasim.Config{Models: models, Parallel: 2})
	loadAsStranger(t, environ, residency.Model{Name: "stranger", Context: 2048})
	loadAsStranger(t, environ, residency.Model{Name: "deepseek-llm:7b", Context: 2048})
	code, out := command(t, environ, "check", "--json")
	var r checkup
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if code != 3 || r.MaxLoaded.Least != 2 || r.MaxLoaded.Most != 0 || r.Parallel.Least != 2 || r.Parallel.Most != 2 {
		t.Errorf("exit %d, models %v, parallel %v, want at least 2 and 2 as is resident", code, r.MaxLoaded, r.Parallel)
	}
	for _, want := range []string{"stranger is resident", "deepseek-llm:7b is resident with a context of 2048", "2 contexts or more"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	if code, out := command(t, environ, "check", "--probe"); code != 1 || !strings.Contains(out, "is resident: somebody uses this Ollama") {
		t.Errorf("probe beside a stranger: exit %d\n%s", code, out)
	}
}

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name string
		sim  ollamasim.Config
		code int
		want []string
	}{
		{"defaults", ollamasim.Config{}, 0, []string{"Models at once: 3 (probed: to load", "Requests of a model at once: 1 (probed)"}},
		{"room for more", ollamasim.Config{MaxLoaded: 8}, 0, []string{"Models at once: at least 4 (probed)"}},
		{"too few models", ollamasim.Config{MaxLoaded: 2}, 4, []string{"Models at once: 2 (probed", "ERROR    Ollama keeps no more than 2 models"}},
		{"too many slots", ollamasim.Config{Parallel: 2}, 3, []string{"Requests of a model at once: 2 (probed)", "OLLAMA_NUM_PARALLEL=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sim, environ := simulate(t, tt.sim)
			code, out := command(t, environ, "check", "--probe")
			if code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("lacks %q", want)
				}
			}
			if left := sim.Loaded(); len(left) > 0 {
				t.Errorf("left in memory: %v", left)
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// What fails half-way leaves nothing behind either.
func TestProbeFails(t *testing.T) {
	sim, environ := simulate(t, ollamasim.Config{Faults: []ollamasim.Fault{{Kind: ollamasim.FailLoad, Model: "mistral"}}})
	code, out := command(t, environ, "check", "--probe")
	if code != 1 || !strings.Contains(out, "probing: ") || len(sim.Loaded()) > 0 {
		t.Errorf("exit %d, left %v\n%s", code, sim.Loaded(), out)
	}
}

// While a tenure serves this Ollama, nothing is probed. One before another
// Ollama is no obstacle.
func TestProbeBesideTenure(t *testing.T) {
	sim, environ := simulate(t, ollamasim.Config{})
	r := start(t, nil, environ[0])
	admin := "TENURE_ADMIN_LISTEN=" + strings.TrimPrefix(r.admin, "http://")
	code, out := command(t, []string{environ[0], admin}, "check", "--probe")
	if code != 1 || !strings.Contains(out, "a tenure serves this Ollama") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out := command(t, []string{environ[0], admin}, "check"); code != 0 || !strings.Contains(out, "A tenure serves this Ollama") {
		t.Errorf("exit %d\n%s", code, out)
	}
	_, other := simulate(t, ollamasim.Config{})
	if code, out := command(t, []string{other[0], admin}, "check", "--probe"); code != 0 {
		t.Errorf("another Ollama: exit %d\n%s", code, out)
	}
	if n := sim.Counts(); n.Evictions != 0 {
		t.Errorf("%+v", n)
	}
}

// Names for the same weights share one place in memory.
func TestCheckBlobs(t *testing.T) {
	r := &checkup{
		Models: []checkedModel{
			{Name: "a", Context: 4096, facts: ollama.Facts{Blob: "x"}},
			{Name: "b", Context: 8192, facts: ollama.Facts{Blob: "x"}},
			{Name: "c", Context: 4096, facts: ollama.Facts{Blob: "y"}},
			{Name: "d", Context: 4096, facts: ollama.Facts{Blob: "y"}},
			{Name: "e", Context: 4096, facts: ollama.Facts{Blob: "z"}},
			{Name: "f", Context: 4096},
		},
		Installed: []installed{{Name: "g", blob: "z"}, {Name: "h", blob: "w"}, {Name: "i", blob: "w"}},
	}
	r.judgeBlobs()
	want := []struct {
		severity severity
		names    string
	}{{warning, "a, b are"}, {note, "c, d are"}, {note, "e, g are"}}
	if len(r.Findings) != len(want) {
		t.Fatalf("%+v, want %d findings", r.Findings, len(want))
	}
	for i, w := range want {
		if f := r.Findings[i]; f.Severity != w.severity || !strings.HasPrefix(f.Text, w.names) {
			t.Errorf("got %+v, want %s of %s", f, w.severity, w.names)
		}
	}
}
