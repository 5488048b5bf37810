package storage

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// hungDisk does not answer an append until release is closed.
type hungDisk struct {
	LogAndStable
	release chan struct{}
}

func (d hungDisk) StoreLogs(logs []*raft.Log) error {
	<-d.release
	return d.LogAndStable.StoreLogs(logs)
}

// TestHungDisk: a write that never returns ends the node (hashicorp/raft issue 503: the leader would heartbeat on,
// and no other could take over).
func TestHungDisk(t *testing.T) {
	failed, release := make(chan error, 1), make(chan struct{})
	disk := hungDisk{raft.NewInmemStore(), release}
	s := newLog(disk, 0, nil, Options{
		Fatal:        func(err error) { failed <- err },
		WriteTimeout: 10 * time.Millisecond,
		OnAppend:     func() {},
		EntryFormat:  func([]byte) int { return 1 },
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.StoreLogs([]*raft.Log{{Index: 1, Term: 1}})
	}()
	if err := <-failed; !strings.Contains(err.Error(), "the disk has not answered") {
		t.Errorf("failed with %v, want that the disk has not answered", err)
	}
	close(release)
	<-done
}

// TestVoteIsReported: with its term, once it is on disk, and nothing else is.
func TestVoteIsReported(t *testing.T) {
	type vote struct {
		term      uint64
		candidate string
		onDisk    bool
	}
	var got []vote
	disk := raft.NewInmemStore()
	s := newLog(disk, 0, nil, Options{WriteTimeout: time.Minute, Fatal: func(err error) { t.Error(err) },
		OnVote: func(term uint64, candidate string) {
			saved, err := getStable(disk, keyLastVoteCand)
			got = append(got, vote{term, candidate, err == nil && string(saved) == candidate})
		}})
	for _, err := range []error{
		s.SetUint64(keyCurrentTerm, 3), s.SetUint64(keyLastVoteTerm, 3), s.Set(keyLastVoteCand, []byte("a:1")),
		s.SetUint64(keyCurrentTerm, 4), s.SetUint64(keyLastVoteTerm, 4), s.Set(keyLastVoteCand, []byte("b:1")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := []vote{{3, "a:1", true}, {4, "b:1", true}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestLogDetectsDamage: a damaged entry or value ends the node, and never reaches raft.
func TestLogDetectsDamage(t *testing.T) {
	newStore := func() (*Log, *raft.InmemStore, chan error) {
		below, failed := raft.NewInmemStore(), make(chan error, 1)
		s := newLog(below, 0, nil, Options{
			Fatal:        func(err error) { failed <- err },
			WriteTimeout: time.Minute,
			OnAppend:     func() {},
			EntryFormat:  func([]byte) int { return 1 },
		})
		if err := s.StoreLogs([]*raft.Log{{Index: 1, Term: 7, Data: []byte("data")}}); err != nil {
			t.Fatal(err)
		}
		return s, below, failed
	}
	read := func(f func() error) (err error, returned bool) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			err = f()
			returned = true
		}()
		<-done
		return err, returned
	}
	for name, damage := range map[string]func(l *raft.Log){
		"data":     func(l *raft.Log) { l.Data = []byte("dat4") },
		"term":     func(l *raft.Log) { l.Term = 8 },
		"type":     func(l *raft.Log) { l.Type = raft.LogNoop },
		"checksum": func(l *raft.Log) { l.Extensions = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s, below, failed := newStore()
			var l raft.Log
			if err := below.GetLog(1, &l); err != nil {
				t.Fatal(err)
			}
			damage(&l)
			if err := below.StoreLogs([]*raft.Log{&l}); err != nil {
				t.Fatal(err)
			}
			err, returned := read(func() error { return s.GetLog(1, new(raft.Log)) })
			if returned {
				t.Errorf("GetLog returned %v, want that its goroutine ends", err)
			}
			if err := <-failed; !errors.Is(err, ErrCorrupt) {
				t.Errorf("failed with %v, want ErrCorrupt", err)
			}
		})
	}
	t.Run("stable value", func(t *testing.T) {
		s, below, failed := newStore()
		if err := s.SetUint64(keyCurrentTerm, 9); err != nil {
			t.Fatal(err)
		}
		if got, err := s.GetUint64(keyCurrentTerm); got != 9 || err != nil {
			t.Fatalf("got %d, %v, want 9", got, err)
		}
		if err := below.Set(keyCurrentTerm, []byte("\x00\x00\x00\x00\x00\x00\x00\x0a1234")); err != nil {
			t.Fatal(err)
		}
		if _, returned := read(func() error { _, err := s.GetUint64(keyCurrentTerm); return err }); returned {
			t.Error("GetUint64 returned, want that its goroutine ends")
		}
		if err := <-failed; !errors.Is(err, ErrCorrupt) {
			t.Errorf("failed with %v, want ErrCorrupt", err)
		}
	})
}

// TestDiscard: a snapshot that ends with an entry which the log does not have makes worthless what is before it.
func TestDiscard(t *testing.T) {
	for _, test := range []struct {
		name                string
		index, term         uint64
		wantFirst, wantLast uint64
	}{
		{name: "its own snapshot", index: 10, term: 2, wantFirst: 1, wantLast: 21},
		{name: "another entry there", index: 10, term: 3, wantFirst: 11, wantLast: 21},
		{name: "another last entry", index: 21, term: 3, wantFirst: 0, wantLast: 0},
		{name: "beyond the log", index: 30, term: 3, wantFirst: 0, wantLast: 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, _ := testVolume(t, 20) // entries 1 to 21, of term 2
			v := mustOpen(t, dir)
			v.Log.Discard(test.index, test.term)
			for k, log := range []*Log{v.Log, nil} {
				if log == nil { // after a restart
					if err := v.Close(); err != nil {
						t.Fatal(err)
					}
					if test.wantFirst == 11 {
						return // which needs the snapshot
					}
					v = mustOpen(t, dir)
					log = v.Log
				}
				first, _ := log.FirstIndex()
				last, _ := log.LastIndex()
				if first != test.wantFirst || last != test.wantLast {
					t.Errorf("look %d: got %d to %d, want %d to %d", k, first, last, test.wantFirst, test.wantLast)
				}
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestDiscardOnInstall: it is done when the snapshot is complete, and by the next start if that did not come to it.
func TestDiscardOnInstall(t *testing.T) {
	for _, crash := range []bool{false, true} {
		dir, _ := testVolume(t, 20)
		v := mustOpen(t, dir)
		cache := NewCache(v.Log, 1<<20)
		if !crash {
			v.Snapshots.OnInstalled(func(index, term uint64) { cache.Discard(v.Log, index, term) })
		}
		if err := cache.StoreLog(&raft.Log{Index: 22, Term: 2}); err != nil {
			t.Fatal(err)
		}
		sink, err := v.Snapshots.Create(1, 22, 5, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Write([]byte("state")); err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
		log := raft.LogStore(cache)
		if crash {
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			v = mustOpen(t, dir)
			log = v.Log
		}
		for _, index := range []uint64{21, 22} {
			if err := log.GetLog(index, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("crash %v: entry %d: got %v, want ErrLogNotFound", crash, index, err)
			}
		}
		if index, term := v.Snapshots.NewestEntry(); index != 22 || term != 5 {
			t.Errorf("crash %v: newest entry: got %d of term %d, want 22 of term 5", crash, index, term)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
