package task

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// tasks are the classes, in the order of every table; a deferring ask names
// none and leaves the choice to what came before it.
var tasks = []string{ResumeParsing, BiasDetection, MatchingLogic, ScriptGeneration, ReportGeneration, General} //nolint:gochecknoglobals // compiled table

const (
	general   = 5
	deferring = 6
	classes   = 7

	turns    = 6    // earlier user turns that are looked at
	askBytes = 2048 // of an ask that are scored: the head of it and a tail
	askTail  = 512
	evidence = 8 // rules that are reported
)

// Detector holds everything that scoring reads. It is safe for concurrent use.
type Detector struct {
	lex  *lexicon
	w    weights
	own  own
	weak concepts // objects and turns of speech, no deliverables

	edits, topics concepts // those of form, and of other matters

	override, vocative int // the concepts by which injected text is known
	chain, several     int // those that order steps, and that list deliverables
	domain             int // the words of the trade
	revise, carry      int // those that ask for changes of an answer, and for more

	pool sync.Pool
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
	lines   []line
	regions []region
	pieces  []piece
	docs    []document

	text []byte  // folded
	at   []int32 // where in the message each of its bytes is from
	hits []hit
	pos  concepts // present
	neg  concepts // present only under a negation
	late concepts // present after the turn
	turn int      // where in text the last of several steps begins

	weak     concepts
	domain   int
	feat     features
	x        facts
	goes     continuation // the terms of the last turn behind an answer
	links    []Evidence   // its words by which it goes on
	said     []byte       // what was said before, folded
	saidAt   []int32
	injected bool    // an instruction to the machine was found beside a document
	worth    float32 // of the cut that was made
	lean     float32 // what it is worth in this conversation that nothing is asked
}

// New returns a detector with the embedded tables, adapted to its operator.
func New(a Adaptation) (*Detector, error) {
	l, err := parseLexicon(lexiconText, tasks)
	if err != nil {
		return nil, err
	}
	d := &Detector{lex: l}
	if err := d.w.unmarshal(weightsFile); err != nil {
		return nil, err
	}
	d.ready()
	if err := d.adapt(a); err != nil {
		return nil, err
	}
	return d, nil
}

// ready finishes a detector whose lexicon and weights are set.
func (d *Detector) ready() {
	for k, c := range d.lex.concepts {
		if weak(c.name) {
			d.weak |= 1 << k
		}
		if edits(c.name) {
			d.edits |= 1 << k
		}
		if topics(c.name) {
			d.topics |= 1 << k
		}
		switch c.name {
		case "override":
			d.override = k
		case "vocative":
			d.vocative = k
		case "chain":
			d.chain = k
		case "several":
			d.several = k
		case "domain":
			d.domain = k
		case "revise":
			d.revise = k
		case "carry":
			d.carry = k
		}
	}
	d.pool.New = func() any { return &scratch{weak: d.weak, domain: d.domain, links: make([]Evidence, 0, maxLinks)} }
}

var standard = sync.OnceValue(func() *Detector { //nolint:gochecknoglobals // the embedded tables, compiled once
	d, err := New(Adaptation{})
	if err != nil {
		panic(fmt.Sprint("task: embedded tables: ", err)) // cannot happen: a test reads them
	}
	return d
})

// Detect tells the task of a conversation with the embedded tables.
func Detect(in Input) Result { return standard().Detect(in) }

// Tasks lists what Detect may answer: the built-in tasks, then the added ones.
func (d *Detector) Tasks() []string {
	return append(append([]string(nil), tasks...), d.own.added...)
}

func (d *Detector) name(k int) string {
	if k > deferring {
		return d.own.added[k-classes]
	}
	return tasks[k]
}

// Detect tells the task of a conversation. Its time grows linearly with the
// bytes of the newest messages; what it scores of them is bounded, and so are
// its allocations.
func (d *Detector) Detect(in Input) Result {
	s, _ := d.pool.Get().(*scratch)
	defer d.pool.Put(s)
	return d.detect(s, in)
}

