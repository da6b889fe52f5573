package ollama

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ollama/ollama/api"
)

// chatLine is what is read of a line: api.ChatResponse reads its message twice.
type chatLine struct {
	CreatedAt  time.Time     `json:"created_at"`
	Message    chatMessage   `json:"message"`
	Done       bool          `json:"done"`
	DoneReason string        `json:"done_reason"`
	Logprobs   []api.Logprob `json:"logprobs"`
	Error      string        `json:"error"`
	api.Metrics
}

// chatMessage is api.Message without its own way of being read.
type chatMessage api.Message

// readChat reads a line of a chat into piece.
func readChat(data []byte, piece *api.ChatResponse) error {
	*piece = api.ChatResponse{}
	if l := (line{data: data}); l.chat(piece) {
		return nil
	}
	var l chatLine
	if err := json.Unmarshal(data, &l); err != nil {
		return malformed(err)
	}
	if l.Error != "" {
		return &StatusError{Status: http.StatusInternalServerError, Message: l.Error}
	}
	*piece = api.ChatResponse{
		CreatedAt: l.CreatedAt, Message: api.Message(l.Message), Done: l.Done, DoneReason: l.DoneReason, Logprobs: l.Logprobs, Metrics: l.Metrics,
	}
	return nil
}

// line reads lines as Ollama writes nearly all of them: text, numbers, no white
// space. It is there because encoding/json takes ten times as long, for every
// token. What it does not know, it leaves alone.
type line struct {
	data []byte
	pos  int
}

// chat reads the whole line. When it reports false, r is to be read anew.
func (l *line) chat(r *api.ChatResponse) bool {
	return l.object(func(key []byte) bool {
		switch string(key) {
		case "model":
			_, escapes, ok := l.quoted()
			return ok && escapes == 0
		case "created_at":
			at, escapes, ok := l.quoted()
			return ok && escapes == 0 && r.CreatedAt.UnmarshalText(at) == nil
		case "message":
			return l.object(func(key []byte) bool {
				switch string(key) {
				case "role":
					r.Message.Role = "assistant"
					return l.skip(`"assistant"`) || l.set(&r.Message.Role)
				case "content":
					return l.set(&r.Message.Content)
				case "thinking":
					return l.set(&r.Message.Thinking)
				}
				return false
			})
		case "done":
			r.Done = l.skip("true")
			return r.Done || l.skip("false")
		case "done_reason":
			return l.set(&r.DoneReason)
		case "total_duration":
			return l.duration(&r.TotalDuration)
		case "load_duration":
			return l.duration(&r.LoadDuration)
		case "prompt_eval_count":
			return l.number(&r.PromptEvalCount)
		case "prompt_eval_duration":
			return l.duration(&r.PromptEvalDuration)
		case "eval_count":
			return l.number(&r.EvalCount)
		case "eval_duration":
			return l.duration(&r.EvalDuration)
		}
		return false
	}) && l.pos == len(l.data)
}

// object reads an object whose members' values member reads.
func (l *line) object(member func(key []byte) bool) bool {
	if !l.skip("{") {
		return false
	}
	for {
		key, escapes, ok := l.quoted()
		if !ok || escapes > 0 || !l.skip(":") || !member(key) {
			return false
		}
		if !l.skip(",") {
			return l.skip("}")
		}
	}
}

// skip steps over what comes next, if that is it.
func (l *line) skip(what string) bool {
	if end := l.pos + len(what); end <= len(l.data) && string(l.data[l.pos:end]) == what {
		l.pos = end
		return true
	}
	return false
}

func (l *line) set(to *string) (ok bool) {
	*to, ok = l.text()
	return ok
}

// text reads a string.
func (l *line) text() (string, bool) {
	raw, escapes, ok := l.quoted()
	if ok && escapes > 0 {
		return unescape(raw, len(raw)-escapes)
	}
	return string(raw), ok
}

// quoted reads a string and returns what stands between the quotes.
func (l *line) quoted() (raw []byte, escapes int, ok bool) {
	if !l.skip(`"`) {
		return nil, 0, false
	}
	for start := l.pos; l.pos < len(l.data); l.pos++ {
		switch c := l.data[l.pos]; {
		case c == '"':
			raw = l.data[start:l.pos]
			l.pos++
			return raw, escapes, utf8.Valid(raw)
		case c == '\\':
			escapes++
			l.pos++ // to what is escaped: it does not end the string
		case c < ' ':
			return nil, 0, false
		}
	}
	return nil, 0, false
}

// unescape undoes the escapes of a string, but for surrogates. size is what is
// left at most.
func unescape(raw []byte, size int) (string, bool) {
	out := make([]byte, 0, size)
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' {
			i++
			switch c = raw[i]; c {
			case '"', '\\', '/':
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'r':
				c = '\r'
			case 'u':
				n, err := strconv.ParseUint(string(raw[i+1:min(i+5, len(raw))]), 16, 16)
				if err != nil || i+5 > len(raw) || utf16.IsSurrogate(rune(n)) {
					return "", false
				}
				out = utf8.AppendRune(out, rune(n))
				i += 4
				continue
			default:
				return "", false
			}
		}
		out = append(out, c)
	}
	return string(out), true
}

// number reads a count.
func (l *line) number(to *int) bool {
	n, ok := l.digits()
	*to = int(n)
	return ok
}

func (l *line) duration(to *time.Duration) bool {
	n, ok := l.digits()
	*to = time.Duration(n)
	return ok
}

// digits reads a whole number that is not negative and fits.
func (l *line) digits() (n int64, ok bool) {
	start := l.pos
	for ; l.pos < len(l.data) && '0' <= l.data[l.pos] && l.data[l.pos] <= '9'; l.pos++ {
		n = 10*n + int64(l.data[l.pos]-'0')
	}
	read := l.data[start:l.pos]
	return n, len(read) == 1 || 1 < len(read) && len(read) < 18 && read[0] != '0'
}
