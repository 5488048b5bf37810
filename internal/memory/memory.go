// Package memory finds out how much memory the process may use.
package memory

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v4/mem"
)

// assumed is what Available returns where nothing is known, in bytes.
const assumed = 1 << 30

// Available returns how many bytes of memory this process may use, and what limits them, for a person: the least of
// what the machine has, what the memory cgroups that the process is in allow, and GOMEMLIMIT.
func Available() (bytes uint64, source string) {
	bytes, source = math.MaxUint64, ""
	least := func(limit uint64, of string) {
		if limit > 0 && limit < bytes {
			bytes, source = limit, of
		}
	}
	if machine, err := mem.VirtualMemory(); err == nil {
		least(machine.Total, "of this machine")
	}
	least(cgroupLimit("/proc/self/cgroup", "/sys/fs/cgroup"), "that its cgroup allows")
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 {
		least(uint64(limit), "of GOMEMLIMIT")
	}
	if source == "" {
		return assumed, "that are assumed, as the system does not report its own"
	}
	return bytes, source
}

// DataLimit returns what STORE_MAX_BYTES is, in bytes, if it is set to set, and a line about it for the console. If
// that is 0, it is a quarter of Available: the data, as much again that the garbage collector lets come before it runs,
// and both once more while a backup is restored beside them.
func DataLimit(set uint64) (bytes uint64, line string) {
	if set > 0 {
		return set, fmt.Sprintf("The data may take %s (STORE_MAX_BYTES)", MiB(set))
	}
	available, source := Available()
	bytes = max(available/4, 1<<20)
	return bytes, fmt.Sprintf("The data may take %s (STORE_MAX_BYTES is not set), a quarter of the %s %s",
		MiB(bytes), MiB(available), source)
}

// inFlight is InFlightLimit where there is memory enough, in bytes.
const inFlight = 256 << 20

// InFlightLimit returns what INFLIGHT_MAX_BYTES is, in bytes, if it is set to set: 256 MiB if that is 0, or a quarter
// of Available if it is less.
func InFlightLimit(set uint64) uint64 {
	if set > 0 {
		return set
	}
	available, _ := Available()
	return min(inFlight, max(available/4, 16<<20))
}

// MiB returns bytes in a form for people.
func MiB(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// cgroupLimit returns the least memory limit of the cgroups that a process is in, by a file such as /proc/self/cgroup,
// and of all above them: one applies to all that is below it. 0: none is known. Both versions of cgroups are looked at,
// as a system may have both (cgroups(7)). The files of a container may be a part of the tree whose root is the
// container's own cgroup, while the paths in the file begin at the root of the machine: so those parts of a path that
// are not there are passed over.
func cgroupLimit(file, mount string) (bytes uint64) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.SplitN(line, ":", 3) // number, controllers, path; version 2 has no controllers
		if len(fields) != 3 {
			continue
		}
		switch controllers := strings.Split(fields[1], ","); {
		case fields[1] == "":
			for _, root := range []string{mount, filepath.Join(mount, "unified")} {
				bytes = least(bytes, limitAlong(root, fields[2], "memory.max"))
			}
		case slices.Contains(controllers, "memory"):
			bytes = least(bytes, limitAlong(filepath.Join(mount, "memory"), fields[2], "memory.limit_in_bytes"))
		}
	}
	return bytes
}

// limitAlong returns the least number in the files of that name in root and in all directories on the way to path
// below it; 0: there is none.
func limitAlong(root, path, name string) (bytes uint64) {
	for dir := filepath.Join("/", path); ; dir = filepath.Dir(dir) {
		if text, err := os.ReadFile(filepath.Join(root, dir, name)); err == nil {
			limit, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // an error: "max", no limit
			if err == nil {
				bytes = least(bytes, limit)
			}
		}
		if dir == "/" {
			return bytes
		}
	}
}

// least is the lesser of two limits, where 0 is none.
func least(a, b uint64) uint64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