func (d *Detector) detect(s *scratch, in Input) Result {
	last, ok := newest(in)
	if d.background(s, in, last) {
		r := Result{Task: General, Confidence: 1, Scores: map[string]float64{General: 1}, Cause: Rule, Background: true}
		if ok {
			r.Evidence = []Evidence{{Rule: "background", Span: Span{Message: last, End: len(in.Messages[last].Text)}}}
		}
		return r
	}

	r := Result{Evidence: make([]Evidence, 0, evidence+1)}
	p, stood := d.context(s, in, &r) // what an ask that names no task defers to
	asked, carried := false, false
	for i := earliest(in, last); i <= last && ok; i++ {
		if in.Messages[i].Role != "user" {
			continue
		}
		q := probs{deferring: 1}
		s.x, s.links = facts{}, s.links[:0]
		if d.read(s, in, i) {
			q = d.agreed(s, in.Messages[i].Text, p[general] > 0.99)
			if s.worth < d.w.cuts.shape[bare] && (plain(q) < 0 || q.top() == general) {
				q = probs{deferring: 1} // neither looks like an ask nor says what
			}
			if s.x.docs == [8]int{} && p[general] > 0.99 && !s.x.history {
				q = q.alone()
			} else if p[general] > 0.99 && !s.x.history {
				q = q.beside()
			}
			if s.x.history {
				d.goes(s, in, i, q, p)
				q = q.going(d.w.goes.odds(&s.goes))
			}
			if q[deferring] > 0.3 && agrees(in.Messages[i].Text) {
				if o, ok := d.offered(s, in, i); ok {
					p, asked = o, true
				}
			}
			lean := float32(leanTurn)
			if stood != "" && !asked {
				lean = leanSystem
			}
			q = q.tilt(p, lean*min(1, 2*q[deferring]))
		}
		if i == last {
			carried = q[deferring] > 0.5
			d.report(s, in, &r, i, q, p)
		}
		asked = asked || q[deferring] <= 0.5
		p = q.settle(p)
	}
	d.decide(&r, p, asked, carried, stood)
	return r
}

// statedSure is the probability from which a system prompt states a task.
const statedSure = 0.6

// offered tells the task that the assistant offered in the message before
// message m: what the sentence is about that it ends in. An offer is worded
// like what a system prompt states, and stands beside no document. Of a text
// that says nothing the model makes its prior, which is below a half.
func (d *Detector) offered(s *scratch, in Input, m int) (probs, bool) {
	if m == 0 || in.Messages[m-1].Role != "assistant" {
		return probs{}, false
	}
	text := strings.TrimRight(in.Messages[m-1].Text, " \t\r\n*_)")
	a := max(0, len(text)-offerBytes)
	for i := a; i < len(text)-offerLeast; i++ {
		if c := text[i]; c == '\n' || (c == '.' || c == '!' || c == '?' || c == ':') && text[i+1] == ' ' {
			a = i + 1
		}
	}
	q := d.standing(s, text[a:])
	d.understand(s, in.Messages[m].Text) // for the report
	q[deferring] = 0
	var sum float32
	for _, v := range q {
		sum += v
	}
	for k := range q {
		q[k] /= max(sum, 1e-6)
	}
	return q, q[q.top()] > 0.5
}

// Of an assistant's message, offerBytes at its end are searched for an offer; a
// shorter sentence than offerLeast ("would that help?") belongs to the one before.
const (
	offerBytes = 300
	offerLeast = 24
)

// agrees reports whether a message begins by saying yes to something.
func agrees(text string) bool {
	var b [24]byte
	n := 0
	for _, r := range text {
		if !unicode.IsLetter(r) {
			if n > 0 {
				break
			}
			continue
		}
		if n+utf8.UTFMax > len(b) {
			return false
		}
		n += utf8.EncodeRune(b[n:], unicode.ToLower(r))
		if r >= 0x2E80 && n >= 6 {
			break
		}
	}
	switch string(b[:n]) {
	case "yes", "yep", "yeah", "yup", "ya", "yea", "oh", "k", "sure", "ok", "okay", "please", "absolutely", "definitely", "go", "do", "good", "great", "perfect", "mhm", "fine", "both", "why", "alright", "right", "sounds",
		"ja", "gern", "gerne", "klar", "bitte", "mach", "oui", "volontiers", "avec", "vas", "allez", "si", "sí", "sì", "vale", "venga", "claro", "dale", "adelante", "certo", "volentieri", "procedi",
		"graag", "prima", "doe", "goed", "tak", "poproszę", "jasne", "chętnie", "dobrze", "sim", "pode", "manda", "はい", "お願", "好的", "可以", "是的", "نعم", "हाँ", "हां", "जी", "haan":
		return true
	}
	return false
}

// context tells the task that stands before anybody asks: what the system
// prompt states, else what the response schema or the only fitting tool is for.
func (d *Detector) context(s *scratch, in Input, r *Result) (p probs, stood string) {
	p = probs{general: 1}
	s.lean = leanOpen
	spoken := false // a system prompt stands
	for i := range in.Messages {
		m := &in.Messages[i]
		if m.Role != "system" && m.Role != "developer" {
			continue
		}
		spoken = true
		q := d.standing(s, m.Text)
		if t := q.top(); t != deferring && q[t] < statedSure {
			continue // it may list several, or none of the known
		}
		p = q.settle(p)
		if q[deferring] < 0.5 {
			stood = Score
			r.Evidence = append(r.Evidence[:0], Evidence{Rule: "system", Span: Span{Message: i, End: len(m.Text)}})
		}
	}
	if stood == "" {
		if k, ok := keyed(in); ok {
			p, stood = probs{general: 0.15}, Schema
			p[k] = 0.85
			r.Evidence = append(r.Evidence, Evidence{Rule: "schema"})
		}
	}
	switch {
	case stood != "":
		s.lean = leanTold
	case spoken:
		s.lean = leanListed
	}
	return p, stood
}

