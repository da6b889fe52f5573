package residency

import (
	"math/bits"
	"slices"
)

// Facts is what a model's memory follows from, as Ollama's /api/show tells it
// (block_count, attention.head_count, attention.head_count_kv, key_length,
// context_length) and /api/tags (size).
type Facts struct {
	Name    string
	Tier    Tier
	Weights Bytes // file size
	Layers  int
	Heads   int // attention heads
	KVHeads int // key and value heads; fewer than Heads with grouped-query attention
	HeadDim int
	Trained int // context the model was trained with; Ollama clamps to it. 0: not known
}

// KVPerToken is the memory one token of context takes in the f16 cache of
// llama.cpp: a key and a value of two bytes per element, for every layer, KV
// head and dimension (llama-kv-cache.cpp allocates n_embd_k_gqa and
// n_embd_v_gqa per layer and cell).
func (f Facts) KVPerToken() Bytes {
	return Bytes(2 * 2 * f.Layers * f.KVHeads * f.HeadDim)
}

// scoreBatch is llama.cpp's default n_ubatch: the tokens whose attention scores
// (f32, one per head and token of context) are held at once.
const scoreBatch = 512

// Size estimates the memory of the model loaded with slots contexts of so many
// tokens: weights, KV cache, and the attention scores of one batch. It agrees
// with what Ollama 0.17 reports for the four base models to 0.1 GiB, but for
// the token embedding that stays in host memory (up to 0.3 GiB less).
func (f Facts) Size(context, slots int) Bytes {
	if f.Trained > 0 {
		context = min(context, f.Trained)
	}
	cells := Bytes(context * max(slots, 1))
	scores := Bytes(f.Heads * scoreBatch * 4)
	return f.Weights + cells*(f.KVPerToken()+scores)
}

// Fit is what stays in memory together for one choice of context and slots.
type Fit struct {
	Context  int      `json:"context"`
	Slots    int      `json:"slots"`
	Sizes    []Bytes  `json:"sizes_bytes"` // in the order of the models
	Total    Bytes    `json:"total_bytes"`
	All      bool     `json:"all"`      // everything fits: nothing is ever swapped
	Together []string `json:"together"` // the largest set, pinned models always among it
	Swapped  []string `json:"swapped"`  // fit only in turn
	TooBig   []string `json:"too_big"`  // do not fit beside the pinned models at all
}

// Fits lists, for every context and number of slots, which models stay in
// budget together and whether swaps remain. size gives a measured size where
// there is one; nil or false takes the estimate. margin is added to each.
func Fits(models []Facts, budget, margin Bytes, maxModels int, contexts, slots []int, size func(name string, context, slots int) (Bytes, bool)) []Fit {
	models = models[:min(len(models), 20)]
	var fits []Fit
	for _, n := range slots {
		for _, c := range contexts {
			f := Fit{Context: c, Slots: n}
			for _, m := range models {
				b := m.Size(c, n)
				if size != nil {
					if measured, ok := size(m.Name, c, n); ok {
						b = measured
					}
				}
				f.Sizes = append(f.Sizes, b+margin)
				f.Total += b + margin
			}
			f.place(models, budget, maxModels)
			fits = append(fits, f)
		}
	}
	return fits
}

// place picks the set that stays: most models, then the strongest tiers, then
// the least memory.
func (f *Fit) place(models []Facts, budget Bytes, maxModels int) {
	var pinned uint
	var floor Bytes
	for i, m := range models {
		if m.Tier == T0 {
			pinned |= 1 << i
			floor += f.Sizes[i]
		}
	}
	type set struct {
		mask  uint
		n     int
		tiers int
		used  Bytes
	}
	best := set{}
	for mask := range uint(1) << len(models) {
		s := set{mask: mask, n: bits.OnesCount(mask)}
		for m := mask; m != 0; m &= m - 1 {
			i := bits.TrailingZeros(m)
			s.used += f.Sizes[i]
			s.tiers += int(models[i].Tier)
		}
		if s.used > budget || s.n > maxModels || mask&pinned != pinned {
			continue
		}
		if s.n > best.n || (s.n == best.n && (s.tiers < best.tiers || (s.tiers == best.tiers && s.used < best.used))) {
			best = s
		}
	}
	for i, m := range models {
		switch {
		case best.mask&(1<<i) != 0:
			f.Together = append(f.Together, m.Name)
		case (m.Tier != T0 && floor+f.Sizes[i] > budget) || f.Sizes[i] > budget || floor > budget:
			f.TooBig = append(f.TooBig, m.Name)
		default:
			f.Swapped = append(f.Swapped, m.Name)
		}
	}
	f.All = len(f.Together) == len(models)
	slices.Sort(f.Together)
}
