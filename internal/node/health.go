package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
)

const (
	// watchInterval is how often a node looks after itself, see watch.
	watchInterval = 2 * time.Second
	// adoptTimeout is how long an adopted node waits to hear from its leader.
	adoptTimeout = 60 * time.Second
	// lowSpace is the number of free bytes on the volume's disk below which a node warns. A
	// full disk ends it (storage.Log).
	lowSpace = 256 << 20
)

// Health is what is wrong with a node that goes on. Empty: nothing.
type Health struct {
	Replicas string `json:"replicas,omitempty"` // another member has applied other entries
	Space    string `json:"space,omitempty"`    // the disk of the volume is nearly full
	Data     string `json:"data,omitempty"`     // the data take most of what they may
	Members  string `json:"members,omitempty"`  // this node leads, and voters do not answer

	Snapshots string `json:"snapshots,omitempty"` // the last snapshot could not be written
	Address   string `json:"address,omitempty"`   // the members know the node at another address
	Security  string `json:"security,omitempty"`  // certificates that end soon or can't be used, or none
}

// Warnings returns, in one line, what clients need not keep away from this node for; empty:
// nothing.
func (h Health) Warnings() string {
	lines := []string{h.Space, h.Data, h.Members, h.Snapshots, h.Address, h.Security}
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return line == "" }), "; ")
}

// health collects the problems of a node. Its methods may be called by several goroutines
// at once.
type health struct {
	mu       sync.Mutex        // guards what follows
	replicas map[string]string // member ID: the line about it. It stays until that member is replaced
	space    string
	data     string
	members  string

	snapshots string
	address   string
	security  string
}

// Health returns what is wrong with this node.
func (n *Node) Health() Health {
	n.health.mu.Lock()
	defer n.health.mu.Unlock()
	lines := slices.Sorted(maps.Values(n.health.replicas))
	return Health{
		Replicas:  strings.Join(lines, "; "),
		Space:     n.health.space,
		Data:      n.health.data,
		Members:   n.health.members,
		Snapshots: n.health.snapshots,
		Address:   n.health.address,
		Security:  n.health.security,
	}
}

// set sets one of the lines of h that stand alone; it reports whether that is a new problem.
func (h *health) set(field *string, line string) (begins bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	begins = *field == "" && line != ""
	*field = line
	return begins
}

// setReplica sets the line about a member that differs; empty: it is known to be equal. It
// reports whether that is a new problem.
func (h *health) setReplica(memberID, line string) (begins bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if line == "" {
		delete(h.replicas, memberID)
		return false
	}
	if h.replicas == nil {
		h.replicas = make(map[string]string)
	}
	_, known := h.replicas[memberID]
	h.replicas[memberID] = line
	return !known
}

// differing returns those of servers that were found to differ, and forgets every member
// that is none any more: it was taken out, as the line asks for.
func (h *health) differing(servers []raft.Server) (differing []raft.Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, server := range servers {
		if _, ok := h.replicas[string(server.ID)]; ok {
			differing = append(differing, server)
		}
	}
	maps.DeleteFunc(h.replicas, func(id, _ string) bool {
		return !slices.ContainsFunc(differing, func(s raft.Server) bool { return string(s.ID) == id })
	})
	return differing
}

// forgetReplicas forgets all differences: this node itself was replaced.
func (h *health) forgetReplicas() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.replicas)
}

// watch looks after the node until it ends: its disk, whether the replicas are equal,
// and whether it hears of a leader. One that was removed while it was away must learn
// it from the others, and one whose adopting leader died before it was added must not
// wait for ever.
func (n *Node) watch() {
	tick := time.NewTicker(min(watchInterval, n.config.adopt))
	defer tick.Stop()
	missing, began := 0, time.Now()
	for {
		select {
		case <-n.life.ctx.Done():
			return
		case <-tick.C:
		}
		n.port.CheckCertificates()
		n.checkSecurity()
		n.checkSpace()
		n.checkData()
		n.checkVolume()
		n.checkAddress(n.life.ctx)
		n.checkReplicas(n.life.ctx)
		n.boundLog()
		n.makeRoom()
		i := n.current.Load()
		servers := i.servers()
		n.rooms.keep(n.config.ID, servers)
		n.port.RequireNamed(n.machine.Format() >= 2) // every member names itself and the node that it means
		n.acknowledged.keep(servers)
		if n.versions.keep(servers); !i.leads() { // the leader has just asked all of them
			n.members.askAll(n.life.ctx, servers)
		}
		if _, leader := i.raft.LeaderWithID(); leader != "" || n.life.now() == removed {
			missing, began = 0, time.Now()
			continue
		}
		if len(servers) == 0 {
			if len(n.config.Join) == 0 && time.Since(began) > n.config.adopt {
				began = time.Now()
				_ = n.handleRelease() // tried again, should it be refused
			}
			continue
		}
		// Three times, some time apart: a removal that a leader has only begun may yet fail.
		if !n.removedAccordingTo(servers) {
			missing = 0
		} else if missing++; missing >= 3 {
			missing = 0
			_ = n.handleRemoved(n.life.ctx)
		}
	}
}

