package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/sashabaranov/go-openai"
)

// A chunk is one byte of kind, the choice's index as a varint, and a payload
// of JSON already escaped, so that writing it as an event or into a body is
// copying.
const (
	kindRole      = 'r' // the choice begins
	kindText      = 't' // fragment of content
	kindLogprobs  = 'l' // varint length of a fragment of content, the fragment, its logprobs' entries
	kindReasoning = 'h' // fragment of reasoning_content
	kindCall      = 'c' // varint index of the call, varint length of the name, the name, the arguments
	kindFunction  = 'f' // like kindCall, for a client of the deprecated functions
	kindFinish    = 'e' // finish_reason
	kindUsage     = 'u' // varints: prompt tokens, completion tokens, nanoseconds of loading, reading and writing; of all choices
)

// Recorder turns the lines of Ollama's answers to one request into the chunks
// of a recording. Not safe for concurrent use.
type Recorder struct {
	chat    *Chat
	plan    toolPlan
	choices []choice
	left    int              // choices not done
	tokens  int              // completion tokens, of all choices
	took    [3]time.Duration // loading, reading the prompt, writing
	out     [][]byte
}

// choice is what a recorder knows of one choice.
type choice struct {
	begun, done bool
	thought     thought
	reply       reply  // where the plan is emulated
	json        []byte // the content so far, where it must be checked
	calls       int
	prompt      int           // tokens
	logprobs    []api.Logprob // of content not written yet
	reason      string
}

// NewRecorder returns a recorder for the answers to c's n requests with p.
func NewRecorder(c *Chat, p Params) *Recorder {
	return newRecorder(c, p, c.N)
}

// newRecorder returns a recorder for so many choices: N for every prompt.
func newRecorder(c *Chat, p Params, choices int) *Recorder {
	return &Recorder{chat: c, plan: c.plan(p), choices: make([]choice, choices), left: choices}
}

// Line takes one line of the answer for a choice and returns the chunks it
// makes, none where it only adds to something still undecided. The chunks
// belong to the caller; the slice that holds them is used again. An [*Error]
// means that the model broke the format it was asked for: the recording has
// failed and must not be kept.
func (r *Recorder) Line(index int, resp *api.ChatResponse) ([][]byte, error) {
	r.out = r.out[:0]
	ch := &r.choices[index]
	if ch.done {
		return nil, nil
	}
	if !ch.begun {
		ch.begun = true
		r.emit(kindRole, index, 0)
	}
	if r.chat.Logprobs && !r.plan.emulated() { // else they are those of the wrapping
		ch.logprobs = append(ch.logprobs, resp.Logprobs...)
	}
	if resp.Message.Thinking != "" {
		r.reasoning(index, resp.Message.Thinking)
	}
	reasoning, text := ch.thought.split(resp.Message.Content)
	if resp.Done {
		moreReasoning, moreText := ch.thought.end()
		reasoning, text = reasoning+moreReasoning, text+moreText
	}
	r.reasoning(index, reasoning)
	switch {
	case r.plan == planUnion && r.chat.Format.Kind == FormatText:
		text = ch.reply.answer(text)
		fallthrough
	case !r.plan.emulated():
		r.text(index, text)
	default:
		ch.reply.raw = append(ch.reply.raw, text...)
	}
	for _, call := range resp.Message.ToolCalls {
		r.call(index, call.Function.Name, call.Function.Arguments.String())
	}
	if !resp.Done {
		return r.out, nil
	}
	return r.finish(index, resp)
}

// Done reports whether every choice has ended.
func (r *Recorder) Done() bool { return r.left == 0 }

// FinishReason is that of choice 0, empty before it is done.
func (r *Recorder) FinishReason() string { return r.choices[0].reason }

// Truncated reports whether any choice ended for want of tokens.
func (r *Recorder) Truncated() bool {
	for i := range r.choices {
		if r.choices[i].reason == string(openai.FinishReasonLength) {
			return true
		}
	}
	return false
}

// emit begins a chunk and hands it to the line's chunks; size is room for the
// payload.
func (r *Recorder) emit(kind byte, index, size int) *[]byte {
	chunk := make([]byte, 1, 1+binary.MaxVarintLen16+size)
	chunk[0] = kind
	r.out = append(r.out, binary.AppendUvarint(chunk, uint64(index)))
	return &r.out[len(r.out)-1]
}

func (r *Recorder) reasoning(index int, text string) {
	if text == "" {
		return
	}
	r.choices[index].logprobs = nil // they are the content's alone
	chunk := r.emit(kindReasoning, index, len(text)+len(text)/8)
	*chunk = appendEscaped(*chunk, text)
}

