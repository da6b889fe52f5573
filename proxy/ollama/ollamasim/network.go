package ollamasim

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// Serve answers on in-memory connections until stop is called, and returns the
// function that dials one. The address dialled does not matter. Unlike over a
// real network, Refuse refuses the connection itself.
func (s *Sim) Serve() (dial func(ctx context.Context, network, addr string) (net.Conn, error), stop func()) {
	pipes := &network{calls: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(pipes) }) // ends in ErrServerClosed, by stop
	stop = func() {
		_ = srv.Close()
		serving.Wait()
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, ok := s.hit(Refuse, ""); ok {
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", addr, syscall.ECONNREFUSED)}
		}
		return pipes.dial(ctx)
	}, stop
}

// network is a net.Listener over net.Pipe.
type network struct {
	calls  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (n *network) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case n.calls <- server:
		return client, nil
	case <-n.closed:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case c := <-n.calls:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *network) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

func (n *network) Addr() net.Addr { return &net.UnixAddr{Name: "ollamasim", Net: "pipe"} }
