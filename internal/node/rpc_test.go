package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// serveRPC starts a server for calls and returns its address.
func serveRPC(t *testing.T, handler http.HandlerFunc) raft.ServerAddress {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return raft.ServerAddress(strings.TrimPrefix(server.URL, "http://"))
}

func newMembers() *members {
	return &members{self: "n1", client: http.DefaultClient, clusterID: func() peer.ClusterID { return peer.ClusterID{1} }}
}

// TestErrorsCrossTheRaftPort: with their code and their whole line, whatever they wrap.
func TestErrorsCrossTheRaftPort(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code Code
	}{
		{name: "a code alone", err: ErrNotLeader, code: ErrNotLeader},
		{name: "with a text", err: fmt.Errorf("%w: n2 holds data", ErrConflict), code: ErrConflict},
		{name: "the outer code counts", err: fmt.Errorf("%w: %w", ErrConflict, ErrNotApplied), code: ErrConflict},
		{name: "one that came from a third node", err: &Error{Code: ErrNoSuchNode, Message: "no such node: n9"},
			code: ErrNoSuchNode},
		{name: "without a code", err: errors.New("a disk is gone")},
	} {
		t.Run(test.name, func(t *testing.T) {
			address := serveRPC(t, func(w http.ResponseWriter, _ *http.Request) { writeRPC(w, nil, test.err) })
			err := newMembers().call(t.Context(), http.MethodPost, raft.Server{Address: address}, "/leave", nil)
			if err == nil || err.Error() != test.err.Error() {
				t.Errorf("got %v, want %v", err, test.err)
			}
			if code, ok := CodeOf(err); code != test.code || ok != (test.code != "") {
				t.Errorf("got code %q, %v, want %q", code, ok, test.code)
			}
			if test.code != "" && !errors.Is(err, test.code) {
				t.Errorf("%v is not %v", err, test.code)
			}
		})
	}
}

// TestCallOfSomethingElse: what answers may be no node at all.
func TestCallOfSomethingElse(t *testing.T) {
	address := serveRPC(t, http.NotFound)
	err := newMembers().call(t.Context(), http.MethodGet, raft.Server{Address: address}, "/info", new(Info))
	if err == nil || !strings.Contains(err.Error(), "404 Not Found") {
		t.Errorf("got %v, want the status", err)
	}
	if code, ok := CodeOf(err); ok {
		t.Errorf("got code %q, want none", code)
	}
}

// TestAskAll has a right answer for those members only that are what they should be.
func TestAskAll(t *testing.T) {
	serve := func(info Info) raft.ServerAddress {
		return serveRPC(t, func(w http.ResponseWriter, _ *http.Request) { writeRPC(w, info, nil) })
	}
	cluster := peer.ClusterID{1}.String()
	hangs := serveRPC(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	infos := newMembers().askAll(context.Background(), []raft.Server{
		{ID: "n1", Address: serve(Info{NodeID: "n1", ClusterID: cluster})},
		{ID: "n2", Address: serve(Info{NodeID: "n2", ClusterID: cluster, Term: 7})},
		{ID: "n3", Address: serve(Info{NodeID: "n4", ClusterID: cluster})},
		{ID: "n5", Address: serve(Info{NodeID: "n5", ClusterID: peer.ClusterID{2}.String()})},
		{ID: "n6", Address: hangs},
	})
	for i, name := range []string{"this node", "", "another node", "another cluster", "no answer"} {
		if (infos[i] != nil) != (i == 1) {
			t.Errorf("%s: got %+v", name, infos[i])
		}
	}
	if infos[1] == nil || infos[1].Term != 7 {
		t.Errorf("got %+v, want the answer of n2", infos[1])
	}
}

// TestCallMeantForAnotherNode: the node that is there refuses it, whatever it asks for, and gives
// its own ID.
func TestCallMeantForAnotherNode(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	n1.waitLeader(t)
	address := raft.ServerAddress(n1.RaftAddress())
	for _, call := range []struct{ method, path string }{
		{http.MethodGet, "/info"}, {http.MethodGet, "/readindex"}, {http.MethodGet, "/committed?index=1"},
		{http.MethodPost, "/adopt"}, {http.MethodPost, "/release"}, {http.MethodPost, "/removed"},
		{http.MethodPost, "/leave?nodeId=n1"}, {http.MethodPost, "/differs?nodeId=n1&text=x"},
	} {
		err := n1.members.call(t.Context(), call.method, raft.Server{ID: "n9", Address: address}, call.path, nil)
		wantError(t, call.path, err, ErrConflict, "n1 answers at "+n1.RaftAddress()+", not n9")
	}
	if info := n1.Info(); info.Removed {
		t.Error("it was removed")
	}
	for _, id := range []raft.ServerID{"n1", ""} { // an older program sends no ID
		to := raft.Server{ID: id, Address: address}
		if err := n1.members.call(t.Context(), http.MethodGet, to, "/info", nil); err != nil {
			t.Errorf("meant for %q: %v", id, err)
		}
	}
}
