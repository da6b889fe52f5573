package corpus

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"

	"tenure/routing/task"
)

// Places are where a document can stand relative to the ask.
var Places = []string{"after", "before", "around"} //nolint:gochecknoglobals // compiled table

// A frame is how a document is set off from what is asked.
type frame struct{ open, shut string }

func frames(kind string) []frame {
	name := map[string]string{"cv": "CV", "jd": "Job description", "transcript": "Transcript", "notes": "Notes", "data": "Data", "mail": "Email", "code": "Code", "tool": "Tool output", "rag": "Context"}[kind]
	id := map[string]string{"cv": "resume", "jd": "job_description", "transcript": "transcript", "notes": "notes", "data": "data", "mail": "email", "code": "code", "tool": "tool_output", "rag": "context"}[kind]
	return []frame{
		{"", ""},
		{"", ""},
		{name + ":\n", ""},
		{strings.ToUpper(name) + "\n", ""},
		{"### " + name + "\n", ""},
		{"**" + name + "**\n\n", ""},
		{"--- " + name + " ---\n", "\n---"},
		{"<" + id + ">\n", "\n</" + id + ">"},
		{"<document>\n", "\n</document>"},
		{"```\n", "\n```"},
		{"\"\"\"\n", "\n\"\"\""},
		{"---\n", "\n---"},
	}
}

// composer composes one entry; its randomness depends on the entry's id alone,
// so that adding entries leaves the others as they were.
type composer struct {
	rng   *rand.Rand
	docs  [2]map[string][]Document // by fold
	fold  int
	order string // slipped into what is pasted, unless empty
}

func (c *Corpus) composer() *composer {
	m := &composer{docs: [2]map[string][]Document{{}, {}}}
	for _, d := range c.Documents {
		f := half(d.ID)
		m.docs[f][d.Kind] = append(m.docs[f][d.Kind], d)
	}
	return m
}

func (m *composer) seed(id string) {
	h := fnv.New64a()
	h.Write([]byte(id))
	m.rng = rand.New(rand.NewPCG(h.Sum64(), 7))
	m.fold = half(id)
}

// half splits ids in two.
func half(id string) int {
	h := fnv.New32a()
	h.Write([]byte(id))
	return int(h.Sum32()>>7) & 1
}

func (m *composer) pick(kind, lang string) (Document, bool) {
	all := m.docs[m.fold][kind]
	if len(all) == 0 {
		return Document{}, false
	}
	// An ask meets documents of its own language two times in three.
	if m.rng.IntN(3) > 0 {
		for range 8 {
			if d := all[m.rng.IntN(len(all))]; d.Lang == lang {
				return d, true
			}
		}
	}
	return all[m.rng.IntN(len(all))], true
}

// paste returns documents of the given kinds, framed and joined.
func (m *composer) paste(kinds []string, lang string) (text string, framed bool) {
	var parts []string
	for _, k := range kinds {
		n := 1
		if k == "cv" && len(kinds) == 1 && m.rng.IntN(6) == 0 {
			n = 2 + m.rng.IntN(2)
		}
		for range n {
			if d, ok := m.pick(k, lang); ok {
				fs := frames(k)
				f := fs[m.rng.IntN(len(fs))]
				framed = framed || f.open != ""
				text := strings.TrimSpace(d.Text)
				if m.rng.IntN(2) == 0 {
					text = m.excerpt(text)
				}
				if m.order != "" {
					text = m.slip(text, m.order)
				}
				parts = append(parts, f.open+text+f.shut)
			}
		}
	}
	return strings.Join(parts, "\n\n"), framed
}

// excerpt cuts a piece of some lines out of a document, so that pasted text may
// begin and end anywhere.
func (m *composer) excerpt(text string) string {
	lines := strings.Split(text, "\n")
	n := len(lines)
	if n < 4 {
		return text
	}
	i := 0
	if m.rng.IntN(2) == 0 {
		i = m.rng.IntN(n / 2)
	}
	j := i + 2 + m.rng.IntN(n-i-1)
	if out := strings.TrimSpace(strings.Join(lines[i:min(j, n)], "\n")); out != "" {
		return out
	}
	return text
}

// Request is a composed request.
type Request struct {
	ID string
	task.Sample
	Flags []string
	Slice string // how it was composed
	Lang  string
}

