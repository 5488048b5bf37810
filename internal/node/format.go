package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
)

// Versions of the program may be mixed in a cluster, as they are while it is upgraded node by
// node. What an older one does not know must then not reach it: it could not decode an entry,
// and would have to stop, at each start again. So there is a cluster format, a number, that
// the state machine keeps. It begins at 1 and is raised by an entry of the log, the first time
// that a command needs it, once every member has answered that it knows it. From then on no
// node that does not know it may join, and its volume is refused by an older program. Until
// then nothing is on disk that the older program can't read, so that an upgrade can be undone.
//
// Format 0 is that of the first programs, which know neither conditions nor idempotency keys,
// and format 1 that of those from before there were formats. Both are told by what they do not
// report (formatOf); there is nothing to raise for them, but commands are not proposed while a
// member is known to be too old for them.

// formatOf returns the newest cluster format that a program with this Info knows.
func formatOf(info *Info) int {
	switch {
	case info.MaxFormat > 0:
		return info.MaxFormat
	case info.Version != "":
		return 1
	}
	return 0
}

// versions remembers which members have last reported a program that is older than this one.
// Its methods may be called by several goroutines at once.
type versions struct {
	mixed atomic.Bool     // there are any
	mu    sync.Mutex      // guards older
	older map[string]Info // by member ID
}

// heard notes what a member has reported.
func (v *versions) heard(info *Info) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.older == nil {
		v.older = make(map[string]Info)
	}
	if delete(v.older, info.NodeID); formatOf(info) < command.Format {
		v.older[info.NodeID] = *info
	}
	v.mixed.Store(len(v.older) > 0)
}

// tooOld returns which of servers are known not to know the format, described for a person.
func (v *versions) tooOld(servers []raft.Server, format int) (members []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, server := range servers {
		if info, ok := v.older[string(server.ID)]; ok && formatOf(&info) < format {
			members = append(members, describeVersion(&info))
		}
	}
	return members
}

// keep forgets every member but servers, so that no more are remembered than there are.
func (v *versions) keep(servers []raft.Server) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.older {
		if !slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id }) {
			delete(v.older, id)
		}
	}
	v.mixed.Store(len(v.older) > 0)
}

func describeVersion(info *Info) string {
	return fmt.Sprintf("%s (version %s, which knows format %d)", info.NodeID, cmp.Or(info.Version, "unknown"),
		formatOf(info))
}

// RequireFormat returns nil when a command that needs this cluster format may be proposed. If
// the cluster has a lower one and this node leads, it is raised first. An error wraps
// ErrNotApplied or ErrNotLeader, and names the members to upgrade.
func (n *Node) RequireFormat(ctx context.Context, format int) error {
	switch {
	case format == 0, format == 1 && !n.versions.mixed.Load(), format > 1 && format <= n.machine.Format():
		return nil
	}
	i := n.current.Load()
	if !i.leads() {
		return ErrNotLeader
	}
	if old := n.versions.tooOld(i.servers(), format); len(old) > 0 {
		return fmt.Errorf("%w: it needs format %d: upgrade %s first", ErrNotApplied, format, strings.Join(old, ", "))
	}
	if format == 1 {
		return nil
	}
	return n.raiseFormat(ctx, i, format)
}

// raiseFormat asks every member which formats it knows, and then proposes the entry. The
// member lock keeps older nodes from joining meanwhile.
func (n *Node) raiseFormat(ctx context.Context, i *instance, format int) error {
	ctx, cancel := context.WithTimeout(ctx, enqueueLimit) // not changeLimit: the caller's proposal waits
	defer cancel()
	if err := n.lockMembers(ctx); err != nil {
		return err
	}
	defer n.unlockMembers()
	switch {
	case n.machine.Format() >= format: // another command has raised it
		return nil
	case !i.leads():
		return ErrNotLeader
	}
	servers := i.servers()
	var silent []string
	for k, info := range n.members.askAll(ctx, servers) {
		if info == nil && string(servers[k].ID) != n.config.ID {
			silent = append(silent, string(servers[k].ID))
		}
	}
	if old := n.versions.tooOld(servers, format); len(old) > 0 {
		return fmt.Errorf("%w: it needs format %d: upgrade %s first", ErrNotApplied, format, strings.Join(old, ", "))
	}
	if len(silent) > 0 {
		return fmt.Errorf("%w: it needs format %d, which every member must know, and %s does not answer: "+
			"start it, or take it out with /leave", ErrNotApplied, format, strings.Join(silent, ", "))
	}
	_, err := n.batcher.propose(ctx, command.Command{Kind: command.RaiseFormat, To: uint64(format)})
	if err != nil { // what is to be proposed was not; raising the format once more does no harm
		if code, _ := CodeOf(err); code != ErrNotLeader {
			err = fmt.Errorf("%w: the cluster format could not be raised: %v", ErrNotApplied, err)
		}
		return err
	}
	n.config.Logf("The cluster has format %d: every member knows it, and older versions can't join any more", format)
	return nil
}

// raiseToMin raises the cluster to Config.MinFormat, while this node leads, as soon as every member knows it.
func (n *Node) raiseToMin() {
	ticks := time.NewTicker(max(n.config.ElectionTimeout, time.Second))
	defer ticks.Stop()
	warned := ""
	for { // until it is closed: a node that is adopted begins with an empty state machine
		select {
		case <-n.life.ctx.Done():
			return
		case <-ticks.C:
		}
		if n.machine.Format() >= n.config.MinFormat || !n.Leads() {
			continue
		}
		if err := n.RequireFormat(n.life.ctx, n.config.MinFormat); err != nil && err.Error() != warned &&
			n.life.ctx.Err() == nil {
			warned = err.Error()
			n.config.Warnf("Format %d is needed: %v", n.config.MinFormat, err)
		}
	}
}

// mayJoin returns an error unless the program of a node that is to join knows the cluster format.
func (n *Node) mayJoin(info *Info) error {
	if format := n.machine.Format(); formatOf(info) < format && format > 1 {
		return fmt.Errorf("%w: the cluster has format %d, too new for %s: upgrade it, then join it",
			ErrConflict, format, describeVersion(info))
	}
	return nil
}

// History returns a mark of the history that indexes belong to, for ETags and event IDs: one
// of another history has another mark. It is the beginning of the cluster ID, which is new
// with each bootstrap and each recovery; within a cluster no index is used twice, as a restore
// gives all keys the index of its own entry. Mixed is true while a member is known to run a
// program that knows no marks.
func (n *Node) History() (mark string, mixed bool) {
	id := n.port.ClusterID()
	return hex.EncodeToString(id[:4]), n.versions.mixed.Load()
}

// ClusterID returns the beginning of the cluster ID as a number.
func (n *Node) ClusterID() uint64 {
	id := n.port.ClusterID()
	return binary.BigEndian.Uint64(id[:8])
}
