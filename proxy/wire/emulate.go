package wire

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/sashabaranov/go-openai"
)

// toolPlan is how tools reach the model. Ollama knows no tool_choice, and
// refuses tools where the model's template has no place for them; there a
// grammar for the answer stands in, which every model obeys.
type toolPlan uint8

const (
	planNone      toolPlan = iota // there are no tools to call
	planNative                    // sent as tools; the server finds the calls in the answer
	planArguments                 // one tool must be called: the answer is its arguments
	planCall                      // one of several must be called: {"tool":NAME,"arguments":{…}}
	planUnion                     // the like, or {"answer":…}
)

func (c *Chat) plan(p Params) toolPlan {
	tools := c.callable()
	switch {
	case len(tools) == 0:
		return planNone
	case c.ToolChoice.Mode == ToolRequired && len(tools) == 1:
		return planArguments
	case c.ToolChoice.Mode == ToolRequired:
		return planCall
	case p.lacks("tools") || c.Format.Kind != FormatText:
		return planUnion
	}
	for _, tool := range tools {
		if tool.native == nil {
			return planUnion
		}
	}
	return planNative
}

// emulated reports whether the answer must be read as a call.
func (p toolPlan) emulated() bool { return p > planNative }

// natively translates the parameters of a tool to Ollama's type, which does not
// hold every schema: then it returns nil.
func natively(parameters []byte) *api.ToolFunctionParameters {
	out := &api.ToolFunctionParameters{}
	if len(parameters) > 0 && json.Unmarshal(parameters, out) != nil {
		return nil
	}
	if out.Type == "" {
		out.Type = "object"
	}
	if out.Properties == nil {
		out.Properties = api.NewToolPropertiesMap()
	}
	return out
}

func (c *Chat) nativeTools() api.Tools {
	var out api.Tools
	for _, tool := range c.callable() {
		out = append(out, api.Tool{Type: "function", Function: api.ToolFunction{
			Name: tool.Name, Description: tool.Description, Parameters: *tool.native,
		}})
	}
	return out
}

// noParameters is the schema of a tool that takes none.
const noParameters = `{"type":"object","properties":{}}`

func (t *Tool) schema() []byte {
	if len(t.Parameters) == 0 || string(t.Parameters) == "{}" {
		return []byte(noParameters)
	}
	return t.Parameters
}

// format is what the answer must look like, nil for text.
func (c *Chat) format(plan toolPlan) (json.RawMessage, error) {
	switch {
	case plan == planArguments:
		return roomy(standalone(c.callable()[0].schema()))
	case plan == planCall || plan == planUnion:
		return roomy(c.callFormat(plan))
	case c.Format.Kind == FormatJSON:
		return json.RawMessage(`"json"`), nil
	case c.Format.Kind == FormatSchema:
		return roomy(standalone(c.Format.Schema))
	}
	return nil, nil
}

// callFormat is the schema of an answer that is a call of one of the tools or,
// with planUnion, an answer.
func (c *Chat) callFormat(plan toolPlan) []byte {
	options := []byte(`{"anyOf":[`)
	defs := []byte(`],"$defs":{`)
	define := func(name string, schema []byte) {
		defs = appendName(defs, name)
		defs = appendGrammar(defs, schema, "#/$defs/"+name)
	}
	for i, tool := range c.callable() {
		name := "tool" + strconv.Itoa(i)
		options = append(appendComma(options), `{"type":"object","properties":{"tool":{"const":`...)
		options = appendString(options, tool.Name)
		options = append(options, `},"arguments":{"$ref":"#/$defs/`+name+`"}},"required":["tool","arguments"]}`...)
		define(name, tool.schema())
	}
	if plan == planUnion {
		options = append(options, `,{"type":"object","properties":{"answer":{"$ref":"#/$defs/answer"}},"required":["answer"]}`...)
		switch c.Format.Kind {
		case FormatText:
			define("answer", []byte(`{"type":"string"}`))
		case FormatJSON:
			define("answer", []byte(`{"type":"object"}`))
		case FormatSchema:
			define("answer", c.Format.Schema)
		}
	}
	return append(append(options, defs...), "}}"...)
}

// instructions tell the model about tools that its template cannot.
func (c *Chat) instructions(plan toolPlan) string {
	var b []byte
	b = append(b, "These tools can be called. Each is given with the JSON schema of its arguments.\n"...)
	for _, tool := range c.callable() {
		b = append(b, `{"name":`...)
		b = appendString(b, tool.Name)
		if tool.Description != "" {
			b = append(b, `,"description":`...)
			b = appendString(b, tool.Description)
		}
		b = append(b, `,"parameters":`...)
		b = append(b, tool.schema()...)
		b = append(b, "}\n"...)
	}
	switch plan {
	case planArguments:
		b = append(b, "Call the tool now: reply with the JSON object of its arguments and nothing else."...)
	case planCall:
		b = append(b, `Call one of them now: reply with {"tool": its name, "arguments": {...}} in JSON and nothing else.`...)
	default:
		b = append(b, `To call one, reply with {"tool": its name, "arguments": {...}}. `...)
		b = append(b, `When no call is needed, or its result is there, reply with {"answer": ...}. Reply in JSON and with nothing else.`...)
	}
	return string(b)
}

