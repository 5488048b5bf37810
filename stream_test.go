package main

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
	"testing"
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

func lines(t testing.TB, a answer) (all []listed) {
	t.Helper()
	if got := a.header.Get("Content-Type"); a.status != http.StatusOK || got != "application/jsonl" {
		t.Fatalf("got %d %s %q, want 200 application/jsonl", a.status, got, a.body)
	}
	for line := range strings.Lines(a.body) {
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
	nodes, _ := startCluster(t, 3)
	abc := write(t, nodes[0], "/set?key=a&value=1&key=b%2Fc&value=&key=b%2Fd&value=%3C%26%3E")
	other := write(t, nodes[1], "/set?key=%FF%00&value=%FE&key=schön&value=日本")
	all := []listed{
		{Key: "a", Value: "1", Index: abc}, {Key: "b/c", Index: abc}, {Key: "b/d", Value: "<&>", Index: abc},
		{Key: "schön", Value: "日本", Index: other}, {Key64: []byte("\xff\x00"), Value64: []byte("\xfe"), Index: other},
	}
	for _, tt := range []struct {
		query string
		want  []listed
	}{
		{"", all},
		{"prefix=", all},
		{"prefix=b/", all[1:3]},
		{"prefix=c", nil},
		{"prefix=" + url.QueryEscape("\xff"), all[4:]},
		{"limit=2", all[:2]},
		{"limit=99", all},
		{"after=a&limit=2", all[1:3]},
		{"after=b", all[1:]},
		{"prefix=b/&after=b/c", all[2:3]},
		{"prefix=b/&after=a", all[1:3]},
		{"prefix=b/&after=c", nil},
		{"after=" + url.QueryEscape("\xff\x00"), nil},
	} {
		for i, s := range nodes {
			a := ask(t, s, "/list?"+tt.query)
			if got := lines(t, a); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("n%d: /list?%s: got %v, want %v", i+1, tt.query, got, tt.want)
			}
			index, err := strconv.ParseUint(a.header.Get("Raftkv-Applied-Index"), 10, 64)
			if err != nil || index < other {
				t.Errorf("n%d: Raftkv-Applied-Index: got %d (%v), want %d or more", i+1, index, err, other)
			}
		}
	}
	if got, want := ask(t, nodes[0], "/list?limit=1").body, fmt.Sprintf(`{"key":"a","value":"1","index":%d}`+"\n", abc); got != want {
		t.Errorf("got %s want %s", got, want)
	}
	write(t, nodes[2], "/remove?prefix=b/")
	want := map[string]string{"a": "1", "schön": "日本", "\xff\x00": "\xfe"}
	if got := checkReplicas(t, nodes...); !maps.Equal(got, want) {
		t.Errorf("after the removal of a prefix the nodes hold %v, want %v", got, want)
	}
}

// event is one server-sent event, or only a comment with an id.
type event struct {
	id      uint64
	comment string
	Index   uint64
	Changes []listed
}

// watching is a /watch under way.
type watching struct {
	t      testing.TB
	body   io.ReadCloser
	events *bufio.Scanner
}

func watch(t testing.TB, s *service, query string, headers ...string) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r := newRequest(t, http.MethodGet, s, "/watch?"+query, "").WithContext(ctx)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	var response *http.Response
	waitFor(t, "watch", func() (err error) {
		if response, err = following.Transport.RoundTrip(r); err == nil && response.StatusCode >= 500 {
			response.Body.Close()
			err = fmt.Errorf("status %d", response.StatusCode)
		}
		return err
	})
	if got := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || got != "text/event-stream" {
		t.Fatalf("watch: got %d %s, want 200 text/event-stream", response.StatusCode, got)
	}
	w := &watching{t: t, body: response.Body, events: bufio.NewScanner(response.Body)}
	w.events.Buffer(nil, 4*mebi)
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
			e.id, err = strconv.ParseUint(value, 10, 64)
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
	nodes, dirs := startCluster(t, 3)
	before := set(t, nodes[0], "k/before", "0")
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
	one := write(t, nodes[0], "/set?key=k/a&value=1&key=other&value=x&key=k/b&value=%FF")
	write(t, nodes[1], "/remove?key=never")
	write(t, nodes[2], "/remove?key=k/a&key=never")
	set(t, nodes[0], "other", "y")
	write(t, nodes[0], "/remove?prefix=k/")
	last := set(t, nodes[0], "none", "z")
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
	for _, s := range nodes {
		w := watch(t, s, "prefix=k/&from=1", "Last-Event-ID", strconv.FormatUint(one, 10))
		w.want("-k/a")
		w.want("-k/b", "-k/before")
	}

	// A node that stops ends its watches at once; its history begins anew with the
	// snapshot that it starts from.
	s := nodes[2]
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*watching{now[2], all[2], none[2]} {
		for err := error(nil); err == nil; {
			_, err = w.next()
		}
	}
	nodes[2] = restart(t, s, dirs[2])
	w := watch(t, nodes[2], fmt.Sprintf("prefix=none&from=%d", before))
	w.want("none=z") // it has no snapshot: its history is its log
	checkReplicas(t, nodes...)
}

