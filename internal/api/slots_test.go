package api

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"raftkv/internal/flight"
)

// slotServer answers with slots: /read once the body is there, /hold when release is closed, /write with more than all
// buffers hold.
func slotServer(t testing.TB, slots *Slots) (address string, release chan struct{}) {
	t.Helper()
	release = make(chan struct{})
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w, giveBack, err := slots.Take(w, r)
		if err == nil {
			defer giveBack()
			switch r.URL.Path {
			case "/read":
				_, err = readBody(r, "value", 1<<20)
			case "/hold":
				<-release
			case "/write":
				text := strings.Repeat("v", 1<<20)
				for range 64 {
					if _, err := io.WriteString(w, text); err != nil {
						return
					}
				}
			}
		}
		if e, ok := errors.AsType[Error](err); ok {
			WriteError(w, r, e.Status, e.Message)
			return
		}
		WriteLine(w, "OK")
	})
	return strings.TrimPrefix(server.URL, "http://"), release
}

// open sends a request, of which the body may be missing.
func open(t testing.TB, address, path string, body string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	head := "PUT " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
	if _, err := io.WriteString(c, head+body); err != nil {
		t.Fatal(err)
	}
	return c
}

// result returns the status and the body of the answer.
func result(t testing.TB, c net.Conn) (int, string) {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		body = append(body, err.Error()...)
	}
	return response.StatusCode, string(body)
}

// waitSlots waits until so many slots are held, and so many of them wait for their clients.
func waitSlots(t testing.TB, s *Slots, held, waiting int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		gotHeld, gotWaiting, _ := s.slots.Counts()
		if int(gotHeld) == held && gotWaiting == waiting {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %d held and %d that wait, want %d and %d", gotHeld, gotWaiting, held, waiting)
		}
	}
}

func newTestSlots(n int) *Slots {
	return &Slots{slots: flight.New(int64(n), 4*n, queuedBytes)}
}

// TestLongestWaitingGivesWay: for its body, as soon as all slots are taken and one more request comes. The others go
// on.
func TestLongestWaitingGivesWay(t *testing.T) {
	slots := newTestSlots(3)
	address, release := slotServer(t, slots)
	first := open(t, address, "/read", "")
	waitSlots(t, slots, 1, 1)
	second := open(t, address, "/read", "")
	waitSlots(t, slots, 2, 2)
	third := open(t, address, "/hold", "12")
	waitSlots(t, slots, 3, 2)
	if status, body := result(t, open(t, address, "/read", "12")); status != 200 {
		t.Errorf("one more request: got %d %q, want 200", status, body)
	}
	if status, body := result(t, first); status != 503 || !strings.Contains(body, "nothing was done") {
		t.Errorf("the one that waited longest: got %d %q, want 503", status, body)
	}
	waitSlots(t, slots, 2, 1)
	if _, err := io.WriteString(second, "12"); err != nil {
		t.Fatal(err)
	}
	if status, body := result(t, second); status != 200 {
		t.Errorf("the other one: got %d %q, want 200", status, body)
	}
	close(release)
	if status, body := result(t, third); status != 200 {
		t.Errorf("the one that does not wait: got %d %q, want 200", status, body)
	}
	waitSlots(t, slots, 0, 0)
}

// TestNoneWaits: when no request waits for its client, the next one waits for a slot, and nothing of its body is read;
// beyond the queue it is refused, and nothing is done.
func TestNoneWaits(t *testing.T) {
	slots := newTestSlots(1)
	address, release := slotServer(t, slots)
	first := open(t, address, "/hold", "12")
	waitSlots(t, slots, 1, 0)
	var queued []net.Conn
	for range 4 {
		queued = append(queued, open(t, address, "/read", "12"))
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, _, n := slots.slots.Counts(); n == len(queued) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("got %d that wait, want %d", n, len(queued))
		}
	}
	status, body := result(t, open(t, address, "/read", "12"))
	if want := "too many requests of this kind are under way"; status != 503 || !strings.Contains(body, want) {
		t.Errorf("beyond the queue: got %d %q, want 503", status, body)
	}
	close(release)
	for _, c := range append(queued, first) {
		if status, body := result(t, c); status != 200 {
			t.Errorf("got %d %q, want 200", status, body)
		}
	}
	waitSlots(t, slots, 0, 0)
}

// TestSlowReaderGivesWay: a client that does not read its answer waits as one that does not send its body.
func TestSlowReaderGivesWay(t *testing.T) {
	slots := newTestSlots(1)
	address, _ := slotServer(t, slots)
	slow := open(t, address, "/write", "12")
	waitSlots(t, slots, 1, 1)
	if status, body := result(t, open(t, address, "/read", "12")); status != 200 {
		t.Errorf("the next request: got %d %q, want 200", status, body)
	}
	if n, err := io.Copy(io.Discard, slow); err == nil && n >= 64<<20 {
		t.Errorf("the slow reader got all %d bytes, want that its answer breaks off", n)
	}
	waitSlots(t, slots, 0, 0)
}

// TestSlotsOfOneHost: a host has a quarter of all slots. Its next request takes the slot of its own that has waited
// longest, and no other host's; a loopback address has no such bound.
func TestSlotsOfOneHost(t *testing.T) {
	slots := newTestSlots(8)
	take := func(remote string) (*http.Request, func(), error) {
		r := httptest.NewRequest(http.MethodPut, "/set?key=k", strings.NewReader("v"))
		r.RemoteAddr = remote
		_, release, err := slots.Take(httptest.NewRecorder(), r)
		return r, release, err
	}
	var releases []func()
	hold := func(remote string) *http.Request {
		t.Helper()
		r, release, err := take(remote)
		if err != nil {
			t.Fatalf("%s: %v", remote, err)
		}
		releases = append(releases, release)
		return r
	}
	other := hold("192.0.2.2:1")
	reads, stop := io.Pipe()
	defer stop.Close()
	waitsFor := func(r *http.Request) chan error {
		body := r.Body.(*slotBody)
		body.ReadCloser = reads
		result := make(chan error, 1)
		go func() { _, err := body.Read(make([]byte, 1)); result <- err }()
		return result
	}
	otherRead := waitsFor(other)
	waitSlots(t, slots, 1, 1)
	hold("192.0.2.1:1")
	mine := hold("192.0.2.1:2")
	mineRead := waitsFor(mine)
	waitSlots(t, slots, 3, 2)
	hold("192.0.2.1:3")
	waitSlots(t, slots, 3, 1)
	for range 5 {
		hold("127.0.0.1:1")
	}
	waitSlots(t, slots, 8, 1)
	if _, _, err := take("192.0.2.3:1"); err != nil {
		t.Errorf("a request of a third host when all slots are taken and one waits: got %v, want its slot", err)
	}
	_ = stop.CloseWithError(io.EOF)
	for name, result := range map[string]chan error{"its own": mineRead, "another": otherRead} {
		if err := <-result; !errors.Is(err, errGaveWay) {
			t.Errorf("%s: got %v, want errGaveWay", name, err)
		}
		if e, ok := errors.AsType[Error](BodyError("value", errGaveWay)); !ok || e.Status != http.StatusServiceUnavailable {
			t.Errorf("got %v, want 503", e)
		}
	}
	for _, release := range releases {
		release()
		release() // as a slot that was given to another is given back
	}
	if held, idle, queued := slots.slots.Counts(); held != 1 || idle != 0 || queued != 0 {
		t.Errorf("got %d slots held, %d of those that wait, %d queued, want that of the third host", held, idle, queued)
	}
}
