//go:build !unix

package testkit

import (
	"os"
	"os/exec"
	"testing"
)

// inGroup reports whether cmd was given a process group of its own.
func inGroup(*exec.Cmd) bool { return false }

// kill ends a process.
func kill(id int) {
	if p, err := os.FindProcess(id); err == nil {
		_ = p.Kill()
	}
}

// MaxFiles is how many files and connections this process may have open at once, 2^20 at most.
func MaxFiles(testing.TB) int { return 1 << 20 }
