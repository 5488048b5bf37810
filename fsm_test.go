package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// newTestFSM returns a state machine and its console.
func newTestFSM(level string) (*fsm, *logBuffer) {
	out := new(logBuffer)
	return newFSM(newLogger(out, level)), out
}

// entry is the entry of the log at index of term with the given commands.
func entry(index, term uint64, commands ...command.Command) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: command.Append(nil, commands...)}
}

// setting is the command that sets each key to the value behind it.
func setting(pairs ...string) command.Command {
	c := command.Command{Kind: command.Set}
	for i := 0; i < len(pairs); i += 2 {
		c.Pairs = append(c.Pairs, command.Pair{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return c
}

// apply applies commands as the entry at index of term, and returns what they did.
func apply(f *fsm, index, term uint64, commands ...command.Command) []command.Result {
	return f.Apply(entry(index, term, commands...)).([]command.Result)
}

func removing(keys ...string) command.Command {
	c := command.Command{Kind: command.Remove}
	for _, key := range keys {
		c.Pairs = append(c.Pairs, command.Pair{Key: key})
	}
	return c
}

// with is c with options.
func with(c command.Command, o command.Options) command.Command {
	c.Options = &o
	return c
}

func removingPrefix(prefix string) command.Command {
	return command.Command{Kind: command.RemovePrefix, Pairs: []command.Pair{{Key: prefix}}}
}

// once is c with an idempotency key.
func once(c command.Command, key string) command.Command {
	return with(c, command.Options{IdempotencyKey: key})
}

var lineStart = regexp.MustCompile(`(?m)^INFO\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d{4})\] `)

func TestConsoleLines(t *testing.T) {
	for _, tt := range []struct {
		name string
		log  *raft.Log
		want string
	}{
		{
			name: "set",
			log:  entry(12, 2, setting("1", "one")),
			want: `set key="1" value="one" index=12 term=2`,
		},
		{
			name: "set to nothing",
			log:  entry(12, 2, setting("1", "")),
			want: `set key="1" value="" index=12 term=2`,
		},
		{name: "remove", log: entry(13, 2, removing("1")), want: `remove key="1" index=13 term=2`},
		{
			name: "several",
			log:  entry(14, 3, setting("a", "1", "b", "2"), removing("a", "c")),
			want: `set key="a" value="1" index=14 term=3
set key="b" value="2" index=14 term=3
remove key="a" index=14 term=3
remove key="c" index=14 term=3`,
		},
		{
			name: "binary",
			log:  entry(18446744073709551615, 18446744073709551614, setting("\x00\xff\n\x1b[2J", "\r\t\x7f\"\\")),
			want: `set key="\x00\xff\n\x1b[2J" value="\r\t\x7f\"\\" index=18446744073709551615 term=18446744073709551614`,
		},
		{
			name: "text",
			log:  entry(1, 1, setting("schön 日本", "é\u00a0\u202e\ufeff")),
			want: `set key="schön 日本" value="é\u00a0\u202e\ufeff" index=1 term=1`,
		},
		{
			name: "longest shown whole",
			log:  entry(1, 1, setting(strings.Repeat("k", 64), strings.Repeat("v", 64))),
			want: `set key="` + strings.Repeat("k", 64) + `" value="` + strings.Repeat("v", 64) + `" index=1 term=1`,
		},
		{
			name: "long",
			log:  entry(1, 1, setting(strings.Repeat("k", 65), strings.Repeat("v", 1<<20))),
			want: `set key="` + strings.Repeat("k", 64) + `"...(65 bytes) value="` + strings.Repeat("v", 64) +
				`"...(1048576 bytes) index=1 term=1`,
		},
		{
			name: "prefix",
			log:  entry(1, 1, setting("a", "1", "ab", "2"), removingPrefix("a")),
			want: `set key="a" value="1" index=1 term=1
set key="ab" value="2" index=1 term=1
remove prefix="a" removed=2 index=1 term=1`,
		},
		{
			name: "condition failed",
			log:  entry(7, 1, with(setting("a", "1"), command.Options{Match: command.Condition{Any: true}})),
			want: `condition failed: set key="a" value="1" index=7 term=1`,
		},
		{
			name: "repeated",
			log:  entry(7, 1, once(removing("a"), "k"), once(removing("b"), "k")),
			want: `remove key="a" index=7 term=1
refused, Idempotency-Key of another request: remove key="b" index=7 term=1`,
		},
		{
			name: "restore",
			log: entry(7, 1,
				command.Command{Kind: command.Unstage},
				command.Command{Kind: command.Stage, Pairs: setting("a", "1").Pairs},
				command.Command{Kind: command.Restore, Items: 1},
			),
			want: `begin or give up a restore index=7 term=1
stage 1 of a restore index=7 term=1
restore keys=1 complete=true index=7 term=1`,
		},
		{
			name: "long remove",
			log:  entry(1, 1, removing(strings.Repeat("k", 1024))),
			want: `remove key="` + strings.Repeat("k", 64) + `"...(1024 bytes) index=1 term=1`,
		},
		{
			name: "cut within a character",
			log:  entry(1, 1, setting("k", strings.Repeat("v", 63)+"é")),
			want: `set key="k" value="` + strings.Repeat("v", 63) + `\xc3"...(65 bytes) index=1 term=1`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, level := range []string{"debug", "info"} {
				f, out := newTestFSM(level)
				f.Apply(tt.log)
				got := lineStart.ReplaceAllString(out.String(), "")
				if want := tt.want + "\n"; got != want {
					t.Errorf("%s: got\n%s want\n%s", level, got, want)
				}
				if starts := len(lineStart.FindAllString(out.String(), -1)); starts != strings.Count(out.String(), "\n") {
					t.Errorf("%s: got %q, want INFO and the time before each line", level, out.String())
				}
			}
			for _, level := range []string{"warn", "error"} {
				f, out := newTestFSM(level)
				f.Apply(tt.log)
				if got := out.String(); got != "" {
					t.Errorf("%s: got %q, want nothing", level, got)
				}
			}
		})
	}
}

// writes is a console that keeps each write, and fails.
type writes []string

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, string(p))
	return 0, errors.New("gone")
}

