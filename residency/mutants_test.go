package residency

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutant is one way to get the book wrong.
type mutant struct {
	name      string
	file      string
	old, with string
	test      string // which must fail
}

func mutants() []mutant {
	return []mutant{
		{
			"victim still admits", "book.go",
			"if s.Phase != Ready {", "if s.Phase != Ready && s.Phase != Closing {", "TestModelCheck",
		},
		{
			"load before the unload has ended", "book.go",
			"gone = gone && s.Phase != Closing && s.Phase != Unloading", "gone = gone && s.Phase != Closing", "TestBookInvariants",
		},
		{
			"busy model evicted", "book.go",
			"if s.Phase == Closing && s.Leases == 0 && s.Orphans == 0 {", "if s.Phase == Closing {", "TestModelCheck",
		},
		{
			"pinned model evicted", "view.go",
			"return s.Phase == Ready && s.Model.Tier != T0", "return s.Phase == Ready", "TestBookInvariants",
		},
		{
			"wake-up lost on release", "book.go",
			"\tb.discard(s)\n\tb.step()\n\treturn b.fx\n}\n\n// Loaded", "\tb.discard(s)\n\treturn b.fx\n}\n\n// Loaded", "TestBookInvariants",
		},
		{
			"wake-up lost in time", "book.go",
			"b.fx.Wake = p.Wake", "_ = p.Wake", "TestBookInvariants",
		},
		{
			"cancelled request granted", "book.go",
			"\tb.dequeue(s)\n\tb.discard(s)\n\tb.count.Cancelled++", "\tb.discard(s)\n\tb.count.Cancelled++", "TestBookInvariants",
		},
		{
			"granted twice", "book.go",
			"\tb.view.Running++\n", "\tb.view.Running++\n\tb.fx.Grants = append(b.fx.Grants, Grant{Ticket: b.ticket(s)})\n", "TestBookInvariants",
		},
		{
			"count cap ignored", "view.go",
			"<= v.Budget && v.Count-n+1 <= v.MaxModels", "<= v.Budget", "TestBookInvariants",
		},
		{
			"clock runs backwards", "book.go",
			"if now.Before(b.view.Now) {", "if false {", "TestClockSetBack",
		},
		{
			"one slot too many", "book.go",
			"s.Queue[c].Len > 0 && s.Free() > 0 &&", "s.Queue[c].Len > 0 && s.Free() >= 0 &&", "TestBookInvariants",
		},
		{
			"failed load left loading", "book.go",
			"\t\tb.setPhase(i, Absent)\n\t\tb.failed(i, err)", "\t\tb.failed(i, err)", "TestBookInvariants",
		},
		{
			"rent of a victim not restarted", "book.go",
			"q.sum = int64(q.Len) * b.view.Now.Sub(q.base).Microseconds()", "_ = q", "TestBookInvariants",
		},
	}
}

// TestMutants seeds one bug after the other into the sources, by the compiler's
// overlay, and asks that the tests notice each.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once per mutant")
	}
	for _, m := range mutants() {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			out, err := mutate(t, m)
			if err == nil {
				t.Fatalf("%s does not notice", m.test)
			}
			if !strings.Contains(out, "--- FAIL: "+m.test) && !strings.Contains(out, "panic:") {
				t.Fatalf("the mutant was not caught by a test but failed otherwise: %v\n%s", err, out)
			}
		})
	}
}

func mutate(t *testing.T, m mutant) (string, error) {
	t.Helper()
	source, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		t.Fatalf("%s has %q %d times: adapt the mutant", m.file, m.old, n)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, m.file)
	if err := os.WriteFile(changed, []byte(strings.Replace(string(source), m.old, m.with, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	abs, err := filepath.Abs(m.file)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {abs: changed}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-overlay", file, "-run", "^"+m.test+"$", ".", "-args", "-rapid.nofailfile", "-rapid.checks=2000", "-rapid.shrinktime=0s")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
