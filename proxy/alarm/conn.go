package alarm

import (
	"net"
	"sync"
	"time"
)

// Conn is a connection whose deadlines are alarms of a Clock. Reads and writes
// are the connection's own.
type Conn struct {
	net.Conn
	read, write deadline
}

// deadline is one of a connection's two.
type deadline struct {
	mu     sync.Mutex
	alarm  *Alarm
	set    func(time.Time) error // the connection's own
	by     time.Time             // zero: no limit
	passed bool                  // the connection knows that its time is over
	closed bool
}

// NewConn returns a connection with deadlines of the clock's.
func (c *Clock) NewConn(conn net.Conn) *Conn {
	limited := &Conn{Conn: conn}
	limited.read.bind(c, conn.SetReadDeadline)
	limited.write.bind(c, conn.SetWriteDeadline)
	return limited
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.read.move(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.write.move(t) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.read.move(t); err != nil {
		return err
	}
	return c.write.move(t)
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.read.stop()
	c.write.stop()
	return c.Conn.Close()
}

func (d *deadline) bind(c *Clock, set func(time.Time) error) {
	d.set, d.alarm = set, c.New(d.ring)
}

func (d *deadline) move(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	d.by = t
	switch {
	case t.IsZero():
		d.alarm.Stop()
	case time.Until(t) > 0:
		d.alarm.Set(t)
	default:
		d.alarm.Stop()
		d.passed = true
		return d.set(t)
	}
	if !d.passed {
		return nil
	}
	d.passed = false
	return d.set(time.Time{})
}

// ring ends what the connection waits for, unless it was given more time just
// now.
func (d *deadline) ring() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed && !d.by.IsZero() && time.Until(d.by) <= 0 {
		d.passed = d.set(d.by) == nil
	}
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.alarm.Stop()
}
