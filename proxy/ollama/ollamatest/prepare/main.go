// Command prepare makes the models for the end-to-end tests, once:
//
//	go run ./proxy/ollama/ollamatest/prepare
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"

	"tenure/proxy/ollama/ollamatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root, err := ollamatest.Root()
	if err == nil {
		_, err = ollamatest.Prepare(ctx, root)
	}
	if err != nil {
		slog.Error("models not prepared", "err", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}
