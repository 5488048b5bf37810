package kv

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// leasesOf returns the leases of a store, by key.
func leasesOf(s *Store) map[string]Lease {
	m := make(map[string]Lease)
	s.AscendLeases(func(key string, l Lease) bool {
		m[key] = l
		return true
	})
	return m
}

// keysOf returns the keys of a store, in order.
func keysOf(s *Store) (keys []string) {
	s.Ascend("", func(key string, _ Item) bool {
		keys = append(keys, key)
		return true
	})
	return keys
}

// TestLeaseEndsWithItsKey: what goes with a key goes in the same Update, over any number of steps, whatever removes it.
func TestLeaseEndsWithItsKey(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(tx *Tx)
		want   []string
	}{
		{name: "removed", change: func(tx *Tx) { tx.Remove("session") }, want: []string{"free", "sess", "session2"}},
		{name: "expired", change: func(tx *Tx) { tx.Expire("session", 1) }, want: []string{"free", "sess", "session2"}},
		{
			name: "prefix",
			change: func(tx *Tx) {
				if got := tx.RemovePrefix("session"); got != 2 {
					t.Errorf("removed: got %d, want the 2 with the prefix", got)
				}
			},
			want: []string{"free", "sess"},
		},
		{
			name:   "set again",
			change: func(tx *Tx) { tx.Set("session", nil) },
			want:   []string{"child", "free", "grandchild", "sess", "session", "session2", "\xffchild"},
		},
		{
			name:   "the key in between is set again without a lease",
			change: func(tx *Tx) { tx.Set("child", nil); tx.Remove("session") },
			want:   []string{"child", "free", "grandchild", "sess", "session2"},
		},
		{
			name:   "one that goes with a key that is not there",
			change: func(tx *Tx) { tx.SetLeased("free", nil, Lease{Key: "nobody"}); tx.Remove("session") },
			want:   []string{"sess", "session2"},
		},
		{
			name:   "a circle",
			change: func(tx *Tx) { tx.SetLeased("session", nil, Lease{Key: "grandchild"}); tx.Remove("child") },
			want:   []string{"free", "sess", "session2"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New()
			s.Update(1, 1, nil, func(tx *Tx) {
				tx.SetLeased("session", nil, Lease{TTL: time.Second})
				tx.SetLeased("session2", nil, Lease{TTL: time.Second})
				tx.Set("sess", nil)
				tx.Set("free", nil)
				tx.SetLeased("child", nil, Lease{Key: "session"})
				tx.SetLeased("\xffchild", nil, Lease{Key: "session"})
				tx.SetLeased("grandchild", nil, Lease{Key: "child"})
			})
			w, _ := s.WatchNow("")
			defer w.Close()
			before := keysOf(s)
			s.Update(2, 1, nil, tt.change)
			if got := keysOf(s); !slices.Equal(got, tt.want) {
				t.Errorf("keys: got %q, want %q", got, tt.want)
			}
			events, _, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range events[0].Changes { // those of one entry, none twice
				i := slices.Index(before, c.Key)
				if i < 0 && c.Removed {
					t.Errorf("event: %q has gone twice", c.Key)
				}
				if c.Removed {
					before = slices.Delete(before, i, i+1)
				}
			}
			if !slices.Equal(before, tt.want) {
				t.Errorf("keys by the event: got %q, want %q", before, tt.want)
			}
		})
	}
}

// TestExpire: only a key that was not set again since, and still has a TTL, goes.
func TestExpire(t *testing.T) {
	s := New()
	ttl := Lease{TTL: time.Second}
	s.Update(1, 1, nil, func(tx *Tx) {
		for _, key := range []string{"due", "renewed", "kept", "removed"} {
			tx.SetLeased(key, nil, ttl)
		}
		tx.Set("plain", nil)
	})
	s.Update(2, 1, nil, func(tx *Tx) {
		tx.SetLeased("renewed", nil, ttl)
		tx.Set("kept", nil)
		tx.Remove("removed")
	})
	for _, tt := range []struct {
		key   string
		index uint64
		want  bool
	}{
		{key: "due", index: 2}, {key: "due", index: 1, want: true}, {key: "due", index: 1}, {key: "renewed", index: 1},
		{key: "kept", index: 1}, {key: "kept", index: 2}, {key: "removed", index: 1}, {key: "plain", index: 1},
		{key: "plain"}, {key: "nobody"}, {key: "renewed", index: 2, want: true},
	} {
		if got := s.IsTimed(tt.key, tt.index); got != tt.want {
			t.Errorf("%s at %d is timed: got %t, want %t", tt.key, tt.index, got, tt.want)
		}
		index, _ := s.Applied()
		s.Update(index+1, 1, nil, func(tx *Tx) {
			if got := tx.Expire(tt.key, tt.index); got != tt.want {
				t.Errorf("%s at %d: got %t, want %t", tt.key, tt.index, got, tt.want)
			}
		})
	}
	if got, want := keysOf(s), []string{"kept", "plain"}; !slices.Equal(got, want) {
		t.Errorf("keys: got %q, want %q", got, want)
	}
}

