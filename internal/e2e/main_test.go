package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"raftkv/internal/testkit"
)

var dir string // for the binary

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if dir, err = os.MkdirTemp("", "raftkv-e2e-"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) { return testkit.Build(dir) })

// binary returns the path of the node, which is built at first use.
func binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildPlain = sync.OnceValues(func() (string, error) { return testkit.BuildPlain(dir) })

// plainBinary is binary without the race detector, for tests that measure memory.
func plainBinary(t testing.TB) string {
	t.Helper()
	path, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startOne starts a cluster of one, which is quick to elect itself.
func startOne(t testing.TB) *testkit.Node {
	t.Helper()
	return testkit.StartCluster(t, binary(t), 1, "RAFT_ELECTION_TIMEOUT=100ms")[0]
}

// startThree starts a cluster of three.
func startThree(t testing.TB) []*testkit.Node {
	t.Helper()
	return testkit.StartCluster(t, binary(t), 3)
}

func slow(t testing.TB) {
	if testing.Short() {
		t.Skip("takes several seconds: not with -short")
	}
}

// state is the node's status.
func state(t testing.TB, n *testkit.Node) testkit.Status {
	t.Helper()
	s, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkUnchanged calls do, and checks that it adds nothing to the log of the node and changes nothing of its data.
func checkUnchanged(t testing.TB, n *testkit.Node, do func()) {
	t.Helper()
	held := func() testkit.Replica {
		all, err := testkit.Replicas(testkit.Bound, n)
		if err != nil {
			t.Fatal(err)
		}
		return all[0]
	}
	before := held()
	do()
	after := held()
	if after.LastIndex != before.LastIndex || after.Hash != before.Hash || after.ClusterID != before.ClusterID {
		t.Errorf("%s went from %+v to %+v, want no change", n.ID, before.Status, after.Status)
	}
	if after.List != before.List {
		t.Errorf("%s held %.300q, and now %.300q, want no change", n.ID, before.List, after.List)
	}
}

// sourceFiles makes go test look at what the binary and the scripts are: it would otherwise
// take a result from its cache when they have changed.
func TestSources(t *testing.T) {
	for _, pattern := range []string{"../../*.go", "../../go.*", "../../*.sh", "../../*/*/*.go", "../../*/*/*/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
	}
}
