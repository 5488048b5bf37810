package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// machine is a state machine for these tests. It answers a command with the resultOf its
// first key.
type machine struct {
	store *kv.Store
	gate  *atomic.Pointer[chan struct{}] // applying waits until it is closed; nil: it does not
	reset *atomic.Pointer[func()]        // called by Reset; nil: nothing is
	waits *atomic.Int32                  // calls of WaitApplied that wait now
}

func resultOf(key string, index uint64) command.Result {
	return command.Result{Index: index, Current: uint64(crc32.ChecksumIEEE([]byte(key)))}
}

func newMachine() machine {
	return machine{kv.New(), new(atomic.Pointer[chan struct{}]), new(atomic.Pointer[func()]), new(atomic.Int32)}
}

func (m machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

func (m machine) ApplyBatch(logs []*raft.Log) []any {
	if gate := m.gate.Load(); gate != nil {
		<-*gate
	}
	responses := make([]any, len(logs))
	for i, l := range logs {
		var answers []command.Result
		m.store.Update(l.Index, l.Term, l.Data, func(tx *kv.Tx) {
			if l.Type != raft.LogCommand {
				return
			}
			commands, err := command.Decode(l.Data)
			if err != nil {
				panic(err)
			}
			for _, c := range commands {
				if c.Kind == command.RaiseFormat {
					tx.RaiseFormat(c.To)
				}
				key := ""
				for _, timed := range expired(c) {
					tx.Expire(timed.Key, timed.Index)
				}
				for _, p := range c.Pairs {
					tx.SetLeased(p.Key, p.Value, kv.Lease(c.Lease()))
					key = c.Pairs[0].Key
				}
				answers = append(answers, resultOf(key, l.Index))
			}
		})
		responses[i] = answers
	}
	return responses
}

func expired(c command.Command) []command.Compare {
	if c.Kind != command.Expire {
		return nil
	}
	return c.Txn.If
}

func (m machine) Snapshot() (raft.FSMSnapshot, error) { return machineSnapshot{m.store.Clone()}, nil }
func (m machine) Restore(r io.ReadCloser) error       { return m.store.ReadSnapshot(r) }
func (m machine) Prepare(r io.Reader) (restore func(), index, term uint64, err error) {
	p, err := kv.PrepareSnapshot(r)
	if err != nil {
		return nil, 0, 0, err
	}
	index, term = p.Applied()
	return func() { m.store.Install(p) }, index, term, nil
}
func (m machine) Applied() (index, term uint64) { return m.store.Applied() }
func (m machine) WaitApplied(ctx context.Context, index uint64) error {
	m.waits.Add(1)
	defer m.waits.Add(-1)
	return m.store.WaitApplied(ctx, index)
}
func (m machine) Hash() (uint64, [32]byte)              { return m.store.Hash() }
func (m machine) HashAt(index uint64) ([32]byte, bool)  { return m.store.HashAt(index) }
func (m machine) Format() int                           { return m.store.Format() }
func (m machine) Size() int                             { return m.store.Size() }
func (m machine) Footprint() (content, staged int)      { return m.store.Footprint() }
func (m machine) ItemFootprint(key string) (int, bool)  { return m.store.ItemFootprint(key) }
func (m machine) HasRecord(idempotencyKey string) bool  { return m.store.HasRecord(idempotencyKey) }
func (m machine) TimedLen() int                         { return m.store.TimedLen() }
func (m machine) IsTimed(key string, index uint64) bool { return m.store.IsTimed(key, index) }
func (m machine) TimedKeys(after kv.Timed, limit int) ([]kv.Timed, uint64) {
	return m.store.TimedKeys(after, limit)
}
func (m machine) Len() int { return m.store.Len() }
func (m machine) Reset() {
	if f := m.reset.Load(); f != nil {
		(*f)()
	}
	m.store.Reset()
}

type machineSnapshot struct{ store *kv.Store }

func (s machineSnapshot) Persist(sink raft.SnapshotSink) error {
	return errors.Join(s.store.WriteSnapshot(sink), sink.Close())
}
func (machineSnapshot) Release() {}

// testLog collects console lines and prints them when the test has failed.
type testLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func newTestLog(t testing.TB) *testLog {
	l := &testLog{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", l)
		}
	})
	return l
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *testLog) printf(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

// testNode is a Node with its state machine and console.
type testNode struct {
	*Node
	machine machine
	log     *testLog
}

var nextPort atomic.Int64

// freeAddress returns an address on which nobody listens, each time another, with a
// port below those that systems take for outgoing connections: nothing takes it
// while the node that it is for is down.
func freeAddress(t testing.TB) string {
	t.Helper()
	const low, high = 10000, 12000 // the tests of package main use those above
	for range high - low {
		address := fmt.Sprintf("127.0.0.1:%d", low+(int64(os.Getpid())+nextPort.Add(1))%(high-low))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			return address
		}
	}
	t.Fatalf("no free port from %d to %d", low, high)
	return ""
}