// messages translates the conversation. Earlier calls and their results become
// plain text for a model whose template has no place for them.
func (c *Chat) messages(p Params, plan toolPlan) []api.Message {
	out := make([]api.Message, 0, len(c.Messages)+1)
	if plan.emulated() {
		out = append(out, api.Message{Role: openai.ChatMessageRoleSystem, Content: c.instructions(plan)})
	}
	names := map[string]string{} // of the tools called, by the call's id
	for _, m := range c.Messages {
		for _, call := range m.ToolCalls {
			names[call.ID] = call.Name
		}
		if m.Role == openai.ChatMessageRoleTool && m.Name == "" {
			m.Name = names[m.ToolCallID]
		}
		switch {
		case m.Role == openai.ChatMessageRoleSystem && len(out) == 1 && plan.emulated():
			out[0].Content = m.Text + "\n\n" + out[0].Content
		case p.lacks("tools"):
			out = append(out, plainly(m))
		default:
			out = append(out, natural(m))
		}
	}
	return out
}

func natural(m Message) api.Message {
	out := api.Message{Role: m.Role, Content: m.Text, ToolName: m.Name, ToolCallID: m.ToolCallID}
	for _, image := range m.Images {
		out.Images = append(out.Images, image)
	}
	for i, call := range m.ToolCalls {
		out.ToolCalls = append(out.ToolCalls, api.ToolCall{ID: call.ID, Function: api.ToolCallFunction{
			Index: i, Name: call.Name, Arguments: arguments(call.Arguments),
		}})
	}
	return out
}

// arguments reads the arguments of an earlier call. A model may have written
// anything; what is not an object becomes the only member of one.
func arguments(text string) api.ToolCallFunctionArguments {
	out := api.NewToolCallFunctionArguments()
	if strings.TrimSpace(text) == "" {
		return out
	}
	if err := out.UnmarshalJSON([]byte(text)); err != nil {
		out = api.NewToolCallFunctionArguments()
		out.Set("arguments", text)
	}
	return out
}

// plainly writes calls as the model itself would when asked for planUnion, and
// their results as what the user says next.
func plainly(m Message) api.Message {
	if m.Role == openai.ChatMessageRoleTool {
		return api.Message{Role: openai.ChatMessageRoleUser, Content: "Result of the tool " + m.Name + ":\n" + m.Text}
	}
	calls := m.ToolCalls
	m.ToolCalls = nil
	for _, call := range calls {
		args := arguments(call.Arguments)
		b := appendString([]byte(`{"tool":`), call.Name)
		b = append(b, `,"arguments":`+args.String()+`}`...)
		m.Text = strings.TrimLeft(m.Text+"\n"+string(b), "\n")
	}
	return natural(m)
}

// reply is an answer that may be a call, read while it comes in.
type reply struct {
	raw   []byte
	state replyState
	at    int // how much of raw was given on, in replyAnswer
}

type replyState uint8

const (
	replyUndecided replyState = iota
	replyAnswer               // inside the string of {"answer":"…"}
	replyAnswered             // behind it
	replyWhole                // only to be read when it is complete
)

// answer takes more of a planUnion reply and returns what it adds to a text
// answer: nothing, if the reply is a call.
func (r *reply) answer(text string) string {
	r.raw = append(r.raw, text...)
	if r.state == replyUndecided {
		r.at, r.state = answerStart(r.raw)
	}
	if r.state != replyAnswer {
		return ""
	}
	size, closed := wholeEscapes(r.raw[r.at:])
	more := unescape(r.raw[r.at : r.at+size])
	r.at += size
	if closed {
		r.state = replyAnswered
	}
	return more
}

// answerStart looks for {"answer":" at the front of a reply.
func answerStart(raw []byte) (at int, state replyState) {
	s := string(raw)
	rest := s
	for _, token := range []string{"{", `"answer"`, ":", `"`} {
		rest = strings.TrimLeft(rest, blanks)
		after, found := strings.CutPrefix(rest, token)
		switch {
		case found:
			rest = after
		case strings.HasPrefix(token, rest):
			return 0, replyUndecided
		default:
			return 0, replyWhole
		}
	}
	return len(s) - len(rest), replyAnswer
}

// wholeEscapes returns how much of a JSON string's inside ends with a whole
// character, and whether its closing quote follows.
func wholeEscapes(b []byte) (size int, closed bool) {
	for size < len(b) {
		switch {
		case b[size] == '"':
			return size, true
		case b[size] != '\\':
			size++
			continue
		}
		next := 2
		if len(b) > size+1 && b[size+1] == 'u' {
			next = 6
			if len(b) >= size+6 && hex4(b[size+2:])&^0x3ff == 0xd800 { // its other half may follow
				next = 8
				if len(b) >= size+8 {
					next = 6
					if string(b[size+6:size+8]) == `\u` {
						next = 12
					}
				}
			}
		}
		if len(b) < size+next {
			return size, false
		}
		size += next
	}
	return size, false
}