// removedAccordingTo reports whether a member that leads the cluster does not count this
// node among its members.
func (n *Node) removedAccordingTo(servers []raft.Server) bool {
	for _, info := range n.members.askAll(n.life.ctx, servers) {
		if info != nil && info.State == raft.Leader.String() {
			return !slices.Contains(info.MemberIDs, n.config.ID)
		}
	}
	return false
}

// checkSecurity asks for the line of Health.Security.
func (n *Node) checkSecurity() {
	if n.config.Security == nil {
		return
	}
	if line := n.config.Security(); n.health.set(&n.health.security, line) {
		n.config.Warnf("%s", line)
	}
}

// checkVolume ends the node if its volume is gone, and looks whether its snapshots can be written.
func (n *Node) checkVolume() {
	i := n.current.Load()
	err := i.volume.Check()
	// Unless the node itself has replaced it: that happens while it is replacing, and ends with another instance.
	if err != nil && n.life.now() != replacing && n.current.Load() == i {
		n.fail(fmt.Errorf("volume %s: %w", n.config.Dir, err))
		return
	}
	line := ""
	if err := i.volume.Snapshots.Failure(); err != nil {
		line = fmt.Sprintf("the last snapshot could not be written, and the log grows until one is: %v", err)
	}
	if n.health.set(&n.health.snapshots, line) {
		n.config.Warnf("%s", line)
	}
}

// checkReplicas compares what the members have applied with what this node has: all
// members if it leads, and else those that it knows to differ. It reports a difference on
// both sides. There is none as long as raft and the state machine keep their promises, and
// the hash chain never becomes equal again: so the report stays, whether or not the member
// can be reached, until the member is no member any more or was replaced by one that is
// equal, or until this node is restarted.
func (n *Node) checkReplicas(ctx context.Context) {
	i := n.current.Load()
	servers := i.servers()
	leads, differing := i.leads(), n.health.differing(servers)
	if !leads {
		servers = differing
	}
	own, _ := n.machine.Applied()
	all := n.compareAll(ctx, servers)
	line := ""
	if leads {
		line = voterWarning(all)
	}
	n.health.set(&n.health.members, line)
	n.observed.keep(leads, servers)
	if last := i.raft.LastIndex(); leads && hasMore(all, i.raft.CurrentTerm(), last) {
		ctx, cancel := context.WithTimeout(ctx, memberTimeout)
		defer cancel()
		_, _ = n.Propose(ctx, command.Command{Kind: command.Noop}) // tried again at the next tick
	}
	for _, found := range all {
		if leads {
			n.observed.compared(found, own)
		}
		id := string(found.server.ID)
		switch found.state {
		case Equal:
			n.health.setReplica(id, "")
		case Different:
			n.reportDifference(ctx, found)
		}
	}
}

// hasMore reports whether a member that follows this node has entries beyond last, this node's last one. They are of
// an earlier term and no other member has them. The next entry takes their place; until then they stay.
func hasMore(others []comparison, term, last uint64) bool {
	return slices.ContainsFunc(others, func(c comparison) bool {
		return c.info != nil && c.info.Term == term && c.info.LastIndex > last
	})
}

// voterWarning returns a line about the voters that do not answer the leader, which compared
// all other members with itself, and about how many more may go; empty: all answer.
func voterWarning(others []comparison) string {
	voters, answer := 1, 1
	var away []string
	for _, c := range others {
		if c.server.Suffrage != raft.Voter {
			continue
		}
		if voters++; c.info != nil {
			answer++
		} else {
			away = append(away, fmt.Sprintf("%s at %s", c.server.ID, c.server.Address))
		}
	}
	if len(away) == 0 {
		return ""
	}
	return fmt.Sprintf("no answer from %s: %d of %d voters are there, and %d more may go before there is no majority",
		strings.Join(away, ", "), answer, voters, max(answer-(voters/2+1), 0))
}

