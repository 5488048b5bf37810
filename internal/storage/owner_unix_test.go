//go:build unix

package storage

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestOwner: a volume with another user's files in it is refused with the command that mends it.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to another user")
	}
	dir, _ := testVolume(t, 3)
	if _, err := IsNew(dir); err != nil {
		t.Fatalf("own: got %v, want nil", err)
	}
	if out, err := exec.Command("chown", "65534", boltPath(dir)).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v %s", err, out)
	}
	_, err := IsNew(dir)
	if err == nil || !strings.Contains(err.Error(), "raft.db belongs to user ") ||
		!strings.HasSuffix(err.Error(), "give it the volume: chown -R root '"+dir+"'") {
		t.Errorf("another user's: got %v, want the chown that mends it", err)
	}
}
