package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"tenure/cache"
	"tenure/proxy/ollama"
	"tenure/proxy/wire"
	"tenure/routing"

	"github.com/gin-gonic/gin"
	"github.com/ollama/ollama/api"
)

// native serves Ollama's own API to the clients that speak nothing else. What
// asks a model goes through complete, as the OpenAI side does; what would
// change the server is refused.
func (s *Server) native(g *gin.Engine) {
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		g.Handle(method, "/api/version", s.serve("ollama", s.nativeVersion))
		g.Handle(method, "/api/tags", s.serve("ollama", s.nativeTags))
		g.Handle(method, "/api/ps", s.serve("ollama", s.nativePS))
	}
	g.POST("/api/show", s.serve("ollama", s.nativeShow))
	g.POST("/api/chat", s.serve("ollama_chat", s.complete(nativeChat(wire.DecodeNativeChat))))
	g.POST("/api/generate", s.serve("ollama_generate", s.complete(nativeChat(wire.DecodeNativeGenerate))))
	g.POST("/api/embed", s.serve("ollama_embed", s.complete(nativeEmbed(wire.DecodeNativeEmbed))))
	g.POST("/api/embeddings", s.serve("ollama_embed", s.complete(nativeEmbed(wire.DecodeNativeEmbeddings))))
	for _, path := range []string{"/api/create", "/api/pull", "/api/push", "/api/copy"} {
		g.POST(path, s.serve("ollama", s.nativeReadOnly))
	}
	g.DELETE("/api/delete", s.serve("ollama", s.nativeReadOnly))
	g.POST("/api/blobs/:digest", s.serve("ollama", s.nativeReadOnly))
	g.HEAD("/api/blobs/:digest", s.serve("ollama", s.nativeReadOnly))
}

