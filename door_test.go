package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/connlimit"
	"raftkv/internal/kv"
)

// documented are the statuses of docs/http.md, and 301: mux cleans paths. The node
// of these tests always leads, so that 307, 503 and 504 are not among them.
var documented = []int{200, 301, 304, 400, 403, 404, 405, 409, 410, 412, 413, 422}

// checked is a handler that holds every answer of s to what is promised. It expects one
// request at a time.
type checked struct {
	s *service
	h http.Handler

	mu      sync.Mutex // held while a request is answered; guards failure
	failure string     // the first broken promise
}

// seen is a ResponseWriter that keeps the status and the start of the body.
type seen struct {
	http.ResponseWriter
	status int
	body   []byte
}

func (s *seen) WriteHeader(status int) {
	s.status = cmp.Or(s.status, status)
	s.ResponseWriter.WriteHeader(status)
}

func (s *seen) Write(b []byte) (int, error) {
	s.status = cmp.Or(s.status, http.StatusOK)
	s.body = append(s.body, b[:min(len(b), max(0, 4<<10-len(s.body)))]...)
	return s.ResponseWriter.Write(b)
}

func (s *seen) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (c *checked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(format string, args ...any) {
		if c.failure == "" {
			c.failure = fmt.Sprintf("%s %.200q: ", r.Method, r.RequestURI) + fmt.Sprintf(format, args...)
		}
	}
	before := c.s.node.Info().LastIndex
	answered := &seen{ResponseWriter: w}
	func() {
		defer func() {
			if p := recover(); p != nil {
				fail("panic: %v\n%s", p, debug.Stack())
			}
		}()
		c.h.ServeHTTP(answered, r)
	}()
	gone := r.Context().Err() != nil
	status := cmp.Or(answered.status, http.StatusOK)
	if !slices.Contains(documented, status) && !gone {
		fail("got status %d %q, want one of %v", status, answered.body, documented)
	}
	if status >= 400 {
		if err := oneLineNaming(answer{status, w.Header(), string(answered.body)}); err != nil {
			fail("status %d: %v", status, err)
		}
	}
	if gone && status >= 500 { // outcome unknown: what may yet come is before this
		c.h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "http://localhost/set?key=barrier&value=", nil))
		return
	}
	writes := slices.Contains([]string{"/set", "/remove", "/restore"}, r.URL.Path) && slices.Contains([]int{200, 412, 422}, status)
	if after := c.s.node.Info().LastIndex; after != before && !writes {
		fail("status %d, and the log went from %d to %d, want no new entry", status, before, after)
	}
}

// broken returns the first promise that was broken, when no request is under way.
func (c *checked) broken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// recorder is an httptest.ResponseRecorder with deadlines, which it ignores.
type recorder struct{ *httptest.ResponseRecorder }

func (recorder) SetReadDeadline(time.Time) error  { return nil }
func (recorder) SetWriteDeadline(time.Time) error { return nil }

