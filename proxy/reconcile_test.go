package proxy

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// behind asks the simulated Ollama past tenure, as another client of it would.
func (r *rig) behind(path, body string) {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.sim.ServeHTTP(w, httptest.NewRequestWithContext(r.t.Context(), http.MethodPost, path, strings.NewReader(body)))
	if w.Code != http.StatusOK {
		r.t.Fatalf("%s: %d %s", body, w.Code, w.Body)
	}
}

// findings counts what was reconciled, as the metrics tell it.
func (r *rig) findings() map[string]float64 {
	r.t.Helper()
	got := map[string]float64{}
	text := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body
	for label, n := range counters(r.t, text, "tenure_reconciliations_total") {
		got[strings.TrimSuffix(strings.TrimPrefix(label, `{what="`), `"}`)] = n
	}
	return got
}

func (r *rig) wantFindings(want map[string]float64) {
	r.t.Helper()
	got := r.findings()
	for what, n := range want {
		if got[what] != n {
			r.t.Errorf("found %v, want %v", got, want)
		}
		delete(got, what)
	}
	if len(got) > 0 {
		r.t.Errorf("found also %v", got)
	}
	journalled := map[string]float64{}
	for _, e := range adminGet[Decisions](r.t, r, "/admin/decisions?limit=2048").Decisions {
		if e.Action == actReconcile {
			journalled[e.What]++
		}
	}
	for what, n := range want {
		if journalled[what] != n {
			r.t.Errorf("journalled %v, want %v", journalled, want)
		}
	}
}

// What tenure does itself is no finding.
func TestNothingToReconcile(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for range 5 {
			r.chat("llama3", "hello", "", "Cache-Control", "no-store")
			r.chat("mistral", "hello", "", "Cache-Control", "no-store")
			r.chat("deepseek-llm:7b", "hello", "", "Cache-Control", "no-store")
			time.Sleep(17 * time.Second)
		}
		r.preload(`{"mistral":false,"llama3":true}`)
		time.Sleep(10 * time.Minute)
		r.wantFindings(nil)
		r.rest()
	})
}

// A model that somebody else unloads is loaded again; who comes meanwhile waits.
func TestModelVanishes(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.behind("/api/generate", `{"model":"phi3:mini","keep_alive":0}`)
		time.Sleep(3 * watchEvery)
		if got := r.sim.Loaded(); !slices.Contains(got, "phi3:mini") {
			t.Errorf("loaded %v", got)
		}
		r.wantFindings(map[string]float64{whatVanished: 1})
		if a := r.chat("phi3:mini", "hello", ""); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
		r.rest()
	})
}

// A model of the catalog that somebody else loads is unloaded; a model that
// tenure does not know is counted, and both make room when they leave.
func TestModelAppears(t *testing.T) {
	small := ollamasim.Embedder()
	small.Name, small.Capabilities = "tiny", ollamasim.Catalog()[0].Capabilities
	cfg := rigConfig{sim: ollamasim.Config{Models: append(ollamasim.Catalog(), small), MaxLoaded: 8}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		r.behind("/api/generate", `{"model":"tiny","keep_alive":60}`)
		time.Sleep(2 * watchEvery)
		m := adminGet[MemoryState](t, r, "/admin/memory")
		if m.Loaded != 4 || m.Usage <= 16 || m.Models[3].Name != "tiny" || m.Models[3].Tier != "foreign" {
			t.Errorf("got %+v", m)
		}
		if got := r.sim.Loaded(); !slices.Contains(got, "tiny:latest") {
			t.Errorf("a foreign model was touched: %v", got)
		}
		time.Sleep(2 * time.Minute) // it expires
		if m := adminGet[MemoryState](t, r, "/admin/memory"); m.Loaded != 3 || m.Usage != 16 {
			t.Errorf("after it left: %+v", m)
		}
		r.wantFindings(map[string]float64{whatForeign: 1})

		r.preload(`{"mistral":false}`)
		r.behind("/api/generate", `{"model":"mistral","keep_alive":-1}`)
		time.Sleep(4 * watchEvery)
		if got := r.sim.Loaded(); slices.Contains(got, "mistral:latest") {
			t.Errorf("loaded %v", got)
		}
		r.wantFindings(map[string]float64{whatForeign: 1, whatAppeared: 1})
		if a := r.chat("llama3", "hello", ""); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
		if n := r.sim.Counts(); n.Evictions != 0 {
			t.Errorf("Ollama evicted %d models", n.Evictions)
		}
	})
}

