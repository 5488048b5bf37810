package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"raftkv/internal/connlimit"
	"raftkv/internal/histogram"
	"raftkv/internal/kv"
	"raftkv/internal/node"
)

// collector reads the counts of a node when it is scraped.
type collector struct {
	node  *node.Node
	store *kv.Store
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("raftkv_"+name, help, labels, nil)
}

var (
	info           = desc("info", "The node; always 1.", "node_id", "cluster_id", "version")
	isLeader       = desc("leader", "Whether this node takes itself for the leader.")
	hasLeader      = desc("leader_known", "Whether this node knows of a leader.")
	leaderChanges  = desc("leader_changes_total", "Leaders that this node has heard of, itself included.")
	lastContact    = desc("leader_last_contact_seconds", "Since the leader was last heard; 0 on the leader itself.")
	term           = desc("term", "Raft's current term.")
	lastIndex      = desc("last_index", "Index of the last entry in the log.")
	commitIndex    = desc("commit_index", "Index up to which entries are known to be committed.")
	appliedIndex   = desc("applied_index", "Index of the last entry that the state machine has applied.")
	proposals      = desc("proposals_total", "Commands proposed at this node, by what became of them.", "result")
	entries        = desc("proposed_entries_total", "Entries in which this node proposed commands.")
	batches        = desc("batch_commands", "Commands in a batch, which share an fsync.")
	writes         = desc("log_write_duration_seconds", "Writes of the log, the term and the vote, with their fsync.")
	memberUp       = desc("member_up", "On the leader: whether the member answered when it was last asked.", "member")
	memberContact  = desc("member_last_contact_seconds", "On the leader: since the member last answered.", "member")
	memberLag      = desc("member_lag_entries", "On the leader: entries applied here and not by the member.", "member")
	replicas       = desc("replicas", "On the leader: other members by how their data compare.", "state")
	replicasDiffer = desc("replicas_differ", "Whether it is known that a member has applied other entries.")
	watchers       = desc("watchers", "Watches that get changes as they come (live) or read older ones.", "state")
	keys           = desc("keys", "Keys in the store.")
	dataBytes      = desc("data_bytes", "Bytes of all keys and values in the store.")
	dataFootprint  = desc("data_footprint_bytes", "Bytes of all keys and values with what the store takes for each key.")
	dataLimit      = desc("data_limit_bytes", "What data_footprint_bytes may be: STORE_MAX_BYTES; 0: no bound.")
	snapshotBytes  = desc("snapshot_written_bytes_total", "State written to snapshots, own ones and received ones.")
	snapshotSize   = desc("snapshot_size_bytes", "Size of the newest snapshot on disk; 0: there is none.")
	snapshots      = desc("snapshot_duration_seconds", "Snapshots taken or received, from the first byte to the last.")
	logBytes       = desc("log_size_bytes", "Size of the file of the log.")
	diskFree       = desc("disk_free_bytes", "Free on the disk of the volume.")
	connections    = desc("http_connections", "Open HTTP connections.")
	accepted       = desc("http_connections_accepted_total", "HTTP connections accepted.")
	evicted        = desc("http_connections_evicted_total", "Idle HTTP connections closed to make room.")
	raftConns      = desc("raft_connections", "Open connections that were accepted at the raft port.")
	raftAccepted   = desc("raft_connections_accepted_total", "Connections accepted at the raft port.")
	raftRefused    = desc("raft_connections_refused_total", "Connections closed at the raft port for their preface.")
)

// Describe implements prometheus.Collector. What there is depends on the node's state, so it describes nothing, and
// the registry checks each scrape instead.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) { send(d, prometheus.GaugeValue, v, labels...) }
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		send(d, prometheus.CounterValue, float64(v), labels...)
	}
	buckets := func(d *prometheus.Desc, h *histogram.Histogram) {
		n, sum, upTo := h.Snapshot()
		out <- prometheus.MustNewConstHistogram(d, n, sum, upTo)
	}
	o := c.node.Observe()
	gauge(info, 1, o.NodeID, o.ClusterID, o.Version)
	gauge(isLeader, number(o.State == "Leader"))
	gauge(hasLeader, number(o.Leader != ""))
	count(leaderChanges, o.LeaderChanges)
	if o.LastContact >= 0 {
		gauge(lastContact, o.LastContact.Seconds())
	}
	gauge(term, float64(o.Term))
	gauge(lastIndex, float64(o.LastIndex))
	gauge(commitIndex, float64(o.CommitIndex))
	gauge(appliedIndex, float64(o.AppliedIndex))
	for result, n := range o.Proposals {
		count(proposals, n, result)
	}
	count(entries, o.Entries)
	buckets(batches, o.Batches)
	buckets(writes, o.Writes)
	if o.State == "Leader" {
		states := map[string]int{node.Equal: 0, node.Different: 0, node.Unknown: o.Unseen}
		for id, m := range o.Members {
			gauge(memberUp, number(m.Up), id)
			gauge(memberLag, float64(m.Lag), id)
			if !m.Last.IsZero() {
				gauge(memberContact, time.Since(m.Last).Seconds(), id)
			}
			states[m.State]++
		}
		for state, n := range states {
			gauge(replicas, float64(n), state)
		}
	}
	gauge(replicasDiffer, number(o.Health.Replicas != ""))
	live, behind := c.store.Watchers()
	gauge(watchers, float64(live), "live")
	gauge(watchers, float64(behind), "behind")
	gauge(keys, float64(o.Keys))
	gauge(dataBytes, float64(c.store.Size()))
	gauge(dataFootprint, float64(o.DataBytes))
	gauge(dataLimit, float64(o.MaxDataBytes))
	gauge(snapshotSize, float64(o.Newest))
	buckets(snapshots, o.Snapshots)
	count(snapshotBytes, o.SnapshotBytes)
	if o.Disk != nil {
		gauge(diskFree, float64(o.Disk.FreeBytes))
		gauge(logBytes, float64(o.Disk.LogBytes))
	}
	conns := connlimit.Count()
	gauge(connections, float64(conns.Open))
	count(accepted, uint64(conns.Accepted))
	count(evicted, uint64(conns.Evicted))
	gauge(raftConns, float64(o.RaftPort.Open))
	count(raftAccepted, uint64(o.RaftPort.Accepted))
	count(raftRefused, uint64(o.RaftPort.Refused))
}

func number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
