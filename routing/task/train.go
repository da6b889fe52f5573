package task

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Sample is one labelled request to learn from.
type Sample struct {
	Input
	Label  string // a task, or Defer
	Asks   []Span // the asked bytes of the newest user message; nil if not known
	Fold   int    // 0 or 1: which half of the documents it was composed with
	Plain  bool   // the ask is as it was written: not misspelt, not joined with another
	Lesson Lesson
}

// Lesson is what is learned from a sample.
type Lesson uint8

const (
	Everything Lesson = iota
	CutOnly           // which lines are asked, not what for: its document carries orders
	ScoreOnly         // what is asked, not which lines: it holds examples that look like documents
)

// Text is a labelled text: a system prompt with the task it states (or Defer
// for none or several), or a document with its kind.
type Text struct {
	Text, Label string
	Fold        int // 0 or 1, for documents
}

// Defer labels an ask that names no task of its own: a continuation, or a
// "here you go" beside a document.
const Defer = "defer"

// Corpus is what the tables are learned from.
type Corpus struct {
	Samples   []Sample
	Goings    []Sample // conversations from which only is learned whether they go on
	Systems   []Text
	Documents []Text
}

// doubt is the probability below which the answer is general. It is low
// because the probabilities are calibrated: at it, general is no likelier.
const doubt = 0.3

// Rows of the tables: 360, 74, 66 and 20 kB with their marks.
const (
	askRows    = 77_600
	systemRows = 1 << 14
	lineRows   = 1 << 15
	docRows    = 1 << 12
)

// row is one training example: its features by group, and its class.
type row struct {
	hash  []uint32
	group [groups + 1]int
	class int
	fold  int
}

func (f *features) row(class int) row {
	return row{hash: slices.Clone(f.hash), group: f.group, class: class}
}

// Train learns the tables and returns them in the form that is embedded. It is
// deterministic: the same corpus in the same order gives the same bytes.
func Train(c Corpus) ([]byte, error) {
	d, err := train(c)
	if err != nil {
		return nil, err
	}
	return d.w.marshal(), nil
}

// Trained returns a detector that has learned from c alone, for measuring on
// what c leaves out.
func Trained(c Corpus) (*Detector, error) { return train(c) }

