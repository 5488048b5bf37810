package testkit

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// serve listens as node b and returns its address and the connections it gets.
func serve(t *testing.T, n *Network) (address string, accepted chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	accepted = make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	n.Place("b", l.Addr().String())
	return l.Addr().String(), accepted
}

// connect is a connection that a has opened to b: a's end and b's.
func connect(t *testing.T, n *Network, address string, accepted chan net.Conn) (a, b net.Conn) {
	t.Helper()
	a, err := n.Dialer("a")(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// arrives checks that text is what comes next.
func arrives(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("got %q and %v, want %q", got, err, text)
	}
}

// silent checks that nothing has come, which can't be waited for: the caller has
// seen that it is held.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if count, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes and %v, want none yet", count, err)
	}
}

// broken checks that the connection has ended.
func broken(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if count, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes and %v, want an end", count, err)
	}
}

func waitHeld(t *testing.T, n *Network, from, to string, count int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); n.Held(from, to) != count; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("held from %s to %s: got %d, want %d", from, to, n.Held(from, to), count)
		}
	}
}

func TestHold(t *testing.T) {
	n := New(t)
	address, accepted := serve(t, n)
	a, b := connect(t, n, address, accepted)
	other, otherB := connect(t, n, address, accepted)
	send(t, a, "request")
	arrives(t, b, "request")

	n.Hold("b", "a") // one direction only
	send(t, b, "1")
	waitHeld(t, n, "b", "a", 1)
	send(t, otherB, "2")
	waitHeld(t, n, "b", "a", 2)
	send(t, b, "3")
	waitHeld(t, n, "b", "a", 3)
	silent(t, a)
	silent(t, other)
	send(t, a, "another")
	arrives(t, b, "another")

	n.Deliver("b", "a", 2) // in the order of arrival, over both connections
	arrives(t, a, "1")
	arrives(t, other, "2")
	waitHeld(t, n, "b", "a", 1)
	silent(t, a)

	n.Hold("a", "b")
	late, err := n.Dialer("a")(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	send(t, late, "sent and closed")
	if err := late.Close(); err != nil {
		t.Fatal(err)
	}
	waitHeld(t, n, "a", "b", 2) // the text and the end
	lateB := <-accepted
	silent(t, lateB)
	n.Heal()
	arrives(t, lateB, "sent and closed")
	broken(t, lateB)
	arrives(t, a, "3")
}

func TestCut(t *testing.T) {
	n := New(t)
	address, accepted := serve(t, n)
	a, b := connect(t, n, address, accepted)
	n.Place("c", "127.0.0.1:1")
	n.Cut("a", "c")
	n.Cut("b", "a")
	send(t, a, "neither is its way")
	arrives(t, b, "neither is its way")

	for _, cut := range []func(){func() { n.Cut("a", "b") }, func() { n.Isolate("a") }, func() { n.Isolate("b") }} {
		n.Heal()
		n.Place("a", "127.0.0.1:2")
		a, b := connect(t, n, address, accepted)
		n.Hold("a", "b")
		send(t, a, "lost")
		waitHeld(t, n, "a", "b", 1)
		cut()
		broken(t, a)
		broken(t, b)
		if _, err := n.Dialer("a")(context.Background(), address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: got %v, want ECONNREFUSED", err)
		}
	}
	n.Heal()
	a, b = connect(t, n, address, accepted)
	send(t, b, "answer")
	arrives(t, a, "answer")
}

// TestEnds: the end of either side reaches the other.
func TestEnds(t *testing.T) {
	n := New(t)
	address, accepted := serve(t, n)
	a, b := connect(t, n, address, accepted)
	send(t, a, "last")
	_ = a.Close()
	arrives(t, b, "last")
	broken(t, b)
	a, b = connect(t, n, address, accepted)
	send(t, b, "last")
	_ = b.Close()
	arrives(t, a, "last")
	broken(t, a)
}
