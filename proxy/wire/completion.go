package wire

import (
	"encoding/json"
	"iter"
	"maps"
	"strconv"
	"unicode/utf8"

	"github.com/ollama/ollama/api"
)

// Completion is a completion request: prompts, each of which is answered by
// itself. A prompt goes through the model's template as the only message of a
// chat, as it does at Ollama's own endpoint of this name.
type Completion struct {
	*Chat // its options; it has no messages, and N choices are for each prompt

	Prompts []string // never empty, nor is any of them; token arrays are decoded
	Suffix  string   // what the answer must lead to
	Echo    bool     // the prompt is written before its answer
}

//nolint:gochecknoglobals // a compiled table
var completionKeys = newKeys("model", "prompt", "suffix", "echo", "n", "best_of", "max_tokens", "logprobs",
	"stream", "stream_options", "temperature", "top_p", "min_p", "top_k",
	"frequency_penalty", "presence_penalty", "repeat_penalty", "seed", "stop",
	"service_tier", "metadata", "user",
	// Accepted without effect:
	"logit_bias", "num_ctx", "keep_alive", "options", "think", "format")

// DecodeCompletion reads the body of a completion request in one strict scan.
// The error is an [*Error].
func DecodeCompletion(body []byte, lim Limits) (*Completion, error) {
	c := &Completion{Chat: &Chat{N: 1, ReasoningEffort: "none"}} // a text has no place for thoughts
	d := newDecoder(body, lim, c.Chat)
	best := 0
	for key := range d.object(completionKeys) {
		switch key {
		case "model":
			c.Model = d.text()
		case "prompt":
			c.Prompts = d.prompts(d.lim.Prompts)
		case "suffix":
			c.Suffix = d.text()
		case "echo":
			c.Echo = d.bool()
		case "n":
			c.N = d.int(1, d.lim.Choices)
		case "best_of":
			best = d.int(0, 20)
		case "max_tokens":
			c.MaxTokens = d.tokenLimit()
		case "logprobs":
			c.Logprobs, c.TopLogprobs = true, d.int(0, 20)
		default:
			d.option(key)
		}
	}
	if best > 1 && best != c.N {
		d.ignored("best_of")
	}
	switch err := d.end(); {
	case err != nil:
		return nil, err
	case c.Model == "":
		return nil, noModel()
	case c.Prompts == nil:
		return nil, invalid(codeMissing, "prompt", "You must provide a 'prompt': a text, or an array of texts.")
	case len(c.Prompts)*c.N > d.lim.Prompts:
		return nil, invalid(codeInvalidValue, "n", "Invalid value for 'n': at most "+strconv.Itoa(d.lim.Prompts)+" choices are accepted, for all prompts together.")
	}
	return c, nil
}

// Head returns what the request has in common with others.
func (c *Completion) Head() Head {
	h := c.Chat.Head()
	h.Prompt = "prompt"
	return h
}

// IgnoredFor names the fields without effect.
func (c *Completion) IgnoredFor(Params) []string { return c.Ignored }

// AppendKey appends what two requests must share to share an answer: not
// whether it echoes the prompt, which is a matter of delivery.
func (c *Completion) AppendKey(dst []byte, p Params) []byte {
	k := key(c.Chat.AppendKey(dst, p))
	k.text(c.Suffix)
	k.int(len(c.Prompts))
	for _, prompt := range c.Prompts {
		k.text(prompt)
	}
	return k
}

// Requests translates for Ollama's /api/generate: a request for every choice,
// the first prompt's first. The error is an [*Error].
func (c *Completion) Requests(p Params) ([]*api.GenerateRequest, error) {
	if c.Suffix != "" && p.lacks("insert") {
		return nil, invalid(codeUnsupported, "suffix", "Unsupported parameter: 'suffix': the model that would answer cannot write between two texts.")
	}
	options := c.options(p)
	all := make([]*api.GenerateRequest, 0, len(c.Prompts)*c.N)
	for _, prompt := range c.Prompts {
		for choice := range c.N {
			options := options
			if c.Seed != nil && choice > 0 {
				options = maps.Clone(options)
				options["seed"] = *c.Seed + choice
			}
			all = append(all, &api.GenerateRequest{
				Model: p.Model, Prompt: prompt, Suffix: c.Suffix, Options: options, Think: c.think(p),
				Stream: new(true), Truncate: new(false), Shift: new(false), Logprobs: c.Logprobs, TopLogprobs: c.TopLogprobs,
			})
		}
	}
	return all, nil
}

// Recorder returns a recorder for the answers to c's requests with p.
func (c *Completion) Recorder(p Params) *Recorder { return newRecorder(c.Chat, p, len(c.Prompts)*c.N) }

// Generated is Line for a line of /api/generate.
func (r *Recorder) Generated(index int, g *api.GenerateResponse) ([][]byte, error) {
	return r.Line(index, &api.ChatResponse{
		Message: api.Message{Content: g.Response, Thinking: g.Thinking},
		Done:    g.Done, DoneReason: g.DoneReason, Metrics: g.Metrics, Logprobs: g.Logprobs,
	})
}

