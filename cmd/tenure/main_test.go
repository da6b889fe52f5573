package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"tenure/proxy"
	"tenure/proxy/ollama/ollamasim"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"tenure": main})
}

// leakChecked fails the tests when they leave goroutines behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		_, _ = os.Stderr.WriteString(err.Error())
		return 1
	}
	return code
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args    string
		environ []string
		want    int
	}{
		{"--help", nil, 0},
		{"serve --print-config", nil, 0},
		{"serve --print-config", []string{"TENURE_LISTEN=x"}, 2},
		{"serve --nope", nil, 2},
		{"nope", nil, 2},
		{"serve", []string{"OLLAMA_HOST=127.0.0.1:1"}, 1},
		{"status", []string{"TENURE_ADMIN_LISTEN=127.0.0.1:1"}, 1},
	} {
		var out bytes.Buffer
		if got := run(t.Context(), strings.Fields(c.args), c.environ, &out, &out); got != c.want {
			t.Errorf("tenure %s with %v: exit %d, want %d\n%s", c.args, c.environ, got, c.want, &out)
		}
	}
}

// running is a server in this process, as its command would run it.
type running struct {
	api, admin string
	stop       func() int
	out, err   *lockedBuffer
}

func start(t *testing.T, args []string, environ ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{out: &lockedBuffer{}, err: &lockedBuffer{}}
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, append([]string{"serve"}, args...), append(environ, "TENURE_LISTEN=127.0.0.1:0", "TENURE_ADMIN_LISTEN=127.0.0.1:0"), r.out, r.err)
	}()
	r.stop = sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() { r.stop() })
	address := regexp.MustCompile(`API    (http://\S+)/v1\nAdmin  (http://\S+)/admin/state`)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if m := address.FindStringSubmatch(r.out.String()); m != nil {
			r.api, r.admin = m[1], m[2]
			r.settle(t)
			return r
		}
		if len(code) > 0 {
			break
		}
	}
	t.Fatalf("the server did not start:\n%s%s", r.out, r.err)
	return nil
}

// settle waits until the server has asked Ollama once, and so can tell whether
// it is ready.
func (r *running) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, out := r.command(t, "status --ready"); out != "starting\n" {
			return
		}
	}
	t.Fatalf("the server never asked Ollama:\n%s", r.err)
}

func post(t *testing.T, url, body string) (status int, header http.Header, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(data)
}

// A simulated backend is never silent: it is printed, and said by each answer.
func TestServeSimulated(t *testing.T) {
	r := start(t, []string{"--simulate=auto"}, "OLLAMA_HOST=127.0.0.1:1")
	if !strings.Contains(r.out.String(), "SIMULATED") {
		t.Errorf("not printed:\n%s", r.out)
	}
	status, header, body := post(t, r.api+"/v1/chat/completions", `{"model":"recruit/report_generation","messages":[{"role":"user","content":"hello"}]}`)
	if status != http.StatusOK || header.Get("Tenure-Backend") != "simulated" || !strings.Contains(body, "[simulated]") {
		t.Errorf("%d %v %s", status, header, body)
	}

	var out bytes.Buffer
	if code := run(t.Context(), []string{"status"}, []string{"TENURE_ADMIN_LISTEN=" + strings.TrimPrefix(r.admin, "http://")}, &out, &out); code != 0 {
		t.Fatalf("status: exit %d\n%s", code, &out)
	}
	for _, want := range []string{"SIMULATED", "phi3:mini", "T0", "of 20.0 GiB"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status lacks %q:\n%s", want, &out)
		}
	}
	out.Reset()
	if code := run(t.Context(), []string{"status", "--json"}, []string{"TENURE_ADMIN_LISTEN=" + strings.TrimPrefix(r.admin, "http://")}, &out, &out); code != 0 {
		t.Fatalf("status --json: exit %d\n%s", code, &out)
	}
	var st proxy.State
	if err := json.Unmarshal(out.Bytes(), &st); err != nil || !st.Simulated {
		t.Errorf("status --json: %v\n%s", err, &out)
	}
	if code := r.stop(); code != 0 {
		t.Errorf("stopped with exit code %d\n%s", code, r.err)
	}
}

// What streams when the server is told to stop is let finish.
func TestStopLetsStreamsFinish(t *testing.T) {
	r := start(t, []string{"--simulate"})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.api+"/v1/chat/completions",
		strings.NewReader(`{"model":"phi3:mini","stream":true,"messages":[{"role":"user","content":"a script, please"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stopped := make(chan int, 1)
	go func() { stopped <- r.stop() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
		t.Errorf("%v: %q", err, body)
	}
	if code := <-stopped; code != 0 {
		t.Errorf("exit code %d\n%s", code, r.err)
	}
}

// What takes longer than is allowed ends in an error event.
func TestStopEndsWhatTakesTooLong(t *testing.T) {
	r := start(t, []string{"--simulate"}, "TENURE_STOP_TIMEOUT=100ms")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.api+"/v1/chat/completions",
		strings.NewReader(`{"model":"phi3:mini","stream":true,"messages":[{"role":"user","content":"tell me everything"}],`+
			`"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"array","minItems":400,"items":{"type":"string","minLength":20}}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go r.stop()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(body), "[DONE]") || !strings.Contains(string(body), `data: {"error":{"message":"The server is shutting down`) {
		t.Errorf("%d bytes, the end: %q", len(body), body[max(0, len(body)-300):])
	}
	if code := r.stop(); code != 0 {
		t.Errorf("exit code %d\n%s", code, r.err)
	}
}

// What models took is kept in the file, and nothing beside figures.
func TestServeKeepsTheLedger(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger.json")
	_, environ := simulate(t, ollamasim.Config{})
	r := start(t, nil, environ[0], "TENURE_LEDGER="+file)
	lines := 0
	for deadline := time.Now().Add(20 * time.Second); lines < 3 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text, _ := os.ReadFile(file)
		lines = strings.Count(string(text), `"digest"`)
	}
	if text, err := os.ReadFile(file); err != nil || lines != 3 || strings.Contains(string(text), "mistral") {
		t.Errorf("%v, %d lines, want the three models that are preloaded, without names:\n%s\n%s", err, lines, text, r.err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
