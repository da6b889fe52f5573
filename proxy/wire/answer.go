package wire

import (
	"cmp"
	"encoding/binary"
	"iter"
	"strconv"
	"strings"
)

// Encoder writes recorded chunks for one client, as a stream or as one body.
type Encoder interface {
	StreamType() string // Content-Type of a stream

	// AppendEvents appends what one chunk means to a stream; it may be nothing.
	AppendEvents(dst, chunk []byte) []byte
	// AppendEnd appends the end of a stream that went well.
	AppendEnd(dst []byte) []byte
	// AppendComment appends what keeps a waiting client from leaving and means
	// nothing to it: a line of text, or nothing where the form has no comments.
	AppendComment(dst []byte, text string) []byte
	// AppendOpening appends how an answer begins, for a stream that must fail
	// after nothing but comments.
	AppendOpening(dst []byte) []byte
	// AppendErrorEvent appends the end of a stream that failed.
	AppendErrorEvent(dst []byte, e *Error) []byte

	// AppendBody appends the whole answer as one document. It ranges over the
	// chunks once, and returns when they end.
	AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte
}

// Stamp is what tells one answer from another that says the same.
type Stamp struct {
	ID          string // without the prefix that the endpoint puts before it
	Created     int64  // Unix seconds
	Fingerprint string // system_fingerprint; empty = left out
}

// Head is what requests to all endpoints have.
type Head struct {
	Model       string // the id asked for
	Prompt      string // name of the field that holds the prompt
	Stream      bool
	ServiceTier string
	Metadata    map[string]string
}

// Head returns what a chat has in common with other requests.
func (c *Chat) Head() Head {
	return Head{Model: c.Model, Prompt: cmp.Or(c.promptField, "messages"), Stream: c.Stream, ServiceTier: c.ServiceTier, Metadata: c.Metadata}
}

// Encoder returns what writes an answer to c.
func (c *Chat) Encoder(s Stamp) Encoder {
	return &Answer{
		ID: "chatcmpl-" + s.ID, Model: c.Model, Created: s.Created, Fingerprint: s.Fingerprint,
		IncludeUsage: c.IncludeUsage, ServiceTier: servedTier(c.ServiceTier),
	}
}

// EventStream is the Content-Type of server-sent events.
const EventStream = "text/event-stream; charset=utf-8"

// eventStream is what all streams of server-sent events have in common.
type eventStream struct{}

// StreamType is EventStream.
func (eventStream) StreamType() string { return EventStream }

// AppendComment appends a comment.
func (eventStream) AppendComment(dst []byte, text string) []byte {
	dst = append(dst, ": "...)
	dst = append(dst, text...)
	return append(dst, "\n\n"...)
}

// AppendErrorEvent appends the event that ends a stream that failed. No [DONE]
// may follow, and nothing but a blank line may stand just before it.
func (eventStream) AppendErrorEvent(dst []byte, e *Error) []byte {
	dst = append(dst, "data: "...)
	dst = e.AppendJSON(dst)
	return append(dst, "\n\n"...)
}

// servedTier is what an answer says of its service_tier: nothing when nothing
// was asked.
func servedTier(asked string) string {
	switch asked {
	case "flex", "priority", "default":
		return asked
	case "auto":
		return "default"
	}
	return ""
}

// Answer writes a chat completion: as the events of a stream or as one JSON
// body. The fields are set before the first call and not after.
type Answer struct {
	ID           string // chatcmpl-…, of this answer alone
	Model        string // the id the client asked for
	Created      int64  // Unix seconds
	IncludeUsage bool   // of a stream; a body always has it
	Fingerprint  string // system_fingerprint; empty = left out
	ServiceTier  string // empty = left out

	eventStream
	head               []byte // of every event, up to choices
	prompt, completion int
}

var _ Encoder = (*Answer)(nil)

