package kv

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// wantScan fails the test unless ScanSnapshot has of a snapshot what ReadSnapshot had: s, or the error.
func wantScan(t testing.TB, snapshot []byte, s *Store, read error) {
	t.Helper()
	var got, want strings.Builder
	visitor := func(to *strings.Builder) Visitor {
		return Visitor{
			Item:   func(key, value string) error { _, err := fmt.Fprintf(to, "%q=%q ", key, value); return err },
			Record: func(key, record string) error { _, err := fmt.Fprintf(to, "%q:%q ", key, record); return err },
			Lease:  func(key string, l Lease) error { _, err := fmt.Fprintf(to, "%q~%v ", key, l); return err },
		}
	}
	items, records, err := ScanSnapshot(bytes.NewReader(snapshot), 0, visitor(&got))
	if read != nil {
		if err == nil && !strings.Contains(read.Error(), "a key that is not there") {
			t.Fatalf("scan: got no error, want %v", read)
		}
		return
	}
	if err != nil || items != s.Len() || records != s.Records() {
		t.Fatalf("scan: got %d items, %d records, %v, want %d and %d", items, records, err, s.Len(), s.Records())
	}
	v := visitor(&want)
	s.Ascend("", func(key string, item Item) bool { return v.Item(key, item.Value) == nil })
	s.AscendRecords(func(key, record string) bool { return v.Record(key, record) == nil })
	s.AscendLeases(func(key string, l Lease) bool { return v.Lease(key, l) == nil })
	if got.String() != want.String() {
		t.Fatalf("scan: got %.300s, want %.300s", &got, &want)
	}
}

// TestScanLives: what keys have been through is read over, as a restore makes each of them anew.
func TestScanLives(t *testing.T) {
	s := New()
	s.format = livesFormat
	for index := uint64(1); index <= 3; index++ {
		put(s, index, "key", "value")
	}
	put(s, 4, "other", "value")
	if got, _ := s.GetFull("key"); got.Version != 3 {
		t.Fatalf("got version %d, want 3: this proves nothing", got.Version)
	}
	wantScan(t, dump(t, s), s, nil)
}

// TestScanSnapshot: a scan has the content and not the staging area, refuses what ReadSnapshotWithin refuses, and ends
// with an error of the visitor.
func TestScanSnapshot(t *testing.T) {
	s := small()
	s.format = 3
	s.Update(301, 3, nil, func(tx *Tx) {
		tx.SetLeased("a", []byte("value"), Lease{TTL: time.Second})
		tx.AddRecord("id", "record")
		tx.Stage("staged", []byte("value"))
		tx.StageRecord("id", "staged")
	})
	snapshot := dump(t, s)
	wantScan(t, snapshot, s, nil)
	for i := range snapshot {
		flipped := bytes.Clone(snapshot)
		flipped[i] ^= 1
		wantScan(t, flipped, nil, errors.New("a flipped byte"))
	}
	content, staged := s.Footprint()
	nothing := Visitor{
		Item:   func(string, string) error { return nil },
		Record: func(string, string) error { return nil },
		Lease:  func(string, Lease) error { return nil },
	}
	for _, max := range []int{content - 10, content - 1, content, staged} {
		_, _, err := ScanSnapshot(bytes.NewReader(snapshot), max, nothing)
		if want := New().ReadSnapshotWithin(bytes.NewReader(snapshot), max); fmt.Sprint(err) != fmt.Sprint(want) {
			t.Errorf("within %d: got %v, want %v", max, err, want)
		}
	}
	refused := errors.New("refused")
	for name, visitor := range map[string]Visitor{
		"item":   {Item: func(string, string) error { return refused }, Record: nothing.Record, Lease: nothing.Lease},
		"record": {Item: nothing.Item, Record: func(string, string) error { return refused }, Lease: nothing.Lease},
		"lease":  {Item: nothing.Item, Record: nothing.Record, Lease: func(string, Lease) error { return refused }},
	} {
		if _, _, err := ScanSnapshot(bytes.NewReader(snapshot), 0, visitor); !errors.Is(err, refused) {
			t.Errorf("%s: got %v, want the error of the visitor", name, err)
		}
	}
}
