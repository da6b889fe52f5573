package wire

import (
	"cmp"
	"encoding/json"
	"iter"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sashabaranov/go-openai"
)

// Native is a request to Ollama's own /api/chat or /api/generate: a chat, and
// how it is answered.
type Native struct {
	*Chat

	// Bare is a request without a prompt: it asks for the model to be loaded.
	Bare bool

	generate bool // answered as by /api/generate
}

//nolint:gochecknoglobals // compiled tables of the names each object may use
var (
	nativeKeys = newKeys(
		"model", "messages", "stream", "format", "options", "tools", "think", "logprobs", "top_logprobs",
		"prompt", "system", "suffix", "template", "context", "raw", "images",
		// Accepted without effect:
		"keep_alive", "truncate", "shift", "width", "height", "steps", "_debug_render_only",
	)
	nativeShowKeys    = newKeys("model", "name", "verbose", "system", "template", "options")
	nativeMessageKeys = newKeys("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")
	nativeOptionKeys  = newKeys(
		"num_predict", "temperature", "top_p", "min_p", "top_k", "seed", "stop",
		"frequency_penalty", "presence_penalty", "repeat_penalty",
		"num_ctx", "num_gpu", "num_keep", "num_batch", "num_thread", "main_gpu", "use_mmap", "typical_p", "repeat_last_n",
	)
)

// DecodeNativeChat reads the body of POST /api/chat, as strictly as
// [DecodeChat]. The error is an [*Error].
func DecodeNativeChat(body []byte, lim Limits) (*Native, error) {
	return decodeNative(body, lim, false)
}

// DecodeNativeGenerate reads the body of POST /api/generate: its system and
// prompt become messages. What would bypass the model's template, or carry a
// conversation as numbers, is refused.
func DecodeNativeGenerate(body []byte, lim Limits) (*Native, error) {
	return decodeNative(body, lim, true)
}

// DecodeNativeShow reads the body of POST /api/show: a model's name.
func DecodeNativeShow(body []byte) (model string, err error) {
	s := newScan(body, (Limits{}).orDefault().Depth)
	for key := range s.object(nativeShowKeys) {
		switch key {
		case "model", "name": // the latter is what it was called before
			model = cmp.Or(s.text(), model)
		default:
			s.skip()
		}
	}
	if err := s.end(); err != nil {
		return "", err
	}
	if model == "" {
		return "", noModel()
	}
	return model, nil
}

func decodeNative(body []byte, lim Limits, generate bool) (*Native, error) {
	d := nativeDecoder{decoder: newDecoder(body, lim, &Chat{N: 1, Stream: true}), generate: generate}
	d.request()
	if err := d.end(); err != nil {
		return nil, err
	}
	return d.finish()
}

type nativeDecoder struct {
	decoder
	generate       bool
	unload         bool // keep_alive is 0
	prompt, system string
	images         Message
}

func (d *nativeDecoder) request() {
	c := d.chat
	for key := range d.object(nativeKeys) {
		switch key {
		case "model":
			c.Model = d.text()
		case "stream":
			c.Stream = d.bool()
		case "format":
			d.answerFormat()
		case "options":
			d.options()
		case "think":
			d.think()
		case "logprobs":
			c.Logprobs = d.bool()
		case "top_logprobs":
			d.top = new(d.int(0, 20))
		case "keep_alive":
			d.unload = d.zero()
			d.ignored(key)
		case "truncate", "shift": // a prompt that does not fit is an error, whatever is said here
			if d.bool() {
				d.ignored(key)
			}
		case "messages", "tools":
			d.onlyChat(key)
		case "prompt", "system", "suffix", "template", "context", "raw", "images":
			d.onlyGenerate(key)
		default:
			d.ignore(key)
		}
	}
}

func (d *nativeDecoder) onlyChat(key string) {
	switch {
	case d.generate:
		d.ignore(key)
	case key == "messages":
		d.messagesOf(d.message)
	default:
		d.tools()
	}
}

func (d *nativeDecoder) onlyGenerate(key string) {
	if !d.generate {
		d.ignore(key)
		return
	}
	switch key {
	case "prompt":
		d.prompt = d.text()
	case "system":
		d.system = d.text()
	case "images":
		d.pictures(&d.images)
	case "raw":
		if d.bool() {
			d.badValue("prompts go through the model's template here")
		}
	case "context":
		for range d.array() {
			d.badValue("conversations are not kept as numbers here; send them as messages to /api/chat")
		}
	default: // suffix, template
		if d.text() != "" {
			d.badValue("it is not served here")
		}
	}
}

// zero reads keep_alive, a number of seconds or a duration, and reports
// whether it asks for the model to be unloaded.
func (d *nativeDecoder) zero() bool {
	if d.peek() == '"' {
		t, err := time.ParseDuration(d.text())
		return err == nil && t == 0
	}
	return d.float(-math.MaxFloat64, math.MaxFloat64) == 0
}

