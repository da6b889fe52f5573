//go:build image

package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/ollama/ollamatest"
)

// No Docker engine is needed here. A base is stood for by Debian 12 as
// debootstrap installs it, the builder by this machine, and a container by a
// process in mount and PID namespaces of its own, with the image as its root,
// read-only but for the volumes, without new privileges. All else is what the
// Dockerfile says, instruction by instruction: one that is not known here fails
// the test.

// image is what a stage makes.
type image struct {
	t                       *testing.T
	root                    string // its file system
	builder                 bool   // its commands run on this machine, in the working directory below root
	env, args, labels       map[string]string
	user, workdir           string
	entrypoint, cmd, health []string
	volumes, ports          []string
	stopSignal              string
}

// maker makes the stages of one Dockerfile.
type maker struct {
	t      *testing.T
	top    string // of the repository
	stages []stage
	args   map[string]string // --build-arg
	made   map[string]*image
}

const version = "1.2.3-check"

func newMaker(t *testing.T) *maker {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root can run the image's file system")
	}
	top, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	stages, err := parseDockerfile(read(t, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	return &maker{t: t, top: top, stages: stages, args: map[string]string{"VERSION": version}, made: map[string]*image{}}
}

// target makes the stage of that name, "" the last.
func (m *maker) target(name string) *image {
	m.t.Helper()
	for i, s := range m.stages {
		if s.name == name || name == "" && i == len(m.stages)-1 {
			return m.make(s)
		}
	}
	m.t.Fatalf("the Dockerfile has no stage %q", name)
	return nil
}

func (m *maker) make(s stage) *image {
	m.t.Helper()
	if i := m.made[s.name]; i != nil {
		return i
	}
	began := time.Now()
	i := m.base(s.base)
	for _, at := range s.steps {
		if err := m.step(i, at); err != nil {
			m.t.Fatalf("Dockerfile:%d: %s %s: %v", at.line, at.word, at.rest, err)
		}
	}
	m.made[s.name] = i
	m.t.Logf("FROM %s: %d instructions, %v", s.base, len(s.steps), time.Since(began).Round(time.Millisecond))
	return i
}

// base is an image as it is pulled.
func (m *maker) base(name string) *image {
	m.t.Helper()
	i := &image{
		t: m.t, root: m.t.TempDir(), user: "0:0", workdir: "/", args: map[string]string{}, labels: map[string]string{},
		env: map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	debian := func() {
		from := filepath.Join(m.top, ".cache", "image", "bookworm")
		if out, err := exec.CommandContext(m.t.Context(), "cp", "-a", from+"/.", i.root).CombinedOutput(); err != nil {
			m.t.Fatalf(".ci/image makes what stands for %s: %v\n%s", name, err, out)
		}
	}
	switch kind, tag, _ := strings.Cut(name, ":"); {
	case kind == "golang" && strings.HasSuffix(tag, "-bookworm"):
		i.builder = true
		out, err := exec.CommandContext(m.t.Context(), "go", "env", "GOVERSION").Output()
		if err != nil {
			m.t.Fatal(err)
		}
		if have := strings.TrimSpace(string(out)); have != "go"+strings.TrimSuffix(tag, "-bookworm") {
			m.t.Logf("%s is stood for by %s", name, have)
		}
	case kind == "debian" && strings.HasPrefix(tag, "bookworm-"):
		debian()
	case kind == "ollama/ollama":
		debian()
		if err := put(filepath.Join(m.top, ".cache", "ollama", "bin", "ollama"), filepath.Join(i.root, "usr", "bin", "ollama")); err != nil {
			m.t.Fatalf(".ci/ollama makes what stands for %s: %v", name, err)
		}
		i.env["OLLAMA_HOST"] = "0.0.0.0:11434"
		i.entrypoint, i.cmd = []string{"/bin/ollama"}, []string{"serve"}
	default:
		m.t.Fatalf("nothing stands for FROM %s", name)
	}
	return i
}

// step does one instruction.
func (m *maker) step(i *image, at instruction) error {
	for flag := range at.flags {
		if !slices.Contains([]string{"COPY --from", "HEALTHCHECK --interval", "HEALTHCHECK --timeout", "HEALTHCHECK --start-period", "HEALTHCHECK --retries"}, at.word+" "+flag) {
			return fmt.Errorf("%s is not known here", flag)
		}
	}
	expanded := os.Expand(at.rest, func(name string) string {
		if v, ok := i.env[name]; ok {
			return v
		}
		return i.args[name]
	})
	var err error
	switch at.word {
	case "ARG":
		name, standard, _ := strings.Cut(expanded, "=")
		i.args[name] = standard
		if v, ok := m.args[name]; ok {
			i.args[name] = v
		}
	case "ENV":
		for _, p := range pairs(expanded) {
			i.env[p[0]] = p[1]
		}
	case "LABEL":
		for _, p := range pairs(expanded) {
			i.labels[p[0]] = p[1]
		}
	case "WORKDIR":
		i.workdir = absolute(i.workdir, expanded)
		err = os.MkdirAll(filepath.Join(i.root, i.workdir), 0o755)
	case "USER":
		i.user = expanded
	case "VOLUME":
		i.volumes = append(i.volumes, strings.Fields(expanded)...)
	case "EXPOSE":
		i.ports = append(i.ports, strings.Fields(expanded)...)
	case "STOPSIGNAL":
		i.stopSignal = expanded
	case "HEALTHCHECK":
		list, ok := strings.CutPrefix(at.rest, "CMD ")
		if !ok {
			return errors.New("only HEALTHCHECK CMD is known here")
		}
		i.health, err = words(list)
	case "ENTRYPOINT":
		i.cmd = nil
		i.entrypoint, err = words(at.rest)
	case "CMD":
		i.cmd, err = words(at.rest)
	case "RUN":
		err = i.run(at.rest)
	case "COPY":
		fields := strings.Fields(expanded)
		err = m.copy(i, at.flags["--from"], fields[:len(fields)-1], fields[len(fields)-1])
	default:
		err = errors.New("it is not known here")
	}
	return err
}

// words reads the exec form, ["a", "b"].
func words(list string) (all []string, err error) {
	for field := range strings.SplitSeq(strings.Trim(list, "[]"), ",") {
		word, err := strconv.Unquote(strings.TrimSpace(field))
		if err != nil {
			return nil, fmt.Errorf("only the form [\"a\", \"b\"] is known here: %w", err)
		}
		all = append(all, word)
	}
	return all, nil
}

func absolute(workdir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(workdir, path)
}

// run is RUN: on this machine for the builder, else within the image.
func (i *image) run(command string) error {
	cmd := exec.CommandContext(i.t.Context(), "/bin/sh", "-c", command)
	if i.builder {
		cmd.Dir = filepath.Join(i.root, i.workdir)
		cmd.Env = os.Environ()
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: i.root}
		cmd.Dir = i.workdir
		for k, v := range i.env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	for k, v := range i.args {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if i.user != "0:0" {
		return errors.New("only root's RUN is known here")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// copy is COPY, from the context or another stage.
func (m *maker) copy(i *image, stage string, sources []string, to string) error {
	folder := strings.HasSuffix(to, "/") || to == "." || len(sources) > 1
	to = filepath.Join(i.root, absolute(i.workdir, to))
	from, keepsOut := m.top, ignored(read(m.t, ".dockerignore"))
	var other *image
	if stage != "" {
		other = m.target(stage)
		from, keepsOut = other.root, func(string) bool { return false }
	}
	for _, source := range sources {
		path := filepath.Join(from, source)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && other != nil && other.builder {
			path = source // it is the base's
			info, err = os.Stat(path)
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			rel, err := filepath.Rel(from, path)
			if err != nil || keepsOut(filepath.ToSlash(rel)) {
				return errors.Join(err, errors.New(".dockerignore keeps it out"))
			}
			target := to
			if folder {
				target = filepath.Join(to, filepath.Base(path))
			}
			if err := put(path, target); err != nil {
				return err
			}
			continue
		}
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, p)
			switch {
			case err != nil:
				return err
			case d.IsDir() && strings.HasPrefix(d.Name(), ".") && p != path:
				return filepath.SkipDir // no pattern of ours brings one back
			case d.IsDir() || keepsOut(filepath.ToSlash(rel)):
				return nil
			}
			below, err := filepath.Rel(path, p)
			if err != nil {
				return err
			}
			return put(p, filepath.Join(to, below))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// put copies a file with its mode; it is root's.
func put(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Chmod(info.Mode().Perm()), dst.Close())
}

// container is a process of an image.
type container struct {
	t     *testing.T
	image *image
	cmd   *exec.Cmd
	env   []string
	said  *lockedBuffer
	ended chan struct{}
	data  map[string]string // where a volume really is
}

// start runs the entrypoint with args in place of CMD, if there are any.
// Mounts beside the volumes are given as from:to.
func (i *image) start(environ map[string]string, mounts []string, args ...string) *container {
	i.t.Helper()
	if len(args) == 0 {
		args = i.cmd
	}
	c := &container{t: i.t, image: i, said: &lockedBuffer{}, ended: make(chan struct{}), data: map[string]string{}}
	env := maps.Clone(i.env)
	env["HOME"] = i.home()
	maps.Copy(env, environ)
	for _, k := range slices.Sorted(maps.Keys(env)) {
		c.env = append(c.env, k+"="+env[k])
	}
	// A mount that is read-only leaves those below it as they are.
	script := []string{"set -e", "mount --bind $root $root", "mount -t proc proc $root/proc", "mount -t tmpfs -o mode=1777 tmpfs $root/tmp"}
	for _, v := range i.volumes {
		// What the image has there is a new volume's first content.
		c.data[v] = filepath.Join(i.t.TempDir(), "volume")
		if err := os.MkdirAll(filepath.Join(i.root, v), 0o755); err != nil {
			i.t.Fatal(err)
		}
		if out, err := exec.CommandContext(i.t.Context(), "cp", "-a", filepath.Join(i.root, v), c.data[v]).CombinedOutput(); err != nil {
			i.t.Fatalf("%v %s", err, out)
		}
		script = append(script, "mount --bind "+c.data[v]+" $root"+v)
	}
	for _, m := range mounts {
		from, to, _ := strings.Cut(m, ":")
		script = append(script, "mkdir -p $root"+filepath.Dir(to), "[ -e $root"+to+" ] || if [ -d "+from+" ]; then mkdir $root"+to+"; else touch $root"+to+"; fi",
			"mount --bind "+from+" $root"+to)
	}
	script = append(script, "mount -o remount,bind,ro $root", `exec setpriv --no-new-privs "$@"`)
	boot := []string{"--mount", "--pid", "--fork", "sh", "-c", strings.Join(script, "\n"), "boot"}
	c.cmd = exec.Command("unshare", slices.Concat(boot, c.within(slices.Concat(i.entrypoint, args)))...)
	c.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "root=" + i.root}
	c.cmd.Stdout, c.cmd.Stderr = c.said, c.said
	if err := c.cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait() // its state is looked at
	}()
	c.cmd.WaitDelay = 5 * time.Second
	i.t.Cleanup(func() {
		// Process 1 takes all others with it.
		if pid, ok := c.child(); ok {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		} else {
			_ = c.cmd.Process.Kill()
		}
		<-c.ended
	})
	return c
}

// home is the user's, as the image's passwd says.
func (i *image) home() string {
	uid, _, _ := strings.Cut(i.user, ":")
	text, err := os.ReadFile(filepath.Join(i.root, "etc", "passwd"))
	if err != nil {
		i.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); f[2] == uid {
			return f[5]
		}
	}
	return "/"
}

// within is a command as the image's user, in its root and with its environment.
func (c *container) within(command []string) []string {
	return slices.Concat([]string{"chroot", "--userspec=" + c.image.user, "--groups=", c.image.root, "/usr/bin/env", "-i", "-C", c.image.workdir}, c.env, command)
}

// first is the container's process 1, as this machine counts.
func (c *container) first() int {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if pid, ok := c.child(); ok {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err == nil && !slices.Contains([]string{"unshare", "sh", "setpriv", "chroot", "env"}, strings.TrimSpace(string(comm))) {
				return pid
			}
		}
	}
	c.t.Fatalf("it does not run:\n%s", c.said)
	return 0
}

// child is what unshare started.
func (c *container) child() (pid int, ok bool) {
	parent := c.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return pid, err == nil
}

// exec runs a command beside process 1, as docker exec does.
func (c *container) exec(command ...string) (out string, err error) {
	c.t.Helper()
	args := append([]string{"--target", strconv.Itoa(c.first()), "--mount", "--pid"}, c.within(command)...)
	text, err := exec.CommandContext(c.t.Context(), "nsenter", args...).CombinedOutput()
	return string(text), err
}

// healthy waits until the HEALTHCHECK says so.
func (c *container) healthy() {
	c.t.Helper()
	var out string
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out, err = c.exec(c.image.health...); err == nil {
			return
		}
	}
	c.t.Fatalf("not healthy: %s %v\n%s", out, err, c.said)
}

