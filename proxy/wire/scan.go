package wire

import (
	"bytes"
	"encoding/binary"
	"iter"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// scan reads one JSON document front to back. It is stricter than
// encoding/json where leniency would let two readers of the same bytes see
// different requests: a key given twice, or a key that only differs from a
// known one by case (encoding/json takes the last of either), bad UTF-8,
// nesting beyond a limit and anything after the document are errors.
//
// The first error sticks; after it every method returns a zero value and every
// loop ends, so callers check err once.
type scan struct {
	buf    []byte
	pos    int
	levels int // of nesting left
	path   []step
	err    *Error
}

// step is one element of the path to the value being read.
type step struct {
	key   string
	index int // used where key is empty
}

// keys is a table of the names an object may use, at most 64 of them.
type keys struct {
	names []string
	place map[string]int
}

func newKeys(names ...string) *keys {
	k := &keys{names: names, place: make(map[string]int, len(names))}
	for i, name := range names {
		k.place[name] = i
	}
	return k
}

// folded returns the known name that encoding/json would take name for.
func (k *keys) folded(name string) string {
	for _, known := range k.names {
		if strings.EqualFold(known, name) {
			return known
		}
	}
	return ""
}

func newScan(body []byte, levels int) *scan {
	s := &scan{buf: body, levels: levels, path: make([]step, 0, 8)}
	if !utf8.Valid(body) {
		s.fail(codeInvalidJSON, "The request body is not valid UTF-8.")
	}
	return s
}

// end reports the first error, or data that follows the document.
func (s *scan) end() *Error {
	if s.err == nil && s.peek() != 0 || s.err == nil && s.pos < len(s.buf) {
		s.syntax("unexpected data after the JSON document")
	}
	return s.err
}

func (s *scan) fail(code, message string) {
	if s.err == nil {
		s.err = invalid(code, s.param(), message)
	}
}

func (s *scan) syntax(what string) {
	if s.err == nil {
		s.err = invalid(codeInvalidJSON, "", "The request body is not valid JSON: "+what+atOffset(s.pos)+".")
	}
}

// wrongType says what was expected where, as OpenAI words it.
func (s *scan) wrongType(want string) {
	if s.err != nil {
		return
	}
	got := "something else"
	switch c := s.peek(); {
	case c == '"':
		got = "a string"
	case c == '{':
		got = "an object"
	case c == '[':
		got = "an array"
	case c == 't' || c == 'f':
		got = "a boolean"
	case c == 'n':
		got = "null"
	case c == '-' || c >= '0' && c <= '9':
		got = "a number"
	case c == 0:
		s.syntax("unexpected end")
		return
	}
	s.fail(codeInvalidType, "Invalid type for '"+s.param()+"': expected "+want+", but got "+got+" instead.")
}

// badValue refuses the value just read for what it says.
func (s *scan) badValue(want string) {
	s.fail(codeInvalidValue, "Invalid value for '"+s.param()+"': "+want+".")
}

// param renders the path as messages[0].content.
func (s *scan) param() string {
	var b strings.Builder
	for _, p := range s.path {
		switch {
		case p.key == "":
			b.WriteByte('[')
			b.WriteString(strconv.Itoa(p.index))
			b.WriteByte(']')
		case b.Len() > 0:
			b.WriteByte('.')
			fallthrough
		default:
			b.WriteString(p.key)
		}
	}
	return b.String()
}

// peek returns the first byte of the next token, 0 at the end.
func (s *scan) peek() byte {
	for ; s.pos < len(s.buf); s.pos++ {
		switch c := s.buf[s.pos]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (s *scan) open() bool {
	if s.levels == 0 {
		s.fail(codeInvalidJSON, "The request body is nested too deeply.")
		return false
	}
	s.levels--
	s.pos++
	return true
}

// more moves to the next member of an array or object and reports whether
// there is one.
func (s *scan) more(first bool, end byte) bool {
	if s.err != nil {
		return false
	}
	switch c := s.peek(); {
	case c == end:
		s.pos++
		s.levels++
		return false
	case first:
		return true
	case c != ',':
		s.syntax("expected ',' or '" + string(end) + "'")
		return false
	}
	s.pos++
	return true
}

// object yields the names of the next value's members. The loop's body reads
// the value; where that is null, the member counts as absent and is not
// yielded.
func (s *scan) object(known *keys) iter.Seq[string] {
	return func(yield func(string) bool) {
		if s.err != nil {
			return
		}
		if s.peek() != '{' {
			s.wrongType("an object")
			return
		}
		if !s.open() {
			return
		}
		top := len(s.path)
		var given uint64
		var others names
		for first := true; s.more(first, '}'); first = false {
			raw := s.key()
			if s.err != nil {
				return
			}
			var name string
			if at, ok := known.place[string(raw)]; ok {
				name = known.names[at]
				if given&(1<<at) != 0 {
					s.twice(name)
					return
				}
				given |= 1 << at
				s.path = append(s.path, step{key: name})
			} else { // a name of the client's own stays out of params and messages
				name = string(raw)
				if like := known.folded(name); like != "" {
					s.path = append(s.path, step{key: like})
					s.fail(codeInvalidJSON, "A key of the request body differs from '"+s.param()+"' only by case.")
					return
				}
				if !s.unseen(&others, raw) {
					return
				}
			}
			if s.peek() == 'n' {
				s.literal("null")
			} else if !yield(name) || s.err != nil {
				return
			}
			s.path = s.path[:top]
		}
	}
}

// array yields the places of the next value's elements; the loop's body reads
// them.
func (s *scan) array() iter.Seq[int] {
	return func(yield func(int) bool) {
		if s.err != nil {
			return
		}
		if s.peek() != '[' {
			s.wrongType("an array")
			return
		}
		if !s.open() {
			return
		}
		s.path = append(s.path, step{})
		top := len(s.path) - 1
		for i := 0; s.more(i == 0, ']'); i++ {
			s.path[top].index = i
			if !yield(i) || s.err != nil {
				return
			}
		}
		s.path = s.path[:top]
	}
}

// mostNames is how many names of the client's own one object may have.
const mostNames = 4096

// unseen refuses a name that its object had already, and one too many.
func (s *scan) unseen(seen *names, name []byte) bool {
	if len(seen.many) == mostNames {
		s.fail(codeInvalidJSON, "An object in the request body has more than "+strconv.Itoa(mostNames)+" keys.")
		return false
	}
	if !seen.add(name) {
		s.twice("")
		return false
	}
	return true
}

func (s *scan) twice(name string) {
	if name != "" {
		s.path = append(s.path, step{key: name})
	}
	s.fail(codeInvalidJSON, "The request body gives a key twice.")
}

// key reads a member's name and the colon.
func (s *scan) key() []byte {
	if s.peek() != '"' {
		s.syntax("expected a key")
		return nil
	}
	raw, escaped := s.quoted()
	if s.err != nil {
		return nil
	}
	if escaped {
		raw = []byte(unescape(raw))
	}
	if s.peek() != ':' {
		s.syntax("expected ':'")
		return nil
	}
	s.pos++
	return raw
}

// text reads a string.
func (s *scan) text() string {
	if s.err != nil {
		return ""
	}
	if s.peek() != '"' {
		s.wrongType("a string")
		return ""
	}
	raw, escaped := s.quoted()
	if escaped {
		return unescape(raw)
	}
	return string(raw)
}

// quoted reads a string and returns what stands between the quotes.
func (s *scan) quoted() (raw []byte, escaped bool) {
	s.pos++
	start := s.pos
	for {
		s.pos += plainLen(s.buf[s.pos:])
		if s.pos == len(s.buf) {
			s.syntax("unexpected end")
			return nil, false
		}
		switch s.buf[s.pos] {
		case '"':
			raw = s.buf[start:s.pos]
			s.pos++
			return raw, escaped
		case '\\':
			escaped = true
			if !s.escape() {
				return nil, false
			}
		default:
			s.syntax("control character in a string")
			return nil, false
		}
	}
}

// plainLen is the length of the part of a string before the next quote,
// backslash or control character. It looks at eight bytes at a time: a byte is
// below n, or equal to c, where the subtraction borrows from its top bit.
func plainLen(b []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; len(b)-n >= 8; n += 8 {
		w := binary.LittleEndian.Uint64(b[n:])
		quote, slash := w^ones*'"', w^ones*'\\'
		if found := ((w-ones*' ')&^w | (quote-ones)&^quote | (slash-ones)&^slash) & tops; found != 0 {
			return n + bits.TrailingZeros64(found)/8
		}
	}
	for n < len(b) && b[n] >= ' ' && b[n] != '"' && b[n] != '\\' {
		n++
	}
	return n
}

// escape steps over one escape sequence.
func (s *scan) escape() bool {
	s.pos++
	if s.pos < len(s.buf) {
		switch s.buf[s.pos] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			s.pos++
			return true
		case 'u':
			if s.pos+5 <= len(s.buf) && hex4(s.buf[s.pos+1:]) >= 0 {
				s.pos += 5
				return true
			}
		}
	}
	s.syntax("bad escape in a string")
	return false
}

// hex4 reads four hex digits, -1 if they are not.
func hex4(b []byte) rune {
	var r rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unescape undoes the escapes of a string that quoted has checked. Half a
// surrogate pair becomes U+FFFD, as with encoding/json.
func unescape(raw []byte) string {
	var out strings.Builder
	out.Grow(len(raw))
	for {
		plain := bytes.IndexByte(raw, '\\')
		if plain < 0 {
			out.Write(raw)
			return out.String()
		}
		out.Write(raw[:plain])
		c := raw[plain+1]
		raw = raw[plain+2:]
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r := hex4(raw)
			raw = raw[4:]
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
					low = hex4(raw[2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					raw = raw[6:]
				}
			}
			out.WriteRune(r)
			continue
		}
		out.WriteByte(c)
	}
}

// bool reads true or false.
func (s *scan) bool() bool {
	if s.err != nil {
		return false
	}
	switch s.peek() {
	case 't':
		s.literal("true")
		return s.err == nil
	case 'f':
		s.literal("false")
	default:
		s.wrongType("a boolean")
	}
	return false
}

func (s *scan) literal(word string) {
	if len(s.buf)-s.pos < len(word) || string(s.buf[s.pos:s.pos+len(word)]) != word {
		s.syntax("unknown word")
		return
	}
	s.pos += len(word)
}

// number reads a number's characters.
func (s *scan) number() []byte {
	start := s.pos
	digits := func() bool {
		from := s.pos
		for s.pos < len(s.buf) && s.buf[s.pos] >= '0' && s.buf[s.pos] <= '9' {
			s.pos++
		}
		return s.pos > from
	}
	is := func(set string) bool {
		if s.pos < len(s.buf) && strings.IndexByte(set, s.buf[s.pos]) >= 0 {
			s.pos++
			return true
		}
		return false
	}
	is("-")
	ok := is("0") || digits()
	if ok && is(".") {
		ok = digits()
	}
	if ok && is("eE") {
		is("+-")
		ok = digits()
	}
	if !ok {
		s.syntax("bad number")
		return nil
	}
	return s.buf[start:s.pos]
}

func isNumber(c byte) bool { return c == '-' || c >= '0' && c <= '9' }

// float reads a number between low and high.
func (s *scan) float(low, high float64) float64 {
	if s.err != nil {
		return 0
	}
	if !isNumber(s.peek()) {
		s.wrongType("a number")
		return 0
	}
	raw := s.number()
	if s.err != nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || v < low || v > high {
		s.badValue("expected a number between " + strconv.FormatFloat(low, 'g', -1, 64) + " and " + strconv.FormatFloat(high, 'g', -1, 64))
		return 0
	}
	return v
}

// int reads a whole number between low and high; 2.0 is one.
func (s *scan) int(low, high int) int {
	if s.err != nil {
		return 0
	}
	if !isNumber(s.peek()) {
		s.wrongType("an integer")
		return 0
	}
	raw := s.number()
	if s.err != nil {
		return 0
	}
	v, err := strconv.Atoi(string(raw))
	if err != nil {
		f, ferr := strconv.ParseFloat(string(raw), 64)
		if ferr == nil && f == math.Trunc(f) && math.Abs(f) <= 1<<53 {
			v, err = int(f), nil
		} else if ferr == nil && f != math.Trunc(f) {
			s.fail(codeInvalidType, "Invalid type for '"+s.param()+"': expected an integer, but got a decimal number instead.")
			return 0
		}
	}
	if err != nil || v < low || v > high {
		s.badValue("expected an integer between " + strconv.Itoa(low) + " and " + strconv.Itoa(high))
		return 0
	}
	return v
}

// skip checks a value and steps over it.
func (s *scan) skip() {
	if s.err != nil {
		return
	}
	switch c := s.peek(); {
	case c == '"':
		s.quoted()
	case c == '{':
		if !s.open() {
			return
		}
		var seen names
		for first := true; s.more(first, '}'); first = false {
			raw := s.key()
			if s.err == nil && s.unseen(&seen, raw) {
				s.skip()
			}
		}
	case c == '[':
		if !s.open() {
			return
		}
		for first := true; s.more(first, ']'); first = false {
			s.skip()
		}
	case c == 't':
		s.literal("true")
	case c == 'f':
		s.literal("false")
	case c == 'n':
		s.literal("null")
	case isNumber(c):
		s.number()
	case c == 0:
		s.syntax("unexpected end")
	default:
		s.syntax("unexpected character")
	}
}

// raw checks a value and returns it as it stands in the body.
func (s *scan) raw() []byte {
	s.peek()
	start := s.pos
	s.skip()
	if s.err != nil {
		return nil
	}
	return s.buf[start:s.pos]
}

// names is a set that costs nothing for the few keys an object usually has
// and does not turn quadratic for the many it may have.
type names struct {
	few  [8][]byte
	n    int
	many map[string]struct{}
}

func (s *names) add(name []byte) bool {
	if s.many != nil {
		if _, ok := s.many[string(name)]; ok {
			return false
		}
		s.many[string(name)] = struct{}{}
		return true
	}
	if slices.ContainsFunc(s.few[:s.n], func(b []byte) bool { return string(b) == string(name) }) {
		return false
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	s.many = make(map[string]struct{}, 2*len(s.few))
	for _, b := range s.few {
		s.many[string(b)] = struct{}{}
	}
	s.many[string(name)] = struct{}{}
	return true
}
