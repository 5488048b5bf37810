package kv

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"time"
)

// fulls returns all that a store has, a line for each key.
func fulls(s *Store) (lines []string) {
	s.AscendFull("", func(key string, f Full) bool {
		lines = append(lines, fmt.Sprintf("%s=%s index=%d created=%d version=%d lease=%q", key, f.Value, f.Index, f.Created,
			f.Version, f.Lease.Key))
		return true
	})
	return lines
}

func checkFulls(t *testing.T, s *Store, want ...string) {
	t.Helper()
	if got := fulls(s); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLives: which entry made a key, and how often it was set since, counts from cluster format 4 on.
func TestLives(t *testing.T) {
	s := New()
	s.KeepDetails() // which knows what was before, and must not count it
	put(s, 1, "old", "1")
	put(s, 2, "old", "2")
	checkFulls(t, s, `old=2 index=2 created=2 version=1 lease=""`)
	s.Update(3, 1, nil, func(tx *Tx) { tx.RaiseFormat(4) })
	size := s.Size()
	put(s, 4, "old", "3")
	put(s, 5, "old", "4")
	put(s, 6, "new", "")
	checkFulls(t, s, `new= index=6 created=6 version=1 lease=""`, `old=4 index=5 created=2 version=3 lease=""`)
	if got, want := s.Size(), size+3+LifeFootprint(4, "old"); got != want || LifeFootprint(3, "old") != 0 {
		t.Errorf("size: got %d, want %d", got, want)
	}
	s.Update(7, 1, nil, func(tx *Tx) {
		tx.Remove("old")
		tx.Set("old", nil)
		tx.Set("old", nil)
	})
	checkFulls(t, s, `new= index=6 created=6 version=1 lease=""`, `old= index=7 created=7 version=2 lease=""`)
	s.Update(8, 1, nil, func(tx *Tx) {
		tx.SetLeased("new", []byte("leased"), Lease{Key: "old"})
		if !tx.Touch("new") || tx.Touch("nobody") {
			t.Error("touch: want true for a key that is there, and for no other")
		}
	})
	checkFulls(t, s, `new=leased index=8 created=6 version=3 lease="old"`, `old= index=7 created=7 version=2 lease=""`)
	clone := s.Clone()
	s.Update(9, 1, nil, func(tx *Tx) { tx.RemovePrefix("") })
	if got := s.Size(); got != 0 {
		t.Errorf("size of nothing: got %d, want 0", got)
	}
	put(s, 10, "old", "")
	checkFulls(t, s, `old= index=10 created=10 version=1 lease=""`)
	checkFulls(t, clone, `new=leased index=8 created=6 version=3 lease="old"`, `old= index=7 created=7 version=2 lease=""`)
}

func TestRemoveRange(t *testing.T) {
	for _, tt := range []struct {
		name, from, until string
		want              []string
	}{
		{name: "some", from: "b", until: "d", want: []string{"a", "d", "e"}},
		{name: "to the last", from: "c", want: []string{"a", "b"}},
		{name: "none", from: "bb", until: "c", want: []string{"a", "b", "c", "d", "e"}},
		{name: "with what goes with them", from: "d", until: "e", want: []string{"a", "b", "c"}},
	} {
		s := New()
		for i, key := range []string{"a", "b", "c", "d", "e"} {
			put(s, uint64(i+1), key, "")
		}
		s.Update(6, 1, nil, func(tx *Tx) {
			if tt.name == "with what goes with them" {
				tx.SetLeased("e", nil, Lease{Key: "d"})
			}
			in := 0
			for _, key := range []string{"a", "b", "c", "d", "e"} {
				if key >= tt.from && (tt.until == "" || key < tt.until) {
					in++
				}
			}
			if got := tx.RemoveRange(tt.from, tt.until); got != in {
				t.Errorf("%s: removed %d, want %d", tt.name, got, in)
			}
		})
		if got := keysOf(s); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestView: a view has what came before it in the same Update, and nothing of what comes after.
func TestView(t *testing.T) {
	s := New()
	put(s, 1, "a", "1")
	var view *Store
	s.Update(2, 3, nil, func(tx *Tx) {
		tx.Set("b", nil)
		view = tx.View()
		tx.Remove("a")
	})
	put(s, 3, "c", "")
	if got, want := keysOf(view), []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	checkApplied(t, view, 2, 3)
}

// TestDetails: a change has what the key was before and is then.
func TestDetails(t *testing.T) {
	s := New()
	s.KeepDetails()
	s.Update(1, 1, nil, func(tx *Tx) { tx.RaiseFormat(4) })
	w, _ := s.WatchNow("")
	defer w.Close()
	put(s, 2, "a", "1")
	s.Update(3, 1, nil, func(tx *Tx) { tx.SetLeased("b", []byte("2"), Lease{Key: "a"}) })
	put(s, 4, "a", "3")
	s.Update(5, 1, nil, func(tx *Tx) { tx.Remove("a") })
	events, _, err := w.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		for _, c := range e.Changes {
			got = append(got, fmt.Sprintf("%s now=%v was=%v", c.Key, c.Now, c.Was))
		}
	}
	none := Full{}
	a1, a3 := Full{Item{"1", 2}, 2, 1, Lease{}}, Full{Item{"3", 4}, 2, 2, Lease{}}
	b := Full{Item{"2", 3}, 3, 1, Lease{Key: "a"}}
	want := []string{
		fmt.Sprintf("a now=%v was=%v", a1, none), fmt.Sprintf("b now=%v was=%v", b, none),
		fmt.Sprintf("a now=%v was=%v", a3, a1),
		fmt.Sprintf("a now=%v was=%v", none, a3), fmt.Sprintf("b now=%v was=%v", none, b),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	is := func(name string) func(string) bool { return func(key string) bool { return key == name } }
	for _, tt := range []struct {
		since  uint64
		prefix string
		key    string
		want   bool
	}{
		{since: 3, prefix: "a", key: "a", want: false},
		{since: 5, prefix: "a", key: "a", want: true},
		{since: 3, prefix: "", key: "c", want: true},
		{since: 0, prefix: "", key: "a", want: false},
	} {
		if got := s.UnchangedSince(tt.since, tt.prefix, is(tt.key)); got != tt.want {
			t.Errorf("unchanged since %d: got %t, want %t", tt.since, got, tt.want)
		}
	}
	s.resetHistory(9)
	if s.UnchangedSince(8, "", is("none")) {
		t.Error("unchanged since an index that the history no longer has: got true, want false")
	}
}

// TestGoldenV5: a snapshot has lives from cluster format 4 on, and only then.
func TestGoldenV5(t *testing.T) {
	s := small()
	s.format = 4
	s.Update(301, 3, nil, func(tx *Tx) {
		tx.SetLeased("a", []byte("1"), Lease{TTL: 30 * time.Second})
		tx.Set("b", nil)
		tx.Set("b", nil)
	})
	s.hash = small().hash
	const golden = "726166746b76" + "05" + "04" + "ad02" + "03" +
		"e912083209dfaf817bb36585fd4bff4c2d14dcca7407f44a3edc8aa697a7b7f7" +
		"03" + "0161" + "0131" + "ad02" + "0162" + "00" + "ad02" + "036b6579" + "0576616c7565" + "05" +
		"02" + "0469642d62" + "0972656d6f7665643d31" + "0469642d61" + "00" +
		"01" + "0161" + "b0ea01" + "00" +
		"02" + "0161" + "05" + "02" + "0162" + "ac02" + "03" +
		"03" +
		"01" + "0173" + "06737461676564" + "ac02" +
		"01" + "0469642d73" + "0178" +
		"00" + "00" +
		"00000000"
	want := reseal(t, golden)
	if got := hex.EncodeToString(dump(t, s)); got != hex.EncodeToString(want) {
		t.Errorf("got %s, want %x", got, want)
	}
	read := readGolden(t, hex.EncodeToString(want))
	if got, want := fulls(read), fulls(s); !slices.Equal(got, want) || read.Size() != s.Size() {
		t.Errorf("got %q and %d bytes, want %q and %d", got, read.Size(), want, s.Size())
	}
	checkDamage(t, want)
	// What is well sealed, but no lives that WriteSnapshot could have written.
	head := "raftkv\x05\x04\x05\x03" + string(make([]byte, 32)) + "\x01\x01a\x00\x05" + "\x00\x00"
	for _, bad := range []string{
		"\x01\x01b\x05\x02",                   // of a key that is not there
		"\x01\x01a\x05\x01",                   // a first version needs none
		"\x01\x01a\x06\x02",                   // made after it was set
		"\x02\x01a\x05\x02" + "\x01a\x05\x02", // twice
	} {
		checkRefused(t, bytes.NewReader(seal(head+bad+"\x00")), ErrSnapshotDamaged)
	}
	if err := New().ReadSnapshot(bytes.NewReader(seal(head + "\x01\x01a\x05\x02" + "\x00"))); err != nil {
		t.Errorf("the same with a life that may be: got %v, want nil", err)
	}
}
