package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"tenure/proxy/ollama"
	"tenure/residency"

	"golang.org/x/sys/unix"
)

// card stands in for the memory of a card. On a CPU Ollama makes room for a
// model that does not fit into what is free of its control group: memory.max
// less memory.current. The latter is a pipe here, so that it is right at the
// moment at which it is read: the sizes of the models that Ollama lists.
type card struct {
	dir  string
	size residency.Bytes
	done sync.WaitGroup
	stop chan struct{}
	err  error // of serve, once it is done

	mu     sync.Mutex
	ollama *ollama.Client
}

const (
	cardMax     = "memory.max"
	cardCurrent = "memory.current"
)

func newCard(dir string, size residency.Bytes) (*card, error) {
	c := &card{dir: dir, size: size, stop: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, cardMax), fmt.Appendln(nil, uint64(size)), 0o600); err != nil {
		return nil, err
	}
	if err := syscall.Mkfifo(filepath.Join(dir, cardCurrent), 0o600); err != nil {
		return nil, err
	}
	c.done.Go(c.serve)
	return c, nil
}

// holds tells whose models are on the card.
func (c *card) holds(o *ollama.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ollama = o
}

func (c *card) serve() {
	for {
		pipe, err := os.OpenFile(filepath.Join(c.dir, cardCurrent), os.O_WRONLY, 0) // waits for a reader
		select {
		case <-c.stop:
			_ = pipe.Close() // nobody reads
			return
		default:
		}
		if err != nil {
			c.err = errors.Join(c.err, err) // whoever reads waits, and the run fails by its time
			return
		}
		c.err = errors.Join(c.err, c.tell(pipe), pipe.Close())
	}
}

// tell returns when the reader has left, so that the next one is told anew.
func (c *card) tell(pipe *os.File) error {
	used, err := c.used()
	if _, writeErr := fmt.Fprintln(pipe, uint64(used)); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	for {
		_, pollErr := unix.Poll([]unix.PollFd{{Fd: int32(pipe.Fd())}}, -1)
		if !errors.Is(pollErr, unix.EINTR) {
			return errors.Join(err, pollErr)
		}
	}
}

// used is what the models take; nothing before Ollama answers.
func (c *card) used() (sum residency.Bytes, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ollama == nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	models, err := c.ollama.Running(ctx)
	if err != nil {
		return 0, err
	}
	for _, m := range models {
		sum += m.Size
	}
	return sum, nil
}

// close returns what went wrong meanwhile, too: Ollama was told a wrong figure.
func (c *card) close() error {
	close(c.stop)
	reader, err := os.OpenFile(filepath.Join(c.dir, cardCurrent), os.O_RDONLY|syscall.O_NONBLOCK, 0) // lets serve go on
	if err != nil {
		return err
	}
	c.done.Wait()
	return errors.Join(c.err, reader.Close(), os.RemoveAll(c.dir))
}
