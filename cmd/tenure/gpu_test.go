//go:build linux && cgo

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
)

// standIn builds the stand-in for the driver's library and returns how the
// program finds it, and how to set what it tells: a card of 22 GiB with one
// process beside Ollama's.
func standIn(t *testing.T) (environ []string, figures func(ollamaGiB, otherGiB uint64)) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler (cc) to build the stand-in for libnvidia-ml.so.1 with")
	}
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), cc, "-shared", "-fPIC", "-o", filepath.Join(dir, "libnvidia-ml.so.1"),
		filepath.Join("..", "..", "residency", "gpu", "testdata", "nvml.c")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := filepath.Join(dir, "figures")
	return []string{"LD_LIBRARY_PATH=" + dir, "NVML_FIGURES=" + file, "TENURE_NVML=true"}, func(ollamaGiB, otherGiB uint64) {
		t.Helper()
		text := fmt.Sprintf("memory %d %d\ncompute 100 %d /usr/bin/ollama\n", uint64(22)<<30, (ollamaGiB+otherGiB)<<30, ollamaGiB<<30)
		if otherGiB > 0 {
			text += fmt.Sprintf("compute 666 %d /opt/train/python3\n", otherGiB<<30)
		}
		// In one step: the program may be reading.
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
}

// theProgram is the real one, in a process of its own: the library is found by its
// environment at the start.
func theProgram(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self) // a test that starts it stops it: its context ends before the clean-up
	cmd.Args, cmd.Env = append([]string{"tenure"}, args...), environ
	return cmd
}

func TestCheckReadsCards(t *testing.T) {
	cards, figures := standIn(t)
	figures(0, 6)
	_, environ := simulate(t, ollamasim.Config{})
	out, err := theProgram(t, append(environ, cards...), "check").CombinedOutput()
	if code := exitOf(err); code != 3 {
		t.Errorf("exit %d (%v), want 3", code, err)
	}
	for _, want := range []string{
		"GPU 0 NVIDIA RTX A5000: 22.0 GiB, 16.0 GiB free", "Models may take 15.0 GiB",
		"15.0 GiB of the 20.0 GiB configured are there for models: others hold 6.0 GiB", "process 666 (python3) holds 6.0 GiB",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
}

func exitOf(err error) int {
	if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as exec returns it
		return e.ExitCode()
	}
	return 0
}

// The whole program, its library and a process that takes 6 GiB and gives them
// back.
func TestServeReadsCards(t *testing.T) {
	t.Parallel()
	cards, figures := standIn(t)
	figures(16, 0)
	_, environ := simulate(t, ollamasim.Config{})
	serve := theProgram(t, append(append(environ[:1:1], cards...), "TENURE_LISTEN=127.0.0.1:0", "TENURE_ADMIN_LISTEN=127.0.0.1:0"), "serve")
	var out, log lockedBuffer
	serve.Stdout, serve.Stderr = &out, &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = serve.Process.Signal(os.Interrupt)
		if err := serve.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &log)
		}
	})
	await := func(what string, ready func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ready(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s\n%s%s", what, &out, &log)
			}
		}
	}
	admin := ""
	await("no address", func() bool {
		if m := regexp.MustCompile(`Admin  http://(\S+)/admin/state`).FindStringSubmatch(out.String()); m != nil {
			admin = "TENURE_ADMIN_LISTEN=" + m[1]
		}
		return admin != ""
	})
	tells := func(want string) func() bool {
		return func() bool {
			var status bytes.Buffer
			run(t.Context(), []string{"status"}, []string{admin}, &status, &status)
			return strings.Contains(status.String(), want)
		}
	}
	await("three models", tells("3 of 3 models"))
	await("figures by the driver", tells("Figures by nvml, driver stand-in 1.0: others hold 0 B"))
	figures(16, 6)
	await("less for models", tells("Others leave 15.0 GiB of the 20.0 GiB configured"))
	await("fewer models", tells("2 of 3 models"))
	await("by whom", tells("python3         666   6.0 GiB"))
	figures(9, 0)
	await("all of it again", func() bool { return !tells("Others leave")() })
}