// TestHistoryIsGone: a watch that can't be resumed without a gap is told so.
func TestHistoryIsGone(t *testing.T) {
	t.Parallel()
	s := startOne(t)
	for i := range 10 {
		set(t, s, strconv.Itoa(i), "v")
	}
	open := watch(t, s, "")
	backup := ask(t, s, "/snapshot")
	a := put(t, s, "/restore", backup.body)
	if a.status != http.StatusOK {
		t.Fatalf("restore: got %d %q", a.status, a.body)
	}
	var last event
	for err := error(nil); err == nil; {
		var e event
		if e, err = open.next(); err == nil {
			last = e
		}
	}
	if !strings.Contains(last.comment, "the history is gone") {
		t.Errorf("a watch when everything was replaced: got %+v, want that the history is gone", last)
	}
	gone := ask(t, s, "/watch?from=5")
	if err := oneLineNaming(gone, "from: ", "the history is gone", "list, then watch from the Raftkv-Applied-Index"); err != nil || gone.status != http.StatusGone {
		t.Errorf("got %d (%v), want 410", gone.status, err)
	}
	w := watch(t, s, "from="+ask(t, s, "/list").header.Get("Raftkv-Applied-Index"))
	set(t, s, "after", "1")
	w.want("after=1")
	checkReplicas(t, s)
}

// TestWatchersDoNotHoldUpWrites: a client that does not read its events is left
// behind; the writes go on.
func TestWatchersDoNotHoldUpWrites(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
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
				waitFor(t, key, func() error {
					_, err := acknowledged(newRequest(t, http.MethodPut, nodes[0], "/set?key="+key, large))
					return err
				})
			}
		})
	}
	writers.Wait()
	set(t, nodes[0], "last", "1")
	fast.want("last=1")
	checkReplicas(t, nodes...)
}

// put sends a body where the request leads, until there is a definite answer.
func put(t testing.TB, s *service, target, body string) (a answer) {
	t.Helper()
	waitFor(t, target, func() (err error) {
		a, err = send(following, newRequest(t, http.MethodPut, s, target, body))
		if err == nil && a.status >= 500 {
			err = fmt.Errorf("status %d: %s", a.status, a.body)
		}
		return err
	})
	return a
}

// TestBackupAndRestore: a backup of a cluster under load is a state that it had;
// restored into the same cluster, and into a new one, it is all there is.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	old, _ := startCluster(t, 3)
	want := make(map[string]string)
	for i := range 200 {
		query := url.Values{}
		for j := range 10 {
			key := fmt.Sprintf("%d/%d", i, j)
			want[key] = strconv.Itoa(i)
			query.Add("key", key)
			query.Add("value", strconv.Itoa(i))
		}
		write(t, old[i%3], "/set?"+query.Encode())
	}
	want["binary\xff"] = "\x00\xfe"
	set(t, old[0], "binary\xff", "\x00\xfe")
	const once = "/set?key=once&value=1"
	first := definite(t, old[0], once, "Idempotency-Key", "once")
	want["once"] = "1"

	// load sets pairs that belong together until the end; they are never torn.
	load := func(nodes cluster) (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		for i := range 3 {
			writers.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					// Any error will do: what counts is what the nodes hold in the end.
					_, _ = send(following, newRequest(t, http.MethodGet, nodes[i], fmt.Sprintf("/set?key=load%d&value=%d&key=load%d-same&value=%d", i, n, i, n), ""))
				}
			})
		}
		return func() { cancel(); writers.Wait() }
	}
	whole := func(what string, got map[string]string) {
		t.Helper()
		for i := range 3 {
			key := fmt.Sprintf("load%d", i)
			if got[key] != got[key+"-same"] {
				t.Errorf("%s: %s is %s, the other of its entry %s", what, key, got[key], got[key+"-same"])
			}
			delete(got, key)
			delete(got, key+"-same")
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: got %.300v, want %.300v", what, got, want)
		}
	}

	end := load(old)
	var backups []answer
	for _, s := range old {
		var a answer
		waitFor(t, "snapshot", func() (err error) {
			a, err = acknowledged(newRequest(t, http.MethodGet, s, "/snapshot", ""))
			return err
		})
		backups = append(backups, a)
	}
	for i, s := range old { // each again while others write
		a := put(t, s, "/restore", backups[i].body)
		if a.status != http.StatusOK || !strings.HasSuffix(a.body, fmt.Sprintf(" keys=%d\n", len(want)+keysOfLoad(t, backups[i]))) {
			t.Errorf("restore: got %d %q, want 200 and %d keys", a.status, a.body, len(want))
		}
	}
	end()
	whole("the same cluster", checkReplicas(t, old...))

	fresh, _ := startCluster(t, 3)
	set(t, fresh[0], "gone", "after the restore")
	end = load(fresh)
	a := put(t, fresh[1], "/restore", backups[2].body)
	if a.status != http.StatusOK {
		t.Errorf("restore into a new cluster: got %d %q, want 200", a.status, a.body)
	}
	for _, s := range fresh {
		if got := ask(t, s, "/get?key=gone"); got.status != http.StatusNotFound {
			t.Errorf("after the restore: got %d %q for a key that is not in it, want 404", got.status, got.body)
		}
	}
	end()
	if again := definite(t, fresh[2], once, "Idempotency-Key", "once"); again.body != first.body {
		t.Errorf("an idempotency key of the backup: got %d %q, want the first answer, %q", again.status, again.body, first.body)
	}
	whole("a new cluster", checkReplicas(t, fresh...))
}

