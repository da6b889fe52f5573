package wire

import (
	"iter"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/sashabaranov/go-openai"
)

// Encoder returns what writes an answer to r.
func (r *Responses) Encoder(s Stamp) Encoder { return &turn{request: r, stamp: s} }

// turn writes a chat's recording as a response: items, and in a stream the
// events of their making, which OpenAI numbers.
type turn struct {
	eventStream
	request *Responses
	stamp   Stamp

	sequence int    // of the next event
	begun    bool   // the first events are written
	items    []byte // those that are finished, with commas between
	count    int    // of these
	open     byte   // what the unfinished item is of: kindText, kindReasoning or 0
	text     []byte // of it so far, escaped
	reason   string // finish_reason

	prompt, completion int
}

// Statuses of a response and of its items.
const (
	statusInProgress = "in_progress"
	statusCompleted  = "completed"
	statusIncomplete = "incomplete"
	statusFailed     = "failed"
)

func (t *turn) AppendEvents(dst, chunk []byte) []byte {
	dst = t.AppendOpening(dst)
	kind, index, payload := parse(chunk)
	if index > 0 {
		return dst // there is one choice
	}
	switch kind {
	case kindReasoning, kindText, kindLogprobs:
		if kind == kindLogprobs {
			kind = kindText
			payload, _ = cutSized(payload)
		}
		dst = t.openItem(dst, kind)
		t.text = append(t.text, payload...)
		dst = t.event(dst, t.words()+".delta")
		dst = t.appendPlace(dst)
		dst = appendMember(dst, `,"delta":`, payload)
		dst = t.appendLogprobs(dst)
		return append(dst, "}\n\n"...)
	case kindCall:
		return t.appendCall(t.closeItem(dst), payload)
	case kindFinish:
		t.reason = string(payload)
		if t.open == 0 && t.count == 0 {
			dst = t.openItem(dst, kindText) // an empty answer is one
		}
		return t.closeItem(dst)
	case kindUsage:
		t.prompt, t.completion, _ = FinishCounts(chunk)
	}
	return dst
}

// AppendOpening appends how a stream begins.
func (t *turn) AppendOpening(dst []byte) []byte {
	if t.begun {
		return dst
	}
	t.begun = true
	dst = t.appendWhole(dst, "response.created", statusInProgress, nil)
	return t.appendWhole(dst, "response.in_progress", statusInProgress, nil)
}

// AppendEnd appends the last event, which has all items in it.
func (t *turn) AppendEnd(dst []byte) []byte {
	return t.appendWhole(dst, "response."+t.status(), t.status(), nil)
}

// AppendErrorEvent appends the end of a stream that failed: the response as far
// as it came, and an error. The error stands there twice, flat as OpenAI
// describes it and under the key at which its own clients raise it.
func (t *turn) AppendErrorEvent(dst []byte, e *Error) []byte {
	dst = t.appendWhole(dst, "response.failed", statusFailed, e)
	dst = t.event(dst, "error")
	dst = append(dst, `,"code":`...)
	dst = appendStringOrNull(dst, e.Code)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, e.Message)
	dst = append(dst, `,"param":`...)
	dst = appendStringOrNull(dst, e.Param)
	dst = append(dst, ',')
	dst = append(dst, e.AppendJSON(nil)[1:]...) // without its brace, with the end's
	return append(dst, "\n\n"...)
}

// AppendBody appends the whole response: what the last event of a stream has.
func (t *turn) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	var events []byte
	for chunk := range chunks {
		events = t.AppendEvents(events[:0], chunk)
	}
	return t.appendResponse(dst, t.status(), nil)
}

func (t *turn) status() string {
	if t.reason == string(openai.FinishReasonLength) {
		return statusIncomplete
	}
	return statusCompleted
}

// event appends an event up to what it tells.
func (t *turn) event(dst []byte, name string) []byte {
	dst = append(dst, "event: "...)
	dst = append(dst, name...)
	dst = append(dst, "\ndata: {\"type\":\""...)
	dst = append(dst, name...)
	dst = append(dst, `","sequence_number":`...)
	dst = strconv.AppendInt(dst, int64(t.sequence), 10)
	t.sequence++
	return dst
}

