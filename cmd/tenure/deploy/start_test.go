// Package deploy holds what tenure is installed with, and its tests.
package deploy

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stub is a program that writes down what is done to it. FAIL_x tells it to
// fail, SLOW_x to run until it is stopped.
const stub = `#!/bin/sh
name=$(basename "$0")
what="$name $*"
key=$(echo "${name}_$1" | tr a-z- A-Z_)
say() { echo "$*" >>"$JOURNAL"; }
case $what in
"ollama list") [ -e "$JOURNAL.up" ]; exit ;; # asked over and over
"tenure serve --print-config") say "$what"; exit "${FAIL_CONFIG:-0}" ;;
esac
eval "fail=\${FAIL_$key:-} slow=\${SLOW_$key:-}"
trap 'say "$what: stopped"; ${WHEN_STOPPED:-exit} "${AFTER_STOP:-0}"' TERM
say "$what"
[ "$what" != "ollama serve" ] || { say "$OLLAMA_HOST $OLLAMA_MAX_LOADED_MODELS $OLLAMA_KEEP_ALIVE $OLLAMA_NUM_PARALLEL $OLLAMA_NO_CLOUD"; echo $$ >"$JOURNAL.pid"; sleep 0.3; ${NEVER_UP:-touch} "$JOURNAL.up"; }
[ -z "$fail" ] || { say "$what: fails"; exit "$fail"; }
[ -z "$slow" ] || while :; do sleep 0.05; done
`

// started is a run of start.sh.
type started struct {
	cmd     *exec.Cmd
	journal string
	said    *lockedBuffer
	ended   chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// launch runs start.sh with programs found in dir before all others.
func launch(t *testing.T, dir string, environ ...string) *started {
	t.Helper()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash")
	}
	s := &started{journal: filepath.Join(t.TempDir(), "journal"), said: &lockedBuffer{}, ended: make(chan struct{})}
	s.cmd = exec.Command("./start.sh")
	s.cmd.Env = append([]string{"PATH=" + dir + ":" + os.Getenv("PATH"), "JOURNAL=" + s.journal}, environ...)
	s.cmd.Stdout, s.cmd.Stderr = s.said, s.said
	s.cmd.WaitDelay = 5 * time.Second
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a container's processes, they end together
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // its state is looked at
	}()
	t.Cleanup(func() {
		defer func() { _ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) }()
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(20 * time.Second):
			t.Errorf("start.sh does not stop:\n%s", s.said)
		}
	})
	return s
}

// stubs makes both programs.
func stubs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// A child that another test starts meanwhile would hold the file open for
	// writing, and a file that is being written cannot be run.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for _, name := range []string{"ollama", "tenure"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (s *started) lines(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(s.journal)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// until waits for a line of the journal.
func (s *started) until(t *testing.T, line string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !slices.Contains(s.lines(t), line); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q:\n%s\n%s", line, strings.Join(s.lines(t), "\n"), s.said)
		}
	}
}

// code waits for the end.
func (s *started) code(t *testing.T) int {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		t.Fatalf("it goes on:\n%s\n%s", strings.Join(s.lines(t), "\n"), s.said)
	}
	return s.cmd.ProcessState.ExitCode()
}

const settings = "127.0.0.1:11434 3 -1 1 1"

// Ollama first, with its settings, then the models, then tenure; at a stop
// tenure goes first.
func TestStart(t *testing.T) {
	t.Parallel()
	s := launch(t, stubs(t), "SLOW_OLLAMA_SERVE=1", "SLOW_TENURE_SERVE=1", "OLLAMA_HOST=0.0.0.0:11434")
	s.until(t, "tenure serve")
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.code(t); code != 0 {
		t.Errorf("exit %d\n%s", code, s.said)
	}
	want := []string{
		"tenure serve --print-config", "ollama serve", settings, "tenure pull", "tenure serve",
		"tenure serve: stopped", "ollama serve: stopped",
	}
	if got := s.lines(t); !slices.Equal(got, want) {
		t.Errorf("\n%q, want\n%q\n%s", got, want, s.said)
	}
}

func TestStartEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		environ []string
		at      string // the line of the journal at which it is told to stop
		code    int
		said    string
		want    []string // the journal after the settings of Ollama
	}{
		{name: "a wrong setting", environ: []string{"FAIL_CONFIG=2"}, code: 2},
		{name: "a wrong setting of its own", environ: []string{"TENURE_PULL=maybe"}, code: 2, said: `TENURE_PULL: "maybe" was read`},
		{
			name: "Ollama does not start", environ: []string{"FAIL_OLLAMA_SERVE=7"}, code: 1, said: "ollama ended by itself, exit code 7",
			want: []string{"ollama serve: fails"},
		},
		{
			name: "Ollama does not answer", environ: []string{"SLOW_OLLAMA_SERVE=1", "NEVER_UP=:", "OLLAMA_START_WAIT=2"}, code: 1, said: "ollama does not answer",
			want: []string{"ollama serve: stopped"},
		},
		{
			name: "a model cannot be had", environ: []string{"SLOW_OLLAMA_SERVE=1", "FAIL_TENURE_PULL=1"}, code: 1, said: "TENURE_PULL=try",
			want: []string{"tenure pull", "tenure pull: fails", "ollama serve: stopped"},
		},
		{
			name: "a model cannot be had, nor need be", environ: []string{"SLOW_OLLAMA_SERVE=1", "FAIL_TENURE_PULL=1", "TENURE_PULL=try", "FAIL_TENURE_SERVE=5"}, code: 5,
			said: "going on without them", want: []string{"tenure pull", "tenure pull: fails", "tenure serve", "tenure serve: fails", "ollama serve: stopped"},
		},
		{
			name: "tenure ends", environ: []string{"SLOW_OLLAMA_SERVE=1", "TENURE_PULL=false", "FAIL_TENURE_SERVE=3"}, code: 3, said: "tenure ended, exit code 3",
			want: []string{"tenure serve", "tenure serve: fails", "ollama serve: stopped"},
		},
		{
			name: "a stop while models are pulled", environ: []string{"SLOW_OLLAMA_SERVE=1", "SLOW_TENURE_PULL=1", "AFTER_STOP=1"}, at: "tenure pull", code: 143,
			want: []string{"tenure pull", "tenure pull: stopped", "ollama serve: stopped"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := launch(t, stubs(t), c.environ...)
			if c.at != "" {
				s.until(t, c.at)
				if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			if code := s.code(t); code != c.code {
				t.Errorf("exit %d, want %d\n%s", code, c.code, s.said)
			}
			if !strings.Contains(s.said.String(), c.said) {
				t.Errorf("it does not say %q:\n%s", c.said, s.said)
			}
			got := s.lines(t)
			if i := slices.Index(got, settings); i >= 0 && c.want != nil {
				if !slices.Equal(got[i+1:], c.want) {
					t.Errorf("\n%q, want\n%q\n%s", got[i+1:], c.want, s.said)
				}
			} else if c.want != nil || i >= 0 {
				t.Errorf("%q", got)
			}
		})
	}
}

// An Ollama that does not stop is killed.
func TestStartOllamaHangs(t *testing.T) {
	t.Parallel()
	s := launch(t, stubs(t), "SLOW_OLLAMA_SERVE=1", "WHEN_STOPPED=:", "TENURE_PULL=false")
	s.until(t, "tenure serve") // which ends at once
	if code := s.code(t); code != 0 || !strings.Contains(s.said.String(), "ollama did not stop within 5 s") {
		t.Errorf("exit %d\n%s", code, s.said)
	}
}

// When Ollama dies, tenure is stopped, and the container ends.
func TestStartOllamaDies(t *testing.T) {
	t.Parallel()
	s := launch(t, stubs(t), "SLOW_OLLAMA_SERVE=1", "SLOW_TENURE_SERVE=1", "TENURE_PULL=false")
	s.until(t, "tenure serve")
	text, err := os.ReadFile(s.journal + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := s.code(t); code != 1 {
		t.Errorf("exit %d", code)
	}
	if got := s.lines(t); got[len(got)-1] != "tenure serve: stopped" {
		t.Errorf("%q", got)
	}
	if !strings.Contains(s.said.String(), "ollama ended by itself, exit code 137") {
		t.Errorf("%s", s.said)
	}
}
