package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raftkv/internal/kv"
)

// serve answers every request by answer, over real TCP.
func serve(t testing.TB, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s
}

func get(t testing.TB, s *httptest.Server) *bufio.Reader {
	t.Helper()
	r, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Body.Close() })
	return bufio.NewReader(r.Body)
}

func line(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	text, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("got %q, %v, want a line", text, err)
	}
	return text
}

// heap returns the bytes in use, once they change no more: a server that fills the buffers of its connection makes
// garbage.
func heap() int64 {
	for last := int64(-1); ; time.Sleep(20 * time.Millisecond) {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		now := int64(m.HeapAlloc)
		if change := now - last; last >= 0 && max(change, -change) < 64<<10 {
			return now
		}
		last = now
	}
}

// TestSlowReaderOfAList: while a client takes its time over all keys, writes
// go on, it sees nothing of them, and it costs the memory of the pages that they
// change.
func TestSlowReaderOfAList(t *testing.T) {
	const keys, changed = 100_000, 100
	store := kv.New()
	empty := heap()
	value := []byte(strings.Repeat("v", 100))
	store.Update(1, 1, nil, func(tx *kv.Tx) {
		for i := range keys {
			tx.Set(fmt.Sprintf("key-%07d", i), value)
		}
	})
	store.Reset() // and so without a history of them
	store.Update(1, 1, nil, func(tx *kv.Tx) {
		for i := range keys {
			tx.Stage(fmt.Sprintf("key-%07d", i), value)
		}
		tx.Restore(keys, 0)
	})
	whole := heap() - empty

	finished := make(chan error, 1)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		finished <- WriteList(w, store.Clone(), ListRequest{}, testHistory)
	})
	body := get(t, server)
	if got, want := line(t, body), `{"key":"key-0000000","value":"`+string(value)+`","index":1}`+"\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	before := heap()
	for i := range changed {
		store.Update(uint64(i+2), 1, nil, func(tx *kv.Tx) {
			tx.Set(fmt.Sprintf("key-%07d", (i*7919)%keys), []byte("changed"))
			tx.Remove(fmt.Sprintf("key-%07d", (i*7919+1)%keys))
		})
	}
	if len(finished) > 0 {
		t.Fatal("the list has ended before it was read: it proves nothing")
	}
	grown := heap() - before
	t.Logf("%d keys: %d KiB, after %d changes %d KiB more", keys, whole>>10, 2*changed, grown>>10)
	if grown > whole/5 {
		t.Errorf("the reader holds %d bytes after %d changes to %d bytes of keys, want less than a fifth",
			grown, changed, whole)
	}
	n := 1
	for ; ; n++ {
		text, err := body.ReadString('\n')
		if err == io.EOF {
			break
		}
		if want := fmt.Sprintf(`{"key":"key-%07d","value":"%s","index":1}`+"\n", n, value); err != nil || text != want {
			t.Fatalf("line %d: got %s, %v, want %s", n, text, err, want)
		}
	}
	if n != keys {
		t.Errorf("got %d keys, want %d", n, keys)
	}
	if err := <-finished; err != nil {
		t.Error(err)
	}
}

func TestListEndsWithItsReader(t *testing.T) {
	store := kv.New()
	store.Update(1, 1, nil, func(tx *kv.Tx) {
		for i := range 100 {
			tx.Set(fmt.Sprint(i), make([]byte, 1<<20))
		}
	})
	finished := make(chan error, 1)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		finished <- WriteList(w, store, ListRequest{}, testHistory)
	})
	r, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if err := <-finished; err == nil {
		t.Error("the client has gone: got no error")
	}
}

