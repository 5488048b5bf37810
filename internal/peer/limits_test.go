package peer

import (
	"bufio"
	"container/list"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// openSlowPort is openPort, with a limit for headers that a test can wait for. It answers /hold when the test ends.
func openSlowPort(t testing.TB, header time.Duration) *Port {
	t.Helper()
	p, err := Listen("127.0.0.1:0", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	p.header, p.NodeID = header, "n1"
	p.SetClusterID(ClusterID{1})
	p.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}), nil)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func dialPort(t testing.TB, p *Port) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// dialCalls is a connection whose preface announces calls of another cluster.
func dialCalls(t testing.TB, p *Port) net.Conn {
	t.Helper()
	c := dialPort(t, p)
	if err := greet(c, time.Now().Add(30*time.Second), preface{magic: magicHTTP, cluster: ClusterID{9}}); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func TestGiantHeaderOfACall(t *testing.T) {
	p := openPort(t, ClusterID{1})
	c := dialCalls(t, p.Port)
	go func() { // for ever: the node must not wait for the end
		_, err := io.WriteString(c, "GET /caller HTTP/1.1\r\nHost: x\r\nX: ")
		for err == nil {
			_, err = io.WriteString(c, strings.Repeat("x", 1<<10))
		}
	}()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := response.StatusCode, http.StatusRequestHeaderFieldsTooLarge; got != want {
		t.Errorf("got %d, want %d", got, want)
	}
}

// TestSlowCalls: a call that is not complete in time is cut off, wherever it stops.
func TestSlowCalls(t *testing.T) {
	if p := openPort(t, ClusterID{1}); p.server.ReadHeaderTimeout <= 0 || p.server.ReadHeaderTimeout > 10*time.Second {
		t.Errorf("ReadHeaderTimeout: got %v, want 10s at most", p.server.ReadHeaderTimeout)
	}
	const limit = 200 * time.Millisecond
	p := openSlowPort(t, limit)
	for name, text := range map[string]string{
		"nothing":          "",
		"a byte at a time": "GET /caller?" + strings.Repeat("v", 10000),
		"a body announced": "POST /caller HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dialCalls(t, p)
			go func() {
				for i := range len(text) {
					if _, err := io.WriteString(c, text[i:i+1]); err != nil {
						return
					}
					if i > 100 {
						time.Sleep(limit / 100)
					}
				}
			}()
			_, err := io.Copy(io.Discard, c)
			if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
				t.Error("it was not closed")
			}
		})
	}
}

// TestSilentConnectionsKeepNoMemberOut: however many connections have not sent a preface, a member gets in at once,
// over and over.
func TestSilentConnectionsKeepNoMemberOut(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{1})
	from, to := a.Stream(), b.Stream()
	goroutines := runtime.NumGoroutine()
	for range 3 {
		for i := range maxPending + 50 {
			c := dialPort(t, b.Port)
			if _, err := c.Write([]byte{magicRaft, 1, 2}[:i%4]); err != nil {
				t.Fatal(err)
			}
		}
		if err := exchange(t, from, to); err != nil {
			t.Errorf("a member's stream: got %v, want that it is accepted", err)
		}
		response, err := a.Client().Get("http://" + b.Address() + "/caller")
		if err != nil {
			t.Errorf("a member's call: %v", err)
			continue
		}
		_ = response.Body.Close()
	}
	if got, want := runtime.NumGoroutine()-goroutines, maxPending+50; got > want {
		t.Errorf("got %d goroutines more, want %d at most", got, want)
	}
}

// TestIdleCallsKeepNobodyOut: strangers can hold no more than maxCalls connections, keep no member out, and end no
// call that is under way.
func TestIdleCallsKeepNobodyOut(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openSlowPort(t, time.Minute)
	underWay, err := a.Client().Get("http://" + b.Address() + "/hold")
	if err != nil {
		t.Fatal(err)
	}
	defer underWay.Body.Close()
	ended := make(chan error, 1)
	go func() { _, err := underWay.Body.Read(make([]byte, 1)); ended <- err }()
	first := dialCalls(t, b)
	for range maxCalls {
		dialCalls(t, b)
	}
	response, err := a.Client().Get("http://" + b.Address() + "/caller")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	_, err = io.Copy(io.Discard, first)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		t.Errorf("the oldest of %d connections was not closed", maxCalls+1)
	}
	if err := exchange(t, a.Stream(), b.Stream()); err != nil {
		t.Errorf("a member's stream: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the call under way: got %v, want that it goes on", err)
	default:
	}
}