// appendWhole appends an event with the response as it stands.
func (t *turn) appendWhole(dst []byte, name, status string, failure *Error) []byte {
	dst = append(t.event(dst, name), `,"response":`...)
	dst = t.appendResponse(dst, status, failure)
	return append(dst, "}\n\n"...)
}

// words is what events call the text of the unfinished item.
func (t *turn) words() string {
	if t.open == kindReasoning {
		return "response.reasoning_summary_text"
	}
	return "response.output_text"
}

// part is what events call the part that the text is in.
func (t *turn) part() string {
	if t.open == kindReasoning {
		return "response.reasoning_summary_part"
	}
	return "response.content_part"
}

// appendID appends an id of the unfinished item, or of the next one.
func (t *turn) appendID(dst []byte, prefix string) []byte {
	dst = append(dst, '"')
	dst = append(dst, prefix...)
	dst = appendEscaped(dst, t.stamp.ID)
	dst = append(dst, '_')
	dst = strconv.AppendInt(dst, int64(t.count), 10)
	return append(dst, '"')
}

func (t *turn) appendItemID(dst []byte) []byte {
	if t.open == kindReasoning {
		return t.appendID(dst, "rs_")
	}
	return t.appendID(dst, "msg_")
}

// appendPlace says which item and which part of it an event is about.
func (t *turn) appendPlace(dst []byte) []byte {
	dst = append(dst, `,"item_id":`...)
	dst = t.appendItemID(dst)
	dst = t.appendIndex(dst)
	if t.open == kindReasoning {
		return append(dst, `,"summary_index":0`...)
	}
	return append(dst, `,"content_index":0`...)
}

func (t *turn) appendIndex(dst []byte) []byte {
	dst = append(dst, `,"output_index":`...)
	return strconv.AppendInt(dst, int64(t.count), 10)
}

func (t *turn) appendLogprobs(dst []byte) []byte {
	if t.open == kindText {
		dst = append(dst, `,"logprobs":[]`...)
	}
	return dst
}

// appendPart appends the one part of the unfinished item.
func (t *turn) appendPart(dst, text []byte) []byte {
	if t.open == kindReasoning {
		dst = appendMember(dst, `{"type":"summary_text","text":`, text)
		return append(dst, '}')
	}
	dst = appendMember(dst, `{"type":"output_text","text":`, text)
	return append(dst, `,"annotations":[],"logprobs":[]}`...)
}

// appendItem appends the unfinished item, with its part or without.
func (t *turn) appendItem(dst []byte, status string, whole bool) []byte {
	dst = append(dst, `{"id":`...)
	dst = t.appendItemID(dst)
	if t.open == kindReasoning {
		dst = append(dst, `,"type":"reasoning","summary":[`...)
	} else {
		dst = append(dst, `,"type":"message","status":"`...)
		dst = append(dst, status...)
		dst = append(dst, `","role":"assistant","content":[`...)
	}
	if whole {
		dst = t.appendPart(dst, t.text)
	}
	return append(dst, "]}"...)
}

// openItem begins an item, unless one of its kind is there already.
func (t *turn) openItem(dst []byte, kind byte) []byte {
	if t.open == kind {
		return dst
	}
	dst = t.closeItem(dst)
	t.open = kind
	dst = t.appendItemEvent(dst, "response.output_item.added", t.appendItem(nil, statusInProgress, false))
	dst = t.event(dst, t.part()+".added")
	dst = t.appendPlace(dst)
	dst = append(dst, `,"part":`...)
	dst = t.appendPart(dst, nil)
	return append(dst, "}\n\n"...)
}

