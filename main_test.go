package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"

	"raftkv/internal/console"
	"raftkv/internal/kv"
	"raftkv/internal/lincheck"
	"raftkv/internal/node"
	"raftkv/internal/peer"
	"raftkv/internal/testkit"
)

// Most tests of a running node are black boxes: internal/e2e. Here are those that reach into the process: they change
// what a state machine holds, or cut links between nodes.

type logBuffer = testkit.Buffer

func newLogger(out io.Writer, level string) *logrus.Logger {
	return console.NewLogger(out, level, console.Format("text"))
}

// startNode starts a node on free ports, or those that mutate (which may be nil)
// sets, and stops it when t ends. Its console is shown if t failed.
func startNode(t testing.TB, id, dir string, mutate func(*config)) *service {
	t.Helper()
	c := config{
		nodeID:            id,
		volume:            dir,
		httpAddress:       "127.0.0.1:0",
		raftAddress:       "127.0.0.1:0",
		snapshotThreshold: 8192,
		snapshotBytes:     64 << 20,
		electionTimeout:   250 * time.Millisecond,
		logLevel:          "debug",
	}
	if mutate != nil {
		mutate(&c)
	}
	out := new(logBuffer)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", id, out)
		}
	})
	s, err := start(t.Context(), c, out)
	if err != nil {
		t.Fatalf("start %s: %v", id, err)
	}
	t.Cleanup(func() { _ = s.stop() })
	return s
}

// At makes a service a testkit.Peer.
func (s *service) At() testkit.Client {
	c := testkit.Client{ID: s.node.Info().NodeID, Base: "http://" + s.listener.Addr().String()}
	if s.tokens != nil {
		c.Token = rootToken
	}
	return c
}

// leads waits until s leads, and all of its log is committed.
func leads(t testing.TB, s *service) {
	t.Helper()
	testkit.Leader(t, s)
}