// TestQuietWatch: where nothing happens a comment comes, with an id that grows, so
// that the watch can be resumed from there.
func TestQuietWatch(t *testing.T) {
	store := kv.New()
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := WatchRequest{Prefix: "k", history: testHistory}
		_ = q.Serve(r.Context(), t.Context(), w, store, 5*time.Millisecond)
	})
	body := get(t, server)
	for _, want := range []string{": watching after index 0\n", "id: 0-0badcafe\n", "\n", ": keep-alive\n",
		"id: 0-0badcafe\n", "\n"} {
		if got := line(t, body); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	store.Update(7, 1, nil, func(tx *kv.Tx) { tx.Set("other", nil) })
	for line(t, body) != "id: 7-0badcafe\n" {
	}
	store.Update(8, 2, nil, func(tx *kv.Tx) { tx.Set("k", []byte("<v>\n")) })
	for {
		got := line(t, body)
		if !strings.HasPrefix(got, "data: ") {
			continue
		}
		if want := `data: {"index":8,"term":2,"changes":[{"op":"set","key":"k","value":"<v>\n"}]}` + "\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		break
	}
}

// flushes counts what is sent at once.
type flushes struct {
	*httptest.ResponseRecorder

	mu    sync.Mutex // guards the recorder, and what follows
	sizes []int
}

func (f *flushes) SetWriteDeadline(time.Time) error { return nil }

func (f *flushes) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ResponseRecorder.Write(b)
}

func (f *flushes) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sizes = append(f.sizes, f.Body.Len())
}

// sent is how often, and what.
func (f *flushes) sent() (times int, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sizes), f.Body.String()
}

// TestEventsAreSentTogether: what comes soon after an event that was sent waits, the longer the more
// watches there are, and is then sent at once; what comes alone is sent at once too.
func TestEventsAreSentTogether(t *testing.T) {
	for _, tt := range []struct {
		watchers int
		pause    time.Duration
	}{{1, 200 * time.Microsecond}, {100, 20 * time.Millisecond}, {1000, 200 * time.Millisecond}, {4000,
		200 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			store, w := kv.New(), &flushes{ResponseRecorder: httptest.NewRecorder()}
			var others []*kv.Watcher
			for range tt.watchers - 1 {
				other, _ := store.WatchNow("other")
				others = append(others, other)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var served sync.WaitGroup
			served.Go(func() {
				q := WatchRequest{Prefix: "k", history: testHistory}
				_ = q.Serve(ctx, t.Context(), w, store, time.Hour)
			})
			index := uint64(0)
			set := func() {
				synctest.Wait()
				index++
				store.Update(index, 1, nil, func(tx *kv.Tx) { tx.Set("k", nil) })
				synctest.Wait()
			}
			set()
			alone, _ := w.sent()
			for range 50 {
				set()
			}
			time.Sleep(tt.pause - 1)
			synctest.Wait()
			early, _ := w.sent()
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			then, body := w.sent()
			if got := []int{alone, early, then}; !slices.Equal(got, []int{2, 2, 3}) {
				t.Errorf("%d watchers: sent %d times after one event, %d until the pause of %v ends, %d then, want 2, 2, 3",
					tt.watchers, alone, early, tt.pause, then)
			}
			if got := strings.Count(body, "data: "); got != 51 {
				t.Errorf("%d watchers: got %d events, want 51", tt.watchers, got)
			}
			time.Sleep(tt.pause)
			set()
			if got, _ := w.sent(); got != 4 {
				t.Errorf("%d watchers: sent %d times after one more event, want 4", tt.watchers, got)
			}
			cancel()
			served.Wait()
			for _, other := range others {
				other.Close()
			}
		})
	}
}

// TestReadBodyIsNoLimit: what is done with a body, once it was read, may take longer
// than a read of it.
func TestReadBodyIsNoLimit(t *testing.T) {
	was := ioTimeout
	t.Cleanup(func() { ioTimeout = was }) // after the server is closed
	ioTimeout = 50 * time.Millisecond
	finished := make(chan error, 1)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body := DeadlineReader(w, r)
		_, err := io.ReadAll(body)
		_, _ = body.Read(make([]byte, 1)) // as a bufio.Reader may
		select {
		case <-r.Context().Done():
			err = r.Context().Err()
		case <-time.After(4 * ioTimeout):
		}
		finished <- err
	})
	response, err := http.Post(server.URL, "", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if err := <-finished; err != nil {
		t.Errorf("got %v, want the request to go on", err)
	}
}

