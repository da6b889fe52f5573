package task

import (
	"math"
	"strings"
)

// A message is cut in three: an ask at its head, documents, an ask at its
// tail. Any part may be empty. Nothing between two documents is an ask, which
// is what makes an instruction inside a document powerless.
//
// Every line gets a score, positive when it reads like something said to the
// reader and negative when it reads like pasted material; the cut is the pair
// of lines that maximises the sum, where a cut at a blank line, a label, a
// fence or a tag is free and one in the middle of a paragraph is not.

const (
	forcedDoc  = -6
	forcedAsk  = 6
	longLine   = 320 // a longer line is cut into its sentences
	edgeLine   = 60  // the same for the first and the last line
	tagsAtMost = 24
)

// Cues of a line, from one pass over its bytes.
const (
	cueBullet uint32 = 1 << iota
	cueLabel         // names what follows: "CV:", "### Job description"
	cueColon         // ends in a colon
	cueQuestion
	cueContact // an address, a link or a telephone number
	cueYear    // a year or a date
	cueTable   // three separators or more
	cueKey     // begins like "Name: value"
	cueJSON
	cueCaps
	cueRule // nothing but punctuation
	cueQuote
	cueShort  // at most three words
	cueLong   // more than 160 bytes
	cueSpeak  // begins like a turn of a dialogue, or with a time
	cueDigits // a fifth or more of it is digits
	cueStop   // ends like a sentence
	cueGap    // a blank line, or the edge of the message, comes before
	cueGapAfter
	cueFirst
	cueLast
	cueInLabel // follows a label in the same paragraph
	cueInject  // speaks to a machine over the reader's head
	cueTag
)

type line struct {
	best       float32 // worth of the best head that ends before this line
	bestAt     int     // and where it ends
	start, end int     // in the message, without the newline
	cues       uint32
	words      int
	score      float32
	suspect    uint8 // 1 speaks to a machine, 2 overrides what was asked
	fixed      bool  // the score is structural
	gap        bool  // a cut before this line is free
	inline     bool  // goes on in the line of the text where the one before ended
}

// region is a stretch of lines of one nature.
type region struct {
	start, end int
	lines      [2]int // first, one past the last
	ask        bool
	tail       bool
	joined     bool // touches its document without a boundary
}

// lines cuts a message and fills in the structural cues.
func (s *scratch) split(text string) {
	s.lines = s.lines[:0]
	gap, ends := true, len(strings.TrimRight(text, " \t\r\n"))
	for at := 0; at < len(text); {
		end := strings.IndexByte(text[at:], '\n')
		next := at + end + 1
		if end < 0 {
			end, next = len(text)-at, len(text)
		}
		end += at
		a, b := at, end
		for a < b && (text[a] == ' ' || text[a] == '\t' || text[a] == '\r') {
			a++
		}
		for b > a && (text[b-1] == ' ' || text[b-1] == '\t' || text[b-1] == '\r') {
			b--
		}
		if a == b {
			gap = true
		} else {
			// An ask often shares its line with what follows or precedes it.
			size := longLine
			if len(s.lines) == 0 || b >= ends {
				size = edgeLine
			}
			s.sentences(text, a, b, size, gap)
			gap = false
		}
		at = next
	}
	s.structure(text)
	n := len(s.lines)
	if n == 0 {
		return
	}
	s.lines[0].cues |= cueFirst
	s.lines[n-1].cues |= cueLast | cueGapAfter
	for i := range s.lines {
		if s.lines[i].gap {
			s.lines[i].cues |= cueGap
			if i > 0 {
				s.lines[i-1].cues |= cueGapAfter
			}
		}
	}
	label := false
	for i := range s.lines {
		l := &s.lines[i]
		if l.cues&cueGap != 0 && (i == 0 || s.lines[i-1].cues&cueLabel == 0) {
			label = false
		}
		if label && l.cues&cueLabel == 0 {
			l.cues |= cueInLabel
		}
		if l.cues&cueLabel != 0 {
			label = true
		}
	}
}

