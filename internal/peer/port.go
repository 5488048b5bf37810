package peer

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/connlimit"
)

// Bounds of what anybody may send who reaches the raft port.
const (
	// maxPending bounds the connections whose preface is still awaited. A further one
	// takes the place of the oldest: a flood of silent ones keeps no member out.
	maxPending = 256
	// maxCalls bounds the connections of node-to-node HTTP calls, and maxCallBytes
	// what those of them have sent that wait (package door).
	maxCalls     = 1024
	maxCallBytes = 16 << 20
)

// Port is the raft port of one node. It outlives the raft instances that use it
// one after the other: a node that is adopted gets a new one.
type Port struct {
	// Dial makes every connection to another node. It may be replaced before Serve
	// and Stream.
	Dial Dialer

	header   time.Duration // how long a call may take to send its header
	listener net.Listener
	address  string
	logf     func(format string, args ...any)
	client   *http.Client
	server   *http.Server
	calls    *queue                     // connections of node-to-node HTTP calls, to server
	term     func(nodeID string) uint64 // of Serve

	mu      sync.Mutex // guards what follows
	cluster ClusterID
	stream  *stream              // of the present raft instance; nil between two
	open    *list.List           // of net.Conn: accepted, and not yet handed on; the oldest first
	logged  map[string]time.Time // remote host: when a refusal was last logged
	closed  bool

	done sync.WaitGroup // the accept loop, the server, one for each awaited preface and each connection for terms
}

// Listen opens the raft port. logf prints a refused connection, at most one line
// a second for each remote host; it may be called by several goroutines.
func Listen(address string, logf func(format string, args ...any)) (*Port, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	p := &Port{
		Dial:     dialTCP,
		listener: listener,
		address:  listener.Addr().String(),
		logf:     logf,
		header:   10 * time.Second,
		open:     list.New(),
		logged:   make(map[string]time.Time),
	}
	// A name given by the operator stays a name: other nodes resolve it anew.
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" && net.ParseIP(host) == nil {
		_, port, _ := net.SplitHostPort(p.address)
		p.address = net.JoinHostPort(host, port)
	}
	p.calls = newQueue(listener.Addr())
	p.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dial(ctx, p.Dial, address, magicHTTP, p.ClusterID())
		},
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
	}}
	return p, nil
}

// Address is where other nodes reach this port: host:port.
func (p *Port) Address() string { return p.address }

// ClusterID is the cluster that this node belongs to.
func (p *Port) ClusterID() ClusterID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cluster
}

// SetClusterID makes this the port of a member of that cluster. Streams of the
// former one must have been closed (see Stream).
func (p *Port) SetClusterID(id ClusterID) {
	p.mu.Lock()
	p.cluster = id
	p.mu.Unlock()
	p.client.CloseIdleConnections() // their preface carries the former ID
}

// Serve starts to accept connections; handler answers node-to-node HTTP calls, and
// term says in which term the node with that ID is, 0 if it is not this one. It returns
// at once. Close ends it.
func (p *Port) Serve(handler http.Handler, term func(nodeID string) uint64) {
	p.term = term
	p.server = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: p.header,
		ReadTimeout:       p.header,        // a call has no body: who announces one and does not send it is let go
		WriteTimeout:      2 * time.Minute, // longer than any call takes
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         connlimit.StateChanged,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, c.(*connlimit.Conn).NetConn().(*conn).cluster)
		},
	}
	p.done.Add(2)
	go func() {
		defer p.done.Done()
		_ = p.server.Serve(connlimit.Listen(p.calls, maxCalls, maxCallBytes)) // ends with Close, which is the only reason
	}()
	go func() {
		defer p.done.Done()
		p.accept()
	}()
}

type callerKey struct{}

// Caller is the cluster ID in the preface of the connection that r came by. It
// is for handlers given to Serve.
func Caller(r *http.Request) ClusterID {
	id, _ := r.Context().Value(callerKey{}).(ClusterID)
	return id
}

// Client makes node-to-node HTTP calls to http://<address of a raft port>/….
func (p *Port) Client() *http.Client { return p.client }

