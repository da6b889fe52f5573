package wire

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// maxSchemaDepth is enough for any schema that was read within Limits.Depth.
const maxSchemaDepth = 1 << 16

func (d *decoder) format() {
	f := &d.chat.Format
	schema := false
	for key := range d.object(formatKeys) {
		switch key {
		case "type":
			f.Kind = d.formatKind()
		case "json_schema":
			schema = true
			d.formatSchema()
		default:
			d.skip()
		}
	}
	switch {
	case d.err != nil:
	case f.Kind == FormatSchema && !schema:
		d.missing("json_schema")
	case f.Kind == FormatSchema && f.Schema == nil:
		f.Kind = FormatJSON // no schema to keep to
	case f.Kind != FormatSchema:
		f.Schema, f.compiled = nil, nil
	}
}

func (d *decoder) formatKind() FormatKind {
	switch d.text() {
	case "text":
	case "json_object":
		return FormatJSON
	case "json_schema":
		return FormatSchema
	default:
		d.badValue("expected text, json_object or json_schema")
	}
	return FormatText
}

func (d *decoder) formatSchema() {
	for key := range d.object(schemaKeys) {
		d.schemaKey(key)
	}
}

// schemaKey reads what both APIs tell of a schema.
func (d *decoder) schemaKey(key string) {
	f := &d.chat.Format
	switch key {
	case "name":
		f.Name = d.text()
	case "strict":
		f.Strict = d.bool()
	case "schema":
		f.Schema, f.compiled = d.schema()
	default:
		d.skip()
	}
}

// schema reads a JSON schema and compiles it, so that a wrong one is refused
// here and not by the model's server in words of its own.
func (d *decoder) schema() ([]byte, *jsonschema.Schema) {
	if d.peek() != '{' {
		d.wrongType("an object (a JSON schema)")
		return nil, nil
	}
	raw := d.raw()
	if d.err != nil {
		return nil, nil
	}
	schema := compact(make([]byte, 0, len(raw)), raw)
	if len(schema) > d.lim.SchemaBytes {
		d.tooMany("bytes of schema", d.lim.SchemaBytes)
		return nil, nil
	}
	compiled, err := compile(schema)
	if err != nil {
		d.badValue("it is not a valid JSON schema" + where(err))
		return nil, nil
	}
	return schema, compiled
}

var (
	errRemote = errors.New("wire: a schema must not refer to another document")
	errLoop   = errors.New("wire: a schema must not lead to itself with nothing between")
	errName   = errors.New("wire: a schema has names that are too long")
)

// nothing loads no document: a schema's $ref must not make the proxy read
// files or addresses.
type nothing struct{}

func (nothing) Load(string) (any, error) { return nil, errRemote }

func compile(schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	b := bounds{doc, map[uintptr]bool{}}
	if err := b.check(doc); err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nothing{})
	const name = "request:///schema"
	if err := c.AddResource(name, doc); err != nil {
		return nil, err
	}
	return c.Compile(name)
}

// where says what about a schema is wrong, as far as that can be said without
// repeating it.
func where(err error) string {
	switch {
	case errors.Is(err, errRemote):
		return ": $ref to another document"
	case errors.Is(err, errLoop):
		return ": $ref to itself"
	case errors.Is(err, errName):
		return ": names may have " + strconv.Itoa(maxName) + " bytes"
	}
	return ""
}

const maxName = 256 // bytes

// bounds refuses what is valid in a schema and makes llama.cpp run out of
// stack, within Ollama's server or runner: a part that leads to itself with
// nothing to write between, and very long names.
type bounds struct {
	root any
	seen map[uintptr]bool // parts gone through, by address; false while on the way
}

func (b *bounds) check(part any) error {
	switch part := part.(type) {
	case map[string]any:
		if err := b.straight(part); err != nil {
			return err
		}
		for name, value := range part {
			if len(name) > maxName {
				return errName
			}
			if err := b.check(value); err != nil {
				return err
			}
		}
	case []any:
		for _, value := range part {
			if err := b.check(value); err != nil {
				return err
			}
		}
	}
	return nil
}

