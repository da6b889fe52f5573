package ollamatest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strconv"
)

// network is the shape of a generated model: a Llama of two small blocks.
type network struct {
	seed    uint64
	context uint32
	vocab   vocabulary
	pooled  bool // it embeds: a text's vector is the mean of its tokens'
}

const (
	width  = 64
	inner  = 128
	blocks = 2
	heads  = 4
)

// gguf renders the model as a GGUF file, version 3, all tensors f32.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
func (n network) gguf() []byte {
	tensors := n.tensors()
	w := &writer{}
	type field struct {
		key   string
		value any
	}
	fields := []field{
		{"general.architecture", "llama"},
		{"general.file_type", uint32(0)},
		{"llama.block_count", uint32(blocks)},
		{"llama.context_length", n.context},
		{"llama.embedding_length", uint32(width)},
		{"llama.feed_forward_length", uint32(inner)},
		{"llama.attention.head_count", uint32(heads)},
		{"llama.attention.head_count_kv", uint32(heads)},
		{"llama.attention.layer_norm_rms_epsilon", float32(1e-5)},
		{"llama.rope.dimension_count", uint32(width / heads)},
		{"llama.vocab_size", uint32(len(n.vocab.tokens))},
		{"tokenizer.ggml.model", "gpt2"},
		{"tokenizer.ggml.pre", "gpt-2"},
		{"tokenizer.ggml.tokens", n.vocab.tokens},
		{"tokenizer.ggml.token_type", n.vocab.types},
		{"tokenizer.ggml.merges", n.vocab.merges},
		{"tokenizer.ggml.bos_token_id", uint32(tokenStart)},
		{"tokenizer.ggml.eos_token_id", uint32(tokenEnd)},
		{"tokenizer.ggml.add_bos_token", false},
	}
	if n.pooled {
		fields = append(fields, field{"llama.pooling_type", uint32(1)})
	}
	w.WriteString("GGUF")
	w.put(uint32(3))
	w.put(uint64(len(tensors)))
	w.put(uint64(len(fields)))
	for _, f := range fields {
		w.text(f.key)
		w.value(f.value)
	}
	offset := uint64(0)
	for _, t := range tensors {
		w.text(t.name)
		w.put(uint32(len(t.shape)))
		w.put(t.shape)
		w.put(uint32(0)) // f32
		w.put(offset)
		offset += (uint64(len(t.data))*4 + 31) / 32 * 32
	}
	w.align()
	for _, t := range tensors {
		w.put(t.data)
		w.align()
	}
	return w.Bytes()
}

type tensor struct {
	name  string
	shape []uint64 // fastest first
	data  []float32
}

// Two dimensions of the residual stream are kept out of the noise: no block
// writes to them, so what an embedding puts there reaches the output.
const (
	always   = 0 // 1 for every token: its weight in the output is a token's bias
	starting = 1 // 1 for tokenStart, which ends every prompt: no answer is empty
	reserved = 2
)

// tensors are Gaussian noise with a bias, which keeps answers readable and
// makes them end.
func (n network) tensors() []tensor {
	rng := rand.New(rand.NewPCG(n.seed, 0))
	noise := func(name string, sigma float64, in, out uint64) tensor {
		t := tensor{name: name, shape: []uint64{in, out}, data: make([]float32, in*out)}
		for i := range t.data {
			t.data[i] = float32(rng.NormFloat64() * sigma)
		}
		return t
	}
	ones := func(name string) tensor {
		t := tensor{name: name, shape: []uint64{width}, data: make([]float32, width)}
		for i := range t.data {
			t.data[i] = 1
		}
		return t
	}
	silent := func(t tensor) tensor { // in the reserved dimensions of its output
		clear(t.data[:reserved*t.shape[0]])
		return t
	}
	size := uint64(len(n.vocab.tokens))
	embedding, output := noise("token_embd.weight", 0.3, width, size), noise("output.weight", 0.3, width, size)
	clear(output.data[tokenEnd*width : (tokenEnd+1)*width]) // as likely after any text
	for i := range size {
		embedding.data[i*width+always], embedding.data[i*width+starting] = 1, 0
		output.data[i*width+always], output.data[i*width+starting] = n.vocab.bias[i], 0
	}
	embedding.data[tokenStart*width+starting] = 1
	output.data[tokenEnd*width+starting] = never
	tensors := []tensor{embedding}
	for b := range blocks {
		name := func(s string) string { return "blk." + strconv.Itoa(b) + "." + s + ".weight" }
		tensors = append(tensors,
			ones(name("attn_norm")),
			noise(name("attn_q"), 0.2, width, width),
			noise(name("attn_k"), 0.2, width, width),
			noise(name("attn_v"), 0.2, width, width),
			silent(noise(name("attn_output"), 0.1, width, width)),
			ones(name("ffn_norm")),
			noise(name("ffn_gate"), 0.1, width, inner),
			noise(name("ffn_up"), 0.1, width, inner),
			silent(noise(name("ffn_down"), 0.1, inner, width)),
		)
	}
	return append(tensors, ones("output_norm.weight"), output)
}

// writer writes GGUF's little-endian primitives.
type writer struct{ bytes.Buffer }

func (w *writer) put(v any) {
	if err := binary.Write(&w.Buffer, binary.LittleEndian, v); err != nil {
		panic(err) // a value of no fixed size: a mistake in this file
	}
}

func (w *writer) text(s string) {
	w.put(uint64(len(s)))
	w.WriteString(s)
}

func (w *writer) value(v any) {
	switch v := v.(type) {
	case uint32:
		w.put(uint32(4))
		w.put(v)
	case float32:
		w.put(uint32(6))
		w.put(v)
	case bool:
		w.put(uint32(7))
		w.put(v)
	case string:
		w.put(uint32(8))
		w.text(v)
	case []string:
		w.put([]uint32{9, 8})
		w.put(uint64(len(v)))
		for _, s := range v {
			w.text(s)
		}
	case []int32:
		w.put([]uint32{9, 5})
		w.put(uint64(len(v)))
		w.put(v)
	default:
		panic("no GGUF type for this value")
	}
}

func (w *writer) align() {
	for w.Len()%32 != 0 {
		w.WriteByte(0)
	}
}
