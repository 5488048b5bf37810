package api

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"raftkv/internal/command"
)

// TestOptions is what is understood; what is refused is in handler_test.go at the
// top, with what the client is told.
func TestOptions(t *testing.T) {
	tags := func(indexes ...uint64) command.Condition { return command.Condition{Indexes: indexes} }
	any := command.Condition{Any: true}
	for _, tt := range []struct {
		name   string
		header http.Header
		want   *command.Options
	}{
		{"nothing", nil, nil},
		{"match", http.Header{"If-Match": {`"12"`}}, &command.Options{Match: tags(12)}},
		{"any", http.Header{"If-Match": {" * "}}, &command.Options{Match: any}},
		{"none match", http.Header{"If-None-Match": {`*`}}, &command.Options{NoneMatch: any}},
		{"a list", http.Header{"If-Match": {`"1","2" , "18446744073709551615"`}}, &command.Options{Match: tags(1, 2, 1<<64-1)}},
		{"a list of lines", http.Header{"If-Match": {`"1"`, `"2", "3"`}}, &command.Options{Match: tags(1, 2, 3)}},
		{"empty elements", http.Header{"If-Match": {`, "1",, "2" ,`}}, &command.Options{Match: tags(1, 2)}},
		{"not ours", http.Header{"If-Match": {`"", "abc", "012", "+1", "-1", "1 ", "18446744073709551616", "a,b", "W/"`}}, &command.Options{Match: tags(0, 0, 0, 0, 0, 0, 0, 0, 0)}},
		{"both", http.Header{"If-Match": {`"1"`}, "If-None-Match": {`"2"`}}, &command.Options{Match: tags(1), NoneMatch: tags(2)}},
		{"key", http.Header{"Idempotency-Key": {`"8e03-97"`}}, &command.Options{IdempotencyKey: "8e03-97"}},
		{"bare key", http.Header{"Idempotency-Key": {` 8e03-97 `}}, &command.Options{IdempotencyKey: "8e03-97"}},
		{"escaped key", http.Header{"Idempotency-Key": {`"a \"b\" \\, c;"`}}, &command.Options{IdempotencyKey: `a "b" \, c;`}},
		{"longest key", http.Header{"Idempotency-Key": {strings.Repeat("k", 255)}}, &command.Options{IdempotencyKey: strings.Repeat("k", 255)}},
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

// FuzzOptions: whatever the headers are, they are understood or refused, and what is
// understood can be replicated.
func FuzzOptions(f *testing.F) {
	f.Add(`"1", "2"`, `*`, `"key"`)
	f.Add(`W/"1"`, `"`, `"\`)
	f.Fuzz(func(t *testing.T, match, noneMatch, key string) {
		r := httptest.NewRequest(http.MethodGet, "/set", nil)
		r.Header["If-Match"], r.Header["If-None-Match"], r.Header["Idempotency-Key"] = []string{match}, []string{noneMatch}, []string{key}
		o, err := options(r)
		if err != nil {
			if refused, ok := err.(Refusal); !ok || refused.Status != http.StatusBadRequest || strings.Contains(refused.Text, "\n") {
				t.Fatalf("got %v, want a refusal in one line", err)
			}
			return
		}
		c := command.Command{Kind: command.Remove, Pairs: []command.Pair{{Key: "k"}}, Options: o}
		if got, err := command.Decode(command.Append(nil, c)); err != nil || !reflect.DeepEqual(got[0], c) {
			t.Fatalf("got %+v, %v, want %+v", got, err, c)
		}
	})
}
