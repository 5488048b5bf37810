package e2e

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestNotifiesSystemd: a service manager is told when the node serves, not before, and when it begins to stop
// (sd_notify(3)); deploy/raftkv.service waits for it.
func TestNotifiesSystemd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	wantState := func(want string) {
		t.Helper()
		_ = manager.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 100)
		n, err := manager.Read(b)
		if got := string(b[:n]); err != nil || got != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	n := testkit.NewNode(t, binary(t), "n1", "NOTIFY_SOCKET="+path)
	n.Run(t)
	wantState("READY=1")
	if got := n.Ask(t, "/healthz"); got.Status != 200 {
		t.Errorf("/healthz of a node that has reported to be ready: got %+v, want 200", got)
	}
	n.Signal(t, syscall.SIGTERM)
	wantState("STOPPING=1")
	n.WantExit(t, testkit.StopBound, 0)
}
