package ollama_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"tenure/proxy/ollama"
	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"

	"github.com/ollama/ollama/api"
)

func Example() {
	// A simulated Ollama, a thousand times as fast as a real one.
	dial, stop := ollamasim.New(ollamasim.Config{Speed: 1000}).Serve()
	defer stop()
	c := ollama.New(&url.URL{Scheme: "http", Host: "gpu:11434"}, ollama.Config{Dial: dial})
	defer c.Close()
	ctx := context.Background()

	size, err := c.Load(ctx, residency.Model{Name: "mistral", Context: 8192, Slots: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("mistral takes", size)

	err = c.Chat(ctx, &api.ChatRequest{
		Model:    "mistral",
		Messages: []api.Message{{Role: "user", Content: "Is this job description biased?"}},
		Options:  map[string]any{"num_ctx": 8192, "num_predict": 4}, // as it was loaded
	}, func(r *api.ChatResponse) error {
		fmt.Print(r.Message.Content)
		if r.Done {
			fmt.Printf(" (%s)\n", r.DoneReason)
		}
		return nil
	})
	if errors.Is(err, ollama.ErrAborted) {
		fmt.Println("Ollama broke off")
	}
	// Output:
	// mistral takes 7.0 GiB
	// [simulated] Bias score: 27 (length)
}
