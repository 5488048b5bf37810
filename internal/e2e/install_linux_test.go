package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// narrow is a link to a node: what goes there over one connection is slow after the first MiB, so that a snapshot of
// many MiB takes seconds and all else no longer than ever.
type narrow struct {
	net.Listener
	to     string
	passed chan int64 // gets the bytes of a connection at each further 8 MiB

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func listenNarrow(t testing.TB, to string) *narrow {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &narrow{Listener: l, to: to, passed: make(chan int64, 1000)}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { n.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		n.mu.Lock()
		for _, c := range n.conns {
			_ = c.Close()
		}
		n.mu.Unlock()
		served.Wait()
	})
	return n
}

func (n *narrow) serve(c net.Conn) {
	there, err := net.Dial("tcp", n.to)
	if err != nil {
		_ = c.Close()
		return
	}
	n.mu.Lock()
	n.conns = append(n.conns, c, there)
	n.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(c, there); _ = c.Close(); _ = there.Close() })
	both.Go(func() {
		defer func() { _ = c.Close(); _ = there.Close() }()
		chunk := make([]byte, 64<<10)
		for sum := int64(0); ; {
			size, err := c.Read(chunk)
			if _, failed := there.Write(chunk[:size]); errors.Join(err, failed) != nil {
				return
			}
			if sum += int64(size); sum > 1<<20 {
				time.Sleep(5 * time.Millisecond)
			}
			if sum>>23 != (sum-int64(size))>>23 {
				select {
				case n.passed <- sum:
				default:
				}
			}
		}
	})
	both.Wait()
}

// waitInstall waits until a snapshot is under way over the link, by more than 16 MiB.
func (n *narrow) waitInstall(t testing.TB) {
	t.Helper()
	for len(n.passed) > 0 {
		<-n.passed
	}
	for deadline := time.After(testkit.Bound); ; {
		select {
		case sum := <-n.passed:
			if sum > 16<<20 && sum < 32<<20 {
				return
			}
		case <-deadline:
			t.Fatal("no snapshot is being sent")
		}
	}
}

// TestLeaderStoppedInAnInstall: a member that is killed while it is sent a snapshot is sent it again, and a leader that
// is stopped in the middle of that keeps the member from no election. The next leader sends it another one.
func TestLeaderStoppedInAnInstall(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := []*testkit.Node{nil, nil, nil}
	env := []string{"RAFT_SNAPSHOT_THRESHOLD=20", "RAFT_ELECTION_TIMEOUT=5s"}
	for k := range nodes {
		nodes[k] = testkit.NewNode(t, binary(t), fmt.Sprintf("n%d", k+1), env...)
	}
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	link := listenNarrow(t, net.JoinHostPort("127.0.0.1", n3.RaftPort))
	n3.Env = append(n3.Env, "RAFT_ADVERTISE="+link.Addr().String())
	for _, n := range nodes {
		n.Run(t)
	}
	for _, n := range nodes {
		n.WaitReady(t)
	}
	_, linkPort, _ := net.SplitHostPort(link.Addr().String())
	testkit.Join(t, n1.Client, n2.Client, n2.RaftPort)
	testkit.Join(t, n1.Client, n3.Client, linkPort)
	n3.Stop(t, syscall.SIGTERM)

	value := strings.Repeat("0123456789abcdef", 1<<16)
	for round := range 2 { // the log is kept back to the older of two snapshots
		for k := range 24 {
			n1.Definite(t, http.MethodPut, fmt.Sprintf("/set?key=k%d", 24*round+k), value)
		}
		testkit.Eventually(t, "a snapshot", func() error {
			if got := strings.Count(n1.Stderr.String(), "snapshot complete up to"); got <= round {
				return fmt.Errorf("got %d", got)
			}
			return nil
		})
	}
	n3.Run(t)
	link.waitInstall(t)
	n3.Kill(t)
	n3.Run(t)
	link.waitInstall(t)

	leader, others := testkit.Leader(t, n1, n2)
	leader.Signal(t, syscall.SIGSTOP)
	began := time.Now()
	testkit.Eventually(t, others[0].ID+" leads", func() error {
		if s := state(t, others[0]); s.State != "Leader" {
			return fmt.Errorf("it is a %s in term %d", s.State, s.Term)
		}
		return nil
	})
	took := time.Since(began)
	t.Logf("%s was elected %v after the former leader was stopped", others[0].ID, took)
	if took > 30*time.Second { // 2 s are promised beyond those for an election, some 9 s; the rest is for a busy machine
		t.Errorf("that took %v", took)
	}
	next, _ := testkit.Leader(t, others[0], n3) // n3 has what is committed
	next.Set(t, "while the former leader is stopped", "1")
	leader.Signal(t, syscall.SIGCONT)
	testkit.CheckReplicas(t, nodes...)
	left, err := filepath.Glob(filepath.Join(n3.Volume, "snapshots", "*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v, %v are left of snapshots that never came whole", left, err)
	}
	if _, err := os.Stat(filepath.Join(n3.Volume, "snapshots")); err != nil {
		t.Error(err)
	}
}
