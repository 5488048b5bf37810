package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/testkit"
)

// TestReadIndexSeesEveryAcknowledgedWrite: on every node, while writes go on.
func TestReadIndexSeesEveryAcknowledgedWrite(t *testing.T) {
	nodes := openCluster(t, 3)
	var acknowledged atomic.Int64
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := nodes[0].Propose(context.Background(), setting("x", fmt.Sprint(i))); err == nil {
				acknowledged.Store(i)
			}
		}
	})
	var reads sync.WaitGroup
	for i := range 12 {
		n := nodes[i%3]
		reads.Go(func() {
			for range 50 {
				before := acknowledged.Load()
				if err := n.ReadIndex(context.Background()); err != nil {
					t.Errorf("read at %s: %v", n.config.ID, err)
					return
				}
				item, _ := n.machine.store.Get("x")
				var got int64
				_, _ = fmt.Sscan(item.Value, &got)
				if got < before {
					t.Errorf("read at %s: got %d, want %d or later, which was acknowledged before", n.config.ID, got, before)
				}
			}
		})
	}
	reads.Wait()
	close(stop)
	work.Wait()
	checkReplicas(t, nodes...)
}

// TestReadWaitsForTheStateMachine: what is committed is not yet what the state
// machine holds.
func TestReadWaitsForTheStateMachine(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "x", "old")
	for _, n := range nodes[:2] { // the leader and a follower
		if err := n.ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		n.machine.gate.Store(&gate)
		value := "after the gate of " + n.config.ID
		written := make(chan error, 1)
		go func() {
			_, err := nodes[0].Propose(context.Background(), setting("x", value))
			written <- err
		}()
		waitFor(t, "it is committed, and not applied", func() bool {
			i := nodes[0].Info()
			return i.CommitIndex == i.LastIndex && n.applied() < i.CommitIndex
		})
		if err := n.ReadIndex(context.Background()); !errors.Is(err, ErrNotLinearizable) {
			t.Errorf("read at %s before it is applied: got %v, want ErrNotLinearizable", n.config.ID, err)
		}
		close(gate)
		if err := n.ReadIndex(context.Background()); err != nil {
			t.Errorf("read at %s after it is applied: %v", n.config.ID, err)
		}
		if item, _ := n.machine.store.Get("x"); item.Value != value {
			t.Errorf("read at %s: got %q, want %q", n.config.ID, item.Value, value)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
		n.machine.gate.Store(nil)
	}
	checkReplicas(t, nodes...)
}

// TestReadNeverJoinsARoundThatBegan: its confirmation could be older than the read.
func TestReadNeverJoinsARoundThatBegan(t *testing.T) {
	var rs rounds
	began, proceed := make(chan uint64), make(chan struct{})
	var count uint64 // rounds run one after the other
	run := func(context.Context) (uint64, error) {
		count++
		began <- count
		<-proceed
		return count, nil
	}
	read := func() chan uint64 {
		result := make(chan uint64, 1)
		go func() {
			index, _ := rs.next(context.Background(), run)
			result <- index
		}()
		return result
	}
	first := read()
	<-began
	second := read() // while the first round runs
	waitFor(t, "the second read waits", func() bool {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		return rs.waiting != nil
	})
	proceed <- struct{}{}
	<-began
	proceed <- struct{}{}
	if got := <-first; got != 1 {
		t.Errorf("the first read got round %d, want 1", got)
	}
	if got := <-second; got != 2 {
		t.Errorf("the second read got round %d, want 2", got)
	}
}

// TestReadWithoutAQuorum: it ends in time, and never with an answer.
func TestReadWithoutAQuorum(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "a", "1")
	nodes[1].stop()
	nodes[2].stop()
	if err := nodes[0].ReadIndex(context.Background()); !errors.Is(err, ErrNotLinearizable) {
		t.Errorf("got %v, want ErrNotLinearizable", err)
	}
}

