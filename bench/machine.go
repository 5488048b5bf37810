package main

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// machine describes where this runs, as lines of Markdown; dir is where the volumes are.
func machine(dir string) string {
	model := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		model = field(string(text), "model name", model)
	}
	memory := "unknown memory"
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib uint64
		_, _ = fmt.Sscan(field(string(text), "MemTotal", "0"), &kib)
		memory = fmt.Sprintf("%.0f GiB", float64(kib)/(1<<20))
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("- machine: %s, %d cores, %s; Linux %s; volumes on %s\n- date: %s\n",
		model, runtime.NumCPU(), memory, strings.TrimSpace(string(kernel)), filesystem(dir),
		time.Now().Format("2006-01-02 15:04 MST"))
}

// field returns what stands behind the first "name :" of a file of /proc.
func field(text, name, fallback string) string {
	for line := range strings.Lines(text) {
		if n, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(value)
		}
	}
	return fallback
}

// filesystem is the type and the device of the file system that dir is on.
func filesystem(dir string) string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "an unknown file system"
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return mountOf(string(mounts), dir)
}

// mountOf finds in a /proc/self/mountinfo the mount that dir lies in.
func mountOf(mounts, dir string) string {
	best, found := "", "an unknown file system"
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 2 {
			continue
		}
		point := left[4]
		if (point == "/" || point == dir || strings.HasPrefix(dir, point+"/")) && len(point) >= len(best) {
			best, found = point, right[0]+" ("+right[1]+")"
		}
	}
	return found
}

// versions describes what was measured, as a line of Markdown; baseline is a path, empty
// for none, found are those of the references, by name.
func versions(binary, baseline string, found map[string]string) string {
	parts := []string{"raftkv " + built(binary)}
	if baseline != "" {
		parts = append(parts, "baseline "+baseline+" "+built(baseline))
	}
	if etcd := found[etcdLabel]; etcd != "" {
		out, _ := exec.Command(etcd, "--version").Output()
		first, _, _ := strings.Cut(string(out), "\n")
		parts = append(parts, strings.Replace(first, "etcd Version:", "etcd", 1)+" with its Go client "+
			dependency("go.etcd.io/etcd/client/v3"))
	}
	if hraftd := found[hraftdLabel]; hraftd != "" {
		parts = append(parts, "hraftd "+built(hraftd))
	}
	return "- versions: " + strings.Join(parts, "; ") + "; client: " + runtime.Version() + "\n"
}

// built is what a Go binary says of its making; of one that is not raftkv also which
// module it is.
func built(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	revision, modified := "without revision", ""
	if v := info.Main.Version; v != "" && v != "(devel)" { // as go install makes it
		revision = v
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = " with changes"
		}
	}
	text := revision + modified + ", " + info.GoVersion
	if info.Main.Path != "raftkv" {
		text = info.Main.Path + " " + text
	}
	for _, d := range info.Deps {
		if slices.Contains([]string{"github.com/hashicorp/raft", "go.etcd.io/bbolt"}, d.Path) {
			text += ", " + filepath.Base(d.Path) + " " + d.Version
		}
	}
	return "(" + text + ")"
}

// dependency is the version of a module in this binary.
func dependency(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == path {
				return d.Version
			}
		}
	}
	return "of an unknown version"
}

// floorTimes is how often floor does each.
const floorTimes = 100

// floor measures in dir the median time of one bbolt commit, of an entry as one write
// makes it and with the options that the node has, and of one fdatasync of 4 KiB.
func floor(dir string) (commit, sync time.Duration, err error) {
	dir, err = os.MkdirTemp(dir, "floor")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)

	db, err := bbolt.Open(filepath.Join(dir, "floor.db"), 0o600,
		&bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, NoStatistics: true})
	if err != nil {
		return 0, 0, err
	}
	entry := make([]byte, valueBytes+keyBytes+60)
	n := 0
	commit, err = typical(func() error {
		n++
		return db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("logs"))
			if err != nil {
				return err
			}
			return b.Put(fmt.Appendf(nil, "%08d", n), entry)
		})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return 0, 0, err
	}

	f, err := os.OpenFile(filepath.Join(dir, "floor.dat"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	page := make([]byte, 4096)
	for i := range floorTimes + 1 {
		if _, err := f.WriteAt(page, int64(i*len(page))); err != nil {
			return 0, 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	n = 0
	sync, err = typical(func() error {
		_, err := f.WriteAt(page, int64(n*len(page)))
		n++
		return errors.Join(err, syscall.Fdatasync(int(f.Fd())))
	})
	return commit, sync, err
}

// typical is the median time of f, after one call that does not count.
func typical(f func() error) (time.Duration, error) {
	var took []time.Duration
	for i := range floorTimes + 1 {
		start := time.Now()
		if err := f(); err != nil {
			return 0, err
		}
		if i > 0 {
			took = append(took, time.Since(start))
		}
	}
	return percentile(took, 50), nil
}
