package wire

import (
	"net/http"
	"strconv"
)

// Types and codes of OpenAI's error object that this package gives.
const (
	typeInvalidRequest = "invalid_request_error"
	typeServer         = "server_error"

	codeInvalidJSON  = "invalid_json"
	codeInvalidType  = "invalid_type"
	codeInvalidValue = "invalid_value"
	codeMissing      = "missing_required_parameter"
	codeUnsupported  = "unsupported_parameter"
	codeOutput       = "invalid_output"
)

// Error is a refusal in OpenAI's terms. Its message names fields, types and
// limits, never a value the client sent, so it may be logged.
type Error struct {
	Status  int    // HTTP status, if the answer has not begun
	Type    string // such as invalid_request_error
	Code    string // empty is written as null
	Param   string // the field at fault, such as messages[0].content; empty is written as null
	Message string
}

func (e *Error) Error() string { return e.Message }

// AppendJSON appends {"error":{"message":…,"type":…,"param":…,"code":…}}, all
// four keys always there and "error" the first: go-openai recognises an error
// inside a stream by these very bytes.
func (e *Error) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"error":{"message":`...)
	dst = appendString(dst, e.Message)
	dst = append(dst, `,"type":`...)
	dst = appendString(dst, e.Type)
	dst = append(dst, `,"param":`...)
	dst = appendStringOrNull(dst, e.Param)
	dst = append(dst, `,"code":`...)
	dst = appendStringOrNull(dst, e.Code)
	return append(dst, `}}`...)
}

func invalid(code, param, message string) *Error {
	return &Error{Status: http.StatusBadRequest, Type: typeInvalidRequest, Code: code, Param: param, Message: message}
}

// noModel refuses a request without a model.
func noModel() *Error {
	return invalid(codeMissing, "model", "You must provide a model parameter.")
}

// atOffset says where in the body JSON ends to be JSON.
func atOffset(pos int) string { return " (byte " + strconv.Itoa(pos) + ")" }
