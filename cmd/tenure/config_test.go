package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func load(t *testing.T, envFile string, environ map[string]string) (*config, error) {
	t.Helper()
	return (&program{environ: environ, envFile: envFile}).loadConfig()
}

func TestDefaultsAreAllowed(t *testing.T) {
	c, err := load(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:11435" || c.MaxModels != 3 || c.Memory != 20 || !c.Optimize || c.MaxWait.Seconds() != 40 {
		t.Errorf("defaults: %+v", c)
	}
}

// Each wrong variable is named, with what was read and what is allowed, all at
// once; a secret is not repeated.
func TestWrongSettings(t *testing.T) {
	wrong := map[string]string{
		"TENURE_LISTEN": "nowhere", "TENURE_ADMIN_LISTEN": "10.0.0.1:1", "TENURE_API_KEYS": "short", "TENURE_ADMIN_KEY": "tiny",
		"OLLAMA_HOST": "ftp://x", "A5000_OPTIMIZATION": "perhaps", "MAX_CONCURRENT_MODELS": "0", "MEMORY_THRESHOLD": "lots",
		"TENURE_MAX_WAIT": "40", "TENURE_CACHE_SIZE": "big", "TENURE_BODY_LIMIT": "1", "TENURE_LOG_LEVEL": "loud", "TENURE_POLICY": "fair",
		"TENURE_REQUIRE_GPU": "maybe", "TENURE_NVML": "maybe", "TENURE_QUEUE_LIMIT": "-1", "TENURE_MAX_TOKENS": "0",
		"TENURE_CORS_ORIGINS": "*",
	}
	_, err := load(t, "", wrong)
	if err == nil {
		t.Fatal("no error")
	}
	for name, value := range wrong {
		line := ""
		for l := range strings.Lines(err.Error()) {
			if strings.HasPrefix(l, name+": ") {
				line = l
			}
		}
		secret := name == "TENURE_API_KEYS" || name == "TENURE_ADMIN_KEY"
		if line == "" || !strings.Contains(line, "is allowed") || strings.Contains(line, value) == secret {
			t.Errorf("%s=%s: got %q", name, value, line)
		}
	}
}

func TestListeningBeyondLoopbackNeedsKeys(t *testing.T) {
	const key = "0123456789abcdef"
	for _, c := range []struct {
		name    string
		environ map[string]string
		ok      bool
	}{
		{"all addresses", map[string]string{"TENURE_LISTEN": ":11435"}, false},
		{"an address", map[string]string{"TENURE_LISTEN": "192.0.2.1:11435"}, false},
		{"a name", map[string]string{"TENURE_LISTEN": "example.test:11435"}, false},
		{"with keys", map[string]string{"TENURE_LISTEN": ":11435", "TENURE_API_KEYS": key}, true},
		{"with a file of keys", map[string]string{"TENURE_LISTEN": ":11435", "TENURE_KEYS_FILE": "keys.jsonl"}, true},
		{"told so", map[string]string{"TENURE_LISTEN": ":11435", "TENURE_ALLOW_ANONYMOUS": "true"}, true},
		{"admin with the API's keys", map[string]string{"TENURE_ADMIN_LISTEN": ":11436", "TENURE_API_KEYS": key}, false},
		{"admin with its key", map[string]string{"TENURE_ADMIN_LISTEN": ":11436", "TENURE_ADMIN_KEY": key}, true},
		{"IPv6 loopback", map[string]string{"TENURE_LISTEN": "[::1]:11435"}, true},
		{"localhost", map[string]string{"TENURE_LISTEN": "localhost:0"}, true},
	} {
		if _, err := load(t, "", c.environ); (err == nil) != c.ok {
			t.Errorf("%s: got %v, want ok %v", c.name, err, c.ok)
		}
	}
}

// White space around a key is not part of it.
func TestKeysAreTrimmed(t *testing.T) {
	const key = "0123456789abcdef"
	c, err := load(t, "", map[string]string{"TENURE_API_KEYS": " " + key + " , " + key + "0", "TENURE_ADMIN_KEY": "  " + key + " "})
	if err != nil || c.AdminKey != key || c.APIKeys[0] != key || c.APIKeys[1] != key+"0" {
		t.Errorf("got %q and %q (%v)", c.APIKeys, c.AdminKey, err)
	}
}

// The names of the earlier system are read from its .env file, and the
// environment wins over the file.
func TestEnvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), ".env")
	const text = "A5000_OPTIMIZATION=false\nMAX_CONCURRENT_MODELS=2\nMEMORY_THRESHOLD=18.5\nPRELOAD_RECRUITMENT_MODELS=false\nSOMETHING_ELSE=1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(t, file, map[string]string{"MAX_CONCURRENT_MODELS": "4"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Optimize || c.MaxModels != 4 || c.Memory != 18.5 || c.Preload {
		t.Errorf("got %+v", c)
	}
	if _, err := load(t, file+".missing", nil); err == nil {
		t.Error("a missing file is no error")
	}
}

// The README's table of settings is the code's.
func TestReadmeSettings(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if want := settingsTable(); !strings.Contains(string(readme), want) {
		t.Errorf("README.md lacks the table of settings as it is:\n%s", want)
	}
}

func settingsTable() string {
	var b strings.Builder
	b.WriteString("| variable | default | allowed | meaning |\n|---|---|---|---|\n")
	for _, s := range settings() {
		standard := ""
		if s.standard != "" {
			standard = "`" + s.standard + "`"
		}
		b.WriteString("| `" + s.name + "` | " + standard + " | " + s.allowed + " | " + s.doc + " |\n")
	}
	return b.String()
}

// What --print-config prints, --env-file reads back to the same.
func TestPrintConfigReadsBack(t *testing.T) {
	c, err := load(t, "", map[string]string{"TENURE_CACHE_SIZE": "1GiB", "TENURE_MAX_WAIT": "90s", "MEMORY_THRESHOLD": "18.5"})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	c.print(&program{stdout: &out})
	file := filepath.Join(t.TempDir(), "printed.env")
	if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := load(t, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	var twice strings.Builder
	again.print(&program{stdout: &twice})
	if out.String() != twice.String() {
		t.Errorf("printed:\n%s\nread back:\n%s", &out, &twice)
	}
}

func TestLedgerFile(t *testing.T) {
	for _, c := range []struct {
		environ map[string]string
		want    string
	}{
		{map[string]string{"HOME": "/home/x"}, "/home/x/.cache/tenure/ledger.json"},
		{map[string]string{"HOME": "/home/x", "XDG_CACHE_HOME": "/var/cache/x"}, "/var/cache/x/tenure/ledger.json"},
		{map[string]string{"HOME": "/home/x", "TENURE_LEDGER": "/data/sizes"}, "/data/sizes"},
		{map[string]string{"HOME": "/home/x", "TENURE_LEDGER": "none"}, "none"},
		{nil, "none"},
	} {
		if got, err := load(t, "", c.environ); err != nil || got.Ledger != filepath.FromSlash(c.want) {
			t.Errorf("%v: %q, %v, want %q", c.environ, got.Ledger, err, c.want)
		}
	}
}
