package routing

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tenure/routing/task"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

//go:embed catalog.yaml
var builtin []byte

// Catalog says which models there are and what each task needs.
type Catalog struct {
	Models    []Model             // in the order of the file
	Tasks     []Task              // in the order of the file
	Workflows map[string][]string // name: its tasks in order

	detect func(task.Input) task.Result // as the catalog's phrases and examples adapt it
}

// Model is one model of the catalog, or one found on the server.
type Model struct {
	Name    string        // as Ollama lists it; :latest is left out
	Tier    int           // 0 always loaded, 1 kept warm, 2 on demand
	Memory  float64       // GiB, the first estimate
	Context int           // num_ctx it is loaded with, in tokens
	Slots   int           // requests in flight at once
	Trained int           // context it was trained with, in tokens; 0 when unknown
	Load    time.Duration // expected time of a first load
}

// Task is what one task needs.
type Task struct {
	Name        string
	Model       string
	Fallback    []string
	MaxTokens   int
	Temperature *float64 // nil: the client's, else the model's own
	CacheTTL    time.Duration
	KeepSampled bool // answers at a temperature above 0 are kept too
	Timeouts    Timeouts
	Expect      [2]time.Duration
	PerMinute   [2]float64
	Batch       int
	Phrases     []string // what its users say; a trailing * admits every ending
	Examples    []string // asks that are for this task
	Threshold   *float64 // below this probability recruit-auto answers general; nil: the trained one
}

// Timeouts bound what a request may wait for. Zero: not said.
type Timeouts struct {
	Queue     time.Duration // for a seat, a load included
	FirstByte time.Duration // from the seat to the first token
	Idle      time.Duration // between two tokens
	Total     time.Duration // from the seat to the last token
}

// Or fills what t does not say from another.
func (t Timeouts) Or(other Timeouts) Timeouts {
	return Timeouts{
		Queue: cmp.Or(t.Queue, other.Queue), FirstByte: cmp.Or(t.FirstByte, other.FirstByte),
		Idle: cmp.Or(t.Idle, other.Idle), Total: cmp.Or(t.Total, other.Total),
	}
}

// Builtin returns the catalog that ships with the program.
func Builtin() *Catalog {
	c, err := ParseCatalog(builtin, func(s string) string { return s })
	if err != nil {
		panic("routing: the embedded catalog: " + err.Error()) // a test parses it
	}
	return c
}

// The file's own shape.
type (
	modelEntry struct {
		Tier    *int    `yaml:"tier"`
		Memory  float64 `yaml:"memory"`
		Context int     `yaml:"num_ctx"`
		Slots   int     `yaml:"slots"`
		Trained int     `yaml:"trained"`
		Load    string  `yaml:"load"`
	}
	taskEntry struct {
		Model       string            `yaml:"model"`
		Fallback    []string          `yaml:"fallback"`
		MaxTokens   int               `yaml:"max_tokens"`
		Temperature *float64          `yaml:"temperature"`
		CacheTTL    string            `yaml:"cache_ttl"`
		KeepSampled bool              `yaml:"keep_sampled"`
		Timeouts    map[string]string `yaml:"timeouts"`
		Expect      []string          `yaml:"expect"`
		PerMinute   []float64         `yaml:"per_minute"`
		Batch       int               `yaml:"batch"`
		Phrases     []string          `yaml:"phrases"`
		Examples    []string          `yaml:"examples"`
		Threshold   *float64          `yaml:"threshold"`
	}
)

// ParseCatalog reads and checks a catalog file. canonical spells a model's name
// one way. The error names every problem, one a line, each with the
// line it is on.
func ParseCatalog(src []byte, canonical func(string) string) (*Catalog, error) {
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, errors.New(firstLine(yaml.FormatError(err, false, false)))
	}
	p := &catalogParser{canonical: canonical, catalog: &Catalog{Workflows: map[string][]string{}}}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, errors.New("line 1: the file holds no catalog")
	}
	p.file(file.Docs[0].Body)
	return p.catalog, errors.Join(p.problems...)
}

