package node

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// testRequest is a Request of which nothing is a client's body.
type testRequest struct {
	text  string
	begun atomic.Bool
	taken bool // it can't be read again
}

func (r *testRequest) Begun() bool { return r.begun.Load() }

func (r *testRequest) Reader() (io.ReadCloser, bool) {
	r.begun.Store(false)
	text := strings.NewReader(r.text)
	return io.NopCloser(readerFunc(func(p []byte) (int, error) { r.begun.Store(true); return text.Read(p) })), !r.taken
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func forwardOptions() ForwardOptions { return ForwardOptions{Length: -1, To: func(string) {}} }

// echo answers a request that was sent on with the name of its node and the request.
func echo(id string, calls *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("ETag", `"1"`)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, id+" has "+string(b))
	})
}

// TestForward: a request goes to the leader and to no other node, once.
func TestForward(t *testing.T) {
	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	var calls atomic.Int64
	var others []*testNode
	for _, n := range nodes {
		n.SetForwarded(echo(n.config.ID, &calls))
		if n != leader {
			others = append(others, n)
		}
	}
	a, b := others[0], others[1]
	waitFor(t, "a follower knows the leader", func() bool { return a.Info().Leader == leader.config.ID })

	response, err := a.Forward(t.Context(), &testRequest{text: "it"}, forwardOptions())
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if got, want := string(body), leader.config.ID+" has it"; got != want || response.StatusCode != http.StatusTeapot ||
		response.Header.Get("ETag") != `"1"` || response.Header.Get(headerForwarded) != "" {
		t.Errorf("got %d %q %v, want 418 %q with its ETag", response.StatusCode, got, response.Header, want)
	}
	if got := len(a.forwards); got != 0 {
		t.Errorf("got %d requests under way after the answer, want none", got)
	}

	// Two followers that take each other for the leader: the second refuses, and does nothing.
	calls.Store(0)
	to := raft.Server{ID: raft.ServerID(b.config.ID), Address: raft.ServerAddress(b.RaftAddress())}
	o := forwardOptions()
	o.Ask = true
	request := &testRequest{text: "it"}
	reader, _ := request.Reader()
	_, err = a.forwardTo(t.Context(), to, reader, request, o, func() {})
	if !errors.Is(err, ErrNotLeader) || calls.Load() != 0 || request.Begun() {
		t.Errorf("sent on to a follower: got %v after %d calls, begun %v, want ErrNotLeader, nothing read", err, calls.Load(),
			request.Begun())
	}
	// Another node answers where the leader was.
	to.ID = raft.ServerID(leader.config.ID)
	_, err = a.forwardTo(t.Context(), to, reader, request, o, func() {})
	if !errors.Is(err, ErrNotApplied) || calls.Load() != 0 {
		t.Errorf("sent on to another node: got %v after %d calls, want ErrNotApplied", err, calls.Load())
	}
	// A stranger's request is refused.
	stranger := openNode(t, "n9", t.TempDir())
	to = raft.Server{ID: raft.ServerID(leader.config.ID), Address: raft.ServerAddress(leader.RaftAddress())}
	_, err = stranger.forwardTo(t.Context(), to, reader, request, o, func() {})
	if !errors.Is(err, ErrNotApplied) || !strings.Contains(err.Error(), "another cluster") || calls.Load() != 0 {
		t.Errorf("sent on by a stranger: got %v after %d calls, want ErrNotApplied", err, calls.Load())
	}
	// One whose body was read in part can't be sent on.
	if _, err := a.Forward(t.Context(), &testRequest{taken: true}, forwardOptions()); !errors.Is(err, ErrNotApplied) {
		t.Errorf("a request that was read: got %v, want ErrNotApplied", err)
	}
	checkReplicas(t, nodes...)
}

// TestForwardedAndLost: an outcome that is lost on the way is unknown; what was not sent is not
// applied.
func TestForwardedAndLost(t *testing.T) {
	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	var follower *testNode
	for _, n := range nodes {
		if n != leader {
			follower = n
		}
	}
	waitFor(t, "a follower knows the leader", func() bool { return follower.Info().Leader == leader.config.ID })
	arrived, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	leader.SetForwarded(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		close(arrived)
		<-release
	}))
	lost := make(chan error, 1)
	go func() {
		_, err := follower.Forward(t.Context(), &testRequest{text: "it"}, forwardOptions())
		lost <- err
	}()
	<-arrived
	leader.stop()
	if err := <-lost; !errors.Is(err, ErrUnknown) {
		t.Errorf("an answer that is lost: got %v, want ErrUnknown", err)
	}
	to := raft.Server{ID: raft.ServerID(leader.config.ID), Address: raft.ServerAddress(leader.RaftAddress())}
	request := &testRequest{text: "it"}
	reader, _ := request.Reader()
	_, err := follower.forwardTo(t.Context(), to, reader, request, forwardOptions(), func() {})
	if code, _ := CodeOf(err); code != ErrNotApplied {
		t.Errorf("a leader that is gone: got %v, want ErrNotApplied", err)
	}
}

// olderNode returns where a node listens whose program knows no call.
func olderNode(t *testing.T) raft.Server {
	t.Helper()
	port, err := peer.Listen("127.0.0.1:0", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	port.Serve(http.NewServeMux(), func(string) uint64 { return 0 })
	return raft.Server{ID: "n2", Address: raft.ServerAddress(port.Address())}
}

// TestForwardToAnOlderProgram: it has no such call, and has done nothing.
func TestForwardToAnOlderProgram(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	request := &testRequest{text: "it"}
	reader, _ := request.Reader()
	_, err := n.forwardTo(t.Context(), olderNode(t), reader, request, forwardOptions(), func() {})
	if !errors.Is(err, ErrOlderLeader) {
		t.Errorf("got %v, want ErrOlderLeader", err)
	}
}
