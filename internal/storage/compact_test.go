package storage

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// emptiedVolume makes a volume in which a burst of large entries has come and is gone, and returns its directory and
// what is in it.
func emptiedVolume(t testing.TB) (dir string, entries []string) {
	t.Helper()
	dir, _ = testVolume(t, 200)
	v := mustOpen(t, dir)
	last := v.Log.Last()
	value := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(value)
	value[0] = 255 // of no format
	for k := range uint64(64) {
		if err := v.Log.StoreLog(&raft.Log{Index: last + 1 + k, Term: 2, Type: raft.LogCommand, Data: value}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(v.Log.DeleteRange(last+1, last+64), v.Log.SetUint64(keyCurrentTerm, 7)); err != nil {
		t.Fatal(err)
	}
	entries = readAll(t, v.Log)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, entries
}

// compacting are options under which emptiedVolume is worth a compaction; lines gets what is logged.
func compacting(t testing.TB, lines *[]string) Options {
	o := testOptions(t)
	o.compactAbove = 1 << 20
	o.Logf = func(format string, args ...any) { *lines = append(*lines, fmt.Sprintf(format, args...)) }
	return o
}

// wantVolume opens the volume, which must hold entries and what emptiedVolume has set, and be of at most so many bytes.
func wantVolume(t testing.TB, dir string, o Options, entries []string, bytes int64) {
	t.Helper()
	v, err := Open(dir, o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if got := readAll(t, v.Log); !slices.Equal(got, entries) {
		t.Errorf("got %d entries, want the %d that were there", len(got), len(entries))
	}
	if term, err := v.Log.GetUint64(keyCurrentTerm); term != 7 || err != nil {
		t.Errorf("current term: got %d, %v, want 7", term, err)
	}
	info, err := os.Stat(boltPath(dir))
	if err := errors.Join(err, v.Close()); err != nil {
		t.Fatal(err)
	}
	if info.Size() > bytes || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("raft.db: got %d bytes, mode %v, want %d at most, for its owner alone", info.Size(), info.Mode(), bytes)
	}
	if _, err := os.Stat(compactPath(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy: got %v, want it gone", err)
	}
}

func TestCompact(t *testing.T) {
	const large, small = 16 << 20, 256 << 10
	for _, test := range []struct {
		name   string
		change func(o *Options)
		bytes  int64
		line   string // the last one that is logged, in part; empty: none is
	}{
		{name: "mostly free", change: func(*Options) {}, bytes: small, line: "was compacted"},
		{name: "too small", change: func(o *Options) { o.compactAbove = 0 }, bytes: large},
		{name: "no room for the copy", change: func(o *Options) {
			o.free = func(string) (uint64, error) { return compactSpare, nil }
		}, bytes: large, line: "it is not compacted, as the disk has 64 MiB left"},
		{name: "a disk that can't be looked at", change: func(o *Options) {
			o.free = func(string) (uint64, error) { return 0, errors.New("no such thing") }
		}, bytes: large, line: "it is not compacted: no such thing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, entries := emptiedVolume(t)
			var lines []string
			o := compacting(t, &lines)
			test.change(&o)
			wantVolume(t, dir, o, entries, test.bytes)
			last := ""
			if len(lines) > 0 {
				last = lines[len(lines)-1]
			}
			if !strings.Contains(last, test.line) || (test.line == "" && last != "") {
				t.Errorf("last line: got %q, want %q in it", last, test.line)
			}
			if test.bytes == small { // and once is enough
				lines = nil
				wantVolume(t, dir, o, entries, small)
				if len(lines) > 0 {
					t.Errorf("the second start logs %q, want nothing", lines)
				}
			}
		})
	}
}

// TestCompactCrash ends, or fails, a compaction before each of its steps. What is left must be a whole volume, with all
// that was in it, and no copy once the next start is through.
func TestCompactCrash(t *testing.T) {
	var steps []string
	dir, entries := emptiedVolume(t)
	var lines []string
	o := compacting(t, &lines)
	o.atCompaction = func(step string) error {
		if n := len(steps); n == 0 || steps[n-1] != step {
			steps = append(steps, step)
		}
		return nil
	}
	whole, err := os.ReadFile(boltPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	wantVolume(t, dir, o, entries, 256<<10)
	want := []string{"copy", "a part of the copy", "sync", "check", "a part of the check", "compare",
		"a part of the comparison", "rename", "sync the directory"}
	if !slices.Equal(steps, want) { // a copy that was not synced, or not verified, must never be renamed
		t.Fatalf("steps: got %q, want %q", steps, want)
	}
	for _, at := range want {
		restore := func(t *testing.T) Options {
			if err := os.WriteFile(boltPath(dir), whole, 0o600); err != nil {
				t.Fatal(err)
			}
			return compacting(t, &lines)
		}
		for _, torn := range []bool{false, true} {
			t.Run(fmt.Sprintf("crash before %s, torn %v", at, torn), func(t *testing.T) {
				o := restore(t)
				o.atCompaction = func(step string) error {
					if step == at {
						runtime.Goexit() // as far as the files go, the end of the process
					}
					return nil
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, err := Open(dir, o)
					t.Errorf("got %v, want that it ends at %s", err, at)
				}()
				<-done
				if torn && at != "sync the directory" { // what was not synced, or had yet to be used
					if err := os.WriteFile(compactPath(dir), bytes.Repeat([]byte{1}, 5000), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				o.atCompaction = nil
				wantVolume(t, dir, o, entries, 256<<10)
			})
		}
		t.Run("failure before "+at, func(t *testing.T) {
			o := restore(t)
			o.atCompaction = func(step string) error {
				if step == at {
					return errors.New("no space left on device")
				}
				return nil
			}
			lines = nil
			wantVolume(t, dir, o, entries, int64(len(whole)))
			if last := lines[len(lines)-1]; !strings.Contains(last, "could not be compacted") {
				t.Errorf("last line: got %q, want that it could not be compacted", last)
			}
		})
		t.Run("aborted before "+at, func(t *testing.T) {
			o := restore(t)
			stopped := errors.New("stopped")
			o.atCompaction = func(step string) error {
				if step == at {
					return &stoppedError{stopped}
				}
				return nil
			}
			if v, err := Open(dir, o); !errors.Is(err, stopped) {
				t.Errorf("got %v, %v, want that the start is aborted", v, err)
			}
			if _, err := os.Stat(compactPath(dir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the copy: got %v, want it gone", err)
			}
		})
	}
}

// TestCompactCopyDiffers: a copy that is not what raft.db is must never take its place.
func TestCompactCopyDiffers(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(b []byte)
		at     string
	}{
		{name: "a page", at: "check", damage: func(b []byte) { b[2*os.Getpagesize()+8] ^= 0x55 }},
		{name: "a value", at: "compare", damage: func(b []byte) {
			k := bytes.LastIndex(b, []byte("=vvv"))
			b[k+1] = 'w'
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, entries := emptiedVolume(t)
			var lines []string
			o := compacting(t, &lines)
			o.atCompaction = func(step string) error {
				if step != test.at {
					return nil
				}
				b, err := os.ReadFile(compactPath(dir))
				if err != nil {
					return err
				}
				test.damage(b)
				return os.WriteFile(compactPath(dir), b, 0o600)
			}
			wantVolume(t, dir, o, entries, 16<<20)
			if last := lines[len(lines)-1]; !strings.Contains(last, "could not be compacted") ||
				!strings.Contains(last, test.at) {
				t.Errorf("last line: got %q, want that %s failed", last, test.at)
			}
		})
	}
}
