package task

import (
	_ "embed" // the lexicon and the weights
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

//go:embed lexicon.txt
var lexiconText string

// concept is a group of phrases with one meaning: a verb of a task, an object,
// a kind of output.
type concept struct {
	name  string
	prior []float32 // one per task: what the concept says before any training
}

// node is one byte of the phrase trie. Siblings are a linked list: at most a
// few dozen long, and the first byte goes through a table. Walking them is
// much of the work, so a node is small and what ends at it is kept aside.
type node struct {
	child, next int32
	ending      int32 // in endings, from 1; 0 is none
	b           byte
}

// ending is the concepts of the phrases that end at a node, or begin there.
type ending struct{ exact, open []uint8 }

type lexicon struct {
	concepts []concept
	nodes    []node
	endings  []ending
	first    [256]int32
	bones    map[uint32]uint8 // of the telling words, to know them misspelt
}

// maxConcepts is what fits the bit sets that scoring keeps.
const maxConcepts = 64

// parseLexicon reads the format that lexicon.txt describes.
func parseLexicon(text string, tasks []string) (*lexicon, error) {
	l := &lexicon{nodes: make([]node, 1), bones: map[uint32]uint8{}} // node 0 is none
	for n, line := range strings.Split(text, "\n") {
		switch {
		case strings.TrimSpace(line) == "" || line[0] == '#':
		case line[0] == '\t' || line[0] == ' ':
			if len(l.concepts) == 0 {
				return nil, fmt.Errorf("task: lexicon line %d: a phrase before any concept", n+1)
			}
			for phrase := range strings.SplitSeq(line, ",") {
				if phrase = strings.TrimSpace(phrase); phrase != "" {
					l.skeleton(phrase, uint8(len(l.concepts)-1))
					l.add(phrase, uint8(len(l.concepts)-1))
				}
			}
		default:
			f := strings.Fields(line)
			c := concept{name: f[0], prior: make([]float32, len(tasks))}
			for _, w := range f[1:] {
				name, value, _ := strings.Cut(w, "=")
				k := slices.Index(tasks, name)
				v, err := strconv.ParseFloat(value, 32)
				if k < 0 || err != nil {
					return nil, fmt.Errorf("task: lexicon line %d: weight %q", n+1, w)
				}
				c.prior[k] = float32(v)
			}
			l.concepts = append(l.concepts, c)
		}
	}
	for b, c := range l.bones {
		if c == maxConcepts {
			delete(l.bones, b)
		}
	}
	if len(l.concepts) > maxConcepts {
		return nil, fmt.Errorf("task: %d concepts, at most %d", len(l.concepts), maxConcepts)
	}
	return l, nil
}

// skeleton enters a single telling word by its bones, unless another concept
// has the same.
func (l *lexicon) skeleton(phrase string, c uint8) {
	word := strings.TrimSuffix(phrase, "*")
	if len(word) < 6 || slices.Max(append(l.concepts[c].prior, 0)) < 1.2 {
		return
	}
	b := bones([]byte(word))
	if b == 0 {
		return
	}
	if was, ok := l.bones[b]; ok && was != c {
		c = maxConcepts // ambiguous: nobody's
	}
	l.bones[b] = c
}

// add enters a folded phrase; a trailing * admits every ending.
func (l *lexicon) add(phrase string, c uint8) {
	phrase, open := strings.CutSuffix(phrase, "*")
	if r, _ := utf8.DecodeRuneInString(phrase); unspaced(r) {
		open = true
		phrase = spread(phrase)
	}
	if phrase == "" {
		return
	}
	at := &l.first[phrase[0]]
	var n int32
	for i := range len(phrase) {
		n = l.sibling(*at, phrase[i])
		if n == 0 {
			n = int32(len(l.nodes))
			l.nodes = append(l.nodes, node{b: phrase[i], next: *at})
			// The append may have moved what at points into.
			if i == 0 {
				l.first[phrase[0]] = n
			} else {
				l.link(phrase[:i], n)
			}
		}
		at = &l.nodes[n].child
	}
	if l.nodes[n].ending == 0 {
		l.endings = append(l.endings, ending{})
		l.nodes[n].ending = int32(len(l.endings))
	}
	if e := &l.endings[l.nodes[n].ending-1]; open {
		e.open = append(e.open, c)
	} else {
		e.exact = append(e.exact, c)
	}
}

// link makes n the first child of the node that prefix leads to.
func (l *lexicon) link(prefix string, n int32) {
	m := l.walk(prefix)
	l.nodes[m].child = n
}

func (l *lexicon) walk(prefix string) int32 {
	n := int32(0)
	for i := range len(prefix) {
		at := l.first[prefix[0]]
		if i > 0 {
			at = l.nodes[n].child
		}
		n = l.sibling(at, prefix[i])
	}
	return n
}

// sibling finds the node of byte b in a list, 0 if there is none.
func (l *lexicon) sibling(n int32, b byte) int32 {
	for n != 0 && l.nodes[n].b != b {
		n = l.nodes[n].next
	}
	return n
}

// spread puts a space between the runes of a script without spaces, as fold
// does.
func spread(s string) string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 && unspaced(r) {
			b.WriteByte(space)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// find calls hit for every phrase that starts at text[i:], shortest first.
func (l *lexicon) find(text []byte, i int, hit func(c uint8, end int)) {
	n := l.first[text[i]]
	for j := i; ; {
		nd := &l.nodes[n]
		if n == 0 {
			return
		}
		if nd.b != text[j] {
			n = nd.next
			continue
		}
		j++
		if nd.ending != 0 {
			e := &l.endings[nd.ending-1]
			for _, c := range e.open {
				hit(c, j)
			}
			if j == len(text) || text[j] == space || text[j] == comma || text[j] == sentence {
				for _, c := range e.exact {
					hit(c, j)
				}
			}
		}
		if j == len(text) {
			return
		}
		n = nd.child
	}
}
