package task

import (
	"math"
	"slices"
	"strings"
)

// A turn behind an answer either goes on with it or asks for something of its
// own. A logistic regression tells which from what the turn says, what the
// answer said, and how far the ask model takes the turn for a deferring one.
const (
	goesBias     = iota
	goesDefers   // log-odds of deferring by the ask model
	goesGeneral  // what it has for general, of what does not defer
	goesOther    // for tasks that do not stand
	goesSame     // for the task that stands
	goesOpen     // no task stands
	goesAsked    // the answer ended in a question
	goesReply    // and the turn is short and asks nothing itself
	goesYes      // it begins with a yes
	goesEcho     // the share of its longer words that the answer holds
	goesEchoes   // there is such a word
	goesNovel    // there are several longer words, none in the answer
	goesSource   // the share that the turn before holds
	goesQuotes   // it quotes the answer
	goesForeign  // it quotes something else
	goesListed   // it speaks of a number that the answer lists
	goesDigits   // it has figures that the answer has not
	goesPoints   // it points back: that, those, the second one
	goesPointing // the share of such words
	goesMore     // a comparative or a word of changes
	goesRevises  // concepts of changes
	goesCarries  // concepts of carrying on
	goesShort    // six words or fewer
	goesLong     // more than fifteen words
	goesWords    // the logarithm of the words
	goesLinks    // it begins with a word that goes on
	goesWonders  // it begins with a word that asks
	goesAstray   // it begins so and neither echoes nor points
	goesDeeds    // concepts that name a task
	goesEdits    // concepts of wording, language and form
	goesTopics   // concepts of other matters than the tasks
	goesDocument // it brings a document
	goesTrade    // a word of the trade
	goesTerms
)

// continuation is what the terms are worth.
type continuation [goesTerms]float32

// trust is where learning begins: the ask model is believed.
func trust() continuation { return continuation{goesDefers: 1} }

// odds returns the probability that the turn of these terms goes on.
func (c *continuation) odds(x *continuation) float32 {
	var z float64
	for k, v := range x {
		z += float64(v * c[k])
	}
	return float32(1 / (1 + math.Exp(-z)))
}

// answerBytes of an answer are looked at, from its beginning, and as many of
// the turn before it.
const answerBytes = 3000

// maxLinks is how many words are reported by which a turn goes on.
const maxLinks = 3

// goes enters the terms of the ask in s.text, which stands behind the answer
// before message m, into s.goes. q is what the ask model makes of it, p what
// stands.
func (d *Detector) goes(s *scratch, in Input, m int, q, p probs) {
	x := &s.goes
	*x = continuation{goesBias: 1}
	answer, source := "", ""
	for i := m - 1; i >= 0; i-- {
		if t := in.Messages[i].Text; in.Messages[i].Role == "assistant" && answer == "" {
			answer = t
		} else if in.Messages[i].Role == "user" && answer != "" {
			source = t
			break
		}
	}
	longer, echoes := s.echoes(answer, true)
	_, found := s.echoes(source, false)
	share := func(n int) float32 { return float32(n) / float32(max(longer, 1)) }
	x[goesEcho], x[goesEchoes], x[goesSource] = share(echoes), is(echoes > 0), share(found)
	x[goesNovel] = is(longer > 1 && echoes == 0)
	words, points, asks := s.pointing(x)
	x[goesShort], x[goesLong] = is(words <= 6), is(words > 15)
	x[goesWords] = float32(math.Log(float64(1 + words)))
	x[goesPoints], x[goesPointing] = is(points > 0), float32(points)/float32(max(words, 1))
	x[goesAstray] = is(asks && points == 0 && echoes == 0)
	end := strings.TrimRight(answer, " \t\r\n*_)")
	text := in.Messages[m].Text
	if strings.HasSuffix(end, "?") || strings.HasSuffix(end, "？") || strings.HasSuffix(end, "؟") {
		x[goesAsked] = 1
		x[goesReply] = is(words <= 8 && !strings.ContainsAny(text, "?？؟"))
	}
	x[goesYes] = is(agrees(text))
	x[goesDocument] = is(s.x.docs != [8]int{})
	if s.x.docs == [8]int{} && len(text) <= askBytes {
		s.quoting(x, text, answer[:min(len(answer), answerBytes)])
	}
	d.deeds(s, x)
	if x[goesRevises] > 0 && words <= 10 { // general work on a document is a change of an answer
		q[deferring], q[general] = q[deferring]+q[general], 0
	}
	d.leans(x, q, p)
}

