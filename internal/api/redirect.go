package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"raftkv/internal/command"
)

// Leader is where the leader answers clients.
type Leader struct {
	ID          string
	URL         string // its scheme, host and port, such as http://127.0.0.1:8000
	SameMachine bool   // it runs on the machine of this node
	ReadsMark   bool   // it knows lengthMark, which programs of before it refuse
	Guessed     bool   // it listens on all addresses, and has not said by which of them clients reach it
}

// lengthMark begins the parameter that Redirect adds to the Location of a request with a
// body: the length of the body in bytes, or the word chunked. There are clients that follow
// a 307 with what is left of a body that was sent once already, or without it, or with GET.
// What they send then is well formed, so that an empty value would be set in the place of
// theirs. By the mark, the leader finds out and refuses it.
const lengthMark = "raftkv-length="

// redirectHeader with the value redirectShown asks for redirects with Raftkv-Location in the
// place of Location: a script in a browser can't see where a redirect leads, nor follow one to
// another origin itself.
const (
	redirectHeader = "Raftkv-Redirect"
	redirectShown  = "shown"
)

const chunkedBody = "chunked" // the lengthMark of a body whose length the client did not announce

// Redirect answers a request that nothing was done of, and whose body should not be read,
// with a redirect to l. Its Error, of status 503, is for the client that can't be sent there:
//
//   - The body is of unknown length, and has been sent, in whole or in part: most clients
//     can't send it again. Only one that waits for 100 Continue still has it.
//   - l is an address of the loopback interface, and the client is on another machine:
//     there it is the address of something else.
func Redirect(w http.ResponseWriter, r *http.Request, l Leader) error {
	body := r.ContentLength != 0 && (r.Method == http.MethodPut || r.Method == http.MethodPost)
	if body && r.ContentLength < 0 && !awaitsContinue(r) {
		return Errorf(http.StatusServiceUnavailable, "not the leader, and a body of unknown length can't be redirected: "+
			"nothing was done; send it to the leader, %s, at %s, or with a Content-Length or Expect: 100-continue", l.ID, l.URL)
	}
	if leadsAstray(r, l) {
		return Errorf(http.StatusServiceUnavailable, "not the leader: nothing was done; the leader, %s, gives its address "+
			"as %s, which is another machine for this client: start %s with HTTP_ADVERTISE=http://HOST:PORT, "+
			"where clients reach it", l.ID, l.URL, l.ID)
	}
	location := l.URL + r.URL.RequestURI()
	if _, marked := cutLengthMark(r.URL.RawQuery); body && l.ReadsMark && marked == "" {
		separator := "?"
		if strings.Contains(location, "?") {
			separator = "&"
		}
		length := chunkedBody
		if r.ContentLength > 0 {
			length = strconv.FormatInt(r.ContentLength, 10)
		}
		location += separator + lengthMark + length
	}
	if r.Header.Get(redirectHeader) == redirectShown {
		w.Header().Set("Raftkv-Location", location)
	} else {
		w.Header().Set("Location", location)
	}
	WriteError(w, r, http.StatusTemporaryRedirect, fmt.Sprintf("not the leader: nothing was done; "+
		"send it to the leader, %s, at %s (curl -L does)", l.ID, l.URL))
	return nil
}

// leadsAstray reports whether the URL of l is that of another machine for the client of r.
func leadsAstray(r *http.Request, l Leader) bool {
	return isLoopbackURL(l.URL) && !(l.SameMachine && fromThisMachine(r))
}

// MayRedirect reports whether the client of r, whose body was not read, reaches l by its URL,
// as far as this node knows. Otherwise the request had better be sent on.
func MayRedirect(r *http.Request, l Leader) bool { return !l.Guessed && !leadsAstray(r, l) }

// BodyBegun reports whether the body of r, which GuardBody guards, was read, in part at
// least: it can't be sent on any more.
func BodyBegun(r *http.Request) bool {
	guarded, ok := r.Body.(*guardedBody)
	return ok && guarded.begun
}

// cutLengthMark returns the query without its lengthMark, and the length of that; empty:
// there is none.
func cutLengthMark(query string) (rest, length string) {
	i := strings.LastIndex(query, lengthMark)
	if i < 0 || (i > 0 && query[i-1] != '&') || strings.Contains(query[i:], "&") {
		return query, ""
	}
	return query[:max(i-1, 0)], query[i+len(lengthMark):]
}

