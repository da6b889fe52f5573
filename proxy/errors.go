package proxy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/residency"
	"tenure/routing"
)

// Outcomes of a request, as logs and metrics name them: ok, or whose fault it
// was.
const (
	outcomeOK        = "ok"
	outcomeCaller    = "caller_invalid_request"
	outcomeUnknown   = "caller_model_unknown"
	outcomeCancelled = "caller_cancelled"
	outcomeStalled   = "caller_stalled"
	outcomeKey       = "policy_key"
	outcomeLimited   = "policy_rate_limited"
	outcomeFull      = "policy_queue_full"
	outcomeQueued    = "policy_queue_timeout"
	outcomeRefused   = "upstream_refused"
	outcomeBusy      = "upstream_busy"
	outcomeBroken    = "upstream_breaker_open"
	outcomeError     = "upstream_error"
	outcomeAborted   = "upstream_aborted"
	outcomeLoad      = "upstream_load_failed"
	outcomeLoadTime  = "upstream_timeout_load"
	outcomeFirstByte = "upstream_timeout_first_byte"
	outcomeIdle      = "upstream_timeout_idle"
	outcomeTotal     = "upstream_timeout_total"
	outcomeTimeout   = "upstream_timeout_other"
	outcomeStopping  = "proxy_stopping"
	outcomeInternal  = "proxy_internal"
)

// statusClientGone marks requests whose client left; it is logged, never sent.
const statusClientGone = 499

// Error is what a client may see, and what of it only the log sees.
type Error struct {
	Refusal    wire.Error // what is written
	Outcome    string
	RetryAfter time.Duration // zero: no Retry-After
	Final      bool          // the same, asked again soon, would fail the same way; OpenAI's clients are told
	Err        error         // for the log
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return e.Refusal.Message
}

func (e *Error) Unwrap() error { return e.Err }

// append appends the error in the form that the request's client reads.
func (e *Error) append(dst []byte, r *http.Request) []byte {
	if isNative(r) {
		return e.Refusal.AppendNative(dst)
	}
	return e.Refusal.AppendJSON(dst)
}

// Causes with which the pipeline ends work.
var (
	errQueueTimeout = errors.New("proxy: waited too long for a seat")
	errTotalTimeout = errors.New("proxy: the answer took too long")
	errWholeTimeout = errors.New("proxy: the whole answer took too long")
	errUndone       = errors.New("proxy: the work did not come to its end")
	errClientGone   = errors.New("proxy: client left")
	errClientStall  = errors.New("proxy: client stopped reading")
	errDraining     = errors.New("proxy: shutting down")
)

// queueTimeoutError is errQueueTimeout with the wait that is now expected.
type queueTimeoutError struct{ retry time.Duration }

func (e *queueTimeoutError) Error() string { return errQueueTimeout.Error() }

func (e *queueTimeoutError) Unwrap() error { return errQueueTimeout }

// tooLongError means that the prompt fits no model of the task.
type tooLongError struct{ param string } // where the prompt stands in the request

func (e *tooLongError) Error() string { return "proxy: the prompt fits no model of the task" }

// overflow reports whether Ollama refused a prompt for its length.
func overflow(err error) bool {
	s, ok := errors.AsType[*ollama.StatusError](err)
	return ok && strings.Contains(s.Message, "exceeds the context length")
}

// runnerDied reports an answer that ended because its model's process did, in
// Ollama's words.
func runnerDied(err error) bool {
	s, ok := errors.AsType[*ollama.StatusError](err)
	return ok && (strings.Contains(s.Message, "runner process") || strings.Contains(s.Message, "runner has unexpectedly stopped") ||
		strings.Contains(s.Message, "error was encountered while running the model"))
}

// diedFirst reports work that may be done again, if nothing of its answer has
// come: the model's process died, or the connection. What ran into a clock may
// still run, and what was refused would be refused again.
func diedFirst(err error) bool {
	if _, load := errors.AsType[*residency.LoadError](err); load {
		return false // it was tried several times
	}
	return runnerDied(err) || errors.Is(err, ollama.ErrAborted) && !errors.Is(err, ollama.ErrUnfinished)
}

