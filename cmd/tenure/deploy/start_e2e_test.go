//go:build e2e || image

package deploy

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamatest"
)

// TestE2EStart runs the script with the real programs: it finds all models there,
// answers, and leaves neither of the two behind.
func TestE2EStart(t *testing.T) {
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	models, err := ollamatest.Prepare(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "tenure/cmd/tenure").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Symlink(filepath.Join(root, ".cache", "ollama", "bin", "ollama"), filepath.Join(dir, "ollama")); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"SIGTERM", "Ollama dies"} {
		t.Run(end, func(t *testing.T) {
			ollama, api := free(t), free(t)
			s := launch(t, dir, "HOME="+t.TempDir(), "OLLAMA_MODELS="+models, "OLLAMA_HOST=0.0.0.0:"+ollama,
				"TENURE_LISTEN=127.0.0.1:"+api, "TENURE_ADMIN_LISTEN=127.0.0.1:0", "TENURE_LEDGER=none")
			eventually(t, s, func() bool { return strings.Contains(s.said.String(), "API    http://127.0.0.1:"+api+"/v1") })
			for _, name := range ollamatest.Names() {
				if !strings.Contains(s.said.String(), name+": there already\n") {
					t.Errorf("%s was not looked for", name)
				}
			}
			if _, err := net.DialTimeout("tcp", "127.0.0.1:"+ollama, time.Second); err != nil {
				t.Error(err)
			}
			body := `{"model":"recruit/report_generation","max_tokens":8,"messages":[{"role":"user","content":"Summarise the interview."}]}`
			resp, err := http.Post("http://127.0.0.1:"+api+"/v1/chat/completions", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatalf("%v\n%s", err, s.said)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Tenure-Model") != "phi3:mini" || resp.Header.Get("Tenure-Backend") != "" {
				t.Errorf("%s %v\n%s", resp.Status, resp.Header, s.said)
			}
			server := child(t, s.cmd.Process.Pid, "ollama")
			want := 0
			if end == "SIGTERM" {
				err = s.cmd.Process.Signal(syscall.SIGTERM)
			} else {
				want, err = 1, syscall.Kill(server, syscall.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
			if code := s.code(t); code != want {
				t.Errorf("exit %d, want %d\n%s", code, want, s.said)
			}
			for _, port := range []string{ollama, api} {
				if c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second); err == nil {
					c.Close()
					t.Errorf("somebody still listens at %s", port)
				}
			}
		})
	}
}

func free(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func eventually(t *testing.T, s *started, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			t.Fatalf("it ended:\n%s", s.said)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("too late:\n%s", s.said)
		}
	}
}

// child is the process that pid started of that name.
func child(t *testing.T, pid int, name string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(text)) {
		comm, err := os.ReadFile("/proc/" + field + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == name {
			if n, err := strconv.Atoi(field); err == nil {
				return n
			}
		}
	}
	t.Fatalf("%d has no child %s", pid, name)
	return 0
}