func train(c Corpus) (*Detector, error) {
	l, err := parseLexicon(lexiconText, tasks)
	if err != nil {
		return nil, err
	}
	d := &Detector{lex: l}
	d.w.temperature = 1
	for k := range d.w.thresholds {
		d.w.thresholds[k] = doubt
	}
	d.ready()
	s := d.pool.Get().(*scratch)
	s.lean = leanOpen
	index := func(label string) int {
		if label == Defer {
			return deferring
		}
		return slices.Index(tasks, label)
	}

	var systems, asks []row
	var lines []cutting
	var docs [2][]row
	for _, t := range c.Documents {
		k := slices.Index(kinds, t.Label)
		if k < 0 || t.Fold < 0 || t.Fold > 1 {
			return nil, fmt.Errorf("task: document of kind %q in fold %d", t.Label, t.Fold)
		}
		s.split(t.Text)
		for i := 0; i < len(s.lines); {
			j := i + 1
			for j < len(s.lines) && s.lines[j].end-s.lines[i].start < chunk {
				j++
			}
			s.pieceText(t.Text, i, j)
			s.docFeatures(&s.feat, i, j)
			docs[t.Fold] = append(docs[t.Fold], s.feat.row(k))
			i = j
		}
	}
	// The ask model meets documents at their real blur: those of one half named
	// by a model of the other.
	var half [2]linear
	for f := range half {
		half[f] = fit(docs[1-f], len(kinds), docRows, nil, 8, 1)
	}
	d.w.doc = fit(slices.Concat(docs[0], docs[1]), len(kinds), docRows, nil, 8, 1)

	for _, t := range c.Systems {
		k := index(t.Label)
		if k < 0 {
			return nil, fmt.Errorf("task: system prompt labelled %q", t.Label)
		}
		s.text, s.at = fold(s.text[:0], s.at[:0], t.Text[:min(len(t.Text), askBytes)], 0)
		d.concepts(s)
		s.askFeatures(&s.feat, facts{})
		systems = append(systems, s.feat.row(k))
	}

	for _, x := range c.Samples {
		m, ok := newest(x.Input)
		if !ok || x.Asks == nil || x.Lesson == ScoreOnly {
			continue
		}
		text := x.Messages[m].Text
		s.split(text)
		y := cutting{}
		for i := range s.lines {
			l := line{fixed: s.lines[i].fixed, score: s.lines[i].score}
			if !l.fixed && !s.near(i, len(text)) {
				l.fixed, l.score = true, middle
			}
			p := step{given: l.fixed, score: l.score}
			if i > 0 {
				p.place = s.place(i)
			}
			for _, a := range x.Asks {
				p.ask = p.ask || s.lines[i].start < a.End && a.Start < s.lines[i].end
			}
			if !p.given {
				d.lineText(s, text, i)
				s.lineFeatures(&s.feat, i)
				p.row = s.feat.row(0)
			}
			y = append(y, p)
		}
		if len(y) > 0 {
			lines = append(lines, y)
		}
	}
	d.w.line, d.w.cuts = fitCuts(lines, lineRows, lineEpochs, 3)

	whole := d.w.doc
	defer func() { d.w.doc = whole }()
	for _, x := range c.Samples {
		m, ok := newest(x.Input)
		if !ok || x.Lesson == CutOnly {
			continue
		}
		d.w.doc = half[x.Fold&1]
		k := index(x.Label)
		if k < 0 {
			return nil, fmt.Errorf("task: sample labelled %q", x.Label)
		}
		if !d.read(s, x.Input, m) && x.Asks == nil {
			continue // nothing is asked: nothing to learn
		}
		if x.Asks != nil {
			if len(x.Asks) == 0 {
				// What the line model may take for an ask at either end of a
				// bare document is no ask at all.
				for _, end := range s.endings() {
					d.told(s, x.Messages[m].Text, []Span{end})
					s.askFeatures(&s.feat, s.x)
					asks = append(asks, s.feat.row(deferring))
					asks[len(asks)-1].fold = x.Fold & 1
				}
				continue
			}
			// Learn from the ask as it was written, not from what the cut took
			// for it: its mistakes are no lesson about asks.
			d.told(s, x.Messages[m].Text, x.Asks)
			if k <= general && x.Plain {
				// What people ask and what system prompts state is one language.
				s.askFeatures(&s.feat, facts{})
				systems = append(systems, s.feat.row(k))
			}
		}
		s.askFeatures(&s.feat, s.x)
		asks = append(asks, s.feat.row(k))
		asks[len(asks)-1].fold = x.Fold & 1
	}
	d.w.system = fit(systems, classes, systemRows, l, systemEpochs, 2)
	held, t := temper(asks, l)
	d.w.temperature = t
	d.w.doc = whole
	d.w.goes = d.fitGoes(s, c.Samples, c.Goings, held)
	d.w.ask = fit(asks, classes, askRows, l, askEpochs, 4)
	return d, nil
}

// endings returns the last paragraph of the message in s.lines, three lines at
// most, and its first and last lines.
func (s *scratch) endings() []Span {
	n := len(s.lines)
	if n == 0 {
		return nil
	}
	i := n - 1
	for i > 0 && n-i < 3 && !s.lines[i].gap {
		i--
	}
	first, last := s.lines[0], s.lines[n-1]
	return []Span{{Start: s.lines[i].start, End: last.end}, {Start: first.start, End: first.end}, {Start: last.start, End: last.end}}
}

// told puts the asks of a composed request into s.text.
func (d *Detector) told(s *scratch, text string, asks []Span) {
	s.text, s.at, s.x.bytes = s.text[:0], s.at[:0], 0
	for _, a := range asks {
		s.appendAsk(text, a.Start, a.End)
		s.x.bytes += a.End - a.Start
	}
	d.concepts(s)
	d.order(s)
}