func (n *testNode) applied() uint64 {
	index, _ := n.machine.Applied()
	return index
}

// openNode opens a node that is closed with the test.
func openNode(t testing.TB, id, dir string, mutate ...func(*Config)) *testNode {
	t.Helper()
	n, err := tryOpen(t, id, dir, mutate...)
	if err != nil {
		t.Fatalf("Open(%s): %v", id, err)
	}
	return n
}

func tryOpen(t testing.TB, id, dir string, mutate ...func(*Config)) (*testNode, error) {
	log := newTestLog(t)
	config := Config{
		ID:                id,
		Dir:               dir,
		RaftAddress:       freeAddress(t),
		HTTPAddress:       "127.0.0.1:1",
		SnapshotThreshold: 8192,
		SnapshotBytes:     64 << 20,
		Journal:           true,
		ElectionTimeout:   600 * time.Millisecond,
		RaftLog:           hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: log}),
		Logf:              log.printf,
		Warnf:             log.printf,
	}
	for _, f := range mutate {
		f(&config)
	}
	m := newMachine()
	n, err := Open(config, m)
	if err != nil {
		return nil, err
	}
	node := &testNode{Node: n, machine: m, log: log}
	t.Cleanup(node.stop)
	return node, nil
}

func (n *testNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = n.Close(ctx)
}

// waitFor waits until condition holds; it fails the test after a bound that only
// a hang reaches.
func waitFor(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for: %s", what)
		}
	}
}

func (n *testNode) waitLeader(t testing.TB) {
	t.Helper()
	waitFor(t, n.config.ID+" leads", func() bool { return n.Info().State == "Leader" })
}

// setting is the command that sets key to value.
func setting(key, value string) command.Command {
	return command.Command{Kind: command.Set, Pairs: []command.Pair{{Key: key, Value: []byte(value)}}}
}

// set proposes key=value and fails the test unless it is applied.
func (n *testNode) set(t testing.TB, key, value string) uint64 {
	t.Helper()
	result, err := n.Propose(context.Background(), setting(key, value))
	if err != nil {
		t.Fatalf("Propose(%s=%s) at %s: %v", key, value, n.config.ID, err)
	}
	return result.Index
}

func (n *testNode) join(t testing.TB, other *testNode) {
	t.Helper()
	if _, err := n.Join(context.Background(), JoinRequest{ID: other.config.ID, Address: other.RaftAddress()}); err != nil {
		t.Fatalf("Join(%s): %v", other.config.ID, err)
	}
}

func content(s *kv.Store) map[string]kv.Item {
	all := make(map[string]kv.Item)
	s.Clone().Ascend("", func(key string, item kv.Item) bool { all[key] = item; return true })
	return all
}

// checkReplicas waits until all nodes have applied the same and compares what
// they hold.
func checkReplicas(t testing.TB, nodes ...*testNode) {
	t.Helper()
	waitFor(t, "all replicas have applied the same", func() bool {
		for _, n := range nodes[1:] {
			if n.applied() != nodes[0].applied() {
				return false
			}
		}
		return true
	})
	want := content(nodes[0].machine.store)
	for _, n := range nodes[1:] {
		if got := content(n.machine.store); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s holds\n%v\n%s holds\n%v", n.config.ID, got, nodes[0].config.ID, want)
		}
	}
}

func TestJoinReplicatesAndRestarts(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	n1, n2, n3 := openNode(t, "n1", dirs[0]), openNode(t, "n2", dirs[1]), openNode(t, "n3", dirs[2])
	n1.waitLeader(t) // n2 and n3 may not have elected themselves yet
	n1.set(t, "before", "1")
	n1.join(t, n2)
	n1.join(t, n3)
	for i := range 20 {
		n1.set(t, fmt.Sprint(i), fmt.Sprint(i))
	}
	checkReplicas(t, n1, n2, n3)
	if _, err := n2.Propose(context.Background(), setting("x", "y")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Propose at a follower: got %v, want ErrNotLeader", err)
	}
	leader, err := n2.Leader(context.Background())
	want1 := Leader{ID: "n1", URL: "http://127.0.0.1:1", SameMachine: true, ReadsMark: true}
	if leader != want1 || err != nil {
		t.Errorf("Leader: got %+v %v, want %+v", leader, err, want1)
	}

	want, address := content(n3.machine.store), n3.RaftAddress()
	n3.stop()
	n1.set(t, "while n3 is away", "1")
	n3 = openNode(t, "n3", dirs[2], func(c *Config) { c.RaftAddress = address })
	waitFor(t, "n3 has what it missed", func() bool { return n3.machine.Len() == len(want)+1 })
	checkReplicas(t, n1, n2, n3)
}

