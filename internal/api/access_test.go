package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"raftkv/internal/auth"
	"raftkv/internal/command"
)

// newTestAccess returns the Access of a file with a token for each of these rights: the token of a line is its number.
func newTestAccess(t testing.TB, rights ...string) *Access {
	t.Helper()
	path, text := filepath.Join(t.TempDir(), "tokens"), ""
	for i, right := range rights {
		token := string(rune('0' + i))
		hash := sha256.Sum256([]byte(token))
		text += "holder" + token + " " + hex.EncodeToString(hash[:]) + " " + right + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.Open(path, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	return NewAccess(tokens, t.Logf)
}

// contextOf returns the context that Check gives to the endpoint of a path, nil if it does not get that far, and the
// status of the answer then.
func contextOf(a *Access, path, token string) (ctx context.Context, status int) {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	a.Check(w, r, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx = context.WithoutCancel(r.Context())
	}))
	return ctx, w.Code
}

// statusOf returns the status of an Error, 200 for none.
func statusOf(t testing.TB, err error) int {
	t.Helper()
	if err == nil {
		return http.StatusOK
	}
	e, ok := errors.AsType[Error](err)
	if !ok {
		t.Errorf("got %v, want an Error", err)
	}
	return e.Status
}

// TestCheckByPath: a path needs what it should, and one that is not known needs the right admin.
func TestCheckByPath(t *testing.T) {
	a := newTestAccess(t, "read:", "admin")
	for _, tt := range []struct {
		path                          string
		none, unknown, reader, admins int
	}{
		{path: "/healthz", none: 200, unknown: 200, reader: 200, admins: 200},
		{path: "/", none: 200, unknown: 200, reader: 200, admins: 200},
		{path: "/status", none: 401, unknown: 401, reader: 200, admins: 200},
		{path: "/readyz", none: 401, unknown: 401, reader: 200, admins: 200},
		{path: "/metrics", none: 401, unknown: 401, reader: 200, admins: 200},
		{path: "/get", none: 401, unknown: 401, reader: 200, admins: 200},
		{path: "/join", none: 401, unknown: 401, reader: 403, admins: 200},
		{path: "/snapshot", none: 401, unknown: 401, reader: 403, admins: 200},
		{path: "/restore", none: 401, unknown: 401, reader: 403, admins: 200},
		{path: "/new", none: 401, unknown: 401, reader: 403, admins: 200},
		{path: "//get", none: 401, unknown: 401, reader: 403, admins: 200},
	} {
		for token, want := range map[string]int{"": tt.none, "x": tt.unknown, "0": tt.reader, "1": tt.admins} {
			if ctx, got := contextOf(a, tt.path, token); got != want || (ctx != nil) != (want == 200) {
				t.Errorf("%s with token %q: got %d, want %d", tt.path, token, got, want)
			}
		}
	}
}

// leased is c with the lease of a key.
func leased(c command.Command, key string) command.Command {
	c.Options = &command.Options{Lease: command.Lease{Key: key}}
	return c
}

