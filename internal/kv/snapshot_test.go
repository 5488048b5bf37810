package kv

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// small is a store whose snapshot is goldenSnapshot.
func small() *Store {
	s := New()
	s.Update(5, 2, func(tx *Tx) {
		tx.Set("a", []byte("1"))
		tx.Set("key", []byte("value"))
	})
	s.Update(300, 3, func(tx *Tx) { tx.Set("b", nil) })
	return s
}

const goldenSnapshot = "726166746b76" + "01" + "ac02" + "03" + "03" +
	"0161" + "0131" + "05" +
	"0162" + "00" + "ac02" +
	"036b6579" + "0576616c7565" + "05" +
	"a6625ab2"

// seal returns the snapshot of which body is all but the checksum.
func seal(body string) []byte {
	return binary.BigEndian.AppendUint32([]byte(body), crc32.Checksum([]byte(body), castagnoli))
}

// checkRefused reads a snapshot that is to be refused with want and to
// leave the store as it was.
func checkRefused(t testing.TB, snapshot io.Reader, want error) error {
	t.Helper()
	s := New()
	put(s, 9, "kept", "as it is")
	err := s.ReadSnapshot(snapshot)
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	checkApplied(t, s, 9, 1)
	checkContent(t, s, map[string]Item{"kept": {"as it is", 9}})
	return err
}

// TestGolden fails when the format changes: snapshots on disk and backups would
// become unreadable. A change needs a new version.
func TestGolden(t *testing.T) {
	if got := hex.EncodeToString(dump(t, small())); got != goldenSnapshot {
		t.Errorf("got %s, want %s", got, goldenSnapshot)
	}
	golden, err := hex.DecodeString(goldenSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	s := New()
	if err := s.ReadSnapshot(bytes.NewReader(golden)); err != nil {
		t.Fatal(err)
	}
	checkApplied(t, s, 300, 3)
	checkContent(t, s, map[string]Item{"a": {"1", 5}, "b": {"", 300}, "key": {"value", 5}})
}

func TestSnapshotRoundTrip(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", snapshotBuffer/4)
	for _, tt := range []struct {
		name  string
		items []string
	}{
		{"one", []string{"k", "v"}},
		{"any bytes", []string{"", "no key", "\x00", "\xff\x00", "\xff", "\n"}},
		{"large", []string{"a", large, "b", large[1:], large[:maxSnapshotKey], "longest key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New()
			for i := 0; i < len(tt.items); i += 2 {
				put(s, uint64(i+1), tt.items[i], tt.items[i+1])
			}
			snapshot := dump(t, s)
			for name, r := range map[string]io.Reader{
				"whole":       bytes.NewReader(snapshot),
				"byte a read": iotest.OneByteReader(bytes.NewReader(snapshot)),
				"early EOF":   iotest.DataErrReader(bytes.NewReader(snapshot)),
			} {
				got := New()
				if err := got.ReadSnapshot(r); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if !bytes.Equal(dump(t, got), snapshot) {
					t.Errorf("%s: what was read is not what was written", name)
				}
			}
		})
	}
	t.Run("empty", func(t *testing.T) {
		s := New()
		put(s, 1, "k", "v")
		if err := s.ReadSnapshot(bytes.NewReader(dump(t, New()))); err != nil {
			t.Fatal(err)
		}
		checkApplied(t, s, 0, 0)
		checkContent(t, s, nil)
	})
}

func TestReadSnapshotLeavesClonesAlone(t *testing.T) {
	s := New()
	put(s, 1, "k", "v")
	c := s.Clone()
	if err := s.ReadSnapshot(bytes.NewReader(dump(t, small()))); err != nil {
		t.Fatal(err)
	}
	put(s, 301, "k", "new")
	checkContent(t, c, map[string]Item{"k": {"v", 1}})
}

func TestEveryFlipIsRefused(t *testing.T) {
	snapshot := dump(t, small())
	for i := range snapshot {
		want := ErrSnapshotDamaged
		if i < len(snapshotHeader) {
			want = ErrSnapshotVersion
		}
		for flip := 1; flip < 256; flip++ {
			damaged := bytes.Clone(snapshot)
			damaged[i] ^= byte(flip)
			if checkRefused(t, bytes.NewReader(damaged), want); t.Failed() {
				t.Fatalf("byte %d was %#x, is %#x", i, snapshot[i], damaged[i])
			}
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	snapshot := dump(t, small())
	for n := range snapshot {
		checkRefused(t, bytes.NewReader(snapshot[:n]), ErrSnapshotDamaged)
	}
}

func TestRefusedSnapshots(t *testing.T) {
	const huge = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" // 1<<64 - 1
	for _, tt := range []struct {
		name     string
		snapshot []byte
		want     error
		says     string
	}{
		{"empty", nil, ErrSnapshotDamaged, "ends in header"},
		{"short text", []byte("hello"), ErrSnapshotVersion, `begins with "hello"`},
		{"text", []byte("not a snapshot at all"), ErrSnapshotVersion, `begins with "not a s"`},
		{"newer version", seal("raftkv\x02\x00\x00\x00"), ErrSnapshotVersion, `begins with "raftkv\x02"`},
		{"trailing byte", append(dump(t, small()), 0), ErrSnapshotDamaged, "goes on"},
		{"two", slices.Concat(dump(t, small()), dump(t, small())), ErrSnapshotDamaged, "goes on"},
		{"overflowing index", seal(snapshotHeader + huge[:9] + "\x02\x00\x00"), ErrSnapshotDamaged, "applied index is too large"},
		{"endless index", seal(snapshotHeader + strings.Repeat("\xff", 20)), ErrSnapshotDamaged, "applied index is too large"},
		{"item too few", seal(snapshotHeader + "\x05\x01\x02" + "\x01a\x01v\x05"), ErrSnapshotDamaged, ""},
		{"item too many", seal(snapshotHeader + "\x05\x01\x01" + "\x01a\x01v\x05\x01b\x01v\x05"), ErrSnapshotDamaged, "checksum"},
		{"huge number of items", seal(snapshotHeader + "\x05\x01" + huge), ErrSnapshotDamaged, "ends in"},
		{"descending", seal(snapshotHeader + "\x05\x01\x02" + "\x01b\x01v\x05\x01a\x01v\x05"), ErrSnapshotDamaged, "key 2 of 2 is out of order"},
		{"key twice", seal(snapshotHeader + "\x05\x01\x02" + "\x01a\x01v\x05\x01a\x01v\x05"), ErrSnapshotDamaged, "key 2 of 2 is out of order"},
		{"empty key twice", seal(snapshotHeader + "\x05\x01\x02" + "\x00\x01v\x05\x00\x01v\x05"), ErrSnapshotDamaged, "key 2 of 2 is out of order"},
		{"item of the future", seal(snapshotHeader + "\x05\x01\x01" + "\x01a\x01v\x06"), ErrSnapshotDamaged, "key 1 of 1 was set at index 6, after 5"},
		{"long key", seal(snapshotHeader + "\x05\x01\x01" + "\x81\x80\x04" + strings.Repeat("k", maxSnapshotKey+1) + "\x01v\x05"), ErrSnapshotDamaged, "length of key is 65537"},
		{"long value", seal(snapshotHeader + "\x05\x01\x01" + "\x01a\x81\x80\x80\x20"), ErrSnapshotDamaged, "length of value is 67108865"},
		{"huge value", seal(snapshotHeader + "\x05\x01\x01" + "\x01a" + huge), ErrSnapshotDamaged, "length of value"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkRefused(t, bytes.NewReader(tt.snapshot), tt.want)
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want it to say %q", err, tt.says)
			}
		})
	}
}

func TestReaderFails(t *testing.T) {
	snapshot, failure := dump(t, small()), errors.New("connection lost")
	for n := range len(snapshot) + 1 {
		r := io.MultiReader(bytes.NewReader(snapshot[:n]), iotest.ErrReader(failure))
		if err := checkRefused(t, r, failure); errors.Is(err, ErrSnapshotDamaged) {
			t.Errorf("after %d bytes: got %v, want no word of damage", n, err)
		}
	}
}

func TestDamagedLengthAllocatesLittle(t *testing.T) {
	snapshot := []byte(snapshotHeader + "\x05\x01\x01" + "\x01a\x80\x80\x80\x20" + "64 MiB, it says")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	checkRefused(t, bytes.NewReader(snapshot), ErrSnapshotDamaged)
	runtime.ReadMemStats(&after)
	if got, want := after.TotalAlloc-before.TotalAlloc, uint64(1<<20); got > want {
		t.Errorf("allocated %d bytes, want %d at most", got, want)
	}
}

// limitedWriter fails after n bytes.
type limitedWriter struct {
	n   int
	err error
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.n)
	w.n -= n
	if n < len(p) {
		return n, w.err
	}
	return n, nil
}

