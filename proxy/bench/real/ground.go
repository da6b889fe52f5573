package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tenure/proxy"
	"tenure/proxy/bench/spawn"
	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/ollama/ollamatest"
	"tenure/residency"
)

// The ways to an answer.
const (
	straight = "Ollama"
	through  = "tenure"
	told     = "tenure, told"  // which workflow it is (Tenure-Workflow)
	equal    = "tenure, no T0" // every model may leave, as under Ollama
	balanced = "tenure, balanced"
)

// Models of the catalog by their names.
const (
	phi3     = "phi3:mini" // T0
	deepseek = "deepseek-llm:7b"
	mistral  = "mistral"
	llama3   = "llama3"
)

// contextOf is what a model is loaded with, both ways.
func contextOf(model string) int {
	if model == phi3 {
		return ollamatest.SmallContext
	}
	return 4096
}

// ground is where scenarios are played.
type ground struct {
	options
	root   string
	dir    string // logs and catalogs
	texts  []string
	client *http.Client
	sites  int
	sizes  map[string]residency.Bytes // of the models in memory, once measured
}

func newGround(o options) (*ground, error) {
	root, err := ollamatest.Root()
	if err != nil {
		return nil, err
	}
	texts, err := ollamatest.Documents(root)
	if err != nil {
		return nil, err
	}
	g := &ground{options: o, root: root, dir: o.logs, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}}
	for _, name := range []string{"cv", "interviews", "job", "persona"} {
		g.texts = append(g.texts, texts[name])
	}
	if g.dir == "" {
		g.dir, err = os.MkdirTemp("", "tenure-residency")
		return g, err
	}
	if g.dir, err = filepath.Abs(g.dir); err != nil {
		return nil, err
	}
	return g, os.MkdirAll(g.dir, 0o750)
}

func (g *ground) close() error {
	g.client.CloseIdleConnections()
	if g.logs != "" {
		return nil
	}
	return os.RemoveAll(g.dir)
}

// gib is a size as settings have it.
func gib(size residency.Bytes) float64 { return float64(size) / float64(residency.GiB) }

// text is a prompt that nobody has sent before.
func (g *ground) text(name string, n int) string {
	t := g.texts[n%len(g.texts)]
	return fmt.Sprintf("Request %d of %s. %s", n, name, t[:min(len(t), 300)])
}

// catalog writes the built-in catalog with the times and contexts of the
// generated models, which load in a third of a second; flat makes every model
// equal, for one seat, and bytes gives them the sizes that were measured.
func (g *ground) catalog(flat, bytes bool) (string, error) {
	text, err := os.ReadFile(filepath.Join(g.root, "routing", "catalog.yaml"))
	if err != nil {
		return "", err
	}
	replace := func(pattern, with string) {
		text = regexp.MustCompile(pattern).ReplaceAll(text, []byte(with))
	}
	replace(`(?m)^    load: .*$`, "    load: 300ms")
	replace(`(?m)^    num_ctx: .*$`, "    num_ctx: "+strconv.Itoa(contextOf(llama3)))
	replace(`(?ms)^(  `+phi3+`:.*?num_ctx:) \d+`, "${1} "+strconv.Itoa(contextOf(phi3)))
	if flat {
		replace(`(?m)^    tier: .*$`, "    tier: 2")
	}
	if bytes {
		for name, size := range g.sizes {
			replace(`(?ms)^(  `+name+`:.*?memory:) \S+`, fmt.Sprintf("${1} %.9f", gib(size)))
		}
	}
	path := filepath.Join(g.dir, fmt.Sprintf("catalog-%t.yaml", flat))
	return path, os.WriteFile(path, text, 0o600)
}

// site is one Ollama, with tenure before it or not.
type site struct {
	g      *ground
	ollama *ollamatest.Server
	card   *card // nil: models are counted
	direct *ollama.Client
	tenure *spawn.Process // nil: straight
	base   string         // of the API
}