// TestJoinRefuses has the cases that would cost data or the quorum: after each, both sides
// go on as they were.
func TestJoinRefuses(t *testing.T) {
	n1, n2, n3 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir()), openNode(t, "n3", t.TempDir())
	other := openNode(t, "n4", t.TempDir())
	n1.waitLeader(t)
	n2.waitLeader(t)
	n3.waitLeader(t)
	other.waitLeader(t)
	n1.set(t, "x", "from n1")
	n2.set(t, "x", "from n2") // at the same index and term: the first trap
	n3.join(t, other)

	web := &http.Server{}
	listener := listen(t)
	go func() { _ = web.Serve(listener) }()
	t.Cleanup(func() { _ = web.Close() })
	silent := listen(t)
	dead := listen(t)
	_ = dead.Close()

	for _, test := range []struct{ name, id, address, want string }{
		{name: "nobody listens", id: "n2", address: dead.Addr().String(), want: "connection refused"},
		{name: "a web server", id: "n2", address: listener.Addr().String(), want: "no raftkv node answers"},
		{name: "a silent program", id: "n2", address: silent.Addr().String(), want: "no raftkv node answers"},
		{name: "another node ID", id: "n5", address: n2.RaftAddress(), want: "is n2, not n5"},
		{name: "itself under another ID", id: "n5", address: n1.RaftAddress(), want: "is the address of member n1"},
		{name: "itself", id: "n1", address: n1.RaftAddress(), want: "n1 is this node, which is alone in its cluster"},
		{name: "data of its own", id: "n2", address: n2.RaftAddress(), want: "holds data of its own (1 keys)"},
		{name: "a member of another cluster", id: "n3", address: n3.RaftAddress(),
			want: "is a member of another cluster, of 2 nodes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := n1.Join(context.Background(), JoinRequest{ID: test.id, Address: test.address})
			if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want ErrConflict with %q", err, test.want)
			}
			n1.set(t, "still", "here") // the second trap: a quorum that can't be reached
		})
	}
	n2.set(t, "y", "1")
	if item, _ := n2.machine.store.Get("x"); item.Value != "from n2" {
		t.Errorf("n2 holds x=%q, want its own", item.Value)
	}
	n3.set(t, "z", "1")
	checkReplicas(t, n3, other)
}

func TestOutcome(t *testing.T) {
	for _, test := range []struct{ err, want error }{
		{err: raft.ErrNotLeader, want: ErrNotLeader},
		{err: raft.ErrEnqueueTimeout, want: ErrNotApplied},
		{err: raft.ErrLeadershipTransferInProgress, want: ErrNotApplied},
		{err: raft.ErrLeadershipLost, want: ErrUnknown},
		{err: raft.ErrRaftShutdown, want: ErrUnknown},
		{err: raft.ErrAbortedByRestore, want: ErrUnknown},
		{err: context.DeadlineExceeded, want: ErrUnknown},
		{err: context.Canceled, want: ErrUnknown},
		{err: errors.New("any other, from a store for instance"), want: ErrUnknown},
	} {
		got := outcome(test.err)
		for _, class := range []error{ErrNotLeader, ErrNotApplied, ErrUnknown} {
			if errors.Is(got, class) != (class == test.want) {
				t.Errorf("outcome(%v): got %v, want %v and no other", test.err, got, test.want)
			}
		}
	}
}

// TestLostQuorum: a leader that can't reach a majority must never acknowledge.
func TestLostQuorum(t *testing.T) {
	n1, n2 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir())
	n1.waitLeader(t)
	n2.waitLeader(t)
	n1.join(t, n2)
	n1.set(t, "a", "1")
	n2.stop()
	waitFor(t, "a proposal is refused", func() bool {
		_, err := n1.Propose(context.Background(), setting("b", "2"))
		if err == nil {
			t.Fatal("a write was acknowledged without a majority")
		}
		return errors.Is(err, ErrNotLeader)
	})
	if _, err := n1.Leader(context.Background()); !errors.Is(err, ErrNoLeader) {
		t.Errorf("Leader: got %v, want ErrNoLeader", err)
	}
}
