package main

import (
	"strings"
	"testing"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// fast is a simulated Ollama that lacks the named models and pulls in no time.
func fast(missing ...string) ollamasim.Config {
	return ollamasim.Config{Models: without(ollamasim.Catalog(), missing...), Bandwidth: 1 << 40}
}

// What the catalog lacks is pulled, with lines where nobody watches, and the
// check is content afterwards.
func TestPull(t *testing.T) {
	cfg := fast("mistral", "phi3:mini")
	cfg.Faults = []ollamasim.Fault{{Kind: ollamasim.CutMid, Model: "mistral", After: 8, Times: 1}}
	_, environ := simulate(t, cfg)
	code, out := command(t, environ, "pull")
	if code != 0 {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{
		"deepseek-llm:7b: there already\n", "llama3: there already\n", "phi3:mini: pulling manifest\n", "phi3:mini: 50 % of 2.0 GiB\n",
		"phi3:mini: pulled, 2.0 GiB in ", "mistral: interrupted, asking again\n", "mistral: 90 % of 4.1 GiB\n", "mistral: pulled, 4.1 GiB in ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q", want)
		}
	}
	if strings.Index(out, "phi3:mini: pulled") > strings.Index(out, "mistral: pulling") {
		t.Error("the always loaded does not come first")
	}
	if n := strings.Count(out, "mistral: 10 %"); n > 1 {
		t.Errorf("a tenth is told %d times", n)
	}
	if code, check := command(t, environ, "check"); code != 0 {
		t.Errorf("check: exit %d\n%s", code, check)
	}
	if t.Failed() {
		t.Log(out)
	}
	if code, out := command(t, environ, "pull"); code != 0 || strings.Count(out, "there already") != 4 {
		t.Errorf("a second time: exit %d\n%s", code, out)
	}
}

// One that cannot be had does not keep the others away.
func TestPullErrors(t *testing.T) {
	_, environ := simulate(t, fast("mistral"))
	code, out := command(t, environ, "pull", "mistrall", "mistral")
	if code != 1 || !strings.Contains(out, "mistrall: Ollama's registry has no model of that name") || !strings.Contains(out, "mistral: pulled") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out := command(t, []string{"OLLAMA_HOST=127.0.0.1:1"}, "pull"); code != 1 || !strings.Contains(out, "no Ollama answers at http://127.0.0.1:1") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// On a terminal a bar moves and is gone in the end.
func TestPullBar(t *testing.T) {
	var out strings.Builder
	b := newBar(&out, "mistral", 0)
	for i := range residency.Bytes(11) {
		b.at(ollama.Progress{Status: "pulling", Completed: i * residency.GiB / 10, Total: residency.GiB})
	}
	b.end()
	for _, want := range []string{"mistral: pulling", "49%", "/1.0 GiB, "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q: %q", want, out.String())
		}
	}
}
