package storage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// testVolume makes a volume with n entries and returns its directory and what is in it.
func testVolume(t testing.TB, n int) (dir string, entries []string) {
	t.Helper()
	dir = t.TempDir()
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:9000"}}}
	if err := Create(dir, "n1", ClusterID{1, 2, 3}, &servers); err != nil {
		t.Fatal(err)
	}
	v := mustOpen(t, dir)
	var logs []*raft.Log
	for i := range n {
		data := fmt.Appendf(nil, "key%d=%s", i, strings.Repeat("v", i%50))
		logs = append(logs, &raft.Log{Index: uint64(i + 2), Term: 2, Type: raft.LogCommand, Data: data})
	}
	if err := v.Log.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	entries = readAll(t, v.Log)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, entries
}

func mustOpen(t testing.TB, dir string) *Volume {
	t.Helper()
	v, err := Open(dir, testOptions(t))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return v
}

// testOptions are those of node n1, of a program that knows format 2, and for which the first byte of an entry is its
// format.
func testOptions(t testing.TB) Options {
	return Options{
		NodeID:       "n1",
		Logger:       hclog.NewNullLogger(),
		Fatal:        func(err error) { t.Errorf("the log failed: %v", err) },
		WriteTimeout: time.Minute,
		OnAppend:     func() {},
		EntryFormat: func(data []byte) int {
			if len(data) == 0 || data[0] > 9 {
				return 1
			}
			return int(data[0])
		},
		MaxFormat: 2,
	}
}

