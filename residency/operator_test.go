package residency

import (
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// What the operator unloads does not come back by itself, whether it was there
// or on its way back.
func TestUnloadedModelStaysAway(t *testing.T) {
	bench(t, Config{MaxModels: 3}, LRU{}, func(s *Scheduler, l *sleeper) {
		t := l.t
		phi, deepseek, mistral, llama := catalog()
		for _, m := range []Model{phi, deepseek, mistral} {
			s.Preload(m)
		}
		time.Sleep(10 * time.Second)
		lease, err := s.Acquire(t.Context(), llama, Interactive)
		if err != nil {
			t.Fatal(err)
		}
		lease.Release()
		for _, m := range []Model{deepseek, mistral} {
			if err := s.Unload(t.Context(), m.Name); err != nil && !errors.Is(err, ErrAbsent) {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		for _, r := range s.State().Residents {
			if r.Model.Tier == T1 {
				t.Errorf("%s came back", r.Model.Name)
			}
		}
	})
}

func TestReasonThroughJSON(t *testing.T) {
	for r := range Reason(reasons) {
		data, err := json.Marshal(Decision{Reason: r})
		if err != nil {
			t.Fatal(err)
		}
		var got Decision
		if err := json.Unmarshal(data, &got); err != nil || got.Reason != r {
			t.Errorf("%v: got %v, %v", r, got.Reason, err)
		}
	}
}
