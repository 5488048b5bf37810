package peer

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestStandin: entries of which one stands for another are not sent, and not tried again.
func TestStandin(t *testing.T) {
	p, err := Listen("127.0.0.1:0", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	transport := NewTransport(p.Stream(), hclog.NewNullLogger(), time.Millisecond)
	defer transport.Close()
	entries := []*raft.Log{{Index: 1, Term: 1}, {Index: 2, Term: 1, Extensions: []byte(Standin)}}
	args := &raft.AppendEntriesRequest{Term: 1, LeaderCommitIndex: 1, Entries: entries}
	if err := transport.AppendEntries("n2", "127.0.0.1:1", args, nil); !errors.Is(err, errStandin) {
		t.Errorf("got %v, want %v", err, errStandin)
	}
}
