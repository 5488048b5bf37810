package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// The scripts run where they lie, as a newcomer runs them, with the binary that they build there; but on ports and
// volumes of their own.

// place is where scripts start nodes: three ports in a row of each kind, and a directory.
type place struct {
	http, raft int
	dir        string
}

func newPlace(t testing.TB) place {
	t.Helper()
	first, err := strconv.Atoi(testkit.FreePorts(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	return place{http: first, raft: first + 3, dir: t.TempDir()}
}

// node is n1, n2 or n3 of cluster.sh.
func (p place) node(number int, process *testkit.Process) *testkit.Node {
	n := &testkit.Node{Process: process, HTTPPort: strconv.Itoa(p.http + number - 1)}
	n.Client = testkit.Client{ID: fmt.Sprint("n", number), Base: "http://127.0.0.1:" + n.HTTPPort}
	return n
}

// run starts a script in a process group of its own. Volume names one; as cluster.sh takes it, several.
func (p place) run(t testing.TB, volume, name string, args ...string) *testkit.Process {
	t.Helper()
	if signal.Ignored(os.Interrupt) {
		// A script can't trap a signal that was ignored when it was started; one that is handled here has its default there.
		c := make(chan os.Signal, 1)
		signal.Notify(c, os.Interrupt)
		t.Cleanup(func() { signal.Ignore(os.Interrupt) })
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = "../.."
	cmd.Env = append(testkit.Environ(), fmt.Sprint("HTTP_SERVER_PORT=", p.http), fmt.Sprint("RAFT_SERVER_PORT=", p.raft),
		"RAFT_VOLUME_DIR="+filepath.Join(p.dir, volume),
		"RAFT_ELECTION_TIMEOUT=1s") // pump.sh does not try again what a change of leaders on a busy machine refuses
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return testkit.Start(t, cmd)
}

// wantLines checks that an output is so many lines, of which the last matches the pattern.
func wantLines(t testing.TB, what, output string, count int, pattern string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(output, "\n"), "\n")
	if last := lines[len(lines)-1]; len(lines) != count || !regexp.MustCompile("^"+pattern+"$").MatchString(last) {
		t.Errorf("%s: got %q, want %d lines, the last of them %s", what, output, count, pattern)
	}
}

func TestStartScriptAndPump(t *testing.T) {
	slow(t)
	t.Parallel()
	p := newPlace(t)
	n1 := p.node(1, nil)
	// startn1 returns when n1 is ready.
	startn1 := func(cleans bool, args ...string) {
		t.Helper()
		n1.Process = p.run(t, "node1", "./startn1.sh", args...)
		n1.WaitReady(t)
		want := "Starting node1\n"
		if cleans {
			want += "Cleaning the raft volumes.\n"
		}
		if got := n1.Stdout.String(); got != want {
			t.Errorf("startn1.sh %v: got %q on stdout, want %q", args, got, want)
		}
	}
	startn1(true)
	n1.Set(t, "lesson", "one")
	n1.Stop(t, syscall.SIGTERM)

	startn1(false, "--keep")
	want := map[string]string{"lesson": "one"}
	n1.WantValues(t, want)
	for _, args := range [][]string{nil, {"--keep"}} {
		second := p.run(t, "node1", "./startn1.sh", args...)
		second.WantExit(t, testkit.Bound, 1)
		if got, want := second.Stdout.String(), "Starting node1\n"; got != want {
			t.Errorf("second startn1.sh %v: got %q on stdout, want %q", args, got, want)
		}
		wantLines(t, "second startn1.sh", second.Stderr.String(), 1, fmt.Sprintf("port %d is taken: .*", p.http))
	}
	pump := p.run(t, "", "./pump.sh", "200", n1.Base)
	pump.WantExit(t, testkit.Bound, 0)
	wantLines(t, "pump.sh", pump.Stdout.String(), 1, `200 set, 0 failed in \d+\.\d s`)
	for i := 1; i <= 200; i++ {
		want[strconv.Itoa(i)] = strconv.Itoa(i)
	}
	n1.WantValues(t, want)
	n1.Stop(t, syscall.SIGINT)

	startn1(false, "--keep") // what the second start left alone
	n1.WantValues(t, want)
	n1.Stop(t, syscall.SIGTERM)
	startn1(true)
	n1.WantValues(t, nil)
	n1.Stop(t, syscall.SIGTERM)

	other := filepath.Join(p.dir, "other")
	if err := os.MkdirAll(filepath.Join(other, "thesis"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A directory with snapshots of something else, one with a directory raft.db, and then one that a node uses too.
	for _, name := range []string{"", "snapshots", "raft.db"} {
		if name != "" {
			if err := os.Mkdir(filepath.Join(other, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		refused := p.run(t, "other", "./startn1.sh")
		refused.WantExit(t, testkit.Bound, 1)
		wantLines(t, "startn1.sh on what is no volume", refused.Stderr.String(), 1, regexp.QuoteMeta(other)+
			" holds something else .*")
		if _, err := os.Stat(filepath.Join(other, "thesis")); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(other, name)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(os.Remove(filepath.Join(other, "raft.db")),
		os.WriteFile(filepath.Join(other, "raft.db"), []byte("of a node"), 0o600)); err != nil {
		t.Fatal(err)
	}
	n1.Process = p.run(t, "other", "./startn1.sh")
	n1.WaitReady(t)
	if _, err := os.Stat(filepath.Join(other, "thesis")); err != nil {
		t.Error(err)
	}
	n1.Stop(t, syscall.SIGTERM)
}

// TestStartScriptsHaveTheirOwnPorts is what the scripts take when the environment has nothing.
func TestStartScriptsHaveTheirOwnPorts(t *testing.T) {
	for i := range 3 {
		dir := t.TempDir()
		script := fmt.Sprintf("startn%d.sh", i+1)
		const stub = "#!/bin/sh\n" + `echo "$HTTP_SERVER_PORT $RAFT_SERVER_PORT $RAFT_NODE_ID $RAFT_VOLUME_DIR $*"` + "\n"
		if err := os.WriteFile(filepath.Join(dir, "start.sh"), []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, script), read(t, "../../"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(dir, script), "--keep")
		cmd.Env = testkit.Environ()
		out, err := cmd.Output()
		want := fmt.Sprintf("%d %d n%d /tmp/node%d node%d --keep\n", 8000+i, 9000+i, i+1, i+1, i+1)
		if err != nil || string(out) != want {
			t.Errorf("%s: got %q, %v, want %q", script, out, err, want)
		}
	}
	for _, name := range []string{"http_port=${HTTP_SERVER_PORT:-8000}", "raft_port=${RAFT_SERVER_PORT:-9000}",
		"volume=${RAFT_VOLUME_DIR:-/tmp/node}"} {
		if text := string(read(t, "../../cluster.sh")); !strings.Contains(text, name) {
			t.Errorf("cluster.sh has no %s", name)
		}
	}
}

func TestScriptsRefuseWrongUse(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dead := p.run(t, "", "./pump.sh", "3", fmt.Sprint("http://127.0.0.1:", p.http))
	dead.WantExit(t, testkit.Bound, 1)
	wantLines(t, "pump.sh", dead.Stdout.String(), 1, `0 set, 3 failed in \d+\.\d s`)
	for _, command := range [][]string{
		{"./pump.sh", "0"}, {"./pump.sh", "-1"}, {"./pump.sh", "many"}, {"./pump.sh", "1000001"}, {"./pump.sh", "1.5"},
		{"./pump.sh", "1", "localhost:8000"}, {"./pump.sh", "1", "ftp://localhost"},
		{"./pump.sh", "1", "http://localhost:8000", "x"},
		{"./startn1.sh", "--kep"}, {"./startn1.sh", "--keep", "x"},
		{"./cluster.sh", "--kep"}, {"./cluster.sh", "--keep", "x"},
		{"./lesson.sh"}, {"./lesson.sh", "0"}, {"./lesson.sh", "10"}, {"./lesson.sh", "1", "--g"},
		{"./lesson.sh", "1", "--go", "x"},
		{"./token.sh"}, {"./token.sh", "alice"}, {"./token.sh", "anonymous", "read:"}, {"./token.sh", "a b", "admin"},
		{"./token.sh", "-a", "admin"}, {"./token.sh", strings.Repeat("a", 65), "admin"}, {"./token.sh", "a", "root"},
		{"./token.sh", "a", "read"}, {"./token.sh", "a", "read:a b"}, {"./token.sh", "a", "admin", "write"},
	} {
		wrong := p.run(t, "", command[0], command[1:]...)
		wrong.WantExit(t, testkit.Bound, 2)
		if got := wrong.Stdout.String(); got != "" {
			t.Errorf("%q: got %q on stdout, want nothing", command, got)
		}
		wantLines(t, fmt.Sprint(command), wrong.Stderr.String(), 1, ".*")
	}

	taken, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", p.raft+2))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	third := p.run(t, "node", "./cluster.sh")
	third.WantExit(t, testkit.Bound, 1)
	wantLines(t, "cluster.sh with a port that is taken", third.Stderr.String(), 1,
		fmt.Sprintf("== port %d is taken: .*", p.raft+2))
}

// interrupt is Ctrl-C in the terminal of cluster.sh.
func (p place) interrupt(t *testing.T, script *testkit.Process, code int) {
	t.Helper()
	if err := syscall.Kill(-script.Cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	script.WantExit(t, testkit.Bound, code)
	for port := p.http; port < p.http+6; port++ {
		if err := testkit.PortFree(strconv.Itoa(port)); err != nil {
			t.Errorf("port %d after cluster.sh has ended: got %v, want it free", port, err)
		}
	}
}

// TestLessonScript: a reader who presses Enter before each command sees the whole lesson, and one who ends it early
// sees no verdict.
func TestLessonScript(t *testing.T) {
	slow(t)
	t.Parallel()
	for _, tt := range []struct{ input, want, not string }{
		{strings.Repeat("\n", 100), "\nPASS\n", "\u2717"},
		{"\n", "\u2713 as the page has it", "\nPASS\n"},
	} {
		cmd := exec.Command("./lesson.sh", "2")
		cmd.Dir, cmd.Env, cmd.Stdin = "../..", testkit.Environ(), strings.NewReader(tt.input)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		script := testkit.Start(t, cmd)
		script.WaitEnd(t, 2*testkit.Bound)
		out := script.Stdout.String()
		succeeds := script.Cmd.ProcessState.Success()
		if !strings.Contains(out, tt.want) || strings.Contains(out, tt.not) || succeeds == (tt.input == "\n") {
			t.Errorf("lesson.sh 2: got %v and\n%s\nwant %q and no %q", script.Cmd.ProcessState, out, tt.want, tt.not)
		}
	}
}

func TestClusterScriptStoppedEarly(t *testing.T) {
	slow(t)
	t.Parallel()
	p := newPlace(t)
	script := p.run(t, "node", "./cluster.sh")
	script.WaitOutput(t, "Bootstrapping n1")
	p.interrupt(t, script, 130)
}

func TestClusterScript(t *testing.T) {
	slow(t)
	t.Parallel()
	p := newPlace(t)
	script := p.run(t, "node", "./cluster.sh")
	script.WaitOutput(t, "Ctrl-C stops all three")
	want := make(map[string]string)
	for i := 1; i <= 1000; i++ {
		want[strconv.Itoa(i)] = strconv.Itoa(i)
	}
	for i := range 3 {
		n := p.node(i+1, script)
		n.WantValues(t, want)
		row := regexp.MustCompile(`(?m)^` + n.ID + ` +` + n.HTTPPort + ` +1000 +\d+ +(Leader|Follower)$`)
		if !row.MatchString(script.Stdout.String()) {
			t.Errorf("cluster.sh: its stdout has no line that matches %s", row)
		}
	}
	// A thousand sets do not push the joins and elections off the screen.
	script.WaitOutput(t, ` set key="1000" value="1000"`)
	output := script.Stdout.String()
	got := strings.Count(output, "set key=")
	if got > 30 || !strings.Contains(output, " more lines like these, the last:") {
		t.Errorf("cluster.sh: got %d lines about sets, want the first and the last of each node", got)
	}
	p.interrupt(t, script, 0)
}
