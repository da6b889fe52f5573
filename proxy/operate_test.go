package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/routing"
)

// adminGet reads an answer of the admin side.
func adminGet[T any](t *testing.T, r *rig, path string) (v T) {
	t.Helper()
	a := r.do(http.MethodGet, "http://admin"+path, "", "Host", "localhost")
	if a.status != http.StatusOK {
		t.Fatalf("%s: %d %s", path, a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

func (r *rig) preload(body string) (int, map[string]Preloaded) {
	r.t.Helper()
	a := r.do(http.MethodPost, "http://admin/admin/preload?wait=1m", body, "Host", "localhost", "Content-Type", "application/json")
	var done struct{ Models map[string]Preloaded }
	if err := json.Unmarshal([]byte(a.body), &done); err != nil {
		r.t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return a.status, done.Models
}

// Every load and unload is in the journal with why, in order and without gaps.
func TestDecisions(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.chat("llama3", "hello", "")
		synctest.Wait()
		all := adminGet[Decisions](t, r, "/admin/decisions")
		for i, e := range all.Decisions {
			if e.ID != uint64(i)+1 {
				t.Fatalf("entry %d has ID %d", i, e.ID)
			}
		}
		if all.Oldest != 1 || all.Last != uint64(len(all.Decisions)) {
			t.Errorf("oldest %d, last %d of %d", all.Oldest, all.Last, len(all.Decisions))
		}
		var steps []residency.Action
		own := adminGet[Decisions](t, r, "/admin/decisions?model=llama3")
		for _, e := range own.Decisions {
			steps = append(steps, e.Action)
			if e.Model != "llama3" && e.For != "llama3" {
				t.Errorf("not about llama3: %+v", e)
			}
			if e.Action == residency.ActLoad && (e.Waiting != 1 || e.Reason == residency.NoReason) {
				t.Errorf("the load does not say why: %+v", e)
			}
			if e.Action == residency.ActLoaded && e.Took != 5*time.Second {
				t.Errorf("loaded in %v", e.Took)
			}
		}
		want := []residency.Action{residency.ActClose, residency.ActUnload, residency.ActUnloaded, residency.ActLoad, residency.ActLoaded}
		if !slices.Equal(steps, want) {
			t.Errorf("llama3 went through %v, want %v", steps, want)
		}
		for path, n := range map[string]int{
			fmt.Sprintf("?since=%d", all.Last-2): 2, "?limit=3": 3, "?model=llama3:latest": len(want),
			"?since=99999": int(all.Last), // from before a restart
			"?since=" + time.Now().Add(time.Hour).UTC().Format(time.RFC3339):  0,
			"?since=" + time.Now().Add(-time.Hour).UTC().Format(time.RFC3339): int(all.Last),
		} {
			if got := adminGet[Decisions](t, r, "/admin/decisions"+path); len(got.Decisions) != n {
				t.Errorf("%s: %d decisions, want %d", path, len(got.Decisions), n)
			}
		}
		for _, bad := range []string{"?since=yesterday", "?limit=0", "?limit=many"} {
			if e := r.do(http.MethodGet, "http://admin/admin/decisions"+bad, "", "Host", "localhost").failure(t); e.Status != http.StatusBadRequest {
				t.Errorf("%s: %+v", bad, e)
			}
		}
	})
}

// The ring forgets the oldest and says so.
func TestJournalIsBounded(t *testing.T) {
	j := NewJournal()
	for i := range journalSize + 10 {
		j.Record(residency.Decision{Action: residency.ActLoad, Model: "m", Waiting: i})
	}
	got := j.Find(DecisionQuery{})
	if got.Oldest != 11 || got.Last != journalSize+10 || len(got.Decisions) != journalSize || got.Decisions[0].Waiting != 10 {
		t.Errorf("oldest %d, last %d, %d kept, the first %+v", got.Oldest, got.Last, len(got.Decisions), got.Decisions[0])
	}
}

// follow reads events of the stream until n have come.
func (r *rig) follow(ctx context.Context, query, lastID string, n int) (ids []string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/admin/decisions/stream"+query, nil)
	if err != nil {
		return nil, err
	}
	req.Host = "localhost"
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for len(ids) < n && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			ids = append(ids, id)
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e Entry
			if err := json.Unmarshal([]byte(data), &e); err != nil || e.Action == "" {
				return ids, fmt.Errorf("%s: %w", data, err)
			}
		}
	}
	return ids, lines.Err()
}

