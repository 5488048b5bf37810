package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
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

// TestWhole: what is short travels together with others, with its body; no part of a body does.
func TestWhole(t *testing.T) {
	for _, tt := range []struct {
		name, method, body  string
		chunked, txn, whole bool
	}{
		{name: "no body", method: "GET", whole: true},
		{name: "body that nobody reads", method: "GET", body: "ignored", whole: true},
		{name: "value", method: "PUT", body: "value", whole: true},
		{name: "large value", method: "PUT", body: strings.Repeat("v", wholeBytes)},
		{name: "chunks", method: "PUT", body: "value", chunked: true},
		{name: "transaction", method: "POST", body: `{"then":[{"set":"a","value":"1"}]}`, txn: true, whole: true},
		{name: "transaction that reads", method: "POST", body: `{"then":[{"gEt64":"YQ=="}]}`, txn: true},
		{name: "transaction in disguise", method: "POST", body: `{"then":[{"\u0067et":"a"}]}`, txn: true},
		{name: "value like one", method: "POST", body: "key=get&value=get", whole: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/set?key=a", strings.NewReader(tt.body))
			if tt.chunked {
				r.ContentLength = -1
			}
			f := NewForwarding(httptest.NewRecorder(), r, false)
			whole, err := f.Whole(tt.txn)
			if err != nil || (whole != nil) != tt.whole {
				t.Fatalf("got %d bytes, %v, want any: %v", len(whole), err, tt.whole)
			}
			for range 2 { // alone, it can be sent on, and once more
				reader, ok := f.Reader()
				if !ok {
					t.Fatal("got no reader")
				}
				if tt.whole || tt.txn {
					wire, err := io.ReadAll(reader)
					same := whole == nil || bytes.Equal(wire, whole)
					if err != nil || !same || tt.method != "GET" && !bytes.HasSuffix(wire, []byte(tt.body)) {
						t.Errorf("alone: got %q, %v, want %q", wire, err, whole)
					}
				}
			}
		})
	}
	r := httptest.NewRequest("PUT", "/set?key=a", io.MultiReader(strings.NewReader("val"), breaking{io.ErrUnexpectedEOF}))
	r.ContentLength = 5
	f := NewForwarding(httptest.NewRecorder(), r, false)
	whole, err := f.Whole(false)
	if e, ok := errors.AsType[Error](err); whole != nil || !ok || e.Status != http.StatusBadRequest {
		t.Errorf("a body that breaks off: got %q, %v, want an Error of status 400", whole, err)
	}
}

// TestRequestIsOne: nothing of a client's request ends its head early.
func TestRequestIsOne(t *testing.T) {
	r := httptest.NewRequest("GET", "/set", nil)
	r.URL.RawQuery = "key=a HTTP/1.1" // as HTTP/2 may have it
	r.Header["X"] = []string{"1\r\n\r\nGET /set?key=b HTTP/1.1"}
	whole, err := NewForwarding(httptest.NewRecorder(), r, false).Whole(false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	takeAll(bytes.NewReader(whole), func(r *http.Request) { got = append(got, r.URL.String()) })
	if want := "/set?key=a%20HTTP/1.1"; len(got) != 1 || got[0] != want {
		t.Errorf("got %q, want one request, %s", got, want)
	}
}

// takeAll has requests taken out of what another node has sent.
func takeAll(from io.Reader, take func(*http.Request)) {
	limited := &io.LimitedReader{R: from}
	c := http.NewResponseController(&timed{ResponseRecorder: httptest.NewRecorder()})
	ctx := context.WithValue(context.Background(), forwardedKey{}, true)
	_ = takeRequests(ctx, c, bufio.NewReader(limited), limited, func() bool { return true }, take)
}

// FuzzTogether: whatever another node sends, a request is short and in memory.
func FuzzTogether(f *testing.F) {
	f.Add([]byte("PUT /set?key=a HTTP/1.1\r\nContent-Length: 1\r\n\r\nvGET /remove?key=a HTTP/1.1\r\n\r\n"))
	f.Add([]byte("POST /txn HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Add([]byte("PUT / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		size := 0
		takeAll(bytes.NewReader(input), func(r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || len(body) > 2*wholeBytes || !IsForwarded(r) {
				t.Errorf("got a body of %d bytes, %v, want %d at most", len(body), err, 2*wholeBytes)
			}
			size += len(body)
		})
		if size > len(input) {
			t.Errorf("got %d bytes of bodies out of %d", size, len(input))
		}
	})
}

// pipe makes one call of which h answers the requests, and returns where they are written to and
// the answers come from.
func pipe(t *testing.T, h http.HandlerFunc, goOn func() bool) (io.WriteCloser, *bufio.Reader) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ServeTogether(w, r, h, goOn)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	reader, writer := io.Pipe()
	t.Cleanup(func() { _ = writer.Close() })
	call, _ := http.NewRequest(http.MethodPost, s.URL, reader)
	call.Header.Set("Expect", "100-continue")
	response, err := http.DefaultTransport.RoundTrip(call)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return writer, bufio.NewReader(response.Body)
}

