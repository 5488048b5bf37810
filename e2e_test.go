//go:build unix

package main

// The built binary and the scripts, each as a process of its own, as their users run them.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// e2eBound is for what must happen at some time: it is reached only when
	// something is broken.
	e2eBound = 60 * time.Second
	// e2eStopBound is for a stop by one signal. Promised are 5 s; the rest is for
	// a busy machine.
	e2eStopBound = 10 * time.Second
)

func TestE2E(t *testing.T) {
	binary := e2eBuild(t)
	for _, test := range []struct {
		name string
		slow bool
		run  func(t *testing.T, binary string)
	}{
		{"scripts", true, e2eScripts}, // one test: their ports are fixed
		{"snapshots and damage", true, e2eSnapshotsAndDamage},
		{"bad start", false, e2eBadStart},
		{"volume in use", false, e2eVolumeInUse},
		{"two starts at once", false, e2eTwoStarts},
		{"kill the leader", true, e2eKillLeader},
		{"restart of all", true, e2eRestartAll},
		{"stop the leader", true, e2eStopLeader},
		{"stop beside a frozen node", true, e2eStopBesideFrozen},
		{"stop a cluster of one", false, e2eStopOne},
		{"second signal", false, e2eSecondSignal},
		{"console gone", false, e2eConsoleGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.slow && testing.Short() {
				t.Skip("takes several seconds: not with -short")
			}
			t.Parallel()
			test.run(t, binary)
		})
	}
}

// e2eBuild builds the binary, with the race detector if this test has it.
func e2eBuild(t testing.TB) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "raftkv")
	args := []string{"build", "-o", binary}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

func e2eBadStart(t *testing.T, binary string) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	takenPort := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	other := e2eNewNode(t, "n2")
	other.start(t, binary)
	other.awaitReady(t)
	other.stop(t, syscall.SIGTERM)

	for _, test := range []struct {
		name    string
		args    []string
		env     []string
		code    int
		inError []string
	}{
		{"HTTP port no number", nil, []string{"HTTP_SERVER_PORT=http"}, 2, []string{"HTTP_SERVER_PORT", `"http"`}},
		{"HTTP port too high", nil, []string{"HTTP_SERVER_PORT=99999"}, 2, []string{"HTTP_SERVER_PORT", "99999"}},
		{"HTTP port negative", nil, []string{"HTTP_SERVER_PORT=-1"}, 2, []string{"HTTP_SERVER_PORT", "-1"}},
		{"raft port no number", nil, []string{"RAFT_SERVER_PORT=90x"}, 2, []string{"RAFT_SERVER_PORT", "90x"}},
		{"node ID", nil, []string{"RAFT_NODE_ID=a b"}, 2, []string{"RAFT_NODE_ID", `"a b"`}},
		{"raft host unspecified", nil, []string{"RAFT_SERVER_HOST=0.0.0.0"}, 2, []string{"RAFT_SERVER_HOST"}},
		{"snapshot threshold", nil, []string{"RAFT_SNAPSHOT_THRESHOLD=0"}, 2, []string{"RAFT_SNAPSHOT_THRESHOLD"}},
		{"election timeout", nil, []string{"RAFT_ELECTION_TIMEOUT=1"}, 2, []string{"RAFT_ELECTION_TIMEOUT"}},
		{"log level", nil, []string{"LOG_LEVEL=loud"}, 2, []string{"LOG_LEVEL", "loud"}},
		{"same port twice", nil, []string{"HTTP_SERVER_PORT=" + takenPort, "RAFT_SERVER_PORT=" + takenPort}, 2, []string{"HTTP_SERVER_PORT", "RAFT_SERVER_PORT"}},
		{"argument", []string{"--keep"}, nil, 2, []string{"--keep"}},
		{"HTTP port in use", nil, []string{"HTTP_SERVER_PORT=" + takenPort}, 1, []string{":" + takenPort}},
		{"raft port in use", nil, []string{"RAFT_SERVER_PORT=" + takenPort}, 1, []string{":" + takenPort}},
		{"volume below a file", nil, []string{"RAFT_VOLUME_DIR=" + file + "/volume"}, 1, []string{file}},
		{"volume of another node", nil, []string{"RAFT_VOLUME_DIR=" + other.volume}, 1, []string{other.volume, "n1", "n2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := e2eNewNode(t, "n1")
			n.env = test.env
			n.start(t, binary, test.args...)
			e2eWantRefused(t, n.process, test.code, test.inError...)
			if got := n.stderr.String(); strings.Count(got, "\n") != 1 {
				t.Errorf("stderr: got %q, want one line", got)
			}
			if _, err := os.Stat(n.volume); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the volume of a node that did not start: got %v, want none", err)
			}
		})
	}

	for _, arg := range []string{"-h", "--help"} {
		t.Run(arg, func(t *testing.T) {
			n := e2eNewNode(t, "n1")
			n.start(t, binary, arg)
			n.wantExit(t, e2eBound, 0)
			for _, v := range variables {
				if !strings.Contains(n.stdout.String(), v.name) {
					t.Errorf("stdout: got %q, want it to name %s", n.stdout.String(), v.name)
				}
			}
			if got := n.stderr.String(); got != "" {
				t.Errorf("stderr: got %q, want nothing", got)
			}
		})
	}
}

// e2eVolumeInUse starts a second process on the volume of a node that takes
// writes: it must say that the volume is in use, not that it is damaged (it is
// written to while it is read), and must leave it alone.
func e2eVolumeInUse(t *testing.T, binary string) {
	first := e2eNewNode(t, "n1")
	first.start(t, binary)
	first.awaitReady(t)
	unfinished := filepath.Join(first.volume, "snapshots", "2-3-4.tmp") // as the node has it while it takes a snapshot
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		t.Fatal(err)
	}
	h := newE2EHistory()
	h.padding = strings.Repeat("x", 4000) // a file that grows fast
	stop := h.write(t, []*e2eNode{first})
	for range 4 {
		second := e2eNewNode(t, "n1")
		second.volume = first.volume
		second.start(t, binary)
		e2eWantRefused(t, second.process, 1, first.volume, "open in another process")
	}
	if _, err := os.Stat(unfinished); err != nil {
		t.Errorf("unfinished snapshot of the node that has the volume: got %v, want it untouched", err)
	}
	before := h.acknowledged()
	h.awaitAcknowledged(t, before+20)
	stop()
	e2eCheckReplicas(t, []*e2eNode{first}, h)
}

