package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i) // not sorted
	}
	for _, tt := range []struct {
		of   []time.Duration
		p    float64
		want time.Duration
	}{
		{of: nil, p: 50, want: 0},
		{of: []time.Duration{7}, p: 50, want: 7},
		{of: []time.Duration{7}, p: 99, want: 7},
		{of: []time.Duration{3, 1}, p: 50, want: 1},
		{of: []time.Duration{3, 1, 2}, p: 50, want: 2},
		{of: hundred, p: 50, want: 50},
		{of: hundred, p: 99, want: 99},
		{of: hundred, p: 100, want: 100},
		{of: hundred, p: 0, want: 1},
	} {
		if got := percentile(tt.of, tt.p); got != tt.want {
			t.Errorf("percentile %v of %d: got %v, want %v", tt.p, len(tt.of), got, tt.want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		of   []float64
		want float64
	}{
		{of: nil, want: 0}, {of: []float64{4}, want: 4}, {of: []float64{9, 1, 5}, want: 5}, {of: []float64{4, 1, 3, 2},
			want: 2.5},
	} {
		if got := median(tt.of); got != tt.want {
			t.Errorf("median of %v: got %v, want %v", tt.of, got, tt.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	five := []float64{50, 10, 30, 20, 40} // not sorted
	for _, tt := range []struct {
		of   []float64
		q    float64
		want float64
	}{
		{of: nil, q: 0.25, want: 0}, {of: []float64{4}, q: 0.75, want: 4}, {of: five, q: 0, want: 10},
		{of: five, q: 0.25, want: 20}, {of: five, q: 0.75, want: 40}, {of: five, q: 1, want: 50}, {of: []float64{1, 3},
			q: 0.25, want: 1.5},
	} {
		if got := quantile(tt.of, tt.q); got != tt.want {
			t.Errorf("quantile %v of %v: got %v, want %v", tt.q, tt.of, got, tt.want)
		}
	}
}

func TestReadAnswer(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nDate: Mon\r\ncontent-LENGTH:  3\r\n\r\nabc"
	for _, tt := range []struct {
		name, in, rest string
		want           answer
		text           string
		err            error
	}{
		{name: "a value, and the next answer behind it", in: ok + "HTTP/1.1", rest: "HTTP/1.1", want: answer{status: 200,
			length: 3}, text: "", err: nil},
		{name: "empty", in: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", rest: "", want: answer{status: 200}, text: "",
			err: nil},
		{name: "the last one", in: "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", rest: "",
			want: answer{status: 200, last: true}, text: "", err: nil},
		{name: "an error", in: "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nno!\n", rest: "",
			want: answer{status: 503, length: 4}, text: "no!\n", err: nil},
		{name: "chunked", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", rest: "",
			want: answer{}, text: "", err: errAnswer},
		{name: "not HTTP", in: "220 mail.example.org ESMTP\r\n", rest: "", want: answer{}, text: "", err: errAnswer},
		{name: "no status", in: "HTTP/1.1 2x0 OK\r\n\r\n", rest: "", want: answer{}, text: "", err: errAnswer},
		{name: "a length that is none", in: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", rest: "", want: answer{},
			text: "", err: errAnswer},
		{name: "nothing", in: "", rest: "", want: answer{}, text: "", err: io.EOF},
		{name: "cut in the head", in: "HTTP/1.1 200 OK\r\nContent-Le", rest: "", want: answer{}, text: "", err: io.EOF},
		{name: "cut in the body", in: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", rest: "", want: answer{},
			text: "", err: io.EOF},
		{name: "cut in an error", in: "HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\nabc", rest: "", want: answer{},
			text: "", err: io.ErrUnexpectedEOF},
		{name: "a line longer than the buffer", in: "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 5000) + "\r\n\r\n",
			rest: "", want: answer{}, text: "", err: bufio.ErrBufferFull},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := bufio.NewReader(strings.NewReader(tt.in))
			got, err := readAnswer(r)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error: got %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			if got.status != tt.want.status || got.length != tt.want.length || got.last != tt.want.last ||
				string(got.text) != tt.text {
				t.Errorf("got %+v, want %+v with %q", got, tt.want, tt.text)
			}
			if rest, _ := io.ReadAll(r); string(rest) != tt.rest {
				t.Errorf("left in the reader: got %q, want %q", rest, tt.rest)
			}
		})
	}
}

func TestReadAnswerDoesNotAllocate(t *testing.T) {
	in := strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nDate: Mon, 23 Nov 2026 14:17:46 GMT\r\n\r\nabc")
	r := bufio.NewReader(in)
	allocations := testing.AllocsPerRun(100, func() {
		_, _ = in.Seek(0, io.SeekStart)
		r.Reset(in)
		if _, err := readAnswer(r); err != nil {
			t.Fatal(err)
		}
	})
	if allocations != 0 {
		t.Errorf("got %v allocations, want 0", allocations)
	}
}

// fakeNode is a system with one node that speaks raftkv's HTTP, by net/http.
type fakeNode struct {
	group
	address string

	mu   sync.Mutex // guards data
	data map[string]string
}

func (f *fakeNode) connect(_ context.Context, l load, n int) ([]client, func(), error) {
	return dialAll(n, func(int) *httpClient { return newHTTPClient(f.address, l.stale) })
}

func (f *fakeNode) fill(context.Context, int, int) error { return nil }

func (f *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := r.URL.Query().Get("key")
	if r.Method == http.MethodPut {
		body, _ := io.ReadAll(r.Body)
		f.data[k] = string(body)
		fmt.Fprintln(w, "OK index=1")
		return
	}
	if _, ok := f.data[k]; !ok {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	fmt.Fprint(w, f.data[k])
}

func newFakeNode(t *testing.T) *fakeNode {
	f := &fakeNode{group: group{label: "fake"}, data: make(map[string]string)}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.address = server.Listener.Addr().String()
	return f
}

// The cheap client says what net/http understands.
func TestHTTPClient(t *testing.T) {
	f := newFakeNode(t)
	c := newHTTPClient(f.address, true)
	defer c.close()
	if err := c.read(1234567); err == nil || !strings.Contains(err.Error(), "404: not found") {
		t.Errorf("a key that is not there: got %v, want a 404", err)
	}
	if err := c.write(1234567); err != nil {
		t.Fatal(err)
	}
	if err := c.read(1234567); err != nil {
		t.Error(err)
	}
	if got, want := f.data[key(1234567)], string(value); got != want || len(got) != valueBytes {
		t.Errorf("stored: got %q, want %q", got, want)
	}
	f.data[key(5)] = "short"
	if err := c.read(5); err == nil {
		t.Error("an answer of another length: got no error")
	}
	c.close()
	if err := c.read(1234567); err == nil {
		t.Error("a closed client: got no error")
	}
}

// A connection that the server has closed costs one operation, not the client.
func TestHTTPClientDialsAgain(t *testing.T) {
	f := newFakeNode(t)
	c := newHTTPClient(f.address, false)
	defer c.close()
	if err := c.write(1); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	if err := c.read(1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
	if err := c.read(1); err != nil {
		t.Error(err)
	}
}

// newFakeHraftd is an hraftd of three nodes that share a map, of which the second leads.
func newFakeHraftd(t *testing.T) (*hraftd, map[string]string) {
	var mu sync.Mutex // guards data
	data := make(map[string]string)
	h := &hraftd{group: group{label: hraftdLabel}}
	for i := range 3 {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if k, ok := strings.CutPrefix(r.URL.Path, "/key/"); ok && r.Method == http.MethodGet {
				fmt.Fprintf(w, `{"%s":"%s"}`, k, data[k])
				return
			}
			set := make(map[string]string)
			if err := json.NewDecoder(r.Body).Decode(&set); err != nil || r.URL.Path != "/key" || r.Method != http.MethodPost {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			if i != 1 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			maps.Copy(data, set)
		}))
		t.Cleanup(server.Close)
		h.addresses = append(h.addresses, server.Listener.Addr().String())
	}
	return h, data
}

// Keys are written by the leader, whichever node that is.
func TestHraftd(t *testing.T) {
	h, data := newFakeHraftd(t)
	if err := h.fill(t.Context(), 0, 200); err != nil {
		t.Fatal(err)
	}
	for k := range 200 {
		if data[key(k)] != string(value) {
			t.Fatalf("%s: got %q, want %q", key(k), data[key(k)], value)
		}
	}
	clients, closeAll, err := h.connect(t.Context(), writes, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	if err := clients[1].write(1234567); err != nil || data[key(1234567)] != string(value) {
		t.Errorf("got %q, %v, want %q", data[key(1234567)], err, value)
	}
	follower := newHraftdClient(h.addresses[0])
	defer follower.close()
	if err := follower.write(1); err == nil {
		t.Error("a node that does not lead: got no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.fill(ctx, 0, 200); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: got %v, want %v", err, context.Canceled)
	}
}

func TestMeasure(t *testing.T) {
	f := newFakeNode(t)
	for k := range 10 {
		f.data[key(k)] = string(value)
	}
	s, err := measure(t.Context(), f, mix, 3, 10, 10*time.Millisecond, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.took) == 0 || len(s.ended) != len(s.took) || s.errors != 0 || s.length < 100*time.Millisecond || s.own <= 0 {
		t.Errorf("got %d operations, %d ends, %d errors in %v with %v of CPU", len(s.took), len(s.ended), s.errors,
			s.length, s.own)
	}
	for i := range s.ended {
		if s.ended[i] < 0 || s.took[i] <= 0 {
			t.Fatalf("operation %d: ended at %v, took %v", i, s.ended[i], s.took[i])
		}
	}
	if _, err = measure(t.Context(), f, linearizable, 1, 100_000, 0, 30*time.Millisecond); err == nil {
		// Of 100,000 keys it has 10: a hit is most unlikely.
		t.Error("nothing but errors: got no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = measure(ctx, f, mix, 1, 10, time.Hour, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: got %v, want %v", err, context.Canceled)
	}
}
