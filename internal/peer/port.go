package peer

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/certs"
	"raftkv/internal/connlimit"
)

// Whoever reaches the raft port, a member or not, can open connections to it and send bytes: these bound both.
const (
	// maxPending bounds the connections whose preface is awaited. A further one evicts the oldest, so that a flood of
	// silent ones keeps no member out; one from a host that has a quarter of them, the oldest of that host.
	maxPending = 256
	// maxStreams bounds the raft streams and the connections for terms. A further one evicts the one that has been
	// silent for longest, as maxPending does: members send heartbeats.
	maxStreams = 256
	// maxCalls bounds the connections of node-to-node HTTP calls, and maxCallBytes the bytes of unfinished headers
	// that are held for them (package connlimit).
	maxCalls     = 1024
	maxCallBytes = 16 << 20
	// maxForwards bounds the idle connections that are kept to the leader for requests of clients.
	maxForwards = 128
)

// Port is the raft port of one node. It outlives the raft instances that use it one after the other: a node that is
// adopted gets a new one.
type Port struct {
	// NodeID is the ID of this node. It is set before Serve and Stream.
	NodeID string
	// Dial makes every connection to another node. It may be replaced before Serve and Stream.
	Dial Dialer
	// Older reports, within ctx, whether the member with that ID answers at address and is of a program that does not
	// know the preface with node IDs. It is set before Stream; nil: there is no such member.
	Older func(ctx context.Context, nodeID, address string) bool

	certs    *certs.Node   // of Secure; nil: plain TCP
	header   time.Duration // the limit for a call to send its header
	listener net.Listener
	address  string
	links    *links // of EnableLab; nil: the lab is off
	logf     func(format string, args ...any)
	client   *http.Client
	forward  *http.Client // of ForwardClient
	pools    [2]*pool     // of client and of forward
	server   *http.Server
	calls    *queue                     // connections of node-to-node HTTP calls, to server
	term     func(nodeID string) uint64 // of Serve

	mu      sync.Mutex // guards what follows
	cluster ClusterID
	named   bool                 // of RequireNamed
	stream  *stream              // of the present raft instance; nil between two
	pending *list.List           // of net.Conn: accepted, with the preface awaited; the oldest first
	logged  map[string]time.Time // remote host: when a refusal was last logged
	closed  bool

	// done waits for the accept loop, the server, each awaited preface, and each connection for terms.
	done sync.WaitGroup

	open, accepted, refusals atomic.Int64 // of Counts
}

// Counts are of the connections that other nodes have opened to a port, and whoever else does.
type Counts struct {
	Open     int64 // now
	Accepted int64 // since Listen, also those that were refused then
	Refused  int64 // of these, since Listen: for their certificate or preface, or because it did not come
}

// Counts returns how many connections there are and were.
func (p *Port) Counts() Counts { return Counts{p.open.Load(), p.accepted.Load(), p.refusals.Load()} }

// counted is an accepted connection.
type counted struct {
	net.Conn
	port *Port
	once sync.Once
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(func() { c.port.open.Add(-1) })
	return c.Conn.Close()
}

// Listen opens the raft port. logf prints a refused connection, at most one line a second for each remote host; it
// may be called by several goroutines.
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
		pending:  list.New(),
		logged:   make(map[string]time.Time),
	}
	// A name that the operator gave stays a name: other nodes resolve it anew.
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" && net.ParseIP(host) == nil {
		_, port, _ := net.SplitHostPort(p.address)
		p.address = net.JoinHostPort(host, port)
	}
	p.calls = newQueue(listener.Addr())
	p.pools = [2]*pool{p.newPool(4), p.newPool(maxForwards)}
	p.client, p.forward = &http.Client{Transport: p.pools[0]}, &http.Client{Transport: p.pools[1]}
	return p, nil
}

// pool is the connections for calls to other nodes. It may be used by several goroutines at once.
type pool struct {
	port      *Port
	transport atomic.Pointer[http.Transport] // another with each cluster ID
	open      func() *http.Transport
}

func (p *Port) newPool(maxIdle int) *pool {
	c := &pool{port: p, open: func() *http.Transport {
		return &http.Transport{
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return dial(ctx, p.dialSecure, address, preface{magic: magicHTTP, cluster: p.ClusterID()})
			},
			MaxIdleConnsPerHost:   maxIdle,
			IdleConnTimeout:       30 * time.Second, // less than that of a server: see Serve
			ExpectContinueTimeout: p.header,
			DisableCompression:    true,
		}
	}}
	c.transport.Store(c.open())
	return c
}

