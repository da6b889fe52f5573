package gpu

import "testing"

// Ollama's runners are told by where their program lies.
func TestOllama(t *testing.T) {
	for path, want := range map[string]bool{
		"/usr/local/bin/ollama":           true,
		"/usr/lib/ollama/llama-server":    true,
		"/usr/lib/ollama/cuda_v13/runner": true,
		"ollama":                          true,
		"/opt/llama.cpp/llama-server":     false,
		"/usr/bin/ollama-exporter":        false,
		"/home/ollama-user/train/python3": false,
		"":                                false,
	} {
		if got := NewProcess(1, 1, path).Ollama(); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
	if p := NewProcess(7, 5, ""); p.Name != "" || p.PID != 7 || p.Used != 5 {
		t.Errorf("%+v", p)
	}
}