// TestCommandAccess: every key that a command names, in whatever place, must be within a right.
func TestCommandAccess(t *testing.T) {
	a := newTestAccess(t, "write:a/ read:r/", "admin")
	ctx, _ := contextOf(a, "/set", "0")
	admin, _ := contextOf(a, "/set", "1")
	pairs := func(keys ...string) (pairs []command.Pair) {
		for _, key := range keys {
			pairs = append(pairs, command.Pair{Key: key})
		}
		return pairs
	}
	op := func(op command.Op, key string) []command.Operation { return []command.Operation{{Op: op, Key: key}} }
	txn := func(t command.Transaction) command.Command { return command.Command{Kind: command.Txn, Txn: &t} }
	for _, tt := range []struct {
		name    string
		command command.Command
		may     bool
	}{
		{name: "set", command: command.Command{Kind: command.Set, Pairs: pairs("a/1", "a/2")}, may: true},
		{name: "set, one beyond", command: command.Command{Kind: command.Set, Pairs: pairs("a/1", "b")}},
		{name: "set of what may be read", command: command.Command{Kind: command.Set, Pairs: pairs("r/1")}},
		{name: "remove", command: command.Command{Kind: command.Remove, Pairs: pairs("a/1")}, may: true},
		{name: "remove, the first beyond", command: command.Command{Kind: command.Remove, Pairs: pairs("r/1", "a/1")}},
		{name: "prefix", command: command.Command{Kind: command.RemovePrefix, Pairs: pairs("a/")}, may: true},
		{name: "wider prefix", command: command.Command{Kind: command.RemovePrefix, Pairs: pairs("a")}},
		{name: "condition", command: txn(command.Transaction{If: []command.Compare{{Key: "r/1"}}}), may: true},
		{name: "condition beyond", command: txn(command.Transaction{If: []command.Compare{{Key: "a/1"}, {Key: "b"}}})},
		{name: "then get", command: txn(command.Transaction{Then: op(command.OpGet, "r/1")}), may: true},
		{name: "then get beyond", command: txn(command.Transaction{Then: op(command.OpGet, "b")})},
		{name: "then set", command: txn(command.Transaction{Then: op(command.OpSet, "a/1")}), may: true},
		{name: "then set of what may be read", command: txn(command.Transaction{Then: op(command.OpSet, "r/1")})},
		{name: "else remove", command: txn(command.Transaction{Else: op(command.OpRemove, "a/1")}), may: true},
		{name: "else remove of what may be read", command: txn(command.Transaction{Else: op(command.OpRemove, "r/1")})},
		{name: "else get beyond", command: txn(command.Transaction{Else: op(command.OpGet, "b")})},
		{name: "lease", command: leased(command.Command{Kind: command.Set, Pairs: pairs("a/1")}, "r/1"), may: true},
		{name: "lease beyond", command: leased(command.Command{Kind: command.Set, Pairs: pairs("a/1")}, "b")},
		{name: "lease beyond in a transaction", command: txn(command.Transaction{Then: []command.Operation{
			{Op: command.OpSet, Key: "a/1", Lease: command.Lease{Key: "b"}}}})},
		{name: "stage", command: command.Command{Kind: command.Stage, Pairs: pairs("a/1")}},
		{name: "restore", command: command.Command{Kind: command.Restore}},
	} {
		want := http.StatusForbidden
		if tt.may {
			want = http.StatusOK
		}
		if _, err := a.Command(ctx, tt.command); statusOf(t, err) != want {
			t.Errorf("%s: got %v, want status %d", tt.name, err, want)
		}
		if _, err := a.Command(t.Context(), tt.command); statusOf(t, err) != http.StatusUnauthorized {
			t.Errorf("%s without Check: got %v, want 401", tt.name, err)
		}
	}
	if _, err := a.Command(admin, command.Command{Kind: command.Restore}); err != nil {
		t.Errorf("restore by admin: %v", err)
	}
	if err := a.Read(t.Context(), "r/1"); statusOf(t, err) != http.StatusUnauthorized {
		t.Errorf("a read without Check: got %v, want 401", err)
	}
	var none *Access
	_, err := none.Command(t.Context(), command.Command{Kind: command.Restore})
	if err != nil || none.Read(ctx, "") != nil {
		t.Errorf("without tokens: got %v, want that all may do all", err)
	}
}

// TestKeysOfNames: an idempotency key is that of a name, and the command of the caller stays as it is.
func TestKeysOfNames(t *testing.T) {
	a := newTestAccess(t, "write:", "write:")
	seen := make(map[string]bool)
	for _, token := range []string{"0", "1"} {
		ctx, _ := contextOf(a, "/set", token)
		for _, key := range []string{"k", "=k", "1\x00k"} {
			given := command.Command{Kind: command.Set, Options: &command.Options{IdempotencyKey: key,
				Match: command.Condition{Any: true}}}
			c, err := a.Command(ctx, given)
			if err != nil || c.By != "holder"+token || given.IdempotencyKey != key || !c.Match.Any {
				t.Errorf("got %+v, %v of %+v", c, err, given)
			}
			if seen[c.IdempotencyKey] || len(c.IdempotencyKey) > command.MaxIdempotencyKey {
				t.Errorf("%q of %s: got %q, want one that no other has, and no longer than any may be", key, token,
					c.IdempotencyKey)
			}
			seen[c.IdempotencyKey] = true
		}
	}
}

