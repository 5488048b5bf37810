package api

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// TestOptions has the headers that are accepted; those that are rejected are in
// handler_test.go at the top, with the status and the line that the client gets.
var testHistory = History{Mark: "0badcafe"}

// TestHistory: an index is read back from what was made of it, in its own history alone.
func TestHistory(t *testing.T) {
	for _, tt := range []struct {
		name     string
		history  History
		id       string
		want     uint64
		unmarked bool
	}{
		{name: "own", history: testHistory, id: testHistory.ID(12), want: 12},
		{name: "another's", history: testHistory, id: History{Mark: "deadbeef"}.ID(12), want: 0},
		{name: "no mark", history: testHistory, id: "12", want: 0, unmarked: true},
		{name: "no mark, among older programs", history: History{Mark: "0badcafe", Plain: true}, id: "12", want: 12},
		{name: "own, among older programs", history: History{Mark: "0badcafe", Plain: true}, id: "12-0badcafe", want: 12},
		{name: "another's, among older programs", history: History{Mark: "0badcafe", Plain: true}, id: "12-deadbeef",
			want: 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, unmarked := tt.history.index(tt.id); got != tt.want || unmarked != tt.unmarked {
				t.Errorf("%s: got %d, %t, want %d, %t", tt.id, got, unmarked, tt.want, tt.unmarked)
			}
		})
	}
	if got, want := testHistory.ETag(12), `"12-0badcafe"`; got != want {
		t.Errorf("ETag: got %s, want %s", got, want)
	}
	if got, want := (History{Mark: "0badcafe", Plain: true}).ETag(12), `"12"`; got != want {
		t.Errorf("ETag among older programs: got %s, want %s", got, want)
	}
}

