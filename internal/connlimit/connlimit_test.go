package connlimit

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// serve starts a server behind a Listener; a request for /hold is answered when the
// channel that it returns is closed.
func serve(t testing.TB, maxConns, maxHeaderBytes int) (l *Listener, release chan struct{}) {
	t.Helper()
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, Listen(below, maxConns, maxHeaderBytes))
}

func serveOn(t testing.TB, l *Listener) (_ *Listener, release chan struct{}) {
	release = make(chan struct{})
	server := &http.Server{ConnState: StateChanged, Handler: http.HandlerFunc(func(_ http.ResponseWriter,
		r *http.Request) {
		if r.URL.Path == "/hold" {
			<-release
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: got %v, want ErrServerClosed", err)
		}
	})
	return l, release
}

func dial(t testing.TB, l *Listener, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// answered waits for the start of an answer with status 200.
func answered(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 15)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 200 OK" {
		t.Fatalf("got %q, %v, want HTTP/1.1 200 OK", b, err)
	}
}

// closed waits until c is closed by the server.
func closed(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		t.Fatal("it was not closed, want that it is")
	}
}

// waitFor waits until the counts of l are these.
func waitFor(t testing.TB, l *Listener, open, idle int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		gotOpen, gotIdle := l.all.open, l.all.idle.Len()
		l.mu.Unlock()
		if gotOpen == open && gotIdle == idle {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %d open and %d idle, want %d and %d", gotOpen, gotIdle, open, idle)
		}
	}
}

const request, hold = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /hold HTTP/1.1\r\nHost: x\r\n\r\n"

func TestLongestIdleIsEvicted(t *testing.T) {
	l, _ := serve(t, 3, 1<<20)
	first := dial(t, l, "")
	waitFor(t, l, 1, 1)
	second := dial(t, l, request)
	answered(t, second)
	waitFor(t, l, 2, 2)
	third := dial(t, l, "GET / HTTP")
	waitFor(t, l, 3, 3)
	for range 2 {
		answered(t, dial(t, l, request)) // which evicts the first, then the second
	}
	closed(t, first)
	closed(t, second)
	if _, err := io.WriteString(third, "/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answered(t, third)
	waitFor(t, l, 3, 3)
}

// TestRequestsUnderWayStay: a new connection waits for one of them to end.
func TestRequestsUnderWayStay(t *testing.T) {
	l, release := serve(t, 2, 1<<20)
	first, second := dial(t, l, hold), dial(t, l, hold)
	waitFor(t, l, 2, 0)
	newcomer := dial(t, l, request)
	_ = newcomer.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := newcomer.Read(make([]byte, 1)); n != 0 || errors.Is(err, io.EOF) {
		t.Errorf("the new connection: got %d bytes, %v, want that it waits", n, err)
	}
	waitFor(t, l, 2, 0)
	close(release)
	answered(t, newcomer)
	_ = first.SetReadDeadline(time.Now().Add(30 * time.Second))
	answered(t, first)
	answered(t, second)
}

// TestTLS: a connection that TLS is on is idle, and is not, as any other.
func TestTLS(t *testing.T) {
	l, release := serve(t, 100, 100)
	defer close(release)
	dial(t, l, "")
	waitFor(t, l, 1, 1)
	l.mu.Lock()
	c := l.all.idle.Front().Value.(*Conn)
	l.mu.Unlock()
	secure := tls.Server(c, new(tls.Config))
	StateChanged(secure, http.StateActive)
	waitFor(t, l, 1, 0)
	StateChanged(secure, http.StateIdle)
	waitFor(t, l, 1, 1)
}

// TestHeaderBytes: the longest-idle connections that have sent a part of a header are closed,
// and bytes of a request under way do not count.
func TestHeaderBytes(t *testing.T) {
	const text = "GET / HTTP/1.1\r\nHost: x\r\nX: " // 28 bytes
	l, release := serve(t, 100, 100)
	defer close(release)
	silent := dial(t, l, "")
	waitFor(t, l, 1, 1)
	dial(t, l, hold)
	waitFor(t, l, 2, 1)
	first := dial(t, l, text)
	waitHeaderBytes(t, l, 28)
	second, third := dial(t, l, text), dial(t, l, text)
	waitHeaderBytes(t, l, 84)
	fourth := dial(t, l, text)
	closed(t, first)
	waitHeaderBytes(t, l, 84)
	for _, c := range []net.Conn{second, third, fourth} {
		if _, err := io.WriteString(c, "\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answered(t, c)
	}
	waitHeaderBytes(t, l, 0)
	if _, err := io.WriteString(silent, request); err != nil {
		t.Fatal(err)
	}
	answered(t, silent)
}

func waitHeaderBytes(t testing.TB, l *Listener, want int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		got := l.all.headerBytes
		l.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("header bytes: got %d bytes, want %d", got, want)
		}
	}
}

