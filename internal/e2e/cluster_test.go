package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"raftkv/internal/testkit"
)

func TestJoinedNodesHoldTheSame(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartNodes(t, binary(t), 3)
	n1, n2 := nodes[0], nodes[1]
	n1.Set(t, "before", "the others joined")

	for i, s := range nodes[1:] {
		id := s.ID
		a := testkit.Join(t, n1.Client, s.Client, s.RaftPort)
		want := regexp.MustCompile(fmt.Sprintf(`^OK %s (joined, index=[0-9]+|is a member already,) members=%d\n$`, id, i+2))
		if !want.MatchString(a.Body) {
			t.Errorf("join of %s: got %q, want %s", id, a.Body, want)
		}
		story := "Join handler called\nnode is " + id + "\nJoining node " + id + " on host " + "127.0.0.1:" + s.RaftPort
		n1.WaitMessage(t, story)
		if got, want := state(t, s).ClusterID, state(t, n1).ClusterID; got != want {
			t.Errorf("cluster of %s: got %s, want that of n1, %s", id, got, want)
		}
	}
	if got := n2.Ask(t, "/get?key=before&consistency=stale"); got.Body != "the others joined" {
		t.Errorf("a node that has joined has %q, want what was set before", got.Body)
	}

	want := map[string]string{"before": "the others joined"}
	var writers sync.WaitGroup
	for i, s := range nodes {
		for j := range 10 {
			key := fmt.Sprintf("%d-%d", i, j)
			want[key] = key
		}
		writers.Go(func() {
			for j := range 10 {
				key := fmt.Sprintf("%d-%d", i, j)
				s.Set(t, key, key)
			}
		})
	}
	writers.Wait()
	n2.Write(t, "/set?key=a&value=1&key=b&value=2&key=c&value=3")
	n1.Write(t, "/remove?key=b&key=never&key=0-0")
	want["a"], want["c"] = "1", "3"
	delete(want, "0-0")
	if got := testkit.CheckReplicas(t, nodes...); !maps.Equal(got, want) {
		t.Errorf("the nodes hold %v, want %v", got, want)
	}

	testkit.UnderOneLeader(t, nodes, func(leader *testkit.Node, followers []*testkit.Node) error {
		before := state(t, leader).LastIndex
		for _, s := range nodes {
			a := leader.Ask(t, s.JoinPath())
			if want := "OK " + s.ID + " is a member already, members=3\n"; a.Status != http.StatusOK || a.Body != want {
				return fmt.Errorf("join of a member: got %d %q, want 200 %q", a.Status, a.Body, want)
			}
		}
		if after := state(t, leader).LastIndex; after != before {
			return fmt.Errorf("join of a member: the log went from %d to %d, want no new entry", before, after)
		}
		for _, s := range nodes {
			status := state(t, s)
			if len(status.Members) != 3 {
				return fmt.Errorf("status of %s: got %+v, want three members", s.ID, status)
			}
			for _, m := range status.Members {
				if m.Suffrage != "Voter" {
					return fmt.Errorf("status of %s: %s is a %s, want a Voter", status.NodeID, m.NodeID, m.Suffrage)
				}
			}
			if a := s.Ask(t, "/readyz"); a.Status != http.StatusOK {
				return fmt.Errorf("readyz of %s: got %d %q, want 200", status.NodeID, a.Status, a.Body)
			}
		}
		return nil
	})
	testkit.CheckReplicas(t, nodes...)
}