// closeItem finishes the item that is open, if one is.
func (t *turn) closeItem(dst []byte) []byte {
	if t.open == 0 {
		return dst
	}
	dst = t.event(dst, t.words()+".done")
	dst = t.appendPlace(dst)
	dst = appendMember(dst, `,"text":`, t.text)
	dst = t.appendLogprobs(dst)
	dst = append(dst, "}\n\n"...)
	dst = t.event(dst, t.part()+".done")
	dst = t.appendPlace(dst)
	dst = append(dst, `,"part":`...)
	dst = t.appendPart(dst, t.text)
	dst = append(dst, "}\n\n"...)
	dst = t.finishItem(dst, t.appendItem(nil, t.status(), true))
	t.open, t.text = 0, nil
	return dst
}

// finishItem appends an item's last event and keeps the item.
func (t *turn) finishItem(dst, item []byte) []byte {
	dst = t.appendItemEvent(dst, "response.output_item.done", item)
	t.items = append(appendSeparator(t.items), item...)
	t.count++
	return dst
}

func (t *turn) appendItemEvent(dst []byte, name string, item []byte) []byte {
	dst = t.appendIndex(t.event(dst, name))
	dst = append(dst, `,"item":`...)
	dst = append(dst, item...)
	return append(dst, "}\n\n"...)
}

// appendCall appends the events of a call, which comes whole.
func (t *turn) appendCall(dst, payload []byte) []byte {
	call, payload := cutVarint(payload)
	name, arguments := cutSized(payload)
	item := func(status string, arguments []byte) []byte {
		b := t.appendID([]byte(`{"id":`), "fc_")
		b = append(b, `,"type":"function_call","status":"`...)
		b = append(b, status...)
		b = append(b, `","call_id":"call_`...)
		b = appendEscaped(b, t.stamp.ID)
		b = append(b, "_0_"...)
		b = strconv.AppendInt(b, int64(call), 10)
		b = append(b, '"')
		b = appendMember(b, `,"name":`, name)
		b = appendMember(b, `,"arguments":`, arguments)
		return append(b, '}')
	}
	dst = t.appendItemEvent(dst, "response.output_item.added", item(statusInProgress, nil))
	for _, e := range [...]struct{ name, member string }{{"delta", `,"delta":`}, {"done", `,"arguments":`}} {
		dst = t.event(dst, "response.function_call_arguments."+e.name)
		dst = append(dst, `,"item_id":`...)
		dst = t.appendID(dst, "fc_")
		dst = t.appendIndex(dst)
		if e.name == "done" {
			dst = appendMember(dst, `,"name":`, name)
		}
		dst = appendMember(dst, e.member, arguments)
		dst = append(dst, "}\n\n"...)
	}
	return t.finishItem(dst, item(statusCompleted, arguments))
}

// appendResponse appends the response object. What the client left open is
// null: which value applied, depends on the task and the model.
func (t *turn) appendResponse(dst []byte, status string, failure *Error) []byte {
	r := t.request
	dst = append(dst, `{"id":"resp_`...)
	dst = appendEscaped(dst, t.stamp.ID)
	dst = append(dst, `","object":"response","created_at":`...)
	dst = strconv.AppendInt(dst, t.stamp.Created, 10)
	dst = append(dst, `,"status":"`...)
	dst = append(dst, status...)
	dst = append(dst, `","background":false,"error":`...)
	dst = appendFailure(dst, failure)
	dst = append(dst, `,"incomplete_details":`...)
	if status == statusIncomplete {
		dst = append(dst, `{"reason":"max_output_tokens"}`...)
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"instructions":`...)
	dst = appendStringOrNull(dst, r.Instructions)
	dst = append(dst, `,"max_output_tokens":`...)
	if r.MaxTokens != nil {
		dst = strconv.AppendInt(dst, int64(*r.MaxTokens), 10)
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"model":`...)
	dst = appendString(dst, r.Model)
	dst = append(dst, `,"output":[`...)
	dst = append(dst, t.items...)
	dst = append(dst, `],"parallel_tool_calls":`...)
	dst = strconv.AppendBool(dst, !r.ParallelOff)
	dst = append(dst, `,"previous_response_id":null,"reasoning":{"effort":`...)
	dst = appendStringOrNull(dst, r.ReasoningEffort)
	dst = append(dst, `,"summary":null},"service_tier":"`...)
	dst = append(dst, servedOrDefault(r.ServiceTier)...)
	dst = append(dst, `","store":false,"temperature":`...)
	dst = appendFloatOrNull(dst, r.Temperature)
	dst = append(dst, `,"text":{"format":`...)
	dst = r.appendFormat(dst)
	dst = append(dst, `},"tool_choice":`...)
	dst = r.appendToolChoice(dst)
	dst = append(dst, `,"tools":[`...)
	for i := range r.Tools {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = r.Tools[i].appendFlat(dst)
	}
	dst = append(dst, `],"top_p":`...)
	dst = appendFloatOrNull(dst, r.TopP)
	dst = append(dst, `,"truncation":"disabled"`...)
	if status == statusCompleted || status == statusIncomplete {
		dst = t.appendUsage(dst)
	}
	if r.User != "" {
		dst = append(dst, `,"user":`...)
		dst = appendString(dst, r.User)
	}
	dst = append(dst, `,"metadata":{`...)
	for i, name := range slices.Sorted(maps.Keys(r.Metadata)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, name), ':')
		dst = appendString(dst, r.Metadata[name])
	}
	return append(dst, "}}"...)
}