// FuzzHandler: whatever a client sends, no handler panics, the answer is one that is
// documented, what is refused is not in the log, and the node goes on. With wire, body
// is all that is sent, on a connection; else it makes a request with the rest.
func FuzzHandler(f *testing.F) {
	s := startNode(f, "n1", f.TempDir(), func(c *config) {
		c.electionTimeout, c.snapshotThreshold, c.logLevel = time.Second, 1000, "warn"
		c.dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("no node is there") }
	})
	leads(f, s)
	set(f, s, "a", "1") // the first write or read of a term adds an entry of its own
	h := &checked{s: s, h: newHandler(s.node, s.machine.Store, s.log, []string{"kv.example"})}
	address := serveDoor(f, s, func(server *http.Server, l net.Listener) error {
		server.Handler = h
		return api.Serve(server, l)
	})
	var backup bytes.Buffer
	if err := kv.New().WriteSnapshot(&backup); err != nil {
		f.Fatal(err)
	}
	const form = "Content-Type: application/x-www-form-urlencoded"
	for _, seed := range []struct{ method, target, header, body string }{
		{"GET", "/set?key=a&value=1", "", ""},
		{"GET", "/set?key=a&value=1&key=b&value=%00%ff", "If-Match: \"12\", \"13\"\r\nIdempotency-Key: \"a\\\"b\"", ""},
		{"GET", "/set?key=a&value=1", "If-None-Match: *", ""},
		{"GET", "/set?key=a&value=1&x%0Ay%1B=2", "", ""},
		{"GET", "/set?key=%zz&value=%4;", "Idempotency-Key: schön", ""},
		{"POST", "/set?key=a", form, "value=1&key=b&value=2"},
		{"POST", "/set", form + "; charset=\"\r\nTransfer-Encoding: chunked", "3\r\nkey\r\n0\r\n\r\n"},
		{"POST", "/set", "Content-Type: application/json", `{"key":"a"}`},
		{"PUT", "/set?key=a", "Content-Length: 10", "cut off"},
		{"PUT", "/set?key=a", "Expect: 100-continue\r\nContent-Length: 1048577", "x"},
		{"PUT", "/set?key=a", "Content-Range: bytes 0-0/2", "x"},
		{"DELETE", "/set?key=k", "", ""},
		{"HEAD", "/get?key=a", "If-None-Match: W/\"3\"", ""},
		{"GET", "/get?key=a%0Ab%1B%FF&consistency=stale", "", ""},
		{"GET", "/remove?key=a&key=b", "", ""},
		{"GET", "/remove?prefix=a", "If-Match: *", ""},
		{"GET", "/list?prefix=a&after=b&limit=18446744073709551616", "", ""},
		{"GET", "/list?limit=1", "Origin: http://localhost\r\nSec-Fetch-Site: same-origin", ""},
		{"GET", "/watch?from=1", "", ""},
		{"GET", "/watch?from=1000000&consistency=stale", "", ""},
		{"GET", "/watch", "Last-Event-Id: -1", ""},
		{"GET", "/join?nodeId=n2&raftPort=9001&raftHost=%5B::1%5D", "", ""},
		{"GET", "/join?nodeId=n2&raftPort=9001&suffrage=nonvoter", "", ""},
		{"POST", "/leave", form, "nodeId=n1"},
		{"GET", "/transfer?nodeId=n1", "", ""},
		{"GET", "/status", "Host: evil.example", ""},
		{"GET", "/snapshot", "", ""},
		{"PUT", "/restore", "", backup.String()},
		{"PUT", "/restore", "", "not a backup"},
		{"PUT", "/restore", "If-Match: \"1\"", ""},
		{"GET", "/readyz", "", ""},
		{"GET", "//a/../set?key=a&value=1", "", ""},
		{"CONNECT", "/set?key=a", "", ""},
		{"OPTIONS", "*", "", ""},
		{"GET", "http://evil.example/set?key=a&value=1", "", ""},
	} {
		f.Add(seed.method, seed.target, seed.header, seed.body, false)
	}
	for _, text := range []string{
		"GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /get?key=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /watch HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET /set?key=a b&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /set?key=a&value=1 HTTP/1.0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "GET", "\r\n\r\n", "",
	} {
		f.Add("", "", "", text, true)
	}
	f.Fuzz(func(t *testing.T, method, target, header, body string, wire bool) {
		if wire {
			checkWire(t, address, body)
		} else if r := parseRequest(method, target, header, body); r != nil {
			limit := 30 * time.Second
			if r.URL.Path == "/watch" {
				limit = 5 * time.Millisecond // it lasts as long as its client reads
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			h.ServeHTTP(recorder{httptest.NewRecorder()}, r.WithContext(ctx))
		}
		if failure := h.broken(); failure != "" {
			t.Fatal(failure)
		}
		if a := askAddress(t, address, "/healthz"); a.status != http.StatusOK {
			t.Fatalf("/healthz afterwards: got %d %q, want 200", a.status, a.body)
		}
	})
}

// parseRequest is the request that a server makes of these; nil when they are none.
func parseRequest(method, target, header, body string) *http.Request {
	text := method + " " + target + " HTTP/1.1\r\n"
	names := strings.ToLower("\n" + header)
	if !strings.Contains(names, "\nhost:") {
		text += "Host: localhost\r\n"
	}
	if !strings.Contains(names, "\ncontent-length:") && !strings.Contains(names, "\ntransfer-encoding:") {
		text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	if header != "" {
		header += "\r\n"
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text + header + "\r\n" + body)))
	if err != nil {
		return nil
	}
	return r
}

