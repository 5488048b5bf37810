package api

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"raftkv/internal/command"
)

// TestOptions has the headers that are accepted; those that are rejected are in
// handler_test.go at the top, with the status and the line that the client gets.
func TestOptions(t *testing.T) {
	tags := func(indexes ...uint64) command.Condition { return command.Condition{Indexes: indexes} }
	any := command.Condition{Any: true}
	for _, tt := range []struct {
		name   string
		header http.Header
		want   *command.Options
	}{
		{name: "nothing"},
		{name: "match", header: http.Header{"If-Match": {`"12"`}}, want: &command.Options{Match: tags(12)}},
		{name: "any", header: http.Header{"If-Match": {" * "}}, want: &command.Options{Match: any}},
		{name: "none match", header: http.Header{"If-None-Match": {`*`}}, want: &command.Options{NoneMatch: any}},
		{
			name:   "a list",
			header: http.Header{"If-Match": {`"1","2" , "18446744073709551615"`}},
			want:   &command.Options{Match: tags(1, 2, 1<<64-1)},
		},
		{
			name:   "a list of lines",
			header: http.Header{"If-Match": {`"1"`, `"2", "3"`}},
			want:   &command.Options{Match: tags(1, 2, 3)},
		},
		{
			name:   "empty elements",
			header: http.Header{"If-Match": {`, "1",, "2" ,`}},
			want:   &command.Options{Match: tags(1, 2)},
		},
		{
			name:   "not ours",
			header: http.Header{"If-Match": {`"", "abc", "012", "+1", "-1", "1 ", "18446744073709551616", "a,b", "W/"`}},
			want:   &command.Options{Match: tags(0, 0, 0, 0, 0, 0, 0, 0, 0)},
		},
		{
			name:   "both",
			header: http.Header{"If-Match": {`"1"`}, "If-None-Match": {`"2"`}},
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
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/set", nil)
			for name, values := range tt.header {
				r.Header[name] = values
			}
			got, err := options(r)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

// FuzzOptions: whatever the headers are, they are accepted or rejected, and options that
// are accepted can be replicated.
func FuzzOptions(f *testing.F) {
	f.Add(`"1", "2"`, `*`, `"key"`)
	f.Add(`W/"1"`, `"`, `"\`)
	f.Fuzz(func(t *testing.T, match, noneMatch, key string) {
		r := httptest.NewRequest(http.MethodGet, "/set", nil)
		r.Header["If-Match"], r.Header["If-None-Match"] = []string{match}, []string{noneMatch}
		r.Header["Idempotency-Key"] = []string{key}
		o, err := options(r)
		if err != nil {
			if e, ok := err.(Error); !ok || e.Status != http.StatusBadRequest || strings.Contains(e.Message, "\n") {
				t.Fatalf("got %v, want an Error of one line with status 400", err)
			}
			return
		}
		c := command.Command{Kind: command.Remove, Pairs: []command.Pair{{Key: "k"}}, Options: o}
		if got, err := command.Decode(command.Append(nil, c)); err != nil || !reflect.DeepEqual(got[0], c) {
			t.Fatalf("got %+v, %v, want %+v", got, err, c)
		}
	})
}