type catalogParser struct {
	canonical func(string) string
	catalog   *Catalog
	problems  []error
}

func (p *catalogParser) problem(at ast.Node, format string, args ...any) {
	p.problems = append(p.problems, fmt.Errorf("line %d: %s", at.GetToken().Position.Line, fmt.Sprintf(format, args...)))
}

func (p *catalogParser) file(body ast.Node) {
	sections := map[string]ast.Node{}
	for key, value := range p.mapping(body, "the catalog") {
		name := key.String()
		if !slices.Contains([]string{"models", "tasks", "workflows"}, name) {
			p.problem(key, "%q is not a section: models, tasks and workflows are", name)
			continue
		}
		sections[name] = value
	}
	if sections["models"] == nil || sections["tasks"] == nil {
		p.problem(body, "the sections models and tasks are needed")
		return
	}
	for key, value := range p.mapping(sections["models"], "models") {
		p.model(key, value)
	}
	for key, value := range p.mapping(sections["tasks"], "tasks") {
		p.task(key, value)
	}
	if _, ok := p.catalog.task(task.General); !ok {
		p.problem(sections["tasks"], "the task %s is needed: it serves what is none of the others", task.General)
	}
	p.adapt(sections["tasks"])
	if sections["workflows"] == nil {
		return
	}
	for key, value := range p.mapping(sections["workflows"], "workflows") {
		p.workflow(key, value)
	}
}

func (p *catalogParser) model(key, value ast.Node) {
	e := modelEntry{Slots: 1, Load: "5s"}
	if !p.entry(key, value, &e, "tier", "memory", "num_ctx", "slots", "trained", "load") {
		return
	}
	m := Model{
		Name: p.canonical(plain(key)), Memory: e.Memory, Context: e.Context,
		Slots: e.Slots, Trained: e.Trained, Load: p.duration(value, "load", e.Load),
	}
	if _, ok := p.catalog.model(m.Name); ok {
		p.problem(key, "the model %s is listed twice", m.Name)
	}
	if m.Name == "" {
		p.problem(key, "a model needs a name")
	}
	switch {
	case e.Tier == nil:
		p.problem(key, "%s: a tier is needed: 0 (always loaded), 1 (kept warm) or 2 (on demand)", m.Name)
	case *e.Tier < 0 || *e.Tier > 2:
		p.problem(at(value, "tier"), "tier is %d: 0 (always loaded), 1 (kept warm) or 2 (on demand) is allowed", *e.Tier)
	default:
		m.Tier = *e.Tier
	}
	if !(m.Memory > 0 && m.Memory <= 1024) { // not a number is neither
		p.problem(at(value, "memory"), "memory is %g: GiB above 0 are needed", m.Memory)
	}
	if m.Context < 256 || m.Context > 1<<20 {
		p.problem(at(value, "num_ctx"), "num_ctx is %d: 256 to 1048576 tokens are allowed", m.Context)
	}
	if m.Trained != 0 && m.Context > m.Trained {
		p.problem(at(value, "num_ctx"), "num_ctx is %d, more than the %d the model was trained with", m.Context, m.Trained)
	}
	if m.Slots < 1 || m.Slots > 4096 {
		p.problem(at(value, "slots"), "slots is %d: 1 to 4096 are allowed", m.Slots)
	}
	p.catalog.Models = append(p.catalog.Models, m)
}

