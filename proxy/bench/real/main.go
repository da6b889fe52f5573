// Command real plays the same requests to a real Ollama twice, straight
// and through tenure, and compares what became of them: loads, evictions,
// waits, makespan. The Ollama is the one of the end-to-end tests: the pinned
// server with generated models, on the CPU. Seats are counted, but in the
// scenarios that say bytes: they take a Linux that lets its users have namespaces.
//
//	.ci/ollama && go run ./proxy/bench/real -tenure bin/tenure
//
// With -soak it plays mixed traffic through tenure instead, with restarts of
// Ollama, and checks that nothing was lost, leaked or evicted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

type options struct {
	tenure string
	only   string
	logs   string
	cpus   string
	short  bool
	rounds int
	seed   uint64
	soak   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.tenure, "tenure", "bin/tenure", "the binary to measure")
	flag.StringVar(&o.only, "only", "", "scenarios to play, by name, separated by commas; all without it")
	flag.StringVar(&o.logs, "logs", "", "keep the logs of Ollama and tenure in this folder")
	flag.StringVar(&o.cpus, "cpus", "0", "cores that Ollama may use (taskset): one, so that its models share it as they would share a GPU; empty: all")
	flag.BoolVar(&o.short, "short", false, "one round of a quarter of the requests, to see that it runs")
	flag.IntVar(&o.rounds, "rounds", 3, "times that each way plays a scenario, in turns; medians are shown")
	flag.Uint64Var(&o.seed, "seed", 11, "of the first round's requests, one more each round; equal for both ways")
	flag.DurationVar(&o.soak, "soak", 0, "soak for this long instead")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if o.soak > 0 {
		err = soak(ctx, o, os.Stdout)
	} else {
		err = run(ctx, o, os.Stdout)
	}
	if err != nil {
		slog.Error("failed", "err", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func run(ctx context.Context, o options, w io.Writer) (err error) {
	all := scenarios(o.short)
	if o.only != "" {
		names := strings.Split(o.only, ",")
		all = slices.DeleteFunc(all, func(s scenario) bool { return !slices.Contains(names, s.name) })
	}
	if len(all) == 0 {
		return fmt.Errorf("-only %s names no scenario", o.only)
	}
	if o.short {
		o.rounds = 1
	}
	g, err := newGround(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	results := make([]map[string][]outcome, len(all))
	for i, s := range all {
		results[i] = map[string][]outcome{}
		for round := range o.rounds {
			g.seed = o.seed + uint64(round) // one list of requests is one throw of the dice
			order := s.ways()
			if round%2 == 1 {
				slices.Reverse(order) // whatever changes with time meets both alike
			}
			for _, way := range order {
				fmt.Fprintf(os.Stderr, "%s, round %d of %d, %s\n", s.name, round+1, o.rounds, way)
				out, err := g.play(ctx, s, way)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, way, err)
				}
				results[i][way] = append(results[i][way], out)
			}
		}
	}
	report(w, o, all, results)
	return nil
}
