package proxy

import (
	"strconv"
	"sync"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/residency"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are what GET /metrics tells. Labels take few values: tasks and
// models of the catalog and of the server, causes, outcomes.
type metrics struct {
	registry   *prometheus.Registry
	received   prometheus.Counter
	retries    prometheus.Counter
	reconciled *prometheus.CounterVec
	again      *prometheus.CounterVec
	refused    *prometheus.CounterVec
	requests   *prometheus.CounterVec
	took       *prometheus.HistogramVec
	firstByte  *prometheus.HistogramVec
	queued     *prometheus.HistogramVec
	tokens     *prometheus.CounterVec
	cache      map[cache.Outcome]prometheus.Counter
	tallies    sync.Map // of kind, to *tally
}

// seconds spans a cache hit to a batch behind a load.
var seconds = []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300}

func newMetrics(r *residency.Scheduler, o *ollama.Client) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tenure_requests_received_total", Help: "Requests that reached the API. Less those under way, it is the sum of tenure_requests_total.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tenure_request_retries_total", Help: "Of the requests received, those that their client marked as another try (X-Stainless-Retry-Count). The rest is new demand.",
		}),
		reconciled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_reconciliations_total", Help: "What was noticed of Ollama and put right, by what: restart, vanished, appeared, foreign, cpu, context, pin, runner, wedge, rescue.",
		}, []string{"what"}),
		again: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_answers_tried_again_total", Help: "Answers that were asked for once more because the model's process or Ollama died before the first token.",
		}, []string{"model"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_connections_refused_total", Help: "Connections that were turned away, by the limit they were over: total, address.",
		}, []string{"limit"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_requests_total", Help: "Requests that ended, by what was asked of which model, why that one, and how it ended.",
		}, []string{"route", "task", "model", "cause", "outcome"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tenure_request_seconds", Help: "Time from a request's arrival to its last byte.", Buckets: seconds,
		}, []string{"task"}),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tenure_time_to_first_token_seconds", Help: "Time from a request's arrival to its answer's first token, queue and load included.", Buckets: seconds,
		}, []string{"task", "model"}),
		queued: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tenure_queue_wait_seconds", Help: "Time waited for a seat.", Buckets: seconds,
		}, []string{"model", "seat"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_tokens_total", Help: "Tokens of answers that were sent, by direction; kept answers count like fresh ones.",
		}, []string{"task", "model", "direction"}),
		cache: map[cache.Outcome]prometheus.Counter{},
	}
	cached := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tenure_cache_requests_total", Help: "Answers by where they came from: hit (kept), shared (being made for another), miss, bypass (not cacheable).",
	}, []string{"outcome"})
	for _, o := range []cache.Outcome{cache.Miss, cache.Shared, cache.Hit, cache.Bypass} {
		m.cache[o] = cached.WithLabelValues(o.String())
	}
	revived := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tenure_model_revivals_total", Help: "Models that were loaded anew because Ollama had lost their slot.",
	}, func() float64 { return float64(o.Revived()) })
	for _, short := range []ollama.Shortfall{ollama.ShortContext, ollama.ShortVRAM} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "tenure_model_shortfalls_total", Help: "Loads that got less than was asked for, by of what: context, or vram when part of the model is in main memory.",
			ConstLabels: prometheus.Labels{"short": string(short)},
		}, func() float64 { return float64(o.Shortfalls(short)) }))
	}
	m.registry.MustRegister(revived, m.received, m.retries, m.reconciled, m.again, m.refused, m.requests, m.took, m.firstByte, m.queued, m.tokens, cached,
		residencyCollector{r}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// kind is all that tells the metrics of one request from those of another.
type kind struct{ route, task, model, cause, outcome string }

// tally is where requests of one kind are counted, each looked up once, and
// not before there is something to count.
type tally struct {
	requests           func() prometheus.Counter
	took, firstByte    func() prometheus.Observer
	warm, cold         func() prometheus.Observer // waits for a seat
	prompt, completion func() prometheus.Counter  // tokens
}

func (m *metrics) of(k kind) *tally {
	if t, ok := m.tallies.Load(k); ok {
		return t.(*tally) //nolint:forcetypeassert // nothing else is stored
	}
	counter := func(v *prometheus.CounterVec, labels ...string) func() prometheus.Counter {
		return sync.OnceValue(func() prometheus.Counter { return v.WithLabelValues(labels...) })
	}
	observer := func(v *prometheus.HistogramVec, labels ...string) func() prometheus.Observer {
		return sync.OnceValue(func() prometheus.Observer { return v.WithLabelValues(labels...) })
	}
	t, _ := m.tallies.LoadOrStore(k, &tally{
		requests: counter(m.requests, k.route, k.task, k.model, k.cause, k.outcome),
		took:     observer(m.took, k.task), firstByte: observer(m.firstByte, k.task, k.model),
		warm: observer(m.queued, k.model, "warm"), cold: observer(m.queued, k.model, "cold"),
		prompt: counter(m.tokens, k.task, k.model, "prompt"), completion: counter(m.tokens, k.task, k.model, "completion"),
	})
	return t.(*tally) //nolint:forcetypeassert // nothing else is stored
}

// request counts a request once, when it is over.
func (m *metrics) request(x *exchange, outcome string) {
	t := m.of(kind{x.route, x.decision.Task, x.model, x.cause, outcome})
	t.requests().Inc()
	t.took().Observe(x.age().Seconds())
	if x.cached {
		m.cache[x.outcome].Inc()
	}
	if x.firstByte > 0 {
		t.firstByte().Observe(x.firstByte.Seconds())
	}
	if a := x.admission; a != nil && x.outcome != cache.Shared { // who joins takes no seat
		queued := t.warm
		if a.cold {
			queued = t.cold
		}
		queued().Observe(a.waited.Seconds())
	}
	if x.prompt+x.answer > 0 {
		t.prompt().Add(float64(x.prompt))
		t.completion().Add(float64(x.answer))
	}
}

// residencyCollector reads the scheduler's own books when it is asked.
type residencyCollector struct{ scheduler *residency.Scheduler }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tenure_"+name, help, labels, nil)
}