// report fills in what was found in the newest user message.
func (d *Detector) report(s *scratch, in Input, r *Result, m int, q, before probs) {
	if len(s.docs) > 0 {
		r.Documents = make([]Document, 0, len(s.docs))
	}
	for _, c := range s.docs {
		r.Documents = append(r.Documents, Document{Kind: kinds[c.kind], Span: Span{Message: m, Start: c.start, End: c.end}})
	}
	top := q.top()
	if top != deferring {
		r.Evidence = r.Evidence[:0]
	} else if before.top() != general && m > 0 {
		r.Evidence = append(r.Evidence, Evidence{Rule: "carry", Span: Span{Message: m, End: len(in.Messages[m].Text)}})
	}
	if top == deferring && s.x.history {
		for _, e := range s.links {
			e.Message = m
			r.Evidence = append(r.Evidence, e)
		}
	}
	for _, h := range s.hits {
		if len(r.Evidence) >= evidence {
			break
		}
		if h.negated || int(h.start) < s.turn || !d.speaks(int(h.concept), top) {
			continue
		}
		r.Evidence = append(r.Evidence, Evidence{Rule: d.lex.concepts[h.concept].name, Span: Span{Message: m, Start: int(s.at[h.start]), End: int(s.at[h.end-1]) + 1}})
	}
	if (s.pos.has(d.chain) || s.pos.has(d.several)) && top < general && d.deliverables(s) > 1 {
		r.Flags = append(r.Flags, "multi")
	}
	if span, ok := d.injection(s, in.Messages[m].Text); ok || s.injected {
		r.Flags = append(r.Flags, "injection")
		if ok {
			span.Message = m
			r.Evidence = append(r.Evidence, Evidence{Rule: "injection", Span: span})
		}
	}
}

// deliverables counts the tasks that the concepts of the ask name outright.
func (d *Detector) deliverables(s *scratch) int {
	var named [general]bool
	n := 0
	for _, h := range s.hits {
		for t, w := range d.lex.concepts[h.concept].prior[:general] {
			if w >= 1 && !h.negated && !named[t] {
				named[t] = true
				n++
			}
		}
	}
	return n
}

// speaks reports whether a concept is a reason for class k.
func (d *Detector) speaks(concept, k int) bool {
	if k >= classes || d.lex.concepts[concept].name == "domain" {
		return false
	}
	row, ok := d.w.ask.row(mix(uint32(concept) ^ saltIdea))
	return ok && row[k] > 0
}

// decide fills in the answer from the settled probabilities.
func (d *Detector) decide(r *Result, p probs, asked, carried bool, stood string) {
	top := p.top()
	switch {
	case carried && asked:
		r.Cause = Carried
		r.Flags = append(r.Flags, "carry")
	case asked:
		r.Cause = Score
	case stood != "":
		r.Cause = stood
	default:
		r.Cause = Abstained
		r.Flags = append(r.Flags, "no_ask")
	}
	if next := p.second(); r.Cause != Abstained && p[top]-p[next] < 0.15 {
		r.Flags = append(r.Flags, "ambiguous")
	}
	if top != general && p[top] < d.own.threshold(top, d.w.thresholds[min(top, classes-1)]) {
		top, r.Cause = general, Abstained
	}
	r.Task, r.Confidence = d.name(top), float64(min(p[top], 1))
	r.Scores = make(map[string]float64, len(tasks)+len(d.own.added))
	for k := range classes + len(d.own.added) {
		if k != deferring {
			r.Scores[d.name(k)] = float64(p[k])
		}
	}
}

// newest finds the newest user message that says anything.
func newest(in Input) (int, bool) {
	i := len(in.Messages) - 1
	for i >= 0 && (in.Messages[i].Role != "user" || strings.TrimSpace(in.Messages[i].Text) == "") {
		i--
	}
	return i, i >= 0
}

// earliest finds the user message to begin with: some turns before the newest.
func earliest(in Input, last int) int {
	i := last
	for n := 0; i > 0 && n < turns; i-- {
		if in.Messages[i-1].Role == "user" {
			n++
		}
	}
	return max(i, 0)
}

