package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/lincheck"
	"raftkv/internal/nodetest"
	"raftkv/internal/peer"
	"raftkv/internal/request"
)

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
		c := &linClient{t: t, id: i, node: nodes[i%3], history: history, tags: make(map[string]linTag)}
		if i < 3 { // one a node that no write without an answer keeps from reading
			c.onlyReads = true
		}
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					// What is open for ever in one round is no burden to check in the next.
					c.act(fmt.Sprintf("r%d.g%d.", round.Load(), rand.IntN(3)))
				}
			}
		})
	}

	for _, fault := range []struct {
		name  string
		begin func(leader string, others []string)
		moves func(leader, next *service) // what gives the cluster another leader; nil: it elects one
	}{
		{"transfer", nil, linTransfer},
		{"an isolated leader", func(leader string, _ []string) { network.Isolate(leader) }, nil},
		{"a leader that can't connect", func(leader string, others []string) {
			for _, other := range others {
				network.Cut(leader, other)
			}
		}, nil},
		{"a leader to which nobody can connect", func(leader string, others []string) {
			for _, other := range others {
				network.Cut(other, leader)
			}
		}, linTransfer},
		{"a leader whose words stall", func(leader string, others []string) {
			for _, other := range others {
				network.Hold(leader, other)
			}
		}, nil},
		{"a leader to whom all stalls", func(leader string, others []string) {
			for _, other := range others {
				network.Hold(other, leader)
			}
		}, nil},
		{"an isolated leader with a successor", func(leader string, _ []string) { network.Isolate(leader) }, linCrown(t)},
		{"a stalled leader with a successor", func(leader string, others []string) {
			for _, other := range others {
				network.Hold(leader, other)
				network.Hold(other, leader)
			}
		}, linCrown(t)},
	} {
		round.Add(1)
		leader, followers := nodes.leader(t)
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
		nodes.leader(t)
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
	leader, followers := nodes.leader(t)
	clientOf := func(id int, s *service) *linClient {
		return &linClient{t: t, id: id, node: s, history: history, tags: make(map[string]linTag)}
	}
	setDone := func(c *linClient) {
		t.Helper()
		waitFor(t, "a set", func() error {
			if out := c.set("g.", []string{"g.a"}, "", false); out.Result != lincheck.Done {
				return errors.New(string(out.Result))
			}
			return nil
		})
	}
	setDone(clientOf(0, leader))
	checkReplicas(t, nodes...)
	network.Isolate(followers[0].node.Info().NodeID)
	setDone(clientOf(1, followers[1]))

	apart := clientOf(2, followers[0])
	if out := apart.get("g.", "g.a"); out.Result != lincheck.NotApplied {
		t.Errorf("a read at the node that was cut off: got %v, want none", out)
	}
	if err := history.Check(time.Minute, os.TempDir()); err != nil {
		t.Errorf("before the stale read: %v", err)
	}
	apart.stale = true
	if out := apart.get("g.", "g.a"); out.Result != lincheck.Done || len(out.Found) != 1 {
		t.Errorf("a stale read at the node that was cut off: got %v, want what it has", out)
	}
	if err := history.Check(time.Minute, ""); !errors.Is(err, lincheck.ErrNotLinearizable) {
		t.Errorf("with the stale read: got %v, want %v", err, lincheck.ErrNotLinearizable)
	}
	network.Heal()
	checkReplicas(t, nodes...)
}

