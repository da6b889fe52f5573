package wire

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
)

// maxPattern bounds a spelt pattern, in bytes: a class such as \p{L} has
// thousands.
const maxPattern = 4096

// plainPattern spells the pattern of a string such that llama.cpp can make a
// grammar of it, or says that it cannot be done: then the pattern is left to
// the check of the answer. It must not see others. It answers a pattern
// without anchors, or \d, with an error, and "(?:" by reading outside its
// memory, which takes Ollama's server down.
func plainPattern(pattern string) (string, bool) {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil || re.Op != syntax.OpConcat || len(re.Sub) < 2 {
		return "", false
	}
	last := len(re.Sub) - 1
	if re.Sub[0].Op != syntax.OpBeginText || re.Sub[last].Op != syntax.OpEndText {
		return "", false
	}
	var p patternWriter
	p.WriteByte('^')
	for _, sub := range re.Sub[1:last] {
		p.write(sub)
	}
	p.WriteByte('$')
	return p.String(), !p.failed && p.Len() <= maxPattern
}

// patternWriter writes the few things that are understood there: characters,
// classes, groups, alternatives and repetitions.
type patternWriter struct {
	strings.Builder
	failed bool
}

func (p *patternWriter) write(re *syntax.Regexp) {
	if p.Len() > maxPattern {
		p.failed = true
	}
	if p.failed {
		return
	}
	switch re.Op {
	case syntax.OpEmptyMatch:
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			p.failed = true
			return
		}
		for _, r := range re.Rune {
			p.class([]rune{r, r})
		}
	case syntax.OpCharClass:
		p.class(re.Rune)
	case syntax.OpAnyCharNotNL, syntax.OpAnyChar:
		p.class([]rune{0, unicode.MaxRune})
	case syntax.OpCapture:
		p.group(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			p.write(sub)
		}
	case syntax.OpAlternate:
		p.group(re)
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		p.repeat(re)
	default:
		p.failed = true
	}
}

func (p *patternWriter) group(re *syntax.Regexp) {
	p.WriteByte('(')
	if re.Op == syntax.OpAlternate {
		for i, sub := range re.Sub {
			if i > 0 {
				p.WriteByte('|')
			}
			p.write(sub)
		}
	} else {
		p.write(re)
	}
	p.WriteByte(')')
}

func (p *patternWriter) repeat(re *syntax.Regexp) {
	if re.Op != syntax.OpQuest && mayBeEmpty(re.Sub[0]) {
		p.failed = true // the grammar would go round without taking a character
		return
	}
	switch sub := re.Sub[0]; sub.Op {
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL, syntax.OpCapture:
		p.write(sub)
	default:
		p.group(sub)
	}
	switch re.Op {
	case syntax.OpStar:
		p.WriteByte('*')
	case syntax.OpPlus:
		p.WriteByte('+')
	case syntax.OpQuest:
		p.WriteByte('?')
	default:
		if re.Max < 0 {
			fmt.Fprintf(p, "{%d,}", re.Min)
		} else {
			fmt.Fprintf(p, "{%d,%d}", re.Min, re.Max)
		}
		p.failed = p.failed || max(re.Min, re.Max) > maxRepetition
	}
}

// mayBeEmpty reports whether re can match without a character.
func mayBeEmpty(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpLiteral, syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return false
	case syntax.OpCapture, syntax.OpPlus:
		return mayBeEmpty(re.Sub[0])
	case syntax.OpRepeat:
		return re.Min == 0 || mayBeEmpty(re.Sub[0])
	case syntax.OpConcat:
		return !slices.ContainsFunc(re.Sub, func(sub *syntax.Regexp) bool { return !mayBeEmpty(sub) })
	case syntax.OpAlternate:
		return slices.ContainsFunc(re.Sub, mayBeEmpty)
	default:
		return true
	}
}

// class writes a set of characters, in pairs of first and last, without those
// that may not stand in a JSON string as they are: the grammar's characters
// are those the model writes, quotes and all.
func (p *patternWriter) class(pairs []rune) {
	var out []rune
	for pair := range slices.Chunk(pairs, 2) {
		low := max(pair[0], ' ')
		for _, not := range []rune{'"', '\\'} {
			if low <= not && not <= pair[1] {
				if low < not {
					out = append(out, low, not-1)
				}
				low = not + 1
			}
		}
		if low <= pair[1] {
			out = append(out, low, pair[1])
		}
	}
	if len(out) == 0 {
		p.failed = true
		return
	}
	if r := out[0]; len(out) == 2 && r == out[1] && (r == '_' || r == ' ' || r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r))) {
		p.WriteRune(r)
		return
	}
	p.WriteByte('[')
	for pair := range slices.Chunk(out, 2) {
		p.char(pair[0])
		if pair[1] > pair[0] {
			p.WriteByte('-')
			p.char(pair[1])
		}
	}
	p.WriteByte(']')
}

func (p *patternWriter) char(r rune) {
	if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
		p.WriteRune(r)
		return
	}
	fmt.Fprintf(p, `\U%08X`, r)
}