func (p *catalogParser) task(key, value ast.Node) {
	e := taskEntry{CacheTTL: "0s"}
	if !p.entry(key, value, &e, "model", "fallback", "max_tokens", "temperature", "cache_ttl", "keep_sampled", "timeouts", "expect", "per_minute", "batch",
		"phrases", "examples", "threshold") {
		return
	}
	t := Task{
		Name: plain(key), Model: p.known(value, "model", e.Model), MaxTokens: e.MaxTokens,
		Temperature: e.Temperature, CacheTTL: p.duration(value, "cache_ttl", e.CacheTTL),
		KeepSampled: e.KeepSampled, Batch: e.Batch, Phrases: e.Phrases, Examples: e.Examples, Threshold: e.Threshold,
	}
	for _, f := range e.Fallback {
		t.Fallback = append(t.Fallback, p.known(value, "fallback", f))
	}
	if !validTaskName(t.Name) {
		p.problem(key, "the task %q: lower-case letters, digits and _ are allowed", t.Name)
	}
	if t.MaxTokens < 1 {
		p.problem(at(value, "max_tokens"), "max_tokens is %d: at least 1 is needed", t.MaxTokens)
	}
	if t.Temperature != nil && !(*t.Temperature >= 0 && *t.Temperature <= 2) {
		p.problem(at(value, "temperature"), "temperature is %g: 0 to 2 is allowed", *t.Temperature)
	}
	if t.Threshold != nil && !(*t.Threshold >= 0 && *t.Threshold <= 1) {
		p.problem(at(value, "threshold"), "threshold is %g: a probability from 0 to 1 is allowed", *t.Threshold)
	}
	if n := at(value, "timeouts"); n != value {
		t.Timeouts = p.timeouts(n, e.Timeouts)
	}
	if t.Batch < 0 {
		p.problem(at(value, "batch"), "batch is %d: 0 or more is allowed", t.Batch)
	}
	if e.Expect != nil {
		if len(e.Expect) != 2 {
			p.problem(at(value, "expect"), "expect needs two durations, the least and the most")
		} else {
			t.Expect = [2]time.Duration{p.duration(value, "expect", e.Expect[0]), p.duration(value, "expect", e.Expect[1])}
		}
	}
	if e.PerMinute != nil {
		if len(e.PerMinute) != 2 {
			p.problem(at(value, "per_minute"), "per_minute needs two numbers, the least and the most")
		} else {
			t.PerMinute = [2]float64(e.PerMinute)
		}
	}
	p.catalog.Tasks = append(p.catalog.Tasks, t)
}

func (p *catalogParser) timeouts(value ast.Node, said map[string]string) (t Timeouts) {
	fields := map[string]*time.Duration{"queue": &t.Queue, "first_byte": &t.FirstByte, "idle": &t.Idle, "total": &t.Total}
	for k, v := range p.mapping(value, "timeouts") {
		field, ok := fields[plain(k)]
		if !ok {
			p.problem(k, "timeouts: %q is not a setting; queue, first_byte, idle, total are", k.String())
			continue
		}
		d, err := time.ParseDuration(said[plain(k)])
		if err != nil || d <= 0 {
			p.problem(v, "%s: %q is not a duration above 0, such as 40s", plain(k), said[plain(k)])
		}
		*field = d
	}
	return t
}

// adapt readies the detector for what the operator says of the tasks.
func (p *catalogParser) adapt(section ast.Node) {
	p.catalog.detect = task.Detect
	if len(p.problems) > 0 {
		return
	}
	a := task.Adaptation{Phrases: map[string][]string{}, Thresholds: map[string]float64{}}
	trained := []string{task.ResumeParsing, task.BiasDetection, task.MatchingLogic, task.ScriptGeneration, task.ReportGeneration, task.General}
	for _, t := range p.catalog.Tasks {
		speaks := len(t.Phrases)+len(t.Examples) > 0
		if speaks && !slices.Contains(trained, t.Name) {
			a.Tasks = append(a.Tasks, t.Name)
		}
		if len(t.Phrases) > 0 {
			a.Phrases[t.Name] = t.Phrases
		}
		for _, e := range t.Examples {
			a.Examples = append(a.Examples, task.Text{Text: e, Label: t.Name})
		}
		if t.Threshold != nil {
			a.Thresholds[t.Name] = *t.Threshold
		}
	}
	if len(a.Phrases)+len(a.Examples)+len(a.Thresholds) == 0 {
		return
	}
	d, err := task.New(a)
	if err != nil {
		p.problem(section, "%v", err)
		return
	}
	p.catalog.detect = d.Detect
}