// fit learns a multinomial logistic regression by AdaGrad (Duchi, Hazan and
// Singer 2011) and quantises it. The lexicon's priors, when given, are where
// the concepts start from.
func fit(rows []row, classes, size int, l *lexicon, epochs int, seed uint64) linear {
	o := newOwners(size, classes)
	for i := range rows {
		o.count(&rows[i], rows[i].class)
	}
	o.choose()
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i] = o.keep(&rows[i])
	}
	w := make([]float32, classes*size)
	g := make([]float32, len(w))
	bias, gb := make([]float32, classes), make([]float32, classes)
	if l != nil {
		var f features
		for k, c := range l.concepts {
			f.reset()
			f.add(uint32(k) ^ saltIdea)
			at, ok := o.row(f.hash[0])
			if !ok {
				continue
			}
			for t, v := range c.prior {
				w[at*classes+t] += v
			}
		}
	}
	order := make([]int, len(rows))
	for i := range order {
		order[i] = i
	}
	rng := rand.New(rand.NewPCG(seed, 20))
	var tmp row
	z, p := make([]float64, classes), make([]float64, classes)
	// The mean of the later epochs is steadier than the last of them.
	mean := make([]float32, len(w))
	for epoch := range epochs {
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, i := range order {
			r := &rows[i]
			r = thin(rng, r, &tmp, dropped)
			for k := range z {
				z[k] = float64(bias[k])
			}
			for gr := range groups {
				hs := r.hash[r.group[gr]:r.group[gr+1]]
				v := float64(value(gr, len(hs)))
				for _, h := range hs {
					for k, x := range w[int(h)*classes:][:classes] {
						z[k] += float64(v * float64(x))
					}
				}
			}
			top := slices.Max(z)
			var sum float64
			for k := range z {
				p[k] = math.Exp(z[k] - top)
				sum += p[k]
			}
			if p[r.class] > sure*sum {
				continue // nothing to learn
			}
			for k := range p {
				p[k] /= sum
				if k == r.class {
					p[k]--
				}
				d := float32(p[k])
				gb[k] += float32(d * d)
				bias[k] -= float32(rate * d / (1e-3 + float32(math.Sqrt(float64(gb[k])))))
			}
			for gr := range groups {
				hs := r.hash[r.group[gr]:r.group[gr+1]]
				v := value(gr, len(hs))
				for _, h := range hs {
					at := int(h) * classes
					for k := range classes {
						x := &w[at+k]
						d := float32(float32(p[k])*v) + float32(decay**x)
						a := &g[at+k]
						*a += float32(d * d)
						*x -= float32(rate * d / (1e-3 + float32(math.Sqrt(float64(*a)))))
					}
				}
			}
		}
		if epoch >= epochs/2 {
			for i, x := range w {
				mean[i] += float32(x / float32(epochs-epochs/2))
			}
		}
	}
	return quantised(mean, bias, o)
}

// How the tables are learned. Dropping features makes the many weak cues count
// beside the few strong ones: measured across authors it is worth two points.
const (
	rate         = 0.25
	decay        = 2e-6
	dropped      = 0.6
	lineDropped  = 0.4
	sure         = 0.98
	askEpochs    = 20
	systemEpochs = 8
	lineEpochs   = 4
)

// thin copies a row into to, without a share of its features.
func thin(rng *rand.Rand, r, to *row, share float64) *row {
	to.hash, to.class = to.hash[:0], r.class
	for g := range groups {
		to.group[g] = len(to.hash)
		for _, h := range r.hash[r.group[g]:r.group[g+1]] {
			if rng.Float64() >= share {
				to.hash = append(to.hash, h)
			}
		}
	}
	to.group[groups] = len(to.hash)
	return to
}

