package testkit

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// StopBound is for a stop by one signal. Promised are 5 s; the rest is for a busy machine.
const StopBound = 10 * time.Second

// Node is a node that runs as a process, with ports and a volume of its own.
type Node struct {
	Client
	*Process           // its last run; nil before the first
	Binary             string
	Volume             string
	HTTPPort, RaftPort string
	Env                []string // beyond the four variables, or instead of them: the last of a name counts
}

// NewNode returns a node that was never started. Its volume does not exist.
func NewNode(t testing.TB, binary, id string, env ...string) *Node {
	t.Helper()
	n := &Node{Binary: binary, Volume: filepath.Join(t.TempDir(), "volume"), RaftPort: FreePort(t),
		HTTPPort: FreePort(t), Env: env}
	n.Client = Client{ID: id, Base: "http://127.0.0.1:" + n.HTTPPort}
	return n
}

// Command is the node as Run starts it.
func (n *Node) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(n.Binary, args...)
	cmd.Env = append(Environ(), "RAFT_NODE_ID="+n.ID, "RAFT_VOLUME_DIR="+n.Volume,
		"HTTP_SERVER_PORT="+n.HTTPPort, "RAFT_SERVER_PORT="+n.RaftPort,
		"GORACE=atexit_sleep_ms=0") // else an end takes 1 s longer with the race detector
	cmd.Env = append(cmd.Env, n.Env...)
	return cmd
}

// Run starts the node, and returns at once.
func (n *Node) Run(t testing.TB, args ...string) {
	t.Helper()
	n.Process = Start(t, n.Command(args...))
}

// Start starts the node, and waits until it is ready.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	n.Run(t)
	n.WaitReady(t)
}

// BecomesReady returns true once the node knows a leader and has caught up, and false once it has ended.
func (n *Node) BecomesReady(t testing.TB) (ready bool) {
	t.Helper()
	Eventually(t, n.ID+" ready", func() error {
		if !n.Running() {
			return nil
		}
		err := n.Ready()
		ready = err == nil
		return err
	})
	return ready
}

// WaitReady is BecomesReady of a node that must not end.
func (n *Node) WaitReady(t testing.TB) {
	t.Helper()
	if !n.BecomesReady(t) {
		t.Fatalf("%s has ended before it was ready: %v", n.ID, n.Cmd.ProcessState)
	}
}

// Stop sends one signal, which must lead to exit code 0.
func (n *Node) Stop(t testing.TB, how syscall.Signal) {
	t.Helper()
	start := time.Now()
	n.Signal(t, how)
	n.WantExit(t, StopBound, 0)
	t.Logf("%s ended %v after its %v", n.ID, time.Since(start).Round(time.Millisecond), how)
}

// JoinPath is the /join of this node.
func (n *Node) JoinPath() string { return JoinPath(n.ID, n.RaftPort) }

// WantValues waits until the node holds exactly these values.
func (n *Node) WantValues(t testing.TB, want map[string]string) {
	t.Helper()
	Eventually(t, n.ID+" with what was acknowledged", func() error {
		got, err := n.Values()
		if err == nil && !maps.Equal(got, want) {
			err = fmt.Errorf("got %d keys, %.300v, want %d, %.300v", len(got), got, len(want), want)
		}
		return err
	})
}

// Messages is what the node itself has printed since its last start, in order, without the beginnings of the lines: not
// hashicorp/raft's lines.
func (n *Node) Messages() (all []string) {
	for line := range strings.Lines(n.Stderr.String()) {
		if strings.HasSuffix(line, "\n") && len(line) > 5 && line[4] == '[' {
			if _, message, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "] "); ok {
				all = append(all, message)
			}
		}
	}
	return all
}

// WaitMessage waits until text is in the Messages; between two of them is a newline.
func (n *Node) WaitMessage(t testing.TB, text string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("%q on the console of %s", text, n.ID), func() error {
		if all := strings.Join(n.Messages(), "\n"); !strings.Contains(all, text) {
			return fmt.Errorf("got %q", all)
		}
		return nil
	})
}

// AppliedLines is the Messages about sets and removes that were applied.
func (n *Node) AppliedLines() []string {
	return slices.DeleteFunc(n.Messages(), func(m string) bool {
		return !strings.HasPrefix(m, "set key=") && !strings.HasPrefix(m, "remove key=")
	})
}

// StartNodes starts so many nodes, n1, n2 and so on, each a cluster of its own, and waits until they are ready.
func StartNodes(t testing.TB, binary string, count int, env ...string) (nodes []*Node) {
	t.Helper()
	for i := range count {
		nodes = append(nodes, NewNode(t, binary, "n"+strconv.Itoa(i+1), env...))
		nodes[i].Run(t)
	}
	for _, n := range nodes {
		n.WaitReady(t)
	}
	return nodes
}

// StartCluster is StartNodes, and joins them all through n1.
func StartCluster(t testing.TB, binary string, size int, env ...string) []*Node {
	t.Helper()
	nodes := StartNodes(t, binary, size, env...)
	for _, n := range nodes[1:] {
		Join(t, nodes[0].Client, n.Client, n.RaftPort)
	}
	return nodes
}
