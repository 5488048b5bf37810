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
	"time"
)

// small is a store whose snapshot is goldenSnapshot.
func small() *Store {
	s := New()
	s.Update(5, 2, []byte("first"), func(tx *Tx) {
		tx.Set("a", []byte("1"))
		tx.Set("key", []byte("value"))
		tx.AddRecord("id-b", "removed=1")
	})
	s.Update(300, 3, []byte("second"), func(tx *Tx) {
		tx.Set("b", nil)
		tx.AddRecord("id-a", "")
		tx.Stage("s", []byte("staged"))
		tx.StageRecord("id-s", "x")
	})
	return s
}

const (
	goldenItems = "03" +
		"0161" + "0131" + "05" +
		"0162" + "00" + "ac02" +
		"036b6579" + "0576616c7565" + "05"

	goldenSnapshotV1 = "726166746b76" + "01" + "ac02" + "03" + goldenItems + "a6625ab2"

	goldenSnapshot = "726166746b76" + "02" + "ac02" + "03" +
		"e912083209dfaf817bb36585fd4bff4c2d14dcca7407f44a3edc8aa697a7b7f7" +
		goldenItems +
		"02" + "0469642d62" + "0972656d6f7665643d31" + "0469642d61" + "00" +
		"03" +
		"01" + "0173" + "06737461676564" + "ac02" +
		"01" + "0469642d73" + "0178" +
		"2ad80403"
)

// seal returns the snapshot of which body is all but the checksum.
func seal(body string) []byte {
	return binary.BigEndian.AppendUint32([]byte(body), crc32.Checksum([]byte(body), castagnoli))
}

// headerV2 is the beginning of a snapshot of version 2.
const headerV2 = "raftkv\x02"

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
	s := readGolden(t, goldenSnapshot)
	checkApplied(t, s, 300, 3)
	checkContent(t, s, map[string]Item{"a": {"1", 5}, "b": {"", 300}, "key": {"value", 5}})
	checkRecords(t, s, "id-b", "removed=1", "id-a", "")
	if _, hash := s.Hash(); hex.EncodeToString(hash[:]) != goldenSnapshot[20:84] {
		t.Errorf("hash: got %x, want %s", hash, goldenSnapshot[20:84])
	}
	s.Update(301, 3, nil, func(tx *Tx) {
		if !tx.Restore(1, 1) {
			t.Error("restore: got false, want the staging area of the snapshot")
		}
	})
	checkContent(t, s, map[string]Item{"s": {"staged", 300}})
	checkRecords(t, s, "id-s", "x")
}

// TestGoldenV1: snapshots that were written before version 2 are read.
func TestGoldenV1(t *testing.T) {
	s := readGolden(t, goldenSnapshotV1)
	checkApplied(t, s, 300, 3)
	checkContent(t, s, map[string]Item{"a": {"1", 5}, "b": {"", 300}, "key": {"value", 5}})
	checkRecords(t, s)
	if index, hash := s.Hash(); index != 300 || hash != [32]byte{} {
		t.Errorf("hash: got %d, %x, want 300 and zero", index, hash)
	}
	golden, _ := hex.DecodeString(goldenSnapshotV1)
	for n := range golden {
		checkRefused(t, bytes.NewReader(golden[:n]), ErrSnapshotDamaged)
	}
	for i := len(headerV2); i < len(golden); i++ {
		damaged := bytes.Clone(golden)
		damaged[i] ^= 0x10
		checkRefused(t, bytes.NewReader(damaged), ErrSnapshotDamaged)
	}
}

// TestGoldenV3: a snapshot has the cluster format if it was raised, and only then.
func TestGoldenV3(t *testing.T) {
	raised := small()
	raised.format = 2
	golden := hex.EncodeToString([]byte("raftkv\x03\x02")) + goldenSnapshot[14:]
	golden = hex.EncodeToString(reseal(t, golden))
	if got := hex.EncodeToString(dump(t, raised)); got != golden {
		t.Errorf("got %s, want %s", got, golden)
	}
	if got := readGolden(t, golden).Format(); got != 2 {
		t.Errorf("format: got %d, want 2", got)
	}
	if got := readGolden(t, goldenSnapshot).Format(); got != 1 {
		t.Errorf("format of a snapshot of version 2: got %d, want 1", got)
	}
	snapshot, _ := hex.DecodeString(golden)
	for n := range snapshot {
		checkRefused(t, bytes.NewReader(snapshot[:n]), ErrSnapshotDamaged)
	}
	s := New()
	for index, to := range []uint64{3, 2} { // it never falls
		s.Update(uint64(index)+1, 1, nil, func(tx *Tx) { tx.RaiseFormat(to) })
		if got := s.Format(); got != 3 {
			t.Errorf("format after raising it to %d: got %d, want 3", to, got)
		}
	}
	if got := s.Clone().Format(); got != 3 {
		t.Errorf("format of a clone: got %d, want 3", got)
	}
}

// reseal returns a snapshot, of which golden is the hexadecimal form, with the checksum that it should have.
func reseal(t *testing.T, golden string) []byte {
	t.Helper()
	b, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	return seal(string(b[:len(b)-4]))
}

