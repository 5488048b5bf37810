package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A request that only the leader can carry out may be sent on to it by the node that got it.
// It travels as the body of a call between nodes, in the form that it has on the wire
// (application/http): its line, its headers, an empty line, and what its own body is. So it
// may have the query and the body that this API takes, and no other call may.
//
// The client's own framing does not travel: a Content-Length says how long the body is, and
// without one the body goes on to the end of the call, which must be marked as its end.

// Forwarding is a request on its way to the leader.
type Forwarding struct {
	// Length is how many bytes it has; -1: that is not known.
	Length int64
	// Ask is whether its body may be long in coming: then it should be asked for only once
	// the leader is there to take it.
	Ask bool

	w    http.ResponseWriter
	head []byte
	body io.Reader // of the client; nil: none

	current      *attempt
	begun, whole atomic.Bool // see Begun; all of the client's body was read

	mu   sync.Mutex // held while the client's body is read; guards what follows
	read bool       // some of the client's body was
	err  error      // of the client's body
}

// attempt reads a Forwarding from its beginning.
type attempt struct {
	*Forwarding
	head   *bytes.Reader
	closed atomic.Bool
}

// askBytes is how long a body may be that is sent on at once.
const askBytes = 64 << 10

// ownHeaders are those of a request that are of its connection, or that its new form has
// in another way.
var ownHeaders = map[string]bool{"Connection": true, "Proxy-Connection": true, "Keep-Alive": true, "Te": true,
	"Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Expect": true, "Content-Length": true}

// NewForwarding makes r, whose body has not been read, a Forwarding. A long one may take as
// long as the client likes, if only each part of the body comes in time.
func NewForwarding(w http.ResponseWriter, r *http.Request, long bool) *Forwarding {
	f := &Forwarding{w: w}
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.URL.RequestURI(), r.Host)
	_ = r.Header.WriteSubset(&head, ownHeaders)
	length := r.ContentLength
	if r.Method != http.MethodPut && r.Method != http.MethodPost { // nobody reads it
		length = 0
	}
	if length >= 0 {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", length)
	}
	head.WriteString("\r\n")
	f.head = head.Bytes()
	f.Length = -1
	if length >= 0 {
		f.Length = int64(head.Len()) + length
	}
	f.Ask = length < 0 || length > askBytes
	if f.whole.Store(length == 0); length != 0 {
		f.body = r.Body
		if guarded, ok := r.Body.(*guardedBody); ok {
			f.body = guarded.ReadCloser
		}
		if long {
			f.body = deadlineReader{f.body, http.NewResponseController(w)}
		}
	}
	return f
}

var errForwardingClosed = errors.New("the leader wants no more of it")

// Reader returns a reader of it from its beginning, and ends the one before. It returns false
// if that can't be, because some of the client's body was read.
func (f *Forwarding) Reader() (io.ReadCloser, bool) {
	f.stop()
	if f.read {
		return nil, false
	}
	f.begun.Store(false)
	f.current = &attempt{Forwarding: f, head: bytes.NewReader(f.head)}
	return f.current, true
}

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed.Load() {
		return 0, errForwardingClosed
	}
	a.begun.Store(true)
	switch {
	case a.head.Len() > 0:
		return a.head.Read(p)
	case a.body == nil:
		return 0, io.EOF
	case a.err != nil:
		return 0, a.err
	}
	a.read = true
	n, err := a.body.Read(p)
	if err != nil && !a.closed.Load() {
		a.err = err
		a.whole.Store(err == io.EOF)
	}
	return n, err
}

// Close implements io.Closer: nothing more is read. It does not wait for a Read.
func (a *attempt) Close() error {
	a.closed.Store(true)
	return nil
}

// Begun reports whether anything of it was read by the last Reader, so that the leader may
// have it.
func (f *Forwarding) Begun() bool { return f.begun.Load() }

// BodyError returns an Error if the client's body broke off or did not come in time. Then
// the leader has not got all of it, and has done nothing.
func (f *Forwarding) BodyError() error {
	f.stop()
	if f.err == nil || f.err == io.EOF {
		return nil
	}
	return BodyError("body", fmt.Errorf("the body ends early: %w", f.err))
}

