package task

import (
	"math"
	"strings"
	"sync"
)

// tasks are the classes, in the order of every table; a deferring ask names
// none and leaves the choice to what came before it.
var tasks = []string{ResumeParsing, BiasDetection, MatchingLogic, ScriptGeneration, ReportGeneration, General} //nolint:gochecknoglobals // compiled table

const (
	general    = 5
	deferring  = 6
	classes    = 7
	turns      = 6 // earlier user turns that are looked at
	askBytes   = 2048
	docsAtMost = 32
)

type probs [classes]float32

// Detector holds everything that scoring reads. It is safe for concurrent use.
type Detector struct {
	lex  *lexicon
	pool sync.Pool
}

type hit struct {
	concept    uint8
	negated    bool
	start, end int32 // in the folded text
}

// scratch is what one call works in; none of it outlives the call.
type scratch struct {
	lines   []line
	regions []region
	text    []byte
	at      []int32
	hits    []hit
	pos     uint64 // concepts present
	neg     uint64 // concepts present only under a negation
}

// New returns a detector.
func New() (*Detector, error) {
	l, err := parseLexicon(lexiconText, tasks)
	if err != nil {
		return nil, err
	}
	d := &Detector{lex: l}
	d.pool.New = func() any { return new(scratch) }
	return d, nil
}

var standard = sync.OnceValue(func() *Detector { //nolint:gochecknoglobals // the embedded tables, compiled once
	d, err := New()
	if err != nil {
		panic(err) // the embedded lexicon does not parse: a test reads it
	}
	return d
})

// Detect tells the task of a conversation with the embedded tables.
func Detect(in Input) Result { return standard().Detect(in) }

// Detect tells the task of a conversation.
func (d *Detector) Detect(in Input) Result {
	s := d.pool.Get().(*scratch)
	defer d.pool.Put(s)
	var r Result
	last := len(in.Messages) - 1
	for last >= 0 && (in.Messages[last].Role != "user" || strings.TrimSpace(in.Messages[last].Text) == "") {
		last--
	}
	if last >= 0 && background(in, in.Messages[last].Text) {
		r.Background = true
		r.Task, r.Confidence, r.Cause = General, 1, Rule
		r.Scores = map[string]float64{General: 1}
		r.Evidence = []Evidence{{Rule: "background", Span: Span{Message: last, End: len(in.Messages[last].Text)}}}
		return r
	}
	p := probs{general: 1}
	cause := Abstained
	for i := range in.Messages {
		if m := &in.Messages[i]; m.Role == "system" || m.Role == "developer" {
			q := d.ask(s, m.Text)
			if top := q.top(); top != deferring && top != general {
				p, cause = q.settle(probs{general: 1}), Score
			}
		}
	}
	first := last
	for n := 0; first > 0 && n < turns; first-- {
		if in.Messages[first-1].Role == "user" {
			n++
		}
	}
	carried := false
	for i := max(first, 0); i <= last; i++ {
		m := &in.Messages[i]
		if m.Role != "user" {
			continue
		}
		s.regions = s.regions[:0]
		s.split(m.Text)
		d.rate(s, m.Text)
		s.cut()
		q := d.regions(s, m.Text)
		carried = q[deferring] > 0.5
		if !carried {
			cause = Score
		} else if i == last && i > 0 && cause == Score {
			cause = Carried
		}
		p = q.settle(p)
		if i == last {
			for _, g := range s.regions {
				if !g.ask && len(r.Documents) < docsAtMost {
					r.Documents = append(r.Documents, Document{Kind: "context", Span: Span{Message: i, Start: g.start, End: g.end}})
				}
			}
			for _, h := range s.hits {
				if len(r.Evidence) < 8 {
					r.Evidence = append(r.Evidence, Evidence{Rule: d.lex.concepts[h.concept].name, Span: Span{Message: i, Start: int(s.at[h.start]), End: int(s.at[h.end-1]) + 1}})
				}
			}
		}
	}
	top := p.top()
	r.Task, r.Confidence, r.Cause = tasks[top], float64(p[top]), cause
	if cause == Carried {
		r.Flags = append(r.Flags, "carry")
	}
	if top != general && p[top] < 0.3 {
		r.Task, r.Confidence, r.Cause = General, float64(p[general]), Abstained
		r.Flags = append(r.Flags, "ambiguous")
	}
	r.Scores = make(map[string]float64, len(tasks))
	for k, name := range tasks {
		r.Scores[name] = float64(p[k])
	}
	return r
}

// regions scores the ask of a message that has been cut.
func (d *Detector) regions(s *scratch, text string) probs {
	s.text, s.at = s.text[:0], s.at[:0]
	for _, g := range s.regions {
		if g.ask {
			end := min(g.end, g.start+askBytes)
			s.text, s.at = fold(append(s.text, sentence), append(s.at, int32(g.start)), text[g.start:end], g.start)
		}
	}
	return d.score(s)
}

// ask scores a text that is all ask.
func (d *Detector) ask(s *scratch, text string) probs {
	s.text, s.at = fold(s.text[:0], s.at[:0], text[:min(len(text), askBytes)], 0)
	return d.score(s)
}