func TestFollowerSendsToTheLeader(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	nodes[0].Set(t, "k", "v")
	testkit.CheckReplicas(t, nodes...)

	testkit.UnderOneLeader(t, nodes, func(leader *testkit.Node, followers []*testkit.Node) error {
		f := followers[0]
		before := state(t, leader).LastIndex
		for _, tt := range []struct{ target, console string }{
			{target: "/set?" + testkit.Pair("a +&", "new\nvalue"), console: "Set handler called"},
			{target: "/remove?key=k", console: "Remove handler called"},
			{target: "/join?nodeId=n9&raftPort=9009", console: "Join handler called\nnode is n9"},
		} {
			printed := len(f.Messages())
			a := f.Ask(t, tt.target)
			location := leader.Base + tt.target
			if a.Status != http.StatusTemporaryRedirect || a.Header.Get("Location") != location {
				return fmt.Errorf("%s: got %d to %q, want 307 to %q", tt.target, a.Status, a.Header.Get("Location"), location)
			}
			if err := a.OneLine(leader.Base, leader.ID, "nothing was done"); err != nil {
				return fmt.Errorf("%s: %w", tt.target, err)
			}
			var got string // it takes a moment to be printed
			want := tt.console + "\nNot a leader, do nothing"
			if err := testkit.Poll(testkit.Bound, func() error {
				if got = strings.Join(f.Messages()[printed:], "\n"); len(got) < len(want) {
					return errors.New("not all is printed")
				}
				return nil
			}); err != nil || got != want {
				return fmt.Errorf("%s: the follower has printed %q (%v), want %q", tt.target, got, err, want)
			}
		}
		if after := state(t, leader).LastIndex; after != before {
			return fmt.Errorf("the log went from %d to %d, want no new entry", before, after)
		}
		if a := f.Ask(t, "/get?key=k"); a.Status != http.StatusOK || a.Body != "v" {
			return fmt.Errorf("get at a follower: got %d %q %v, want the value", a.Status, a.Body, a.Header)
		}
		return nil
	})

	// What can follow a redirect need not know who leads.
	value := strings.Repeat("\x00\xff", 50<<10)
	testkit.UnderOneLeader(t, nodes, func(_ *testkit.Node, followers []*testkit.Node) error {
		for _, r := range []*http.Request{
			followers[0].Request(t, http.MethodGet, "/set?"+testkit.Pair("get", "1"), ""),
			followers[0].Request(t, http.MethodPost, "/set", testkit.Pair("post", "2")),
			followers[1].Request(t, http.MethodPut, "/set?key=put", value),
			followers[1].Request(t, http.MethodGet, "/remove?key=k", ""),
		} {
			if _, err := testkit.Acknowledged(r); err != nil {
				return fmt.Errorf("%s %s: %w", r.Method, r.URL, err)
			}
		}
		return nil
	})
	got := testkit.CheckReplicas(t, nodes...)
	if want := map[string]string{"get": "1", "post": "2", "put": value}; !maps.Equal(got, want) {
		t.Errorf("the nodes hold %.200v, want %.200v", got, want)
	}
}