// TestSilentStreamsKeepNoMemberOut: whoever knows the cluster ID can open raft streams; there are no more than
// maxStreams, and the one of a member, which talks, stays.
func TestSilentStreamsKeepNoMemberOut(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{1})
	from, to := a.Stream(), b.Stream()
	go func() { // answers each byte with the same
		for {
			c, err := to.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	member, err := from.Dial(targetOf(b.Port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	_ = member.SetDeadline(time.Now().Add(time.Minute))
	talk := func(c net.Conn) error {
		b := []byte{1}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b)
		return err
	}
	var strangers []net.Conn
	for i := range maxStreams + 50 {
		c := dialPort(t, b.Port)
		p := preface{magic: magicNamed, cluster: ClusterID{1}, to: "n1", from: "n9"}
		if err := greet(c, time.Now().Add(30*time.Second), p); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if strangers = append(strangers, c); i%20 == 0 {
			if err := talk(member); err != nil {
				t.Fatalf("the member's stream beside %d others: %v", i+1, err)
			}
		}
	}
	if _, err := io.Copy(io.Discard, strangers[0]); err != nil {
		t.Errorf("the one that was silent for longest: got %v, want that it is closed", err)
	}
	s := to.(*stream)
	s.mu.Lock()
	open := len(s.conns)
	s.mu.Unlock()
	if open > maxStreams {
		t.Errorf("got %d streams, want %d at most", open, maxStreams)
	}
	if err := talk(member); err != nil {
		t.Errorf("the member's stream: %v", err)
	}
	another, err := from.Dial(targetOf(b.Port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer another.Close()
	_ = another.SetDeadline(time.Now().Add(30 * time.Second))
	if err := talk(another); err != nil {
		t.Errorf("one more stream of the member: %v", err)
	}
}

// fromHost is a connection whose remote address is another one.
type fromHost struct {
	net.Conn
	remote string
	closed bool
}

func (c *fromHost) RemoteAddr() net.Addr { return address(c.remote) }
func (c *fromHost) Close() error         { c.closed = true; return nil }

// TestOneHostHasAQuarterOfTheRaftPort, of the connections whose preface is awaited, and of the streams.
func TestOneHostHasAQuarterOfTheRaftPort(t *testing.T) {
	p := &Port{pending: list.New()}
	s := &stream{conns: make(map[net.Conn]string)}
	other, first := &fromHost{remote: "192.0.2.2:1"}, &fromHost{remote: "192.0.2.1:1"}
	otherStream, firstStream := &fromHost{remote: "192.0.2.2:1"}, &fromHost{remote: "192.0.2.1:1"}
	for i, c := range []struct{ pending, stream *fromHost }{{other, otherStream}, {first, firstStream}} {
		p.evictPending(c.pending)
		p.pending.PushBack(net.Conn(c.pending))
		accepted := newConn(c.stream, preface{})
		accepted.heard.Store(int64(i)) // the other one's is the one that is silent for longest of all
		s.evict(accepted)
		s.conns[accepted] = ""
	}
	for range maxPending/4 - 1 {
		next := &fromHost{remote: "192.0.2.1:2"}
		p.evictPending(next)
		p.pending.PushBack(net.Conn(next))
	}
	for range maxStreams/4 - 1 {
		accepted := newConn(&fromHost{remote: "192.0.2.1:2"}, preface{})
		s.evict(accepted)
		s.conns[accepted] = ""
	}
	if first.closed || firstStream.closed {
		t.Fatal("a connection was closed before its host had a quarter")
	}
	p.evictPending(&fromHost{remote: "192.0.2.1:3"})
	s.evict(newConn(&fromHost{remote: "192.0.2.1:3"}, preface{}))
	if !first.closed || other.closed {
		t.Errorf("awaited: closed %t, the other host's %t, want true and false", first.closed, other.closed)
	}
	if !firstStream.closed || otherStream.closed {
		t.Errorf("streams: closed %t, the other host's %t, want true and false", firstStream.closed, otherStream.closed)
	}
	for range maxPending { // loopback addresses have no such bound
		next := &fromHost{remote: "127.0.0.1:2"}
		p.evictPending(next)
		p.pending.PushBack(net.Conn(next))
	}
	if got := p.pending.Len(); got != maxPending || !other.closed {
		t.Errorf("got %d that are awaited, the oldest closed: %t, want %d and true", got, other.closed, maxPending)
	}
}
