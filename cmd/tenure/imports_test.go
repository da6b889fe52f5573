package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Who may import whom, by folder: a star of cmd, proxy and three leaves that
// know nothing of each other. A package may always import what lies below it.
// The files are read here and now: a test that asks the go tool is cached and
// misses a new import.
var mayImport = map[string][]string{
	"cmd":                     {"proxy", "routing", "residency", "cache"},
	"proxy":                   {"routing", "residency", "cache"},
	"proxy/wire":              {},
	"proxy/alarm":             {},
	"proxy/ollama":            {"proxy/alarm", "proxy/wire", "residency"},
	"proxy/ollama/ollamasim":  {},
	"proxy/ollama/ollamatest": {"proxy/ollama", "residency"},
	"routing":                 {},
	"routing/task":            {},
	"residency":               {},
	"residency/sim":           {"residency"},
	"residency/gpu":           {"residency"},
	"cache":                   {},
}

// onlyIn pins each of the big dependencies to the place that hides it.
var onlyIn = map[string][]string{
	"github.com/gin-gonic/gin":           {"proxy/*.go", "cmd/tenure/serve.go", "proxy/bench/mock.go"}, // serve.go silences its debug mode, a hit is compared with a handler of gin's
	"github.com/dgraph-io/ristretto/v2":  {"cache/store.go"},
	"github.com/caarlos0/env/v11":        {"cmd/tenure/config.go"},
	"github.com/NVIDIA/go-nvml/pkg/nvml": {"residency/gpu/*.go"},
	"github.com/spf13/cobra":             {"cmd/tenure/*.go"},
	"github.com/goccy/go-yaml":           {"routing/catalog.go", "proxy/wire/wiretest/*.go"},
}

func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	fset := token.NewFileSet()
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			check(t, filepath.ToSlash(rel), name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Errorf("only %d files were read: the test looks in the wrong place", files)
	}
}

func check(t *testing.T, file, imported string) {
	t.Helper()
	if places, ok := onlyIn[imported]; ok && !slices.ContainsFunc(places, func(p string) bool {
		ok, _ := filepath.Match(p, file)
		return ok
	}) && !strings.HasSuffix(file, "_test.go") {
		t.Errorf("%s imports %s, which only %s may", file, imported, strings.Join(places, " and "))
	}
	target, ours := strings.CutPrefix(imported, "tenure/")
	if !ours || strings.HasSuffix(file, "_test.go") && !leaf(file) {
		return
	}
	dir := file[:strings.LastIndex(file, "/")]
	rules, place := mayImport[dir], dir
	for rules == nil && strings.Contains(place, "/") {
		place = place[:strings.LastIndex(place, "/")]
		rules = mayImport[place]
	}
	if rules == nil {
		t.Errorf("%s: no rule says what %s may import", file, dir)
		return
	}
	for _, r := range append(rules, place) {
		if target == r || strings.HasPrefix(target, r+"/") {
			return
		}
	}
	t.Errorf("%s imports %s; %s may import only %v", file, target, place, rules)
}

// leaf reports whether even the tests of a file's package stay by themselves.
func leaf(file string) bool {
	top, _, _ := strings.Cut(file, "/")
	return top == "routing" || top == "residency" || top == "cache"
}

// The top level is the card's, and nothing else.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"cmd", "proxy", "routing", "residency", "cache", "testdata", "Dockerfile", "Makefile", "go.mod", "go.sum", "README.md", "LICENSE", "bin"}
	for _, e := range entries {
		if !slices.Contains(allowed, e.Name()) && !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
}