// A model that would expire is pinned again before it does, without a load.
func TestModelLosesItsPin(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		loads := r.sim.Counts().Loads
		r.behind("/api/generate", `{"model":"mistral","keep_alive":30,"options":{"num_ctx":8192}}`)
		time.Sleep(5 * time.Minute)
		if got := r.sim.Loaded(); !slices.Contains(got, "mistral:latest") || r.sim.Counts().Loads != loads {
			t.Errorf("loaded %v with %d loads more", got, r.sim.Counts().Loads-loads)
		}
		r.wantFindings(map[string]float64{whatPin: 1})
		r.rest()
	})
}

// A model that moved to main memory is loaded again, T0 too, once it is idle.
func TestModelMovesToCPU(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery) // seen
		for _, model := range []string{"phi3:mini", "mistral"} {
			loads := r.sim.Counts().Loads
			answered := make(chan reply)
			r.sim.Spill(model, 1<<30)
			go func() { answered <- r.chat(model, "hello", "") }()
			if a := <-answered; a.status != http.StatusOK {
				t.Errorf("%s: %d %s", model, a.status, a.body)
			}
			time.Sleep(6 * watchEvery)
			if n := r.sim.Counts().Loads - loads; n != 1 {
				t.Errorf("%s: loaded %d times, want once", model, n)
			}
			for _, m := range adminGet[MemoryState](t, r, "/admin/memory").Models {
				if m.OnCPU != 0 {
					t.Errorf("%s has %v GiB in main memory", m.Name, m.OnCPU)
				}
			}
		}
		r.wantFindings(map[string]float64{whatCPU: 2})
		time.Sleep(10 * time.Minute)
		r.wantFindings(map[string]float64{whatCPU: 2})
		r.rest()
	})
	inBubble(t, rigConfig{sim: ollamasim.Config{NoGPU: true}}, func(t *testing.T, r *rig) {
		time.Sleep(10 * time.Minute)
		r.wantFindings(nil) // there never was a GPU
	})
}

// Somebody else's request with another context makes Ollama load the model
// anew: it gets its own context back.
func TestModelLosesItsContext(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery)
		r.behind("/api/generate", `{"model":"mistral","keep_alive":-1,"options":{"num_ctx":2048}}`)
		reloads := r.sim.Counts().Reloads
		time.Sleep(6 * watchEvery)
		r.chat("mistral", "hello", "")
		if n := r.sim.Counts().Reloads; n != reloads {
			t.Errorf("the next request made Ollama reload the model")
		}
		r.wantFindings(map[string]float64{whatContext: 1})
	})
}

// A model whose process died is loaded again by the book, with its pin; the
// request that found out is tried again.
func TestRunnerDies(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.DeadRunner, Model: "phi3:mini", Times: 1})
		if a := r.chat("phi3:mini", "hello", ""); a.status != http.StatusOK || a.header.Get("Tenure-Residency") != "cold" {
			t.Errorf("%d, residency %s", a.status, a.header.Get("Tenure-Residency"))
		}
		time.Sleep(10 * time.Minute)
		if got := r.sim.Loaded(); len(got) != 3 {
			t.Errorf("loaded %v", got)
		}
		r.wantFindings(map[string]float64{whatRunner: 1})
		r.rest()
	})
}

// No load completes while everything else answers: the victim is unloaded once
// more, and the load goes on.
func TestWedgeIsRescued(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		victim := make(chan string, 1)
		go func() {
			for {
				for _, e := range r.server.journal.Find(DecisionQuery{Model: "llama3"}).Decisions {
					if e.Action == residency.ActUnload {
						r.sim.Inject(ollamasim.Fault{Kind: ollamasim.Wedge, Model: e.Model})
						victim <- e.Model
						return
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		began := time.Now()
		a := r.chat("llama3", "hello", "")
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		// Five times the expected five seconds, a look, and the load itself.
		if took := time.Since(began); took < 25*time.Second || took > 45*time.Second {
			t.Errorf("the rescue took %v", took)
		}
		<-victim
		time.Sleep(2 * watchEvery)
		r.wantFindings(map[string]float64{whatWedge: 1, whatRescue: 1})
		if s := r.do(http.MethodGet, "http://api/readyz", "").status; s != http.StatusOK {
			t.Errorf("readyz %d after the rescue", s)
		}
		r.rest()
	})
}

// Ollama may wait for a model that looks at rest, chosen to make room for
// somebody else: the idle ones are unloaded, never T0, and come back.
func TestWedgeByAResidentIsRescued(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		r.preload(`{"deepseek-llm:7b":false}`)
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.Wedge, Model: "mistral"})
		began := time.Now()
		a := r.chat("deepseek-llm:7b", "hello", "")
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if took := time.Since(began); took < 20*time.Second || took > 40*time.Second {
			t.Errorf("the rescue took %v", took)
		}
		time.Sleep(time.Minute)
		if got := r.sim.Loaded(); len(got) != 3 {
			t.Errorf("loaded %v", got)
		}
		r.wantFindings(map[string]float64{whatWedge: 1, whatRescue: 1})
		if s := r.do(http.MethodGet, "http://api/readyz", "").status; s != http.StatusOK {
			t.Errorf("readyz %d after the rescue", s)
		}
		r.rest()
	})
}