// TestFormat: a volume states the greatest format of the entries that it was given, before it has them, and a program
// that does not know it refuses the volume as it is, and does not call it damaged.
func TestFormat(t *testing.T) {
	dir, _ := testVolume(t, 3)
	format := func() uint64 {
		t.Helper()
		v := mustOpen(t, dir)
		defer v.Close()
		return v.Log.format
	}
	if got := format(); got != 1 {
		t.Fatalf("format of a volume of version 1: got %d, want 1", got)
	}
	v := mustOpen(t, dir)
	for i, data := range []string{"\x02new", "\x01old"} {
		entry := &raft.Log{Index: v.Log.Last() + 1, Term: 9, Type: raft.LogCommand, Data: []byte(data)}
		if err := v.Log.StoreLog(entry); err != nil {
			t.Fatal(err)
		}
		if got := v.Log.format; got != 2 {
			t.Errorf("after entry %d: got format %d, want 2", i+1, got)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if got := format(); got != 2 {
		t.Errorf("opened again: got format %d, want 2", got)
	}
	before, err := os.ReadFile(boltPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	old := testOptions(t)
	old.MaxFormat = 1
	_, err = Open(dir, old)
	const want = "it has format 2, this version knows formats up to 1"
	if !errors.Is(err, ErrNewer) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want) {
		t.Errorf("an older program: got %v, want ErrNewer: … %s", err, want)
	}
	if after, err := os.ReadFile(boltPath(dir)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the older program has changed raft.db (%v)", err)
	}
}

// TestFormatFirst: an entry is written after the format that it needs is stated.
func TestFormatFirst(t *testing.T) {
	below := &orderedDisk{InmemStore: raft.NewInmemStore()}
	l := newLog(below, 0, nil, testOptions(t))
	if err := l.StoreLogs([]*raft.Log{{Index: 1, Term: 1, Type: raft.LogCommand, Data: []byte{2}}}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(below.order, " "), "set-Format logs"; got != want {
		t.Errorf("written: got %q, want %q", got, want)
	}
}

// orderedDisk notes in which order it is written.
type orderedDisk struct {
	*raft.InmemStore
	order []string
}

func (d *orderedDisk) Set(key, value []byte) error {
	d.order = append(d.order, "set-"+string(key))
	return d.InmemStore.Set(key, value)
}

func (d *orderedDisk) StoreLogs(logs []*raft.Log) error {
	d.order = append(d.order, "logs")
	return d.InmemStore.StoreLogs(logs)
}

// readAll returns the entries of a log, each as text.
func readAll(t testing.TB, s raft.LogStore) (entries []string) {
	t.Helper()
	first, err := s.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			t.Fatalf("GetLog(%d): %v", i, err)
		}
		entries = append(entries, fmt.Sprintf("%d %d %d %q %q", l.Index, l.Term, l.Type, l.Data, l.Extensions))
	}
	return entries
}

// stride is how far apart the bytes are that TestDamagedLogIsNeverServed flips. 1 tries every byte, in a minute and a
// half.
const stride = 97

// TestDamagedLogIsNeverServed flips bytes all over raft.db and cuts it short. The volume must be refused, in one line
// and without a panic, or hold exactly what it held.
func TestDamagedLogIsNeverServed(t *testing.T) {
	dir, want := testVolume(t, 120)
	whole, err := os.ReadFile(boltPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := openSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	refused, opened := 0, 0
	check := func(what string, damaged []byte, reopen bool) {
		t.Helper()
		if err := os.WriteFile(boltPath(dir), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := checkVolume(dir, testOptions(t), snaps)
		if err != nil {
			refused++
			if !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: got %v, want one line of ErrCorrupt", what, err)
			}
			return
		}
		opened++
		if !reopen {
			return
		}
		v := mustOpen(t, dir)
		if got := readAll(t, v.Log); !slices.Equal(got, want) {
			t.Errorf("%s: it opened with\n%v\nwant\n%v", what, got, want)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	for i := 0; i < len(whole); i += stride {
		damaged := bytes.Clone(whole)
		damaged[i] ^= byte(1 << (i % 8))
		reopen := whole[i] != 0 || i%7 == 0 // zeros are free space, mostly
		check(fmt.Sprintf("bit %d of byte %d flipped", i%8, i), damaged, reopen)
	}
	if refused == 0 || opened == 0 {
		t.Errorf("%d refused, %d opened: want some of both", refused, opened)
	}
	t.Logf("%d refused, %d opened unchanged", refused, opened)
	before := refused
	for size := 0; size < len(whole); size += 4096 {
		check(fmt.Sprintf("cut to %d bytes", size), whole[:size], true)
	}
	if refused == before {
		t.Error("no truncation was refused")
	}
}

// TestOpenFinishesATruncation: a node that ended between the two steps of DeleteRange at the end of the log must not
// get the truncated entries back.
func TestOpenFinishesATruncation(t *testing.T) {
	dir, entries := testVolume(t, 20)
	v := mustOpen(t, dir)
	if err := appendLogs(v.bolt, nil, 11); err != nil { // the first step alone
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v = mustOpen(t, dir)
	defer v.Close()
	if got := readAll(t, v.Log); !slices.Equal(got, entries[:11]) {
		t.Errorf("got %v, want %v", got, entries[:11])
	}
	var l raft.Log
	if err := v.bolt.GetLog(12, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry 12: got %v, want ErrLogNotFound", err)
	}
}

func TestDeleteRange(t *testing.T) {
	for _, test := range []struct {
		name                   string
		low, high, retainAfter uint64
		wantFirst, wantLast    uint64
		wantLength, wantAfter  int
	}{
		{name: "the end", low: 15, high: 21, retainAfter: 0, wantFirst: 1, wantLast: 14, wantLength: 14, wantAfter: 14},
		{name: "all", low: 1, high: 21, retainAfter: 0, wantFirst: 0, wantLast: 0, wantLength: 0, wantAfter: 0},
		{name: "the beginning", low: 1, high: 10, retainAfter: 15, wantFirst: 11, wantLast: 21, wantLength: 11,
			wantAfter: 11},
		{name: "the beginning, kept for the older snapshot", low: 1, high: 10, retainAfter: 5, wantFirst: 6, wantLast: 21,
			wantLength: 16, wantAfter: 16},
		{name: "the beginning, with no older snapshot", low: 1, high: 10, retainAfter: 0, wantFirst: 1, wantLast: 21,
			wantLength: 21, wantAfter: 21},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, _ := testVolume(t, 20) // entries 1 to 21
			v := mustOpen(t, dir)
			v.Log.retainAfter = func() uint64 { return test.retainAfter }
			if err := v.Log.DeleteRange(test.low, test.high); err != nil {
				t.Fatal(err)
			}
			first, _ := v.Log.FirstIndex()
			last, _ := v.Log.LastIndex()
			if first != test.wantFirst || last != test.wantLast {
				t.Errorf("got %d to %d, want %d to %d", first, last, test.wantFirst, test.wantLast)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestVolumeOfAnotherNode(t *testing.T) {
	dir, _ := testVolume(t, 1)
	_, err := Open(dir, Options{NodeID: "n2", Logger: hclog.NewNullLogger()})
	if err == nil || !strings.Contains(err.Error(), "volume of node n1, not of n2") {
		t.Errorf("got %v, want that it is n1's", err)
	}
}

// TestVolumeCheck: what is at the path of an open volume must be what was opened.
func TestVolumeCheck(t *testing.T) {
	dir, _ := testVolume(t, 1)
	v := mustOpen(t, dir)
	if err := v.Check(); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	path := boltPath(dir)
	if err := errors.Join(os.Rename(path, path+".2"), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(); !errors.Is(err, ErrGone) {
		t.Errorf("another raft.db: got %v, want ErrGone", err)
	}
	if err := errors.Join(os.Rename(path+".2", path), v.Check()); err != nil {
		t.Errorf("put back: got %v, want nil", err)
	}
}

// TestOpenReportsProgress: from the pages and from the entries, never backwards, and an error ends it: which is no
// damage.
func TestOpenReportsProgress(t *testing.T) {
	dir, _ := testVolume(t, 100)
	snapshots, err := openSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	var all []float64
	o := testOptions(t)
	o.Progress = func(fraction float64) error { all = append(all, fraction); return nil }
	if _, err := checkVolume(dir, o, snapshots); err != nil {
		t.Fatal(err)
	}
	pages := slices.IndexFunc(all, func(f float64) bool { return f > 0.5 })
	if !slices.IsSorted(all) || pages < 2 || len(all)-pages < 90 || all[len(all)-1] > 1 {
		t.Errorf("got %v, want fractions of pages up to 0.5 and of entries up to 1", all)
	}
	stopped := errors.New("stopped")
	for _, at := range []int{0, pages + 1} {
		calls := 0
		o.Progress = func(float64) error {
			if calls++; calls > at {
				return stopped
			}
			return nil
		}
		if _, err := checkVolume(dir, o, snapshots); !errors.Is(err, stopped) || errors.Is(err, ErrCorrupt) {
			t.Errorf("stopped after %d calls: got %v, want that error and no damage", at, err)
		}
	}
}
