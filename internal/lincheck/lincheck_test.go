package lincheck

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// op is one operation of a hand-written history. Its times come from its place: the
// next begins when it has returned, but for those that are concurrent.
type op struct {
	in   Input
	out  Output
	with bool // concurrent with the one before
}

func get(key, value string) op {
	found := map[string]string{}
	if value != "" {
		found[key] = value
	}
	return op{in: Input{Kind: Get, Keys: []string{key}}, out: Output{Result: Done, Found: found}}
}

func list(pairs ...string) op {
	found := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		found[pairs[i]] = pairs[i+1]
	}
	return op{in: Input{Kind: List}, out: Output{Result: Done, Found: found}}
}

func set(result Result, pairs ...string) op {
	o := op{in: Input{Kind: Set}, out: Output{Result: result}}
	for i := 0; i < len(pairs); i += 2 {
		o.in.Keys, o.in.Values = append(o.in.Keys, pairs[i]), append(o.in.Values, pairs[i+1])
	}
	return o
}

func remove(result Result, removed int, keys ...string) op {
	return op{in: Input{Kind: Remove, Keys: keys}, out: Output{Result: result, Removed: removed}}
}

func removeAll(result Result, removed int) op {
	return op{in: Input{Kind: RemoveAll}, out: Output{Result: result, Removed: removed}}
}

func (o op) ifMatch(value string) op { o.in.IfMatch = value; return o }
func (o op) ifAbsent() op            { o.in.IfAbsent = true; return o }
func (o op) ofGroup(group string) op { o.in.Group = group; return o }
func (o op) concurrent() op          { o.with = true; return o }

func record(ops []op) *Recorder {
	r := NewRecorder()
	var call int64
	for i, o := range ops {
		if !o.with {
			call += 10
		}
		r.Add(i, o.in, o.out, call, call+5)
	}
	return r
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		ops  []op
		ok   bool
	}{
		{"nothing", nil, true},
		{"a read of what was set", []op{get("a", ""), set(Done, "a", "1"), get("a", "1"), set(Done, "a", "2"), get("a", "2")}, true},
		{"a stale read", []op{set(Done, "a", "1"), set(Done, "a", "2"), get("a", "1")}, false},
		{"a read that misses a set", []op{set(Done, "a", "1"), get("a", "")}, false},
		{"a read of what nobody set", []op{set(Done, "a", "1"), get("a", "2")}, false},
		{"a read beside a set: before", []op{set(Done, "a", "1"), set(Done, "a", "2"), get("a", "1").concurrent()}, true},
		{"a read beside a set: after", []op{set(Done, "a", "1"), set(Done, "a", "2"), get("a", "2").concurrent()}, true},
		{"new, then old, beside a set", []op{set(Done, "a", "1"), set(Unknown, "a", "2"), get("a", "2"), get("a", "1")}, false},
		{"keys of other groups are others", []op{set(Done, "a", "1").ofGroup("x"), get("a", "").ofGroup("y"), get("a", "1").ofGroup("x")}, true},
		{"stale in one group of two", []op{set(Done, "a", "1").ofGroup("x"), get("a", "").ofGroup("y"), get("a", "").ofGroup("x")}, false},

		{"a write without an answer took effect at once", []op{set(Unknown, "a", "1"), get("a", "1")}, true},
		{"a write without an answer took effect late", []op{set(Unknown, "a", "1"), get("a", ""), set(Done, "a", "2"), get("a", "2"), get("a", "1")}, true},
		{"a write without an answer never took effect", []op{set(Unknown, "a", "1"), get("a", ""), get("a", "")}, true},
		{"a write without an answer was seen, then unseen", []op{set(Unknown, "a", "1"), get("a", "1"), get("a", "")}, false},
		{"a write without an answer took effect twice", []op{set(Unknown, "a", "1"), get("a", "1"), set(Done, "a", "2"), get("a", "2"), get("a", "1")}, false},
		{"a remove without an answer took effect late", []op{set(Done, "a", "1"), remove(Unknown, 0, "a"), get("a", "1"), get("a", "")}, true},
		{"a write took effect before it was sent", []op{get("a", "1"), set(Unknown, "a", "1")}, false},
		{"a write that was not applied is seen", []op{set(NotApplied, "a", "1"), get("a", "1")}, false},
		{"a write that was not applied is not seen", []op{set(NotApplied, "a", "1"), get("a", "")}, true},
		{"reads without an answer", []op{set(Done, "a", "1"), {in: get("a", "").in, out: Output{Result: Unknown}}, {in: list().in, out: Output{Result: NotApplied}}}, true},

		{"several keys at once", []op{set(Done, "a", "1", "b", "2"), list("a", "1", "b", "2"), remove(Done, 2, "a", "b", "c"), list()}, true},
		{"a torn set, seen by a list", []op{set(Unknown, "a", "1", "b", "2"), list("a", "1")}, false},
		{"a torn set, seen by reads", []op{set(Unknown, "a", "1", "b", "2"), get("a", "1"), get("b", "")}, false},
		{"a torn remove", []op{set(Done, "a", "1", "b", "2"), remove(Unknown, 0, "a", "b"), list("b", "2")}, false},
		{"a list that mixes two states", []op{set(Done, "a", "1", "b", "2"), set(Done, "a", "3", "b", "4"), list("a", "1", "b", "4").concurrent()}, false},
		{"a list with a key too many", []op{set(Done, "a", "1"), remove(Done, 1, "a"), list("a", "1")}, false},
		{"all removed", []op{set(Done, "a", "1", "b", "2"), removeAll(Done, 2), list(), removeAll(Done, 0)}, true},
		{"not all removed", []op{set(Done, "a", "1", "b", "2"), removeAll(Done, 2), list("b", "2")}, false},
		{"all removed, miscounted", []op{set(Done, "a", "1", "b", "2"), removeAll(Done, 1)}, false},
		{"removed, miscounted", []op{set(Done, "a", "1"), remove(Done, 2, "a", "b")}, false},
		{"removed twice", []op{set(Done, "a", "1"), remove(Done, 1, "a"), remove(Done, 1, "a")}, false},

		{"conditions that hold", []op{set(Done, "a", "1").ifAbsent(), set(Done, "a", "2").ifMatch("1"), remove(Done, 1, "a").ifMatch("2"), set(Done, "a", "3").ifAbsent()}, true},
		{"conditions that fail", []op{set(Done, "a", "1"), set(Failed, "a", "2").ifAbsent(), set(Failed, "a", "3").ifMatch("9"), remove(Failed, 0, "a").ifMatch("9"), get("a", "1")}, true},
		{"a lost update", []op{set(Done, "a", "1"), get("a", "1"), set(Done, "a", "2").ifMatch("1"), set(Done, "a", "3").ifMatch("1").concurrent()}, false},
		{"one update wins", []op{set(Done, "a", "1"), get("a", "1"), set(Done, "a", "2").ifMatch("1"), set(Failed, "a", "3").ifMatch("1").concurrent(), get("a", "2")}, true},
		{"two are first", []op{set(Done, "a", "1").ifAbsent(), set(Done, "a", "2").ifAbsent().concurrent()}, false},
		{"a condition on what is gone", []op{set(Done, "a", "1"), remove(Done, 1, "a"), set(Done, "a", "2").ifMatch("1")}, false},
		{"a conditional remove of another's value", []op{set(Done, "a", "1"), set(Done, "a", "2"), remove(Done, 1, "a").ifMatch("1")}, false},
		{"failed without a reason", []op{set(Done, "a", "1"), set(Failed, "a", "2").ifMatch("1"), get("a", "1")}, false},
		{"failed, and applied", []op{set(Done, "a", "1"), set(Failed, "a", "2").ifMatch("9"), get("a", "2")}, false},
		{"failed for a write without an answer", []op{set(Done, "a", "1"), set(Unknown, "a", "2"), set(Failed, "a", "3").ifMatch("1"), get("a", "2")}, true},
		{"a conditional write without an answer has failed", []op{set(Done, "a", "1"), set(Unknown, "a", "2").ifMatch("9"), get("a", "1")}, true},
		{"a conditional write without an answer, late", []op{set(Done, "a", "1"), set(Unknown, "a", "2").ifMatch("1"), get("a", "1"), get("a", "2")}, true},
		{"a conditional write without an answer, against its condition", []op{set(Done, "a", "1"), set(Unknown, "a", "2").ifMatch("9"), get("a", "2")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := record(tt.ops).Check(time.Minute, "")
			if tt.ok && err != nil {
				t.Errorf("got %v, want linearizable", err)
			}
			if !tt.ok && !errors.Is(err, ErrNotLinearizable) {
				t.Errorf("got %v, want %v", err, ErrNotLinearizable)
			}
		})
	}
}

func TestCheckDrawsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	err := record([]op{set(Done, "a", "1"), get("a", "never-set")}).Check(time.Minute, dir)
	pages, _ := filepath.Glob(filepath.Join(dir, "*.html"))
	if len(pages) != 1 || !errors.Is(err, ErrNotLinearizable) || !strings.Contains(err.Error(), pages[0]) {
		t.Fatalf("got %v and %v, want the one page in %s", err, pages, dir)
	}
	if page, err := os.ReadFile(pages[0]); err != nil || !strings.Contains(string(page), "never-set") {
		t.Errorf("got %d bytes and %v, want a page that has the read", len(page), err)
	}
}

// TestUndecided: a check that has no time tells so, and not that all is well.
func TestUndecided(t *testing.T) {
	var ops []op
	for i := range 30 { // open for ever: every order is tried
		ops = append(ops, set(Unknown, "a", string(rune('A'+i))))
	}
	r := record(append(ops, get("a", "never set")))
	if err := r.Check(50*time.Millisecond, ""); !errors.Is(err, ErrUndecided) {
		t.Errorf("got %v, want %v", err, ErrUndecided)
	}
}

// TestDo: what runs at the same time is concurrent in the history, what runs later
// is later.
func TestDo(t *testing.T) {
	r := NewRecorder()
	began, end := make(chan struct{}), make(chan struct{})
	var setter sync.WaitGroup
	write, before, after := set(Done, "a", "1"), get("a", ""), get("a", "1")
	setter.Go(func() {
		r.Do(1, write.in, func() Output { close(began); <-end; return write.out })
	})
	<-began
	for _, o := range []op{before, after} {
		r.Do(2, o.in, func() Output { return o.out })
	}
	close(end)
	setter.Wait()
	if err := r.Check(time.Minute, ""); err != nil {
		t.Errorf("both reads beside the set: got %v, want linearizable", err)
	}
	r.Do(2, before.in, func() Output { return before.out })
	if err := r.Check(time.Minute, ""); !errors.Is(err, ErrNotLinearizable) {
		t.Errorf("an old read after the set: got %v, want %v", err, ErrNotLinearizable)
	}
	if got := r.Count("get", Done); got != 3 {
		t.Errorf("reads done: got %d, want 3", got)
	}
}
