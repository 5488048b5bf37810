package main

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"raftkv/internal/command"
)

// with is c with options.
func with(c command.Command, o command.Options) command.Command {
	c.Options = &o
	return c
}

// TestConditions is what If-Match and If-None-Match mean, key by key: of "12" which
// the entry at 12 has set, "13" which the one at 13 has set, and "none".
func TestConditions(t *testing.T) {
	var (
		star = command.Condition{Any: true}
		tags = func(indexes ...uint64) command.Condition { return command.Condition{Indexes: indexes} }
		none = command.Condition{}
	)
	for _, tt := range []struct {
		name             string
		match, noneMatch command.Condition
		keys             []string
		failed           int // as in result
		current          uint64
	}{
		{"no condition", none, none, []string{"none"}, 0, 0},
		{"match", tags(12), none, []string{"12"}, 0, 0},
		{"match in a list", tags(7, 12, 13), none, []string{"12"}, 0, 0},
		{"match of another entry", tags(11), none, []string{"12"}, 1, 12},
		{"match of no key", tags(12), none, []string{"none"}, 1, 0},
		{"foreign ETag, no key", tags(0), none, []string{"none"}, 1, 0},
		{"match any", star, none, []string{"12"}, 0, 0},
		{"match any, no key", star, none, []string{"none"}, 1, 0},
		{"none", none, star, []string{"none"}, 0, 0},
		{"none, but a key", none, star, []string{"12"}, 1, 12},
		{"none of these", none, tags(11, 13), []string{"12"}, 0, 0},
		{"none of these, but it is", none, tags(11, 12), []string{"12"}, 1, 12},
		{"none of these, no key", none, tags(12), []string{"none"}, 0, 0},
		{"foreign ETag, none of it", none, tags(0), []string{"none"}, 0, 0},
		{"both", star, tags(11), []string{"12"}, 0, 0},
		{"both, the second fails", star, tags(12), []string{"12"}, 1, 12},
		{"all keys", tags(12, 13), none, []string{"12", "13"}, 0, 0},
		{"all keys, but the second", tags(12), none, []string{"12", "13"}, 2, 13},
		{"all keys, but the third", star, none, []string{"12", "13", "none"}, 3, 0},
		{"none of the keys, but the second", none, star, []string{"none", "13"}, 2, 13},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range []command.Kind{command.Set, command.Remove} {
				f, _ := newTestFSM("error")
				f.Apply(entry(12, 1, setting("12", "old")))
				f.Apply(entry(13, 1, setting("13", "old")))
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
				if got := results(f.Apply(entry(14, 1, c)))[0]; got != want {
					t.Errorf("kind %d: got %+v, want %+v", kind, got, want)
				}
				got := make(map[string]string)
				for key, item := range items(f.store) {
					got[key] = item.Value
				}
				if !reflect.DeepEqual(got, values) {
					t.Errorf("kind %d: got %v, want %v", kind, got, values)
				}
			}
		})
	}
}

// TestAppliedOnce: a command with an idempotency key is done once and answered
// always, whatever happens to its keys meanwhile, and also by a state machine that
// was restored from a snapshot.
func TestAppliedOnce(t *testing.T) {
	once := func(c command.Command, key string) command.Command {
		return with(c, command.Options{IdempotencyKey: key})
	}
	create := command.Options{IdempotencyKey: "create", NoneMatch: command.Condition{Any: true}}
	first := []struct {
		c    command.Command
		want command.Result
	}{
		{once(setting("a", "1"), "set"), command.Result{Index: 1}},
		{once(removing("a", "none"), "remove"), command.Result{Index: 2, Removed: 1}},
		{with(setting("b", "1"), create), command.Result{Index: 3}},
		{once(command.Command{Kind: command.RemovePrefix, Pairs: removing("b").Pairs}, "prefix"), command.Result{Index: 4, Removed: 1}},
		{with(setting("c", "1"), command.Options{IdempotencyKey: "failed", Match: command.Condition{Any: true}}), command.Result{Index: 5, Failed: 1}},
	}
	f, _ := newTestFSM("error")
	for i, tt := range first {
		if got := results(f.Apply(entry(uint64(i+1), 1, tt.c)))[0]; got != tt.want {
			t.Errorf("first: command %d: got %+v, want %+v", i+1, got, tt.want)
		}
	}
	f.Apply(entry(6, 1, setting("a", "later", "b", "later", "c", "later")))
	restored, _ := newTestFSM("error")
	if err := restored.Restore(io.NopCloser(bytes.NewReader(persist(t, takeSnapshot(t, f))))); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*fsm{"same": f, "restored": restored} {
		want := items(f.store)
		for i, tt := range first {
			if got := results(f.Apply(entry(uint64(i+7), 2, tt.c)))[0]; got != tt.want {
				t.Errorf("%s: command %d again: got %+v, want %+v", name, i+1, got, tt.want)
			}
		}
		index := uint64(20)
		for what, c := range map[string]command.Command{
			"another value":     once(setting("a", "2"), "set"),
			"another key":       once(setting("b", "1"), "set"),
			"another kind":      once(removing("a"), "set"),
			"no condition":      once(setting("b", "1"), "create"),
			"another condition": with(setting("b", "1"), command.Options{IdempotencyKey: "create", NoneMatch: command.Condition{Indexes: []uint64{0}}}),
		} {
			index++
			if got, want := results(f.Apply(entry(index, 2, c)))[0], (command.Result{Index: index, Reused: true}); got != want {
				t.Errorf("%s: %s: got %+v, want %+v", name, what, got, want)
			}
		}
		if got := items(f.store); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want what was there before, %v", name, got, want)
		}
	}
}