// e2eTwoStarts starts two processes on one new volume: one becomes the node, the
// other must say why it does not.
func e2eTwoStarts(t *testing.T, binary string) {
	for range 3 {
		one, two := e2eNewNode(t, "n1"), e2eNewNode(t, "n1")
		two.volume = one.volume
		one.start(t, binary)
		two.start(t, binary)
		e2eAwait(t, "one of two to end", func() error {
			select {
			case <-one.ended:
				one, two = two, one
			case <-two.ended:
			default:
				return errors.New("both run")
			}
			return nil
		})
		e2eWantRefused(t, two.process, 1, one.volume, "open in another process")
		one.awaitReady(t)
		h := newE2EHistory()
		e2eCheckReplicas(t, []*e2eNode{one}, h)
		one.stop(t, syscall.SIGTERM)
		one.start(t, binary)
		one.awaitReady(t)
		e2eCheckReplicas(t, []*e2eNode{one}, h)
	}
}

func e2eKillLeader(t *testing.T, binary string) {
	nodes := e2eCluster(t, binary)
	h := newE2EHistory()
	for i := range 300 {
		key := fmt.Sprint("first-", i)
		query := url.Values{"key": {key}, "value": {h.value(key)}}
		e2eAwait(t, key+" set", func() error { // on a busy machine, leadership may be lost
			status, body, err := e2eGet(nodes[i%3].url("/set?" + query.Encode()))
			if err != nil || status != http.StatusOK || !strings.HasPrefix(body, "OK index=") {
				return fmt.Errorf("got %d %q, %v, want 200 OK index=", status, body, err)
			}
			return nil
		})
		h.note(key, e2eAcknowledged)
	}
	e2eCheckReplicas(t, nodes, h)

	stop := h.write(t, nodes)
	h.awaitAcknowledged(t, h.acknowledged()+100)
	leader := e2eLeader(t, nodes)
	leader.signal(t, syscall.SIGKILL)
	<-leader.ended
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *e2eNode) bool { return n == leader })
	t.Logf("killed %s; now %s leads", leader.id, e2eLeader(t, rest).id)
	h.awaitAcknowledged(t, h.acknowledged()+100)
	leader.start(t, binary)
	leader.awaitReady(t)
	h.awaitAcknowledged(t, h.acknowledged()+100)
	stop()
	e2eCheckReplicas(t, nodes, h)
}

func e2eRestartAll(t *testing.T, binary string) {
	nodes := e2eCluster(t, binary)
	h := newE2EHistory()
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		stop := h.write(t, nodes)
		h.awaitAcknowledged(t, h.acknowledged()+200)
		for _, n := range nodes {
			n.signal(t, how)
		}
		for _, n := range nodes {
			if how == syscall.SIGTERM {
				n.wantExit(t, e2eStopBound, 0)
			}
			<-n.ended
		}
		stop()
		for _, n := range nodes {
			n.start(t, binary)
		}
		for _, n := range nodes {
			n.awaitReady(t)
		}
		e2eCheckReplicas(t, nodes, h)
	}
}

func e2eStopLeader(t *testing.T, binary string) {
	nodes := e2eCluster(t, binary)
	h := newE2EHistory()
	stop := h.write(t, nodes)
	h.awaitAcknowledged(t, 100)
	leader := e2eLeader(t, nodes)
	leader.stop(t, syscall.SIGTERM)
	h.awaitAcknowledged(t, h.acknowledged()+100)
	leader.start(t, binary)
	leader.awaitReady(t)
	stop()
	e2eCheckReplicas(t, nodes, h)
}

// e2eStopBesideFrozen stops the leader and then the last node that runs while a
// third takes connections but does not answer: neither may wait for that.
func e2eStopBesideFrozen(t *testing.T, binary string) {
	nodes := e2eCluster(t, binary)
	h := newE2EHistory()
	leader := e2eLeader(t, nodes)
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *e2eNode) bool { return n == leader })
	frozen, last := rest[0], rest[1]
	frozen.signal(t, syscall.SIGSTOP)
	stop := h.write(t, []*e2eNode{leader, last})
	h.awaitAcknowledged(t, 100)
	leader.stop(t, syscall.SIGTERM)
	last.stop(t, syscall.SIGTERM)
	frozen.signal(t, syscall.SIGCONT)
	stop()
	for _, n := range []*e2eNode{leader, last} {
		n.start(t, binary)
	}
	for _, n := range nodes {
		n.awaitReady(t)
	}
	e2eCheckReplicas(t, nodes, h)
}

func e2eStopOne(t *testing.T, binary string) {
	n := e2eNewNode(t, "n1")
	h := newE2EHistory()
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		n.start(t, binary)
		n.awaitReady(t)
		stop := h.write(t, []*e2eNode{n})
		h.awaitAcknowledged(t, h.acknowledged()+20)
		n.stop(t, how)
		stop()
	}
	n.start(t, binary)
	n.awaitReady(t)
	e2eCheckReplicas(t, []*e2eNode{n}, h)
}

