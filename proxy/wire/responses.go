package wire

import (
	"slices"
	"strings"

	"github.com/sashabaranov/go-openai"
)

// Responses is a request for a response: a chat in other words. Nothing of it
// is kept, so that every request brings its whole conversation.
type Responses struct {
	*Chat

	Instructions string // they go before all messages, as the system's

	toolChoice []byte // as the client sent it, compact; empty = auto
}

//nolint:gochecknoglobals // compiled tables of the names each object may use
var (
	responsesKeys = newKeys("model", "input", "instructions", "max_output_tokens", "text", "reasoning",
		"tools", "tool_choice", "parallel_tool_calls", "store", "truncation",
		"previous_response_id", "conversation", "background", "prompt",
		"stream", "stream_options", "temperature", "top_p", "min_p", "top_k",
		"frequency_penalty", "presence_penalty", "repeat_penalty", "seed", "stop",
		"service_tier", "metadata", "user",
		// Accepted without effect:
		"include", "max_tool_calls", "top_logprobs", "context_management", "moderation",
		"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
		"num_ctx", "keep_alive", "options", "think", "format")
	textKeys       = newKeys("format", "verbosity")
	textFormatKeys = newKeys("type", "name", "description", "schema", "strict")
	thoughtKeys    = newKeys("effort", "summary", "generate_summary")
	itemKeys       = newKeys("type", "id", "role", "content", "call_id", "name", "arguments", "output", "status")
	flatChoiceKeys = newKeys("type", "name", "mode", "tools")

	// hostedTools are those that OpenAI runs itself, and those that are not
	// called with JSON.
	hostedTools = []string{
		"apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search", "image_generation",
		"local_shell", "mcp", "namespace", "programmatic_tool_calling", "shell", "tool_search",
		"web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
	}
)

// DecodeResponses reads the body of a request for a response in one strict
// scan. The error is an [*Error].
func DecodeResponses(body []byte, lim Limits) (*Responses, error) {
	r := &Responses{Chat: &Chat{N: 1, promptField: "input"}}
	d := responsesDecoder{decoder: newDecoder(body, lim, r.Chat), response: r}
	d.flat = true
	d.request()
	if err := d.end(); err != nil {
		return nil, err
	}
	if r.Model != "" && len(r.Messages) == 0 {
		return nil, invalid(codeMissing, "input", "You must provide an 'input': a text, or an array of items with a message among them.")
	}
	if r.Instructions != "" {
		if first := &r.Messages; len(*first) > 0 && (*first)[0].Role == openai.ChatMessageRoleSystem {
			(*first)[0].Text = r.Instructions + "\n\n" + (*first)[0].Text
		} else {
			r.Messages = slices.Insert(r.Messages, 0, Message{Role: openai.ChatMessageRoleSystem, Text: r.Instructions})
		}
	}
	if err := d.finish(); err != nil {
		return nil, err
	}
	return r, nil
}

// IgnoredFor names the fields without effect on the model of p.
func (r *Responses) IgnoredFor(p Params) []string {
	ignored := slices.Clone(r.Chat.IgnoredFor(p))
	if at := slices.Index(ignored, "reasoning_effort"); at >= 0 {
		ignored[at] = "reasoning.effort"
	}
	return ignored
}

// NotStored refuses to look for a response that was given before.
func NotStored() *Error {
	e := invalid("response_not_found", "response_id", "No response of this id is found: responses are not stored here.")
	e.Status = 404
	return e
}

type responsesDecoder struct {
	decoder
	response *Responses
}

func (d *responsesDecoder) request() {
	c := d.chat
	for key := range d.object(responsesKeys) {
		switch key {
		case "model":
			c.Model = d.text()
		case "input":
			d.input()
		case "instructions":
			d.response.Instructions = d.text()
		case "max_output_tokens":
			c.MaxTokens = d.tokenLimit()
		case "text":
			for key := range d.object(textKeys) {
				if key == "format" {
					d.textFormat()
				} else {
					d.ignore("text." + key)
				}
			}
		case "reasoning":
			d.reasoning()
		case "tools":
			d.flatTools()
		case "tool_choice":
			d.flatChoice()
		case "parallel_tool_calls":
			c.ParallelOff = !d.bool()
		case "store":
			if d.bool() {
				d.ignored(key)
			}
		case "truncation":
			d.truncation()
		case "previous_response_id", "conversation", "background", "prompt":
			d.stored(key)
		default:
			d.option(key)
		}
	}
}

// stored refuses what would need something that was kept.
func (d *responsesDecoder) stored(key string) {
	switch key {
	case "background":
		if d.bool() {
			d.fail(codeUnsupported, "Unsupported value for 'background': responses are not stored here, so that there is none to come back for. Leave it out.")
		}
	case "prompt":
		d.fail(codeUnsupported, "Unsupported parameter: 'prompt': there are no stored prompts here. Send instructions and input.")
	case "previous_response_id":
		d.fail("previous_response_not_found", "Unsupported parameter: 'previous_response_id': responses are not stored here. Send the whole conversation as 'input'.")
	default:
		d.fail(codeUnsupported, "Unsupported parameter: 'conversation': conversations are not stored here. Send the whole conversation as 'input'.")
	}
}

func (d *responsesDecoder) truncation() {
	switch d.text() {
	case "disabled":
	case "auto": // a conversation that does not fit is an error, whatever is said here
		d.ignored("truncation")
	default:
		d.badValue("expected auto or disabled")
	}
}

