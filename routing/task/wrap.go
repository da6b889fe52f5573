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
	// meant are turns by which a job speaks of the person whose chat it serves.
	meant = []string{"the user may", "the user might", "the user could", "the user would", "the user can", "the user wants", "user s point of view", "user s perspective", "user s next", "user s last"} //nolint:gochecknoglobals // compiled table
	// Who speaks in the chat.
	users      = []string{"user:", "USER:", "User:"}                       //nolint:gochecknoglobals // compiled table
	assistants = []string{"assistant:", "ASSISTANT:", "Assistant:", "AI:"} //nolint:gochecknoglobals // compiled table
)

// sorts are the words of a system prompt that sorts messages, folded: 1 does
// it, 2 is what is sorted, 4 stands between them, 8 is a machine that does it.
// Under it the user's text is data, whatever it asks for.
var sorts = map[string]uint8{ //nolint:gochecknoglobals // compiled table
	"classify": 1, "classifies": 1, "classifying": 1, "categorize": 1, "categorise": 1, "categorizes": 1, "categorises": 1, "label": 1, "labels": 1, "tag": 1, "tags": 1, "triage": 1,
	"klassifiziere": 1, "kategorisiere": 1, "ordne": 1, "classe": 1, "classez": 1, "clasifica": 1, "classifica": 1, "classificeer": 1, "zaklasyfikuj": 1, "klasyfikuj": 1,
	"message": 2, "messages": 2, "query": 2, "queries": 2, "utterance": 2, "utterances": 2, "intent": 2, "intents": 2, "request": 2, "requests": 2, "prompt": 2, "prompts": 2, "ticket": 2, "tickets": 2,
	"nachricht": 2, "nachrichten": 2, "anfrage": 2, "anfragen": 2, "mensaje": 2, "mensajes": 2, "messaggio": 2, "messaggi": 2, "bericht": 2, "mensagem": 2, "mensagens": 2, "wiadomosc": 2, "wiadomosci": 2,
	"the": 4, "each": 4, "every": 4, "this": 4, "these": 4, "incoming": 4, "inbound": 4, "user": 4, "users": 4, "s": 4, "a": 4, "an": 4, "all": 4, "any": 4, "following": 4, "latest": 4, "last": 4, "newest": 4, "next": 4, "given": 4, "raw": 4, "chat": 4,
	"recruiter": 4, "recruiters": 4, "candidate": 4, "candidates": 4, "customer": 4, "client": 4, "support": 4, "hr": 4, "of": 4, "behind": 4, "topic": 4, "language": 4, "into": 4, "die": 4, "der": 4, "jede": 4, "eingehende": 4, "eingehenden": 4, "des": 4, "le": 4, "el": 4, "il": 4, "het": 4, "o": 4, "cada": 4, "ogni": 4, "chaque": 4, "elk": 4, "kazda": 4,
	"classifier": 8, "tagger": 8, "labeller": 8, "labeler": 8,
}

// sorted reports whether a folded system prompt has messages sorted: "classify
// each user message", "intent classifier". One that has something done then is
// none.
func sorted(text string) bool {
	found := false
	for sentence := range strings.SplitSeq(text, "\n") {
		before, does := uint8(0), false
		for w := range strings.FieldsSeq(sentence) {
			k := sorts[w]
			switch {
			case w == "then":
				return false
			case k == 2 && does, k == 8 && before == 2:
				found = true
			case k == 1:
				does = true
			case k != 4:
				does = false
			}
			before = k
		}
	}
	return found
}

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
	if len(s.text) > 0 && sorted(string(s.text)) {
		return true
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
	if !mentions(opening, wanted) {
		return false
	}
	if mentions(opening, meant) {
		return true
	}
	return mentions(opening, quoted) && mentions(text, users) && mentions(text, assistants)
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

// heads has a bit for every hash of four bytes that a needle begins with.
var heads = func() (t [64]uint64) { //nolint:gochecknoglobals // compiled table
	for _, n := range needles {
		h := hash4(uint32(n[0])<<24 | uint32(n[1])<<16 | uint32(n[2])<<8 | uint32(n[3]))
		t[h/64] |= 1 << (h % 64)
	}
	return t
}()

// hash4 hashes four bytes to twelve bits.
func hash4(v uint32) uint32 { return v * 0x9E3779B1 >> 20 }

// found tells in one pass which of the needles a text holds, a bit for each.
func found(text string) uint64 {
	var set uint64
	var v uint32
	for i := range len(text) {
		v = v<<8 | uint32(text[i])
		h := hash4(v)
		if heads[h/64]>>(h%64)&1 == 0 || i < 3 {
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
