// Command bench measures what the hop through tenure costs, beside what people
// would use instead, in one run on one machine: direct, nginx (when it is
// installed), a plain httputil.ReverseProxy, and tenure (miss, hit, shared,
// routed by recruit-auto). The upstream is a mock in a process of its own that
// speaks both OpenAI's and Ollama's side and answers at once, so that all time
// is the hop's.
//
//	go run ./proxy/bench -tenure bin/tenure
//	go run ./proxy/bench -tenure bin/tenure -soak
//
// Ratios decide: machines are shared and noisy. The targets take turns, request
// by request and in an order drawn for each round, so that noise, and what the
// one before has left of the caches, meet all of them alike; what is added by a
// hop is its quantile less that of the direct way. With -soak it measures what
// tenure holds instead: memory and goroutines, at rest, with a thousand open
// streams and over a million requests.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
)

type options struct {
	tenure   string
	json     string
	requests int
	seconds  float64
	soak     bool
	open     int
	total    int
}

func main() {
	var o options
	var role, upstream, answer string
	flag.StringVar(&role, "role", "", "internal: mock, reverse or gin")
	flag.StringVar(&answer, "answer", "", "internal: the file that the gin handler answers with")
	flag.StringVar(&upstream, "upstream", "", "internal: where the reverse proxy forwards to")
	flag.StringVar(&o.tenure, "tenure", "bin/tenure", "the binary to measure")
	flag.StringVar(&o.json, "json", "", "write the figures to this file, too")
	flag.IntVar(&o.requests, "n", 1500, "requests for each latency figure; a third of that many streams")
	flag.Float64Var(&o.seconds, "t", 3, "seconds for each throughput figure")
	flag.BoolVar(&o.soak, "soak", false, "measure memory and goroutines instead: at rest, with open streams, over many requests")
	flag.IntVar(&o.open, "open", 1000, "streams that are open at once (-soak)")
	flag.IntVar(&o.total, "total", 1_000_000, "requests of the long run (-soak)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch role {
	case "mock":
		err = serveMock(ctx, os.Stdout)
	case "reverse":
		err = serveReverse(ctx, os.Stdout, upstream)
	case "gin":
		err = serveGin(ctx, os.Stdout, answer)
	default:
		measure := run
		if o.soak {
			measure = soak
		}
		err = measure(ctx, o, os.Stdout)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		slog.Error("bench failed", "err", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func run(ctx context.Context, o options, w io.Writer) error {
	f, err := startField(ctx, o.tenure)
	if err != nil {
		return err
	}
	defer f.stop()
	r := &report{Machine: machine()}
	steps := []func(context.Context, options, *field, *report) error{latencies, streams, throughput, footprint}
	for _, step := range steps {
		if err := step(ctx, o, f, r); err != nil {
			return err
		}
		fmt.Fprint(os.Stderr, ".") // it takes some minutes
	}
	fmt.Fprintln(os.Stderr)
	r.Figures = r.figures()
	r.print(w)
	if o.json == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(data, '\n'), 0o600)
}
