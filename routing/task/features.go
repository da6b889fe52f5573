package task

import "math/bits"

// A feature is a hash; a model looks it up in a table of a power of two rows.
// Features come in groups, and each group is scaled by its own size, so that a
// long text has no louder voice than a short one and the few concepts are not
// drowned by the many letters.
const (
	byWord  = iota // words and pairs of words
	byChar         // letters: three to five of a word, ends included
	byIdea         // concepts, alone and in pairs
	byShape        // facts about the message
	groups
)

type features struct {
	hash  []uint32
	group [groups + 1]int // hash[group[g]:group[g+1]] belongs to g
	seen  []uint32        // epoch in which a slot was last taken: each feature counts once
	epoch uint32
}

const seenBits = 14

func (f *features) reset() {
	f.hash = f.hash[:0]
	f.group = [groups + 1]int{}
	if f.seen == nil {
		f.seen = make([]uint32, 1<<seenBits)
	}
	f.epoch++
	if f.epoch == 0 {
		clear(f.seen)
		f.epoch = 1
	}
}

// add enters a feature unless it is there already. Two hashes that share a
// slot may both enter twice: harmless, and the same at training.
func (f *features) add(h uint32) {
	h = mix(h)
	if f.has(h) {
		return
	}
	f.seen[h>>(32-seenBits)] = f.epoch<<8 | h&0xFF
	f.hash = append(f.hash, h)
}

// has reports whether an entered feature is there.
func (f *features) has(h uint32) bool { return f.seen[h>>(32-seenBits)] == f.epoch<<8|h&0xFF }

// mix spreads a hash over its upper bits, by which tables are addressed.
func mix(h uint32) uint32 {
	h *= 0x9E3779B1
	return h ^ h>>15
}

// begin ends the groups before g.
func (f *features) begin(g int) {
	for k := g; k <= groups; k++ {
		f.group[k] = len(f.hash)
	}
}

func (f *features) done() { f.group[groups] = len(f.hash) }

const (
	fnvBasis = 2166136261
	fnvPrime = 16777619
)

func hashWord(b []byte) uint32 {
	h := uint32(fnvBasis)
	for _, c := range b {
		h = (h ^ uint32(c)) * fnvPrime
	}
	return h
}

func join(a, b uint32) uint32 { return (a*31 ^ b) * fnvPrime }

// Salts keep kinds of feature apart.
const (
	saltNegated = (0xA511E9B3 + iota*0x9E3779B9) & 0xFFFFFFFF
	saltBigram
	saltChar
	saltIdea
	saltPair
	saltFirst
	saltLast
	saltShape
	saltWith
	saltStart
	saltNear
	saltPlace
	saltEarlier
	saltBones
)

