package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
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

// definite is a request to s with headers, given as name, value, name and so on,
// which is repeated until it has a definite answer, where it leads.
func definite(t testing.TB, s *service, target string, headers ...string) answer {
	t.Helper()
	var a answer
	waitFor(t, target, func() (err error) {
		r := newRequest(t, http.MethodGet, s, target, "")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		a, err = send(following, r)
		if err == nil && a.status >= 500 {
			err = fmt.Errorf("status %d: %s", a.status, a.body)
		}
		return err
	})
	return a
}

// TestConditionalRequests is what a client sees of conditions, through any node.
func TestConditionalRequests(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
	other := set(t, nodes[0], "other", "1")
	was := ""
	for i, tt := range []struct {
		target, header, value string // WAS is the ETag that k had last
		status                int
		says                  string
	}{
		{"/set?key=k&value=1", "If-Match", "*", 412, `If-Match: key "k" is not there: nothing was done; set it with If-None-Match: *`},
		{"/set?key=k&value=1", "If-None-Match", "*", 200, "OK index="},
		{"/set?key=k&value=2", "If-None-Match", "*", 412, `If-None-Match: key "k" has ETag WAS: nothing was done; get it`},
		{"/set?key=k&value=3", "If-Match", fmt.Sprintf(`"%d"`, other), 412, `If-Match: key "k" has ETag WAS: nothing was done; get it again, and send the ETag`},
		{"/set?key=k&value=4", "If-Match", `"abc", WAS`, 200, "OK index="},
		{"/set?key=k&value=5", "If-Match", `"abc","x,y" ,, "1"`, 412, "has ETag WAS"},
		{"/set?key=k&value=6", "If-None-Match", `WAS`, 412, "has ETag WAS"},
		{"/set?key=k&value=7", "If-None-Match", `"1", "abc"`, 200, "OK index="},
		{"/set?key=k&value=8&key=none&value=8", "If-Match", "WAS", 412, `key "none" is not there`},
		{"/remove?key=k", "If-Match", `"1"`, 412, "has ETag WAS"},
		{"/remove?key=k&key=other", "If-Match", `WAS`, 412, `key "other" has ETag`},
		{"/remove?key=k", "If-Match", "WAS", 200, "removed=1"},
		{"/remove?key=k", "If-Match", "*", 412, "is not there"},
	} {
		a := definite(t, nodes[i%3], tt.target, tt.header, strings.ReplaceAll(tt.value, "WAS", was))
		if says := strings.ReplaceAll(tt.says, "WAS", was); a.status != tt.status || !strings.Contains(a.body, says) {
			t.Errorf("%d. %s with %s: %s: got %d %q, want %d %q", i+1, tt.target, tt.header, tt.value, a.status, a.body, tt.status, says)
		}
		if tag := a.header.Get("ETag"); tag != "" {
			was = tag
		}
	}
	if got := checkReplicas(t, nodes...); !reflect.DeepEqual(got, map[string]string{"other": "1"}) {
		t.Errorf("the nodes hold %v, want other=1 alone", got)
	}
}

// TestRepeatedRequests: the same Idempotency-Key is answered the same by any leader,
// also after all nodes have been restarted.
func TestRepeatedRequests(t *testing.T) {
	t.Parallel()
	nodes, dirs := startCluster(t, 3)
	const key, target = `"8e03978e-40d5-43dd-bc93-6894a57f9324"`, "/set?key=k&value=1"
	first := definite(t, nodes[0], target, "Idempotency-Key", key)
	if _, err := indexOf(first); err != nil || first.status != http.StatusOK {
		t.Fatalf("got %d %q, want 200 OK index=N", first.status, first.body)
	}
	set(t, nodes[0], "k", "later")
	again := func(when string, nodes ...*service) {
		t.Helper()
		for i, s := range nodes {
			name := []string{key, strings.Trim(key, `"`)}[i%2] // in double quotes or without, it is the same
			if a := definite(t, s, target, "Idempotency-Key", name); a.body != first.body || a.header.Get("ETag") != first.header.Get("ETag") {
				t.Errorf("%s, at n%d: got %d %q, ETag %s, want the first answer, %q, %s", when, i+1, a.status, a.body, a.header.Get("ETag"), first.body, first.header.Get("ETag"))
			}
			for _, other := range []string{"/set?key=k&value=2", "/remove?key=k", "/remove?prefix=k"} {
				a := definite(t, s, other, "Idempotency-Key", key)
				if err := oneLineNaming(a, "Idempotency-Key", "take a new key"); err != nil || a.status != http.StatusUnprocessableEntity {
					t.Errorf("%s, at n%d: %s with the same key: got %d (%v), want 422", when, i+1, other, a.status, err)
				}
			}
		}
	}
	again("at once", nodes...)
	for range nodes {
		leader, _ := nodes.leader(t)
		waitFor(t, "transfer", func() error {
			_, err := acknowledged(newRequest(t, http.MethodGet, leader, "/transfer", ""))
			return err
		})
		again("under another leader", nodes...)
	}
	for _, s := range nodes {
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range nodes {
		nodes[i] = restart(t, s, dirs[i])
	}
	again("after a restart", nodes...)
	if got := checkReplicas(t, nodes...); !reflect.DeepEqual(got, map[string]string{"k": "later"}) {
		t.Errorf("the nodes hold %v, want k=later", got)
	}
}

// TestNoUpdateIsLost: two hundred clients increment one counter, each by reading it
// and setting it with If-Match, at any node.
func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
	set(t, nodes[0], "counter", "0")
	const clients = 200
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var counting sync.WaitGroup
	var attempts [clients]int
	for i := range clients {
		s := nodes[i%len(nodes)]
		counting.Go(func() {
			for ctx.Err() == nil {
				attempts[i]++
				was := definite(t, s, "/get?key=counter")
				n, err := strconv.Atoi(was.body)
				if err != nil {
					t.Errorf("counter: got %d %q, want a number", was.status, was.body)
					cancel()
					return
				}
				r := newRequest(t, http.MethodGet, s, fmt.Sprintf("/set?key=counter&value=%d", n+1), "")
				r.Header.Set("If-Match", was.header.Get("ETag"))
				// The key makes it safe to send again what has no definite answer.
				r.Header.Set("Idempotency-Key", fmt.Sprintf("%d-%d", i, attempts[i]))
				var a answer
				waitFor(t, "a definite answer", func() (err error) {
					if a, err = send(following, r); err == nil && a.status >= 500 {
						err = fmt.Errorf("status %d: %s", a.status, a.body)
					}
					return err
				})
				switch a.status {
				case http.StatusOK:
					return
				case http.StatusPreconditionFailed:
				default:
					t.Errorf("set: got %d %q, want 200 or 412", a.status, a.body)
					cancel()
					return
				}
			}
		})
	}
	counting.Wait()
	total := 0
	for _, n := range attempts {
		total += n
	}
	t.Logf("%d attempts for %d increments", total, clients)
	if total == clients {
		t.Error("no attempt failed: the clients did not compete")
	}
	if got := checkReplicas(t, nodes...)["counter"]; got != strconv.Itoa(clients) {
		t.Errorf("counter: got %s, want %d", got, clients)
	}
}