func (n *Node) reportDifference(ctx context.Context, found comparison) {
	line := fmt.Sprintf("the replicas differ: %s. Find out which one is right, take the other out with /leave, "+
		"empty its volume and join it again", found.detail)
	if n.health.setReplica(string(found.server.ID), line) {
		n.config.Warnf("%s", line)
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	path := "/differs?" + url.Values{"nodeId": {n.config.ID}, "text": {line}}.Encode()
	_ = n.members.call(ctx, http.MethodPost, found.server, path, nil) // repeated at the next tick
}

// handleDiffers answers /differs: another member has found that this one differs from it. The
// caller must name a member, so that no more lines are kept than there are members.
func (n *Node) handleDiffers(i *instance, r *http.Request) (any, error) {
	id, line := r.URL.Query().Get("nodeId"), oneLine(r.URL.Query().Get("text"))
	isMember := func(s raft.Server) bool { return string(s.ID) == id }
	if !slices.ContainsFunc(i.servers(), isMember) {
		return nil, fmt.Errorf("%w: %s is no member", ErrNoSuchNode, id)
	}
	if n.health.setReplica(id, line) {
		n.config.Warnf("%s", line)
	}
	return nil, nil
}

// oneLine is text of another node as it is printed: of at most 512 bytes, without line ends and whatever else does not
// print, which could pass for other lines.
func oneLine(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), 512)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// The three outcomes of a comparison of replicas.
const (
	Equal     = "equal"     // the same entries were applied
	Different = "different" // other entries were applied
	Unknown   = "unknown"   // it can't be determined; the detail gives the member and the reason
)

// comparison is a member, compared with this node.
type comparison struct {
	server raft.Server
	info   *Info // nil: it did not answer
	state  string
	detail string // when not equal: which member, and why
}

// compareAll asks all of servers but this node for their Info and compares each with this
// node, all at once, within memberTimeout. The order is that of servers.
func (n *Node) compareAll(ctx context.Context, servers []raft.Server) []comparison {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	var all []comparison
	for _, server := range servers {
		if string(server.ID) != n.config.ID {
			all = append(all, comparison{server: server})
		}
	}
	var done sync.WaitGroup
	for k := range all {
		done.Go(func() {
			c := &all[k]
			info, err := n.members.askMember(ctx, c.server)
			if err != nil {
				c.state, c.detail = Unknown, fmt.Sprintf("%s at %s: %v", c.server.ID, c.server.Address, err)
				return
			}
			c.info = info
			c.state, c.detail = n.compare(ctx, info)
		})
	}
	done.Wait()
	return all
}

// compare compares the hash chain of a member with that of this node, once this node has
// applied as much, within ctx.
func (n *Node) compare(ctx context.Context, info *Info) (state, detail string) {
	if info.Hash == "" {
		return Unknown, info.NodeID + " has no hash of the entries that it has applied"
	}
	if n.machine.WaitApplied(ctx, info.AppliedIndex) != nil {
		return Unknown, fmt.Sprintf("%s has not applied index %d, which %s has", n.config.ID, info.AppliedIndex, info.NodeID)
	}
	hash, ok := n.machine.HashAt(info.AppliedIndex)
	switch {
	case !ok:
		return Unknown, fmt.Sprintf("%s has applied index %d only, for which %s no longer has the hash",
			info.NodeID, info.AppliedIndex, n.config.ID)
	case hex.EncodeToString(hash[:]) != info.Hash:
		return Different, fmt.Sprintf("%s and %s came to index %d by different entries",
			n.config.ID, info.NodeID, info.AppliedIndex)
	}
	return Equal, ""
}

// Replicas is what a node found when it compared itself with the other members.
type Replicas struct {
	Index  uint64 `json:"index"`            // the newest that all members that answered have applied
	Hash   string `json:"hash,omitempty"`   // of the entries up to there; empty: unknown
	State  string `json:"state"`            // equal, different or unknown
	Detail string `json:"detail,omitempty"` // when not equal: which members, and why
}

// summarize makes one line of the comparisons. A difference counts more than what is
// unknown, and one that is known stays known while its member does not answer.
func (n *Node) summarize(own Info, all []comparison) Replicas {
	sum := Replicas{Index: own.AppliedIndex, State: Equal}
	var different, unknown []string
	for _, c := range all {
		switch c.state {
		case Different:
			different = append(different, c.detail)
		case Unknown:
			unknown = append(unknown, c.detail)
		}
		if c.info != nil {
			sum.Index = min(sum.Index, c.info.AppliedIndex)
		}
	}
	if known := n.Health().Replicas; len(different) == 0 && known != "" {
		different = append(different, known)
	}
	switch {
	case len(different) > 0:
		sum.State, sum.Detail = Different, strings.Join(different, "; ")
	case len(unknown) > 0:
		sum.State, sum.Detail = Unknown, strings.Join(unknown, "; ")
	}
	if hash, ok := n.machine.HashAt(sum.Index); ok {
		sum.Hash = hex.EncodeToString(hash[:])
	}
	return sum
}