// join joins s through a member.
func join(t testing.TB, member, s *service) {
	t.Helper()
	testkit.Join(t, member.At(), s.At(), port(s.node.RaftAddress()))
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func waitFor(t testing.TB, what string, condition func() error) {
	t.Helper()
	testkit.Eventually(t, what, condition)
}

// checkReplicas checks that the nodes hold the same data, which it returns. One node alone may have been stopped.
func checkReplicas(t testing.TB, nodes ...*service) map[string]string {
	t.Helper()
	if len(nodes) > 1 {
		return testkit.CheckReplicas(t, nodes...)
	}
	values := make(map[string]string)
	for key, item := range items(nodes[0].machine.Store.Clone()) {
		values[key] = item.Value
	}
	return values
}

func items(store *kv.Store) map[string]kv.Item {
	m := make(map[string]kv.Item, store.Len())
	store.Ascend("", func(key string, item kv.Item) bool {
		m[key] = item
		return true
	})
	return m
}

// answer is what a node has answered.
type answer struct {
	status int
	header http.Header
	body   string
}

var direct = testkit.Direct

// newRequest is a request to s for a path with a query.
func newRequest(t testing.TB, method string, s *service, target, body string) *http.Request {
	t.Helper()
	return s.At().Request(t, method, target, body)
}

func send(c *http.Client, r *http.Request) (answer, error) {
	a, err := testkit.Send(c, r)
	return answer{a.Status, a.Header, a.Body}, err
}

// ask sends a GET, and takes a redirect for an answer.
func ask(t testing.TB, s *service, target string) answer {
	t.Helper()
	a := s.At().Ask(t, target)
	return answer{a.Status, a.Header, a.Body}
}

func pair(key, value string) string { return testkit.Pair(key, value) }

// write sends a request that changes the data to s, or where s leads it, until it
// is acknowledged, and returns the index in the answer.
func write(t testing.TB, s *service, target string) (index uint64) {
	t.Helper()
	return s.At().Write(t, target)
}

func set(t testing.TB, s *service, key, value string) (index uint64) {
	t.Helper()
	return s.At().Set(t, key, value)
}

func indexOf(a answer) (uint64, error) { return testkit.Answer{Body: a.body}.Index() }

// oneLineNaming returns an error unless the body is one line of text that contains
// all that it should name.
func oneLineNaming(a answer, names ...string) error {
	return testkit.Answer{Status: a.status, Header: a.header, Body: a.body}.OneLine(names...)
}

// TestReplicasThatDiffer: a node whose state machine was given what is not in the log
// is no longer ready, nor is the leader that found it out.
func TestReplicasThatDiffer(t *testing.T) {
	t.Parallel()
	nodes, _ := startLinked(t)
	set(t, nodes[0], "a", "1")
	checkReplicas(t, nodes...)
	leader, followers := testkit.Leader(t, nodes...)
	entries := logrustest.NewLocal(leader.log)
	wrong := followers[0].machine.Store
	index, term := wrong.Applied()
	wrong.Update(index, term, []byte("not of the log"), func(tx *kv.Tx) { tx.Set("a", []byte("2")) })
	for _, s := range []*service{leader, followers[0]} {
		waitFor(t, s.node.Info().NodeID+" not ready", func() error {
			a, err := send(direct, newRequest(t, http.MethodGet, s, "/readyz", ""))
			if err == nil && (a.status != http.StatusServiceUnavailable || oneLineNaming(a, "the replicas differ",
				"/leave") != nil) {
				err = fmt.Errorf("got %d %q, want 503, and that the replicas differ", a.status, a.body)
			}
			return err
		})
	}
	var status node.Status
	if err := json.Unmarshal([]byte(ask(t, leader, "/status").body), &status); err != nil ||
		status.Replicas.State != node.Different || status.Health.Replicas == "" {
		t.Errorf("status: got %+v, %+v (%v), want that the replicas differ", status.Replicas, status.Health, err)
	}
	if !slices.ContainsFunc(entries.AllEntries(), func(e *logrus.Entry) bool {
		return strings.Contains(e.Message,
			"the replicas differ")
	}) {
		t.Error("the leader has printed nothing of it")
	}
}

// TestLinearizability: whatever clients are told while the leadership moves and links
// are cut and stall, there is one order of their operations that explains it.
func TestLinearizability(t *testing.T) {
	t.Parallel()
	nodes, network := startLinked(t)
	history := lincheck.NewRecorder()
	var round atomic.Int64
	var clients sync.WaitGroup
	done := make(chan struct{})
	stopClients := sync.OnceFunc(func() {
		close(done)
		clients.Wait()
	})
	defer stopClients()
	for i := range 9 {
		c := linClient(t, i, nodes[i%3], history)
		c.OnlyReads = i < 3 // one a node that no write without an answer keeps from reading
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					// What is open for ever in one round is no burden to check in the next.
					out := c.Act(fmt.Sprintf("r%d.g%d.", round.Load(), rand.IntN(3)))
					if out.Result == lincheck.NotApplied {
						time.Sleep(5 * time.Millisecond) // an election is under way: leave it the processor
					}
				}
			}
		})
	}

	for _, fault := range []struct {
		name  string
		begin func(leader string, others []string)
		moves func(leader, next *service) // what gives the cluster another leader; nil: it elects one
	}{
		{name: "transfer", begin: nil, moves: linTransfer},
		{name: "an isolated leader", begin: func(leader string, _ []string) { network.Isolate(leader) }, moves: nil},
		{name: "a leader that can't connect", begin: func(leader string, others []string) {
			for _, other := range others {
				network.Cut(leader, other)
			}
		}, moves: nil},
		{name: "a leader to which nobody can connect", begin: func(leader string, others []string) {
			for _, other := range others {
				network.Cut(other, leader)
			}
		}, moves: linTransfer},
		{name: "a leader whose words stall", begin: func(leader string, others []string) {
			for _, other := range others {
				network.Hold(leader, other)
			}
		}, moves: nil},
		{name: "a leader to whom all stalls", begin: func(leader string, others []string) {
			for _, other := range others {
				network.Hold(other, leader)
			}
		}, moves: nil},
		{name: "an isolated leader with a successor", begin: func(leader string, _ []string) { network.Isolate(leader) },
			moves: linCrown(t)},
		{name: "a stalled leader with a successor", begin: func(leader string, others []string) {
			for _, other := range others {
				network.Hold(leader, other)
				network.Hold(other, leader)
			}
		}, moves: linCrown(t)},
	} {
		round.Add(1)
		leader, followers := testkit.Leader(t, nodes...)
		linProgress(t, history, fault.name+": before")
		if fault.begin != nil {
			var others []string
			for _, s := range followers {
				others = append(others, s.node.Info().NodeID)
			}
			fault.begin(leader.node.Info().NodeID, others)
		}
		waitFor(t, fault.name+": another leader", func() error {
			for _, s := range followers {
				if s.node.Info().State == "Leader" {
					return nil
				}
			}
			if fault.moves != nil {
				fault.moves(leader, followers[rand.IntN(2)])
			}
			return errors.New("none")
		})
		linProgress(t, history, fault.name+": meanwhile")
		network.Heal()
		testkit.Leader(t, nodes...)
		linProgress(t, history, fault.name+": after")
	}
	stopClients()

	t.Log(history)
	if err := history.Check(time.Minute, os.TempDir()); err != nil {
		t.Error(err)
	}
	checkReplicas(t, nodes...)
}

