package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"raftkv/internal/flight"
	"raftkv/internal/kv"
)

// waitMemory waits until so many bytes are held, and so many requests wait for some.
func waitMemory(t testing.TB, b *flight.Bound, held int64, queued int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		gotHeld, _, gotQueued := b.Counts()
		if gotHeld == held && gotQueued == queued {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %d bytes held and %d that wait, want %d and %d", gotHeld, gotQueued, held, queued)
		}
	}
}

// TestMemoryOfRequests: what a request takes of the memory is counted until it ends, and only then.
func TestMemoryOfRequests(t *testing.T) {
	const large = 1 << 20
	for _, tt := range []struct {
		name    string
		method  string
		query   int // bytes of it
		body    int
		chunked bool
		want    int64
	}{
		{name: "small", method: http.MethodPut, query: 100, body: uncounted},
		{name: "query", method: http.MethodGet, query: large, want: copies * large},
		{name: "body", method: http.MethodPut, query: 10, body: large, want: copies * large},
		{name: "both", method: http.MethodPost, query: large, body: large, want: 2 * copies * large},
		{name: "chunked", method: http.MethodPut, body: large, chunked: true, want: copies * large},
		{name: "small and chunked", method: http.MethodPut, body: 10, chunked: true, want: copies * 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			memory := NewMemory(64 << 20)
			slots := &Slots{slots: flight.New(4, 4, queuedBytes), memory: memory}
			body := strings.NewReader(strings.Repeat("b", tt.body))
			r := httptest.NewRequest(tt.method, "/set?"+strings.Repeat("q", tt.query), body)
			if tt.chunked {
				r.ContentLength = -1
			}
			_, release, err := slots.Take(httptest.NewRecorder(), r)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readBody(r, "value", 2<<20); err != nil || len(got) != tt.body {
				t.Fatalf("got %d bytes, %v, want %d", len(got), err, tt.body)
			}
			if got, _, _ := memory.Counts(); got != tt.want {
				t.Errorf("got %d bytes held, want %d", got, tt.want)
			}
			release()
			waitMemory(t, memory, 0, 0)
		})
	}
}

// TestBodiesShareTheMemory: a request for whose body there is no memory waits until there is, and reads nothing of it
// before. One whose body does not come gives way.
func TestBodiesShareTheMemory(t *testing.T) {
	memory := flight.New(copies<<20, 100, 100)
	slots := &Slots{slots: flight.New(10, 10, queuedBytes), memory: memory}
	release := make(chan struct{})
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w, giveBack, err := slots.Take(w, r)
		if err == nil {
			defer giveBack()
			if _, err = readBody(r, "value", 1<<20); err == nil && r.URL.Path == "/hold" {
				<-release
			}
		}
		if e, ok := errors.AsType[Error](err); ok {
			WriteError(w, r, e.Status, e.Message)
			return
		}
		WriteLine(w, "OK")
	})
	put := func(path string, body io.Reader) chan string {
		answer := make(chan string, 1)
		go func() {
			r, _ := http.NewRequest(http.MethodPut, server.URL+path, body)
			r.ContentLength = 1 << 20
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				answer <- err.Error()
				return
			}
			defer func() { _ = response.Body.Close() }()
			text, _ := io.ReadAll(response.Body)
			answer <- fmt.Sprint(response.StatusCode, " ", string(text))
		}()
		return answer
	}
	whole := func() io.Reader { return strings.NewReader(strings.Repeat("v", 1<<20)) }
	first := put("/hold", whole())
	waitMemory(t, memory, copies<<20, 0)
	second := put("/read", whole())
	waitMemory(t, memory, copies<<20, 1)
	close(release)
	for name, answer := range map[string]chan string{"first": first, "second": second} {
		if got := <-answer; got != "200 OK\n" {
			t.Errorf("%s: got %q, want OK", name, got)
		}
	}
	waitMemory(t, memory, 0, 0)
	part, rest := io.Pipe()
	defer func() { _ = rest.Close() }()
	third := put("/read", part)
	waitMemory(t, memory, copies<<20, 0)
	if got := <-put("/read", whole()); got != "200 OK\n" {
		t.Errorf("while another's body does not come: got %q, want OK", got)
	}
	if got := <-third; !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "nothing was done") {
		t.Errorf("the one whose body does not come: got %q, want 503", got)
	}
	waitMemory(t, memory, 0, 0)
}

