package residency

// ledger knows how large models are and how much room there is.
type ledger struct {
	budget       Bytes
	maxModels    int
	margin       Bytes
	measured     map[sizeKey]Bytes
	foreign      Bytes
	foreignCount int
	available    Bytes // to all models, by the driver's account
}

// sizeKey is what a model's memory depends on: the weights, and the cache of
// every slot's context.
type sizeKey struct {
	name    string
	context int
	slots   int
}

func newLedger(cfg Config) ledger {
	return ledger{budget: cfg.Budget, maxModels: cfg.MaxModels, margin: cfg.Margin, measured: map[sizeKey]Bytes{}, available: Unlimited}
}

func keyOf(m Model) sizeKey { return sizeKey{m.Name, m.Context, max(m.Slots, 1)} }

// size is the last measurement plus the margin, else the estimate.
func (l *ledger) size(m Model) (size Bytes, measured bool) {
	if size, ok := l.measured[keyOf(m)]; ok {
		return size, true
	}
	return m.Size, false
}

// measure records what a load really took.
func (l *ledger) measure(m Model, size Bytes) {
	if size > 0 {
		l.measured[keyOf(m)] = size + l.margin
	}
}

// limits is what foreign models leave of the budget, or of what the driver has
// for models if that is less.
func (l *ledger) limits() (Bytes, int) {
	budget := min(l.budget, l.available)
	return budget - min(l.foreign, budget), max(l.maxModels-l.foreignCount, 0)
}
