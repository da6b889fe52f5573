package task_test

import (
	"os"
	"strings"
	"testing"

	"tenure/routing/task"
	"tenure/routing/task/eval"
)

// TestDevelopmentSet measures on a labelled set that is kept outside the
// repository and out of training.
func TestDevelopmentSet(t *testing.T) {
	path := os.Getenv("TENURE_ROUTING_DEV")
	if path == "" {
		t.Skip("TENURE_ROUTING_DEV names no labelled set")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	items, err := eval.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	r := eval.Evaluate(task.Detect, items)
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + b.String())
	if r.MacroF1 < 0.95 {
		t.Errorf("macro-F1 %.4f, want 0.95", r.MacroF1)
	}
	for name, c := range r.Slices {
		if c.N >= 20 && c.Accuracy() < 0.9 {
			t.Errorf("%s: %d of %d, want 90 %%", name, c.Right, c.N)
		}
	}
}
