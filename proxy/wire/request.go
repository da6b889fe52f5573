package wire

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
)

// Params is what routing decided for one request. Defaults fill what the
// client left unset, caps apply to what it set.
type Params struct {
	Model        string   // the model that answers
	Context      int      // its num_ctx, the same with every request, or the server loads it anew; 0 = the server's
	MaxTokens    int      // default; 0 = 1024
	MaxTokensCap int      // 0 = none
	Temperature  *float64 // default; nil = the model's own
	Capabilities []string // of the model, as its server names them; nil = unknown
}

// defaultMaxTokens stands in where neither client nor task says a number:
// left to itself the server would allow ten times the context.
const defaultMaxTokens = 1024

func (p Params) has(capability string) bool { return slices.Contains(p.Capabilities, capability) }

// lacks reports whether the model is known to be without a capability.
func (p Params) lacks(capability string) bool { return p.Capabilities != nil && !p.has(capability) }

func (c *Chat) maxTokens(p Params) int {
	n := cmp.Or(p.MaxTokens, defaultMaxTokens)
	if c.MaxTokens != nil {
		n = *c.MaxTokens
	}
	if p.MaxTokensCap > 0 {
		n = min(n, p.MaxTokensCap)
	}
	return n
}

// EffectiveTemperature is the client's temperature, else the default. It is
// not known where the model's own applies.
func (c *Chat) EffectiveTemperature(p Params) (t float64, known bool) {
	if t := cmp.Or(c.Temperature, p.Temperature); t != nil {
		return *t, true
	}
	return 0, false
}

// Request translates the chat for Ollama's /api/chat. Every request streams
// and asks for neither truncation nor a sliding window: a prompt that does not
// fit is an error, not a shorter prompt. It never says how long the model
// stays loaded. The error is an [*Error].
func (c *Chat) Request(p Params) (*api.ChatRequest, error) {
	if err := c.fits(p); err != nil {
		return nil, err
	}
	yes, no := true, false
	req := &api.ChatRequest{
		Model:       p.Model,
		Stream:      &yes,
		Truncate:    &no,
		Shift:       &no,
		Options:     c.options(p),
		Think:       c.think(p),
		Logprobs:    c.Logprobs,
		TopLogprobs: c.TopLogprobs,
	}
	plan := c.plan(p)
	if plan == planNative {
		req.Tools = c.nativeTools()
	}
	if plan == planArguments || plan == planCall {
		delete(req.Options, "stop") // it is for text and would cut the call
	}
	var err error
	if req.Format, err = c.format(plan); err != nil {
		return nil, err
	}
	req.Messages = c.messages(p, plan)
	return req, nil
}

// ForChoice returns the request for choice i of n: the same, but for the seed.
// Where the client gave none, the server picks one for each by itself.
func (c *Chat) ForChoice(req *api.ChatRequest, i int) *api.ChatRequest {
	if i == 0 || c.Seed == nil {
		return req
	}
	other := *req
	other.Options = maps.Clone(req.Options)
	other.Options["seed"] = *c.Seed + i
	return &other
}

// fits refuses what the model cannot take.
func (c *Chat) fits(p Params) error {
	if !p.lacks("vision") {
		return nil
	}
	field := c.Head().Prompt
	for _, m := range c.Messages {
		if len(m.Images) > 0 {
			return &Error{
				Status: http.StatusBadRequest, Type: typeInvalidRequest, Code: codeUnsupported, Param: field,
				Message: "Unsupported value in '" + field + "': the model that would answer does not read images.",
			}
		}
	}
	return nil
}

func (c *Chat) options(p Params) map[string]any {
	o := map[string]any{"num_predict": c.maxTokens(p)}
	if p.Context > 0 {
		o["num_ctx"] = p.Context
	}
	if t, ok := c.EffectiveTemperature(p); ok {
		o["temperature"] = t
	}
	for _, f := range c.floats() {
		if f.value != nil {
			o[f.name] = *f.value
		}
	}
	if c.TopK != nil {
		o["top_k"] = *c.TopK
	}
	if c.Seed != nil {
		o["seed"] = *c.Seed
	}
	if len(c.Stop) > 0 {
		o["stop"] = c.Stop
	}
	return o
}

type option struct {
	name  string
	value *float64
}

// floats are the sampling options that go to Ollama as they are.
func (c *Chat) floats() [5]option {
	return [5]option{
		{"top_p", c.TopP},
		{"min_p", c.MinP},
		{"frequency_penalty", c.FrequencyPenalty},
		{"presence_penalty", c.PresencePenalty},
		{"repeat_penalty", c.RepeatPenalty},
	}
}

// think translates the reasoning effort. Only gpt-oss knows degrees of it; the
// other thinking models have a switch, and a model without it refuses to be
// asked.
func (c *Chat) think(p Params) *api.ThinkValue {
	switch {
	case c.ReasoningEffort == "":
		return nil
	case c.ReasoningEffort == "none":
		return &api.ThinkValue{Value: false}
	case !p.has("thinking"):
		return nil
	case !strings.Contains(p.Model, "gpt-oss"):
		return &api.ThinkValue{Value: true}
	}
	switch c.ReasoningEffort {
	case "minimal", "low":
		return &api.ThinkValue{Value: "low"}
	case "medium":
		return &api.ThinkValue{Value: "medium"}
	}
	return &api.ThinkValue{Value: "high"}
}

// IgnoredFor names the fields without effect on the model of p.
func (c *Chat) IgnoredFor(p Params) []string {
	if c.ReasoningEffort != "" && !p.has("thinking") {
		return append(slices.Clip(c.Ignored), "reasoning_effort")
	}
	return c.Ignored
}