func TestDecisionStream(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		last := adminGet[Decisions](t, r, "/admin/decisions").Last
		type got struct {
			ids []string
			err error
		}
		live := make(chan got, 1)
		go func() {
			ids, err := r.follow(t.Context(), "", "", 3)
			live <- got{ids, err}
		}()
		time.Sleep(time.Minute) // through some keep-alives
		r.chat("llama3", "hello", "")
		if g := <-live; g.err != nil || len(g.ids) != 3 || g.ids[0] != fmt.Sprint(last+1) {
			t.Errorf("live: %v %v, want 3 from %d", g.ids, g.err, last+1)
		}
		// A client that was away goes on where it was.
		if ids, err := r.follow(t.Context(), "", "2", 2); err != nil || !slices.Equal(ids, []string{"3", "4"}) {
			t.Errorf("after Last-Event-ID 2: %v %v", ids, err)
		}
		if ids, err := r.follow(t.Context(), "?since=0", "", 2); err != nil || !slices.Equal(ids, []string{"1", "2"}) {
			t.Errorf("since 0: %v %v", ids, err)
		}
		// A server that stops lets go of who follows.
		ended := make(chan got, 1)
		go func() {
			ids, err := r.follow(t.Context(), "", "", 1000)
			ended <- got{ids, err}
		}()
		time.Sleep(time.Second)
		r.server.Drain()
		if g := <-ended; g.err != nil || len(g.ids) != 0 {
			t.Errorf("at the end: %v %v", g.ids, g.err)
		}
	})
}

// No web page can change anything: without the admin key it takes JSON, which
// a page of elsewhere may not send.
func TestChangesNeedJSONOrTheKey(t *testing.T) {
	const body = `{"mistral":true}`
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			name   string
			method string
			header []string
			want   int
		}{
			{"JSON", "POST", []string{"Content-Type", "application/json"}, 200},
			{"JSON with a charset", "POST", []string{"Content-Type", "application/json; charset=utf-8"}, 200},
			{"no content type", "POST", nil, 415},
			{"plain text", "POST", []string{"Content-Type", "text/plain"}, 415},
			{"a form", "POST", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
			{"a page of elsewhere", "POST", []string{"Content-Type", "application/json", "Origin", "https://evil.test", "Sec-Fetch-Site", "cross-site"}, 403},
			{"a page of elsewhere, old browser", "POST", []string{"Content-Type", "application/json", "Origin", "https://evil.test"}, 403},
			{"by reading", "GET", nil, 405},
			{"another verb", "PUT", []string{"Content-Type", "application/json"}, 405},
			{"a rebound name", "POST", []string{"Content-Type", "application/json", "Host", "evil.test"}, 403},
		} {
			header := append([]string{"Host", "localhost"}, c.header...)
			if a := r.do(c.method, "http://admin/admin/preload", body, header...); a.status != c.want {
				t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.want, a.body)
			}
		}
	})
	const key = "the-operators-own-key"
	inBubble(t, rigConfig{proxy: Config{AdminKey: HashKey(key)}}, func(t *testing.T, r *rig) {
		if a := r.do("POST", "http://admin/admin/preload", body, "Authorization", "Bearer "+key); a.status != 200 {
			t.Errorf("with the key: %d %s", a.status, a.body)
		}
		if a := r.do("POST", "http://admin/admin/preload", body, "Content-Type", "application/json"); a.status != 401 {
			t.Errorf("without it: %d %s", a.status, a.body)
		}
	})
}

