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
	l, release = Listen(below, maxConns, maxHeaderBytes), make(chan struct{})
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
		gotOpen, gotIdle := l.open, l.idle.Len()
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
	c := l.idle.Front().Value.(*Conn)
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
		got := l.headerBytes
		l.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("header bytes: got %d bytes, want %d", got, want)
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