// sentences appends text[a:b], whole unless it is longer than size.
func (s *scratch) sentences(text string, a, b, size int, gap bool) {
	inline := false
	for n := 0; b-a > size && n < 40; n++ {
		cut := 0
		for i := a + 12; i < b-1 && i < a+2000; i++ {
			if (text[i] == '.' || text[i] == '?' || text[i] == '!' || text[i] == ':') && text[i+1] == ' ' {
				cut = i + 1
				break
			}
		}
		if cut == 0 {
			break
		}
		s.line(text, a, cut, gap, inline)
		gap, inline = false, true
		a = cut
		for a < b && text[a] == ' ' {
			a++
		}
	}
	if a < b {
		s.line(text, a, b, gap, inline)
	}
}

func (s *scratch) line(text string, a, b int, gap, inline bool) {
	l := line{start: a, end: b, gap: gap, inline: inline}
	t := text[a:b]
	var digits, letters, upper, seps, marks, commas int
	word := false
	colon, run, years := -1, 0, 0
	sample := t
	if len(sample) > 1024 {
		sample = sample[:1024]
	}
	for i := range len(sample) {
		c := sample[i]
		if c >= '0' && c <= '9' {
			digits++
			run++
			if run == 4 && (t[i-3] == '1' || t[i-3] == '2') && (i < 4 || t[i-4] < '0' || t[i-4] > '9') && (i+1 == len(t) || t[i+1] < '0' || t[i+1] > '9') {
				years++
			}
		} else {
			run = 0
		}
		switch {
		case c >= 'a' && c <= 'z', c >= 0x80:
			letters++
		case c >= 'A' && c <= 'Z':
			letters++
			upper++
		case c == '|' || c == '\t':
			seps++
		case c == ',':
			commas++
		case c == '"':
			marks++
		case c == '@', c == '/' && strings.HasSuffix(t[:i], ":/"), c == '.' && strings.HasSuffix(t[:i], "www"):
			l.cues |= cueContact
		case c == ':' && colon < 0:
			colon = i
		}
		if in := c > ' '; in != word {
			word = in
			if in {
				l.words++
			}
		}
	}
	n := len(sample)
	switch c := t[0]; {
	case c == '-' || c == '*' || c == '+' || c == '>':
		l.cues |= cueBullet
	case strings.HasPrefix(t, "•"), strings.HasPrefix(t, "–"), strings.HasPrefix(t, "·"), strings.HasPrefix(t, "▪"):
		l.cues |= cueBullet
	case c == '{' || c == '}' || c == '[' || c == ']' || c == '"' && marks > 1 && colon > 0:
		if c != '[' || strings.ContainsAny(t, "\"{]") && !strings.HasPrefix(t, "[INST") {
			l.cues |= cueJSON
		}
	}
	if t[0] == '>' || t[0] == '"' {
		l.cues |= cueQuote
	}
	last := t[len(t)-1]
	switch last {
	case '?':
		l.cues |= cueQuestion
	case ':':
		l.cues |= cueColon
	case '.', '!':
		l.cues |= cueStop
	}
	if digits >= 7 && l.words <= 12 && digits*3 > n {
		l.cues |= cueContact
	}
	if years > 0 {
		l.cues |= cueYear
	}
	if seps >= 2 || commas >= 5 && commas*9 > n {
		l.cues |= cueTable
	}
	if letters == 0 {
		l.cues |= cueRule
	} else if upper*10 > letters*7 && letters > 3 {
		l.cues |= cueCaps
	}
	if colon > 0 && colon < 32 && colon+1 < n && strings.Count(t[:colon], " ") < 4 {
		l.cues |= cueKey
	}
	if digits*5 > n {
		l.cues |= cueDigits
	}
	if l.words <= 3 {
		l.cues |= cueShort
	}
	if len(t) > 160 {
		l.cues |= cueLong
	}
	if speaker(t) {
		l.cues |= cueSpeak
	}
	if label(t) {
		l.cues |= cueLabel
	}
	s.lines = append(s.lines, l)
}