// fallback is why an error sends its request to the task's next model; empty
// when it does not.
func fallback(err error) (cause string) {
	if overflow(err) {
		return routing.Context
	}
	if _, ok := errors.AsType[*brokenError](err); ok {
		return routing.Broken
	}
	if _, ok := errors.AsType[*residency.LoadError](err); ok && !errors.Is(err, ollama.ErrUnreachable) {
		return routing.Unloadable
	}
	return ""
}

// explain turns any error into what its client is told. It is the only place
// where errors meet HTTP.
func explain(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return &Error{Refusal: *e, Outcome: outcomeCaller}
	}
	if e, ok := errors.AsType[*routing.ModelError](err); ok {
		return unknownModel(e)
	}
	if e, ok := errors.AsType[*residency.QueueFullError](err); ok {
		return problem(err, outcomeFull, http.StatusTooManyRequests, "queue_full", e.RetryAfter,
			"Too many requests wait for this model. Try again later.")
	}
	if e, ok := errors.AsType[*residency.LoadError](err); ok {
		return loadFailed(e)
	}
	if e, ok := errors.AsType[*brokenError](err); ok {
		return problem(err, outcomeBroken, http.StatusServiceUnavailable, "model_unavailable", e.retry,
			fmt.Sprintf("The model %s failed several times in a row and is given a rest. Try again later.", e.model))
	}
	if e, ok := errors.AsType[*ollama.StatusError](err); ok {
		return upstream(e)
	}
	if e, ok := errors.AsType[*tooLongError](err); ok {
		p := problem(err, outcomeCaller, http.StatusBadRequest, "context_length_exceeded", 0,
			"What '"+e.param+"' holds exceeds the model's maximum context length, and no model for this task has more room.")
		p.Refusal.Param = e.param
		return p
	}
	if e, ok := errors.AsType[*queueTimeoutError](err); ok {
		return problem(err, outcomeQueued, http.StatusTooManyRequests, "queue_timeout", e.retry,
			fmt.Sprintf("The model did not become free in time. The wait is now expected to be about %d s. Try again later.", retryAfter(e.retry)))
	}
	switch {
	case errors.Is(err, errWholeTimeout):
		p := problem(err, outcomeTotal, http.StatusGatewayTimeout, "total_timeout", 0,
			"The whole answer was not there in time (TENURE_WHOLE_TIMEOUT). Ask for a stream, or for fewer tokens.")
		p.Final = true
		return p
	case errors.Is(err, residency.ErrTooBig):
		return problem(err, outcomeCaller, http.StatusBadRequest, "model_too_large", 0,
			"This model does not fit into GPU memory.")
	case errors.Is(err, errDraining), errors.Is(err, cache.ErrClosed), errors.Is(err, residency.ErrClosed):
		return problem(err, outcomeStopping, http.StatusServiceUnavailable, "shutting_down", 3*time.Second,
			"The server is shutting down. Try again in a moment.")
	case errors.Is(err, ollama.ErrUnreachable):
		return problem(err, outcomeRefused, http.StatusServiceUnavailable, "upstream_unreachable", 5*time.Second,
			"Ollama cannot be reached. Try again in a moment.")
	case errors.Is(err, ollama.ErrFirstByte):
		return problem(err, outcomeFirstByte, http.StatusGatewayTimeout, "first_byte_timeout", 0,
			"The model did not begin its answer in time.")
	case errors.Is(err, ollama.ErrStalled):
		return problem(err, outcomeIdle, http.StatusGatewayTimeout, "idle_timeout", 0,
			"The model fell silent within its answer.")
	case errors.Is(err, errTotalTimeout):
		return problem(err, outcomeTotal, http.StatusGatewayTimeout, "total_timeout", 0,
			"The model did not finish its answer in time.")
	case errors.Is(err, context.DeadlineExceeded):
		return problem(err, outcomeTimeout, http.StatusGatewayTimeout, "upstream_timeout", 0, "Ollama did not answer in time.")
	case errors.Is(err, ollama.ErrAborted):
		return problem(err, outcomeAborted, http.StatusBadGateway, "upstream_aborted", 0,
			"The model stopped before its answer was complete.")
	case errors.Is(err, errClientStall), errors.Is(err, cache.ErrLagged):
		return problem(err, outcomeStalled, statusClientGone, "client_stalled", 0, "The client stopped reading.")
	case errors.Is(err, errClientGone), errors.Is(err, context.Canceled):
		return problem(err, outcomeCancelled, statusClientGone, "client_closed_request", 0, "The client closed the connection.")
	}
	return problem(err, outcomeInternal, http.StatusInternalServerError, "internal_error", 0,
		"An internal error occurred. The log tells more under this request's id.")
}

