package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testPort is a Port of the given cluster that answers GET /caller, with the lines that it has logged.
type testPort struct {
	*Port
	mu    sync.Mutex
	lines []string
}

// targetOf is the Target of the node that listens at p.
func targetOf(p *Port) raft.ServerAddress {
	return Target(raft.ServerID(p.NodeID), raft.ServerAddress(p.Address()))
}

func openPort(t testing.TB, cluster ClusterID) *testPort {
	t.Helper()
	p := &testPort{}
	port, err := Listen("127.0.0.1:0", p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.Port = port
	p.NodeID = "n1"
	p.SetClusterID(cluster)
	p.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, Caller(r).String())
	}), nil)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (p *testPort) log(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, fmt.Sprintf(format, args...))
}

func (p *testPort) logged() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// exchange sends a line over a raft stream from one port to another and back.
func exchange(t testing.TB, from, to raft.StreamLayer) error {
	t.Helper()
	dialed := make(chan error, 1)
	var c net.Conn
	go func() {
		var err error
		c, err = from.Dial(targetOf(to.(*stream).port), 10*time.Second)
		dialed <- err
	}()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := to.Accept(); err == nil {
			accepted <- c
		}
	}()
	if err := <-dialed; err != nil {
		return err
	}
	defer c.Close()
	other := <-accepted
	defer other.Close()
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(other, b); err != nil || string(b) != "ping\n" {
		t.Errorf("got %q, %v, want ping", b, err)
	}
	return nil
}

func TestStreamsOfOneCluster(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{1})
	if err := exchange(t, a.Stream(), b.Stream()); err != nil {
		t.Error(err)
	}
}

// TestForeignClusterIsRefused: two clusters never mix, and the refusals are logged at most once a second.
func TestForeignClusterIsRefused(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{2})
	b.Stream()
	from := a.Stream()
	begin := time.Now()
	for range 50 {
		if _, err := from.Dial(targetOf(b.Port), 10*time.Second); !errors.Is(err, ErrForeignCluster) {
			t.Fatalf("Dial: got %v, want ErrForeignCluster", err)
		}
	}
	most := 1 + int(time.Since(begin)/time.Second)
	if got := b.logged(); len(got) == 0 || len(got) > most {
		t.Errorf("logged %d lines, want 1 to %d: %q", len(got), most, got)
	}
}

// TestHTTPCallNamesItsCluster: a node of another cluster may call, and the handler knows that it is one.
func TestHTTPCallNamesItsCluster(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{2})
	for range 3 {
		response, err := a.Client().Get("http://" + b.Address() + "/caller")
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if want := a.ClusterID().String(); string(got) != want {
			t.Errorf("caller: got %s, want %s", got, want)
		}
		a.SetClusterID(NewClusterID())
	}
}

// TestCallUnderWay: a call that is under way when the node becomes one of another cluster, as the one that asks for
// just that, leaves no connection behind by which later calls come from the former cluster.
func TestCallUnderWay(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{2})
	begin := func() *http.Response {
		t.Helper()
		response, err := a.Client().Get("http://" + b.Address() + "/caller")
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	end := func(response *http.Response) string {
		t.Helper()
		body, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	under := begin()
	a.SetClusterID(ClusterID{2})
	end(begin())
	end(under)
	for range 5 {
		if got, want := end(begin()), (ClusterID{2}).String(); got != want {
			t.Fatalf("caller: got %s, want %s", got, want)
		}
	}
}

// TestStrangersAreRefused: whatever is not a preface is closed within a bound.
func TestStrangersAreRefused(t *testing.T) {
	p := openPort(t, ClusterID{1})
	p.Stream()
	for name, bytes := range map[string]string{
		"a web browser":   "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"random bytes":    "\x00\x01\x02\x03",
		"half a preface":  "\xb1\x01\x00\x00",
		"nothing":         "",
		"a foreign raft":  "\xb1" + strings.Repeat("\x07", 16) + "and more",
		"a preface, zero": "\xb1" + strings.Repeat("\x00", 16),
		"no ID is meant":  "\xb4\x01" + strings.Repeat("\x00", 15) + "\x00\x02n1",
		"no ID dials":     "\xb4\x01" + strings.Repeat("\x00", 15) + "\x02n1\x00",
		"half an ID":      "\xb4\x01" + strings.Repeat("\x00", 15) + "\x02n",
		"a giant ID":      "\xb4\x01" + strings.Repeat("\x00", 15) + "\x41" + strings.Repeat("n", 0x41) + "\x02n1",
		"an ID of blanks": "\xb4\x01" + strings.Repeat("\x00", 15) + "\x02n1\x02  ",
		"the next magic":  "\xb5\x01" + strings.Repeat("\x00", 15),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", p.Address())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, bytes); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				t.Errorf("it was not closed")
			}
			if strings.ContainsRune(string(got), rune(accepted)) {
				t.Errorf("it was accepted")
			}
		})
	}
}