// TestMemoryOfAnswers: a value or a line that is long is counted while it is written. Without memory for it, an answer
// of which nothing was sent is a 503, and one that has begun is an error that is none.
func TestMemoryOfAnswers(t *testing.T) {
	store := kv.New()
	long := strings.Repeat("v", 1<<20)
	store.Update(1, 1, nil, func(tx *kv.Tx) {
		tx.Set("a", []byte(strings.Repeat("v", 40<<10))) // more than a list keeps back until it is sent
		tx.Set("b", []byte(long))
		tx.Set("c", []byte("short"))
	})
	for _, tt := range []struct {
		name   string
		write  func(w http.ResponseWriter) error
		begins bool
	}{
		{name: "value", write: func(w http.ResponseWriter) error { return WriteValue(w, long) }},
		{name: "items", write: func(w http.ResponseWriter) error { return WriteItems(w, store.Clone(), []string{"c", "b"}) }},
		{name: "list", begins: true, write: func(w http.ResponseWriter) error {
			return WriteList(w, store.Clone(), ListRequest{}, testHistory)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			memory := NewMemory(4 << 20)
			slots := &Slots{slots: flight.New(4, 4, queuedBytes), memory: memory}
			for _, full := range []bool{false, true} {
				var other flight.Hold
				if full { // the queue too, so that nothing waits
					memory = flight.New(1<<20, 0, 0)
					slots.memory = memory
					if err := memory.Acquire(t.Context(), &other, "", 1<<20-200<<10, 0); err != nil {
						t.Fatal(err)
					}
				}
				recorder := httptest.NewRecorder()
				w, release, err := slots.Take(withDeadlines{recorder}, httptest.NewRequest(http.MethodGet, "/get", nil))
				if err != nil {
					t.Fatal(err)
				}
				err = tt.write(w)
				_, refused := errors.AsType[Error](err)
				if (err != nil) != full || refused != (full && !tt.begins) {
					t.Errorf("full %v: got %v, refused %v", full, err, refused)
				}
				if full && (recorder.Body.Len() > 0) != tt.begins {
					t.Errorf("got %d bytes answered, want some: %v", recorder.Body.Len(), tt.begins)
				}
				other.Release()
				waitMemory(t, memory, 0, 0)
				release()
			}
		})
	}
}

// withDeadlines is a ResponseWriter that takes them.
type withDeadlines struct{ http.ResponseWriter }

func (withDeadlines) SetReadDeadline(time.Time) error  { return nil }
func (withDeadlines) SetWriteDeadline(time.Time) error { return nil }

func TestLineSize(t *testing.T) {
	for name, part := range map[string]string{
		"text": "abc", "quotes": `"\`, "controls": "\x00\n\t\x1f", "separators": "\u2028\u2029", "accents": "é€",
		"no UTF-8": "\xff\x80", "HTML": "<>&", "delete": "\x7f", "replacement": "\ufffd",
	} {
		value := strings.Repeat(part, 10_000)
		line := item{}
		line.setValue(value)
		b, err := json.Marshal(line)
		if err != nil {
			t.Fatal(err)
		}
		if got := lineSize(value); name != "HTML" && got < 2*int64(len(b)-len(`{"value64":""}`)) {
			t.Errorf("%s: got %d, want twice the %d bytes of the line", name, got, len(b))
		}
	}
	if got := lineSize("short"); got != 0 {
		t.Errorf("a short one: got %d, want 0", got)
	}
}
