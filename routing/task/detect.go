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
	lex *lexicon
	w   weights

	override, vocative int // the concepts by which injected text is known
	chain              int // the one that orders steps
	domain             int // the words of the trade
	weak               concepts
	pool               sync.Pool
}

type document struct {
	kind, start, end int
}

// concepts is a set of concepts by index.
type concepts uint64

func (c concepts) has(k int) bool { return c>>k&1 != 0 }

type hit struct {
	concept    uint8
	negated    bool
	start, end int32 // in the folded text
}

// scratch is what one call works in; none of it outlives the call.
type scratch struct {
	lines    []line
	regions  []region
	text     []byte
	at       []int32
	hits     []hit
	pos      concepts // present
	neg      concepts // present only under a negation
	late     concepts // present after the turn
	turn     int      // where in s.text the last of several steps begins
	weak     concepts // no deliverables
	domain   int
	docs     []document
	pieces   []piece
	feat     features
	x        facts
	injected bool    // an instruction to the machine was found in a document
	floor    float32 // what an ask must be worth in this conversation
}

// New returns a detector.
func New() (*Detector, error) {
	l, err := parseLexicon(lexiconText, tasks)
	if err != nil {
		return nil, err
	}
	d := &Detector{lex: l}
	if err := d.w.unmarshal(weightsFile); err != nil {
		return nil, err
	}
	d.ready()
	return d, nil
}