func TestWriterFails(t *testing.T) {
	s := small()
	put(s, 301, "long", strings.Repeat("v", 3*snapshotBuffer))
	size, full := len(dump(t, s)), errors.New("disk full")
	for _, n := range []int{0, 1, 10, snapshotBuffer, size / 2, size - 5, size - 4, size - 1} {
		if err := s.WriteSnapshot(&limitedWriter{n, full}); !errors.Is(err, full) {
			t.Errorf("room for %d of %d bytes: got %v, want %v", n, size, err, full)
		}
	}
	if err := s.WriteSnapshot(&limitedWriter{size, full}); err != nil {
		t.Errorf("room for all: got %v", err)
	}
}

// TestWriteRefusesWhatCouldNotBeRead is why a backup can always be restored.
func TestWriteRefusesWhatCouldNotBeRead(t *testing.T) {
	for _, tt := range []struct{ key, value string }{
		{strings.Repeat("k", maxSnapshotKey+1), ""},
		{"k", strings.Repeat("v", maxSnapshotValue+1)},
	} {
		s := New()
		put(s, 1, tt.key, tt.value)
		if err := s.WriteSnapshot(io.Discard); err == nil {
			t.Errorf("key of %d bytes, value of %d: got no error", len(tt.key), len(tt.value))
		}
	}
}

// FuzzReadSnapshot reads the input as it is and, to get past the checksum, as
// the body of a snapshot.
func FuzzReadSnapshot(f *testing.F) {
	for _, s := range []*Store{New(), small()} {
		snapshot := dump(f, s)
		f.Add(snapshot)
		f.Add(snapshot[:len(snapshot)-4])
	}
	f.Add([]byte(snapshotHeader + "\x05\x01\x02\x01a\x80\x80\x80\x20v\x05"))
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, snapshot := range [][]byte{input, seal(string(input))} {
			s := New()
			put(s, 9, "kept", "as it is")
			before := dump(t, s)
			if err := s.ReadSnapshot(bytes.NewReader(snapshot)); err != nil {
				if !errors.Is(err, ErrSnapshotVersion) && !errors.Is(err, ErrSnapshotDamaged) {
					t.Fatalf("got %v, want one of the documented errors", err)
				}
				if !bytes.Equal(dump(t, s), before) {
					t.Fatal("the store has changed")
				}
				continue
			}
			again := dump(t, s)
			got := New()
			if err := got.ReadSnapshot(bytes.NewReader(again)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(dump(t, got), again) {
				t.Fatal("what was read is not what was written")
			}
		}
	})
}
