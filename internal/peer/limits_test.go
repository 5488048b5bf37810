package peer

import (
	"bufio"
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
