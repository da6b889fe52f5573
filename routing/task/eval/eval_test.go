package eval_test

import (
	"strings"
	"testing"

	"tenure/routing/task"
	"tenure/routing/task/eval"
)

func TestEvaluate(t *testing.T) {
	const file = `{"id":"1","messages":[{"role":"user","content":"a"}],"label":"general","lang":"en","slice":"x"}
{"id":"2","messages":[{"role":"user","content":[{"type":"text","text":"b"},{"type":"text","text":"c"}]}],"label":"bias_detection","lang":"de","slice":"x"}

{"id":"3","messages":[{"role":"user","content":null}],"label":"bias_detection","lang":"de","slice":"y"}
`
	items, err := eval.Read(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if len(items) != 3 || items[1].Messages[0].Text != "b\n\nc" {
		t.Fatalf("read %+v", items)
	}
	// Right on the first two, wrong on the third.
	r := eval.Evaluate(func(in task.Input) task.Result {
		if in.Messages[0].Text == "b\n\nc" {
			return task.Result{Task: task.BiasDetection, Confidence: 0.9, Cause: task.Score}
		}
		return task.Result{Task: task.General, Confidence: 0.6, Cause: task.Abstained}
	}, items)
	if r.Right != 2 || r.N != 3 || r.Covered.N != 1 || r.Slices["x"].Right != 2 || r.Languages["de"].Right != 1 {
		t.Errorf("counts %+v", r)
	}
	// general: 1 right of 2 answers, 1 label; bias: 1 right of 1 answer, 2 labels.
	if want := 2.0 / 3; !near(r.F1[task.General], want) || !near(r.F1[task.BiasDetection], want) || !near(r.MacroF1, want) {
		t.Errorf("F1 %v, macro %v, want %v", r.F1, r.MacroF1, want)
	}
	// Two at 0.6 with half right, one at 0.9 right.
	if want := 2.0/3*0.1 + 1.0/3*0.1; !near(r.ECE, want) {
		t.Errorf("ECE %v, want %v", r.ECE, want)
	}
	if len(r.Misses) != 1 || r.Misses[0].ID != "3" {
		t.Errorf("misses %+v", r.Misses)
	}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"accuracy 0.6667 (2 of 3)", "misrouted", "bias_detection"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the tables lack %q:\n%s", want, b.String())
		}
	}
}

func near(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 }

func TestReadRefuses(t *testing.T) {
	for _, bad := range []string{`{"id":`, `{"id":"1","messages":[{"role":"user","content":7}]}`} {
		if _, err := eval.Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