// open starts an Ollama with so many seats, and tenure before it if that is
// the way.
func (g *ground) open(ctx context.Context, s *scenario, way string) (_ *site, err error) {
	g.sites++
	name := filepath.Join(g.dir, fmt.Sprintf("%02d-%s-%s", g.sites, s.name, way))
	at := &site{g: g}
	defer func() {
		if err != nil {
			err = errors.Join(err, at.close())
		}
	}()
	settings := s.settings
	cfg := ollamatest.Config{Log: name + "-ollama.log", Env: []string{"OLLAMA_MAX_LOADED_MODELS=" + strconv.Itoa(s.seats)}, CPUs: g.cpus}
	if s.bytes {
		if at.card, err = g.card(ctx, name+"-card"); err != nil {
			return nil, err
		}
		cfg.Cgroup = at.card.dir
		settings = append(slices.Clone(settings), fmt.Sprintf("MEMORY_THRESHOLD=%.9f", gib(at.card.size)))
	}
	if at.ollama, err = ollamatest.Start(ctx, g.root, cfg); err != nil {
		return nil, err
	}
	at.direct = ollama.New(at.ollama.URL(), ollama.Config{})
	if at.card != nil {
		at.card.holds(at.direct)
	}
	at.base = at.ollama.URL().String()
	if way == straight {
		return at, nil
	}
	catalog, err := g.catalog(s.flat || way == equal, s.bytes)
	if err != nil {
		return nil, err
	}
	preset := "latency"
	if way == balanced {
		preset = "balanced"
	}
	log, err := os.Create(name + "-tenure.log")
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	at.tenure, err = spawn.Tenure(g.tenure, log, append([]string{
		"OLLAMA_HOST=" + at.ollama.URL().Host, "MAX_CONCURRENT_MODELS=" + strconv.Itoa(s.seats), "TENURE_CATALOG=" + catalog,
		"TENURE_MAX_WAIT=4s", "TENURE_LEDGER=none", "TENURE_NVML=false", "TENURE_POLICY=" + preset,
	}, settings...)...)
	if err != nil {
		return nil, err
	}
	at.base = at.tenure.API
	return at, at.settle(ctx, func(st *proxy.State) bool { return st.Ollama.Reachable })
}

// card makes one that has room for the smallest model and two others, as the 20
// GiB of the catalog have, and not for three of the others.
func (g *ground) card(ctx context.Context, dir string) (*card, error) {
	if g.sizes == nil {
		var err error
		if g.sizes, err = g.measure(ctx); err != nil {
			return nil, err
		}
	}
	var others []residency.Bytes
	for name, size := range g.sizes {
		if name != phi3 {
			others = append(others, size)
		}
	}
	slices.Sort(others)
	size := g.sizes[phi3] + others[1] + others[2] + 64<<10 // Ollama's estimates differ by less
	if size >= others[0]+others[1]+others[2] {
		return nil, fmt.Errorf("no card tells these sizes apart: %v", g.sizes)
	}
	return newCard(dir, size)
}

