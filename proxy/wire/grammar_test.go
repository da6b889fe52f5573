package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestGrammar(t *testing.T) {
	for _, tt := range []struct{ name, schema, want string }{
		{"annotations go", `{"$schema":"http://json-schema.org/draft-07/schema#","$id":"x","title":"T","description":"D","type":"string","default":"","examples":[1]}`, `{"type":"string"}`},
		{"a property may be called title", `{"properties":{"title":{"type":"string"},"description":{"const":null}},"required":["title"]}`, `{"properties":{"title":{"type":"string"},"description":{"const":null}},"required":["title"]}`},
		{"true and nothing are anything", `{"properties":{"a":true,"b":{},"c":{"title":"C"}}}`, `{"properties":{"a":{` + anything + `},"b":{` + anything + `},"c":{` + anything + `}}}`},
		{"lengths beyond the converter's go", `{"type":"array","minItems":1,"maxItems":2001,"items":{"type":"string","minLength":3.0,"maxLength":1e9}}`, `{"type":"array","items":{"type":"string","minLength":3},"minItems":1}`},
		{"bounds that cross go", `{"properties":{"a":{"type":"string","minLength":3,"maxLength":2},"b":{"type":"integer","minimum":5,"maximum":2},"c":{"type":"array","minItems":2,"maxItems":1}}}`, `{"properties":{"a":{"type":"string"},"b":{"type":"integer"},"c":{"type":"array"}}}`},
		{"whole bounds stay", `{"type":"integer","minimum":-5.0,"exclusiveMaximum":1e3}`, `{"type":"integer","minimum":-5,"exclusiveMaximum":1000}`},
		{"others go", `{"type":"integer","minimum":0.5,"maximum":9223372036854775807}`, `{"type":"integer"}`},
		{"no values are anything", `{"enum":[]}`, `{` + anything + `}`},
		{"flags of objects stay", `{"type":"object","additionalProperties":false}`, `{"type":"object","additionalProperties":false}`},
		{"a schema for other properties", `{"type":"object","additionalProperties":{"title":"x"}}`, `{"type":"object","additionalProperties":{` + anything + `}}`},
		{"the root has a name where it is referred to", `{"properties":{"kids":{"items":{"$ref":"#"}}}}`, `{"$ref":"#/$defs/root","$defs":{"root":{"properties":{"kids":{"items":{"$ref":"#/$defs/root"}}}}}}`},
		{"patterns that are understood stay", `{"pattern":"^[a-z]{2}$"}`, `{"pattern":"^[a-z]{2,2}$"}`},
		{"other patterns go", `{"type":"string","pattern":"(?=x)"}`, `{"type":"string"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(standalone(compact(nil, []byte(tt.schema)))); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestPlainPattern: what a spelt pattern takes, the original takes, and no
// quote, backslash or control character, which would end the JSON string.
func TestPlainPattern(t *testing.T) {
	samples := []string{
		"", "a", "b", "ab", "abab", "abc", "A", "7", "123-x_9", "2026-11", "1999-01", "20-13", "jane@example.org", "a b",
		"Junior (m/f)", "+49 (0)30 [1]-2", "(a|b)", "é", "日本", "x\"y", "x\\y", "x\ny", "\x00", "^", "$", "-", "]", "[", "{2}", "😀",
	}
	for _, tt := range []struct {
		pattern string
		ok      bool
	}{
		{`^\d{3}-\w+$`, true},
		{`^\S+@\S+\.[a-z]{2,}$`, true},
		{`^(?:a|b)$`, true},
		{`^(?:(?:19|20)\d\d)-(?:0[1-9]|1[0-2])$`, true},
		{`^.*$`, true},
		{`^(a|b)*?$`, true},
		{`^[^"]+$`, true},
		{`^(ab){2,3}c?$`, true},
		{`^(a*)*$`, false},
		{`^(a|b?){2}$`, false},
		{`^(a*b)+$`, true},
		{`^\+?[0-9 ()\[\]-]{7,20}$`, true},
		{`^(Junior|Senior) \(m/f\)$`, true},
		{`^[\]\[^$-]$`, true},
		{`^(?:(?:a))+(b|)$`, true},
		{`^(a*)?$`, true},
		{`^$`, true},
		{``, false},
		{`a`, false},
		{`^a`, false},
		{`^a|b$`, false},
		{`^(?i)abc$`, false},
		{`^(?=a)b$`, false},
		{`^\bword\b$`, false},
		{`^a{1,900}{1,900}$`, false},
		{`^"$`, false},
		{`^\p{L}+$`, false},
		{`^(`, false},
	} {
		plain, ok := plainPattern(tt.pattern)
		if ok != tt.ok {
			t.Errorf("%s: spelt %q, %v, want %v", tt.pattern, plain, ok, tt.ok)
		}
		if !ok {
			continue
		}
		if strings.Contains(plain, "(?") {
			t.Errorf("%s: %s kills the converter", tt.pattern, plain)
		}
		want := regexp.MustCompile(tt.pattern)
		got := regexp.MustCompile(regexp.MustCompile(`\\U([0-9A-F]{8})`).ReplaceAllString(plain, `\x{$1}`))
		for _, s := range samples {
			safe := !strings.ContainsAny(s, "\"\\\n\x00")
			if got.MatchString(s) != (want.MatchString(s) && safe) {
				t.Errorf("%s, spelt %s, takes %q: %v", tt.pattern, plain, s, got.MatchString(s))
			}
		}
	}
}

// TestUnboundedSchemas: valid schemas that would bring Ollama's server down.
func TestUnboundedSchemas(t *testing.T) {
	for _, tt := range []struct {
		schema string
		want   error
	}{
		{`{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"$ref":"#/$defs/a"}}}`, errLoop},
		{`{"$ref":"#"}`, errLoop},
		{`{"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"},{"type":"string"}]}},"$ref":"#/$defs/a"}`, errLoop},
		{`{"oneOf":[{"allOf":[{"$ref":"#"}]}]}`, errLoop},
		{`{"$defs":{"s":{"type":"string"}},"properties":{"a":{"$ref":"#/$defs/s"},"b":{"anyOf":[{"$ref":"#/$defs/s"},{"$ref":"#/$defs/s"}]}}}`, nil},
		{`{"properties":{"` + strings.Repeat("_", maxName+1) + `":{}}}`, errName},
		{`{"$defs":{"N":{"properties":{"n":{"$ref":"#/$defs/N"}}}},"$ref":"#/$defs/N"}`, nil},
		{`{"properties":{"kids":{"items":{"$ref":"#"}},"of":{"$ref":"#/properties/kids"}}}`, nil},
		{`{"$ref":"other"}`, errRemote},
	} {
		if _, err := compile([]byte(tt.schema)); !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("%.80s: got %v, want %v", tt.schema, err, tt.want)
		}
	}
}

// TestRoomy: the server makes room for four times the format's length.
func TestRoomy(t *testing.T) {
	wide := func(n int) []byte {
		var b strings.Builder
		for i := range n {
			b.WriteString(`,"` + strings.Repeat("name", 10) + strconv.Itoa(i) + `":{"type":"string"}`)
		}
		return []byte(`{"type":"object","properties":{` + b.String()[1:] + `}}`)
	}
	small := wide(10)
	got, err := roomy(small)
	if err != nil || len(got) != len(small) {
		t.Errorf("a small format became %d of %d bytes (%v)", len(got), len(small), err)
	}
	large := wide(500)
	size := grammarSize(large)
	got, err = roomy(bytes.Clone(large))
	if err != nil || 4*len(got) < size || !json.Valid(got) {
		t.Errorf("%d bytes for a grammar of %d (%v)", len(got), size, err)
	}
	if grammarSize(got) > 4*len(got) {
		t.Error("the padding itself makes the grammar too long")
	}
	deep := string(wide(1500))
	for range 8 {
		deep = `{"properties":{"` + strings.Repeat("x", maxName) + `":` + deep + `}}`
	}
	body := with(`"response_format":{"type":"json_schema","json_schema":{"schema":` + deep + `}}`)
	c := decoded(t, []byte(body))
	_, err = c.Request(Params{Model: "m"})
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 400 || e.Param != "response_format" {
		t.Errorf("got %v, want a 400 that names response_format", err)
	}
}
