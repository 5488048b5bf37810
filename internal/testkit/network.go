package testkit

import (
	"bytes"
	"context"
	"net"
	"sync"
	"syscall"
	"testing"
)

// Network carries the connections that nodes open to each other. A node has a name;
// Place says at which address others reach it. An address that was not placed is
// never cut or held. Its methods may be called by several goroutines.
type Network struct {
	pumps sync.WaitGroup // two goroutines for each direction of a connection

	mu      sync.Mutex        // guards what follows, and the lanes of all conns
	names   map[string]string // by address
	cut     map[way]bool
	held    map[way]bool
	conns   map[*conn]struct{}
	arrived uint64 // chunks so far: each has its number
	closed  bool
}

// way is one direction between two nodes, by name.
type way struct{ from, to string }

// New returns a network without nodes. The end of t closes it and all of its
// connections: nodes that use it must be stopped by then, so call it before they are
// opened.
func New(t testing.TB) *Network {
	n := &Network{
		names: make(map[string]string),
		cut:   make(map[way]bool),
		held:  make(map[way]bool),
		conns: make(map[*conn]struct{}),
	}
	t.Cleanup(n.close)
	return n
}

func (n *Network) close() {
	n.mu.Lock()
	n.closed = true
	for c := range n.conns {
		c.sever()
	}
	n.mu.Unlock()
	n.pumps.Wait()
}

// Place names the node that listens at address, also for connections that are there
// already.
func (n *Network) Place(name, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[address] = name
}

// Dialer returns how the node of that name connects to others, over TCP.
func (n *Network) Dialer(name string) func(ctx context.Context, address string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		if n.refuses(name, address) {
			return nil, refused()
		}
		far, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		node, near := net.Pipe()
		c := &conn{network: n, from: name, address: address, near: near, far: far}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.closed || n.cut[c.forth()] {
			_ = far.Close()
			return nil, refused()
		}
		n.conns[c] = struct{}{}
		c.lanes[0], c.lanes[1] = n.lane(near, far), n.lane(far, near)
		for i := range c.lanes {
			n.pumps.Go(func() { c.take(i) })
			n.pumps.Go(func() { c.give(i) })
		}
		return end{node, far}, nil
	}
}

func refused() error { return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED} }

func (n *Network) refuses(from, address string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed || n.cut[way{from, n.names[address]}]
}

// Cut breaks the connections that from has opened to to, both directions of them
// and with all bytes on their way, and refuses new ones. Those that to has opened to
// from live on: Cut the other way too for a full cut.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[way{from, to}] = true
	for c := range n.conns {
		if c.forth() == (way{from, to}) {
			c.sever()
		}
	}
}

// Isolate cuts all links of a node, both ways.
func (n *Network) Isolate(name string) {
	n.mu.Lock()
	others := make(map[string]struct{})
	for _, other := range n.names {
		others[other] = struct{}{}
	}
	n.mu.Unlock()
	delete(others, name)
	for other := range others {
		n.Cut(name, other)
		n.Cut(other, name)
	}
}

// Hold keeps what from sends to to on its way, whoever opened the connection, also
// the news that it was closed: requests of from, and its answers to to. Senders do
// not notice. The other direction flows on. What is held arrives with Deliver or
// Heal, in order, and also when the sender has closed the connection meanwhile.
func (n *Network) Hold(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[way{from, to}] = true
}

// Held is how many chunks are held between from and to. One write is one chunk,
// unless several came at once.
func (n *Network) Held(from, to string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.waiting(way{from, to}))
}

// Deliver lets the oldest count chunks pass that are held between from and to, over
// all connections; the rest stays held.
func (n *Network) Deliver(from, to string, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range count {
		var oldest *chunk
		for _, waits := range n.waiting(way{from, to}) {
			if oldest == nil || waits.number < oldest.number {
				oldest = waits
			}
		}
		if oldest == nil {
			break
		}
		oldest.free = true
	}
	n.wake()
}