func problem(err error, outcome string, status int, code string, retry time.Duration, message string) *Error {
	kind := "server_error"
	switch {
	case status == http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case status < http.StatusInternalServerError:
		kind = "invalid_request_error"
	}
	return &Error{
		Refusal: wire.Error{Status: status, Type: kind, Code: code, Message: message},
		Outcome: outcome, RetryAfter: retry, Err: err,
	}
}

func unknownModel(e *routing.ModelError) *Error {
	if errors.Is(e, routing.ErrNotHeard) {
		return problem(e.Err, outcomeRefused, http.StatusServiceUnavailable, "upstream_unreachable", 5*time.Second,
			"Ollama has not been reached yet, so its models are not known. Try again in a moment.")
	}
	message := fmt.Sprintf("The model %q does not exist. GET /v1/models lists those that do.", clip(e.Asked))
	if e.Pull != "" {
		message = fmt.Sprintf("The model %q is not on the server. Run: ollama pull %s", clip(e.Asked), e.Pull)
	}
	p := problem(e.Err, outcomeUnknown, http.StatusNotFound, "model_not_found", 0, message)
	p.Refusal.Param = "model"
	return p
}

// clip bounds what of a client's text is sent back.
func clip(s string) string {
	if len(s) > 128 {
		return strings.ToValidUTF8(s[:128], "") + "…"
	}
	return s
}

func loadFailed(e *residency.LoadError) *Error {
	if errors.Is(e.Err, ollama.ErrUnreachable) {
		return explain(e.Err)
	}
	if errors.Is(e.Err, context.DeadlineExceeded) {
		p := problem(e, outcomeLoadTime, http.StatusGatewayTimeout, "model_load_timeout", 0,
			fmt.Sprintf("The model %s was not loaded in time.", e.Model))
		p.Final = true
		return p
	}
	p := problem(e, outcomeLoad, http.StatusBadGateway, "model_load_failed", 0,
		fmt.Sprintf("The model %s could not be loaded.", e.Model))
	p.Final = true // the next attempt is some time off
	if s, ok := errors.AsType[*ollama.StatusError](e.Err); ok {
		p.Refusal.Message = fmt.Sprintf("The model %s could not be loaded: %s", e.Model, s.Message)
	}
	return p
}

// upstream says what Ollama's own refusal means to a client.
func upstream(e *ollama.StatusError) *Error {
	switch {
	case strings.Contains(e.Message, "invalid JSON schema"):
		p := problem(e, outcomeCaller, http.StatusBadRequest, "invalid_json_schema", 0, "The response format's schema cannot be used.")
		p.Refusal.Param = "response_format"
		return p
	case strings.Contains(e.Message, "NaN"): // of an embedding; older versions answer 500
		return problem(e, outcomeError, http.StatusBadGateway, "upstream_error", 0, "The model failed: its vector is no vector of numbers.")
	case e.Status == http.StatusBadRequest:
		return problem(e, outcomeCaller, http.StatusBadRequest, "invalid_value", 0, "The model refused the request: "+e.Message)
	case e.Status == http.StatusNotFound:
		p := problem(e, outcomeUnknown, http.StatusNotFound, "model_not_found", 0, "The model has gone from the server: "+e.Message)
		p.Refusal.Param = "model"
		return p
	case e.Status == http.StatusServiceUnavailable:
		return problem(e, outcomeBusy, http.StatusTooManyRequests, "upstream_busy", 5*time.Second,
			"Ollama's own queue is full. Try again later.")
	}
	return problem(e, outcomeError, http.StatusBadGateway, "upstream_error", 0, "The model failed: "+e.Message)
}

// retryAfter is a wait as the Retry-After header has it: whole seconds from 1
// to 60. Clients ignore, or misread, what lies outside.
func retryAfter(d time.Duration) int {
	return int(min(max(math.Ceil(d.Seconds()), 1), 60))
}

// retryAfterMs is the same wait as OpenAI's clients prefer it: not rounded up
// to a second, and still no invitation to hammer.
func retryAfterMs(d time.Duration) int64 {
	return min(max(d, 100*time.Millisecond), time.Minute).Milliseconds()
}
