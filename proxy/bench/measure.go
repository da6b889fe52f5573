package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// contestant is one way to get an answer.
type contestant struct {
	name string
	base string
	pid  int
	ask  func(size int) []byte // the next request's body
}

// counter numbers questions that nobody asked before.
type counter struct{ n atomic.Int64 }

func (c *counter) next() string { return "question " + strconv.FormatInt(c.n.Add(1), 10) }

func (f *field) contestants() []contestant {
	var fresh counter
	plain := func(model string) func(int) []byte {
		return func(size int) []byte { return body(size, model, fresh.next(), false) }
	}
	list := []contestant{{"direct", f.mock.base, f.mock.cmd.Process.Pid, plain("m")}}
	if f.nginx != nil {
		list = append(list, contestant{"nginx", f.nginx.base, nginxWorker(f.nginx.cmd.Process.Pid), plain("m")})
	}
	return append(list,
		contestant{reverseProxy, f.reverse.base, f.reverse.cmd.Process.Pid, plain("m")},
		contestant{"tenure, miss", f.tenure.base, f.tenure.cmd.Process.Pid, plain("recruit/resume_parsing")},
		contestant{"tenure, auto", f.tenure.base, f.tenure.cmd.Process.Pid, plain("recruit-auto")},
		contestant{"tenure, hit", f.tenure.base, f.tenure.cmd.Process.Pid, hit},
		contestant{"gin handler", f.gin.base, f.gin.cmd.Process.Pid, hit},
	)
}

// reverseProxy is the name of what tenure is compared with.
const reverseProxy = "ReverseProxy"

// nginxWorker is the process that does the work.
func nginxWorker(master int) int {
	children, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(master), "task", strconv.Itoa(master), "children"))
	if err != nil {
		return master
	}
	pid, err := strconv.Atoi(strings.Fields(string(children) + " " + strconv.Itoa(master))[0])
	if err != nil {
		return master
	}
	return pid
}

// latencies asks one request at a time, the contestants in turn.
func latencies(ctx context.Context, o options, f *field, r *report) error {
	all := f.contestants()
	for _, size := range []int{200, 10 << 10, 64 << 10, 200 << 10} {
		n := o.requests
		if size > 32<<10 {
			n /= 3
		}
		took := make([][]time.Duration, len(all))
		cpu := make([]time.Duration, len(all))
		for round := range n + n/10 { // the first tenth warms up
			for _, i := range rand.Perm(len(all)) { // whom one comes after makes a difference
				c := all[i]
				question := c.ask(size)
				before := cpuOf(c.pid)
				d, err := f.ask(ctx, c.base, question, nil)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if round >= n/10 {
					took[i] = append(took[i], d)
					cpu[i] += cpuOf(c.pid) - before
				}
			}
		}
		direct := quantilesOf(took[0])
		for i, c := range all {
			q := quantilesOf(took[i])
			r.Latency = append(r.Latency, latency{
				Way: c.name, Bytes: size, Quantiles: q, Added: q.less(direct), CPU: micro(cpu[i] / time.Duration(n)),
			})
		}
	}
	return nil
}