// What cannot be rescued is reported; models that are there go on answering,
// and readiness returns by itself.
func TestWedgeIsReported(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		ready := func() reply { return r.do(http.MethodGet, "http://api/readyz", "") }
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.Wedge})
		answered := make(chan reply)
		go func() { answered <- r.chat("llama3", "hello", "") }()
		time.Sleep(15 * time.Second)
		if a := ready(); a.status != http.StatusOK {
			t.Errorf("a slow load alone is no wedge: readyz %d %s", a.status, a.body)
		}
		time.Sleep(25 * time.Second)
		if a := ready(); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "completes no load") || !strings.Contains(a.body, "llama3") {
			t.Errorf("wedged: readyz %d %s", a.status, a.body)
		}
		if st := adminGet[State](t, r, "/admin/state"); !strings.Contains(st.Trouble, "llama3") {
			t.Errorf("trouble %q", st.Trouble)
		}
		if a := r.chat("phi3:mini", "hello", ""); a.status != http.StatusOK {
			t.Errorf("a resident model: %d %s", a.status, a.body)
		}
		r.sim.Clear() // somebody restarted it
		if a := <-answered; a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
		time.Sleep(2 * watchEvery)
		if a := ready(); a.status != http.StatusOK {
			t.Errorf("afterwards: readyz %d %s", a.status, a.body)
		}
		if f := r.findings(); f[whatWedge] != 1 {
			t.Errorf("found %v", f)
		}
		r.rest()
	})
}

// Ollama goes away and returns empty: counted once, and T0 is loaded first.
func TestOllamaReturns(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		last := adminGet[Decisions](t, r, "/admin/decisions").Last
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.Refuse})
		r.server.ollama.Close()
		r.sim.Crash()
		time.Sleep(time.Minute)
		r.sim.Clear()
		time.Sleep(time.Minute)
		var order []string
		for _, e := range r.server.journal.Find(DecisionQuery{After: last}).Decisions {
			if e.Action == residency.ActLoaded {
				order = append(order, e.Model)
			}
		}
		if len(order) != 3 || order[0] != "phi3:mini" {
			t.Errorf("loaded %v, want three and phi3:mini first", order)
		}
		r.wantFindings(map[string]float64{whatRestart: 1, whatVanished: 3})
		r.rest()
	})
}

// A slot that a vanished client took along is found out and the model loaded
// anew, beside the book: nothing is lost, nobody is refused. The model may have
// been asked by the name of one that was made from it.
func TestSlotIsLost(t *testing.T) {
	for _, asked := range []string{"phi3:mini", "recruiter"} {
		t.Run(asked, func(t *testing.T) { slotIsLost(t, asked) })
	}
}

func slotIsLost(t *testing.T, asked string) {
	inBubble(t, rigConfig{sim: ollamasim.Config{Models: withDerived("recruiter", "phi3:mini")}}, func(t *testing.T, r *rig) {
		time.Sleep(watchEvery)
		before := r.scheduler.State().Counters
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangMid, Model: "phi3:mini", After: 2, Times: 1})
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.LeakSlot, Model: "phi3:mini", Times: 1})
		// So slow that the watcher looks meanwhile.
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Model: "phi3:mini", Delay: 15 * time.Second, Times: 1})
		if e := r.chat(asked, "hello", "").failure(t); e.Code != "idle_timeout" {
			t.Errorf("got %+v", e)
		}
		if a := r.chat("phi3:mini", "hello", ""); a.status != http.StatusOK {
			t.Errorf("the next: %d %s", a.status, a.body)
		}
		time.Sleep(10 * time.Minute)
		after := r.scheduler.State().Counters
		if n := r.sim.Counts(); after.Loads != before.Loads || n.Loads != int(before.Loads)+1 || r.server.ollama.Revived() != 1 {
			t.Errorf("the book counts %d more loads, Ollama did %d, %d revived", after.Loads-before.Loads, n.Loads, r.server.ollama.Revived())
		}
		r.wantFindings(nil)
		r.rest()
	})
}

// An Ollama that may hold fewer models than tenure thinks evicts by itself, for
// ever: the state and the log say what is wrong.
func TestOllamaEvicts(t *testing.T) {
	inBubble(t, rigConfig{sim: ollamasim.Config{MaxLoaded: 2}}, func(t *testing.T, r *rig) {
		time.Sleep(2 * time.Minute)
		if st := adminGet[State](t, r, "/admin/state"); !strings.Contains(st.Trouble, "OLLAMA_MAX_LOADED_MODELS") {
			t.Errorf("trouble %q", st.Trouble)
		}
		if n := strings.Count(r.log.String(), "models keep vanishing"); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
	})
}