// temper finds the temperature (Guo et al. 2017) by which the probabilities of
// one half of the asks, from a model of the other half, are likeliest.
func temper(rows []row, l *lexicon) (held [2]linear, t float32) {
	var z [][classes]float32
	var right []int
	for f := range 2 {
		var learn []row
		for _, r := range rows {
			if r.fold != f {
				learn = append(learn, r)
			}
		}
		m := fit(learn, classes, askRows, l, askEpochs/2, 5)
		held[f] = m
		var x features
		for _, r := range rows {
			if r.fold == f {
				x.hash, x.group = r.hash, r.group
				var v [classes]float32
				m.logits(&x, v[:])
				z, right = append(z, v), append(right, r.class)
			}
		}
	}
	loss := func(t float64) float64 {
		var sum float64
		for i, v := range z {
			var norm float64
			top := slices.Max(v[:])
			for _, x := range v {
				norm += math.Exp(float64(x-top) / t)
			}
			sum += math.Log(norm) - float64(v[right[i]]-top)/t
		}
		return sum
	}
	best := 1.0
	for t := 0.5; t <= 4; t += 0.05 {
		if loss(t) < loss(best) {
			best = t
		}
	}
	return held, float32(best)
}

// step is one line of a message to learn to cut: its features or its given
// score, whether it is asked, and how a cut before it falls.
type step struct {
	row   row
	given bool
	score float32
	ask   bool
	place int
}

type cutting []step

// fitCuts learns what lines and cuts are worth, as a conditional random field
// (Lafferty, McCallum and Pereira 2001) over the few shapes that a message may
// have: the likelihood is that of the cut, not of its lines one by one.
func fitCuts(all []cutting, size, epochs int, seed uint64) (linear, cuts) {
	o := newOwners(size, 2)
	for _, m := range all {
		for i := range m {
			if !m[i].given {
				class := 0
				if m[i].ask {
					class = 1
				}
				o.count(&m[i].row, class)
			}
		}
	}
	o.choose()
	for _, m := range all {
		for i := range m {
			if !m[i].given {
				m[i].row = o.keep(&m[i].row)
			}
		}
	}
	w, g, mean := make([]float32, size), make([]float32, size), make([]float32, size)
	var bias, gb float32
	var c, gc, mc cuts
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	rng := rand.New(rand.NewPCG(seed, 20))
	thinned := make([]row, 256)
	var x, pa, hs, ts []float64
	learn := func(v, a *float32, d float32) {
		*a += float32(d * d)
		*v -= float32(rate * d / (1e-3 + float32(math.Sqrt(float64(*a)))))
	}
	for epoch := range epochs {
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, o := range order {
			m := all[o]
			n := len(m)
			for len(thinned) < n {
				thinned = append(thinned, row{})
			}
			x, pa = append(x[:0], make([]float64, n)...), append(pa[:0], make([]float64, n)...)
			hs, ts = append(hs[:0], make([]float64, n)...), append(ts[:0], make([]float64, n)...)
			for i := range m {
				if m[i].given {
					x[i] = float64(m[i].score)
					continue
				}
				r := thin(rng, &m[i].row, &thinned[i], lineDropped)
				x[i] = float64(bias)
				for gr := range groups {
					h := r.hash[r.group[gr]:r.group[gr+1]]
					v := float64(value(gr, len(h)))
					var sum float64
					for _, k := range h {
						sum += float64(w[k])
					}
					x[i] += float64(v * sum)
				}
			}
			var p, q cuts // how likely each shape and place is, and what is so
			marginals(m, &c, x, pa, hs, ts, &p)
			truth(m, &q)
			for i, v := range c.all() {
				learn(v, gc.all()[i], *p.all()[i]-*q.all()[i])
			}
			for i := range m {
				if m[i].given {
					continue
				}
				e := float32(pa[i])
				if m[i].ask {
					e--
				}
				if e < 1e-4 && e > -1e-4 {
					continue
				}
				learn(&bias, &gb, e)
				r := &thinned[i]
				for gr := range groups {
					h := r.hash[r.group[gr]:r.group[gr+1]]
					v := value(gr, len(h))
					for _, k := range h {
						learn(&w[k], &g[k], float32(e*v)+float32(decay*w[k]))
					}
				}
			}
		}
		if epoch >= epochs/2 {
			share := float32(epochs - epochs/2)
			for i, v := range w {
				mean[i] += float32(v / share)
			}
			for i, v := range mc.all() {
				*v += float32(*c.all()[i] / share)
			}
		}
	}
	return quantised(mean, []float32{bias}, o), mc
}