// TestServeTogether: each request is answered, as its own; the order of the answers is that of the
// requests, whichever is done first.
func TestServeTogether(t *testing.T) {
	second := make(chan struct{})
	all := new(sync.WaitGroup)
	requests, answers := pipe(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		switch {
		case err != nil || !IsForwarded(r):
			t.Errorf("got %v, sent on %v, want a body, sent on", err, IsForwarded(r))
		case r.URL.Path == "/1":
			<-second
		case r.URL.Path == "/2":
			close(second)
		}
		w.Header().Set("ETag", r.URL.Path)
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(body)
	}, func() bool { return true })
	all.Go(func() {
		_, _ = io.WriteString(requests, "PUT /1 HTTP/1.1\r\nContent-Length: 3\r\n\r\noneGET /2 HTTP/1.1\r\n\r\n")
		_, _ = io.WriteString(requests, "PUT /3 HTTP/1.1\r\nContent-Length: 5\r\n\r\nthree")
		_ = requests.Close()
	})
	for _, want := range []string{"/1 one", "/2 ", "/3 three"} {
		a, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(a.Body)
		if got := a.Header.Get("ETag") + " " + string(body); got != want || err != nil || a.StatusCode != http.StatusTeapot {
			t.Errorf("got %d %q, %v, want 418 %q", a.StatusCode, got, err, want)
		}
	}
	if _, err := answers.Peek(1); err != io.EOF {
		t.Errorf("got %v, want that it ends in order", err)
	}
	all.Wait()
}

// TestServeTogetherEnds: a node that does not lead any more ends in order, and what it has not
// answered it has not taken. All else breaks off.
func TestServeTogetherEnds(t *testing.T) {
	const request, broken = "GET / HTTP/1.1\r\n\r\n", "GET\r\n\r\n"
	for _, tt := range []struct {
		name, sent    string
		takes, panics int32
		answers       int
		want          error
	}{
		{name: "leads for one more", sent: request + request, takes: 1, answers: 1, want: io.EOF},
		{name: "leads no more", sent: request, want: io.EOF},
		{name: "no request", sent: request + broken, takes: 9, answers: 1, want: io.ErrUnexpectedEOF},
		{name: "panic", sent: request + request, takes: 9, panics: 1, answers: 1, want: io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var taken, served atomic.Int32
			requests, answers := pipe(t, func(http.ResponseWriter, *http.Request) {
				if served.Add(1) <= tt.panics {
					panic("it has a fault")
				}
			}, func() bool { return taken.Add(1) <= tt.takes })
			go func() {
				_, _ = io.WriteString(requests, tt.sent)
				if tt.panics > 0 { // which is seen at the end
					_ = requests.Close()
				}
			}()
			got := 0
			for {
				if _, err := answers.Peek(1); err != nil {
					if !errors.Is(err, tt.want) || got > tt.answers {
						t.Errorf("got %d answers, then %v, want %d, then %v", got, err, tt.answers, tt.want)
					}
					break
				}
				a, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.ReadAll(a.Body)
				got++
			}
			if tt.want == io.EOF && (got != tt.answers || int(served.Load()) != got) {
				t.Errorf("got %d answers to %d requests, want %d", got, served.Load(), tt.answers)
			}
		})
	}
}

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
