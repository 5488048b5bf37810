package peer

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotOf is the request for a snapshot of so many bytes in term 7 or later.
func snapshotOf(size int64, term uint64) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{RPCHeader: headerOf("n2"), SnapshotVersion: 1, Term: term, LastLogIndex: 20,
		LastLogTerm: 6, Configuration: raft.EncodeConfiguration(members), ConfigurationIndex: 3, Size: size}
}

// receiver is a gate that receives snapshots, and reports what became of each: the error, nil when it was discarded.
func receiver(t testing.TB) (gate *Gate, began chan struct{}, ended chan error) {
	gate, began, ended = testGate(), make(chan struct{}, 9), make(chan error, 9)
	gate.Known = func() (term uint64, leader string, committed uint64) { return 7, "n2", 10 }
	gate.Receive = func(_ *raft.InstallSnapshotRequest, _ raft.Configuration, r io.Reader) (func(), error) {
		began <- struct{}{}
		if _, err := io.ReadAll(r); err != nil {
			ended <- err
			return nil, err
		}
		return func() { ended <- nil }, nil
	}
	return gate, began, ended
}

func within[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatalf("waited 30 s for %s", what)
	}
	return v
}

// TestInstallBesideRaft: raft hears of a snapshot when all of it is there, and of everything else meanwhile.
func TestInstallBesideRaft(t *testing.T) {
	gate, began, ended := receiver(t)
	s := serve(t, gate)
	raw := rawStream(t, s.LocalAddr())
	text := sentBy(t, func(n *raft.NetworkTransport) { send(n, snapshotOf(2, 7)) })
	if _, err := raw.Write(text); err != nil {
		t.Fatal(err)
	}
	within(t, "the reception", began)
	heartbeat := &raft.AppendEntriesRequest{RPCHeader: headerOf("n2"), Term: 7}
	if err := s.sender.AppendEntriesOnce("n2", s.LocalAddr(), heartbeat, new(raft.AppendEntriesResponse)); err != nil {
		t.Errorf("a heartbeat meanwhile: %v", err)
	}
	if got := s.asked.Load(); got != 1 {
		t.Errorf("raft got %d requests before the snapshot was there, want the heartbeat", got)
	}
	if _, err := raw.Write([]byte("xy")); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "the end of the reception", ended); err != nil {
		t.Errorf("the reception: %v", err)
	}
	if got := s.asked.Load(); got != 2 {
		t.Errorf("raft got %d requests, want the snapshot, too", got)
	}
}

// TestSilentInstall: a sender that is silent for longer than snapshotSilence is given up, and the next one is served.
func TestSilentInstall(t *testing.T) {
	gate, _, ended := receiver(t)
	s := serve(t, gate)
	raw := rawStream(t, s.LocalAddr())
	if _, err := raw.Write(sentBy(t, func(n *raft.NetworkTransport) { send(n, snapshotOf(2, 7)) })); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "the end of a silent reception", ended); err == nil {
		t.Error("it was received without its bytes")
	}
	var response raft.InstallSnapshotResponse
	err := s.sender.InstallSnapshot("n2", s.LocalAddr(), snapshotOf(2, 7), &response, strings.NewReader("xy"))
	if err != nil || !response.Success {
		t.Errorf("the next one: %v, %+v", err, response)
	}
	if got := s.asked.Load(); got != 1 {
		t.Errorf("raft got %d requests, want the second one", got)
	}
}

// TestInstallTakesThePlace: of two snapshots at once the later one counts, unless it is of an older term.
func TestInstallTakesThePlace(t *testing.T) {
	gate, began, ended := receiver(t)
	s := serve(t, gate)
	var sending sync.WaitGroup
	t.Cleanup(sending.Wait)
	begin := func(term uint64) {
		t.Helper()
		c := rawStream(t, s.LocalAddr())
		if _, err := c.Write(sentBy(t, func(n *raft.NetworkTransport) { send(n, snapshotOf(1<<20, term)) })); err != nil {
			t.Fatal(err)
		}
		sending.Go(func() { // it is never silent, and takes hours
			for _, err := c.Write([]byte("x")); err == nil; _, err = c.Write([]byte("x")) {
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	begin(8)
	within(t, "the first one", began)
	begin(9)
	if err := within(t, "the end of the first one", ended); err == nil {
		t.Error("the first one was received without its bytes")
	}
	within(t, "the second one", began)
	err := s.sender.InstallSnapshot("n2", s.LocalAddr(), snapshotOf(2, 8), new(raft.InstallSnapshotResponse),
		strings.NewReader("xy"))
	if err == nil {
		t.Error("one of an older term was received")
	}
	select {
	case <-began:
		t.Error("one of an older term took the place")
	default:
	}
	if err := s.sender.InstallSnapshot("n2", s.LocalAddr(), snapshotOf(2, 9), new(raft.InstallSnapshotResponse),
		strings.NewReader("xy")); err != nil {
		t.Errorf("one of the same term: %v", err)
	}
}

// TestInstallAgain: a snapshot that the node has, as the answer was lost, is not installed again.
func TestInstallAgain(t *testing.T) {
	gate, _, _ := receiver(t)
	gate.Known = func() (term uint64, leader string, committed uint64) { return 7, "n2", 20 }
	gate.TermAt = func(uint64) (term uint64, ok bool) { return 6, true }
	gate.Receive = nil
	s := serve(t, gate)
	for range 2 {
		var response raft.InstallSnapshotResponse
		err := s.sender.InstallSnapshot("n2", s.LocalAddr(), snapshotOf(9, 7), &response, strings.NewReader("nine byte"))
		if err != nil || !response.Success || response.Term != 7 || s.asked.Load() != 0 {
			t.Errorf("got %v, %+v, and raft got %d requests, want that it is done, and none", err, response, s.asked.Load())
		}
	}
}
