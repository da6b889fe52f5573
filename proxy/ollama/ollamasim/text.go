package ollamasim

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/ollama/ollama/api"
)

// composition is what a request is answered.
type composition struct {
	tokens []string
	calls  []api.ToolCall
	reason string
}

// compose makes the answer up. It depends on nothing but the request.
func compose(j job, m *Model, length int) (composition, error) {
	rng := rand.New(rand.NewPCG(seed(j), 0))
	c := composition{reason: "stop"}
	switch format := strings.TrimSpace(string(j.format)); {
	case format == "" || format == "null" || format == `""`:
		if call, ok := toolCall(j, rng); ok {
			c.calls = []api.ToolCall{call}
			return c, nil
		}
		c.tokens = words(j, m, rng, length)
	case format == `"json"`:
		c.tokens = quads(`{"simulated":true,"answer":"` + pick(rng, "yes", "no", "perhaps") + `","score":` + strconv.Itoa(rng.IntN(101)) + `}`)
	case format[0] != '{':
		return c, fmt.Errorf("invalid format: %q; expected \"json\" or a valid JSON Schema object", format)
	default:
		text, err := satisfy(j.format, rng)
		if err != nil {
			return c, errors.New("invalid JSON schema in format")
		}
		c.tokens = quads(text)
	}
	if n := option(j.options, "num_predict", -1); n > 0 && len(c.tokens) > n {
		c.tokens, c.reason = c.tokens[:n], "length"
	}
	return halt(c, j.options), nil
}

// halt ends the text before the first of the request's stop strings.
func halt(c composition, options map[string]any) composition {
	stops, _ := options["stop"].([]any)
	text := strings.Join(c.tokens, "")
	end := len(text)
	for _, s := range stops {
		if stop, ok := s.(string); ok && stop != "" {
			if i := strings.Index(text, stop); i >= 0 {
				end = min(end, i)
			}
		}
	}
	if end == len(text) {
		return c
	}
	var kept []string
	for _, t := range c.tokens {
		if end == 0 {
			break
		}
		t = t[:min(len(t), end)]
		end -= len(t)
		kept = append(kept, t)
	}
	return composition{tokens: kept, reason: "stop"}
}