// startLinked is startCluster with three nodes, whose links can be cut.
func startLinked(t testing.TB) (nodes cluster, network *nodetest.Network) {
	t.Helper()
	network = nodetest.New(t)
	for i := range 3 {
		id := "n" + strconv.Itoa(i+1)
		s := startNode(t, id, t.TempDir(), func(c *config) {
			c.dial = network.Dialer(id)
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

// linTransfer asks the leader to hand over. It may fail.
func linTransfer(leader, next *service) {
	target := "http://" + leader.listener.Addr().String() + "/transfer?nodeId=" + next.node.Info().NodeID
	if response, err := linHTTP.Get(target); err == nil {
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
		port.SetClusterID(cluster)
		transport := raft.NewNetworkTransport(port.Stream(), 1, 10*time.Second, io.Discard)
		defer func() { _ = transport.Close() }()
		request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
		_ = transport.TimeoutNow(raft.ServerID(next.node.Info().NodeID), raft.ServerAddress(next.node.RaftAddress()), request, new(raft.TimeoutNowResponse))
	}
}

// linProgress waits until so many more operations of each kind are done: the test
// must not pass because nothing happened.
func linProgress(t testing.TB, history *lincheck.Recorder, what string) {
	t.Helper()
	more := map[string]int{"get": 20, "set": 6, "set several": 4, "remove": 1, "remove several": 1, "removeall": 1, "list": 2,
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

// linClient is a client of one node, which follows it to the leader. It is used by
// one goroutine.
type linClient struct {
	t       testing.TB
	id      int
	node    *service
	history *lincheck.Recorder
	values  int // how many it has made up
	tags    map[string]linTag

	onlyReads bool
	stale     bool // its reads ask for what the node has
}

// linTag is what the client knows of a key.
type linTag struct{ value, etag string }

// act does one thing, or two, with keys of a group.
func (c *linClient) act(group string) {
	all := []string{group + "a", group + "b", group + "c"}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	key := all[0]
	var out lincheck.Output
	switch dice := rand.IntN(100); {
	case c.onlyReads && dice < 20:
		out = c.list(group)
	case c.onlyReads || dice < 35:
		out = c.get(group, key)
	case dice < 50:
		out = c.set(group, all[:1], "", false)
	case dice < 62:
		out = c.set(group, all[:2+rand.IntN(2)], "", false)
	case dice < 66:
		out = c.remove(group, all[:1], "")
	case dice < 70:
		out = c.remove(group, all[:2], "")
	case dice < 80:
		out = c.list(group)
	case dice < 82:
		out = c.removeAll(group)
	case dice < 86:
		out = c.set(group, all[:1], "", true)
	default:
		if _, known := c.tags[key]; !known || rand.IntN(2) == 0 {
			out = c.get(group, key)
		}
		if known := c.tags[key]; known.value == "" {
			break
		} else if rand.IntN(4) == 0 {
			out = c.remove(group, all[:1], known.value)
		} else {
			out = c.set(group, all[:1], known.value, false)
		}
	}
	if out.Result == lincheck.NotApplied {
		time.Sleep(5 * time.Millisecond) // an election is under way: leave it the processor
	}
}

func (c *linClient) get(group, key string) lincheck.Output {
	return c.history.Do(c.id, lincheck.Input{Kind: lincheck.Get, Group: group, Keys: []string{key}}, func() (out lincheck.Output) {
		a, result := c.ask("/get", url.Values{"key": {key}}, nil)
		out = lincheck.Output{Result: result, Found: make(map[string]string)}
		if delete(c.tags, key); a.status == http.StatusOK {
			out.Found[key] = a.body
			c.tags[key] = linTag{a.body, a.header.Get("ETag")}
		}
		return out
	})
}

func (c *linClient) list(group string) lincheck.Output {
	return c.history.Do(c.id, lincheck.Input{Kind: lincheck.List, Group: group}, func() lincheck.Output {
		a, result := c.ask("/list", url.Values{"prefix": {group}}, nil)
		out := lincheck.Output{Result: result, Found: make(map[string]string)}
		if result != lincheck.Done {
			return out
		}
		for lines := bufio.NewScanner(strings.NewReader(a.body)); lines.Scan(); {
			var item struct {
				Key, Value string
				Index      uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &item); err != nil {
				c.t.Errorf("list: %v in %q", err, a.body)
			}
			out.Found[item.Key] = item.Value
			c.tags[item.Key] = linTag{item.Value, request.ETag(item.Index)}
		}
		return out
	})
}

// set sets the keys to new values; the conditions are as those of lincheck.Input.
func (c *linClient) set(group string, keys []string, ifMatch string, ifAbsent bool) lincheck.Output {
	in := lincheck.Input{Kind: lincheck.Set, Group: group, Keys: keys, IfMatch: ifMatch, IfAbsent: ifAbsent}
	for range keys {
		c.values++
		in.Values = append(in.Values, fmt.Sprintf("%d-%d", c.id, c.values))
	}
	return c.history.Do(c.id, in, func() lincheck.Output {
		a, result := c.ask("/set", url.Values{"key": keys, "value": in.Values}, c.conditions(in))
		for i, key := range keys {
			if delete(c.tags, key); result == lincheck.Done {
				c.tags[key] = linTag{in.Values[i], a.header.Get("ETag")}
			}
		}
		return lincheck.Output{Result: result}
	})
}

func (c *linClient) remove(group string, keys []string, ifMatch string) lincheck.Output {
	in := lincheck.Input{Kind: lincheck.Remove, Group: group, Keys: keys, IfMatch: ifMatch}
	return c.history.Do(c.id, in, func() lincheck.Output {
		return c.removed(c.ask("/remove", url.Values{"key": keys}, c.conditions(in)))
	})
}

func (c *linClient) removeAll(group string) lincheck.Output {
	return c.history.Do(c.id, lincheck.Input{Kind: lincheck.RemoveAll, Group: group}, func() lincheck.Output {
		return c.removed(c.ask("/remove", url.Values{"prefix": {group}}, nil))
	})
}

func (c *linClient) removed(a answer, result lincheck.Result) lincheck.Output {
	out := lincheck.Output{Result: result}
	if result == lincheck.Done {
		if _, err := fmt.Sscanf(a.body[strings.LastIndex(a.body, " ")+1:], "removed=%d\n", &out.Removed); err != nil {
			c.t.Errorf("remove: %v in %q", err, a.body)
		}
	}
	return out
}

func (c *linClient) conditions(in lincheck.Input) http.Header {
	header := make(http.Header)
	if in.IfMatch != "" {
		header.Set("If-Match", c.tags[in.Keys[0]].etag)
	}
	if in.IfAbsent {
		header.Set("If-None-Match", "*")
	}
	return header
}

// linHTTP sends nothing twice: net/http does so with a GET whose connection breaks,
// but not with a POST.
var linHTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: 3 * time.Second, CheckRedirect: direct.CheckRedirect}

// ask sends a POST to the client's node and where it leads, and sorts the answer.
func (c *linClient) ask(path string, form url.Values, header http.Header) (answer, lincheck.Result) {
	if c.stale {
		form.Set("consistency", "stale")
	}
	target := "http://" + c.node.listener.Addr().String() + path
	for range 4 {
		r, err := http.NewRequest(http.MethodPost, target, strings.NewReader(form.Encode()))
		if err != nil {
			c.t.Errorf("%s: %v", target, err)
			return answer{}, lincheck.NotApplied
		}
		for name, values := range header {
			r.Header[name] = values
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		a, err := send(linHTTP, r)
		if err != nil {
			return answer{}, lincheck.Unknown
		}
		switch a.status {
		case http.StatusOK:
			return a, lincheck.Done
		case http.StatusPreconditionFailed:
			return a, lincheck.Failed
		case http.StatusServiceUnavailable:
			return a, lincheck.NotApplied
		case http.StatusGatewayTimeout:
			return a, lincheck.Unknown
		case http.StatusTemporaryRedirect:
			target = a.header.Get("Location")
			continue
		case http.StatusNotFound:
			if path == "/get" {
				return a, lincheck.Done
			}
		}
		c.t.Errorf("%s %v %v: got %d %q", path, form, header, a.status, a.body)
		return a, lincheck.Unknown
	}
	return answer{}, lincheck.NotApplied // led around, while the leadership moved
}
