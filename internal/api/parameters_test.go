package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func formRequest(body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/set", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// TestManyParameters: the limit is in bytes, and where there is another one, the error names
// it and the way out.
func TestManyParameters(t *testing.T) {
	form := func(keys int) string {
		var b strings.Builder
		for i := range keys {
			fmt.Fprintf(&b, "key=k%x&value=&", i)
		}
		return b.String()
	}
	c, err := Set(formRequest(form(60_000)), testHistory)
	if err != nil || len(c.Pairs) != 60_000 || c.Pairs[10].Key != "ka" {
		t.Errorf("60,000 keys: got %d of them and %v, want all", len(c.Pairs), err)
	}
	_, err = Set(formRequest(strings.Repeat("key=k&", maxParameters)), testHistory)
	if e, ok := errors.AsType[Error](err); !ok || e.Status != http.StatusBadRequest ||
		!strings.Contains(e.Message, "form: more than 200000 parameters") ||
		!strings.Contains(e.Message, "several requests") {
		t.Errorf("too many: got %v, want one line with status 400 that names the limit", err)
	}
}

// TestSlowBody: a body that does not come in time is not a wrong request.
func TestSlowBody(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		status int
	}{
		{name: "too slow", err: &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, status: http.StatusRequestTimeout},
		{name: "cut off", err: io.ErrUnexpectedEOF, status: http.StatusBadRequest},
		{name: "gone", err: context.Canceled, status: http.StatusBadRequest},
	} {
		r := httptest.NewRequest(http.MethodPut, "/set?key=k", io.MultiReader(strings.NewReader("v"), failing{tt.err}))
		_, err := Set(r, testHistory)
		if e, ok := errors.AsType[Error](err); !ok || e.Status != tt.status {
			t.Errorf("%s: got %v, want status %d", tt.name, err, tt.status)
		}
	}
}

// failing is a reader whose reads fail.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestCheckIfMatch: a read honors If-Match as a write does.
func TestCheckIfMatch(t *testing.T) {
	for _, tt := range []struct {
		match  string // empty: none
		status int    // 0: it holds
	}{
		{match: ""}, {match: "*"}, {match: `"12-0badcafe"`}, {match: `"1-0badcafe", "12-0badcafe"`},
		{match: `"1-0badcafe"`, status: http.StatusPreconditionFailed}, {match: `"12"`,
			status: http.StatusPreconditionFailed},
		{match: `"foreign"`, status: http.StatusPreconditionFailed},
		{match: "12", status: http.StatusBadRequest},
	} {
		r := httptest.NewRequest(http.MethodGet, "/get?key=k", nil)
		if tt.match != "" {
			r.Header.Set("If-Match", tt.match)
		}
		err := CheckIfMatch(r, testHistory, "k", 12)
		if e, _ := errors.AsType[Error](err); (tt.status == 0) != (err == nil) || e.Status != tt.status {
			t.Errorf("If-Match: %s: got %v, want status %d", tt.match, err, tt.status)
		}
	}
}
