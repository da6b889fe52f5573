// Package spawn runs the program tenure for tests and measurements.
package spawn

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"time"
)

// Process is a running `tenure serve`.
type Process struct {
	API, Admin string // base URLs
	Pid        int

	cmd  *exec.Cmd
	done chan struct{} // closed once err is known
	err  error
}

// Tenure starts a binary with settings of the form NAME=value and nothing else
// in its environment, on free ports of the loopback interface. What it says on
// standard error goes to log. It returns once the program listens; Stop or
// Kill must follow.
func Tenure(binary string, log *os.File, settings ...string) (*Process, error) {
	cmd := exec.Command(binary, "serve") //nolint:noctx // Stop and Kill end it
	cmd.Env = append([]string{"TENURE_LISTEN=127.0.0.1:0", "TENURE_ADMIN_LISTEN=127.0.0.1:0"}, settings...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for who started it
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{Pid: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
	address := regexp.MustCompile(`^(API|Admin) +(http://[^/ ]+)`)
	lines := bufio.NewScanner(out)
	for (p.API == "" || p.Admin == "") && lines.Scan() {
		switch m := address.FindStringSubmatch(lines.Text()); {
		case m == nil:
		case m[1] == "API":
			p.API = m[2]
		default:
			p.Admin = m[2]
		}
	}
	go func() {
		_, _ = io.Copy(io.Discard, out) // ends with the process
		p.err = cmd.Wait()
		close(p.done)
	}()
	if p.API == "" || p.Admin == "" {
		return nil, errors.Join(errors.New("tenure did not say where it listens"), p.Kill())
	}
	return p, nil
}

// Exited is closed when the program has ended; Err tells how.
func (p *Process) Exited() <-chan struct{} { return p.done }

// Err is how the program ended, once it has.
func (p *Process) Err() error { return p.err }

// Terminate asks the program to stop, as a service manager does.
func (p *Process) Terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// Stop terminates the program and waits until it has ended: it has grace to
// finish what is under way.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Terminate(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(grace):
		return errors.Join(errors.New("tenure did not stop in time"), p.Kill())
	}
}

// Kill ends the program at once. It is no error if it has ended.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