// checkWire sends text on a connection and reads the answers to it.
func checkWire(t testing.TB, address, text string) {
	c := dialDoor(t, address)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	go func() { // the node may close the connection, or not read on, before it has all
		_, _ = io.WriteString(c, text)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	r := bufio.NewReader(c)
	for {
		response, err := http.ReadResponse(r, nil)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return // ErrUnexpectedEOF also of no answer at all
		}
		if err != nil {
			if _, ok := errors.AsType[net.Error](err); ok {
				t.Fatalf("no end of the answers to %.500q: %v", text, err)
			}
			return // the body of an answer to a HEAD, which is not there
		}
		if response.StatusCode == http.StatusInternalServerError {
			t.Fatalf("got 500 to %.500q", text)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return
		}
	}
}

// serveDoor has serve serve s on another port, with a server of its own.
func serveDoor(t testing.TB, s *service, serve func(*http.Server, net.Listener) error) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(newHandler(s.node, s.machine.Store, s.log, nil), s.log.Warnf)
	server.ErrorLog = log.New(io.Discard, "", 0)
	served := make(chan error, 1)
	go func() { served <- serve(server, l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l.Addr().String()
}

func dialDoor(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func askAddress(t testing.TB, address, target string) answer {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+address+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return exchange(t, r)
}

// TestGiantHeaders: they are refused before they are whole, with a status that says so.
func TestGiantHeaders(t *testing.T) {
	s := startOne(t)
	checkUnchanged(t, s, func() {
		for name, start := range map[string]string{
			"one line":    "GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\nX: ",
			"many lines":  "GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n",
			"giant query": "GET /set?key=a&value=",
		} {
			c := dialDoor(t, s.listener.Addr().String())
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			filler := strings.Repeat("x", 1<<10)
			if name == "many lines" {
				filler = strings.Repeat("X: y\r\n", 1<<10)
			}
			go func() { // for ever: the node must not wait for the end
				_, err := io.WriteString(c, start)
				for err == nil {
					_, err = io.WriteString(c, filler)
				}
			}()
			response, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%s: %v, want an answer", name, err)
			} else if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s: got %d, want 431", name, response.StatusCode)
			}
		}
	})
	if a := ask(t, s, "/healthz"); a.status != http.StatusOK {
		t.Errorf("/healthz afterwards: got %d %q, want 200", a.status, a.body)
	}
}

