package task

import (
	"fmt"
	"math"
	"slices"
)

// Adaptation is what an operator adds to the embedded tables. It needs no
// training and takes effect in New.
type Adaptation struct {
	Tasks      []string            // further tasks, answered when their phrases or examples say so
	Phrases    map[string][]string // by task: what its users say; a trailing * admits every ending
	Examples   []Text              // asks with the task they are for
	Thresholds map[string]float64  // by task: below this probability the answer is general
}

const (
	phraseWorth  = 5   // logits of an operator's phrase
	exampleWorth = 7   // logits of an ask that equals an example
	exampleAlike = 0.4 // similarity at which an example begins to speak
	addedDoubt   = -4  // logits of an added task before anything speaks for it
)

// own is an adaptation made ready for scoring.
type own struct {
	added      []string
	phrases    *lexicon // one concept for each class
	examples   []example
	thresholds map[int]float32
}

type example struct {
	class int
	words []uint32
}

// adapt makes the operator's words ready.
func (d *Detector) adapt(a Adaptation) error {
	if len(a.Tasks) > maxClasses-classes {
		return fmt.Errorf("task: %d added tasks, at most %d", len(a.Tasks), maxClasses-classes)
	}
	for _, t := range a.Tasks {
		if t == "" || t == Defer || slices.Contains(tasks, t) || slices.Contains(d.own.added, t) {
			return fmt.Errorf("task: added task %q is empty or taken", t)
		}
		d.own.added = append(d.own.added, t)
	}
	class := func(name string) (int, error) {
		if k := slices.Index(tasks, name); k >= 0 {
			return k, nil
		}
		if k := slices.Index(d.own.added, name); k >= 0 {
			return classes + k, nil
		}
		return 0, fmt.Errorf("task: no task is named %q", name)
	}
	s, _ := d.pool.Get().(*scratch)
	defer d.pool.Put(s)
	if len(a.Phrases) > 0 {
		d.own.phrases = &lexicon{nodes: make([]node, 1), concepts: make([]concept, maxClasses)}
	}
	for name, phrases := range a.Phrases {
		k, err := class(name)
		if err != nil {
			return err
		}
		for _, p := range phrases {
			open := len(p) > 0 && p[len(p)-1] == '*'
			s.text, s.at = fold(s.text[:0], s.at[:0], p, 0)
			folded := string(s.text)
			if folded == "" {
				return fmt.Errorf("task: a phrase of %s has no letters", name)
			}
			if open {
				folded += "*"
			}
			d.own.phrases.add(folded, uint8(k))
		}
	}
	for _, e := range a.Examples {
		k, err := class(e.Label)
		if err != nil {
			return err
		}
		s.text, s.at = fold(s.text[:0], s.at[:0], e.Text, 0)
		s.turn = 0
		s.feat.reset()
		s.words(&s.feat, false)
		s.feat.done()
		if len(s.feat.hash) == 0 {
			return fmt.Errorf("task: an example of %s has no words", e.Label)
		}
		d.own.examples = append(d.own.examples, example{class: k, words: slices.Clone(s.feat.hash)})
	}
	d.own.thresholds = make(map[int]float32, len(a.Thresholds))
	for name, v := range a.Thresholds {
		k, err := class(name)
		if err != nil {
			return err
		}
		if !(v >= 0 && v <= 1) {
			return fmt.Errorf("task: threshold %v of %s is no probability", v, name)
		}
		d.own.thresholds[k] = float32(v)
	}
	return nil
}

func (o *own) threshold(class int, standard float32) float32 {
	if v, ok := o.thresholds[class]; ok {
		return v
	}
	return standard
}

// add adds what the operator's phrases and examples say of the ask in s.text to
// the logits.
func (o *own) add(s *scratch, z *probs) {
	for k := range o.added {
		z[classes+k] = addedDoubt
	}
	if o.phrases != nil {
		for i := range s.text {
			if s.text[i] > space && (i == 0 || s.text[i-1] <= space) {
				o.phrases.find(s.text, i, func(c uint8, _ int) { z[c] += phraseWorth })
			}
		}
	}
	if len(o.examples) == 0 {
		return
	}
	var best [maxClasses]float32
	s.feat.reset()
	s.words(&s.feat, false)
	s.feat.done()
	n := len(s.feat.hash)
	for _, e := range o.examples {
		both := 0
		for _, h := range e.words {
			if s.feat.has(h) {
				both++
			}
		}
		alike := float32(float64(both) / math.Sqrt(float64(max(n*len(e.words), 1))))
		best[e.class] = max(best[e.class], alike)
	}
	for k, v := range best {
		if v > exampleAlike {
			z[k] += exampleWorth * (v - exampleAlike) / (1 - exampleAlike)
		}
	}
}