// e2eSecondSignal holds a stop up by a request whose body does not come, and sends
// a second signal as soon as the node says what that does: end the process at once.
func e2eSecondSignal(t *testing.T, binary string) {
	const rounds, tries = 8, 30
	done := 0
	for range tries {
		n := e2eNewNode(t, "n1")
		n.env = []string{"RAFT_ELECTION_TIMEOUT=100ms"}
		lines := n.startPiped(t, binary)
		n.awaitReady(t)
		c, err := net.Dial("tcp", "127.0.0.1:"+n.httpPort)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		// The node asks for the body when its handler reads it: then the request is under way.
		if _, err := io.WriteString(c, "PUT /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("HTTP/1.1 100"))
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "HTTP/1.1 100" {
			t.Fatalf("PUT that expects: got %q, %v, want 100 Continue", answer, err)
		}
		n.signal(t, syscall.SIGTERM)
		first := time.Now()
		for line := range lines {
			if strings.Contains(line, "Shutting down") {
				n.signal(t, syscall.SIGTERM)
				break
			}
		}
		held := time.Since(first)
		for range lines { // until the node has ended
		}
		n.awaitEnd(t, e2eStopBound)
		if held > time.Second {
			continue // on a machine this busy, the stop may have been over
		}
		status := n.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != syscall.SIGTERM {
			t.Fatalf("second SIGTERM %v after the first: got %v, want an end by that signal", held, n.cmd.ProcessState)
		}
		if done++; done == rounds {
			return
		}
	}
	t.Fatalf("in %d tries, the second signal was on time in %d, want %d: this machine is too busy", tries, done, rounds)
}

// e2eConsoleGone closes the reading end of a node's stderr, as head(1) does, or a
// terminal that goes away: the node goes on.
func e2eConsoleGone(t *testing.T, binary string) {
	n := e2eNewNode(t, "n1")
	lines := n.startPiped(t, binary)
	for line := range lines {
		if strings.Contains(line, ": HTTP on") {
			break
		}
	}
	if err := n.console.Close(); err != nil {
		t.Fatal(err)
	}
	for range lines { // until it is closed
	}
	n.awaitReady(t)
	h := newE2EHistory()
	for i := range 10 {
		h.set(n, fmt.Sprint("k", i))
	}
	if got := h.acknowledged(); got != 10 {
		t.Fatalf("sets after the console has gone: got %d acknowledged, want 10", got)
	}
	e2eCheckReplicas(t, []*e2eNode{n}, h)
	n.stop(t, syscall.SIGTERM)
}

// e2eSnapshotsAndDamage kills a node that has snapshots and restarts it, then
// damages copies of its volume: a node on one refuses to start, or has everything.
func e2eSnapshotsAndDamage(t *testing.T, binary string) {
	n := e2eNewNode(t, "n1")
	n.env = []string{"RAFT_SNAPSHOT_THRESHOLD=50", "RAFT_ELECTION_TIMEOUT=50ms"}
	n.start(t, binary)
	n.awaitReady(t)
	want := make(map[string]string)
	round := 0
	write := func(count int) {
		for i := range count {
			key, value := fmt.Sprintf("key-%03d", i*7%150), fmt.Sprintf("round-%d-%d", round, i)
			query := url.Values{"key": {key}, "value": {value}}
			if status, body, err := e2eGet(n.url("/set?" + query.Encode())); err != nil || status != http.StatusOK {
				t.Fatalf("set %s: got %d %q, %v, want 200", key, status, body, err)
			}
			want[key] = value
		}
		round++
	}
	snapshots := func(n *e2eNode) []string {
		found, err := filepath.Glob(filepath.Join(n.volume, "snapshots", "*-*-*[0-9]")) // not .tmp
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(found, func(a, b string) int { return e2eSnapshotIndex(t, a) - e2eSnapshotIndex(t, b) })
		return found
	}
	copyOf := func(t testing.TB, volume string) *e2eNode {
		c := e2eNewNode(t, "n1")
		c.env = n.env
		if err := os.CopyFS(c.volume, os.DirFS(volume)); err != nil {
			t.Fatal(err)
		}
		return c
	}

	write(400)
	var bases []*e2eNode // copies of the volume with one snapshot, and with two
	var wants []map[string]string
	for count := 1; count <= 2; count++ {
		e2eAwait(t, fmt.Sprintf("%d snapshots", count), func() error {
			if got := len(snapshots(n)); got != count {
				return fmt.Errorf("got %d", got)
			}
			return nil
		})
		write(20) // fewer than make a snapshot
		n.signal(t, syscall.SIGKILL)
		<-n.ended
		bases, wants = append(bases, copyOf(t, n.volume)), append(wants, maps.Clone(want))
		unfinished := filepath.Join(n.volume, "snapshots", "xyz.tmp")
		if err := errors.Join(os.Mkdir(unfinished, 0o755), os.WriteFile(filepath.Join(unfinished, "state.bin"), []byte("half"), 0o644)); err != nil {
			t.Fatal(err)
		}
		n.start(t, binary)
		n.awaitReady(t)
		e2eWantContents(t, n, want)
		if _, err := os.Stat(unfinished); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("unfinished snapshot after the restart: got %v, want it removed", err)
		}
		write(100)
	}
	n.stop(t, syscall.SIGTERM)

	random := rand.New(rand.NewPCG(1, 2)) // always the same places
	type damage struct {
		name string
		do   func(t testing.TB, n *e2eNode)
	}
	raftDB := func(n *e2eNode) string { return filepath.Join(n.volume, "raft.db") }
	inNewest := func(file string) func(*e2eNode) string {
		return func(n *e2eNode) string { all := snapshots(n); return filepath.Join(all[len(all)-1], file) }
	}
	edit := func(path func(*e2eNode) string, change func(b []byte) []byte) func(testing.TB, *e2eNode) {
		return func(t testing.TB, n *e2eNode) {
			b, err := os.ReadFile(path(n))
			if err == nil {
				err = os.WriteFile(path(n), change(b), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(part float64) func(b []byte) []byte {
		return func(b []byte) []byte { return b[:int(part*float64(len(b)))] }
	}
	flip := func(part float64, mask byte) func(b []byte) []byte {
		return func(b []byte) []byte { b[int(part*float64(len(b)))] ^= mask; return b }
	}
	zeroSector := func(part float64) func(b []byte) []byte {
		return func(b []byte) []byte {
			at := int(part*float64(len(b))) / 512 * 512
			clear(b[at:min(at+512, len(b))])
			return b
		}
	}
	remove := func(path func(*e2eNode) string) func(testing.TB, *e2eNode) {
		return func(t testing.TB, n *e2eNode) {
			if err := os.RemoveAll(path(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	damages := []damage{
		{"raft.db emptied", edit(raftDB, truncate(0))},
		{"raft.db cut to a tenth", edit(raftDB, truncate(0.1))},
		{"raft.db cut to a half", edit(raftDB, truncate(0.5))},
		{"raft.db without its last page", edit(raftDB, func(b []byte) []byte { return b[:len(b)-os.Getpagesize()] })},
		{"raft.db deleted", remove(raftDB)},
		{"first meta page", edit(raftDB, func(b []byte) []byte { b[40] ^= 1; return b })},
		{"second meta page", edit(raftDB, func(b []byte) []byte { b[os.Getpagesize()+40] ^= 1; return b })},
		{"state.bin cut to a half", edit(inNewest("state.bin"), truncate(0.5))},
		{"state.bin emptied", edit(inNewest("state.bin"), truncate(0))},
		{"state.bin deleted", remove(inNewest("state.bin"))},
		{"meta.json cut to a half", edit(inNewest("meta.json"), truncate(0.5))},
		{"meta.json emptied", edit(inNewest("meta.json"), truncate(0))},
		{"meta.json deleted", remove(inNewest("meta.json"))},
		{"newest snapshot deleted", remove(inNewest(""))},
		{"all snapshots deleted", remove(func(n *e2eNode) string { return filepath.Join(n.volume, "snapshots") })},
		{"state.bin of all snapshots", func(t testing.TB, n *e2eNode) {
			for _, dir := range snapshots(n) {
				edit(func(*e2eNode) string { return filepath.Join(dir, "state.bin") }, flip(0.7, 0x10))(t, n)
			}
		}},
	}
	for range 6 {
		part, mask := random.Float64(), byte(1<<random.IntN(8))
		damages = append(damages,
			damage{fmt.Sprintf("raft.db byte at %.4f xor %#x", part, mask), edit(raftDB, flip(part, mask))},
			damage{fmt.Sprintf("raft.db sector at %.4f zeroed", part), edit(raftDB, zeroSector(part))})
	}
	for range 3 {
		part, mask := random.Float64(), byte(1<<random.IntN(8))
		damages = append(damages,
			damage{fmt.Sprintf("state.bin byte at %.4f xor %#x", part, mask), edit(inNewest("state.bin"), flip(part, mask))},
			damage{fmt.Sprintf("meta.json byte at %.4f xor %#x", part, mask), edit(inNewest("meta.json"), flip(part, mask))})
	}
	var refused, started int
	for i, base := range bases {
		for _, damage := range damages {
			t.Run(fmt.Sprintf("%d snapshots/%s", i+1, damage.name), func(t *testing.T) {
				n := copyOf(t, base.volume)
				damage.do(t, n)
				before := e2eRead(t, raftDB(n))
				n.start(t, binary)
				if !n.becomesReady(t) {
					refused++
					e2eWantRefused(t, n.process, 1, n.volume)
					if after := e2eRead(t, raftDB(n)); !bytes.Equal(before, after) {
						t.Error("raft.db was changed by a node that refused it")
					}
					return
				}
				started++
				e2eWantContents(t, n, wants[i])
				n.stop(t, syscall.SIGTERM)
			})
		}
	}
	t.Logf("damaged volumes: %d refused, %d started with everything", refused, started)
	if refused == 0 || started == 0 {
		t.Errorf("damaged volumes: got %d refused and %d started, want some of each", refused, started)
	}
}

// e2eRead returns the content of a file; nil when it does not exist.
func e2eRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

func e2eSnapshotIndex(t testing.TB, path string) int {
	t.Helper()
	index, err := strconv.Atoi(strings.Split(filepath.Base(path), "-")[1])
	if err != nil {
		t.Fatal(err)
	}
	return index
}

var e2eScriptPorts = []string{"8000", "8001", "8002", "9000", "9001", "9002"}

// e2eScripts runs the scripts where they lie, as a newcomer does: on their fixed
// ports and volumes, with the binary that they build there.
func e2eScripts(t *testing.T, _ string) {
	for _, port := range e2eScriptPorts {
		if err := e2ePortFree(port); err != nil {
			t.Fatalf("port %s: %v: the scripts need it; stop what listens there (startn1.sh or cluster.sh in a terminal?) and run this test again", port, err)
		}
	}
	for i := 1; i <= 3; i++ {
		e2eSetAside(t, fmt.Sprintf("/tmp/node%d", i))
	}
	n1 := &e2eNode{id: "n1", httpPort: "8000"}

	t.Run("startn1.sh and pump.sh", func(t *testing.T) {
		// startn1 returns n1 when it is ready.
		startn1 := func(cleans bool, args ...string) {
			t.Helper()
			n1.process = e2eScript(t, "./startn1.sh", args...)
			n1.awaitReady(t)
			want := "Starting node1\n"
			if cleans {
				want += "Cleaning the raft volumes.\n"
			}
			if got := n1.stdout.String(); got != want {
				t.Errorf("startn1.sh %v: got %q on stdout, want %q", args, got, want)
			}
		}
		startn1(true)
		if status, body, err := e2eGet(n1.url("/set?key=lesson&value=one")); status != http.StatusOK {
			t.Fatalf("set: got %d %q, %v, want 200", status, body, err)
		}
		n1.stop(t, syscall.SIGTERM)

		startn1(false, "--keep")
		want := map[string]string{"lesson": "one"}
		e2eWantContents(t, n1, want)
		for _, args := range [][]string{nil, {"--keep"}} {
			second := e2eScript(t, "./startn1.sh", args...)
			second.wantExit(t, e2eBound, 1)
			if got, want := second.stdout.String(), "Starting node1\n"; got != want {
				t.Errorf("second startn1.sh %v: got %q on stdout, want %q", args, got, want)
			}
			if got := second.stderr.String(); !strings.Contains(got, "port 8000 is taken") || strings.Count(got, "\n") != 1 {
				t.Errorf("second startn1.sh %v: got %q on stderr, want one line: port 8000 is taken", args, got)
			}
		}
		pump := e2eScript(t, "./pump.sh", "200")
		pump.wantExit(t, e2eBound, 0)
		e2eWantLastLine(t, pump, `200 set, 0 failed in \d+\.\d s`)
		for i := 1; i <= 200; i++ {
			want[strconv.Itoa(i)] = strconv.Itoa(i)
		}
		e2eWantContents(t, n1, want)
		n1.stop(t, syscall.SIGINT)

		startn1(false, "--keep") // what the second start left alone
		e2eWantContents(t, n1, want)
		n1.stop(t, syscall.SIGTERM)
		startn1(true)
		e2eWantContents(t, n1, nil)
		n1.stop(t, syscall.SIGTERM)
	})

	t.Run("wrong use", func(t *testing.T) {
		dead := e2eScript(t, "./pump.sh", "3", "http://127.0.0.1:"+processPort(t))
		dead.wantExit(t, e2eBound, 1)
		e2eWantLastLine(t, dead, `0 set, 3 failed in \d+\.\d s`)
		for _, command := range [][]string{
			{"./pump.sh", "0"}, {"./pump.sh", "-1"}, {"./pump.sh", "many"}, {"./pump.sh", "1000001"}, {"./pump.sh", "1.5"},
			{"./pump.sh", "1", "localhost:8000"}, {"./pump.sh", "1", "ftp://localhost"}, {"./pump.sh", "1", "http://localhost:8000", "x"},
			{"./startn1.sh", "--kep"}, {"./startn1.sh", "--keep", "x"}, {"./cluster.sh", "--kep"}, {"./cluster.sh", "--keep", "x"},
		} {
			p := e2eScript(t, command[0], command[1:]...)
			p.wantExit(t, e2eBound, 2)
			if got := p.stdout.String(); got != "" {
				t.Errorf("%q: got %q on stdout, want nothing", command, got)
			}
			if got := p.stderr.String(); strings.Count(got, "\n") != 1 {
				t.Errorf("%q: got %q on stderr, want one line", command, got)
			}
		}
	})

	// interrupt is Ctrl-C in the terminal of cluster.sh.
	interrupt := func(t *testing.T, p *process, code int) {
		t.Helper()
		if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		p.wantExit(t, e2eBound, code)
		for _, port := range e2eScriptPorts {
			if err := e2ePortFree(port); err != nil {
				t.Errorf("port %s after cluster.sh has ended: got %v, want it free", port, err)
			}
		}
	}

	t.Run("cluster.sh stopped early", func(t *testing.T) {
		p := e2eScript(t, "./cluster.sh")
		p.awaitLine(t, "Bootstrapping n1")
		interrupt(t, p, 130)
	})

	t.Run("cluster.sh", func(t *testing.T) {
		p := e2eScript(t, "./cluster.sh")
		p.awaitLine(t, "Ctrl-C stops all three")
		nodes := []*e2eNode{n1, {id: "n2", httpPort: "8001"}, {id: "n3", httpPort: "8002"}}
		want := make(map[string]string)
		for i := 1; i <= 1000; i++ {
			want[strconv.Itoa(i)] = strconv.Itoa(i)
		}
		for _, n := range nodes {
			n.process = p
			e2eWantContents(t, n, want)
			row := regexp.MustCompile(`(?m)^` + n.id + ` +` + n.httpPort + ` +1000 +\d+ +(Leader|Follower)$`)
			if !row.MatchString(p.stdout.String()) {
				t.Errorf("cluster.sh: its stdout has no line that matches %s", row)
			}
		}
		interrupt(t, p, 0)
	})
}

// e2eScript starts a script of this repository in a process group of its own.
func e2eScript(t testing.TB, name string, args ...string) *process {
	t.Helper()
	if signal.Ignored(os.Interrupt) {
		// A script can't trap a signal that was ignored when it was started;
		// one that is handled here has its default there.
		c := make(chan os.Signal, 1)
		signal.Notify(c, os.Interrupt)
		t.Cleanup(func() { signal.Ignore(os.Interrupt) })
	}
	cmd := exec.Command(name, args...)
	// pump.sh does not try again what a change of leaders on a busy machine refuses.
	cmd.Env = append(e2eEnviron(), "RAFT_ELECTION_TIMEOUT=1s")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return processStart(t, cmd)
}

// e2eSetAside moves dir, the volume of a script, away until the test ends: it may
// be of use to somebody.
func e2eSetAside(t testing.TB, dir string) {
	t.Helper()
	aside, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+"-set-aside-")
	if err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(aside, "volume")
	if err := os.Rename(dir, moved); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if err := os.Rename(moved, dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if err := os.Remove(aside); err != nil {
			t.Error(err)
		}
	})
}

// e2eWantRefused waits for the end of a node that can't start. Its last line
// alone is its own error, has all of inError, and nothing looks like a crash.
func e2eWantRefused(t testing.TB, p *process, code int, inError ...string) {
	t.Helper()
	p.wantExit(t, e2eBound, code)
	if got := p.stdout.String(); got != "" {
		t.Errorf("stdout: got %q, want nothing", got)
	}
	text := p.stderr.String()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "raftkv: ") {
		t.Errorf("last line on stderr: got %q, want raftkv: …", last)
	}
	for _, s := range inError {
		if !strings.Contains(last, s) {
			t.Errorf("last line on stderr: got %q, want %q in it", last, s)
		}
	}
	for _, line := range lines[:len(lines)-1] {
		if strings.HasPrefix(line, "raftkv: ") {
			t.Errorf("stderr: got a second error, %q, want one", line)
		}
	}
	for _, s := range []string{"panic", "goroutine ", "unexpected fault"} {
		if strings.Contains(text, s) {
			t.Errorf("stderr: got %q in it, want no crash", s)
		}
	}
}

func e2eWantLastLine(t testing.TB, p *process, pattern string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(p.stdout.String(), "\n"), "\n")
	if got := lines[len(lines)-1]; !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
		t.Errorf("%v: got %q as the last line of stdout, want %s", p.cmd.Args, got, pattern)
	}
}

// e2eNode is a node with its ports and volume; process is its last run.
type e2eNode struct {
	id, volume         string
	httpPort, raftPort string
	env                []string // beyond the four variables, or instead of them
	console            *os.File // of startPiped: the reading end
	*process
}

// e2eNewNode returns a node that was never started. Its volume does not exist.
func e2eNewNode(t testing.TB, id string) *e2eNode {
	t.Helper()
	return &e2eNode{id: id, volume: filepath.Join(t.TempDir(), "volume"), httpPort: processPort(t), raftPort: processPort(t)}
}

func (n *e2eNode) start(t testing.TB, binary string, args ...string) {
	t.Helper()
	n.process = processStart(t, n.command(binary, args...))
}

// startPiped starts the node and returns its console line by line, each as soon as
// it is there, until the node or its console ends. It must be read, or the node
// will wait.
func (n *e2eNode) startPiped(t testing.TB, binary string) <-chan string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.command(binary)
	cmd.Stderr = w
	p := processStart(t, cmd)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n.process, n.console = p, r
	t.Cleanup(func() { _ = r.Close() })
	lines := make(chan string, 1000)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(r); in.Scan(); {
			fmt.Fprintln(&p.stderr, in.Text())
			select {
			case lines <- in.Text():
			case <-done:
				return
			}
		}
	}()
	return lines
}

func (n *e2eNode) command(binary string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(e2eEnviron(), "RAFT_NODE_ID="+n.id, "RAFT_VOLUME_DIR="+n.volume,
		"HTTP_SERVER_PORT="+n.httpPort, "RAFT_SERVER_PORT="+n.raftPort,
		"GORACE=atexit_sleep_ms=0") // else an end takes 1 s longer with the race detector
	cmd.Env = append(cmd.Env, n.env...) // the last of a name counts
	return cmd
}

// e2eEnviron is the environment without what configures a node.
func e2eEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.ContainsFunc(variables, func(v variable) bool { return v.name == name })
	})
}

