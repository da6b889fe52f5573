package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tenure/cache"
	"tenure/proxy/wire"
)

const (
	// headersAfter is how long a stream's client waits before it is sent
	// headers. Until then a failure has a status of its own; later, clients
	// with a limit for the first byte would leave.
	headersAfter = 10 * time.Second
	// keepAliveEvery is the pause between comments while a stream waits. Some
	// clients fail after 150 of them, which is over half an hour.
	keepAliveEvery = 15 * time.Second
	// flushBytes bounds what is gathered of chunks that are there already.
	flushBytes = 32 << 10
)

// present prepares the answer's headers and encoder. Called again for a
// fallback, it overwrites. The fingerprint is the weights': the same model,
// pulled again, may answer otherwise.
func (x *exchange) present(request ask, digest string, ignored []string, age time.Duration) {
	if x.stamp.ID == "" {
		x.stamp = wire.Stamp{ID: newID(""), Created: time.Now().Unix()}
	}
	if digest != "" {
		x.stamp.Fingerprint = "fp_" + digest[:min(12, len(digest))]
	}
	x.encoder = request.Encoder(x.stamp)
	if x.gin.Writer.Written() {
		x.late = append(x.late, "Tenure-Model: "+x.model, "Tenure-Cause: "+x.cause, "Tenure-Cache: "+x.outcome.String())
		return
	}
	h := x.gin.Writer.Header()
	set(h, "Tenure-Task", x.decision.Task, "Tenure-Confidence", strconv.FormatFloat(x.decision.Confidence, 'f', 2, 64),
		"Tenure-Cause", x.cause, "Tenure-Model", x.model, "Tenure-Cache", x.outcome.String())
	if x.outcome == cache.Hit {
		h.Set("Age", strconv.Itoa(int(age.Seconds())))
	}
	if len(ignored) > 0 {
		h.Set("Tenure-Ignored", strings.Join(ignored, ", "))
	}
}

// set sets headers, given as canonical names and values.
func set(h http.Header, pairs ...string) {
	values := make([]string, len(pairs)/2)
	for i := range values {
		values[i] = pairs[2*i+1]
		h[pairs[2*i]] = values[i : i+1 : i+1]
	}
}

// opened tells how the work of an answer began, if it has.
func (x *exchange) opened(reader *cache.Reader) {
	if a, ok := reader.Opening().(*admission); ok && x.admission != a {
		x.admitted(a)
	}
}

// admitted tells how the job came to its seat: in headers, or late.
func (x *exchange) admitted(a *admission) {
	x.admission = a
	queued := strconv.FormatInt(a.waited.Milliseconds(), 10)
	if x.gin.Writer.Written() {
		x.late = append(x.late, "Tenure-Residency: "+a.seat(), "Tenure-Queued-Ms: "+queued)
		return
	}
	set(x.gin.Writer.Header(), "Tenure-Residency", a.seat(), "Tenure-Queued-Ms", queued)
}

// retract takes back what was said of a seat whose model could not answer.
func (x *exchange) retract() {
	x.admission = nil
	x.gin.Writer.Header().Del("Tenure-Residency")
	x.gin.Writer.Header().Del("Tenure-Queued-Ms")
	x.late = nil
}

// openStream sends the headers of a stream.
func (x *exchange) openStream(contentType string) {
	if x.gin.Writer.Written() {
		return
	}
	set(x.gin.Writer.Header(), "Content-Type", contentType, "Cache-Control", "no-cache", "X-Accel-Buffering", "no")
	x.gin.Writer.WriteHeader(http.StatusOK)
	x.gin.Writer.WriteHeaderNow()
}

// keepAlive tells a client that waits that it is not forgotten.
func (x *exchange) keepAlive(stall time.Duration) error {
	x.openStream(x.encoder.StreamType())
	return x.send(x.encoder.AppendComment(nil, "keep-alive"), stall)
}

// send writes and flushes; a client that takes nothing for stall is given up.
func (x *exchange) send(p []byte, stall time.Duration) error {
	var w http.ResponseWriter = x.gin.Writer
	if inner, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
		w = inner.Unwrap() // gin's own Flush swallows the error
	}
	rc := http.NewResponseController(w)
	if stall > 0 {
		_ = rc.SetWriteDeadline(time.Now().Add(stall)) // a writer without deadlines is a test's
	}
	_, err := x.gin.Writer.Write(p)
	if err == nil {
		err = rc.Flush()
	}
	if timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && timeout.Timeout() {
		return fmt.Errorf("%w: %w", errClientStall, err)
	}
	if err != nil {
		return errClientGone
	}
	return nil
}

// stream writes the answer as server-sent events, chunk by chunk as they come.
func (s *Server) stream(x *exchange, reader *cache.Reader) error {
	x.openStream(x.encoder.StreamType())
	if len(x.late) > 0 {
		x.unsent = x.encoder.AppendComment(x.unsent, strings.Join(x.late, "; "))
	}
	for {
		chunk, err := reader.Next(x.ctx)
		if errors.Is(err, io.EOF) {
			return x.send(x.encoder.AppendEnd(x.unsent), s.cfg.StallTimeout)
		}
		if err != nil {
			return x.readerError(err)
		}
		last := x.count(chunk)
		x.unsent = x.encoder.AppendEvents(x.unsent, chunk)
		// Some clients leave once they have read the finish_reason. It goes out
		// with what ends the answer, so that theirs is whole by then, and kept.
		if last || reader.Ready() && len(x.unsent) < flushBytes {
			continue
		}
		if err := x.send(x.unsent, s.cfg.StallTimeout); err != nil {
			return err
		}
		x.unsent = x.unsent[:0]
	}
}

// failStream ends a stream that has begun with an error event, and never with
// [DONE].
func (s *Server) failStream(x *exchange) {
	if x.firstByte == 0 {
		x.unsent = x.encoder.AppendOpening(x.unsent) // comments were all that was sent
	}
	if err := x.send(x.encoder.AppendErrorEvent(x.unsent, &x.err.Refusal), s.cfg.StallTimeout); err != nil {
		x.err = explain(err)
	}
}
