package main

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the README's table of settings")

// TestUpdateReadme rewrites the table between its two marks, when asked to.
func TestUpdateReadme(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	const file, from, to = "../../README.md", "<!-- settings -->\n", "<!-- /settings -->"
	readme, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), from)
	_, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatal("README.md lacks the marks around the table of settings")
	}
	if err := os.WriteFile(file, []byte(before+from+settingsTable()+to+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
