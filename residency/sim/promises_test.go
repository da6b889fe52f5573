package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"tenure/residency"
)

// mean plays a setup with several seeds and averages.
func mean(t *testing.T, s Setup, policy string, seeds int) Result {
	t.Helper()
	var m Result
	n := float64(seeds)
	for seed := range seeds {
		s.Seed = uint64(7001 + 13*seed)
		r, err := Run(s, policy)
		if err != nil {
			t.Fatal(err)
		}
		m.MeanWait += r.MeanWait / n
		m.P95Wait += r.P95Wait / n
		m.P99Wait += r.P99Wait / n
		m.MeanResponse += r.MeanResponse / n
		m.LowerBound += r.LowerBound / n
		m.TasksPerHour += r.TasksPerHour / n
		m.MaxWait = max(m.MaxWait, r.MaxWait)
		m.Loads = max(m.Loads, r.Loads)
		m.T0Evictions += r.T0Evictions
		m.Overcommits += r.Overcommits
	}
	if policy == "carp" && m.T0Evictions+m.Overcommits > 0 {
		t.Errorf("%d pinned models evicted, %d overcommitments", m.T0Evictions, m.Overcommits)
	}
	return m
}

func TestTailAgainstOllama(t *testing.T) {
	for _, rho := range []float64{.7, .8, .9} {
		s := Setup{Workload: "poisson", Rho: rho}
		carp, peer := mean(t, s, "carp", 6), mean(t, s, "ollama", 6)
		t.Logf("rho %.1f: p99 %.1f s against %.1f s, T0 evictions %d against %d", rho, carp.P99Wait, peer.P99Wait, carp.T0Evictions, peer.T0Evictions)
		if carp.P99Wait > peer.P99Wait/2 {
			t.Errorf("rho %.1f: p99 wait %.1f s, Ollama's is %.1f s", rho, carp.P99Wait, peer.P99Wait)
		}
	}
}

func TestNobodyStarves(t *testing.T) {
	for _, wait := range []time.Duration{20 * time.Second, 40 * time.Second, time.Minute} {
		if r := mean(t, Setup{Workload: "starvation", MaxWait: wait}, "carp", 6); r.MaxWait > wait.Seconds()+15 {
			t.Errorf("T_max %v: somebody waited %.0f s", wait, r.MaxWait)
		}
	}
	for _, peer := range []string{"ollama", "llama-swap"} {
		if r := mean(t, Setup{Workload: "starvation"}, peer, 2); r.MaxWait < 3000 {
			t.Errorf("%s is modelled too kindly: max wait %.0f s", peer, r.MaxWait)
		}
	}
}

func TestBatch(t *testing.T) {
	r := mean(t, Setup{Workload: "batch"}, "carp", 10)
	if r.LowerBound > 1.03 || r.Loads > 10 {
		t.Errorf("window 64: %.3f of the lower bound, up to %d loads", r.LowerBound, r.Loads)
	}
	if r := mean(t, Setup{Workload: "batch", Window: 8}, "carp", 10); r.LowerBound > 1.07 {
		t.Errorf("window 8: %.3f of the lower bound", r.LowerBound)
	}
}

func TestInteractiveBesideBatch(t *testing.T) {
	for _, rho := range []float64{.1, .3} {
		for _, window := range []int{64, 1000} {
			s := Setup{Workload: "batch", Window: window, Rho: rho}
			carp, peer := mean(t, s, "carp", 5), mean(t, s, "ollama", 5)
			if carp.P99Wait > 50 || carp.P99Wait > peer.P99Wait/10 {
				t.Errorf("rho %.1f, window %d: p99 wait %.1f s, Ollama's %.1f s", rho, window, carp.P99Wait, peer.P99Wait)
			}
			if carp.LowerBound > 1.1 {
				t.Errorf("rho %.1f, window %d: makespan %.3f of all the work", rho, window, carp.LowerBound)
			}
		}
	}
}

func TestAlternatingClientsShare(t *testing.T) {
	if r := mean(t, Setup{Workload: "alternating"}, "carp", 50); r.Loads > 8 {
		t.Errorf("%d loads for 40 requests", r.Loads)
	}
	for _, peer := range []string{"fifo", "lru", "ollama", "llama-swap"} {
		if r := mean(t, Setup{Workload: "alternating"}, peer, 2); r.Loads != 40 {
			t.Errorf("%s: %d loads for 40 requests", peer, r.Loads)
		}
	}
}

