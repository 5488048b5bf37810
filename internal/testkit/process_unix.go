//go:build unix

package testkit

import (
	"os/exec"
	"syscall"
	"testing"
)

// inGroup reports whether cmd was given a process group of its own.
func inGroup(cmd *exec.Cmd) bool { return cmd.SysProcAttr != nil && cmd.SysProcAttr.Setpgid }

// kill ends a process, or the process group of a negative number, by SIGKILL.
func kill(id int) { _ = syscall.Kill(id, syscall.SIGKILL) }

// MaxFiles is how many files and connections this process may have open at once, 2^20 at most.
func MaxFiles(t testing.TB) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return int(min(limit.Cur, 1<<20))
}
