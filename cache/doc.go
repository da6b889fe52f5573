// Package cache keeps finished answers and shares unfinished ones.
//
// An answer is a [Recording]: a list of chunks that can be read while it is
// being made. A hit is a finished recording, a shared flight an unfinished
// one, and both are read through a [Reader]; whoever writes the answer to a
// client need not know which it was.
//
// [Cache.Do] is the only way in. It serves a kept recording, joins the flight
// of someone who is asking the same, or starts the work itself on a context of
// its own: a client that leaves cancels the work only when nobody else reads.
//
// What is cacheable and under which key is decided by the caller; equal keys
// mean equal answers. The package never looks into a chunk.
package cache