// speaker reports whether a line begins like a turn of a dialogue: "[00:12]
// Ana:", "AK: ", "10:44 ".
func speaker(t string) bool {
	t = strings.TrimLeft(t, "[(*")
	if len(t) > 4 && t[0] >= '0' && t[0] <= '9' {
		i := 1
		for i < len(t) && (t[i] >= '0' && t[i] <= '9' || t[i] == ':') {
			i++
		}
		return i >= 4 && strings.IndexByte(t[:i], ':') > 0
	}
	i := strings.IndexByte(t, ':')
	return i > 0 && i < 24 && i+1 < len(t) && t[i+1] == ' ' && t[0] >= 'A' && t[0] <= 'Z' && len(t) > i+20 && strings.Count(t[:i], " ") < 3
}

// labels are the words by which people announce a pasted document.
var labels = map[string]bool{ //nolint:gochecknoglobals // compiled table
	"cv": true, "resume": true, "résumé": true, "lebenslauf": true, "curriculum": true, "curriculum vitae": true, "profile": true, "profil": true, "candidate": true,
	"candidate cv": true, "candidate resume": true, "candidate profile": true, "applicant": true, "kandidat": true, "bewerber": true, "jd": true, "job": true,
	"job description": true, "job ad": true, "job posting": true, "posting": true, "vacancy": true, "role": true, "position": true, "stelle": true, "stellenanzeige": true,
	"stellenbeschreibung": true, "offre": true, "offre d'emploi": true, "annonce": true, "oferta": true, "oferta de empleo": true, "annuncio": true, "vacature": true,
	"ogłoszenie": true, "vaga": true, "transcript": true, "interview transcript": true, "call transcript": true, "notes": true, "interview notes": true, "feedback": true,
	"panel feedback": true, "notizen": true, "data": true, "input": true, "document": true, "doc": true, "text": true, "context": true, "content": true, "source": true,
	"attachment": true, "attached": true, "email": true, "e-mail": true, "mail": true, "message": true, "thread": true, "cv text": true, "resume text": true,
	"jd text": true, "the cv": true, "the resume": true, "the jd": true, "the ad": true, "the posting": true, "his cv": true, "her cv": true, "begin cv": true,
	"begin resume": true, "begin document": true, "csv": true, "json": true, "results": true, "scores": true, "requirements": true, "application": true,
	"cover letter": true, "ad": true, "advert": true, "简历": true, "职位描述": true, "履歴書": true, "求人": true, "السيرة الذاتية": true, "الوصف الوظيفي": true,
}

// label reports whether a line announces a document: a known word, set off as
// a heading or by a colon.
func label(t string) bool {
	if len(t) > 60 {
		return false
	}
	u := strings.Trim(t, "#*=-_ :<>[]()\"'`~")
	marked := len(u) < len(t)
	if i := strings.IndexAny(u, "([:"); i > 0 {
		u = u[:i]
	}
	u = strings.TrimRight(u, " 0123456789#")
	var b [32]byte
	if u == "" || len(u) > len(b) {
		return false
	}
	upper := true
	for i := range len(u) {
		b[i] = u[i]
		switch {
		case u[i] >= 'A' && u[i] <= 'Z':
			b[i] |= 0x20
		case u[i] >= 'a' && u[i] <= 'z':
			upper = false
		}
	}
	return (marked || upper) && labels[string(b[:len(u)])]
}

