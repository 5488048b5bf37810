package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// RecoveryFile in the volume names the members that are left when a majority is lost for good, in the format that
// Consul, Nomad and Vault document (raft.ReadConfigJSON, which checks less). It is used once, at the start, and
// renamed.
const RecoveryFile = "peers.json"

// recoveryMember is one member in RecoveryFile.
type recoveryMember struct {
	ID       raft.ServerID      `json:"id"`
	Address  raft.ServerAddress `json:"address"`
	NonVoter bool               `json:"non_voter"`
}

// resolveTimeout bounds the lookups of the addresses in RecoveryFile.
const resolveTimeout = 3 * time.Second

// ReadRecovery returns the members that RecoveryFile in dir names, nil if there is no such file. It must name the node
// nodeID at the raft port of raftAddress, and what would make a cluster that can't work is refused: raft.RecoverCluster
// writes it to the volume as it is. A byte order mark, which editors of Windows write, is skipped.
func ReadRecovery(dir, nodeID, raftAddress string) (*raft.Configuration, error) {
	path := filepath.Join(dir, RecoveryFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var members []recoveryMember
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
		decoder.DisallowUnknownFields()
		if err = decoder.Decode(&members); err == nil && decoder.More() {
			err = errors.New("more than one list")
		}
	}
	if err == nil {
		err = checkRecovery(members, raft.ServerID(nodeID), raftAddress)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: want a list of {\"id\", \"address\", \"non_voter\"} with a voter in it; "+
			"mend it, or take it away to start as before", path, err)
	}
	configuration := new(raft.Configuration)
	for _, m := range members {
		suffrage := raft.Voter
		if m.NonVoter {
			suffrage = raft.Nonvoter
		}
		server := raft.Server{Suffrage: suffrage, ID: m.ID, Address: m.Address}
		configuration.Servers = append(configuration.Servers, server)
	}
	return configuration, nil
}

// checkRecovery returns what is wrong with the members of a RecoveryFile.
func checkRecovery(members []recoveryMember, self raft.ServerID, raftAddress string) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	voters, named := 0, false
	ids, addresses := make(map[raft.ServerID]bool), make(map[string]raft.ServerID)
	for _, m := range members {
		host, port, err := net.SplitHostPort(string(m.Address))
		number, portErr := strconv.ParseUint(port, 10, 16)
		switch {
		case m.ID == "":
			return fmt.Errorf("the member at %q has no id", m.Address)
		case ids[m.ID]:
			return fmt.Errorf("%s is there twice", m.ID)
		case err != nil || portErr != nil || number == 0 || host == "" || strings.ContainsAny(host, "/ "):
			return fmt.Errorf("the address of %s is %q, want host:port of its raft port", m.ID, m.Address)
		}
		ids[m.ID] = true
		for _, address := range resolve(ctx, host, port) {
			if other, ok := addresses[address]; ok {
				return fmt.Errorf("%s and %s have the same address, %s", other, m.ID, address)
			}
			addresses[address] = m.ID
		}
		if !m.NonVoter {
			voters++
		}
		if m.ID != self {
			continue
		}
		named = true
		if _, own, _ := net.SplitHostPort(raftAddress); own != port {
			return fmt.Errorf("the address of this node, %s, is %s, but its raft port is %s", self, m.Address, own)
		}
	}
	switch {
	case !named:
		return fmt.Errorf("it does not name this node, %s", self)
	case voters == 0:
		return errors.New("no member is a voter")
	}
	return nil
}

// resolve returns the addresses that host and port stand for, and the two themselves if the host can't be looked up.
func resolve(ctx context.Context, host, port string) []string {
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return []string{net.JoinHostPort(host, port)}
	}
	addresses := make([]string, 0, len(found))
	for _, ip := range found {
		if address := net.JoinHostPort(ip, port); !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// Raft's RecoverCluster (api.go) keeps no identity of the cluster, so that lost nodes which come back could elect a
// leader in the same terms as the survivors. So a recovery makes another cluster, with another ID. The ID is random, as
// the same copy of a volume may be recovered twice, and all survivors must have the same: one of them makes it, and the
// others ask that one (package node).

// Recovery returns the cluster that the volume is to be recovered from. If the volume has the ID of the new cluster
// already, as after a crash half-way, chosen is true, and that must stay.
func (v *Volume) Recovery() (former ClusterID, chosen bool, err error) {
	note, err := getStable(v.bolt, keyRecoveredFrom)
	switch {
	case errors.Is(err, raftboltdb.ErrKeyNotFound) || (err == nil && len(note) == 0):
		return v.Cluster, false, nil
	case err != nil:
		return former, false, err
	case len(note) != len(former):
		return former, false, fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, keyRecoveredFrom, len(note))
	}
	former = ClusterID(note)
	return former, former != v.Cluster, nil
}

// Recover gives the volume the ID of the cluster that a recovery makes.
func (v *Volume) Recover(cluster ClusterID) error {
	former, chosen, err := v.Recovery()
	if err != nil || chosen {
		return err
	}
	if err := setStable(v.bolt, keyRecoveredFrom, former[:]); err != nil {
		return err
	}
	v.Cluster = cluster
	return setStable(v.bolt, keyClusterID, cluster[:])
}

// FinishRecovery renames RecoveryFile, so that it is used once. A crash before that makes the next start recover
// again, as the same cluster.
func (v *Volume) FinishRecovery() error {
	path := filepath.Join(v.dir, RecoveryFile)
	if err := os.Rename(path, path+".used"); err != nil {
		return err
	}
	// The file must not come back once the note is gone: the next recovery would begin with another ID.
	if err := syncDir(v.dir); err != nil {
		return err
	}
	return v.ForgetRecovery()
}

// ForgetRecovery drops the note of a recovery that is over: done, or given up by taking RecoveryFile away. What stays
// is from which cluster the present one was recovered.
func (v *Volume) ForgetRecovery() error {
	former, chosen, err := v.Recovery()
	if err != nil {
		return err
	}
	if chosen {
		if err := setStable(v.bolt, keyFormerCluster, former[:]); err != nil {
			return err
		}
	}
	note, err := v.bolt.Get(keyRecoveredFrom)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) || (err == nil && len(note) == crc32.Size) {
		return nil // there is none, or it is empty, but for its checksum
	}
	return setStable(v.bolt, keyRecoveredFrom, nil)
}

// RecoveredFrom returns the cluster that the present one was recovered from, false if it was not recovered.
func (v *Volume) RecoveredFrom() (former ClusterID, ok bool) {
	value, err := getStable(v.bolt, keyFormerCluster)
	if err != nil || len(value) != len(former) {
		return former, false
	}
	return ClusterID(value), true
}
