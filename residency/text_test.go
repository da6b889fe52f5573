package residency

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A state that went through JSON is the state that was sent.
func TestStateThroughJSON(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := State{
		Now: now, Budget: 20 * GiB, MaxModels: 3,
		Residents: []Resident{{Model: Model{Name: "a", Tier: T1, Slots: 2}, Phase: Closing, Leases: 1, LastUsed: now}},
		Waiting:   []Line{{Model: "b", Class: Batch, Count: 2, Since: now}, {Model: "c", Class: Interactive, Since: now}},
		Evictions: map[string]int{"idle": 1}, Grants: map[string]int{"batch": 2},
	}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got State
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{`{"residents":[{"phase":"gone"}]}`, `{"waiting":[{"class":"urgent"}]}`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
