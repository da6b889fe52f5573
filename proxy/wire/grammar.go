package wire

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// maxRepetition is where llama.cpp gives up on a schema's lengths
// (MAX_REPETITION_THRESHOLD in llama-grammar.cpp).
const maxRepetition = 2000

// anything is a schema that llama.cpp takes for what JSON Schema means by true:
// it takes {} for an object and refuses a schema that says nothing it knows.
const anything = `"type":["object","array","string","number","boolean","null"]`

// appendGrammar appends a schema as Ollama's `format` wants it: such that
// llama.cpp's json-schema-to-grammar.cpp can make a grammar of it, which
// allows at least what the schema allows. What the schema forbids beyond that
// is for the check of the answer. References move under root, where the schema
// becomes a part of another one.
func appendGrammar(dst, schema []byte, root string) []byte {
	g := grammar{newScan(schema, maxSchemaDepth), root}
	return g.schema(dst)
}

// standalone is appendGrammar for a schema that stands by itself. llama.cpp
// does not know the reference "#", so a schema that uses it gets a name.
func standalone(schema []byte) []byte {
	if !bytes.Contains(schema, []byte(`"$ref":"#"`)) {
		return appendGrammar(nil, schema, "")
	}
	dst := []byte(`{"$ref":"#/$defs/root","$defs":{"root":`)
	dst = appendGrammar(dst, schema, "#/$defs/root")
	return append(dst, "}}"...)
}

// grammar copies one schema, which is valid JSON and a valid schema.
type grammar struct {
	*scan
	root string
}

func (g grammar) schema(dst []byte) []byte {
	if g.peek() != '{' { // true, false
		g.skip()
		return append(dst, "{"+anything+"}"...)
	}
	says := false // anything llama.cpp acts on
	limits := map[string]float64{}
	return g.object(dst, func(dst []byte, key string) []byte {
		switch key {
		case "$schema", "$id", "$comment", "title", "description", "default", "examples":
			g.skip()
			return dst
		case "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
			if n, err := strconv.ParseFloat(string(g.raw()), 64); err == nil {
				limits[key] = n
			}
			return dst
		case "enum":
			raw := compact(nil, g.raw())
			if string(raw) == "[]" {
				return dst
			}
			says = true
			return append(appendName(dst, key), raw...)
		case "pattern":
			pattern, ok := plainPattern(g.text())
			if !ok {
				return dst
			}
			says = true
			return appendString(appendName(dst, key), pattern)
		}
		switch key {
		case "type", "const", "$ref", "properties", "items", "prefixItems", "anyOf", "oneOf", "allOf":
			says = true
		}
		dst = appendName(dst, key)
		switch key {
		case "$ref":
			ref := g.text()
			if g.root != "" && ref != "" && ref[0] == '#' {
				ref = g.root + ref[1:]
			}
			return appendString(dst, ref)
		case "properties", "$defs", "definitions", "patternProperties", "dependentSchemas":
			return g.object(dst, func(dst []byte, key string) []byte {
				return g.schema(appendName(dst, key))
			}, nil)
		case "items", "prefixItems", "anyOf", "oneOf", "allOf":
			if g.peek() == '[' {
				return g.list(dst)
			}
			return g.schema(dst)
		case "additionalProperties":
			if g.peek() == '{' {
				return g.schema(dst)
			}
		}
		return compact(dst, g.raw())
	}, func(dst []byte) []byte {
		dst = appendLimits(dst, limits)
		if says {
			return dst
		}
		return append(appendComma(dst), anything...)
	})
}

