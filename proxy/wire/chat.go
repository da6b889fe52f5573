package wire

import (
	"cmp"
	"encoding/base64"
	"math"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/sashabaranov/go-openai"
)

// Limits bound what a request may hold. A field left 0 has its default.
type Limits struct {
	Messages    int // 2048
	Parts       int // 8192 content parts and tool calls in all messages
	Metadata    int // 16 pairs, as OpenAI
	Tools       int // 128, as OpenAI
	Images      int // 32 in all messages
	ImageBytes  int // 20 MiB for one image, decoded
	Depth       int // 100 levels of nested JSON
	Choices     int // 8: n is refused above it
	MaxTokens   int // 2^31-1: max_tokens is refused above it (Params.MaxTokensCap lowers it instead)
	Stops       int // 32
	SchemaBytes int // 128 KiB for one schema

	Inputs       int // 2048 of an embeddings request, as OpenAI
	Prompts      int // 128 of a completion request, and choices for them
	PromptTokens int // 300000 of a prompt that is given as token numbers, as OpenAI
}

func (l Limits) orDefault() Limits {
	return Limits{
		Messages:    cmp.Or(l.Messages, 2048),
		Parts:       cmp.Or(l.Parts, 8192),
		Metadata:    cmp.Or(l.Metadata, 16),
		Tools:       cmp.Or(l.Tools, 128),
		Images:      cmp.Or(l.Images, 32),
		ImageBytes:  cmp.Or(l.ImageBytes, 20<<20),
		Depth:       cmp.Or(l.Depth, 100),
		Choices:     cmp.Or(l.Choices, 8),
		MaxTokens:   cmp.Or(l.MaxTokens, math.MaxInt32),
		Stops:       cmp.Or(l.Stops, 32),
		SchemaBytes: cmp.Or(l.SchemaBytes, 128<<10),

		Inputs:       cmp.Or(l.Inputs, 2048),
		Prompts:      cmp.Or(l.Prompts, 128),
		PromptTokens: cmp.Or(l.PromptTokens, 300_000),
	}
}

// Chat is a chat completion request. A nil pointer is a field the client left
// out, sent as null or, for MaxTokens, as 0.
type Chat struct {
	Model    string // the id asked for
	Messages []Message

	Stream       bool
	IncludeUsage bool // stream_options.include_usage
	N            int  // choices, at least 1

	MaxTokens        *int // the smaller of max_completion_tokens and max_tokens
	Temperature      *float64
	TopP             *float64
	MinP             *float64
	TopK             *int
	FrequencyPenalty *float64
	PresencePenalty  *float64
	RepeatPenalty    *float64
	Seed             *int
	Stop             []string
	Logprobs         bool
	TopLogprobs      int
	ReasoningEffort  string

	Format       Format
	Tools        []Tool
	ToolChoice   ToolChoice
	ParallelOff  bool // parallel_tool_calls: false
	functionsAPI bool // functions/function_call, answered in kind

	promptField string // where the messages stood; empty = messages

	ServiceTier string
	Metadata    map[string]string
	User        string

	// Ignored names the fields that were given and have no effect, for
	// whichever model; see also [Chat.IgnoredFor].
	Ignored []string
}

// Message is one message of the conversation. The role is system (also for
// developer), user, assistant or tool (also for function); adjacent system
// messages are one, with a blank line between them.
type Message struct {
	Role       string
	Text       string   // text parts are joined with a newline
	Images     [][]byte // decoded data URLs
	ToolCalls  []ToolCall
	ToolCallID string
	Name       string // of the tool that answers, where the client says it
}

// ToolCall is a call the model made in an earlier turn.
type ToolCall struct {
	ID, Name  string
	Arguments string // JSON, as the model wrote it
}

// FormatKind is what response_format asks for.
type FormatKind uint8

// The kinds of response_format.
const (
	FormatText FormatKind = iota
	FormatJSON
	FormatSchema
)

// Format is response_format.
type Format struct {
	Kind   FormatKind
	Name   string
	Strict bool   // the answer is checked against Schema
	Schema []byte // compact JSON, members in the client's order

	compiled *jsonschema.Schema
}

// Tool is a function the model may call.
type Tool struct {
	Name, Description string
	Strict            bool
	Parameters        []byte // a JSON schema, compact; empty if none was given

	compiled *jsonschema.Schema
	native   *api.ToolFunctionParameters // nil if Ollama's type cannot hold them
}

// ToolChoice says whether tools are to be called.
type ToolChoice struct {
	Mode    ToolMode
	Allowed []string // names of the tools that may be called; nil = all
}

