package corpus_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"tenure/routing/task"
	"tenure/routing/task/corpus"
)

func load(t *testing.T) *corpus.Corpus {
	t.Helper()
	c, err := corpus.Load(os.DirFS("../../.."), "testdata/routing")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCorpus reads what is committed: Load refuses repeated ids and texts, and
// unknown labels and kinds.
func TestCorpus(t *testing.T) {
	c := load(t)
	if len(c.Asks) < 1200 || len(c.Documents) < 150 {
		t.Errorf("%d asks and %d documents, want 1200 and 150", len(c.Asks), len(c.Documents))
	}
	langs, labels := map[string]int{}, map[string]int{}
	for _, a := range c.Asks {
		langs[a.Lang]++
		labels[a.Label]++
	}
	for _, l := range []string{"en", "de", "fr", "es", "it", "nl", "pt", "pl"} {
		if langs[l] < 50 {
			t.Errorf("%d asks in %s, want 50", langs[l], l)
		}
	}
	for l, n := range labels {
		if n < 150 {
			t.Errorf("%d asks labelled %s, want 150", n, l)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, lines := range map[string]string{
		"repeated id":   `{"id":"x-1","text":"a b","label":"general"}` + "\n" + `{"id":"x-1","text":"c d","label":"general"}`,
		"repeated text": `{"id":"x-1","text":"a b","label":"general"}` + "\n" + `{"id":"x-2","text":"A  b","label":"general"}`,
		"unknown label": `{"id":"x-1","text":"a b","label":"cooking"}`,
		"no text":       `{"id":"x-1","text":" ","label":"general"}`,
		"no JSON":       `{"id":`,
	} {
		fs := fstest.MapFS{"r/asks/x.jsonl": {Data: []byte(lines)}}
		if _, err := corpus.Load(fs, "r"); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// TestCompose: the composed requests carry the ask where they say it is, and
// composing again gives the same.
func TestCompose(t *testing.T) {
	c := load(t)
	one, two := c.Compose(), c.Compose()
	if len(one) != len(two) {
		t.Fatalf("%d requests, then %d", len(one), len(two))
	}
	for i, r := range one {
		if r.ID != two[i].ID || len(r.Messages) != len(two[i].Messages) || r.Messages[len(r.Messages)-1] != two[i].Messages[len(r.Messages)-1] {
			t.Fatalf("request %d differs: %s and %s", i, r.ID, two[i].ID)
		}
		for _, a := range r.Asks {
			if text := r.Messages[a.Message].Text; a.Start < 0 || a.End > len(text) || a.Start >= a.End {
				t.Errorf("%s: ask at %d:%d of %d bytes", r.ID, a.Start, a.End, len(text))
			}
		}
	}
}

// TestDevelopmentSetStaysOut: no ask repeats a message of the labelled set that
// is kept outside the repository.
func TestDevelopmentSetStaysOut(t *testing.T) {
	path := os.Getenv("TENURE_ROUTING_DEV")
	if path == "" {
		t.Skip("TENURE_ROUTING_DEV names no labelled set")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	key := func(s string) string { return strings.Join(strings.Fields(strings.ToLower(s)), " ") }
	held := map[string]string{}
	for line := range bytes.Lines(b) {
		var it struct {
			ID       string
			Messages []struct{ Content string }
		}
		if err := json.Unmarshal(line, &it); err != nil {
			t.Fatal(err)
		}
		for _, m := range it.Messages {
			for p := range strings.SplitSeq(m.Content, "\n") {
				if len(strings.Fields(p)) >= 4 {
					held[key(p)] = it.ID
				}
			}
		}
	}
	for _, a := range load(t).Asks {
		if id := held[key(a.Text)]; id != "" {
			t.Errorf("%s repeats %s", a.ID, id)
		}
	}
}

// TestOrdersAreNotAsked: beside a document with an order, what is asked is the
// ask as it was written and no more, and the score learns nothing from it.
func TestOrdersAreNotAsked(t *testing.T) {
	c, n := load(t), 0
	written := map[string]string{}
	for _, a := range c.Asks {
		written[a.ID] = a.Text
	}
	for _, r := range c.Compose() {
		if r.Slice != "order" {
			continue
		}
		n++
		if r.Lesson != task.CutOnly {
			t.Errorf("%s: lesson %d", r.ID, r.Lesson)
		}
		for _, a := range r.Asks {
			if got := r.Messages[a.Message].Text[a.Start:a.End]; got != written[r.ID] {
				t.Errorf("%s: asked %q", r.ID, got)
			}
		}
	}
	if n < 1000 {
		t.Errorf("%d requests with orders, want 1000", n)
	}
}