// streams measures the time to the first token and from the mock's write of a
// chunk to the client's read of it.
func streams(ctx context.Context, o options, f *field, r *report) error {
	var fresh counter
	ways := []struct{ name, base, model string }{{"direct", f.mock.base, "m"}}
	if f.nginx != nil {
		ways = append(ways, struct{ name, base, model string }{"nginx", f.nginx.base, "m"})
	}
	ways = append(ways, []struct{ name, base, model string }{{reverseProxy, f.reverse.base, "m"}, {"tenure, miss", f.tenure.base, "recruit/resume_parsing"}}...)
	first, transit := make([][]time.Duration, len(ways)), make([][]time.Duration, len(ways))
	for round := range max(o.requests/3, 10) {
		for _, i := range rand.Perm(len(ways)) {
			way := ways[i]
			var seen bool
			start := time.Now()
			_, err := f.ask(ctx, way.base, body(10<<10, way.model, fresh.next(), true), func(p []byte) {
				now := time.Now()
				for {
					_, after, ok := bytes.Cut(p, []byte(`"content":"@`))
					if !ok {
						return
					}
					p = after
					sent, err := strconv.ParseInt(string(after[:bytes.IndexByte(after, '"')]), 10, 64)
					if err != nil || round == 0 {
						continue
					}
					if !seen {
						first[i] = append(first[i], now.Sub(start))
					}
					seen = true
					transit[i] = append(transit[i], now.Sub(time.Unix(0, sent)))
				}
			})
			// A ReverseProxy now and then cuts a stream that begins while it is
			// still looking for the end of a request whose bytes it has all sent.
			if errors.Is(err, io.ErrUnexpectedEOF) && way.name == reverseProxy {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s, stream: %w", way.name, err)
			}
		}
	}
	for i, way := range ways {
		t, c := quantilesOf(first[i]), quantilesOf(transit[i])
		r.Streams = append(r.Streams, stream{
			Way: way.name, First: t, FirstAdded: t.less(quantilesOf(first[0])), Transit: c, TransitAdded: c.less(quantilesOf(transit[0])),
		})
	}
	return nil
}

// throughput asks from several clients at once, one contestant after another.
func throughput(ctx context.Context, o options, f *field, r *report) error {
	var fresh counter
	all := append(f.contestants(), contestant{"tenure, shared", f.tenure.base, f.tenure.cmd.Process.Pid, func(size int) []byte {
		// Eight clients in a row ask the same.
		return body(size, "recruit/bias_detection", "shared "+strconv.FormatInt(fresh.n.Add(1)/8, 10), false)
	}})
	for _, clients := range []int{16, 64} {
		for _, c := range all {
			var done atomic.Int64
			var failed atomic.Pointer[error]
			deadline := time.Now().Add(time.Duration(o.seconds * float64(time.Second)))
			took := make([][]time.Duration, clients)
			before, from := cpuOf(c.pid), time.Now()
			var wg sync.WaitGroup
			for i := range clients {
				wg.Go(func() {
					for time.Now().Before(deadline) && ctx.Err() == nil {
						d, err := f.ask(ctx, c.base, c.ask(10<<10), nil)
						if err != nil {
							failed.Store(&err)
							return
						}
						took[i] = append(took[i], d)
						done.Add(1)
					}
				})
			}
			wg.Wait()
			if err := failed.Load(); err != nil {
				return fmt.Errorf("%s, %d clients: %w", c.name, clients, *err)
			}
			n := done.Load()
			r.Throughput = append(r.Throughput, rate{
				Way: c.name, Clients: clients, PerSecond: float64(n) / time.Since(from).Seconds(),
				Quantiles: quantilesOf(slices.Concat(took...)), CPU: micro((cpuOf(c.pid) - before) / time.Duration(max(n, 1))),
			})
		}
	}
	return nil
}

// footprint reads the memory after all that.
func footprint(_ context.Context, _ options, f *field, r *report) error {
	for name, p := range map[string]*process{"nginx": f.nginx, reverseProxy: f.reverse, "tenure": f.tenure} {
		if p == nil {
			continue
		}
		rss, err := rssOf(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		r.Memory = append(r.Memory, memory{Way: name, MiB: rss})
	}
	slices.SortFunc(r.Memory, func(a, b memory) int { return strings.Compare(a.Way, b.Way) })
	return nil
}

// cpuOf is the processor time a process has used. The kernel's own count in
// nanoseconds, where it has one; ticks are too coarse for one request.
func cpuOf(pid int) (total time.Duration) {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "schedstat"))
	if err != nil {
		return 0
	}
	for _, t := range tasks {
		data, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		if fields := strings.Fields(string(data)); len(fields) > 0 {
			if ns, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				total += time.Duration(ns)
			}
		}
	}
	return total
}

func machine() string {
	name := "unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				name = strings.TrimSpace(v)
			}
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return name
	}
	return name + ", load " + strings.Fields(string(load))[0]
}