func TestPreload(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		status, done := r.preload(`{"phi3:mini":true,"mistral:latest":false,"llama3":true}`)
		if status != http.StatusOK || done["phi3:mini"].Done != DoneLoaded || done["mistral"].Done != DoneUnloaded ||
			done["llama3"].Done != DoneLoaded || done["llama3"].Took != 5*time.Second {
			t.Errorf("swap: %d %+v", status, done)
		}
		if got := r.sim.Loaded(); !slices.Equal(got, []string{"deepseek-llm:7b", "llama3:latest", "phi3:mini"}) {
			t.Errorf("loaded %v", got)
		}
		// What the operator unloaded stays away, even from an idle GPU.
		time.Sleep(30 * time.Minute)
		if got := r.sim.Loaded(); slices.Contains(got, "mistral:latest") {
			t.Errorf("after half an hour: loaded %v", got)
		}
		r.sim.Crash()
		time.Sleep(time.Minute)
		if got := r.sim.Loaded(); slices.Contains(got, "mistral:latest") || !slices.Contains(got, "phi3:mini") {
			t.Errorf("after a restart of Ollama: loaded %v", got)
		}

		for _, c := range []struct {
			body, model, done, reason string
			status                    int
		}{
			{`{"phi3:mini":false}`, "phi3:mini", DoneRefused, "always loaded", 409},
			{`{"gpt-4o":true}`, "gpt-4o", DoneRefused, "does not exist", 409},
			{`{"gpt-4o":false}`, "gpt-4o", DoneRefused, "does not exist", 409},
			{`{"mistral":false}`, "mistral", DoneUnloaded, "was not loaded", 200},
			{`{"mistral":true}`, "mistral", DoneLoaded, "", 200}, // llama3 has the lower claim
			{`{"llama3":true}`, "llama3", DoneWaiting, "deepseek-llm:7b, mistral hold the memory", 200},
		} {
			status, done := r.preload(c.body)
			if p := done[c.model]; status != c.status || p.Done != c.done || !strings.Contains(p.Reason, c.reason) {
				t.Errorf("%s: %d %+v, want %d %s (%s)", c.body, status, p, c.status, c.done, c.reason)
			}
		}
		for _, bad := range []string{``, `[]`, `{}`, `{"mistral":"yes"}`, `{"mistral":true,"mistral:latest":false}`} {
			a := r.do("POST", "http://admin/admin/preload", bad, "Host", "localhost", "Content-Type", "application/json")
			if e := a.failure(t); e.Status != http.StatusBadRequest {
				t.Errorf("%s: %+v", bad, e)
			}
		}
		if n := r.sim.Counts(); n.Evictions != 0 {
			t.Errorf("Ollama evicted %d models", n.Evictions)
		}
	})
}

// A model that answers is not unloaded under its request.
func TestPreloadRefusesBusyModels(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		answered := make(chan reply)
		go func() { answered <- r.chat("mistral", "hello", "") }()
		for r.scheduler.State().Leases == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		status, done := r.preload(`{"mistral":false}`)
		if p := done["mistral"]; status != http.StatusConflict || p.Done != DoneRefused || p.Reason != "1 requests run on it" {
			t.Errorf("%d %+v", status, p)
		}
		if a := <-answered; a.status != http.StatusOK {
			t.Errorf("the request: %d %s", a.status, a.body)
		}
	})
	inBubble(t, rigConfig{residency: residency.Config{Passthrough: true}}, func(t *testing.T, r *rig) {
		if status, done := r.preload(`{"mistral":true}`); status != http.StatusConflict || !strings.Contains(done["mistral"].Reason, "A5000_OPTIMIZATION") {
			t.Errorf("passthrough: %d %+v", status, done)
		}
	})
	inBubble(t, rigConfig{residency: residency.Config{Budget: 9 * residency.GiB}}, func(t *testing.T, r *rig) {
		if status, done := r.preload(`{"llama3":true}`); status != http.StatusConflict || !strings.Contains(done["llama3"].Reason, "no room") {
			t.Errorf("too big: %d %+v", status, done)
		}
	})
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.FailLoad, Model: "llama3"})
		if status, done := r.preload(`{"mistral":false,"llama3":true}`); status != http.StatusConflict || done["llama3"].Done != DoneFailed {
			t.Errorf("a load that fails: %d %+v", status, done)
		}
	})
}

func TestMemory(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery)
		m := adminGet[MemoryState](t, r, "/admin/memory")
		if m.Usage != 16 || m.Free != 4 || m.Total != 20 || m.Utilization != .8 || m.Loaded != 3 || m.Warning != "" || len(m.Models) != 3 {
			t.Errorf("got %+v", m)
		}
		for _, model := range m.Models {
			if model.Source != "measured" || !model.Listed || model.OnCPU != 0 {
				t.Errorf("model %+v", model)
			}
		}
		for _, source := range m.Sources {
			if source.Usage != 16 {
				t.Errorf("source %+v", source)
			}
		}
		raw := r.do("GET", "http://admin/admin/memory", "", "Host", "localhost").body
		for _, name := range []string{"current_usage_gb", "free_memory_gb", "memory_utilization", "loaded_models_count"} {
			if !strings.Contains(raw, `"`+name+`"`) {
				t.Errorf("%s is missing: %s", name, raw)
			}
		}
	})
	inBubble(t, rigConfig{residency: residency.Config{Budget: 17 * residency.GiB}}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery)
		if m := adminGet[MemoryState](t, r, "/admin/memory"); m.Utilization < .9 || m.Warning == "" {
			t.Errorf("got %+v", m)
		}
		time.Sleep(time.Minute)
		if n := strings.Count(r.log.String(), "nearly full"); n != 1 {
			t.Errorf("warned %d times, want once", n)
		}
	})
}