// ToolMode is the mode of a [ToolChoice].
type ToolMode uint8

// The modes of tool_choice; a tool asked for by name is ToolRequired with one
// name allowed.
const (
	ToolAuto ToolMode = iota
	ToolNone
	ToolRequired
)

const roleFunction = "function" // deprecated form of tool

//nolint:gochecknoglobals // compiled tables of the names each object may use
var (
	chatKeys = newKeys(
		"model", "messages", "stream", "stream_options", "n",
		"max_tokens", "max_completion_tokens", "temperature", "top_p", "min_p", "top_k",
		"frequency_penalty", "presence_penalty", "repeat_penalty", "seed", "stop",
		"logprobs", "top_logprobs", "reasoning_effort", "reasoning",
		"response_format", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
		"service_tier", "metadata", "user",
		// Accepted without effect:
		"store", "logit_bias", "verbosity", "prediction", "audio", "modalities", "web_search_options",
		"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "moderation",
		"num_ctx", "keep_alive", "options", "think", "format",
	)
	streamKeys  = newKeys("include_usage", "include_obfuscation")
	reasonKeys  = newKeys("effort")
	messageKeys = newKeys("role", "content", "name", "tool_calls", "tool_call_id", "function_call",
		"refusal", "audio", "annotations", "reasoning", "reasoning_content", "thinking")
	partKeys     = newKeys("type", "text", "refusal", "image_url")
	imageKeys    = newKeys("url", "detail")
	callKeys     = newKeys("id", "type", "function", "custom", "index")
	functionKeys = newKeys("name", "description", "parameters", "strict", "arguments")
	formatKeys   = newKeys("type", "json_schema")
	schemaKeys   = newKeys("name", "description", "schema", "strict")
	toolKeys     = newKeys("type", "function", "custom")
	choiceKeys   = newKeys("type", "function", "custom", "allowed_tools")
	allowedKeys  = newKeys("mode", "tools")
	noKeys       = newKeys()
)

// DecodeChat reads the body of a chat completion request in one strict scan.
// The error is an [*Error].
func DecodeChat(body []byte, lim Limits) (*Chat, error) {
	d := newDecoder(body, lim, &Chat{N: 1})
	d.request()
	if err := d.end(); err != nil {
		return nil, err
	}
	if err := d.finish(); err != nil {
		return nil, err
	}
	return d.chat, nil
}

type decoder struct {
	reader
	chat     *Chat
	images   int
	parts    int  // of content, and tool calls
	messages int  // before adjacent system messages became one
	top      *int // top_logprobs
	flat     bool // tools and parts of messages in the form of responses

	choice, legacyChoice *ToolChoice // tool_choice, function_call
	legacy               []Tool      // functions
}

func newDecoder(body []byte, lim Limits, c *Chat) decoder {
	return decoder{reader: newReader(body, lim, &c.Ignored), chat: c}
}

func (d *decoder) request() {
	c := d.chat
	for key := range d.object(chatKeys) {
		switch key {
		case "model":
			c.Model = d.text()
		case "messages":
			d.messagesOf(d.message)
		case "n":
			c.N = d.int(1, d.lim.Choices)
		case "max_tokens", "max_completion_tokens":
			if n := d.tokenLimit(); n != nil && (c.MaxTokens == nil || *n < *c.MaxTokens) {
				c.MaxTokens = n
			}
		case "logprobs":
			c.Logprobs = d.bool()
		case "top_logprobs":
			d.top = new(d.int(0, 20))
		case "reasoning_effort":
			c.ReasoningEffort = d.effort()
		case "reasoning":
			for key := range d.object(reasonKeys) {
				if key == "effort" {
					c.ReasoningEffort = d.effort()
				} else {
					d.ignore("reasoning." + key)
				}
			}
		case "response_format":
			d.format()
		case "tools":
			d.tools()
		case "tool_choice":
			d.toolChoice()
		case "parallel_tool_calls":
			c.ParallelOff = !d.bool()
		case "functions":
			d.functions()
		case "function_call":
			d.functionCall()
		default:
			d.option(key)
		}
	}
}

// option reads what all endpoints that make text have in common, and ignores
// what is not among it.
func (d *decoder) option(key string) {
	c := d.chat
	switch key {
	case "stream":
		c.Stream = d.bool()
	case "stream_options":
		for key := range d.object(streamKeys) {
			if key == "include_usage" {
				c.IncludeUsage = d.bool()
			} else {
				d.ignore("stream_options." + key)
			}
		}
	case "service_tier":
		c.ServiceTier = d.text()
	case "metadata":
		c.Metadata = d.strings()
	case "user":
		c.User = d.text()
	default:
		if !d.sampling(key, 2) {
			d.ignore(key)
		}
	}
}

