// Package residency decides which models sit in GPU memory and lends them out.
//
// A [Scheduler] is asked for a [Lease] on a model with [Scheduler.Acquire]. A
// resident model with a free slot is lent at once; for an absent one the
// caller waits while room is made: victims are closed (they admit nobody any
// more), drained, unloaded and confirmed gone before the load begins. One load
// serves everybody who waits for it and belongs to nobody's context.
//
// Three parts share the work:
//
//   - [Book] is a state machine without clock, lock or I/O: events go in,
//     [Effects] come out, the time is an argument.
//   - A [Policy] is a pure function of the book's [View]: it names the next
//     model to load and whom it displaces. The book refuses plans that would
//     break its invariants, so a policy decides how well, never how safely.
//   - Two drivers run the book: [Scheduler] in real time, package
//     residency/sim on a virtual clock. The same trace gives the same grants
//     in both; a test holds them to it.
//
// The package starts no process and speaks no protocol: a [Loader] moves the
// models. Tests run inside a testing/synctest bubble with a Loader that
// sleeps. DESIGN.md tells the policy, its rejected alternatives and figures.
package residency