// measure loads every model, and reads what Ollama says of its size.
func (g *ground) measure(ctx context.Context) (sizes map[string]residency.Bytes, err error) {
	server, err := ollamatest.Start(ctx, g.root, ollamatest.Config{Log: filepath.Join(g.dir, "sizes.log"), Env: []string{"OLLAMA_MAX_LOADED_MODELS=4"}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	client := ollama.New(server.URL(), ollama.Config{})
	defer client.Close()
	sizes = map[string]residency.Bytes{}
	for _, m := range everyModel() {
		if sizes[m], err = client.Load(ctx, residency.Model{Name: m, Context: contextOf(m)}); err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

func (at *site) close() (err error) {
	if at.tenure != nil {
		err = at.tenure.Stop(20 * time.Second)
	}
	at.g.client.CloseIdleConnections()
	if at.ollama != nil {
		err = errors.Join(err, at.ollama.Stop())
	}
	if at.card != nil {
		err = errors.Join(err, at.card.close())
	}
	if at.direct != nil {
		at.direct.Close()
	}
	return err
}

// warm asks every model a few questions, so that files are read, and tenure has
// learnt its times; then brings the models of start into memory and the others
// out.
func (at *site) warm(ctx context.Context, s *scenario) error {
	for i := range 3 {
		for _, m := range s.models {
			q := question{model: m, text: at.g.text("the warm-up", i), items: 6, seed: i}
			if r, err := ask(ctx, at.g.client, at.base, q); err != nil || !r.answered() {
				return fmt.Errorf("warming up %s: %d %s: %w", m, r.status, r.code, err)
			}
		}
	}
	if s.start == nil {
		return nil
	}
	if at.tenure == nil {
		for _, m := range s.models {
			if slices.Contains(s.start, m) {
				continue
			}
			if err := at.direct.Unload(ctx, residency.Model{Name: m}); err != nil {
				return err
			}
		}
		for _, m := range s.start {
			if _, err := at.direct.Load(ctx, residency.Model{Name: m, Context: contextOf(m)}); err != nil {
				return err
			}
		}
		return nil
	}
	want := map[string]bool{}
	for _, m := range s.models {
		want[m] = slices.Contains(s.start, m)
	}
	if err := at.preload(ctx, want); err != nil {
		return err
	}
	return at.settle(ctx, func(st *proxy.State) bool {
		var ready []string
		for _, r := range st.Residency.Residents {
			if r.Phase == residency.Ready {
				ready = append(ready, r.Model.Name)
			}
		}
		slices.Sort(ready)
		return st.Residency.Leases == 0 && slices.Equal(ready, slices.Sorted(slices.Values(s.start)))
	})
}

func (at *site) preload(ctx context.Context, want map[string]bool) error {
	body, err := json.Marshal(want)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.tenure.Admin+"/admin/preload?wait=1m", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := at.g.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("preload: %s: %s", resp.Status, text)
	}
	return err
}

// settle waits until tenure's state is as it should be.
func (at *site) settle(ctx context.Context, ok func(*proxy.State) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var st proxy.State
		if err := at.admin(ctx, "/admin/state", &st); err != nil {
			return err
		}
		if ok(&st) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("tenure did not settle: %+v", st.Residency)
		}
	}
}

// admin reads JSON, or text into a *string, from tenure's admin side.
func (at *site) admin(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.tenure.Admin+path, nil)
	if err != nil {
		return err
	}
	resp, err := at.g.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if text, ok := into.(*string); ok {
		*text = string(data)
		return nil
	}
	return json.Unmarshal(data, into)
}

// tally is what Ollama did: by its own log, whoever asked for it.
type tally struct{ loads, unloads, evictions, ofT0 int }

// since counts what has happened after the first so many moves.
func (at *site) since(mark int) (t tally, now int, err error) {
	moves, err := at.ollama.Moves()
	if err != nil {
		return t, 0, err
	}
	for _, m := range moves[mark:] {
		switch m.What {
		case ollamasim.Load:
			t.loads++
		case ollamasim.Unload:
			t.unloads++
			if m.Model == phi3 {
				t.ofT0++
			}
		case ollamasim.Evict:
			t.evictions++
		}
	}
	return t, len(moves), nil
}

// play runs a scenario once, one way.
func (g *ground) play(ctx context.Context, s scenario, way string) (out outcome, err error) {
	at, err := g.open(ctx, &s, way)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, at.close()) }()
	if err := at.warm(ctx, &s); err != nil {
		return out, err
	}
	_, mark, err := at.since(0)
	if err != nil {
		return out, err
	}
	d := &driver{at: at, scenario: &s, told: way == told}
	began := time.Now()
	s.run(ctx, d)
	out = d.outcome(time.Since(began))
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	out.tally, _, err = at.since(mark)
	if err != nil || way == straight {
		return out, err
	}
	var journal proxy.Decisions
	err = at.admin(ctx, "/admin/decisions?model="+llama3, &journal)
	for _, e := range journal.Decisions {
		if e.Action == residency.ActLoaded {
			out.load = e.Took
		}
	}
	return out, err
}