// sampling reads how tokens are picked and where they end, at a temperature up
// to hottest. It is false of a key that says nothing about that.
func (d *decoder) sampling(key string, hottest float64) bool {
	c := d.chat
	switch key {
	case "temperature":
		c.Temperature = d.optional(0, hottest)
	case "top_p":
		c.TopP = d.optional(0, 1)
	case "min_p":
		c.MinP = d.optional(0, 1)
	case "top_k":
		c.TopK = new(d.int(0, math.MaxInt32))
	case "frequency_penalty":
		c.FrequencyPenalty = d.optional(-2, 2)
	case "presence_penalty":
		c.PresencePenalty = d.optional(-2, 2)
	case "repeat_penalty":
		c.RepeatPenalty = d.optional(0, 10)
	case "seed":
		c.Seed = new(d.int(math.MinInt, math.MaxInt))
	case "stop":
		d.stops()
	default:
		return false
	}
	return true
}

// stops reads stop. An empty string is dropped: the model's server would find
// it at once in any text.
func (d *decoder) stops() {
	one := func() {
		if stop := d.text(); stop != "" {
			d.chat.Stop = append(d.chat.Stop, stop)
		}
	}
	switch d.peek() {
	case '"':
		one()
	case '[':
		for i := range d.array() {
			if i == d.lim.Stops {
				d.tooMany("stop sequences", d.lim.Stops)
				return
			}
			one()
		}
	default:
		d.wrongType("a string or an array of strings")
	}
}

// messagesOf reads a conversation whose messages are read by one.
func (d *decoder) messagesOf(one func() Message) {
	c := d.chat
	for i := range d.array() {
		if i == d.lim.Messages {
			d.tooMany("messages", d.lim.Messages)
			return
		}
		d.messages++
		m := one()
		if n := len(c.Messages); m.Role == openai.ChatMessageRoleSystem && n > 0 && c.Messages[n-1].Role == m.Role {
			c.Messages[n-1].Text += "\n\n" + m.Text
			continue
		}
		c.Messages = append(c.Messages, m)
	}
}

func (d *decoder) message() Message {
	var m Message
	var content, role bool
	for key := range d.object(messageKeys) {
		switch key {
		case "role":
			role = true
			m.Role = d.role()
		case "content":
			content = true
			d.content(&m)
		case "name":
			m.Name = d.text()
		case "tool_calls":
			d.toolCalls(&m)
		case "function_call":
			m.ToolCalls = append(m.ToolCalls, d.calledFunction())
		case "tool_call_id":
			m.ToolCallID = d.text()
		case "refusal", "audio", "annotations", "reasoning", "reasoning_content", "thinking":
			d.skip() // parts of an earlier answer, sent back
		default:
			d.ignore("messages." + key)
		}
	}
	switch {
	case d.err != nil:
	case !role:
		d.missing("role")
	case content:
	case m.Role == openai.ChatMessageRoleSystem || m.Role == openai.ChatMessageRoleUser:
		d.missing("content")
	}
	if m.Name != "" && m.Role != openai.ChatMessageRoleTool {
		m.Name = "" // a participant's name has no place in the models' templates
		d.ignored("messages.name")
	}
	return m
}

// role reads a role, and takes the deprecated and the new ones for what they
// stand for.
func (d *decoder) role() string {
	role := d.text()
	switch role {
	case openai.ChatMessageRoleSystem, openai.ChatMessageRoleUser, openai.ChatMessageRoleAssistant, openai.ChatMessageRoleTool:
	case openai.ChatMessageRoleDeveloper:
		return openai.ChatMessageRoleSystem
	case roleFunction:
		return openai.ChatMessageRoleTool
	default:
		d.badValue("expected system, developer, user, assistant, tool or function")
	}
	return role
}

// content reads a string or an array of parts.
func (d *decoder) content(m *Message) {
	switch d.peek() {
	case '"':
		m.Text = d.text()
	case '[':
		var texts []string
		for range d.array() {
			if !d.onePart() {
				return
			}
			if text, ok := d.part(m); ok {
				texts = append(texts, text)
			}
		}
		m.Text = strings.Join(texts, "\n")
	default:
		d.wrongType("a string or an array of parts")
	}
}

