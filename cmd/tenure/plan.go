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
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/residency/sim"
	"tenure/routing"
	"tenure/routing/task"

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
	b := sim.Batch{Budget: residency.Bytes(flags.vram * float64(residency.GiB)), MaxModels: flags.maxModels}
	for _, m := range catalog.Models {
		b.Models = append(b.Models, residency.Model{
			Name: m.Name, Size: residency.Bytes((m.Memory + flags.margin) * float64(residency.GiB)), Tier: residency.Tier(m.Tier),
			Context: m.Context, Slots: max(m.Slots, 1), LoadTime: m.Load,
		})
	}
	if err := chains(catalog, flags, files, &b); err != nil {
		return err
	}
	b.Resident = settled(b)
	plan, err := sim.PlanBatch(b)
	if err != nil {
		return err
	}
	if flags.asJSON {
		return json.NewEncoder(p.stdout).Encode(plan)
	}
	return printPlan(p.stdout, b, plan)
}

// settled is what is resident when nobody has asked for anything yet: T0, then
// T1 as far as they fit.
func settled(b sim.Batch) (resident []string) {
	used := residency.Bytes(0)
	for _, tier := range []residency.Tier{residency.T0, residency.T1} {
		for _, m := range b.Models {
			if m.Tier == tier && used+m.Size <= b.Budget && len(resident) < b.MaxModels {
				resident = append(resident, m.Name)
				used += m.Size
			}
		}
	}
	return resident
}

// chains turns counts and files into chains of b; the lines of files keep their
// order.
func chains(catalog *routing.Catalog, flags *planFlags, files []string, b *sim.Batch) error {
	stage := func(name string) (sim.Stage, error) {
		i := slices.IndexFunc(catalog.Tasks, func(t routing.Task) bool { return t.Name == name })
		if i < 0 {
			return sim.Stage{}, usageError{fmt.Errorf("task %q is not in the catalog", name)}
		}
		t := catalog.Tasks[i]
		work := (t.Expect[0] + t.Expect[1]) / 2
		if work <= 0 {
			work = 2 * time.Second // the catalog does not tell
		}
		return sim.Stage{Model: t.Model, Work: work}, nil
	}
	for _, arg := range flags.tasks {
		name, n, err := counted("--task", arg)
		if err != nil {
			return err
		}
		s, err := stage(name)
		if err != nil {
			return err
		}
		b.Chains = append(b.Chains, sim.Chain{Name: name, Count: n, Stages: []sim.Stage{s}})
	}
	for _, arg := range flags.workflows {
		name, n, err := counted("--workflow", arg)
		if err != nil {
			return err
		}
		tasks, ok := catalog.Workflows[name]
		if !ok {
			return usageError{fmt.Errorf("workflow %q: the catalog has %s", name, strings.Join(catalog.WorkflowNames(), ", "))}
		}
		c := sim.Chain{Name: name, Count: n}
		for _, t := range tasks {
			s, err := stage(t)
			if err != nil {
				return err
			}
			c.Stages = append(c.Stages, s)
		}
		b.Chains = append(b.Chains, c)
	}
	lines := map[string]int{} // chain of each task found in files
	var order []int
	router := routing.NewRouter(catalog, proxy.ShortName)
	for _, name := range files {
		err := eachLine(name, func(n int, line []byte) error {
			d, err := routeLine(router, line)
			if err != nil {
				return usageError{fmt.Errorf("%s:%d: %w", name, n, err)}
			}
			// A model asked for by its own name may be none of the tasks'.
			key := d.Task
			model := d.Candidates[0].Name
			s, err := stage(d.Task)
			if err != nil || s.Model != model {
				key, s = model, sim.Stage{Model: model, Work: 2 * time.Second}
			}
			i, ok := lines[key]
			if !ok {
				i = len(b.Chains)
				lines[key] = i
				b.Chains = append(b.Chains, sim.Chain{Name: key, Stages: []sim.Stage{s}})
			}
			b.Chains[i].Count++
			order = append(order, i)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(flags.tasks)+len(flags.workflows) == 0 {
		b.Order = order
	}
	return nil
}

func counted(flag, arg string) (name string, n int, err error) {
	name, count, _ := strings.Cut(arg, "=")
	n, err = strconv.Atoi(count)
	if err != nil || n < 1 || n > 1_000_000 {
		return "", 0, usageError{fmt.Errorf("%s %s: want NAME=COUNT, as resume_parsing=300", flag, arg)}
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

// routeLine decides a line of an OpenAI batch file as the server would.
func routeLine(router *routing.Router, line []byte) (routing.Decision, error) {
	var l struct {
		Body json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return routing.Decision{}, errors.New("not a JSON object")
	}
	if len(l.Body) == 0 {
		return routing.Decision{}, errors.New("no body")
	}
	chat, err := wire.DecodeChat(l.Body, wire.Limits{})
	if err != nil {
		return routing.Decision{}, err
	}
	q := routing.Request{Model: chat.Model, Input: task.Input{Tools: chat.ToolKeys(), SchemaKeys: chat.SchemaKeys(), JSON: chat.WantsJSON()}}
	for _, m := range chat.Messages {
		q.Messages = append(q.Messages, task.Message{Role: m.Role, Text: m.Text})
	}
	return router.Route(q)
}

func printPlan(w io.Writer, b sim.Batch, plan sim.Plan) error {
	items := 0
	for _, c := range b.Chains {
		items += c.Count
	}
	round := func(d time.Duration) time.Duration { return d.Round(time.Second) }
	fmt.Fprintf(w, "Simulated with the catalog's expected times; %d rules tried.\n\n", plan.Tried)
	fmt.Fprintf(w, "keep open    %d of %d (%s)\n", plan.Window, items, plan.Rule)
	fmt.Fprintf(w, "takes        %v\n", round(plan.Makespan))
	fmt.Fprintf(w, "certificate  no schedule takes less than %v: this one is within %.1f %%\n", round(plan.LowerBound), 100*(plan.Gap-1))
	fmt.Fprintf(w, "loads        %d (no schedule needs fewer than %d)\n\n", plan.Loads, plan.MinLoads)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "WORK\tCOUNT\tFIRST DONE\tMEDIAN\tLAST")
	for _, c := range plan.Chains {
		fmt.Fprintf(t, "%s\t%d\t%v\t%v\t%v\n", c.Name, c.Count, round(c.First), round(c.Median), round(c.Last))
	}
	fmt.Fprintln(t, "\nSWAP AT\tLOAD\tUNLOAD")
	const most = 20
	for i, m := range plan.Moves {
		if i == most {
			fmt.Fprintf(t, "\tand %d more\t\n", len(plan.Moves)-most)
			break
		}
		fmt.Fprintf(t, "%v\t%s\t%s\n", round(m.At), m.Load, or(strings.Join(m.Unload, ", "), "-"))
	}
	return t.Flush()
}
