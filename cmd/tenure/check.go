package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"tenure/proxy"
	"tenure/proxy/ollama"
	"tenure/residency"
	"tenure/residency/gpu"
	"tenure/routing"

	"github.com/spf13/cobra"
)

// Exit codes of check.
const (
	errWarnings exitError = 3
	errErrors   exitError = 4
)

func (p *program) checkCmd() *cobra.Command {
	var asJSON, probe bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell whether this Ollama can be managed",
		Long: `Look at the Ollama of OLLAMA_HOST and at this machine's GPU, and tell on one page
what tenure needs and what is in its way. Nothing is changed.

--probe finds out what Ollama does not tell, OLLAMA_MAX_LOADED_MODELS and
OLLAMA_NUM_PARALLEL: it loads models of the catalog, with small contexts, and
unloads them again. It is refused while a tenure serves this Ollama, and while
any model is resident.

The exit code is 0 when all is well or there are only notes, 3 with warnings,
4 with errors.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.loadConfig()
			if err != nil {
				return err
			}
			r, err := p.check(cmd.Context(), cfg, probe)
			if err != nil {
				return err
			}
			if asJSON {
				out := json.NewEncoder(p.stdout)
				out.SetIndent("", "  ")
				if err := out.Encode(r); err != nil {
					return err
				}
			} else if err := r.print(p.stdout); err != nil {
				return err
			}
			return r.exit()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	cmd.Flags().BoolVar(&probe, "probe", false, "load models to find out Ollama's settings")
	return cmd
}

// severity of a finding.
type severity string

const (
	note    severity = "note"
	warning severity = "warning"
	failure severity = "error"
)

// finding is one thing that an operator should know, and how to mend it.
type finding struct {
	Severity severity `json:"severity"`
	Text     string   `json:"text"`
	Mend     string   `json:"mend,omitempty"`
}

// checkup is all that was seen, and what to think of it.
type checkup struct {
	URL       string                 `json:"url"`
	Version   string                 `json:"version,omitempty"` // "": Ollama does not answer
	Served    bool                   `json:"served"`            // by a tenure, at the admin address of the settings
	GPU       *gpu.Reading           `json:"gpu,omitempty"`
	NoGPU     string                 `json:"no_gpu,omitempty"` // why it is not read
	Budget    residency.Bytes        `json:"budget_bytes"`     // for models: configured, and what the cards have
	Models    []checkedModel         `json:"models"`           // of the catalog
	Installed []installed            `json:"installed"`        // others
	Resident  []proxy.OllamaResident `json:"resident"`
	MaxLoaded figure                 `json:"max_loaded_models"`
	Parallel  figure                 `json:"num_parallel"`
	Findings  []finding              `json:"findings"`
}

// checkedModel is a model of the catalog. What is not known is 0.
type checkedModel struct {
	Name      string          `json:"name"`
	Tier      residency.Tier  `json:"tier"`
	Pulled    bool            `json:"pulled"`
	Context   int             `json:"num_ctx"` // it is loaded with: the catalog's, no more than it was trained for
	Slots     int             `json:"slots"`
	Trained   int             `json:"trained_context"`
	Baked     int             `json:"modelfile_num_ctx,omitempty"`
	Weights   residency.Bytes `json:"weights_bytes"`
	Cache     residency.Bytes `json:"kv_cache_bytes"`
	Predicted residency.Bytes `json:"predicted_bytes"` // the catalog's estimate where the model does not tell
	facts     ollama.Facts
	remote    string
}

// installed is a model that the catalog does not know.
type installed struct {
	Name   string `json:"name"`
	Remote string `json:"remote_host,omitempty"`
	blob   string
}

// figure is a setting of Ollama's as far as it can be told from outside.
type figure struct {
	Least int    `json:"least,omitempty"`
	Most  int    `json:"most,omitempty"` // 0: not known
	How   string `json:"how,omitempty"`
}

func (f figure) String() string {
	switch {
	case f.Least == 0:
		return "not known"
	case f.Most == 0:
		return fmt.Sprintf("at least %d (%s)", f.Least, f.How)
	case f.Least == f.Most:
		return fmt.Sprintf("%d (%s)", f.Least, f.How)
	}
	return fmt.Sprintf("%d to %d (%s)", f.Least, f.Most, f.How)
}

// buffers is what a model takes in GPU memory beside weights and cache: Ollama
// 0.17 predicts 0.07 to 0.3 GiB for models of 4B to 8B.
const buffers = 300 * residency.MiB

// spare is what Ollama wants free on the card beyond what it predicts.
const spare = residency.GiB

// check looks, probes if asked to, and judges.
func (p *program) check(ctx context.Context, cfg *config, probe bool) (*checkup, error) {
	catalog, err := loadCatalog(cfg.Catalog)
	if err != nil {
		return nil, usageError{err}
	}
	base, err := ollama.ParseHost(cfg.OllamaHost)
	if err != nil {
		return nil, usageError{fmt.Errorf("OLLAMA_HOST: %w", err)} // checked when it was read
	}
	client := ollama.New(base, ollama.Config{Connect: 2 * time.Second, Load: cfg.LoadTimeout, Limits: ollama.Limits{First: cfg.FirstByte, Idle: cfg.IdleTimeout}, RequireGPU: ollama.GPUFalse, Settle: settle})
	defer client.Close()

	r := &checkup{URL: base.Redacted()}
	if r.Version, err = client.Version(ctx); err != nil {
		r.find(failure, "Start Ollama, or set OLLAMA_HOST.", "Ollama does not answer at %s: %v", r.URL, err)
		return r, nil
	}
	r.Served = serves(ctx, cfg, base)
	if err := r.look(ctx, client, catalog); err != nil {
		return nil, err
	}
	if err := r.lookAtCards(cfg, base); err != nil {
		return nil, err
	}
	r.infer()
	if probe {
		if err := r.mayProbe(); err != nil {
			return nil, err
		}
		if err := r.probe(ctx, client, catalog, cfg); err != nil {
			return nil, fmt.Errorf("probing: %w", err)
		}
	}
	r.judge(catalog, cfg)
	return r, nil
}

// serves reports whether a tenure manages this Ollama. One that does not let us
// look is taken for one that does.
func serves(ctx context.Context, cfg *config, base *url.URL) bool {
	state, _, err := fetchState(ctx, cfg)
	if err != nil {
		return !errors.Is(err, errNoServer)
	}
	theirs, err := url.Parse(state.Ollama.URL)
	if err != nil || state.Simulated {
		return false
	}
	mine, _ := isLoopback(base.Host)
	same, _ := isLoopback(theirs.Host)
	return theirs.Host == base.Host || mine && same && theirs.Port() == base.Port()
}

// look reads what Ollama tells.
func (r *checkup) look(ctx context.Context, client *ollama.Client, catalog *routing.Catalog) error {
	tags, err := client.Installed(ctx)
	if err != nil {
		return err
	}
	running, err := client.Running(ctx)
	if err != nil {
		return err
	}
	for _, m := range running {
		r.Resident = append(r.Resident, proxy.OllamaResident{Name: proxy.ShortName(m.Name), Size: m.Size, VRAM: m.VRAM, Context: m.Context})
	}
	for _, m := range catalog.Models {
		c := checkedModel{
			Name: m.Name, Tier: residency.Tier(m.Tier), Context: m.Context, Slots: max(m.Slots, 1), Trained: m.Trained,
			Predicted: residency.Bytes(m.Memory * float64(residency.GiB)),
		}
		if i := slices.IndexFunc(tags, func(t ollama.Installed) bool { return proxy.ShortName(t.Name) == m.Name }); i >= 0 {
			c.Pulled, c.remote = true, tags[i].RemoteHost
			if c.facts, err = client.Show(ctx, m.Name); err != nil {
				return fmt.Errorf("reading %s: %w", m.Name, err)
			}
			c.predict(tags[i].Size)
		}
		r.Models = append(r.Models, c)
	}
	for _, t := range tags {
		name := proxy.ShortName(t.Name)
		if slices.ContainsFunc(r.Models, func(c checkedModel) bool { return c.Name == name }) {
			continue
		}
		other := installed{Name: name, Remote: t.RemoteHost}
		if t.RemoteHost == "" {
			facts, err := client.Show(ctx, t.Name)
			if err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			other.blob = facts.Blob
		}
		r.Installed = append(r.Installed, other)
	}
	return nil
}

// predict works out what a model will take from what its file says.
func (c *checkedModel) predict(weights residency.Bytes) {
	f := c.facts
	c.Weights, c.Baked = weights, f.NumCtx
	if f.Context > 0 {
		c.Trained = f.Context
		c.Context = min(c.Context, f.Context)
	}
	if kv := f.KVPerToken(); kv > 0 {
		c.Cache = kv * residency.Bytes(c.Context*c.Slots)
		c.Predicted = c.Weights + c.Cache + buffers
	}
}

// lookAtCards reads the GPU and works out what there is for models.
func (r *checkup) lookAtCards(cfg *config, base *url.URL) error {
	r.Budget = residency.Bytes(cfg.Memory * float64(residency.GiB))
	read, why, stop, err := openCards(cfg, base, false)
	if err != nil {
		return err
	}
	defer stop()
	if read == nil {
		r.NoGPU = why.Error()
		return nil
	}
	cards, err := read()
	if err != nil {
		r.NoGPU = err.Error()
		return nil
	}
	r.GPU = &cards
	r.Budget = min(r.Budget, cards.Total()-min(cards.Total(), r.taken()+spare))
	return nil
}

// taken is what others than Ollama hold of the cards.
func (r *checkup) taken() residency.Bytes {
	ours := r.GPU.Ollama()
	if ours == 0 { // no process could be told to be Ollama's
		for _, m := range r.Resident {
			ours += m.VRAM
		}
	}
	return r.GPU.Used() - min(r.GPU.Used(), ours)
}

// infer tells of Ollama's settings what its residents give away.
func (r *checkup) infer() {
	if n := len(r.Resident); n > 0 {
		r.MaxLoaded = figure{Least: n, How: "resident now"}
	}
	least, most := 1, 1<<20
	for _, m := range r.Resident {
		i := slices.IndexFunc(r.Models, func(c checkedModel) bool { return c.Name == m.Name })
		if i < 0 || r.Models[i].facts.KVPerToken() == 0 || m.Context == 0 || m.Size <= r.Models[i].Weights {
			continue
		}
		// Beside its weights a model takes a cache per slot, and buffers of up
		// to half of that.
		slots := float64(m.Size-r.Models[i].Weights) / float64(r.Models[i].facts.KVPerToken()*residency.Bytes(m.Context))
		lo, hi := int(slots/1.5+0.999), int(slots)
		if hi >= 1 && max(lo, least) <= min(hi, most) {
			least, most = max(lo, least), min(hi, most)
		}
	}
	if most < 1<<20 {
		r.Parallel = figure{Least: least, Most: most, How: "by the size of what is resident"}
	}
}

func (r *checkup) find(s severity, mend, format string, args ...any) {
	r.Findings = append(r.Findings, finding{Severity: s, Text: fmt.Sprintf(format, args...), Mend: mend})
}

// judge finds what is in tenure's way.
func (r *checkup) judge(catalog *routing.Catalog, cfg *config) {
	r.judgeVersion()
	r.judgeModels(catalog, cfg)
	r.judgeBlobs()
	r.judgeFit(cfg)
	r.judgeCards(cfg)
	r.judgeResidents(cfg)
	r.judgeSettings(cfg)
	order := []severity{failure, warning, note}
	slices.SortStableFunc(r.Findings, func(a, b finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
}

func (r *checkup) judgeVersion() {
	number := func(i int) int {
		parts := strings.Split(r.Version, ".")
		if i >= len(parts) {
			return -1
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return -1
		}
		return n
	}
	major, minor := number(0), number(1)
	switch {
	case major == 0 && minor == 17:
	case major < 0 || minor < 0 || major == 0 && minor == 0:
		r.find(warning, "", "Ollama's version is %q, which tells nothing; tenure is tested with 0.17", r.Version)
	case major == 0 && minor < 17:
		r.find(warning, "Update Ollama.", "Ollama %s is older than what tenure is tested with, 0.17", r.Version)
	case major > 0 || minor >= 30:
		r.find(warning, "", "Ollama %s is newer than what tenure is tested with, 0.17: since 0.30 it runs models by another program, and their sizes are reported otherwise", r.Version)
	default:
		r.find(warning, "", "Ollama %s is newer than what tenure is tested with, 0.17", r.Version)
	}
}

func (r *checkup) judgeModels(catalog *routing.Catalog, cfg *config) {
	pulled := func(name string) bool {
		return slices.ContainsFunc(r.Models, func(c checkedModel) bool { return c.Name == name && c.Pulled })
	}
	for _, c := range r.Models {
		if !c.Pulled {
			s, then := warning, []string{}
			for _, t := range catalog.Tasks {
				if t.Model != c.Name {
					continue
				}
				if i := slices.IndexFunc(t.Fallback, pulled); i >= 0 {
					then = append(then, t.Name+" is answered by "+t.Fallback[i])
				} else {
					s, then = failure, append(then, t.Name+" by none")
				}
			}
			text := c.Name + " is not pulled"
			if len(then) > 0 {
				text += ": " + strings.Join(then, ", ")
			}
			r.find(s, "tenure pull "+c.Name, "%s", text)
			continue
		}
		switch {
		case c.remote != "" || c.facts.RemoteHost != "":
			s := failure
			if cfg.AllowRemote {
				s = warning
			}
			r.find(s, "", "%s runs at %s: prompts would leave this machine", c.Name, cmp.Or(c.remote, c.facts.RemoteHost))
		case len(c.facts.Capabilities) > 0 && !c.facts.Can("completion"):
			r.find(failure, "", "%s cannot write answers: it can %s", c.Name, strings.Join(c.facts.Capabilities, ", "))
		}
		i := slices.IndexFunc(catalog.Models, func(m routing.Model) bool { return m.Name == c.Name })
		if want := catalog.Models[i].Context; want > c.Context {
			r.find(note, "", "%s was trained for %d tokens and gets no more of the catalog's %d", c.Name, c.Trained, want)
		}
		if c.Baked > 0 && c.Baked != c.Context {
			r.find(note, "", "%s has num_ctx %d in its Modelfile: tenure asks for %d instead, other clients would make Ollama load it anew", c.Name, c.Baked, c.Context)
		}
	}
	for _, m := range r.Installed {
		if m.Remote != "" {
			s, then := note, "tenure leaves it out"
			if cfg.AllowRemote {
				s, then = warning, "TENURE_ALLOW_REMOTE lets prompts leave this machine"
			}
			r.find(s, "", "%s runs at %s: %s", m.Name, m.Remote, then)
		}
	}
}

// judgeBlobs finds names for the same weights: Ollama keeps those in memory
// once, with one context.
func (r *checkup) judgeBlobs() {
	type shared struct {
		names    []string
		contexts []int
	}
	blobs := map[string]*shared{}
	var order []string
	add := func(blob, name string, context int) {
		if blob == "" {
			return
		}
		if blobs[blob] == nil {
			blobs[blob] = &shared{}
			order = append(order, blob)
		}
		b := blobs[blob]
		b.names = append(b.names, name)
		if context > 0 {
			b.contexts = append(b.contexts, context)
		}
	}
	for _, c := range r.Models {
		add(c.facts.Blob, c.Name, c.Context)
	}
	for _, m := range r.Installed {
		add(m.blob, m.Name, 0)
	}
	for _, blob := range order {
		b := blobs[blob]
		names := strings.Join(b.names, ", ")
		switch {
		case len(b.names) < 2 || len(b.contexts) == 0:
		case len(slices.Compact(slices.Sorted(slices.Values(b.contexts)))) > 1:
			r.find(warning, "Give them one num_ctx in the catalog.", "%s are the same weights with different contexts: the first one's is used for all", names)
		default:
			r.find(note, "", "%s are the same weights: they share the first one's place in memory, and its context", names)
		}
	}
}

// judgeFit compares what the models will take with what there is.
func (r *checkup) judgeFit(cfg *config) {
	var pinned, kept, all residency.Bytes
	for _, c := range r.Models {
		all += c.Predicted
		if c.Tier == residency.T0 {
			pinned += c.Predicted
		}
		if c.Tier == residency.T0 || c.Tier == residency.T1 && cfg.Preload {
			kept += c.Predicted
		}
	}
	fits := true
	for _, c := range r.Models {
		need := pinned
		if c.Tier != residency.T0 {
			need += c.Predicted
		}
		if need > r.Budget {
			fits = false
			r.find(failure, "Lower its num_ctx or slots in the catalog, or free GPU memory.", "%s never fits: with the models that are always loaded it takes %v of %v", c.Name, need, r.Budget)
		}
	}
	switch {
	case !fits:
	case all <= r.Budget && len(r.Models) <= cfg.MaxModels:
		r.find(note, "", "All %d models fit together: %v of %v, nothing is ever swapped", len(r.Models), all, r.Budget)
	case all <= r.Budget:
		r.find(note, fmt.Sprintf("MAX_CONCURRENT_MODELS=%d here, and OLLAMA_MAX_LOADED_MODELS=%d or more for Ollama.", len(r.Models), len(r.Models)),
			"All %d models would fit together, %v of %v, but %d may be resident at once", len(r.Models), all, r.Budget, cfg.MaxModels)
	case kept > r.Budget:
		r.find(warning, "Lower a num_ctx in the catalog, or set PRELOAD_RECRUITMENT_MODELS=false.", "What is to be kept loaded does not fit together: %v of %v", kept, r.Budget)
	default:
		r.find(note, "", "What is kept loaded takes %v of %v; all models would take %v, so some are swapped", kept, r.Budget, all)
	}
}

func (r *checkup) judgeCards(cfg *config) {
	if r.GPU == nil {
		r.find(note, "", "The GPU's own figures are not read (%s): other processes' memory is not seen", r.NoGPU)
		return
	}
	configured := residency.Bytes(cfg.Memory * float64(residency.GiB))
	switch {
	case r.GPU.Total() < configured:
		r.find(warning, fmt.Sprintf("MEMORY_THRESHOLD=%.0f", float64(r.Budget)/float64(residency.GiB)), "MEMORY_THRESHOLD is %v, the cards have %v", configured, r.GPU.Total())
	case r.Budget < configured:
		r.find(warning, "", "%v of the %v configured are there for models: others hold %v, and %v stay free", r.Budget, configured, r.taken(), spare)
		for _, q := range r.GPU.Others() {
			r.find(note, "", "process %d (%s) holds %s of GPU memory", q.PID, cmp.Or(q.Name, "?"), known(q.Used))
		}
	}
	for i, c := range r.GPU.Cards {
		if c.ECC != nil && c.ECC.Uncorrectable > 0 {
			r.find(warning, "Have the card looked at.", "GPU %d had %d memory errors that could not be corrected", i, c.ECC.Uncorrectable)
		}
	}
}

func (r *checkup) judgeResidents(cfg *config) {
	if r.Served {
		r.find(note, "tenure status tells what it does.", "A tenure serves this Ollama")
	}
	for _, m := range r.Resident {
		i := slices.IndexFunc(r.Models, func(c checkedModel) bool { return c.Name == m.Name })
		switch {
		case i < 0:
			r.find(warning, "ollama stop "+m.Name+", and find out who uses it.", "%s is resident, %v, and not in the catalog: another client uses this Ollama", m.Name, m.Size)
		case !r.Served && m.Context != r.Models[i].Context:
			r.find(note, "", "%s is resident with a context of %d: tenure loads it anew with %d", m.Name, m.Context, r.Models[i].Context)
		}
		switch {
		case m.VRAM == 0 && cfg.RequireGPU == "true":
			r.find(failure, "", "%s is in main memory, and TENURE_REQUIRE_GPU=true", m.Name)
		case m.VRAM == 0:
			r.find(warning, "", "%s is in main memory: Ollama found no GPU for it, answers are slow", m.Name)
		case m.VRAM < m.Size:
			r.find(warning, "", "%s is only partly on the GPU, %v of %v: answers are slow", m.Name, m.VRAM, m.Size)
		}
	}
}

// judgeSettings compares what is known of Ollama's settings with what tenure
// needs.
func (r *checkup) judgeSettings(cfg *config) {
	slots := 1
	for _, c := range r.Models {
		slots = max(slots, c.Slots)
	}
	f := r.MaxLoaded
	mend := fmt.Sprintf("Set OLLAMA_MAX_LOADED_MODELS to %d or more for Ollama, or MAX_CONCURRENT_MODELS to %d here.", cfg.MaxModels, f.Most)
	switch {
	case f.Most > 0 && f.Most < cfg.MaxModels:
		r.find(failure, mend, "Ollama keeps no more than %d models: with MAX_CONCURRENT_MODELS=%d it would evict by itself, whoever is in use", f.Most, cfg.MaxModels)
	case f.Most == 0 && f.Least < cfg.MaxModels:
		r.find(note, "tenure check --probe finds out.", "It is not known whether Ollama keeps %d models (OLLAMA_MAX_LOADED_MODELS; its default is 3 a GPU)", cfg.MaxModels)
	}
	switch g := r.Parallel; {
	case g.Least > slots:
		r.find(warning, fmt.Sprintf("Set OLLAMA_NUM_PARALLEL=%d for Ollama.", slots), "Ollama gives each model %d contexts or more, the catalog uses %d: the rest is GPU memory wasted", g.Least, slots)
	case g.Most > 0 && g.Most < slots:
		r.find(warning, fmt.Sprintf("Set OLLAMA_NUM_PARALLEL=%d for Ollama.", slots), "Ollama serves %d requests of a model at once, the catalog counts on %d: they would wait inside Ollama", g.Most, slots)
	case g.Least == 0:
		r.find(note, "tenure check --probe finds out.", "OLLAMA_NUM_PARALLEL is not known (its default is 1)")
	}
}

func (r *checkup) count(s severity) (n int) {
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

func (r *checkup) exit() error {
	switch {
	case r.count(failure) > 0:
		return errErrors
	case r.count(warning) > 0:
		return errWarnings
	}
	return nil
}

// print writes the page.
func (r *checkup) print(w io.Writer) error {
	fmt.Fprintf(w, "Ollama %s at %s\n", cmp.Or(r.Version, "(no answer)"), r.URL)
	if r.GPU != nil {
		for i, c := range r.GPU.Cards {
			fmt.Fprintf(w, "GPU %d %s\n", i, cardLine(c))
		}
	}
	if r.Version != "" {
		fmt.Fprintf(w, "Models may take %v\nModels at once: %v\nRequests of a model at once: %v\n\n", r.Budget, r.MaxLoaded, r.Parallel)
		t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "MODEL\tTIER\tPULLED\tCONTEXT\tTRAINED\tWEIGHTS\tCACHE\tPREDICTED")
		for _, c := range r.Models {
			if c.Pulled {
				fmt.Fprintf(t, "%s\t%v\tyes\t%d x %d\t%s\t%v\t%s\t%v\n", c.Name, c.Tier, c.Slots, c.Context, tokens(c.Trained), c.Weights, known(c.Cache), c.Predicted)
			} else {
				fmt.Fprintf(t, "%s\t%v\tno\t%d x %d\t%s\t?\t?\t%v (estimate)\n", c.Name, c.Tier, c.Slots, c.Context, tokens(c.Trained), c.Predicted)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%-7s  %s\n", strings.ToUpper(string(f.Severity)), f.Text)
		if f.Mend != "" {
			fmt.Fprintf(w, "         -> %s\n", f.Mend)
		}
	}
	_, err := fmt.Fprintf(w, "\nerrors %d, warnings %d, notes %d\n", r.count(failure), r.count(warning), r.count(note))
	return err
}

func tokens(n int) string {
	if n == 0 {
		return "?"
	}
	return strconv.Itoa(n)
}
