package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestReadSnapshotWithin: a snapshot of more than may be is refused, and the store is as it was.
func TestReadSnapshotWithin(t *testing.T) {
	of := func(change func(tx *Tx)) []byte {
		s := New()
		s.Update(1, 1, nil, change)
		var b bytes.Buffer
		if err := s.WriteSnapshot(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	three := func(tx *Tx) {
		for i := range 3 {
			tx.Set(fmt.Sprint(i), make([]byte, 1000))
		}
	}
	const takes = 3 * (1 + 1000 + Overhead)
	for _, test := range []struct {
		name   string
		change func(tx *Tx)
		max    int
		fits   bool
	}{
		{name: "as much as may be", change: three, max: takes, fits: true},
		{name: "a byte more", change: three, max: takes - 1},
		{name: "any", change: three, max: 0, fits: true},
		{name: "many small keys", max: 50 * Overhead, change: func(tx *Tx) {
			for i := range 60 {
				tx.Set(fmt.Sprintf("%02d", i), nil)
			}
		}},
		{name: "a staging area", max: takes - 1, change: func(tx *Tx) {
			for i := range 3 {
				tx.Stage(fmt.Sprint(i), make([]byte, 1000))
			}
		}},
		{name: "records", max: 1000, fits: true, change: func(tx *Tx) {
			for i := range 100 {
				tx.AddRecord(fmt.Sprint(i), strings.Repeat("r", 400))
			}
		}},
		{name: "records of many bytes", max: 1000, change: func(tx *Tx) {
			for i := range 65 {
				tx.AddRecord(fmt.Sprint(i), strings.Repeat("r", 1<<20))
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			snapshot := of(test.change)
			s := New()
			s.Update(7, 1, nil, func(tx *Tx) { tx.Set("before", nil) })
			err := s.ReadSnapshotWithin(bytes.NewReader(snapshot), test.max)
			if test.fits != (err == nil) || (err != nil && !errors.Is(err, ErrSnapshotTooLarge)) {
				t.Errorf("got %v, want that it fits is %v", err, test.fits)
			}
			if _, there := s.Get("before"); there == test.fits {
				t.Errorf("what was there before: got %v, want %v", there, !test.fits)
			}
			if longest := MaxSnapshotWithin(test.max); test.fits && test.max > 0 && int64(len(snapshot)) >= longest {
				t.Errorf("it fits with %d bytes, and none has %d or more", len(snapshot), longest)
			}
		})
	}
}

// endless is a snapshot that claims so many items of one byte and has them all.
func endless(items uint64) io.Reader {
	b := append([]byte(snapshotMagic), snapshotV2, 1, 1)
	b = binary.AppendUvarint(append(b, make([]byte, 32)...), items)
	next := uint64(0)
	return io.MultiReader(bytes.NewReader(b), readerFunc(func(p []byte) (int, error) {
		item := append([]byte{8}, binary.BigEndian.AppendUint64(nil, next)...)
		next++
		return copy(p, append(item, 0, 1)), nil
	}))
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestReadSnapshotWithinReadsLittle: one that claims too many keys is refused for its header, one that has more than
// it should as soon as that is certain.
func TestReadSnapshotWithinReadsLittle(t *testing.T) {
	for _, test := range []struct {
		name        string
		items       uint64
		max, reads  int
		wantMention string
	}{
		{name: "by the header", items: 1 << 40, max: 8 << 20, reads: 2 * snapshotBuffer, wantMention: "or more"},
		{name: "by what comes", items: 7000, max: 7000*Overhead + 8, reads: 100 << 10, wantMention: "or more"},
	} {
		t.Run(test.name, func(t *testing.T) {
			read := 0
			from := endless(test.items)
			err := New().ReadSnapshotWithin(readerFunc(func(p []byte) (int, error) {
				n, err := from.Read(p)
				read += n
				return n, err
			}), test.max)
			if !errors.Is(err, ErrSnapshotTooLarge) || !strings.Contains(err.Error(), test.wantMention) {
				t.Errorf("got %v, want ErrSnapshotTooLarge and how much it takes", err)
			}
			if read > test.reads {
				t.Errorf("got %d bytes read, want %d at most", read, test.reads)
			}
		})
	}
}