// TestLeasesModel makes random changes, and compares the leases, the timed keys and the size with those of a
// plain model of them, also after a snapshot and in a clone.
func TestLeasesModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	type row struct {
		index uint64
		value int
		lease Lease
	}
	s, model := New(), make(map[string]row)
	var remove func(key string)
	remove = func(key string) {
		delete(model, key)
		for _, other := range slices.Collect(maps.Keys(model)) {
			if model[other].lease.Key == key {
				remove(other)
			}
		}
	}
	key := func() string { return fmt.Sprint("k", random.IntN(12)) }
	for index := uint64(1); index <= 5000; index++ {
		clone := s.Clone()
		frozen := leasesOf(clone)
		s.Update(index, 1, nil, func(tx *Tx) {
			k := key()
			switch random.IntN(4) {
			case 0:
				tx.Remove(k)
				remove(k)
			case 1:
				at := model[k].index
				if tx.Expire(k, at); model[k].lease.TTL != 0 {
					remove(k)
				}
			default:
				r := row{index: index, value: random.IntN(5)}
				if random.IntN(2) == 0 {
					r.lease.TTL = time.Duration(1+random.IntN(3)) * time.Second
				}
				if owner := key(); random.IntN(2) == 0 && owner != k {
					r.lease.Key = owner
				}
				tx.SetLeased(k, make([]byte, r.value), r.lease)
				model[k] = r
				if _, ok := model[r.lease.Key]; r.lease.Key != "" && !ok {
					remove(k)
				}
			}
		})
		if !maps.Equal(leasesOf(clone), frozen) {
			t.Fatalf("index %d: a clone has changed", index)
		}
		if index%100 == 0 {
			s.format = 3
			restored := New()
			if err := restored.ReadSnapshot(bytes.NewReader(dump(t, s))); err != nil {
				t.Fatal(err)
			}
			s = restored
		}
		want, size, timed := make(map[string]Lease), 0, 0
		for k, r := range model {
			size += len(k) + r.value + leaseSize(k, r.lease)
			if r.lease != (Lease{}) {
				want[k] = r.lease
			}
			if r.lease.TTL != 0 {
				timed++
				if !s.IsTimed(k, r.index) {
					t.Fatalf("index %d: %s of %d is not timed", index, k, r.index)
				}
			}
		}
		if got := leasesOf(s); !maps.Equal(got, want) {
			t.Fatalf("index %d: leases: got %v, want %v", index, got, want)
		}
		keys, _ := s.TimedKeys(Timed{}, 100)
		if len(keys) != timed || s.TimedLen() != timed || s.Size() != size || s.Len() != len(model) {
			t.Fatalf("index %d: got %d and %d timed keys of %d, %d bytes; want %d of %d, %d",
				index, len(keys), s.TimedLen(), s.Len(), s.Size(), timed, len(model), size)
		}
		if !slices.IsSortedFunc(keys, func(a, b Timed) int { return int(a.Index) - int(b.Index) }) {
			t.Fatalf("index %d: got %v, want them in the order of their indexes", index, keys)
		}
	}
}