func (p *catalogParser) workflow(key, value ast.Node) {
	var tasks []string
	if err := yaml.NodeToValue(value, &tasks); err != nil || len(tasks) == 0 {
		p.problem(value, "the workflow %s needs a list of tasks", plain(key))
		return
	}
	for _, name := range tasks {
		if _, ok := p.catalog.task(name); !ok {
			p.problem(value, "the workflow %s: %q is not a task of this catalog", plain(key), name)
		}
	}
	p.catalog.Workflows[plain(key)] = tasks
}

// known returns the canonical name of a model that must be in the catalog.
func (p *catalogParser) known(value ast.Node, field, name string) string {
	canonical := p.canonical(name)
	if _, ok := p.catalog.model(canonical); !ok {
		p.problem(at(value, field), "%s: %q is not among the models", field, name)
	}
	return canonical
}

func (p *catalogParser) duration(value ast.Node, field, s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		p.problem(at(value, field), "%s: %q is not a duration such as 24h, 15m or 3s", field, s)
	}
	return d
}

// entry decodes one mapping whose keys must be among fields.
func (p *catalogParser) entry(key, value ast.Node, into any, fields ...string) bool {
	ok := true
	for k := range p.mapping(value, plain(key)) {
		if !slices.Contains(fields, k.String()) {
			p.problem(k, "%s: %q is not a setting; %s are", plain(key), k.String(), strings.Join(fields, ", "))
		}
	}
	if _, isMap := value.(*ast.MappingNode); !isMap {
		return false
	}
	if err := yaml.NodeToValue(value, into); err != nil {
		line, message := value.GetToken().Position.Line, err.Error()
		if typed, is := errors.AsType[yaml.Error](err); is {
			line, message = typed.GetToken().Position.Line, typed.GetMessage()
		}
		p.problems = append(p.problems, fmt.Errorf("line %d: %s: %s", line, plain(key), firstLine(message)))
		ok = false
	}
	return ok
}

// mapping ranges over a mapping's keys and values, in the order of the file.
func (p *catalogParser) mapping(n ast.Node, what string) func(yield func(k, v ast.Node) bool) {
	return func(yield func(k, v ast.Node) bool) {
		m, ok := n.(*ast.MappingNode)
		if !ok {
			p.problem(n, "%s: a mapping of names to settings is needed", what)
			return
		}
		for _, kv := range m.Values {
			if !yield(kv.Key, kv.Value) {
				return
			}
		}
	}
}

// at returns the node of a mapping's field, to tell its line.
func at(value ast.Node, field string) ast.Node {
	if m, ok := value.(*ast.MappingNode); ok {
		for _, kv := range m.Values {
			if kv.Key.String() == field {
				return kv.Value
			}
		}
	}
	return value
}

// plain is a key without its quotes.
func plain(key ast.Node) string { return strings.Trim(key.String(), `"'`) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func validTaskName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' {
			return false
		}
	}
	return s != "" && s != "auto"
}

// Detect reads the task off a conversation, as this catalog adapts it.
func (c *Catalog) Detect(in task.Input) task.Result { return c.detect(in) }

func (c *Catalog) model(name string) (Model, bool) {
	for _, m := range c.Models {
		if m.Name == name {
			return m, true
		}
	}
	return Model{}, false
}

func (c *Catalog) task(name string) (Task, bool) {
	for _, t := range c.Tasks {
		if t.Name == name {
			return t, true
		}
	}
	return Task{}, false
}

// Expected is how long an answer for a task is expected to take; 0 when the
// catalog does not tell.
func (c *Catalog) Expected(task string) time.Duration {
	t, _ := c.task(task)
	return (t.Expect[0] + t.Expect[1]) / 2
}

// WorkflowNames lists the workflows by name.
func (c *Catalog) WorkflowNames() []string { return sortedKeys(c.Workflows) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
