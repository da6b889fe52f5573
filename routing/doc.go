// Package routing picks a model for a request.
//
// A [Catalog] says which models there are and what each recruiting task
// needs; a [Router] resolves what a client asked for, a virtual model or one
// of the server's own, to a [Decision]: the task, the models that may do it in
// order of preference, and the parameters that fill what the client left open.
//
// Virtual models are recruit-auto, where the conversation decides
// (package routing/task), and recruit/<task>, where the client has decided.
//
// Everything here is pure. What is installed on the server is told to the
// router from outside, and swapped in whole.
package routing