// TestRightsOfAnonymous: without a token there are the rights of that line alone, and never those of a wrong token.
func TestRightsOfAnonymous(t *testing.T) {
	a := newTestAccess(t, "read:")
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte("anonymous read:public/ admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.Open(path, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	a.tokens = tokens
	ctx, status := contextOf(a, "/get", "")
	if status != http.StatusOK || a.Read(ctx, "public/k") != nil {
		t.Errorf("/get: got %d, want 200 and the right of the line", status)
	}
	if got := statusOf(t, a.Read(ctx, "other")); got != http.StatusUnauthorized {
		t.Errorf("another key: got %d, want 401, as a token might have the right", got)
	}
	if _, got := contextOf(a, "/readyz", ""); got != http.StatusOK {
		t.Errorf("/readyz: got %d, want 200, as load balancers ask it", got)
	}
	for _, path := range []string{"/status", "/metrics", "/snapshot", "/new"} {
		if _, got := contextOf(a, path, ""); got != http.StatusUnauthorized {
			t.Errorf("%s: got %d, want 401", path, got)
		}
	}
	if _, got := contextOf(a, "/get", "wrong"); got != http.StatusUnauthorized {
		t.Errorf("a wrong token: got %d, want 401", got)
	}
}

// TestBearerAlone: a token is taken from one header, by one scheme.
func TestBearerAlone(t *testing.T) {
	a := newTestAccess(t, "read:")
	for _, tt := range []struct {
		given []string
		want  int
	}{
		{given: []string{"Bearer 0"}, want: 200},
		{given: []string{"bearer  0 "}, want: 200},
		{given: []string{"Bearer 0", "Bearer 0"}, want: 401},
		{given: []string{"Bearer 0", "Basic eDow"}, want: 401},
		{given: []string{"Basic 0"}, want: 401},
		{given: []string{"0"}, want: 401},
		{given: []string{"Bearer"}, want: 401},
		{given: []string{"Bearer 0, Bearer 0"}, want: 401},
		{given: []string{""}, want: 401},
	} {
		r := httptest.NewRequest(http.MethodGet, "/status", nil)
		r.Header["Authorization"] = tt.given
		w := httptest.NewRecorder()
		a.Check(w, r, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		if w.Code != tt.want || (w.Header().Get("WWW-Authenticate") == "Bearer") != (tt.want == 401) {
			t.Errorf("%q: got %d %v, want %d", tt.given, w.Code, w.Header(), tt.want)
		}
	}
}

// TestRefusalsAreFew: at most one a second is logged for each host, and hosts are not remembered without end.
func TestRefusalsAreFew(t *testing.T) {
	a := newTestAccess(t, "read:")
	var lines []string
	a.logf = func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	refused := func(remote string) {
		r := httptest.NewRequest(http.MethodGet, "/get?key=k", nil)
		r.RemoteAddr = remote
		a.Check(httptest.NewRecorder(), r, nil)
	}
	synctest.Test(t, func(*testing.T) {
		for range 100 {
			refused("192.0.2.1:1")
			refused("192.0.2.2:1")
		}
		if want := "refused /get from 192.0.2.1: no token: send Authorization: Bearer TOKEN"; len(lines) != 2 ||
			lines[0] != want {
			t.Errorf("got %q, want two lines, the first %q", lines, want)
		}
		time.Sleep(time.Second)
		refused("192.0.2.1:2")
		if len(lines) != 3 {
			t.Errorf("after a second: got %d lines, want 3", len(lines))
		}
		for i := range 5000 {
			refused(fmt.Sprintf("198.51.%d.%d:1", i/256, i%256))
		}
	})
	if len(a.logged) > 1025 {
		t.Errorf("%d hosts are remembered, want 1025 at most", len(a.logged))
	}
}
