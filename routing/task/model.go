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
	rows, classes int
	w             []int8 // rows of classes
	marks         []uint8
	scale         float32
	bias          []float32
}

// row finds the row of a feature, or reports that there is none.
func (m *linear) row(h uint32) ([]int8, bool) {
	i, v := place(h, m.rows), mark(h)
	if m.marks[i] != v {
		if i = place(h*second, m.rows); m.marks[i] != v {
			return nil, false
		}
	}
	return m.w[i*m.classes:][:m.classes], true
}

// A feature may stand in either of two rows, so that few are left empty while
// others are fought over (Azar et al. 1999): place(h) and place(h*second).
const second = 0x85EBCA6B

// place maps a hash to one of n rows by its upper bits.
func place(h uint32, n int) int { return int(uint64(h) * uint64(n) >> 32) }

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
// The file is "TNR4", then for each of the four models its number of rows and
// of classes, its scale and biases as float32, all little endian, its weights
// in row order and the marks of the rows; then what cuts and the terms of a
// continuation are worth, last the temperature and the thresholds. A weight of a model of several classes is
// four bits, -7 to 7 and 8 added, two to a byte, the first in the lower half;
// one of a model of a single class is an int8.
type weights struct {
	ask, system, line, doc linear
	cuts                   cuts
	goes                   continuation
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

const magic = "TNR4"

func (w *weights) models() []*linear { return []*linear{&w.ask, &w.system, &w.line, &w.doc} }

func (w *weights) marshal() []byte {
	b := []byte(magic)
	f32 := func(v float32) { b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v)) }
	for _, m := range w.models() {
		b = binary.LittleEndian.AppendUint32(b, uint32(m.rows))
		b = append(b, byte(m.classes))
		f32(m.scale)
		for _, v := range m.bias {
			f32(v)
		}
		if m.classes == 1 {
			for _, v := range m.w {
				b = append(b, byte(v))
			}
		} else {
			for i := 0; i < len(m.w); i += 2 {
				b = append(b, byte(m.w[i]+8)|byte(m.w[i+1]+8)<<4)
			}
		}
		b = append(b, m.marks...)
	}
	for _, v := range w.cuts.all() {
		f32(*v)
	}
	for _, v := range w.goes {
		f32(v)
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
		if len(b) < 5 {
			return ErrWeights
		}
		m.rows, m.classes = int(binary.LittleEndian.Uint32(b)), int(b[4])
		b = b[5:]
		if m.rows < 2 || m.rows > 1<<20 || m.rows%2 != 0 || m.classes < 1 || m.classes > classes+2 {
			return ErrWeights
		}
		m.scale = f32()
		m.bias = make([]float32, m.classes)
		for k := range m.bias {
			m.bias[k] = f32()
		}
		m.w = make([]int8, m.classes*m.rows)
		n := len(m.w)
		if m.classes > 1 {
			n /= 2
		}
		if len(b) < n+m.rows {
			return ErrWeights
		}
		for i, v := range b[:n] {
			if m.classes == 1 {
				m.w[i] = int8(v)
			} else {
				m.w[2*i], m.w[2*i+1] = int8(v&15)-8, int8(v>>4)-8
			}
		}
		m.marks = bytes.Clone(b[n : n+m.rows])
		b = b[n+m.rows:]
	}
	for _, v := range w.cuts.all() {
		*v = f32()
	}
	for k := range w.goes {
		w.goes[k] = f32()
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
