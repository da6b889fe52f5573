package ollamasim

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// satisfy writes a JSON value that the schema allows. It knows what Ollama's
// grammars know, patterns apart.
func satisfy(schema []byte, rng *rand.Rand) (string, error) {
	var root any
	if err := json.Unmarshal(schema, &root); err != nil {
		return "", fmt.Errorf("reading schema: %w", err)
	}
	v, err := (&author{root: root, rng: rng}).value(root, "", 0)
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(v)
	return string(data), err
}

type author struct {
	root any
	rng  *rand.Rand
}

// Recursive schemas are cut short at shallow levels by leaving out what is
// optional, and given up at deep ones.
const (
	shallow = 6
	deep    = 40
)

var errSchema = errors.New("schema cannot be satisfied")

func (a *author) value(schema any, key string, depth int) (any, error) {
	if depth > deep {
		return nil, errSchema
	}
	s, ok := schema.(map[string]any)
	if !ok {
		if schema == true {
			return a.text(nil, key), nil
		}
		return nil, errSchema
	}
	if ref, ok := s["$ref"].(string); ok {
		target, err := a.resolve(ref)
		if err != nil {
			return nil, err
		}
		return a.value(target, key, depth+1)
	}
	if c, ok := s["const"]; ok {
		return c, nil
	}
	if enum, ok := s["enum"].([]any); ok {
		if len(enum) == 0 {
			return nil, errSchema
		}
		return pick(a.rng, enum...), nil
	}
	if all, ok := s["allOf"].([]any); ok {
		merged, err := a.merge(s, all)
		if err != nil {
			return nil, err
		}
		return a.value(merged, key, depth+1)
	}
	for _, word := range []string{"anyOf", "oneOf"} {
		if options, ok := s[word].([]any); ok {
			return a.either(options, key, depth)
		}
	}
	switch kind := a.kind(s, depth); kind {
	case "object":
		return a.object(s, depth)
	case "array":
		return a.array(s, key, depth)
	case "integer", "number":
		return a.number(s, kind == "integer")
	case "boolean":
		return a.rng.IntN(2) == 0, nil
	case "null":
		return nil, nil //nolint:nilnil // null is the value
	case "string":
		return a.text(s, key), nil
	}
	return nil, errSchema
}

// kind is the type to make: the first that is not null, where there is a choice.
func (a *author) kind(s map[string]any, depth int) string {
	switch t := s["type"].(type) {
	case string:
		return t
	case []any:
		if depth > shallow && slices.Contains(t, any("null")) {
			return "null"
		}
		for _, e := range t {
			if name, ok := e.(string); ok && (name != "null" || len(t) == 1) {
				return name
			}
		}
		return ""
	}
	switch {
	case s["properties"] != nil || s["additionalProperties"] != nil:
		return "object"
	case s["items"] != nil || s["prefixItems"] != nil:
		return "array"
	case s["minimum"] != nil || s["maximum"] != nil:
		return "number"
	}
	return "string"
}

func (a *author) resolve(ref string) (any, error) {
	path, ok := strings.CutPrefix(ref, "#")
	if !ok {
		return nil, fmt.Errorf("%w: %q is elsewhere", errSchema, ref)
	}
	at := a.root
	for step := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if step == "" {
			continue
		}
		m, ok := at.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%w: no %q", errSchema, ref)
		}
		if at, ok = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]; !ok {
			return nil, fmt.Errorf("%w: no %q", errSchema, ref)
		}
	}
	return at, nil
}

// merge is one schema for s and all that is in its allOf.
func (a *author) merge(s map[string]any, all []any) (map[string]any, error) {
	out := maps.Clone(s)
	delete(out, "allOf")
	for _, part := range all {
		p, ok := part.(map[string]any)
		if !ok {
			return nil, errSchema
		}
		if ref, ok := p["$ref"].(string); ok {
			target, err := a.resolve(ref)
			if err != nil {
				return nil, err
			}
			if p, ok = target.(map[string]any); !ok {
				return nil, errSchema
			}
		}
		for k, v := range p {
			switch have := out[k].(type) {
			case map[string]any:
				if more, ok := v.(map[string]any); ok {
					have = maps.Clone(have)
					maps.Copy(have, more)
					out[k] = have
				}
			case []any:
				if more, ok := v.([]any); ok {
					out[k] = append(slices.Clone(have), more...)
				}
			default:
				out[k] = v
			}
		}
	}
	return out, nil
}

