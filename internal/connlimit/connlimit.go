// Package connlimit bounds the connections of an http.Server, and evicts the longest-idle
// connection when a new one arrives and all are open.
//
// netutil.LimitListener of golang.org/x/net does not do: when its limit is reached it
// accepts no connection until one closes. A flood of connections on which nothing happens,
// which costs an attacker next to nothing (slowloris), would keep every client out for as
// long as it goes on. The timeouts of http.Server alone do not help, as each closed
// connection is opened again. Here such connections only evict each other.
package connlimit

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// Listener hands on the connections of another listener, with two bounds. A connection is
// idle while no request of it is being answered: it is new, or between two requests, or
// still sends the header of one.
//
// Its methods may be called by several goroutines.
type Listener struct {
	net.Listener
	maxConns       int
	maxHeaderBytes int
	counted        int64 // 1: in Count; 0: not

	mu          sync.Mutex // guards what follows, and the fields of every Conn
	changed     *sync.Cond // a connection became idle or closed, or the Listener closed
	open        int
	headerBytes int        // that the idle connections have sent
	idle        *list.List // of *Conn, the longest-idle one first
	closed      bool
}

// Listen bounds l to maxConns open connections. When all are open and one more arrives, the
// longest-idle one is closed; when none is idle, the new one waits. When the idle
// connections together have sent more than maxHeaderBytes, which are held in memory until
// the headers are complete, the longest-idle ones that have sent some are closed.
//
// ConnState of the server must be StateChanged.
func Listen(l net.Listener, maxConns, maxHeaderBytes int) *Listener {
	limited := &Listener{Listener: l, maxConns: maxConns, maxHeaderBytes: maxHeaderBytes, idle: list.New()}
	limited.changed = sync.NewCond(&limited.mu)
	return limited
}

// Counts are of all Listeners of the process that are Counted, since its start.
type Counts struct{ Open, Accepted, Evicted int64 }

var open, accepted, evicted atomic.Int64

// Count returns the counts. Evicted are connections that were closed to make room, for another one or for headers.
func Count() Counts { return Counts{open.Load(), accepted.Load(), evicted.Load()} }

// Counted makes l, before its first Accept, one whose connections are in Count, and returns it.
func (l *Listener) Counted() *Listener {
	l.counted = 1
	return l
}

// Accept implements net.Listener. Its connections are *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: conn, listener: l}
	l.mu.Lock()
	for l.open >= l.maxConns && !l.closed {
		oldest := l.idle.Front()
		if oldest == nil {
			l.changed.Wait()
			continue
		}
		l.evict(oldest.Value.(*Conn))
	}
	closed := l.closed
	if !closed {
		l.open++
		open.Add(l.counted)
		accepted.Add(l.counted)
		c.element = l.idle.PushBack(c)
	}
	l.mu.Unlock()
	if closed {
		_ = conn.Close()
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

// StateChanged is for http.Server.ConnState. It ignores connections of other listeners. TLS
// may be between the server and the connection.
func StateChanged(c net.Conn, state http.ConnState) {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	conn, ok := c.(*Conn)
	if !ok {
		return
	}
	l := conn.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case conn.closed:
	case state == http.StateIdle:
		l.setBusy(conn)
		conn.element = l.idle.PushBack(conn)
		l.changed.Signal()
	case state == http.StateActive:
		l.setBusy(conn)
	}
}

// setBusy takes c off the idle connections. l.mu is held.
func (l *Listener) setBusy(c *Conn) {
	if c.element == nil {
		return
	}
	l.idle.Remove(c.element)
	l.headerBytes -= c.headerBytes
	c.element, c.headerBytes = nil, 0
}

// evict closes c to make room. l.mu is held.
func (l *Listener) evict(c *Conn) {
	evicted.Add(l.counted)
	_ = l.closeLocked(c)
}

// closeLocked closes c once. l.mu is held.
func (l *Listener) closeLocked(c *Conn) error {
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	l.open--
	open.Add(-l.counted)
	l.setBusy(c)
	l.changed.Signal()
	return c.Conn.Close()
}

// Conn is a connection of a Listener.
type Conn struct {
	net.Conn
	listener *Listener

	element     *list.Element // of Listener.idle; nil: a request is being answered
	headerBytes int           // read since it became idle
	closed      bool
}

// NetConn returns the connection of the listener below.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.element == nil {
		return n, err
	}
	c.headerBytes += n
	l.headerBytes += n
	for e := l.idle.Front(); e != nil && l.headerBytes > l.maxHeaderBytes; {
		oldest := e.Value.(*Conn)
		e = e.Next()
		if oldest.headerBytes > 0 {
			l.evict(oldest)
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