func (n *e2eNode) url(path string) string { return "http://127.0.0.1:" + n.httpPort + path }

// becomesReady returns true once the node knows a leader, and false once it has
// ended.
func (n *e2eNode) becomesReady(t testing.TB) (ready bool) {
	t.Helper()
	e2eAwait(t, n.id+" ready", func() error {
		select {
		case <-n.ended:
			return nil
		default:
		}
		status, body, err := e2eGet(n.url("/readyz"))
		if ready = err == nil && status == http.StatusOK; ready {
			return nil
		}
		return fmt.Errorf("got %d %q, %v", status, body, err)
	})
	return ready
}

func (n *e2eNode) awaitReady(t testing.TB) {
	t.Helper()
	if !n.becomesReady(t) {
		t.Fatalf("%s has ended before it was ready: %v", n.id, n.cmd.ProcessState)
	}
}

// stop sends one signal, which must lead to exit code 0.
func (n *e2eNode) stop(t testing.TB, how syscall.Signal) {
	t.Helper()
	start := time.Now()
	n.signal(t, how)
	n.wantExit(t, e2eStopBound, 0)
	t.Logf("%s ended %v after its %v", n.id, time.Since(start).Round(time.Millisecond), how)
}

// e2eStatus is of /status what these tests use.
type e2eStatus struct {
	State        string
	AppliedIndex uint64
	Keys         int
}

