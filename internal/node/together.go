package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Short requests travel together: a follower has one call to the leader, a pipeline, in which
// they follow each other, and so do their answers, in the same order. What comes while the one
// before is being written goes out with one write. At the leader they share batches, as those
// of its own clients do. A call for each cost more than all else that is done for it.
//
// Both directions are HTTP/1.1 messages one behind the other, each with its length
// (application/http, RFC 9112 section 10.2). The leader's 200 comes before any of it, so a node
// that does not lead, or whose program does not know the call, has been sent nothing. A pipeline
// that the leader ends in order has an answer for all that was taken: what has none was not done.

const (
	// maxTogether bounds the requests that are in a pipeline, or wait for it.
	maxTogether = 4096
	// maxPipelines bounds the pipelines that a leader serves, and so the bytes that it holds for
	// them. Further followers send requests one by one.
	maxPipelines = 32
	// maxTogetherAnswer bounds one answer, in bytes.
	maxTogetherAnswer = 64 << 10
	// pipelineAge is how long a pipeline takes requests: the certificates of both nodes are verified as one is opened.
	pipelineAge = time.Minute
	// pipelineIdle is after how long without a request it ends.
	pipelineIdle = 15 * time.Second
	// aloneTime is for how long a leader that does not know the call is not asked again.
	aloneTime = 30 * time.Second
)

// TogetherPath is the path of the call at the raft port.
const TogetherPath = "/forward/together"

// errAlone is returned when the leader takes no pipeline. Nothing was done.
var errAlone = errors.New("the leader takes requests one by one")

// together is the pipeline to the leader. Its methods may be called by several goroutines at once.
type together struct {
	ctx    context.Context // of all pipelines
	cancel context.CancelFunc

	mu    sync.Mutex // guards what follows
	now   *pipeline  // nil: none yet
	alone raft.Server
	until time.Time // up to then, alone takes no pipeline
}

// forwardTogether returns the leader's answer to a request, all of which is wire. An error wraps errAlone,
// ErrNotLeader, ErrNoLeader or ErrNotApplied, and nothing was done; or ErrUnknown.
func (n *Node) forwardTogether(ctx context.Context, wire []byte, sentTo func(id string)) (*http.Response, error) {
	to, err := n.forwardTarget()
	if err != nil {
		return nil, err
	}
	s := &sentOn{wire: wire, done: make(chan struct{})}
	p, err := n.together.add(s, to, n.runPipeline)
	if err != nil {
		return nil, err
	}
	sentTo(string(to.ID))
	return p.wait(ctx, s)
}

// add puts s into the pipeline to a node. Where there is none, it makes one and has it run.
func (t *together) add(s *sentOn, to raft.Server, run func(*pipeline)) (*pipeline, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if to == t.alone && time.Now().Before(t.until) {
		return nil, errAlone
	}
	if p := t.now; p != nil && p.to == to {
		if ok, err := p.add(s); ok || err != nil {
			return p, err
		}
	} else if p != nil {
		p.end()
	}
	t.now = newPipeline(t.ctx, to)
	_, err := t.now.add(s)
	go run(t.now)
	return t.now, err
}

// refused notes that a node takes no pipeline.
func (t *together) refused(to raft.Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alone, t.until = to, time.Now().Add(aloneTime)
}

// sentOn is a request in a pipeline.
type sentOn struct {
	wire     []byte
	done     chan struct{} // closed when what follows is set
	response *http.Response
	err      error
}

func (s *sentOn) finish(response *http.Response, err error) {
	s.response, s.err = response, err
	close(s.done)
}

// pipeline is the requests to one node. It is the body of the call, which the transport reads. Its methods may be
// called by several goroutines at once.
type pipeline struct {
	to   raft.Server
	born time.Time
	ctx  context.Context // of the call
	lose context.CancelCauseFunc
	idle *time.Timer // ends it

	mu     sync.Mutex // guards what follows
	change *sync.Cond // of what Read waits for
	open   bool       // the node takes requests
	ended  bool       // there is no further request
	closed bool       // nothing more is read
	queue  []*sentOn  // of which nothing was read
	sent   []*sentOn  // without an answer, in their order
	part   []byte     // of the last of sent, what is not yet read
}

func newPipeline(ctx context.Context, to raft.Server) *pipeline {
	p := &pipeline{to: to, born: time.Now()}
	p.ctx, p.lose = context.WithCancelCause(ctx)
	p.change = sync.NewCond(&p.mu)
	p.idle = time.AfterFunc(pipelineIdle, p.end)
	return p
}

// add makes s the last request. It returns false if the pipeline takes no further one; an error wraps ErrNotApplied.
func (p *pipeline) add(s *sentOn) (ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended:
		return false, nil
	case len(p.queue)+len(p.sent) >= maxTogether:
		return false, fmt.Errorf("%w: %d requests are on their way to the leader already", ErrNotApplied, maxTogether)
	}
	p.queue = append(p.queue, s)
	p.ended = time.Since(p.born) > pipelineAge
	p.idle.Reset(pipelineIdle)
	p.change.Signal()
	return true, nil
}

