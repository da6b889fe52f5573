package task

import "math"

// maxClasses is how many tasks there can be with those that operators add.
const maxClasses = 16

// probs is a probability, or a logit, of each class.
type probs [maxClasses]float32

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
		n := len(s.hits)
		d.lex.find(s.text, i, func(c uint8, stop int) {
			s.hits = append(s.hits, hit{concept: c, negated: denied > 0, start: int32(i), end: int32(stop)})
			if denied > 0 {
				s.neg |= 1 << c
			} else {
				s.pos |= 1 << c
			}
		})
		if n == len(s.hits) && end-i >= 6 {
			// Perhaps a known word, misspelt.
			if c, ok := d.lex.bones[bones(s.text[i:end])]; ok {
				s.hits = append(s.hits, hit{concept: c, negated: denied > 0, start: int32(i), end: int32(end)})
				if denied > 0 {
					s.neg |= 1 << c
				} else {
					s.pos |= 1 << c
				}
			}
		}
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

// score tells the task of the ask in s.text.
func (d *Detector) score(s *scratch) probs {
	s.askFeatures(&s.feat, s.x)
	var z probs
	d.w.ask.logits(&s.feat, z[:classes])
	for k := range classes {
		z[k] /= d.w.temperature
	}
	d.own.add(s, &z)
	return d.softmax(z)
}

// standing tells the task a system prompt states, all of its mass deferring
// when it states none or several.
func (d *Detector) standing(s *scratch, text string) probs {
	s.text, s.at = s.text[:0], s.at[:0]
	s.appendAsk(text, 0, len(text))
	d.concepts(s)
	s.askFeatures(&s.feat, facts{})
	var z probs
	d.w.system.logits(&s.feat, z[:classes])
	d.own.add(s, &z)
	return d.softmax(z)
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

// second is the likeliest but one.
func (p *probs) second() int {
	top, best := p.top(), -1
	for k, v := range p {
		if k != top && (best < 0 || v > p[best]) {
			best = k
		}
	}
	return best
}

// How far an unclear ask leans towards what stands already: much towards a task
// that the system prompt states, for then the user's text is mostly data.
const (
	leanTurn   = 3
	leanSystem = 7
)

// tilt leans an ask towards what stands already: the system prompt's task, or
// that of the turn before. A clear ask does not notice.
func (p probs) tilt(to probs, lean float32) probs {
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

// alone takes most of the deferring mass off an ask that stands beside no
// document and after nothing that it could defer to.
func (p probs) alone() probs {
	was := p[deferring]
	p[deferring] /= 8
	for k := range p {
		if k != deferring {
			p[k] *= (1 - p[deferring]) / max(1-was, 1e-6)
		}
	}
	if was > 1-1e-6 {
		p[general] = 1 - p[deferring]
	}
	return p
}

// settle gives the mass of a deferring ask to what it defers to.
func (p probs) settle(to probs) probs {
	m := p[deferring]
	p[deferring] = 0
	for k := range p {
		p[k] += m * to[k]
	}
	return p
}

// softmax turns the logits of the detector's classes into probabilities.
func (d *Detector) softmax(z probs) probs {
	n := classes + len(d.own.added)
	top := z[0]
	for _, v := range z[:n] {
		top = max(top, v)
	}
	var sum float64
	var p probs
	for k, v := range z[:n] {
		e := math.Exp(float64(v - top))
		p[k] = float32(e)
		sum += e
	}
	for k := range n {
		p[k] /= float32(sum)
	}
	return p
}
