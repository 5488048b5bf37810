//go:build unix

package connlimit

import (
	"math"
	"syscall"
)

// maxFiles returns how many file descriptors this process may have. (Package os has raised the limit to the hard one.)
func maxFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt32 / 64
	}
	return int(min(uint64(limit.Cur), math.MaxInt32/64)) // which OfFiles multiplies
}