// end has the pipeline take no further request. Those that it has are answered.
func (p *pipeline) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.change.Signal()
}

// wait returns the answer to s.
func (p *pipeline) wait(ctx context.Context, s *sentOn) (*http.Response, error) {
	timer := time.NewTimer(enqueueLimit)
	defer timer.Stop()
	err := errNoAnswer
	select {
	case <-s.done:
		return s.response, s.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
	}
	if p.remove(s) {
		return nil, fmt.Errorf("%w: it waited to be sent on to the leader: %w", ErrNotApplied, err)
	}
	timer.Reset(forwardLimit)
	select {
	case <-s.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: sent on to the leader: %w", ErrUnknown, ctx.Err())
	case <-timer.C:
		p.lose(errNoAnswer) // nor is there one to those behind it
		<-s.done
	}
	return s.response, s.err
}

var errNoAnswer = errors.New("no answer in time")

// remove takes s out; it returns false if some of it was read.
func (p *pipeline) remove(s *sentOn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.queue, s)
	if i >= 0 {
		p.queue = slices.Delete(p.queue, i, i+1)
	}
	return i >= 0
}

// Read implements io.Reader: as many requests as there are and as b has room for.
func (p *pipeline) Read(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && (!p.open || len(p.part)+len(p.queue) == 0) {
		if p.open && p.ended {
			return 0, io.EOF
		}
		p.change.Wait()
	}
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	for n < len(b) && len(p.part)+len(p.queue) > 0 {
		if len(p.part) == 0 {
			next := p.queue[0]
			p.queue = slices.Delete(p.queue, 0, 1)
			p.sent = append(p.sent, next)
			p.part = next.wire
		}
		copied := copy(b[n:], p.part)
		n, p.part = n+copied, p.part[copied:]
	}
	return n, nil
}

// Close implements io.Closer, for the transport: nothing more is read.
func (p *pipeline) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.closed = true, true
	p.change.Signal()
	return nil
}

// begin has the requests read.
func (p *pipeline) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = true
	p.change.Signal()
}

// answered finishes the first request without an answer. It returns false if there is none.
func (p *pipeline) answered(answer *http.Response) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent) == 0 {
		return false
	}
	p.sent[0].finish(answer, nil)
	p.sent = slices.Delete(p.sent, 0, 1)
	return true
}

// fail finishes all requests that are left. Of an ErrUnknown, those that were not read know better.
func (p *pipeline) fail(err error) {
	_ = p.Close()
	p.idle.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sent {
		s.finish(nil, err)
	}
	if errors.Is(err, ErrUnknown) {
		err = fmt.Errorf("%w: it waited to be sent on to the leader: %v", ErrNotApplied, err)
	}
	for _, s := range p.queue {
		s.finish(nil, err)
	}
	p.sent, p.queue = nil, nil
}

// runPipeline returns when every request of p has an answer or an error, and there is no further one.
func (n *Node) runPipeline(p *pipeline) {
	stop := n.watchForward(p.to, p.lose)
	err := n.callTogether(p)
	stop()
	if errors.Is(err, errAlone) {
		n.together.refused(p.to)
	}
	p.fail(err)
	p.lose(nil)
}

// callTogether makes the call of which p is the body, and has the requests answered. Its error is that of the others.
func (n *Node) callTogether(p *pipeline) error {
	call, err := newForward(p.ctx, p.to, TogetherPath, p, -1)
	if err != nil {
		return err
	}
	call.Header.Set("Expect", "100-continue") // without it, a node that refuses the call waits for the body first
	response, err := n.port.ForwardClient().Transport.RoundTrip(call)
	if err != nil {
		return lostForward(p.ctx, p.to, err, false)
	}
	defer func() { _ = response.Body.Close() }()
	switch {
	case response.StatusCode == http.StatusNotFound, response.StatusCode == http.StatusTooManyRequests:
		return errAlone
	case response.Header.Get(headerForwarded) == "":
		return refusedForward(response, p.to.ID, p.to.Address)
	}
	p.begin()
	answers := bufio.NewReader(response.Body)
	for {
		if _, err := answers.Peek(1); err == io.EOF {
			return fmt.Errorf("%w: %s does not lead any more", ErrNotLeader, p.to.ID)
		}
		answer, err := readAnswer(answers)
		if err != nil {
			return lostForward(p.ctx, p.to, err, true)
		}
		if !p.answered(answer) {
			return lostForward(p.ctx, p.to, errors.New("an answer to nothing"), true)
		}
	}
}

// readAnswer reads one of the answers of a pipeline into memory.
func readAnswer(r *bufio.Reader) (*http.Response, error) {
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if answer.ContentLength < 0 || answer.ContentLength > maxTogetherAnswer {
		return nil, fmt.Errorf("an answer of %d bytes, want %d at most", answer.ContentLength, maxTogetherAnswer)
	}
	body := make([]byte, answer.ContentLength)
	if _, err := io.ReadFull(answer.Body, body); err != nil {
		return nil, err
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer, nil
}