func TestBatchIsOneWrite(t *testing.T) {
	var out writes
	f := newFSM(newLogger(&out, "info"))
	for first := uint64(1); first < 9; first += 4 { // the second batch holds nothing of the first
		out = nil
		responses := f.ApplyBatch([]*raft.Log{
			entry(first, 1, setting("a", "1")),
			{Index: first + 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("not a command")},
			entry(first+2, 1, setting("b", "2"), removing("a", "none")),
			entry(first+3, 1, removing("none")),
		})
		want := []any{
			[]command.Result{{Index: first}},
			nil,
			[]command.Result{{Index: first + 2}, {Index: first + 2, Removed: 1}},
			[]command.Result{{Index: first + 3}},
		}
		if !reflect.DeepEqual(responses, want) {
			t.Errorf("responses: got %v, want %v", responses, want)
		}
		if len(out) != 1 || strings.Count(out[0], "\n") != 5 {
			t.Errorf("console: got %q, want 5 lines in one write", out)
		}
		if got := appliedIndex(f); got != first+3 {
			t.Errorf("applied: got %d, want %d", got, first+3)
		}
	}
	out = nil
	f.ApplyBatch([]*raft.Log{{Index: 9, Term: 1, Type: raft.LogConfiguration}})
	if len(out) > 0 || appliedIndex(f) != 9 {
		t.Errorf("a change of the members: got %q, applied %d, want nothing, 9", out, appliedIndex(f))
	}
}

func TestApplyCountsWhatItRemoves(t *testing.T) {
	f, _ := newTestFSM("error")
	for i, tt := range []struct {
		commands []command.Command
		want     []int
	}{
		{commands: []command.Command{removing("a")}, want: []int{0}},
		{commands: []command.Command{setting("a", "1", "b", "2", "c", "3")}, want: []int{0}},
		{commands: []command.Command{removing("a", "none", "b")}, want: []int{2}},
		{commands: []command.Command{removing("a")}, want: []int{0}},
		{
			commands: []command.Command{removing("c"), setting("c", ""), removing("c", "c")},
			want:     []int{1, 0, 1},
		},
		{
			commands: []command.Command{setting("p", "", "pq", "", "q", ""), removingPrefix("p"), removing("q")},
			want:     []int{0, 2, 1},
		},
	} {
		var got []int
		for _, r := range apply(f, uint64(i+1), 1, tt.commands...) {
			got = append(got, r.Removed)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("entry %d: got %v, want %v", i+1, got, tt.want)
		}
	}
	if got := f.Len(); got != 0 {
		t.Errorf("keys: got %d, want 0", got)
	}
}

