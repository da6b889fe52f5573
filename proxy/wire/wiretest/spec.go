// Package wiretest checks JSON texts, in tests, against OpenAI's published
// specification.
package wiretest

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Variable names the file of OpenAI's published specification, openapi.yaml of
// github.com/openai/openai-openapi.
const Variable = "TENURE_OPENAI_SPEC"

// Spec is OpenAI's specification, as far as it is about shapes.
type Spec struct {
	doc      any
	compiler *jsonschema.Compiler
}

// Open reads the specification, or skips the test when there is none to read.
func Open(t testing.TB) *Spec {
	t.Helper()
	path := os.Getenv(Variable)
	if path == "" {
		t.Skipf("%s does not say where OpenAI's openapi.yaml is", Variable)
	}
	raw, err := os.ReadFile(path) //nolint:gosec // who runs the tests names the file
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	doc = corrected(doc)
	c := jsonschema.NewCompiler()
	if err := c.AddResource("openapi:///spec", doc); err != nil {
		t.Fatal(err)
	}
	return &Spec{doc, c}
}

// corrected turns what the 3.1 file still says in the words of 3.0 and draft
// 2019 into JSON schema of today.
func corrected(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "$recursiveAnchor")
		if _, ok := v["$recursiveRef"]; ok {
			delete(v, "$recursiveRef")
			v["$ref"] = "#/components/schemas/CompoundFilter"
		}
		for _, bound := range []string{"minimum", "maximum"} {
			if _, ok := v[bound].(string); ok {
				delete(v, bound) // seed's are too large for the YAML reader
			}
		}
		for key, value := range v {
			v[key] = corrected(value)
		}
		if nullable, _ := v["nullable"].(bool); nullable {
			delete(v, "nullable")
			return map[string]any{"anyOf": []any{v, map[string]any{"type": "null"}}}
		}
	case []any:
		for i := range v {
			v[i] = corrected(v[i])
		}
	case uint64:
		return float64(v)
	case int64:
		return float64(v)
	}
	return v
}

// Schema compiles the schema of a name.
func (s *Spec) Schema(t testing.TB, name string) *jsonschema.Schema {
	t.Helper()
	schema, err := s.compiler.Compile("openapi:///spec#/components/schemas/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// Validate holds a JSON text against a schema.
func Validate(t testing.TB, schema *jsonschema.Schema, text []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return
	}
	if err := schema.Validate(doc); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

// Properties are the names that a schema and those it is made of define.
func (s *Spec) Properties(name string) []string {
	schemas := s.doc.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any)
	found := map[string]bool{}
	var walk func(any)
	walk = func(v any) {
		schema, _ := v.(map[string]any)
		if ref, ok := schema["$ref"].(string); ok {
			walk(schemas[strings.TrimPrefix(ref, "#/components/schemas/")])
		}
		all, _ := schema["allOf"].([]any)
		for _, part := range all {
			walk(part)
		}
		properties, _ := schema["properties"].(map[string]any)
		for name := range properties {
			found[name] = true
		}
	}
	walk(schemas[name])
	return slices.Sorted(maps.Keys(found))
}