func (n *e2eNode) status() (s e2eStatus, err error) {
	status, body, err := e2eGet(n.url("/status"))
	if err != nil {
		return s, err
	}
	if status != http.StatusOK {
		return s, fmt.Errorf("%s: status %d: %s", n.id, status, body)
	}
	return s, json.Unmarshal([]byte(body), &s)
}

// contents asks the node for keys and returns those that it has.
func (n *e2eNode) contents(keys []string) (map[string]string, error) {
	has := make(map[string]string)
	for _, key := range keys {
		status, body, err := e2eGet(n.url("/get?key=" + url.QueryEscape(key)))
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusOK:
			has[key] = body
		case status != http.StatusNotFound:
			return nil, fmt.Errorf("%s: get %s: status %d: %s", n.id, key, status, body)
		}
	}
	return has, nil
}

// e2eWantContents waits until the node holds as many keys as want, and then
// compares each of them.
func e2eWantContents(t testing.TB, n *e2eNode, want map[string]string) {
	t.Helper()
	e2eAwait(t, fmt.Sprintf("%s with %d keys", n.id, len(want)), func() error {
		s, err := n.status()
		if err == nil && s.Keys != len(want) {
			err = fmt.Errorf("got %d", s.Keys)
		}
		return err
	})
	keys := slices.Sorted(maps.Keys(want))
	e2eAwait(t, n.id+" with the values that were acknowledged", func() error {
		got, err := n.contents(keys)
		if err != nil {
			return err
		}
		for _, key := range keys {
			if value, ok := got[key]; !ok || value != want[key] {
				return fmt.Errorf("%s: got %q, %v, want %q", key, value, ok, want[key])
			}
		}
		return nil
	})
}

