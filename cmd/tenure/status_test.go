package main

import (
	"strings"
	"testing"
	"time"

	"tenure/proxy"
	"tenure/residency"
	"tenure/residency/gpu"
)

func statusOf(t *testing.T, st *proxy.State) string {
	t.Helper()
	var out strings.Builder
	if err := printState(&out, st); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Who holds the card's memory, and by whose account, is told.
func TestStatusTellsMemory(t *testing.T) {
	busy := 97
	st := &proxy.State{
		Ollama:   proxy.OllamaState{Reachable: true, Version: "0.17.4"},
		Breakers: []proxy.Breaker{{Model: "phi3:mini", State: "closed"}, {Model: "mistral", State: "open", Since: time.Now()}},
		Residency: residency.State{
			Now: time.Now(), Budget: 20 * residency.GiB, Available: 15 * residency.GiB, Used: 9 * residency.GiB, MaxModels: 3,
		},
		GPU: proxy.CardState{
			Source: proxy.SourceNVML, Taken: 6 * residency.GiB, Reserve: residency.GiB,
			Reading: gpu.Reading{Driver: "550.54", Cards: []gpu.Card{{
				Name: "NVIDIA RTX A5000", Total: 22 * residency.GiB, Free: 7 * residency.GiB, Utilisation: &busy, ECC: &gpu.ECC{Enabled: true, Uncorrectable: 2},
			}}},
			Processes: []gpu.Process{{PID: 666, Used: 6 * residency.GiB, Name: "python3"}, {PID: 667}},
		},
	}
	got := statusOf(t, st)
	for _, want := range []string{
		"\nmistral failed too often and is given a rest (breaker open, 0s ago)\nMemory",
		"Others leave 15.0 GiB of the 20.0 GiB configured\n",
		"Figures by nvml, driver 550.54: others hold 6.0 GiB, 1.0 GiB is kept free\n",
		"GPU 0 NVIDIA RTX A5000: 22.0 GiB, 7.0 GiB free, 97 % busy, ECC on (0 errors corrected, 2 not)\n",
		"python3         666   6.0 GiB\n", "?               667   ?\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("status lacks %q:\n%s", want, got)
		}
	}

	st.Residency.Available, st.GPU = st.Residency.Budget, proxy.CardState{Source: proxy.SourceOllama, Why: "gpu: no figures: no driver", OnCPU: true}
	got = statusOf(t, st)
	for _, want := range []string{"Figures by ollama ps (gpu: no figures: no driver)\n", "main memory: answers are slow\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("status lacks %q:\n%s", want, got)
		}
	}
}

// A health check fails while no Ollama answers, and needs no key.
func TestStatusReady(t *testing.T) {
	r := start(t, []string{"--wait"}, "OLLAMA_HOST=127.0.0.1:1", "TENURE_ADMIN_KEY=not-told-to-the-check")
	if code, out := r.command(t, "status --ready"); code != 1 || out != "ollama unreachable\n" {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out := r.command(t, "status --ready --json"); code != 1 || !strings.Contains(out, "none of the others can be") {
		t.Errorf("exit %d: %s", code, out)
	}
}