// Compose makes the requests to train on.
func (c *Corpus) Compose() []Request {
	m := c.composer()
	var out []Request
	var general []System // umbrella and persona prompts state no task
	for _, s := range c.Systems {
		if s.Label == "umbrella" || s.Label == "persona" {
			general = append(general, s)
		}
	}
	for _, a := range c.Asks {
		m.seed(a.ID)
		if slices.Contains(a.Flags, "carry") || slices.Contains(a.Flags, "later") { // means something behind an earlier turn only
			out = append(out, m.later(m.request(a, a.Text, nil, "alone")), m.later(m.request(a, m.noise(a.Text), nil, "alone")))
			continue
		}
		if a.Style == "pattern" {
			// Built from lists for the sake of the vocabulary, not of the style:
			// once each.
			place := "alone"
			if len(a.Docs) > 0 {
				place = Places[m.rng.IntN(2)]
			}
			out = append(out, m.request(a, a.Text, a.Docs, place))
			continue
		}
		// What goes with a document is seldom asked without one.
		if len(a.Docs) == 0 || m.rng.IntN(5) == 0 {
			out = append(out, m.request(a, a.Text, nil, "alone"))
		}
		if m.rng.IntN(4) == 0 {
			out = append(out, m.later(m.request(a, a.Text, nil, "alone")))
		}
		noisy := m.noise(a.Text)
		docs := a.Docs
		if len(docs) == 0 {
			out = append(out, m.request(a, noisy, nil, "alone"))
			continue
		}
		out = append(out, m.request(a, a.Text, docs, Places[m.rng.IntN(2)]), m.request(a, noisy, docs, Places[m.rng.IntN(2)]))
		if m.rng.IntN(4) == 0 {
			out = append(out, m.request(a, a.Text, docs, "around"))
		}
		if len(general) > 0 && m.rng.IntN(3) == 0 {
			r := m.request(a, a.Text, docs, Places[m.rng.IntN(2)])
			r.Messages = append([]task.Message{{Role: "system", Text: general[m.rng.IntN(len(general))].Text}}, r.Messages...)
			for i := range r.Asks {
				r.Asks[i].Message = 1
			}
			out = append(out, r)
		}
	}
	out = append(out, m.several(c.Asks)...)
	// A document without a word beside it.
	for _, d := range c.Documents {
		m.seed(d.ID)
		fs := frames(d.Kind)
		f := fs[m.rng.IntN(len(fs))]
		bare := func(text string) {
			out = append(out, Request{ID: d.ID, Sample: task.Sample{Label: task.Defer, Fold: m.fold, Asks: []task.Span{}, Input: one(text)}})
		}
		text := strings.TrimSpace(d.Text)
		bare(text)
		bare(f.open + text + f.shut)
		for range 4 {
			bare(m.excerpt(m.excerpt(text)))
		}
		// Announcing a document asks for nothing either.
		open := intros[m.rng.IntN(len(intros))]
		out = append(out, Request{ID: d.ID, Sample: task.Sample{Label: task.Defer, Fold: m.fold, Asks: []task.Span{{End: len(open)}}, Input: one(open + "\n\n" + text)}})
	}
	for _, v := range c.Conversations {
		r := v.Request()
		switch v.Slice {
		case "carry", "thanks", "correction", "next_item", "offer", "sys_only", "no_ask":
			r.Label = task.Defer
		}
		out = append(out, r)
	}
	return append(out, m.slipped(c)...)
}

// goings puts asks behind the turns of conversations: general ones, those of a
// task, and those that go on. They teach whether a turn goes on, not what is
// asked.
func (c *Corpus) goings() []task.Sample {
	var asks [3][]Ask
	for _, a := range c.Asks {
		switch {
		case a.Style == "pattern":
		case slices.Contains(a.Flags, "carry"):
			asks[0] = append(asks[0], a)
		case a.Label == task.General:
			asks[1] = append(asks[1], a)
		case a.Label != task.General && !slices.Contains(a.Flags, "no_ask"):
			asks[2] = append(asks[2], a)
		}
	}
	m := c.composer()
	var out []task.Sample
	for _, v := range c.Conversations {
		n := len(v.Messages)
		if n < 3 || v.Messages[n-2].Role != "assistant" {
			continue
		}
		m.seed(v.ID + "~")
		for k := range asks {
			for range 2 {
				a := asks[k][m.rng.IntN(len(asks[k]))]
				if a.Label == v.Label && k > 0 {
					continue
				}
				x := v.Request().Sample
				text := a.Text
				if len(a.Docs) > 0 && (k == 1 || m.rng.IntN(3) == 0) {
					doc, _ := m.paste(a.Docs, a.Lang)
					text += "\n\n" + doc
				}
				x.Messages[len(x.Messages)-1].Text = text
				x.Label, x.Fold = a.Label, half(a.ID)
				if k == 0 {
					x.Label = task.Defer
				}
				out = append(out, x)
			}
		}
	}
	return out
}