// Four clients, each with its own model, on three seats: fewer swaps than under
// Ollama's scheduler, and nobody waits longer for it.
func TestLoyalClientsShare(t *testing.T) {
	s := Setup{Workload: "loyal"}
	carp, peer := mean(t, s, "carp", 10), mean(t, s, "ollama", 10)
	if carp.Loads >= peer.Loads || carp.P95Wait > 1.03*peer.P95Wait || carp.MeanWait >= peer.MeanWait || carp.MeanResponse >= peer.MeanResponse {
		t.Errorf("%d loads, waits %.2f s in the mean and %.2f s p95, response %.2f s; under Ollama %d, %.2f s, %.2f s, %.2f s", carp.Loads, carp.MeanWait, carp.P95Wait,
			carp.MeanResponse, peer.Loads, peer.MeanWait, peer.P95Wait, peer.MeanResponse)
	}
}

// Seats that are counted, as on an Ollama with room for any three models: there
// the pinned one takes a seat that Ollama gives to whoever asks. Ollama breaks
// ties by digest, so by chance: each order of victims is one Ollama.
func TestCountedSeats(t *testing.T) {
	s := Setup{Workload: "poisson", Rho: .68, Requests: 80, Slots: 1, MaxWait: 36 * time.Second, Budget: 40 * residency.GiB, maxModels: 3}
	const seeds = 40
	play := func(policy string, order ...int) (loads, p95 float64) {
		s.order = order
		for seed := range uint64(seeds) {
			s.Seed = seed
			r, err := Run(s, policy)
			if err != nil {
				t.Fatal(err)
			}
			loads += float64(r.Loads) / seeds
			p95 += r.P95Wait / seeds
		}
		return loads, p95
	}
	loads, p95 := play("carp")
	t.Logf("carp: %.1f loads, p95 %.1f s", loads, p95)
	fewer, sooner, orders := 0, 0, 0
	for a := range 4 {
		for b := range 4 {
			for c := range 4 {
				if d := 6 - a - b - c; a != b && a != c && b != c {
					l, w := play("ollama", a, b, c, d)
					t.Logf("ollama, victims %d%d%d%d: %.1f loads, p95 %.1f s", a, b, c, d, l, w)
					orders++
					if loads < l {
						fewer++
					}
					if p95 <= w {
						sooner++
					}
				}
			}
		}
	}
	if fewer < orders*3/4 || sooner < orders/2 {
		t.Errorf("fewer loads than %d of %d Ollamas, no higher p95 than %d", fewer, orders, sooner)
	}
}

func TestPipelines(t *testing.T) {
	plain := mean(t, Setup{Workload: "pipeline", Clients: 1}, "carp", 3)
	hinted := mean(t, Setup{Workload: "pipeline", Clients: 1, Hints: true}, "carp", 3)
	if hinted.TasksPerHour < 5*250 || plain.TasksPerHour > 5*215 {
		t.Errorf("one client: %.0f candidates an hour with a declared workflow, %.0f without", hinted.TasksPerHour/5, plain.TasksPerHour/5)
	}
	if r := mean(t, Setup{Workload: "pipeline", Clients: 8}, "carp", 3); r.TasksPerHour < 5*405 {
		t.Errorf("8 clients: %.0f candidates an hour", r.TasksPerHour/5)
	}
}

func TestWrongEstimates(t *testing.T) {
	for _, s := range []Setup{{Rho: .5}, {Rho: .8}, {Rho: .8, Mix: "t1"}} {
		right := mean(t, s, "carp", 6)
		for _, wrong := range [][2]float64{{.25, .25}, {.25, 1}, {1, .25}, {4, 1}, {1, 4}, {4, 4}} {
			s.ServiceScale, s.LoadScale = wrong[0], wrong[1]
			if r := mean(t, s, "carp", 6); r.MeanResponse > 1.2*right.MeanResponse {
				t.Errorf("rho %.1f %s, service x%v, loads x%v: mean response %.2f s instead of %.2f s", s.Rho, s.Mix, wrong[0], wrong[1], r.MeanResponse, right.MeanResponse)
			}
		}
	}
}