// TestReadsKeepTheirConnections: a majority of answers ends a round, but does not break
// off the other questions, whose connections would have to be made anew each time.
func TestReadsKeepTheirConnections(t *testing.T) {
	var dialed atomic.Int64
	nodes := make([]*testNode, 3)
	for i := range nodes {
		nodes[i] = openNode(t, fmt.Sprintf("n%d", i+1), t.TempDir(), func(c *Config) {
			c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				dialed.Add(1)
				return new(net.Dialer).DialContext(ctx, "tcp", address)
			}
		})
		nodes[i].waitLeader(t)
	}
	nodes[0].join(t, nodes[1])
	nodes[0].join(t, nodes[2])
	const reads = 300
	before := dialed.Load()
	for range reads {
		if err := nodes[0].ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := dialed.Load() - before; got > reads/10 {
		t.Errorf("%d reads made %d connections, want the same few used again", reads, got)
	}
	checkReplicas(t, nodes...)
}

// TestMajorityMustConfirmTheTerm: a leader of a term that is over gets no majority for
// it, whatever it takes itself for.
func TestMajorityMustConfirmTheTerm(t *testing.T) {
	nodes := openCluster(t, 3)
	i := nodes[0].current.Load()
	term := i.raft.CurrentTerm()
	if err := nodes[0].reads.majorityAt(context.Background(), i, term); err != nil {
		t.Errorf("the present term: %v", err)
	}
	if err := nodes[0].reads.majorityAt(context.Background(), i, term-1); err == nil {
		t.Error("a majority confirmed a term that is over")
	}
	nodes[1].stop()
	nodes[2].stop()
	if err := nodes[0].reads.majorityAt(context.Background(), i, term); err == nil {
		t.Error("one of three is no majority")
	}
}

// TestFollowerReadsAfterAWrite: on an idle cluster the read brings the follower what
// raft would tell it only with its next AppendEntries.
func TestFollowerReadsAfterAWrite(t *testing.T) {
	nodes := openCluster(t, 3)
	var took []time.Duration
	for i := range 30 {
		nodes[0].set(t, "x", fmt.Sprint(i))
		begin := time.Now()
		if err := nodes[1].ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if item, _ := nodes[1].machine.store.Get("x"); item.Value != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", item.Value, i)
		}
	}
	t.Logf("reads took %v", took)
}

// TestPollCommitIndex: followers learn what is committed without their leader's CommitTimeout,
// which is an hour here, or two.
func TestPollCommitIndex(t *testing.T) {
	nodes := openCluster(t, 3, func(c *Config) { c.commit = time.Hour })
	known := func(what string) {
		t.Helper()
		waitFor(t, "all know that "+what+" is committed", func() bool {
			leader := leaderOf(t, nodes...).Info()
			for _, n := range nodes {
				if i := n.Info(); i.CommitIndex != leader.LastIndex {
					return false
				}
			}
			return true
		})
		checkReplicas(t, nodes...)
	}
	known("the last change of the members")
	nodes[0].set(t, "x", "a lone write")
	known("a lone write")
	if _, err := nodes[0].Transfer(context.Background(), "n2"); err != nil {
		t.Fatal(err)
	}
	nodes[1].waitLeader(t)
	known("the first entry of a term")
	nodes[2] = nodes[2].reopen(t)
	known("what it had before")
}

