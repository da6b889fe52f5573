package task

import (
	"unicode"
	"unicode/utf8"
)

// What folding writes between words. A phrase of the lexicon never crosses a
// comma or a sentence, and a negation ends at either.
const (
	space    = ' '
	comma    = '\t'
	sentence = '\n'
)

// latin maps U+00C0 to U+017F to plain letters; a space keeps none.
const latin = "aaaaaaaceeeeiiiidnooooo ouuuuytsaaaaaaaceeeeiiiidnooooo ouuuuyty" +
	"aaaaaaccccccccddddeeeeeeeeeegggggggghhhhiiiiiiiiiiiijjkkklllllll" +
	"lllnnnnnnnnnoooooooorrrrrrssssssssttttttuuuuuuuuuuuuwwyyyzzzzzzs"

// hidden reports whether a rune is invisible: soft hyphens, zero-width and
// bidirectional marks, variation selectors and tags. They are a channel for
// text that a reader does not see, and they split words.
func hidden(r rune) bool {
	switch {
	case r == 0xAD, r == 0x61C, r == 0x180E, r == 0xFEFF:
		return true
	case r >= 0x200B && r <= 0x200F, r >= 0x202A && r <= 0x202E, r >= 0x2060 && r <= 0x206F:
		return true
	}
	return r >= 0xFE00 && r <= 0xFE0F || r >= 0xE0000 && r <= 0xE0FFF
}

// unspaced reports whether a script is written without spaces, so that every
// rune is a word of its own.
func unspaced(r rune) bool {
	return r >= 0x2E80 && r < 0xA000 || r >= 0xAC00 && r <= 0xD7FF || r >= 0xF900 && r <= 0xFAFF || r >= 0x20000 && r <= 0x3FFFF || r >= 0xE00 && r <= 0xE7F
}

// fold appends s to dst in the form that everything compares: lower case,
// plain Latin letters, 0 for every digit, one separator between words. at gets
// the offset in the message of every byte written, base being that of s.
func fold(dst []byte, at []int32, s string, base int) ([]byte, []int32) {
	sep := byte(0) // owed before the next word
	put := func(b byte, i int) {
		if sep != 0 {
			if len(dst) > 0 {
				dst, at = append(dst, sep), append(at, int32(base+i))
			}
			sep = 0
		}
		dst, at = append(dst, b), append(at, int32(base+i))
	}
	owe := func(b byte) { // the strongest separator wins: \n over \t over space
		if sep == 0 || b == sentence || sep == space {
			sep = b
		}
	}
	var lower bool // the last byte written is a lower-case letter of the source
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case c >= 'a' && c <= 'z':
				put(c, i)
				lower = true
				i++
				continue
			case c >= 'A' && c <= 'Z':
				put(c|0x20, i)
			case c >= '0' && c <= '9':
				put('0', i)
			case c == '\'' && lower && i+1 < len(s) && s[i+1]|0x20 >= 'a' && s[i+1]|0x20 <= 'z':
				// don't, she's: one word
			case c == '?' || c == '%':
				owe(space)
				put(c, i)
				owe(space)
				if c == '?' {
					owe(sentence)
				}
			case c == ',' || c == '(' || c == ')' || c == '"':
				owe(comma)
			case c == '\n' || c == '!' || c == ';' || c == ':':
				owe(sentence)
			case c == '.':
				if i+1 == len(s) || s[i+1] == ' ' || s[i+1] == '\n' || s[i+1] == '\r' {
					owe(sentence)
				} else {
					owe(space)
				}
			default:
				owe(space)
			}
			lower = false
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case hidden(r):
		case r >= 0xC0 && r < 0x180:
			if b := latin[r-0xC0]; b != ' ' {
				put(b, i)
				if r == 0xDF { // sharp s
					put('s', i)
				}
			} else {
				owe(space)
			}
			lower = true
		case r == 0x2019 && lower && i+n < len(s) && s[i+n]|0x20 >= 'a' && s[i+n]|0x20 <= 'z':
			lower = false
		case r >= 0xFF01 && r <= 0xFF5E: // full width forms
			switch b := byte(r - 0xFF01 + '!'); {
			case b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z':
				put(b|0x20, i)
			case b >= '0' && b <= '9':
				put('0', i)
			case b == '?':
				owe(space)
				put(b, i)
				owe(sentence)
			case b == ',':
				owe(comma)
			default:
				owe(sentence)
			}
		case r == 0x3002 || r == 0x964 || r == 0x61F || r == 0x2028 || r == 0x2029:
			owe(sentence)
		case r == 0x3001 || r == 0x60C:
			owe(comma)
		case unspaced(r) && unicode.IsLetter(r):
			owe(space)
			for k := range n {
				put(s[i+k], i)
			}
			owe(space)
		case unicode.IsLetter(r), unicode.IsMark(r):
			var b [utf8.UTFMax]byte
			for k := range utf8.EncodeRune(b[:], unicode.ToLower(r)) {
				put(b[k], i)
			}
		case unicode.IsDigit(r):
			put('0', i)
		default:
			owe(space)
		}
		i += n
	}
	return dst, at
}