// either takes one of several schemas: deep down, one that ends the recursion.
func (a *author) either(options []any, key string, depth int) (any, error) {
	if len(options) == 0 {
		return nil, errSchema
	}
	if depth > shallow {
		for _, o := range options {
			if m, ok := o.(map[string]any); ok && m["$ref"] == nil && m["type"] != "object" && m["type"] != "array" {
				return a.value(o, key, depth+1)
			}
		}
	}
	return a.value(pick(a.rng, options...), key, depth+1)
}

func (a *author) object(s map[string]any, depth int) (any, error) {
	properties, _ := s["properties"].(map[string]any)
	required, _ := s["required"].([]any)
	out := make(map[string]any)
	for _, k := range slices.Sorted(maps.Keys(properties)) {
		if depth >= shallow && !slices.Contains(required, any(k)) {
			continue
		}
		v, err := a.value(properties[k], k, depth+1)
		if err != nil {
			return nil, err
		}
		out[k] = v
	}
	for _, r := range required {
		if k, ok := r.(string); ok && properties[k] == nil {
			out[k] = a.text(nil, k)
		}
	}
	return out, nil
}

func (a *author) array(s map[string]any, key string, depth int) (any, error) {
	least := int(figure(s, "minItems", 0))
	n := max(least, min(2, int(figure(s, "maxItems", 2))))
	if depth >= shallow {
		n = least
	}
	prefix, _ := s["prefixItems"].([]any)
	n = max(n, len(prefix))
	items, ok := s["items"]
	if !ok {
		items = true
	}
	out := make([]any, n)
	for i := range out {
		schema := items
		if i < len(prefix) {
			schema = prefix[i]
		}
		var err error
		if out[i], err = a.value(schema, key, depth+1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func figure(s map[string]any, key string, or float64) float64 {
	if f, ok := s[key].(float64); ok {
		return f
	}
	return or
}

// number stays within the bounds; without any, within 0 and 100.
func (a *author) number(s map[string]any, whole bool) (any, error) {
	step := 0.1
	if whole {
		step = 1
	}
	step = figure(s, "multipleOf", step)
	inf := math.Inf(1)
	low := max(figure(s, "minimum", -inf), figure(s, "exclusiveMinimum", -inf))
	high := min(figure(s, "maximum", inf), figure(s, "exclusiveMaximum", inf))
	switch {
	case math.IsInf(low, 0) && math.IsInf(high, 0):
		low, high = 0, 100
	case math.IsInf(low, 0):
		low = high - 100
	case math.IsInf(high, 0):
		high = low + 100
	}
	first, last := math.Ceil(low/step), math.Floor(high/step)
	if s["exclusiveMinimum"] == first*step {
		first++
	}
	if s["exclusiveMaximum"] == last*step {
		last--
	}
	if first > last {
		if whole || low > high {
			return nil, errSchema
		}
		return (low + high) / 2, nil
	}
	n := first + float64(a.rng.IntN(int(min(last-first, 1<<30))+1))
	if whole && step == math.Trunc(step) {
		return int64(n * step), nil
	}
	return math.Round(n*step*1e6) / 1e6, nil
}

// text names the property it fills, so that answers can be told apart.
func (a *author) text(s map[string]any, key string) string {
	switch s["format"] {
	case "date":
		return fmt.Sprintf("20%02d-%02d-%02d", 10+a.rng.IntN(16), 1+a.rng.IntN(12), 1+a.rng.IntN(28))
	case "date-time":
		return fmt.Sprintf("20%02d-%02d-%02dT09:00:00Z", 10+a.rng.IntN(16), 1+a.rng.IntN(12), 1+a.rng.IntN(28))
	case "time":
		return "09:00:00Z"
	case "email":
		return "simulated@example.com"
	case "uri":
		return "https://example.com/simulated"
	case "uuid":
		return fmt.Sprintf("00000000-0000-4000-8000-%012x", a.rng.Uint32())
	}
	if key == "" {
		key = "text"
	}
	out := []rune(fmt.Sprintf("simulated %s %d", strings.ReplaceAll(key, "_", " "), a.rng.IntN(100)))
	if least := int(figure(s, "minLength", 0)); len(out) < least {
		out = append(out, []rune(strings.Repeat(".", min(least, 1<<20)-len(out)))...)
	}
	if most, ok := s["maxLength"].(float64); ok && len(out) > int(most) {
		out = out[:max(int(most), 0)]
	}
	return string(out)
}