// TestReadNeedsMoreThanVerifyLeader: a leader that another has followed, and that
// does not know it, gets an answer to what it sent before its read began. Raft's
// VerifyLeader takes that for the proof that it still leads.
func TestReadNeedsMoreThanVerifyLeader(t *testing.T) {
	t.Run("the round", func(t *testing.T) {
		value, err := readAfterALateAnswer(t, func(n *Node, i *instance, ctx context.Context, term uint64,
			asked func()) error {
			asked()
			return n.reads.majorityAt(ctx, i, term)
		})
		if !errors.Is(err, ErrNotLinearizable) {
			t.Errorf("got %q and %v, want ErrNotLinearizable", value, err)
		}
	})
	t.Run("VerifyLeader", func(t *testing.T) {
		// Should this fail after an upgrade, VerifyLeader may have become what a read
		// needs: see whether the round can go.
		value, err := readAfterALateAnswer(t, func(_ *Node, i *instance, ctx context.Context, _ uint64, asked func()) error {
			r := i.raft
			verified := r.VerifyLeader()
			// The leader's loop answers this at once. It takes at random what waits for
			// it: after so many turns it has taken the VerifyLeader too.
			for range 64 {
				if err := r.BootstrapCluster(raft.Configuration{}).Error(); !errors.Is(err, raft.ErrCantBootstrap) {
					return err
				}
			}
			asked()
			return wait(ctx, verified)
		})
		if value != "old" || err != nil {
			t.Errorf("got %q and %v, want the old value: the read is not stale any more", value, err)
		}
	})
}

// readAfterALateAnswer returns what a read at a former leader found that begins after
// its successor has acknowledged x=new. confirm is put in place of majorityAt there;
// it must call asked when all that it asks for is under way. Then an answer reaches
// the former leader that another voter gave before it knew of the successor.
func readAfterALateAnswer(t *testing.T, confirm func(n *Node, i *instance, ctx context.Context, term uint64,
	asked func()) error) (value string, err error) {
	network := testkit.New(t)
	asked := make(chan struct{})
	var once sync.Once
	open := func(id string) *testNode {
		var n *testNode
		n = openNode(t, id, t.TempDir(), func(c *Config) {
			c.Dial = network.Dialer(id)
			c.ElectionTimeout = 50 * time.Second // a lease of 30 s: the former leader does not notice by itself
			c.confirmTerm = func(ctx context.Context, i *instance, term uint64) error {
				return confirm(n.Node, i, ctx, term, func() { once.Do(func() { close(asked) }) })
			}
		})
		network.Place(id, n.RaftAddress())
		n.standsAtTheWordOf(t, n)
		return n
	}
	nodes := []*testNode{open("n1"), open("n2"), open("n3")}
	former, voter, successor := nodes[0], nodes[1], nodes[2]
	former.join(t, voter)
	former.join(t, successor)
	former.set(t, "x", "old")
	checkReplicas(t, nodes...)

	network.Hold("n2", "n1")
	waitFor(t, "answers to n1 are on their way", func() bool { return network.Held("n2", "n1") >= 2 })
	network.Hold("n1", "n2")
	late := network.Held("n2", "n1") // as many were sent before all that follows
	network.Cut("n1", "n3")
	network.Cut("n3", "n1")

	successor.standsAtTheWordOf(t, voter)
	successor.set(t, "x", "new") // acknowledged: all that follows must read it

	read := make(chan error, 1)
	go func() { read <- former.ReadIndex(context.Background()) }()
	select {
	case <-asked:
		if !former.Leads() {
			t.Fatal("n1 knows already that it does not lead")
		}
		network.Deliver("n2", "n1", late)
		err = <-read
	case err = <-read: // without asking
	}
	item, _ := former.machine.store.Get("x")

	network.Heal()
	waitFor(t, "n1 follows", func() bool { return !former.Leads() })
	checkReplicas(t, nodes...)
	if got, _ := former.machine.store.Get("x"); got.Value != "new" {
		t.Errorf("after all is healed n1 holds x=%q, want new", got.Value)
	}
	return item.Value, err
}

