// Package client is a client of a raftkv cluster. It needs nothing but the standard library.
//
// A Client knows several nodes, finds the leader among them and follows redirects with the body.
// What was surely not done is asked for again, at another node, after a pause that grows. Every
// write has an Idempotency-Key, so that one whose outcome is unknown (504, a connection that broke)
// can be asked for again too, and is done once. What remains unclear is an ErrUnknown, never an
// ErrNotApplied. (A restore replaces the records of idempotency keys too: a write that is under way
// during one may be done twice.)
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is what New needs. Only Endpoints must be given.
type Config struct {
	// Endpoints are the URLs of nodes, scheme, host and port, such as http://10.0.0.1:8000. Members
	// that are not among them are found through those that answer, when a request fails.
	Endpoints []string
	// HTTP sends the requests; nil: a client with connections of its own. Its CheckRedirect is not
	// used, and its Timeout should be 0, as it would cut watches short.
	HTTP *http.Client
	// TLS is for endpoints of https, with the authority of the nodes as RootCAs; nil: those that the
	// system trusts. It is not used with HTTP.
	TLS *tls.Config
	// RetryFor bounds for how long a request is sent again, beside its context; 0: 30 s. A watch is
	// bounded by its context alone.
	RetryFor time.Duration
	// AttemptTimeout bounds the wait for one answer, after which another node is asked; 0: 6 s,
	// which is longer than a node takes to find out that it can't answer.
	AttemptTimeout time.Duration
	// Token is sent to all of these nodes, if it is not empty: the nodes have HTTP_TOKENS. Over plain
	// http, whoever is on the way has it too.
	Token string
}

// Client is a client of one cluster. Its methods may be called concurrently.
type Client struct {
	http                     *http.Client
	retryFor, attemptTimeout time.Duration
	configured               []string
	token                    string

	mu        sync.Mutex // guards what follows
	endpoints []string   // the configured ones, and then the members that they named
	leader    string     // one of them, or where a redirect led; empty: not known
	next      int        // the endpoint to ask without a leader
}

// maxHops bounds the redirects of one attempt: leaderships that move meanwhile.
const maxHops = 4

// A pause before the n-th attempt is random, at most minPause*2^n and maxPause.
const minPause, maxPause = 20 * time.Millisecond, time.Second

// longTimeout bounds the wait for the answer of what a node may take long to do.
const longTimeout = time.Minute

// idleTimeout bounds the wait for the next bytes of a stream; a watch has a keep-alive every 15 s.
var idleTimeout = 40 * time.Second

// New returns a Client. It connects to nothing yet. An error is about the Config.
func New(config Config) (*Client, error) {
	c := &Client{http: new(http.Client), retryFor: config.RetryFor, attemptTimeout: config.AttemptTimeout,
		token: config.Token}
	if config.HTTP != nil {
		*c.http = *config.HTTP
	} else {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost, transport.TLSClientConfig = 64, config.TLS.Clone()
		// An error of dialing is known to have sent nothing; that of a longer wait is not.
		transport.DialContext = (&net.Dialer{Timeout: 2 * time.Second}).DialContext
		c.http.Transport = transport
	}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.retryFor == 0 {
		c.retryFor = 30 * time.Second
	}
	if c.attemptTimeout == 0 {
		c.attemptTimeout = 6 * time.Second
	}
	for _, endpoint := range config.Endpoints {
		base, err := baseOf(endpoint)
		if err != nil {
			return nil, fmt.Errorf("raftkv: endpoint %q: %w", endpoint, err)
		}
		c.configured = append(c.configured, base)
	}
	if len(c.configured) == 0 {
		return nil, errors.New("raftkv: no endpoints; give one at least, such as http://127.0.0.1:8000")
	}
	c.endpoints = slices.Clone(c.configured)
	c.next = mathrand.IntN(len(c.endpoints)) // clients spread over the nodes
	return c, nil
}

// baseOf returns scheme and host of a URL that has nothing else.
func baseOf(endpoint string) (string, error) {
	u, err := url.Parse(strings.TrimSuffix(endpoint, "/"))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" ||
		u.String() != u.Scheme+"://"+u.Host {
		return "", errors.New("want http://HOST:PORT or https://HOST:PORT, without a path")
	}
	return u.String(), nil
}