// readGolden returns a store that had something else and read the snapshot.
func readGolden(t *testing.T, golden string) *Store {
	t.Helper()
	snapshot, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	s := New()
	s.Update(7, 3, []byte("before"), func(tx *Tx) {
		tx.Set("before", nil)
		tx.AddRecord("id-before", "")
		tx.Stage("before", nil)
	})
	if err := s.ReadSnapshot(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnapshotRoundTrip(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", snapshotBuffer/4)
	for _, tt := range []struct {
		name  string
		items []string
	}{
		{name: "one", items: []string{"k", "v"}},
		{name: "any bytes", items: []string{"", "no key", "\x00", "\xff\x00", "\xff", "\n"}},
		{name: "large", items: []string{"a", large, "b", large[1:], large[:maxSnapshotKey], "longest key"}},
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
		for flip := 1; flip < 256; flip++ {
			damaged := bytes.Clone(snapshot)
			damaged[i] ^= byte(flip)
			want := ErrSnapshotDamaged
			if version := damaged[6]; i < 6 || version < snapshotV1 || version > snapshotV5 {
				want = ErrSnapshotVersion
			}
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
	head := headerV2 + "\x05\x03" + strings.Repeat("c", 32)
	const huge = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" // 1<<64 - 1
	for _, tt := range []struct {
		name     string
		snapshot []byte
		want     error
		message  string
	}{
		{name: "empty", want: ErrSnapshotDamaged, message: "ends in header"},
		{
			name:     "short text",
			snapshot: []byte("hello"),
			want:     ErrSnapshotVersion,
			message:  `begins with "hello"`,
		},
		{
			name:     "text",
			snapshot: []byte("not a snapshot at all"),
			want:     ErrSnapshotVersion,
			message:  `begins with "not a s"`,
		},
		{
			name:     "newer version",
			snapshot: seal("raftkv\x06\x00\x00\x00"),
			want:     ErrSnapshotVersion,
			message:  "its version is 6, this program knows 1 to 5; use a newer one",
		},
		{
			name:     "version 3 of format 1",
			snapshot: seal("raftkv\x03\x01" + strings.Repeat("\x00", 40)),
			want:     ErrSnapshotDamaged,
			message:  "cluster format is 1",
		},
		{
			name:     "trailing byte",
			snapshot: append(dump(t, small()), 0),
			want:     ErrSnapshotDamaged,
			message:  "goes on",
		},
		{
			name:     "two",
			snapshot: slices.Concat(dump(t, small()), dump(t, small())),
			want:     ErrSnapshotDamaged,
			message:  "goes on",
		},
		{
			name:     "overflowing index",
			snapshot: seal(headerV2 + huge[:9] + "\x02\x00\x00"),
			want:     ErrSnapshotDamaged,
			message:  "applied index is too large",
		},
		{
			name:     "endless index",
			snapshot: seal(headerV2 + strings.Repeat("\xff", 20)),
			want:     ErrSnapshotDamaged,
			message:  "applied index is too large",
		},
		{
			name:     "item too few",
			snapshot: seal(head + "\x02" + "\x01a\x01v\x05" + "\x00\x00"),
			want:     ErrSnapshotDamaged,
		},
		{
			name:     "item too many",
			snapshot: seal(head + "\x01" + "\x01a\x01v\x05\x01b\x01v\x05" + "\x00\x00"),
			want:     ErrSnapshotDamaged,
		},
		{
			name:     "huge number of items",
			snapshot: seal(head + huge),
			want:     ErrSnapshotDamaged,
			message:  "ends in",
		},
		{
			name:     "descending",
			snapshot: seal(head + "\x02" + "\x01b\x01v\x05\x01a\x01v\x05"),
			want:     ErrSnapshotDamaged,
			message:  "key 2 of 2 is out of order",
		},
		{
			name:     "key twice",
			snapshot: seal(head + "\x02" + "\x01a\x01v\x05\x01a\x01v\x05"),
			want:     ErrSnapshotDamaged,
			message:  "key 2 of 2 is out of order",
		},
		{
			name:     "empty key twice",
			snapshot: seal(head + "\x02" + "\x00\x01v\x05\x00\x01v\x05"),
			want:     ErrSnapshotDamaged,
			message:  "key 2 of 2 is out of order",
		},
		{
			name:     "item of the future",
			snapshot: seal(head + "\x01" + "\x01a\x01v\x06"),
			want:     ErrSnapshotDamaged,
			message:  "key 1 of 1 was set at index 6, after 5",
		},
		{
			name:     "long key",
			snapshot: seal(head + "\x01" + "\x81\x80\x04" + strings.Repeat("k", maxSnapshotKey+1) + "\x01v\x05"),
			want:     ErrSnapshotDamaged,
			message:  "length of key is 65537",
		},
		{
			name:     "long value",
			snapshot: seal(head + "\x01" + "\x01a\x81\x80\x80\x20"),
			want:     ErrSnapshotDamaged,
			message:  "length of value is 67108865",
		},
		{
			name:     "huge value",
			snapshot: seal(head + "\x01" + "\x01a" + huge),
			want:     ErrSnapshotDamaged,
			message:  "length of value",
		},
		{
			name:     "record twice",
			snapshot: seal(head + "\x00" + "\x02" + "\x01a\x01v\x01a\x01w" + "\x00"),
			want:     ErrSnapshotDamaged,
			message:  "idempotency record 2 of 2 has the key of another",
		},
		{
			name:     "too many records",
			snapshot: seal(head + "\x00" + "\xa1\x8d\x06"),
			want:     ErrSnapshotDamaged,
			message:  "number of idempotency records is 100001, 100000 at most",
		},
		{
			name:     "huge number of records",
			snapshot: seal(head + "\x00" + huge),
			want:     ErrSnapshotDamaged,
			message:  "number of idempotency records",
		},
		{
			name:     "long idempotency key",
			snapshot: seal(head + "\x00" + "\x01" + "\x81\x80\x04"),
			want:     ErrSnapshotDamaged,
			message:  "length of idempotency key is 65537",
		},
		{
			name:     "long record",
			snapshot: seal(head + "\x00" + "\x01" + "\x01a\x81\x80\x80\x20"),
			want:     ErrSnapshotDamaged,
			message:  "length of idempotency record is 67108865",
		},
		{
			name:     "staging area of another term",
			snapshot: seal(head + "\x00\x00" + "\x01" + "\x00\x00"),
			want:     ErrSnapshotDamaged,
			message:  "staging area is of term 1, the last entry of 3",
		},
		{
			name:     "staged item of the future",
			snapshot: seal(head + "\x00\x00" + "\x03" + "\x01" + "\x01a\x01v\x06" + "\x00"),
			want:     ErrSnapshotDamaged,
			message:  "key 1 of 1 was set at index 6, after 5",
		},
		{
			name:     "short of a staging area",
			snapshot: seal(head + "\x00\x00" + "\x03"),
			want:     ErrSnapshotDamaged,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkRefused(t, bytes.NewReader(tt.snapshot), tt.want)
			if err != nil && !strings.Contains(err.Error(), tt.message) {
				t.Errorf("got %v, want %q in it", err, tt.message)
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
	head := headerV2 + "\x05\x01" + strings.Repeat("c", 32) + "\x01"
	snapshot := []byte(head + "\x01a\x80\x80\x80\x20" + "not 64 MiB")
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
		{key: strings.Repeat("k", maxSnapshotKey+1)},
		{key: "k", value: strings.Repeat("v", maxSnapshotValue+1)},
	} {
		for name, change := range map[string]func(tx *Tx){
			"item":          func(tx *Tx) { tx.Set(tt.key, []byte(tt.value)) },
			"record":        func(tx *Tx) { tx.AddRecord(tt.key, tt.value) },
			"staged item":   func(tx *Tx) { tx.Stage(tt.key, []byte(tt.value)) },
			"staged record": func(tx *Tx) { tx.StageRecord(tt.key, tt.value) },
		} {
			s := New()
			s.Update(1, 1, nil, change)
			if err := s.WriteSnapshot(io.Discard); err == nil {
				t.Errorf("%s, key of %d bytes, value of %d: got no error", name, len(tt.key), len(tt.value))
			}
		}
	}
}

// TestInstall: a snapshot that was prepared changes nothing until it is installed.
func TestInstall(t *testing.T) {
	s := New()
	put(s, 9, "kept", "as it is")
	before, snapshot := dump(t, s), dump(t, small())
	p, err := PrepareSnapshot(bytes.NewReader(snapshot))
	if err != nil || !bytes.Equal(dump(t, s), before) {
		t.Fatalf("prepared: %v, and the store has changed: %v", err, !bytes.Equal(dump(t, s), before))
	}
	index, term := p.Applied()
	if s.Install(p); !bytes.Equal(dump(t, s), snapshot) {
		t.Error("installed: it is not what was written")
	}
	if gotIndex, gotTerm := s.Applied(); gotIndex != index || gotTerm != term {
		t.Errorf("Applied: got %d of %d, want %d of %d as prepared", gotIndex, gotTerm, index, term)
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
	leased := small()
	leased.format = 3
	leased.Update(301, 3, nil, func(tx *Tx) { tx.SetLeased("a", nil, Lease{TTL: time.Second, Key: "b"}) })
	f.Add(dump(f, leased))
	lived := small()
	lived.format = 4
	lived.Update(301, 3, nil, func(tx *Tx) { tx.Set("a", nil) })
	f.Add(dump(f, lived))
	v1, _ := hex.DecodeString(goldenSnapshotV1)
	f.Add(v1)
	f.Add(v1[:len(v1)-4])
	f.Add([]byte(headerV2 + "\x05\x01" + strings.Repeat("c", 32) + "\x02\x01a\x80\x80\x80\x20v\x05"))
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, snapshot := range [][]byte{input, seal(string(input))} {
			s := New()
			put(s, 9, "kept", "as it is")
			before := dump(t, s)
			err := s.ReadSnapshot(bytes.NewReader(snapshot))
			wantScan(t, snapshot, s, err)
			if err != nil {
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
