package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestForwardingIsTheRequest: what a node reads is what another has sent on, without what was of
// the connection alone.
func TestForwardingIsTheRequest(t *testing.T) {
	for _, tt := range []struct {
		name, method, target, body string
		chunked                    bool
		length                     int64 // as it is read
		ask                        bool
	}{
		{name: "no body", method: "GET", target: "/set?key=a%20b&value=%0d%0aX:1"},
		{name: "body that nobody reads", method: "GET", target: "/set?key=a&value=1", body: "ignored"},
		{name: "value", method: "PUT", target: "/set?key=a", body: "value", length: 5},
		{name: "empty value", method: "PUT", target: "/set?key=a"},
		{name: "chunks", method: "PUT", target: "/set?key=a", body: "value", chunked: true, length: -1, ask: true},
		{name: "large value", method: "PUT", target: "/set?key=a", body: strings.Repeat("v", askBytes+1),
			length: askBytes + 1, ask: true},
		{name: "large query", method: "POST", target: "/set?key=a&value=" + strings.Repeat("v", MaxQuery)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, tt.target, strings.NewReader(tt.body))
			if tt.chunked {
				r.ContentLength = -1
			}
			for _, name := range []string{"Idempotency-Key", "If-Match", "Authorization", "Content-Type", "Connection", "Expect",
				"Te", "Upgrade"} {
				r.Header.Set(name, "x")
			}
			f := NewForwarding(httptest.NewRecorder(), r, false)
			if f.Ask != tt.ask {
				t.Errorf("ask: got %v, want %v", f.Ask, tt.ask)
			}
			_, ok := f.Reader()
			reader, again := f.Reader() // nothing of the body was read
			if !ok || !again {
				t.Fatal("got no reader")
			}
			wire, err := io.ReadAll(reader)
			if err != nil || f.Length >= 0 && f.Length != int64(len(wire)) || !f.Begun() {
				t.Fatalf("got %d bytes, %v, want %d", len(wire), err, f.Length)
			}
			got, err := ReadForwarded(&timed{ResponseRecorder: httptest.NewRecorder()},
				httptest.NewRequest("POST", "/forward", bytes.NewReader(wire)))
			if err != nil {
				t.Fatal(err)
			}
			want := tt.body
			if tt.method == "GET" {
				want = ""
			}
			body, err := io.ReadAll(got.Body)
			if got.Method != tt.method || got.URL.RequestURI() != tt.target || string(body) != want || err != nil ||
				got.ContentLength != tt.length || got.Host != r.Host {
				t.Errorf("got %s %.99s of %d with %.20q %v, want %s %.99s of %d with %.20q", got.Method, got.URL, got.ContentLength,
					body, err, tt.method, tt.target, tt.length, want)
			}
			for _, name := range []string{"Idempotency-Key", "If-Match", "Authorization", "Content-Type"} {
				if got.Header.Get(name) != "x" {
					t.Errorf("%s: got %q, want x", name, got.Header.Get(name))
				}
			}
			for _, name := range []string{"Connection", "Expect", "Te", "Upgrade"} {
				if got.Header.Get(name) != "" {
					t.Errorf("%s: got %q, want none", name, got.Header.Get(name))
				}
			}
			if !IsForwarded(got) || IsForwarded(r) {
				t.Error("want that the one that was sent on is known, and it alone")
			}
		})
	}
}

// timed is a recorder that has deadlines to set.
type timed struct{ *httptest.ResponseRecorder }

// TestForwardedBodyEndsEarly: a body that was not sent whole is no value, whatever its length.
func TestForwardedBodyEndsEarly(t *testing.T) {
	gone := errors.New("the client is gone")
	for _, chunked := range []bool{false, true} {
		r := httptest.NewRequest("PUT", "/set?key=a", io.MultiReader(strings.NewReader("val"), breaking{gone}))
		if r.ContentLength = 5; chunked {
			r.ContentLength = -1
		}
		f := NewForwarding(httptest.NewRecorder(), r, false)
		reader, _ := f.Reader()
		wire, err := io.ReadAll(reader)
		if !errors.Is(err, gone) {
			t.Errorf("got %v, want that it ends early", err)
		}
		if e, ok := errors.AsType[Error](f.BodyError()); !ok || e.Status != http.StatusBadRequest {
			t.Errorf("got %v, want an Error of status 400", f.BodyError())
		}
		if _, ok := f.Reader(); ok {
			t.Error("got another reader, want none: the body was read")
		}
		// The call of which it is the body ends early, too.
		got, err := ReadForwarded(&timed{ResponseRecorder: httptest.NewRecorder()},
			httptest.NewRequest("POST", "/forward", io.MultiReader(bytes.NewReader(wire), breaking{io.ErrUnexpectedEOF})))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := Set(got, testHistory); err == nil {
			t.Errorf("chunked %v: got %v, want an error", chunked, c)
		}
	}
}

type breaking struct{ err error }

func (f breaking) Read([]byte) (int, error) { return 0, f.err }

// TestMayRedirect: nobody is sent to an address that was guessed, or is another machine's.
func TestMayRedirect(t *testing.T) {
	for _, tt := range []struct {
		name   string
		leader Leader
		want   bool
	}{
		{name: "known", leader: Leader{URL: "http://10.0.0.1:8000"}, want: true},
		{name: "guessed", leader: Leader{URL: "http://10.0.0.1:8000", Guessed: true}},
		{name: "loopback, here", leader: Leader{URL: "http://127.0.0.1:8000", SameMachine: true}, want: true},
		{name: "loopback, elsewhere", leader: Leader{URL: "http://127.0.0.1:8000"}},
	} {
		r := httptest.NewRequest("GET", "/set?key=k&value=v", nil)
		r.RemoteAddr = "127.0.0.1:4321"
		if got := MayRedirect(r, tt.leader); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func (*timed) SetReadDeadline(time.Time) error { return nil }
