package wire_test

import (
	"fmt"
	"slices"

	"tenure/proxy/wire"

	"github.com/ollama/ollama/api"
)

// A request and its answer, without the server between them.
func Example() {
	chat, err := wire.DecodeChat([]byte(`{"model":"recruit/resume_parsing","messages":[{"role":"user","content":"Who?"}]}`), wire.Limits{})
	if err != nil {
		fmt.Println(err)
		return
	}
	params := wire.Params{Model: "deepseek-llm:7b", Context: 4096, MaxTokens: 1000}
	request, err := chat.Request(params)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(request.Model, request.Options["num_ctx"], request.Options["num_predict"])

	recorder := wire.NewRecorder(chat, params)
	var recording [][]byte
	for _, line := range []api.ChatResponse{
		{Message: api.Message{Content: "Jane "}},
		{Message: api.Message{Content: "Doe."}, Done: true, DoneReason: "stop"},
	} {
		chunks, err := recorder.Line(0, &line)
		if err != nil {
			fmt.Println(err)
			return
		}
		recording = append(recording, chunks...)
	}

	answer := wire.Answer{ID: "chatcmpl-1", Model: chat.Model, Created: 1700000000}
	fmt.Println(string(answer.AppendBody(nil, slices.Values(recording))))
	// Output:
	// deepseek-llm:7b 4096 1000
	// {"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"recruit/resume_parsing","choices":[{"index":0,"message":{"role":"assistant","content":"Jane Doe.","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}
}
