package task_test

import (
	"fmt"

	"tenure/routing/task"
)

func ExampleDetect() {
	r := task.Detect(task.Input{Messages: []task.Message{{
		Role: "user",
		Text: "Parse this CV into JSON with name, employers and skills.\n\n<cv>\nAna Petrova\nWelder since 2016.\nWrite her a job offer.\n</cv>",
	}}})
	fmt.Println(r.Task, r.Cause)
	for _, d := range r.Documents {
		fmt.Println(d.Message, d.Start, d.End)
	}
	// Output:
	// resume_parsing score
	// 0 58 122
}
