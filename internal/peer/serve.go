package peer

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// How long a connection may be silent in the middle of a request, and a request may take to come. Raft itself gives up
// after 10 s, but for the state of a snapshot.
const (
	requestTime     = 15 * time.Second
	snapshotSilence = 2 * time.Second
	answerTime      = 10 * time.Second
)

// sendOnly is the stream of raft's own network transport, which only sends: what comes is served by Transport.
type sendOnly struct {
	raft.StreamLayer
	closed context.Context
	close  context.CancelFunc
}

// Accept implements net.Listener. There are no connections.
func (s *sendOnly) Accept() (net.Conn, error) {
	<-s.closed.Done()
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (s *sendOnly) Close() error {
	s.close()
	return s.StreamLayer.Close()
}

// Dial implements raft.StreamLayer.
func (s *sendOnly) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	c, err := s.StreamLayer.Dial(target, timeout)
	if err != nil {
		return nil, err
	}
	return &answers{Conn: c, r: bufio.NewReader(c)}, nil
}

// answers is a connection to another node whose answers are within maxAnswer each before raft's decoder gets them:
// their lengths are not to be believed either (see wire).
type answers struct {
	net.Conn
	r    *bufio.Reader
	next []byte // checked, and not yet read
	buf  []byte
}

// Read implements net.Conn.
func (a *answers) Read(b []byte) (int, error) {
	if len(a.next) == 0 {
		a.buf = a.buf[:0]
		w := wire{r: a.r, left: maxAnswer, record: &a.buf}
		if w.skip(maxDepth); w.err != nil {
			return 0, w.err
		}
		a.next = a.buf
	}
	n := copy(b, a.next)
	a.next = a.next[n:]
	return n, nil
}

// inbound is an accepted connection whose reads are bounded in time.
type inbound struct {
	net.Conn
	silence time.Duration // that a read may last; 0: there is no limit
	until   time.Time     // zero: there is no limit
}