// What the workflow's answer expects is what a run then shows.
func TestWorkflow(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		const name = "full_recruitment_pipeline"
		list := adminGet[struct{ Workflows []Workflow }](t, r, "/admin/workflows")
		if len(list.Workflows) != 1 || list.Workflows[0].Name != name {
			t.Fatalf("got %+v", list)
		}
		w := adminGet[Workflow](t, r, "/admin/workflows/"+name)
		if w.Loads != 1 || w.Swaps != 1 || !slices.Equal(w.Swap, []string{"llama3"}) || len(w.Preload) != 0 || len(w.Tasks) != 5 {
			t.Errorf("got %+v", w)
		}
		if w.Tasks[0].Source != "catalog" || w.Tasks[0].Seconds != 2.5 || !w.Tasks[0].Resident || w.Tasks[2].Resident {
			t.Errorf("tasks %+v", w.Tasks)
		}
		if want := 2.5 + 1.5 + 3.5 + 4.5 + .75 + 5; w.Seconds != want {
			t.Errorf("expected %v s, want %v", w.Seconds, want)
		}
		if e := r.do("GET", "http://admin/admin/workflows/none", "", "Host", "localhost").failure(t); e.Status != http.StatusNotFound {
			t.Errorf("unknown: %+v", e)
		}

		before := r.scheduler.State().Counters
		for _, task := range w.Tasks {
			r.chat("recruit/"+task.Task, "hello", "")
		}
		after := r.scheduler.State().Counters
		if loads, unloads := after.Loads-before.Loads, after.Unloads-before.Unloads; int(loads) != w.Loads || int(unloads) != w.Swaps {
			t.Errorf("a run took %d loads and %d unloads, %d and %d were expected", loads, unloads, w.Loads, w.Swaps)
		}
		for range 3 { // the first loads read the disk
			for _, task := range w.Tasks {
				r.chat("recruit/"+task.Task, "hello", "", "Cache-Control", "no-store")
			}
		}
		began := time.Now()
		w = adminGet[Workflow](t, r, "/admin/workflows/"+name)
		for _, task := range w.Tasks {
			if task.Source != "measured" {
				t.Errorf("after a run: %+v", task)
			}
			r.chat("recruit/"+task.Task, "hello", "", "Cache-Control", "no-store")
		}
		if took := time.Since(began).Seconds(); took > 1.5*w.Seconds || took < w.Seconds/1.5 {
			t.Errorf("a run took %.1f s, %.1f s were expected: %+v", took, w.Seconds, w)
		}
	})
}

// A declared workflow lets the next step's model be loaded while the step
// before is answered.
func TestDeclaredWorkflowPrefetches(t *testing.T) {
	run := func(t *testing.T, header ...string) (waited time.Duration, r *rig) {
		inBubble(t, rigConfig{sim: ollamasim.Config{Length: 300}}, func(t *testing.T, rr *rig) {
			r = rr
			for range 3 {
				for _, task := range []string{"resume_parsing", "bias_detection", "matching_logic", "script_generation", "report_generation"} {
					a := r.chat("recruit/"+task, "hello", "", append([]string{"Cache-Control", "no-store"}, header...)...)
					ms, err := strconv.Atoi(a.header.Get("Tenure-Queued-Ms"))
					if err != nil {
						t.Fatal(err)
					}
					waited += time.Duration(ms) * time.Millisecond
					if len(header) > 0 && strings.Contains(a.header.Get("Tenure-Ignored"), "Tenure-Workflow") {
						t.Errorf("%s: the workflow was ignored", task)
					}
				}
				time.Sleep(20 * time.Second)
			}
			if a := r.chat("recruit/general", "hello", "", "Tenure-Workflow", "full_recruitment_pipeline"); a.header.Get("Tenure-Ignored") != "Tenure-Workflow" {
				t.Errorf("a task that is not of the workflow: Tenure-Ignored %q", a.header.Get("Tenure-Ignored"))
			}
		})
		return waited, r
	}
	plain, _ := run(t)
	declared, r := run(t, "Tenure-Workflow", "full_recruitment_pipeline; run=1")
	if n := r.scheduler.State().Counters; n.Prefetches == 0 || n.PrefetchHits == 0 || declared >= plain {
		t.Errorf("three runs waited %v undeclared, %v declared; %d prefetches, %d hits", plain, declared, n.Prefetches, n.PrefetchHits)
	}
}