// stop ends reading, and returns when no Read is under way. What a Read waits for then no
// longer comes, so the connection can take no further request.
func (f *Forwarding) stop() {
	if f.current != nil {
		_ = f.current.Close()
	}
	if !f.mu.TryLock() {
		if !f.whole.Load() {
			_ = http.NewResponseController(f.w).SetReadDeadline(time.Now())
		}
		f.mu.Lock()
	}
	f.mu.Unlock()
}

// wholeAnswer is up to which length an answer is read before it is passed on: if it breaks
// off, the client can still be told so.
const wholeAnswer = 4 << 10

// WriteAnswer answers the client with the leader's response, as it comes. When that breaks
// off it returns an error, and whether the client has got the beginning of it.
//
// If the leader has answered before it had all of the client's body, the rest is read and
// thrown away, as WriteError does.
func (f *Forwarding) WriteAnswer(r *http.Request, response *http.Response) (sent bool, err error) {
	defer func() { _ = response.Body.Close() }()
	var answer []byte
	if response.ContentLength >= 0 && response.ContentLength <= wholeAnswer {
		if answer, err = io.ReadAll(response.Body); err != nil {
			return false, err
		}
	}
	c := http.NewResponseController(f.w)
	drain := false
	if !f.whole.Load() {
		f.stop()
		if drain = !f.whole.Load(); drain {
			_ = c.EnableFullDuplex()
		}
	}
	header := f.w.Header()
	for name, values := range response.Header {
		if !ownHeaders[name] && name != "Date" {
			header[name] = values
		}
	}
	if response.ContentLength >= 0 {
		header.Set("Content-Length", fmt.Sprint(response.ContentLength))
	}
	if drain && r.ProtoMajor < 2 {
		header.Set("Connection", "close")
	}
	f.w.WriteHeader(response.StatusCode)
	if answer != nil {
		_, _ = f.w.Write(answer)
	} else if err = f.copyAnswer(response); err != nil {
		return true, err
	}
	if drain && c.Flush() == nil && f.err == nil && c.SetReadDeadline(time.Now().Add(drainTime)) == nil {
		body := r.Body
		if guarded, ok := body.(*guardedBody); ok {
			body = guarded.ReadCloser
		}
		_, _ = io.CopyN(io.Discard, body, drainBytes)
	}
	return true, nil
}

// copyAnswer passes the answer's body on, each part as it comes. A client that has gone is
// no error.
func (f *Forwarding) copyAnswer(response *http.Response) error {
	w := DeadlineWriter(f.w)
	part := make([]byte, 32<<10)
	for {
		n, err := response.Body.Read(part)
		if n > 0 {
			if _, err := w.Write(part[:n]); err != nil {
				return nil
			}
			if response.ContentLength < 0 && http.NewResponseController(f.w).Flush() != nil {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// maxForwardedHead bounds the line and the headers of a request that was sent on: those of
// a request to this API, and what NewForwarding adds.
const maxForwardedHead = 2*MaxQuery + 16<<10

// forwardedBodyTimeout is how long the other node may take to send the whole request. It
// has given its client less.
const forwardedBodyTimeout = bodyTimeout + 15*time.Second

type forwardedKey struct{}

// IsForwarded reports whether another node has sent r on. It must not be sent on again.
func IsForwarded(r *http.Request) bool { return r.Context().Value(forwardedKey{}) != nil }

// ReadForwarded returns the request that is in a call of another node, which has checked
// where it comes from. Its body is read as it comes, and ends early if the call does.
func ReadForwarded(w http.ResponseWriter, call *http.Request) (*http.Request, error) {
	err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(forwardedBodyTimeout))
	if err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: call.Body, N: maxForwardedHead}
	rest := bufio.NewReader(limited)
	r, err := http.ReadRequest(rest)
	if err != nil {
		return nil, badRequest("the request that was sent on: %v", err)
	}
	limited.N = math.MaxInt64
	hasBody := r.Method == http.MethodPut || r.Method == http.MethodPost
	if hasBody && r.Header["Content-Length"] == nil {
		r.ContentLength, r.Body = -1, io.NopCloser(rest)
	}
	return r.WithContext(context.WithValue(call.Context(), forwardedKey{}, true)), nil
}
