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

// Listener hands on the connections of another listener, with two bounds, of which each remote
// host may have a quarter (Host, PerHost). A connection is idle while no request of it is being
// answered: it is new, or between two requests, or still sends the header of one.
//
// Its methods may be called by several goroutines.
type Listener struct {
	net.Listener
	maxConns       int
	maxHeaderBytes int
	counted        int64 // 1: in Count; 0: not

	mu      sync.Mutex       // guards what follows, and the fields of every Conn
	changed *sync.Cond       // a connection became idle or closed, or the Listener closed
	all     host             // the connections of all hosts
	hosts   map[string]*host // those of each host that Host names, while there are any
	closed  bool
}

// host is what a bound is of: the connections of one remote host, or all.
type host struct {
	open        int
	headerBytes int       // that the idle connections have sent
	idle        list.List // of *Conn, the longest-idle one first
}

// Listen bounds l to maxConns open connections. When all are open and one more arrives, the
// longest-idle one is closed; when none is idle, the new one waits. When a host has as many as
// one host may have, and one more arrives from it, its longest-idle one is closed; when none of
// them is idle, the new one is, as nobody else should wait for it. When the idle
// connections together have sent more than maxHeaderBytes, which are held in memory until
// the headers are complete, the longest-idle ones that have sent some are closed; those of one
// host alone, when they have sent as much as one host may.
//
// ConnState of the server must be StateChanged.
func Listen(l net.Listener, maxConns, maxHeaderBytes int) *Listener {
	limited := &Listener{Listener: l, maxConns: maxConns, maxHeaderBytes: maxHeaderBytes,
		hosts: make(map[string]*host)}
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
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, err := l.admit(conn); c != nil || err != nil {
			return c, err
		}
	}
}

// admit makes room for conn. It returns nil, and has closed conn, if its host has no room left.
func (l *Listener) admit(conn net.Conn) (net.Conn, error) {
	c := &Conn{Conn: conn, listener: l, remote: Host(conn.RemoteAddr().String())}
	l.mu.Lock()
	defer l.mu.Unlock()
	if of := l.hosts[c.remote]; of != nil && of.open >= PerHost(l.maxConns) {
		oldest := of.idle.Front()
		if oldest == nil {
			evicted.Add(l.counted)
			_ = conn.Close()
			return nil, nil
		}
		l.evict(oldest.Value.(*Conn))
	}
	for l.all.open >= l.maxConns && !l.closed {
		oldest := l.all.idle.Front()
		if oldest == nil {
			l.changed.Wait()
			continue
		}
		l.evict(oldest.Value.(*Conn))
	}
	if l.closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	c.bounds = []*host{&l.all}
	if c.remote != "" {
		if l.hosts[c.remote] == nil {
			l.hosts[c.remote] = new(host)
		}
		c.bounds = append(c.bounds, l.hosts[c.remote])
	}
	for _, of := range c.bounds {
		of.open++
	}
	open.Add(l.counted)
	accepted.Add(l.counted)
	l.setIdle(c)
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
		l.setIdle(conn)
		l.changed.Signal()
	case state == http.StateActive:
		l.setBusy(conn)
	}
}

// setIdle makes c the last of the idle connections. l.mu is held.
func (l *Listener) setIdle(c *Conn) {
	for i, of := range c.bounds {
		c.elements[i] = of.idle.PushBack(c)
	}
}

// setBusy takes c off the idle connections. l.mu is held.
func (l *Listener) setBusy(c *Conn) {
	if c.elements[0] == nil {
		return
	}
	for i, of := range c.bounds {
		of.idle.Remove(c.elements[i])
		of.headerBytes -= c.headerBytes
	}
	c.elements, c.headerBytes = [2]*list.Element{}, 0
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
	open.Add(-l.counted)
	l.setBusy(c)
	for _, of := range c.bounds {
		of.open--
	}
	if len(c.bounds) > 1 && c.bounds[1].open == 0 {
		delete(l.hosts, c.remote)
	}
	l.changed.Signal()
	return c.Conn.Close()
}

// Conn is a connection of a Listener.
type Conn struct {
	net.Conn
	listener *Listener
	remote   string  // as of Host
	bounds   []*host // all, and that of remote unless it is empty

	elements    [2]*list.Element // of the idle ones of all and of its host; nil: a request is being answered
	headerBytes int              // read since it became idle
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
	if c.elements[0] == nil {
		return n, err
	}
	c.headerBytes += n
	for _, of := range c.bounds {
		of.headerBytes += n
	}
	for i, of := range c.bounds {
		limit := l.maxHeaderBytes
		if i > 0 {
			limit = PerHost(limit)
		}
		for e := of.idle.Front(); e != nil && of.headerBytes > limit; {
			oldest := e.Value.(*Conn)
			e = e.Next()
			if oldest.headerBytes > 0 {
				l.evict(oldest)
			}
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