// TestConditions is what If-Match and If-None-Match mean, key by key: of "12" which
// the entry at 12 has set, "13" which the one at 13 has set, and "none".
// TestTransactRanges: what transactions have since cluster format 4.
func TestTransactRanges(t *testing.T) {
	f, _ := newTestFSM("error")
	apply(f, 1, 1, command.Command{Kind: command.RaiseFormat, To: 4})
	apply(f, 2, 1, setting("a", "1", "b", "2", "c", "3"))
	apply(f, 3, 1, setting("a", "4"))
	ops := []command.Operation{
		{Op: command.OpTouch, Key: "a"}, {Op: command.OpTouch, Key: "none"}, {Op: command.OpView, Key: "a"},
		{Op: command.OpRemoveRange, Key: "b"}, {Op: command.OpRemoveRange, Key: "b", End: "c"},
	}
	related := func(key string, of command.Property, index uint64) command.Compare {
		return command.Compare{Key: key, What: command.Related, Of: of, Is: command.Equal, Index: index}
	}
	txn := command.Command{Kind: command.Txn, Txn: &command.Transaction{Then: ops, If: []command.Compare{
		related("a", command.OfVersion, 2), related("a", command.OfCreated, 2), related("a", command.OfIndex, 3),
		related("none", command.OfVersion, 0), related("b", command.OfVersion, 1),
		{Key: "a", What: command.Related, Of: command.OfLease, Is: command.Equal},
		{Key: "a", What: command.Related, Of: command.OfValue, Is: command.Less, Value: []byte("5")},
	}}}
	got := apply(f, 4, 1, txn)[0].Txn
	if !got.Held || len(got.Operations) != len(ops) {
		t.Fatalf("got %+v, want that all conditions hold", got)
	}
	view := got.Operations[2].View.(*kv.Store)
	got.Operations[2].View = nil
	want := []command.OperationResult{{Found: true}, {}, {Found: true}, {Found: true, Removed: 2}, {}}
	if !reflect.DeepEqual(got.Operations, want) {
		t.Errorf("got %+v, want %+v", got.Operations, want)
	}
	a, _ := view.GetFull("a")
	if want := (kv.Full{Item: kv.Item{Value: "4", Index: 4}, Created: 2, Version: 3}); a != want || view.Len() != 3 {
		t.Errorf("view: got %+v of %d keys, want %+v of 3", a, view.Len(), want)
	}
	if got := f.Len(); got != 1 {
		t.Errorf("keys: got %d, want 1", got)
	}
	if got := apply(f, 5, 1, txn)[0].Txn; got.Held {
		t.Error("the same again: its conditions hold")
	}
}