// structure marks what fences, tags and markers say outright.
func (s *scratch) structure(text string) {
	tags := 0 // looked up so far: every one may search all lines
	if wrapped(text) {
		end := strings.Index(text, "</context>")
		j := 0
		for j < len(s.lines) && s.lines[j].start <= end {
			j++
		}
		s.fix(0, j, forcedDoc, true)
	}
	for i := 0; i < len(s.lines); i++ {
		l := &s.lines[i]
		if l.fixed {
			continue
		}
		t := text[l.start:l.end]
		if strings.HasPrefix(t, "```") || strings.HasPrefix(t, "~~~") || strings.HasPrefix(t, `"""`) {
			mark := t[:3]
			j := i + 1
			for j < len(s.lines) && !strings.HasPrefix(text[s.lines[j].start:s.lines[j].end], mark) {
				j++
			}
			if len(t) > 6 && strings.HasSuffix(t, mark) {
				j = i
			} else if j == len(s.lines) {
				continue // never closed
			}
			s.fix(i, j+1, forcedDoc, true)
			i = j
			continue
		}
		if l.cues&cueJSON != 0 {
			if key, ok := jsonKey(t); ok && asks(key) {
				l.fixed, l.score = true, forcedAsk
			}
		}
		name, ok := tag(t)
		if ok {
			tags++
		}
		if !ok || tags > tagsAtMost {
			if l.cues&cueRule != 0 && l.end-l.start >= 3 {
				s.boundary(i)
				s.boundary(i + 1)
			}
			continue
		}
		// The last closing tag counts: one inside the document is a fake.
		j := -1
		for k := len(s.lines) - 1; k >= i && j < 0; k-- {
			if closes(text[s.lines[k].start:s.lines[k].end], name) {
				j = k
			}
		}
		switch {
		case j < 0:
		case asks(name):
			s.fix(i, j+1, forcedAsk, false)
			i = j
		case name == "!--":
			s.settle(i, j+1, forcedDoc, false) // a comment is no document of its own, and bounds none
			i = j
		default:
			s.fix(i, j+1, forcedDoc, true)
			i = j
		}
	}
}

func (s *scratch) boundary(i int) {
	if i < len(s.lines) {
		s.lines[i].gap = true
	}
}

// fix settles lines that stand apart from what is around them.
func (s *scratch) fix(i, j int, score float32, fence bool) {
	s.boundary(i)
	s.boundary(j)
	s.settle(i, j, score, fence)
}

func (s *scratch) settle(i, j int, score float32, fence bool) {
	for k := i; k < j; k++ {
		s.lines[k].fixed = true
		s.lines[k].score = score
		if fence {
			s.lines[k].cues |= cueTag
		}
	}
}

// tag reads the name of an opening tag that begins a line.
func tag(t string) (string, bool) {
	if len(t) < 3 || t[0] != '<' || t[1] == '/' {
		return "", false
	}
	if strings.HasPrefix(t, "<!--") {
		return "!--", true
	}
	i := 1
	for i < len(t) && (t[i]|0x20 >= 'a' && t[i]|0x20 <= 'z' || t[i] >= '0' && t[i] <= '9' || t[i] == '_' || t[i] == '-') {
		i++
	}
	if i == 1 || i > 32 || i == len(t) || t[i] != '>' && t[i] != ' ' {
		return "", false
	}
	return t[1:i], true
}

func closes(t, name string) bool {
	if name == "!--" {
		return strings.Contains(t, "-->")
	}
	for {
		i := strings.Index(t, "</")
		if i < 0 {
			return false
		}
		t = t[i+2:]
		if len(t) > len(name) && strings.EqualFold(t[:len(name)], name) && (t[len(name)] == '>' || t[len(name)] == ' ') {
			return true
		}
	}
}

// jsonKey reads the first key of a line of JSON.
func jsonKey(t string) (string, bool) {
	t = strings.TrimLeft(t, "{[ ")
	if len(t) < 3 || t[0] != '"' {
		return "", false
	}
	key, rest, ok := strings.Cut(t[1:], "\"")
	return key, ok && strings.HasPrefix(strings.TrimLeft(rest, " "), ":")
}