func (d *Detector) score(s *scratch) probs {
	d.concepts(s)
	var z probs
	z[general], z[deferring] = -0.2, 0.7
	for k := range d.lex.concepts {
		for t, w := range d.lex.concepts[k].prior {
			switch {
			case s.pos>>k&1 != 0:
				z[t] += w
			case s.neg>>k&1 != 0:
				z[t] -= 0.3 * w
			}
		}
		if d.lex.concepts[k].name == "carry" && s.pos>>k&1 != 0 && len(s.text) < 60 {
			z[deferring] += 1.2
		}
	}
	for k := range z {
		z[k] *= 1.5
	}
	return z.softmax()
}

// concepts finds the phrases of the lexicon in the folded text.
func (d *Detector) concepts(s *scratch) {
	s.hits, s.pos, s.neg = s.hits[:0], 0, 0
	denied := 0 // words left under a negation
	for i := 0; i < len(s.text); {
		if s.text[i] <= space {
			if s.text[i] != space {
				denied = 0
			}
			i++
			continue
		}
		end := i
		for end < len(s.text) && s.text[end] > space {
			end++
		}
		d.lex.find(s.text, i, func(c uint8, stop int) {
			s.hits = append(s.hits, hit{concept: c, negated: denied > 0, start: int32(i), end: int32(stop)})
			if denied > 0 {
				s.neg |= 1 << c
			} else {
				s.pos |= 1 << c
			}
		})
		if denied > 0 {
			denied--
		}
		if negates(s.text[i:end]) {
			denied = 5
		}
		i = end
	}
	s.neg &^= s.pos
}

// negates reports whether a folded word denies what follows it.
func negates(w []byte) bool {
	switch string(w) {
	case "not", "dont", "no", "never", "without", "isnt", "wasnt", "doesnt", "didnt", "arent", "cannot", "cant", "wont", "nothing", "neither", "nor", "skip", "ignore", "forget", "stop",
		"nicht", "kein", "keine", "keinen", "keiner", "ohne", "pas", "sans", "aucun", "aucune", "ni", "sin", "ningun", "ninguna", "non", "senza", "nessun", "nessuna", "niet", "geen", "zonder",
		"nie", "bez", "zadnego", "nao", "sem", "nenhum", "nenhuma":
		return true
	}
	return false
}

// rate scores the lines that structure has not settled.
func (d *Detector) rate(s *scratch, text string) {
	n := len(text)
	for i := range s.lines {
		l := &s.lines[i]
		if l.fixed {
			continue
		}
		if l.start > scored && l.end < n-scored {
			l.score = middle
			continue
		}
		s.text, s.at = fold(s.text[:0], s.at[:0], text[l.start:min(l.end, l.start+400)], l.start)
		d.concepts(s)
		v := float32(-0.2)
		for _, c := range []struct {
			cue uint32
			w   float32
		}{
			{cueBullet, -1}, {cueLabel, -1}, {cueQuestion, 1.5}, {cueContact, -2}, {cueYear, -1.2}, {cueTable, -1.5}, {cueKey, -0.8}, {cueJSON, -2}, {cueCaps, -1},
			{cueQuote, -1}, {cueSpeak, -1.5}, {cueDigits, -0.7}, {cueStop, 0.2}, {cueFirst, 0.4}, {cueLast, 0.4}, {cueInLabel, -1.5}, {cueShort, -0.3},
		} {
			if l.cues&c.cue != 0 {
				v += c.w
			}
		}
		speech := false
		for k, c := range d.lex.concepts {
			if (s.pos|s.neg)>>k&1 == 0 {
				continue
			}
			for _, w := range c.prior {
				v += 0.25 * max(w, 0)
			}
		}
		for w := range strings.FieldsSeq(string(s.text)) {
			switch w {
			case "please", "you", "me", "us", "i", "this", "below", "above", "we", "bitte", "mir", "uns", "wir", "por", "favor", "merci", "pls", "your", "the", "attached", "following":
				speech = true
			}
		}
		if speech {
			v += 0.6
		}
		l.score = v
	}
}

// background recognises what a chat application asks on its own account.
func background(in Input, text string) bool {
	if len(in.Tools) > 0 {
		return false
	}
	users := 0
	for i := range in.Messages {
		if in.Messages[i].Role == "user" {
			users++
		}
	}
	return users == 1 && strings.Contains(text, "<chat_history>")
}

func (p *probs) top() int {
	best := 0
	for k, v := range p {
		if v > p[best] {
			best = k
		}
	}
	return best
}

// settle gives the mass of a deferring ask to what it defers to.
func (p probs) settle(to probs) probs {
	d := p[deferring]
	p[deferring] = 0
	for k := range p {
		p[k] += d * to[k]
	}
	return p
}

func (p probs) softmax() probs {
	m := p[p.top()]
	var sum float64
	for k := range p {
		e := math.Exp(float64(p[k] - m))
		p[k] = float32(e)
		sum += e
	}
	for k := range p {
		p[k] /= float32(sum)
	}
	return p
}
