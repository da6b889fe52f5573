package proxy

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// Breaking says when a model is given a rest.
type Breaking struct {
	Faults int           // in a row, of answers and loads; 0: never
	Pause  time.Duration // until one request may try again
}

// brokenError refuses a request to a model that is given a rest.
type brokenError struct {
	model string
	retry time.Duration
}

func (e *brokenError) Error() string {
	return "proxy: " + e.model + " failed too often and is given a rest"
}

// breakers are one circuit breaker a model. After so many faults in a row the
// model is asked nothing for a while; then one request tries.
type breakers struct {
	cfg    Breaking
	opened func(model string)

	mu      sync.Mutex
	byModel map[string]*breaker
}

type breaker struct {
	circuit *gobreaker.TwoStepCircuitBreaker[struct{}]

	mu     sync.Mutex
	since  time.Time // of the state
	opened int       // how often
}

func newBreakers(cfg Breaking, opened func(model string)) *breakers {
	return &breakers{cfg: cfg, opened: opened, byModel: map[string]*breaker{}}
}

// of returns a model's breaker; nil when there is none.
func (b *breakers) of(model string) *breaker {
	if b.cfg.Faults <= 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := b.byModel[model]; k != nil {
		return k
	}
	k := &breaker{since: time.Now()}
	k.circuit = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: model, Timeout: b.cfg.Pause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return int(n.ConsecutiveFailures) >= b.cfg.Faults },
		IsExcluded:  func(err error) bool { return err != nil && !ofModel(err) },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.since = time.Now()
			if to == gobreaker.StateOpen {
				k.opened++
				b.opened(model)
			}
		},
	})
	b.byModel[model] = k
	return k
}

// ofModel reports a fault of the model, not of its caller, of a limit, of the
// network, of Ollama as a whole, or of us. A model that dies while it answers is
// reported by Ollama; an answer that breaks off without a word was cut on its
// way, as all models' would be, or for repeating itself, which is the prompt's
// doing. One that takes too long in all was asked to be long.
func ofModel(err error) bool {
	switch explain(err).Outcome {
	case outcomeError, outcomeLoad, outcomeLoadTime, outcomeFirstByte, outcomeIdle:
		return true
	}
	return false
}

// refused returns why a model may not be asked now, or nil. Requests that wait
// while the breaker opens ask again when they have a seat.
func (b *breakers) refused(model string) error {
	if k := b.of(model); k != nil && k.circuit.State() == gobreaker.StateOpen {
		return b.broken(model, k)
	}
	return nil
}

// allow takes leave to ask a model. The request's end is reported to done.
func (b *breakers) allow(model string) (done func(error), err error) {
	k := b.of(model)
	if k == nil {
		return func(error) {}, nil
	}
	if done, err = k.circuit.Allow(); err != nil {
		return nil, b.broken(model, k)
	}
	return done, nil
}

// failed reports a request that did not come to be asked.
func (b *breakers) failed(model string, err error) {
	if done, refused := b.allow(model); refused == nil {
		done(err)
	}
}

func (b *breakers) broken(model string, k *breaker) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &brokenError{model: model, retry: max(b.cfg.Pause-time.Since(k.since), time.Second)}
}

// Breaker is the state of a model's circuit breaker: "closed" while it is
// asked, "open" while it is given a rest, "half-open" while one request tries.
type Breaker struct {
	Model  string    `json:"model"`
	State  string    `json:"state"`
	Since  time.Time `json:"since"`
	Faults int       `json:"faults"` // in a row, while closed
	Opened int       `json:"opened"` // how often it has opened
}

// state lists the breakers of the models that were asked, by name.
func (b *breakers) state() []Breaker {
	b.mu.Lock()
	all := maps.Clone(b.byModel)
	b.mu.Unlock()
	list := []Breaker{}
	for _, model := range slices.Sorted(maps.Keys(all)) {
		k := all[model]
		state, counts := k.circuit.State(), k.circuit.Counts()
		k.mu.Lock()
		list = append(list, Breaker{Model: model, State: state.String(), Since: k.since, Faults: int(counts.ConsecutiveFailures), Opened: k.opened})
		k.mu.Unlock()
	}
	return list
}

// Describe implements prometheus.Collector.
func (b *breakers) Describe(ch chan<- *prometheus.Desc) {
	ch <- breakerDesc
	ch <- openedDesc
}

// Collect implements prometheus.Collector.
func (b *breakers) Collect(ch chan<- prometheus.Metric) {
	levels := []string{gobreaker.StateClosed.String(), gobreaker.StateHalfOpen.String(), gobreaker.StateOpen.String()}
	for _, k := range b.state() {
		ch <- prometheus.MustNewConstMetric(breakerDesc, prometheus.GaugeValue, float64(slices.Index(levels, k.State)), k.Model)
		ch <- prometheus.MustNewConstMetric(openedDesc, prometheus.CounterValue, float64(k.Opened), k.Model)
	}
}