// words enters the words of the folded text: alone, in pairs, and by their
// letters when chars is set. Words under a negation are different words, and so
// are those before the turn: what is done first is not what is handed over.
func (s *scratch) words(f *features, chars bool) {
	f.begin(byWord)
	prev, denied := uint32(0), 0
	for i := 0; i < len(s.text); {
		if s.text[i] <= space {
			switch {
			case s.text[i] == sentence:
				denied, prev = 0, saltStart
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
		h := hashWord(s.text[i:end])
		salt := uint32(0)
		if i < s.turn {
			salt = saltEarlier
		}
		b := bones(s.text[i:end])
		if denied > 0 {
			f.add(h ^ saltNegated ^ salt)
		} else {
			f.add(h ^ salt)
			if chars && b != 0 {
				f.add(b ^ saltBones ^ salt)
			}
		}
		f.add(join(prev, h) ^ saltBigram ^ salt)
		prev = h
		denied = denies(s.text[i:end], denied)
		i = end
	}
	f.begin(byChar)
	if !chars {
		return
	}
	for i := 0; i < len(s.text); {
		if s.text[i] <= space {
			i++
			continue
		}
		end := i
		for end < len(s.text) && s.text[end] > space {
			end++
		}
		if i >= s.turn {
			grams(f, s.text[i:end])
		}
		i = end
	}
}

// bones hashes a word by its first letter and the set of its other consonants,
// which survive swapped, doubled and lost letters; 0 where there are fewer than
// three of these.
func bones(w []byte) uint32 {
	if len(w) < 4 {
		return 0
	}
	set := uint32(0)
	for _, c := range w[1:] {
		switch {
		case c < 'a' || c > 'z':
			return 0
		case c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u' || c == 'y':
		default:
			set |= 1 << (c - 'a')
		}
	}
	if bits.OnesCount32(set) < 3 {
		return 0
	}
	return (set<<5 ^ uint32(w[0])) * fnvPrime
}

// grams enters the letters of ^word$, three to five at a time.
func grams(f *features, w []byte) {
	if len(w) > 24 {
		w = w[:24]
	}
	var b [26]byte
	b[0] = '^'
	n := 1 + copy(b[1:], w)
	b[n] = '$'
	n++
	for i := 0; i+3 <= n; i++ {
		h := uint32(fnvBasis ^ saltChar&0xFFFF)
		for j := i; j < n && j < i+5; j++ {
			h = (h ^ uint32(b[j])) * fnvPrime
			if j >= i+2 {
				f.add(h)
			}
		}
	}
}

// ideas enters the concepts found by Detector.concepts: those present, those
// denied, what comes first and last, and which come together.
func (s *scratch) ideas(f *features) {
	f.begin(byIdea)
	var list [maxConcepts]uint32
	n := 0
	for k := range uint32(maxConcepts) {
		switch {
		case s.pos>>k&1 != 0:
			if s.late>>k&1 == 0 && s.turn > 0 {
				continue
			}
			f.add(k ^ saltIdea)
			list[n] = k
			n++
		case s.neg>>k&1 != 0:
			f.add(k ^ saltIdea ^ saltNegated)
		}
	}
	for i := range n {
		for j := range i {
			f.add(list[j]<<8 ^ list[i] ^ saltPair)
		}
	}
	first, last := -1, -1
	for i, h := range s.hits {
		if int(h.start) < s.turn {
			f.add(uint32(h.concept) ^ saltIdea ^ saltEarlier)
			continue
		}
		if h.negated || s.weak>>h.concept&1 != 0 {
			continue
		}
		if first < 0 {
			first = i
		}
		last = i
	}
	if first >= 0 {
		f.add(uint32(s.hits[first].concept) ^ saltFirst)
		f.add(uint32(s.hits[last].concept) ^ saltLast)
	}
}

// The weak concepts are objects and turns of speech that say nothing about the
// order of the deliverables.
func weak(name string) bool {
	switch name {
	case "cv", "jd", "candidate", "role", "carry", "revise", "table", "reader", "skills", "fields", "results", "warm", "override", "vocative", "chain", "several", "domain":
		return true
	}
	return false
}

// lineFeatures enters one line of a message as the line model sees it. The
// line's own text is in s.text and its concepts have been found.
func (s *scratch) lineFeatures(f *features, i int) {
	f.reset()
	s.words(f, true)
	s.ideas(f)
	f.begin(byShape)
	l := &s.lines[i]
	shape := func(salt, v uint32) { f.add(v*0x85EBCA6B ^ salt) }
	const place = cueGap | cueGapAfter | cueFirst | cueLast | cueInLabel
	for b := range uint32(32) {
		c := uint32(1) << b
		if l.cues&c != 0 {
			shape(saltShape, b)
			if c&place == 0 {
				shape(saltPlace, b<<8|(l.cues&place)>>17)
			}
		}
		if i > 0 && s.lines[i-1].cues&c&^place != 0 {
			shape(saltNear, b)
		}
		if i+1 < len(s.lines) && s.lines[i+1].cues&c&^place != 0 {
			shape(saltNear, b|64)
		}
	}
	shape(saltPlace, 1<<20|l.cues&place)
	shape(saltPlace, 1<<21|uint32(min(i, 6)))
	shape(saltPlace, 1<<22|uint32(min(len(s.lines)-1-i, 6)))
	shape(saltPlace, 1<<23|uint32(min(l.words, 24)/3))
	shape(saltPlace, 1<<24|uint32(min(len(s.lines), 40)/5))
	ideas := 0
	for k := s.pos; k != 0; k &= k - 1 {
		ideas++
	}
	shape(saltPlace, 1<<25|uint32(min(ideas, 6)))
	f.done()
}

// kinds of document, in the order of the doc model.
var kinds = []string{"cv", "jd", "transcript", "notes", "data", "mail", "code", "context"} //nolint:gochecknoglobals // compiled table

// docFeatures enters lines [i,j) of a document, whose beginning is in s.text.
func (s *scratch) docFeatures(f *features, i, j int) {
	f.reset()
	s.words(f, false)
	f.begin(byShape)
	var count [32]int
	n := 0
	for k := i; k < j; k++ {
		if s.foreign(k) {
			continue
		}
		n++
		for b := range count {
			count[b] += int(s.lines[k].cues >> b & 1)
		}
	}
	for b, c := range count {
		if b != 17 && c > 0 {
			f.add(uint32(b<<4|1+min(c*4/n, 3))*0x85EBCA6B ^ saltShape)
		}
	}
	f.done()
}

// facts is what the ask is scored with beside its words.
type facts struct {
	docs    [8]int // documents of each kind
	history bool   // there was an answer before
	json    bool
	bytes   int // length of the ask
}

// askFeatures enters the ask in s.text, whose concepts have been found.
func (s *scratch) askFeatures(f *features, x facts) {
	f.reset()
	s.words(f, true)
	s.ideas(f)
	f.begin(byShape)
	shape := func(v uint32) { f.add(v*0x85EBCA6B ^ saltShape) }
	set, n := uint32(0), 0
	for k, c := range x.docs {
		if c > 0 {
			set |= 1 << k
			n += c
			shape(uint32(k) | 1<<8)
			if c > 1 {
				shape(uint32(k) | 1<<9)
			}
		}
	}
	shape(1<<10 | set&7)
	// A question without a document and without a word of the trade is most
	// likely about something else.
	if n == 0 && !x.history {
		if (s.pos | s.neg).has(s.domain) {
			shape(1 << 15)
		} else {
			shape(1<<15 | 1)
		}
	}
	if x.history {
		shape(1 << 11)
		shape(1<<12 | uint32(min(x.bytes, 250)/25))
	}
	shape(1<<13 | uint32(min(x.bytes, 600)/40))
	if x.json {
		shape(1 << 14)
	}
	// What is done to which documents: "rank" over two CVs, "list" over one
	// job description.
	for k := range uint32(maxConcepts) {
		if s.pos>>k&1 != 0 && s.weak>>k&1 == 0 && (s.turn == 0 || s.late>>k&1 != 0) {
			f.add((k<<8|set&7)*0x85EBCA6B ^ saltWith)
		}
	}
	f.done()
}
