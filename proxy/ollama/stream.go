package ollama

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"tenure/proxy/alarm"
	"tenure/proxy/wire"

	"github.com/ollama/ollama/api"
)

// maxLine bounds one line of a stream. Ollama's longest are tool calls and the
// last line of a generate, which lists a context's token numbers.
const maxLine = 8 << 20

// Chat runs req as a stream and hands each piece to each, the last one with
// Done set. It returns nil only when that one has come. A piece does not name
// the model, and must not be kept. An error from each ends the stream and is
// returned. Streaming, truncation, shifting and keep_alive of req are
// overruled, see the package comment; req itself is not changed.
func (c *Client) Chat(ctx context.Context, req *api.ChatRequest, each func(*api.ChatResponse) error) error {
	r := *req
	r.Stream, r.Truncate, r.Shift, r.KeepAlive = new(true), new(false), new(false), nil
	body := c.payload()
	var err error
	if body.bytes, err = appendChat(body.bytes, &r); err != nil {
		return err
	}
	var piece api.ChatResponse
	return c.stream(ctx, slot{r.Model, r.Options["num_ctx"]}, "/api/chat", body, func(data []byte) (bool, error) {
		if err := readChat(data, &piece); err != nil {
			return false, err
		}
		return piece.Done, each(&piece)
	})
}

// appendChat is json.Marshal, but for what nearly all of a usual request is, the
// conversation: encoding/json escapes text at a quarter of the speed.
func appendChat(dst []byte, r *api.ChatRequest) ([]byte, error) {
	dst, tail, err := appendFrame(dst, r)
	if err != nil {
		return nil, err
	}
	dst = append(dst, '[')
	for i, m := range r.Messages {
		if i > 0 {
			dst = append(dst, ',')
		}
		if m.Thinking != "" || m.Images != nil || m.ToolCalls != nil || m.ToolName != "" || m.ToolCallID != "" {
			whole, err := json.Marshal(&m)
			if err != nil {
				return nil, fmt.Errorf("encoding a message: %w", err)
			}
			dst = append(dst, whole...)
			continue
		}
		dst = wire.AppendString(append(dst, `{"role":`...), m.Role)
		dst = wire.AppendString(append(dst, `,"content":`...), m.Content)
		dst = append(dst, '}')
	}
	return append(append(dst, ']'), tail...), nil
}

// appendFrame appends what comes before the messages of a request, and returns
// what comes after them.
func appendFrame(dst []byte, r *api.ChatRequest) (head, tail []byte, err error) {
	other := *r
	other.Model, other.Messages, other.Options, other.Stream, other.Truncate, other.Shift = "", nil, nil, nil, nil, nil
	if reflect.ValueOf(other).IsZero() && r.Stream != nil && r.Truncate != nil && r.Shift != nil {
		tail = strconv.AppendBool(append(make([]byte, 0, 256), `,"stream":`...), *r.Stream)
		tail = strconv.AppendBool(append(tail, `,"truncate":`...), *r.Truncate)
		tail = strconv.AppendBool(append(tail, `,"shift":`...), *r.Shift)
		tail = append(tail, `,"options":{`...)
		if tail, err = appendOptions(tail, r.Options); err != nil {
			return nil, nil, err
		}
		tail = append(tail, "}}"...)
		return append(wire.AppendString(append(dst, `{"model":`...), r.Model), `,"messages":`...), tail, nil
	}
	const none = `"messages":null` // stands in no string: there, its quotes are escaped
	other = *r
	other.Messages = nil
	rest, err := json.Marshal(&other)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a chat: %w", err)
	}
	before, after, _ := bytes.Cut(rest, []byte(none))
	return append(append(dst, before...), `"messages":`...), after, nil
}

// appendOptions appends the members of an object, in any order.
func appendOptions(dst []byte, options map[string]any) ([]byte, error) {
	begun := false
	for name, value := range options {
		if begun {
			dst = append(dst, ',')
		}
		begun = true
		dst = append(wire.AppendString(dst, name), ':')
		switch v := value.(type) {
		case int:
			dst = strconv.AppendInt(dst, int64(v), 10)
		case float64:
			dst = strconv.AppendFloat(dst, v, 'g', -1, 64) // of JSON, it is finite
		default:
			other, err := json.Marshal(value)
			if err != nil {
				return nil, fmt.Errorf("encoding %s: %w", name, err)
			}
			dst = append(dst, other...)
		}
	}
	return dst, nil
}

