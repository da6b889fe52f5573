package wire

import (
	"encoding/base64"
	"encoding/binary"
	"iter"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/ollama/ollama/api"
)

// Embeddings is an embeddings request.
type Embeddings struct {
	Model      string   // the id asked for
	Input      []string // never empty, nor is any of them; token arrays are decoded
	Base64     bool     // vectors as little-endian float32 in base64
	Dimensions int      // 0 = as many as the model's vectors have
	User       string

	Ignored []string // fields given and without effect
}

// kindVector is a chunk with one vector: the input's index as a varint, the
// numbers as little-endian float32.
const kindVector = 'v'

// embedBatch is how many inputs go upstream at once. An answer with so many
// vectors of 16384 dimensions, at 14 bytes a number, is 14 MiB: the client of
// Ollama reads 64 MiB.
const embedBatch = 64

//nolint:gochecknoglobals // a compiled table
var embeddingsKeys = newKeys("model", "input", "encoding_format", "dimensions", "user",
	// Accepted without effect:
	"truncate", "num_ctx", "keep_alive", "options")

// DecodeEmbeddings reads the body of an embeddings request in one strict scan.
// The error is an [*Error].
func DecodeEmbeddings(body []byte, lim Limits) (*Embeddings, error) {
	e := &Embeddings{}
	r := newReader(body, lim, &e.Ignored)
	for key := range r.object(embeddingsKeys) {
		switch key {
		case "model":
			e.Model = r.text()
		case "input":
			e.Input = r.prompts(r.lim.Inputs)
		case "encoding_format":
			switch r.text() {
			case "float":
			case "base64":
				e.Base64 = true
			default:
				r.badValue("expected float or base64")
			}
		case "dimensions":
			e.Dimensions = r.int(1, math.MaxInt32)
		case "user":
			e.User = r.text()
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
		return nil, invalid(codeMissing, "input", "You must provide an 'input': a text, or an array of texts.")
	}
	return e, nil
}

// Head returns what the request has in common with others.
func (e *Embeddings) Head() Head { return Head{Model: e.Model, Prompt: "input"} }

// EffectiveTemperature is 0: the same input has the same vector.
func (e *Embeddings) EffectiveTemperature(Params) (t float64, known bool) { return 0, true }

// IgnoredFor names the fields without effect.
func (e *Embeddings) IgnoredFor(Params) []string { return e.Ignored }

// AppendKey appends what two requests must share to share an answer: not the
// encoding, which is a matter of delivery.
func (e *Embeddings) AppendKey(dst []byte, p Params) []byte {
	k := key(dst)
	k.int(keyVersion)
	k.int(p.Context)
	k.int(e.Dimensions)
	k.int(len(e.Input))
	for _, text := range e.Input {
		k.text(text)
	}
	return k
}

// Requests translates for Ollama's /api/embed, batch after batch, in order. It
// refuses a model that makes no embeddings: the server itself does not, and
// returns vectors that mean nothing. The error is an [*Error].
func (e *Embeddings) Requests(p Params) ([]*api.EmbedRequest, error) {
	if p.lacks("embedding") {
		return nil, invalid(codeInvalidValue, "model",
			"The model that would answer makes no embeddings. Name an embedding model of the server, such as nomic-embed-text.")
	}
	var options map[string]any
	if p.Context > 0 {
		options = map[string]any{"num_ctx": p.Context}
	}
	var all []*api.EmbedRequest
	for batch := range slices.Chunk(e.Input, embedBatch) {
		// Dimensions are cut here, see chunk: what the server does with them
		// depends on its version.
		all = append(all, &api.EmbedRequest{Model: p.Model, Input: batch, Truncate: new(false), Options: options})
	}
	return all, nil
}

// EmbeddingsRecorder turns the answers to an embeddings request into the chunks
// of a recording. Not safe for concurrent use.
type EmbeddingsRecorder struct {
	request *Embeddings
	next    int // input
	prompt  int // tokens
	took    [3]time.Duration
}

// NewEmbeddingsRecorder returns a recorder for the answers to e's requests.
func NewEmbeddingsRecorder(e *Embeddings) *EmbeddingsRecorder { return &EmbeddingsRecorder{request: e} }

// Batch takes the answer to the next of the requests and returns its chunks:
// one for each vector, and after the last of all the usage.
func (r *EmbeddingsRecorder) Batch(asked *api.EmbedRequest, resp *api.EmbedResponse) ([][]byte, error) {
	if texts, _ := asked.Input.([]string); len(resp.Embeddings) != len(texts) {
		return nil, broken("input", "The model's answer does not have a vector for every input.")
	}
	chunks := make([][]byte, 0, len(resp.Embeddings)+1)
	for _, vector := range resp.Embeddings {
		vector, err := r.request.cut(vector)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, 1, 1+binary.MaxVarintLen16+4*len(vector))
		chunk[0] = kindVector
		chunk = binary.AppendUvarint(chunk, uint64(r.next))
		for _, f := range vector {
			chunk = binary.LittleEndian.AppendUint32(chunk, math.Float32bits(f))
		}
		chunks = append(chunks, chunk)
		r.next++
	}
	r.prompt += resp.PromptEvalCount
	r.took[0] += resp.LoadDuration
	r.took[1] += max(resp.TotalDuration-resp.LoadDuration, 0)
	if r.next == len(r.request.Input) {
		chunks = append(chunks, usageChunk(r.prompt, 0, r.took))
	}
	return chunks, nil
}

