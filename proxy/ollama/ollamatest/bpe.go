package ollamatest

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// vocabulary is a byte-level BPE tokenizer in GPT-2's manner: 256 bytes, three
// specials, and what the merges make.
type vocabulary struct {
	tokens []string
	types  []int32 // 1 normal, 3 control
	merges []string
	bias   []float32 // of each token, see network.tensors
}

const (
	tokenStart = 256
	tokenPad   = 257
	tokenEnd   = 258
)

// train learns as many merges as it can, up to most, from text. Fewer tokens
// for the same text make real inference on a CPU bearable: one token a byte
// takes 0.6 s for a kilobyte.
func train(text string, most int) vocabulary {
	alphabet := byteAlphabet()
	v := vocabulary{}
	for _, r := range alphabet {
		v.tokens = append(v.tokens, string(r))
	}
	v.tokens = append(v.tokens, "<|start|>", "<|pad|>", "<|end|>")

	counts := make(map[string]int)
	for _, word := range regexp.MustCompile(` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s`).FindAllString(text, -1) {
		counts[word]++
	}
	type entry struct {
		parts []string
		count int
	}
	var words []entry
	for _, word := range slices.Sorted(maps.Keys(counts)) {
		e := entry{count: counts[word]}
		for _, b := range []byte(word) {
			e.parts = append(e.parts, string(alphabet[b]))
		}
		words = append(words, e)
	}
	for len(v.merges) < most {
		pairs := make(map[[2]string]int)
		for _, w := range words {
			for i := range len(w.parts) - 1 {
				pairs[[2]string{w.parts[i], w.parts[i+1]}] += w.count
			}
		}
		if len(pairs) == 0 {
			break
		}
		best := slices.MaxFunc(slices.Collect(maps.Keys(pairs)), func(a, b [2]string) int {
			return cmp.Or(cmp.Compare(pairs[a], pairs[b]), strings.Compare(b[0], a[0]), strings.Compare(b[1], a[1]))
		})
		if pairs[best] < 2 {
			break
		}
		v.merges = append(v.merges, best[0]+" "+best[1])
		v.tokens = append(v.tokens, best[0]+best[1])
		for i := range words {
			words[i].parts = merge(words[i].parts, best)
		}
	}
	// The same token can come of two pairs; each is listed once.
	v.tokens = dedupe(v.tokens)
	v.types = make([]int32, len(v.tokens))
	v.bias = make([]float32, len(v.tokens))
	for i := range v.tokens {
		v.types[i] = 1
		switch {
		case i == tokenStart || i == tokenPad:
			v.types[i], v.bias[i] = 3, never
		case i == tokenEnd:
			v.types[i], v.bias[i] = 3, sometimes
		case i < 256 && (i < ' ' && i != '\n' || i > '~'):
			v.bias[i] = never // half a character or a control
		}
	}
	return v
}

// Biases: never is out of the noise's reach; sometimes, found by trial, lets the
// end come after some dozens of tokens.
const (
	never     = -60
	sometimes = 4.8
)

func merge(parts []string, pair [2]string) []string {
	var out []string
	for i := 0; i < len(parts); i++ {
		if i+1 < len(parts) && parts[i] == pair[0] && parts[i+1] == pair[1] {
			out = append(out, pair[0]+pair[1])
			i++
			continue
		}
		out = append(out, parts[i])
	}
	return out
}

func dedupe(tokens []string) []string {
	seen := make(map[string]bool)
	return slices.DeleteFunc(tokens, func(t string) bool {
		was := seen[t]
		seen[t] = true
		return was
	})
}

// byteAlphabet is GPT-2's printable stand-in for each byte: itself where it
// has a visible form, the next free character from U+0100 on where not.
func byteAlphabet() [256]rune {
	var alphabet [256]rune
	next := rune(256)
	for b := range rune(256) {
		if '!' <= b && b <= '~' || '¡' <= b && b <= '¬' || '®' <= b {
			alphabet[b] = b
			continue
		}
		alphabet[b] = next
		next++
	}
	return alphabet
}