func TestEconomySwapsLess(t *testing.T) {
	for rho, most := range map[float64]float64{.5: .6, .7: .6, .8: .75} {
		eco, peer := mean(t, Setup{Rho: rho, Preset: "economy"}, "carp", 4), mean(t, Setup{Rho: rho}, "ollama", 4)
		t.Logf("rho %.1f: %d loads against %d, p99 %.1f s against %.1f s", rho, eco.Loads, peer.Loads, eco.P99Wait, peer.P99Wait)
		if float64(eco.Loads) > most*float64(peer.Loads) || eco.P99Wait > peer.P99Wait {
			t.Errorf("rho %.1f: %d loads against %d, p99 %.1f s against %.1f s", rho, eco.Loads, peer.Loads, eco.P99Wait, peer.P99Wait)
		}
	}
}

// TestSoak plays ten million events and asks that no promise breaks: Run fails
// on a lost or doubly granted request, a start on an absent model, an unload
// under a request, and on a deadlock.
func TestSoak(t *testing.T) {
	events := 10_000_000
	if testing.Short() || raceEnabled {
		events = 300_000
	}
	for _, s := range []Setup{
		{Workload: "poisson", Rho: .8, Requests: 1 << 30, Seed: 41},
		{Workload: "gamma", Rho: .6, CV: 4, Requests: 1 << 30, Seed: 42},
	} {
		s.Limit = events / 2
		r, err := Run(s, "carp")
		if err != nil {
			t.Fatal(err)
		}
		if r.T0Evictions+r.Overcommits > 0 || r.Events != s.Limit {
			t.Errorf("%s: %d events, %d pinned models evicted, %d overcommitments", s.Workload, r.Events, r.T0Evictions, r.Overcommits)
		}
	}
}

// TestWaitBound draws adversarial workloads and policies and holds every
// admitted interactive request to the bound: T_max, one transition in
// progress, and for each other absent model a transition and the service of
// those it was loaded for.
func TestWaitBound(t *testing.T) {
	runs := 60
	if testing.Short() {
		runs = 8
	}
	worst := 0.0
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 9))
		const line = 6
		p := residency.Latency()
		p.Theta, p.ThetaBusy, p.Eta, p.Kappa = rng.Float64(), 1+3*rng.Float64(), 2*rng.Float64(), 10*rng.Float64()
		p.Patient = rng.IntN(2) == 0
		s := Setup{
			Workload: "gamma", Rho: .3 + 2*rng.Float64(), CV: 1 + 3*rng.Float64(), Requests: 1500, Seed: seed,
			MaxWait: time.Duration(15+rng.IntN(60)) * time.Second, policy: p, queue: line,
		}.WithDefaults()
		r, err := Run(s, "carp")
		if err != nil {
			t.Fatal(err)
		}
		const longest = 5.0 // seconds of work
		slow := longest * (1 + s.Physics.Beta*float64(s.Slots-1)) * 3 * (1 + s.Physics.LoadSlow)
		move := slow + s.Physics.Unload.Seconds() + 5
		gate := float64(line/s.Slots+1) * slow
		bound := s.MaxWait.Seconds() + move + 2*(move+gate) + move + gate
		worst = max(worst, r.MaxWait-s.MaxWait.Seconds())
		if r.MaxWait > bound {
			t.Errorf("seed %d: somebody waited %.0f s, the bound is %.0f s", seed, r.MaxWait, bound)
		}
	}
	t.Logf("worst wait: T_max + %.0f s", worst)
}

// TestBatchMakesProgress: a batch line for an absent model is served within the
// batch's own bound though interactive requests keep the residents busy.
func TestBatchMakesProgress(t *testing.T) {
	p := residency.Latency()
	p.BatchMaxWait = 2 * time.Minute
	s := Setup{Workload: "starvation", Seed: 5, policy: p, cold: residency.Batch}
	r, err := Run(s, "carp")
	if err != nil {
		t.Fatal(err)
	}
	if r.BatchMaxWait > 2*60+30 || r.BatchMaxWait == 0 {
		t.Errorf("a batch line waited %.0f s, the bound is 120 s and a swap", r.BatchMaxWait)
	}
	if r.MaxWait > 75 {
		t.Errorf("an interactive request waited %.0f s for it", r.MaxWait)
	}
}

// TestNoNeedlessSwaps: with room for all, nothing is ever swapped.
func TestNoNeedlessSwaps(t *testing.T) {
	s := Setup{Workload: "poisson", Rho: .7, Budget: 40 * residency.GiB, maxModels: 4}
	if r := mean(t, s, "carp", 2); r.Loads > 1 {
		t.Errorf("everything fits, yet %d loads", r.Loads)
	}
}