// ready finishes a detector whose lexicon and weights are set.
func (d *Detector) ready() {
	for k, c := range d.lex.concepts {
		if weak(c.name) {
			d.weak |= 1 << k
		}
		switch c.name {
		case "override":
			d.override = k
		case "vocative":
			d.vocative = k
		case "chain":
			d.chain = k
		case "domain":
			d.domain = k
		}
	}
	d.pool.New = func() any { return &scratch{weak: d.weak, domain: d.domain} }
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
	last, ok := newest(in)
	if ok && background(in, in.Messages[last].Text) {
		r.Background = true
		r.Task, r.Confidence, r.Cause = General, 1, Rule
		r.Scores = map[string]float64{General: 1}
		r.Evidence = []Evidence{{Rule: "background", Span: Span{Message: last, End: len(in.Messages[last].Text)}}}
		return r
	}
	p := probs{general: 1}
	cause := Abstained
	s.floor = floorOpen
	for i := range in.Messages {
		if m := &in.Messages[i]; m.Role == "system" || m.Role == "developer" {
			q := d.standing(s, m.Text)
			p = q.settle(p)
			if q[deferring] < 0.5 {
				cause = Score
				s.floor = floorTold
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
		q := probs{deferring: 1}
		if d.read(s, in, i) {
			q = d.score(s)
			if s.x.docs == [8]int{} && p[general] > 0.99 {
				q = q.alone()
			}
			q = q.tilt(p)
		}
		carried = q[deferring] > 0.5
		if !carried {
			cause = Score
		} else if i == last && i > 0 && cause == Score {
			cause = Carried
		}
		p = q.settle(p)
		if i == last {
			for _, c := range s.docs {
				r.Documents = append(r.Documents, Document{Kind: kinds[c.kind], Span: Span{Message: i, Start: c.start, End: c.end}})
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

// newest finds the newest user message that says anything.
func newest(in Input) (int, bool) {
	i := len(in.Messages) - 1
	for i >= 0 && (in.Messages[i].Role != "user" || strings.TrimSpace(in.Messages[i].Text) == "") {
		i--
	}
	return i, i >= 0
}

// read cuts message m, names its documents and puts its ask into s.text; it
// reports whether there is any.
func (d *Detector) read(s *scratch, in Input, m int) bool {
	text := in.Messages[m].Text
	s.split(text)
	d.rate(s, text)
	s.cut(s.floor)
	d.distrust(s, text)
	s.x = d.documents(s, text)
	s.x.json = in.JSON
	for i := range m {
		s.x.history = s.x.history || in.Messages[i].Role == "assistant"
	}
	d.askText(s, text)
	return len(s.text) > 0
}

// askText puts the asks of a message that has been cut into s.text.
func (d *Detector) askText(s *scratch, text string) {
	s.text, s.at = s.text[:0], s.at[:0]
	for _, g := range s.regions {
		if g.ask {
			s.appendAsk(text, g.start, g.end)
		}
	}
	d.concepts(s)
	d.order(s)
}

func (s *scratch) appendAsk(text string, start, end int) {
	if len(s.text) > 0 {
		s.text, s.at = append(s.text, sentence), append(s.at, int32(start))
	}
	s.text, s.at = fold(s.text, s.at, text[start:min(end, start+askBytes)], start)
}

// score tells the task of the ask in s.text.
func (d *Detector) score(s *scratch) probs {
	s.askFeatures(&s.feat, s.x)
	var z probs
	d.w.ask.logits(&s.feat, z[:])
	for k := range z {
		z[k] /= d.w.temperature
	}
	return z.softmax()
}

// standing tells the task a system prompt states, all of its mass deferring
// when it states none or several.
func (d *Detector) standing(s *scratch, text string) probs {
	s.text, s.at = fold(s.text[:0], s.at[:0], text[:min(len(text), askBytes)], 0)
	d.concepts(s)
	s.askFeatures(&s.feat, facts{})
	var z probs
	d.w.system.logits(&s.feat, z[:])
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
	s.turn, s.late = 0, 0
}

// order finds the turn of an ask that names steps: "do this, then that" asks
// for that.
func (d *Detector) order(s *scratch) {
	for _, h := range s.hits {
		if int(h.concept) == d.chain && int(h.start) > 12 && len(s.text)-int(h.end) > 12 {
			s.turn = int(h.start)
		}
	}
	for _, h := range s.hits {
		if !h.negated && int(h.start) >= s.turn {
			s.late |= 1 << h.concept
		}
	}
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
		switch {
		case l.fixed:
		case !s.near(i, n):
			l.score = middle
		default:
			d.lineText(s, text, i)
			s.lineFeatures(&s.feat, i)
			var z [1]float32
			d.w.line.logits(&s.feat, z[:])
			l.score = max(-lineCap, min(lineCap, z[0]))
			if l.inline {
				l.score = max(l.score, inlineDoc)
			}
		}
	}
}

const lineCap = 4

// distrust takes back asks that talk to a machine over the reader's head: a
// document that ends in "ignore previous instructions" does not get a say. Text
// that is nothing but ask is left alone, for its author may say what he likes.
func (d *Detector) distrust(s *scratch, text string) {
	s.injected = false
	docs, good := false, 0
	for n := range s.regions {
		g := &s.regions[n]
		if !g.ask {
			docs = true
			continue
		}
		for i := g.lines[0]; i < g.lines[1]; i++ {
			l := &s.lines[i]
			d.lineText(s, text, i)
			l.suspect = 0
			switch found := s.pos | s.neg; {
			case found.has(d.override):
				l.suspect = 2
			case found.has(d.vocative):
				l.suspect = 1
			}
			// A paragraph is as suspect as its worst line.
			if i > g.lines[0] && !l.gap {
				l.suspect = max(l.suspect, s.lines[i-1].suspect)
			}
		}
		for i := g.lines[1] - 2; i >= g.lines[0]; i-- {
			if !s.lines[i+1].gap {
				s.lines[i].suspect = max(s.lines[i].suspect, s.lines[i+1].suspect)
			}
		}
		for i := g.lines[0]; i < g.lines[1]; i++ {
			if s.lines[i].suspect == 0 {
				good++
			}
		}
	}
	if !docs {
		return
	}
	for n := range s.regions {
		g := &s.regions[n]
		if !g.ask {
			continue
		}
		if g.tail && g.joined && n > 0 && s.regions[0].ask {
			g.ask = false
			continue
		}
		a, b := g.lines[0], g.lines[1]
		bad := func(i int) bool { return s.lines[i].suspect == 2 || s.lines[i].suspect == 1 && good > 0 }
		for a < b && bad(a) {
			a++
			s.injected = true
		}
		for b > a && bad(b-1) {
			b--
			s.injected = true
		}
		if a == b {
			g.ask = false
			continue
		}
		g.lines = [2]int{a, b}
		g.start, g.end = s.lines[a].start, s.lines[b-1].end
	}
}

// near reports whether line i is close enough to an end to be scored.
func (s *scratch) near(i, n int) bool {
	return s.lines[i].start <= scored || s.lines[i].end >= n-scored
}

func (d *Detector) lineText(s *scratch, text string, i int) {
	l := &s.lines[i]
	s.text, s.at = fold(s.text[:0], s.at[:0], text[l.start:min(l.end, l.start+longLine)], l.start)
	d.concepts(s)
}

// chunk is how much of a document is read at a time to tell its kind, and
// chunks how many pieces of a region are read at most.
const (
	chunk  = 500
	chunks = 16
	// What it costs to say that the kind changes: little where a label, a fence
	// or a rule announces something new.
	changeBare  = 4
	changeShown = 1
)

type piece struct {
	lines [2]int
	shown bool // begins at a boundary that shows
	fresh bool // begins like a new document of the same kind
	logp  [8]float32
	from  [8]int8
	kind  int
}

// documents names the regions that are not asked: their kinds, and where one
// document gives way to the next. Every piece is rated by itself; the kinds are
// the likeliest sequence (Viterbi), for a CV does not turn into a job
// description and back.
func (d *Detector) documents(s *scratch, text string) facts {
	var x facts
	s.docs = s.docs[:0]
	for _, g := range s.regions {
		if g.ask {
			x.bytes += g.end - g.start
			continue
		}
		s.pieces = s.pieces[:0]
		size := max(chunk, (g.end-g.start)/chunks+1)
		for i := g.lines[0]; i < g.lines[1]; {
			j := i + 1
			for ; j < g.lines[1]; j++ {
				n := s.lines[j].start - s.lines[i].start
				if s.shows(j) && n > 40 || n >= size && s.lines[j].gap || n >= 2*size {
					break
				}
			}
			p := piece{lines: [2]int{i, j}, shown: s.shows(i)}
			for k := i; k < min(i+4, j); k++ {
				p.fresh = p.fresh || s.lines[k].cues&cueContact != 0
			}
			d.kind(s, text, &p)
			s.pieces = append(s.pieces, p)
			i = j
		}
		s.name()
	}
	for _, c := range s.docs {
		x.docs[c.kind]++
	}
	return x
}

// shows reports whether a new document may be announced at line i.
func (s *scratch) shows(i int) bool {
	l := &s.lines[i]
	if l.cues&cueLabel != 0 {
		return true
	}
	if i == 0 || !l.gap {
		return false
	}
	p := &s.lines[i-1]
	return p.cues&cueRule != 0 && p.end-p.start >= 3 || l.cues&cueTag != p.cues&cueTag
}

// name finds the likeliest kinds of the pieces and appends their documents.
func (s *scratch) name() {
	n := len(s.pieces)
	if n == 0 {
		return
	}
	for i := 1; i < n; i++ {
		p, q := &s.pieces[i], &s.pieces[i-1]
		cost := float32(changeBare)
		if p.shown {
			cost = changeShown
		}
		best := 0
		for k := range q.logp {
			if q.logp[k] > q.logp[best] {
				best = k
			}
		}
		for k := range p.logp {
			p.from[k] = int8(k)
			v := q.logp[k]
			if w := q.logp[best] - cost; w > v {
				p.from[k], v = int8(best), w
			}
			p.logp[k] += v
		}
	}
	k := 0
	for j, v := range s.pieces[n-1].logp {
		if v > s.pieces[n-1].logp[k] {
			k = j
		}
	}
	for i := n - 1; i >= 0; i-- {
		p := &s.pieces[i]
		p.kind = k
		k = int(p.from[k])
	}
	first := len(s.docs)
	for i := range s.pieces {
		p := &s.pieces[i]
		a, b, kind := s.lines[p.lines[0]].start, s.lines[p.lines[1]-1].end, p.kind
		if m := len(s.docs); m > first && s.docs[m-1].kind == kind && !(p.shown || kind == 0 && p.fresh && a-s.docs[m-1].start > 300) {
			s.docs[m-1].end = b
			continue
		}
		s.docs = append(s.docs, document{kind: kind, start: a, end: b})
	}
}

// kind rates what a piece is.
func (d *Detector) kind(s *scratch, text string, p *piece) {
	i, j := p.lines[0], p.lines[1]
	a := s.lines[i].start
	s.text, s.at = fold(s.text[:0], s.at[:0], text[a:min(s.lines[j-1].end, a+chunk)], a)
	s.docFeatures(&s.feat, i, j)
	d.w.doc.logits(&s.feat, p.logp[:])
	top := p.logp[0]
	for _, v := range p.logp {
		top = max(top, v)
	}
	for k := range p.logp { // a single piece is never certain
		p.logp[k] = max(p.logp[k]-top, -6)
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

// tilt leans an ask towards what stands already: the system prompt's task, or
// that of the turn before. A clear ask does not notice.
func (p probs) tilt(to probs) probs {
	var sum float32
	for k := range p {
		if k != general {
			p[k] *= 1 + lean*to[k]
		}
		sum += p[k]
	}
	for k := range p {
		p[k] /= sum
	}
	return p
}

const lean = 3

// alone takes most of the deferring mass off an ask that stands beside no
// document and after nothing that it could defer to.
func (p probs) alone() probs {
	rest := 1 - p[deferring]
	p[deferring] /= 8
	for k := range general + 1 {
		p[k] *= (1 - p[deferring]) / max(rest, 1e-6)
	}
	return p
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
