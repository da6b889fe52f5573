package task_test

import (
	"os"
	"strings"
	"testing"

	"tenure/routing/task"
)

// placed is a message of which it is known what is asked.
type placed struct {
	task.Input
	want string
	ask  []bool // byte by byte of the user's message
}

func readPlaced(t *testing.T) []placed {
	t.Helper()
	b, err := os.ReadFile("../../testdata/routing/placed.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []placed
	for _, part := range strings.Split("\n"+string(b), "\n=== ")[1:] {
		head, text, _ := strings.Cut(part, "\n")
		var p placed
		var system string
		p.want, system, _ = strings.Cut(head, " sys=")
		var plain strings.Builder
		asked := false
		for _, r := range strings.TrimSpace(text) {
			switch r {
			case '⟦', '⟧':
				asked = r == '⟦'
			default:
				plain.WriteRune(r)
				for len(p.ask) < plain.Len() {
					p.ask = append(p.ask, asked)
				}
			}
		}
		if system != "" {
			p.Messages = append(p.Messages, task.Message{Role: "system", Text: system})
		}
		p.Messages = append(p.Messages, task.Message{Role: "user", Text: plain.String()})
		out = append(out, p)
	}
	return out
}

// TestPlacedAsks: in messages written to try the cut, with asks in odd places
// and with none, it seldom loses the ask, or takes more than a line that is
// none.
func TestPlacedAsks(t *testing.T) {
	const atMost = 18 // of 60; a floor, not an aim
	wrong, misrouted := 0, 0
	all := readPlaced(t)
	for i, p := range all {
		r := task.Detect(p.Input)
		text := p.Messages[len(p.Messages)-1].Text
		lost, taken, asked := 0, 0, 0
		for k := range text {
			if text[k] <= ' ' {
				continue
			}
			in := false
			for _, d := range r.Documents {
				in = in || d.Start <= k && k < d.End
			}
			switch {
			case p.ask[k]:
				asked++
				if in {
					lost++
				}
			case !in:
				taken++
			}
		}
		if lost*2 > asked || taken > 40 {
			wrong++
			t.Logf("%d: lost %d of %d, took %d", i+1, lost, asked, taken)
		}
		if r.Task != p.want {
			misrouted++
			t.Logf("%d: %s by %s (%.2f), want %s", i+1, r.Task, r.Cause, r.Confidence, p.want)
		}
	}
	t.Logf("%d of %d cut wrongly, %d misrouted", wrong, len(all), misrouted)
	if wrong > atMost || len(all) < 60 {
		t.Errorf("%d of %d cut wrongly, want at most %d of 60", wrong, len(all), atMost)
	}
}
