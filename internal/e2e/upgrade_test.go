package e2e

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// lastFormat1 is the last commit whose program knows cluster format 1 only.
const lastFormat1 = "89641317d39e"

// TestFormat1: what the last program of format 1 has left, a volume with a snapshot and a log behind it, and a backup,
// is read as it was meant, and stays of format 1 until something newer is used.
func TestFormat1(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xzf", "testdata/format1.tar.gz", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	want := map[string]string{"a": "1", "b": "2", "absent": "1", "once": "1", "raw": "\xff\x00"}
	for i := 2; i < 10; i++ {
		want[fmt.Sprint("k", i)] = fmt.Sprint("v", i)
	}

	restored := startOne(t)
	backup, err := os.ReadFile(filepath.Join(dir, "backup"))
	if err != nil {
		t.Fatal(err)
	}
	if a := restored.Definite(t, http.MethodPut, "/restore", string(backup)); a.Status != http.StatusOK {
		t.Fatalf("restore: got %d %q, want 200", a.Status, a.Body)
	}
	restored.WantValues(t, want)

	want["last"] = "1"
	n := testkit.NewNode(t, binary(t), "n1", "RAFT_ELECTION_TIMEOUT=100ms")
	n.Volume = filepath.Join(dir, "volume")
	n.Start(t)
	n.WantValues(t, want)
	for _, s := range []*testkit.Node{n, restored} {
		a := s.Definite(t, http.MethodGet, "/set?key=once&value=1", "", "Idempotency-Key", `"once"`)
		if a.Status != http.StatusOK || a.Body != "OK index=13\n" {
			t.Errorf("a repetition across the upgrade: got %d %q, want 200 OK index=13", a.Status, a.Body)
		}
	}
	if status, err := n.Status(); err != nil || status.Format != 1 {
		t.Errorf("format: got %d, %v, want 1", status.Format, err)
	}
	txn := n.Definite(t, http.MethodPost, "/txn",
		`{"if":[{"key":"raw","value64":"/wA="}],"then":[{"set":"new","value":"1"}]}`)
	if txn.Status != http.StatusOK || !strings.HasPrefix(txn.Body, `{"branch":"then"`) {
		t.Errorf("a transaction: got %d %q, want that its condition holds", txn.Status, txn.Body)
	}
	want["new"] = "1"
	n.Stop(t, syscall.SIGTERM)
	n.Start(t)
	n.WantValues(t, want)
	if status, err := n.Status(); err != nil || status.Format != 2 {
		t.Errorf("format after a transaction and a restart: got %d, %v, want 2", status.Format, err)
	}
}

// buildOld builds the program as it was at lastFormat1.
func buildOld(t *testing.T) (binary string) {
	t.Helper()
	dir := testkit.SourceOf(t, lastFormat1)
	build := exec.Command("go", "build", "-buildvcs=false", "-o", "old", ".")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "old")
}

// TestRollingUpgrade: a cluster of the last program of format 1 is upgraded under load, node by node, then taken back,
// and upgraded again. Each write and read in between is done or safely refused; what only the newer program knows
// waits for the last member, whose name the client gets.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	slow(t)
	old, newer := buildOld(t), binary(t)
	nodes := testkit.StartCluster(t, old, 3)
	leader, _ := testkit.Leader(t, nodes...)
	leader.Set(t, "counter", "0")

	load := startLoad(t, nodes)
	replace := func(n *testkit.Node, binary string) {
		t.Helper()
		n.Stop(t, syscall.SIGTERM)
		n.Binary = binary
		n.Start(t)
		load.wantProgress(n.ID + " has another program")
	}
	txn := func() testkit.Answer {
		t.Helper()
		leader, _ := testkit.Leader(t, nodes...)
		a, err := testkit.Send(http.DefaultClient, leader.Request(t, http.MethodPost, "/txn",
			`{"then":[{"set":"txn","value":"1"}]}`))
		if err != nil {
			t.Fatalf("/txn: %v", err)
		}
		return a
	}
	for round := range 2 {
		for i, n := range nodes {
			if i == len(nodes)-1 { // the last one that is old must not lead, or nobody would understand a transaction
				leaveTo(t, nodes, nodes[0])
				testkit.Eventually(t, "n3 is named, as it is too old", func() error {
					if a := txn(); a.Status != http.StatusServiceUnavailable ||
						!strings.Contains(a.Body, "it needs format 2: upgrade n3 (version") {
						return fmt.Errorf("a transaction: got %d %q, want 503 that names n3", a.Status, a.Body)
					}
					return nil
				})
			}
			replace(n, newer)
		}
		if status, err := nodes[0].Status(); err != nil || status.Format != 1 {
			t.Errorf("round %d: format: got %d, %v, want 1, as nothing newer was used", round, status.Format, err)
		}
		if round == 0 {
			for _, n := range nodes {
				replace(n, old)
			}
		}
	}
	load.stop()
	testkit.Eventually(t, "a transaction", func() error {
		if a := txn(); a.Status != http.StatusOK {
			return fmt.Errorf("got %d %q, want 200", a.Status, a.Body)
		}
		return nil
	})
	joiner := testkit.NewNode(t, old, "n4")
	joiner.Start(t)
	leader, _ = testkit.Leader(t, nodes...)
	a := leader.Definite(t, http.MethodGet, joiner.JoinPath(), "")
	if a.Status != http.StatusConflict || !strings.Contains(a.Body, "the cluster has format 2, too new for n4") {
		t.Errorf("join of an old node: got %d %q, want 409", a.Status, a.Body)
	}
	want := map[string]string{"counter": fmt.Sprint(load.counted.Load()), "txn": "1"}
	if got := testkit.CheckReplicas(t, nodes...); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// leaveTo hands the leadership to n.
