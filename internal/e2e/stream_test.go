package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// listed is a line of /list, or a change of /watch.
type listed struct {
	Op      string
	Key     string
	Key64   []byte
	Value   string
	Value64 []byte
	Index   uint64
}

func lines(t testing.TB, a testkit.Answer) (all []listed) {
	t.Helper()
	if got := a.Header.Get("Content-Type"); a.Status != http.StatusOK || got != "application/jsonl" {
		t.Fatalf("got %d %s %q, want 200 application/jsonl", a.Status, got, a.Body)
	}
	for line := range strings.Lines(a.Body) {
		var l listed
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		all = append(all, l)
	}
	return all
}

// TestList: every node lists what was acknowledged before, in the order of the
// keys' bytes.
func TestList(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	abc := nodes[0].Write(t, "/set?key=a&value=1&key=b%2Fc&value=&key=b%2Fd&value=%3C%26%3E")
	other := nodes[1].Write(t, "/set?key=%FF%00&value=%FE&key=schön&value=日本")
	all := []listed{
		{Key: "a", Value: "1", Index: abc}, {Key: "b/c", Index: abc}, {Key: "b/d", Value: "<&>", Index: abc},
		{Key: "schön", Value: "日本", Index: other}, {Key64: []byte("\xff\x00"), Value64: []byte("\xfe"), Index: other},
	}
	for _, tt := range []struct {
		query string
		want  []listed
	}{
		{query: "", want: all},
		{query: "prefix=", want: all},
		{query: "prefix=b/", want: all[1:3]},
		{query: "prefix=c", want: nil},
		{query: "prefix=" + url.QueryEscape("\xff"), want: all[4:]},
		{query: "limit=2", want: all[:2]},
		{query: "limit=99", want: all},
		{query: "after=a&limit=2", want: all[1:3]},
		{query: "after=b", want: all[1:]},
		{query: "prefix=b/&after=b/c", want: all[2:3]},
		{query: "prefix=b/&after=a", want: all[1:3]},
		{query: "prefix=b/&after=c", want: nil},
		{query: "after=" + url.QueryEscape("\xff\x00"), want: nil},
	} {
		for i, s := range nodes {
			a := s.Ask(t, "/list?"+tt.query)
			if got := lines(t, a); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("n%d: /list?%s: got %v, want %v", i+1, tt.query, got, tt.want)
			}
			index, err := strconv.ParseUint(a.Header.Get("Raftkv-Applied-Index"), 10, 64)
			if err != nil || index < other {
				t.Errorf("n%d: Raftkv-Applied-Index: got %d (%v), want %d or more", i+1, index, err, other)
			}
		}
	}
	if got, want := nodes[0].Ask(t, "/list?limit=1").Body, fmt.Sprintf(`{"key":"a","value":"1","index":%d}`+"\n",
		abc); got != want {
		t.Errorf("got %s want %s", got, want)
	}
	nodes[2].Write(t, "/remove?prefix=b/")
	want := map[string]string{"a": "1", "schön": "日本", "\xff\x00": "\xfe"}
	if got := testkit.CheckReplicas(t, nodes...); !maps.Equal(got, want) {
		t.Errorf("after the removal of a prefix the nodes hold %v, want %v", got, want)
	}
}

// event is one server-sent event, or only a comment with an id.
type event struct {
	id      uint64
	comment string
	name    string // empty: a change
	Reason  string // of an event with a name
	Index   uint64
	Changes []listed
}

// watching is a /watch under way.
type watching struct {
	t      testing.TB
	events *bufio.Scanner
}

func watch(t testing.TB, s *testkit.Node, query string, headers ...string) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r := s.Request(t, http.MethodGet, "/watch?"+query, "", headers...).WithContext(ctx)
	var response *http.Response
	testkit.Eventually(t, "watch", func() (err error) {
		if response, err = testkit.Following.Transport.RoundTrip(r); err == nil && response.StatusCode >= 500 {
			response.Body.Close()
			err = fmt.Errorf("status %d", response.StatusCode)
		}
		return err
	})
	if got := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || got != "text/event-stream" {
		t.Fatalf("watch: got %d %s, want 200 text/event-stream", response.StatusCode, got)
	}
	if got := response.Header.Get("X-Accel-Buffering"); got != "no" {
		t.Errorf("watch: X-Accel-Buffering: got %q, want no", got)
	}
	w := &watching{t: t, events: bufio.NewScanner(response.Body)}
	w.events.Buffer(nil, 4<<20)
	w.events.Split(func(data []byte, _ bool) (int, []byte, error) {
		if i := bytes.Index(data, []byte("\n\n")); i >= 0 {
			return i + 2, data[:i], nil
		}
		return 0, nil, nil
	})
	return w
}

// next waits for the next event; io.EOF is the end.
func (w *watching) next() (e event, err error) {
	if !w.events.Scan() {
		return event{}, io.EOF
	}
	for line := range strings.SplitSeq(w.events.Text(), "\n") {
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "":
			e.comment = value
		case "id":
			index, _, _ := strings.Cut(value, "-")
			e.id, err = strconv.ParseUint(index, 10, 64)
		case "event":
			e.name = value
		case "retry":
		case "data":
			err = json.Unmarshal([]byte(value), &e)
		default:
			err = fmt.Errorf("unknown line %q", line)
		}
		if err != nil {
			return e, err
		}
	}
	return e, nil
}

