package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// unit writes tenure.service with a program that is there, and returns its path.
func unit(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("no systemd-analyze")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, "cmd", "tenure", "deploy", "tenure.service")
	const program = "/usr/local/bin/tenure"
	if !strings.Contains(text, "ExecStart="+program+" serve") {
		t.Errorf("%s is not started", program)
	}
	path := filepath.Join(t.TempDir(), "tenure.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, program, self)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnitIsValid(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit(t)).CombinedOutput()
	if err != nil || strings.Contains(string(out), "tenure.service") {
		t.Errorf("%v\n%s", err, out)
	}
}

// systemd's own measure of exposure, 0 to 10, stays below 2: "OK".
func TestUnitIsHardened(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--no-pager", unit(t)).CombinedOutput()
	m := regexp.MustCompile(`exposure level for \S+: ([\d.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	level, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	if level > 2 {
		t.Errorf("exposure %v\n%s", level, out)
	}
	t.Logf("exposure %v", level)
}

// The README's table, the drop-in for Ollama, the start script and compose.yaml say
// the same.
func TestOllamaSettingsAgree(t *testing.T) {
	compose := read(t, "cmd", "tenure", "deploy", "compose.yaml")
	readme, dropIn, script := read(t, "README.md"), read(t, "cmd", "tenure", "deploy", "ollama.conf"), read(t, "cmd", "tenure", "deploy", "start.sh")
	found := 0
	for _, m := range regexp.MustCompile(`(?m)^Environment=(OLLAMA_\w+)=(\S+)$`).FindAllStringSubmatch(dropIn, -1) {
		found++
		if row := regexp.MustCompile("(?m)^\\| `" + m[1] + "` \\|[^|]*" + regexp.QuoteMeta(m[2]) + `\b`); !row.MatchString(readme) {
			t.Errorf("the README's table does not say %s=%s", m[1], m[2])
		}
		if !strings.Contains(script, "export "+m[1]+"=") || !strings.Contains(script, strings.TrimSuffix(m[2], "11434")) {
			t.Errorf("start.sh does not set %s to %s", m[1], m[2])
		}
		// There Ollama is reached from tenure's container, and from no other.
		if m[1] != "OLLAMA_HOST" && !strings.Contains(compose, m[1]+": \""+m[2]+"\"\n") {
			t.Errorf("compose.yaml does not set %s to %s", m[1], m[2])
		}
	}
	if found < 5 {
		t.Errorf("only %d settings in the drop-in", found)
	}
}
