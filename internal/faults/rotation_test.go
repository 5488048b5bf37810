package faults

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestRotation gives a cluster another authority and other tokens, in the steps of docs/operations.md, while clients
// write: first undisturbed, when no write may fail, and then while nodes are killed, cut off and made leader.
func TestRotation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	r := &rotation{dirs: make(map[*node]string), authority: testkit.NewAuthority(t), token: newToken(t),
		admin: newToken(t)}
	w := newWorld(t, "rotation", 3, r.prepare, "RAFT_ELECTION_TIMEOUT=1s")
	w.settle("the start")
	certificates := fault{"another authority", nothing, 0, true, r.renewAuthority}
	tokens := fault{"another token", nothing, 0, true, r.renewToken}
	r.strict = true
	w.round(certificates, tokens)
	r.strict = false
	disturb := []string{"kill -9 of the leader", "isolated leader"}
	if *long {
		disturb = append(disturb, "transfers of leadership", "flapping links", "loss", "kill -9, again and again",
			"SIGTERM of the leader", "isolated follower")
	}
	for _, f := range all {
		if slices.Contains(disturb, f.name) && f.possible(3) {
			w.round(certificates, tokens, f)
		}
	}
	w.finish()
}

// rotation is what is renewed.
type rotation struct {
	admin  string           // token
	dirs   map[*node]string // of a node's certificates, and its file of tokens
	strict bool             // no other fault happens: nothing may fail

	authority *testkit.Authority // used by renewAuthority alone
	token     string             // used by renewToken alone
}

const tokensFile = "tokens"

func newToken(t testing.TB) string {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// prepare gives a node a certificate and the token.
func (r *rotation) prepare(n *node) {
	n.t.Helper()
	dir := r.authority.NodeFiles(n.t)
	r.dirs[n], n.token = dir, r.admin
	r.writeTokens(n, r.token)
	n.env = append(n.env, "RAFT_CERT_DIR="+dir, "HTTP_TOKENS="+dir+"/"+tokensFile)
}

// writeTokens replaces the file of a node: alice holds these tokens, root everything, and the
// clients of the world need none.
func (r *rotation) writeTokens(n *node, tokens ...string) {
	n.t.Helper()
	var b strings.Builder
	for _, token := range tokens {
		fmt.Fprintf(&b, "alice %x read: write:\n", sha256.Sum256([]byte(token)))
	}
	fmt.Fprintf(&b, "root %x read: write: admin\nanonymous read: write:\n", sha256.Sum256([]byte(r.admin)))
	testkit.ReplaceFile(n.t, r.dirs[n], tokensFile, []byte(b.String()))
}

// step replaces files of each node in turn, and waits until the node has printed such a line because of it. A node that
// does not run reads them at its start.
func (r *rotation) step(w *hand, line string, replace func(n *node)) error {
	for _, n := range w.shuffled() {
		before := strings.Count(n.console(), line)
		replace(n)
		if err := testkit.Poll(bound, func() error {
			if strings.Count(n.console(), line) > before || !n.active() {
				return nil
			}
			return fmt.Errorf("%s has not printed %q", n.id, line)
		}); err != nil {
			return err
		}
	}
	return nil
}

// renewAuthority has all nodes trust another authority too, have certificates of that, and trust no other.
func (r *rotation) renewAuthority(w *hand) error {
	const changed = "The authority of the nodes' certificates has changed"
	old, next := r.authority, testkit.NewAuthority(w.t)
	r.authority = next
	return errors.Join(
		r.step(w, changed, func(n *node) {
			testkit.ReplaceFile(n.t, r.dirs[n], "ca.crt", slices.Concat(old.PEM, next.PEM))
		}),
		r.step(w, "/node.crt was read again", func(n *node) {
			certificate, key := next.Issue(n.t)
			testkit.ReplaceFile(n.t, r.dirs[n], "node.key", key)
			testkit.ReplaceFile(n.t, r.dirs[n], "node.crt", certificate)
		}),
		r.step(w, changed, func(n *node) { testkit.ReplaceFile(n.t, r.dirs[n], "ca.crt", next.PEM) }))
}

// renewToken gives alice, who writes at all nodes meanwhile, another token beside hers, and then takes the first one.
// Her token is never refused while all nodes know it, and the first one is refused in the end.
func (r *rotation) renewToken(w *hand) error {
	const read = "/" + tokensFile + " was read again"
	old, next := r.token, newToken(w.t)
	r.token = next
	var token atomic.Pointer[string]
	token.Store(&old)
	done := make(chan struct{})
	var alice sync.WaitGroup
	var writes atomic.Int64
	for k, n := range w.nodes {
		alice.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-time.After(5 * time.Millisecond):
				}
				a, err := n.with(20*time.Second, *token.Load(), "/set", url.Values{"key": {fmt.Sprintf("alice%d.%d", k, i%100)},
					"value": {"v"}})
				switch {
				case err == nil && (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden),
					r.strict && (err != nil || a.Status != http.StatusOK):
					w.problem("%s: a write of alice's: got %d %q, %v, want 200", n.id, a.Status, a.Body, err)
				case err == nil && a.Status == http.StatusOK:
					writes.Add(1)
				}
			}
		})
	}
	more := func() error {
		want := writes.Load() + 50
		return testkit.Poll(bound, func() error {
			if got := writes.Load(); got < want {
				return fmt.Errorf("%d writes of alice's, want %d", got, want)
			}
			return nil
		})
	}
	err := errors.Join(more(), r.step(w, read, func(n *node) { r.writeTokens(n, old, next) }))
	token.Store(&next)
	err = errors.Join(err, more(), r.step(w, read, func(n *node) { r.writeTokens(n, next) }), more())
	close(done)
	alice.Wait()
	for _, n := range w.nodes {
		a, failed := n.with(5*time.Second, old, "/get", url.Values{"key": {"alice"}})
		if failed == nil && a.Status != http.StatusUnauthorized {
			w.problem("%s: the token that was taken back: got %d %q, want 401", n.id, a.Status, a.Body)
		}
	}
	return err
}