func (r *Recorder) text(index int, text string) {
	ch := &r.choices[index]
	if text == "" {
		return
	}
	if r.chat.Format.Kind != FormatText {
		ch.json = append(ch.json, text...)
	}
	if len(ch.logprobs) == 0 {
		chunk := r.emit(kindText, index, len(text)+len(text)/8)
		*chunk = appendEscaped(*chunk, text)
		return
	}
	chunk := r.emit(kindLogprobs, index, len(text)+64*len(ch.logprobs))
	*chunk = appendSized(*chunk, text)
	*chunk = appendLogprobs(*chunk, ch.logprobs)
	ch.logprobs = nil
}

func (r *Recorder) call(index int, name, arguments string) {
	ch := &r.choices[index]
	if r.chat.ParallelOff && ch.calls == 1 {
		return
	}
	kind := byte(kindCall)
	if r.chat.functionsAPI {
		if kind = kindFunction; ch.calls == 1 {
			return // function_call has room for one
		}
	}
	chunk := r.emit(kind, index, len(name)+len(arguments)+len(arguments)/4+binary.MaxVarintLen32)
	*chunk = binary.AppendUvarint(*chunk, uint64(ch.calls))
	*chunk = appendSized(*chunk, name)
	*chunk = appendEscaped(*chunk, arguments)
	ch.calls++
}

func (r *Recorder) finish(index int, resp *api.ChatResponse) ([][]byte, error) {
	ch := &r.choices[index]
	ch.done = true
	r.left--
	ch.prompt = resp.PromptEvalCount
	r.tokens += resp.EvalCount
	for i, d := range [...]time.Duration{resp.LoadDuration, resp.PromptEvalDuration, resp.EvalDuration} {
		r.took[i] += max(d, 0)
	}
	length := resp.DoneReason == "length"
	if r.plan.emulated() {
		if err := r.settle(index, length); err != nil {
			return nil, err
		}
	}
	switch {
	case length:
		ch.reason = string(openai.FinishReasonLength)
	case ch.calls > 0 && r.chat.functionsAPI:
		ch.reason = string(openai.FinishReasonFunctionCall)
	case ch.calls > 0:
		ch.reason = string(openai.FinishReasonToolCalls)
	default:
		ch.reason = string(openai.FinishReasonStop)
		if err := r.check(ch.json); err != nil {
			return nil, err
		}
	}
	chunk := r.emit(kindFinish, index, len(ch.reason))
	*chunk = append(*chunk, ch.reason...)
	if r.left == 0 {
		r.out = append(r.out, usageChunk(r.promptTokens(), r.tokens, r.took))
	}
	return r.out, nil
}

// promptTokens counts every prompt once, however many choices it has.
func (r *Recorder) promptTokens() int {
	sum := 0
	for choices := range slices.Chunk(r.choices, r.chat.N) {
		most := 0
		for i := range choices {
			most = max(most, choices[i].prompt)
		}
		sum += most
	}
	return sum
}

// usageChunk tells what an answer took: tokens, and the times of loading,
// reading and writing.
func usageChunk(prompt, completion int, took [3]time.Duration) []byte {
	chunk := append(make([]byte, 0, 2+2*binary.MaxVarintLen32+3*binary.MaxVarintLen64), kindUsage, 0)
	chunk = binary.AppendUvarint(chunk, uint64(max(prompt, 0)))
	chunk = binary.AppendUvarint(chunk, uint64(max(completion, 0)))
	for _, d := range took {
		chunk = binary.AppendUvarint(chunk, uint64(max(d, 0)))
	}
	return chunk
}

// check holds a whole answer against what response_format promised. Where the
// client gave stop sequences, they may have cut it, as asked.
func (r *Recorder) check(content []byte) error {
	f := &r.chat.Format
	if f.Kind == FormatText || len(r.chat.Stop) > 0 {
		return nil
	}
	if !json.Valid(content) {
		return broken("response_format", "The model's answer is not valid JSON.")
	}
	if f.Kind == FormatSchema && f.Strict && !conforms(f.compiled, content) {
		return broken("response_format", "The model's answer does not satisfy the schema.")
	}
	return nil
}

func broken(param, message string) *Error {
	return &Error{Status: http.StatusBadGateway, Type: typeServer, Code: codeOutput, Param: param, Message: message}
}