// waiting returns the chunks that are held in that direction. The caller has mu.
func (n *Network) waiting(w way) (all []*chunk) {
	if !n.held[w] {
		return nil
	}
	for c := range n.conns {
		for i := range c.lanes {
			if c.way(i) != w {
				continue
			}
			for _, waits := range c.lanes[i].chunks {
				if !waits.free {
					all = append(all, waits)
				}
			}
		}
	}
	return all
}

// Heal ends every Cut and Hold: what was held arrives.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.held)
	n.wake()
}

// wake makes every lane look again whether a chunk may pass. The caller has mu.
func (n *Network) wake() {
	for c := range n.conns {
		for i := range c.lanes {
			c.lanes[i].changed.Signal()
		}
	}
}

// conn is one connection: the node that opened it has the other end of near, far is
// TCP to the other node.
type conn struct {
	network   *Network
	from      string // name of the node that opened it
	address   string // that it opened it to
	near, far net.Conn
	lanes     [2]lane // there and back
	severed   bool
}

// lane is one direction of a connection.
type lane struct {
	src, dst net.Conn
	changed  *sync.Cond // give waits for it
	chunks   []*chunk
	over     bool // nothing arrives any more at dst
}

func (n *Network) lane(src, dst net.Conn) lane {
	return lane{src: src, dst: dst, changed: sync.NewCond(&n.mu)}
}

// chunk is what one read of the sender's bytes has brought; nil bytes: it has closed.
type chunk struct {
	bytes  []byte
	number uint64
	free   bool // passes although the way is held
}

func (c *conn) forth() way { return way{c.from, c.network.names[c.address]} }

func (c *conn) way(i int) way {
	w := c.forth()
	if i == 1 {
		return way{w.to, w.from}
	}
	return w
}

// sever breaks the connection at once. The caller has mu.
func (c *conn) sever() {
	c.severed = true
	c.lanes[0].changed.Signal()
	c.lanes[1].changed.Signal()
	_ = c.near.Close()
	_ = c.far.Close()
}

// take reads what the sender of a lane sends.
func (c *conn) take(i int) {
	n, l := c.network, &c.lanes[i]
	buffer := make([]byte, 64<<10)
	for {
		count, err := l.src.Read(buffer)
		n.mu.Lock()
		if count > 0 {
			n.arrive(l, bytes.Clone(buffer[:count]))
		}
		if err != nil {
			n.arrive(l, nil)
		}
		n.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (n *Network) arrive(l *lane, bytes []byte) {
	if l.over {
		return
	}
	n.arrived++
	l.chunks = append(l.chunks, &chunk{bytes: bytes, number: n.arrived})
	l.changed.Signal()
}

// give writes to the receiver of a lane what may pass.
func (c *conn) give(i int) {
	l := &c.lanes[i]
	for next := c.next(i); next != nil; next = c.next(i) {
		if _, err := l.dst.Write(next); err != nil {
			break
		}
	}
	_ = l.dst.Close()
	n := c.network
	n.mu.Lock()
	defer n.mu.Unlock()
	l.chunks, l.over = nil, true
	if c.lanes[0].over && c.lanes[1].over {
		c.sever()
		delete(n.conns, c)
	}
}

// next waits for bytes that may pass; nil: the lane has ended.
func (c *conn) next(i int) []byte {
	n, l := c.network, &c.lanes[i]
	n.mu.Lock()
	defer n.mu.Unlock()
	for !c.severed {
		if len(l.chunks) > 0 && (l.chunks[0].free || !n.held[c.way(i)]) {
			first := l.chunks[0]
			l.chunks = l.chunks[1:]
			return first.bytes
		}
		l.changed.Wait()
	}
	return nil
}

// end is a pipe with the addresses of the TCP connection that it stands for.
type end struct {
	net.Conn
	tcp net.Conn
}

func (e end) LocalAddr() net.Addr  { return e.tcp.LocalAddr() }
func (e end) RemoteAddr() net.Addr { return e.tcp.RemoteAddr() }