// keysOfLoad is how many keys of the load a backup has.
func keysOfLoad(t testing.TB, backup answer) int {
	t.Helper()
	n := strings.Count(backup.body, "load")
	if backup.status != http.StatusOK || n%2 != 0 {
		t.Fatalf("backup: got %d with %d keys of the load, want 200 and pairs", backup.status, n)
	}
	return n
}

// TestDamagedBackupChangesNothing: what is not whole is refused before anything is
// in the log.
func TestDamagedBackupChangesNothing(t *testing.T) {
	t.Parallel()
	s := startOne(t)
	for i := range 20 {
		set(t, s, fmt.Sprint("key", i), "value")
	}
	backup := ask(t, s, "/snapshot").body
	set(t, s, "later", "1")
	checkUnchanged(t, s, func() {
		for n := range len(backup) {
			if n%7 != 0 && n != len(backup)-1 {
				continue
			}
			flipped := []byte(backup)
			flipped[n] ^= 0x20
			for what, body := range map[string]string{"cut off": backup[:n], "flipped": string(flipped)} {
				a := exchange(t, newRequest(t, http.MethodPut, s, "/restore", body))
				if err := oneLineNaming(a, "body: ", "nothing was changed"); err != nil || a.status != http.StatusBadRequest {
					t.Errorf("%s at byte %d: got %d (%v), want 400", what, n, a.status, err)
				}
			}
		}
		if a := exchange(t, newRequest(t, http.MethodPut, s, "/restore", backup+"\n")); a.status != http.StatusBadRequest {
			t.Errorf("longer by a byte: got %d %q, want 400", a.status, a.body)
		}
	})
	checkReplicas(t, s)
}

// TestInterruptedRestore: a leader that goes in the middle of a restore leaves
// everything as it was, and nothing of the rest behind.
func TestInterruptedRestore(t *testing.T) {
	t.Parallel()
	source := startOne(t)
	value := strings.Repeat("v", mebi/2)
	for i := range 24 {
		put(t, source, fmt.Sprintf("/set?key=large%d", i), value)
	}
	backup := ask(t, source, "/snapshot").body
	nodes, _ := startCluster(t, 3)
	set(t, nodes[0], "own", "1")
	interrupted := 0
	for range 20 {
		leader, _ := nodes.leader(t)
		staged := func() int { return strings.Count(consoleOf(leader), "] stage ") }
		before := staged()
		done := make(chan answer, 1)
		go func() {
			a, err := send(direct, newRequest(t, http.MethodPut, leader, "/restore", backup))
			if err != nil {
				a.body = err.Error()
			}
			done <- a
		}()
		waitFor(t, "the middle of the restore", func() error { // at another place each time
			if n := staged() - before; n <= interrupted && len(done) == 0 {
				return fmt.Errorf("%d staged", n)
			}
			return nil
		})
		waitFor(t, "transfer", func() error {
			a, err := send(direct, newRequest(t, http.MethodGet, leader, "/transfer", ""))
			if err == nil && a.status != http.StatusOK && a.status != http.StatusTemporaryRedirect {
				err = fmt.Errorf("status %d", a.status)
			}
			return err
		})
		a := <-done
		if a.status == http.StatusOK {
			break // it was faster
		}
		interrupted++
		if a.status != http.StatusServiceUnavailable && a.status != http.StatusTemporaryRedirect {
			t.Errorf("an interrupted restore: got %d %q, want 503 or 307", a.status, a.body)
		}
		set(t, nodes[0], "own", "1") // an entry of the new term
		if got := checkReplicas(t, nodes...); !maps.Equal(got, map[string]string{"own": "1"}) {
			t.Fatalf("after an interrupted restore the nodes hold %d keys, want own=1 alone", len(got))
		}
		if interrupted == 3 {
			break
		}
	}
	if interrupted == 0 {
		t.Error("no restore was interrupted")
	}
	if a := put(t, nodes[1], "/restore", backup); a.status != http.StatusOK {
		t.Errorf("restore: got %d %q, want 200", a.status, a.body)
	}
	if got := checkReplicas(t, nodes...); len(got) != 24 || got["large7"] != value {
		t.Errorf("after the restore the nodes hold %d keys, want the 24 of the backup", len(got))
	}
}
