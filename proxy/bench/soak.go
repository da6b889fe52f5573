package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// soak measures what tenure holds: at rest, with many open streams, and over a
// long run of requests, half of them hits.
func soak(ctx context.Context, o options, w io.Writer) error {
	f, err := startPair(ctx, o.tenure)
	if err != nil {
		return err
	}
	defer f.stop()
	r := &soakReport{Machine: machine()}
	if err := f.wait(ctx, 5*time.Second); err != nil { // start and load are over
		return err
	}
	if r.Idle, err = f.look(ctx, "idle"); err != nil {
		return err
	}
	if r.Open, err = f.openStreams(ctx, o.open); err != nil {
		return err
	}
	if err := f.wait(ctx, 2*time.Second); err != nil {
		return err
	}
	after, err := f.look(ctx, "streams closed")
	if err != nil {
		return err
	}
	r.Run = append(r.Run, after)
	if err := f.run(ctx, o.total, r); err != nil {
		return err
	}
	r.print(w)
	return nil
}

// holding is what a process holds at one moment.
type holding struct {
	when       string
	rss        float64 // MiB
	heap       float64 // MiB in use, garbage included
	goroutines int
}

type soakReport struct {
	Machine    string
	Idle, Open holding
	Run        []holding // after the streams, then ten times on the way
	Took       time.Duration
}

// look reads tenure's figures.
func (f *field) look(ctx context.Context, when string) (holding, error) {
	h := holding{when: when}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.admin+"/metrics", nil)
	if err != nil {
		return h, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return h, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue // a comment
		}
		switch name {
		case "go_goroutines":
			h.goroutines = int(v)
		case "go_memstats_heap_inuse_bytes":
			h.heap = v / (1 << 20)
		}
	}
	h.rss, err = rssOf(f.tenure.cmd.Process.Pid)
	return h, err
}

func (f *field) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// openStreams looks while n streams are open, each having had its first event.
func (f *field) openStreams(ctx context.Context, n int) (holding, error) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	speaking := make(chan error, n)
	for i := range n {
		question := []byte(`{"model":"recruit/resume_parsing","stream":true,"temperature":` + strconv.FormatFloat(heldTemperature, 'f', -1, 64) +
			`,"messages":[{"role":"user","content":"stream ` + strconv.Itoa(i) + strings.Repeat(" of a long answer", 60) + `"}]}`)
		go func() {
			told := false
			_, err := f.ask(ctx, f.tenure.base, question, func([]byte) {
				if !told {
					speaking <- nil
					told = true
				}
			})
			if !told {
				speaking <- err
			}
		}()
	}
	for i := range n {
		select {
		case err := <-speaking:
			if err != nil {
				return holding{}, fmt.Errorf("stream %d of %d: %w", i, n, err)
			}
		case <-time.After(time.Minute):
			return holding{}, fmt.Errorf("%d of %d streams had an event in a minute", i, n)
		}
	}
	if err := f.wait(ctx, 3*time.Second); err != nil { // some chunks more
		return holding{}, err
	}
	return f.look(ctx, fmt.Sprintf("%d open streams", n))
}

// run asks total requests: every other one was asked before.
func (f *field) run(ctx context.Context, total int, r *soakReport) error {
	const clients, parts = 16, 10
	start := time.Now()
	var fresh counter
	for part := range parts {
		var left, failed atomic.Int64
		left.Store(int64(total / parts))
		var why atomic.Pointer[error]
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for n := left.Add(-1); n >= 0 && ctx.Err() == nil; n = left.Add(-1) {
					question := "the same question"
					if n%2 == 0 {
						question = fresh.next()
					}
					if _, err := f.ask(ctx, f.tenure.base, body(1<<10, "recruit/resume_parsing", question, n%5 == 0), nil); err != nil {
						failed.Add(1)
						why.Store(&err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := why.Load(); err != nil {
			return fmt.Errorf("%d clients failed: %w", failed.Load(), *err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.client.CloseIdleConnections()
		if err := f.wait(ctx, time.Second); err != nil {
			return err
		}
		h, err := f.look(ctx, fmt.Sprintf("%d requests", (part+1)*(total/parts)))
		if err != nil {
			return err
		}
		r.Run = append(r.Run, h)
		fmt.Fprintf(os.Stderr, "%s: %.1f MiB\n", h.when, h.rss) // it takes some minutes
	}
	r.Took = time.Since(start)
	return nil
}

func (r *soakReport) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	// The store is full, and its garbage with it, after a fifth of a million.
	early, last := r.Run[len(r.Run)-9], r.Run[len(r.Run)-1]
	fmt.Fprintf(t, "%s\n\n| figure\t| value\t| aim\t|\n|---|---|---|\n", r.Machine)
	fmt.Fprintf(t, "| idle, RSS MiB\t| %.1f\t| 40\t|\n", r.Idle.rss)
	fmt.Fprintf(t, "| %s, RSS MiB\t| %.1f\t| 150\t|\n", r.Open.when, r.Open.rss)
	fmt.Fprintf(t, "| RSS after %s, to that after %s\t| %.2f\t| 1.1\t|\n", last.when, early.when, last.rss/early.rss)
	fmt.Fprintf(t, "| goroutines after %s, beyond those after %s\t| %d\t| 8\t|\n", last.when, early.when, last.goroutines-early.goroutines)
	fmt.Fprintf(t, "\n| when\t| RSS MiB\t| heap in use MiB\t| goroutines\t|\n|---|---|---|---|\n")
	for _, h := range append([]holding{r.Idle, r.Open}, r.Run...) {
		fmt.Fprintf(t, "| %s\t| %.1f\t| %.1f\t| %d\t|\n", h.when, h.rss, h.heap, h.goroutines)
	}
	fmt.Fprintf(t, "\nThe requests took %s.\n", r.Took.Round(time.Second))
	_ = t.Flush() // as with every table
}

// rssOf is the memory of a process, in MiB.
func rssOf(pid int) (float64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.Atoi(fields[1])
			return float64(kib) / 1024, err
		}
	}
	return 0, errors.New("the kernel tells no VmRSS")
}