func TestWithoutQuorum(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	nodes[0].Set(t, "k", "v")
	testkit.CheckReplicas(t, nodes...)

	leader, _ := testkit.Leader(t, nodes...)
	for _, s := range nodes {
		if s != leader {
			s.Kill(t)
		}
	}
	// Whether it knows already that it does not lead any more, or not.
	for i := 0; i == 0 || state(t, leader).State == "Leader"; i++ {
		a := leader.Ask(t, "/set?key=uncertain&value=1")
		if a.Status != http.StatusServiceUnavailable && a.Status != http.StatusGatewayTimeout {
			t.Fatalf("set without a quorum: got %d %q, want 503 or 504", a.Status, a.Body)
		}
	}
	testkit.Eventually(t, "a node that knows no leader", func() error {
		if got := state(t, leader).Leader; got != "" {
			return fmt.Errorf("it knows %s", got)
		}
		return nil
	})
	before := state(t, leader).LastIndex
	for _, target := range []string{"/set?key=refused&value=1", "/remove?key=k", "/join?nodeId=n9&raftPort=9009",
		"/readyz"} {
		a := leader.Ask(t, target)
		if a.Status != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s without a leader: got %d %v, want 503 with Retry-After", target, a.Status, a.Header)
		}
		if err := a.OneLine("no leader"); err != nil {
			t.Errorf("%s without a leader: %v", target, err)
		}
	}
	if after := state(t, leader).LastIndex; after != before {
		t.Errorf("refused requests: the log went from %d to %d, want no new entry", before, after)
	}
	if a := leader.Ask(t, "/get?key=k"); a.Status != http.StatusServiceUnavailable || !strings.Contains(a.Body,
		"consistency=stale") {
		t.Errorf("get without a leader: got %d %q, want 503 and the way out", a.Status, a.Body)
	}
	a := leader.Ask(t, "/get?consistency=stale&key=k")
	if a.Status != http.StatusOK || a.Body != "v" {
		t.Errorf("stale get without a leader: got %d %q, want this node's own copy", a.Status, a.Body)
	}
	for _, name := range []string{"Raftkv-Applied-Index", "Raftkv-Last-Contact"} {
		if a.Header.Get(name) == "" {
			t.Errorf("stale get without a leader: got no %s", name)
		}
	}
	if a := leader.Ask(t, "/get?consistency=eventual&key=k"); a.Status != http.StatusBadRequest ||
		!strings.Contains(a.Body, "consistency") {
		t.Errorf("get with another consistency: got %d %q, want 400 that names it", a.Status, a.Body)
	}
	if a := leader.Ask(t, "/healthz"); a.Status != http.StatusOK {
		t.Errorf("healthz without a leader: got %d, want 200", a.Status)
	}

	for _, s := range nodes {
		if s != leader {
			s.Start(t)
		}
	}
	leader.Set(t, "after", "2")
	got := testkit.CheckReplicas(t, nodes...)
	delete(got, "uncertain") // applied or not, but the same everywhere
	if want := map[string]string{"k": "v", "after": "2"}; !maps.Equal(got, want) {
		t.Errorf("the nodes hold %v, want %v", got, want)
	}
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	all := testkit.StartNodes(t, binary(t), 5)
	n1, empty, withData, other := all[0], all[1], all[2], all[3:]
	testkit.Join(t, other[0].Client, other[1].Client, other[1].RaftPort)
	n1.Set(t, "k", "v")
	withData.Set(t, "own", "data")

	nobody := testkit.FreePort(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	portOf := func(l net.Listener) string { return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) }

	for _, tt := range []struct {
		name   string
		target string
		joiner *testkit.Node // nil: none
		error  []string      // what it names
	}{
		{name: "nobody listens", target: testkit.JoinPath("n2", nobody), error: []string{nobody, "raftPort"}},
		{name: "silence", target: testkit.JoinPath("n2", portOf(silent)), error: []string{"raftPort"}},
		{name: "no raftkv node", target: testkit.JoinPath("n2", portOf(stranger.Listener)), error: []string{"raftPort"}},
		{name: "an HTTP port", target: testkit.JoinPath("n2", empty.HTTPPort), joiner: empty, error: []string{"raftPort"}},
		{name: "another ID", target: testkit.JoinPath("n9", empty.RaftPort), joiner: empty, error: []string{"n2", "n9",
			"nodeId"}},
		{name: "the ID of this node", target: testkit.JoinPath("n1", empty.RaftPort), joiner: empty, error: []string{"n1",
			"n2", "nodeId"}},
		{name: "this node under another ID", target: testkit.JoinPath("n2", n1.RaftPort), error: []string{"n1", "raftPort"}},
		{name: "data", target: withData.JoinPath(), joiner: withData, error: []string{"n3", "1 key", "volume"}},
		{name: "member of another cluster", target: other[0].JoinPath(), joiner: other[0], error: []string{"n4",
			"another cluster"}},
		{name: "follower in another cluster", target: other[1].JoinPath(), joiner: other[1], error: []string{"n5",
			"another cluster"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testkit.CheckReplicas(t, other...)
			ask := func() {
				a := n1.Ask(t, tt.target)
				if err := a.OneLine(tt.error...); err != nil || a.Status != http.StatusConflict {
					t.Errorf("got %d (%v), want 409", a.Status, err)
				}
			}
			if tt.joiner == nil {
				checkUnchanged(t, n1, ask)
				return
			}
			checkUnchanged(t, n1, func() { checkUnchanged(t, tt.joiner, ask) })
			n1.Set(t, tt.name, "1")
			tt.joiner.Set(t, tt.name, "2")
			if tt.joiner == empty {
				empty.Write(t, "/remove?"+url.Values{"key": {tt.name}}.Encode())
			}
		})
	}
	testkit.CheckReplicas(t, other...)
	testkit.CheckReplicas(t, n1)

	// Refused for what was asked, not for what it is.
	testkit.Join(t, n1.Client, empty.Client, empty.RaftPort)
	empty.Set(t, "joined", "1")
	testkit.CheckReplicas(t, n1, empty)
}
