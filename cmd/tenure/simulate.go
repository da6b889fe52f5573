package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"tenure/residency/sim"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (p *program) simulateCmd() *cobra.Command {
	var s sim.Setup
	var policies []string
	var wait, plot string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Compare residency policies, Ollama's and llama-swap's among them, on a virtual clock",
		Long: `Play a workload through scheduling policies on a virtual clock and compare what
they make of it: the very code that schedules in production beside models of
Ollama's and llama-swap's schedulers, re-implemented from reading their sources.
Every figure is simulated: nothing is measured on a GPU.

Workloads:
  poisson      independent requests, loading the GPU to --rho
  gamma        the same in bursts: gaps with a coefficient of variation of --cv
  pipeline     --clients take candidates through the five tasks, one after another
  batch        --requests lines in file order, --window of them open at a time;
               with --rho, interactive requests beside them
  starvation   two models kept busy for an hour, a third asked for now and then
  alternating  two clients in turn, with room for one of their models
  loyal        a client for each of the four models, asking again at once

Waits are from arrival to the start of service, of interactive requests where
there are any. "of bound" is the makespan over one that no schedule can beat.`,
		Example: `  tenure simulate --rho 0.7
  tenure simulate --workload starvation --policy ollama,carp
  tenure simulate --workload batch --rho 0.3 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if s.MaxWait, err = seconds(wait); err != nil {
				return usageError{fmt.Errorf("--t-max: %w", err)}
			}
			for _, name := range policies {
				if !slices.Contains(sim.Policies(), name) {
					return usageError{fmt.Errorf("--policy %s: want one of %s", name, strings.Join(sim.Policies(), ", "))}
				}
			}
			if err := s.WithDefaults().Check(); err != nil {
				return usageError{err}
			}
			results, err := p.simulate(cmd.Context(), s, policies)
			if err != nil {
				return err
			}
			if plot != "" {
				if err := writePlot(plot, s, results); err != nil {
					return err
				}
			}
			if asJSON {
				enc := json.NewEncoder(p.stdout)
				for _, r := range results {
					if err := enc.Encode(r); err != nil {
						return err
					}
				}
				return nil
			}
			return printResults(p.stdout, s.WithDefaults(), results)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&s.Workload, "workload", "poisson", "poisson, gamma, pipeline, batch, starvation, alternating or loyal")
	f.StringVar(&s.Mix, "mix", "pipeline", "shares of the tasks: pipeline (a fifth each) or t1 (mostly parsing and bias detection)")
	f.Float64Var(&s.Rho, "rho", 0, "load of the GPU by independent requests, 1 is all it can do (default 0.7, beside a batch 0)")
	f.Float64Var(&s.CV, "cv", 4, "coefficient of variation of the gaps, for gamma")
	f.IntVar(&s.Requests, "requests", 0, "how many (default 6000; batch 1000, pipeline 320, loyal 560, alternating 40)")
	f.IntVar(&s.Clients, "clients", 1, "clients of a pipeline")
	f.IntVar(&s.Window, "window", 64, "lines a batch client keeps open")
	f.IntVar(&s.Slots, "slots", 2, "requests in flight on a model")
	f.StringVar(&wait, "t-max", "60", "seconds after which a waiting request goes first")
	f.Uint64Var(&s.Seed, "seed", 1, "of the random numbers: equal seeds meet every policy with equal requests")
	f.StringSliceVar(&policies, "policy", sim.Policies(), "policies to compare")
	f.StringVar(&s.Preset, "preset", "latency", "of carp: latency, balanced or economy")
	f.BoolVar(&s.Hints, "hints", false, "pipeline clients declare their workflow, so that carp prefetches")
	f.Float64Var(&s.ServiceScale, "service-scale", 1, "falsify what carp has learnt of service times by this factor")
	f.Float64Var(&s.LoadScale, "load-scale", 1, "and of load times")
	f.BoolVar(&asJSON, "json", false, "print one JSON object a policy")
	f.StringVar(&plot, "plot", "", "draw the tails of the waits into this SVG file")
	return cmd
}

// seconds reads a number of seconds, or a duration such as 1m30s.
func seconds(s string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(s, 64); err == nil && n > 0 && n < 1e6 {
		return time.Duration(n * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q: want seconds or a duration such as 1m30s", s)
	}
	return d, nil
}

// simulate plays the setup through each policy, telling a person at a terminal
// how far it is.
func (p *program) simulate(ctx context.Context, s sim.Setup, policies []string) ([]sim.Result, error) {
	file, ok := p.stderr.(*os.File)
	watched := ok && term.IsTerminal(int(file.Fd()))
	var results []sim.Result
	for _, name := range policies {
		start, told := time.Now(), false
		s.Progress = func(done int) bool {
			if watched && time.Since(start) > time.Second {
				told = true
				fmt.Fprintf(p.stderr, "\r%s: %d requests served", name, done)
			}
			return ctx.Err() == nil
		}
		r, err := sim.Run(s, name)
		if told {
			fmt.Fprint(p.stderr, "\r\033[K")
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

func writePlot(name string, s sim.Setup, results []sim.Result) error {
	file, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("--plot: %w", err)
	}
	s = s.WithDefaults()
	err = sim.Plot(file, fmt.Sprintf("%s, rho %g, %d requests, seed %d", s.Workload, s.Rho, s.Requests, s.Seed), results)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

func printResults(w io.Writer, s sim.Setup, results []sim.Result) error {
	fmt.Fprintf(w, "Simulated, not measured: %s, seed %d, %d slots, T_max %v\n", describe(s), s.Seed, s.Slots, s.MaxWait)
	fmt.Fprintln(w, "Waits and responses in seconds.")
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "policy\tmean\tp50\tp95\tp99\tmax wait\tresponse\tloads\texposed\tmakespan\ttasks/h\tof bound\tT0 evicted\tovercommits\t")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%.2f\t%.1f\t%.1f\t%.1f\t%.0f\t%.2f\t%d\t%.0f\t%.0f\t%.0f\t%.3f\t%d\t%d\t\n", r.Policy, r.MeanWait, r.P50Wait, r.P95Wait, r.P99Wait, r.MaxWait,
			r.MeanResponse, r.Loads, r.ExposedLoad, r.Makespan, r.TasksPerHour, r.LowerBound, r.T0Evictions, r.Overcommits)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if s.Workload == "batch" && s.Rho > 0 {
		fmt.Fprintln(w, "\nThe waits are those of the interactive requests. The batch beside them:")
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "policy\tmakespan\tmax wait\t")
		for _, r := range results {
			fmt.Fprintf(t, "%s\t%.0f\t%.0f\t\n", r.Policy, r.BatchMakespan, r.BatchMaxWait)
		}
		return t.Flush()
	}
	return nil
}

func describe(s sim.Setup) string {
	switch s.Workload {
	case "batch":
		if s.Rho > 0 {
			return fmt.Sprintf("a batch of %d lines, window %d, beside interactive requests at rho %g", s.Requests, s.Window, s.Rho)
		}
		return fmt.Sprintf("a batch of %d lines, window %d", s.Requests, s.Window)
	case "pipeline":
		return fmt.Sprintf("%d candidates through five tasks, %d clients", s.Requests/5, s.Clients)
	case "gamma":
		return fmt.Sprintf("%d requests in bursts (cv %g) at rho %g, mix %s", s.Requests, s.CV, s.Rho, s.Mix)
	case "poisson":
		return fmt.Sprintf("%d independent requests at rho %g, mix %s", s.Requests, s.Rho, s.Mix)
	}
	return s.Workload
}
