package ollama

// mostPooled is the largest buffer that is kept for the next request.
const mostPooled = 1 << 20

// payload is a request's document.
type payload struct{ bytes []byte }

// payload lends an empty one, for open to give back.
func (c *Client) payload() *payload {
	p, ok := c.payloads.Get().(*payload)
	if !ok {
		p = &payload{}
	}
	p.bytes = p.bytes[:0]
	return p
}

func (c *Client) giveBack(p *payload) {
	if cap(p.bytes) <= mostPooled {
		c.payloads.Put(p)
	}
}