// e2eCluster starts three nodes and joins n2 and n3 through n1.
func e2eCluster(t testing.TB, binary string) []*e2eNode {
	t.Helper()
	nodes := []*e2eNode{e2eNewNode(t, "n1"), e2eNewNode(t, "n2"), e2eNewNode(t, "n3")}
	for _, n := range nodes {
		n.start(t, binary)
	}
	for _, n := range nodes {
		n.awaitReady(t)
	}
	for _, n := range nodes[1:] {
		e2eAwait(t, n.id+" joined", func() error {
			// To join again is safe, and does nothing if it has joined.
			status, body, err := e2eGet(nodes[0].url("/join?nodeId=" + n.id + "&raftPort=" + n.raftPort))
			if err != nil || status != http.StatusOK {
				t.Logf("join %s: got %d %q, %v, want 200: trying again", n.id, status, body, err)
				return fmt.Errorf("got %d %q, %v", status, body, err)
			}
			return nil
		})
	}
	return nodes
}

// e2eLeader waits for a leader among nodes.
func e2eLeader(t testing.TB, nodes []*e2eNode) (leader *e2eNode) {
	t.Helper()
	e2eAwait(t, "a leader", func() error {
		for _, n := range nodes {
			if s, err := n.status(); err == nil && s.State == "Leader" {
				leader = n
				return nil
			}
		}
		return errors.New("none leads")
	})
	return leader
}

