// Package ollamasim is a simulated Ollama: an http.Handler that behaves as
// Ollama 0.17 does towards tenure, without a GPU and without weights.
//
// A [Sim] keeps a ledger of GPU memory, takes its time to load and to write,
// and evicts models by itself where Ollama would: when memory or the number of
// models is over-committed. It counts that, so that a test can insist that it
// never happens. Its text is made up, always the same for the same request,
// and begins with "[simulated] "; JSON satisfies the schema that was asked
// for. Faults can be switched on and off while it runs.
//
// Time passes by timers only, so it can be used in a testing/synctest bubble:
// [Sim.Serve] connects a client without a network. The conformance tests of
// package ollamatest compare it with the real server.
package ollamasim