// read cuts message m, names its documents and puts its ask into s.text; it
// reports whether there is any.
func (d *Detector) read(s *scratch, in Input, m int) bool {
	text := in.Messages[m].Text
	s.split(text)
	d.rate(s, text)
	s.worth = s.cut(&d.w.cuts, s.lean, anyShape)
	if d.distrust(s, text) {
		s.worth = s.cut(&d.w.cuts, s.lean, anyShape) // without what was taken back
		d.distrust(s, text)
		s.injected = true
	}
	s.x = d.documents(s, text)
	s.x.json = in.JSON
	for i := range m {
		s.x.history = s.x.history || in.Messages[i].Role == "assistant"
	}
	d.understand(s, text)
	return len(s.text) > 0
}

// agreed scores the ask. Where a message asks at both ends and the ends differ,
// the head is believed: what stands behind a document is more often its last
// paragraph, or an order that it brought along. Where it seems to ask at one
// end only, the other may contend. With nothing to defer to, an end that asks
// for nothing lets the other speak.
func (d *Detector) agreed(s *scratch, text string, open bool) probs {
	n := len(s.regions) - 1
	if n < 1 {
		return d.score(s)
	}
	if !s.regions[0].ask || !s.regions[n].ask {
		q := d.contend(s, text)
		if !open || q[deferring] < 0.5 || !d.recut(s, text, framed) || len(s.regions) < 3 || !s.regions[0].ask || !s.regions[2].ask {
			return q
		}
		n = 2
	}
	tail, head := d.region(s, text, n), d.region(s, text, 0)
	k, t := head.top(), tail.top()
	switch {
	case k == deferring && t != deferring:
		return d.region(s, text, n)
	case t == deferring && k != deferring, k != t && k < general && head[k] > headSure:
		return d.region(s, text, 0)
	}
	d.understand(s, text)
	return d.score(s)
}

// contend scores the ask at one end of a message, or that at the other where
// the cut is nearly as good and what is asked there is plainer.
func (d *Detector) contend(s *scratch, text string) probs {
	q, worth, other := d.score(s), s.worth, tailed
	if s.regions[len(s.regions)-1].ask {
		other = headed
	}
	if !s.regions[0].ask && other == tailed || plain(q) > plainest {
		return q
	}
	if !d.recut(s, text, other) || s.worth < worth-rivalry || other == tailed && s.regions[len(s.regions)-1].joined {
		d.recut(s, text, headed+tailed-other)
		d.understand(s, text)
		return q
	}
	d.understand(s, text)
	if p := d.score(s); s.worth+plain(p) > worth+plain(q) {
		return p
	}
	d.recut(s, text, headed+tailed-other)
	d.understand(s, text)
	return q
}

// recut gives the message another shape, and reports whether an ask is left.
func (d *Detector) recut(s *scratch, text string, shape int) bool {
	injected := s.injected
	s.worth = s.cut(&d.w.cuts, 0, 1<<shape)
	d.distrust(s, text)
	s.injected = s.injected || injected
	return slices.ContainsFunc(s.regions, func(g region) bool { return g.ask })
}

const (
	rivalry  = 6 // what the other end's cut may be worth less
	plainest = 4
)

// plain is how plainly something is asked: the log-odds of the likeliest task.
func plain(q probs) float32 {
	q[deferring] = 0
	v := min(max(float64(q[q.top()]), 0.02), 0.98)
	return float32(math.Log(v / (1 - v)))
}

// region scores one region by itself.
func (d *Detector) region(s *scratch, text string, n int) probs {
	s.text, s.at = s.text[:0], s.at[:0]
	s.appendAsk(text, s.regions[n].start, s.regions[n].end)
	d.concepts(s)
	d.order(s)
	return d.score(s)
}

// understand folds all that is asked into s.text and finds its concepts and
// steps.
func (d *Detector) understand(s *scratch, text string) {
	s.text, s.at = s.text[:0], s.at[:0]
	for _, g := range s.regions {
		if g.ask {
			s.appendAsk(text, g.start, g.end)
		}
	}
	d.concepts(s)
	d.order(s)
}

// What it is worth to find no ask at all: little where nothing else says what
// to do, for the ask model can still say that an ask says nothing; more where
// the system prompt already does. What sends a system prompt that states none
// may well send bare documents.
const (
	leanOpen   = -4
	leanListed = 0
	leanTold   = 4
)

// headSure is the probability from which the head of a message is believed
// against its tail.
const headSure = 0.7

// appendAsk folds text[start:end] behind what s.text has; of a long one the
// head and the tail.
func (s *scratch) appendAsk(text string, start, end int) {
	s.appendText(text, start, min(end, start+askBytes-askTail))
	if rest := max(start+askBytes-askTail, end-askTail); rest < end {
		s.appendText(text, rest, end)
	}
}

func (s *scratch) appendText(text string, start, end int) {
	if len(s.text) > 0 {
		s.text, s.at = append(s.text, sentence), append(s.at, int32(start))
	}
	s.text, s.at = fold(s.text, s.at, text[start:end], start)
}
