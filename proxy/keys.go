package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tenure/residency"
)

// match returns the last holder whose key secret is. It takes the same time
// for every secret.
func match(all []*holder, secret string) (*holder, bool) {
	hash := sha256.Sum256([]byte(secret))
	at := -1
	for i, h := range all {
		if subtle.ConstantTimeCompare(h.Hash[:], hash[:]) == 1 {
			at = i
		}
	}
	if at < 0 {
		return nil, false
	}
	return all[at], true
}

// busyRetry is when a client with too many requests at once may try again:
// about as long as an answer takes.
const busyRetry = 2 * time.Second

// enter counts a request against its key's limits, and tells in the answer's
// headers what is left of them. What only reads costs nothing.
func (x *exchange) enter(h *holder) error {
	x.holder, x.tenant = h, h.tenant()
	if x.gin.Request.Method != http.MethodPost {
		h.tell(x.gin.Writer.Header(), x.started)
		return nil
	}
	if h.active.Add(1) > int64(h.Concurrency) && h.Concurrency > 0 {
		h.active.Add(-1)
		h.tell(x.gin.Writer.Header(), x.started)
		return limited(busyRetry, fmt.Sprintf("Too many requests at once: this key's limit is %d. Wait for one to end.", h.Concurrency))
	}
	x.leave = func() { h.active.Add(-1) }
	allowed := h.limiter == nil || h.limiter.AllowN(x.started, 1)
	h.tell(x.gin.Writer.Header(), x.started)
	if allowed {
		return nil
	}
	wait := h.until(1, x.started)
	return limited(wait, fmt.Sprintf("Rate limit reached: this key's limit is %d requests a minute. Try again in %d s.", h.RPM, retryAfter(wait)))
}

// tell writes what is left of a key's requests, as OpenAI does.
func (h *holder) tell(header http.Header, now time.Time) {
	if h.limiter == nil {
		return
	}
	// A bucket that was filled by fractions may lack a trace of a whole token.
	left := math.Floor(max(h.limiter.TokensAt(now), 0) + 1e-6)
	header.Set("X-Ratelimit-Limit-Requests", strconv.Itoa(h.RPM))
	header.Set("X-Ratelimit-Remaining-Requests", strconv.Itoa(int(left)))
	header.Set("X-Ratelimit-Reset-Requests", h.until(float64(h.RPM), now).String())
}

// until is how long it takes to have so many requests left, in whole
// milliseconds.
func (h *holder) until(requests float64, now time.Time) time.Duration {
	missing := max(requests-h.limiter.TokensAt(now), 0)
	d := time.Duration(missing / float64(h.limiter.Limit()) * float64(time.Second))
	return (d + time.Millisecond - time.Microsecond).Truncate(time.Millisecond)
}

func limited(retry time.Duration, message string) error {
	p := problem(nil, outcomeLimited, http.StatusTooManyRequests, "rate_limit_exceeded", retry, message)
	p.Refusal.Type = "requests"
	return p
}

// permit refuses a model that the request's key may not use, whether or not
// there is such a model: nothing is told about it.
func (s *Server) permit(x *exchange, model string) error {
	if s.mayUse(x.holder, model) {
		return nil
	}
	p := problem(nil, outcomeKey, http.StatusForbidden, "model_not_found", 0,
		fmt.Sprintf("This key does not have access to the model %q. GET /v1/models lists those that it may use.", clip(model)))
	p.Refusal.Param = "model"
	return p
}

// mayUse reports whether a key may ask for a model, in any of the model's
// spellings. Which model answers is the router's business: whoever may ask for
// a task gets the task's model, and its fallbacks.
func (s *Server) mayUse(h *holder, model string) bool {
	if h == nil || h.Models == nil {
		return true
	}
	name := s.router.Canonical(model)
	for _, pattern := range h.Models {
		if !strings.Contains(pattern, "*") && s.router.Canonical(pattern) == name || glob(strings.ToLower(pattern), name) {
			return true
		}
	}
	return false
}

// glob reports whether name is pattern, in which * stands for anything, slashes
// included.
func glob(pattern, name string) bool {
	first, rest, ok := strings.Cut(pattern, "*")
	if !ok {
		return pattern == name
	}
	name, ok = strings.CutPrefix(name, first)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "*")
	last := len(parts) - 1
	for _, part := range parts[:last] {
		if _, name, ok = strings.Cut(name, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(name, parts[last])
}

// urgency is a request's class, and batch at best for a key of batch work.
func (x *exchange) urgency(c residency.Class) residency.Class {
	if x.holder != nil && x.holder.class() == residency.Batch {
		return residency.Batch
	}
	return c
}
