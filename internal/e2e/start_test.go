package e2e

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

func TestBadStart(t *testing.T) {
	t.Parallel()
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
	other := testkit.NewNode(t, binary(t), "n2")
	other.Start(t)
	other.Stop(t, syscall.SIGTERM)

	for _, test := range []struct {
		name    string
		args    []string
		env     []string
		code    int
		inError []string
	}{
		{name: "HTTP port no number", env: []string{"HTTP_SERVER_PORT=http"},
			code: 2, inError: []string{"HTTP_SERVER_PORT", `"http"`}},
		{name: "HTTP port too high", env: []string{"HTTP_SERVER_PORT=99999"},
			code: 2, inError: []string{"HTTP_SERVER_PORT", "99999"}},
		{name: "HTTP port negative", env: []string{"HTTP_SERVER_PORT=-1"},
			code: 2, inError: []string{"HTTP_SERVER_PORT", "-1"}},
		{name: "raft port no number", env: []string{"RAFT_SERVER_PORT=90x"},
			code: 2, inError: []string{"RAFT_SERVER_PORT", "90x"}},
		{name: "node ID", env: []string{"RAFT_NODE_ID=a b"}, code: 2, inError: []string{"RAFT_NODE_ID", `"a b"`}},
		{name: "raft host unspecified", env: []string{"RAFT_SERVER_HOST=0.0.0.0"},
			code: 2, inError: []string{"RAFT_SERVER_HOST"}},
		{name: "raft beyond loopback", env: []string{"RAFT_SERVER_HOST=192.0.2.1"},
			code: 2, inError: []string{"192.0.2.1", "RAFT_CERT_DIR", "INSECURE=yes"}},
		{name: "HTTP beyond loopback", env: []string{"HTTP_SERVER_HOST=0.0.0.0"},
			code: 2, inError: []string{"0.0.0.0", "HTTP_CERT_DIR", "INSECURE=yes"}},
		{name: "snapshot threshold", env: []string{"RAFT_SNAPSHOT_THRESHOLD=0"},
			code: 2, inError: []string{"RAFT_SNAPSHOT_THRESHOLD"}},
		{name: "election timeout", env: []string{"RAFT_ELECTION_TIMEOUT=1"},
			code: 2, inError: []string{"RAFT_ELECTION_TIMEOUT"}},
		{name: "log level", env: []string{"LOG_LEVEL=loud"}, code: 2, inError: []string{"LOG_LEVEL", "loud"}},
		{name: "same port twice", env: []string{"HTTP_SERVER_PORT=" + takenPort, "RAFT_SERVER_PORT=" + takenPort},
			code: 2, inError: []string{"HTTP_SERVER_PORT", "RAFT_SERVER_PORT"}},
		{name: "argument", args: []string{"--keep"}, code: 2, inError: []string{"--keep"}},
		{name: "HTTP port in use", env: []string{"HTTP_SERVER_PORT=" + takenPort},
			code: 1, inError: []string{":" + takenPort}},
		{name: "raft port in use", env: []string{"RAFT_SERVER_PORT=" + takenPort},
			code: 1, inError: []string{":" + takenPort}},
		{name: "volume below a file", env: []string{"RAFT_VOLUME_DIR=" + file + "/volume"},
			code: 1, inError: []string{file}},
		{name: "volume of another node", env: []string{"RAFT_VOLUME_DIR=" + other.Volume},
			code: 1, inError: []string{other.Volume, "n1", "n2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := testkit.NewNode(t, binary(t), "n1")
			n.Env = test.env
			n.Run(t, test.args...)
			wantRefused(t, n.Process, test.code, test.inError...)
			if got := n.Stderr.String(); strings.Count(got, "\n") != 1 {
				t.Errorf("stderr: got %q, want one line", got)
			}
			if _, err := os.Stat(n.Volume); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the volume of a node that did not start: got %v, want none", err)
			}
		})
	}

	for _, arg := range []string{"-h", "--help"} {
		t.Run(arg, func(t *testing.T) {
			n := testkit.NewNode(t, binary(t), "n1")
			n.Run(t, arg)
			n.WantExit(t, testkit.Bound, 0)
			for _, name := range []string{
				"HTTP_SERVER_PORT", "RAFT_SERVER_PORT", "RAFT_NODE_ID", "RAFT_VOLUME_DIR", "HTTP_SERVER_HOST", "HTTP_SERVER_NAMES",
				"RAFT_SERVER_HOST", "RAFT_ELECTION_TIMEOUT", "RAFT_SNAPSHOT_THRESHOLD", "LOG_LEVEL",
			} {
				if !strings.Contains(n.Stdout.String(), name) {
					t.Errorf("stdout: got %q, want it to name %s", n.Stdout.String(), name)
				}
			}
			if got := n.Stderr.String(); got != "" {
				t.Errorf("stderr: got %q, want nothing", got)
			}
		})
	}
}

// TestVolumeInUse starts a second process on the volume of a node that takes
// writes: it must say that the volume is in use, not that it is damaged (it is
// written to while it is read), and must leave it alone.
func TestVolumeInUse(t *testing.T) {
	t.Parallel()
	first := testkit.NewNode(t, binary(t), "n1")
	first.Start(t)
	unfinished := filepath.Join(first.Volume, "snapshots", "2-3-4.tmp") // as the node has it while it takes a snapshot
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		t.Fatal(err)
	}
	h := newHistory()
	h.padding = strings.Repeat("x", 4000) // a file that grows fast
	stop := h.write(t, first)
	for range 4 {
		second := testkit.NewNode(t, binary(t), "n1")
		second.Volume = first.Volume
		second.Run(t)
		wantRefused(t, second.Process, 1, first.Volume, "open in another process")
	}
	if _, err := os.Stat(unfinished); err != nil {
		t.Errorf("unfinished snapshot of the node that has the volume: got %v, want it untouched", err)
	}
	h.waitMore(t, 20)
	stop()
	h.check(t, first)
}

// TestTwoStarts starts two processes on one new volume: one becomes the node, the
// other must say why it does not.
func TestTwoStarts(t *testing.T) {
	t.Parallel()
	for range 3 {
		one, two := testkit.NewNode(t, binary(t), "n1"), testkit.NewNode(t, binary(t), "n1")
		two.Volume = one.Volume
		one.Run(t)
		two.Run(t)
		testkit.Eventually(t, "one of two to end", func() error {
			select {
			case <-one.Ended():
				one, two = two, one
			case <-two.Ended():
			default:
				return errors.New("both run")
			}
			return nil
		})
		wantRefused(t, two.Process, 1, one.Volume, "open in another process")
		one.WaitReady(t)
		h := newHistory()
		h.check(t, one)
		one.Stop(t, syscall.SIGTERM)
		one.Start(t)
		h.check(t, one)
	}
}

// wantRefused waits for the end of a node that can't start. Its last line
// alone is its own error, has all of inError, and nothing looks like a crash.
func wantRefused(t testing.TB, p *testkit.Process, code int, inError ...string) {
	t.Helper()
	p.WantExit(t, testkit.Bound, code)
	if got := p.Stdout.String(); got != "" {
		t.Errorf("stdout: got %q, want nothing", got)
	}
	text := p.Stderr.String()
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
