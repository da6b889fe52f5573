package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestChecklist: every test that CHECKLIST.md names exists, and every row names
// one.
func TestChecklist(t *testing.T) {
	list, err := os.ReadFile("CHECKLIST.md")
	if err != nil {
		t.Fatal(err)
	}
	proved, _, _ := strings.Cut(string(list), "## Later work")
	named := regexp.MustCompile("`(python|node|go|proxy|proxy/wire|routing|cmd/tenure):([^`]+)`")
	sources := map[string]string{}
	rows := 0
	for line := range strings.Lines(proved) {
		row := strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| item ")
		tests := named.FindAllStringSubmatch(line, -1)
		if row {
			rows++
			if len(tests) == 0 && !strings.Contains(line, "recorder") {
				t.Errorf("no test: %s", line)
			}
		}
		for _, m := range tests {
			place, test := m[1], m[2]
			if sources[place] == "" {
				sources[place] = testsIn(t, place)
			}
			if !declares(sources[place], place, test) {
				t.Errorf("%s has no test %q", place, test)
			}
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows were read", rows)
	}
}

// testsIn is the source of all tests of a place.
func testsIn(t *testing.T, place string) string {
	t.Helper()
	dir, pattern := filepath.Join("../..", place), "*_test.go"
	switch place {
	case "python":
		dir, pattern = "../../testdata/clients/python", "test_*.py"
	case "node":
		dir, pattern = "../../testdata/clients/node", "*.test.mjs"
	case "go":
		dir = "../../testdata/clients/go"
	}
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", dir, err)
	}
	var all strings.Builder
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(src)
	}
	return all.String()
}

// declares reports whether src has the test. Node's tests that are made in a
// loop are named by a template, whose gaps take any text.
func declares(src, place, test string) bool {
	switch place {
	case "python":
		return strings.Contains(src, "\ndef "+test+"(")
	case "node":
		gap := regexp.MustCompile(`\\\$\\\{[^}]*\}`)
		for _, m := range regexp.MustCompile("\\btest\\(([\"`])(.+?)[\"`],").FindAllStringSubmatch(src, -1) {
			if regexp.MustCompile("^" + gap.ReplaceAllString(regexp.QuoteMeta(m[2]), ".+") + "$").MatchString(test) {
				return true
			}
		}
		return false
	}
	return strings.Contains(src, "\nfunc "+test+"(")
}