// TestTransact: all conditions select the branch, each operation sees the one before it, and a
// repetition with the same idempotency key does nothing and is answered as the first was.
func TestTransact(t *testing.T) {
	f, _ := newTestFSM("error")
	apply(f, 2, 1, setting("a", "1", "b", "2"))
	txn := func(conditions ...command.Compare) command.Command {
		return command.Command{Kind: command.Txn, Txn: &command.Transaction{
			If: conditions,
			Then: []command.Operation{
				{Op: command.OpGet, Key: "a"}, {Op: command.OpSet, Key: "a", Value: []byte("then")},
				{Op: command.OpGet, Key: "a"}, {Op: command.OpRemove, Key: "b"}, {Op: command.OpRemove, Key: "none"},
			},
			Else: []command.Operation{{Op: command.OpSet, Key: "else", Value: []byte("1")}},
		}}
	}
	holds := []command.Compare{
		{Key: "a", What: command.HasIndex, Index: 2}, {Key: "a", What: command.HasValue, Value: []byte("1")},
		{Key: "b", What: command.Exists}, {Key: "none", What: command.Absent},
	}
	for i, fails := range []command.Compare{
		{Key: "a", What: command.HasIndex, Index: 1}, {Key: "none", What: command.HasIndex},
		{Key: "a", What: command.HasValue, Value: []byte("2")}, {Key: "none", What: command.HasValue},
		{Key: "none", What: command.Exists}, {Key: "a", What: command.Absent},
	} {
		all := slices.Insert(slices.Clone(holds), i%len(holds), fails)
		got := apply(f, uint64(3+i), 1, txn(all...))[0].Txn
		if want := (&command.TxnResult{Operations: []command.OperationResult{{Found: i > 0}}}); !reflect.DeepEqual(got,
			want) {
			t.Errorf("%+v does not hold: got %+v, want %+v", fails, got, want)
		}
	}
	got := apply(f, 20, 1, txn(holds...))[0]
	want := command.Result{Index: 20, Txn: &command.TxnResult{Held: true, Operations: []command.OperationResult{
		{Found: true, Value: "1", Index: 2}, {Found: true}, {Found: true, Value: "then", Index: 20}, {Found: true}, {},
	}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("all hold: got %+v, want %+v", got.Txn, want.Txn)
	}

	write := command.Command{Kind: command.Txn, Txn: &command.Transaction{
		Then: []command.Operation{{Op: command.OpRemove, Key: "a"}},
	}}
	first := apply(f, 21, 1, once(write, "key"))[0]
	apply(f, 22, 1, setting("a", "again"))
	if again := apply(f, 23, 1, once(write, "key"))[0]; !reflect.DeepEqual(again, first) ||
		!again.Txn.Operations[0].Found {
		t.Errorf("a repetition: got %+v, want %+v", again, first)
	}
	if reused := apply(f, 24, 1, once(txn(), "key"))[0]; !reused.Reused || reused.Txn != nil {
		t.Errorf("another transaction with its key: got %+v, want Reused", reused)
	}
	if item, _ := f.Get("a"); item.Value != "again" {
		t.Errorf("a: got %q, want again", item.Value)
	}
	apply(f, 25, 1, command.Command{Kind: command.RaiseFormat, To: 2})
	if got := f.Format(); got != 2 {
		t.Errorf("format: got %d, want 2", got)
	}
}

func TestConditions(t *testing.T) {
	var (
		star = command.Condition{Any: true}
		tags = func(indexes ...uint64) command.Condition { return command.Condition{Indexes: indexes} }
	)
	for _, tt := range []struct {
		name             string
		match, noneMatch command.Condition
		keys             []string
		failed           int // as in result
		current          uint64
	}{
		{name: "no condition", keys: []string{"none"}},
		{name: "match", match: tags(12), keys: []string{"12"}},
		{name: "match in a list", match: tags(7, 12, 13), keys: []string{"12"}},
		{
			name:    "match of another entry",
			match:   tags(11),
			keys:    []string{"12"},
			failed:  1,
			current: 12,
		},
		{name: "match of no key", match: tags(12), keys: []string{"none"}, failed: 1},
		{name: "foreign ETag, no key", match: tags(0), keys: []string{"none"}, failed: 1},
		{name: "match any", match: star, keys: []string{"12"}},
		{name: "match any, no key", match: star, keys: []string{"none"}, failed: 1},
		{name: "none", noneMatch: star, keys: []string{"none"}},
		{name: "none, but a key", noneMatch: star, keys: []string{"12"}, failed: 1, current: 12},
		{name: "none of these", noneMatch: tags(11, 13), keys: []string{"12"}},
		{
			name:      "none of these, but it is",
			noneMatch: tags(11, 12),
			keys:      []string{"12"},
			failed:    1,
			current:   12,
		},
		{name: "none of these, no key", noneMatch: tags(12), keys: []string{"none"}},
		{name: "foreign ETag, none of it", noneMatch: tags(0), keys: []string{"none"}},
		{name: "both", match: star, noneMatch: tags(11), keys: []string{"12"}},
		{
			name:      "both, the second fails",
			match:     star,
			noneMatch: tags(12),
			keys:      []string{"12"},
			failed:    1,
			current:   12,
		},
		{name: "all keys", match: tags(12, 13), keys: []string{"12", "13"}},
		{
			name:    "all keys, but the second",
			match:   tags(12),
			keys:    []string{"12", "13"},
			failed:  2,
			current: 13,
		},
		{
			name:   "all keys, but the third",
			match:  star,
			keys:   []string{"12", "13", "none"},
			failed: 3,
		},
		{
			name:      "none of the keys, but the second",
			noneMatch: star,
			keys:      []string{"none", "13"},
			failed:    2,
			current:   13,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range []command.Kind{command.Set, command.Remove} {
				f, _ := newTestFSM("error")
				apply(f, 12, 1, setting("12", "old"))
				apply(f, 13, 1, setting("13", "old"))
				c := command.Command{Kind: kind, Options: &command.Options{Match: tt.match, NoneMatch: tt.noneMatch}}
				want := command.Result{Index: 14, Failed: tt.failed, Current: tt.current}
				values := map[string]string{"12": "old", "13": "old"}
				for _, key := range tt.keys {
					c.Pairs = append(c.Pairs, command.Pair{Key: key, Value: []byte("new")})
					if tt.failed != 0 {
						continue
					}
					if _, ok := values[key]; ok && kind == command.Remove {
						want.Removed++
					}
					delete(values, key)
					if kind == command.Set {
						values[key] = "new"
					}
				}
				if got := apply(f, 14, 1, c)[0]; got != want {
					t.Errorf("kind %d: got %+v, want %+v", kind, got, want)
				}
				got := make(map[string]string)
				for key, item := range items(f.Store) {
					got[key] = item.Value
				}
				if !reflect.DeepEqual(got, values) {
					t.Errorf("kind %d: got %v, want %v", kind, got, values)
				}
			}
		})
	}
}