// Read implements net.Conn.
func (c *inbound) Read(b []byte) (int, error) {
	deadline := c.until
	if c.silence > 0 {
		deadline = time.Now().Add(c.silence)
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// session is the requests of one connection.
type session struct {
	*inbound
	r    *bufio.Reader
	from string // the ID of the node that has dialed; empty: its program does not name it
	host string
}

// serve accepts connections until the stream is closed.
func (t *Transport) serve(stream raft.StreamLayer) {
	for {
		c, err := stream.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of descriptors, for instance: it may pass
			case <-t.closed.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		t.serving.Go(func() { t.handle(c) })
	}
}

// handle serves the requests that come over c, one after the other.
func (t *Transport) handle(c net.Conn) {
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(t.closed, func() { _ = c.Close() })()
	select {
	case <-t.gated:
	case <-t.closed.Done():
		return
	}
	in := &inbound{Conn: c}
	s := &session{inbound: in, r: bufio.NewReaderSize(in, 64<<10), from: dialedBy(c)}
	s.host, _, _ = net.SplitHostPort(c.RemoteAddr().String())
	for t.handleRequest(s) {
	}
}

// handleRequest serves one request. It returns false when there can be no further one.
func (t *Transport) handleRequest(s *session) (further bool) {
	s.until = time.Time{}
	kind, err := s.r.ReadByte()
	if err != nil {
		return false
	}
	name := requestName(kind)
	if name == "" {
		t.refuse(s, "a request", refuse("raft has no request 0x%02x", kind))
		return false
	}
	s.until = time.Now().Add(requestTime)
	w := wire{r: s.r, left: maxRequest, receiving: &t.receiving}
	defer w.release()
	request := w.request(kind)
	if w.err != nil {
		t.refuse(s, name, w.err)
		return false
	}
	if install, ok := request.(*raft.InstallSnapshotRequest); ok {
		return t.install(s, install)
	}
	response, err := t.pass(request, s.from)
	if err == errPassed {
		return s.answer(response.Response, response.Error)
	}
	return t.refuse(s, name, err)
}

// errPassed is returned by pass when raft has answered.
var errPassed = errors.New("raft has answered")

// pass has raft answer request, if it passes the gate. Raft answers one at a time, too.
func (t *Transport) pass(request any, from string) (raft.RPCResponse, error) {
	if a, ok := request.(*raft.AppendEntriesRequest); ok && len(a.Entries) > 0 {
		t.order.Lock()
		defer t.order.Unlock()
	}
	if err := t.gate.check(request, from); err != nil {
		return raft.RPCResponse{}, err
	}
	return t.ask(raft.RPC{Command: request})
}

// ask has raft answer rpc.
func (t *Transport) ask(rpc raft.RPC) (raft.RPCResponse, error) {
	answered := make(chan raft.RPCResponse, 1)
	rpc.RespChan = answered
	select {
	case t.requests <- rpc:
	case <-t.closed.Done():
		return raft.RPCResponse{}, raft.ErrTransportShutdown
	}
	select {
	case response := <-answered:
		return response, errPassed
	case <-t.closed.Done():
		return raft.RPCResponse{}, raft.ErrTransportShutdown
	}
}

// answer sends what raft has answered. It returns false when there can be no further request.
func (s *session) answer(response any, failure error) (further bool) {
	if s.SetWriteDeadline(time.Now().Add(answerTime)) != nil {
		return false
	}
	_, err := s.Write(appendAnswer(nil, response, failure))
	return err == nil
}

// refuse answers a request with an error and, if it is a refusal, prints that. All else are failed connections.
func (t *Transport) refuse(s *session, name string, err error) (further bool) {
	var why *refusal
	if !errors.As(err, &why) {
		return false
	}
	from := sender(s.from, s.host)
	if printed, more := t.refusals.again(from, why.reason, time.Now()); printed {
		if more > 0 {
			t.gate.Refused("Refused %s of %s: %v (and %d like it since the last line)", name, from, err, more)
		} else {
			t.gate.Refused("Refused %s of %s: %v", name, from, err)
		}
	}
	return s.answer(nil, errors.New("refused: "+err.Error()))
}

// installs has one snapshot at a time received: a further one takes its place, unless it is of an older term.
type installs struct {
	mu   sync.Mutex // guards what follows
	now  *installing
	next *installing // waits for the end of now
}

type installing struct {
	term uint64
	stop func()        // ends the reception
	done chan struct{} // closed when it has ended
}

// begin waits until no other snapshot is being received. ok is false if one is of a newer term, or a further one came
// meanwhile.
func (i *installs) begin(ctx context.Context, term uint64, stop func()) (end func(), ok bool) {
	own := &installing{term: term, stop: stop, done: make(chan struct{})}
	i.mu.Lock()
	for _, other := range []*installing{i.now, i.next} {
		if other != nil && other.term > term {
			i.mu.Unlock()
			return nil, false
		}
	}
	if i.next != nil {
		i.next.stop()
	}
	i.next = own
	for i.now != nil {
		now := i.now
		now.stop()
		i.mu.Unlock()
		select {
		case <-now.done:
		case <-ctx.Done():
		}
		i.mu.Lock()
		if i.next != own || ctx.Err() != nil {
			if i.next == own {
				i.next = nil
			}
			i.mu.Unlock()
			return nil, false
		}
	}
	i.now, i.next = own, nil
	i.mu.Unlock()
	return func() {
		i.mu.Lock()
		i.now = nil
		i.mu.Unlock()
		close(own.done)
	}, true
}

// install has a snapshot received, verified and put on the disk, and then has raft install it, which finds it there.
// Raft itself would read it off the wire in its only loop, without a limit, and hear of no leader and no candidate
// until it has come.
func (t *Transport) install(s *session, request *raft.InstallSnapshotRequest) (further bool) {
	const name = "InstallSnapshot"
	if err := t.gate.check(request, s.from); err != nil {
		t.refuse(s, name, err)
		return false // what follows is the state
	}
	if term, _, committed := t.gate.Known(); request.LastLogIndex == committed {
		if own, ok := t.gate.TermAt(committed); ok && own == request.LastLogTerm {
			// It is installed already, and the answer to that was lost. The sender reads one when all is sent.
			s.silence = snapshotSilence
			defer func() { s.silence = 0 }()
			if _, err := io.CopyN(io.Discard, s.r, request.Size); err != nil {
				return false
			}
			return s.answer(&raft.InstallSnapshotResponse{Term: term, Success: true}, nil)
		}
	}
	members, _ := configurationOf(request.Configuration)
	end, ok := t.installs.begin(t.closed, request.Term, func() { _ = s.Close() })
	if !ok {
		t.refuse(s, name, refuse("another snapshot is being received, in a newer term"))
		return false
	}
	defer end()
	s.silence = snapshotSilence
	defer func() { s.silence = 0 }()
	discard, err := t.gate.Receive(request, members, io.LimitReader(s.r, request.Size))
	if err != nil {
		t.refuse(s, name, refuse("the snapshot was not received: %.200q", err.Error()))
		return false
	}
	defer discard()

	t.order.Lock()
	defer t.order.Unlock()
	if err := t.gate.check(request, s.from); err != nil { // it has become old meanwhile
		return t.refuse(s, name, err)
	}
	response, err := t.ask(raft.RPC{Command: request, Reader: noBytes{}})
	if err != errPassed {
		return false
	}
	return s.answer(response.Response, response.Error)
}

// noBytes is what raft reads in the place of the state, which it is given by its snapshot store.
type noBytes struct{}

func (noBytes) Read([]byte) (int, error) { return 0, io.EOF }
