package ollama

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
)

// mostPooled is the largest buffer that is kept for the next request.
const mostPooled = 1 << 20

// payload is a request's body.
type payload struct {
	bytes []byte
	sent  atomic.Bool // net/http has read it to its end, or given up
	again atomic.Bool // and begun anew
}

// payload lends an empty one, for open to give back.
func (c *Client) payload() *payload {
	p, ok := c.payloads.Get().(*payload)
	if !ok {
		p = &payload{}
	}
	p.bytes = p.bytes[:0]
	p.sent.Store(false)
	p.again.Store(false)
	return p
}

// request returns one with this body. The type of its reader matters: net/http
// sends the headers of others in a write of their own.
func (p *payload) request(ctx context.Context, method string) (*http.Request, error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { p.sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, "", bytes.NewReader(p.bytes))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.GetBody = func() (io.ReadCloser, error) {
		p.again.Store(true)
		return io.NopCloser(bytes.NewReader(p.bytes)), nil
	}
	return req, nil
}

// giveBack keeps a payload for the next request, if nobody can be reading it
// any more: it was sent once, and to its end.
func (c *Client) giveBack(p *payload) {
	if p.sent.Load() && !p.again.Load() && cap(p.bytes) <= mostPooled {
		c.payloads.Put(p)
	}
}

// bulk is a connection that sends what is larger than net/http's own buffer
// from one of the pool's, in as few writes as that allows. By itself, net/http
// makes a buffer for each such request.
type bulk struct {
	net.Conn
	pool *sync.Pool
}

// ReadFrom implements io.ReaderFrom.
func (b bulk) ReadFrom(r io.Reader) (int64, error) {
	buf, ok := b.pool.Get().(*[64 << 10]byte)
	if !ok {
		buf = new([64 << 10]byte)
	}
	defer b.pool.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{b.Conn}, r, buf[:])
}
