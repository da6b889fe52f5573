// Package corpus reads the labelled texts the router learns from and composes
// them into requests.
//
// Asks, documents, system prompts and conversations are written apart, so that
// one ask is met before, after and around many documents and never becomes
// tied to one. Composition is deterministic.
package corpus

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"tenure/routing/task"
)

// Ask is one thing a person may ask, and the kinds of document it goes with.
// One flagged examples teaches what is asked, not which lines are.
type Ask struct {
	ID, Text, Label, Lang, Style string
	Docs, Flags                  []string
}

// System is a system prompt: the task it states, or umbrella or persona.
type System struct {
	ID, Text, Label, Lang string
}

// Document is something people paste.
type Document struct {
	ID, Kind, Lang, Text string
}

// Turn is one message of a conversation.
type Turn struct {
	Role, Content string
}

// Conversation is a whole request with its label.
type Conversation struct {
	ID, Label, Lang, Slice string
	Messages               []Turn
	Flags                  []string
}

// Corpus is everything, in the order of the file names and lines.
type Corpus struct {
	Asks          []Ask
	Systems       []System
	Documents     []Document
	Conversations []Conversation
}

// Load reads asks, systems, documents and conversations/*.jsonl below root and
// checks them: unique ids and texts, known labels and kinds.
func Load(fsys fs.FS, root string) (*Corpus, error) {
	c := new(Corpus)
	if err := read(fsys, path.Join(root, "asks"), &c.Asks); err != nil {
		return nil, err
	}
	if err := read(fsys, path.Join(root, "systems"), &c.Systems); err != nil {
		return nil, err
	}
	if err := read(fsys, path.Join(root, "documents"), &c.Documents); err != nil {
		return nil, err
	}
	if err := read(fsys, path.Join(root, "conversations"), &c.Conversations); err != nil {
		return nil, err
	}
	return c, c.check()
}

func read[T any](fsys fs.FS, dir string, to *[]T) error {
	names, err := fs.Glob(fsys, path.Join(dir, "*.jsonl"))
	if err != nil {
		return fmt.Errorf("corpus: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return fmt.Errorf("corpus: %w", err)
		}
		sc := bufio.NewScanner(bytes.NewReader(b))
		sc.Buffer(nil, 1<<24)
		for n := 1; sc.Scan(); n++ {
			if len(bytes.TrimSpace(sc.Bytes())) == 0 {
				continue
			}
			var x T
			if err := json.Unmarshal(sc.Bytes(), &x); err != nil {
				return fmt.Errorf("corpus: %s:%d: %w", name, n, err)
			}
			*to = append(*to, x)
		}
		if err := sc.Err(); err != nil {
			return fmt.Errorf("corpus: %s: %w", name, err)
		}
	}
	return nil
}

func (c *Corpus) check() error {
	ids, texts := map[string]bool{}, map[string]string{}
	seen := func(id, text string) error {
		key := strings.Join(strings.Fields(strings.ToLower(text)), " ")
		switch {
		case id == "" || key == "":
			return fmt.Errorf("corpus: %q: empty id or text", id)
		case ids[id]:
			return fmt.Errorf("corpus: %s occurs twice", id)
		case texts[key] != "":
			return fmt.Errorf("corpus: %s repeats %s", id, texts[key])
		}
		ids[id], texts[key] = true, id
		return nil
	}
	for _, a := range c.Asks {
		if err := seen(a.ID, a.Text); err != nil {
			return err
		}
		if !known(a.Label) && a.Label != task.Defer {
			return fmt.Errorf("corpus: %s: label %q", a.ID, a.Label)
		}
	}
	for _, s := range c.Systems {
		if err := seen(s.ID, s.Text); err != nil {
			return err
		}
		if !known(s.Label) && s.Label != "umbrella" && s.Label != "persona" {
			return fmt.Errorf("corpus: %s: label %q", s.ID, s.Label)
		}
	}
	for _, d := range c.Documents {
		if err := seen(d.ID, d.Text); err != nil {
			return err
		}
		if !slices.Contains([]string{"cv", "jd", "transcript", "notes", "data", "mail", "code", "tool", "rag"}, d.Kind) {
			return fmt.Errorf("corpus: %s: kind %q", d.ID, d.Kind)
		}
	}
	for _, v := range c.Conversations {
		var b strings.Builder
		for _, m := range v.Messages {
			b.WriteString(m.Role + ": " + m.Content + "\n")
		}
		if err := seen(v.ID, b.String()); err != nil {
			return err
		}
		if !known(v.Label) {
			return fmt.Errorf("corpus: %s: label %q", v.ID, v.Label)
		}
	}
	return nil
}

func known(label string) bool {
	switch label {
	case task.ResumeParsing, task.BiasDetection, task.MatchingLogic, task.ScriptGeneration, task.ReportGeneration, task.General:
		return true
	}
	return false
}

// Author is who wrote an entry: the part of its id before the first dash.
func Author(id string) string {
	a, _, _ := strings.Cut(id, "-")
	return a
}

// Only returns what keep admits of the asks, systems and conversations; the
// documents stay.
func (c *Corpus) Only(keep func(id string) bool) *Corpus {
	o := &Corpus{Documents: c.Documents}
	for _, a := range c.Asks {
		if keep(a.ID) {
			o.Asks = append(o.Asks, a)
		}
	}
	for _, s := range c.Systems {
		if keep(s.ID) {
			o.Systems = append(o.Systems, s)
		}
	}
	for _, v := range c.Conversations {
		if keep(v.ID) {
			o.Conversations = append(o.Conversations, v)
		}
	}
	return o
}
