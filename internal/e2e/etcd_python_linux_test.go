package e2e

import (
	"context"
	"errors"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"raftkv/internal/testkit"
)

// python runs a script of testdata/etcd with Debian's Python against etcd and another system at once, and returns what
// they print. Where that Python lacks the modules, it skips the test.
func python(t *testing.T, modules string, etcd, other *gateway, script ...string) (ofEtcd, ofOther string) {
	t.Helper()
	const interpreter = "/usr/bin/python3" // for which Debian's packages are
	if out, err := exec.Command(interpreter, "-c", "import "+modules).CombinedOutput(); err != nil {
		t.Skipf("%s has not all of %s: %v\n%s", interpreter, modules, err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Bound)
	defer cancel()
	var printed [2]strings.Builder
	var failed [2]error
	var running sync.WaitGroup
	for i, g := range []*gateway{etcd, other} {
		running.Go(func() {
			base, err := url.Parse(g.base)
			if err != nil {
				failed[i] = err
				return
			}
			args := append([]string{filepath.Join("testdata", "etcd", script[0])}, script[1:]...)
			cmd := exec.CommandContext(ctx, interpreter, append(args, base.Hostname(), base.Port())...)
			var stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &printed[i], &stderr
			failed[i] = cmd.Run()
			if stderr.Len() > 0 {
				t.Logf("%s: %v\n%s", g.name, cmd.Args, &stderr)
			}
		})
	}
	running.Wait()
	if err := errors.Join(failed[:]...); err != nil {
		t.Fatalf("%v: %v\netcd: %s\n%s: %s", script, err, &printed[0], other.name, &printed[1])
	}
	return printed[0].String(), printed[1].String()
}

// sameLines checks that a system has printed what etcd has, and returns the lines.
func sameLines(t *testing.T, name, got, want string) []string {
	t.Helper()
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Errorf("line %d\n%s: %.1000s\netcd: %.1000s", i+1, name, gotLines[i], wantLines[i])
		}
	}
	if len(gotLines) != len(wantLines) {
		t.Errorf("%s: got %d lines, etcd %d", name, len(gotLines), len(wantLines))
	}
	return gotLines
}

// TestEtcdPython: a program with etcd3gw, and the tests that its package and that of tooz have of themselves, come to
// the same with a follower among three as with etcd. They are not made for elections, which would fail a request of
// theirs: a busy machine must not bring any about.
func TestEtcdPython(t *testing.T) {
	slow(t)
	t.Parallel()
	etcd := startEtcd(t)
	nodes := testkit.StartCluster(t, binary(t), 3, "ETCD_API=on", "RAFT_ELECTION_TIMEOUT=5s")
	_, followers := testkit.Leader(t, nodes...)
	follower := newGateway(t, "a follower", followers[0].Base)

	// It begins with an empty store.
	want, got := python(t, "etcd3gw", etcd, follower, "basic.py")
	basic := sameLines(t, follower.name, got, want)
	if got := strings.Join(basic, "\n"); !strings.HasSuffix(got, "\nnothing is left []\n") {
		t.Errorf("basic.py: got %s, want it to the end", got)
	}
	t.Run("suites", func(t *testing.T) {
		for _, suite := range []struct {
			name, modules string
			run, skipped  int // at least, and at most
		}{
			{name: "tooz", modules: "tooz.drivers.etcd3gw, fixtures, testtools", run: 76, skipped: 24},
			{name: "etcd3gw", modules: "etcd3gw, oslotest, testtools", run: 22},
		} {
			t.Run(suite.name, func(t *testing.T) {
				t.Parallel()
				want, got := python(t, suite.modules, etcd, follower, "suite.py", suite.name)
				outcomes := make(map[string]int)
				for _, line := range sameLines(t, follower.name, got, want) {
					if test, outcome, ok := strings.Cut(line, " "); ok {
						outcomes[outcome]++
						if outcome == "FAILED" {
							t.Errorf("%s failed", test)
						}
					}
				}
				passed, skipped := outcomes["ok"], outcomes["skipped"]
				t.Logf("%d run, %d failed, %d skipped", passed+skipped+outcomes["FAILED"], outcomes["FAILED"], skipped)
				if passed < suite.run-suite.skipped || skipped > suite.skipped {
					t.Errorf("got %d passed, %d skipped, want %d or more, and %d or fewer", passed, skipped,
						suite.run-suite.skipped, suite.skipped)
				}
			})
		}
	})
	testkit.CheckReplicas(t, nodes...)
}