func TestOptions(t *testing.T) {
	tags := func(indexes ...uint64) command.Condition { return command.Condition{Indexes: indexes} }
	any := command.Condition{Any: true}
	for _, tt := range []struct {
		name   string
		header http.Header
		want   *command.Options
	}{
		{name: "nothing"},
		{name: "match", header: http.Header{"If-Match": {`"12-0badcafe"`}}, want: &command.Options{Match: tags(12)}},
		{name: "any", header: http.Header{"If-Match": {" * "}}, want: &command.Options{Match: any}},
		{name: "none match", header: http.Header{"If-None-Match": {`*`}}, want: &command.Options{NoneMatch: any}},
		{
			name:   "a list",
			header: http.Header{"If-Match": {`"1-0badcafe","2-0badcafe" , "18446744073709551615-0badcafe"`}},
			want:   &command.Options{Match: tags(1, 2, 1<<64-1)},
		},
		{
			name:   "a list of lines",
			header: http.Header{"If-Match": {`"1-0badcafe"`, `"2-0badcafe", "3-0badcafe"`}},
			want:   &command.Options{Match: tags(1, 2, 3)},
		},
		{
			name:   "empty elements",
			header: http.Header{"If-Match": {`, "1-0badcafe",, "2-0badcafe" ,`}},
			want:   &command.Options{Match: tags(1, 2)},
		},
		{
			name: "not ours",
			header: http.Header{"If-Match": {`"", "abc", "012", "+1", "-1", "1 ", "18446744073709551616", "a,b", "W/", "1-", ` +
				`"1-0badcaf", "01-0badcafe", "1-0badcafe-0badcafe"`}},
			want: &command.Options{Match: tags(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)},
		},
		{
			name:   "both",
			header: http.Header{"If-Match": {`"1-0badcafe"`}, "If-None-Match": {`"2-0badcafe"`}},
			want:   &command.Options{Match: tags(1), NoneMatch: tags(2)},
		},
		{
			name:   "key",
			header: http.Header{"Idempotency-Key": {`"8e03-97"`}},
			want:   &command.Options{IdempotencyKey: "8e03-97"},
		},
		{
			name:   "bare key",
			header: http.Header{"Idempotency-Key": {` 8e03-97 `}},
			want:   &command.Options{IdempotencyKey: "8e03-97"},
		},
		{
			name:   "escaped key",
			header: http.Header{"Idempotency-Key": {`"a \"b\" \\, c;"`}},
			want:   &command.Options{IdempotencyKey: `a "b" \, c;`},
		},
		{
			name:   "longest key",
			header: http.Header{"Idempotency-Key": {strings.Repeat("k", 255)}},
			want:   &command.Options{IdempotencyKey: strings.Repeat("k", 255)},
		},
		{
			name:   "of another history",
			header: http.Header{"If-Match": {`"12-00000000"`}},
			want:   &command.Options{Match: tags(0)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/set", nil)
			for name, values := range tt.header {
				r.Header[name] = values
			}
			got, err := options(r, testHistory)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

// TestETagsOfSeveralKeys: a condition of several keys may only be a star.
func TestETagsOfSeveralKeys(t *testing.T) {
	for _, name := range []string{"If-Match", "If-None-Match"} {
		for _, target := range []string{"/set?key=a&value=1&key=b&value=2", "/remove?key=a&key=b"} {
			parse := Set
			if strings.HasPrefix(target, "/remove") {
				parse = Remove
			}
			r := httptest.NewRequest(http.MethodGet, target, nil)
			r.Header.Set(name, `"1-0badcafe", "2-0badcafe"`)
			_, err := parse(r, testHistory)
			e, _ := errors.AsType[Error](err)
			if want := name + ": with 2 keys it takes only *"; e.Status != 400 || !strings.HasPrefix(e.Message, want) {
				t.Errorf("%s, %s: got %v, want 400 %s", target, name, err, want)
			}
			r.Header.Set(name, "*")
			if _, err := parse(r, testHistory); err != nil {
				t.Errorf("%s, %s: *: got %v, want nil", target, name, err)
			}
		}
	}
}

// TestForeignEventID: a watch is not resumed from an index that may be another history's.
func TestForeignEventID(t *testing.T) {
	store := kv.New()
	store.Update(12, 1, nil, func(tx *kv.Tx) { tx.Set("k", nil) })
	for _, tt := range []struct {
		name, target, id string
		history          History
		gone             bool
	}{
		{name: "own", target: "/watch", id: "12-0badcafe", history: testHistory},
		{name: "another's", target: "/watch", id: "12-deadbeef", history: testHistory, gone: true},
		{name: "no mark", target: "/watch", id: "12", history: testHistory, gone: true},
		{name: "no mark, among older programs", target: "/watch", id: "12", history: History{Mark: "0badcafe", Plain: true}},
		{name: "from, by hand", target: "/watch?from=12", history: testHistory},
		{name: "from, another's", target: "/watch?from=12-deadbeef", history: testHistory, gone: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, tt.target, nil)
			if tt.id != "" {
				r.Header.Set("Last-Event-ID", tt.id)
			}
			q, err := Watch(r, tt.history)
			if err != nil {
				t.Fatal(err)
			}
			watcher, _, err := q.Open(store)
			if err == nil {
				watcher.Close()
			}
			if e, _ := errors.AsType[Error](err); (e.Status == http.StatusGone) != tt.gone {
				t.Errorf("got %v, want 410: %t", err, tt.gone)
			}
		})
	}
}

// FuzzOptions: whatever the headers are, they are accepted or rejected, and options that
// are accepted can be replicated.
func FuzzOptions(f *testing.F) {
	f.Add(`"1-0badcafe", "2-00000000"`, `*`, `"key"`)
	f.Add(`W/"1"`, `"`, `"\`)
	f.Fuzz(func(t *testing.T, match, noneMatch, key string) {
		r := httptest.NewRequest(http.MethodGet, "/set", nil)
		r.Header["If-Match"], r.Header["If-None-Match"] = []string{match}, []string{noneMatch}
		r.Header["Idempotency-Key"] = []string{key}
		o, err := options(r, testHistory)
		if err != nil {
			if e, ok := err.(Error); !ok || (e.Status != http.StatusBadRequest && e.Status != http.StatusPreconditionFailed) ||
				strings.Contains(e.Message, "\n") {
				t.Fatalf("got %v, want an Error of one line with status 400 or 412", err)
			}
			return
		}
		c := command.Command{Kind: command.Remove, Pairs: []command.Pair{{Key: "k"}}, Options: o}
		if got, err := command.Decode(command.Append(nil, c)); err != nil || !reflect.DeepEqual(got[0], c) {
			t.Fatalf("got %+v, %v, want %+v", got, err, c)
		}
	})
}
