//go:build e2e

package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"tenure/proxy/ollama/ollamatest"
)

// The real server's settings are found out, and nothing is left in memory.
func TestE2ECheck(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		env  []string
		code int
		want []string
	}{
		{"as tenure wants it", nil, 0, []string{"Models at once: 3 (probed", "Requests of a model at once: 1 (probed)", "phi3:mini         T0     yes      1 x 4096", "errors 0, warnings 0"}},
		{"otherwise", []string{"OLLAMA_MAX_LOADED_MODELS=2", "OLLAMA_NUM_PARALLEL=2"}, 4, []string{"Models at once: 2 (probed", "Requests of a model at once: 2 (probed)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ollamatest.Start(t.Context(), root, ollamatest.Config{Log: filepath.Join(t.ArtifactDir(), "ollama.log"), Env: tt.env})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			})
			environ := []string{"OLLAMA_HOST=" + s.URL().String(), "TENURE_ADMIN_LISTEN=127.0.0.1:1", "TENURE_NVML=false"}
			code, out := command(t, environ, "check", "--probe")
			if code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("lacks %q", want)
				}
			}
			t.Log(out)
			// The models are in main memory: had one been left, it would be said.
			if code, out := command(t, environ, "check"); code != 0 || strings.Contains(out, "main memory") {
				t.Errorf("exit %d, want nothing resident:\n%s", code, out)
			}
		})
	}
}
