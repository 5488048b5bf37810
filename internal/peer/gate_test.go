package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// testGate is that of a node in term 7 with 10 entries committed, all of term 5.
func testGate() *Gate {
	return &Gate{
		Known:  func() (term uint64, leader string, committed uint64) { return 7, "n1", 10 },
		TermAt: func(index uint64) (term uint64, ok bool) { return 5, index > 2 },
		CheckCommand: func(data []byte) error {
			if len(data) == 0 {
				return errors.New("an empty command\nwith two lines")
			}
			return nil
		},
		Refused: func(string, ...any) {},
	}
}

// TestGate: what a member of the same program sends passes, and what would end a node, or have it lose what is
// committed, does not.
func TestGate(t *testing.T) {
	command := func(index, term uint64) *raft.Log {
		return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte("x")}
	}
	appends := func(prev, prevTerm uint64, entries ...*raft.Log) any {
		return &raft.AppendEntriesRequest{RPCHeader: sampleHeader, Term: 7, PrevLogEntry: prev, PrevLogTerm: prevTerm,
			Entries: entries}
	}
	configuration := func(servers ...raft.Server) any {
		return appends(10, 5, &raft.Log{Index: 11, Term: 6, Type: raft.LogConfiguration,
			Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers})})
	}
	vote := func(term, lastIndex, lastTerm uint64) any {
		return &raft.RequestVoteRequest{RPCHeader: sampleHeader, Term: term, LastLogIndex: lastIndex, LastLogTerm: lastTerm}
	}
	snapshot := func(change func(s *raft.InstallSnapshotRequest)) any {
		s := &raft.InstallSnapshotRequest{RPCHeader: sampleHeader, SnapshotVersion: 1, Term: 7, LastLogIndex: 20,
			LastLogTerm: 6, Configuration: raft.EncodeConfiguration(members), ConfigurationIndex: 3, Size: 100}
		change(s)
		return s
	}
	n1, n2 := members.Servers[0], members.Servers[1]
	for _, test := range []struct {
		name    string
		request any
		want    string // in the refusal; empty: it passes
	}{
		{name: "a heartbeat", request: &raft.AppendEntriesRequest{RPCHeader: sampleHeader, Term: 7}},
		{name: "the next entries", request: appends(10, 5, command(11, 5), command(12, 6), command(13, 7))},
		{name: "entries again", request: appends(8, 5, command(9, 5), command(10, 5), command(11, 7))},
		{name: "the first entries", request: appends(0, 0, command(1, 5)), want: "is another than this node's"},
		{name: "a no-op and a barrier", request: appends(10, 5, &raft.Log{Index: 11, Term: 7, Type: raft.LogNoop},
			&raft.Log{Index: 12, Term: 7, Type: raft.LogBarrier})},
		{name: "members", request: configuration(n1, n2)},
		{name: "a vote", request: vote(8, 11, 6)},
		{name: "a vote, without entries", request: vote(8, 0, 0)},
		{name: "a pre-vote", request: &raft.RequestPreVoteRequest{RPCHeader: sampleHeader, Term: 8}},
		{name: "a transfer", request: &raft.TimeoutNowRequest{RPCHeader: sampleHeader}},
		{name: "a snapshot", request: snapshot(func(*raft.InstallSnapshotRequest) {})},
		{name: "a high term", request: vote(7+1<<32, 11, 6)},

		{name: "a second leader", request: &raft.AppendEntriesRequest{RPCHeader: headerOf("n2"), Term: 7},
			want: "n1 leads in term 7"},
		{name: "a snapshot of a second leader", request: snapshot(func(s *raft.InstallSnapshotRequest) {
			s.RPCHeader = headerOf("n2")
		}), want: "n1 leads in term 7"},
		{name: "a leader of a new term", request: &raft.AppendEntriesRequest{RPCHeader: headerOf("n2"), Term: 8}},
		{name: "no sender", request: &raft.TimeoutNowRequest{}, want: "does not name its sender"},
		{name: "another sender", request: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ID: []byte("n9"),
			Addr: []byte("a:1")}}, want: `in the name of "n9"`},
		{name: "a gap before the entries", request: appends(10, 5, command(12, 7)), want: "entry 12 is where 11"},
		{name: "a gap in the entries", request: appends(10, 5, command(11, 7), command(13, 7)), want: "entry 13 is where 12"},
		{name: "the same entry twice", request: appends(10, 5, command(11, 7), command(11, 7)), want: "11 is where 12"},
		{name: "a term above that of the request", request: appends(10, 5, command(11, 8)), want: "is of term 8"},
		{name: "a term of 0", request: appends(0, 0, command(1, 0)), want: "is of term 0"},
		{name: "terms that go back", request: appends(10, 6, command(11, 5)), want: "is of term 5, after one of 6"},
		{name: "a previous term above that of the request", request: appends(10, 8), want: "of term 8, in term 7"},
		{name: "a previous entry without a term", request: appends(10, 0), want: "follow one at 10 of term 0"},
		{name: "a command that can't be decoded", request: appends(10, 5, &raft.Log{Index: 11, Term: 7}),
			want: `can't be decoded by this version: "an empty command\nwith two lines"`},
		{name: "a type of a former protocol", request: appends(10, 5, &raft.Log{Index: 11, Term: 7,
			Type: raft.LogRemovePeerDeprecated}), want: "unknown type 3"},
		{name: "an unknown type", request: appends(10, 5, &raft.Log{Index: 11, Term: 7, Type: 6}), want: "unknown type 6"},
		{name: "other members than can be decoded", request: appends(10, 5, &raft.Log{Index: 11, Term: 7,
			Type: raft.LogConfiguration, Data: []byte("\x81\xa7Servers\x91\xc1")}), want: "can't be decoded: 0xc1"},
		{name: "members that end too early", request: appends(10, 5, &raft.Log{Index: 11, Term: 7,
			Type: raft.LogConfiguration, Data: []byte("\x81\xa7Servers\x91")}), want: "has no members that a cluster can have"},
		{name: "no members", request: configuration(), want: "no member has a vote"},
		{name: "no voter", request: configuration(n2), want: "no member has a vote"},
		{name: "one ID twice", request: configuration(n1, raft.Server{ID: "n1", Address: "b:1"}), want: "there twice"},
		{name: "one address twice", request: configuration(n1, raft.Server{ID: "n3", Address: n1.Address}),
			want: "there twice"},
		{name: "a member without an address", request: configuration(n1, raft.Server{ID: "n3"}), want: "an address"},
		{name: "a member without an ID", request: configuration(n1, raft.Server{Address: "b:1"}), want: "without an ID"},
		{name: "a member with a line end", request: configuration(n1, raft.Server{ID: "n\n3", Address: "b:1"}),
			want: `the ID of a member is not one: "n\n3"`},
		{name: "a suffrage that there is not", request: configuration(n1, raft.Server{Suffrage: 3, ID: "n3",
			Address: "b:1"}), want: "the suffrage of a member is 3"},
		{name: "another entry than is committed", request: appends(8, 5, command(9, 5), command(10, 6)),
			want: "entry 10 of term 6 is another"},
		{name: "an entry before the snapshot", request: appends(1, 5, command(2, 5)), want: "entry 2 of term 5 is another"},
		{name: "a term of 0 in all", request: &raft.AppendEntriesRequest{RPCHeader: sampleHeader}, want: "its term is 0"},
		{name: "a term too high", request: &raft.AppendEntriesRequest{RPCHeader: sampleHeader, Term: 8 + 1<<32},
			want: "its term is 4294967304 and this node's 7"},
		{name: "a vote in a term too high", request: vote(8+1<<32, 11, 6), want: "no cluster gets there"},
		{name: "a pre-vote in a term too high", request: &raft.RequestPreVoteRequest{RPCHeader: sampleHeader,
			Term: 1 << 61}, want: "no cluster gets there"},
		{name: "a vote for one that is ahead of itself", request: vote(8, 11, 9), want: "a last entry 11 of term 9"},
		{name: "a vote for a last entry without a term", request: vote(8, 11, 0), want: "a last entry 11 of term 0"},
		{name: "a pre-vote for one that is ahead of itself", request: &raft.RequestPreVoteRequest{
			RPCHeader: sampleHeader, Term: 8, LastLogIndex: 1, LastLogTerm: 9}, want: "a last entry 1 of term 9"},
		{name: "a snapshot of a former term", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.Term = 6 }),
			want: "sent in term 6, and this is 7"},
		{name: "a snapshot in a term too high", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.Term = 1 << 40 }),
			want: "no cluster gets there"},
		{name: "an older snapshot", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.LastLogIndex = 9 }),
			want: "of entry 9, and this node has committed 10"},
		{name: "a snapshot of another entry", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.LastLogIndex = 10 }),
			want: "of entry 10 of term 6, which is another"},
		{name: "a snapshot from the future", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.LastLogTerm = 8 }),
			want: "of entry 20 of term 8, in term 7"},
		{name: "a snapshot of nothing", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.LastLogIndex = 0 }),
			want: "of entry 0"},
		{name: "a snapshot of another version", request: snapshot(func(s *raft.InstallSnapshotRequest) {
			s.SnapshotVersion = 0
		}), want: "unknown version 0"},
		{name: "a snapshot with later members", request: snapshot(func(s *raft.InstallSnapshotRequest) {
			s.ConfigurationIndex = 21
		}), want: "with members of 21"},
		{name: "a snapshot without members", request: snapshot(func(s *raft.InstallSnapshotRequest) {
			s.Configuration = nil
		}), want: "the snapshot has no members"},
		{name: "an empty snapshot", request: snapshot(func(s *raft.InstallSnapshotRequest) { s.Size = 0 }),
			want: "is empty"},
	} {
		from := string(test.request.(raft.WithRPCHeader).GetRPCHeader().ID)
		if test.name == "another sender" {
			from = "n1"
		}
		err := testGate().check(test.request, from)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	fresh := testGate()
	fresh.Known = func() (term uint64, leader string, committed uint64) { return 0, "", 0 }
	if err := fresh.check(vote(1<<60, 11, 6), "n1"); err != nil {
		t.Errorf("a high term for a node that has nothing: %v", err)
	}
}

