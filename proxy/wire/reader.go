package wire

import (
	"slices"
	"strconv"
)

// reader reads what the bodies of all endpoints are made of.
type reader struct {
	*scan
	lim    Limits
	tokens int       // of prompts that are given as numbers
	names  *[]string // of fields given and without effect
}

func newReader(body []byte, lim Limits, ignored *[]string) reader {
	lim = lim.orDefault()
	return reader{scan: newScan(body, lim.Depth), lim: lim, names: ignored}
}

// optional reads a number that stays distinguishable from an absent one.
func (r *reader) optional(low, high float64) *float64 { return new(r.float(low, high)) }

// tokenLimit reads a number of tokens; 0 is none.
func (r *reader) tokenLimit() *int {
	if n := r.int(0, r.lim.MaxTokens); n > 0 {
		return &n
	}
	return nil
}

// ignore steps over a value without effect and remembers its name.
func (r *reader) ignore(name string) {
	r.skip()
	r.ignored(name)
}

// ignored remembers the name of a field without effect, where the name is fit
// for a response header.
func (r *reader) ignored(name string) {
	const most = 32
	if len(*r.names) < most && plain(name) && !slices.Contains(*r.names, name) {
		*r.names = append(*r.names, name)
	}
}

// plain reports whether name may stand in a header as it is.
func plain(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

func (r *reader) tooMany(what string, most int) {
	r.badValue("at most " + strconv.Itoa(most) + " " + what + " are accepted")
}

// missing refuses the value being read for a member it lacks.
func (r *reader) missing(member string) {
	r.path = append(r.path, step{key: member})
	r.fail(codeMissing, "Missing required parameter: '"+r.param()+"'.")
}

func (r *reader) effort() string {
	effort := r.text()
	switch effort {
	case "none", "minimal", "low", "medium", "high", "xhigh", "max":
	default:
		r.badValue("expected none, minimal, low, medium, high, xhigh or max")
	}
	return effort
}

// member looks ahead for a text in the object that comes next, which says how
// to read the rest of it; empty if there is none.
func (r *reader) member(name string) (text string) {
	at, levels := r.pos, r.levels
	for key := range r.object(noKeys) {
		if key == name && r.peek() == '"' {
			text = r.text()
		} else {
			r.skip()
		}
	}
	if r.err == nil {
		r.pos, r.levels = at, levels
	}
	return text
}

// strings reads an object whose values are strings.
func (r *reader) strings() map[string]string {
	all := map[string]string{}
	for key := range r.object(noKeys) {
		if len(all) == r.lim.Metadata {
			r.tooMany("pairs", r.lim.Metadata)
			break
		}
		all[key] = r.text()
	}
	return all
}