// truth enters the shape and the places of the cut as it is.
func truth(m cutting, q *cuts) {
	n := len(m)
	h, t := 0, n
	for h < n && m[h].ask {
		h++
	}
	for t > h && m[t-1].ask {
		t--
	}
	if h == n {
		q.shape[whole] = 1
		return
	}
	if h > 0 {
		q.head[m[h].place] = 1
	}
	if t < n {
		q.tail[m[t].place] = 1
	}
	switch {
	case h > 0 && t < n:
		q.shape[framed] = 1
	case h > 0:
		q.shape[headed] = 1
	case t < n:
		q.shape[tailed] = 1
	default:
		q.shape[bare] = 1
	}
}

// marginals enters how likely each line is asked, given the scores x of the
// lines, and each shape and place. hs and ts are room for the likelihoods of
// the heads and tails.
func marginals(m cutting, c *cuts, x, pa, hs, ts []float64, p *cuts) {
	n := len(m)
	var sum float64
	for i := range n { // hs[i]: the head is i lines; ts[i]: the tail begins at i
		if i > 0 {
			sum += x[i-1]
			hs[i] = sum + float64(c.head[m[i].place])
		}
	}
	all := sum + x[n-1]
	sum = 0
	for j := n - 1; j > 0; j-- {
		sum += x[j]
		ts[j] = sum + float64(c.tail[m[j].place])
	}
	top := max(float64(c.shape[bare]), all+float64(c.shape[whole]))
	most := math.Inf(-1)
	for i := 1; i < n; i++ {
		top = max(top, hs[i]+float64(c.shape[headed]), ts[i]+float64(c.shape[tailed]), ts[i]+most+float64(c.shape[framed]))
		most = max(most, hs[i])
	}
	e := func(v float64) float64 { return math.Exp(v - top) }
	none, full := e(float64(c.shape[bare])), e(all+float64(c.shape[whole]))
	z := none + full
	// Heads before each tail, tails after each head; the shape's worth is
	// split so that neither overflows.
	half := (float64(c.shape[framed]) - top) / 2
	ph, pt := make([]float64, n+1), make([]float64, n+1)
	before := make([]float64, n+1)
	var both float64
	acc := 0.0
	for j := 1; j < n; j++ {
		before[j] = acc
		both += acc * math.Exp(ts[j]+half)
		acc += math.Exp(hs[j] + half)
	}
	after := 0.0
	var headedSum, tailedSum float64
	for j := n - 1; j > 0; j-- {
		v := e(hs[j] + float64(c.shape[headed]))
		headedSum += v
		ph[j] = v + math.Exp(hs[j]+half)*after
		v = e(ts[j] + float64(c.shape[tailed]))
		tailedSum += v
		pt[j] = v + math.Exp(ts[j]+half)*before[j]
		after += math.Exp(ts[j] + half)
	}
	z += headedSum + tailedSum + both
	p.shape = [shapes]float32{bare: float32(none / z), headed: float32(headedSum / z), tailed: float32(tailedSum / z), framed: float32(both / z), whole: float32(full / z)}
	run := full
	for i := n - 1; i >= 0; i-- { // a head of more than i lines holds line i
		pa[i] = run / z
		run += ph[i]
		if i > 0 {
			p.head[m[i].place] += float32(ph[i] / z)
		}
	}
	run = 0
	for i := range n {
		if i > 0 {
			run += pt[i]
			p.tail[m[i].place] += float32(pt[i] / z)
		}
		pa[i] += run / z
	}
}

// quantised rounds a model to bytes, or to half bytes where it has several
// classes: the few weights beyond three times the root mean square are cut, and
// the many small ones become nothing, which does no harm.
func quantised(w, bias []float32, o *owners) linear {
	m := linear{rows: len(o.slot), classes: len(bias), bias: bias, w: make([]int8, len(w)), marks: make([]uint8, len(o.slot))}
	for i, h := range o.slot {
		if h != 0 {
			m.marks[i] = mark(h)
		}
	}
	var most, n float32
	var squares float64
	for _, x := range w {
		most = max(most, x, -x)
		if x != 0 {
			squares += float64(x * x)
			n++
		}
	}
	levels := float32(127)
	if m.classes > 1 {
		levels, most = 7, float32(3*math.Sqrt(squares/float64(max(n, 1))))
	}
	m.scale = max(most, 1e-6) / levels
	for i, x := range w {
		m.w[i] = int8(max(-levels, min(levels, float32(math.Round(float64(x/m.scale))))))
	}
	return m
}

