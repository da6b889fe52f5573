package wire

import (
	"strings"
	"sync"

	"github.com/tiktoken-go/tokenizer/codec"
)

// cl100k is the encoding that OpenAI's clients make token numbers with. Its
// table takes 15 MB once somebody sends some.
//
//nolint:gochecknoglobals // a compiled table
var cl100k = sync.OnceValue(codec.NewCl100kBase)

const lastToken = 100276 // of cl100k_base

// prompts reads a text, a text as token numbers, or an array of either, at
// most so many. None is empty: to Ollama that would mean to load the model.
func (r *reader) prompts(most int) []string {
	const want = "a string, an array of strings, an array of tokens or an array of arrays of tokens"
	switch r.peek() {
	case '"':
		return []string{r.prompt(r.text())}
	case '[':
	default:
		r.wrongType(want)
		return nil
	}
	var all []string
	var tokens []uint
	for i := range r.array() {
		switch c := r.peek(); {
		case isNumber(c) && all == nil:
			tokens = append(tokens, r.token())
		case c != '"' && c != '[' || tokens != nil:
			r.wrongType(want)
		case i == most:
			r.tooMany("texts", most)
		case c == '"':
			all = append(all, r.prompt(r.text()))
		default:
			var tokens []uint
			for range r.array() {
				tokens = append(tokens, r.token())
			}
			all = append(all, r.prompt(r.detokenized(tokens)))
		}
	}
	if all == nil {
		all = []string{r.prompt(r.detokenized(tokens))}
	}
	return all
}

// prompt refuses an empty text.
func (r *reader) prompt(text string) string {
	if text == "" {
		r.badValue("it must not be empty")
	}
	return text
}

func (r *reader) token() uint {
	if r.tokens++; r.tokens > r.lim.PromptTokens {
		r.tooMany("tokens", r.lim.PromptTokens)
		return 0
	}
	return uint(r.int(0, lastToken))
}

// detokenized is the text of token numbers. Clients cut long texts between
// tokens, which may be within a character.
func (r *reader) detokenized(tokens []uint) string {
	if r.err != nil || len(tokens) == 0 {
		return ""
	}
	text, err := cl100k().Decode(tokens)
	if err != nil {
		r.badValue("expected tokens of cl100k_base")
		return ""
	}
	return strings.ToValidUTF8(text, "\ufffd")
}
