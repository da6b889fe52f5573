package routing

import (
	"errors"
	"strings"
	"testing"
	"time"

	"tenure/routing/task"

	"github.com/google/go-cmp/cmp"
)

// short spells names as the program does: without the default tag.
func short(name string) string { return strings.TrimSuffix(strings.ToLower(name), ":latest") }

func TestBuiltinCatalog(t *testing.T) {
	c := Builtin()
	type row struct {
		Model     string
		Memory    float64
		Tier      int
		MaxTokens int
		Temp      float64
		TTL       time.Duration
		Fallback  string
	}
	got := map[string]row{}
	for _, k := range c.Tasks {
		m, _ := c.model(k.Model)
		temp := -1.0
		if k.Temperature != nil {
			temp = *k.Temperature
		}
		got[k.Name] = row{k.Model, m.Memory, m.Tier, k.MaxTokens, temp, k.CacheTTL, strings.Join(k.Fallback, " ")}
	}
	want := map[string]row{
		"resume_parsing":    {"deepseek-llm:7b", 7, 1, 1000, 0, 24 * time.Hour, "mistral llama3"},
		"bias_detection":    {"mistral", 7, 1, 800, 0, 24 * time.Hour, "llama3"},
		"matching_logic":    {"llama3", 8, 2, 1200, 0, time.Hour, "mistral"},
		"script_generation": {"llama3", 8, 2, 1500, 0.7, 0, "mistral"},
		"report_generation": {"phi3:mini", 2, 0, 800, 0, 15 * time.Minute, "mistral"},
		"general":           {"phi3:mini", 2, 0, 1024, -1, 15 * time.Minute, ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tasks (-want +got):\n%s", diff)
	}
	contexts := map[string]int{}
	for _, m := range c.Models {
		contexts[m.Name] = m.Context
	}
	if diff := cmp.Diff(map[string]int{"phi3:mini": 4096, "deepseek-llm:7b": 4096, "mistral": 8192, "llama3": 8192}, contexts); diff != "" {
		t.Errorf("contexts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"resume_parsing", "bias_detection", "matching_logic", "script_generation", "report_generation"},
		c.Workflows["full_recruitment_pipeline"]); diff != "" {
		t.Errorf("workflow (-want +got):\n%s", diff)
	}
}

// A task's own times come with its decisions; what it does not say is left open.
func TestTimeouts(t *testing.T) {
	c, err := ParseCatalog([]byte(`models:
  m: {tier: 0, memory: 1, num_ctx: 4096}
tasks:
  general: {model: m, max_tokens: 10, timeouts: {queue: 40s, total: 10m}}
`), short)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRouter(c, short)
	for _, name := range []string{"recruit-auto", "recruit/general", "m"} {
		d, err := r.Route(Request{Model: name})
		if want := (Timeouts{Queue: 40 * time.Second, Total: 10 * time.Minute}); err != nil || d.Parameters.Timeouts != want {
			t.Errorf("%s: %+v %v, want %+v", name, d.Parameters.Timeouts, err, want)
		}
	}
	got := (Timeouts{Queue: time.Second}).Or(Timeouts{Queue: time.Minute, FirstByte: 2, Idle: 3, Total: 4})
	if want := (Timeouts{Queue: time.Second, FirstByte: 2, Idle: 3, Total: 4}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Every problem of a file is told at once, each with its line.
func TestCatalogProblems(t *testing.T) {
	const file = `models:
  small:
    tier: 3
    memory: -1
    num_ctx: 12
  none: {memory: 1, num_ctx: 4096}
  other:
    tier: "one"
    memory: 2
    num_ctx: 4096
  big:
    tier: 1
    memory: 2
    num_ctx: 8192
    trained: 4096
    slots: 0
    gpu: 1
tasks:
  Parsing:
    model: nowhere
    max_tokens: 0
    temperature: 3
    cache_ttl: soon
    expect: [1s]
    timeouts: {queue: 0s, first_byte: soon, total: 40, connect: 1s}
extra: {}
workflows:
  all: [nothing]
`
	_, err := ParseCatalog([]byte(file), short)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"line 26: \"extra\"", "line 25: queue: \"0s\"", "line 25: first_byte: \"soon\"", "line 25: total: \"40\"", "line 25: timeouts: \"connect\"", "line 3: tier is 3", "line 4: memory is -1", "line 5: num_ctx is 12", "line 8: other:",
		"line 14: num_ctx is 8192, more than the 4096", "line 16: slots is 0", "line 17: big: \"gpu\"",
		"line 19: the task \"Parsing\"", "line 20: model: \"nowhere\"", "line 21: max_tokens is 0", "line 22: temperature is 3",
		"line 23: cache_ttl: \"soon\"", "line 24: expect", "the task general is needed", "the workflow all: \"nothing\"",
		"line 6: none: a tier is needed",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestCatalogThatIsNotYAML(t *testing.T) {
	for _, file := range []string{"", "models: [", "- a\n- b\n", "models: {}\n", "\x00", "a: b: c"} {
		if _, err := ParseCatalog([]byte(file), short); err == nil || !strings.Contains(err.Error(), "line") && !strings.Contains(err.Error(), "[") {
			t.Errorf("%q: got %v, want an error with its place", file, err)
		}
	}
}

func names(d Decision) []string {
	var s []string
	for _, c := range d.Candidates {
		s = append(s, c.Name)
	}
	return s
}

func TestRoute(t *testing.T) {
	all := []Installed{
		{Name: "phi3:mini", Digest: "p"},
		{Name: "deepseek-llm:7b", Digest: "d"},
		{Name: "mistral", Digest: "m"},
		{Name: "llama3", Digest: "l"},
		{Name: "qwen3:4b", Digest: "q", Model: Model{Name: "qwen3:4b", Tier: 2, Context: 4096, Slots: 1}},
	}
	without := func(name string) []Installed {
		var s []Installed
		for _, i := range all {
			if i.Name != name {
				s = append(s, i)
			}
		}
		return s
	}
	for _, c := range []struct {
		name, model string
		installed   []Installed
		task, cause string
		models      []string
	}{
		{"task", "recruit/resume_parsing", all, "resume_parsing", Forced, []string{"deepseek-llm:7b", "mistral", "llama3"}},
		{"dash", "recruit-bias_detection", all, "bias_detection", Forced, []string{"mistral", "llama3"}},
		{"colon", "recruit:matching_logic", all, "matching_logic", Forced, []string{"llama3", "mistral"}},
		{"tag", "recruit/script_generation:latest", all, "script_generation", Forced, []string{"llama3", "mistral"}},
		{"before the server is heard of", "recruit/report_generation", nil, "report_generation", Forced, []string{"phi3:mini", "mistral"}},
		{"own name", "mistral", all, "general", Forced, []string{"mistral"}},
		{"own name, other spelling", "Mistral:latest", all, "general", Forced, []string{"mistral"}},
		{"unknown to the catalog", "qwen3:4b", all, "general", Forced, []string{"qwen3:4b"}},
		{"not pulled", "recruit/resume_parsing", without("deepseek-llm:7b"), "resume_parsing", Missing, []string{"mistral", "llama3"}},
		{"fallback not pulled", "recruit/resume_parsing", without("mistral"), "resume_parsing", Forced, []string{"deepseek-llm:7b", "llama3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewRouter(Builtin(), short)
			if c.installed != nil {
				r.SetInstalled(c.installed)
			}
			d, err := r.Route(Request{Model: c.model})
			if err != nil {
				t.Fatal(err)
			}
			if d.Task != c.task || d.Cause != c.cause || cmp.Diff(c.models, names(d)) != "" {
				t.Errorf("got %s %s %v, want %s %s %v", d.Task, d.Cause, names(d), c.task, c.cause, c.models)
			}
		})
	}
}

func TestRouteErrors(t *testing.T) {
	r := NewRouter(Builtin(), short)
	r.SetInstalled([]Installed{{Name: "phi3:mini"}})
	for _, c := range []struct {
		model, pull string
		err         error
	}{
		{"gpt-4o", "", ErrUnknownModel},
		{"", "", ErrUnknownModel},
		{"recruit", "", ErrUnknownModel},
		{"recruit/", "", ErrUnknownModel},
		{"recruit/cooking", "", ErrUnknownModel},
		{"recruiting", "", ErrUnknownModel},
		{"mistral", "mistral", ErrNotPulled},
		{"recruit/matching_logic", "llama3", ErrNotPulled},
	} {
		_, err := r.Route(Request{Model: c.model})
		m, ok := errors.AsType[*ModelError](err)
		if !ok || !errors.Is(err, c.err) || m.Pull != c.pull || m.Asked != c.model {
			t.Errorf("%q: got %v (%+v), want %v", c.model, err, m, c.err)
		}
	}
}

// Before the server was heard of, nobody knows whether it has a model.
func TestBeforeTheServerIsHeardOf(t *testing.T) {
	r := NewRouter(Builtin(), short)
	for model, want := range map[string]error{"qwen3:4b": ErrNotHeard, "recruit/cooking": ErrUnknownModel, "mistral": nil} {
		if _, err := r.Route(Request{Model: model}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", model, err, want)
		}
	}
}

// What recruit-auto decides is what package task detects.
func TestAutoFollowsDetection(t *testing.T) {
	r := NewRouter(Builtin(), short)
	in := task.Input{Messages: []task.Message{{Role: "user", Text: "Write a short InMail to a nurse about our night shifts."}}}
	want := task.Detect(in)
	for _, name := range []string{Auto, "recruit/auto", "recruit-auto:latest"} {
		d, err := r.Route(Request{Model: name, Input: in})
		if err != nil {
			t.Fatal(err)
		}
		if d.Task != want.Task || d.Cause != want.Cause || d.Detection == nil {
			t.Errorf("%s: got %s (%s), want %s (%s)", name, d.Task, d.Cause, want.Task, want.Cause)
		}
	}
}

func TestNames(t *testing.T) {
	r := NewRouter(Builtin(), short)
	if got, want := strings.Join(r.Names(), " "), "recruit-auto recruit/resume_parsing recruit/bias_detection "+
		"recruit/matching_logic recruit/script_generation recruit/report_generation recruit/general "+
		"phi3:mini deepseek-llm:7b mistral llama3"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.SetInstalled([]Installed{{Name: "zephyr"}, {Name: "aya"}, {Name: "phi3:mini"}})
	if got := r.Names(); cmp.Diff([]string{"aya", "phi3:mini", "zephyr"}, got[len(got)-3:]) != "" || len(got) != 10 {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"recruit-auto", "recruit:general", "aya:latest"} {
		if _, err := r.Route(Request{Model: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkRouteForced(b *testing.B) {
	r := NewRouter(Builtin(), short)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Route(Request{Model: "recruit/resume_parsing"}); err != nil {
			b.Fatal(err)
		}
	}
}

// An operator's phrases, examples and thresholds bend what recruit-auto reads,
// and a task of their own is found by them.
func TestCatalogAdaptsDetection(t *testing.T) {
	const file = `models:
  small: {tier: 0, memory: 1, num_ctx: 4096}
tasks:
  general: {model: small, max_tokens: 10}
  resume_parsing: {model: small, max_tokens: 10, phrases: ["do the zumba"]}
  visa_check: {model: small, max_tokens: 10, phrases: ["visa status", "work permit*"], examples: ["May this person work here?"]}
  bias_detection: {model: small, max_tokens: 10, threshold: 1}
`
	c, err := ParseCatalog([]byte(file), short)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRouter(c, short)
	for text, want := range map[string]string{
		"Please do the zumba on this one.":                                    "resume_parsing",
		"Check the visa status and the work permits.":                         "visa_check",
		"May this person work here?":                                          "visa_check",
		"What is for lunch?":                                                  "general",
		"Check this job ad for gender bias and exclusionary wording, please.": "general",
	} {
		d, err := r.Route(Request{Model: Auto, Input: task.Input{Messages: []task.Message{{Role: "user", Text: text}}}})
		if err != nil {
			t.Fatal(err)
		}
		if d.Task != want {
			t.Errorf("%q: got %s (%s, %.2f), want %s", text, d.Task, d.Cause, d.Confidence, want)
		}
	}
	for _, bad := range []string{`phrases: ["!!!"]`, `examples: [" "]`, `threshold: 2`} {
		_, err := ParseCatalog([]byte(strings.Replace(file, `phrases: ["do the zumba"]`, bad, 1)), short)
		if err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: got %v, want an error with its line", bad, err)
		}
	}
}

// However long the conversation, routing it takes the same few allocations.
func TestAllocationsOfRoute(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector sync.Pool drops at random")
	}
	r := NewRouter(Builtin(), func(name string) string { return name })
	const most = 12
	for _, words := range []int{10, 10_000} {
		text := "Return name, title and skills as JSON.\n\n" + strings.Repeat("Jane Doe, nurse since 2014, triage. ", words/6)
		q := Request{Model: Auto, Input: task.Input{Messages: []task.Message{{Role: "user", Text: text}}}}
		got := testing.AllocsPerRun(50, func() {
			if _, err := r.Route(q); err != nil {
				t.Fatal(err)
			}
		})
		if got > most {
			t.Errorf("%d words: %.0f allocations, want at most %d", words, got, most)
		}
	}
}
