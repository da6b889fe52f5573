package proxy

import "tenure/proxy/wire"

// endpoint is what tells one OpenAI endpoint from another; complete runs them
// all.
type endpoint struct {
	name   string // part of the cache key
	decode func(body []byte, lim wire.Limits) (*wire.Chat, error)
}

func chatCompletions() endpoint { return endpoint{name: "chat", decode: wire.DecodeChat} }
