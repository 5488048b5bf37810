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