// settle reads a whole emulated reply. One that ran out of tokens is a call
// with the arguments so far, where it is known whose they are, and else
// nothing.
func (r *Recorder) settle(index int, length bool) error {
	ch := &r.choices[index]
	raw := bytes.TrimSpace(ch.reply.raw)
	if r.plan == planArguments {
		tool := &r.chat.callable()[0]
		if !length && !tool.takes(raw) {
			return broken("tools", "The model's call does not have the arguments the tool asks for.")
		}
		r.call(index, tool.Name, string(raw))
		return nil
	}
	if length || ch.reply.state == replyAnswered {
		return nil
	}
	if ch.reply.state == replyAnswer && len(r.chat.Stop) > 0 {
		return nil // a stop sequence cut the answer, as asked
	}
	var said struct {
		Tool      string
		Arguments json.RawMessage
		Answer    json.RawMessage
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return broken("tools", "The model's answer is not valid JSON.")
	}
	tools := r.chat.callable()
	at := slices.IndexFunc(tools, func(t Tool) bool { return t.Name == said.Tool })
	switch {
	case at >= 0 && tools[at].takes(said.Arguments):
		r.call(index, said.Tool, string(said.Arguments))
	case at < 0 && r.plan == planUnion && r.chat.Format.Kind != FormatText && said.Answer != nil:
		r.text(index, string(said.Answer))
	case at < 0 && r.plan == planUnion && bytes.HasPrefix(said.Answer, []byte(`"`)):
		r.text(index, unescape(said.Answer[1:len(said.Answer)-1]))
	default:
		return broken("tools", "The model's call is not one of the tools with the arguments it asks for.")
	}
	return nil
}

// takes reports whether arguments are an object and, for a strict tool, one of
// its schema.
func (t *Tool) takes(arguments []byte) bool {
	if !json.Valid(arguments) || !bytes.HasPrefix(arguments, []byte("{")) {
		return false
	}
	return !t.Strict || t.compiled == nil || conforms(t.compiled, arguments)
}

// appendSized appends s escaped, with its length before it.
func appendSized(dst []byte, s string) []byte {
	escaped := appendEscaped(nil, s)
	dst = binary.AppendUvarint(dst, uint64(len(escaped)))
	return append(dst, escaped...)
}

// appendLogprobs appends the entries of logprobs.content.
func appendLogprobs(dst []byte, all []api.Logprob) []byte {
	for i, l := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendLogprob(dst, l.TokenLogprob)
		dst = append(dst, `,"top_logprobs":[`...)
		for j, top := range l.TopLogprobs {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = appendLogprob(dst, top)
			dst = append(dst, '}')
		}
		dst = append(dst, `]}`...)
	}
	return dst
}

func appendLogprob(dst []byte, l api.TokenLogprob) []byte {
	dst = append(dst, `{"token":`...)
	dst = appendString(dst, l.Token)
	dst = append(dst, `,"logprob":`...)
	dst = strconv.AppendFloat(dst, l.Logprob, 'g', -1, 64)
	dst = append(dst, `,"bytes":`...)
	if l.Bytes == nil {
		return append(dst, "null"...)
	}
	dst = append(dst, '[')
	for i, b := range l.Bytes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(dst, int64(b), 10)
	}
	return append(dst, ']')
}

// thought splits a leading <think>…</think> off the content of a model whose
// server leaves it there. A tag anywhere else is text.
type thought struct {
	state thoughtState
	held  string // not yet known to be one thing or the other
}

type thoughtState uint8

const (
	thoughtUndecided thoughtState = iota // nothing but white space or part of a tag was seen
	thoughtOpening                       // after the tag, before the thought
	thoughtOpen                          // inside
	thoughtClosed                        // after it, before the content
	thoughtNone                          // in the content
)

const (
	thinkOpen  = "<think>"
	thinkClose = "</think>"
	blanks     = " \t\r\n"
)

func (t *thought) split(s string) (reasoning, text string) {
	if t.state == thoughtNone {
		return "", s
	}
	s = t.held + s
	t.held = ""
	if t.state == thoughtUndecided {
		trimmed := strings.TrimLeft(s, blanks)
		rest, found := strings.CutPrefix(trimmed, thinkOpen)
		switch {
		case found:
			t.state, s = thoughtOpening, rest
		case strings.HasPrefix(thinkOpen, trimmed):
			t.held = s
			return "", ""
		default:
			t.state = thoughtNone
			return "", s
		}
	}
	if t.state == thoughtOpening {
		if s = strings.TrimLeft(s, blanks); s == "" {
			return "", ""
		}
		t.state = thoughtOpen
	}
	if t.state == thoughtOpen {
		before, after, found := strings.Cut(s, thinkClose)
		if !found {
			keep := overlap(s, thinkClose)
			t.held = s[len(s)-keep:]
			return s[:len(s)-keep], ""
		}
		t.state, reasoning, s = thoughtClosed, before, after
	}
	if s = strings.TrimLeft(s, blanks); s != "" {
		t.state = thoughtNone
	}
	return reasoning, s
}

// end gives back what was held when the answer is over.
func (t *thought) end() (reasoning, text string) {
	held := t.held
	t.held = ""
	if t.state == thoughtOpen {
		return held, ""
	}
	return "", held
}

// overlap is the length of the longest end of s that begins tag.
func overlap(s, tag string) int {
	for n := min(len(s), len(tag)-1); n > 0; n-- {
		if strings.HasPrefix(tag, s[len(s)-n:]) {
			return n
		}
	}
	return 0
}