// later puts a request behind an earlier turn.
func (m *composer) later(r Request) Request {
	r.Messages = append([]task.Message{{Role: "user", Text: "Hello."}, {Role: "assistant", Text: "Here it is."}}, r.Messages...)
	for i := range r.Asks {
		r.Asks[i].Message += 2
	}
	return r
}

// Request returns a conversation as it would be sent. Its ask is the whole
// newest user message unless a document can be told.
func (v *Conversation) Request() Request {
	r := Request{ID: v.ID, Flags: v.Flags, Slice: v.Slice, Lang: v.Lang, Sample: task.Sample{Label: v.Label}}
	for _, t := range v.Messages {
		r.Messages = append(r.Messages, task.Message{Role: t.Role, Text: t.Content})
	}
	return r
}

func one(text string) task.Input {
	return task.Input{Messages: []task.Message{{Role: "user", Text: text}}}
}

func (m *composer) request(a Ask, text string, docs []string, place string) Request {
	r := Request{ID: a.ID, Flags: a.Flags, Sample: task.Sample{Label: a.Label, Fold: m.fold, Plain: text == a.Text && (place == Places[0] || place == Places[1])}, Slice: place, Lang: a.Lang}
	if text != a.Text {
		r.Slice += " misspelt"
	}
	if len(docs) == 0 {
		r.Input = one(text)
		r.Asks = []task.Span{{Start: 0, End: len(text)}}
		return r
	}
	gap := []string{"\n\n", "\n\n", "\n\n", "\n\n", "\n\n", "\n\n", "\n\n", "\n", "\n", " "}[m.rng.IntN(10)]
	doc, framed := m.paste(docs, a.Lang)
	if framed && gap == " " {
		gap = "\n"
	}
	r.Input, r.Asks = Place(text, gap, place, doc, m.rng)
	return r
}

// Place puts text before, after or around a pasted document, and tells where
// the text is.
func Place(text, gap, place, doc string, rng *rand.Rand) (task.Input, []task.Span) {
	switch place {
	case "after": // the document comes after
		return one(text + gap + doc), []task.Span{{Start: 0, End: len(text)}}
	case "before":
		return one(doc + gap + text), []task.Span{{Start: len(doc) + len(gap), End: len(doc) + len(gap) + len(text)}}
	default:
		open := intros[rng.IntN(len(intros))]
		if !strings.Contains(gap, "\n\n") {
			gap = "\n\n"
		}
		start := len(open) + len("\n\n") + len(doc) + len(gap)
		return one(open + "\n\n" + doc + gap + text), []task.Span{{Start: 0, End: len(open)}, {Start: start, End: start + len(text)}}
	}
}

// intros announce a document and ask for nothing.
var intros = []string{ //nolint:gochecknoglobals // compiled table
	"Hi, see below.", "Here is what I got.", "Have a look at this please:", "Please read the following carefully.", "Pasting it here:", "Material:", "ok so here it is", "Below is everything I have.",
	"Hallo, hier die Unterlagen:", "Voici le document :", "Aquí está el documento:", "Ecco il documento:", "Hier is het document:", "Oto dokument:", "Segue o documento:",
}

// thumbs is how words are typed on telephones.
var thumbs = map[string]string{ //nolint:gochecknoglobals // compiled table
	"you": "u", "your": "ur", "please": "pls", "for": "4", "to": "2", "are": "r", "and": "n", "with": "w/", "about": "abt", "what": "wat", "because": "cuz", "don't": "dont", "message": "msg",
	"this": "dis", "that": "dat", "people": "ppl", "does": "dose", "their": "there", "there": "their", "candidate": "cand", "resume": "resum", "email": "emial", "just": "jst", "could": "cud", "would": "wud", "thanks": "thx", "give": "giv", "have": "hav",
}

// noise misspells a text the way thumbs do: one word in four loses, doubles or
// swaps a letter, some are abbreviated, and everything may lose its capitals.
func (m *composer) noise(text string) string {
	words := strings.Split(text, " ")
	for i, w := range words {
		if t, ok := thumbs[strings.ToLower(w)]; ok && m.rng.IntN(3) == 0 {
			words[i] = t
			continue
		}
		r := []rune(w)
		if len(r) < 4 || m.rng.IntN(4) > 0 {
			continue
		}
		k := 1 + m.rng.IntN(len(r)-2)
		switch m.rng.IntN(4) {
		case 0, 1:
			r = slices.Delete(r, k, k+1)
		case 2:
			r = slices.Insert(r, k, r[k])
		default:
			r[k], r[k-1] = r[k-1], r[k]
		}
		words[i] = string(r)
	}
	text = strings.Join(words, " ")
	if m.rng.IntN(2) == 0 {
		text = strings.ToLower(text)
	}
	if m.rng.IntN(3) == 0 {
		text = strings.Map(func(r rune) rune {
			if strings.ContainsRune(",.?!'", r) {
				return -1
			}
			return r
		}, text)
	}
	return text
}

