package residency

// Counters count since the start. Requests reconcile: asked = granted + failed
// + cancelled + waiting, and refused ones were never taken.
type Counters struct {
	Loads          uint64          `json:"loads"`
	LoadFailures   uint64          `json:"load_failures"`
	Unloads        uint64          `json:"unloads"`
	Lost           uint64          `json:"lost"`
	LoadSeconds    float64         `json:"load_seconds"`
	ExposedSeconds float64         `json:"exposed_load_seconds"` // nothing ran though somebody waited
	Evictions      [reasons]uint64 `json:"-"`                    // unloads, indexed by Reason
	Grants         [classes]uint64 `json:"-"`                    // indexed by Class
	Cancelled      uint64          `json:"cancelled"`
	Refused        uint64          `json:"refused"`
	Failed         uint64          `json:"failed"`
	Lingers        uint64          `json:"lingers"`
	Prefetches     uint64          `json:"prefetches"`
	PrefetchHits   uint64          `json:"prefetch_hits"`
	PrefetchMisses uint64          `json:"prefetch_misses"`
	Unsound        uint64          `json:"unsound_plans"` // refused plans: each is a bug in the policy
}