// Advice rests on what was measured, and says when that is too little.
func TestRecommendations(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		first := adminGet[Recommendations](t, r, "/admin/recommendations")
		if a := first.Batches["resume_parsing"]; a.Enough || a.Value == nil || *a.Value != 10 || !strings.Contains(a.Reason, "not enough data") {
			t.Errorf("nothing was measured: %+v", a)
		}
		if a := first.Batches["matching_logic"]; a.Enough || a.Value != nil {
			t.Errorf("nothing was measured, nothing is set: %+v", a)
		}
		for i := range 24 {
			model := []string{"recruit/matching_logic", "recruit/resume_parsing"}[i/3%2]
			r.chat(model, "hello "+fmt.Sprint(i), "", "Cache-Control", "no-store")
			r.chat("recruit/bias_detection", "hello "+fmt.Sprint(i), "", "Cache-Control", "no-store")
		}
		r.preload(`{"llama3":false}`)
		for i := range 10 {
			r.chat("recruit/matching_logic", "hello "+fmt.Sprint(i), "", "Cache-Control", "no-store")
		}
		got := adminGet[Recommendations](t, r, "/admin/recommendations")
		a := got.Batches["matching_logic"]
		if !a.Enough || a.Value == nil {
			t.Fatalf("matching_logic: %+v", a)
		}
		share := a.Figures["mean_load_s"] / (float64(*a.Value) * a.Figures["mean_answer_s"])
		if share > loadShare*1.01 || a.Figures["mean_load_s"]/(float64(*a.Value-1)*a.Figures["mean_answer_s"]) < loadShare {
			t.Errorf("a batch of %d makes the load %.2f of its time: %+v", *a.Value, share, a)
		}
		if a := got.Contexts["llama3"]; !a.Enough || *a.Value >= *a.Now || a.Figures["saves_gb"] <= 0 {
			t.Errorf("short answers leave a context of 8192 half empty: %+v", a)
		}
		if a := got.Slots["llama3"]; !a.Enough || *a.Value != 1 {
			t.Errorf("nobody waited for a slot: %+v", a)
		}
		if a := got.Pins["phi3:mini"]; !a.Enough || *a.Value != 0 {
			t.Errorf("always loaded and never asked: %+v", a)
		}
		if got.Answers != 58 {
			t.Errorf("%d answers", got.Answers)
		}
	})
}

// The refusal of a request that waited too long tells a wait that is about
// what the next one would have.
func TestExpectedWaits(t *testing.T) {
	cfg := rigConfig{proxy: Config{Timeouts: routing.Timeouts{Queue: 20 * time.Second}}, sim: ollamasim.Config{Length: 400}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		for range 3 {
			r.chat("mistral", "hello", "", "Cache-Control", "no-store") // a service time is learnt
		}
		const clients = 12
		done := make(chan reply, clients)
		for range clients {
			go func() { done <- r.chat("mistral", "hello", `,"max_tokens":400`, "Cache-Control", "no-store") }()
		}
		synctest.Wait()
		st := adminGet[State](t, r, "/admin/state")
		if len(st.Residency.Waiting) != 1 {
			t.Fatalf("waiting: %+v", st.Residency.Waiting)
		}
		line := st.Residency.Waiting[0]
		began := time.Now()
		refused, last := 0, time.Duration(0)
		for range clients {
			a := <-done
			if a.status == http.StatusOK {
				last = time.Since(began)
				continue
			}
			refused++
			if e := a.failure(t); e.Code != "queue_timeout" || !strings.Contains(e.Message, "expected to be about") {
				t.Errorf("%+v", e)
			}
			if after := a.header.Get("Retry-After"); after == "" || after == "10" {
				t.Errorf("Retry-After %q", after)
			}
		}
		each := last / time.Duration(clients-refused)
		want := each * time.Duration(line.Count)
		if line.Expect < want/2 || line.Expect > want*2 {
			t.Errorf("%d waited, %v was expected for the next; at %v each it is %v", line.Count, line.Expect, each, want)
		}
		if refused == 0 {
			t.Error("nobody was refused: the test shows nothing")
		}
		r.rest()
	})
}

