package proxy

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tenure/proxy/alarm"
)

const (
	// headerBytes is the most that a request's line and headers may be.
	// Beyond twice this net/http refuses them itself, in plain text.
	headerBytes = 32 << 10
	// headerTime is how long a client may take to send its headers.
	headerTime = 10 * time.Second
	// bodyTime is how long a client may take to send a request whole. It does
	// not count the answer, which may take longer by far.
	bodyTime = 2 * time.Minute
	// idleTime is how long a connection is kept that nothing is asked on.
	idleTime = 2 * time.Minute
	// farewells is how many connections are told at once that they are too
	// many; more are closed without a word.
	farewells = 64
	// farewellTime is how long that may take.
	farewellTime = 2 * time.Second
)

// HTTPServer returns a server of h with the limits on slow and large requests.
// It has no limit on writing: an answer may take minutes, and a client that
// stops reading is found out write by write.
func HTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: bodyTime, IdleTimeout: idleTime,
		MaxHeaderBytes: 2 * headerBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// smallHead refuses a request whose line and headers are too large.
func smallHead(r *http.Request) error {
	n := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	if n <= headerBytes {
		return nil
	}
	return problem(nil, outcomeCaller, http.StatusRequestHeaderFieldsTooLarge, "headers_too_large", 0,
		fmt.Sprintf("The request's line and headers are over the limit of %d bytes.", headerBytes))
}

// allowance bounds the bytes of request bodies that are held at once: by those
// who wait for a seat, and by those who are being answered.
type allowance struct {
	most int64 // 0: no bound
	held atomic.Int64
}

// take takes n bytes, if they are left.
func (a *allowance) take(n int) bool {
	if a.held.Add(int64(n)) <= a.most || a.most == 0 {
		return true
	}
	a.give(n)
	return false
}

func (a *allowance) give(n int) { a.held.Add(-int64(n)) }

func tooMuchHeld() error {
	return problem(nil, outcomeFull, http.StatusTooManyRequests, "queue_full", busyRetry,
		"The requests that wait and run hold as many bytes as they may. Try again later.")
}

// Limit returns a listener that turns away connections beyond the configured
// numbers, with an error as the API's own. Loopback addresses count towards the
// total only: a reverse proxy on this machine stands for many clients.
func (s *Server) Limit(l net.Listener) net.Listener {
	return &limitedListener{Listener: l, server: s, from: map[netip.Prefix]int{}, farewells: make(chan struct{}, farewells)}
}

type limitedListener struct {
	net.Listener
	server    *Server
	farewells chan struct{}

	mu   sync.Mutex
	open int
	from map[netip.Prefix]int
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		home := homeOf(c.RemoteAddr())
		if err := l.enter(home); err != nil {
			l.turnAway(c, err)
			continue
		}
		return &limitedConn{Conn: l.server.clock.NewConn(c), leave: sync.OnceFunc(func() { l.leave(home) })}, nil
	}
}

func (l *limitedListener) enter(home netip.Prefix) *Error {
	cfg := &l.server.cfg
	l.mu.Lock()
	defer l.mu.Unlock()
	if cfg.Connections > 0 && l.open >= cfg.Connections {
		l.server.metrics.refused.WithLabelValues("total").Inc()
		return problem(nil, outcomeFull, http.StatusServiceUnavailable, "too_many_connections", busyRetry,
			"The server has as many connections as it takes. Try again later.")
	}
	if cfg.ConnectionsPerAddress > 0 && home.IsValid() && l.from[home] >= cfg.ConnectionsPerAddress {
		l.server.metrics.refused.WithLabelValues("address").Inc()
		return problem(nil, outcomeLimited, http.StatusTooManyRequests, "too_many_connections", busyRetry,
			fmt.Sprintf("Too many connections from one address: the limit is %d. Close some first.", cfg.ConnectionsPerAddress))
	}
	l.open++
	if home.IsValid() {
		l.from[home]++
	}
	return nil
}

func (l *limitedListener) leave(home netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[home]--; l.from[home] <= 0 {
		delete(l.from, home)
	}
}

// homeOf is what counts as one address: one of IPv4, and of IPv6 the network
// of 64 bits that a single host commands. None for what is not to be counted.
func homeOf(a net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil || at.Addr().IsLoopback() {
		return netip.Prefix{}
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return netip.PrefixFrom(ip, 32)
	}
	return netip.PrefixFrom(ip, 64).Masked()
}

// turnAway answers a connection's first request with an error, and closes it.
func (l *limitedListener) turnAway(c net.Conn, e *Error) {
	select {
	case l.farewells <- struct{}{}:
	default:
		_ = c.Close() // there are too many to talk to each
		return
	}
	go func() {
		defer func() { <-l.farewells }()
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(farewellTime)) // without one it has gone already
		r, err := http.ReadRequest(bufio.NewReaderSize(io.LimitReader(c, headerBytes), 1<<10))
		if err != nil {
			return // nobody asks
		}
		body := e.append(nil, r)
		head := fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: %d\r\nConnection: close\r\n\r\n",
			e.Refusal.Status, http.StatusText(e.Refusal.Status), len(body), retryAfter(e.RetryAfter))
		if _, err := io.WriteString(c, head+string(body)); err != nil {
			return
		}
		// A reset would take the answer from a client that is still sending.
		closeWrite(c)
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
	}()
}

// limitedConn is a connection that is counted until it is closed.
type limitedConn struct {
	*alarm.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite is what net/http looks for, to end an answer without a reset.
func (c *limitedConn) CloseWrite() error {
	closeWrite(c.Conn.Conn)
	return nil
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it has gone already
	}
}