// TestRefusalsArePrintedOnce: for each sender and reason, and later with the number of those that were not.
func TestRefusalsArePrintedOnce(t *testing.T) {
	var r refusals
	now := time.Now()
	check := func(sender, reason string, at time.Duration, wantPrinted bool, wantMore int) {
		t.Helper()
		if printed, more := r.again(sender, reason, now.Add(at)); printed != wantPrinted || more != wantMore {
			t.Errorf("%s, %s: got %v, %d, want %v, %d", sender, reason, printed, more, wantPrinted, wantMore)
		}
	}
	check("n1", "a", 0, true, 0)
	check("n1", "a", 1, false, 0)
	check("n1", "a", refusedAgain-1, false, 0)
	check("n1", "b", 1, true, 0)
	check("n2", "a", 1, true, 0)
	check("n1", "a", refusedAgain, true, 2)
	check("n1", "a", 2*refusedAgain, true, 0)
	for i := range 5000 {
		r.again(fmt.Sprint("host ", i), "a", now)
	}
	if len(r.last) > 1024 || len(r.more) > 1024 {
		t.Errorf("%d and %d are kept, want 1024 at most", len(r.last), len(r.more))
	}
}

// gated is a transport with a gate, its raft being the test, and another that sends to it.
type gated struct {
	*Transport
	sender *Transport
	asked  atomic.Int64 // requests that raft got
	mu     sync.Mutex   // guards lines
	lines  []string     // printed about refusals
}