// TestDialStrangers: whatever does not answer as a raftkv node is an error within a bound.
func TestDialStrangers(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"closes":       func(c net.Conn) { _ = c.Close() },
		"greets first": func(c net.Conn) { _, _ = io.WriteString(c, "220 mail.example ESMTP\r\n") },
		"is silent":    func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					serve(c)
				}
			}()
			c, err := dial(context.Background(), dialTCP, l.Addr().String(),
				preface{magic: magicNamed, cluster: ClusterID{1}, to: "n2", from: "n1"})
			if err == nil {
				_ = c.Close()
				t.Error("got a connection, want an error")
			}
		})
	}
}

// TestStreamCloses: closing a stream ends its connections at both ends, and leaves the port open for the next raft
// instance.
func TestStreamCloses(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{1})
	from, to := a.Stream(), b.Stream()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := to.Accept(); err == nil {
			accepted <- c
		}
	}()
	c, err := from.Dial(targetOf(b.Port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	<-accepted
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read from a closed stream: got %v, want that it is closed", err)
	}
	if _, err := to.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: got %v, want ErrClosed", err)
	}
	if err := exchange(t, from, b.Stream()); err != nil {
		t.Errorf("the next stream: %v", err)
	}
}

// TestCloseEndsEverything: also with connections in every state, and twice.
func TestCloseEndsEverything(t *testing.T) {
	p := openPort(t, ClusterID{1})
	s := p.Stream()
	for _, bytes := range []string{
		"",
		"\xb1",
		"\xb2" + strings.Repeat("\x01", 16),
		"\xb1\x01" + strings.Repeat("\x00", 15),
	} {
		c, err := net.Dial("tcp", p.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, bytes); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := s.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: got %v, want ErrClosed", err)
	}
	if c, err := net.Dial("tcp", p.Address()); err == nil {
		_ = c.Close()
		t.Error("the port is still open")
	}
}

func TestCloseStreamsOfOneAddress(t *testing.T) {
	a, b, c := openPort(t, ClusterID{1}), openPort(t, ClusterID{1}), openPort(t, ClusterID{1})
	from := a.Stream()
	dial := func(to *testPort) net.Conn {
		stream := to.Stream()
		go func() { _, _ = stream.Accept() }()
		conn, err := from.Dial(targetOf(to.Port), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	removed, kept := dial(b), dial(c)
	a.CloseStreams(b.Address())
	if _, err := removed.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to the removed one: got %v, want ErrClosed", err)
	}
	if _, err := kept.Write([]byte("x")); err != nil {
		t.Errorf("write to the other: %v", err)
	}
}

// TestStrangersLeakNothing: no goroutine and no descriptor stays behind.
func TestStrangersLeakNothing(t *testing.T) {
	p := openPort(t, ClusterID{1})
	p.Stream()
	goroutines := runtime.NumGoroutine()
	descriptors := func() int {
		files, _ := os.ReadDir("/proc/self/fd") // none where there is no /proc
		return len(files)
	}
	open := descriptors()
	for i := range 300 {
		c, err := net.Dial("tcp", p.Address())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte{byte(i), 1, 2, 3}[:i%5%4])
		_ = c.Close()
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		nowGoroutines, nowOpen := runtime.NumGoroutine(), descriptors()
		if nowGoroutines <= goroutines && nowOpen <= open {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d descriptors, want the %d and %d of before",
				nowGoroutines, nowOpen, goroutines, open)
		}
	}
}