func leaveTo(t *testing.T, nodes []*testkit.Node, n *testkit.Node) {
	t.Helper()
	testkit.Eventually(t, n.ID+" leads", func() error {
		leader, _ := testkit.Leader(t, nodes...)
		if leader == n {
			return nil
		}
		a := leader.Definite(t, http.MethodPost, "/transfer?nodeId="+n.ID, "")
		return fmt.Errorf("%s leads, /transfer: %d %q", leader.ID, a.Status, a.Body)
	})
}

// load is a client that increments a counter by reading it anywhere and setting it on its ETag.
type load struct {
	t       *testing.T
	stopped atomic.Bool
	done    sync.WaitGroup
	counted atomic.Int64
}

func startLoad(t *testing.T, nodes []*testkit.Node) *load {
	l := &load{t: t}
	t.Cleanup(l.stop)
	l.done.Go(func() {
		longest, last := time.Duration(0), time.Now()
		for turn := 0; !l.stopped.Load(); turn++ {
			status, was, etag := l.ask(nodes[turn%len(nodes)], "/get?key=counter", "", "")
			if status != http.StatusOK {
				l.refused("get", status, was)
				continue
			}
			n := int64(-1)
			if _, _ = fmt.Sscan(was, &n); n != l.counted.Load() {
				t.Errorf("counter: got %q, want %d", was, l.counted.Load())
				return
			}
			if l.increment(nodes, turn, n+1, etag) {
				l.counted.Add(1)
				longest, last = max(longest, time.Since(last)), time.Now()
			}
		}
		t.Logf("%d increments, the longest wait for one %v", l.counted.Load(), longest.Round(time.Millisecond))
	})
	return l
}

// increment sets the counter to n if it still has the ETag, and returns whether that was done. The idempotency key
// makes it safe to repeat what has no answer, at any node.
func (l *load) increment(nodes []*testkit.Node, turn int, n int64, etag string) (done bool) {
	for again := range 1000 {
		target := fmt.Sprintf("/set?key=counter&value=%d", n)
		status, body, _ := l.ask(nodes[(turn+again)%len(nodes)], target, etag, fmt.Sprintf(`"%d"`, turn))
		switch l.refused("set", status, body); status {
		case http.StatusOK:
			return true
		case http.StatusPreconditionFailed:
			return false // its ETag has no mark, or one that the other program does not know
		}
	}
	l.t.Errorf("the counter could not be set to %d", n)
	return false
}

// ask returns the answer of a node, and of the leader that it redirects to; status 0 if there is none.
func (l *load) ask(n *testkit.Node, target, etag, once string) (status int, body, tag string) {
	r, err := http.NewRequest(http.MethodGet, n.Base+target, nil)
	if err != nil {
		l.t.Error(err)
		return 0, "", ""
	}
	if once != "" {
		r.Header.Set("If-Match", etag)
		r.Header.Set("Idempotency-Key", once)
	}
	response, err := (&http.Client{Timeout: 5 * time.Second}).Do(r)
	if err != nil {
		return 0, err.Error(), "" // its node is stopped, or was while it answered
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error(), ""
	}
	return response.StatusCode, string(text), response.Header.Get("ETag")
}

// refused checks that what was not done is refused in a way that a client can act on.
func (l *load) refused(what string, status int, body string) {
	switch status {
	case http.StatusOK:
	case 0, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusPreconditionFailed:
		time.Sleep(10 * time.Millisecond)
	default:
		l.t.Errorf("%s: got %d %q", what, status, body)
		time.Sleep(100 * time.Millisecond)
	}
}

// wantProgress waits until the counter has grown by some more.
func (l *load) wantProgress(when string) {
	l.t.Helper()
	was := l.counted.Load()
	testkit.Eventually(l.t, "more increments, when "+when, func() error {
		if n := l.counted.Load() - was; n < 10 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

func (l *load) stop() {
	l.stopped.Store(true)
	l.done.Wait()
}