func serve(t testing.TB, gate *Gate) *gated {
	t.Helper()
	s := &gated{Transport: NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), 0),
		sender: NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), 0)}
	t.Cleanup(func() { _ = s.Close(); _ = s.sender.Close() })
	gate.Refused = func(format string, args ...any) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lines = append(s.lines, fmt.Sprintf(format, args...))
	}
	s.SetGate(gate)
	go func() {
		for {
			select {
			case rpc := <-s.Consumer():
				s.asked.Add(1)
				switch rpc.Command.(type) {
				case *raft.InstallSnapshotRequest:
					rpc.Respond(&raft.InstallSnapshotResponse{Term: 7, Success: true}, nil)
				default:
					rpc.Respond(&raft.AppendEntriesResponse{Term: 7, Success: true}, nil)
				}
			case <-s.closed.Done():
				return
			}
		}
	}()
	return s
}

// printed returns the lines about refusals so far.
func (s *gated) printed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// TestRefused: a refused request gets an error, raft gets nothing, and a line names the member. The connection goes on.
func TestRefused(t *testing.T) {
	gate := testGate()
	gate.Known = func() (term uint64, leader string, committed uint64) { return 7, "n2", 10 }
	s := serve(t, gate)
	header := headerOf("n2")
	bad := &raft.AppendEntriesRequest{RPCHeader: header, Term: 7, PrevLogEntry: 10, PrevLogTerm: 5,
		Entries: []*raft.Log{{Index: 12, Term: 7, Type: raft.LogNoop}}}
	for range 3 {
		err := s.sender.AppendEntriesOnce("n2", s.LocalAddr(), bad, new(raft.AppendEntriesResponse))
		if err == nil || err.Error() != "refused: entry 12 is where 11 should be" {
			t.Errorf("got %v, want the reason", err)
		}
	}
	var response raft.AppendEntriesResponse
	good := &raft.AppendEntriesRequest{RPCHeader: header, Term: 7}
	if err := s.sender.AppendEntriesOnce("n2", s.LocalAddr(), good, &response); err != nil || !response.Success {
		t.Errorf("afterwards: %v, %+v", err, response)
	}
	want := "Refused AppendEntries of n2 at 127.0.0.1: entry 12 is where 11 should be"
	if got := s.printed(); len(got) != 1 || got[0] != want || s.asked.Load() != 1 {
		t.Errorf("got %q, and raft got %d requests, want %q and 1", got, s.asked.Load(), want)
	}
}

