// Package connlimit bounds the connections of an http.Server. A flood of connections on
// which nothing happens keeps nobody out: a newcomer takes the place of the one that
// has waited longest.
package connlimit

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// Listener hands on the connections of another listener, with two bounds. A
// connection waits while no request of it is being answered: it is new, or between
// two requests, or still sends the header of one.
//
// Its methods may be called by several goroutines.
type Listener struct {
	net.Listener
	most     int // connections that are open at once
	mostHeld int // bytes that those that wait have sent

	mu      sync.Mutex // guards what follows, and the fields of every Conn
	changed *sync.Cond // a place is free, or a connection began to wait, or closed
	open    int
	held    int
	waiting *list.List // of *Conn, the one that has waited longest first
	closed  bool
}

// Listen bounds l to most connections. When all are open, a newcomer takes the place of
// the one that has waited longest, which is closed; when none waits, the newcomer waits
// for a place. When those that wait have sent more than mostHeld bytes, those that have
// waited longest with some of it are closed.
//
// ConnState of the server must be StateChanged.
func Listen(l net.Listener, most, mostHeld int) *Listener {
	d := &Listener{Listener: l, most: most, mostHeld: mostHeld, waiting: list.New()}
	d.changed = sync.NewCond(&d.mu)
	return d
}

// Accept implements net.Listener. Its connections are *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	newcomer, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: newcomer, listener: l}
	l.mu.Lock()
	for l.open >= l.most && !l.closed {
		oldest := l.waiting.Front()
		if oldest == nil {
			l.changed.Wait()
			continue
		}
		l.closeLocked(oldest.Value.(*Conn))
	}
	closed := l.closed
	if !closed {
		l.open++
		c.place = l.waiting.PushBack(c)
	}
	l.mu.Unlock()
	if closed {
		_ = newcomer.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Listener. It leaves the connections open.
func (l *Listener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
	return l.Listener.Close()
}

// StateChanged is for http.Server.ConnState. Connections of other listeners it leaves
// alone.
func StateChanged(c net.Conn, state http.ConnState) {
	d, ok := c.(*Conn)
	if !ok {
		return
	}
	l := d.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case d.closed:
	case state == http.StateIdle:
		l.leave(d)
		d.place = l.waiting.PushBack(d)
		l.changed.Signal()
	case state == http.StateActive:
		l.leave(d)
	}
}

// leave takes c off those that wait. l.mu is held.
func (l *Listener) leave(c *Conn) {
	if c.place == nil {
		return
	}
	l.waiting.Remove(c.place)
	l.held -= c.held
	c.place, c.held = nil, 0
}

// closeLocked closes c once, and frees its place. l.mu is held.
func (l *Listener) closeLocked(c *Conn) error {
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	l.open--
	l.leave(c)
	l.changed.Signal()
	return c.Conn.Close()
}

// Conn is a connection of a Listener.
type Conn struct {
	net.Conn
	listener *Listener

	place  *list.Element // among those that wait; nil: a request is under way
	held   int           // bytes read since it began to wait
	closed bool
}

// NetConn returns the connection of the listener below.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.place == nil {
		return n, err
	}
	c.held += n
	l.held += n
	for e := l.waiting.Front(); e != nil && l.held > l.mostHeld; {
		oldest := e.Value.(*Conn)
		e = e.Next()
		if oldest.held > 0 {
			_ = l.closeLocked(oldest)
		}
	}
	return n, err
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	return c.listener.closeLocked(c)
}