// seed is a number that changes with everything that may change an answer.
func seed(j job) uint64 {
	options := make(map[string]any)
	for k, v := range j.options {
		// What loads a model or cuts a text short leaves the text the same.
		if k != "num_ctx" && k != "num_predict" && k != "stop" {
			options[k] = v
		}
	}
	h := fnv.New64a()
	_ = json.NewEncoder(h).Encode([]any{canonical(j.model), j.messages, options, j.tools}) // a hash takes everything
	_, _ = h.Write(j.format)
	return h.Sum64()
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// textTokens is the rule of thumb: four bytes a token.
func textTokens(s string) int { return (len(s) + 3) / 4 }

// promptTokens counts a prompt, with four tokens of template for each message.
func promptTokens(messages []api.Message) int {
	n := 0
	for _, m := range messages {
		n += 4 + textTokens(m.Content)
		for _, c := range m.ToolCalls {
			n += textTokens(c.Function.Name + c.Function.Arguments.String())
		}
	}
	return max(n, 1)
}

// quads cuts text into pieces of at most four bytes, between characters.
func quads(text string) []string {
	var tokens []string
	for start, at := 0, 0; at < len(text); {
		next := at + 1
		for next < len(text) && text[next]&0xC0 == 0x80 {
			next++
		}
		if next == len(text) || next-start >= 4 {
			tokens = append(tokens, text[start:next])
			start = next
		}
		at = next
	}
	return tokens
}

// words writes free text for the recruiting task that the request looks like,
// a word a token.
func words(j job, m *Model, rng *rand.Rand, length int) []string {
	var asked strings.Builder
	for _, msg := range j.messages {
		if msg.Role == "system" || msg.Role == "user" {
			asked.WriteString(strings.ToLower(msg.Content))
			asked.WriteByte(' ')
		}
	}
	text := "[simulated] " + answerTo(asked.String(), m, rng)
	tokens := strings.SplitAfter(text, " ")
	for length > len(tokens) {
		tokens[len(tokens)-1] += " "
		tokens = append(tokens, strings.SplitAfter(answerTo(asked.String(), m, rng), " ")...)
	}
	if length > 0 {
		tokens = tokens[:length]
	}
	// A token carries the space before it, as real ones do.
	for i := range tokens {
		tokens[i] = strings.TrimSuffix(tokens[i], " ")
		if i > 0 {
			tokens[i] = " " + tokens[i]
		}
	}
	return tokens
}

// answerTo goes by the first word of the request that tells a task: what is
// asked tends to come before the documents. Where none does, it goes by the
// work that tenure's catalog gives the model.
func answerTo(asked string, m *Model, rng *rand.Rand) string {
	first, write := len(asked), func(rng *rand.Rand) string {
		return fmt.Sprintf("This answer was made up by a program that stands in for %s. It took %s, and says nothing about what you asked.",
			canonical(m.Name), pick(rng, "no thought at all", "one random number", "less than a second"))
	}
	switch name := canonical(m.Name); {
	case strings.HasPrefix(name, "deepseek-llm"):
		write = parseText
	case strings.HasPrefix(name, "mistral"):
		write = biasText
	case strings.HasPrefix(name, "llama3"):
		write = matchText
	}
	for _, t := range []struct {
		write func(*rand.Rand) string
		words []string
	}{
		{biasText, []string{"bias", "inclusive", "discriminat", "gendered"}},
		{scriptText, []string{" script", "outreach", "cold call", "write an email", "write a message", "voicemail"}},
		{matchText, []string{"match", "how well does", " fit ", "suitab"}},
		{reportText, []string{"report", "summar", "shortlist"}},
		{parseText, []string{"parse", "extract", "resume", "curriculum", "cv:"}},
	} {
		for _, word := range t.words {
			if i := strings.Index(asked, word); 0 <= i && i < first {
				first, write = i, t.write
			}
		}
	}
	return write(rng)
}

func parseText(rng *rand.Rand) string {
	return fmt.Sprintf("Candidate: name withheld. Experience: about %d years, the last as %s. Skills: %s, %s, %s. Education: %s. Languages: English (fluent), %s (good). Not found: salary expectation, notice period.",
		2+rng.IntN(18), pick(rng, "a backend engineer", "a data analyst", "a team lead", "an account manager"),
		pick(rng, "Go", "Python", "Java"), pick(rng, "SQL", "Kubernetes", "Excel"), pick(rng, "mentoring", "negotiation", "technical writing"),
		pick(rng, "BSc in Computer Science", "MSc in Statistics", "apprenticeship"), pick(rng, "German", "Polish", "Spanish"))
}

func biasText(rng *rand.Rand) string {
	return fmt.Sprintf("Bias score: %d of 100. Finding: %s. Why it matters: it discourages %s from applying. Suggested wording: %s. Nothing else stood out.",
		10+rng.IntN(70), pick(rng, `"young and dynamic team"`, `"rockstar developer"`, `"native speaker"`, `"he will report to"`),
		pick(rng, "experienced applicants", "women", "people who learnt the language later"),
		pick(rng, `"a team that likes to learn"`, `"an experienced developer"`, `"fluent in English"`))
}

func matchText(rng *rand.Rand) string {
	return fmt.Sprintf("Match: %d of 100. In favour: %s and %s. Against: %s. Ask in the interview about %s. Recommendation: %s.",
		35+rng.IntN(60), pick(rng, "the skills asked for", "relevant industry experience"), pick(rng, "steady growth in responsibility", "a good range of projects"),
		pick(rng, "no experience in leading a team", "a gap in cloud skills", "a long commute"),
		pick(rng, "working in shifts", "the largest system operated", "reasons for the change"),
		pick(rng, "invite", "invite if the first choice declines", "keep on file"))
}

func scriptText(rng *rand.Rand) string {
	return fmt.Sprintf("Opening: Hello, this is %s from the recruiting team, is this a good moment? Reason: your experience in %s fits a role we are filling. Question: what would have to be true for a change to interest you? If not now: may I come back to you in %s? Close: thank you, I will send the details by email.",
		pick(rng, "your recruiter", "a colleague"), pick(rng, "platform engineering", "sales", "nursing"), pick(rng, "spring", "three months", "autumn"))
}

func reportText(rng *rand.Rand) string {
	n := 4 + rng.IntN(20)
	return fmt.Sprintf("Summary: %d candidates were reviewed, %d are recommended. Scores: mean %d, best %d. Strengths: %s. Risks: %s. Next step: %s.",
		n, 1+n/4, 45+rng.IntN(20), 80+rng.IntN(20), pick(rng, "solid technical base", "clear motivation"),
		pick(rng, "notice periods of three months", "salary above the band"), pick(rng, "schedule interviews", "collect references"))
}

// toolCall calls a tool when one is offered and the last message, the user's,
// asks for it: by its name, by the words in its name, or as "tool".
func toolCall(j job, rng *rand.Rand) (api.ToolCall, bool) {
	if len(j.tools) == 0 || len(j.messages) == 0 {
		return api.ToolCall{}, false
	}
	last := j.messages[len(j.messages)-1]
	if last.Role != "user" {
		return api.ToolCall{}, false
	}
	asked := strings.FieldsFunc(strings.ToLower(last.Content), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	for _, t := range j.tools {
		named := func(word string) bool { return slices.Contains(asked, strings.ToLower(word)) }
		parts := strings.FieldsFunc(t.Function.Name, func(r rune) bool { return r == '_' || r == '-' || r == '.' })
		if !named("tool") && !named("tools") && !named("function") && !slices.ContainsFunc(parts, named) {
			continue
		}
		schema, err := json.Marshal(t.Function.Parameters)
		if err != nil {
			return api.ToolCall{}, false
		}
		text, err := satisfy(schema, rng)
		if err != nil {
			text = "{}"
		}
		call := api.ToolCall{ID: fmt.Sprintf("call_%08x", rng.Uint32()), Function: api.ToolCallFunction{Name: t.Function.Name}}
		if json.Unmarshal([]byte(text), &call.Function.Arguments) != nil {
			call.Function.Arguments = api.NewToolCallFunctionArguments()
		}
		return call, true
	}
	return api.ToolCall{}, false
}

// vector embeds text: a unit vector that depends on nothing but model and text.
func vector(m *Model, text string, dimensions int) []float32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(canonical(m.Name) + "\x00" + text))
	rng := rand.New(rand.NewPCG(h.Sum64(), 1))
	v := make([]float32, m.Heads*m.HeadDim)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	if 0 < dimensions && dimensions < len(v) {
		v = v[:dimensions]
	}
	var sum float64
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	for i := range v {
		v[i] /= float32(math.Sqrt(sum))
	}
	return v
}
