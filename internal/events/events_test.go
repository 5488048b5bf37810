package events

import (
	"strings"
	"sync"
	"testing"
)

// TestRecorder: a view has what comes after it, in order; what is beyond the bound is counted as dropped, and whoever
// adds an event never waits.
func TestRecorder(t *testing.T) {
	var r Recorder
	r.Add(Event{Kind: Vote})
	if r.Watched() || r.last != 0 {
		t.Errorf("with nobody looking: got %d events, want none kept", r.last)
	}
	v := r.Watch()
	if !r.Watched() {
		t.Error("got no viewer, want one")
	}
	r.Add(Event{Kind: Stored, From: 1, To: 2, Error: strings.Repeat("x", 1000)})
	r.Add(Event{Kind: Voted})
	<-v.News
	all, dropped := v.Since()
	if len(all) != 2 || dropped != 0 || all[0].Kind != Stored || all[1].Kind != Voted ||
		all[1].Number != 2 || all[0].At == 0 {
		t.Errorf("got %+v, %d dropped, want the two", all, dropped)
	}
	if got := len(all[0].Error); got != maxError {
		t.Errorf("an error of %d bytes, want %d", got, maxError)
	}
	if all, dropped := v.Since(); all != nil || dropped != 0 {
		t.Errorf("again: got %v, %d, want nothing", all, dropped)
	}
	slow := r.Watch()
	for range 3 * size {
		r.Add(Event{Kind: Append})
	}
	all, dropped = slow.Since()
	if len(all) != maxBatch || dropped != 3*size-maxBatch || all[0].Number != all[maxBatch-1].Number-maxBatch+1 {
		t.Errorf("got %d events, %d dropped, want %d and %d", len(all), dropped, maxBatch, 3*size-maxBatch)
	}
	slow.Close()
	v.Close()
	if r.Watched() || r.ring != nil {
		t.Error("after the last view: got that somebody looks, want that nothing is kept")
	}
}

// TestTooManyViews: there is a bound, and a view that ends makes room.
func TestTooManyViews(t *testing.T) {
	var r Recorder
	var views []*View
	for range MaxViews {
		views = append(views, r.Watch())
	}
	if v := r.Watch(); v != nil {
		t.Error("got one view more than there may be")
	}
	views[3].Close()
	if v := r.Watch(); v == nil {
		t.Error("got no view in the place of one that has ended")
	}
}

// TestRecorderConcurrent: views come and go while events are added (for the race detector).
func TestRecorderConcurrent(t *testing.T) {
	var r Recorder
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				r.Add(Event{Kind: Append})
			}
		})
		all.Go(func() {
			for range 100 {
				v := r.Watch()
				v.Since()
				v.Close()
			}
		})
	}
	all.Wait()
}

// BenchmarkUnwatched is what an event costs with nobody looking.
func BenchmarkUnwatched(b *testing.B) {
	var r Recorder
	for b.Loop() {
		if r.Watched() {
			r.Add(Event{Kind: Append})
		}
	}
}