// onePart counts a part: each takes more memory than the two bytes it may be
// written in.
func (d *decoder) onePart() bool {
	if d.parts == d.lim.Parts {
		d.tooMany("content parts and tool calls", d.lim.Parts)
		return false
	}
	d.parts++
	return true
}

// part reads one content part; ok says whether it was text.
func (d *decoder) part(m *Message) (text string, ok bool) {
	if d.peek() == '"' {
		return d.text(), true
	}
	kind, image := "", false
	var words, refusal *string
	for key := range d.object(partKeys) {
		switch key {
		case "type":
			kind = d.text()
		case "text":
			words = new(d.text())
		case "refusal":
			refusal = new(d.text())
		case "image_url":
			image = true
			d.image(m)
		default:
			d.skip()
		}
	}
	if d.err != nil {
		return "", false
	}
	switch kind {
	case "refusal":
		words = refusal
		fallthrough
	case "text", "input_text", "output_text":
		if words == nil {
			if kind != "refusal" {
				kind = "text"
			}
			d.missing(kind)
			return "", false
		}
		return *words, true
	case "image_url", "input_image":
		if !image {
			d.missing("image_url")
		}
	case "thinking", "redacted_thinking", "reasoning": // of an earlier answer, sent back
	case "":
		d.missing("type")
	case "input_audio", "file", "input_file":
		d.path = append(d.path, step{key: "type"})
		d.fail(codeUnsupported, "Unsupported value for '"+d.param()+"': audio and file parts cannot be read by the models served here.")
	default:
		d.path = append(d.path, step{key: "type"})
		if d.flat {
			d.badValue("expected input_text, input_image, output_text or refusal")
		} else {
			d.badValue("expected text, image_url or refusal")
		}
	}
	return "", false
}

// image reads image_url: an object with url or, as some clients have it, the
// string itself.
func (d *decoder) image(m *Message) {
	if d.images++; d.images > d.lim.Images {
		d.tooMany("images", d.lim.Images)
		return
	}
	if d.peek() == '"' {
		d.dataURL(m)
		return
	}
	given := false
	for key := range d.object(imageKeys) {
		if key == "url" {
			given = true
			d.dataURL(m)
		} else {
			d.skip()
		}
	}
	if d.err == nil && !given {
		d.missing("url")
	}
}

func (d *decoder) dataURL(m *Message) {
	if d.peek() != '"' {
		d.wrongType("a string")
		return
	}
	raw, escaped := d.quoted()
	if d.err != nil {
		return
	}
	if escaped {
		raw = []byte(unescape(raw))
	}
	head, _, found := strings.Cut(string(raw[:min(len(raw), 128)]), ",")
	if !strings.HasPrefix(head, "data:") || !found || !strings.HasSuffix(head, ";base64") {
		d.badValue("image URLs are not fetched; send the image as a data URL (data:image/png;base64,...)")
		return
	}
	d.picture(m, raw[len(head)+1:])
}

// picture takes an image in base64.
func (d *decoder) picture(m *Message, raw []byte) {
	coding := base64.StdEncoding
	if len(raw)%4 != 0 {
		coding = base64.RawStdEncoding
	}
	if coding.DecodedLen(len(raw)) > d.lim.ImageBytes+2 {
		d.tooMany("bytes in an image", d.lim.ImageBytes)
		return
	}
	image := make([]byte, coding.DecodedLen(len(raw)))
	n, err := coding.Decode(image, raw)
	if err != nil || !isImage(image[:n]) {
		d.badValue("expected a PNG, JPEG, WebP, GIF or BMP image in base64")
		return
	}
	m.Images = append(m.Images, image[:n])
}

// isImage knows the formats of the servers' image readers by their first bytes.
func isImage(b []byte) bool {
	for _, magic := range []string{"\x89PNG\r\n\x1a\n", "\xff\xd8\xff", "GIF8", "BM"} {
		if strings.HasPrefix(string(b[:min(len(b), 12)]), magic) {
			return true
		}
	}
	return len(b) >= 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP"
}

// finish checks what only shows when the whole body was read.
func (d *decoder) finish() error {
	c := d.chat
	switch {
	case c.Model == "":
		return noModel()
	case d.messages == 0:
		return invalid(codeMissing, "messages", "You must provide a non-empty 'messages' array.")
	}
	if d.top != nil && *d.top > 0 {
		if c.Logprobs {
			c.TopLogprobs = *d.top
		} else {
			d.ignored("top_logprobs")
		}
	}
	return d.settleTools()
}
