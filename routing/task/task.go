// Package task tells which recruiting task a conversation asks for.
//
// It first separates what is asked from the documents that were pasted, then
// scores only the ask: a CV that says "write me a report" does not get one.
// Everything here is pure: no I/O, no clock, no state between calls.
package task

// The tasks. General stands for none of the others, or no discernible ask.
const (
	ResumeParsing    = "resume_parsing"
	BiasDetection    = "bias_detection"
	MatchingLogic    = "matching_logic"
	ScriptGeneration = "script_generation"
	ReportGeneration = "report_generation"
	General          = "general"
)

// Causes: what decided.
const (
	Schema    = "schema"    // the keys of a response schema or of a tool
	Score     = "score"     // the weights over the ask
	Rule      = "rule"      // a structural rule outvoted the weights
	Carried   = "carried"   // the ask continues the task of an earlier turn
	Abstained = "abstained" // too unsure, or no ask: general
)

// Message is one turn of the conversation, as text. Parts that are not text
// are left out by the caller.
type Message struct {
	Role string // system, developer, user, assistant, tool
	Text string
}

// Input is all that may be looked at.
type Input struct {
	Messages   []Message
	Tools      []string // names and parameter keys of the offered tools
	SchemaKeys []string // property names of the response schema, outermost first
	JSON       bool     // the answer is asked for as JSON
	Stream     bool
	Images     int
}

// Span is a stretch of one message's text, in bytes: Text[Start:End].
type Span struct {
	Message int `json:"message"`
	Start   int `json:"start"`
	End     int `json:"end"`
}

// Evidence is a rule that spoke and where; it never holds the text itself.
type Evidence struct {
	Rule string `json:"rule"`
	Span
}

// Document is a pasted text that was set aside and what it looks like:
// cv, jd, transcript, notes, data, code, mail, context.
type Document struct {
	Kind string `json:"kind"`
	Span
}

// Result is what was decided and why.
type Result struct {
	Task       string
	Confidence float64            // calibrated probability of Task, 0 to 1
	Scores     map[string]float64 // probability of each task
	Cause      string
	Background bool // a chat application's own job: title, tags, follow-ups
	Evidence   []Evidence
	Documents  []Document
	Flags      []string // injection, no_ask, ambiguous, carry, multi
}
