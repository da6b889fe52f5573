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
			switch {
			case s.text[i] == sentence:
				denied = 0
			case s.text[i] == comma && denied > 0:
				if denied = 0; listed(s.text, i) {
					denied = reach
				}
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
		denied = denies(s.text[i:end], denied)
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

// reach is how many words a negation denies.
const reach = 5

// denies tells how many words are denied from the word w on, of which left were
// denied before it. What follows "but" or "only" is meant.
func denies(w []byte, left int) int {
	switch string(w) {
	case "not", "dont", "no", "never", "without", "isnt", "wasnt", "doesnt", "didnt", "arent", "cannot", "cant", "wont", "nothing", "neither", "nor", "skip", "ignore", "forget", "stop",
		"nicht", "kein", "keine", "keinen", "keiner", "ohne", "statt", "anstatt", "pas", "sans", "aucun", "aucune", "ni", "sin", "ningun", "ninguna", "non", "senza", "nessun", "nessuna", "niet", "geen", "zonder",
		"nie", "bez", "zamiast", "zadnego", "nao", "sem", "nenhum", "nenhuma":
		return reach
	case "but", "just", "only", "rather", "instead", "sondern", "nur", "bloss", "mais", "seulement", "juste", "plutot", "sino", "solo", "soltanto", "maar", "alleen", "ale", "tylko", "lecz", "mas", "apenas", "somente":
		return 0
	}
	return max(left-1, 0)
}

// listed reports whether the comma at text[i] stands in a list that goes on
// with "or" or ends in it: "do not parse, rate or rank".
func listed(text []byte, i int) bool {
	for words := 0; i < len(text) && text[i] != sentence && words < 4; words++ {
		for i < len(text) && (text[i] == space || text[i] == comma) {
			i++
		}
		end := i
		for end < len(text) && text[end] > space {
			end++
		}
		switch string(text[i:end]) {
		case "or", "nor", "oder", "ou", "o", "ni", "noch", "of", "lub", "ani", "czy":
			return words > 0
		}
		i = end
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
	if s.x.docs == [8]int{} && !s.x.history && !(s.pos | s.neg).has(d.domain) {
		z[general] += elsewhere
	}
	d.own.add(s, &z)
	return d.softmax(z)
}

// elsewhere is what speaks for general where nothing is pasted, nothing came
// before and no word of the trade is said.
const elsewhere = 1

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

// How far an ask that may defer leans towards what stands already: much towards
// a task that the system prompt states, for then the user's text is mostly data.
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

// going sets the probability that an ask behind an answer goes on. What
// deferring loses, the other classes take as they are likely, and general as a
// topic of which nothing is known.
func (p probs) going(c float32) probs {
	rest := 1 - p[deferring] + unknown
	p[general] += unknown
	for k := range p {
		if k != deferring {
			p[k] *= (1 - c) / rest
		}
	}
	p[deferring] = c
	return p
}

const unknown = 0.05

// beside lowers the odds that an ask defers which stands beside a document in
// a message that has nothing to defer to.
func (p probs) beside() probs {
	d := p[deferring]
	q := d / (d + deferOdds*(1-d))
	for k := range p {
		if k != deferring {
			p[k] *= (1 - q) / max(1-d, 1e-6)
		}
	}
	p[deferring] = q
	return p
}

const deferOdds = 4

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