// rawStream connects to a raft port as the node n2 of its cluster, which means n2, too.
func rawStream(t testing.TB, address raft.ServerAddress) net.Conn {
	t.Helper()
	c, err := dial(t.Context(), dialTCP, string(address), preface{magic: magicNamed, cluster: ClusterID{1}, to: "n2",
		from: "n2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// TestLiesOverTheWire: what can't be decoded ends its connection, with an error and a line, and nothing else.
func TestLiesOverTheWire(t *testing.T) {
	s := serve(t, testGate())
	for name, text := range lies {
		c := rawStream(t, s.LocalAddr())
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until it is closed
		_ = c.Close()
		if got := s.asked.Load(); got != 0 {
			t.Errorf("%s: raft got %d requests", name, got)
		}
	}
	if got := s.printed(); len(got) == 0 {
		t.Error("no line was printed")
	}
}

// BenchmarkAppendEntries sends 64 entries of 120 bytes, which raft takes at once, and awaits the answer.
func BenchmarkAppendEntries(b *testing.B) {
	gate := testGate()
	gate.Known = func() (term uint64, leader string, committed uint64) { return 7, "n2", 10 }
	s := serve(b, gate)
	a := &raft.AppendEntriesRequest{RPCHeader: headerOf("n2"), Term: 7, PrevLogEntry: 10, PrevLogTerm: 5}
	for k := range uint64(64) {
		a.Entries = append(a.Entries, &raft.Log{Index: 11 + k, Term: 7, Data: make([]byte, 120), AppendedAt: time.Now()})
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.sender.AppendEntriesOnce("n2", s.LocalAddr(), a, new(raft.AppendEntriesResponse)); err != nil {
			b.Fatal(err)
		}
	}
}