// TestTimedKeys: a reader that goes on behind the last key that it has read misses none and reads none twice, and
// learns when the content was replaced.
func TestTimedKeys(t *testing.T) {
	s := New()
	lease := Lease{TTL: time.Minute, Key: "a"}
	s.Update(1, 1, nil, func(tx *Tx) {
		tx.SetLeased("a", nil, Lease{TTL: time.Second})
		tx.SetLeased("b", nil, lease)
		tx.SetLeased("c", nil, Lease{Key: "a"})
		tx.Set("d", nil)
	})
	s.Update(2, 1, nil, func(tx *Tx) { tx.SetLeased("b2", nil, lease) })
	var got []Timed
	_, epoch := s.TimedKeys(Timed{}, 1)
	for last := (Timed{}); ; last = got[len(got)-1] {
		keys, again := s.TimedKeys(last, 1)
		if again != epoch {
			t.Errorf("epoch: got %d, want %d as before", again, epoch)
		}
		if len(keys) == 0 {
			break
		}
		got = append(got, keys...)
	}
	want := []Timed{{"a", 1, time.Second}, {"b", 1, time.Minute}, {"b2", 2, time.Minute}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	s.Update(3, 1, nil, func(tx *Tx) {
		tx.Stage("a", nil)
		tx.StageLease("a", Lease{TTL: time.Second})
		tx.StageLease("nobody", Lease{TTL: time.Second})
		tx.StageLease("a", Lease{TTL: time.Hour, Key: "nobody"})
	})
	s.Update(4, 1, nil, func(tx *Tx) {
		if !tx.Restore(1, 0) {
			t.Error("nothing was restored")
		}
	})
	keys, again := s.TimedKeys(Timed{}, 10)
	if want := []Timed{{"a", 3, time.Second}}; !slices.Equal(keys, want) || again == epoch {
		t.Errorf("after a restore: got %v of epoch %d, want %v of another than %d", keys, again, want, epoch)
	}
}

// TestGoldenV4: a snapshot has leases from cluster format 3 on, and only then.
func TestGoldenV4(t *testing.T) {
	leased := small()
	leased.format = 3
	leased.Update(301, 3, nil, func(tx *Tx) {
		tx.SetLeased("a", []byte("1"), Lease{TTL: 30 * time.Second})
		tx.SetLeased("b", nil, Lease{TTL: time.Second, Key: "a"})
		tx.StageLease("s", Lease{TTL: time.Second})
	})
	leased.hash = small().hash
	const golden = "726166746b76" + "04" + "03" + "ad02" + "03" +
		"e912083209dfaf817bb36585fd4bff4c2d14dcca7407f44a3edc8aa697a7b7f7" +
		"03" + "0161" + "0131" + "ad02" + "0162" + "00" + "ad02" + "036b6579" + "0576616c7565" + "05" +
		"02" + "0469642d62" + "0972656d6f7665643d31" + "0469642d61" + "00" +
		"02" + "0161" + "b0ea01" + "00" + "0162" + "e807" + "0161" +
		"03" +
		"01" + "0173" + "06737461676564" + "ac02" +
		"01" + "0469642d73" + "0178" +
		"01" + "0173" + "e807" + "00" +
		"00000000"
	want := reseal(t, golden)
	if got := hex.EncodeToString(dump(t, leased)); got != hex.EncodeToString(want) {
		t.Errorf("got %s, want %x", got, want)
	}
	read := readGolden(t, hex.EncodeToString(want))
	if got, want := leasesOf(read), leasesOf(leased); !maps.Equal(got, want) || read.Size() != leased.Size() {
		t.Errorf("got %v and %d bytes, want %v and %d", got, read.Size(), want, leased.Size())
	}
	checkDamage(t, want)
	// What is well sealed, but no leases that WriteSnapshot could have written.
	head, _ := hex.DecodeString(golden[:len("726166746b76040301")+2*(1+32)])
	head = append(head[:8], append([]byte{5, 3}, make([]byte, 32)...)...)
	head = append(head, "\x01\x01a\x00\x05"+"\x00"...)
	for _, bad := range []string{
		"\x01\x01b\x01\x00",                         // of a key that is not there
		"\x01\x01a\x00\x00",                         // none
		"\x01\x01a\x00\x01b",                        // goes with a key that is not there
		"\x02\x01a\x01\x00\x01a\x01\x00",            // twice
		"\x01\x01a\xff\xff\xff\xff\xff\xff\x7f\x00", // for ever, almost
	} {
		checkRefused(t, bytes.NewReader(seal(string(head)+bad+"\x00")), ErrSnapshotDamaged)
	}
	if err := New().ReadSnapshot(bytes.NewReader(seal(string(head) + "\x01\x01a\x01\x00" + "\x00"))); err != nil {
		t.Errorf("the same with a lease that may be: got %v, want nil", err)
	}
}

// checkDamage checks that no part of a snapshot is taken for one, nor the whole with a flipped bit.
func checkDamage(t *testing.T, snapshot []byte) {
	t.Helper()
	for n := range snapshot {
		checkRefused(t, bytes.NewReader(snapshot[:n]), ErrSnapshotDamaged)
	}
	for i := len(headerV2); i < len(snapshot); i++ {
		damaged := bytes.Clone(snapshot)
		damaged[i] ^= 0x10
		checkRefused(t, bytes.NewReader(damaged), ErrSnapshotDamaged)
	}
}