func is(b bool) float32 {
	if b {
		return 1
	}
	return 0
}

// leans enters what the ask model makes of the turn.
func (d *Detector) leans(x *continuation, q, p probs) {
	rest := max(1-q[deferring], 1e-3)
	x[goesDefers] = max(-4, min(4, float32(math.Log(float64(max(q[deferring], 1e-3)/rest)))))
	x[goesGeneral] = q[general] / rest
	x[goesOpen] = p[general]
	for k, v := range q {
		if k != general && k != deferring {
			x[goesSame] += v * p[k] / rest
			x[goesOther] += v * (1 - p[k]) / rest
		}
	}
}

// echoes counts the longer words of the ask, and those of them that said holds.
func (s *scratch) echoes(said string, link bool) (longer, echoes int) {
	s.said, s.saidAt = fold(s.said[:0], s.saidAt[:0], said[:min(len(said), answerBytes)], 0)
	s.feat.reset()
	for w := range spoken(s.said) {
		s.feat.add(hashWord(stem(w.of(s.said))))
	}
	for w := range spoken(s.text) {
		b := w.of(s.text)
		if len(b) < 5 || pointer(b) || wonders(b) {
			continue
		}
		longer++
		if s.feat.has(mix(hashWord(stem(b)))) {
			echoes++
			if link && len(s.links) < cap(s.links) {
				s.links = append(s.links, s.linked("echo", w))
			}
		}
	}
	return longer, echoes
}

// linked is a word of the ask by which it goes on.
func (s *scratch) linked(rule string, w word) Evidence {
	return Evidence{Rule: rule, Span: Span{Start: int(s.at[w.start]), End: int(s.at[w.end-1]) + 1}}
}

// stem cuts a long word's ending off.
func stem(w []byte) []byte {
	if len(w) > 6 {
		return w[:len(w)-2]
	}
	return w
}

// word is a stretch of folded text.
type word struct{ start, end int }

func (w word) of(text []byte) []byte { return text[w.start:w.end] }

// spoken yields the words of folded text.
func spoken(text []byte) func(func(word) bool) {
	return func(yield func(word) bool) {
		for i := 0; i < len(text); i++ {
			if text[i] <= space {
				continue
			}
			w := word{i, i}
			for i < len(text) && text[i] > space {
				i++
			}
			w.end = i
			if !yield(w) {
				return
			}
		}
	}
}

// pointing enters the small words of the ask, and counts all and those that
// point back.
func (s *scratch) pointing(x *continuation) (words, points int, asks bool) {
	for w := range spoken(s.text) {
		b := w.of(s.text)
		if words == 0 {
			asks = wonders(b)
			x[goesWonders], x[goesLinks] = is(asks), is(links(b))
		}
		words++
		if pointer(b) {
			points++
			if len(s.links) < cap(s.links) {
				s.links = append(s.links, s.linked("pointer", w))
			}
		}
		if changes(b) {
			x[goesMore] = 1
		}
	}
	return words, points, asks
}

// quoting enters whether a turn quotes the answer, speaks of a number that the
// answer lists, or has figures that it has not.
func (s *scratch) quoting(x *continuation, text, answer string) {
	open := -1
	for i, r := range text {
		switch r {
		case '"', '“', '”', '„', '«', '»', '\'', '‘', '’', '`':
			if open >= 0 && i-open > 2 && text[open] != ' ' && text[i-1] != ' ' {
				if found := strings.Contains(answer, text[open:i]); found {
					x[goesQuotes] = 1
				} else {
					x[goesForeign] = 1
				}
			}
			open = i + len(string(r))
		}
	}
	for i := 0; i < len(text); i++ {
		if text[i] < '0' || text[i] > '9' {
			continue
		}
		j := i
		for j < len(text) && text[j] >= '0' && text[j] <= '9' {
			j++
		}
		switch {
		case j-i <= 2 && lists(answer, text[i:j]):
			x[goesListed] = 1
		case !strings.Contains(answer, text[i:j]):
			x[goesDigits] = 1
		}
		i = j
	}
}

