package storage

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

// TestPacer: those that share a disk write one at a time, and every one gets its turn.
func TestPacer(t *testing.T) {
	var p Pacer
	var writing, most, steps atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				_ = p.Step(func() error {
					if now := writing.Add(1); now > most.Load() {
						most.Store(now)
					}
					for range 100 { // the others get the chance
						runtime.Gosched()
						if now := writing.Load(); now > most.Load() {
							most.Store(now)
						}
					}
					steps.Add(1)
					writing.Add(-1)
					return nil
				})
			}
		})
	}
	all.Wait()
	if most.Load() != 1 || steps.Load() != 80 {
		t.Errorf("got %d at once in %d steps, want 1 in 80", most.Load(), steps.Load())
	}
}

// TestSnapshotsShareTheDisk: a snapshot that is written waits for the step of another one.
func TestSnapshotsShareTheDisk(t *testing.T) {
	dir, _ := testVolume(t, 1)
	v := mustOpen(t, dir)
	defer v.Close()
	sink, err := v.Snapshots.Create(1, 2, 2, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sink.Cancel() }()
	began, release, written := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var others sync.WaitGroup
	others.Go(func() { _ = v.Snapshots.pacer.Step(func() error { close(began); <-release; return nil }) })
	<-began
	go func() {
		_, err := sink.Write(bytes.Repeat([]byte("s"), snapshotStep))
		written <- err
	}()
	for range 1000 { // it is given time to go wrong
		select {
		case err := <-written:
			t.Fatalf("got %v, want that it waits for the step of the other", err)
		default:
		}
	}
	close(release)
	if err := <-written; err != nil {
		t.Error(err)
	}
	others.Wait()
}
