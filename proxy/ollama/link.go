package ollama

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	mostIdle = 16               // connections that are kept
	idleTime = 90 * time.Second // and how long
	mostHeld = 256 << 10        // bytes of a buffer that one keeps
)

// link sends requests to one server. The goroutine that asks writes its request
// and reads the answer itself. net/http's Transport has two more goroutines for
// each connection, and hands the request to one and waits for the other: each
// wakes a thread, which takes longer than the reading and writing.
type link struct {
	dial func(context.Context) (net.Conn, error)
	tls  *tls.Config // nil: none
	path string      // of the server, before every request's
	head string      // of every request, after its path

	mu   sync.Mutex
	idle []*conn // the one that was used last is the last
}

// conn is a connection that one request has to itself.
type conn struct {
	net.Conn
	in    *bufio.Reader
	out   []byte    // a request
	since time.Time // when it became idle
}

// newLink returns a link to the server at base.
func newLink(base *url.URL, dial func(context.Context) (net.Conn, error)) *link {
	l := &link{dial: dial, path: strings.TrimSuffix(base.EscapedPath(), "/"), head: " HTTP/1.1\r\nHost: " + base.Host + "\r\nUser-Agent: tenure\r\n"}
	if u := base.User; u != nil {
		password, _ := u.Password()
		l.head += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if base.Scheme == "https" {
		l.tls = &tls.Config{ServerName: base.Hostname(), MinVersion: tls.VersionTLS12}
	}
	return l
}

// connect makes a connection.
func (l *link) connect(ctx context.Context) (*conn, error) {
	c, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	if l.tls != nil {
		secure := tls.Client(c, l.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = c.Close() // it is of no use
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		c = secure
	}
	return &conn{Conn: c, in: bufio.NewReader(c)}, nil
}

// send sends a request, with a document or none, and returns the answer once it
// begins. Its body must be closed; read to its end, it leaves the connection to
// the next request. The document is not read any more when send returns.
func (l *link) send(ctx context.Context, method, path string, document []byte) (*http.Response, error) {
	if c := l.take(); c != nil {
		resp, err := l.exchange(ctx, c, method, path, document)
		idled := err == nil && resp.StatusCode == http.StatusRequestTimeout // as some servers say to who asked nothing
		if err == nil && !idled || ctx.Err() != nil {
			return resp, err
		}
		if idled {
			_ = resp.Body.Close() // it is of no use
		}
		// A kept connection that turns out to be dead says nothing of the server,
		// but all of the others. Whatever is asked here may be asked again.
		l.drop()
	}
	c, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	return l.exchange(ctx, c, method, path, document)
}

// exchange closes the connection when it fails, or ctx ends.
func (l *link) exchange(ctx context.Context, c *conn, method, path string, document []byte) (*http.Response, error) {
	b := &body{link: l, conn: c, stop: context.AfterFunc(ctx, func() { _ = c.Close() })} // which wakes who waits for it
	c.out = append(append(c.out[:0], method...), ' ')
	c.out = append(append(append(c.out, l.path...), path...), l.head...)
	if document != nil {
		c.out = strconv.AppendInt(append(c.out, "Content-Type: application/json\r\nContent-Length: "...), int64(len(document)), 10)
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(append(c.out, "\r\n"...), document...)
	_, sendErr := c.Write(c.out)
	// A server that refuses may do so, and close, before it has read all.
	resp, err := http.ReadResponse(c.in, nil)
	for err == nil && resp.StatusCode < http.StatusOK { // it is still to come
		resp, err = http.ReadResponse(c.in, nil)
	}
	if err != nil {
		_ = b.Close() // it is of no use
		if sendErr != nil {
			err = sendErr
		}
		return nil, err
	}
	b.ReadCloser, b.last = resp.Body, resp.Close || sendErr != nil
	resp.Body = b
	return resp, nil
}

// body is an answer's, as long as it has the connection.
type body struct {
	io.ReadCloser

	link *link
	conn *conn // nil: it was let go
	stop func() bool
	last bool // answer on this connection
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF && b.conn != nil && !b.last && b.conn.in.Buffered() == 0 && b.stop() {
		b.link.give(b.conn)
		b.conn = nil
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.conn == nil {
		return nil
	}
	b.stop()
	err := b.conn.Close()
	b.conn = nil
	return err
}

// take returns a kept connection; nil when there is none.
func (l *link) take() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pruneLocked(idleTime)
	if len(l.idle) == 0 {
		return nil
	}
	c := l.idle[len(l.idle)-1]
	l.idle[len(l.idle)-1] = nil
	l.idle = l.idle[:len(l.idle)-1]
	return c
}

func (l *link) give(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pruneLocked(idleTime)
	if len(l.idle) == mostIdle {
		_ = c.Close() // there are enough
		return
	}
	if cap(c.out) > mostHeld {
		c.out = nil
	}
	c.since = time.Now()
	l.idle = append(l.idle, c)
}

// drop closes what is kept.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pruneLocked(-1)
}

// pruneLocked closes connections that were idle for longer.
func (l *link) pruneLocked(longer time.Duration) {
	n := 0
	for n < len(l.idle) && time.Since(l.idle[n].since) > longer {
		_ = l.idle[n].Close() // it was of no use any more
		n++
	}
	l.idle = slices.Delete(l.idle, 0, n)
}
