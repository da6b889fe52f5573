package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"tenure/proxy"
	"tenure/proxy/ollama"
	"tenure/residency"
	"tenure/routing"

	"github.com/spf13/cobra"
)

type planFlags struct {
	tasks, workflows []string
	vram             float64
	margin           float64
	maxModels        int
	contexts, slots  []int
	asJSON           bool
}

func (p *program) planCmd() *cobra.Command {
	var flags planFlags
	cmd := &cobra.Command{
		Use:   "plan [batch.jsonl ...]",
		Short: "Tell which models fit together, or how a batch is best run and how long it takes",
		Long: `Without work, tell for each choice of context and slots which models stay in GPU
memory together and whether any swap remains. Sizes are what a running tenure
has measured, else computed from the models' shapes: as Ollama tells them, or
for the four models of the built-in catalog as published.

With a batch (OpenAI batch files, or counts of tasks and workflows), simulate it
under a portfolio of rules with the catalog's expected times, and print the best:
how many lines to keep open, the swaps, when what is done, and how far that is
from a bound that no schedule can beat.`,
		Example: `  tenure plan --vram 20 --context 4096,8192
  tenure plan lines.jsonl
  tenure plan --task resume_parsing=300 --workflow full_recruitment_pipeline=64`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			catalog, err := loadCatalog(cfg.Catalog)
			if err != nil {
				return usageError{err}
			}
			if flags.vram == 0 {
				flags.vram = cfg.Memory
			}
			if flags.maxModels == 0 {
				flags.maxModels = cfg.MaxModels
			}
			if flags.vram <= 0 || flags.margin < 0 || slices.Min(append(flags.contexts, flags.slots...)) < 1 {
				return usageError{errors.New("--vram, --context and --slots must be positive, --margin not negative")}
			}
			if len(args)+len(flags.tasks)+len(flags.workflows) == 0 {
				return p.planFits(cmd.Context(), cfg, catalog, &flags)
			}
			return p.planBatch(catalog, &flags, args)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Float64Var(&flags.vram, "vram", 0, "GiB that models may take (default MEMORY_THRESHOLD)")
	f.IntVar(&flags.maxModels, "models", 0, "resident models at once (default MAX_CONCURRENT_MODELS)")
	f.Float64Var(&flags.margin, "margin", 0, "GiB to add to every model's size")
	f.IntSliceVar(&flags.contexts, "context", []int{2048, 4096, 8192, 16384, 32768}, "tokens a slot, to try")
	f.IntSliceVar(&flags.slots, "slots", []int{1, 2, 4}, "requests in flight on a model, to try; a batch takes the catalog's")
	f.StringArrayVar(&flags.tasks, "task", nil, "a batch of so many requests, as resume_parsing=300; may be repeated")
	f.StringArrayVar(&flags.workflows, "workflow", nil, "so many runs of a workflow, as full_recruitment_pipeline=64; may be repeated")
	f.BoolVar(&flags.asJSON, "json", false, "print JSON")
	return cmd
}

// published are the shapes of the built-in catalog's models: file size, layers,
// attention heads and KV heads, dimensions of a head, and trained context, from
// their GGUF files.
func published() []residency.Facts {
	return []residency.Facts{
		{Name: "phi3:mini", Weights: 2_176_178_913, Layers: 32, Heads: 32, KVHeads: 32, HeadDim: 96, Trained: 131072},
		{Name: "deepseek-llm:7b", Weights: 4_000_473_688, Layers: 30, Heads: 32, KVHeads: 32, HeadDim: 128, Trained: 4096},
		{Name: "mistral", Weights: 4_372_824_384, Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128, Trained: 32768},
		{Name: "llama3", Weights: 4_661_224_676, Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128, Trained: 8192},
	}
}

// shapes finds what each model of the catalog is made of, and says where from.
func shapes(ctx context.Context, cfg *config, catalog *routing.Catalog) ([]residency.Facts, string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	told := askOllama(ctx, cfg, catalog)
	var facts []residency.Facts
	guessed := 0
	for _, m := range catalog.Models {
		f, ok := told[m.Name]
		if !ok {
			if i := slices.IndexFunc(published(), func(f residency.Facts) bool { return f.Name == m.Name }); i >= 0 {
				f = published()[i]
			} else {
				f = residency.Facts{Weights: residency.Bytes(m.Memory * float64(residency.GiB))}
				guessed++
			}
		}
		f.Name, f.Tier = m.Name, residency.Tier(m.Tier)
		facts = append(facts, f)
	}
	from := "computed from the models' published shapes: Ollama does not answer or has none of them"
	if len(told) > 0 {
		from = fmt.Sprintf("computed from what Ollama tells of %d of %d models", len(told), len(catalog.Models))
	}
	if guessed > 0 {
		from += fmt.Sprintf("; %d taken from the catalog, whatever the context", guessed)
	}
	return facts, from
}

func askOllama(ctx context.Context, cfg *config, catalog *routing.Catalog) map[string]residency.Facts {
	base, err := ollama.ParseHost(cfg.OllamaHost)
	if err != nil {
		return nil
	}
	client := ollama.New(base, ollama.Config{})
	defer client.Close()
	installed, err := client.Installed(ctx)
	if err != nil {
		return nil
	}
	told := map[string]residency.Facts{}
	for _, m := range installed {
		name := proxy.ShortName(m.Name)
		if !slices.ContainsFunc(catalog.Models, func(c routing.Model) bool { return c.Name == name }) {
			continue
		}
		if f, err := client.Show(ctx, m.Name); err == nil && f.Blocks > 0 && f.Heads > 0 {
			told[name] = residency.Facts{Weights: m.Size, Layers: f.Blocks, Heads: f.Heads, KVHeads: f.KVHeads, HeadDim: f.KeyLength, Trained: f.Context}
		}
	}
	return told
}

// measuredSizes are those that a running tenure has learnt.
func measuredSizes(ctx context.Context, cfg *config) func(name string, context, slots int) (residency.Bytes, bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	state, _, err := fetchState(ctx, cfg)
	if err != nil {
		return nil
	}
	return func(name string, context, slots int) (residency.Bytes, bool) {
		for _, r := range state.Residency.Residents {
			if r.Measured && r.Model.Name == name && r.Model.Context == context && max(r.Model.Slots, 1) == slots {
				return r.Size, true
			}
		}
		return 0, false
	}
}

func (p *program) planFits(ctx context.Context, cfg *config, catalog *routing.Catalog, flags *planFlags) error {
	facts, from := shapes(ctx, cfg, catalog)
	gib := func(f float64) residency.Bytes { return residency.Bytes(f * float64(residency.GiB)) }
	fits := residency.Fits(facts, gib(flags.vram), gib(flags.margin), flags.maxModels, flags.contexts, flags.slots, measuredSizes(ctx, cfg))
	if flags.asJSON {
		return json.NewEncoder(p.stdout).Encode(struct {
			VRAM   residency.Bytes `json:"vram_bytes"`
			Models []string        `json:"models"`
			From   string          `json:"sizes_from"`
			Fits   []residency.Fit `json:"fits"`
		}{gib(flags.vram), names(facts), from, fits})
	}
	fmt.Fprintf(p.stdout, "What fits in %v, at most %d models. Sizes are %s.\n\n", gib(flags.vram), flags.maxModels, from)
	t := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "SLOTS\tCONTEXT\t%s\tALL\tSTAY TOGETHER\tSWAPPED\tTOO BIG\n", strings.ToUpper(strings.Join(names(facts), "\t")))
	for _, f := range fits {
		fmt.Fprintf(t, "%d\t%d\t", f.Slots, f.Context)
		for _, b := range f.Sizes {
			fmt.Fprintf(t, "%.1f\t", float64(b)/float64(residency.GiB))
		}
		swaps := or(strings.Join(f.Swapped, ", "), "none: no swaps at all")
		if !f.All && len(f.Swapped) == 0 {
			swaps = "none"
		}
		fmt.Fprintf(t, "%.1f\t%s\t%s\t%s\n", float64(f.Total)/float64(residency.GiB), strings.Join(f.Together, ", "), swaps, or(strings.Join(f.TooBig, ", "), "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if i := slices.IndexFunc(fits, func(f residency.Fit) bool { return f.Total <= gib(flags.vram) && !f.All }); i >= 0 {
		fmt.Fprintf(p.stdout, "\nSome choices are held back by the number of models only: set MAX_CONCURRENT_MODELS=%d here and OLLAMA_MAX_LOADED_MODELS=%d at Ollama.\n", len(facts), len(facts))
	}
	return nil
}

func names(facts []residency.Facts) []string {
	list := make([]string, len(facts))
	for i, f := range facts {
		list[i] = f.Name
	}
	return list
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// planBatch plans the work named by flags and files.
func (p *program) planBatch(catalog *routing.Catalog, flags *planFlags, files []string) error {
	planner := &proxy.Planner{
		Router: routing.NewRouter(catalog, proxy.ShortName), MaxModels: flags.maxModels,
		Budget: residency.Bytes(flags.vram * float64(residency.GiB)), Margin: residency.Bytes(flags.margin * float64(residency.GiB)),
	}
	planner.Resident = settled(catalog, planner)
	for _, arg := range slices.Concat(flags.tasks, flags.workflows) {
		name, n, err := counted(arg)
		if err != nil {
			return err
		}
		if err := planner.Named(name, n); err != nil {
			return usageError{err}
		}
	}
	for _, name := range files {
		err := eachLine(name, func(n int, line []byte) error {
			if err := planner.Line(line); err != nil {
				return usageError{fmt.Errorf("%s:%d: %w", name, n, err)}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	plan, err := planner.Plan()
	if err != nil {
		return err
	}
	if flags.asJSON {
		return json.NewEncoder(p.stdout).Encode(plan)
	}
	return printPlan(p.stdout, &plan)
}

// settled is what is resident when nobody has asked for anything yet: T0, then
// T1 as far as they fit.
func settled(catalog *routing.Catalog, p *proxy.Planner) (resident []residency.Model) {
	used := residency.Bytes(0)
	for _, tier := range []residency.Tier{residency.T0, residency.T1} {
		for _, m := range catalog.Models {
			size := residency.Bytes(m.Memory * float64(residency.GiB))
			if residency.Tier(m.Tier) == tier && used+size+p.Margin <= p.Budget && len(resident) < p.MaxModels {
				used += size + p.Margin
				resident = append(resident, residency.Model{
					Name: m.Name, Size: size, Tier: tier, Context: m.Context, Slots: m.Slots, LoadTime: m.Load,
				})
			}
		}
	}
	return resident
}

func counted(arg string) (name string, n int, err error) {
	name, count, _ := strings.Cut(arg, "=")
	if n, err = strconv.Atoi(count); err != nil {
		return "", 0, usageError{fmt.Errorf("%s: want NAME=COUNT, as resume_parsing=300", arg)}
	}
	return name, n, nil
}

// eachLine reads a batch file; "-" is standard input.
func eachLine(name string, each func(n int, line []byte) error) error {
	in := io.ReadCloser(os.Stdin)
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		in = file
	}
	defer in.Close()
	r := bufio.NewReaderSize(in, 1<<20)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			if err := each(n, line); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

func printPlan(w io.Writer, plan *proxy.BatchPlan) error {
	round := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)).Round(time.Second) }
	fmt.Fprintf(w, "Simulated with the catalog's expected times; %d rules tried.\n\n", plan.Tried)
	fmt.Fprintf(w, "strategy     %s: the models take %.1f GiB together, there are %.1f\n", plan.Strategy, plan.Memory, plan.Budget)
	fmt.Fprintf(w, "keep open    %d of %d (%s)\n", plan.Batch, plan.Requests, plan.Rule)
	fmt.Fprintf(w, "takes        %v\n", round(plan.Seconds))
	fmt.Fprintf(w, "certificate  no schedule takes less than %v: this one is within %.1f %%\n", round(plan.Bound), 100*(plan.Gap-1))
	fmt.Fprintf(w, "loads        %d (no schedule needs fewer than %d)\n\n", plan.Loads, plan.MinLoads)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "WORK\tCOUNT\tFIRST DONE\tMEDIAN\tLAST")
	for _, c := range plan.Work {
		fmt.Fprintf(t, "%s\t%d\t%v\t%v\t%v\n", c.Name, c.Count, round(c.First), round(c.Median), round(c.Last))
	}
	fmt.Fprintln(t, "\nSWAP AT\tLOAD\tUNLOAD")
	const most = 20
	for i, m := range plan.Order {
		if i == most {
			fmt.Fprintf(t, "\tand %d more\t\n", len(plan.Order)-most)
			break
		}
		fmt.Fprintf(t, "%v\t%s\t%s\n", round(m.At), m.Load, or(strings.Join(m.Unload, ", "), "-"))
	}
	return t.Flush()
}