// code waits for the end.
func (c *container) code(within time.Duration) int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(within):
		c.t.Fatalf("it goes on:\n%s", c.said)
	}
	return c.cmd.ProcessState.ExitCode()
}

// stop is docker stop: the signal, and 10 s.
func (c *container) stop() int {
	c.t.Helper()
	if c.image.stopSignal != "SIGTERM" {
		c.t.Fatalf("STOPSIGNAL %q", c.image.stopSignal)
	}
	if err := syscall.Kill(c.first(), syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	return c.code(10 * time.Second)
}

const apiKey = "a-key-for-the-image-check"

// ask sends a chat request from outside.
func ask(t *testing.T, port, key string) (status int, header http.Header, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:"+port+"/v1/chat/completions",
		strings.NewReader(`{"model":"recruit/report_generation","max_tokens":16,"messages":[{"role":"user","content":"Summarise the interview."}]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// TestImage builds the image and tries all that it promises.
func TestImage(t *testing.T) {
	i := newMaker(t).target("")
	outside := func(more ...string) map[string]string {
		env := map[string]string{"TENURE_API_KEYS": apiKey, "TENURE_LISTEN": "0.0.0.0:" + free(t), "TENURE_ADMIN_LISTEN": "127.0.0.1:" + free(t)}
		for _, kv := range more {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		return env
	}
	// Beyond its ports the environment is the image's.
	port := func(env map[string]string) string { return env["TENURE_LISTEN"][len("0.0.0.0:"):] }

	t.Run("what it says of itself", func(t *testing.T) {
		if i.labels["org.opencontainers.image.version"] != version || len(i.labels) < 4 {
			t.Errorf("labels %v", i.labels)
		}
		if !slices.Contains(i.ports, i.env["TENURE_LISTEN"][len("0.0.0.0:"):]) {
			t.Errorf("it listens at %s and exposes %v", i.env["TENURE_LISTEN"], i.ports)
		}
		c := i.start(nil, nil, "--version")
		if code := c.code(10 * time.Second); code != 0 || c.said.String() != "tenure version "+version+"\n" {
			t.Errorf("exit %d: %s", code, c.said)
		}
	})

	t.Run("without keys it says which are lacking", func(t *testing.T) {
		c := i.start(nil, nil)
		if code := c.code(10 * time.Second); code != 2 {
			t.Errorf("exit %d", code)
		}
		for _, want := range []string{"TENURE_LISTEN", `"0.0.0.0:11435"`, "needs TENURE_KEYS_FILE or TENURE_API_KEYS"} {
			if !strings.Contains(c.said.String(), want) {
				t.Errorf("it does not say %q:\n%s", want, c.said)
			}
		}
	})

	t.Run("simulated", func(t *testing.T) {
		env := outside()
		c := i.start(env, nil, "serve", "--simulate")
		c.healthy()
		if status, _, body := ask(t, port(env), ""); status != http.StatusUnauthorized {
			t.Errorf("without a key: %d %s", status, body)
		}
		code, header, body := ask(t, port(env), apiKey)
		if code != http.StatusOK || header.Get("Tenure-Backend") != "simulated" || !strings.Contains(body, "[simulated]") {
			t.Errorf("%d %v %s", code, header, body)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.first()))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t10001\t10001\t10001\t10001\n", "Gid:\t10001\t10001\t10001\t10001\n", "Groups:\t \n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("it runs without %q:\n%s", want, status)
			}
		}
		if code := c.stop(); code != 0 {
			t.Errorf("exit %d:\n%s", code, c.said)
		}
	})

	// An Ollama on this machine, which it shares its network with.
	sim := ollamasim.New(ollamasim.Config{Speed: 20})
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)

	t.Run("without a GPU", func(t *testing.T) {
		env := outside("OLLAMA_HOST=" + server.URL)
		c := i.start(env, nil)
		c.healthy()
		if code, header, body := ask(t, port(env), apiKey); code != http.StatusOK || header.Get("Tenure-Backend") != "" {
			t.Errorf("%d %s", code, body)
		}
		out, err := c.exec("tenure", "status")
		if err != nil || !strings.Contains(out, "no libnvidia-ml.so.1: no NVIDIA driver is installed, or this container was not given it") {
			t.Errorf("%v\n%s", err, out)
		}
		if code := c.stop(); code != 0 {
			t.Errorf("exit %d:\n%s", code, c.said)
		}
		info, err := os.Stat(filepath.Join(c.data["/var/lib/tenure"], "ledger.json"))
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != 10001 {
			t.Errorf("no ledger in the volume: %v %v\n%s", info, err, c.said)
		}

		c = i.start(outside("OLLAMA_HOST="+server.URL, "TENURE_NVML=true"), nil)
		if code := c.code(10 * time.Second); code != 1 || !strings.Contains(c.said.String(), "TENURE_NVML=true") {
			t.Errorf("exit %d:\n%s", code, c.said)
		}
	})

	t.Run("without an Ollama", func(t *testing.T) {
		c := i.start(outside("OLLAMA_HOST=127.0.0.1:1"), nil)
		var out string
		for deadline := time.Now().Add(10 * time.Second); out != "ollama unreachable\n" && time.Now().Before(deadline); {
			var err error
			if out, err = c.exec(i.health...); err == nil {
				t.Fatalf("healthy: %s", out)
			}
		}
		if out != "ollama unreachable\n" {
			t.Errorf("%s", out)
		}
	})

	// Even where the file system is not read-only.
	t.Run("nothing else is writable", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "chroot", "--userspec="+i.user, "--groups=", i.root, "find", "/", "-xdev", "-writable", "!", "-type", "l", "!", "-path", "/dev/*")
		var errs bytes.Buffer
		cmd.Stderr = &errs // folders it may not even look into
		out, err := cmd.Output()
		if code, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || code.ExitCode() != 1) {
			t.Fatalf("%v %s", err, &errs)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		if want := []string{"/run/lock", "/tmp", "/var/lib/tenure", "/var/tmp"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})

	// NVIDIA's container toolkit puts the driver's library where the loader looks. This is the
	// last: where it is mounted, an empty file stays.
	t.Run("with the driver's library", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		lib, figures := filepath.Join(dir, "libnvidia-ml.so.1"), filepath.Join(dir, "figures")
		source := filepath.Join("..", "..", "..", "residency", "gpu", "testdata", "nvml.c")
		if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-o", lib, source).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := os.WriteFile(figures, fmt.Appendf(nil, "memory %d %d\n", uint64(22)<<30, uint64(1)<<30), 0o644); err != nil {
			t.Fatal(err)
		}
		c := i.start(outside("OLLAMA_HOST="+server.URL, "NVML_FIGURES=/figures"),
			[]string{lib + ":/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", figures + ":/figures"}, "check")
		c.code(20 * time.Second)
		if !strings.Contains(c.said.String(), "GPU 0 NVIDIA RTX A5000: 22.0 GiB, 21.0 GiB free") {
			t.Errorf("%s", c.said)
		}
	})
}

// TestImageWithOllama runs the image of both on the real Ollama and its test
// models.
func TestImageWithOllama(t *testing.T) {
	m := newMaker(t)
	models, err := ollamatest.Prepare(t.Context(), m.top)
	if err != nil {
		t.Fatal(err)
	}
	i := m.target("with-ollama")
	if c := i.start(nil, nil); c.code(10*time.Second) != 2 || !strings.Contains(c.said.String(), "TENURE_API_KEYS") {
		t.Errorf("without keys:\n%s", c.said)
	}
	port, ollama := free(t), free(t)
	c := i.start(map[string]string{
		"TENURE_API_KEYS": apiKey, "TENURE_LISTEN": "0.0.0.0:" + port, "TENURE_ADMIN_LISTEN": "127.0.0.1:" + free(t), "OLLAMA_HOST": "127.0.0.1:" + ollama,
	}, []string{models + ":/root/.ollama/models"})
	c.healthy()
	if !strings.Contains(c.said.String(), "phi3:mini: there already\n") {
		t.Errorf("no models were looked for:\n%s", c.said)
	}
	code, header, body := ask(t, port, apiKey)
	if code != http.StatusOK || header.Get("Tenure-Model") != "phi3:mini" || header.Get("Tenure-Backend") != "" {
		t.Errorf("%d %v %s", code, header, body)
	}
	if code := c.stop(); code != 0 || !strings.Contains(c.said.String(), "ollama stopped") {
		t.Errorf("exit %d\n%s", code, c.said)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+ollama, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Error("Ollama outlives the container")
	}
}
