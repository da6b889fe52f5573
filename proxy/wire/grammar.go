package wire

import (
	"bytes"
	"strconv"
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
	return g.object(dst, func(dst []byte, key string) []byte {
		switch key {
		case "$schema", "$id", "$comment", "title", "description", "default", "examples":
			g.skip()
			return dst
		case "minLength", "maxLength", "minItems", "maxItems":
			raw := g.raw()
			if n, err := strconv.ParseFloat(string(raw), 64); err != nil || n > maxRepetition {
				return dst
			}
			return appendNumber(appendName(dst, key), raw)
		case "pattern":
			pattern, ok := plainPattern(g.text())
			if !ok {
				return dst
			}
			says = true
			return appendString(appendName(dst, key), pattern)
		}
		switch key {
		case "type", "enum", "const", "$ref", "properties", "items", "prefixItems", "anyOf", "oneOf", "allOf":
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
		if says {
			return dst
		}
		return append(appendComma(dst), anything...)
	})
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