// AppendEvents appends what one chunk means to a stream: an event, or nothing
// for the usage, which waits for the end.
func (a *Answer) AppendEvents(dst, chunk []byte) []byte {
	kind, index, payload := parse(chunk)
	if kind == kindUsage {
		a.prompt, a.completion, _ = FinishCounts(chunk)
		return dst
	}
	dst = a.openEvent(dst)
	dst = append(dst, `"choices":[{"index":`...)
	dst = strconv.AppendInt(dst, int64(index), 10)
	dst = append(dst, `,"delta":{`...)
	logprobs, reason := []byte(nil), []byte(nil)
	switch kind {
	case kindRole:
		dst = append(dst, `"role":"assistant","content":"","refusal":null`...)
	case kindText:
		dst = appendMember(dst, `"content":`, payload)
	case kindLogprobs:
		payload, logprobs = cutSized(payload)
		dst = appendMember(dst, `"content":`, payload)
	case kindReasoning:
		dst = appendMember(dst, `"reasoning_content":`, payload)
		dst = appendMember(dst, `,"reasoning":`, payload)
	case kindCall:
		dst = append(dst, `"tool_calls":[`...)
		dst = a.appendCall(dst, `{"index":`, index, payload)
		dst = append(dst, ']')
	case kindFunction:
		_, payload = cutVarint(payload)
		dst = append(dst, `"function_call":{`...)
		dst = appendFunction(dst, payload)
	case kindFinish:
		reason = payload
	}
	dst = append(dst, `},"logprobs":`...)
	dst = appendLogprobsOrNull(dst, logprobs)
	dst = append(dst, `,"finish_reason":`...)
	if reason == nil {
		dst = append(dst, "null"...)
	} else {
		dst = append(dst, '"')
		dst = append(dst, reason...)
		dst = append(dst, '"')
	}
	dst = append(dst, `}]`...)
	if a.IncludeUsage {
		dst = append(dst, `,"usage":null`...)
	}
	return append(dst, "}\n\n"...)
}

// AppendEnd appends the end of a stream that went well: the usage, if asked
// for, in an event of its own, and [DONE].
func (a *Answer) AppendEnd(dst []byte) []byte {
	if a.IncludeUsage {
		dst = a.openEvent(dst)
		dst = append(dst, `"choices":[],`...)
		dst = a.appendUsage(dst)
		dst = append(dst, "}\n\n"...)
	}
	return append(dst, "data: [DONE]\n\n"...)
}

// AppendOpening appends the first event of an answer that has not begun, for a
// stream that must fail: a comment just before the error would hide its text
// from clients that read both as one.
func (a *Answer) AppendOpening(dst []byte) []byte {
	return a.AppendEvents(dst, []byte{kindRole, 0})
}

// AppendBody appends the whole answer as one JSON object.
func (a *Answer) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	dst = a.appendHead(dst, "chat.completion")
	dst = append(dst, `"choices":[`...)
	dst = openChoice(dst, 0)
	// The content of choice 0, mostly all there is, goes to its place at once;
	// everything else waits for its turn.
	content := len(dst)
	parts := make([]part, 1)
	for chunk := range chunks {
		kind, index, payload := parse(chunk)
		for index >= len(parts) {
			parts = append(parts, part{})
		}
		p := &parts[index]
		to := &p.content
		if index == 0 {
			to = &dst
		}
		switch kind {
		case kindText:
			*to = append(*to, payload...)
		case kindLogprobs:
			text, entries := cutSized(payload)
			*to = append(*to, text...)
			p.logprobs = append(appendSeparator(p.logprobs), entries...)
		case kindReasoning:
			p.reasoning = append(p.reasoning, payload...)
		case kindCall:
			p.calls = a.appendCall(appendSeparator(p.calls), "{", index, payload)
		case kindFunction:
			_, payload = cutVarint(payload)
			p.function = appendFunction([]byte{'{'}, payload)
		case kindFinish:
			p.reason = payload
		case kindUsage:
			a.prompt, a.completion, _ = FinishCounts(chunk)
		}
	}
	dst = parts[0].close(dst, content)
	for i, p := range parts[1:] {
		dst = openChoice(append(dst, ','), i+1)
		content = len(dst)
		dst = append(dst, p.content...)
		dst = p.close(dst, content)
	}
	dst = append(dst, `],`...)
	dst = a.appendUsage(dst)
	return append(dst, '}')
}

// part is what one choice is made of, escaped.
type part struct{ content, reasoning, logprobs, calls, function, reason []byte }

// openChoice appends a choice up to its content, the quote included.
func openChoice(dst []byte, index int) []byte {
	dst = append(dst, `{"index":`...)
	dst = strconv.AppendInt(dst, int64(index), 10)
	return append(dst, `,"message":{"role":"assistant","content":"`...)
}

// close appends what follows the content, which began at start.
func (p *part) close(dst []byte, start int) []byte {
	if len(dst) == start && (p.calls != nil || p.function != nil) {
		dst = append(dst[:start-1], "null"...)
	} else {
		dst = append(dst, '"')
	}
	dst = append(dst, `,"refusal":null`...)
	if p.reasoning != nil {
		dst = appendMember(dst, `,"reasoning_content":`, p.reasoning)
		dst = appendMember(dst, `,"reasoning":`, p.reasoning)
	}
	if p.calls != nil {
		dst = append(dst, `,"tool_calls":[`...)
		dst = append(dst, p.calls...)
		dst = append(dst, ']')
	}
	if p.function != nil {
		dst = append(dst, `,"function_call":`...)
		dst = append(dst, p.function...)
	}
	dst = append(dst, `},"logprobs":`...)
	dst = appendLogprobsOrNull(dst, p.logprobs)
	dst = append(dst, `,"finish_reason":"`...)
	dst = append(dst, p.reason...)
	return append(dst, `"}`...)
}

