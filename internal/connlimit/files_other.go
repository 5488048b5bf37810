//go:build !unix

package connlimit

import "math"

// maxFiles returns how many file descriptors this process may have: as good as any number.
func maxFiles() int { return math.MaxInt32 / 64 }