// TestAppliedOnce: a command with an idempotency key is applied once and has the same
// result ever after, whatever happens to its keys meanwhile, and also in a state machine
// that was restored from a snapshot.
func TestAppliedOnce(t *testing.T) {
	create := command.Options{IdempotencyKey: "create", NoneMatch: command.Condition{Any: true}}
	first := []struct {
		c    command.Command
		want command.Result
	}{
		{c: once(setting("a", "1"), "set"), want: command.Result{Index: 1}},
		{c: once(removing("a", "none"), "remove"), want: command.Result{Index: 2, Removed: 1}},
		{c: with(setting("b", "1"), create), want: command.Result{Index: 3}},
		{
			c:    once(removingPrefix("b"), "prefix"),
			want: command.Result{Index: 4, Removed: 1},
		},
		{
			c:    with(setting("c", "1"), command.Options{IdempotencyKey: "failed", Match: command.Condition{Any: true}}),
			want: command.Result{Index: 5, Failed: 1},
		},
	}
	f, _ := newTestFSM("error")
	for i, tt := range first {
		if got := apply(f, uint64(i+1), 1, tt.c)[0]; got != tt.want {
			t.Errorf("first: command %d: got %+v, want %+v", i+1, got, tt.want)
		}
	}
	apply(f, 6, 1, setting("a", "later", "b", "later", "c", "later"))
	restored, _ := newTestFSM("error")
	if err := restored.Restore(io.NopCloser(bytes.NewReader(persist(t, takeSnapshot(t, f))))); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*fsm{"same": f, "restored": restored} {
		want := items(f.Store)
		for i, tt := range first {
			if got := apply(f, uint64(i+7), 2, tt.c)[0]; got != tt.want {
				t.Errorf("%s: command %d again: got %+v, want %+v", name, i+1, got, tt.want)
			}
		}
		index := uint64(20)
		for what, c := range map[string]command.Command{
			"another value": once(setting("a", "2"), "set"),
			"another key":   once(setting("b", "1"), "set"),
			"another kind":  once(removing("a"), "set"),
			"no condition":  once(setting("b", "1"), "create"),
			"another condition": with(setting("b", "1"), command.Options{
				IdempotencyKey: "create",
				NoneMatch:      command.Condition{Indexes: []uint64{0}},
			}),
		} {
			index++
			if got, want := apply(f, index, 2, c)[0], (command.Result{Index: index, Reused: true}); got != want {
				t.Errorf("%s: %s: got %+v, want %+v", name, what, got, want)
			}
		}
		if got := items(f.Store); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want what was there before, %v", name, got, want)
		}
	}
}

// snapshotOfEarlierVersion was written before the identity of a command had a version
// of its own, after three commands with idempotency keys and a fourth.
const snapshotOfEarlierVersion = "726166746b76" + "02" + "af02" + "03" +
	"9b71415502883084c86fd9e3fe71d63368116ac63c2e933fc2e357fe24987e7a" +
	"01" + "0163" + "0133" + "af02" +
	"03" +
	"03736574" + "25" + "0c0678a32ad9ee5af0e3bd30d6404a6eafb79ade2ae636682878c0475dee2e5d" + "ac02000000" +
	"0672656d6f7665" + "25" + "34d8fcca95900cc0cbcc9bd9d5e28f4cf84d6b179feb521bbb82d50ffc6cf771" + "ad02010000" +
	"066661696c6564" + "25" + "98414a386c4441a00c0003674abfc720adc74657524f4427b20e7d69ea050072" + "ae02000100" +
	"00" + "689e0ba4"

// TestRecordsOfEarlierVersion: a command that was applied before an upgrade is
// recognized after it, and every replica, whatever its version, writes the same records.
func TestRecordsOfEarlierVersion(t *testing.T) {
	commands := []struct {
		c    command.Command
		want command.Result
	}{
		{
			c: with(setting("a", "1"), command.Options{
				IdempotencyKey: "set",
				NoneMatch:      command.Condition{Any: true},
			}),
			want: command.Result{Index: 300},
		},
		{
			c:    once(removing("a", "none"), "remove"),
			want: command.Result{Index: 301, Removed: 1},
		},
		{
			c: with(setting("b", "2"), command.Options{
				IdempotencyKey: "failed",
				Match:          command.Condition{Indexes: []uint64{7}},
			}),
			want: command.Result{Index: 302, Failed: 1},
		},
	}
	written, err := hex.DecodeString(snapshotOfEarlierVersion)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := newTestFSM("error")
	if err := f.Restore(io.NopCloser(bytes.NewReader(written))); err != nil {
		t.Fatal(err)
	}
	for i, tt := range commands {
		if got := apply(f, uint64(310+i), 4, tt.c)[0]; got != tt.want {
			t.Errorf("command %d again: got %+v, want %+v", i+1, got, tt.want)
		}
	}
	same, _ := newTestFSM("error")
	for i, tt := range commands {
		apply(same, uint64(300+i), uint64(2+i/2), tt.c)
	}
	apply(same, 303, 3, setting("c", "3"))
	if got := persist(t, takeSnapshot(t, same)); !bytes.Equal(got, written) {
		t.Errorf("snapshot of the same log: got %x, want %x", got, written)
	}
}

