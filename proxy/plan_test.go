package proxy

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/residency"
)

func (r *rig) plan(body string) (reply, BatchPlan) {
	r.t.Helper()
	a := r.do(http.MethodPost, "http://admin/admin/plan", body, "Host", "localhost", "Content-Type", "application/json")
	var p BatchPlan
	if a.status == http.StatusOK {
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			r.t.Fatal(err)
		}
	}
	return a, p
}

func TestPlan(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		// phi3:mini, deepseek-llm:7b and mistral are there: nothing moves.
		_, p := r.plan(`["report_generation", {"name":"bias_detection","count":30}]`)
		if p.Strategy != PreloadAll || p.Loads != 0 || p.Requests != 31 || len(p.Swap) != 0 || !slices.Equal(p.Preload, []string{"phi3:mini", "mistral"}) {
			t.Errorf("what is there: %+v", p)
		}
		if p.Seconds < p.Bound || p.Bound < 30*1.5 || p.Gap < 1 || p.Batch < 1 || p.Memory != 9 || p.Budget != 20 {
			t.Errorf("figures: %+v", p)
		}

		// The workflow needs four models, and three seats are there.
		_, p = r.plan(`{"name":"full_recruitment_pipeline","count":20}`)
		if p.Strategy != HotSwap || p.Loads < p.MinLoads || p.MinLoads != 1 || len(p.Order) != p.Loads || !slices.Contains(p.Swap, "llama3") || p.Memory != 24 {
			t.Errorf("the workflow: %+v", p)
		}
		if p.Order[0].Load != "llama3" || len(p.Order[0].Unload) == 0 || slices.Contains(p.Order[0].Unload, "phi3:mini") {
			t.Errorf("its first swap: %+v", p.Order[0])
		}

		// All it needs has room, once mistral has left.
		_, p = r.plan(`["resume_parsing","matching_logic"]`)
		if p.Strategy != PreloadAll || !slices.Equal(p.Preload, []string{"deepseek-llm:7b", "llama3"}) || len(p.Swap) != 0 || p.Loads != 1 || p.Memory != 17 {
			t.Errorf("room for all: %+v", p)
		}

		// Lines of a batch file, as the server routes them.
		line := func(model string) string {
			return `{"custom_id":"a","body":` + chatBody(model, "hello", "") + `}` + "\n"
		}
		_, p = r.plan(line("recruit/resume_parsing") + line("llama3") + line("recruit-resume_parsing"))
		if p.Requests != 3 || len(p.Work) != 2 || p.Work[0].Name != "resume_parsing" || p.Work[0].Count != 2 || p.Work[1].Name != "llama3" {
			t.Errorf("lines: %+v", p)
		}
		if p.From["llama3"] != "guess" || p.From["deepseek-llm:7b"] != "catalog" {
			t.Errorf("times from %v", p.From)
		}

		// What was measured replaces what the catalog says.
		for range 3 {
			r.chat("recruit/script_generation", "Write a script.", `,"max_tokens":400`, "Cache-Control", "no-store")
		}
		synctest.Wait()
		f, _ := r.server.measured.of("script_generation", "llama3")
		_, p = r.plan(`["script_generation"]`)
		if p.From["llama3"] != "measured" || p.Seconds != seconds3(f.mean()) || p.Loads != 0 {
			t.Errorf("measured: %+v, want %v", p, f.mean())
		}
		for i, m := range r.scheduler.State().Residents {
			if m.Model.Name == "llama3" && p.Memory < gib(m.Size) {
				t.Errorf("resident %d takes %v, the plan says %v", i, m.Size, p.Memory)
			}
		}
	})
}

func TestPlanRefusals(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for body, word := range map[string]string{
			"":                                    "not JSON",
			"[]":                                  "nothing to plan",
			"7":                                   "Element 1: neither a name",
			`["bias_detection","cooking"]`:        "Element 2: no task and no workflow",
			`{"name":"bias_detection","count":0}`: "at least 1",
			`[{"name":"bias_detection","count":20000},"bias_detection"]`: "at most",
			`["bias_detection"] [`: "not JSON",
			`{"body":{"model":"nobody","messages":[{"role":"user","content":"secret"}]}}`: "Element 1",
			`{"body":{"model":"llama3"}}`: "messages",
		} {
			a, _ := r.plan(body)
			if e := a.failure(t); e.Status != http.StatusBadRequest || !strings.Contains(e.Message, word) || strings.Contains(e.Message, "secret") {
				t.Errorf("%s: %+v, want %q", body, e, word)
			}
		}
		if e := r.do(http.MethodPost, "http://admin/admin/plan", `["bias_detection"]`, "Host", "localhost", "Content-Type", "text/plain").failure(t); e.Status != http.StatusUnsupportedMediaType {
			t.Errorf("from a web page: %+v", e)
		}
		big := `["` + strings.Repeat("x", 2<<20) + `"]`
		if a, _ := r.plan(big); a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("over the limit: %d %s", a.status, a.body)
		}
		time.Sleep(time.Second) // net/http closes that connection late
	})
}

// A model that fits nowhere is told, not simulated for ever.
func TestPlanTooBig(t *testing.T) {
	inBubble(t, rigConfig{residency: residency.Config{Budget: 9 * residency.GiB}}, func(t *testing.T, r *rig) {
		if a, _ := r.plan(`["matching_logic"]`); a.status != http.StatusBadRequest || !strings.Contains(a.body, "does not fit") {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}
