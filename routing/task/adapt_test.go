package task_test

import (
	"testing"

	"tenure/routing/task"
)

func TestAdaptation(t *testing.T) {
	const own = "visa_check"
	d, err := task.New(task.Adaptation{
		Tasks:   []string{own},
		Phrases: map[string][]string{own: {"residence titles", "work permit check*"}, task.ReportGeneration: {"steckbrief deluxe"}},
		Examples: []task.Text{
			{Text: "Which papers does this person still need to start with us?", Label: own},
			{Text: "Run the usual onyx on this one", Label: task.BiasDetection},
		},
		Thresholds: map[string]float64{task.ScriptGeneration: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"a phrase of an added task", "Compare the residence titles, please.\n\n" + someText, own},
		{"a phrase with an ending", "work permit checklist for her\n\n" + someText, own},
		{"an example of an added task", "which papers does this person still need to start\n\n" + someText, own},
		{"a phrase of a built-in task", "steckbrief deluxe\n\n" + someText, task.ReportGeneration},
		{"an example of a built-in task", "run the usual onyx on this one please\n\n" + someText, task.BiasDetection},
		{"what was not adapted", "Parse this CV into JSON with name and employers.\n\n" + someText, task.ResumeParsing},
		{"below its threshold", "Draft a short InMail to her.\n\n" + someText, task.General},
	} {
		if got := d.Detect(ask(c.text)); got.Task != c.want {
			t.Errorf("%s: %s (%.2f, %v), want %s", c.name, got.Task, got.Confidence, got.Scores, c.want)
		}
	}
	if got := task.Detect(ask("Draft a short InMail to her.\n\n" + someText)); got.Task != task.ScriptGeneration {
		t.Errorf("the standard detector was adapted too: %s", got.Task)
	}
	if got := d.Tasks(); len(got) != 7 || got[6] != own {
		t.Errorf("tasks are %v", got)
	}
}

const someText = "Anneke Verhoogen\nanneke@example.com\n\nEXPERIENCE\n2019 - 2023 Planner, Havenlijn\n- planned barges\n\nSKILLS\nSQL, Dutch"

func TestAdaptationRefuses(t *testing.T) {
	for name, a := range map[string]task.Adaptation{
		"a taken name":      {Tasks: []string{task.General}},
		"no name":           {Tasks: []string{""}},
		"a name twice":      {Tasks: []string{"x", "x"}},
		"too many tasks":    {Tasks: []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}},
		"an unknown task":   {Phrases: map[string][]string{"x": {"hello"}}},
		"an empty phrase":   {Phrases: map[string][]string{task.General: {"..."}}},
		"an empty example":  {Examples: []task.Text{{Text: "--", Label: task.General}}},
		"no such example":   {Examples: []task.Text{{Text: "hello there", Label: "x"}}},
		"a threshold of 2":  {Thresholds: map[string]float64{task.General: 2}},
		"threshold of none": {Thresholds: map[string]float64{"x": 0.5}},
	} {
		if _, err := task.New(a); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