// standsAtTheWordOf makes n the leader by what ends a transfer of the leadership, but
// sent by any other member or by itself: the leader does not learn of it.
func (n *testNode) standsAtTheWordOf(t *testing.T, other *testNode) {
	t.Helper()
	address := []byte(other.RaftAddress())
	request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax,
		ID: []byte(other.config.ID), Addr: address}}
	err := other.current.Load().transport.TimeoutNow(raft.ServerID(n.config.ID), raft.ServerAddress(n.RaftAddress()),
		request, new(raft.TimeoutNowResponse))
	if err != nil {
		t.Fatal(err)
	}
	n.waitLeader(t)
}

// TestQuorum asks voters that confirm, that do not, and that never answer.
func TestQuorum(t *testing.T) {
	const yes, hangs = 'y', 'h' // and n: no
	for _, test := range []struct {
		voters string
		need   int
		want   error
		asked  int
	}{
		{voters: "", need: 0, want: nil, asked: 0},
		{voters: "", need: 1, want: errNoQuorum, asked: 0},
		{voters: "yy", need: 1, want: nil, asked: 1},
		{voters: "ny", need: 1, want: nil, asked: 2},
		{voters: "hy", need: 1, want: nil, asked: 2},
		{voters: "nn", need: 1, want: errNoQuorum, asked: 2},
		{voters: "hn", need: 1, want: context.DeadlineExceeded, asked: 2},
		{voters: "yyyy", need: 2, want: nil, asked: 2},
		{voters: "ynny", need: 2, want: nil, asked: 4},
		{voters: "hhyy", need: 2, want: nil, asked: 4},
		{voters: "nnny", need: 2, want: errNoQuorum, asked: 4},
		{voters: "hhhy", need: 2, want: context.DeadlineExceeded, asked: 4},
	} {
		t.Run(fmt.Sprintf("%s need %d", test.voters, test.need), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				var asked atomic.Int32
				err := quorum(ctx, test.need, []rune(test.voters), func(voter rune) bool {
					asked.Add(1)
					if voter == hangs {
						<-ctx.Done()
					}
					return voter == yes
				})
				if !errors.Is(err, test.want) || (test.want == nil && err != nil) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				cancel()
				synctest.Wait() // an ask whose answer was not needed may not have begun
				if got := int(asked.Load()); got != test.asked {
					t.Errorf("asked %d voters, want %d", got, test.asked)
				}
			})
		})
	}
}

// TestReadGivenUp: a read whose client has gone gives its place up at once, while the round
// that it waits for goes on.
func TestReadGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs rounds
		answer := make(chan struct{})
		run := func(context.Context) (uint64, error) { <-answer; return 5, nil }
		ctx, cancel := context.WithCancel(t.Context())
		given, kept := make(chan error, 1), make(chan uint64, 1)
		go func() { _, err := rs.next(ctx, run); given <- err }()
		synctest.Wait()
		go func() { value, _ := rs.next(t.Context(), run); kept <- value }()
		cancel()
		synctest.Wait()
		select {
		case err := <-given:
			if !errors.Is(err, ErrNotLinearizable) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want ErrNotLinearizable and canceled", err)
			}
		default:
			t.Error("it waits on")
		}
		close(answer)
		if got := <-kept; got != 5 {
			t.Errorf("the other read got %d, want 5", got)
		}
	})
}

// termServer answers questions for a term, as the raft port of a voter does, on
// connections that it counts.
type termServer struct {
	term uint64
	open atomic.Int32
}

func (s *termServer) dial(context.Context, string) (net.Conn, error) {
	client, server := net.Pipe()
	s.open.Add(1)
	go func() {
		defer s.open.Add(-1)
		for {
			size := make([]byte, 1)
			if _, err := io.ReadFull(server, size); err != nil {
				return
			}
			if _, err := io.ReadFull(server, make([]byte, size[0])); err != nil {
				return
			}
			if _, err := server.Write(binary.BigEndian.AppendUint64(nil, s.term)); err != nil {
				return
			}
		}
	}()
	return client, nil
}

