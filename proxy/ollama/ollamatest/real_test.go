//go:build e2e

package ollamatest

import (
	"path/filepath"
	"testing"

	"tenure/proxy/ollama/ollamasim"
)

// TestE2EConformance runs the table against the real server.
func TestE2EConformance(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	conform(t, func(t *testing.T) target {
		t.Helper()
		s, err := Start(t.Context(), root, Config{Log: filepath.Join(t.ArtifactDir(), "ollama.log")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		return target{
			url: s.URL(),
			moves: func() (loads, unloads, evictions int) {
				moves, err := s.Moves()
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range moves {
					switch m.What {
					case ollamasim.Load:
						loads++
					case ollamasim.Unload:
						unloads++
					case ollamasim.Evict:
						evictions++
					}
				}
				return loads, unloads, evictions
			},
			kill: func() {
				if err := s.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := s.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