// answerFormat reads format: "json", or a schema.
func (d *nativeDecoder) answerFormat() {
	f := &d.chat.Format
	if d.peek() == '{' {
		f.Kind = FormatSchema
		f.Schema, f.compiled = d.schema()
		return
	}
	switch d.text() {
	case "":
	case "json":
		f.Kind = FormatJSON
	default:
		d.badValue(`expected "json" or a JSON schema`)
	}
}

func (d *nativeDecoder) options() {
	for key := range d.object(nativeOptionKeys) {
		switch {
		case key == "num_predict": // negative: as many as it takes
			if n := d.int(math.MinInt32, math.MaxInt32); n > 0 {
				d.chat.MaxTokens = &n
			}
		case !d.sampling(key, 10):
			d.ignore("options." + key)
		}
	}
}

// think reads a switch, or a degree.
func (d *nativeDecoder) think() {
	if d.peek() == '"' {
		d.chat.ReasoningEffort = d.effort()
		return
	}
	d.chat.ReasoningEffort = "none"
	if d.bool() {
		d.chat.ReasoningEffort = "medium"
	}
}

// message reads one message. Arguments of tools are objects here, and pictures
// stand beside the text.
func (d *nativeDecoder) message() Message {
	var m Message
	for key := range d.object(nativeMessageKeys) {
		switch key {
		case "role":
			m.Role = d.role()
		case "content":
			m.Text = d.text()
		case "images":
			d.pictures(&m)
		case "tool_calls":
			d.toolCalls(&m)
		case "tool_name":
			m.Name = d.text()
		case "tool_call_id":
			m.ToolCallID = d.text()
		default:
			d.skip() // thinking: part of an earlier answer
		}
	}
	if d.err == nil && m.Role == "" {
		d.missing("role")
	}
	return m
}

// pictures reads images in base64.
func (d *nativeDecoder) pictures(m *Message) {
	for range d.array() {
		if d.decoder.images++; d.decoder.images > d.lim.Images {
			d.tooMany("images", d.lim.Images)
			return
		}
		if d.peek() != '"' {
			d.wrongType("a string")
			return
		}
		raw, escaped := d.quoted()
		if escaped {
			raw = []byte(unescape(raw))
		}
		if d.err == nil {
			d.picture(m, raw)
		}
	}
}

func (d *nativeDecoder) finish() (*Native, error) {
	c := d.chat
	if d.generate {
		if d.system != "" && d.prompt != "" {
			c.Messages = append(c.Messages, Message{Role: openai.ChatMessageRoleSystem, Text: d.system})
		}
		if d.prompt != "" || len(d.images.Images) > 0 {
			c.Messages = append(c.Messages, Message{Role: openai.ChatMessageRoleUser, Text: d.prompt, Images: d.images.Images})
		}
	}
	n := &Native{Chat: c, Bare: len(c.Messages) == 0, generate: d.generate}
	switch {
	case n.Bare && d.unload:
		return nil, &Error{
			Status: http.StatusForbidden, Type: typeInvalidRequest, Code: codeUnsupported, Param: "keep_alive",
			Message: "Models are loaded and unloaded by the proxy: keep_alive has no effect here.",
		}
	case n.Bare && c.Model != "":
		return n, nil
	}
	d.messages = len(c.Messages)
	return n, d.decoder.finish()
}

// Head returns what n has in common with other requests.
func (n *Native) Head() Head {
	h := n.Chat.Head()
	if n.generate {
		h.Prompt = "prompt"
	}
	return h
}

// IgnoredFor names the fields without effect on the model of p.
func (n *Native) IgnoredFor(p Params) []string {
	ignored := slices.Clone(n.Chat.IgnoredFor(p))
	if at := slices.Index(ignored, "reasoning_effort"); at >= 0 {
		ignored[at] = "think"
	}
	return ignored
}

// EffectiveTemperature is the chat's. That of a request without a prompt is
// not known: to load a model is not to be answered from a cache.
func (n *Native) EffectiveTemperature(p Params) (t float64, known bool) {
	if n.Bare {
		return 0, false
	}
	return n.Chat.EffectiveTemperature(p)
}

// Encoder returns what writes an answer to n.
func (n *Native) Encoder(s Stamp) Encoder {
	a := &nativeAnswer{generate: n.generate}
	a.head = append(a.head, `{"model":`...)
	a.head = appendString(a.head, n.Model)
	a.head = append(a.head, `,"created_at":"`...)
	a.head = time.Unix(s.Created, 0).UTC().AppendFormat(a.head, time.RFC3339)
	a.head = append(a.head, '"')
	return a
}

// Loaded is the recording that answers a request without a prompt.
func Loaded() [][]byte {
	return [][]byte{append([]byte{kindFinish, 0}, "load"...), {kindUsage, 0, 0, 0}}
}

// nativeAnswer writes recorded chunks as Ollama does: lines of JSON, the last
// one with what the answer took. Durations are those of its making, also for
// an answer out of the cache.
type nativeAnswer struct {
	generate bool
	head     []byte // of every line
	reason   []byte
	usage    []byte
	calls    int
}

// StreamType is that of lines of JSON.
func (a *nativeAnswer) StreamType() string { return "application/x-ndjson" }

