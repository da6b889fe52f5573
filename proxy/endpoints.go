package proxy

import (
	"context"
	"net/http"
	"strings"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/routing"
	"tenure/routing/task"

	"github.com/ollama/ollama/api"
)

// endpoint is what tells one endpoint from another; complete runs them all.
type endpoint struct {
	name   string // part of the cache key: one name, one kind of recording
	decode func(body []byte, lim wire.Limits) (ask, error)
}

// ask is a decoded request, as complete sees those of every endpoint.
type ask interface {
	Head() wire.Head
	EffectiveTemperature(p wire.Params) (t float64, known bool)
	AppendKey(dst []byte, p wire.Params) []byte
	IgnoredFor(p wire.Params) []string
	Encoder(wire.Stamp) wire.Encoder

	question() routing.Request        // what the router may look at
	leastTokens(enough int) int       // a floor for the prompt's tokens; exact only about whether it reaches enough
	work(p wire.Params) (work, error) // the error is the client's
}

// work appends an answer to a recording, made by a model that has its seat. An
// answer that was cut short is not whole.
type work func(ctx context.Context, client *ollama.Client, rec *cache.Recording, m *meter) (whole bool, err error)

func chatCompletions() endpoint {
	return endpoint{name: "chat", decode: func(body []byte, lim wire.Limits) (ask, error) {
		chat, err := wire.DecodeChat(body, lim)
		return conversation{chat}, err
	}}
}

// responses shares its recordings with chat completions.
func responses() endpoint {
	return endpoint{name: chatCompletions().name, decode: func(body []byte, lim wire.Limits) (ask, error) {
		r, err := wire.DecodeResponses(body, lim)
		if err != nil {
			return nil, err
		}
		return response{conversation{r.Chat}, r}, nil
	}}
}

func completions() endpoint {
	return endpoint{name: "completions", decode: func(body []byte, lim wire.Limits) (ask, error) {
		c, err := wire.DecodeCompletion(body, lim)
		return texts{c}, err
	}}
}

func embeddings() endpoint {
	return endpoint{name: "embeddings", decode: func(body []byte, lim wire.Limits) (ask, error) {
		e, err := wire.DecodeEmbeddings(body, lim)
		return vectors{e}, err
	}}
}

// conversation is what is asked of a model by messages.
type conversation struct{ *wire.Chat }

func (c conversation) question() routing.Request {
	q := routing.Request{Model: c.Model, Input: task.Input{
		Tools: c.ToolKeys(), SchemaKeys: c.SchemaKeys(), JSON: c.WantsJSON(), Stream: c.Stream,
		Messages: make([]task.Message, len(c.Messages)),
	}}
	for i, m := range c.Messages {
		q.Messages[i] = task.Message{Role: m.Role, Text: m.Text}
		q.Images += len(m.Images)
	}
	return q
}

func (c conversation) leastTokens(enough int) int {
	n, size := 0, 0
	for _, m := range c.Messages {
		size += len(m.Text)
	}
	if size < enough {
		return 0 // a word has a byte at least
	}
	for _, m := range c.Messages {
		if n += countWords(m.Text, enough-n); n >= enough {
			break
		}
	}
	return n
}

// countWords counts the words of a text, and stops at enough: no tokenizer of
// these models makes one token of two. What is not ASCII counts as part of a
// word.
func countWords(text string, enough int) int {
	n, before := 0, uint8(0)
	for len(text) > 0 && n < enough {
		block := text[:min(len(text), 4096)]
		for i := range len(block) {
			now := inWord[block[i]]
			n += int(now &^ before)
			before = now
		}
		text = text[len(block):]
	}
	return n
}

// inWord is 1 for the bytes of words.
var inWord = func() (table [256]uint8) { //nolint:gochecknoglobals // a compiled table
	for c := range table {
		if 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c >= 0x80 {
			table[c] = 1
		}
	}
	return table
}()

func (c conversation) work(p wire.Params) (work, error) {
	request, err := c.Request(p)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, client *ollama.Client, rec *cache.Recording, m *meter) (bool, error) {
		recorder := wire.NewRecorder(c.Chat, p)
		for choice := range max(c.N, 1) {
			err := client.Chat(ctx, c.ForChoice(request, choice), func(r *api.ChatResponse) error {
				m.line(r.Done, r.Metrics)
				chunks, err := recorder.Line(choice, r)
				rec.Append(chunks...)
				return err
			})
			if err != nil {
				return false, err
			}
		}
		return !recorder.Truncated(), nil
	}, nil
}

// response is a conversation, but for how it is told and answered.
type response struct {
	conversation
	request *wire.Responses
}

func (r response) IgnoredFor(p wire.Params) []string     { return r.request.IgnoredFor(p) }
func (r response) Encoder(stamp wire.Stamp) wire.Encoder { return r.request.Encoder(stamp) }

// storedResponse is asked for by who takes responses to be kept: to be read,
// deleted or cancelled. What else OpenAI has below that path is unknown.
func (s *Server) storedResponse(x *exchange) error {
	if r := x.gin.Request; r.Method == http.MethodPost && !strings.HasSuffix(r.URL.Path, "/cancel") {
		return s.unknownURL(x)
	}
	return wire.NotStored()
}

// texts are what is asked of a model by bare prompts.
type texts struct{ *wire.Completion }

// One model answers all prompts: the first one's task's.
func (c texts) question() routing.Request {
	first := task.Message{Role: "user", Text: c.Prompts[0]}
	return routing.Request{Model: c.Model, Input: task.Input{Stream: c.Stream, Messages: []task.Message{first}}}
}

func (c texts) leastTokens(enough int) int {
	return longest(c.Prompts, enough) + countWords(c.Suffix, enough)
}

// longest counts the words of the text that has the most, and stops at enough.
func longest(texts []string, enough int) int {
	n := 0
	for _, text := range texts {
		n = max(n, countWords(text, enough))
	}
	return n
}

func (c texts) work(p wire.Params) (work, error) {
	requests, err := c.Requests(p)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, client *ollama.Client, rec *cache.Recording, m *meter) (bool, error) {
		recorder := c.Recorder(p)
		for choice, request := range requests {
			err := client.Generate(ctx, request, func(r *api.GenerateResponse) error {
				m.line(r.Done, r.Metrics)
				chunks, err := recorder.Generated(choice, r)
				rec.Append(chunks...)
				return err
			})
			if err != nil {
				return false, err
			}
		}
		return !recorder.Truncated(), nil
	}, nil
}

// vectors are what is asked of a model that embeds.
type vectors struct{ *wire.Embeddings }

// A virtual model stands for one that writes: which one, is all the same.
func (v vectors) question() routing.Request { return routing.Request{Model: v.Model} }

func (v vectors) leastTokens(enough int) int { return longest(v.Input, enough) }

func (v vectors) work(p wire.Params) (work, error) {
	requests, err := v.Requests(p)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, client *ollama.Client, rec *cache.Recording, m *meter) (bool, error) {
		recorder := wire.NewEmbeddingsRecorder(v.Embeddings)
		for _, request := range requests {
			answer, err := client.Embed(ctx, request)
			if err != nil {
				return false, err
			}
			chunks, err := recorder.Batch(request, answer)
			if err != nil {
				return false, err
			}
			rec.Append(chunks...)
		}
		m.answers++
		return true, nil
	}, nil
}