// lists reports whether a line of an answer begins with number n.
func lists(answer, n string) bool {
	for line := range strings.Lines(answer) {
		line = strings.TrimLeft(line, " \t*-#|Qq")
		if strings.HasPrefix(line, n) && len(line) > len(n) && strings.IndexByte(".):| ", line[len(n)]) >= 0 {
			return true
		}
	}
	return false
}

// deeds enters the concepts of the ask.
func (d *Detector) deeds(s *scratch, x *continuation) {
	for _, h := range s.hits {
		if h.negated {
			continue
		}
		switch k := int(h.concept); {
		case k == d.revise:
			x[goesRevises] = 1
		case k == d.carry:
			x[goesCarries] = 1
		case k == d.domain:
			x[goesTrade] = 1
		case d.edits.has(k):
			x[goesEdits] = 1
		case d.topics.has(k):
			x[goesTopics] = 1
		case !d.weak.has(k):
			x[goesDeeds] = min(x[goesDeeds]+1, 3)
		}
	}
	if x[goesRevises] > 0 {
		x[goesNovel], x[goesDeeds], x[goesTrade] = 0, 0, 0 // a change may name what is new
	}
	if x[goesDocument] > 0 { // what is changed is more likely the document
		x[goesRevises], x[goesEdits], x[goesMore] = 0, 0, 0
	}
}

// pointer reports whether a folded word points back to something said.
func pointer(w []byte) bool {
	switch string(w) {
	case "that", "thats", "those", "it", "its", "these", "this", "them", "one", "ones", "same", "first", "second", "third", "fourth", "fifth", "last", "latter", "former", "previous", "above", "both", "other", "another",
		"das", "dies", "diese", "diesen", "dieser", "dieses", "es", "letzte", "letzten", "letzter", "erste", "ersten", "erster", "zweite", "zweiten", "zweiter", "dritte", "dritten", "dasselbe", "gleiche", "beide", "davon", "darin", "dazu",
		"ca", "cela", "celui", "celle", "ceux", "premier", "premiere", "deuxieme", "troisieme", "dernier", "derniere", "meme", "y",
		"eso", "esto", "ese", "esa", "esos", "esas", "lo", "primero", "primera", "segundo", "segunda", "tercero", "tercera", "ultimo", "ultima", "mismo", "misma",
		"questo", "questa", "quello", "quella", "quelli", "prima", "secondo", "seconda", "terzo", "terza", "stesso", "stessa",
		"dat", "die", "deze", "dit", "het", "eerste", "tweede", "derde", "laatste", "zelfde", "hetzelfde",
		"to", "tego", "ten", "te", "ta", "tamten", "pierwszy", "pierwsze", "drugi", "drugie", "trzeci", "trzecie", "ostatni", "ostatnie", "samo",
		"isso", "isto", "esse", "essa", "primeiro", "primeira", "terceiro", "terceira", "mesmo", "mesma":
		return true
	}
	return false
}

// changes reports whether a folded word asks for a change without naming what.
func changes(w []byte) bool {
	switch string(w) {
	case "shorter", "longer", "warmer", "softer", "simpler", "clearer", "friendlier", "tighter", "blunter", "punchier", "stricter", "more", "less", "fewer", "half", "twice", "too", "lose", "drop", "swap", "replace", "remove", "change", "cut", "keep", "leave", "add", "sign", "skip", "merge", "split", "move", "undo", "revert", "fix", "redo", "again", "check", "recheck", "instead", "rather", "wrong", "missing", "missed", "forgot", "sure", "certain",
		"kurzer", "langer", "lockerer", "freundlicher", "formeller", "mehr", "weniger", "halb", "streich", "streiche", "ersetze", "tausche", "nochmal", "nochmals", "zu", "raus", "fehlt", "falsch", "sicher", "stattdessen",
		"plus", "moins", "trop", "enleve", "retire", "remplace", "ajoute", "encore", "manque", "sur",
		"mas", "menos", "demasiado", "quita", "cambia", "anade", "agrega", "elimina", "falta", "seguro",
		"piu", "meno", "troppo", "togli", "aggiungi", "sostituisci", "manca", "sicuro",
		"korter", "meer", "minder", "te", "haal", "vervang", "voeg", "schrap", "opnieuw", "ontbreekt", "zeker",
		"krocej", "bardziej", "mniej", "zbyt", "usun", "zamien", "dodaj", "zmien", "jeszcze", "brakuje", "pewien",
		"mais", "demais", "tira", "troca", "acrescenta", "adiciona", "certeza":
		return true
	}
	return false
}

