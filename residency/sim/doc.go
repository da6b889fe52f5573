// Package sim runs residency policies on a virtual clock.
//
// It drives the very [residency.Book] that serves in production, beside models
// of how Ollama and llama-swap schedule (re-implemented from reading their
// sources), under workloads with known lower bounds. A [Setup] describes a
// run, [Run] returns a [Result]; equal setups give equal results.
//
// All figures are simulated. The physics is that of one GPU shared by
// processes: with b requests running on a model and k models busy, each
// request runs at 1/[(1+Beta(b-1)) k^Gamma], and a tenth slower during a load.
package sim
