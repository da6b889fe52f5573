package ollama

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"tenure/residency"
)

// Installed is a model on Ollama's disk.
type Installed struct {
	Name         string // canonical
	Digest       string // of the manifest: another one is another model under the same name
	Size         residency.Bytes
	ModifiedAt   time.Time
	Family       string // "llama", "phi3"
	Parameters   string // "7.2B"
	Quantization string // "Q4_0"
	RemoteHost   string // not empty: requests would leave this machine
}

// Installed lists the models that can be loaded, in Ollama's order: the one
// changed last comes first.
func (c *Client) Installed(ctx context.Context) ([]Installed, error) {
	var list api.ListResponse
	if err := c.call(ctx, c.cfg.Call, http.MethodGet, "/api/tags", nil, &list); err != nil {
		return nil, err
	}
	models := make([]Installed, len(list.Models))
	for i, m := range list.Models {
		models[i] = Installed{
			Name:         Canonical(m.Name),
			Digest:       m.Digest,
			Size:         residency.Bytes(max(m.Size, 0)),
			ModifiedAt:   m.ModifiedAt,
			Family:       m.Details.Family,
			Parameters:   m.Details.ParameterSize,
			Quantization: m.Details.QuantizationLevel,
			RemoteHost:   m.RemoteHost,
		}
	}
	return models, nil
}

// Resident is a model in memory, as Ollama reports it. A model that is still
// loading may be missing; one whose process died stays until it is next used.
type Resident struct {
	Name      string // canonical; the name it was loaded under
	Digest    string
	Size      residency.Bytes // GPU and main memory, Ollama's estimate
	VRAM      residency.Bytes // the part in GPU memory
	Context   int             // tokens per slot
	ExpiresAt time.Time
}

// Running lists the models in memory.
func (c *Client) Running(ctx context.Context) ([]Resident, error) {
	var list api.ProcessResponse
	if err := c.call(ctx, c.cfg.Call, http.MethodGet, "/api/ps", nil, &list); err != nil {
		return nil, err
	}
	models := make([]Resident, len(list.Models))
	for i, m := range list.Models {
		models[i] = Resident{
			Name:      Canonical(m.Name),
			Digest:    m.Digest,
			Size:      residency.Bytes(max(m.Size, 0)),
			VRAM:      residency.Bytes(max(m.SizeVRAM, 0)),
			Context:   m.ContextLength,
			ExpiresAt: m.ExpiresAt,
		}
		if m.SizeVRAM > 0 {
			c.gpu.Store(true)
		}
	}
	return models, nil
}

// Version returns the server's version, "0.17.4".
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"version"`
	}
	err := c.call(ctx, c.cfg.Call, http.MethodGet, "/api/version", nil, &v)
	return v.Version, err
}

// Facts is what a model's own file says about it. A figure that the file does
// not give is 0.
type Facts struct {
	Architecture string
	Context      int // tokens it was trained on: Ollama clamps to it in silence
	Blocks       int
	Embedding    int // length of a vector
	Heads        int
	KVHeads      int
	KeyLength    int
	ValueLength  int
	NumCtx       int // context size baked into its Modelfile
	Capabilities []string
	Blob         string // the weights' file name: names that share it share one place in memory
	RemoteHost   string // not empty: requests would leave this machine
}

// Can reports whether the model has a capability: "completion", "tools",
// "vision", "embedding", "thinking", "insert".
func (f Facts) Can(capability string) bool { return slices.Contains(f.Capabilities, capability) }

// KVPerToken is the memory that one token of context takes: a key and a value
// of 2 bytes each (f16) per block, head and dimension. It is 0 when the file
// does not tell.
func (f Facts) KVPerToken() residency.Bytes {
	return residency.Bytes(2 * f.Blocks * f.KVHeads * (f.KeyLength + f.ValueLength))
}

// ShowAll reads all that the server tells of a model, member by member. A
// model that is not installed is a 404.
func (c *Client) ShowAll(ctx context.Context, name string) (map[string]json.RawMessage, error) {
	all := map[string]json.RawMessage{}
	err := c.call(ctx, c.cfg.Call, http.MethodPost, "/api/show", &api.ShowRequest{Model: name}, &all)
	return all, err
}

// Show reads a model's facts. A model that is not installed is a 404.
func (c *Client) Show(ctx context.Context, name string) (Facts, error) {
	// Only what is needed: the whole answer holds licence and template too.
	var s struct {
		Modelfile    string             `json:"modelfile"`
		Parameters   string             `json:"parameters"`
		ModelInfo    map[string]any     `json:"model_info"`
		Capabilities []model.Capability `json:"capabilities"`
		RemoteHost   string             `json:"remote_host"`
	}
	err := c.call(ctx, c.cfg.Call, http.MethodPost, "/api/show", &api.ShowRequest{Model: name}, &s)
	if err != nil {
		return Facts{}, err
	}
	arch, _ := s.ModelInfo["general.architecture"].(string)
	// A list is one figure per block; the largest is on the safe side.
	number := func(key string) (n int) {
		switch v := s.ModelInfo[arch+"."+key].(type) {
		case float64:
			n = int(v)
		case []any:
			for _, e := range v {
				if f, ok := e.(float64); ok {
					n = max(n, int(f))
				}
			}
		}
		return n
	}
	f := Facts{
		Architecture: arch,
		Context:      number("context_length"),
		Blocks:       number("block_count"),
		Embedding:    number("embedding_length"),
		Heads:        number("attention.head_count"),
		KVHeads:      number("attention.head_count_kv"),
		KeyLength:    number("attention.key_length"),
		ValueLength:  number("attention.value_length"),
		RemoteHost:   s.RemoteHost,
	}
	if f.KVHeads == 0 {
		f.KVHeads = f.Heads // no grouping
	}
	if f.KeyLength == 0 && f.Heads > 0 {
		f.KeyLength = f.Embedding / f.Heads
	}
	if f.ValueLength == 0 {
		f.ValueLength = f.KeyLength
	}
	for _, capability := range s.Capabilities {
		f.Capabilities = append(f.Capabilities, string(capability))
	}
	for line := range strings.Lines(s.Modelfile) {
		if path, ok := strings.CutPrefix(line, "FROM "); ok && f.Blob == "" {
			path = strings.TrimSpace(path)
			f.Blob = path[strings.LastIndexAny(path, `/\`)+1:]
		}
	}
	for line := range strings.Lines(s.Parameters) {
		if field := strings.Fields(line); len(field) == 2 && field[0] == "num_ctx" {
			if f.NumCtx, err = strconv.Atoi(field[1]); err != nil {
				return Facts{}, fmt.Errorf("reading num_ctx of %s: %w", name, err)
			}
		}
	}
	return f, nil
}
