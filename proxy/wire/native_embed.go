package wire

import (
	"iter"
	"math"
	"strconv"
)

// NativeEmbeddings is a request to Ollama's own /api/embed, or to the older
// /api/embeddings: an embeddings request, and how it is answered.
type NativeEmbeddings struct {
	*Embeddings

	old bool // one prompt, one vector, as /api/embeddings has it
}

//nolint:gochecknoglobals // a compiled table
var nativeEmbedKeys = newKeys("model", "input", "prompt", "dimensions",
	// Accepted without effect:
	"truncate", "keep_alive", "options")

// DecodeNativeEmbed reads the body of POST /api/embed, as strictly as
// [DecodeEmbeddings]. The error is an [*Error].
func DecodeNativeEmbed(body []byte, lim Limits) (*NativeEmbeddings, error) {
	return decodeNativeEmbed(body, lim, false)
}

// DecodeNativeEmbeddings reads the body of POST /api/embeddings. Its vectors
// have unit length here, like those of /api/embed.
func DecodeNativeEmbeddings(body []byte, lim Limits) (*NativeEmbeddings, error) {
	return decodeNativeEmbed(body, lim, true)
}

func decodeNativeEmbed(body []byte, lim Limits, old bool) (*NativeEmbeddings, error) {
	e := &Embeddings{}
	n := &NativeEmbeddings{Embeddings: e, old: old}
	r := newReader(body, lim, &e.Ignored)
	for key := range r.object(nativeEmbedKeys) {
		switch {
		case key == "model":
			e.Model = r.text()
		case key == n.field() && old:
			if text := r.text(); text != "" {
				e.Input = []string{text}
			}
		case key == n.field():
			e.Input = r.prompts(r.lim.Inputs)
		case key == "dimensions" && !old:
			e.Dimensions = r.int(0, math.MaxInt32) // 0: unset, as Ollama's own client sends it
		case key == "truncate": // input that does not fit is an error, whatever is said here
			if r.bool() {
				r.ignored(key)
			}
		default:
			r.ignore(key)
		}
	}
	switch err := r.end(); {
	case err != nil:
		return nil, err
	case e.Model == "":
		return nil, noModel()
	case e.Input == nil:
		return nil, invalid(codeMissing, n.field(), "You must provide a non-empty '"+n.field()+"'.")
	}
	return n, nil
}

// field is the name of the one that holds the texts.
func (n *NativeEmbeddings) field() string {
	if n.old {
		return "prompt"
	}
	return "input"
}

// Head returns what n has in common with other requests.
func (n *NativeEmbeddings) Head() Head { return Head{Model: n.Model, Prompt: n.field()} }

// Encoder returns what writes an answer to n. There are no streams of it.
func (n *NativeEmbeddings) Encoder(Stamp) Encoder {
	return &nativeVectors{vectors: vectors{request: n.Embeddings}, old: n.old}
}

type nativeVectors struct {
	vectors
	old bool
}

func (v *nativeVectors) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	if v.old {
		dst = append(dst, `{"embedding":`...)
		for chunk := range chunks {
			if kind, _, numbers := parse(chunk); kind == kindVector {
				dst = v.appendVector(dst, numbers)
			}
		}
		return append(dst, '}')
	}
	dst = append(dst, `{"model":`...)
	dst = appendString(dst, v.request.Model)
	dst = append(dst, `,"embeddings":[`...)
	var usage []byte
	for chunk := range chunks {
		kind, index, payload := parse(chunk)
		switch {
		case kind == kindUsage:
			usage = payload
			continue
		case index > 0:
			dst = append(dst, ',')
		}
		dst = v.appendVector(dst, payload)
	}
	dst = append(dst, `],"prompt_eval_count":`...)
	prompt, _ := cutVarint(usage)
	dst = strconv.AppendInt(dst, int64(prompt), 10)
	return append(dst, '}')
}