func TestUndecodableEntryPanics(t *testing.T) {
	for _, data := range [][]byte{nil, {}, {2}, []byte("set a 1"), append(command.Append(nil, setting("a", "2")), 0)} {
		f, _ := newTestFSM("info")
		apply(f, 6, 1, setting("a", "1"))
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, "entry 7 ") {
					t.Errorf("%q: got %q, want a panic that names entry 7", data, got)
				}
			}()
			f.Apply(&raft.Log{Index: 7, Term: 1, Type: raft.LogCommand, Data: data})
		}()
		if got, _ := f.Store.Get("a"); got.Value != "1" || appliedIndex(f) != 6 {
			t.Errorf("%q: got %v at %d, want what was there before", data, got, appliedIndex(f))
		}
	}
}

// persist takes a snapshot of f and returns its bytes.
func persist(t testing.TB, snapshot raft.FSMSnapshot) []byte {
	t.Helper()
	store := raft.NewInmemSnapshotStore()
	sink, err := store.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshot.Persist(sink); err != nil {
		t.Fatal(err)
	}
	snapshot.Release()
	_, r, err := store.Open(sink.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func takeSnapshot(t testing.TB, f *fsm) raft.FSMSnapshot {
	t.Helper()
	snapshot, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// closing is a snapshot being restored, which fails at its end if broken is set.
type closing struct {
	io.Reader
	broken error
}

func (c *closing) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err == io.EOF && c.broken != nil {
		err = c.broken
	}
	return n, err
}

func (c *closing) Close() error { return nil }

func checkSame(t testing.TB, what string, got, want *fsm) {
	t.Helper()
	if !maps.Equal(items(got.Store), items(want.Store)) {
		t.Errorf("%s: got %.2000v, want %.2000v", what, items(got.Store), items(want.Store))
	}
	gotIndex, gotTerm := got.Store.Applied()
	if index, term := want.Store.Applied(); gotIndex != index || gotTerm != term {
		t.Errorf("%s: applied: got %d of term %d, want %d of %d", what, gotIndex, gotTerm, index, term)
	}
}

func TestSnapshotAndRestore(t *testing.T) {
	f, _ := newTestFSM("info")
	apply(f, 3, 1, setting("a", "1", "b", "2", "\xff\x00", "\x00\xfe"))
	apply(f, 5, 2, removing("b"))
	same, _ := newTestFSM("error")
	apply(same, 3, 1, setting("a", "1", "b", "2", "\xff\x00", "\x00\xfe"))
	apply(same, 5, 2, removing("b"))
	snapshot := takeSnapshot(t, f)
	apply(f, 6, 2, setting("a", "after the snapshot", "c", "3")) // Persist comes later, and sees nothing of it

	data := persist(t, snapshot)
	restored, out := newTestFSM("info")
	restored.Apply(entry(1, 1, setting("gone", "x")))
	if err := restored.Restore(&closing{Reader: bytes.NewReader(data)}); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "restored", restored, same)
	if got := out.String(); !strings.HasSuffix(got, "] Restored a snapshot: 2 keys, index=5\n") {
		t.Errorf("console: got %q, want that it has restored a snapshot", got)
	}

	restored.Reset()
	empty, _ := newTestFSM("error")
	checkSame(t, "reset", restored, empty)
	if err := restored.Restore(&closing{Reader: bytes.NewReader(persist(t, takeSnapshot(t, empty)))}); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "restored to nothing", restored, empty)
}

