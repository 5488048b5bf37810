package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

func TestKillLeader(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := startThree(t)
	h := newHistory()
	for i := range 300 {
		key := fmt.Sprint("first-", i)
		nodes[i%3].Set(t, key, h.value(key)) // again if need be: on a busy machine, leadership may be lost
		h.note(key, done)
	}
	h.check(t, nodes...)

	stop := h.write(t, nodes...)
	h.waitMore(t, 100)
	leader, rest := testkit.Leader(t, nodes...)
	leader.Kill(t)
	another, _ := testkit.Leader(t, rest...)
	t.Logf("killed %s; now %s leads", leader.ID, another.ID)
	h.waitMore(t, 100)
	leader.Start(t)
	h.waitMore(t, 100)
	stop()
	h.check(t, nodes...)
}

func TestRestartAll(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := startThree(t)
	h := newHistory()
	cluster := state(t, nodes[0]).ClusterID
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		stop := h.write(t, nodes...)
		h.waitMore(t, 200)
		for _, n := range nodes {
			n.Signal(t, how)
		}
		for _, n := range nodes {
			if how == syscall.SIGTERM {
				n.WantExit(t, testkit.StopBound, 0)
			}
			<-n.Ended()
		}
		stop()
		for _, n := range nodes {
			n.Run(t)
		}
		for _, n := range nodes {
			n.WaitReady(t)
			if got := state(t, n).ClusterID; got != cluster {
				t.Errorf("%s: cluster ID after a restart: got %s, want %s", n.ID, got, cluster)
			}
		}
		h.check(t, nodes...)
	}
}

func TestStopLeader(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := startThree(t)
	h := newHistory()
	stop := h.write(t, nodes...)
	h.waitMore(t, 100)
	leader, _ := testkit.Leader(t, nodes...)
	leader.Stop(t, syscall.SIGTERM)
	h.waitMore(t, 100)
	leader.Start(t)
	stop()
	h.check(t, nodes...)
}

// TestStopBesideFrozen stops the leader and then the last node that runs while a
// third takes connections but does not answer: neither may wait for that.
func TestStopBesideFrozen(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := startThree(t)
	h := newHistory()
	leader, rest := testkit.Leader(t, nodes...)
	frozen, last := rest[0], rest[1]
	frozen.Signal(t, syscall.SIGSTOP)
	stop := h.write(t, leader, last)
	h.waitMore(t, 100)
	leader.Stop(t, syscall.SIGTERM)
	last.Stop(t, syscall.SIGTERM)
	frozen.Signal(t, syscall.SIGCONT)
	stop()
	for _, n := range []*testkit.Node{leader, last} {
		n.Run(t)
	}
	for _, n := range nodes {
		n.WaitReady(t)
	}
	h.check(t, nodes...)
}

func TestStopOne(t *testing.T) {
	t.Parallel()
	n := testkit.NewNode(t, binary(t), "n1")
	h := newHistory()
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if signal.Ignored(how) { // by the node too, which inherits it: as under nohup
			t.Logf("%v is ignored where this test runs", how)
			continue
		}
		n.Start(t)
		stop := h.write(t, n)
		h.waitMore(t, 20)
		n.Stop(t, how)
		stop()
	}
	n.Start(t)
	h.check(t, n)
}

// shutdownLine is in what a node prints when it takes the first signal.
const shutdownLine = "] Shutting down; interrupt again"

// TestSecondSignal holds a stop up by a request whose body does not come, and sends
// a second signal as soon as the node says what that does: end the process at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	const rounds, tries = 8, 30
	onTime := 0
	for range tries {
		n := testkit.NewNode(t, binary(t), "n1")
		n.Env = []string{"RAFT_ELECTION_TIMEOUT=100ms"}
		lines, _ := startPiped(t, n)
		n.WaitReady(t)
		c, err := net.Dial("tcp", "127.0.0.1:"+n.HTTPPort)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		// The node asks for the body when its handler reads it: then the request is under way.
		const request = "PUT /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("HTTP/1.1 100"))
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "HTTP/1.1 100" {
			t.Fatalf("PUT that expects: got %q, %v, want 100 Continue", answer, err)
		}
		n.Signal(t, syscall.SIGTERM)
		first := time.Now()
		for line := range lines {
			if strings.Contains(line, shutdownLine) {
				n.Signal(t, syscall.SIGTERM)
				break
			}
		}
		held := time.Since(first)
		for range lines { // until the node has ended
		}
		n.WaitEnd(t, testkit.StopBound)
		if held > time.Second {
			continue // on a machine this busy, the stop may have been over
		}
		status := n.Cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != syscall.SIGTERM {
			t.Fatalf("second SIGTERM %v after the first: got %v, want an end by that signal", held, n.Cmd.ProcessState)
		}
		if onTime++; onTime == rounds {
			return
		}
	}
	t.Fatalf("in %d tries, the second signal was on time in %d, want %d: this machine is too busy", tries, onTime, rounds)
}

// TestConsoleGone closes the reading end of a node's stderr, as head(1) does, or a
// terminal that goes away: the node goes on.
func TestConsoleGone(t *testing.T) {
	t.Parallel()
	n := testkit.NewNode(t, binary(t), "n1")
	lines, console := startPiped(t, n)
	for line := range lines {
		if strings.Contains(line, "Node n1 (version ") {
			break
		}
	}
	if err := console.Close(); err != nil {
		t.Fatal(err)
	}
	for range lines { // until it is closed
	}
	n.WaitReady(t)
	h := newHistory()
	for i := range 10 {
		h.set(t, n, fmt.Sprint("k", i))
	}
	if got := h.acknowledged(); got != 10 {
		t.Fatalf("sets after the console has gone: got %d acknowledged, want 10", got)
	}
	h.check(t, n)
	n.Stop(t, syscall.SIGTERM)
}

// startPiped starts the node and returns its console line by line, each as soon as it is there, until the node or its
// console, of which it returns the reading end, is closed. It must be read, or the node will wait.
func startPiped(t testing.TB, n *testkit.Node) (lines <-chan string, console *os.File) {
	t.Helper()
	console, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.Command()
	cmd.Stderr = w
	n.Process = testkit.Start(t, cmd)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = console.Close() })
	read, done := make(chan string, 1000), make(chan struct{})
	t.Cleanup(func() { close(done) })
	stderr := &n.Process.Stderr
	go func() {
		defer close(read)
		for in := bufio.NewScanner(console); in.Scan(); {
			fmt.Fprintln(stderr, in.Text())
			select {
			case read <- in.Text():
			case <-done:
				return
			}
		}
	}()
	return read, console
}
