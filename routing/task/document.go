package task

// chunk is how much of a document is read at a time to tell its kind, and
// chunks how many pieces of a region are read at most.
const (
	chunk  = 500
	chunks = 16
	// What it costs to say that the kind changes: little where a label, a fence
	// or a rule announces something new.
	changeBare  = 7
	changeShown = 1
)

// document is a text set aside, and what it looks like.
type document struct {
	kind, start, end int
}

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
		if m := len(s.docs); m > first && s.docs[m-1].kind == kind && !p.shown {
			// A second CV begins with its owner's address.
			if kind != 0 || !p.fresh || a-s.docs[m-1].start <= 300 {
				s.docs[m-1].end = b
				continue
			}
		}
		s.docs = append(s.docs, document{kind: kind, start: a, end: b})
	}
}

// foreign reports whether line i is an order that was put into a document.
func (s *scratch) foreign(i int) bool {
	return s.lines[i].cues&cueInject != 0 || i > 0 && s.lines[i].inline && s.lines[i-1].cues&cueInject != 0
}

// pieceText folds the beginning of lines [i,j) into s.text, but for orders to
// the machine, which tell nothing of the document.
func (s *scratch) pieceText(text string, i, j int) {
	s.text, s.at = s.text[:0], s.at[:0]
	for k, rest := i, chunk; k < j && rest > 0; k++ {
		l := &s.lines[k]
		if s.foreign(k) {
			continue
		}
		s.appendText(text, l.start, min(l.end, l.start+rest))
		rest -= l.end - l.start
	}
}

// kind rates what a piece is.
func (d *Detector) kind(s *scratch, text string, p *piece) {
	i, j := p.lines[0], p.lines[1]
	s.pieceText(text, i, j)
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