// TestStaleReadsAreNotLinearizable: the check sees a stale read that a node gives when
// it is asked for one.
func TestStaleReadsAreNotLinearizable(t *testing.T) {
	t.Parallel()
	nodes, network := startLinked(t)
	history := lincheck.NewRecorder()
	leader, followers := testkit.Leader(t, nodes...)
	setDone := func(c *lincheck.Client) {
		t.Helper()
		waitFor(t, "a set", func() error {
			if out := c.Set("g.", []string{"g.a"}, "", false); out.Result != lincheck.Done {
				return errors.New(string(out.Result))
			}
			return nil
		})
	}
	setDone(linClient(t, 0, leader, history))
	checkReplicas(t, nodes...)
	network.Isolate(followers[0].node.Info().NodeID)
	setDone(linClient(t, 1, followers[1], history))

	apart := linClient(t, 2, followers[0], history)
	if out := apart.Get("g.", "g.a"); out.Result != lincheck.NotApplied {
		t.Errorf("a read at the node that was cut off: got %v, want none", out)
	}
	if err := history.Check(time.Minute, os.TempDir()); err != nil {
		t.Errorf("before the stale read: %v", err)
	}
	apart.Stale = true
	if out := apart.Get("g.", "g.a"); out.Result != lincheck.Done || len(out.Found) != 1 {
		t.Errorf("a stale read at the node that was cut off: got %v, want what it has", out)
	}
	if err := history.Check(time.Minute, ""); !errors.Is(err, lincheck.ErrNotLinearizable) {
		t.Errorf("with the stale read: got %v, want %v", err, lincheck.ErrNotLinearizable)
	}
	network.Heal()
	checkReplicas(t, nodes...)
}

// startLinked starts a cluster of three, whose links can be cut.
func startLinked(t testing.TB) (nodes []*service, network *testkit.Network) {
	t.Helper()
	network = testkit.New(t)
	for i := range 3 {
		id := "n" + strconv.Itoa(i+1)
		s := startNode(t, id, t.TempDir(), func(c *config) {
			c.dial = network.Dialer(id)
			c.forward = i != 1                         // so that both kinds of follower are there
			c.electionTimeout = 500 * time.Millisecond // a leader that is cut off takes 300 ms to notice
		})
		network.Place(id, s.node.RaftAddress())
		leads(t, s)
		nodes = append(nodes, s)
	}
	join(t, nodes[0], nodes[1])
	join(t, nodes[0], nodes[2])
	return nodes, network
}

// linClient returns a client of a node.
func linClient(t testing.TB, id int, s *service, history *lincheck.Recorder) *lincheck.Client {
	return lincheck.NewClient(id, "http://"+s.listener.Addr().String(), history,
		rand.New(rand.NewPCG(rand.Uint64(), 0)), t.Errorf)
}

// linTransfer asks the leader to hand over. It may fail.
func linTransfer(leader, next *service) {
	target := "http://" + leader.listener.Addr().String() + "/transfer?nodeId=" + next.node.Info().NodeID
	if response, err := lincheck.HTTP.Get(target); err == nil {
		_ = response.Body.Close()
	}
}

// linCrown returns what makes a node stand for election as in a transfer, whatever
// the leader's links are: for a while there are two that take themselves for the
// leader. It may fail.
func linCrown(t testing.TB) func(leader, next *service) {
	return func(_, next *service) {
		port, err := peer.Listen("127.0.0.1:0", t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = port.Close() }()
		var cluster peer.ClusterID
		if _, err := hex.Decode(cluster[:], []byte(next.node.Info().ClusterID)); err != nil {
			t.Fatal(err)
		}
		port.NodeID = "crown"
		port.SetClusterID(cluster)
		transport := peer.NewTransport(port.Stream(), hclog.NewNullLogger(), time.Second)
		defer func() { _ = transport.Close() }()
		request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
		_ = transport.TimeoutNow(raft.ServerID(next.node.Info().NodeID), raft.ServerAddress(next.node.RaftAddress()),
			request, new(raft.TimeoutNowResponse))
	}
}

// linProgress waits until so many more operations of each kind are done: the test
// must not pass because nothing happened.
func linProgress(t testing.TB, history *lincheck.Recorder, what string) {
	t.Helper()
	more := map[string]int{"get": 20, "set": 6, "set several": 4, "remove": 1, "remove several": 1, "removeall": 1,
		"list":         2,
		"set if match": 1, "set if absent": 1, "remove if match": 1}
	before := make(map[string]int)
	for name := range more {
		before[name] = history.Count(name, lincheck.Done)
	}
	waitFor(t, what, func() error {
		for name, want := range more {
			if got := history.Count(name, lincheck.Done) - before[name]; got < want {
				return fmt.Errorf("%d of %d %s are done", got, want, name)
			}
		}
		return nil
	})
}
