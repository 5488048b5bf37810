package api

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestRedirect: a client is sent to the leader only if it can do there what it meant.
func TestRedirect(t *testing.T) {
	near := Leader{ID: "n1", URL: "http://127.0.0.1:8000", SameMachine: true, ReadsMark: true}
	far := Leader{ID: "n1", URL: "http://127.0.0.1:8000", ReadsMark: true}
	named := Leader{ID: "n1", URL: "https://kv-1.example:8443", ReadsMark: true}
	expect := http.Header{"Expect": {"100-continue"}}
	const unknown = -1
	for _, tt := range []struct {
		name, method string
		target       string // default /set?key=k
		length       int64  // of the body; unknown: it is sent in chunks
		read         bool   // the body has been asked for
		remote       string // default 127.0.0.1:4321
		local        string // the address that the client came in by; empty: none is known
		header       http.Header
		leader       Leader
		location     string // empty: the request is refused
		refused      string // what the line has
	}{
		{name: "no body", method: "GET", target: "/set?key=k&value=v", leader: near,
			location: "http://127.0.0.1:8000/set?key=k&value=v"},
		{name: "no query", method: "GET", target: "/transfer", leader: near, location: "http://127.0.0.1:8000/transfer"},
		{name: "empty value", method: "PUT", leader: near, location: "http://127.0.0.1:8000/set?key=k"},
		{name: "value", method: "PUT", length: 700, leader: near,
			location: "http://127.0.0.1:8000/set?key=k&raftkv-length=700"},
		{name: "value that was read", method: "PUT", length: 700, read: true, leader: near,
			location: "http://127.0.0.1:8000/set?key=k&raftkv-length=700"},
		{name: "form", method: "POST", target: "/set", length: 9, leader: near,
			location: "http://127.0.0.1:8000/set?raftkv-length=9"},
		{name: "a second redirect", method: "PUT", target: "/set?key=k&raftkv-length=700", leader: near,
			location: "http://127.0.0.1:8000/set?key=k&raftkv-length=700"},
		{name: "a leader of an older version", method: "PUT", length: 700, leader: Leader{URL: "http://10.0.0.1:8000"},
			location: "http://10.0.0.1:8000/set?key=k"},
		{name: "unknown length", method: "PUT", length: unknown, leader: near,
			refused: "a body of unknown length can't be redirected"},
		{name: "unknown length of a form", method: "POST", length: unknown, leader: near,
			refused: "send it to the leader, n1, at http://127.0.0.1:8000, or with a Content-Length or Expect: 100-continue"},
		{name: "unknown length that waits", method: "PUT", length: unknown, header: expect, leader: near,
			location: "http://127.0.0.1:8000/set?key=k&raftkv-length=chunked"},
		{name: "unknown length that waited and was read", method: "PUT", length: unknown, read: true, header: expect,
			leader: near, refused: "unknown length"},

		{name: "client elsewhere", method: "GET", remote: "10.0.0.9:1", leader: near,
			refused: "start n1 with HTTP_ADVERTISE=http://HOST:PORT"},
		{name: "client elsewhere, by localhost", method: "GET", remote: "10.0.0.9:1",
			leader: Leader{URL: "http://LocalHost:8000", SameMachine: true}, refused: "HTTP_ADVERTISE"},
		{name: "client on this machine by its address", method: "GET", remote: "10.0.0.1:1", local: "10.0.0.1:8001",
			leader: near, location: "http://127.0.0.1:8000/set?key=k"},
		{name: "client on another machine by this one's address", method: "GET", remote: "10.0.0.2:1",
			local: "10.0.0.1:8001", leader: near, refused: "HTTP_ADVERTISE"},
		{name: "client behind a proxy", method: "GET", header: http.Header{"X-Forwarded-For": {"10.0.0.9"}}, leader: near,
			refused: "HTTP_ADVERTISE"},
		{name: "client behind another proxy", method: "GET", header: http.Header{"Forwarded": {"for=10.0.0.9"}},
			leader: near, refused: "HTTP_ADVERTISE"},
		{name: "leader elsewhere", method: "GET", leader: far, refused: "HTTP_ADVERTISE"},
		{name: "leader elsewhere, IPv6", method: "GET", leader: Leader{URL: "http://[::1]:8000"}, refused: "HTTP_ADVERTISE"},
		{name: "leader with a name", method: "GET", remote: "10.0.0.9:1", leader: named,
			location: "https://kv-1.example:8443/set?key=k"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, cmp.Or(tt.target, "/set?key=k"), http.NoBody)
			r.ContentLength, r.RemoteAddr = tt.length, cmp.Or(tt.remote, "127.0.0.1:4321")
			if tt.local != "" {
				local, _ := net.ResolveTCPAddr("tcp", tt.local)
				r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
			}
			maps.Copy(r.Header, tt.header)
			GuardBody(r, func() error { return nil })
			if tt.read {
				_, _ = io.ReadAll(r.Body)
			}
			w := httptest.NewRecorder()
			err := Redirect(w, r, tt.leader)
			if tt.refused != "" {
				e, ok := errors.AsType[Error](err)
				if !ok || e.Status != http.StatusServiceUnavailable || !strings.Contains(e.Message, tt.refused) ||
					w.Header().Get("Location") != "" {
					t.Errorf("got %v and Location %q, want one line with status 503 and %q", err, w.Header().Get("Location"),
						tt.refused)
				}
				return
			}
			got := w.Header().Get("Location")
			if err != nil || w.Code != http.StatusTemporaryRedirect || got != tt.location {
				t.Errorf("got %d %q %v, want 307 %q", w.Code, got, err, tt.location)
			}
		})
	}
}

