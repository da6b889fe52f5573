package task

const (
	lineCap     = 8    // the most a line may say
	scored      = 3000 // bytes at either end of a message whose lines are scored
	scoredLines = 80   // and lines
	middle      = -0.6 // score of a line further in
)

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
		}
	}
}

// near reports whether line i is close enough to an end to be scored.
func (s *scratch) near(i, n int) bool {
	return i < scoredLines && s.lines[i].start <= scored || i >= len(s.lines)-scoredLines && s.lines[i].end >= n-scored
}

func (d *Detector) lineText(s *scratch, text string, i int) {
	l := &s.lines[i]
	s.text, s.at = fold(s.text[:0], s.at[:0], text[l.start:min(l.end, l.start+longLine)], l.start)
	d.concepts(s)
	if (s.pos | s.neg).has(d.override) {
		l.cues |= cueInject
	}
}

// distrust takes back asks that talk to a machine over the reader's head: a
// document that ends in "ignore previous instructions" does not get a say. Text
// that is nothing but ask is left alone, for its author may say what he likes.
// It reports whether nothing asked is left, and has then settled that the lines
// it took back are none.
func (d *Detector) distrust(s *scratch, text string) bool {
	s.injected = false
	docs := false
	for _, g := range s.regions {
		docs = docs || !g.ask
	}
	if !docs {
		return false
	}
	if n := len(s.regions) - 1; n > 0 && s.regions[0].ask && s.regions[n].joined {
		s.regions[n].ask = false
	}
	good, left := 0, 0
	for n := range s.regions {
		if g := &s.regions[n]; g.ask {
			good += d.suspect(s, text, g)
		}
	}
	for n := range s.regions {
		g := &s.regions[n]
		if !g.ask {
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
		left++
	}
	if s.injected && left == 0 {
		for i := range s.lines {
			if l := &s.lines[i]; l.suspect > 0 {
				l.fixed, l.score = true, forcedDoc
			}
		}
		return true
	}
	s.merge()
	return false
}

// merge joins documents that touch.
func (s *scratch) merge() {
	out := s.regions[:0]
	for _, g := range s.regions {
		if n := len(out) - 1; n >= 0 && !g.ask && !out[n].ask {
			out[n].end, out[n].lines[1] = g.end, g.lines[1]
			continue
		}
		out = append(out, g)
	}
	s.regions = out
}

// suspect marks the lines of an ask that talk to a machine, whole paragraphs at
// a time, and counts those that do not.
func (d *Detector) suspect(s *scratch, text string, g *region) int {
	first := g.lines[0]
	for n := 0; n < 4 && first > 0 && s.lines[first].inline; n++ {
		first-- // an order may begin in the sentence before
	}
	for i := first; i < g.lines[1]; i++ {
		l := &s.lines[i]
		d.lineText(s, text, i)
		l.suspect = 0
		switch found := s.pos | s.neg; {
		case found.has(d.override):
			l.suspect = 2
		case found.has(d.vocative):
			l.suspect = 1
		}
		if i > first && !l.gap {
			l.suspect = max(l.suspect, s.lines[i-1].suspect)
		}
	}
	good := 0
	for i := g.lines[1] - 1; i >= g.lines[0]; i-- {
		if i+1 < g.lines[1] && !s.lines[i+1].gap {
			s.lines[i].suspect = max(s.lines[i].suspect, s.lines[i+1].suspect)
		}
		if s.lines[i].suspect == 0 {
			good++
		}
	}
	return good
}
