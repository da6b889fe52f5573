package wire

import (
	"encoding/binary"
	"math"
)

// keyVersion changes whenever the same request comes to mean other bytes
// upstream or in a recording.
const keyVersion = 1

// AppendKey appends what two requests must share to share an answer: every
// option that changes the output as it will be sent, and the messages. Fields
// are told apart by their order and length, so no two requests run together.
//
// Not in it: how the answer is delivered (stream, stream_options), who asks
// and for what (user, metadata, service_tier, the model id asked for). The
// caller adds the tenant and the digest of the model that answers.
func (c *Chat) AppendKey(dst []byte, p Params) []byte {
	k := key(dst)
	k.int(keyVersion)
	k.int(c.N)
	k.int(p.Context)
	k.int(c.maxTokens(p))
	if t, ok := c.EffectiveTemperature(p); ok {
		k.float(&t)
	} else {
		k.float(nil)
	}
	for _, f := range c.floats() {
		k.float(f.value)
	}
	k.optional(c.TopK)
	k.optional(c.Seed)
	k.int(len(c.Stop))
	for _, stop := range c.Stop {
		k.text(stop)
	}
	k.flag(c.Logprobs)
	k.int(c.TopLogprobs)
	if think := c.think(p); think != nil {
		k.text("think")
		k.text(think.String())
		k.flag(think.Bool())
	} else {
		k.text("")
	}

	k.int(int(c.Format.Kind))
	k.flag(c.Format.Strict)
	k.bytes(c.Format.Schema)
	tools := c.callable()
	k.int(len(tools))
	for _, tool := range tools {
		k.text(tool.Name)
		k.text(tool.Description)
		k.flag(tool.Strict)
		k.bytes(tool.Parameters)
	}
	if len(tools) > 0 {
		k.int(int(c.ToolChoice.Mode))
		k.flag(c.ParallelOff)
		k.flag(c.functionsAPI)
		k.int(int(c.plan(p)))
	}
	k.flag(p.lacks("tools"))

	k.int(len(c.Messages))
	for _, m := range c.Messages {
		k.text(m.Role)
		k.text(m.Text)
		k.int(len(m.Images))
		for _, image := range m.Images {
			k.bytes(image)
		}
		k.int(len(m.ToolCalls))
		for _, call := range m.ToolCalls {
			k.text(call.ID)
			k.text(call.Name)
			k.text(call.Arguments)
		}
		k.text(m.ToolCallID)
		k.text(m.Name)
	}
	return k
}

// key is a list of fields under construction.
type key []byte

func (k *key) int(n int) { *k = binary.AppendVarint(*k, int64(n)) }

func (k *key) flag(on bool) {
	if on {
		*k = append(*k, 1)
	} else {
		*k = append(*k, 0)
	}
}

func (k *key) text(s string) {
	*k = binary.AppendUvarint(*k, uint64(len(s)))
	*k = append(*k, s...)
}

func (k *key) bytes(b []byte) {
	*k = binary.AppendUvarint(*k, uint64(len(b)))
	*k = append(*k, b...)
}

func (k *key) float(f *float64) {
	if k.flag(f != nil); f != nil {
		*k = binary.BigEndian.AppendUint64(*k, math.Float64bits(*f))
	}
}

func (k *key) optional(n *int) {
	if k.flag(n != nil); n != nil {
		k.int(*n)
	}
}