// TestLostBody: what comes by a redirect without the body that it had is refused.
func TestLostBody(t *testing.T) {
	for _, tt := range []struct {
		name, method, target string
		body                 string
		chunked, refused     bool
	}{
		{name: "whole", method: "PUT", target: "/set?key=k&raftkv-length=3", body: "new"},
		{name: "whole, in chunks", method: "PUT", target: "/set?key=k&raftkv-length=3", body: "new", chunked: true},
		{name: "in chunks before and after", method: "PUT", target: "/set?key=k&raftkv-length=chunked", body: "new",
			chunked: true},
		{name: "whole form", method: "POST", target: "/set?raftkv-length=11", body: "key=k&value"},
		{name: "the mark in a value", method: "PUT", target: "/set?key=raftkv-length=3", body: ""},
		{name: "the mark before another", method: "PUT", target: "/set?raftkv-length=1&key=k", body: "", refused: true},
		{name: "nothing", method: "PUT", target: "/set?key=k&raftkv-length=3", refused: true},
		{name: "no chunks", method: "PUT", target: "/set?key=k&raftkv-length=chunked", chunked: true, refused: true},
		{name: "the rest", method: "PUT", target: "/set?key=k&raftkv-length=3", body: "w", chunked: true, refused: true},
		{name: "no form", method: "POST", target: "/set?key=k&value=v&raftkv-length=11", refused: true},
		{name: "by GET", method: "GET", target: "/set?key=k&value=v&raftkv-length=11", refused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, tt.target, strings.NewReader(tt.body))
			if tt.chunked {
				r.ContentLength = -1
			}
			if tt.method == http.MethodPost {
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			c, err := Set(r, testHistory)
			if !tt.refused {
				if err != nil || len(c.Pairs) != 1 {
					t.Errorf("got %v %v, want the command", c, err)
				}
				return
			}
			if e, ok := errors.AsType[Error](err); !ok || e.Status != http.StatusBadRequest ||
				!strings.Contains(e.Message, "raftkv-length") && !strings.Contains(e.Message, "followed a redirect") {
				t.Errorf("got %v %v, want one line with status 400 about the redirect", c, err)
			}
		})
	}
}

// TestGuardBody: a body that is not to be read is not, and the reason comes out.
func TestGuardBody(t *testing.T) {
	elsewhere := errors.New("elsewhere")
	for _, tt := range []struct{ name, method, target string }{
		{name: "value", method: "PUT", target: "/set?key=k"},
		{name: "form", method: "POST", target: "/set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := strings.NewReader("key=k&value=v")
			r := httptest.NewRequest(tt.method, tt.target, body)
			GuardBody(r, func() error { return elsewhere })
			if _, err := Set(r, testHistory); !errors.Is(err, elsewhere) {
				t.Errorf("got %v, want %v", err, elsewhere)
			}
			if body.Len() != 13 {
				t.Errorf("%d bytes of the body are left, want all 13", body.Len())
			}
		})
	}
}

// TestErrorBeforeTheBody: a client that sends all of its body before it looks for an answer
// gets one, although nothing reads the body.
func TestErrorBeforeTheBody(t *testing.T) {
	const size = drainBytes - 1 // more than all buffers on the way hold
	answered := make(chan struct{})
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, r, http.StatusTemporaryRedirect, "elsewhere")
		close(answered)
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	head := "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8388607\r\n\r\n"
	if _, err := io.WriteString(conn, head+strings.Repeat("v", size)); err != nil {
		t.Fatalf("send the body: %v", err)
	}
	<-answered
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("got %v %v, want 307", response, err)
	}
}

// TestErrorIsNotHeldBack: the answer comes at once, whether the body comes or not.
func TestErrorIsNotHeldBack(t *testing.T) {
	was := drainTime
	t.Cleanup(func() { drainTime = was }) // after the server is closed
	drainTime = 50 * time.Millisecond
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, r, http.StatusTemporaryRedirect, "elsewhere")
	})
	for name, header := range map[string]string{
		"announced": "Content-Length: 700", "waiting": "Expect: 100-continue\r\nContent-Length: 700",
		"unknown": "Transfer-Encoding: chunked",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // an end if the server goes on
		_, _ = io.WriteString(conn, "PUT / HTTP/1.1\r\nHost: localhost\r\n"+header+"\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("%s: got %v %v, want 307", name, response, err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatalf("%s: got %v, want the connection closed in order", name, err)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"http://kv-1:8000", "https://kv-1.example", "http://10.0.0.1:80", "http://[::1]:8000",
		"http://127.0.0.1:8000", ""} {
		if err := CheckURL(good); err != nil {
			t.Errorf("%s: got %v, want no error", good, err)
		}
	}
	for _, bad := range []string{"kv-1", "kv-1:8000", "10.0.0.1:8000", "ftp://kv-1", "http://", "http://kv-1:8000/",
		"http://kv-1/path", "http://kv-1:8000?", "http://kv-1#x", "http://user@kv-1", "http://kv-1:", "http://kv-1:0",
		"http://kv-1:65536", "http://kv-1:http", "http://0.0.0.0:8000", "http://[::]:8000", "HTTP://kv-1:8000",
		"http://a b", "http://a\nb"} {
		if err := CheckURL(bad); err == nil {
			t.Errorf("%q: got no error, want one", bad)
		}
	}
}