var (
	loadsDesc     = desc("model_loads_total", "Models that were loaded.")
	failuresDesc  = desc("model_load_failures_total", "Loads that failed.")
	unloadsDesc   = desc("model_unloads_total", "Models that were unloaded.")
	lostDesc      = desc("models_lost_total", "Models that were gone without having been unloaded.")
	loadSecsDesc  = desc("model_load_seconds_total", "Time spent loading.")
	exposedDesc   = desc("exposed_load_seconds_total", "Load time during which nothing ran though somebody waited.")
	evictionsDesc = desc("evictions_total", "Unloads, by reason.", "reason")
	grantsDesc    = desc("grants_total", "Seats granted, by class of request.", "class")
	endedDesc     = desc("queue_left_total", "Requests that left the queue without a seat, by how: cancelled, refused, failed.", "how")
	residentDesc  = desc("resident_bytes", "GPU memory that a model holds, as the ledger counts it.", "model", "tier", "phase", "measured")
	availableDesc = desc("budget_available_bytes", "Of the budget, what foreign models and other processes leave.")
	foreignDesc   = desc("foreign_bytes", "Memory of models that tenure did not load.", "model")
	budgetDesc    = desc("budget_bytes", "GPU memory that models may take.")
	waitingDesc   = desc("waiting", "Requests that wait for a seat.", "model", "class")
	leasesDesc    = desc("leases", "Seats that are taken.")

	breakerDesc = desc("breaker_state", "Whether a model is asked: 0 closed (it is), 1 half-open (one request tries), 2 open (it is given a rest).", "model")
	openedDesc  = desc("breaker_opened_total", "How often a model's breaker opened.", "model")

	cardDesc  = desc("gpu_memory_bytes", "Memory of a card, by the driver's account.", "gpu", "state")
	takenDesc = desc("gpu_taken_bytes", "Memory of all cards that others than Ollama hold, the driver's share included.")
	loadDesc  = desc("gpu_utilisation_ratio", "Share of the last moments in which a card computed.", "gpu")
	heatDesc  = desc("gpu_temperature_celsius", "Temperature of a card.", "gpu")
	eccDesc   = desc("gpu_memory_errors_total", "Errors of a card's memory since the driver was loaded.", "gpu", "kind")
)

// gpuCollector tells the last look at the cards.
type gpuCollector struct{ server *Server }

func (gpuCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{cardDesc, takenDesc, loadDesc, heatDesc, eccDesc} {
		ch <- d
	}
}

func (c gpuCollector) Collect(ch chan<- prometheus.Metric) {
	c.server.cards.mu.Lock()
	st := c.server.cards.state
	c.server.cards.mu.Unlock()
	tell := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	if st.Source != "" {
		tell(takenDesc, prometheus.GaugeValue, float64(st.Taken))
	}
	for i, card := range st.Cards {
		name := strconv.Itoa(i)
		tell(cardDesc, prometheus.GaugeValue, float64(card.Total), name, "total")
		tell(cardDesc, prometheus.GaugeValue, float64(card.Used), name, "used")
		tell(cardDesc, prometheus.GaugeValue, float64(card.Free), name, "free")
		if card.Utilisation != nil {
			tell(loadDesc, prometheus.GaugeValue, float64(*card.Utilisation)/100, name)
		}
		if card.Temperature != nil {
			tell(heatDesc, prometheus.GaugeValue, float64(*card.Temperature), name)
		}
		if card.ECC != nil {
			tell(eccDesc, prometheus.CounterValue, float64(card.ECC.Corrected), name, "corrected")
			tell(eccDesc, prometheus.CounterValue, float64(card.ECC.Uncorrectable), name, "uncorrected")
		}
	}
}

func (c residencyCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c residencyCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.scheduler.State()
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	n := st.Counters
	count(loadsDesc, float64(n.Loads))
	count(failuresDesc, float64(n.LoadFailures))
	count(unloadsDesc, float64(n.Unloads))
	count(lostDesc, float64(n.Lost))
	count(loadSecsDesc, n.LoadSeconds)
	count(exposedDesc, n.ExposedSeconds)
	count(endedDesc, float64(n.Cancelled), "cancelled")
	count(endedDesc, float64(n.Refused), "refused")
	count(endedDesc, float64(n.Failed), "failed")
	for reason, k := range st.Evictions {
		count(evictionsDesc, float64(k), reason)
	}
	for class, k := range st.Grants {
		count(grantsDesc, float64(k), class)
	}
	gauge(budgetDesc, float64(st.Budget))
	gauge(availableDesc, float64(st.Available))
	gauge(leasesDesc, float64(st.Leases))
	for _, r := range st.Residents {
		gauge(residentDesc, float64(r.Size), r.Model.Name, r.Model.Tier.String(), r.Phase.String(), strconv.FormatBool(r.Measured))
	}
	for name, size := range st.Foreign {
		gauge(foreignDesc, float64(size), name)
	}
	for _, w := range st.Waiting {
		gauge(waitingDesc, float64(w.Count), w.Model, w.Class.String())
	}
}
