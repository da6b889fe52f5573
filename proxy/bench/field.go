package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one contestant's process.
type process struct {
	cmd  *exec.Cmd
	base string // http://host:port
}

// field is everything that runs while it is measured.
type field struct {
	dir                               string
	mock, reverse, tenure, gin, nginx *process // nginx: nil when it is not installed
	started                           []*process
	admin                             string // tenure's admin side, http://host:port
	client                            *http.Client
}

// startPair starts the mock and tenure.
func startPair(ctx context.Context, tenure string) (f *field, err error) {
	f = &field{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}}
	if f.dir, err = os.MkdirTemp("", "tenure-bench"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.stop()
		}
	}()
	if f.mock, err = f.startRole(ctx, "mock"); err != nil {
		return nil, fmt.Errorf("mock: %w", err)
	}
	if err := f.startTenure(ctx, tenure); err != nil {
		return nil, fmt.Errorf("tenure: %w", err)
	}
	return f, nil
}

func startField(ctx context.Context, tenure string) (*field, error) {
	f, err := startPair(ctx, tenure)
	if err != nil {
		return nil, err
	}
	if err := f.startOthers(ctx); err != nil {
		f.stop()
		return nil, err
	}
	return f, nil
}

// startOthers starts those that tenure is compared with.
func (f *field) startOthers(ctx context.Context) error {
	var err error
	if f.reverse, err = f.startRole(ctx, "reverse", "-upstream", f.mock.base); err != nil {
		return fmt.Errorf("reverse proxy: %w", err)
	}
	if err := f.startGin(ctx); err != nil {
		return fmt.Errorf("gin: %w", err)
	}
	if path, lookErr := exec.LookPath("nginx"); lookErr == nil {
		if err := f.startNginx(ctx, path); err != nil {
			return fmt.Errorf("nginx: %w", err)
		}
	}
	return nil
}

// startRole starts this program in a role, from a copy of its file: processes of
// one file share its pages, and the client and the mock would keep the code of
// a contestant of theirs in the processor's caches.
func (f *field) startRole(ctx context.Context, role string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return nil, err
	}
	own := filepath.Join(f.dir, role)
	if err := os.WriteFile(own, program, 0o700); err != nil {
		return nil, err
	}
	return f.start(exec.CommandContext(ctx, own, append([]string{"-role", role}, args...)...), `(\S+:\d+)`)
}

// start runs a program and reads its address from its output.
func (f *field) start(cmd *exec.Cmd, address string) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd}
	f.started = append(f.started, p)
	re := regexp.MustCompile(address)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := re.FindStringSubmatch(lines.Text()); m != nil {
			p.base = "http://" + m[1]
			go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
			return p, nil
		}
	}
	return nil, errors.New("it ended before it told its address")
}

func (f *field) startTenure(ctx context.Context, binary string) (err error) {
	catalog := filepath.Join(f.dir, "catalog.yaml")
	var tasks strings.Builder
	for _, t := range []string{"general", "resume_parsing", "bias_detection", "matching_logic", "script_generation", "report_generation"} {
		fmt.Fprintf(&tasks, "  %s: {model: \"%s\", max_tokens: 1000, cache_ttl: 1h}\n", t, mockModel)
	}
	text := "models:\n  " + mockModel + ": {tier: 0, memory: 1, num_ctx: 1048576, slots: 1024}\ntasks:\n" + tasks.String()
	if err := os.WriteFile(catalog, []byte(text), 0o600); err != nil {
		return err
	}
	admin, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	f.admin = "http://" + admin
	cmd := exec.CommandContext(ctx, binary, "serve")
	cmd.Env = append(os.Environ(), "OLLAMA_HOST="+f.mock.base, "TENURE_CATALOG="+catalog, "TENURE_LISTEN=127.0.0.1:0",
		"TENURE_ADMIN_LISTEN="+admin, "TENURE_QUEUE_LIMIT=10000")
	if f.tenure, err = f.start(cmd, `API\s+http://([^/]+)/v1`); err != nil {
		return err
	}
	// Ready means that the model is loaded, too.
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, err = f.ask(ctx, f.tenure.base, body(200, "phi3:mini", "warm up", false), nil); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

// startGin starts a handler that answers with the bytes of a hit.
func (f *field) startGin(ctx context.Context) error {
	var answer []byte
	for range 2 {
		answer = answer[:0]
		if _, err := f.ask(ctx, f.tenure.base, hit(10<<10), func(p []byte) { answer = append(answer, p...) }); err != nil {
			return err
		}
	}
	file := filepath.Join(f.dir, "answer.json")
	if err := os.WriteFile(file, answer, 0o600); err != nil {
		return err
	}
	var err error
	f.gin, err = f.startRole(ctx, "gin", "-answer", file)
	return err
}

// freeAddress is one that nothing listens at.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (f *field) startNginx(ctx context.Context, path string) error {
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	conf := filepath.Join(f.dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
  access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 10000000;
  upstream mock { server %[2]s; keepalive 256; }
  server { listen %[3]s; location / { proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } }
}
`, f.dir, strings.TrimPrefix(f.mock.base, "http://"), address)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, "-c", conf, "-e", filepath.Join(f.dir, "error.log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return err
	}
	f.nginx = &process{cmd: cmd, base: "http://" + address}
	f.started = append(f.started, f.nginx)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if _, err = f.ask(ctx, f.nginx.base, body(200, "m", "warm up", false), nil); err == nil {
			return nil
		}
	}
	return err
}

func (f *field) stop() {
	for _, p := range slices.Backward(f.started) {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		done := time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() })
		_ = p.cmd.Wait()
		done.Stop()
	}
	f.client.CloseIdleConnections()
	_ = os.RemoveAll(f.dir)
}

// body is a chat request of about size bytes. The text makes it another
// question, or the same.
func body(size int, model, text string, stream bool) []byte {
	pad := strings.Repeat("Years of experience with night shifts, triage and patients. ", size/60+1)
	head := `{"model":"` + model + `","messages":[{"role":"user","content":"` + text + " "
	tail := `"}]`
	if stream {
		tail += `,"stream":true,"temperature":` + strconv.FormatFloat(streamTemperature, 'f', -1, 64) + `}`
	} else {
		tail += `,"temperature":0}`
	}
	return []byte(head + pad[:max(0, size-len(head)-len(tail))] + tail)
}

// hit is a request that was asked before.
func hit(size int) []byte { return body(size, "recruit/resume_parsing", "the same question", false) }

// ask sends one request and reads its answer, handing each piece to read.
func (f *field) ask(ctx context.Context, base string, body []byte, read func([]byte)) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", strings.NewReader(string(body)))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	start := time.Now()
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answered %s", base, resp.Status)
	}
	if read == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return time.Since(start), err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(buf)
		read(buf[:n])
		if errors.Is(err, io.EOF) {
			return time.Since(start), nil
		}
		if err != nil {
			return 0, err
		}
	}
}
