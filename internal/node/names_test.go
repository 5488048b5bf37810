package node

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestNameOfADeadMember: the name of a member that is down leads to another one. That one counts
// once: with two of five members up, no write is acknowledged, which a majority that comes back
// would not have.
func TestNameOfADeadMember(t *testing.T) {
	var from, to atomic.Value // addresses: connections to the one go to the other
	var redirected atomic.Int32
	from.Store("")
	to.Store("")
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if address == from.Load() {
			address = to.Load().(string)
			redirected.Add(1)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	nodes := openCluster(t, 5, func(c *Config) { c.Dial = dial })
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	n2.stop()
	to.Store(n3.RaftAddress())
	from.Store(n2.RaftAddress())
	waitFor(t, "n1 dials n2", func() bool { return redirected.Load() > 0 })
	n1.set(t, "with four", "1")
	if _, err := n1.members.askMember(t.Context(), n1.current.Load().servers()[1]); err == nil {
		t.Error("n3 was taken for n2")
	}
	nodes[3].stop()
	nodes[4].stop()
	for i := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := n1.Propose(ctx, setting(fmt.Sprint("with two ", i), "1")); err == nil {
			t.Error("a write was acknowledged with two of five members up")
		}
		cancel()
	}
	from.Store("")
	nodes[1], nodes[3], nodes[4] = n2.reopen(t), nodes[3].reopen(t), nodes[4].reopen(t)
	leaderOf(t, nodes...).setSoon(t, "with all", "1")
	checkReplicas(t, nodes...)
}
