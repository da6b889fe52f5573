package proxy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"tenure/proxy/ollama"
	"tenure/residency"
	"tenure/routing"
)

const (
	enoughAnswers = 20 // before the figures of answers are trusted
	enoughLoads   = 2
	loadShare     = .1 // of a batch's time that its model's load may take
	contextStep   = 1024
	contextLeast  = 2048
)

// Recommendations is what GET /admin/recommendations tells: advice, each with
// its reason and the measured figures it rests on. Nothing of it is applied.
type Recommendations struct {
	Since    time.Time         `json:"since"` // when measuring began
	Answers  int               `json:"answers"`
	Batches  map[string]Advice `json:"optimal_batch_sizes"` // by task
	Slots    map[string]Advice `json:"slots"`               // by model, as the next
	Contexts map[string]Advice `json:"contexts"`
	Pins     map[string]Advice `json:"pin"` // value 1: always loaded is right
}

// Advice is one figure to set. Without enough data it is what is set now, or
// null where nothing is.
type Advice struct {
	Value   *int               `json:"value"`
	Now     *int               `json:"now"`
	Enough  bool               `json:"enough_data"`
	Reason  string             `json:"reason"`
	Figures map[string]float64 `json:"figures"`
}

// recommend derives advice from what was measured since the start.
func (s *Server) recommend() Recommendations {
	st := s.residency.State()
	facts := s.installedFacts()
	catalog := s.router.Catalog()
	all, _ := s.measured.of("", "")
	r := Recommendations{
		Since: s.started, Answers: all.count, Batches: map[string]Advice{},
		Slots: map[string]Advice{}, Contexts: map[string]Advice{}, Pins: map[string]Advice{},
	}
	models := map[string]routing.Model{}
	for _, m := range catalog.Models {
		models[m.Name] = m
		answers, tooLong := s.measured.of("", m.Name)
		r.Slots[m.Name] = slotAdvice(m, answers, facts[m.Name], free(&st))
		r.Contexts[m.Name] = contextAdvice(m, answers, tooLong, facts[m.Name])
		r.Pins[m.Name] = s.pinAdvice(m, answers, all, &st)
	}
	for _, t := range catalog.Tasks {
		answers, _ := s.measured.of(t.Name, t.Model)
		mean, loads := s.journal.loadTime(t.Model)
		r.Batches[t.Name] = batchAdvice(t, models[t.Model], answers, mean, loads)
	}
	return r
}

func (s *Server) installedFacts() map[string]ollama.Facts {
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	facts := map[string]ollama.Facts{}
	for _, m := range s.backend.models {
		facts[ShortName(m.Name)] = s.backend.byDigest[m.Digest]
	}
	return facts
}

func free(st *residency.State) residency.Bytes {
	used := st.Used
	for _, b := range st.Foreign {
		used += b
	}
	return st.Budget - min(used, st.Budget)
}

