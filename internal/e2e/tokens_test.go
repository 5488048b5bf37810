package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// newToken makes a token by token.sh, and adds its line to a file.
func newToken(t testing.TB, file, name string, rights ...string) string {
	t.Helper()
	cmd := exec.Command("./token.sh", append([]string{name}, rights...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	token, line, _ := strings.Cut(string(out), "\n")
	had, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	next := file + ".next"
	if err := errors.Join(os.WriteFile(next, append(had, line...), 0o600), os.Rename(next, file)); err != nil {
		t.Fatal(err)
	}
	return token
}

// TestNoTokenNorValueShows: three nodes with tokens, through which all kinds of requests go, good and bad ones, at the
// leader and at a follower. In nothing that the nodes print is a token or a value, and in nothing that they store or
// answer a token or an idempotency key. One of them ends with the trace of a crash.
func TestNoTokenNorValueShows(t *testing.T) {
	t.Parallel()
	slow(t)
	file := filepath.Join(t.TempDir(), "tokens")
	root := newToken(t, file, "root", "write:", "admin")
	alice := newToken(t, file, "alice", "write:app/")
	stranger := strings.Repeat("c0ffee", 10)
	const value, key = "VaLuE-0f-a-SeCrEt", "Idempotency-0f-aLiCe"

	var nodes []*testkit.Node
	for _, id := range []string{"n1", "n2", "n3"} {
		n := testkit.NewNode(t, binary(t), id, "HTTP_TOKENS="+file, "GOTRACEBACK=all")
		n.Token = root
		n.Start(t)
		if nodes = append(nodes, n); len(nodes) > 1 {
			testkit.Join(t, nodes[0].Client, n.Client, n.RaftPort)
		}
	}
	leader, followers := testkit.Leader(t, nodes...)
	answers := new(bytes.Buffer)
	ask := func(n *testkit.Node, token, method, target, body string, headers ...string) int {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := n.Client
		c.Token = token
		r := c.Request(t, method, target, body, headers...).WithContext(ctx)
		if strings.HasPrefix(target, "/watch") {
			response, err := testkit.Direct.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			return response.StatusCode
		}
		a, err := testkit.Send(testkit.Direct, r)
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		hasValues := target == "/get?key=app/k" || strings.HasPrefix(target, "/list") || target == "/snapshot"
		if !hasValues {
			answers.WriteString(a.Body)
		} else if strings.Contains(a.Body, alice) || strings.Contains(a.Body, key) {
			t.Errorf("%s: the answer has a token or an idempotency key", target)
		}
		return a.Status
	}
	for _, n := range []*testkit.Node{leader, followers[0]} {
		for _, tt := range []struct {
			method, target, body string
			status               int
			header               string
		}{
			{method: "GET", target: "/set?key=app/k&value=" + value, status: 200},
			{method: "PUT", target: "/set?key=app/k", body: value, status: 200},
			{method: "POST", target: "/set?key=app/once", body: "value=" + value, header: key, status: 200},
			{method: "POST", target: "/set?key=app/once", body: "value=other" + value, header: key, status: 422},
			{method: "POST", target: "/txn", body: `{"if":[{"key":"app/k","value":"` + value + `"}],` +
				`"then":[{"set":"app/t","value":"` + value + `"}]}`, status: 200},
			{method: "POST", target: "/txn", body: `{"set":"` + value + `"}`, status: 400},
			{method: "POST", target: "/txn", body: `{"then":[{"set":"app/t","value":` + value, status: 400},
			{method: "GET", target: "/get?key=app/k", status: 200},
			{method: "GET", target: "/list?prefix=app/", status: 200},
			{method: "GET", target: "/watch?prefix=app/", status: 200},
			{method: "GET", target: "/set?key=other&value=" + value, status: 403},
			{method: "GET", target: "/set?key=app/k&key=app/l&value=" + value, status: 400},
			{method: "GET", target: "/set?key=app/k&value=" + value + ";more", status: 400},
			{method: "GET", target: "/set?key=app/k&access_token=" + alice, status: 400},
			{method: "GET", target: "/snapshot", status: 403},
			{method: "GET", target: "/remove?key=app/none", status: 200},
			{method: "DELETE", target: "/set?key=app/k&value=" + value, status: 405},
			{method: "GET", target: "/status", status: 200},
			{method: "GET", target: "/metrics", status: 200},
			{method: "GET", target: "/none?value=" + value, status: 404},
		} {
			var headers []string
			if tt.header != "" {
				headers = []string{"Idempotency-Key", tt.header}
			}
			if got := ask(n, alice, tt.method, tt.target, tt.body, headers...); got != tt.status {
				t.Errorf("%s %s at %s: got %d, want %d", tt.method, tt.target, n.ID, got, tt.status)
			}
			got := ask(n, stranger, tt.method, tt.target, tt.body, headers...)
			if got != 401 && tt.status != 404 && tt.status != 405 {
				t.Errorf("%s %s at %s with an unknown token: got %d, want 401", tt.method, tt.target, n.ID, got)
			}
		}
	}
	if got := ask(leader, root, http.MethodGet, "/snapshot", ""); got != 200 {
		t.Errorf("/snapshot: got %d, want 200", got)
	}
	testkit.CheckReplicas(t, nodes...)
	followers[1].Signal(t, syscall.SIGQUIT) // as a crash prints all goroutines
	<-followers[1].Ended()
	leader.Stop(t, syscall.SIGTERM)
	followers[0].Stop(t, syscall.SIGTERM)

	for _, n := range nodes {
		printed := n.Stdout.String() + n.Stderr.String()
		for what, secret := range map[string]string{"root's token": root, "alice's token": alice,
			"an unknown token": stranger, "a value": value, "an idempotency key": key} {
			if i := strings.Index(printed, secret); i >= 0 {
				t.Errorf("%s has printed %s: …%s", n.ID, what, printed[max(0, i-100):i])
			}
		}
		if n == leader && !strings.Contains(printed, `set key="app/k" by=alice value=(17 bytes)`) {
			t.Errorf("%s has no line with the name of alice and the length of the value", n.ID)
		}
		files := 0
		if err := filepath.WalkDir(n.Volume, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			stored, err := os.ReadFile(path)
			files++
			for _, secret := range []string{root, alice, stranger, key} {
				if bytes.Contains(stored, []byte(secret)) {
					t.Errorf("%s has a token or an idempotency key", path)
				}
			}
			return err
		}); err != nil || files == 0 {
			t.Errorf("%s: got %d files, %v, want its volume", n.Volume, files, err)
		}
	}
	if !strings.Contains(followers[1].Stderr.String(), "goroutine ") {
		t.Error("SIGQUIT has printed no goroutines")
	}
	for _, secret := range []string{root, alice, stranger, value, key} {
		if i := strings.Index(answers.String(), secret); i >= 0 {
			t.Errorf("an answer has %s: %s", secret, answers.String()[max(0, i-200):i])
		}
	}
}
