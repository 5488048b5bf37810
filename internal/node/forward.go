package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

const (
	// maxForwards bounds the requests that this node has sent on and that are not answered.
	// Further ones wait for enqueueLimit at most.
	maxForwards = 128
	// forwardLimit is how long a short one may take as a whole, its body included. It is less
	// than the HTTP server has for an answer.
	forwardLimit = 50 * time.Second
	// forwardLost is how long the node that has a request may not be the leader any more, as
	// far as this node knows, before its answer is no longer waited for.
	forwardLost  = 5 * time.Second
	forwardCheck = time.Second
)

// headerForwarded is a header of the answer to a request that was sent on: the leader's API
// has answered it. An answer without it means that nothing was done.
const headerForwarded = "Raftkv-Forwarded"

// ErrOlderLeader is returned by Forward when the leader's program is too old to take requests
// that are sent on. Nothing was done.
var ErrOlderLeader = fmt.Errorf("%w: its program takes no requests that are sent on: upgrade it", ErrNotApplied)

// Request is a request of a client for the leader. Package api has one.
type Request interface {
	// Reader returns a reader of it from its beginning, and ends the one before; it returns
	// false if that can't be any more.
	Reader() (io.ReadCloser, bool)
	// Begun reports whether anything was read by the last of them.
	Begun() bool
}

// ForwardOptions are what Forward has to know of a request.
type ForwardOptions struct {
	Length int64           // of all that is to be read; -1: not known
	Ask    bool            // read it only when the leader asks for it
	Long   bool            // it has no limit but that the leader stays the leader
	Whole  []byte          // all of a short one, which may travel together with others; nil: it may not
	To     func(id string) // called with the leader's ID before the request is sent
}

// Forward sends a request on to the leader, by its raft port, and returns the leader's
// answer, whose body must be closed. It is one hop: a node that does not lead refuses it.
// An error wraps ErrNoLeader or ErrNotApplied, and nothing was done; or ErrUnknown.
//
// If the node that it went to does not lead any more, the leader is looked up once again,
// unless some of the client's body was read by then.
//
// A short one travels together with others where the leader's program knows that. What is lost
// on the way is then unknown for all of them; each has its own answer otherwise.
func (n *Node) Forward(ctx context.Context, request Request, o ForwardOptions) (*http.Response, error) {
	if o.Whole != nil {
		response, err := n.forwardTogether(ctx, o.Whole, o.To)
		if errors.Is(err, ErrNotLeader) {
			response, err = n.forwardTogether(ctx, o.Whole, o.To)
		}
		if !errors.Is(err, errAlone) {
			return response, withoutRedirect(err)
		}
	}
	timer := time.NewTimer(enqueueLimit)
	defer timer.Stop()
	select {
	case n.forwards <- struct{}{}:
	case <-timer.C:
		return nil, fmt.Errorf("%w: %d requests are on their way to the leader already", ErrNotApplied, maxForwards)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrNotApplied, ctx.Err())
	}
	release := func() { <-n.forwards }
	response, err := n.forward(ctx, request, o, release)
	if errors.Is(err, ErrNotLeader) {
		response, err = n.forward(ctx, request, o, release)
	}
	if err != nil {
		release()
	}
	return response, withoutRedirect(err)
}

