package node

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

const (
	// recoveryTimeout is how long a survivor waits for the one that makes the ID of the new cluster.
	recoveryTimeout = 5 * time.Minute
	// recoveryLines is how often it is in the log.
	recoveryLines = 5 * time.Second
)

// recoveredCluster returns the ID of the cluster that a recovery makes. It is random, so that two
// recoveries from the same copy of a volume are two clusters, and one for all survivors: the voter
// whose ID comes first makes it, and the others ask that one until it has. It calls report now and
// then, whose error ends it.
func (n *Node) recoveredCluster(v *storage.Volume, recovery *raft.Configuration, report func() error) (
	id peer.ClusterID, err error) {
	former, chosen, err := v.Recovery()
	if err != nil || chosen {
		return v.Cluster, err
	}
	var first raft.Server
	for _, server := range recovery.Servers {
		if server.Suffrage == raft.Voter && (first.ID == "" || server.ID < first.ID) {
			first = server
		}
	}
	if string(first.ID) == n.config.ID {
		return peer.NewClusterID(), nil
	}
	reason := "" // why it has none yet
	logged := time.Time{}
	for begin := time.Now(); time.Since(begin) < n.config.recovery; time.Sleep(100 * time.Millisecond) {
		info, err := n.members.ask(n.life.ctx, string(first.Address))
		switch {
		case err != nil:
			reason = err.Error()
		case info.NodeID != string(first.ID):
			reason = info.NodeID + " answers there"
		case info.RecoveredFrom != hex.EncodeToString(former[:]):
			reason = "it was not recovered from the same cluster"
		case !slices.Contains(info.MemberIDs, n.config.ID):
			return id, fmt.Errorf("%s: the one that %s was recovered with does not name %s: give all survivors the same",
				storage.RecoveryFile, first.ID, n.config.ID)
		default:
			_, err := hex.Decode(id[:], []byte(info.ClusterID))
			return id, err
		}
		if time.Since(logged) > recoveryLines {
			logged = time.Now()
			n.config.Logf("Waiting for %s at %s to be recovered by the same %s, because it makes the ID of the new cluster: %s",
				first.ID, first.Address, storage.RecoveryFile, reason)
		}
		if err := report(); err != nil {
			return id, err
		}
	}
	return id,
		fmt.Errorf("%s: %s at %s has made no cluster to be a member of within %v (%s): start it with the same file first, "+
			"or leave it out of all of them", storage.RecoveryFile, first.ID, first.Address, n.config.recovery, reason)
}
