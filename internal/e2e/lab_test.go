package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// lab sends a request to the lab of n, and checks the one line of the answer.
func lab(t testing.TB, n *testkit.Node, query, want string) {
	t.Helper()
	if a := n.Ask(t, "/lab?"+query); a.Status != http.StatusOK || a.Body != want+"\n" {
		t.Fatalf("%s: /lab?%s: got %d %q, want %q", n.ID, query, a.Status, a.Body, want)
	}
}

// TestLab: two leaders at once, of which one is cut off, and what becomes of an entry that only that one has; cuts of
// one direction; and an end as by kill -9.
func TestLab(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 3, "RAFT_LAB=1")
	leader, others := testkit.Leader(t, nodes...)
	leader.Set(t, "k", "before")

	lab(t, leader, "do=cut", fmt.Sprintf("OK %s: cut [%s]", leader.ID, idsBut(nodes, leader)))
	next, _ := testkit.Leader(t, others...)
	if a := leader.Ask(t, "/set?key=k&value=lost"); a.Status != http.StatusServiceUnavailable &&
		a.Status != http.StatusGatewayTimeout {
		t.Errorf("a set at the leader that is cut off: got %d %q, want 503 or 504", a.Status, a.Body)
	}
	next.Set(t, "k", "kept")
	if a := leader.Ask(t, "/get?key=k&consistency=stale"); a.Body == "kept" {
		t.Errorf("a stale read at the node that is cut off: got %q, want what it had before", a.Body)
	}
	lab(t, leader, "do=heal", fmt.Sprintf("OK %s: heal [%s]", leader.ID, idsBut(nodes, leader)))
	if got := testkit.CheckReplicas(t, nodes...); got["k"] != "kept" {
		t.Errorf("after the heal: got %v, want k=kept", got)
	}

	// The leader hears the others, who do not hear it: they elect one of them.
	leader, others = testkit.Leader(t, nodes...)
	lab(t, leader, "do=cut&way=out", fmt.Sprintf("OK %s: cut [%s]", leader.ID, idsBut(nodes, leader)))
	testkit.Eventually(t, "another leader", func() error {
		for _, n := range others {
			if s, err := n.Status(); err == nil && s.State == "Leader" {
				return nil
			}
		}
		return errors.New("none")
	})
	lab(t, leader, "do=heal&from="+others[0].ID, fmt.Sprintf("OK %s: heal [%s]", leader.ID, others[0].ID))
	lab(t, leader, "do=heal", fmt.Sprintf("OK %s: heal [%s]", leader.ID, others[1].ID))
	lab(t, leader, "do=heal", fmt.Sprintf("OK %s: heal []", leader.ID))

	leader, others = testkit.Leader(t, nodes...)
	lab(t, leader, "do=kill", fmt.Sprintf("OK %s ends as by kill -9", leader.ID))
	leader.WaitEnd(t, testkit.StopBound)
	if how := leader.Cmd.ProcessState.Sys().(syscall.WaitStatus); how.Signal() != syscall.SIGKILL {
		t.Errorf("%s ended by %v, want SIGKILL", leader.ID, leader.Cmd.ProcessState)
	}
	next, _ = testkit.Leader(t, others...)
	next.Set(t, "k", "after")
	leader.Start(t)
	if got := testkit.CheckReplicas(t, nodes...); got["k"] != "after" {
		t.Errorf("after the kill: got %v, want k=after", got)
	}
}

// idsBut are the IDs of the nodes but one, in their order, which is that of the members.
func idsBut(nodes []*testkit.Node, but *testkit.Node) (ids string) {
	for _, n := range nodes {
		if n != but {
			ids += " " + n.ID
		}
	}
	return ids[1:]
}

// TestLabRefuses: what the lab does not do, each in one line that has the reason; nothing is cut by it.
func TestLabRefuses(t *testing.T) {
	t.Parallel()
	on, off := testkit.NewNode(t, binary(t), "n1", "RAFT_LAB=1"), testkit.NewNode(t, binary(t), "n2", "RAFT_LAB=0")
	on.Start(t)
	off.Start(t)
	for _, test := range []struct {
		name, query string
		node        *testkit.Node
		header      map[string]string
		status      int
		line        string
	}{
		{name: "off", query: "do=kill", node: off, status: 403, line: "RAFT_LAB=1"},
		{name: "page of another site", query: "do=kill", node: on, status: 403, line: "Sec-Fetch-Site",
			header: map[string]string{"Sec-Fetch-Site": "cross-site"}},
		{name: "page of another member", query: "do=kill", node: on, status: 403, line: "Origin",
			header: map[string]string{"Origin": off.Base}},
		{name: "through a proxy", query: "do=kill", node: on, status: 403, line: "without a proxy",
			header: map[string]string{"X-Forwarded-For": "10.0.0.1"}},
		{name: "nothing to do", query: "", node: on, status: 400, line: "do: missing"},
		{name: "unknown", query: "do=burn", node: on, status: 400, line: "want cut, heal or kill"},
		{name: "unknown way", query: "do=cut&way=up", node: on, status: 400, line: "way: want both, out"},
		{name: "heal one way", query: "do=heal&way=in", node: on, status: 400, line: "only do=cut takes it"},
		{name: "kill another", query: "do=kill&from=n2", node: on, status: 400, line: "it ends this node"},
		{name: "no ID", query: "do=cut&from=%20", node: on, status: 400, line: "from: want 1 to 64"},
		{name: "no member", query: "do=cut&from=n2", node: on, status: 404, line: "n2 is no other member"},
		{name: "itself", query: "do=cut&from=n1", node: on, status: 404, line: "n1 is no other member"},
		{name: "no others", query: "do=cut", node: on, status: 404, line: "n1 has no other members"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := test.node.Request(t, http.MethodGet, "/lab?"+test.query, "")
			for name, value := range test.header {
				r.Header.Set(name, value)
			}
			a, err := testkit.Send(testkit.Direct, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.OneLine(test.line); err != nil || a.Status != test.status {
				t.Errorf("got %d (%v), want %d", a.Status, err, test.status)
			}
		})
	}
	on.WaitReady(t)
	off.WaitReady(t)
}