// withoutRedirect has an ErrNotLeader be no reason to redirect.
func withoutRedirect(err error) error {
	if errors.Is(err, ErrNotLeader) {
		return fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	return err
}

// forward makes one attempt. It calls release when the answer has been read; not if it
// returns an error.
func (n *Node) forward(ctx context.Context, request Request, o ForwardOptions, release func()) (*http.Response, error) {
	to, err := n.forwardTarget()
	if err != nil {
		return nil, err
	}
	reader, ok := request.Reader()
	if !ok {
		return nil, fmt.Errorf("%w: the leadership has moved", ErrNotLeader)
	}
	o.To(string(to.ID))
	return n.forwardTo(ctx, to, reader, request, o, release)
}

// forwardTarget returns the node that leads, as far as this one knows.
func (n *Node) forwardTarget() (raft.Server, error) {
	if n.life.now() == removed {
		return raft.Server{}, errRemoved
	}
	address, id := n.current.Load().raft.LeaderWithID()
	if address == "" {
		return raft.Server{}, ErrNoLeader
	}
	return raft.Server{ID: id, Address: address}, nil
}

// newForward returns a call to a node whose body is read once, and is a client's request, or several.
func newForward(ctx context.Context, to raft.Server, path string, body io.Reader, length int64) (*http.Request, error) {
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+string(to.Address)+path, body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	call.ContentLength = length
	call.Header = http.Header{headerTo: {string(to.ID)}, "Content-Type": {"application/http"}}
	return call, nil
}

// lostForward is the error for a call that has no answer, whose body the other node may have if it was begun.
func lostForward(ctx context.Context, to raft.Server, err error, begun bool) error {
	if cause := context.Cause(ctx); errors.Is(cause, errForwardLost) {
		err = cause
	}
	code := ErrUnknown
	if !begun {
		code = ErrNotApplied
	}
	return fmt.Errorf("%w: sent on to the leader, %s at %s: %w", code, to.ID, to.Address, withoutURL(err))
}

// forwardTo sends what reader reads, of request, to one node.
func (n *Node) forwardTo(ctx context.Context, to raft.Server, reader io.Reader, request Request, o ForwardOptions,
	release func()) (*http.Response, error) {
	cancelLimit := context.CancelFunc(func() {})
	if !o.Long {
		ctx, cancelLimit = context.WithTimeout(ctx, forwardLimit)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := n.watchForward(to, cancel)
	end := func() { stop(); cancel(nil); cancelLimit() }
	call, err := newForward(ctx, to, "/forward", reader, o.Length)
	if err != nil {
		end()
		return nil, err
	}
	if o.Ask {
		call.Header.Set("Expect", "100-continue")
	}
	response, err := n.port.ForwardClient().Transport.RoundTrip(call)
	if err != nil {
		end()
		return nil, lostForward(ctx, to, err, request.Begun())
	}
	if response.Header.Get(headerForwarded) == "" {
		defer end()
		defer func() { _ = response.Body.Close() }()
		return nil, refusedForward(response, to.ID, to.Address)
	}
	response.Header.Del(headerForwarded)
	response.Body = &forwardedAnswer{ReadCloser: response.Body, end: func() { end(); release() }}
	return response, nil
}

// refusedForward is the error for an answer that is not one of the leader's API. It wraps
// ErrNotLeader or ErrNotApplied.
func refusedForward(response *http.Response, id raft.ServerID, address raft.ServerAddress) error {
	if response.StatusCode == http.StatusNotFound {
		return ErrOlderLeader
	}
	err := decodeRPCError(response, string(address), "/forward")
	if errors.Is(err, ErrNotLeader) {
		return fmt.Errorf("%w: %s does not lead any more", ErrNotLeader, id)
	}
	return fmt.Errorf("%w: sent on to the leader, %s at %s: %v", ErrNotApplied, id, address, err)
}

// forwardedAnswer is the body of an answer; it calls end once, when it is closed.
type forwardedAnswer struct {
	io.ReadCloser
	end func()
}

func (a *forwardedAnswer) Close() error {
	err := a.ReadCloser.Close()
	if a.end != nil {
		a.end()
		a.end = nil
	}
	return err
}

var errForwardLost = fmt.Errorf("it has not been the leader for %v, and has not answered", forwardLost)

// watchForward calls cancel when the node that has a request has not been the leader for
// forwardLost: one that was cut off, or stands still, does not answer. stop ends it.
func (n *Node) watchForward(to raft.Server, cancel context.CancelCauseFunc) (stop func()) {
	var timer *time.Timer
	last, done := time.Now(), make(chan struct{})
	started := make(chan struct{})
	timer = time.AfterFunc(forwardCheck, func() {
		<-started
		nowAt, now := n.current.Load().raft.LeaderWithID()
		if now == to.ID && nowAt == to.Address {
			last = time.Now()
		} else if time.Since(last) >= forwardLost {
			cancel(errForwardLost)
			return
		}
		select {
		case <-done:
		default:
			timer.Reset(forwardCheck)
		}
	})
	close(started)
	return func() { close(done); timer.Stop() }
}

// SetForwarded sets what answers the requests that members send on to this node while it
// leads. It gets the call, whose body is the request.
func (n *Node) SetForwarded(handler http.Handler) { n.forwarded.Store(&handler) }

// handleForward answers a request that a member sends on, or several that travel together. Unless this node leads,
// nothing of it is read: the member can ask another node.
func (n *Node) handleForward(i *instance, w http.ResponseWriter, r *http.Request) error {
	if peer.Caller(r) != i.volume.Cluster {
		return fmt.Errorf("%w: %s belongs to another cluster", ErrConflict, n.config.ID)
	}
	handler := n.forwarded.Load()
	switch {
	case !i.leads():
		return ErrNotLeader
	case handler == nil:
		return fmt.Errorf("%w: %s is starting", ErrNotApplied, n.config.ID)
	}
	w.Header().Set(headerForwarded, n.config.ID)
	(*handler).ServeHTTP(w, r)
	return nil
}