// remote is a listener whose connections come from the remote addresses that are put into from.
type remote struct {
	net.Listener
	from chan string
}

type remoteConn struct {
	net.Conn
	from string
}

func (c remoteConn) RemoteAddr() net.Addr { return address(c.from) }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func (l remote) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return remoteConn{c, <-l.from}, nil
}

// serveRemote is serve for clients of other hosts.
func serveRemote(t testing.TB, maxConns, maxHeaderBytes int) (l *Listener, from func(host, text string) net.Conn,
	release chan struct{}) {
	t.Helper()
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hosts := make(chan string, 1)
	l, release = serveOn(t, Listen(remote{below, hosts}, maxConns, maxHeaderBytes))
	return l, func(host, text string) net.Conn {
		hosts <- net.JoinHostPort(host, "4321")
		return dial(t, l, text)
	}, release
}

// TestOneHostHasAQuarter: its own longest-idle connection is closed for its next one, and no other host's; when none of
// its own is idle, the next one is closed, and nobody waits for it. A loopback address has no such bound.
func TestOneHostHasAQuarter(t *testing.T) {
	l, from, release := serveRemote(t, 8, 1<<20)
	other := from("192.0.2.2", "")
	waitFor(t, l, 1, 1)
	first := from("192.0.2.1", "")
	waitFor(t, l, 2, 2)
	second := from("192.0.2.1", request)
	answered(t, second)
	held := []net.Conn{from("192.0.2.1", hold)}
	closed(t, first)
	waitFor(t, l, 3, 2)
	held = append(held, from("192.0.2.1", hold))
	closed(t, second)
	waitFor(t, l, 3, 1)
	closed(t, from("192.0.2.1", request))
	waitFor(t, l, 3, 1)
	for range 4 {
		answered(t, from("127.0.0.1", request))
	}
	waitFor(t, l, 7, 5)
	if _, err := io.WriteString(other, request); err != nil {
		t.Fatal(err)
	}
	answered(t, other)
	close(release)
	for _, c := range held {
		answered(t, c)
		_ = c.Close()
	}
	waitFor(t, l, 5, 5)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.hosts) != 1 {
		t.Errorf("got %d hosts that are counted, want 1: the others have no connection", len(l.hosts))
	}
}

// TestHeaderBytesOfOneHost: it may have sent a quarter of what all may.
func TestHeaderBytesOfOneHost(t *testing.T) {
	const text = "GET / HTTP/1.1\r\nHost: x\r\nX: " // 28 bytes
	l, from, _ := serveRemote(t, 400, 4*70)
	other := from("2001:db8::1", text)
	waitHeaderBytes(t, l, 28)
	first := from("192.0.2.1", text)
	waitHeaderBytes(t, l, 56)
	second := from("192.0.2.1", text)
	waitHeaderBytes(t, l, 84)
	third := from("192.0.2.1", text)
	closed(t, first)
	waitHeaderBytes(t, l, 84)
	for _, c := range []net.Conn{other, second, third} {
		if _, err := io.WriteString(c, "\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answered(t, c)
	}
}

func TestHost(t *testing.T) {
	for remote, want := range map[string]string{
		"127.0.0.1:1": "", "127.8.9.10:1": "", "[::1]:1": "", "[::ffff:127.0.0.1]:1": "", "@": "", "": "", "pipe": "",
		"192.0.2.1:1": "192.0.2.1", "[::ffff:192.0.2.1]:2": "192.0.2.1",
		"[2001:db8::1]:1": "2001:db8::/64", "[2001:db8::ffff:2]:9": "2001:db8::/64",
		"[2001:db8:0:1::1]:1": "2001:db8:0:1::/64",
		"[fe80::1%eth0]:1":    "fe80::/64",
	} {
		if got := Host(remote); got != want {
			t.Errorf("Host(%q): got %q, want %q", remote, got, want)
		}
	}
}

// TestOfFiles: parts of the file descriptors that this process may have, where that is less than the bound.
func TestOfFiles(t *testing.T) {
	for _, tt := range []struct{ n, part, whole, want int }{
		{n: 3, part: 1, whole: 2, want: 3},
		{n: 1 << 30, part: 1, whole: 2, want: maxFiles() / 2},
		{n: 1 << 30, part: 1, whole: 1 << 30, want: 1},
	} {
		if got := OfFiles(tt.n, tt.part, tt.whole); got != tt.want {
			t.Errorf("OfFiles(%d, %d, %d): got %d, want %d", tt.n, tt.part, tt.whole, got, tt.want)
		}
	}
}

// TestCloseEndsAccept, also of a connection that waits.
func TestCloseEndsAccept(t *testing.T) {
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(below, 1, 1<<20)
	dial(t, l, "")
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	StateChanged(c, http.StateActive)
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	newcomer := dial(t, l, "")
	if err := l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: got %v, want ErrClosed", err)
	}
	closed(t, newcomer)
}