// TestWatchEnds: each end of a watch leaves no goroutine behind, and a client that is
// still there gets the reason.
func TestWatchEnds(t *testing.T) {
	store := kv.New()
	serving, end := context.WithCancelCause(t.Context())
	finished := make(chan error, 3)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			finished <- WatchRequest{history: testHistory}.Serve(r.Context(), t.Context(), w, store, time.Hour)
		} else {
			finished <- WatchRequest{history: testHistory}.Serve(r.Context(), serving, w, store, time.Hour)
		}
	})
	body := get(t, server)
	line(t, body)
	store.Update(3, 1, nil, func(tx *kv.Tx) { tx.Set("k", []byte("v")) })
	for line(t, body) != "id: 3-0badcafe\n" {
	}
	stuck := time.AfterFunc(20*time.Second, server.CloseClientConnections) // should it not end
	defer stuck.Stop()
	end(errors.New("this node is shutting down"))
	text, err := io.ReadAll(body)
	events := `data: {"index":3,"term":1,"changes":[{"op":"set","key":"k","value":"v"}]}` + "\n\n" +
		"retry: 1000\nevent: end\nid: 3-0badcafe\n" +
		`data: {"reason":"this node is shutting down; watch elsewhere with the last id","index":3}` + "\n\n"
	if err != nil || string(text) != events {
		t.Errorf("the node stops: got %q, %v, want %q", text, err, events)
	}

	gone, err := http.Get(server.URL + "/gone")
	if err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(gone.Body)
	line(t, reader)
	store.Reset()
	text, err = io.ReadAll(reader)
	reason := "event: end\nid: 3-0badcafe\n" +
		`data: {"reason":"watch \"\": the history is gone; watch again with the last id","index":3}` + "\n\n"
	if err != nil || !strings.HasSuffix(string(text), reason) {
		t.Errorf("everything is replaced: got %q, %v, want the reason", text, err)
	}
	gone.Body.Close()

	left, err := http.Get(server.URL + "/gone")
	if err != nil {
		t.Fatal(err)
	}
	left.Body.Close()
	for range 3 {
		<-finished
	}
}

// TestStreamsPassProxies: each stream asks a proxy not to hold it back.
func TestStreamsPassProxies(t *testing.T) {
	store := kv.New()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	request := httptest.NewRequest(http.MethodGet, "/snapshot", nil)
	for name, write := range map[string]func(w http.ResponseWriter) error{
		"list":     func(w http.ResponseWriter) error { return WriteList(w, store, ListRequest{}, testHistory) },
		"snapshot": func(w http.ResponseWriter) error { return WriteSnapshot(w, request, store) },
		"watch": func(w http.ResponseWriter) error {
			return WatchRequest{history: testHistory}.Serve(ended, ended, w, store, time.Second)
		},
	} {
		w := httptest.NewRecorder()
		_ = write(w) // a recorder has no deadlines, so that there may be an error
		if got := w.Header().Get("X-Accel-Buffering"); got != "no" {
			t.Errorf("%s: X-Accel-Buffering: got %q, want no", name, got)
		}
	}
}

