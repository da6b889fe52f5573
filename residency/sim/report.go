package sim

import (
	"slices"
	"time"

	"tenure/residency"
)

// Result is what one policy made of one workload. Waits (from arrival to start
// of service) and responses are of interactive requests where there are any,
// else of all. LowerBound is the makespan no schedule can beat: all work at
// full speed, or the longest chain of dependent requests.
type Result struct {
	Policy       string  `json:"policy"`
	Workload     string  `json:"workload"`
	Requests     int     `json:"requests"`
	MeanWait     float64 `json:"mean_wait_s"`
	P50Wait      float64 `json:"p50_wait_s"`
	P95Wait      float64 `json:"p95_wait_s"`
	P99Wait      float64 `json:"p99_wait_s"`
	MaxWait      float64 `json:"max_wait_s"`
	MeanResponse float64 `json:"mean_response_s"`
	Loads        int     `json:"loads"` // after the models present at start
	ExposedLoad  float64 `json:"exposed_load_s"`
	Makespan     float64 `json:"makespan_s"`
	TasksPerHour float64 `json:"tasks_per_hour"`
	LowerBound   float64 `json:"lower_bound_ratio"` // makespan over the bound
	T0Evictions  int     `json:"t0_evictions"`
	Overcommits  int     `json:"overcommits"`

	BatchMakespan float64 `json:"batch_makespan_s,omitempty"` // of the batch lines beside interactive ones
	BatchRatio    float64 `json:"batch_lower_bound_ratio,omitempty"`
	BatchMaxWait  float64 `json:"batch_max_wait_s,omitempty"`
	Refused       int     `json:"refused,omitempty"`
	Events        int     `json:"events"`
	Prefetches    int     `json:"prefetches,omitempty"`

	waits []float64 // sorted, for the plot
}

// recorder keeps what happened to requests.
type recorder struct {
	open        int // arrived, not started
	finished    int
	startedN    int
	loads, t0   int
	overcommits int
	refusedN    int
	exposed     time.Duration
	end         time.Duration
	batchEnd    time.Duration
	batchWork   time.Duration
	waits       [2][]float64
	response    [2]float64
	grants      []grantAt // kept only on demand
	keep        bool
}

type grantAt struct {
	id int
	at time.Duration
}

func (r *recorder) arrived(time.Duration, request) { r.open++ }

func (r *recorder) started(now time.Duration, q request) {
	r.open--
	r.startedN++
	r.waits[q.class] = append(r.waits[q.class], (now - q.at).Seconds())
	if r.keep {
		r.grants = append(r.grants, grantAt{q.id, now})
	}
}

func (r *recorder) refused(request) {
	r.open--
	r.refusedN++
}

func (r *recorder) ended(now time.Duration, q request) {
	r.finished++
	r.end = now
	r.response[q.class] += (now - q.at).Seconds()
	if q.class == residency.Batch {
		r.batchEnd = now
		r.batchWork += q.work
	}
}

func quantile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// result sums up; loads0 and e0 are what the warm-up took.
func (r *recorder) result(s Setup, policy string, src *source, loads0 int) Result {
	c := residency.Interactive
	if len(r.waits[c]) == 0 {
		c = residency.Batch
	}
	w := r.waits[c]
	slices.Sort(w)
	mean := 0.0
	for _, x := range w {
		mean += x
	}
	n := max(float64(len(w)), 1)
	makespan := (r.end - settle).Seconds()
	bound := max(src.work.Seconds()/s.speedup(), src.chain.Seconds(), (src.lastAt - settle).Seconds())
	res := Result{
		Policy: policy, Workload: s.Workload, Requests: r.finished,
		MeanWait: mean / n, P50Wait: quantile(w, .5), P95Wait: quantile(w, .95), P99Wait: quantile(w, .99), MaxWait: quantile(w, 1),
		MeanResponse: r.response[c] / n, Loads: r.loads - loads0, ExposedLoad: r.exposed.Seconds(),
		Makespan: makespan, TasksPerHour: float64(r.finished) / makespan * 3600, LowerBound: makespan / bound,
		T0Evictions: r.t0, Overcommits: r.overcommits, Refused: r.refusedN, waits: w,
	}
	if b := r.waits[residency.Batch]; len(b) > 0 {
		slices.Sort(b)
		res.BatchMakespan = (r.batchEnd - settle).Seconds()
		res.BatchRatio = res.BatchMakespan / (r.batchWork.Seconds() / s.speedup())
		res.BatchMaxWait = quantile(b, 1)
	}
	return res
}