// Ollama restarts between two looks, and a request for a model that the book
// still believes in makes it load that model by itself. The load is not listed
// before it is done, but its memory is taken: nothing else may be loaded in its
// place.
func TestRequestLoadsAfterARestart(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		for at := range 6 { // wherever the look falls
			r.chat("llama3", fmt.Sprintf("hello %d", at), "") // over one that is kept
			time.Sleep(30*time.Second + time.Duration(at)*time.Second)
			r.server.ollama.Close()
			r.sim.Crash()
			if a := r.chat("llama3", fmt.Sprintf("hello again %d", at), ""); a.status != http.StatusOK {
				t.Errorf("after a restart: %d %s", a.status, a.body)
			}
			time.Sleep(30 * time.Second)
		}
		r.rest()
	})
}

// Two names of one file are one model in memory: Ollama lists it under the name
// that came first. Neither name is lost for it, and neither is foreign.
func TestTwoNamesOfOneFile(t *testing.T) {
	models := withDerived("recruiter", "llama3")
	const other = `{"model":"recruiter","keep_alive":-1,"options":{"num_ctx":8192}}`
	inBubble(t, rigConfig{sim: ollamasim.Config{Models: models}}, func(t *testing.T, r *rig) {
		at := func(when, listed string) {
			t.Helper()
			time.Sleep(3 * watchEvery)
			st := r.scheduler.State()
			held := slices.ContainsFunc(st.Residents, func(m residency.Resident) bool { return m.Model.Name == "llama3" && m.Phase == residency.Ready })
			if !held || len(st.Foreign) != 0 || !slices.Contains(r.sim.Loaded(), listed) || len(r.findings()) != 0 {
				t.Errorf("%s: the book has llama3: %v, foreign %v, reconciled %v; Ollama has %v", when, held, st.Foreign, r.findings(), r.sim.Loaded())
			}
		}
		r.chat("llama3", "hello", "")
		r.behind("/api/generate", other)
		at("the other name is asked for past tenure", "llama3:latest")

		// And the other way round: the file is there under the other name first.
		for _, name := range []string{"llama3", "mistral"} {
			time.Sleep(watchEvery) // nothing moves
			if status, done := r.preload(`{"` + name + `":false}`); status != http.StatusOK {
				t.Fatalf("not unloaded: %+v", done)
			}
		}
		r.behind("/api/generate", other)
		if a := r.chat("llama3", "hello again", ""); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
		at("the file was there under the other name", "recruiter:latest")
		r.rest()
	})
}

// withDerived is the simulated catalog and a model made from one of it.
func withDerived(name, from string) []ollamasim.Model {
	models := ollamasim.Catalog()
	m := models[slices.IndexFunc(models, func(m ollamasim.Model) bool { return m.Name == from })]
	m.Name, m.File = name, from
	return append(models, m)
}

// A model that was made from another, with a prompt of its own, is asked by its
// own name in the other's place and with the other's context: Ollama would load
// the file anew for each change of it.
func TestDerivedModels(t *testing.T) {
	inBubble(t, rigConfig{sim: ollamasim.Config{Models: withDerived("recruiter", "mistral")}}, func(t *testing.T, r *rig) {
		before := r.sim.Counts()
		for i := range 3 {
			for _, name := range []string{"mistral", "recruiter"} {
				a := r.chat(name, fmt.Sprintf("hello %d", i), "")
				if a.status != http.StatusOK || a.header.Get("Tenure-Model") != name || a.header.Get("Tenure-Residency") != "warm" {
					t.Errorf("%s: %d by %s, %s", name, a.status, a.header.Get("Tenure-Model"), a.header.Get("Tenure-Residency"))
				}
			}
		}
		time.Sleep(3 * watchEvery)
		if c := r.sim.Counts(); c.Loads != before.Loads || c.Reloads != before.Reloads || len(r.findings()) != 0 {
			t.Errorf("%d loads and %d reloads more, reconciled %v", c.Loads-before.Loads, c.Reloads-before.Reloads, r.findings())
		}
		if n := len(r.scheduler.State().Residents); n != 3 {
			t.Errorf("%d models are booked, want 3", n)
		}
		status, done := r.preload(`{"recruiter":false}`)
		if status != http.StatusOK || slices.Contains(r.sim.Loaded(), "mistral:latest") {
			t.Errorf("unloaded by the other name: %d %+v, loaded %v", status, done, r.sim.Loaded())
		}
		r.rest()
	})
}