func seconds3(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// missing is the advice where not enough was measured.
func missing(now *int, answers, loads, needLoads int) Advice {
	a := Advice{Value: now, Now: now, Figures: map[string]float64{"answers": float64(answers)}}
	a.Reason = fmt.Sprintf("not enough data: %d answers were measured, %d are needed", answers, enoughAnswers)
	if needLoads > 0 {
		a.Reason += fmt.Sprintf("; %d loads, %d are needed", loads, needLoads)
		a.Figures["loads"] = float64(loads)
	}
	return a
}

// batchAdvice shares one load among so many requests that it takes no more
// than loadShare of their time.
func batchAdvice(t routing.Task, m routing.Model, f figures, load time.Duration, loads int) Advice {
	var now *int
	if t.Batch > 0 {
		now = &t.Batch
	}
	if m.Tier == int(residency.T0) {
		one := max(m.Slots, 1)
		return Advice{
			Value: &one, Now: now, Enough: true, Figures: map[string]float64{"answers": float64(f.count)},
			Reason: "its model is always loaded: there is no load to share, so as many as there are slots",
		}
	}
	if f.count < enoughAnswers || loads < enoughLoads {
		return missing(now, f.count, loads, enoughLoads)
	}
	n := int(math.Ceil(load.Seconds() / (loadShare * max(f.mean().Seconds(), .001))))
	n = min(max(n, 1), 1000)
	return Advice{
		Value: &n, Now: now, Enough: true,
		Reason: fmt.Sprintf("a load of %.1f s is then no more than a tenth of the time of %d answers of %.1f s", load.Seconds(), n, f.mean().Seconds()),
		Figures: map[string]float64{
			"answers": float64(f.count), "loads": float64(loads), "mean_answer_s": seconds3(f.mean()), "mean_load_s": seconds3(load),
		},
	}
}

// slotAdvice asks for one more slot where answers wait for a resident model
// about as long as they take, and there is memory for its context.
func slotAdvice(m routing.Model, f figures, facts ollama.Facts, room residency.Bytes) Advice {
	now := max(m.Slots, 1)
	if f.count < enoughAnswers || f.warm == 0 {
		return missing(&now, f.count, 0, 0)
	}
	waited := f.waited / time.Duration(f.warm)
	need := facts.KVPerToken() * residency.Bytes(m.Context)
	a := Advice{Value: &now, Now: &now, Enough: true, Figures: map[string]float64{
		"answers": float64(f.count), "mean_wait_for_slot_s": seconds3(waited), "mean_answer_s": seconds3(f.mean()),
		"slot_gb": gib(need), "free_gb": gib(room),
	}}
	switch {
	case 2*waited <= f.mean():
		a.Reason = fmt.Sprintf("requests waited %.1f s for a slot of the loaded model, less than half of an answer's %.1f s", waited.Seconds(), f.mean().Seconds())
	case need == 0:
		a.Reason = "requests wait for a slot, but the model's file does not tell what another one takes"
	case need > room:
		a.Reason = fmt.Sprintf("requests wait %.1f s for a slot, but another one takes %v of context and %v are free", waited.Seconds(), need, room)
	default:
		more := now + 1
		a.Value = &more
		a.Reason = fmt.Sprintf("requests wait %.1f s for a slot and %v are free for the %v of another (OLLAMA_NUM_PARALLEL must be as high). Slots share the GPU: compare the throughput",
			waited.Seconds(), room, need)
	}
	return a
}

// contextAdvice fits the context to what was used of it: each token of it
// takes memory from the other models.
func contextAdvice(m routing.Model, f figures, tooLong int, facts ollama.Facts) Advice {
	now := m.Context
	if facts.Context > 0 {
		now = min(now, facts.Context)
	}
	if f.count+tooLong < enoughAnswers {
		return missing(&now, f.count, 0, 0)
	}
	a := Advice{Value: &now, Now: &now, Enough: true, Figures: map[string]float64{
		"answers": float64(f.count), "largest_tokens": float64(f.largest), "above_nine_tenths": float64(f.near), "too_long": float64(tooLong),
	}}
	enough := max((f.largest*3/2+contextStep-1)/contextStep*contextStep, contextLeast)
	perToken := facts.KVPerToken() * residency.Bytes(max(m.Slots, 1))
	switch more := min(2*now, facts.Context); {
	case 20*(tooLong+f.near) > f.count+tooLong && more > now:
		a.Value = &more
		a.Figures["costs_gb"] = gib(perToken * residency.Bytes(more-now))
		a.Reason = fmt.Sprintf("%d prompts did not fit and %d answers came near the end of the context", tooLong, f.near)
	case 20*(tooLong+f.near) > f.count+tooLong:
		a.Reason = fmt.Sprintf("%d prompts did not fit and %d answers came near the end, but the model was trained for no more", tooLong, f.near)
	case tooLong == 0 && 4*enough <= 3*now:
		a.Value = &enough
		a.Figures["saves_gb"] = gib(perToken * residency.Bytes(now-enough))
		a.Reason = fmt.Sprintf("the longest prompt and answer had %d tokens; half as many again have room in %d", f.largest, enough)
	default:
		a.Reason = fmt.Sprintf("the longest prompt and answer had %d tokens", f.largest)
	}
	return a
}

// pinAdvice tells whether a model should always be loaded: when waiting for
// its loads was a good part of all waiting and working, and it leaves room for
// the largest of the others.
func (s *Server) pinAdvice(m routing.Model, f, all figures, st *residency.State) Advice {
	yes, no := 1, 0
	now := &no
	if m.Tier == int(residency.T0) {
		now = &yes
	}
	if all.count < enoughAnswers {
		return missing(now, all.count, 0, 0)
	}
	mean, loads := s.journal.loadTime(m.Name)
	a := Advice{Value: now, Now: now, Enough: true, Figures: map[string]float64{
		"answers": float64(f.count), "of_all": float64(all.count), "cold": float64(f.cold), "cold_wait_s": seconds3(f.coldly),
		"loads": float64(loads), "mean_load_s": seconds3(mean),
	}}
	need := s.roomBeside(m, st)
	a.Figures["needs_gb"] = gib(need)
	switch {
	case now == &yes && f.count == 0:
		a.Value = &no
		a.Reason = fmt.Sprintf("it is always loaded and gave none of %d answers", all.count)
	case now == &yes:
		a.Reason = fmt.Sprintf("it gave %d of %d answers", f.count, all.count)
	case loads <= enoughLoads || 20*f.coldly < all.service:
		a.Reason = fmt.Sprintf("%d answers waited %.1f s for its %d loads, under a twentieth of the %.1f s that all answers took",
			f.cold, f.coldly.Seconds(), loads, all.service.Seconds())
	case need > st.Budget:
		a.Reason = fmt.Sprintf("answers waited %.1f s for its loads, but beside it, what is always loaded and the largest other model there would have to be %v; there are %v",
			f.coldly.Seconds(), need, st.Budget)
	default:
		a.Value = &yes
		a.Reason = fmt.Sprintf("%d answers waited %.1f s for its %d loads, and the largest other model still fits beside it", f.cold, f.coldly.Seconds(), loads)
	}
	return a
}

// roomBeside is what m, the pinned models and the largest of the rest take
// together.
func (s *Server) roomBeside(m routing.Model, st *residency.State) residency.Bytes {
	measured := map[string]residency.Bytes{}
	for _, r := range st.Residents {
		measured[r.Model.Name] = r.Size
	}
	size := func(m routing.Model) residency.Bytes {
		return cmp.Or(measured[m.Name], residency.Bytes(m.Memory*float64(residency.GiB)))
	}
	need := size(m)
	others := []residency.Bytes{0}
	for _, o := range s.router.Catalog().Models {
		switch {
		case o.Name == m.Name:
		case o.Tier == int(residency.T0):
			need += size(o)
		default:
			others = append(others, size(o))
		}
	}
	return need + slices.Max(others)
}