// RoundTrip implements http.RoundTripper.
func (c *pool) RoundTrip(r *http.Request) (*http.Response, error) {
	return c.transport.Load().RoundTrip(c.port.signed(r))
}

// CloseIdleConnections is that of http.Client.
func (c *pool) CloseIdleConnections() { c.transport.Load().CloseIdleConnections() }

// renew has no call use again a connection that is there: its preface carries a former cluster ID. That holds also for
// those that a call uses now and that become idle later.
func (c *pool) renew() { c.transport.Swap(c.open()).CloseIdleConnections() }

// Address is where other nodes reach this port: host:port.
func (p *Port) Address() string { return p.address }

// Advertise makes address that of Address: host:port, or a host with the port that is listened on. It is for a node
// that others reach elsewhere than where it listens. It is called before Serve and Stream; empty: it changes nothing.
func (p *Port) Advertise(address string) {
	if address == "" {
		return
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		_, port, _ := net.SplitHostPort(p.address)
		address = net.JoinHostPort(address, port)
	}
	p.address = address
}

// ClusterID is the cluster that this node belongs to.
func (p *Port) ClusterID() ClusterID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cluster
}

// SetClusterID makes this the port of a member of that cluster. Streams of the former one must have been closed (see
// Stream).
func (p *Port) SetClusterID(id ClusterID) {
	p.mu.Lock()
	p.cluster = id
	p.mu.Unlock()
	for _, pool := range p.pools {
		pool.renew()
	}
}

// RequireNamed sets whether raft streams whose preface does not name the node that is meant are refused; those that are
// open are closed. They come from programs that do not know the preface with node IDs, and may be meant for another
// node. It is for when no member is of such a program any more. At first they are not refused.
func (p *Port) RequireNamed(required bool) {
	p.mu.Lock()
	p.named = required
	s := p.stream
	p.mu.Unlock()
	if s != nil && required {
		s.closeIf(func(c net.Conn, _ string) bool {
			accepted, ok := c.(*conn)
			return ok && accepted.magic == magicRaft
		})
	}
}

func (p *Port) requiresNamed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.named
}

// Serve starts to accept connections; handler answers node-to-node HTTP calls, and term returns the term of the node
// with that ID, 0 if it is not this one. Serve returns at once. Close ends it.
func (p *Port) Serve(handler http.Handler, term func(nodeID string) uint64) {
	p.term = term
	p.server = &http.Server{
		Handler:           p.verified(p.lab(handler)),
		ReadHeaderTimeout: p.header,
		ReadTimeout:       p.header,        // a call has no body, but for /forward, which sets its own limit
		WriteTimeout:      2 * time.Minute, // longer than any call takes
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         connlimit.StateChanged,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			ctx = context.WithValue(ctx, linkKey{}, linkOf(c))
			return context.WithValue(ctx, callerKey{}, c.(*connlimit.Conn).NetConn().(*conn))
		},
	}
	p.done.Add(2)
	go func() {
		defer p.done.Done()
		_ = p.server.Serve(connlimit.Listen(p.calls, connlimit.OfFiles(maxCalls, 1, 8), maxCallBytes)) // until Close
	}()
	go func() {
		defer p.done.Done()
		p.accept()
	}()
}

type callerKey struct{}

// Caller is the cluster ID in the preface of the connection that r came by. It is for handlers given to Serve.
func Caller(r *http.Request) ClusterID {
	if c, ok := r.Context().Value(callerKey{}).(*conn); ok {
		return c.cluster
	}
	return ClusterID{}
}

// Client makes node-to-node HTTP calls to http://<address of a raft port>/….
func (p *Port) Client() *http.Client { return p.client }

// ForwardClient is Client for many calls at once to one node, the requests that are sent on to the leader. A body of a
// call that has "Expect: 100-continue" is read only when it is asked for, for as long as any header may take to come.
func (p *Port) ForwardClient() *http.Client { return p.forward }

