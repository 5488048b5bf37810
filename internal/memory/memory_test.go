package memory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCgroupLimit(t *testing.T) {
	for _, test := range []struct {
		name   string
		cgroup string            // of the process
		files  map[string]string // below the mount
		want   uint64
	}{
		{name: "no cgroups", cgroup: "", want: 0},
		{name: "version 2", cgroup: "0::/a/b\n", files: map[string]string{"a/b/memory.max": "1000\n"}, want: 1000},
		{name: "version 2, no limit", cgroup: "0::/a\n", files: map[string]string{"a/memory.max": "max\n"}, want: 0},
		{name: "version 2, a limit above", cgroup: "0::/a/b\n",
			files: map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "700\n"}, want: 700},
		{name: "version 2, the least on the way", cgroup: "0::/a/b\n",
			files: map[string]string{"a/b/memory.max": "500\n", "a/memory.max": "700\n", "memory.max": "600\n"}, want: 500},
		{name: "version 2, in a container of its own name space", cgroup: "0::/\n",
			files: map[string]string{"memory.max": "800\n"}, want: 800},
		{name: "version 2, in a container with the machine's paths", cgroup: "0::/docker/1234\n",
			files: map[string]string{"memory.max": "800\n"}, want: 800},
		{name: "version 1", cgroup: "9:name=systemd:/x\n4:cpu,memory:/p/q\n1:cpu:/c\n",
			files: map[string]string{"memory/p/q/memory.limit_in_bytes": "900\n", "c/memory.max": "1\n"}, want: 900},
		{name: "both", cgroup: "4:memory:/p\n0::/a\n", files: map[string]string{
			"memory/p/memory.limit_in_bytes": "900\n", "unified/a/memory.max": "800\n"}, want: 800},
		{name: "another process's", cgroup: "0::/a\n", files: map[string]string{"b/memory.max": "1\n"}, want: 0},
		{name: "damaged", cgroup: "nonsense\n0::\n", files: map[string]string{"memory.max": "much\n"}, want: 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.files {
				path := filepath.Join(dir, "mount", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, "cgroup")
			if err := os.WriteFile(file, []byte(test.cgroup), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := cgroupLimit(file, filepath.Join(dir, "mount")); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
	if got := cgroupLimit(filepath.Join(t.TempDir(), "none"), "/"); got != 0 {
		t.Errorf("no file: got %d, want 0", got)
	}
}

func TestDataLimit(t *testing.T) {
	available, source := Available()
	if available < 1<<20 || source == "" {
		t.Errorf("got %d bytes %q, want what this machine has", available, source)
	}
	if got, line := DataLimit(0); got != available/4 || !strings.Contains(line, source) {
		t.Errorf("not set: got %d, %q, want a quarter of %d", got, line, available)
	}
	if got, line := DataLimit(5 << 20); got != 5<<20 || !strings.Contains(line, "5.0 MiB") {
		t.Errorf("set: got %d, %q, want 5 MiB", got, line)
	}
}