// straight follows a part to those that stand for it or are its alternatives.
func (b *bounds) straight(part any) error {
	schema, ok := part.(map[string]any)
	if !ok {
		return nil
	}
	id := reflect.ValueOf(schema).Pointer()
	if done, seen := b.seen[id]; seen {
		if done {
			return nil
		}
		return errLoop
	}
	b.seen[id] = false
	if ref, ok := schema["$ref"].(string); ok {
		if !strings.HasPrefix(ref, "#") {
			return errRemote
		}
		if err := b.straight(pointed(b.root, ref)); err != nil {
			return err
		}
	}
	for _, of := range []string{"anyOf", "oneOf", "allOf"} {
		list, _ := schema[of].([]any)
		for _, option := range list {
			if err := b.straight(option); err != nil {
				return err
			}
		}
	}
	b.seen[id] = true
	return nil
}

// pointed returns what a reference within the document points at.
func pointed(root any, ref string) any {
	at := root
	for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#"), "/") {
		if name == "" {
			continue
		}
		switch part := at.(type) {
		case map[string]any:
			at = part[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(part) {
				return nil
			}
			at = part[i]
		default:
			return nil
		}
	}
	return at
}

// compact appends raw, which is valid JSON, without white space, with strings
// and numbers spelt in one way, members in their order: the grammar made from
// a schema writes members in the schema's order, so order is part of its
// meaning here.
func compact(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			i++
		case c == '"':
			end := i + 1
			for raw[end] != '"' {
				if raw[end] == '\\' {
					end++
				}
				end++
			}
			dst = appendString(dst, unescape(raw[i+1:end]))
			i = end + 1
		case isNumber(c):
			end := i
			for end < len(raw) && (isNumber(raw[end]) || bytes.IndexByte([]byte("+.eE"), raw[end]) >= 0) {
				end++
			}
			dst = appendNumber(dst, raw[i:end])
			i = end
		default:
			dst = append(dst, c)
			i++
		}
	}
	return dst
}

// appendNumber writes 1.0 and 1e0 as 1. A whole number keeps all its digits.
func appendNumber(dst, raw []byte) []byte {
	if !bytes.ContainsAny(raw, ".eE") {
		return append(dst, raw...)
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return append(dst, raw...)
	}
	if f == 0 {
		return append(dst, '0')
	}
	if abs := max(f, -f); abs >= 1e-6 && abs < 1e15 {
		return strconv.AppendFloat(dst, f, 'f', -1, 64)
	}
	return strconv.AppendFloat(dst, f, 'e', -1, 64)
}

// SchemaKeys returns the property names of the response's schema at all
// levels, in their order, each once, at most 256.
func (c *Chat) SchemaKeys() []string {
	return appendProperties(nil, c.Format.Schema)
}

// ToolKeys returns the names of the tools and of their parameters, as
// [Chat.SchemaKeys] does.
func (c *Chat) ToolKeys() []string {
	var keys []string
	for _, tool := range c.Tools {
		keys = append(keys, tool.Name)
		keys = appendProperties(keys, tool.Parameters)
	}
	return keys
}

// WantsJSON reports whether the answer must be JSON.
func (c *Chat) WantsJSON() bool { return c.Format.Kind != FormatText }

// appendProperties appends the names that the "properties" of a schema and of
// its parts define.
func appendProperties(dst []string, schema []byte) []string {
	if len(schema) == 0 {
		return dst
	}
	const most = 256
	s := newScan(schema, maxSchemaDepth)
	var walk func(properties bool)
	walk = func(properties bool) {
		switch s.peek() {
		case '{':
			for key := range s.object(noKeys) {
				if properties && len(dst) < most && !slices.Contains(dst, key) {
					dst = append(dst, key)
				}
				walk(!properties && key == "properties")
			}
		case '[':
			for range s.array() {
				walk(false)
			}
		default:
			s.skip()
		}
	}
	walk(false)
	return dst
}

// conforms reports whether a JSON text satisfies a schema.
func conforms(schema *jsonschema.Schema, text []byte) bool {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	return err == nil && schema.Validate(doc) == nil
}