// owners chooses which feature each row of a table belongs to: those that tell
// the classes apart best choose first, each one of two rows.
type owners struct {
	classes int
	key     []uint32 // an open table of all features
	n       []uint32 // rows of classes: how often each was met
	used    int
	total   []float64
	slot    []uint32 // by row of the model, the hash of its feature
}

func newOwners(size, classes int) *owners {
	return &owners{classes: classes, key: make([]uint32, 1<<16), n: make([]uint32, classes<<16), total: make([]float64, classes), slot: make([]uint32, size)}
}

func (o *owners) find(h uint32) int {
	i := int(h*0x85EBCA6B>>7) & (len(o.key) - 1)
	for o.key[i] != 0 && o.key[i] != h {
		i = (i + 1) & (len(o.key) - 1)
	}
	return i
}

func (o *owners) count(r *row, class int) {
	o.total[class]++
	for _, h := range r.hash {
		if h == 0 {
			continue
		}
		i := o.find(h)
		if o.key[i] == 0 {
			if o.used*2 > len(o.key) {
				o.grow()
				i = o.find(h)
			}
			o.key[i] = h
			o.used++
		}
		o.n[i*o.classes+class]++
	}
}

func (o *owners) grow() {
	key, n := o.key, o.n
	o.key, o.n = make([]uint32, 2*len(key)), make([]uint32, 2*len(n))
	for i, h := range key {
		if h != 0 {
			copy(o.n[o.find(h)*o.classes:][:o.classes], n[i*o.classes:][:o.classes])
			o.key[o.find(h)] = h
		}
	}
}

// choose settles the owners by the likelihood ratio (G) of a feature's classes
// against those of all.
func (o *owners) choose() {
	type claim struct {
		g float64
		h uint32
	}
	var claims []claim
	var all float64
	for _, v := range o.total {
		all += v
	}
	for i, h := range o.key {
		if h == 0 {
			continue
		}
		var n, g float64
		for _, c := range o.n[i*o.classes:][:o.classes] {
			n += float64(c)
		}
		for k, c := range o.n[i*o.classes:][:o.classes] {
			if c > 0 {
				g += float64(float64(c) * math.Log(float64(float64(c)*all)/float64(n*o.total[k])))
			}
		}
		claims = append(claims, claim{g, h})
	}
	slices.SortFunc(claims, func(a, b claim) int { return cmp.Or(cmp.Compare(b.g, a.g), cmp.Compare(a.h, b.h)) })
	for _, c := range claims {
		if at := place(c.h, len(o.slot)); o.slot[at] == 0 {
			o.slot[at] = c.h
		} else if to := place(c.h*second, len(o.slot)); o.slot[to] == 0 && mark(o.slot[at]) != mark(c.h) {
			o.slot[to] = c.h
		}
	}
}

// row finds the row of a feature, or reports that it has none.
func (o *owners) row(h uint32) (int, bool) {
	n := len(o.slot)
	switch at, to := place(h, n), place(h*second, n); {
	case h == 0:
	case o.slot[at] == h:
		return at, true
	case o.slot[to] == h:
		return to, true
	}
	return 0, false
}

// keep returns a row with the features that have a row of their own, each as
// the number of that row.
func (o *owners) keep(r *row) row {
	t := row{class: r.class, fold: r.fold, hash: make([]uint32, 0, len(r.hash)/2)}
	for g := range groups {
		t.group[g] = len(t.hash)
		for _, h := range r.hash[r.group[g]:r.group[g+1]] {
			if at, ok := o.row(h); ok {
				t.hash = append(t.hash, uint32(at))
			}
		}
	}
	t.group[groups] = len(t.hash)
	return t
}