// Stream attaches a raft instance to the port: the streams of members go to it until it is closed, which closes them
// all and leaves the port open.
func (p *Port) Stream() raft.StreamLayer {
	s := &stream{port: p, queue: newQueue(p.listener.Addr()), conns: make(map[net.Conn]string)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	p.stream = s
	p.mu.Unlock()
	return s
}

// CloseStreams closes every connection of the raft instance that was dialed to address, for whichever node. Raft
// credits an acknowledgement to the ID of a member: one that comes late must not count for a member that was removed
// and came back.
func (p *Port) CloseStreams(address string) {
	p.mu.Lock()
	s := p.stream
	p.mu.Unlock()
	if s == nil {
		return
	}
	s.closeIf(func(_ net.Conn, dialed string) bool { return dialed == address })
}

// Close closes the port and every connection of it, and returns when its goroutines have ended. It may be called
// twice.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	s := p.stream
	for e := p.pending.Front(); e != nil; e = e.Next() {
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
	for _, pool := range p.pools {
		pool.CloseIdleConnections()
	}
	p.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept admits connections until the listener is closed.
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
		p.open.Add(1)
		p.accepted.Add(1)
		c = &counted{Conn: c, port: p}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = c.Close()
			continue
		}
		p.evictPending(c)
		pending := p.pending.PushBack(c)
		p.done.Add(1)
		p.mu.Unlock()
		go func() {
			defer p.done.Done()
			err := p.admit(c)
			p.mu.Lock()
			p.pending.Remove(pending) // does nothing after an eviction
			p.mu.Unlock()
			if err != nil {
				_ = c.Close()
			}
			if err != nil && !errors.Is(err, errDetached) && !errors.Is(err, errCutOff) {
				p.refusals.Add(1)
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				p.refused(host, err)
			}
		}()
	}
}

// evictPending makes room for c among the connections whose preface is awaited. p.mu is held.
func (p *Port) evictPending(c net.Conn) {
	limit := connlimit.OfFiles(maxPending, 1, 16)
	host := connlimit.Host(c.RemoteAddr().String())
	var oldest *list.Element // of the host
	count := 0
	for e := p.pending.Back(); e != nil && host != ""; e = e.Prev() {
		if connlimit.Host(e.Value.(net.Conn).RemoteAddr().String()) == host {
			oldest = e
			count++
		}
	}
	switch {
	case count >= connlimit.PerHost(limit):
	case p.pending.Len() >= limit:
		oldest = p.pending.Front()
	default:
		return
	}
	_ = p.pending.Remove(oldest).(net.Conn).Close()
}

// admit shakes hands over c, reads its preface and hands c to the server, to raft, or to answerTerms.
func (p *Port) admit(c net.Conn) (err error) {
	if c, err = p.secure(c); err != nil {
		return err
	}
	hello, err := readPreface(c)
	if err != nil {
		return fmt.Errorf("preface: %w", err)
	}
	if c, err = p.arrived(c, hello.from); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	p.mu.Lock()
	own, s := p.cluster, p.stream
	p.mu.Unlock()

	to := p.calls
	if hello.magic != magicHTTP {
		switch {
		case hello.cluster != own:
			_, _ = c.Write(hello.appendAnswer(nil, foreign, p.NodeID))
			return fmt.Errorf("cluster %s is not this node's %s", hello.cluster, own)
		case hello.magic == magicNamed && hello.to != p.NodeID:
			_, _ = c.Write(hello.appendAnswer(nil, another, p.NodeID))
			return fmt.Errorf("%s dials %s, and this is %s: see where the address of %s leads", hello.from, hello.to,
				p.NodeID, hello.to)
		case hello.magic == magicRaft && p.requiresNamed():
			return errUnnamed
		case s == nil:
			return errDetached
		}
		to = s.queue
	}
	if _, err := c.Write(hello.appendAnswer(nil, accepted, p.NodeID)); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	handed := net.Conn(newConn(c, hello))
	if hello.magic != magicHTTP {
		if handed = s.track(handed, ""); handed == nil {
			return errDetached
		}
		if hello.magic == magicRaft && p.requiresNamed() { // by now, and RequireNamed may not have seen c
			_ = handed.Close()
			return errUnnamed
		}
		if p.outdated(c) {
			_ = handed.Close()
			return errOutdated
		}
	}
	if hello.magic == magicTerm {
		p.done.Go(func() { p.answerTerms(handed) })
		return nil
	}
	if !to.put(handed) {
		return errDetached
	}
	return nil
}

// errUnnamed is returned when a raft stream comes that RequireNamed refuses.
var errUnnamed = errors.New("its program is too old for this cluster: it does not say which node it means; upgrade it")

// errDetached is returned when a connection comes while no raft instance uses the port: at the end, and while a node
// is adopted. The caller dials again.
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