func appendSeparator(list []byte) []byte {
	if len(list) > 0 {
		return append(list, ',')
	}
	return list
}

// appendCall appends one tool call. It opens with `{"index":` in a stream and
// with a brace in a body. Its id is made from the answer's, so that a kept
// answer given twice has ids of its own each time.
func (a *Answer) appendCall(dst []byte, opening string, choice int, payload []byte) []byte {
	call, payload := cutVarint(payload)
	dst = append(dst, opening...)
	if opening != "{" {
		dst = strconv.AppendInt(dst, int64(call), 10)
		dst = append(dst, ',')
	}
	dst = append(dst, `"id":"call_`...)
	dst = appendEscaped(dst, strings.TrimPrefix(a.ID, "chatcmpl-"))
	dst = append(dst, '_')
	dst = strconv.AppendInt(dst, int64(choice), 10)
	dst = append(dst, '_')
	dst = strconv.AppendInt(dst, int64(call), 10)
	dst = append(dst, `","type":"function","function":{`...)
	dst = appendFunction(dst, payload)
	return append(dst, '}')
}

func appendFunction(dst, payload []byte) []byte {
	name, arguments := cutSized(payload)
	dst = appendMember(dst, `"name":`, name)
	dst = appendMember(dst, `,"arguments":`, arguments)
	return append(dst, '}')
}

// appendMember appends a name and a string that is escaped already.
func appendMember(dst []byte, name string, escaped []byte) []byte {
	dst = append(dst, name...)
	dst = append(dst, '"')
	dst = append(dst, escaped...)
	return append(dst, '"')
}

func appendLogprobsOrNull(dst, entries []byte) []byte {
	if entries == nil {
		return append(dst, "null"...)
	}
	dst = append(dst, `{"content":[`...)
	dst = append(dst, entries...)
	return append(dst, `],"refusal":null}`...)
}

// openEvent appends an event up to its choices: all events of a stream begin
// alike.
func (a *Answer) openEvent(dst []byte) []byte {
	if a.head == nil {
		a.head = a.appendHead([]byte("data: "), "chat.completion.chunk")
	}
	return append(dst, a.head...)
}

func (a *Answer) appendHead(dst []byte, object string) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, a.ID)
	dst = append(dst, `,"object":"`...)
	dst = append(dst, object...)
	dst = append(dst, `","created":`...)
	dst = strconv.AppendInt(dst, a.Created, 10)
	dst = append(dst, `,"model":`...)
	dst = appendString(dst, a.Model)
	for _, member := range [2][2]string{{`,"service_tier":`, a.ServiceTier}, {`,"system_fingerprint":`, a.Fingerprint}} {
		if member[1] != "" {
			dst = append(dst, member[0]...)
			dst = appendString(dst, member[1])
		}
	}
	return append(dst, ',')
}

func (a *Answer) appendUsage(dst []byte) []byte {
	dst = append(dst, `"usage":{"prompt_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.prompt), 10)
	dst = append(dst, `,"completion_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.completion), 10)
	dst = append(dst, `,"total_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.prompt+a.completion), 10)
	return append(dst, '}')
}

// FinishCounts returns the tokens a recording's last chunk reports; ok is
// false for any other chunk.
func FinishCounts(chunk []byte) (prompt, completion int, ok bool) {
	kind, _, payload := parse(chunk)
	if kind != kindUsage {
		return 0, 0, false
	}
	prompt, payload = cutVarint(payload)
	completion, _ = cutVarint(payload)
	return prompt, completion, true
}

func parse(chunk []byte) (kind byte, index int, payload []byte) {
	if len(chunk) == 0 {
		return 0, 0, nil
	}
	index, payload = cutVarint(chunk[1:])
	return chunk[0], index, payload
}

func cutVarint(b []byte) (n int, rest []byte) {
	if len(b) > 0 && b[0] < 0x80 {
		return int(b[0]), b[1:]
	}
	v, size := binary.Uvarint(b)
	return int(v), b[max(size, 0):]
}

func cutSized(b []byte) (head, rest []byte) {
	n, b := cutVarint(b)
	return b[:n], b[n:]
}
