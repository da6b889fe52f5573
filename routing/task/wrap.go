package task

import (
	"math/bits"
	"strings"
)

// jobs are the opening words of what chat applications ask on their own
// account, folded: Open WebUI (title, tags, follow-ups, queries, completion,
// image prompt, emoji, merge), LibreChat and Continue (title).
var jobs = []string{ //nolint:gochecknoglobals // compiled table
	"title summarizing the chat history", "title with an emoji summarizing", "broad tags categorizing the main themes", "relevant follow up questions or prompts", "necessity of generating search queries",
	"you are an autocompletion system", "prompt for am image generation task", "prompt for an image generation task", "reflect the speaker s likely facial expression", "reflect the speakers likely facial expression",
	"set of responses from various models", "word or less title for the conversation", "analyze this conversation and provide", "please reply with a title for the chat",
}

// wanted and quoted tell a job by its shape where the words were edited: what
// is wanted, of a chat that is quoted below.
var (
	wanted = []string{"title", "tags", "follow up", "follow ups", "search quer", "autocomplet", "emoji", "memory note", "image prompt"} //nolint:gochecknoglobals // compiled table
	quoted = []string{"chat history", "conversation", "the chat", "this chat", "chat below"}                                            //nolint:gochecknoglobals // compiled table
	// Who speaks in the chat.
	users      = []string{"user:", "USER:", "User:"}                       //nolint:gochecknoglobals // compiled table
	assistants = []string{"assistant:", "ASSISTANT:", "Assistant:", "AI:"} //nolint:gochecknoglobals // compiled table
)

// background recognises what a chat application asks on its own account: one
// user message, no tools, about the chat it quotes.
func (d *Detector) background(s *scratch, in Input, last int) bool {
	if last < 0 || len(in.Tools) > 0 {
		return false
	}
	asked := 0
	s.text, s.at = s.text[:0], s.at[:0]
	for i := range in.Messages {
		m := &in.Messages[i]
		switch m.Role {
		case "user":
			if strings.TrimSpace(m.Text) != "" {
				asked++
			}
		case "system", "developer":
			s.appendText(m.Text, 0, min(len(m.Text), 400))
		}
	}
	if asked != 1 {
		return false
	}
	text := in.Messages[last].Text
	if strings.Contains(text, "<chat_history>") {
		return true
	}
	s.appendText(text, 0, min(len(text), 800))
	opening := string(s.text)
	if mentions(opening, jobs) {
		return true
	}
	if !mentions(opening, wanted) || !mentions(opening, quoted) {
		return false
	}
	return mentions(text, users) && mentions(text, assistants)
}

// mentions reports whether a folded text holds one of the phrases.
func mentions(text string, phrases []string) bool {
	for _, p := range phrases {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}

// wrapped reports whether a message is a question packed together with
// retrieved passages, as Open WebUI does it: everything up to the end of the
// context is packing.
func wrapped(text string) bool {
	return strings.HasPrefix(strings.TrimLeft(text, " \r\n\t"), "### Task:") && strings.Contains(text, "<context>") && strings.Contains(text, "</context>")
}

// needles are fragments of which every override has one; looking for them is
// much cheaper than folding a long document.
var needles = []string{"gnore ", "GNORE ", "isregard", "ISREGARD", "nstruction", "NSTRUCTION", "verride", "VERRIDE", "gnorier", "gnora", "gnorez", "orget ", "ystem ", "YSTEM ", "ystem:", "YSTEM:", "dmin mode", "our task is now", "actual task", "real task", "im_start", "ouvelle", "uevas", "uove ", "ieuwe", "owe pol", "ovas ins", "neue A", "忽略", "无视", "無視", "تجاهل", "अनदेखा"} //nolint:gochecknoglobals // compiled table

// stems has a bit for every hash of four bytes that a needle begins with.
var stems = func() (t [64]uint64) { //nolint:gochecknoglobals // compiled table
	for _, n := range needles {
		h := stem(uint32(n[0])<<24 | uint32(n[1])<<16 | uint32(n[2])<<8 | uint32(n[3]))
		t[h/64] |= 1 << (h % 64)
	}
	return t
}()

// stem hashes four bytes to twelve bits.
func stem(v uint32) uint32 { return v * 0x9E3779B1 >> 20 }

// found tells in one pass which of the needles a text holds, a bit for each.
func found(text string) uint64 {
	var set uint64
	var v uint32
	for i := range len(text) {
		v = v<<8 | uint32(text[i])
		h := stem(v)
		if stems[h/64]>>(h%64)&1 == 0 || i < 3 {
			continue
		}
		for k, n := range needles {
			if strings.HasPrefix(text[i-3:], n) {
				set |= 1 << k
			}
		}
	}
	return set
}

// injection looks for a line inside the documents that gives orders to a
// machine. It only raises a flag: what is inside a document has no say anyway.
func (d *Detector) injection(s *scratch, text string) (Span, bool) {
	looked := 0
	for _, g := range s.regions {
		if g.ask {
			continue
		}
		part := text[g.start:g.end]
		for set := found(part); set != 0; set &= set - 1 {
			n := needles[bits.TrailingZeros64(set)]
			for at := 0; looked < 24; looked++ {
				i := strings.Index(part[at:], n)
				if i < 0 {
					break
				}
				i += at
				a := strings.LastIndexByte(part[:i], '\n') + 1
				b := len(part)
				if j := strings.IndexByte(part[i:], '\n'); j >= 0 {
					b = i + j
				}
				a, b = max(a, i-200), min(b, i+200)
				s.text, s.at = fold(s.text[:0], s.at[:0], part[a:b], 0)
				d.concepts(s)
				if (s.pos | s.neg).has(d.override) {
					return Span{Start: g.start + a, End: g.start + b}, true
				}
				at = b
			}
		}
	}
	return Span{}, false
}