// Close closes idle connections. Requests that are under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call is what a node is asked for.
type call struct {
	method, path string
	query        url.Values
	header       http.Header
	body         []byte
	file         io.ReadSeeker // in the place of body
	size         int64         // of file
	write        bool
	once         bool          // may not be sent again when the outcome is unknown
	stream       bool          // the answer is read by the caller
	anywhere     bool          // need not be asked of the leader
	timeout      time.Duration // for one answer; 0: the Client's
	forever      bool          // is sent again for as long as its context lasts
}

// do asks nodes for r until one has done it or refused it for good, and returns the answer, whose
// status is below 300. The caller closes the body. Any error is an *Error.
func (c *Client) do(ctx context.Context, r *call) (*http.Response, error) {
	end := time.Now().Add(c.retryFor)
	unknown := false // sticky: a later attempt that surely did nothing does not undo the first
	if ctx.Err() != nil {
		failure := &Error{Message: "not sent", write: r.write}
		failure.addContext(ctx)
		return nil, failure
	}
	for try := 0; ; try++ {
		base := c.pick(try, r.anywhere)
		response, err := c.attempt(ctx, base, r)
		failure, again := judge(response, err)
		if failure == nil {
			return response, nil
		}
		// Once an attempt is unclear, only the state machine can settle it: by its first answer,
		// or by a condition. Any other refusal is about the later attempt alone.
		maybe := unknown || failure.unknown
		failure.write, failure.unknown = r.write, maybe && failure.Status != http.StatusPreconditionFailed
		unknown = maybe
		failure.missing = failure.Status == http.StatusNotFound &&
			(r.path != "/get" || strings.HasPrefix(failure.Message, "key ")) // else it is not a node's answer
		if !again || r.write && r.once && unknown || ctx.Err() != nil {
			failure.addContext(ctx)
			return nil, failure
		}
		c.failed(base)
		wait := pause(try)
		if !r.forever && time.Now().Add(wait).After(end) {
			return nil, failure
		}
		if (try+1)%len(c.configured) == 0 {
			c.discover(ctx)
		}
		if !sleep(ctx, wait) {
			failure.addContext(ctx)
			return nil, failure
		}
	}
}

// addContext makes the error of ctx, if it has ended, the cause.
func (e *Error) addContext(ctx context.Context) {
	if err := context.Cause(ctx); err != nil {
		e.cause = errors.Join(err, e.cause)
		e.Message += " (" + err.Error() + ")"
	}
}

// judge returns why an attempt was not done, nil if it was, and whether to try again. The Error's
// unknown is true if the attempt may have been done all the same.
func judge(response *http.Response, err error) (failure *Error, again bool) {
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return e, true
		}
		op, ok := errors.AsType[*net.OpError](err)
		dialing := ok && op.Op == "dial" // never sent
		return &Error{Message: err.Error(), unknown: !dialing, cause: err}, true
	}
	status := response.StatusCode
	if status < 300 {
		return nil, false
	}
	line, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	_ = response.Body.Close()
	failure = &Error{Status: status, Message: strings.TrimSpace(string(line))}
	switch status {
	case http.StatusServiceUnavailable, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return failure, true
	case http.StatusInsufficientStorage:
		return failure, false
	}
	failure.unknown = status >= 500
	return failure, failure.unknown
}

// attempt sends r to base and to where that leads. A redirect that can't be followed is an *Error:
// nothing was done.
func (c *Client) attempt(ctx context.Context, base string, r *call) (*http.Response, error) {
	target := base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	for range maxHops {
		response, err := c.send(ctx, target, r)
		if err != nil {
			return nil, err
		}
		status := response.StatusCode
		if status != http.StatusTemporaryRedirect && status != http.StatusPermanentRedirect {
			if status < 300 && r.write {
				c.lead(base)
			}
			return response, nil
		}
		_ = response.Body.Close()
		location, err := response.Location()
		if err != nil {
			return nil, &Error{Status: status, Message: "a redirect without a Location: " + err.Error(), cause: err}
		}
		from, _ := url.Parse(base)
		if !reachableFrom(from, location) {
			return nil, &Error{Status: status, Message: "redirected from " + base + " to " + location.Host +
				", which is not followed: start that node with HTTP_ADVERTISE=http://HOST:PORT, where clients reach it"}
		}
		target, base = location.String(), location.Scheme+"://"+location.Host
	}
	return nil, &Error{Message: "redirected too often: the leadership moves"}
}