// e2eFate is what became of a set.
type e2eFate int

const (
	e2eUnknown      e2eFate = iota // the key may be there, and then on all nodes
	e2eAcknowledged                // it must be there
	e2eRefused                     // definitely not applied: it must not be there
)

// e2eHistory is what was sent to a cluster. Every key is set once, to value(key).
// Its methods may be called concurrently.
type e2eHistory struct {
	padding string // of each value; not changed once in use

	mu         sync.Mutex // guards what follows
	fates      map[string]e2eFate
	count      [e2eRefused + 1]int
	unexpected []string // answers that are in no table
	writers    int      // so many were started
}

func newE2EHistory() *e2eHistory { return &e2eHistory{fates: make(map[string]e2eFate)} }

func (h *e2eHistory) value(key string) string { return "value of " + key + h.padding }

func (h *e2eHistory) note(key string, fate e2eFate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fates[key] = fate
	h.count[fate]++
}

func (h *e2eHistory) acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count[e2eAcknowledged]
}

func (h *e2eHistory) awaitAcknowledged(t testing.TB, want int) {
	t.Helper()
	e2eAwait(t, fmt.Sprintf("%d acknowledged sets", want), func() error {
		if got := h.acknowledged(); got < want {
			return fmt.Errorf("got %d", got)
		}
		return nil
	})
}

// set sets key at a node, following redirects to the leader. It sends POST: of a
// GET whose connection breaks, net/http would send a second one unasked.
func (h *e2eHistory) set(n *e2eNode, key string) (fate e2eFate) {
	defer func() { h.note(key, fate) }()
	response, err := e2eClient.PostForm(n.url("/set"), url.Values{"key": {key}, "value": {h.value(key)}})
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return e2eRefused
		}
		return e2eUnknown
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return e2eAcknowledged
	case http.StatusServiceUnavailable:
		return e2eRefused
	case http.StatusGatewayTimeout:
		return e2eUnknown
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unexpected = append(h.unexpected, fmt.Sprintf("set %s at %s: %s: %s", key, n.id, response.Status, body))
	return e2eUnknown
}

// write sets new keys at all nodes in turn, from several goroutines, until stop
// is called.
func (h *e2eHistory) write(t testing.TB, nodes []*e2eNode) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	for range 4 {
		h.mu.Lock()
		h.writers++
		writer := h.writers
		h.mu.Unlock()
		running.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond) // leaves some of the machine to the nodes
			defer pace.Stop()
			for i := 0; ; i++ {
				h.set(nodes[(writer+i)%len(nodes)], fmt.Sprintf("writer-%d-%d", writer, i))
				select {
				case <-pace.C:
				case <-done:
					return
				}
			}
		})
	}
	var once sync.Once
	stop = func() { once.Do(func() { close(done); running.Wait() }) }
	t.Cleanup(stop)
	return stop
}

// e2eCheckReplicas waits until all nodes have applied the same, and then wants of
// each the same data: all that was acknowledged and nothing that was refused.
// Nobody may write meanwhile.
func e2eCheckReplicas(t testing.TB, nodes []*e2eNode, h *e2eHistory) {
	t.Helper()
	last := ""
	e2eAwait(t, "a last set", func() error {
		last = fmt.Sprint("last-", len(h.fates))
		if fate := h.set(nodes[0], last); fate != e2eAcknowledged {
			return fmt.Errorf("got fate %d", fate)
		}
		return nil
	})
	var statuses []e2eStatus
	e2eAwait(t, "the same applied index and number of keys on all nodes", func() error {
		statuses = nil
		for _, n := range nodes {
			s, err := n.status()
			if err != nil {
				return err
			}
			has, err := n.contents([]string{last})
			if err != nil || len(has) == 0 {
				return fmt.Errorf("%s lacks the last set: %w", n.id, err)
			}
			s.State = ""
			statuses = append(statuses, s)
		}
		if len(slices.Compact(slices.Clone(statuses))) != 1 {
			return fmt.Errorf("got %+v", statuses)
		}
		return nil
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, answer := range h.unexpected {
		t.Error(answer)
	}
	keys := slices.Sorted(maps.Keys(h.fates))
	has, errs := make([]map[string]string, len(nodes)), make([]error, len(nodes))
	var asked sync.WaitGroup
	for i, n := range nodes {
		asked.Go(func() { has[i], errs[i] = n.contents(keys) })
	}
	asked.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		if got, want := len(has[i]), statuses[i].Keys; got != want {
			t.Errorf("%s: got %d of the keys that were sent, want %d as its status says", n.id, got, want)
		}
		for _, key := range keys {
			value, ok := has[i][key]
			if first, inFirst := has[0][key]; ok != inFirst || value != first {
				t.Errorf("replicas differ: %s: got %q, %v on %s, want %q, %v as on %s", key, value, ok, n.id, first, inFirst, nodes[0].id)
			}
			switch fate := h.fates[key]; {
			case fate == e2eAcknowledged && !ok:
				t.Errorf("%s on %s: got nothing, want what was acknowledged", key, n.id)
			case fate == e2eRefused && ok:
				t.Errorf("%s on %s: got a value, want none: it was answered as not applied", key, n.id)
			case ok && value != h.value(key):
				t.Errorf("%s on %s: got %q, want %q", key, n.id, value, h.value(key))
			}
		}
	}
	t.Logf("%d nodes hold the same %d keys: %d sets acknowledged, %d refused, %d unknown",
		len(nodes), len(has[0]), h.count[e2eAcknowledged], h.count[e2eRefused], h.count[e2eUnknown])
}

// e2eClient follows redirects; no proxy of the environment is between.
var e2eClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}, Timeout: 30 * time.Second}