// isNative reports a request whose client reads Ollama's own form of errors.
func isNative(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/api/") }

// nativeChat shares its recordings with chat completions.
func nativeChat(decode func([]byte, wire.Limits) (*wire.Native, error)) endpoint {
	return endpoint{name: chatCompletions().name, decode: func(body []byte, lim wire.Limits) (ask, error) {
		n, err := decode(body, lim)
		if err != nil {
			return nil, err
		}
		return nativeConversation{conversation{n.Chat}, n}, nil
	}}
}

// nativeConversation is a conversation, but for how it is told and answered.
type nativeConversation struct {
	conversation
	native *wire.Native
}

func (c nativeConversation) Head() wire.Head                       { return c.native.Head() }
func (c nativeConversation) IgnoredFor(p wire.Params) []string     { return c.native.IgnoredFor(p) }
func (c nativeConversation) Encoder(stamp wire.Stamp) wire.Encoder { return c.native.Encoder(stamp) }

func (c nativeConversation) EffectiveTemperature(p wire.Params) (float64, bool) {
	return c.native.EffectiveTemperature(p)
}

// work of a request without a prompt is done once the model has its seat.
func (c nativeConversation) work(p wire.Params) (work, error) {
	if !c.native.Bare {
		return c.conversation.work(p)
	}
	return func(_ context.Context, _ *ollama.Client, rec *cache.Recording, _ *meter) (bool, error) {
		rec.Append(wire.Loaded()...)
		return false, nil
	}, nil
}

// nativeEmbed shares its recordings with embeddings.
func nativeEmbed(decode func([]byte, wire.Limits) (*wire.NativeEmbeddings, error)) endpoint {
	return endpoint{name: embeddings().name, decode: func(body []byte, lim wire.Limits) (ask, error) {
		n, err := decode(body, lim)
		if err != nil {
			return nil, err
		}
		return nativeVectors{vectors{n.Embeddings}, n}, nil
	}}
}

// nativeVectors are vectors, but for how they are told.
type nativeVectors struct {
	vectors
	native *wire.NativeEmbeddings
}

func (v nativeVectors) Head() wire.Head                       { return v.native.Head() }
func (v nativeVectors) Encoder(stamp wire.Stamp) wire.Encoder { return v.native.Encoder(stamp) }

func (s *Server) nativeReadOnly(*exchange) error {
	return problem(nil, outcomeCaller, http.StatusForbidden, "read_only", 0,
		"Models are managed on the server itself: this proxy creates, pulls, copies and deletes none.")
}

// nativeVersion tells Ollama's version: clients choose by it what to send.
func (s *Server) nativeVersion(x *exchange) error {
	version := s.backend.snapshot().version
	if version == "" {
		return problem(nil, outcomeRefused, http.StatusServiceUnavailable, "upstream_unreachable", 5*time.Second,
			"Ollama has not been reached yet. Try again in a moment.")
	}
	x.gin.JSON(http.StatusOK, gin.H{"version": version})
	return nil
}

// nativeTags lists what GET /v1/models does. A virtual model looks like the
// model that would be asked first.
func (s *Server) nativeTags(x *exchange) error {
	installed := s.backend.snapshot().models
	list := api.ListResponse{Models: []api.ListModelResponse{}}
	for _, name := range s.router.Names() {
		if !s.mayUse(x.holder, name) {
			continue
		}
		entry := api.ListModelResponse{Name: name, Model: name, ModifiedAt: s.started}
		if m, ok := installedAs(installed, s.behind(name)); ok {
			entry.ModifiedAt, entry.Size, entry.Digest, entry.Details = m.ModifiedAt, int64(m.Size), m.Digest, details(m)
		}
		list.Models = append(list.Models, entry)
	}
	x.gin.JSON(http.StatusOK, list)
	return nil
}

// behind is the name of the model that answers for another; empty when none
// does.
func (s *Server) behind(name string) string {
	d, err := s.router.Route(routing.Request{Model: name})
	if err != nil {
		return ""
	}
	return d.Candidates[0].Name
}

func installedAs(models []ollama.Installed, name string) (ollama.Installed, bool) {
	at := slices.IndexFunc(models, func(m ollama.Installed) bool { return ShortName(m.Name) == name })
	if at < 0 {
		return ollama.Installed{}, false
	}
	return models[at], true
}

func details(m ollama.Installed) api.ModelDetails {
	d := api.ModelDetails{Format: "gguf", Family: m.Family, ParameterSize: m.Parameters, QuantizationLevel: m.Quantization}
	if m.Family != "" {
		d.Families = []string{m.Family}
	}
	return d
}

// nativePS lists what is in memory, under the real names.
func (s *Server) nativePS(x *exchange) error {
	now := s.backend.snapshot()
	list := api.ProcessResponse{Models: []api.ProcessModelResponse{}}
	for _, r := range now.resident {
		name := ShortName(r.Name)
		if !s.mayUse(x.holder, name) {
			continue
		}
		entry := api.ProcessModelResponse{
			Name: name, Model: name, Size: int64(r.Size), SizeVRAM: int64(r.VRAM), Digest: r.Digest,
			ExpiresAt: r.ExpiresAt, ContextLength: r.Context,
		}
		if m, ok := installedAs(now.models, name); ok {
			entry.Details = details(m)
		}
		list.Models = append(list.Models, entry)
	}
	x.gin.JSON(http.StatusOK, list)
	return nil
}

// nativeShow passes on what Ollama tells of a model; of a virtual one, what it
// tells of the model that would be asked first. num_ctx is the one that every
// request gets here.
func (s *Server) nativeShow(x *exchange) error {
	body, err := x.body(s.cfg.BodyBytes)
	if err != nil {
		return err
	}
	name, err := wire.DecodeNativeShow(body)
	if err != nil {
		return err
	}
	if err := s.permit(x, name); err != nil {
		return err
	}
	d, err := s.router.Route(routing.Request{Model: name})
	if err != nil {
		return err
	}
	model := d.Candidates[0]
	shown, err := s.ollama.ShowAll(x.ctx, model.Name)
	if err != nil {
		return fmt.Errorf("showing %s: %w", model.Name, err)
	}
	num := s.seat(model).Context
	if shown["parameters"], err = json.Marshal(withContext(shown["parameters"], num)); err != nil {
		return err
	}
	x.gin.Header("Tenure-Model", model.Name)
	x.gin.JSON(http.StatusOK, shown)
	return nil
}

// withContext sets num_ctx in the lines of a model's parameters.
func withContext(parameters json.RawMessage, tokens int) string {
	var text string
	if json.Unmarshal(parameters, &text) != nil {
		text = "" // it has none
	}
	lines := slices.DeleteFunc(slices.Collect(strings.Lines(text)), func(line string) bool {
		return strings.HasPrefix(line, "num_ctx ")
	})
	return fmt.Sprintf("%-30s %d\n%s", "num_ctx", tokens, strings.Join(lines, ""))
}