// TestEventSource: a browser gives up at any status but 200, and so gets none where it
// should come back; others get the statuses.
func TestEventSource(t *testing.T) {
	store := kv.New()
	store.Update(7, 1, nil, func(tx *kv.Tx) { tx.Set("k", []byte("v")) })
	browser := http.Header{"Accept": {"text/event-stream"}, "Last-Event-Id": {"12-0badcafe"}}
	request := func(header http.Header) *http.Request {
		r := httptest.NewRequest(http.MethodGet, "/watch", nil)
		maps.Copy(r.Header, header)
		return r
	}

	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q, err := Watch(request(browser), testHistory)
		if err == nil {
			err = q.Serve(r.Context(), t.Context(), w, store, time.Hour)
		}
		if err != nil {
			t.Errorf("history of another cluster: got %v, want an event", err)
		}
	})
	body := get(t, server)
	for _, want := range []string{": watching after index 7", "id: 7-0badcafe", "", "retry: 1000", "event: reset",
		"id: 7-0badcafe",
		`data: {"reason":"Last-Event-ID: 12 is not reached yet, so it is another cluster's; ` +
			`list, then watch from the Raftkv-Watch-From of that","index":7}`, ""} {
		if got := line(t, body); got != want+"\n" {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	store.Update(8, 1, nil, func(tx *kv.Tx) { tx.Remove("k") })
	if got, want := line(t, body), "id: 8-0badcafe\n"; got != want {
		t.Errorf("after the reset: got %q, want %q", got, want)
	}

	for _, tt := range []struct {
		name, path string
		header     http.Header
		want       string
	}{
		{name: "browser", path: "/watch", header: browser,
			want: "retry: 1000\nevent: unavailable\ndata: {\"reason\":\"no leader\"}\n\n"},
		{name: "curl", path: "/watch", header: http.Header{"Accept": {"*/*"}}},
		{name: "another path", path: "/list", header: browser},
	} {
		r, w := request(tt.header), deadlines{httptest.NewRecorder()}
		r.URL.Path = tt.path
		answered := WriteUnavailable(w, r, "no leader")
		if got := w.Body.String(); answered != (tt.want != "") || got != tt.want {
			t.Errorf("%s: got %v %q, want %q", tt.name, answered, got, tt.want)
		}
	}
	q, err := Watch(request(http.Header{"Last-Event-Id": {"12-0badcafe"}}), testHistory)
	if err == nil {
		err = q.Serve(t.Context(), t.Context(), httptest.NewRecorder(), store, time.Hour)
	}
	if e, ok := errors.AsType[Error](err); !ok || e.Status != http.StatusGone {
		t.Errorf("curl: got %v, want status 410", err)
	}
}

// deadlines is a recorder of an answer that may have deadlines.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetWriteDeadline(time.Time) error { return nil }

// TestStreamsHaveAnEnd: without chunks, as in HTTP/1.0, a client knows by the length whether
// it has everything.
func TestStreamsHaveAnEnd(t *testing.T) {
	store := kv.New()
	store.Update(7, 1, nil, func(tx *kv.Tx) {
		for i := range 1000 {
			tx.Set(fmt.Sprint("key-", i), make([]byte, 100))
		}
	})
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/snapshot" {
			_ = WriteSnapshot(w, r, store)
		} else if q, err := List(r); err == nil {
			_ = WriteList(w, store, q, testHistory)
		}
	})
	for _, tt := range []struct{ target, protocol string }{
		{target: "/list", protocol: "HTTP/1.0"},
		{target: "/list?prefix=key-1&limit=50", protocol: "HTTP/1.0"},
		{target: "/list?prefix=none", protocol: "HTTP/1.0"},
		{target: "/snapshot", protocol: "HTTP/1.0"},
		{target: "/list", protocol: "HTTP/1.1"},
		{target: "/snapshot", protocol: "HTTP/1.1"},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = fmt.Fprintf(conn, "GET %s %s\r\nHost: localhost\r\n\r\n", tt.target, tt.protocol)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		switch chunked := len(response.TransferEncoding) > 0; {
		case err != nil || (tt.protocol == "HTTP/1.1" && !chunked):
			t.Errorf("%s %s: got %v, want chunks", tt.target, tt.protocol, err)
		case tt.protocol == "HTTP/1.0" && (chunked || response.ContentLength != int64(len(body))):
			t.Errorf("%s %s: got Content-Length %d for %d bytes", tt.target, tt.protocol, response.ContentLength, len(body))
		}
	}
}