// Encoder returns what writes an answer to c.
func (c *Completion) Encoder(s Stamp) Encoder {
	t := &textAnswer{request: c, written: make([]int, len(c.Prompts)*c.N)}
	t.ID, t.Model, t.Created, t.Fingerprint, t.IncludeUsage = "cmpl-"+s.ID, c.Model, s.Created, s.Fingerprint, c.IncludeUsage
	t.head = t.appendHead([]byte("data: "), textObject)
	return t
}

const textObject = "text_completion"

// textAnswer writes a completion. Its streams begin and end as those of chats.
type textAnswer struct {
	Answer
	request *Completion
	written []int // characters, by choice, while there are logprobs to place
}

// prompt is that of a choice, escaped, where it is echoed.
func (t *textAnswer) prompt(index int) []byte {
	if !t.request.Echo {
		return nil
	}
	prompt := t.request.Prompts[index/t.request.N]
	t.written[index] = utf8.RuneCountInString(prompt)
	return appendEscaped(nil, prompt)
}

func (t *textAnswer) AppendEvents(dst, chunk []byte) []byte {
	kind, index, payload := parse(chunk)
	var text, logprobs, reason []byte
	switch kind {
	case kindRole:
		if text = t.prompt(index); text == nil {
			return dst
		}
	case kindText:
		text = payload
	case kindLogprobs:
		text, logprobs = cutSized(payload)
	case kindFinish:
		reason = payload
	case kindUsage:
		t.Answer.prompt, t.completion, _ = FinishCounts(chunk)
		return dst
	default: // thoughts, of a model that cannot do without
		return dst
	}
	dst = t.openEvent(dst)
	dst = append(dst, `"choices":[`...)
	dst = t.appendChoice(dst, index, text, logprobs, reason)
	dst = append(dst, ']')
	if t.IncludeUsage {
		dst = append(dst, `,"usage":null`...)
	}
	return append(dst, "}\n\n"...)
}

// AppendOpening appends an event that adds nothing to choice 0.
func (t *textAnswer) AppendOpening(dst []byte) []byte {
	return t.AppendEvents(dst, []byte{kindText, 0})
}

func (t *textAnswer) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	dst = t.appendHead(dst, textObject)
	dst = append(dst, `"choices":[`...)
	parts := make([]part, len(t.written))
	for chunk := range chunks {
		kind, index, payload := parse(chunk)
		p := &parts[index]
		switch kind {
		case kindRole:
			p.content = t.prompt(index)
		case kindText:
			p.content = append(p.content, payload...)
		case kindLogprobs:
			text, entries := cutSized(payload)
			p.content = append(p.content, text...)
			p.logprobs = append(appendSeparator(p.logprobs), entries...)
		case kindFinish:
			p.reason = payload
		case kindUsage:
			t.Answer.prompt, t.completion, _ = FinishCounts(chunk)
		}
	}
	for i, p := range parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = t.appendChoice(dst, i, p.content, p.logprobs, p.reason)
	}
	dst = append(dst, `],`...)
	dst = t.appendUsage(dst)
	return append(dst, '}')
}

func (t *textAnswer) appendChoice(dst []byte, index int, text, logprobs, reason []byte) []byte {
	dst = appendMember(dst, `{"text":`, text)
	dst = append(dst, `,"index":`...)
	dst = strconv.AppendInt(dst, int64(index), 10)
	dst = append(dst, `,"logprobs":`...)
	dst = t.appendTokens(dst, index, logprobs)
	if reason == nil {
		return append(dst, `,"finish_reason":null}`...)
	}
	dst = appendMember(dst, `,"finish_reason":`, reason)
	return append(dst, '}')
}

// appendTokens writes the entries of a chat's logprobs in the form that
// completions have: lists side by side, for the tokens of the answer.
func (t *textAnswer) appendTokens(dst []byte, index int, entries []byte) []byte {
	type token struct {
		Token   string
		Logprob float64
		Top     []token `json:"top_logprobs"`
	}
	var tokens []token
	list := append(append([]byte{'['}, entries...), ']')
	if json.Unmarshal(list, &tokens) != nil || len(tokens) == 0 {
		return append(dst, "null"...)
	}
	var names, values, offsets []byte
	tops := []byte(nil)
	for _, tok := range tokens {
		names = appendString(appendSeparator(names), tok.Token)
		values = strconv.AppendFloat(appendSeparator(values), tok.Logprob, 'g', -1, 64)
		offsets = strconv.AppendInt(appendSeparator(offsets), int64(t.written[index]), 10)
		t.written[index] += utf8.RuneCountInString(tok.Token)
		tops = append(appendSeparator(tops), '{')
		seen := map[string]bool{}
		for _, top := range append(tok.Top, tok) { // the one that was taken is always among them
			if seen[top.Token] {
				continue
			}
			if len(seen) > 0 {
				tops = append(tops, ',')
			}
			seen[top.Token] = true
			tops = append(appendString(tops, top.Token), ':')
			tops = strconv.AppendFloat(tops, top.Logprob, 'g', -1, 64)
		}
		tops = append(tops, '}')
	}
	for _, member := range [...]struct {
		name string
		list []byte
	}{{`{"tokens":[`, names}, {`],"token_logprobs":[`, values}, {`],"top_logprobs":[`, tops}, {`],"text_offset":[`, offsets}} {
		dst = append(dst, member.name...)
		dst = append(dst, member.list...)
	}
	return append(dst, "]}"...)
}
