package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// question is one chat request.
type question struct {
	model  string
	text   string
	items  int // of the answer, some 25 tokens each; 0: as the model likes
	seed   int
	whole  bool // no stream
	flex   bool // of the batch tier
	kept   bool // at temperature 0, and the answer may be kept
	header map[string]string
}

// reply is what came of one.
type reply struct {
	question
	status int           // 0: no answer came
	code   string        // of a refusal, or of an error event
	inForm bool          // a refusal has OpenAI's form; a stream ended in [DONE] or in an error event
	chars  int           // of the answer's text
	wait   time.Duration // to the first of them
	took   time.Duration
	by     string // model that answered, by tenure
}

func (r *reply) answered() bool { return r.status == http.StatusOK && r.code == "" && r.inForm }

func (q *question) body() ([]byte, error) {
	type object = map[string]any
	body := object{
		"model": q.model, "messages": []object{{"role": "user", "content": q.text}}, "stream": !q.whole,
		"temperature": .8, "seed": q.seed, "max_tokens": 1500,
	}
	if q.items > 0 {
		body["response_format"] = object{"type": "json_schema", "json_schema": object{"name": "lines", "strict": true, "schema": object{
			"type": "array", "minItems": q.items, "maxItems": q.items, "items": object{"type": "string", "minLength": 60, "maxLength": 80},
		}}}
	} else {
		body["max_tokens"] = 64
	}
	if q.kept {
		body["temperature"] = 0
	}
	if q.flex {
		body["service_tier"] = "flex"
	}
	return json.Marshal(body)
}

// piece is what both forms of an answer have.
type piece struct {
	Choices []struct {
		Delta, Message struct{ Content string }
	}
	Error *struct {
		Message, Type *string
		Param, Code   *string
	}
}

// ask sends a question and reads its answer to the end. The error is the
// caller's context's, or one of the network.
func ask(ctx context.Context, c *http.Client, base string, q question) (r reply, err error) {
	r = reply{question: q}
	body, err := q.body()
	if err != nil {
		return r, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return r, err
	}
	req.Header.Set("Content-Type", "application/json")
	if !q.kept {
		req.Header.Set("Cache-Control", "no-store") // what is measured is residency
	}
	for name, value := range q.header {
		req.Header.Set(name, value)
	}
	start := time.Now()
	defer func() { r.took = time.Since(start) }()
	resp, err := c.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	r.status, r.by = resp.StatusCode, resp.Header.Get("Tenure-Model")
	if q.whole || resp.StatusCode != http.StatusOK {
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			return r, err
		}
		r.wait = time.Since(start)
		var p piece
		r.inForm = json.Unmarshal(data, &p) == nil
		r.take(&p, start)
		if resp.StatusCode != http.StatusOK {
			r.inForm = r.inForm && p.Error != nil && p.Error.Message != nil && p.Error.Type != nil
		}
		return r, nil
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			r.inForm = true
			continue
		}
		var p piece
		if err := json.Unmarshal([]byte(data), &p); err != nil {
			return r, fmt.Errorf("an event that is not JSON: %w", err)
		}
		r.take(&p, start)
		r.inForm = r.code != ""
	}
	return r, lines.Err()
}

func (r *reply) take(p *piece, start time.Time) {
	if e := p.Error; e != nil {
		r.code = "error"
		if e.Code != nil {
			r.code = *e.Code
		}
	}
	for _, c := range p.Choices {
		n := len(c.Delta.Content) + len(c.Message.Content)
		if r.chars == 0 && n > 0 && !r.whole {
			r.wait = time.Since(start)
		}
		r.chars += n
	}
}