func TestDamagedSnapshotChangesNothing(t *testing.T) {
	f, _ := newTestFSM("error")
	apply(f, 9, 2, setting("a", "1", "b", "2"))
	data := persist(t, takeSnapshot(t, f))

	g, _ := newTestFSM("error")
	g.Apply(entry(4, 1, setting("own", "data")))
	want, _ := newTestFSM("error")
	want.Apply(entry(4, 1, setting("own", "data")))
	refuses := func(what string, r io.Reader, broken, wantErr error) {
		t.Helper()
		if err := g.Restore(&closing{r, broken}); !errors.Is(err, wantErr) {
			t.Errorf("%s: got %v, want %v", what, err, wantErr)
		}
		checkSame(t, what, g, want)
	}
	for n := len("raftkv\x01"); n < len(data); n++ {
		refuses(fmt.Sprintf("cut to %d bytes", n), bytes.NewReader(data[:n]), nil, kv.ErrSnapshotDamaged)
	}
	for i := len("raftkv\x01"); i < len(data); i++ {
		changed := bytes.Clone(data)
		changed[i] ^= 0x10
		refuses(fmt.Sprintf("byte %d changed", i), bytes.NewReader(changed), nil, kv.ErrSnapshotDamaged)
	}
	refuses("longer", bytes.NewReader(append(bytes.Clone(data), 0)), nil, kv.ErrSnapshotDamaged)
	refuses("none of ours", strings.NewReader("something else"), nil, kv.ErrSnapshotVersion)
	gone := errors.New("disk is gone")
	refuses("a broken disk", bytes.NewReader(data[:len(data)-1]), gone, gone)
	if err := g.Restore(&closing{Reader: bytes.NewReader(data)}); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the whole one", g, f)
}

// brokenSink is a sink that can't be written to.
type brokenSink struct {
	raft.SnapshotSink
	canceled, closed int
}

var errFull = errors.New("disk is full")

func (s *brokenSink) Write([]byte) (int, error) { return 0, errFull }
func (s *brokenSink) Cancel() error             { s.canceled++; return nil }
func (s *brokenSink) Close() error              { s.closed++; return nil }

func TestUnwritableSnapshotIsCanceled(t *testing.T) {
	f, _ := newTestFSM("error")
	apply(f, 1, 1, setting("a", "1"))
	sink := new(brokenSink)
	if err := takeSnapshot(t, f).Persist(sink); !errors.Is(err, errFull) {
		t.Errorf("got %v, want %v", err, errFull)
	}
	if sink.canceled != 1 || sink.closed != 0 {
		t.Errorf("got canceled %d times, closed %d times, want 1, 0", sink.canceled, sink.closed)
	}
}

// TestReplayIsSnapshotAndTail applies random entries in random batches: the whole
// log, and any snapshot with the rest of the log, give what a map gives.
func TestReplayIsSnapshotAndTail(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		key := func() string { return strconv.Itoa(random.IntN(50)) }
		var (
			logs  []*raft.Log
			model = make(map[string]kv.Item)
			index = uint64(1)
			term  = uint64(1)
		)
		for range 300 {
			index += 1 + random.Uint64N(3) // between them, entries that no state machine sees
			term += random.Uint64N(20) / 19
			var commands []command.Command
			for range 1 + random.IntN(3) {
				var c command.Command
				if random.IntN(3) > 0 {
					c = setting(key(), strconv.Itoa(random.Int()), key(), "")
				} else {
					c = removing(key(), key())
				}
				for _, p := range c.Pairs {
					if c.Kind == command.Set {
						model[p.Key] = kv.Item{Value: string(p.Value), Index: index}
					} else {
						delete(model, p.Key)
					}
				}
				commands = append(commands, c)
			}
			logs = append(logs, entry(index, term, commands...))
		}
		replay := func(f *fsm, logs []*raft.Log) {
			for len(logs) > 0 {
				n := 1 + random.IntN(min(len(logs), 64))
				f.ApplyBatch(logs[:n])
				logs = logs[n:]
			}
		}
		whole, _ := newTestFSM("error")
		replay(whole, logs)
		if got := items(whole.Store); !maps.Equal(got, model) {
			t.Fatalf("seed %d: got %v, want %v", seed, got, model)
		}
		want := persist(t, takeSnapshot(t, whole))
		for range 5 {
			at := random.IntN(len(logs) + 1)
			first, _ := newTestFSM("error")
			replay(first, logs[:at])
			data := persist(t, takeSnapshot(t, first))
			second, _ := newTestFSM("error")
			if err := second.Restore(&closing{Reader: bytes.NewReader(data)}); err != nil {
				t.Fatal(err)
			}
			replay(second, logs[at:])
			checkSame(t, fmt.Sprintf("seed %d, snapshot after %d entries", seed, at), second, whole)
			if got := persist(t, takeSnapshot(t, second)); !bytes.Equal(got, want) {
				t.Errorf("seed %d, snapshot after %d entries: the snapshots differ, want the same bytes", seed, at)
			}
		}
	}
}

