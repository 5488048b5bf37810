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
	"strconv"
	"strings"
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
	uri := strings.ReplaceAll(r.URL.RequestURI(), " ", "%20") // which HTTP/2 may have in it
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, uri, r.Host)
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

// wholeBytes bounds a request that Whole reads.
const wholeBytes = 8 << 10

// Whole returns all of a short request, in the form in which it travels, once it has read its
// body; nil if it is not short, or the answer may be long: that of a transaction that reads, should
// it be one. An error is an Error: the leader has not got it.
func (f *Forwarding) Whole(transaction bool) ([]byte, error) {
	if f.Length < 0 || f.Length > wholeBytes {
		return nil, nil
	}
	wire := make([]byte, f.Length)
	if body := wire[copy(wire, f.head):]; len(body) > 0 {
		f.read = true
		if _, err := io.ReadFull(f.body, body); err != nil {
			f.err = err
			return nil, f.BodyError()
		}
		f.head, f.body, f.read = wire, nil, false
		f.whole.Store(true)
		// What reads is named get, get64 or, to encoding/json, GET as well; \u0067et is one, too.
		if transaction && (bytes.IndexByte(body, '\\') >= 0 || bytes.Contains(bytes.ToLower(body), []byte("get"))) {
			return nil, nil
		}
	}
	return wire, nil
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

// How requests that travel together are read and answered (see package node).
const (
	togetherAtOnce  = 256         // that have no answer yet
	togetherSilence = time.Minute // for so long no further one needs to come
)

// ServeTogether has h answer the requests that come in a call of another node, each as soon as it
// is there, and sends the answers in the order of the requests. It ends when the call does, or
// goOn returns false before a request is taken: all that were taken are answered. When it can't be
// known where the next request begins, or no answer can be sent, the answer to the call breaks off.
func ServeTogether(w http.ResponseWriter, call *http.Request, h http.Handler, goOn func() bool) {
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex()
	w.Header().Set("Content-Type", "application/http")
	w.WriteHeader(http.StatusContinue) // the other node has asked for it
	w.WriteHeader(http.StatusOK)
	_ = c.Flush()
	ctx, cancel := context.WithCancel(context.WithValue(call.Context(), forwardedKey{}, true))
	defer cancel()
	answers := make(chan *answer, togetherAtOnce)
	sent := make(chan error, 1)
	go func() { sent <- sendAnswers(w, answers) }()
	limited := &io.LimitedReader{R: call.Body, N: 2 * wholeBytes}
	rest := bufio.NewReader(limited)
	err := takeRequests(ctx, c, rest, limited, goOn, func(r *http.Request) {
		a := &answer{header: make(http.Header), done: make(chan struct{})}
		answers <- a
		go func() {
			defer close(a.done)
			defer func() { a.panicked = recover() }()
			h.ServeHTTP(a, r)
		}()
	})
	if err != nil {
		cancel() // the other node has gone, and its clients have no answer
	}
	close(answers)
	err = errors.Join(<-sent, err)
	_ = c.SetReadDeadline(past) // else net/http waits for what may follow
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// takeRequests calls take with each request, which is in memory as a whole.
func takeRequests(ctx context.Context, c *http.ResponseController, rest *bufio.Reader, limited *io.LimitedReader,
	goOn func() bool, take func(*http.Request)) error {
	for {
		if rest.Buffered() == 0 {
			if err := c.SetReadDeadline(time.Now().Add(togetherSilence)); err != nil {
				return err
			}
		}
		limited.N = 2 * wholeBytes
		if _, err := rest.Peek(1); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if !goOn() {
			return nil
		}
		r, err := http.ReadRequest(rest)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		take(r.WithContext(ctx))
	}
}

// sendAnswers sends the answers in their order, those that are there together.
func sendAnswers(w http.ResponseWriter, answers <-chan *answer) (err error) {
	out := bufio.NewWriterSize(DeadlineWriter(w), 16<<10)
	c := http.NewResponseController(w)
	for a := range answers {
		select {
		case <-a.done:
		default:
			if out.Buffered() > 0 {
				err = errors.Join(err, out.Flush(), c.Flush())
			}
			<-a.done
		}
		if a.panicked != nil { // as net/http does, which has no way to answer then
			err = fmt.Errorf("panic: %v", a.panicked)
		}
		if err == nil {
			a.send(out)
		}
		if len(answers) == 0 {
			err = errors.Join(err, out.Flush(), c.Flush())
		}
	}
	return err
}

// answer is the answer to one of several requests that travel together, in memory.
type answer struct {
	header   http.Header
	status   int
	body     bytes.Buffer
	panicked any
	done     chan struct{} // closed when all of it is there
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

// The request is in memory as a whole, and so is the answer: what a connection has limits for does not wait here.

// SetReadDeadline is for http.ResponseController.
func (*answer) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is for http.ResponseController.
func (*answer) SetWriteDeadline(time.Time) error { return nil }

// EnableFullDuplex is for http.ResponseController.
func (*answer) EnableFullDuplex() error { return nil }

// Flush implements http.Flusher.
func (*answer) Flush() {}

// send writes the answer as it is on the wire. An error of out comes again.
func (a *answer) send(out *bufio.Writer) {
	a.WriteHeader(http.StatusOK)
	a.header.Set("Content-Length", strconv.Itoa(a.body.Len()))
	_, _ = fmt.Fprintf(out, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	_ = a.header.Write(out)
	_, _ = out.WriteString("\r\n")
	_, _ = out.Write(a.body.Bytes())
}
