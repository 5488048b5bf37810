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
		{name: "nothing", ops: nil, ok: true},
		{name: "a read of what was set", ops: []op{get("a", ""), set(Done, "a", "1"), get("a", "1"), set(Done, "a", "2"),
			get("a", "2")}, ok: true},
		{name: "a stale read", ops: []op{set(Done, "a", "1"), set(Done, "a", "2"), get("a", "1")}, ok: false},
		{name: "a read that misses a set", ops: []op{set(Done, "a", "1"), get("a", "")}, ok: false},
		{name: "a read of what nobody set", ops: []op{set(Done, "a", "1"), get("a", "2")}, ok: false},
		{name: "a read beside a set: before", ops: []op{set(Done, "a", "1"), set(Done, "a", "2"),
			get("a", "1").concurrent()}, ok: true},
		{name: "a read beside a set: after", ops: []op{set(Done, "a", "1"), set(Done, "a", "2"),
			get("a", "2").concurrent()}, ok: true},
		{name: "new, then old, beside a set", ops: []op{set(Done, "a", "1"), set(Unknown, "a", "2"), get("a", "2"),
			get("a", "1")}, ok: false},
		{name: "keys of other groups are others", ops: []op{set(Done, "a", "1").ofGroup("x"), get("a", "").ofGroup("y"),
			get("a", "1").ofGroup("x")}, ok: true},
		{name: "stale in one group of two", ops: []op{set(Done, "a", "1").ofGroup("x"), get("a", "").ofGroup("y"),
			get("a", "").ofGroup("x")}, ok: false},

		{name: "a write without an answer took effect at once", ops: []op{set(Unknown, "a", "1"), get("a", "1")}, ok: true},
		{name: "a write without an answer took effect late", ops: []op{set(Unknown, "a", "1"), get("a", ""),
			set(Done, "a", "2"), get("a", "2"), get("a", "1")}, ok: true},
		{name: "a write without an answer never took effect", ops: []op{set(Unknown, "a", "1"), get("a", ""),
			get("a", "")}, ok: true},
		{name: "a write without an answer was seen, then unseen", ops: []op{set(Unknown, "a", "1"), get("a", "1"),
			get("a", "")}, ok: false},
		{name: "a write without an answer took effect twice", ops: []op{set(Unknown, "a", "1"), get("a", "1"),
			set(Done, "a", "2"), get("a", "2"), get("a", "1")}, ok: false},
		{name: "a remove without an answer took effect late", ops: []op{set(Done, "a", "1"), remove(Unknown, 0, "a"),
			get("a", "1"), get("a", "")}, ok: true},
		{name: "a write took effect before it was sent", ops: []op{get("a", "1"), set(Unknown, "a", "1")}, ok: false},
		{name: "a write that was not applied is seen", ops: []op{set(NotApplied, "a", "1"), get("a", "1")}, ok: false},
		{name: "a write that was not applied is not seen", ops: []op{set(NotApplied, "a", "1"), get("a", "")}, ok: true},
		{name: "reads without an answer", ops: []op{set(Done, "a", "1"), {in: get("a", "").in,
			out: Output{Result: Unknown}}, {in: list().in, out: Output{Result: NotApplied}}}, ok: true},

		{name: "several keys at once", ops: []op{set(Done, "a", "1", "b", "2"), list("a", "1", "b", "2"),
			remove(Done, 2, "a", "b", "c"), list()}, ok: true},
		{name: "a torn set, seen by a list", ops: []op{set(Unknown, "a", "1", "b", "2"), list("a", "1")}, ok: false},
		{name: "a torn set, seen by reads", ops: []op{set(Unknown, "a", "1", "b", "2"), get("a", "1"), get("b", "")},
			ok: false},
		{name: "a torn remove", ops: []op{set(Done, "a", "1", "b", "2"), remove(Unknown, 0, "a", "b"), list("b", "2")},
			ok: false},
		{name: "a list that mixes two states", ops: []op{set(Done, "a", "1", "b", "2"), set(Done, "a", "3", "b", "4"),
			list("a", "1", "b", "4").concurrent()}, ok: false},
		{name: "a list with a key too many", ops: []op{set(Done, "a", "1"), remove(Done, 1, "a"), list("a", "1")}, ok: false},
		{name: "all removed", ops: []op{set(Done, "a", "1", "b", "2"), removeAll(Done, 2), list(), removeAll(Done, 0)},
			ok: true},
		{name: "not all removed", ops: []op{set(Done, "a", "1", "b", "2"), removeAll(Done, 2), list("b", "2")}, ok: false},
		{name: "all removed, miscounted", ops: []op{set(Done, "a", "1", "b", "2"), removeAll(Done, 1)}, ok: false},
		{name: "removed, miscounted", ops: []op{set(Done, "a", "1"), remove(Done, 2, "a", "b")}, ok: false},
		{name: "removed twice", ops: []op{set(Done, "a", "1"), remove(Done, 1, "a"), remove(Done, 1, "a")}, ok: false},

		{name: "conditions that hold", ops: []op{set(Done, "a", "1").ifAbsent(), set(Done, "a", "2").ifMatch("1"),
			remove(Done, 1, "a").ifMatch("2"), set(Done, "a", "3").ifAbsent()}, ok: true},
		{name: "conditions that fail", ops: []op{set(Done, "a", "1"), set(Failed, "a", "2").ifAbsent(),
			set(Failed, "a", "3").ifMatch("9"), remove(Failed, 0, "a").ifMatch("9"), get("a", "1")}, ok: true},
		{name: "a lost update", ops: []op{set(Done, "a", "1"), get("a", "1"), set(Done, "a", "2").ifMatch("1"),
			set(Done, "a", "3").ifMatch("1").concurrent()}, ok: false},
		{name: "one update wins", ops: []op{set(Done, "a", "1"), get("a", "1"), set(Done, "a", "2").ifMatch("1"),
			set(Failed, "a", "3").ifMatch("1").concurrent(), get("a", "2")}, ok: true},
		{name: "two are first", ops: []op{set(Done, "a", "1").ifAbsent(), set(Done, "a", "2").ifAbsent().concurrent()},
			ok: false},
		{name: "a condition on what is gone", ops: []op{set(Done, "a", "1"), remove(Done, 1, "a"),
			set(Done, "a", "2").ifMatch("1")}, ok: false},
		{name: "a conditional remove of another's value", ops: []op{set(Done, "a", "1"), set(Done, "a", "2"),
			remove(Done, 1, "a").ifMatch("1")}, ok: false},
		{name: "failed without a reason", ops: []op{set(Done, "a", "1"), set(Failed, "a", "2").ifMatch("1"),
			get("a", "1")}, ok: false},
		{name: "failed, and applied", ops: []op{set(Done, "a", "1"), set(Failed, "a", "2").ifMatch("9"), get("a", "2")},
			ok: false},
		{name: "failed for a write without an answer", ops: []op{set(Done, "a", "1"), set(Unknown, "a", "2"),
			set(Failed, "a", "3").ifMatch("1"), get("a", "2")}, ok: true},
		{name: "a conditional write without an answer has failed", ops: []op{set(Done, "a", "1"),
			set(Unknown, "a", "2").ifMatch("9"), get("a", "1")}, ok: true},
		{name: "a conditional write without an answer, late", ops: []op{set(Done, "a", "1"),
			set(Unknown, "a", "2").ifMatch("1"), get("a", "1"), get("a", "2")}, ok: true},
		{name: "a conditional write without an answer, against its condition", ops: []op{set(Done, "a", "1"),
			set(Unknown, "a", "2").ifMatch("9"), get("a", "2")}, ok: false},
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
