package ollamatest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
)

// Config adjusts a server.
type Config struct {
	Log string   // file for its log, appended to
	Env []string // settings beside and above those that tenure asks for
	// CPUs are the cores that the server and its runners may use, as taskset
	// names them; "" means all.
	CPUs string
	// Cgroup is a folder that the server sees as /sys/fs/cgroup, where it reads
	// how much memory it has; "" means the real one. It takes a Linux that lets
	// its users have namespaces.
	Cgroup string
}

// Server is a running Ollama. Its methods are not for concurrent use.
type Server struct {
	bin    string
	cpus   string
	cgroup string
	addr   string
	log    string
	env    []string
	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has ended
}

// Start runs a server with the models of Prepare on a free port of the
// loopback interface, with the settings that tenure asks for: three models at
// once, kept for ever, one request each. It returns once the server answers.
func Start(ctx context.Context, root string, cfg Config) (*Server, error) {
	models, err := Prepare(ctx, root)
	if err != nil {
		return nil, err
	}
	return start(ctx, root, cfg, models)
}

func start(ctx context.Context, root string, cfg Config, models string) (*Server, error) {
	bin, err := server(root)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	s := &Server{bin: bin, cpus: cfg.CPUs, cgroup: cfg.Cgroup, addr: addr, log: cfg.Log, env: append([]string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + filepath.Join(cache(root), "home"), // it keeps a key there
		"OLLAMA_HOST=" + addr,
		"OLLAMA_MODELS=" + models,
		"OLLAMA_MAX_LOADED_MODELS=3",
		"OLLAMA_NUM_PARALLEL=1",
		"OLLAMA_KEEP_ALIVE=-1",
		"OLLAMA_CONTEXT_LENGTH=4096",
		"OLLAMA_NO_CLOUD=1",
		"OLLAMA_DEBUG=1", // Moves reads what it logs
	}, cfg.Env...)}
	return s, s.Restart(ctx)
}

// URL is where the server listens, across restarts.
func (s *Server) URL() *url.URL { return &url.URL{Scheme: "http", Host: s.addr} }

// Restart starts the server again, on the same port, and waits until it answers.
func (s *Server) Restart(ctx context.Context) error {
	log, err := os.OpenFile(s.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	command := []string{s.bin, "serve"}
	if s.cpus != "" {
		command = append([]string{"taskset", "-c", s.cpus}, command...)
	}
	if s.cgroup != "" {
		command = append([]string{"unshare", "--map-root-user", "--mount", "sh", "-c", `mount --bind "$1" /sys/fs/cgroup && shift && exec "$@"`, "sh", s.cgroup}, command...)
	}
	s.cmd = exec.Command(command[0], command[1:]...) // it outlives ctx, which only bounds the start
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = s.env, log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its runners join the group
	if err := s.cmd.Start(); err != nil {
		return err
	}
	cmd, done := s.cmd, make(chan struct{})
	s.done = done
	go func() {
		_ = cmd.Wait() // killed or not, what counts is that it is gone
		close(done)
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err := answers(ctx, s.addr); err == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("ollama serve: %v, see %s", cmd.ProcessState, s.log)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), s.Kill())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func answers(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Kill ends the server and its runners at once, as a power cut would.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop ends the server as a service manager does.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

// Pause stops the server and its runners in their tracks: connections stay
// open, nothing answers. Resume lets them go on.
func (s *Server) Pause() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGCONT) }

func (s *Server) end(signal syscall.Signal) error {
	group := -s.cmd.Process.Pid
	select {
	case <-s.done:
	default:
		if err := syscall.Kill(group, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		select {
		case <-s.done:
		case <-time.After(10 * time.Second):
		}
	}
	// Whatever is left of the group: runners outlive a server that was killed.
	if err := syscall.Kill(group, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-s.done
	return nil
}

// Moves lists what the server's log says, since its first start. Models that
// died with the server left no word.
func (s *Server) Moves() ([]ollamasim.Move, error) {
	f, err := os.Open(s.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	words := map[string]ollamasim.What{
		"finished setting up":                                ollamasim.Load,
		"starting background wait for VRAM recovery":         ollamasim.Unload,
		"resetting model to expire immediately to make room": ollamasim.Evict,
	}
	line := regexp.MustCompile(`msg="([^"]+)" runner\.name=(\S+)`)
	var moves []ollamasim.Move
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m := line.FindStringSubmatch(lines.Text()); m != nil && words[m[1]] != "" {
			moves = append(moves, ollamasim.Move{What: words[m[1]], Model: ollama.Canonical(strings.Trim(m[2], `"`))})
		}
	}
	return moves, lines.Err()
}

// Runners lists the processes that hold the models.
func (s *Server) Runners() ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // the program's name may hold anything
		var state string
		var parent, pid int
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || parent != s.cmd.Process.Pid || state == "Z" {
			continue
		}
		if _, err := fmt.Sscan(string(stat), &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