// TestHeldHeadersAreBounded: connections that never end their headers hold no more than
// api.MaxHeaderBytes together; here a server is given less.
func TestHeldHeadersAreBounded(t *testing.T) {
	s := startOne(t)
	const most = 8 * mebi
	address := serveDoor(t, s, func(server *http.Server, l net.Listener) error {
		return server.Serve(connlimit.Listen(l, api.MaxConnections, most))
	})
	before := heap()
	text := "GET /set?key=a&value=" + strings.Repeat("v", mebi)
	for range 100 {
		c := dialDoor(t, address)
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	if a := askAddress(t, address, "/set?key=k&value="+strings.Repeat("v", mebi)); a.status != http.StatusOK {
		t.Errorf("a large set beside them: got %d %q, want 200", a.status, a.body)
	}
	got := heap() - before
	t.Logf("100 headers of 1 MiB that do not end take %.1f MiB", float64(got)/mebi)
	if want := int64(6 * most); got > want { // net/http copies a line as it grows
		t.Errorf("the heap grew by %d bytes, want %d at most", got, want)
	}
}

// heap is how many bytes are in use, of the heap and of stacks.
func heap() int64 {
	runtime.GC()
	runtime.GC() // of pools, too
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestSlowSenders: who does not end a header in time is let go, whether it sends nothing
// or a byte now and then. api.NewServer's limit is 10 s; here it is less.
func TestSlowSenders(t *testing.T) {
	s := startOne(t)
	if got := api.NewServer(newHandler(s.node, s.machine.Store, s.log, nil), s.log.Warnf).ReadHeaderTimeout; got <= 0 || got > 10*time.Second {
		t.Errorf("ReadHeaderTimeout: got %v, want 10s at most", got)
	}
	const limit = 200 * time.Millisecond
	address := serveDoor(t, s, func(server *http.Server, l net.Listener) error {
		server.ReadHeaderTimeout = limit
		return api.Serve(server, l)
	})
	checkUnchanged(t, s, func() {
		for name, text := range map[string]string{
			"nothing":               "",
			"a byte at a time":      "GET /set?key=a&value=" + strings.Repeat("v", 10000),
			"after a whole request": "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + "GET /set?key=a&value=" + strings.Repeat("v", 10000),
		} {
			t.Run(name, func(t *testing.T) {
				c := dialDoor(t, address)
				defer c.Close()
				go func() {
					for i := range len(text) {
						if _, err := io.WriteString(c, text[i:i+1]); err != nil {
							return
						}
						time.Sleep(limit / 100)
					}
				}()
				_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
				_, err := io.Copy(io.Discard, c)
				if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
					t.Errorf("it was not closed")
				}
			})
		}
	})
}

// TestIdleConnections: 10,000 connections on which nothing happens, half of them new and
// half after a request, keep no client out, end no watch, and take a bounded amount of
// memory.
func TestIdleConnections(t *testing.T) {
	s := startOne(t)
	set(t, s, "k", "v")
	address := serveDoor(t, s, func(server *http.Server, l net.Listener) error {
		server.ReadHeaderTimeout, server.IdleTimeout = time.Hour, time.Hour // it is not these that make room
		return api.Serve(server, l)
	})
	count := 10000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// Both ends of each are in this process.
	if room := max(1, int(min(limit.Cur, 1<<20))/2-500); count > room {
		t.Logf("ulimit -n is %d: %d connections in place of %d; the bound is at %d", limit.Cur, room, count, api.MaxConnections)
		count = room
	}
	watch := dialDoor(t, address)
	defer watch.Close()
	_ = watch.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(watch, "GET /watch?prefix=watched HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	events := bufio.NewScanner(watch)
	waitLine(t, events, ": watching")
	checkUnchanged(t, s, func() {
		before := heap()
		conns := make([]net.Conn, count)
		defer func() {
			for _, c := range conns {
				if c != nil {
					_ = c.Close()
				}
			}
		}()
		for i := range conns {
			conns[i] = dialDoor(t, address)
			if i%2 == 0 {
				continue
			}
			// The answer tells that it was accepted, so that the kernel's queue is never full.
			_, err := io.WriteString(conns[i], "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
			_ = conns[i].SetReadDeadline(time.Now().Add(30 * time.Second))
			b := make([]byte, 15)
			if err == nil {
				_, err = io.ReadFull(conns[i], b)
			}
			if err != nil || string(b) != "HTTP/1.1 200 OK" {
				t.Fatalf("connection %d: got %q, %v, want 200", i, b, err)
			}
		}
		begin := time.Now()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
		for range 10 {
			r, err := http.NewRequest(http.MethodGet, "http://"+address+"/get?key=k", nil)
			if err != nil {
				t.Fatal(err)
			}
			a, err := send(c, r)
			if err != nil || a.status != http.StatusOK || a.body != "v" {
				t.Errorf("a new client: got %d %q, %v, want 200 and v", a.status, a.body, err)
			}
		}
		t.Logf("10 new clients beside %d idle connections took %v", count, time.Since(begin))
		if count > api.MaxConnections {
			_ = conns[0].SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the oldest connection: got %v, want that it is closed", err)
			}
		}
		each := (heap() - before) / int64(min(count, api.MaxConnections))
		t.Logf("an idle connection takes %d bytes, both ends", each)
		if each > 64<<10 {
			t.Errorf("an idle connection takes %d bytes, want 65536 at most", each)
		}
	})
	set(t, s, "watched", "1")
	waitLine(t, events, "data: ")
}

// waitLine reads lines up to one that begins with start.
func waitLine(t testing.TB, lines *bufio.Scanner, start string) {
	t.Helper()
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), start) {
			return
		}
	}
	t.Fatalf("got an end (%v), want a line that begins with %q", lines.Err(), start)
}
