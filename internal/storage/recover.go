package storage

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// RecoveryFile in the volume names the members that are left when a majority is lost for good, in the format that
// Consul, Nomad and Vault document (raft.ReadConfigJSON). It is used once, at the start, and renamed.
const RecoveryFile = "peers.json"

// ReadRecovery returns the members that RecoveryFile in dir names, nil if there is no such file. A file that does not
// name nodeID, or has no voter, is refused.
func ReadRecovery(dir, nodeID string) (*raft.Configuration, error) {
	path := filepath.Join(dir, RecoveryFile)
	configuration, err := raft.ReadConfigJSON(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: want a list of {\"id\", \"address\", \"non_voter\"} with a voter in it; "+
			"mend it, or take it away to start as before", path, err)
	}
	isThisNode := func(s raft.Server) bool { return string(s.ID) == nodeID }
	if !slices.ContainsFunc(configuration.Servers, isThisNode) {
		return nil, fmt.Errorf("%s does not name this node, %s: mend it, or take it away to start as before",
			path, nodeID)
	}
	return &configuration, nil
}

// Recover gives the volume the cluster ID of the cluster that recovery makes. Raft's RecoverCluster (api.go) keeps no
// identity of the cluster, so that lost nodes which come back could elect a leader in the same terms as the
// survivors; with another cluster ID they are another cluster. The ID is a hash of the former one and the members:
// every survivor with the same RecoveryFile gets the same ID, also when it crashes half-way and recovers again.
func (v *Volume) Recover(recovery raft.Configuration) error {
	from, err := getStable(v.bolt, keyRecoveredFrom)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) || (err == nil && len(from) == 0) {
		from = v.Cluster[:]
		err = setStable(v.bolt, keyRecoveredFrom, from)
	}
	if err != nil {
		return err
	}
	lines := []string{}
	for _, s := range recovery.Servers {
		lines = append(lines, fmt.Sprintf("%s %s %s", s.ID, s.Address, s.Suffrage))
	}
	slices.Sort(lines)
	sum := sha256.Sum256(append(from[:len(from):len(from)], strings.Join(lines, "\n")...))
	v.Cluster = ClusterID(sum[:len(v.Cluster)])
	return setStable(v.bolt, keyClusterID, v.Cluster[:])
}

// FinishRecovery renames RecoveryFile, so that it is used once. A crash before that makes the next start recover
// again, with the same outcome.
func (v *Volume) FinishRecovery() error {
	path := filepath.Join(v.dir, RecoveryFile)
	if err := os.Rename(path, path+".used"); err != nil {
		return err
	}
	// The file must not come back once the note is gone: the next recovery would start from another ID.
	if err := syncDir(v.dir); err != nil {
		return err
	}
	return setStable(v.bolt, keyRecoveredFrom, nil)
}