// checkLength returns an Error if r has come by a redirect that cost it its body, of which
// size bytes are there.
func checkLength(r *http.Request, size int) error {
	_, length := cutLengthMark(r.URL.RawQuery)
	if length == "" || length == strconv.Itoa(size) || (length == chunkedBody && size > 0) {
		return nil
	}
	return badRequest("body: %d bytes of %s: the client lost it when it followed a redirect: nothing was done; "+
		"send it to the leader itself, or by a client that can send a body twice, such as curl -L -T FILE",
		size, command.AppendQuoted(nil, length))
}

// isLoopbackURL reports whether u leads to whatever machine it is used on.
func isLoopbackURL(u string) bool {
	parsed, err := url.Parse(u)
	if err != nil {
		return false
	}
	host := parsed.Hostname()
	return strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback()
}

// IsLoopback reports whether address, a URL, host:port or a host, is of the loopback interface; empty: it is no address
// by which anything else could be reached.
func IsLoopback(address string) bool {
	if address == "" || isLoopbackURL(address) {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	return strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback()
}

// fromThisMachine reports whether the client of r runs on this machine. With a proxy
// between, which adds a header of its own, it does not count as such.
func fromThisMachine(r *http.Request) bool {
	if r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" {
		return false
	}
	if fromLoopback(r) {
		return true
	}
	remote, _, _ := net.SplitHostPort(r.RemoteAddr)
	ip := net.ParseIP(remote)
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && ip != nil && local.IP.Equal(ip)
}

// CheckURL returns an error unless u is a scheme, http or https, and a host that clients
// may use, with a port or without; empty: none is given.
func CheckURL(u string) error {
	if u == "" {
		return nil
	}
	parsed, err := url.Parse(u)
	if err == nil && (parsed.Scheme == "http" || parsed.Scheme == "https") && u == parsed.Scheme+"://"+parsed.Host &&
		CheckHost(parsed.Hostname()) == nil && !net.ParseIP(parsed.Hostname()).IsUnspecified() {
		port, err := strconv.ParseUint(parsed.Port(), 10, 16)
		if parsed.Port() == "" && !strings.HasSuffix(u, ":") || err == nil && port > 0 {
			return nil
		}
	}
	return errors.New("want http://HOST:PORT, where clients reach this node, without a path")
}

// GuardBody has check called before the body of r is read for the first time: an error of
// it comes out of that read, and of Set and all others that read it. So a request is
// answered without its body, which the client may then send elsewhere.
func GuardBody(r *http.Request, check func() error) {
	r.Body = &guardedBody{ReadCloser: r.Body, check: check}
}

type guardedBody struct {
	io.ReadCloser
	check func() error
	begun bool // check has let the body be read
}

func (b *guardedBody) Read(p []byte) (int, error) {
	if err := b.begin(); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

// begin is what comes before the first Read. After an error, the body may still be sent elsewhere.
func (b *guardedBody) begin() error {
	if !b.begun {
		if err := b.check(); err != nil {
			return err
		}
		b.begun = true
	}
	return nil
}

// awaitsContinue reports whether the client of r still waits to be asked for the body.
func awaitsContinue(r *http.Request) bool {
	guarded, ok := r.Body.(*guardedBody)
	return strings.EqualFold(r.Header.Get("Expect"), "100-continue") && !(ok && guarded.begun)
}

// What is left of a body is read, once the answer is out, within these bounds: many clients
// look for an answer only when they have sent everything, and to close the connection on
// them would make it an error.
const drainBytes = 8 << 20

var drainTime = 5 * time.Second // shorter in tests

// drains bounds the connections on which that is done, those of requests without a slot among them.
var drains = NewSlots(512, nil)

// WriteError answers r with text as one line and a status that may come before the body was
// read. A client that is sending it gets the answer all the same.
func WriteError(w http.ResponseWriter, r *http.Request, status int, text string) {
	write := WriteText
	if IsGateway(r) {
		write = func(w http.ResponseWriter, status int, text string) { WriteGatewayError(w, status, 0, text) }
	}
	if r.ContentLength == 0 {
		write(w, status, text)
		return
	}
	if r.ProtoMajor < 2 { // a body that comes late must not be taken for the next request
		w.Header().Set("Connection", "close")
	}
	c := http.NewResponseController(w)
	drain := status != http.StatusRequestTimeout && !awaitsContinue(r) && c.EnableFullDuplex() == nil
	write(w, status, text)
	if c.Flush() != nil || c.SetReadDeadline(time.Now().Add(drainTime)) != nil || !drain {
		return
	}
	body := r.Body
	if guarded, ok := body.(*guardedBody); ok {
		body = guarded.ReadCloser
	}
	drained := *r
	drained.Body = body
	if _, release, err := drains.Take(w, &drained); err == nil {
		defer release()
		_, _ = io.CopyN(io.Discard, drained.Body, drainBytes)
	}
}