func e2eGet(url string) (status int, body string, err error) {
	response, err := e2eClient.Get(url)
	if err != nil {
		return 0, "", err
	}
	b, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	return response.StatusCode, string(b), err
}

// e2eAwait polls until condition returns nil.
func e2eAwait(t testing.TB, what string, condition func() error) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for start := time.Now(); ; <-poll.C {
		err := condition()
		if err == nil {
			return
		}
		if time.Since(start) > e2eBound {
			t.Fatalf("want %s within %v; at last: %v", what, e2eBound, err)
		}
	}
}

// process is a process that a test has started, and its output.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr processOutput
	ended          chan struct{} // closed when it has ended and its output is complete
	err            error         // of Wait, once ended is closed
}

// processStart starts cmd. When the test ends, the process is ended too, with the
// process group if it was given one; its output is printed if the test has failed.
func processStart(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout = &p.stdout
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		p.end()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			t.Errorf("%v has left a process behind that holds its output", cmd.Args)
		}
		if strings.Contains(p.stderr.String(), "DATA RACE") {
			t.Errorf("%v has a data race", cmd.Args)
		}
		if t.Failed() {
			t.Logf("%v, %v\nstdout:\n%s\nstderr:\n%s", cmd.Args, cmd.ProcessState, p.stdout.tail(), p.stderr.tail())
		}
	})
	return p
}

// end ends the process by force, a script with all it has started.
func (p *process) end() {
	pid := p.cmd.Process.Pid
	select {
	case <-p.ended:
		return
	default:
	}
	if p.cmd.SysProcAttr != nil && p.cmd.SysProcAttr.Setpgid {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // lets cluster.sh end its nodes, which are in other groups
		select {
		case <-p.ended:
			return
		case <-time.After(20 * time.Second):
		}
		children, _ := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
		for _, child := range strings.Fields(string(children)) {
			if id, err := strconv.Atoi(child); err == nil {
				_ = syscall.Kill(id, syscall.SIGKILL)
			}
		}
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	} else {
		_ = p.cmd.Process.Kill()
	}
	<-p.ended
}

func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%v to %v: %v", s, p.cmd.Args, err)
	}
}

func (p *process) awaitEnd(t testing.TB, bound time.Duration) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(bound):
		t.Fatalf("%v: got it running after %v, want it ended", p.cmd.Args, bound)
	}
}

// wantExit waits for the end of the process.
func (p *process) wantExit(t testing.TB, bound time.Duration, want int) {
	t.Helper()
	p.awaitEnd(t, bound)
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("%v: got %v, want exit code %d", p.cmd.Args, p.cmd.ProcessState, want)
	}
}

// awaitLine waits until text is in the output.
func (p *process) awaitLine(t testing.TB, text string) {
	t.Helper()
	e2eAwait(t, fmt.Sprintf("%q from %v", text, p.cmd.Args), func() error {
		if strings.Contains(p.stdout.String(), text) || strings.Contains(p.stderr.String(), text) {
			return nil
		}
		select {
		case <-p.ended:
			t.Fatalf("%v has ended, %v, without %q", p.cmd.Args, p.cmd.ProcessState, text)
		default:
		}
		return errors.New("not yet")
	})
}

// processOutput is what a process has written so far.
type processOutput struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *processOutput) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *processOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// tail is the end of the output, without the lines that each set prints.
func (o *processOutput) tail() string {
	const shown = 120
	lines := slices.DeleteFunc(strings.SplitAfter(o.String(), "\n"), func(line string) bool {
		return strings.Contains(line, "] set key=") || strings.Contains(line, "] Set handler called")
	})
	if cut := len(lines) - shown; cut > 0 {
		lines = append([]string{fmt.Sprintf("(%d lines more)\n", cut)}, lines[cut:]...)
	}
	return strings.Join(lines, "")
}

// processPorts is where processPort goes on.
var processPorts struct {
	sync.Mutex
	next int
}

// processPort returns a port on which nobody listens, each time another. It is
// below those that systems take for outgoing connections, so that nothing takes
// it while the node that it is for is down.
func processPort(t testing.TB) string {
	t.Helper()
	const low, high = 12000, 32000
	processPorts.Lock()
	defer processPorts.Unlock()
	if processPorts.next == 0 {
		processPorts.next = low + rand.IntN(high-low)
	}
	for range high - low {
		if processPorts.next++; processPorts.next >= high {
			processPorts.next = low
		}
		if port := strconv.Itoa(processPorts.next); e2ePortFree(port) == nil {
			return port
		}
	}
	t.Fatalf("no free port from %d to %d", low, high)
	return ""
}

// e2ePortFree returns an error unless the port can be listened on.
func e2ePortFree(port string) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	return l.Close()
}