// links reports whether a folded word at the beginning goes on with something.
func links(w []byte) bool {
	switch string(w) {
	case "and", "but", "no", "nope", "not", "also", "or", "ok", "okay", "so", "then", "now", "actually", "wait", "hmm", "thanks", "great", "good", "nice", "perfect", "und", "aber", "nein", "auch", "oder", "danke", "noch", "et", "mais", "non", "aussi", "merci", "y", "pero", "tambien", "gracias", "e", "ma", "anche", "grazie", "en", "maar", "nee", "ook", "dank", "i", "ale", "nie", "a", "dzieki", "mas", "nao", "obrigado", "obrigada":
		return true
	}
	return false
}

// wonders reports whether a folded word at the beginning asks something.
func wonders(w []byte) bool {
	switch string(w) {
	case "what", "whats", "who", "whos", "where", "when", "which", "how", "explain", "tell", "recommend", "define", "was", "wer", "wo", "wann", "welche", "welcher", "wie", "erklar", "erklare", "quel", "quelle", "quels", "qui", "combien", "comment", "explique", "que", "quien", "cual", "cuanto", "cuantos", "cuando", "como", "explica", "che", "chi", "quanto", "quanti", "quando", "come", "qual", "spiega", "wat", "welke", "hoe", "hoeveel", "wanneer", "leg", "co", "kto", "jak", "jaki", "jaka", "ile", "kiedy", "gdzie", "quem", "quantos", "onde":
		return true
	}
	return false
}

// fitGoes learns what the terms are worth, by a logistic regression over the
// turns of whole conversations. The ask models of the halves have not seen
// those that they rate.
func (d *Detector) fitGoes(s *scratch, samples, extra []Sample, held [2]linear) continuation {
	d.w.goes = trust()
	var xs []continuation
	var ys []bool
	for _, v := range slices.Concat(samples, extra) {
		m, ok := newest(v.Input)
		if !ok || v.Asks != nil || !slices.ContainsFunc(v.Messages[:m], func(t Message) bool { return t.Role == "assistant" }) {
			continue
		}
		d.w.ask = held[v.Fold&1]
		s.goes = continuation{}
		d.detect(s, v.Input)
		if s.goes[goesBias] == 0 {
			continue // nothing is asked
		}
		xs, ys = append(xs, s.goes), append(ys, v.Label == Defer)
	}
	c := trust()
	var z, g [goesTerms]float64
	for k, v := range c {
		z[k] = float64(v)
	}
	for range goesEpochs {
		g = [goesTerms]float64{}
		for i, x := range xs {
			e := float64(c.odds(&x))
			if ys[i] {
				e--
			}
			for k, v := range x {
				g[k] += float64(e * float64(v))
			}
		}
		for k := range z {
			z[k] -= goesRate * (float64(g[k]/float64(max(len(xs), 1))) + float64(goesDecay*z[k]))
			c[k] = float32(z[k])
		}
	}
	return c
}

const (
	goesEpochs = 1500
	goesRate   = 0.3
	goesDecay  = 5e-4
)

// edits reports whether a concept is about wording, language or form, which an
// answer has as well as a document.
func edits(name string) bool {
	switch name {
	case "edit", "translate", "table", "json", "convert":
		return true
	}
	return false
}

// topics reports whether a concept is about other matters than the tasks.
func topics(name string) bool {
	switch name {
	case "code", "howto", "search", "pay", "law", "office", "roleplay", "leisure":
		return true
	}
	return false
}