// Generate is Chat for a bare prompt.
func (c *Client) Generate(ctx context.Context, req *api.GenerateRequest, each func(*api.GenerateResponse) error) error {
	r := *req
	r.Stream, r.Truncate, r.Shift, r.KeepAlive = new(true), new(false), new(false), nil
	type line struct {
		api.GenerateResponse
		Error string `json:"error"`
	}
	return c.stream(ctx, slot{r.Model, r.Options["num_ctx"]}, "/api/generate", &r, func(data []byte) (bool, error) {
		var l line
		if err := json.Unmarshal(data, &l); err != nil {
			return false, malformed(err)
		}
		if l.Error != "" {
			return false, &StatusError{Status: http.StatusInternalServerError, Message: l.Error}
		}
		return l.Done, each(&l.GenerateResponse)
	})
}

// Embed returns one unit vector per input. Input that does not fit is a 400.
// It lasts as long as ctx and Limits.First allow: all of it comes at once.
func (c *Client) Embed(ctx context.Context, req *api.EmbedRequest) (*api.EmbedResponse, error) {
	r := *req
	r.Truncate, r.KeepAlive = new(false), nil
	if limit := c.limits(ctx).First; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = c.clock.Context(ctx, limit, ErrFirstByte)
		defer cancel()
	}
	out := new(api.EmbedResponse)
	if err := c.ask(ctx, http.MethodPost, "/api/embed", &r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// malformed is a line that is no JSON: what a cut in the middle of one leaves.
func malformed(err error) error { return fmt.Errorf("%w: %w", ErrAborted, err) }

// stream posts in and hands every line of the answer to each, which says
// whether it was the last one. Whoever leaves early, by ctx or by an error of
// each, closes the connection: Ollama stops at its next token. each must not
// block, because a stream nobody reads holds its model's slot for ever. The
// zero slot is that of a request no model answers.
func (c *Client) stream(ctx context.Context, at slot, path string, in any, each func(line []byte) (last bool, err error)) error {
	if name, ok := ctx.Value(loadedKey{}).(string); ok {
		at.model = name
	}
	name := Canonical(at.model)
	if err := c.free(ctx, name, 1); err != nil {
		return fmt.Errorf("asking %s: %w", path, err)
	}
	began, first := time.Now(), time.Duration(0) // to the first line
	over := false                                // Ollama has ended the answer, or never began one
	defer func() { c.left(name, at, first, over) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := c.watch(c.limits(ctx), cancel)
	defer silence.end()
	body, err := c.open(ctx, http.MethodPost, path, in)
	if err != nil {
		over = ctx.Err() == nil
		return err
	}
	defer body.Close()

	buf, ok := c.lines.Get().(*[4 << 10]byte)
	if !ok {
		buf = new([4 << 10]byte)
	}
	defer c.lines.Put(buf)
	lines := bufio.NewScanner(body)
	lines.Buffer(buf[:], maxLine)
	for lines.Scan() {
		silence.broken()
		if first == 0 {
			first = time.Since(began)
		}
		if len(lines.Bytes()) == 0 {
			continue
		}
		last, err := each(lines.Bytes())
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("reading %s: %w", path, context.Cause(ctx))
		case err != nil:
			_, refused := errors.AsType[*StatusError](err)
			over = refused // its own last word
			return err
		case last:
			over = true
			// To its end, so that the connection can be used again.
			silence.alarm.Set(time.Now().Add(time.Second))
			_, _ = io.Copy(io.Discard, body)
			return nil
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("reading %s: %w", path, context.Cause(ctx))
	}
	if err := lines.Err(); err != nil {
		over = !errors.Is(err, bufio.ErrTooLong)
		return fmt.Errorf("reading %s: %w: %w", path, ErrAborted, err)
	}
	over = true
	return fmt.Errorf("reading %s: %w", path, ErrUnfinished)
}

// silence is the wait for the next line of a stream.
type silence struct {
	limits Limits
	begun  atomic.Bool
	alarm  *alarm.Alarm
}

// watch cancels a stream that is silent beyond its limits.
func (c *Client) watch(l Limits, cancel context.CancelCauseFunc) *silence {
	s := &silence{limits: l}
	s.alarm = c.clock.New(func() {
		if s.begun.Load() {
			cancel(ErrStalled)
		} else {
			cancel(ErrFirstByte)
		}
	})
	if l.First > 0 {
		s.alarm.Set(time.Now().Add(l.First))
	}
	return s
}

// broken tells that a line has come.
func (s *silence) broken() {
	s.begun.Store(true)
	if s.limits.Idle > 0 {
		s.alarm.Set(time.Now().Add(s.limits.Idle))
	} else {
		s.alarm.Stop()
	}
}

func (s *silence) end() { s.alarm.Stop() }
