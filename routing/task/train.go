package task

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Sample is one labelled request to learn from.
type Sample struct {
	Input
	Label string // a task, or Defer
	Asks  []Span // the asked bytes of the newest user message; nil if not known
	Fold  int    // 0 or 1: which half of the documents it was composed with
	Plain bool   // the ask is as it was written: not misspelt, not joined with another
}

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
	Systems   []Text
	Documents []Text
}

// doubt is the probability below which the answer is general. It is low
// because the probabilities are calibrated: at it, general is no likelier.
const doubt = 0.3

// Address bits of the tables: 229, 57, 16 and 32 kB.
const (
	askBits    = 15
	systemBits = 13
	lineBits   = 14
	docBits    = 12
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
	s.floor = floorOpen
	index := func(label string) int {
		if label == Defer {
			return deferring
		}
		return slices.Index(tasks, label)
	}

	var lines, systems, asks []row
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
			a := s.lines[i].start
			s.text, s.at = fold(s.text[:0], s.at[:0], t.Text[a:min(s.lines[j-1].end, a+chunk)], a)
			s.docFeatures(&s.feat, i, j)
			docs[t.Fold] = append(docs[t.Fold], s.feat.row(k))
			i = j
		}
	}
	// The ask model meets documents at their real blur: those of one half named
	// by a model of the other.
	var half [2]linear
	for f := range half {
		half[f] = fit(docs[1-f], len(kinds), docBits, nil, 8, 1)
	}
	d.w.doc = fit(slices.Concat(docs[0], docs[1]), len(kinds), docBits, nil, 8, 1)

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
		if !ok || x.Asks == nil {
			continue
		}
		text := x.Messages[m].Text
		s.split(text)
		for i := range s.lines {
			if s.lines[i].fixed || !s.near(i, len(text)) {
				continue
			}
			class := 0
			for _, a := range x.Asks {
				if s.lines[i].start < a.End && a.Start < s.lines[i].end {
					class = 1
				}
			}
			d.lineText(s, text, i)
			s.lineFeatures(&s.feat, i)
			lines = append(lines, s.feat.row(class))
		}
	}
	d.w.line = odds(fit(lines, 2, lineBits, nil, 5, 3))

	whole := d.w.doc
	defer func() { d.w.doc = whole }()
	for _, x := range c.Samples {
		m, ok := newest(x.Input)
		if !ok {
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
				// What the line model may take for an ask at the end of a bare
				// document is no ask at all.
				d.told(s, x.Messages[m].Text, s.ending())
				s.askFeatures(&s.feat, s.x)
				asks = append(asks, s.feat.row(deferring))
				asks[len(asks)-1].fold = x.Fold & 1
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
	d.w.system = fit(systems, classes, systemBits, l, 12, 2)
	d.w.temperature = temper(asks, l)
	d.w.ask = fit(asks, classes, askBits, l, askEpochs, 4)
	return d, nil
}

// ending returns the last paragraph's lines of the message in s.lines, three at
// most.
func (s *scratch) ending() []Span {
	n := len(s.lines)
	if n == 0 {
		return nil
	}
	i := n - 1
	for i > 0 && n-i < 3 && !s.lines[i].gap {
		i--
	}
	return []Span{{Start: s.lines[i].start, End: s.lines[n-1].end}}
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

// odds folds a model of two classes into one of one: the log-odds of the
// second.
func odds(m linear) linear {
	b := linear{bits: m.bits, classes: 1, scale: m.scale * 2, bias: []float32{m.bias[1] - m.bias[0]}, w: make([]int8, len(m.w)/2)}
	for i := range b.w {
		b.w[i] = int8((int(m.w[2*i+1]) - int(m.w[2*i])) / 2)
	}
	return b
}

// fit learns a multinomial logistic regression by AdaGrad (Duchi, Hazan and
// Singer 2011) and quantises it. The lexicon's priors, when given, are where
// the concepts start from.
func fit(rows []row, classes, bits int, l *lexicon, epochs int, seed uint64) linear {
	w := make([]float32, classes<<bits)
	g := make([]float32, len(w))
	bias, gb := make([]float32, classes), make([]float32, classes)
	shift := 32 - bits
	if l != nil {
		var f features
		for k, c := range l.concepts {
			f.reset()
			f.add(uint32(k) ^ saltIdea)
			for t, v := range c.prior {
				w[int(f.hash[0]>>shift)*classes+t] += v
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
			r = thin(rng, r, &tmp)
			for k := range z {
				z[k] = float64(bias[k])
			}
			for gr := range groups {
				hs := r.hash[r.group[gr]:r.group[gr+1]]
				v := float64(value(gr, len(hs)))
				for _, h := range hs {
					for k, x := range w[int(h>>shift)*classes:][:classes] {
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
					at := int(h>>shift) * classes
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
	w = mean
	m := linear{bits: bits, classes: classes, bias: bias, w: make([]int8, len(w))}
	var most float32
	for _, x := range w {
		most = max(most, x, -x)
	}
	m.scale = max(most, 1e-6) / 127
	for i, x := range w {
		m.w[i] = int8(math.Round(float64(x / m.scale)))
	}
	return m
}

// How the tables are learned. Dropping features makes the many weak cues count
// beside the few strong ones: measured across authors it is worth one point.
const (
	rate      = 0.25
	decay     = 2e-6
	dropped   = 0.4
	askEpochs = 20
)

// thin copies a row into to, without a share of its features.
func thin(rng *rand.Rand, r, to *row) *row {
	to.hash, to.class = to.hash[:0], r.class
	for g := range groups {
		to.group[g] = len(to.hash)
		for _, h := range r.hash[r.group[g]:r.group[g+1]] {
			if rng.Float64() >= dropped {
				to.hash = append(to.hash, h)
			}
		}
	}
	to.group[groups] = len(to.hash)
	return to
}

// temper finds the temperature (Guo et al. 2017) by which the probabilities of
// one half of the asks, from a model of the other half, are likeliest.
func temper(rows []row, l *lexicon) float32 {
	var z [][classes]float32
	var right []int
	for f := range 2 {
		var learn []row
		for _, r := range rows {
			if r.fold != f {
				learn = append(learn, r)
			}
		}
		m := fit(learn, classes, askBits, l, askEpochs/2, 5)
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
	return float32(best)
}
