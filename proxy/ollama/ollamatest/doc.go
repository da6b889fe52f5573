// Package ollamatest runs a real Ollama for end-to-end tests: the pinned
// server that .ci/ollama builds, on the CPU, with generated models of about
// a megabyte: four under the names of tenure's catalog, one that embeds, one
// that writes between two texts. What they write is noise; everything around it is Ollama's own: loads, swaps, queues, streams,
// refusals, /api/ps.
//
// [Prepare] makes the models once and keeps them under .cache/ollama; [Start]
// runs a server. The conformance tests hold the simulated Ollama of package
// ollamasim against it: go test -tags e2e ./proxy/ollama/ollamatest
package ollamatest