// asks reports whether a tag holds what is asked rather than a document.
func asks(name string) bool {
	switch strings.ToLower(name) {
	case "instruction", "instructions", "task", "user_query", "query", "question", "request", "prompt", "user", "ask", "rules", "goal", "objective", "action", "operation", "command", "todo", "want", "output", "output_format", "keys", "fields", "template", "sections":
		return true
	}
	return false
}

// cuts are the worth of what a cut passes, learned with the lines: of the
// places where it may fall, and of the shapes that it may give a message.
type cuts struct {
	head, tail [places]float32 // of a cut at a boundary that shows, in a paragraph, in a line
	shape      [shapes]float32
}

const (
	shown = iota
	joined
	inside
	places
)

// Shapes of a message: nothing asked, asked at its head, its tail, both, or
// nothing but ask.
const (
	bare = iota
	headed
	tailed
	framed
	whole
	shapes
)

// anyShape admits every shape to a cut.
const anyShape = 1<<shapes - 1

// cut finds the three parts in one of the shapes of the set allow, appends
// their regions and returns what the cut is worth. lean is added to what it is
// worth to find no ask at all.
func (s *scratch) cut(c *cuts, lean float32, allow int) float32 {
	s.regions = s.regions[:0]
	n := len(s.lines)
	if n == 0 {
		return 0
	}
	admit := func(shape int) bool { return allow>>shape&1 != 0 }
	// lines[k].best is the best head among the first k+1 lines.
	shape, total := bare, float32(math.Inf(-1))
	if admit(bare) {
		total = c.shape[bare] + lean
	}
	head, inHead, sum := 0, float32(math.Inf(-1)), float32(0)
	for i := 1; i < n; i++ {
		s.lines[i-1].best, s.lines[i-1].bestAt = inHead, head
		sum += s.lines[i-1].score
		if v := sum + c.head[s.place(i)]; v > inHead {
			head, inHead = i, v
		}
	}
	s.lines[n-1].best, s.lines[n-1].bestAt = inHead, head
	sum += s.lines[n-1].score
	if v := sum + c.shape[whole]; v > total && admit(whole) {
		shape, total = whole, v
	}
	if v := inHead + c.shape[headed]; v > total && admit(headed) {
		shape, total = headed, v
	}
	tail := n
	first, last := head, n
	sum = 0
	for j := n - 1; j > 0; j-- {
		sum += s.lines[j].score
		v := sum + c.tail[s.place(j)]
		if u := v + c.shape[tailed]; u > total && admit(tailed) {
			shape, total, last = tailed, u, j
		}
		if u := v + c.shape[framed] + s.lines[j].best; u > total && admit(framed) {
			shape, total, first, last = framed, u, s.lines[j].bestAt, j
		}
	}
	switch shape {
	case bare:
		head = 0
	case headed:
		tail = n
	case tailed:
		head, tail = 0, last
	case framed:
		head, tail = first, last
	case whole:
		head = n
	}
	s.region(0, head, true, false)
	s.region(head, tail, false, false)
	s.region(tail, n, true, true)
	return total
}

// place tells how a cut before line i falls.
func (s *scratch) place(i int) int {
	l, p := &s.lines[i], &s.lines[i-1]
	switch {
	case l.inline:
		return inside
	case l.gap || p.cues&(cueLabel|cueColon|cueRule) != 0 || l.cues&cueLabel != 0:
		return shown
	}
	return joined
}

func (s *scratch) region(i, j int, ask, tail bool) {
	if i >= j {
		return
	}
	r := region{start: s.lines[i].start, end: s.lines[j-1].end, lines: [2]int{i, j}, ask: ask, tail: tail}
	r.joined = ask && (tail && i > 0 && !s.lines[i].gap || !tail && j < len(s.lines) && !s.lines[j].gap)
	s.regions = append(s.regions, r)
}
