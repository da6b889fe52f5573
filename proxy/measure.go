package proxy

import (
	"sync"
	"time"

	"tenure/residency"

	"github.com/ollama/ollama/api"
)

// measures are the figures that advice rests on: what answers really took, by
// task and model. Kept answers are not among them.
type measures struct {
	mu      sync.Mutex
	answers map[taskModel]*figures
	tooLong map[string]int // prompts that did not fit, by model
}

type taskModel struct{ task, model string }

// figures sum up the answers of one task by one model.
type figures struct {
	count   int
	service time.Duration // from seat to last token
	warm    int           // answers that waited for no load
	waited  time.Duration // of the warm ones, for a free slot
	cold    int
	coldly  time.Duration // waited by the cold ones
	largest int           // tokens of a prompt and its answer
	near    int           // answers that took nine tenths of the context or more
}

func (f figures) plus(g *figures) figures {
	f.count += g.count
	f.service += g.service
	f.warm += g.warm
	f.waited += g.waited
	f.cold += g.cold
	f.coldly += g.coldly
	f.largest = max(f.largest, g.largest)
	f.near += g.near
	return f
}

// mean is the time of one answer; zero when there was none.
func (f figures) mean() time.Duration { return f.service / time.Duration(max(f.count, 1)) }

// meter follows the answers to one request: n of them, or one.
type meter struct {
	began   time.Time
	answers int // that came to their end
	tokens  int // of a prompt and its answer, the most of any
}

// line counts a line of an answer.
func (m *meter) line(done bool, took api.Metrics) {
	if done {
		m.answers++
		m.tokens = max(m.tokens, took.PromptEvalCount+took.EvalCount)
	}
}

// served counts an answer that came to its end.
func (m *measures) served(j *job, lease *residency.Lease, meter *meter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answers == nil {
		m.answers = map[taskModel]*figures{}
	}
	key := taskModel{j.decision.Task, j.model.Name}
	f := m.answers[key]
	if f == nil {
		f = &figures{}
		m.answers[key] = f
	}
	f.count++
	f.service += time.Since(meter.began) / time.Duration(max(meter.answers, 1))
	if lease.Cold {
		f.cold++
		f.coldly += lease.Waited
	} else {
		f.warm++
		f.waited += lease.Waited
	}
	f.largest = max(f.largest, meter.tokens)
	if 10*meter.tokens >= 9*j.model.Context {
		f.near++
	}
}

// overflowed counts a prompt that was too long for a model.
func (m *measures) overflowed(model string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tooLong == nil {
		m.tooLong = map[string]int{}
	}
	m.tooLong[model]++
}

// of sums the answers that fit; an empty task or model fits all.
func (m *measures) of(task, model string) (sum figures, tooLong int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, f := range m.answers {
		if (task == "" || key.task == task) && (model == "" || key.model == model) {
			sum = sum.plus(f)
		}
	}
	return sum, m.tooLong[model]
}
