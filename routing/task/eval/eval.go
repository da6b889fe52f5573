// Package eval measures a task router on labelled requests.
package eval

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"tenure/routing/task"
)

// Item is one labelled request.
type Item struct {
	ID, Label, Lang, Slice string
	task.Input
}

// Read reads one JSON object a line: {"id","messages":[{"role","content"}],
// "label","lang","slice"}. A content that is a list of parts gives its texts.
func Read(r io.Reader) ([]Item, error) {
	var items []Item
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<26)
	for n := 1; sc.Scan(); n++ {
		if strings.TrimSpace(sc.Text()) == "" {
			continue
		}
		var x struct {
			ID, Label, Lang, Slice string
			Messages               []struct {
				Role    string
				Content json.RawMessage
			}
		}
		if err := json.Unmarshal(sc.Bytes(), &x); err != nil {
			return nil, fmt.Errorf("eval: line %d: %w", n, err)
		}
		it := Item{ID: x.ID, Label: x.Label, Lang: x.Lang, Slice: x.Slice}
		for _, m := range x.Messages {
			text, err := content(m.Content)
			if err != nil {
				return nil, fmt.Errorf("eval: line %d: %w", n, err)
			}
			it.Messages = append(it.Messages, task.Message{Role: m.Role, Text: text})
		}
		items = append(items, it)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("eval: %w", err)
	}
	return items, nil
}

func content(raw json.RawMessage) (string, error) {
	var text string
	if len(raw) == 0 || json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var parts []struct{ Text string }
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", fmt.Errorf("content: %w", err)
	}
	var texts []string
	for _, p := range parts {
		if p.Text != "" {
			texts = append(texts, p.Text)
		}
	}
	return strings.Join(texts, "\n\n"), nil
}

// Count is right answers out of N.
type Count struct{ Right, N int }

// Accuracy is the share of right answers.
func (c Count) Accuracy() float64 { return float64(c.Right) / float64(max(c.N, 1)) }

// Miss is one request that went elsewhere.
type Miss struct {
	ID, Label, Got string
	Confidence     float64
}

// Bin is the requests whose confidence lies in one tenth.
type Bin struct {
	Count
	Confidence float64 // mean
}

// Report is what was measured.
type Report struct {
	Count
	MacroF1     float64
	F1          map[string]float64
	Slices      map[string]Count
	Languages   map[string]Count
	Confusion   map[string]map[string]int // label, then what was answered
	Calibration [10]Bin
	ECE         float64 // expected calibration error over the bins
	Covered     Count   // what was not abstained from
	Misses      []Miss
}

// Evaluate routes every item and compares.
func Evaluate(detect func(task.Input) task.Result, items []Item) Report {
	r := Report{F1: map[string]float64{}, Slices: map[string]Count{}, Languages: map[string]Count{}, Confusion: map[string]map[string]int{}}
	for _, it := range items {
		got := detect(it.Input)
		right := 0
		if got.Task == it.Label {
			right = 1
		} else {
			r.Misses = append(r.Misses, Miss{it.ID, it.Label, got.Task, got.Confidence})
		}
		add := func(c Count) Count { return Count{c.Right + right, c.N + 1} }
		r.Count = add(r.Count)
		r.Slices[it.Slice] = add(r.Slices[it.Slice])
		r.Languages[it.Lang] = add(r.Languages[it.Lang])
		if got.Cause != task.Abstained {
			r.Covered = add(r.Covered)
		}
		if r.Confusion[it.Label] == nil {
			r.Confusion[it.Label] = map[string]int{}
		}
		r.Confusion[it.Label][got.Task]++
		b := &r.Calibration[min(max(int(got.Confidence*10), 0), 9)]
		b.Confidence += got.Confidence
		b.Count = add(b.Count)
	}
	for i := range r.Calibration {
		b := &r.Calibration[i]
		if b.N == 0 {
			continue
		}
		b.Confidence /= float64(b.N)
		r.ECE += float64(b.N) / float64(r.N) * max(b.Accuracy()-b.Confidence, b.Confidence-b.Accuracy())
	}
	for label, row := range r.Confusion {
		said := 0
		for _, other := range r.Confusion {
			said += other[label]
		}
		is := 0
		for _, n := range row {
			is += n
		}
		if said+is > 0 {
			r.F1[label] = 2 * float64(row[label]) / float64(said+is)
		}
		r.MacroF1 += r.F1[label] / float64(len(r.Confusion))
	}
	return r
}

// WriteText prints the report as tables.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "accuracy %.4f (%d of %d)  macro-F1 %.4f  ECE %.3f  not abstained %d, accuracy there %.4f\n\n", r.Accuracy(), r.Right, r.N, r.MacroF1, r.ECE, r.Covered.N, r.Covered.Accuracy())
	table := func(title string, m map[string]Count) {
		fmt.Fprintf(&b, "%-20s %8s %5s\n", title, "accuracy", "n")
		for _, k := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, "%-20s %8.3f %5d\n", k, m[k].Accuracy(), m[k].N)
		}
		b.WriteString("\n")
	}
	table("slice", r.Slices)
	table("language", r.Languages)
	labels := slices.Sorted(maps.Keys(r.Confusion))
	fmt.Fprintf(&b, "%-20s %5s", "label \\ answer", "F1")
	for _, l := range labels {
		fmt.Fprintf(&b, " %8.8s", l)
	}
	b.WriteString("\n")
	for _, l := range labels {
		fmt.Fprintf(&b, "%-20s %5.3f", l, r.F1[l])
		for _, k := range labels {
			fmt.Fprintf(&b, " %8d", r.Confusion[l][k])
		}
		b.WriteString("\n")
	}
	b.WriteString("\nconfidence  accuracy      n\n")
	for _, c := range r.Calibration {
		if c.N > 0 {
			fmt.Fprintf(&b, "%10.3f %9.3f %6d\n", c.Confidence, c.Accuracy(), c.N)
		}
	}
	if len(r.Misses) > 0 {
		b.WriteString("\nmisrouted\n")
	}
	for _, m := range r.Misses {
		fmt.Fprintf(&b, "%-16s %-18s answered %-18s %.2f\n", m.ID, m.Label, m.Got, m.Confidence)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("eval: %w", err)
	}
	return nil
}