// cut leaves a vector as many dimensions as were asked for, and its length at
// 1, as models trained for it want: Kusupati et al., Matryoshka Representation
// Learning, 2022.
func (e *Embeddings) cut(vector []float32) ([]float32, error) {
	switch {
	case e.Dimensions == 0 || e.Dimensions == len(vector):
		return vector, nil
	case e.Dimensions > len(vector):
		return nil, invalid(codeInvalidValue, "dimensions", "Invalid value for 'dimensions': this model's vectors have "+strconv.Itoa(len(vector))+".")
	}
	vector = vector[:e.Dimensions]
	sum := 0.0
	for _, f := range vector {
		sum += float64(f) * float64(f)
	}
	norm := max(math.Sqrt(sum), 1e-12)
	for i, f := range vector {
		vector[i] = float32(float64(f) / norm)
	}
	return vector, nil
}

// Encoder returns what writes an answer to e. There are no streams of it.
func (e *Embeddings) Encoder(Stamp) Encoder { return &vectors{request: e} }

type vectors struct {
	eventStream
	request *Embeddings
}

func (v *vectors) AppendEvents(dst, _ []byte) []byte { return dst }
func (v *vectors) AppendEnd(dst []byte) []byte       { return dst }
func (v *vectors) AppendOpening(dst []byte) []byte   { return dst }

func (v *vectors) AppendBody(dst []byte, chunks iter.Seq[[]byte]) []byte {
	dst = append(dst, `{"object":"list","data":[`...)
	prompt := 0
	for chunk := range chunks {
		kind, index, payload := parse(chunk)
		if kind == kindUsage {
			prompt, _, _ = FinishCounts(chunk)
			continue
		}
		if index > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"object":"embedding","index":`...)
		dst = strconv.AppendInt(dst, int64(index), 10)
		dst = append(dst, `,"embedding":`...)
		dst = v.appendVector(dst, payload)
		dst = append(dst, '}')
	}
	dst = append(dst, `],"model":`...)
	dst = appendString(dst, v.request.Model)
	dst = append(dst, `,"usage":{"prompt_tokens":`...)
	dst = strconv.AppendInt(dst, int64(prompt), 10)
	dst = append(dst, `,"total_tokens":`...)
	dst = strconv.AppendInt(dst, int64(prompt), 10)
	return append(dst, `}}`...)
}

func (v *vectors) appendVector(dst, numbers []byte) []byte {
	if v.request.Base64 {
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, numbers)
		return append(dst, '"')
	}
	dst = append(dst, '[')
	for i := 0; i+4 <= len(numbers); i += 4 {
		if i > 0 {
			dst = append(dst, ',')
		}
		f := math.Float32frombits(binary.LittleEndian.Uint32(numbers[i:]))
		dst = strconv.AppendFloat(dst, float64(f), 'g', -1, 32)
	}
	return append(dst, ']')
}