// appendLimits appends the limits that llama.cpp can keep: lengths to
// maxRepetition, whole numbers that a float64 holds, and none where the lower
// is above the upper, for it would count for ever.
func appendLimits(dst []byte, limits map[string]float64) []byte {
	for _, pair := range [][2]string{
		{"minLength", "maxLength"},
		{"minItems", "maxItems"},
		{"minimum", "maximum"},
		{"exclusiveMinimum", "exclusiveMaximum"},
	} {
		most := float64(1 << 53)
		if strings.HasSuffix(pair[0], "Length") || strings.HasSuffix(pair[0], "Items") {
			most = maxRepetition
		}
		low, below := limits[pair[0]]
		high, above := limits[pair[1]]
		if below && above && low > high {
			continue
		}
		for _, name := range pair {
			if n, ok := limits[name]; ok && n == math.Trunc(n) && math.Abs(n) <= most {
				dst = strconv.AppendFloat(appendName(dst, name), n, 'f', -1, 64)
			}
		}
	}
	return dst
}

// object copies an object; member appends the name and value of one member, or
// nothing, and last may add to them.
func (g grammar) object(dst []byte, member func([]byte, string) []byte, last func([]byte) []byte) []byte {
	g.open()
	dst = append(dst, '{')
	for first := true; g.more(first, '}'); first = false {
		key := string(g.key())
		g.peek()
		dst = member(dst, key)
	}
	if last != nil {
		dst = last(dst)
	}
	return append(dst, '}')
}

func (g grammar) list(dst []byte) []byte {
	g.open()
	dst = append(dst, '[')
	for first := true; g.more(first, ']'); first = false {
		dst = g.schema(appendComma(dst))
	}
	return append(dst, ']')
}

func appendName(dst []byte, name string) []byte {
	return append(appendString(appendComma(dst), name), ':')
}

// appendComma separates a member from the one before it, if there is one.
func appendComma(dst []byte) []byte {
	if last := dst[len(dst)-1]; last != '{' && last != '[' {
		dst = append(dst, ',')
	}
	return dst
}

// maxGrammar is how long a grammar Ollama makes room for, in bytes.
const maxGrammar = 1 << 20

// roomy pads a format such that the grammar made of it fits: Ollama makes room
// for four times the format's length, at least for 32 KiB and at most for
// maxGrammar, and cuts off the rest, which no runner survives.
func roomy(format []byte) (json.RawMessage, error) {
	size := grammarSize(format)
	if size > maxGrammar {
		return nil, &Error{
			Status: http.StatusBadRequest, Type: typeInvalidRequest, Code: codeInvalidValue, Param: "response_format",
			Message: "The schemas of 'response_format' and 'tools' are too large together.",
		}
	}
	if size <= max(32<<10, 4*len(format)) {
		return format, nil
	}
	format = append(format[:len(format)-1], `,"$comment":"`...)
	format = append(format, strings.Repeat(" ", size/4-len(format)+1)...)
	return append(format, `"}`...), nil
}

// grammarSize bounds the length of the grammar that llama.cpp makes of a
// format, from above: its rules are named by the path of property names to
// them, and a property's name stands in up to a dozen rules.
func grammarSize(format []byte) int {
	s := newScan(format, maxSchemaDepth)
	size := 2048 // rules for the primitive types
	var walk func(name int, properties bool)
	walk = func(name int, properties bool) {
		switch s.peek() {
		case '{':
			if !properties {
				size += 6 * (name + 16)
			}
			s.open()
			for first := true; s.more(first, '}'); first = false {
				key := s.key()
				switch {
				case properties:
					walk(name+len(key)+1, false)
				case string(key) == "$defs" || string(key) == "definitions":
					walk(len("ref--$defs-")+name, true)
				case string(key) == "$comment":
					s.skip()
				case bytes.HasSuffix(key, []byte("imum")):
					size += 2048 // a range of numbers is spelt digit by digit
					s.skip()
				default:
					walk(name+len("-alternative-00"), string(key) == "properties")
				}
			}
		case '[':
			s.open()
			for first := true; s.more(first, ']'); first = false {
				walk(name+4, false)
			}
		default:
			size += 3 * len(s.raw())
		}
	}
	walk(0, false)
	return size
}
