package ollama

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/ollama/ollama/api"

	"tenure/residency"
)

// ErrUnknownModel means that the registry does not have a model.
var ErrUnknownModel = errors.New("ollama: the registry has no such model")

// Progress is how far a pull has come.
type Progress struct {
	Status     string          // Ollama's words: "pulling manifest", "verifying sha256 digest"
	Completed  residency.Bytes // of all parts that are known of
	Total      residency.Bytes // grows as parts become known
	Interrupts int             // how often it broke and went on
}

const (
	pullTries = 5               // in a row without progress
	pullAgain = time.Second     // pause before the second of them, doubling
	pullLong  = 8 * time.Second // at most
)

// Pull has Ollama fetch a model, or see that it is up to date, and returns once
// it is on the disk. A stream that breaks is asked for again: Ollama keeps what
// it has fetched and goes on from there. What would not change is an error at
// once: ErrUnknownModel, a *StatusError.
func (c *Client) Pull(ctx context.Context, name string, each func(Progress)) error {
	p := Progress{}
	best, pause := residency.Bytes(0), pullAgain
	for tries := 1; ; tries++ {
		err := c.pull(ctx, name, &p, each)
		switch {
		case err == nil || ctx.Err() != nil || errors.Is(err, ErrUnknownModel) || !passing(err):
			return err
		case p.Completed > best:
			tries, best, pause = 0, p.Completed, pullAgain
		case tries >= pullTries:
			return err
		}
		p.Interrupts++
		p.Status = "interrupted, asking again"
		each(p)
		if err := wait(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, pullLong)
	}
}

// passing reports an error that may be gone the next time: of the network, not
// of the disk or of the name.
func passing(err error) bool {
	if errors.Is(err, ErrAborted) || errors.Is(err, ErrStalled) || errors.Is(err, ErrUnreachable) {
		return true
	}
	e, ok := errors.AsType[*StatusError](err)
	return ok && e.Status >= 500 && !strings.Contains(e.Message, "no space left") && !strings.Contains(e.Message, "newer version")
}

// pull asks once.
func (c *Client) pull(ctx context.Context, name string, p *Progress, each func(Progress)) error {
	parts := map[string]api.ProgressResponse{}
	return c.stream(ctx, slot{}, "/api/pull", &api.PullRequest{Model: name}, func(data []byte) (bool, error) {
		var line struct {
			api.ProgressResponse
			Error string `json:"error"`
		}
		if err := json.Unmarshal(data, &line); err != nil {
			return false, malformed(err)
		}
		switch {
		case strings.HasSuffix(line.Error, "file does not exist"):
			return false, ErrUnknownModel
		case line.Error != "":
			return false, &StatusError{Status: http.StatusInternalServerError, Message: line.Error}
		}
		p.Status = line.Status
		if line.Digest != "" {
			parts[line.Digest] = line.ProgressResponse
			p.Completed, p.Total = 0, 0
			for _, part := range parts {
				p.Completed += residency.Bytes(max(part.Completed, 0))
				p.Total += residency.Bytes(max(part.Total, 0))
			}
		}
		each(*p)
		return line.Status == "success", nil
	})
}