// BenchmarkApplyBatch is of raft's batches of 64 entries, one small set each.
func BenchmarkApplyBatch(b *testing.B) {
	for _, level := range []string{"info", "warn"} {
		b.Run("LOG_LEVEL="+level, func(b *testing.B) {
			const size = 64
			f := newFSM(newLogger(io.Discard, level))
			logs := make([]*raft.Log, size)
			for i := range logs {
				logs[i] = entry(0, 1, setting(fmt.Sprintf("key-%06d", i*7919), "value-of-twenty-byte"))
			}
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				for _, l := range logs {
					index++
					l.Index = index
				}
				f.ApplyBatch(logs)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/entry")
		})
	}
}

func appliedIndex(f *fsm) uint64 {
	index, _ := f.Applied()
	return index
}

// TestLeases: a set, or a transaction, with a lease whose key is not there does nothing, and a repetition gets the same
// answer; an expiry takes the keys that were not set again, and what goes with them.
func TestLeases(t *testing.T) {
	f, lines := newTestFSM("info")
	ttl := command.Lease{TTL: time.Second}
	leased := func(l command.Lease, pairs ...string) command.Command {
		return with(setting(pairs...), command.Options{Lease: l})
	}
	index := uint64(1)
	next := func(c command.Command) command.Result {
		index++
		return apply(f, index, 1, c)[0]
	}
	set := func(key, lease string) command.Operation {
		return command.Operation{Op: command.OpSet, Key: key, Lease: command.Lease{Key: lease}}
	}
	txn := func(operations ...command.Operation) command.Command {
		return command.Command{Kind: command.Txn, Txn: &command.Transaction{Then: operations}}
	}
	for _, tt := range []struct {
		name    string
		command command.Command
		gone    bool
	}{
		{name: "no session yet", command: leased(command.Lease{Key: "session"}, "a", "1", "b", "2"), gone: true},
		{name: "transaction without one", command: txn(set("x", ""), set("a", "session")), gone: true},
		{name: "session", command: leased(ttl, "session", "mine")},
		{name: "two keys of it", command: leased(command.Lease{Key: "session"}, "a", "1", "b", "2")},
		{name: "transaction that makes its own", command: txn(set("own", ""), set("c", "own"))},
		{
			name:    "transaction that removes it first",
			command: txn(command.Operation{Op: command.OpRemove, Key: "session"}, set("c", "session")),
			gone:    true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size := f.Len()
			c := tt.command
			if c.Options == nil {
				c.Options = new(command.Options)
			}
			c = with(c, command.Options{IdempotencyKey: tt.name, Lease: c.Options.Lease})
			first := next(c)
			again := next(c)
			for _, r := range []command.Result{first, again} {
				if got := r.LeaseGone(&c); got != tt.gone || r.Index != first.Index {
					t.Errorf("got %+v, the lease is gone: %t; want %t", r, got, tt.gone)
				}
			}
			if tt.gone && f.Len() != size {
				t.Errorf("got %d keys, want %d as before", f.Len(), size)
			}
		})
	}
	item, lease, _ := f.GetLeased("session")
	if lease != kv.Lease(ttl) {
		t.Errorf("lease: got %v, want %v", lease, ttl)
	}
	due := command.Command{Kind: command.Expire, Txn: &command.Transaction{If: []command.Compare{
		{Key: "session", What: command.HasIndex, Index: item.Index - 1},
		{Key: "session", What: command.HasIndex, Index: item.Index},
		{Key: "own", What: command.HasIndex, Index: item.Index},
	}}}
	got := next(due).Txn.Operations
	if want := []command.OperationResult{{}, {Found: true}, {}}; !reflect.DeepEqual(got, want) {
		t.Errorf("expiry: got %+v, want %+v", got, want)
	}
	if _, ok := f.Get("a"); ok || f.Len() != 2 {
		t.Errorf("got %d keys, want own and c alone", f.Len())
	}
	console := lines.String()
	for want, times := range map[string]int{
		`set key="session" value="mine" ttl=1s index=`:                2, // one of them was done before
		`set key="a" value="1" lease="session" index=`:                4, // two of them did nothing, one was done before
		`expire key="session" index=` + strconv.FormatUint(index, 10): 1,
		`expire key="own"`: 0,
	} {
		if got := strings.Count(console, want); got != times {
			t.Errorf("console: got %d times %q, want %d, in\n%s", got, want, times, console)
		}
	}
}