// Stream attaches a raft instance to the port: the streams of members go to it
// until it is closed, which closes them all and leaves the port open.
func (p *Port) Stream() raft.StreamLayer {
	s := &stream{port: p, queue: newQueue(p.listener.Addr()), conns: make(map[net.Conn]string)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	p.stream = s
	p.mu.Unlock()
	return s
}

// CloseStreams closes every connection of the raft instance that was dialed to
// address. Raft credits an acknowledgement to the ID of a member: one that comes late
// must not count for a member that was removed and came back.
func (p *Port) CloseStreams(address string) {
	p.mu.Lock()
	s := p.stream
	p.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, dialed := range s.conns {
		if dialed == address {
			_ = c.Close()
		}
	}
}

// Close closes the port and every connection of it, and returns when its
// goroutines have ended. It may be called twice.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	s := p.stream
	for e := p.open.Front(); e != nil; e = e.Next() {
		_ = e.Value.(net.Conn).Close()
	}
	p.mu.Unlock()

	err := p.listener.Close()
	if s != nil {
		_ = s.Close()
	}
	_ = p.calls.Close()
	if p.server != nil {
		_ = p.server.Close()
	}
	p.client.CloseIdleConnections()
	p.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Port) accept() {
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, for instance: it may pass
			p.refused("raft port", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = c.Close()
			continue
		}
		if p.open.Len() >= maxPending {
			_ = p.open.Remove(p.open.Front()).(net.Conn).Close()
		}
		place := p.open.PushBack(c)
		p.done.Add(1)
		p.mu.Unlock()
		go func() {
			defer p.done.Done()
			err := p.admit(c)
			p.mu.Lock()
			p.open.Remove(place) // nothing, if a newcomer took it
			p.mu.Unlock()
			if err != nil {
				_ = c.Close()
			}
			if err != nil && !errors.Is(err, errDetached) {
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				p.refused(host, err)
			}
		}()
	}
}

// admit reads the preface of c and hands c to whom it is for.
func (p *Port) admit(c net.Conn) error {
	magic, cluster, err := readPreface(c)
	if err != nil {
		return fmt.Errorf("preface: %w", err)
	}
	p.mu.Lock()
	own, s := p.cluster, p.stream
	p.mu.Unlock()

	to := p.calls
	if magic != magicHTTP {
		if cluster != own {
			_, _ = c.Write([]byte{foreign})
			return fmt.Errorf("cluster %s is not this node's %s", cluster, own)
		}
		if s == nil {
			return errDetached
		}
		to = s.queue
	}
	if _, err := c.Write([]byte{accepted}); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	var handed net.Conn = &conn{Conn: c, cluster: cluster}
	if magic != magicHTTP {
		if handed = s.track(handed, ""); handed == nil {
			return errDetached
		}
	}
	if magic == magicTerm {
		p.done.Go(func() { p.answerTerms(handed) })
		return nil
	}
	if !to.put(handed) {
		return errDetached
	}
	return nil
}

// errDetached is returned when a connection comes while no raft instance uses
// the port: at the end, and while a node is adopted. The caller dials again.
var errDetached = errors.New("no raft instance uses the port")

// refused logs at most once a second for each remote host.
func (p *Port) refused(remote string, err error) {
	now := time.Now()
	p.mu.Lock()
	recent := now.Sub(p.logged[remote]) < time.Second
	if !recent {
		if len(p.logged) > 1024 { // a scan from many hosts: forget, rather than grow
			clear(p.logged)
		}
		p.logged[remote] = now
	}
	closed := p.closed
	p.mu.Unlock()
	if !recent && !closed {
		p.logf("refused a connection to the raft port from %s: %v", remote, err)
	}
}

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

// Dial implements raft.StreamLayer.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	return s.dial(ctx, string(address), magicRaft)
}

func (s *stream) dial(ctx context.Context, address string, magic byte) (net.Conn, error) {
	c, err := dial(ctx, s.port.Dial, address, magic, s.port.ClusterID())
	if err != nil {
		return nil, err
	}
	if t := s.track(c, address); t != nil {
		return t, nil
	}
	_ = c.Close()
	return nil, net.ErrClosed
}

// Addr implements net.Listener; raft takes its own address from it.
func (s *stream) Addr() net.Addr { return address(s.port.address) }

// Close ends Accept, closes every connection of this raft instance, and detaches
// it from the port, which stays open.
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

// track makes Close of the stream close c too; it returns nil when the stream is
// closed already.
func (s *stream) track(c net.Conn, dialed string) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.conns[c] = dialed
	return &tracked{Conn: c, stream: s}
}

type tracked struct {
	net.Conn
	stream *stream
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

// address is a net.Addr that prints as what the operator gave.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