// rank is the order of precedence among independent deliverables.
var rank = []string{task.MatchingLogic, task.ReportGeneration, task.BiasDetection, task.ScriptGeneration, task.ResumeParsing} //nolint:gochecknoglobals // compiled table

// several joins short asks into requests for more than one thing: in steps, of
// which the last counts, or side by side, of which the highest does.
func (m *composer) several(asks []Ask) []Request {
	var short []Ask
	for _, a := range asks {
		if len(a.Text) <= 110 && a.Lang == "en" && a.Style != "pattern" && slices.Contains(rank, a.Label) && !strings.Contains(a.Text, "\n") {
			short = append(short, a)
		}
	}
	var out []Request
	for _, a := range short {
		m.seed(a.ID + "+")
		b := short[m.rng.IntN(len(short))]
		if b.Label == a.Label {
			continue
		}
		x, y := strings.TrimRight(a.Text, ".!?"), strings.TrimRight(b.Text, ".!?")
		steps := m.rng.IntN(2) == 0
		var text string
		if steps {
			form := chains[m.rng.IntN(len(chains))]
			text = strings.NewReplacer("$1", x, "$2", lower(y)).Replace(form)
		} else {
			form := lists[m.rng.IntN(len(lists))]
			text = strings.NewReplacer("$1", x, "$2", lower(y)).Replace(form)
		}
		label := b.Label
		if !steps {
			label = rank[min(slices.Index(rank, a.Label), slices.Index(rank, b.Label))]
		}
		docs := slices.Concat(a.Docs, b.Docs)
		slices.Sort(docs)
		docs = slices.Compact(docs)
		j := Ask{ID: a.ID, Text: text, Label: label, Lang: "en", Docs: docs}
		place := ""
		if len(docs) > 0 {
			place = Places[m.rng.IntN(2)]
		}
		r := m.request(j, text, docs, place)
		r.Slice = "several"
		out = append(out, r)
	}
	return out
}

func lower(s string) string {
	if len(s) > 1 && s[1] >= 'a' && s[1] <= 'z' {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}

// How steps and lists are worded. $1 and $2 stand for the asks.
var (
	chains = []string{ //nolint:gochecknoglobals // compiled table
		"$1, then $2.", "First $1. Then $2.", "$1 and then $2", "$1. Based on that, $2.", "$1; once you have that, $2", "Step 1: $1. Step 2: $2.", "$1. Using the result, $2.", "$1. After that $2.", "$1, and based on the result $2", "first $1, finally $2",
		"$1. When that's done, $2.", "$1. With that, $2", "$1. Afterwards $2, that is all I need back", "$1 (keep it to yourself), then $2", "$1. From that, $2.", "Two steps. $1. Then $2.",
	}
	lists = []string{ //nolint:gochecknoglobals // compiled table
		"$1. Also $2.", "$1 and $2", "1. $1\n2. $2", "a) $1\nb) $2", "(1) $1, (2) $2", "Two things: $1; $2", "I need: $1, and $2", "$1 + $2", "- $1\n- $2", "Please do both: $1; $2.", "Give me, separately: 1) $1 2) $2", "$1, plus $2", "$1 as well as $2",
	}
)

// Training returns everything in the form that task.Train takes.
func (c *Corpus) Training() task.Corpus {
	var t task.Corpus
	for _, r := range c.Compose() {
		s := r.Sample
		if slices.Contains(r.Flags, "carry") || slices.Contains(r.Flags, "no_ask") {
			s.Label = task.Defer
		}
		if slices.Contains(r.Flags, "examples") {
			s.Lesson = task.ScoreOnly
		}
		t.Samples = append(t.Samples, s)
	}
	t.Goings = c.goings()
	for _, s := range c.Systems {
		label := s.Label
		if label == "umbrella" || label == "persona" {
			label = task.Defer
		}
		t.Systems = append(t.Systems, task.Text{Text: s.Text, Label: label})
	}
	for _, d := range c.Documents {
		kind := d.Kind
		if kind == "tool" || kind == "rag" {
			kind = "context"
		}
		t.Documents = append(t.Documents, task.Text{Text: d.Text, Label: kind, Fold: half(d.ID)})
	}
	return t
}