// AppendComment appends nothing: the form has no comments.
func (a *nativeAnswer) AppendComment(dst []byte, _ string) []byte { return dst }

// AppendOpening appends nothing: any line may be an error.
func (a *nativeAnswer) AppendOpening(dst []byte) []byte { return dst }

// AppendErrorEvent appends the line that ends a stream that failed.
func (a *nativeAnswer) AppendErrorEvent(dst []byte, e *Error) []byte {
	return append(e.AppendNative(dst), '\n')
}

// AppendNative appends {"error":"…"}, the form of Ollama's own errors.
func (e *Error) AppendNative(dst []byte) []byte {
	dst = append(dst, `{"error":`...)
	dst = appendString(dst, e.Message)
	return append(dst, '}')
}

// AppendEvents appends what one chunk means to a stream: a line, or nothing
// for how the answer begins and ends.
func (a *nativeAnswer) AppendEvents(dst, chunk []byte) []byte {
	kind, _, payload := parse(chunk)
	var p part
	switch kind {
	case kindText:
		p.content = payload
	case kindLogprobs:
		p.content, p.logprobs = cutSized(payload)
	case kindReasoning:
		p.reasoning = payload
	case kindCall:
		p.calls = a.appendCall(nil, payload)
	case kindFinish:
		a.reason = payload
		return dst
	case kindUsage:
		a.usage = payload
		return dst
	default:
		return dst
	}
	dst = a.appendLine(dst, &p)
	return append(dst, ",\"done\":false}\n"...)
}

// AppendEnd appends the last line.
func (a *nativeAnswer) AppendEnd(dst []byte) []byte {
	dst = a.appendLine(dst, &part{})
	dst = a.appendDone(dst)
	return append(dst, '\n')
}

// AppendBody appends the whole answer as one line.
func (a *nativeAnswer) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	var p part
	for chunk := range chunks {
		kind, _, payload := parse(chunk)
		switch kind {
		case kindText:
			p.content = append(p.content, payload...)
		case kindLogprobs:
			text, entries := cutSized(payload)
			p.content = append(p.content, text...)
			p.logprobs = append(appendSeparator(p.logprobs), entries...)
		case kindReasoning:
			p.reasoning = append(p.reasoning, payload...)
		case kindCall:
			p.calls = a.appendCall(appendSeparator(p.calls), payload)
		case kindFinish:
			a.reason = payload
		case kindUsage:
			a.usage = payload
		}
	}
	dst = a.appendLine(dst, &p)
	return a.appendDone(dst)
}

// appendLine appends a line up to what says whether it is the last one.
func (a *nativeAnswer) appendLine(dst []byte, p *part) []byte {
	dst = append(dst, a.head...)
	if a.generate {
		dst = appendMember(dst, `,"response":`, p.content)
	} else {
		dst = appendMember(dst, `,"message":{"role":"assistant","content":`, p.content)
	}
	if p.reasoning != nil {
		dst = appendMember(dst, `,"thinking":`, p.reasoning)
	}
	if p.calls != nil {
		dst = append(dst, `,"tool_calls":[`...)
		dst = append(dst, p.calls...)
		dst = append(dst, ']')
	}
	if !a.generate {
		dst = append(dst, '}')
	}
	if p.logprobs != nil {
		dst = append(dst, `,"logprobs":[`...)
		dst = append(dst, p.logprobs...)
		dst = append(dst, ']')
	}
	return dst
}

// appendCall appends a call of a tool. Arguments that were cut short are none.
func (a *nativeAnswer) appendCall(dst, payload []byte) []byte {
	_, payload = cutVarint(payload)
	name, escaped := cutSized(payload)
	dst = append(dst, `{"function":{"index":`...)
	dst = strconv.AppendInt(dst, int64(a.calls), 10)
	dst = appendMember(dst, `,"name":`, name)
	dst = append(dst, `,"arguments":`...)
	if arguments := unescape(escaped); json.Valid([]byte(arguments)) {
		dst = append(dst, arguments...)
	} else {
		dst = append(dst, "{}"...)
	}
	a.calls++
	return append(dst, "}}"...)
}

func (a *nativeAnswer) appendDone(dst []byte) []byte {
	reason := a.reason
	if string(reason) == string(openai.FinishReasonToolCalls) {
		reason = []byte(openai.FinishReasonStop)
	}
	dst = append(dst, `,"done":true`...)
	dst = appendMember(dst, `,"done_reason":`, reason)
	prompt, rest := cutVarint(a.usage)
	answer, rest := cutVarint(rest)
	load, rest := cutVarint(rest)
	reading, rest := cutVarint(rest)
	writing, _ := cutVarint(rest)
	for _, member := range [...]struct {
		name  string
		value int
	}{
		{`,"total_duration":`, load + reading + writing},
		{`,"load_duration":`, load},
		{`,"prompt_eval_count":`, prompt},
		{`,"prompt_eval_duration":`, reading},
		{`,"eval_count":`, answer},
		{`,"eval_duration":`, writing},
	} {
		dst = append(dst, member.name...)
		dst = strconv.AppendInt(dst, int64(member.value), 10)
	}
	return append(dst, '}')
}