// The wait for an absent model is expected to be what it then is, be the GPU
// idle or kept busy by others.
func TestExpectedWaitOfAbsentModel(t *testing.T) {
	for _, c := range []struct {
		name    string
		clients int
	}{{"idle", 0}, {"busy", 2}} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, rigConfig{sim: ollamasim.Config{Length: 200}}, func(t *testing.T, r *rig) {
				r.chat("llama3", "hello", "") // it is known, and then displaced
				time.Sleep(10 * time.Minute)
				done := make(chan struct{})
				var busy sync.WaitGroup
				for i := range c.clients {
					busy.Go(func() {
						for {
							select {
							case <-done:
								return
							default:
								r.chat([]string{"mistral", "deepseek-llm:7b"}[i], "hello", "", "Cache-Control", "no-store")
							}
						}
					})
				}
				time.Sleep(30 * time.Second)
				m, err := r.server.modelNamed("llama3")
				if err != nil {
					t.Fatal(err)
				}
				expected := r.scheduler.EstimateWait(m, residency.Interactive)
				a := r.chat("llama3", "hello", "", "Cache-Control", "no-store")
				close(done)
				busy.Wait()
				ms, err := strconv.Atoi(a.header.Get("Tenure-Queued-Ms"))
				if err != nil || a.header.Get("Tenure-Residency") != "cold" {
					t.Fatalf("%d %v", a.status, a.header)
				}
				if was := time.Duration(ms) * time.Millisecond; expected < was/3 || expected > 3*was {
					t.Errorf("expected %v, was %v", expected, was)
				} else {
					t.Logf("expected %v, was %v", expected, was)
				}
				r.rest()
			})
		})
	}
}

// An operator forgets a tenant's answers, or a task's, and no others; what is
// not understood forgets nothing.
func TestForgetAnswers(t *testing.T) {
	file := keyFile(t, Client{Name: "acme"}, Client{Name: "globex"})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		ask := func(key, model string) string {
			a := r.chat(model, "Jane Doe, nurse", "", bearer(key)...)
			if a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
			return a.header.Get("Tenure-Cache")
		}
		forget := func(query string) (int, string) {
			a := r.do(http.MethodDelete, "http://admin/admin/cache"+query, "", "Host", "localhost", "Content-Type", "application/json")
			return a.status, a.body
		}
		const parse, bias = "recruit/resume_parsing", "recruit/bias_detection"
		all := [][2]string{{"acme", parse}, {"acme", bias}, {"globex", parse}}
		for _, step := range []struct {
			query string
			gone  [][2]string
		}{
			{"?tenant=acme", all[:2]},
			{"?task=resume_parsing", [][2]string{all[0], all[2]}},
			{"?tenant=acme&task=bias_detection", all[1:2]},
			{"?tenant=nobody", nil},
			{"", all},
		} {
			for _, q := range all {
				ask(q[0], q[1])
			}
			synctest.Wait() // kept before they are forgotten
			if status, body := forget(step.query); status != http.StatusOK || body != fmt.Sprintf(`{"forgotten":%d}`, len(step.gone)) {
				t.Errorf("%q: %d %s, want %d forgotten", step.query, status, body, len(step.gone))
			}
			for _, q := range all {
				want := "hit"
				if slices.Contains(step.gone, q) {
					want = "miss"
				}
				if got := ask(q[0], q[1]); got != want {
					t.Errorf("%q: %v is a %s, want a %s", step.query, q, got, want)
				}
			}
		}
		synctest.Wait()
		for _, query := range []string{"?tennant=acme", "?tenant=", "?tenant=a&tenant=b", "?task=no_such"} {
			if status, body := forget(query); status < 400 {
				t.Errorf("%q: %d %s, want it refused", query, status, body)
			}
		}
		if got := ask("acme", parse); got != "hit" {
			t.Errorf("after the refusals: a %s", got)
		}
		if a := r.do(http.MethodDelete, "http://admin/admin/cache", "", "Host", "localhost"); a.status != http.StatusUnsupportedMediaType {
			t.Errorf("as a web page would ask: %d", a.status)
		}
	})
}
