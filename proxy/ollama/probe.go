package ollama

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"tenure/residency"
)

// slot is where a model answers: its name, and the num_ctx of the request.
type slot struct {
	model  string
	numCtx any
}

// free waits while it is not known whether a model has a slot, and counts more
// streams at it. Its name is the canonical one.
func (c *Client) free(ctx context.Context, name string, more int) error {
	for {
		c.mu.Lock()
		probe := c.probes[name]
		if probe == nil {
			c.streams[name] += more
		}
		c.mu.Unlock()
		if probe == nil {
			return nil
		}
		select {
		case <-probe:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// left ends a stream. Unless Ollama has ended its answer, it is found out
// whether the slot comes free. Ollama 0.17 can lose it for good: when the
// connection goes while one piece waits for another to be written, the writer
// of the pieces blocks for ever and keeps the slot, and with one slot the model
// never answers again. A runner that hangs shows in the same way. Such a model
// is loaded anew; who asks for it meanwhile waits.
//
// A slot comes free at the next token, which takes no longer than the first
// piece did: four times that is ample for this token and the probe's own. A
// quarter of Config.Probe is for what else holds it up: Ollama lets no request
// through while it asks after the GPU's memory, 3 s at most, to unload another
// model. All of it is for a slot whose prompt may still be read, to its end
// whoever has left, and for a model that is busy: the probe may have to queue.
func (c *Client) left(name string, at slot, first time.Duration, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[name]--
	alone := c.streams[name] == 0
	if alone {
		delete(c.streams, name)
	}
	if over || at == (slot{}) || c.life.Err() != nil {
		return
	}
	patience := c.cfg.Probe
	if first > 0 && alone {
		patience = min(max(4*first, patience/4), patience)
	}
	before, done := c.probes[name], make(chan struct{})
	c.probes[name] = done
	c.work.Go(func() {
		if before != nil {
			<-before
		}
		if err := c.probe(c.life, at, patience); err != nil && c.life.Err() == nil {
			c.cfg.Log.Warn("slot was not recovered", "model", at.model, "err", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.probes[name] == done {
			delete(c.probes, name)
		}
		close(done)
	})
}

// probe asks for one token and, when none comes in time, loads the model anew.
func (c *Client) probe(ctx context.Context, at slot, patience time.Duration) error {
	m := residency.Model{Name: at.model}
	switch n := at.numCtx.(type) {
	case int:
		m.Context = n
	case float64:
		m.Context = int(n)
	}
	if r, err := c.find(ctx, m.Name, ""); err != nil || r == nil {
		return err // a model that is not there has no slot to lose, and a request would load it
	}
	began := time.Now()
	options := map[string]int{"num_predict": 1}
	if m.Context > 0 {
		options["num_ctx"] = m.Context
	}
	var ignored json.RawMessage
	// Not as a stream: Ollama cannot lose the slot of this one.
	err := c.call(ctx, patience, http.MethodPost, "/api/generate", map[string]any{
		"model": m.Name, "prompt": "x", "raw": true, "stream": false, "options": options,
	}, &ignored)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err := c.unload(ctx, m); err != nil {
		return fmt.Errorf("unloading: %w", err)
	}
	if _, err := c.load(ctx, m); err != nil {
		return fmt.Errorf("loading again: %w", err)
	}
	c.revived.Add(1)
	c.cfg.Log.Warn("model had lost its slot and was loaded anew", "model", m.Name, "took", time.Since(began))
	return nil
}

// Probing reports whether it is being found out that a model has a slot; if
// not, the model is missing from /api/ps for a while.
func (c *Client) Probing(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probes[Canonical(name)] != nil
}

// Revived counts the models that were loaded anew because their slot was lost.
func (c *Client) Revived() uint64 { return c.revived.Load() }