// TestReadIndexForgetsVoters: what it knows of a voter, and the connection to it, go when
// that is a voter no more.
func TestReadIndexForgetsVoters(t *testing.T) {
	server := &termServer{term: 7}
	x := newReadIndex("n1", server.dial, nil)
	servers := []raft.Server{{ID: "n1", Address: "a:1"}, {ID: "n2", Address: "a:2"}, {ID: "n3", Address: "a:3"},
		{ID: "n4", Address: "a:4", Suffrage: raft.Nonvoter}}
	others, need, total := x.others(servers)
	if len(others) != 2 || need != 1 || total != 3 {
		t.Fatalf("got %d others, need %d of %d, want 2, 1 of 3", len(others), need, total)
	}
	for range 3 {
		for _, v := range others {
			if term, err := x.askTerm(v); term != 7 || err != nil {
				t.Fatalf("term of %s: got %d, %v, want 7", v.server.ID, term, err)
			}
		}
	}
	if got := server.open.Load(); got != 2 {
		t.Errorf("%d connections, want one for each voter", got)
	}
	servers[2].Address = "a:33" // n3 has moved
	others, _, _ = x.others(servers)
	if _, err := x.askTerm(others[1]); err != nil {
		t.Error(err)
	}
	waitFor(t, "the connection to its former address is closed", func() bool { return server.open.Load() == 2 })
	_, need, _ = x.others(servers[:1])
	if len(x.voters) != 0 || need != 0 {
		t.Errorf("%d voters known and %d needed by a cluster of one, want none", len(x.voters), need)
	}
	waitFor(t, "all connections are closed", func() bool { return server.open.Load() == 0 })
}

// TestTermOfAnOlderProgram: a voter that closes a connection for questions, because its program
// knows none, is asked for its Info; one that should know them is not.
func TestTermOfAnOlderProgram(t *testing.T) {
	for _, test := range []struct {
		name      string
		info      *Info // nil: another node, another cluster or no answer
		dialError error
		want      uint64 // 0: an error
	}{
		{name: "older", info: &Info{Term: 7}, dialError: peer.ErrNotRaftkv, want: 7},
		{name: "older, and it can't be reached", info: &Info{Term: 7}, dialError: errors.New("refused")},
		{name: "not older", info: &Info{Term: 7, MaxFormat: 2}, dialError: peer.ErrNotRaftkv},
		{name: "no right answer", dialError: peer.ErrNotRaftkv},
	} {
		t.Run(test.name, func(t *testing.T) {
			dialed := 0
			x := newReadIndex("n1", func(context.Context, string) (net.Conn, error) {
				dialed++
				return nil, fmt.Errorf("connect: %w", test.dialError)
			}, func(_ context.Context, member raft.Server) (*Info, error) {
				if test.info == nil || member.ID != "n2" {
					return nil, errors.New("no answer")
				}
				return test.info, nil
			})
			others, _, _ := x.others([]raft.Server{{ID: "n1", Address: "a:1"}, {ID: "n2", Address: "a:2"}})
			for range 2 {
				got, err := x.askTerm(others[0])
				if got != test.want || (err == nil) != (test.want != 0) {
					t.Errorf("got %d, %v, want %d", got, err, test.want)
				}
			}
			if want := map[bool]int{true: 1, false: 2}[test.want != 0]; dialed != want {
				t.Errorf("dialed %d times, want %d: an older one is not, the second time", dialed, want)
			}
			if test.want == 0 {
				return
			}
			test.info.Term++ // what it says is as it is now
			if got, err := x.askTerm(others[0]); got != test.want+1 {
				t.Errorf("after a new term: got %d, %v, want %d", got, err, test.want+1)
			}
			test.info.MaxFormat = 2 // it was upgraded
			server := &termServer{term: 9}
			x.dial = server.dial
			if got, err := x.askTerm(others[0]); got != 9 {
				t.Errorf("after an upgrade: got %d, %v, want the answer to the question, 9", got, err)
			}
			x.others(nil)
		})
	}
}