// reachableFrom reports whether to, which the node at from has named, may be asked: not without
// TLS when that has it, and not at a loopback address when that has none, as there is the
// client's own machine.
func reachableFrom(from, to *url.URL) bool {
	loopback := func(u *url.URL) bool {
		return strings.EqualFold(u.Hostname(), "localhost") || net.ParseIP(u.Hostname()).IsLoopback()
	}
	return (to.Scheme == from.Scheme || to.Scheme == "https") && (!loopback(to) || loopback(from))
}

// send sends r once. Unless r is a stream, the answer has come as a whole.
func (c *Client) send(ctx context.Context, target string, r *call) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var body io.Reader = http.NoBody
	size := int64(len(r.body))
	if r.file != nil {
		if _, err := r.file.Seek(0, io.SeekStart); err != nil {
			cancel(nil)
			return nil, &Error{Message: err.Error(), cause: err}
		}
		body, size = io.NopCloser(io.LimitReader(r.file, r.size)), r.size
	} else if size > 0 {
		body = bytes.NewReader(r.body)
	}
	request, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		cancel(nil)
		return nil, &Error{Message: err.Error(), cause: err}
	}
	// Nodes refuse what they can't redirect, a body of unknown length. And when a connection
	// breaks, net/http would send again what has an Idempotency-Key: the error would be that of
	// the second attempt, not of the first.
	request.ContentLength, request.GetBody = size, nil
	maps.Copy(request.Header, r.header)
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	timeout := r.timeout
	if timeout == 0 {
		timeout = c.attemptTimeout
	}
	timer := time.AfterFunc(timeout, func() { cancel(fmt.Errorf("no answer within %v", timeout)) })
	response, err := c.http.Do(request)
	if err == nil && !(r.stream && response.StatusCode < 300) {
		var all []byte
		if all, err = io.ReadAll(response.Body); err == nil {
			_ = response.Body.Close()
			response.Body = io.NopCloser(bytes.NewReader(all))
		}
	}
	timer.Stop()
	if cause := context.Cause(ctx); err != nil && cause != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if !r.stream {
		cancel(nil)
		return response, nil
	}
	response.Body = &idleBody{ReadCloser: response.Body, cancel: cancel}
	return response, nil
}

// idleBody is a body whose reads end after idleTimeout.
type idleBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *idleBody) Read(p []byte) (int, error) {
	timer := time.AfterFunc(idleTimeout, func() { b.cancel(errors.New("nothing has come for too long")) })
	defer timer.Stop()
	return b.ReadCloser.Read(p)
}

func (b *idleBody) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// pick returns the endpoint to ask: the leader at first, if it is known and matters, and else
// each in turn.
func (c *Client) pick(try int, anywhere bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leader != "" && !anywhere && try%2 == 0 {
		return c.leader
	}
	c.next++
	return c.endpoints[c.next%len(c.endpoints)]
}

// lead notes that base has done a write.
func (c *Client) lead(base string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = base
}

// failed notes that base could not do what it was asked for.
func (c *Client) failed(base string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leader == base {
		c.leader = ""
	}
}

// discover asks an endpoint for the members and the leader, and takes their URLs to its own. An
// error changes nothing.
func (c *Client) discover(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	base := c.pick(0, true)
	s, err := c.statusOf(ctx, base)
	if err != nil {
		return
	}
	from, _ := url.Parse(base)
	endpoints, leader := slices.Clone(c.configured), ""
	for _, m := range s.Members {
		if m.Info == nil {
			continue
		}
		u, err := url.Parse(m.Info.HTTPURL)
		if err != nil || u.Host == "" || !reachableFrom(from, u) {
			continue
		}
		if member := u.Scheme + "://" + u.Host; !slices.Contains(endpoints, member) {
			endpoints = append(endpoints, member)
		}
		if m.Info.State == "Leader" && m.NodeID == s.Leader {
			leader = u.Scheme + "://" + u.Host
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoints = endpoints
	if leader != "" {
		c.leader = leader
	}
}

// pause returns the time to wait before the attempt behind the n-th.
func pause(n int) time.Duration {
	limit := min(minPause<<min(n, 10), maxPause)
	return limit/4 + mathrand.N(limit*3/4)
}

// sleep returns false if ctx ends before d has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newKey returns an Idempotency-Key that no other request has.
func newKey() string { return `"` + rand.Text() + `"` }
