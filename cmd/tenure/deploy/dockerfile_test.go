package deploy

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// instruction is one of a Dockerfile.
type instruction struct {
	line  int
	word  string            // in upper case
	flags map[string]string // --from=build
	rest  string            // without its flags, continued lines joined
}

// stage is what one FROM begins.
type stage struct {
	base, name string
	steps      []instruction
}

// parseDockerfile reads the form that ours has: no heredocs, no parser
// directives, no ARG before the first FROM.
func parseDockerfile(src string) ([]stage, error) {
	var stages []stage
	var joined string
	began := 0
	for i, line := range strings.Split(src, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		if joined == "" {
			began = i + 1
		}
		if more, ok := strings.CutSuffix(line, `\`); ok {
			joined += more
			continue
		}
		at := parseInstruction(began, joined+line)
		joined = ""
		switch {
		case at.word == "FROM":
			fields := strings.Fields(at.rest)
			if len(fields) != 1 && (len(fields) != 3 || !strings.EqualFold(fields[1], "AS")) {
				return nil, fmt.Errorf("line %d: FROM %s", at.line, at.rest)
			}
			stages = append(stages, stage{base: fields[0], name: fields[len(fields)-1]})
		case len(stages) == 0:
			return nil, fmt.Errorf("line %d: %s before the first FROM", at.line, at.word)
		default:
			s := &stages[len(stages)-1]
			s.steps = append(s.steps, at)
		}
	}
	if joined != "" || len(stages) == 0 {
		return nil, errors.New("it ends within an instruction")
	}
	return stages, nil
}

func parseInstruction(line int, text string) instruction {
	word, rest, _ := strings.Cut(text, " ")
	at := instruction{line: line, word: strings.ToUpper(word), flags: map[string]string{}, rest: strings.TrimSpace(rest)}
	for strings.HasPrefix(at.rest, "--") {
		flag, rest, _ := strings.Cut(at.rest, " ")
		name, value, _ := strings.Cut(flag, "=")
		at.flags[name], at.rest = value, strings.TrimSpace(rest)
	}
	return at
}

// pairs reads what ENV and LABEL are given: NAME=VALUE or NAME="VALUE", in order.
func pairs(text string) [][2]string {
	var list [][2]string
	for _, m := range regexp.MustCompile(`([\w.]+)=(?:"([^"]*)"|(\S*))`).FindAllStringSubmatch(text, -1) {
		list = append(list, [2]string{m[1], cmp.Or(m[2], m[3])})
	}
	return list
}

// ignored reads a .dockerignore and returns whether it keeps a path, relative
// and with slashes, out of the context. The last pattern that matches a path
// or a folder above it decides.
func ignored(src string) func(path string) bool {
	type rule struct {
		match *regexp.Regexp
		keep  bool
	}
	var rules []rule
	for line := range strings.Lines(src) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, keep := strings.CutPrefix(line, "!")
		expr := regexp.QuoteMeta(pattern)
		expr = strings.ReplaceAll(expr, `\*\*/`, `(.*/)?`)
		expr = strings.ReplaceAll(expr, `\*`, `[^/]*`)
		rules = append(rules, rule{regexp.MustCompile("^" + expr + "(/.*)?$"), keep})
	}
	return func(path string) bool {
		for _, r := range slices.Backward(rules) {
			if r.match.MatchString(path) {
				return !r.keep
			}
		}
		return false
	}
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{"..", "..", ".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The versions that the Dockerfile pins are those that all else is tested with.
func TestDockerfilePins(t *testing.T) {
	stages, err := parseDockerfile(read(t, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	goes := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))
	ollama := regexp.MustCompile(`(?m)^version=(\S+)$`).FindStringSubmatch(read(t, ".ci", "ollama"))
	if goes == nil || ollama == nil {
		t.Fatal("go.mod or .ci/ollama does not tell its version")
	}
	var bases []string
	for _, s := range stages {
		bases = append(bases, s.base)
		for _, at := range s.steps {
			if at.word == "RUN" && strings.Contains(at.rest, "apt-get") {
				t.Errorf("line %d: what is installed is not pinned", at.line)
			}
		}
	}
	if !strings.HasPrefix(bases[0], "golang:"+goes[1]+".") || !slices.Contains(bases, "ollama/ollama:"+ollama[1]) {
		t.Errorf("go.mod says Go %s, .ci/ollama Ollama %s, the Dockerfile %q", goes[1], ollama[1], bases)
	}
	if !strings.Contains(read(t, "cmd", "tenure", "deploy", "compose.yaml"), "image: ollama/ollama:"+ollama[1]+"\n") {
		t.Errorf("compose.yaml has another Ollama than %s", ollama[1])
	}
	for _, base := range bases {
		if tag := base[strings.LastIndex(base, ":")+1:]; !regexp.MustCompile(`\d+\.\d+\.\d+|-\d{8}-`).MatchString(tag) {
			t.Errorf("%s is not pinned", base)
		}
	}
}

func TestDockerignore(t *testing.T) {
	keepsOut := ignored(read(t, ".dockerignore"))
	for path, want := range map[string]bool{
		"go.mod": false, "cmd/tenure/main.go": false, "routing/catalog.yaml": false, "routing/task/weights.bin": false, "cmd/tenure/deploy/start.sh": false,
		".git/config": true, ".env": true, "bin/tenure": true, "README.md": true, "testdata/ollama/cv.txt": true,
		"cmd/tenure/main_test.go": true, "cmd/tenure/testdata/script/keys.txtar": true, "residency/gpu/testdata/nvml.c": true,
	} {
		if got := keepsOut(path); got != want {
			t.Errorf("%s is kept out: %v, want %v", path, got, want)
		}
	}
}
