package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"raftkv/internal/testkit"
)

const alertRules = "../../docs/alerts.yml"

// metricName is a metric in a query. Names of raft, Go and the process are looked for too.
var metricName = regexp.MustCompile(`\b(raftkv|raft|go|process)_[a-z_]+`)

// scrapes asks all nodes for their metrics.
func scrapes(t testing.TB, nodes ...*testkit.Node) map[string]testkit.Samples {
	t.Helper()
	all := make(map[string]testkit.Samples)
	for _, n := range nodes {
		samples, err := n.Scrape()
		if err != nil {
			t.Fatal(err)
		}
		all[n.ID] = samples
	}
	return all
}

// TestAlertsOfACluster: five alerts are silent on a cluster that is well, and fire on what each of them is for.
// (TestAlertOfReplicasThatDiffer is beside main.go: replicas of processes can't be made to differ.)
func TestAlertsOfACluster(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 3, "RAFT_ELECTION_TIMEOUT=2s") // no election but those that are meant
	leader, followers := testkit.Leader(t, nodes...)
	well := testkit.Samples{`raftkv_replicas{state="equal"}`: 2, `raftkv_leader_known`: 1}
	for _, n := range followers {
		well[`raftkv_member_up{member="`+n.ID+`"}`] = 1
	}
	leader.WaitSamples(t, well)

	before := scrapes(t, nodes...)
	var after map[string]testkit.Samples
	testkit.Eventually(t, "four changes of leader", func() error {
		for _, to := range []*testkit.Node{followers[0], leader} { // there and back
			leader.Definite(t, http.MethodGet, "/transfer?nodeId="+to.ID, "")
		}
		after = scrapes(t, nodes...)
		for id := range after {
			const changes = "raftkv_leader_changes_total"
			if got := after[id][changes] - before[id][changes]; got < 4 {
				return fmt.Errorf("%s has seen %v", id, got)
			}
		}
		return nil
	})
	testkit.CheckAlert(t, alertRules, "RaftkvLeaderChanges", before, after)

	leader, followers = testkit.Leader(t, nodes...)
	leader.WaitSamples(t, testkit.Samples{`raftkv_replicas{state="equal"}`: 2})
	before = scrapes(t, nodes...)
	dead, left := followers[0], followers[1]
	dead.Kill(t)
	var writers sync.WaitGroup
	for range 16 {
		writers.Go(func() {
			for range 80 { // of one key: commands that share no entry
				leader.Set(t, "a", "1")
			}
		})
	}
	writers.Wait()
	leader.WaitSamples(t, testkit.Samples{`raftkv_member_up{member="` + dead.ID + `"}`: 0})
	after = scrapes(t, leader, left)
	if got := after[leader.ID][`raftkv_member_lag_entries{member="`+dead.ID+`"}`]; got < 1280 {
		t.Errorf("%s is behind by: got %v entries, want 1280 or more", dead.ID, got)
	}
	testkit.CheckAlert(t, alertRules, "RaftkvMemberAway", before, after)
	testkit.CheckAlert(t, alertRules, "RaftkvFollowerLags", before, after)

	before = after
	left.Kill(t)
	leader.WaitSamples(t, testkit.Samples{`raftkv_leader_known`: 0})
	after = scrapes(t, leader)
	testkit.CheckAlert(t, alertRules, "RaftkvNoLeader", before, after)

	before = after
	for range 20 {
		if got := leader.Ask(t, "/set?key=a&value=1"); got.Status != http.StatusServiceUnavailable {
			t.Errorf("without a majority: got %d %s, want 503", got.Status, got.Body)
		}
	}
	testkit.CheckAlert(t, alertRules, "RaftkvRequestsFail", before, scrapes(t, leader))

	left.Start(t)
	dead.Start(t)
	testkit.CheckReplicas(t, nodes...)
}

// TestAlertOfSlowWrites stops the process while it writes its log: the write has taken as long then.
func TestAlertOfSlowWrites(t *testing.T) {
	slow(t)
	t.Parallel()
	n := startOne(t)
	before := scrapes(t, n)
	const count, fast = "raftkv_log_write_duration_seconds_count", `raftkv_log_write_duration_seconds_bucket{le="0.128"}`
	testkit.Eventually(t, "one write in twenty is slow", func() error {
		var write sync.WaitGroup
		write.Go(func() { n.Set(t, "a", "1") })
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		n.Signal(t, syscall.SIGSTOP)
		time.Sleep(150 * time.Millisecond)
		n.Signal(t, syscall.SIGCONT)
		write.Wait()
		after := scrapes(t, n)[n.ID]
		all, slow := after[count]-before[n.ID][count], after[count]-after[fast]-(before[n.ID][count]-before[n.ID][fast])
		if slow < 1 || slow < all/20 {
			return fmt.Errorf("%v of %v writes", slow, all)
		}
		return nil
	})
	testkit.CheckAlert(t, alertRules, "RaftkvLogWriteSlow", before, scrapes(t, n))
}

// TestAlertOfAFullDisk needs a file system of its own, so root.
func TestAlertOfAFullDisk(t *testing.T) {
	t.Parallel()
	n := testkit.NewNode(t, binary(t), "n1", "RAFT_ELECTION_TIMEOUT=100ms")
	if err := os.MkdirAll(n.Volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.Volume, "tmpfs", 0, "size=2g,mode=0700"); errors.Is(err, unix.EPERM) {
		t.Skip("needs root: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(n.Volume, unix.MNT_DETACH) })
	n.Start(t)
	free := func(check func(bytes float64) bool) map[string]testkit.Samples {
		t.Helper()
		var all map[string]testkit.Samples
		testkit.Eventually(t, "the disk as it is", func() error {
			all = scrapes(t, n)
			if got, ok := all[n.ID]["raftkv_disk_free_bytes"]; !ok || !check(got) {
				return fmt.Errorf("free: got %v, %v", got, ok)
			}
			return nil
		})
		return all
	}
	before := free(func(bytes float64) bool { return bytes > 1<<30 })
	if err := unix.Mount("tmpfs", n.Volume, "tmpfs", unix.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	after := free(func(bytes float64) bool { return bytes < 1<<29 })
	testkit.CheckAlert(t, alertRules, "RaftkvDiskNearlyFull", before, after)
	n.Stop(t, syscall.SIGTERM)
}

// TestMetricsOfThePages: every metric that the alerts and the dashboard name is in a scrape.
func TestMetricsOfThePages(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := startThree(t)
	leader, followers := testkit.Leader(t, nodes...)
	leader.Set(t, "a", "1")
	leader.WaitSamples(t, testkit.Samples{`raftkv_replicas{state="equal"}`: 2})
	there := map[string]bool{"raftkv_leader_last_contact_seconds": false}
	for _, n := range []*testkit.Node{leader, followers[0]} {
		for series := range scrapes(t, n)[n.ID] {
			name, _, _ := strings.Cut(series, "{")
			there[name] = true
		}
	}
	for _, page := range []string{alertRules, "../../docs/dashboard.json"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		names := metricName.FindAllString(string(text), -1)
		if len(names) < 8 {
			t.Errorf("%s: got %q, want more metrics", page, names)
		}
		for _, name := range names {
			if !there[name] {
				t.Errorf("%s has %s, which no scrape of a leader or a follower has", page, name)
			}
		}
	}
}
