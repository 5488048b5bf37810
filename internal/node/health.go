package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"syscall"

	"github.com/hashicorp/raft"
)

// lowSpace is under how many free bytes on the volume's disk a node warns. A full
// disk ends it (see store).
const lowSpace = 256 << 20

// Health is what is wrong with a node that goes on. Empty: nothing.
type Health struct {
	Replicas string `json:"replicas,omitempty"` // another member has applied other entries
	Space    string `json:"space,omitempty"`    // the disk of the volume is nearly full
}

// Health returns what is wrong with this node.
func (n *Node) Health() Health {
	n.healthMu.Lock()
	defer n.healthMu.Unlock()
	return n.health
}

// ails sets one of the two lines, and logs it when it is a new one.
func (n *Node) ails(line *string, now string) {
	n.healthMu.Lock()
	begins := now != "" && *line == ""
	*line = now
	n.healthMu.Unlock()
	if begins {
		n.config.Warnf("%s", now)
	}
}

// checkSpace looks at the disk of the volume.
func (n *Node) checkSpace() {
	var s syscall.Statfs_t
	if syscall.Statfs(n.config.Dir, &s) != nil {
		return
	}
	now := ""
	if free := uint64(s.Bavail) * uint64(s.Bsize); free < n.config.lowSpace {
		now = fmt.Sprintf("the disk of %s has %d MiB left: make room, for the first write that fails ends this node", n.config.Dir, free>>20)
	}
	n.ails(&n.health.Space, now)
}

// checkReplicas compares what the members have applied with what this node has, if it
// leads, and tells both of a difference. There is none as long as raft and the state
// machine keep their promises; it never goes away by itself.
func (n *Node) checkReplicas(ctx context.Context) {
	r := n.current.Load().raft
	if r.State() != raft.Leader {
		return
	}
	servers, err := configuration(ctx, r)
	if err != nil {
		return
	}
	now := ""
	for i, info := range n.askAll(ctx, servers) {
		if info == nil || n.sameAs(ctx, info) {
			continue
		}
		now = fmt.Sprintf("the replicas differ: %s and %s came to index %d by different entries. Find out which one is right, take the other out with /leave, empty its volume and join it again",
			n.config.ID, info.NodeID, info.AppliedIndex)
		ctx, cancel := context.WithTimeout(ctx, memberTimeout)
		_ = n.call(ctx, http.MethodPost, string(servers[i].Address), "/differs?text="+url.QueryEscape(now), nil) // said again at the next tick
		cancel()
	}
	n.ails(&n.health.Replicas, now)
}

// sameAs reports whether a member has applied the entries that this node has, or that
// can't be told.
func (n *Node) sameAs(ctx context.Context, info *Info) bool {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	if info.Chain == "" || n.machine.WaitApplied(ctx, info.AppliedIndex) != nil {
		return true
	}
	chain, ok := n.machine.HashAt(info.AppliedIndex)
	return !ok || hex.EncodeToString(chain[:]) == info.Chain
}

// Replicas is what a node found when it compared itself with the members that it
// reaches.
type Replicas struct {
	Index uint64 `json:"index"`           // the newest that all of them have applied
	Chain string `json:"chain,omitempty"` // up to there; empty: unknown
	Equal bool   `json:"equal"`           // none has applied other entries
}

func (n *Node) compare(ctx context.Context, own Info, infos []*Info) Replicas {
	all := Replicas{Index: own.AppliedIndex, Equal: n.Health().Replicas == ""}
	for _, info := range infos {
		if info != nil {
			all.Index = min(all.Index, info.AppliedIndex)
			all.Equal = all.Equal && n.sameAs(ctx, info)
		}
	}
	if chain, ok := n.machine.HashAt(all.Index); ok {
		all.Chain = hex.EncodeToString(chain[:])
	}
	return all
}
