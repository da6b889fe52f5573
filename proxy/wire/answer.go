package wire

import (
	"encoding/binary"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Answer writes recorded chunks for one client: as the events of a stream or
// as one JSON body. The fields are set before the first call and not after.
type Answer struct {
	ID           string // chatcmpl-…, of this answer alone
	Model        string // the id the client asked for
	Created      int64  // Unix seconds
	IncludeUsage bool   // of a stream; a body always has it
	Fingerprint  string // system_fingerprint; empty = left out
	ServiceTier  string // empty = left out

	head               []byte // of every event, up to choices
	prompt, completion int
}

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

// AppendErrorEvent appends the event that ends a stream that failed. No [DONE]
// may follow, and nothing but a blank line may stand just before it.
func (a *Answer) AppendErrorEvent(dst []byte, e *Error) []byte {
	dst = append(dst, "data: "...)
	dst = e.AppendJSON(dst)
	return append(dst, "\n\n"...)
}

// AppendBody appends the whole answer as one JSON object. It ranges over the
// chunks once, and returns when they end.
func (a *Answer) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	all := slices.AppendSeq(make([][]byte, 0, 256), chunks)
	dst = a.appendHead(dst, "chat.completion")
	dst = append(dst, `"choices":[`...)
	for index := 0; ; index++ {
		at := slices.IndexFunc(all, func(chunk []byte) bool {
			kind, i, _ := parse(chunk)
			return kind == kindRole && i == index
		})
		if at < 0 {
			break
		}
		if index > 0 {
			dst = append(dst, ',')
		}
		dst = a.appendChoice(dst, index, all[at:])
	}
	dst = append(dst, `],`...)
	for _, chunk := range all {
		if prompt, completion, ok := FinishCounts(chunk); ok {
			a.prompt, a.completion = prompt, completion
		}
	}
	dst = a.appendUsage(dst)
	return append(dst, '}')
}

func (a *Answer) appendChoice(dst []byte, index int, chunks [][]byte) []byte {
	of := func(kinds string) iter.Seq2[byte, []byte] {
		return func(yield func(byte, []byte) bool) {
			for _, chunk := range chunks {
				kind, i, payload := parse(chunk)
				if i == index && strings.IndexByte(kinds, kind) >= 0 && !yield(kind, payload) {
					return
				}
			}
		}
	}
	dst = append(dst, `{"index":`...)
	dst = strconv.AppendInt(dst, int64(index), 10)
	dst = append(dst, `,"message":{"role":"assistant","content":`...)
	mark, calls := len(dst), 0
	dst = append(dst, '"')
	for kind, payload := range of(string([]byte{kindText, kindLogprobs})) {
		if kind == kindLogprobs {
			payload, _ = cutSized(payload)
		}
		dst = append(dst, payload...)
	}
	dst = append(dst, '"')
	for range of(string([]byte{kindCall, kindFunction})) {
		calls++
	}
	if calls > 0 && len(dst) == mark+2 {
		dst = append(dst[:mark], "null"...)
	}
	dst = append(dst, `,"refusal":null`...)
	for _, member := range []string{`,"reasoning_content":"`, `,"reasoning":"`} {
		mark = len(dst)
		dst = append(dst, member...)
		for _, payload := range of(string([]byte{kindReasoning})) {
			dst = append(dst, payload...)
		}
		if len(dst) == mark+len(member) {
			dst = dst[:mark]
			break
		}
		dst = append(dst, '"')
	}
	if calls > 0 {
		dst = a.appendCalls(dst, index, of(string([]byte{kindCall, kindFunction})))
	}
	dst = append(dst, `},"logprobs":`...)
	mark = len(dst)
	for _, payload := range of(string([]byte{kindLogprobs})) {
		_, entries := cutSized(payload)
		if len(dst) == mark {
			dst = append(dst, `{"content":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst = append(dst, entries...)
	}
	if len(dst) == mark {
		dst = append(dst, "null"...)
	} else {
		dst = append(dst, `],"refusal":null}`...)
	}
	dst = append(dst, `,"finish_reason":"`...)
	for _, payload := range of(string([]byte{kindFinish})) {
		dst = append(dst, payload...)
	}
	return append(dst, `"}`...)
}

// appendCalls appends the calls of a message.
func (a *Answer) appendCalls(dst []byte, index int, calls iter.Seq2[byte, []byte]) []byte {
	first := true
	for kind, payload := range calls {
		if kind == kindFunction {
			_, payload = cutVarint(payload)
			dst = append(dst, `,"function_call":{`...)
			return appendFunction(dst, payload)
		}
		if first {
			dst = append(dst, `,"tool_calls":[`...)
		} else {
			dst = append(dst, ',')
		}
		first = false
		dst = a.appendCall(dst, "", index, payload)
	}
	return append(dst, ']')
}

// appendCall appends one tool call; indexed is `{"index":` in a stream and
// empty in a body. Its id is made from the answer's, so that a kept answer
// given twice has ids of its own each time.
func (a *Answer) appendCall(dst []byte, indexed string, choice int, payload []byte) []byte {
	call, payload := cutVarint(payload)
	if indexed == "" {
		dst = append(dst, '{')
	} else {
		dst = append(dst, indexed...)
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
	v, size := binary.Uvarint(b)
	return int(v), b[max(size, 0):]
}

func cutSized(b []byte) (head, rest []byte) {
	n, b := cutVarint(b)
	return b[:n], b[n:]
}
