package ollamatest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// generated is a model of the catalog, as it is made up here.
type generated struct {
	name    string
	context uint32 // as the real one was trained
	window  uint32 // that it has where nobody asks for another; 0: the server's
	extra   string // of its template
	embeds  bool   // and does nothing else
}

// Beside the catalog's models stand one that embeds and one that writes between
// two texts.
const (
	Embedder = "nomic-embed-text"
	Coder    = "coder"
)

// SmallContext is the one that phi3:mini has where nobody asks for another.
const SmallContext = 2048

// Names are the generated models that tenure's catalog has, as it calls them.
func Names() []string { return []string{"phi3:mini", "deepseek-llm:7b", "mistral", "llama3"} }

func catalog() []generated {
	return []generated{
		// Its smaller cache makes it the smallest in memory, as the real one is.
		{name: "phi3:mini", context: 4096, window: SmallContext},
		{name: "deepseek-llm:7b", context: 4096},
		// A template that knows tools is what makes Ollama accept them.
		{name: "mistral", context: 32768, extra: "{{ if .Tools }}[AVAILABLE_TOOLS] {{ .Tools }}[/AVAILABLE_TOOLS]\n{{ end }}"},
		{name: "llama3", context: 8192},
		{name: Embedder, context: 2048, embeds: true},
		{name: Coder, context: 4096, extra: "{{ if .Suffix }}{{ .Prompt }} ... {{ .Suffix }}<|start|>{{ end }}"},
	}
}

// modelfile keeps noise on a leash: one thread, because spinning threads of
// several runners fight for a small machine's cores; and a repeat penalty,
// because Ollama gives up, without "done":true, after 30 equal tokens.
func (g generated) modelfile(weights string) string {
	var parameters string
	if g.window > 0 {
		parameters = fmt.Sprintf("PARAMETER num_ctx %d\n", g.window)
	}
	return `FROM ` + weights + `
TEMPLATE """` + g.extra + `{{ range .Messages }}{{ .Role }}: {{ .Content }}
{{ end }}assistant:<|start|>"""
PARAMETER num_thread 1
PARAMETER num_predict 32
PARAMETER repeat_penalty 2.0
PARAMETER repeat_last_n 64
` + parameters
}

// Root is the top of the repository that the working directory is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod in any folder above")
		}
		dir = up
	}
}

func cache(root string) string { return filepath.Join(root, ".cache", "ollama") }

// server is the program that .ci/ollama builds.
func server(root string) (string, error) {
	path := filepath.Join(cache(root), "bin", "ollama")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no Ollama to test with, run .ci/ollama first: %w", err)
	}
	return path, nil
}

// Documents are the texts in testdata/ollama by file name without ".txt": a CV,
// a job description, a persona, interview results. The models' vocabulary is
// trained on them.
func Documents(root string) (map[string]string, error) {
	paths, err := filepath.Glob(filepath.Join(root, "testdata", "ollama", "*.txt"))
	if err != nil || len(paths) == 0 {
		return nil, errors.Join(err, errors.New("no texts in testdata/ollama"))
	}
	texts := make(map[string]string)
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		texts[strings.TrimSuffix(filepath.Base(p), ".txt")] = string(data)
	}
	return texts, nil
}

// Prepare makes the models, unless they are there, and returns the folder
// for OLLAMA_MODELS. It takes some ten seconds the first time.
func Prepare(ctx context.Context, root string) (models string, err error) {
	texts, err := Documents(root)
	if err != nil {
		return "", err
	}
	var corpus strings.Builder
	for _, name := range []string{"cv", "interviews", "job", "persona"} {
		corpus.WriteString(texts[name])
	}
	vocab := train(corpus.String(), 2000)
	files := make(map[string][]byte)
	stamp := sha256.New()
	for i, g := range catalog() {
		files[g.name] = network{seed: uint64(i + 1), context: g.context, vocab: vocab, pooled: g.embeds}.gguf()
		stamp.Write(files[g.name])
		stamp.Write([]byte(g.modelfile("")))
	}
	// Test programs run side by side; one of them makes the models.
	unlock, err := lock(filepath.Join(cache(root), "models.lock"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	models = filepath.Join(cache(root), "models")
	ready := filepath.Join(models, "ready")
	want := hex.EncodeToString(stamp.Sum(nil))
	if have, err := os.ReadFile(ready); err == nil && string(have) == want {
		return models, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.RemoveAll(models); err != nil {
		return "", err
	}
	if err := create(ctx, root, models, files); err != nil {
		return "", err
	}
	return models, os.WriteFile(ready, []byte(want), 0o600)
}

// lock waits until no other process holds the file.
func lock(path string) (unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// create has a server of its own take the files in.
func create(ctx context.Context, root, models string, files map[string][]byte) (err error) {
	ollama, err := server(root)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "ollamatest")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	s, err := start(ctx, root, Config{Log: filepath.Join(work, "log")}, models)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	for i, g := range catalog() {
		weights := filepath.Join(work, fmt.Sprintf("%d.gguf", i))
		modelfile := filepath.Join(work, fmt.Sprintf("%d.modelfile", i))
		if err := os.WriteFile(weights, files[g.name], 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(modelfile, []byte(g.modelfile(weights)), 0o600); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, ollama, "create", g.name, "-f", modelfile)
		cmd.Env = s.env
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("creating %s: %w\n%s", g.name, err, out)
		}
	}
	return nil
}
