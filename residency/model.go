package residency

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Bytes is an amount of GPU memory.
type Bytes uint64

// Binary units.
const (
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String renders b with one decimal in the largest fitting unit, as "5.6 GiB".
func (b Bytes) String() string {
	switch {
	case b >= GiB:
		return strconv.FormatFloat(float64(b)/float64(GiB), 'f', 1, 64) + " GiB"
	case b >= MiB:
		return strconv.FormatFloat(float64(b)/float64(MiB), 'f', 1, 64) + " MiB"
	}
	return strconv.FormatUint(uint64(b), 10) + " B"
}

// Tier says how strong a model's claim to GPU memory is.
type Tier uint8

// Only T0 is a hard rule: once resident it is never a victim. T1 models come
// back when the GPU is idle, T2 models are borrowed. Between those two, demand
// decides and the tier only breaks ties.
const (
	T0 Tier = iota
	T1
	T2
)

// String returns "T0", "T1" or "T2".
func (t Tier) String() string { return "T" + strconv.Itoa(int(t)) }

// MarshalText is the inverse of UnmarshalText.
func (t Tier) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads "T0", "T1" or "T2".
func (t *Tier) UnmarshalText(text []byte) error {
	switch string(text) {
	case "T0":
		*t = T0
	case "T1":
		*t = T1
	case "T2":
		*t = T2
	default:
		return fmt.Errorf("tier %q: want T0, T1 or T2", text)
	}
	return nil
}

// Class is how urgent a request is.
type Class uint8

// Interactive requests go first and are bounded by Config.MaxWait. A whole
// queue of batch requests never outweighs an interactive one.
const (
	Interactive Class = iota
	Batch
	classes = 2
)

// String returns "interactive" or "batch".
func (c Class) String() string {
	if c == Batch {
		return "batch"
	}
	return "interactive"
}

// MarshalText returns String.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// ClassOf maps OpenAI's service_tier to a class: "flex" is batch work, all
// else ("priority", "default", "auto", "") is interactive.
func ClassOf(serviceTier string) Class {
	if serviceTier == "flex" {
		return Batch
	}
	return Interactive
}

// Phase is where a model stands between disk and GPU memory.
type Phase uint8

// A model holds memory in every phase but Absent. A Closing model is a victim:
// it admits nobody and drains.
const (
	Absent Phase = iota
	Loading
	Ready
	Closing
	Unloading
)

// String returns the phase in lower case.
func (p Phase) String() string {
	switch p {
	case Absent:
		return "absent"
	case Loading:
		return "loading"
	case Ready:
		return "ready"
	case Closing:
		return "closing"
	case Unloading:
		return "unloading"
	}
	return "phase " + strconv.Itoa(int(p))
}

// MarshalText returns String.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Model is a model as it would be loaded. Name identifies it; Size and
// LoadTime are first estimates that measurements replace, kept per
// (Name, Context, Slots).
type Model struct {
	Name     string        `json:"name"`
	Size     Bytes         `json:"size_bytes"`
	Tier     Tier          `json:"tier"`
	Context  int           `json:"context"` // tokens per slot it is loaded with
	Slots    int           `json:"slots"`   // requests in flight at once; 0 means 1
	LoadTime time.Duration `json:"load_time_ns"`
}

// Loader moves models in and out of GPU memory. Load blocks until the model
// answers and returns the memory it really takes (0: not known). Unload blocks
// until it is confirmed gone and its memory is back. An error that wraps
// ErrPermanent is not worth a second try.
type Loader interface {
	Load(ctx context.Context, m Model) (Bytes, error)
	Unload(ctx context.Context, m Model) error
}

// Errors of Acquire and Unload, to be tested with errors.Is.
var (
	ErrQueueFull = errors.New("residency: queue full")
	ErrTooBig    = errors.New("residency: model does not fit in GPU memory")
	ErrClosed    = errors.New("residency: scheduler closed")
	ErrPinned    = errors.New("residency: model is always loaded")
	ErrBusy      = errors.New("residency: model is in use")
	ErrAbsent    = errors.New("residency: model is not resident")
	ErrPermanent = errors.New("residency: permanent failure")
	// ErrLoadTimeout is the cause with which a load is ended after
	// Config.LoadTimeout. It matches context.DeadlineExceeded.
	ErrLoadTimeout = fmt.Errorf("residency: load took too long: %w", context.DeadlineExceeded)
)

// QueueFullError refuses a request and says when to come back. It matches
// ErrQueueFull.
type QueueFullError struct{ RetryAfter time.Duration }

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%v, try again in %v", ErrQueueFull, e.RetryAfter.Round(time.Second))
}

// Is makes errors.Is(err, ErrQueueFull) true.
func (e *QueueFullError) Is(target error) bool { return target == ErrQueueFull }

// LoadError ends the wait of everybody queued for a model that would not load.
type LoadError struct {
	Model string
	Err   error
}

func (e *LoadError) Error() string { return "loading " + e.Model + ": " + e.Err.Error() }

// Unwrap returns what the Loader said.
func (e *LoadError) Unwrap() error { return e.Err }

// Reason says why models were moved.
type Reason uint8

// Reasons for a load or an eviction.
const (
	NoReason   Reason = iota
	Room              // it was asked for and there was room
	Idle              // the GPU or the victims had nothing to do
	Rent              // waiting had cost more than the swap
	Overdue           // somebody had waited for MaxWait
	Prefetch          // a declared workflow needs it next
	Preloaded         // Preload asked for it
	Returned          // a kept-warm model came back on an idle GPU
	Operator          // Unload asked for it
	Overcommit        // a model measured larger than its estimate
	reasons    = iota
)

// String returns the reason in lower case.
func (r Reason) String() string {
	return [...]string{"none", "room", "idle", "rent", "overdue", "prefetch", "preload", "return", "operator", "overcommit"}[r]
}

// MarshalText returns String.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Action is what a Decision did.
type Action string

// Actions, in the order a swap goes through them.
const (
	ActClose      Action = "close"       // a victim admits nobody any more
	ActReopen     Action = "reopen"      // the swap was called off before the victim was unloaded
	ActUnload     Action = "unload"      // the victim is idle, its unload begins
	ActUnloaded   Action = "unloaded"    // confirmed gone
	ActLoad       Action = "load"        // the load begins
	ActLoaded     Action = "loaded"      // ready
	ActLoadFail   Action = "load_failed" // will be tried again at RetryAt
	ActUnloadFail Action = "unload_failed"
	ActFail       Action = "fail"   // the queue was failed after the last try
	ActRefuse     Action = "refuse" // a request was turned away
	ActLinger     Action = "linger" // a swap waits a little: a request for the resident is likely
	ActLost       Action = "lost"   // the model vanished without us
)

// Decision tells what the book did and why. It names models and counts,
// nothing of any request's content.
type Decision struct {
	At        time.Time     `json:"at"`
	Action    Action        `json:"action"`
	Model     string        `json:"model"`
	For       string        `json:"for,omitempty"` // the model that needs the room
	Reason    Reason        `json:"reason"`
	Waiting   int           `json:"waiting"`       // interactive requests queued for the model that gains
	WaitingB  int           `json:"waiting_batch"` // batch requests queued for it
	Rent      float64       `json:"rent_s"`        // request-seconds it has waited
	Threshold float64       `json:"threshold_s"`   // request-seconds a swap was worth
	Size      Bytes         `json:"size_bytes,omitempty"`
	Took      time.Duration `json:"took_ns,omitempty"`
	Err       string        `json:"err,omitempty"`
}
