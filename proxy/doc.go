// Package proxy serves the OpenAI API. gin lives here and nowhere else.
//
// A chat request goes through these steps:
//
//  1. serve (exchange.go) gives it an id, checks its key and the key's limits
//     (keys.go), and when it is over writes one line of log and counts it once.
//  2. complete (complete.go) is the pipeline, read downwards; the next steps
//     are its calls.
//  3. wire.DecodeChat reads the body. Pure.
//  4. Router.Route decides on the task and the models that may do it. Pure.
//  5. cache.Do finds the answer, joins somebody who is asking the same, or
//     starts fill: a lease from the scheduler, a stream from Ollama, chunk
//     after chunk appended to the recording, the lease returned.
//  6. reply or stream (stream.go) writes the recording as JSON or as
//     server-sent events.
//  7. Closing the reader cancels the work when nobody else reads it.
//
// Every endpoint is a value that complete runs (endpoints.go), Ollama's own
// API among them (native.go).
//
// A hit never touches the scheduler, and nothing calls back upwards. Errors
// become HTTP in errors.go and nowhere else.
package proxy
