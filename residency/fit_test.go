package residency

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

func facts() []Facts {
	gb := func(x float64) Bytes { return Bytes(x * 1e9) }
	return []Facts{
		{Name: "phi3:mini", Tier: T0, Weights: gb(2.18), Layers: 32, Heads: 32, KVHeads: 32, HeadDim: 96},
		{Name: "deepseek-llm:7b", Tier: T1, Weights: gb(4.00), Layers: 30, Heads: 32, KVHeads: 32, HeadDim: 128, Trained: 4096},
		{Name: "mistral", Tier: T1, Weights: gb(4.37), Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128, Trained: 32768},
		{Name: "llama3", Tier: T2, Weights: gb(4.65), Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128, Trained: 8192},
	}
}

// What Ollama 0.17.4 listed in /api/ps for the four models.
func TestSizeAgreesWithOllama(t *testing.T) {
	for _, c := range []struct {
		model, context, slots int
		gib                   float64
	}{
		{0, 2048, 1, 2.85},
		{0, 4096, 1, 3.72},
		{0, 4096, 2, 5.47},
		{1, 2048, 1, 4.64},
		{1, 8192, 1, 5.67}, // clamped to 4096
		{1, 4096, 2, 7.80},
		{2, 4096, 1, 4.79},
		{2, 8192, 1, 5.55},
		{2, 4096, 4, 7.06},
		{3, 4096, 1, 4.85},
		{3, 32768, 1, 5.61}, // clamped to 8192
	} {
		f := facts()[c.model]
		got := float64(f.Size(c.context, c.slots)) / float64(GiB)
		if over := got - c.gib; over < -.1 || over > .35 {
			t.Errorf("%s at %d x %d: %.2f GiB, Ollama says %.2f", f.Name, c.context, c.slots, got, c.gib)
		}
	}
	if kv := facts()[1].KVPerToken(); kv != 480*1024 {
		t.Errorf("deepseek: %v per token", kv)
	}
	if kv := facts()[3].KVPerToken(); kv != 128*1024 {
		t.Errorf("llama3: %v per token", kv)
	}
}

func TestFits(t *testing.T) {
	fits := Fits(facts(), 20*GiB, 0, 4, []int{4096, 8192, 32768}, []int{1, 2}, nil)
	for _, f := range fits {
		sum := Bytes(0)
		for _, b := range f.Sizes {
			sum += b
		}
		if sum != f.Total || f.All != (sum <= 20*GiB) {
			t.Errorf("%d x %d: %v of 20 GiB, all fit: %v", f.Context, f.Slots, f.Total, f.All)
		}
		if len(f.Together)+len(f.Swapped)+len(f.TooBig) != 4 {
			t.Errorf("%d x %d: a model is in no or two lists: %+v", f.Context, f.Slots, f)
		}
	}
	if f := fits[0]; !f.All || len(f.Swapped) != 0 {
		t.Errorf("at 4096 x 1 all four fit in 20 GiB: %+v", f)
	}
	if f := fits[1]; f.All || !slices.Contains(f.Together, "phi3:mini") || len(f.Together) != 3 {
		t.Errorf("at 8192 x 1 three of four fit: %+v", f)
	}
	// A measurement beats the estimate, a count cap beats both.
	small := func(string, int, int) (Bytes, bool) { return GiB, true }
	if f := Fits(facts(), 20*GiB, GiB, 4, []int{32768}, []int{2}, small)[0]; !f.All || f.Total != 8*GiB {
		t.Errorf("measured at 1 GiB each: %+v", f)
	}
	if f := Fits(facts(), 20*GiB, GiB, 3, []int{32768}, []int{2}, small)[0]; f.All || !slices.Equal(f.Swapped, []string{"llama3"}) {
		t.Errorf("three models allowed: %+v", f)
	}
	if math.Abs(float64(Fits(facts(), 4*GiB, 0, 4, []int{4096}, []int{1}, nil)[0].Sizes[0])-3.78*float64(GiB)) > .05*float64(GiB) {
		t.Error("phi3 at 4096 is 3.78 GiB")
	}
}

func ExampleFacts_KVPerToken() {
	llama := Facts{Layers: 32, KVHeads: 8, HeadDim: 128}
	fmt.Println(llama.KVPerToken()*8192, "for 8192 tokens")
	// Output: 1.0 GiB for 8192 tokens
}
