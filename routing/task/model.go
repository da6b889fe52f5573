package task

import (
	"bytes"
	_ "embed" // the trained tables
	"encoding/binary"
	"errors"
	"math"
)

//go:embed weights.bin
var weightsFile []byte

// ErrWeights is returned for weights that do not fit this program.
var ErrWeights = errors.New("task: weights of another format")

// linear is a multinomial logistic regression over hashed features. Every row
// belongs to one feature and bears a mark of it, so that a word never seen does
// not speak with the voice of another.
type linear struct {
	bits, classes int
	w             []int8 // rows of classes
	marks         []uint8
	scale         float32
	bias          []float32
}

// row finds the row of a feature, or reports that there is none.
func (m *linear) row(h uint32) ([]int8, bool) {
	i := int(h >> (32 - m.bits))
	return m.w[i*m.classes:][:m.classes], m.marks[i] == mark(h)
}

// mark is what tells the features of a row apart; 0 marks an empty row.
func mark(h uint32) uint8 { return max(uint8(h), 1) }

// gains of the groups: what a group's scaled sum is multiplied by.
var gains = [groups]float32{byWord: 1, byChar: 1, byIdea: 1.5, byShape: 0.5} //nolint:gochecknoglobals // compiled table

// value is what each feature of a group of n counts.
func value(g, n int) float32 {
	if g == byShape {
		return gains[g]
	}
	return gains[g] / float32(math.Sqrt(float64(max(n, 1))))
}

// logits adds the model's scores to z.
func (m *linear) logits(f *features, z []float32) {
	copy(z, m.bias)
	var sum [classes + 2]int32
	for g := range groups {
		known := 0
		clear(sum[:])
		for _, h := range f.hash[f.group[g]:f.group[g+1]] {
			row, ok := m.row(h)
			if !ok {
				continue
			}
			known++
			for k, w := range row {
				sum[k] += int32(w)
			}
		}
		if known == 0 {
			continue
		}
		v := value(g, known) * m.scale
		for k := range m.classes {
			z[k] += v * float32(sum[k])
		}
	}
}

// Weights are the trained tables in the form that is embedded.
//
// The file is "TNR2", then for each of the four models its number of address
// bits, its number of classes, its scale and biases as float32, little endian,
// its rows of int8 and their marks; then what cuts are worth, last the temperature and the thresholds.
type weights struct {
	ask, system, line, doc linear
	cuts                   cuts
	temperature            float32
	thresholds             [classes]float32
}

func (c *cuts) all() []*float32 {
	var out []*float32
	for _, t := range [][]float32{c.head[:], c.tail[:], c.shape[:]} {
		for i := range t {
			out = append(out, &t[i])
		}
	}
	return out
}

const magic = "TNR2"

func (w *weights) models() []*linear { return []*linear{&w.ask, &w.system, &w.line, &w.doc} }

func (w *weights) marshal() []byte {
	b := []byte(magic)
	f32 := func(v float32) { b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v)) }
	for _, m := range w.models() {
		b = append(b, byte(m.bits), byte(m.classes))
		f32(m.scale)
		for _, v := range m.bias {
			f32(v)
		}
		for _, v := range m.w {
			b = append(b, byte(v))
		}
		b = append(b, m.marks...)
	}
	for _, v := range w.cuts.all() {
		f32(*v)
	}
	f32(w.temperature)
	for _, v := range w.thresholds {
		f32(v)
	}
	return b
}

func (w *weights) unmarshal(b []byte) error {
	if len(b) < len(magic) || string(b[:len(magic)]) != magic {
		return ErrWeights
	}
	b = b[len(magic):]
	short := false
	f32 := func() float32 {
		if len(b) < 4 {
			short = true
			return 0
		}
		v := math.Float32frombits(binary.LittleEndian.Uint32(b))
		b = b[4:]
		return v
	}
	for _, m := range w.models() {
		if len(b) < 2 {
			return ErrWeights
		}
		m.bits, m.classes = int(b[0]), int(b[1])
		b = b[2:]
		if m.bits < 1 || m.bits > 20 || m.classes > classes+2 {
			return ErrWeights
		}
		m.scale = f32()
		m.bias = make([]float32, m.classes)
		for k := range m.bias {
			m.bias[k] = f32()
		}
		n := m.classes << m.bits
		if len(b) < n {
			return ErrWeights
		}
		m.w = make([]int8, n)
		for i := range m.w {
			m.w[i] = int8(b[i])
		}
		b = b[n:]
		if len(b) < 1<<m.bits {
			return ErrWeights
		}
		m.marks = bytes.Clone(b[:1<<m.bits])
		b = b[1<<m.bits:]
	}
	for _, v := range w.cuts.all() {
		*v = f32()
	}
	w.temperature = f32()
	for k := range w.thresholds {
		w.thresholds[k] = f32()
	}
	if short || len(b) != 0 {
		return ErrWeights
	}
	return nil
}
