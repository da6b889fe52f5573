package task

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestFound: one pass finds the needles that a search for each would find.
func TestFound(t *testing.T) {
	if len(needles) > 64 {
		t.Fatalf("%d needles, found has bits for 64", len(needles))
	}
	parts := append(slices.Clone(needles), "", "a", "\n", "ign", "ystem", "ystem: ", "gnor", "忽", "x\xff")
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 0, 6).Draw(t, "parts"), "")
		text = text[rapid.IntRange(0, len(text)).Draw(t, "cut"):]
		set := found(text)
		for k, n := range needles {
			if got, want := set>>k&1 != 0, strings.Contains(text, n); got != want {
				t.Fatalf("%q in %q: %v, want %v", n, text, got, want)
			}
		}
	})
}
