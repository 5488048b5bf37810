package kv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestWatchModel has a random writer and many watchers of random prefixes. Each
// begins somewhere, is closed and resumes where it was told to, and is to get what
// the model's log has for its prefix: all of it, in order, once.
func TestWatchModel(t *testing.T) {
	const entries, watchers = 3000, 60
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	key := func(rnd *rand.Rand) string {
		b := make([]byte, rnd.IntN(5))
		for i := range b {
			b[i] = "ab"[rnd.IntN(2)]
		}
		return string(b)
	}

	s := New()
	var log []*Event // the model's; good after the writer
	ctx, cancel := context.WithTimeout(context.Background(), 2*waitFor)
	defer cancel()
	got := make([]string, watchers)
	prefixes, begins := make([]string, watchers), make([]uint64, watchers)
	var readers sync.WaitGroup
	for i := range watchers {
		prefixes[i] = key(rnd)
		begins[i] = rnd.Uint64N(entries)
		rnd := rand.New(rand.NewPCG(seed, uint64(i+1)))
		readers.Go(func() {
			after := begins[i]
			if rnd.IntN(2) == 0 { // late, for a resume from the history
				if s.WaitApplied(ctx, rnd.Uint64N(entries)) != nil {
					return
				}
			}
			for after < entries {
				w, err := s.Watch(prefixes[i], after)
				if err != nil {
					t.Error(err)
					return
				}
				for n := rnd.IntN(100); n > 0 && after < entries; n-- {
					short, stop := context.WithTimeout(ctx, time.Duration(rnd.IntN(3))*time.Millisecond)
					events, through, err := w.Next(short)
					stop()
					if ctx.Err() != nil || err != nil && short.Err() == nil {
						t.Errorf("watch %q: %v", prefixes[i], err)
						w.Close()
						return
					}
					got[i] += text(events)
					if through < after {
						t.Errorf("watch %q: got through %d after %d", prefixes[i], through, after)
					}
					after = through
				}
				w.Close()
			}
		})
	}
	keys := make(map[string]bool)
	for index := uint64(1); index <= entries; index++ {
		e := &Event{Index: index, Term: 1 + index/100}
		s.Update(index, e.Term, nil, func(tx *Tx) {
			for range rnd.IntN(5) {
				key := key(rnd)
				switch rnd.IntN(10) {
				case 0:
					for _, k := range allKeys(tx) {
						if strings.HasPrefix(k, key) {
							e.Changes = append(e.Changes, Change{Key: k, Removed: true})
							delete(keys, k)
						}
					}
					tx.RemovePrefix(key)
				case 1, 2:
					if keys[key] {
						e.Changes = append(e.Changes, Change{Key: key, Removed: true})
					}
					tx.Remove(key)
					delete(keys, key)
				default:
					value := fmt.Sprint(index)
					tx.Set(key, []byte(value))
					e.Changes = append(e.Changes, Change{Key: key, Value: value})
					keys[key] = true
				}
			}
		})
		log = append(log, e)
	}
	readers.Wait()
	for i := range watchers {
		var want []*Event
		for _, e := range log[begins[i]:] {
			part := &Event{Index: e.Index, Term: e.Term}
			for _, c := range e.Changes {
				if strings.HasPrefix(c.Key, prefixes[i]) {
					part.Changes = append(part.Changes, c)
				}
			}
			if len(part.Changes) > 0 {
				want = append(want, part)
			}
		}
		if want := text(want); got[i] != want {
			t.Errorf("watch %q after %d: got\n%.300s, want\n%.300s", prefixes[i], begins[i], got[i], want)
		}
	}
	checkUnwatched(t, s)
}

func allKeys(tx *Tx) (keys []string) {
	tx.state.items.Scan(func(key string, _ Item) bool {
		keys = append(keys, key)
		return true
	})
	return keys
}

// BenchmarkWatchers is of one entry that sets one key, with watchers: of none, of
// other keys, each of one of the keys, and each of all, with a goroutine that takes the events.
func BenchmarkWatchers(b *testing.B) {
	const keys = 1000
	for _, bb := range []struct {
		name     string
		watchers int
		prefix   string
		change   int // keys an entry
	}{
		{name: "none", change: 1},
		{name: "others", watchers: keys, prefix: "other", change: 1},
		{name: "own", watchers: keys, prefix: "key", change: 1},
		{name: "all", watchers: keys, change: 1},
		{name: "none/100", change: 100},
		{name: "others/100", watchers: keys, prefix: "other", change: 100},
		{name: "own/100", watchers: keys, prefix: "key", change: 100},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s, value, names := New(), make([]byte, 16), make([]string, keys)
			var readers sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			for i := range keys {
				names[i] = fmt.Sprintf("key%04d", i)
				if i >= bb.watchers {
					continue
				}
				prefix := bb.prefix
				if prefix != "" {
					prefix += names[i][3:]
				}
				w := live(b, s, prefix)
				readers.Go(func() {
					for {
						if _, _, err := w.Next(ctx); err != nil {
							if ctx.Err() == nil {
								b.Error(err)
							}
							return
						}
					}
				})
			}
			b.ReportAllocs()
			index, n := uint64(0), 0
			for b.Loop() {
				index++
				s.Update(index, 1, nil, func(tx *Tx) {
					for range bb.change {
						n++
						tx.Set(names[n%keys], value)
					}
				})
			}
			cancel()
			readers.Wait()
		})
	}
}