func (d *responsesDecoder) reasoning() {
	for key := range d.object(thoughtKeys) {
		switch key {
		case "effort":
			d.chat.ReasoningEffort = d.effort()
		case "summary", "generate_summary":
			d.skip() // a model that thinks always tells what
		default:
			d.ignore("reasoning." + key)
		}
	}
}

func (d *responsesDecoder) textFormat() {
	f := &d.chat.Format
	for key := range d.object(textFormatKeys) {
		if key == "type" {
			f.Kind = d.formatKind()
		} else {
			d.schemaKey(key)
		}
	}
	switch {
	case d.err != nil:
	case f.Kind != FormatSchema:
		*f = Format{Kind: f.Kind}
	case f.Schema == nil:
		d.missing("schema")
	}
}

func (d *responsesDecoder) flatTools() {
	for i := range d.array() {
		if i == d.lim.Tools {
			d.tooMany("tools", d.lim.Tools)
			return
		}
		if kind := d.member("type"); kind != "function" {
			d.hosted(kind)
			return
		}
		d.chat.Tools = append(d.chat.Tools, d.function())
	}
}

// hosted refuses a tool that is no function.
func (d *responsesDecoder) hosted(kind string) {
	if !slices.Contains(hostedTools, kind) {
		kind = "this type"
	}
	d.fail(codeUnsupported, "Unsupported value for '"+d.param()+"': tools of "+kind+" are not served here, only those of type function.")
}

// flatChoice reads a mode, a function by its name, or a set of allowed ones.
func (d *responsesDecoder) flatChoice() {
	d.choice = &ToolChoice{}
	d.peek()
	start := d.pos
	if d.peek() == '"' {
		d.choice.Mode = d.toolMode()
		return
	}
	kind := d.member("type")
	switch kind {
	case "function":
		d.choice.Mode = ToolRequired
	case "allowed_tools":
	default:
		if d.err == nil {
			d.hosted(kind)
		}
		return
	}
	for key := range d.object(flatChoiceKeys) {
		switch {
		case key == "name" && kind == "function":
			d.choice.Allowed = []string{d.text()}
		case key == "mode" && kind == "allowed_tools":
			d.choice.Mode = d.toolMode()
		case key == "tools" && kind == "allowed_tools":
			for range d.array() {
				d.choice.Allowed = append(d.choice.Allowed, d.named())
			}
		default:
			d.skip()
		}
	}
	if d.err == nil && len(d.choice.Allowed) == 0 {
		d.badValue("it names no function")
		return
	}
	if d.err == nil {
		d.response.toolChoice = compact(nil, d.buf[start:d.pos])
	}
}

func (d *responsesDecoder) input() {
	switch d.peek() {
	case '"':
		d.messages++
		d.chat.Messages = []Message{{Role: openai.ChatMessageRoleUser, Text: d.prompt(d.text())}}
	case '[':
		for i := range d.array() {
			if i == d.lim.Messages {
				d.tooMany("items", d.lim.Messages)
				return
			}
			d.messages++
			d.item()
		}
	default:
		d.wrongType("a string or an array of items")
	}
}

// item reads one item of the conversation.
func (d *responsesDecoder) item() {
	kind := d.member("type")
	if kind == "" && d.err == nil {
		if kind = "message"; d.member("role") == "" {
			kind = "item_reference"
		}
	}
	if d.err != nil {
		return
	}
	switch kind {
	case "message", "function_call", "function_call_output":
	case "reasoning", "compaction": // of an earlier answer, sent back
		d.skip()
		return
	case "item_reference":
		d.fail(codeUnsupported, "Unsupported value for '"+d.param()+"': items are not stored here, so that none can be referred to. Send the items themselves; clients do so with store: false.")
		return
	default:
		d.path = append(d.path, step{key: "type"})
		d.fail(codeUnsupported, "Unsupported value for '"+d.param()+"': expected message, function_call, function_call_output or reasoning.")
		return
	}
	var m Message
	var call ToolCall
	given := map[string]bool{}
	for key := range d.object(itemKeys) {
		given[key] = true
		switch key {
		case "role":
			m.Role = d.role()
		case "content", "output":
			d.content(&m)
		case "call_id":
			call.ID = d.text()
		case "name":
			call.Name = d.text()
		case "arguments":
			call.Arguments = d.text()
		default:
			d.skip()
		}
	}
	need := map[string][]string{"message": {"role", "content"}, "function_call": {"call_id", "name"}, "function_call_output": {"call_id", "output"}}[kind]
	for _, member := range need {
		if d.err == nil && !given[member] {
			d.missing(member)
		}
	}
	if d.err != nil {
		return
	}
	switch kind {
	case "function_call":
		m = Message{Role: openai.ChatMessageRoleAssistant, ToolCalls: []ToolCall{call}}
	case "function_call_output":
		m.Role, m.ToolCallID = openai.ChatMessageRoleTool, call.ID
	}
	d.add(m)
}

// add appends a message. The items of one turn are one message: a text and the
// calls that follow it.
func (d *responsesDecoder) add(m Message) {
	c := d.chat
	if n := len(c.Messages); n > 0 && c.Messages[n-1].Role == m.Role {
		last := &c.Messages[n-1]
		switch {
		case m.Role == openai.ChatMessageRoleSystem:
			last.Text = strings.Join([]string{last.Text, m.Text}, "\n\n")
			return
		case len(m.ToolCalls) > 0:
			last.ToolCalls = append(last.ToolCalls, m.ToolCalls...)
			return
		}
	}
	c.Messages = append(c.Messages, m)
}
