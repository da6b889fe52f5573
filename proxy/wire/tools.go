package wire

import (
	"slices"
	"strconv"
	"strings"
)

func (d *decoder) toolCalls(m *Message) {
	for range d.array() {
		if !d.onePart() {
			return
		}
		m.ToolCalls = append(m.ToolCalls, d.toolCall())
	}
}

// toolCall reads one call of an assistant message.
func (d *decoder) toolCall() ToolCall {
	var call ToolCall
	var id string
	given := false
	for key := range d.object(callKeys) {
		switch key {
		case "id":
			id = d.text()
		case "function":
			given = true
			call = d.calledFunction()
		case "custom":
			d.fail(codeUnsupported, "Unsupported parameter: '"+d.param()+"': custom tools are not served here.")
		default:
			d.skip()
		}
	}
	if d.err == nil && !given {
		d.missing("function")
	}
	call.ID = id
	return call
}

// calledFunction reads the name and arguments of a call.
func (d *decoder) calledFunction() ToolCall {
	var call ToolCall
	for key := range d.object(functionKeys) {
		switch key {
		case "name":
			call.Name = d.text()
		case "arguments":
			if d.peek() == '{' { // not a string, though it should be one
				call.Arguments = string(compact(nil, d.raw()))
			} else {
				call.Arguments = d.text()
			}
		default:
			d.skip()
		}
	}
	if d.err == nil && call.Name == "" {
		d.missing("name")
	}
	return call
}

func (d *decoder) tools() {
	for i := range d.array() {
		if i == d.lim.Tools {
			d.tooMany("tools", d.lim.Tools)
			return
		}
		given := false
		for key := range d.object(toolKeys) {
			switch key {
			case "type":
				if d.text() != "function" {
					d.fail(codeUnsupported, "Unsupported value for '"+d.param()+"': only tools of type function are served here.")
				}
			case "function":
				given = true
				d.chat.Tools = append(d.chat.Tools, d.function())
			default:
				d.skip()
			}
		}
		if d.err == nil && !given {
			d.missing("function")
		}
	}
}

// function reads the definition of a function.
func (d *decoder) function() Tool {
	var tool Tool
	for key := range d.object(functionKeys) {
		switch key {
		case "name":
			tool.Name = d.text()
		case "description":
			tool.Description = d.text()
		case "strict":
			tool.Strict = d.bool()
		case "parameters":
			tool.Parameters, tool.compiled = d.schema()
		default:
			d.skip()
		}
	}
	if d.err == nil && tool.Name == "" {
		d.missing("name")
	}
	tool.native = natively(tool.Parameters)
	return tool
}

// functions reads the deprecated form of tools, which tools override.
func (d *decoder) functions() {
	for i := range d.array() {
		if i == d.lim.Tools {
			d.tooMany("functions", d.lim.Tools)
			return
		}
		d.legacy = append(d.legacy, d.function())
	}
}

// toolChoice reads a mode, a tool by name, or a set of allowed tools.
func (d *decoder) toolChoice() {
	d.choice = &ToolChoice{}
	if d.peek() == '"' {
		d.choice.Mode = d.toolMode()
		return
	}
	kind := ""
	var names []string
	for key := range d.object(choiceKeys) {
		switch key {
		case "type":
			kind = d.text()
		case "function":
			d.choice.Mode = ToolRequired
			names = append(names, d.named())
		case "allowed_tools":
			for key := range d.object(allowedKeys) {
				if key == "mode" {
					d.choice.Mode = d.toolMode()
					continue
				}
				for i := range d.array() {
					if i == d.lim.Tools {
						d.tooMany("tools", d.lim.Tools)
						return
					}
					for key := range d.object(toolKeys) {
						if key == "function" {
							names = append(names, d.named())
						} else {
							d.skip()
						}
					}
				}
			}
		default:
			d.skip()
		}
	}
	if d.err != nil {
		return
	}
	if kind != "function" && kind != "allowed_tools" || len(names) == 0 {
		d.badValue("expected none, auto, required, a function by its name, or allowed_tools")
	}
	d.choice.Allowed = names
}

func (d *decoder) toolMode() ToolMode {
	switch d.text() {
	case "none":
		return ToolNone
	case "auto":
		return ToolAuto
	case "required":
		return ToolRequired
	}
	d.badValue("expected none, auto or required")
	return ToolAuto
}

// named reads the name out of an object and skips the rest.
func (d *decoder) named() string {
	name := ""
	for key := range d.object(functionKeys) {
		if key == "name" {
			name = d.text()
		} else {
			d.skip()
		}
	}
	if d.err == nil && name == "" {
		d.missing("name")
	}
	return name
}

// functionCall reads the deprecated form of tool_choice.
func (d *decoder) functionCall() {
	d.legacyChoice = &ToolChoice{}
	if d.peek() == '"' {
		d.legacyChoice.Mode = d.toolMode()
		return
	}
	*d.legacyChoice = ToolChoice{Mode: ToolRequired, Allowed: []string{d.named()}}
}

// settleTools decides between the two forms and checks the choice against the
// tools that are there.
func (d *decoder) settleTools() error {
	c := d.chat
	choice, param := d.choice, "tool_choice"
	switch {
	case len(c.Tools) > 0:
		for _, old := range []struct {
			given bool
			name  string
		}{{d.legacy != nil, "functions"}, {d.legacyChoice != nil, "function_call"}} {
			if old.given {
				d.ignored(old.name)
			}
		}
	case len(d.legacy) > 0:
		c.Tools, c.functionsAPI = d.legacy, true
		choice, param = d.legacyChoice, "function_call"
	}
	seen := make(map[string]bool, len(c.Tools))
	for i, tool := range c.Tools {
		if seen[tool.Name] {
			param := "tools[" + strconv.Itoa(i) + "].function.name"
			if d.flat {
				param = strings.Replace(param, ".function", "", 1)
			}
			return invalid(codeInvalidValue, param, "Invalid value for 'tools': names must be unique.")
		}
		seen[tool.Name] = true
	}
	if choice == nil {
		return nil
	}
	if len(c.Tools) == 0 {
		if choice.Mode == ToolRequired {
			return invalid(codeInvalidValue, param, "Invalid value for '"+param+"': there are no tools to call.")
		}
		return nil
	}
	for _, name := range choice.Allowed {
		if !seen[name] {
			return invalid(codeInvalidValue, param, "Invalid value for '"+param+"': it names a tool that is not among 'tools'.")
		}
	}
	c.ToolChoice = *choice
	return nil
}

// callable returns the tools that may be called in this turn.
func (c *Chat) callable() []Tool {
	if c.ToolChoice.Mode == ToolNone {
		return nil
	}
	if c.ToolChoice.Allowed == nil {
		return c.Tools
	}
	var tools []Tool
	for _, tool := range c.Tools {
		if slices.Contains(c.ToolChoice.Allowed, tool.Name) {
			tools = append(tools, tool)
		}
	}
	return tools
}