// want checks that the next event that is no comment has these changes, written as
// a=1 or -a for a removal, and returns its id.
func (w *watching) want(changes ...string) uint64 {
	w.t.Helper()
	for {
		e, err := w.next()
		if err != nil {
			w.t.Fatalf("watch: %v, want %v", err, changes)
		}
		if e.comment != "" {
			continue
		}
		var got []string
		for _, c := range e.Changes {
			if c.Op == "set" {
				got = append(got, c.Key+string(c.Key64)+"="+c.Value+string(c.Value64))
			} else {
				got = append(got, "-"+c.Key+string(c.Key64))
			}
		}
		if !reflect.DeepEqual(got, changes) || e.id != e.Index {
			w.t.Errorf("watch: got %v with id %d and index %d, want %v", got, e.id, e.Index, changes)
		}
		return e.id
	}
}

// TestWatch: on every node, from the same entries, the same events.
func TestWatch(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	before := nodes[0].Set(t, "k/before", "0")
	var now, all, none []*watching
	for _, s := range nodes {
		now = append(now, watch(t, s, "prefix=k/"))
		all = append(all, watch(t, s, fmt.Sprintf("from=%d", before-1)))
		none = append(none, watch(t, s, "prefix=none"))
	}
	first, err := now[1].next()
	if err != nil || first.id < before || !strings.HasPrefix(first.comment, "watching after index ") {
		t.Errorf("the beginning of a watch: got %+v (%v), want a comment, and an id of %d or more", first, err, before)
	}
	one := nodes[0].Write(t, "/set?key=k/a&value=1&key=other&value=x&key=k/b&value=%FF")
	nodes[1].Write(t, "/remove?key=never")
	nodes[2].Write(t, "/remove?key=k/a&key=never")
	nodes[0].Set(t, "other", "y")
	nodes[0].Write(t, "/remove?prefix=k/")
	last := nodes[0].Set(t, "none", "z")
	for i := range nodes {
		if got := now[i].want("k/a=1", "k/b=\xff"); got != one {
			t.Errorf("id: got %d, want %d", got, one)
		}
		now[i].want("-k/a")
		now[i].want("-k/b", "-k/before")
		all[i].want("k/before=0")
		all[i].want("k/a=1", "other=x", "k/b=\xff")
		all[i].want("-k/a")
		all[i].want("other=y")
		all[i].want("-k/b", "-k/before")
		if got := all[i].want("none=z"); got != last {
			t.Errorf("id: got %d, want %d", got, last)
		}
		none[i].want("none=z")
	}

	// What one node has told last is where another goes on; the header is newer
	// than the address.
	_, mark, _ := strings.Cut(nodes[0].Ask(t, "/list").Header.Get("Raftkv-Watch-From"), "-")
	for _, s := range nodes {
		for _, foreign := range []string{fmt.Sprint(one), fmt.Sprintf("%d-00000000", one)} {
			a := s.Definite(t, "GET", "/watch", "", "Last-Event-ID", foreign)
			if a.Status != http.StatusGone || a.OneLine("Last-Event-ID: ", "list, then watch from") != nil {
				t.Errorf("Last-Event-ID %s: got %d %q, want 410", foreign, a.Status, a.Body)
			}
		}
		w := watch(t, s, "prefix=k/&from=1", "Last-Event-ID", fmt.Sprintf("%d-%s", one, mark))
		w.want("-k/a")
		w.want("-k/b", "-k/before")
	}

	// A node that stops ends its watches at once; its history begins anew with the
	// snapshot that it starts from.
	s := nodes[2]
	s.Stop(t, syscall.SIGTERM)
	for _, w := range []*watching{now[2], all[2], none[2]} {
		for err := error(nil); err == nil; {
			_, err = w.next()
		}
	}
	s.Start(t)
	w := watch(t, s, fmt.Sprintf("prefix=none&from=%d", before))
	w.want("none=z") // it has no snapshot: its history is its log
	testkit.CheckReplicas(t, nodes...)
}

// TestHistoryIsGone: a watch that can't be resumed without a gap is told so.
func TestHistoryIsGone(t *testing.T) {
	t.Parallel()
	s := startOne(t)
	for i := range 10 {
		s.Set(t, strconv.Itoa(i), "v")
	}
	open := watch(t, s, "")
	backup := s.Ask(t, "/snapshot")
	a := s.Definite(t, "PUT", "/restore", backup.Body)
	if a.Status != http.StatusOK {
		t.Fatalf("restore: got %d %q", a.Status, a.Body)
	}
	var last event
	for err := error(nil); err == nil; {
		var e event
		if e, err = open.next(); err == nil {
			last = e
		}
	}
	if !strings.Contains(last.Reason, "the history is gone") || last.name != "end" {
		t.Errorf("a watch when everything was replaced: got %+v, want that the history is gone", last)
	}
	gone := s.Ask(t, "/watch?from=5")
	if err := gone.OneLine("from: ", "the history is gone",
		"list, then watch from the Raftkv-Watch-From"); err != nil || gone.Status != http.StatusGone {
		t.Errorf("got %d (%v), want 410", gone.Status, err)
	}
	w := watch(t, s, "from="+s.Ask(t, "/list").Header.Get("Raftkv-Watch-From"))
	s.Set(t, "after", "1")
	w.want("after=1")
	testkit.CheckReplicas(t, s)
}

// TestWatchersDoNotHoldUpWrites: a client that does not read its events is left
// behind; the writes go on.
func TestWatchersDoNotHoldUpWrites(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	for range 50 {
		watch(t, nodes[0], "") // never read
	}
	fast := watch(t, nodes[0], "prefix=last")
	large := strings.Repeat("v", 256<<10)
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for j := range 25 {
				key := fmt.Sprintf("%d-%d", i, j)
				testkit.Eventually(t, key, func() error {
					_, err := testkit.Acknowledged(nodes[0].Request(t, http.MethodPut, "/set?key="+key, large))
					return err
				})
			}
		})
	}
	writers.Wait()
	nodes[0].Set(t, "last", "1")
	fast.want("last=1")
	testkit.CheckReplicas(t, nodes...)
}
