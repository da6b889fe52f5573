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

// move is an /api/generate or /api/embed without a prompt: it loads or unloads.
type move struct {
	Model     string         `json:"model"`
	Stream    bool           `json:"stream"`
	KeepAlive int            `json:"keep_alive"` // -1 for ever, 0 unload
	Options   map[string]int `json:"options,omitempty"`
}

// Load brings m into memory for good, with m.Context tokens per slot, and
// returns the bytes it takes there. It blocks until Ollama has confirmed it in
// /api/ps. What is missing of the context or of the model's place on the GPU
// is logged and counted, see Shortfalls. A model that is not installed, or that cannot be loaded
// as asked, is residency.ErrPermanent.
//
// When ctx ends, Ollama gives the load up.
func (c *Client) Load(ctx context.Context, m residency.Model) (residency.Bytes, error) {
	if err := c.free(ctx, Canonical(m.Name), 0); err != nil {
		return 0, err
	}
	return c.load(ctx, m)
}

func (c *Client) load(ctx context.Context, m residency.Model) (residency.Bytes, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Load, residency.ErrLoadTimeout)
	defer cancel()
	facts, err := c.Show(ctx, m.Name)
	if err != nil {
		return 0, permanent(err)
	}
	in := move{Model: m.Name, KeepAlive: -1}
	if m.Context > 0 {
		in.Options = map[string]int{"num_ctx": m.Context}
	}
	path := "/api/generate"
	if facts.Can("embedding") && !facts.Can("completion") {
		path = "/api/embed"
	}
	var ignored json.RawMessage
	if err := c.ask(ctx, http.MethodPost, path, in, &ignored); err != nil {
		return 0, permanent(err)
	}
	r, err := c.find(ctx, m.Name, facts.Blob)
	if err != nil {
		return 0, err
	}
	if r == nil {
		return 0, fmt.Errorf("loaded, yet not in /api/ps: %w", ErrAborted)
	}
	if r.VRAM == 0 && (c.cfg.RequireGPU == GPUTrue || c.cfg.RequireGPU == GPUAuto && c.gpu.Load()) {
		// It would answer, twenty times slower than anybody expects.
		if err := c.unload(context.WithoutCancel(ctx), m); err != nil {
			return 0, errors.Join(ErrNoGPU, err)
		}
		return 0, fmt.Errorf("%w: %w", residency.ErrPermanent, ErrNoGPU)
	}
	if want := min(m.Context, facts.Context); facts.Context > 0 && r.Context < want {
		c.warn(m.Name, ShortContext, uint64(want), uint64(r.Context))
	}
	if 0 < r.VRAM && r.VRAM < r.Size {
		c.warn(m.Name, ShortVRAM, uint64(r.Size), uint64(r.VRAM))
	}
	// Size also where part of it is in main memory: it is what the model needs
	// to be wholly on the GPU, and what it will try to take next time.
	return r.Size, nil
}

// Unload takes m out of memory and blocks until it has left /api/ps and its
// GPU memory had Config.Settle to come back. Requests under way are let finish
// by Ollama, so the caller drains first. A model that is not there is no error.
func (c *Client) Unload(ctx context.Context, m residency.Model) error {
	// A probe that came after the unload would load the model again.
	if err := c.free(ctx, Canonical(m.Name), 0); err != nil {
		return err
	}
	return c.unload(ctx, m)
}

func (c *Client) unload(ctx context.Context, m residency.Model) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Unload, fmt.Errorf("no unload within %v: %w", c.cfg.Unload, context.DeadlineExceeded))
	defer cancel()
	// Before the unload, for a model that leaves at once has memory to give back too.
	r, err := c.find(ctx, m.Name, "")
	if err == nil && r == nil {
		var facts Facts
		if facts, err = c.Show(ctx, m.Name); err == nil {
			r, err = c.find(ctx, m.Name, facts.Blob)
		}
	}
	if err != nil {
		return permanent(err)
	}
	listed, held := m.Name, false
	if r != nil {
		listed, held = r.Name, r.VRAM > 0
	}
	const again = 10 * time.Second // somebody else's request may have revoked the unload
	for {
		var ignored json.RawMessage
		if err := c.call(ctx, c.cfg.Call, http.MethodPost, "/api/generate", move{Model: m.Name}, &ignored); err != nil {
			return permanent(err)
		}
		for asked := time.Now(); time.Since(asked) < again; {
			r, err := c.find(ctx, listed, "")
			if err != nil {
				return err
			}
			if r == nil {
				if held {
					return wait(ctx, c.cfg.Settle)
				}
				return nil
			}
			held = held || r.VRAM > 0
			// An eighth late at most: all who wait for the seat wait for this.
			if err := wait(ctx, min(max(5*time.Millisecond, time.Since(asked)/8), 500*time.Millisecond)); err != nil {
				return err
			}
		}
	}
}

// find looks name up in /api/ps. Ollama keys what is in memory by the weights'
// file and lists it under the name that came first, so others are compared by
// their blob, if it is given. It returns nil when the model is not there.
func (c *Client) find(ctx context.Context, name, blob string) (*Resident, error) {
	running, err := c.Running(ctx)
	if err != nil {
		return nil, err
	}
	name = Canonical(name)
	for i := range running {
		if running[i].Name == name {
			return &running[i], nil
		}
	}
	if blob == "" {
		return nil, nil //nolint:nilnil // nothing found is an answer
	}
	for i := range running {
		if f, err := c.Show(ctx, running[i].Name); err == nil && f.Blob == blob {
			return &running[i], nil
		}
	}
	return nil, nil //nolint:nilnil // nothing found is an answer
}

// warn tells that a model is resident, but not as asked.
func (c *Client) warn(model string, short Shortfall, want, got uint64) {
	c.cfg.Log.Warn("model loaded short", "model", model, "short", string(short), "want", want, "got", got)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.short[short]++
}

// Shortfalls counts the loads that got less than was asked for.
func (c *Client) Shortfalls(short Shortfall) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.short[short]
}

// permanent marks what a second try would not change: Ollama understood and
// said no.
func permanent(err error) error {
	if e, ok := errors.AsType[*StatusError](err); ok && 400 <= e.Status && e.Status < 499 {
		return fmt.Errorf("%w: %w", residency.ErrPermanent, err)
	}
	return err
}

// wait pauses for d, or until ctx ends and tells why.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
