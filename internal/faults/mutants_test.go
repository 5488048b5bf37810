package faults

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var mutate = flag.Bool("mutants", false, "only TestMutants: that each guard which is taken out of the node is missed")

// mutant is a node without one of its guards.
type mutant struct {
	name  string
	edits []edit
	flags []string // of the tests that must fail with it, and pass without
}

// edit replaces a text that a file has exactly once.
type edit struct{ file, old, new string } // file: below the module's root or, after raft/, hashicorp/raft's

func tests(run string, flags ...string) []string {
	return append([]string{"-test.run", "^(" + run + ")$"}, flags...)
}

var mutants = []mutant{
	{"heartbeats on the fast path", []edit{{"internal/peer/transport.go",
		"func (*Transport) SetHeartbeatHandler(func(raft.RPC)) {}",
		"func (t *Transport) SetHeartbeatHandler(f func(raft.RPC)) { t.NetworkTransport.SetHeartbeatHandler(f) }"}},
		tests("TestLateTimeoutNow")},
	{"reads by VerifyLeader", []edit{{"internal/node/node.go",
		"n.config.confirmTerm = n.reads.majorityAt",
		"n.config.confirmTerm = func(ctx context.Context, i *instance, _ uint64) error {\n" +
			"return wait(ctx, i.raft.VerifyLeader()) }"}},
		tests("TestLateAnswer")},
	{"writes acknowledged before a majority has them", []edit{{"raft/commitment.go",
		"matched[(len(matched)-1)/2]",
		"matched[len(matched)-1]"}}, tests("TestThreeNodes", "-only", "kill|cut|isolated")},
	{"joins without a look at who joins", []edit{{"internal/node/adopt.go",
		"if err := n.adoptable(i, was); err != nil {",
		"if err := n.adoptable(i, was); false {"}}, tests("TestThreeNodes", "-only",
		"joins that are refused|isolated leader")},
	{"snapshots without their checksums", []edit{
		{"raft/file_snapshot.go", "bytes.Compare(meta.CRC, computed) != 0", "bytes.Compare(meta.CRC, computed) > 1"},
		{"internal/kv/snapshot_decoder.go", "d.err == nil && binary.BigEndian.Uint32(got) != want {",
			"false && got != nil {"},
	}, tests("TestThreeNodes", "-only", "damage to snapshots", "-faults", "-duration", "12m")},
	{"no fsync", []edit{{"internal/storage/volume.go",
		"Path: boltPath(dir),",
		"Path: boltPath(dir), NoSync: true,"}}, tests("TestThreeNodes", "-only", "power cut")},
}

// TestMutants builds each mutant, and runs the suite against it: a suite that does not
// fail would not miss the guard. Then the same against the node as it is.
func TestMutants(t *testing.T) {
	if !*mutate {
		t.Skip("needs -mutants")
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			finding, took := findingOf(t, build(t, m.edits), m.flags)
			if finding == "" {
				t.Fatalf("nothing was found in %v", took)
			}
			t.Logf("after %v: %s", took, finding)
		})
	}
	for _, m := range mutants {
		t.Run("without "+m.name, func(t *testing.T) {
			finding, took := findingOf(t, build(t, nil), m.flags)
			if finding != "" {
				t.Fatalf("after %v: %s", took, finding)
			}
			t.Logf("nothing in %v", took)
		})
	}
}

// TestMutantsApply: each guard is where its mutant looks for it. It is for those who move one, and takes no time.
func TestMutantsApply(t *testing.T) {
	raft := output(t, "go", "list", "-m", "-f", "{{.Dir}}", raftModule)
	for _, m := range mutants {
		for _, e := range m.edits {
			if _, _, err := e.apply(filepath.Join("..", ".."), raft); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	}
}

const raftModule = "github.com/hashicorp/raft"

// apply returns the path of the file, below the roots of this module or of raft, and its text with the edit.
func (e edit) apply(root, raft string) (path, text string, err error) {
	path = filepath.Join(root, e.file)
	if name, ok := strings.CutPrefix(e.file, "raft/"); ok {
		path = filepath.Join(raft, name)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return "", "", fmt.Errorf("the guard has moved: %w", err)
	}
	if got := strings.Count(string(old), e.old); got != 1 {
		return "", "", fmt.Errorf("the guard has moved: %s has %q %d times, want once", e.file, e.old, got)
	}
	return path, strings.Replace(string(old), e.old, e.new, 1), nil
}

// build returns the path of the node with these edits. Nothing on disk is touched.
func build(t *testing.T, edits []edit) string {
	t.Helper()
	root, dir := filepath.Dir(output(t, "go", "env", "GOMOD")), t.TempDir()
	raft := filepath.Join(dir, "raft") // a copy: no overlay may be of what is in the module cache
	err := errors.Join(
		os.CopyFS(raft, os.DirFS(output(t, "go", "list", "-m", "-f", "{{.Dir}}", raftModule))),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte(output(t, "go", "mod", "edit", "-print",
			"-replace", raftModule+"="+raft, filepath.Join(root, "go.mod"))), 0o644),
		os.Symlink(filepath.Join(root, "go.sum"), filepath.Join(dir, "go.sum")))
	overlay := make(map[string]string)
	for i, e := range edits {
		path, text, editErr := e.apply(root, raft)
		if editErr != nil {
			t.Fatal(editErr)
		}
		overlay[path] = filepath.Join(dir, fmt.Sprint("edit", i, ".go"))
		err = errors.Join(err, os.WriteFile(overlay[path], []byte(text), 0o644))
	}
	list, _ := json.Marshal(map[string]any{"Replace": overlay}) // of strings: no error
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o644)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "raftkv")
	output(t, "go", "build", "-modfile", filepath.Join(dir, "go.mod"), "-overlay", filepath.Join(dir, "overlay.json"),
		"-o", path, "raftkv")
	return path
}

// output returns what a command prints, which must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return strings.TrimSpace(string(out))
}

// foundLine matches the line in which a test reports a finding.
var foundLine = regexp.MustCompile(`^ +\w+\.go:\d+: (seed \d+, .*)`)

// findingOf runs this suite against a node until it finds something, and returns that;
// nothing, when it passes.
func findingOf(t *testing.T, binary string, flags []string) (finding string, took time.Duration) {
	t.Helper()
	suite := exec.Command(os.Args[0], append([]string{"-test.v", "-test.timeout", "20m", "-seed", "1", "-binary",
		binary}, flags...)...)
	suite.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // for what it leaves when it is killed
	out, err := suite.StdoutPipe()
	began := time.Now()
	if err := errors.Join(err, suite.Start()); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20) // a finding may hold a value
	for lines.Scan() {
		all.WriteString(lines.Text() + "\n")
		if line := foundLine.FindStringSubmatch(lines.Text()); line != nil && finding == "" {
			finding, took = line[1], time.Since(began)
			_ = suite.Process.Kill() // the nodes die with it
		}
	}
	if err := suite.Wait(); finding == "" && (err != nil || strings.Contains(all.String(), "WITHOUT FAULTS")) {
		t.Fatalf("%s: %v\n%s", suite, err, all.String())
	}
	return finding, cmp.Or(took, time.Since(began)).Round(time.Second / 10)
}