func (t *turn) appendUsage(dst []byte) []byte {
	dst = append(dst, `,"usage":{"input_tokens":`...)
	dst = strconv.AppendInt(dst, int64(t.prompt), 10)
	dst = append(dst, `,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":`...)
	dst = strconv.AppendInt(dst, int64(t.completion), 10)
	dst = append(dst, `,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":`...)
	dst = strconv.AppendInt(dst, int64(t.prompt+t.completion), 10)
	return append(dst, '}')
}

// appendFailure appends a response's error, whose codes are OpenAI's few.
func appendFailure(dst []byte, e *Error) []byte {
	if e == nil {
		return append(dst, "null"...)
	}
	code := "server_error"
	if e.Status == http.StatusTooManyRequests {
		code = "rate_limit_exceeded"
	}
	dst = append(dst, `{"code":"`...)
	dst = append(dst, code...)
	dst = append(dst, `","message":`...)
	dst = appendString(dst, e.Message)
	return append(dst, '}')
}

func servedOrDefault(asked string) string {
	if tier := servedTier(asked); tier != "" {
		return tier
	}
	return "default"
}

func appendFloatOrNull(dst []byte, f *float64) []byte {
	if f == nil {
		return append(dst, "null"...)
	}
	return strconv.AppendFloat(dst, *f, 'g', -1, 64)
}

func (r *Responses) appendFormat(dst []byte) []byte {
	f := &r.Format
	switch f.Kind {
	case FormatJSON:
		return append(dst, `{"type":"json_object"}`...)
	case FormatText:
		return append(dst, `{"type":"text"}`...)
	case FormatSchema:
	}
	dst = append(dst, `{"type":"json_schema","name":`...)
	dst = appendString(dst, f.Name)
	dst = append(dst, `,"strict":`...)
	dst = strconv.AppendBool(dst, f.Strict)
	dst = append(dst, `,"schema":`...)
	dst = append(dst, f.Schema...)
	return append(dst, '}')
}

func (r *Responses) appendToolChoice(dst []byte) []byte {
	if r.toolChoice != nil {
		return append(dst, r.toolChoice...)
	}
	return append(dst, [...]string{ToolAuto: `"auto"`, ToolNone: `"none"`, ToolRequired: `"required"`}[r.ToolChoice.Mode]...)
}

// appendFlat appends a tool as responses have them.
func (t *Tool) appendFlat(dst []byte) []byte {
	dst = append(dst, `{"type":"function","name":`...)
	dst = appendString(dst, t.Name)
	dst = append(dst, `,"description":`...)
	dst = appendStringOrNull(dst, t.Description)
	dst = append(dst, `,"parameters":`...)
	dst = append(dst, t.schema()...)
	dst = append(dst, `,"strict":`...)
	dst = strconv.AppendBool(dst, t.Strict)
	return append(dst, '}')
}
