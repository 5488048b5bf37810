package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/connlimit"
)

// stream is raft's StreamLayer over the port, for one raft instance.
type stream struct {
	*queue
	port   *Port
	ctx    context.Context // ends with Close, and dialing with it
	cancel context.CancelFunc

	mu     sync.Mutex          // guards what follows
	conns  map[net.Conn]string // to the address that was dialed; "" for an accepted one
	closed bool
}

// Dial implements raft.StreamLayer. The address is a Target: raft credits what comes over the connection to the member
// that it has dialed, whoever answers, so it must be that member. Otherwise the error is an AnotherNodeError.
//
// A node of an older program closes a connection with a preface that it does not know. Only when the member itself
// reports that it is of such a program (Port.Older) is it dialed by the older preface, by which it can't be known that
// the same node answers.
func (s *stream) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, address, ok := splitTarget(target)
	if !ok {
		return nil, fmt.Errorf("connect to %s: it is not known which node is meant", target)
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	named := preface{magic: magicNamed, cluster: s.port.ClusterID(), to: id, from: s.port.NodeID}
	c, err := s.dial(ctx, address, named)
	if errors.Is(err, ErrNotRaftkv) && s.port.Older != nil && !s.port.requiresNamed() && s.port.Older(ctx, id, address) {
		return s.dial(ctx, address, preface{magic: magicRaft, cluster: named.cluster})
	}
	return c, err
}

func (s *stream) dial(ctx context.Context, address string, p preface) (net.Conn, error) {
	c, err := dial(ctx, s.port.dialSecure, address, p)
	if err != nil {
		return nil, err
	}
	t := s.track(c, address)
	if t == nil {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	if s.port.outdated(c) {
		_ = t.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, errOutdated)
	}
	return t, nil
}

// Addr implements net.Listener; raft takes its own address from it.
func (s *stream) Addr() net.Addr { return address(s.port.address) }

// Close ends Accept, closes every connection of this raft instance, and detaches it from the port, which stays open.
func (s *stream) Close() error {
	s.cancel()
	s.port.mu.Lock()
	if s.port.stream == s {
		s.port.stream = nil
	}
	s.port.mu.Unlock()

	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	return s.queue.Close()
}

// closeIf closes every connection for which the condition holds; dialed is as in conns.
func (s *stream) closeIf(condition func(c net.Conn, dialed string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, dialed := range s.conns {
		if condition(c, dialed) {
			_ = c.Close()
		}
	}
}

// track makes Close of the stream close c too; it returns nil when the stream is closed already. An accepted connection
// may evict another one: see maxStreams.
func (s *stream) track(c net.Conn, dialed string) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if accepted, ok := c.(*conn); ok {
		s.evict(accepted)
	}
	s.conns[c] = dialed
	return &tracked{Conn: c, stream: s}
}

// evict makes room for an accepted connection. s.mu is held.
func (s *stream) evict(next *conn) {
	limit := connlimit.OfFiles(maxStreams, 1, 8)
	host := connlimit.Host(next.RemoteAddr().String())
	var silent, silentOfHost *conn
	count, ofHost := 0, 0
	for c := range s.conns {
		accepted, ok := c.(*conn)
		if !ok {
			continue
		}
		count++
		if silent == nil || accepted.heard.Load() < silent.heard.Load() {
			silent = accepted
		}
		if host == "" || connlimit.Host(accepted.RemoteAddr().String()) != host {
			continue
		}
		ofHost++
		if silentOfHost == nil || accepted.heard.Load() < silentOfHost.heard.Load() {
			silentOfHost = accepted
		}
	}
	switch {
	case ofHost >= connlimit.PerHost(limit):
		silent = silentOfHost
	case count < limit:
		return
	}
	delete(s.conns, silent)
	_ = silent.Close()
}

// tracked is a connection that its stream closes with itself.
type tracked struct {
	net.Conn
	stream *stream
}

// dialedBy returns the ID of the node that has dialed c, which its stream has accepted; empty: the preface does not
// have it.
func dialedBy(c net.Conn) string {
	if t, ok := c.(*tracked); ok {
		c = t.Conn
	}
	if accepted, ok := c.(*conn); ok {
		return accepted.from
	}
	return ""
}

func (t *tracked) Close() error {
	t.stream.mu.Lock()
	delete(t.stream.conns, t.Conn)
	t.stream.mu.Unlock()
	return t.Conn.Close()
}

// queue is a net.Listener whose connections are put into it.
type queue struct {
	conns chan net.Conn
	addr  net.Addr
	once  sync.Once
	done  chan struct{}
}

func newQueue(addr net.Addr) *queue {
	return &queue{conns: make(chan net.Conn), addr: addr, done: make(chan struct{})}
}

// put hands c to Accept; it returns false when the queue is closed.
func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }

// address is a net.Addr that prints as the operator gave it.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
