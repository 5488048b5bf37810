package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftkv/client"
	"raftkv/internal/testkit"
)

// TestCertificatesOfNodes: nodes with certificates of one authority form a cluster; one without, and one of another
// authority, does not get in, and the others go on.
func TestCertificatesOfNodes(t *testing.T) {
	t.Parallel()
	authority := testkit.NewAuthority(t)
	nodes := testkit.StartCluster(t, binary(t), 2, "RAFT_CERT_DIR="+authority.NodeFiles(t))
	plain := testkit.StartNodes(t, binary(t), 1)[0]
	other := testkit.StartNodes(t, binary(t), 1, "RAFT_CERT_DIR="+testkit.NewAuthority(t).NodeFiles(t))[0]
	for name, test := range map[string]struct {
		n    *testkit.Node
		line string
	}{"without certificates": {plain, "RAFT_CERT_DIR"}, "of another authority": {other, "unknown authority"}} {
		test.n.ID = "n3"
		a := nodes[0].Ask(t, test.n.JoinPath())
		if a.Status != http.StatusConflict || !strings.Contains(a.Body, test.line) {
			t.Errorf("%s: got %d %q, want 409 with %q", name, a.Status, a.Body, test.line)
		}
	}
	nodes[1].Set(t, "a", "1")
	testkit.CheckReplicas(t, nodes...)
	if got := len(state(t, nodes[0]).Members); got != 2 {
		t.Errorf("members: got %d, want 2", got)
	}
}

// TestRotationOfTheAuthority: while writes and reads go on at each node, all get another authority, in three steps as
// docs/operations.md has them. Not one write or read fails, and at the end the former authority is worth nothing.
func TestRotationOfTheAuthority(t *testing.T) {
	slow(t)
	t.Parallel()
	old, next := testkit.NewAuthority(t), testkit.NewAuthority(t)
	var nodes []*testkit.Node
	var dirs []string
	for k := range 3 {
		dirs = append(dirs, old.NodeFiles(t))
		n := testkit.NewNode(t, binary(t), fmt.Sprint("n", k+1), "RAFT_CERT_DIR="+dirs[k], "HTTP_FOLLOWERS=forward")
		n.Start(t)
		nodes = append(nodes, n)
	}
	for _, n := range nodes[1:] {
		testkit.Join(t, nodes[0].Client, n.Client, n.RaftPort)
	}

	done := make(chan struct{})
	var load sync.WaitGroup
	var count atomic.Int64
	for k, n := range nodes {
		for j := range 2 {
			load.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
					}
					key := fmt.Sprintf("k%d-%d-%d", k, j, i%100)
					target := "/set?" + testkit.Pair(key, fmt.Sprint(i))
					if _, err := testkit.Acknowledged(n.Request(t, http.MethodGet, target, "")); err != nil {
						t.Errorf("write %d at %s: %v", i, n.ID, err)
						return
					}
					target = "/get?key=" + key
					a, err := testkit.Acknowledged(n.Request(t, http.MethodGet, target, ""))
					if err != nil || a.Body != fmt.Sprint(i) {
						t.Errorf("read %d at %s: got %q, %v, want %d", i, n.ID, a.Body, err, i)
						return
					}
					count.Add(1)
				}
			})
		}
	}
	// goesOn waits until a hundred more writes were acknowledged.
	goesOn := func() {
		t.Helper()
		want := count.Load() + 100
		testkit.Eventually(t, "more writes", func() error {
			if got := count.Load(); got < want && !t.Failed() {
				return fmt.Errorf("got %d, want %d", got, want)
			}
			return nil
		})
	}
	const renewed = "The authority of the nodes' certificates has changed"
	step := func(name string, seen int, line string, replace func(k int)) {
		t.Helper()
		goesOn()
		for k, n := range nodes {
			replace(k)
			testkit.Eventually(t, name+" at "+n.ID, func() error {
				isLine := func(m string) bool { return strings.HasPrefix(m, line) }
				if got := len(slices.DeleteFunc(n.Messages(), func(m string) bool { return !isLine(m) })); got < seen {
					return fmt.Errorf("%d lines, want %d", got, seen)
				}
				return nil
			})
		}
		goesOn()
	}
	step("both authorities", 1, renewed, func(k int) {
		testkit.ReplaceFile(t, dirs[k], "ca.crt", slices.Concat(old.PEM, next.PEM))
	})
	step("certificates of the new one", 2, "Certificate ", func(k int) {
		certificate, key := next.Issue(t)
		testkit.ReplaceFile(t, dirs[k], "node.key", key)
		testkit.ReplaceFile(t, dirs[k], "node.crt", certificate)
	})
	step("the new one alone", 2, renewed, func(k int) {
		testkit.ReplaceFile(t, dirs[k], "ca.crt", next.PEM)
	})
	close(done)
	load.Wait()
	t.Logf("%d writes and as many reads", count.Load())
	testkit.CheckReplicas(t, nodes...)

	stranger := testkit.NewNode(t, binary(t), "n4", "RAFT_CERT_DIR="+old.NodeFiles(t))
	stranger.Start(t)
	if a := nodes[0].Definite(t, http.MethodGet, stranger.JoinPath(), ""); a.Status != http.StatusConflict {
		t.Errorf("a node of the former authority: got %d %q, want 409", a.Status, a.Body)
	}
}

// TestHTTPS: with certificates for clients, nodes serve HTTP/1.1 and HTTP/2 over TLS, redirects lead to https, and
// without TLS there is nothing.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	authority := testkit.NewAuthority(t)
	var nodes []*testkit.Node
	var dirs []string
	for k := range 3 {
		dirs = append(dirs, authority.NodeFiles(t))
		n := testkit.NewNode(t, binary(t), fmt.Sprint("n", k+1), "RAFT_CERT_DIR="+dirs[k], "HTTP_CERT_DIR="+dirs[k])
		n.Base = strings.Replace(n.Base, "http:", "https:", 1)
		n.Start(t)
		nodes = append(nodes, n)
	}
	for _, n := range nodes[1:] {
		testkit.Join(t, nodes[0].Client, n.Client, n.RaftPort)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM)
	trust := &tls.Config{RootCAs: roots}
	for version, second := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		transport := &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: second}
		defer transport.CloseIdleConnections()
		direct := &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: testkit.Direct.CheckRedirect}
		following := &http.Client{Transport: transport, Timeout: time.Minute}
		testkit.UnderOneLeader(t, nodes, func(leader *testkit.Node, others []*testkit.Node) error {
			response, err := direct.Do(others[0].Request(t, http.MethodPut, "/set?key=a", "value"))
			if err != nil {
				return err
			}
			_ = response.Body.Close()
			if response.Proto != version {
				t.Errorf("protocol: got %s, want %s", response.Proto, version)
			}
			if got, want := response.Header.Get("Location"), leader.Base+"/set?key=a&raftkv-length=5"; got != want {
				t.Errorf("Location: got %q, want %q", got, want)
			}
			for _, r := range []*http.Request{
				others[0].Request(t, http.MethodPut, "/set?key=a", "value"),
				others[1].Request(t, http.MethodPut, "/set?key=b", strings.Repeat("v", 900<<10)),
				others[0].Request(t, http.MethodGet, "/get?key=a", ""),
				leader.Request(t, http.MethodGet, "/list", "", "Origin", leader.Base),
				leader.Request(t, http.MethodGet, "/snapshot", ""),
			} {
				if a, err := testkit.Send(following, r); err != nil || a.Status != http.StatusOK {
					return fmt.Errorf("%s %s: got %d %.100q, %w, want 200", r.Method, r.URL.Path, a.Status, a.Body, err)
				}
			}
			for _, test := range []struct {
				r      *http.Request
				status int
			}{
				{leader.Request(t, http.MethodPut, "/set?key=a", strings.Repeat("v", 9<<20)), http.StatusRequestEntityTooLarge},
				{leader.Request(t, http.MethodPut, "/set?key=a", "w", "If-Match", `"1-00000000"`), http.StatusPreconditionFailed},
				{leader.Request(t, http.MethodGet, "/set?key=a&value=1", "", "Origin",
					strings.Replace(leader.Base, "https:", "http:", 1)), http.StatusForbidden},
			} {
				if a, err := testkit.Send(following, test.r); err != nil || a.Status != test.status {
					t.Errorf("%s: %s: got %d %.100q, %v, want %d", version, test.r.URL.Path, a.Status, a.Body, err, test.status)
				}
			}
			return nil
		})
	}
	plain := strings.Replace(nodes[0].Base, "https:", "http:", 1)
	if response, err := http.Get(plain + "/get?key=a"); err == nil {
		_ = response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: got %s, want 400", response.Status)
		}
	}

	// The client of package client, by an endpoint that does not lead.
	_, others := testkit.Leader(t, nodes...)
	c, err := client.New(client.Config{Endpoints: []string{others[0].Base}, TLS: trust})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Set(ctx, "c", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for event, err := range c.ListWatch(ctx, "c") {
		if err != nil || len(event.Items) != 1 || string(event.Items[0].Value) != "1" {
			t.Errorf("watch: got %v, %v, want c=1", event, err)
		}
		break
	}
	// Another certificate is shown to the next that connects.
	first := shown(t, trust, others[0])
	certificate, key := authority.Issue(t, testkit.ForHTTP)
	for k := range dirs {
		testkit.ReplaceFile(t, dirs[k], "http.key", key)
		testkit.ReplaceFile(t, dirs[k], "http.crt", certificate)
	}
	if shown(t, trust, others[0]).Equal(first) {
		t.Error("got the former certificate, want the new one")
	}
	testkit.CheckReplicas(t, nodes...)
}

// shown is the certificate that a node shows to a client.
func shown(t testing.TB, trust *tls.Config, n *testkit.Node) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", "127.0.0.1:"+n.HTTPPort, trust)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0]
}

// TestCertificatesThatCannotBeUsed: a node does not start, exit code 2, with one line; and it goes on, with a warning,
// when they are spoiled later.
func TestCertificatesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	authority := testkit.NewAuthority(t)
	dir := authority.NodeFiles(t)
	n := testkit.NewNode(t, binary(t), "n1", "RAFT_CERT_DIR="+dir)
	n.Start(t)
	testkit.ReplaceFile(t, dir, "node.crt", []byte("nothing"))
	testkit.Eventually(t, "a warning", func() error {
		a, err := testkit.Send(testkit.Direct, n.Request(t, http.MethodGet, "/readyz", ""))
		if err == nil && (a.Status != http.StatusOK || !strings.Contains(a.Body, "node.crt")) {
			err = errors.New(a.Body)
		}
		return err
	})
	n.Set(t, "a", "1")
	n.Signal(t, syscall.SIGTERM)
	n.WantExit(t, testkit.StopBound, 0)
	n.Run(t)
	n.WantExit(t, 30*time.Second, 2)
	if got := strings.TrimSpace(n.Stderr.String()); !strings.Contains(got, "RAFT_CERT_DIR") ||
		!strings.Contains(got, "node.crt") || strings.Count(got, "\n") > 0 {
		t.Errorf("got %q, want one line with RAFT_CERT_DIR and node.crt", got)
	}
}

// TestInsecure: a node beyond loopback that its user lets start warns on the console, in /readyz and in /status.
func TestInsecure(t *testing.T) {
	t.Parallel()
	n := testkit.NewNode(t, binary(t), "n1", "HTTP_SERVER_HOST=0.0.0.0", "INSECURE=yes")
	for range 2 {
		n.Start(t)
		const line = "INSECURE=yes: whoever reaches the HTTP port"
		n.WaitMessage(t, line)
		for _, path := range []string{"/readyz", "/status"} {
			if a := n.Ask(t, path); a.Status != http.StatusOK || !strings.Contains(a.Body, line) {
				t.Errorf("%s: got %d %q, want 200 with %q", path, a.Status, a.Body, line)
			}
		}
		n.Stop(t, syscall.SIGTERM)
	}
}

// TestFilesArePrivate: whatever the umask of the shell, nobody but its user may read what a node makes, snapshots and
// backups of others included; a volume that former versions have made readable is taken, and is not any more.
func TestFilesArePrivate(t *testing.T) {
	t.Parallel()
	n := testkit.NewNode(t, binary(t), "n1", "RAFT_SNAPSHOT_THRESHOLD=1")
	run := func() {
		t.Helper()
		cmd := n.Command()
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `umask 0; exec "$0"`, cmd.Path}
		n.Process = testkit.Start(t, cmd)
		n.WaitReady(t)
	}
	check := func() (snapshots int) {
		t.Helper()
		err := filepath.WalkDir(n.Volume, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // one that was not finished
				return nil
			}
			if err != nil {
				return err
			}
			if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: got mode %v, want that its user alone may read it", path, info.Mode())
			}
			if d.Name() == "state.bin" && !strings.HasSuffix(filepath.Dir(path), ".tmp") {
				snapshots++
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return snapshots
	}
	run()
	testkit.Eventually(t, "a snapshot", func() error {
		n.Set(t, "a", "1")
		if check() == 0 {
			return errors.New("none")
		}
		return nil
	})
	n.Stop(t, syscall.SIGTERM)
	err := filepath.WalkDir(n.Volume, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o755)
		} else if err == nil {
			return os.Chmod(path, 0o644)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	run()
	check()
	if a := n.Ask(t, "/get?key=a"); a.Body != "1" {
		t.Errorf("got %d %q, want 1", a.Status, a.Body)
	}
}

// TestCertScript: what cert.sh makes, nodes use, and nobody else may read; again for the same node, it makes another
// pair, which a running node takes. A new authority is not put in the place of another at one node alone.
func TestCertScript(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	work := t.TempDir()
	script, err := filepath.Abs("../../cert.sh")
	if err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) (out string, code int) {
		t.Helper()
		cmd := exec.Command("bash", append([]string{"-c", `umask 022; exec "$0" "$@"`, script}, args...)...)
		cmd.Dir = work
		text, err := cmd.CombinedOutput()
		if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(text), cmd.ProcessState.ExitCode()
	}
	for _, args := range [][]string{{}, {"-x"}, {"a/b"}, {".."}, {"n1", "http://kv"}, {"n1", "node.raftkv"}, {"n1", "a:80"},
		{"--ca", "n1"}} {
		if out, code := call(args...); code != 2 || strings.Count(out, "\n") != 1 {
			t.Errorf("cert.sh %q: got %d %q, want 2 and one line", args, code, out)
		}
	}
	if entries, err := os.ReadDir(work); err != nil || len(entries) > 0 {
		t.Errorf("after wrong arguments: got %v, %v, want nothing", entries, err)
	}
	want := func(want string, args ...string) {
		t.Helper()
		if out, code := call(args...); code != 0 || !strings.HasSuffix(out, want) {
			t.Fatalf("cert.sh %q: got %d %q, want 0 and %q at the end", args, code, out, want)
		}
	}
	want("certs/n1 has the certificates of n1, for 397 days.\n", "n1", "kv.example", "10.0.0.1", "fd00::1")
	want("certs/n2 has the certificates of n2, for 397 days.\n", "n2")
	certs := filepath.Join(work, "certs")
	err = filepath.WalkDir(certs, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: got mode %v, want that its user alone may read it", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	var nodes []*testkit.Node
	for _, id := range []string{"n1", "n2"} {
		dir := filepath.Join(certs, id)
		n := testkit.NewNode(t, binary(t), id, "RAFT_CERT_DIR="+dir, "HTTP_CERT_DIR="+dir)
		n.Base = strings.Replace(n.Base, "http:", "https:", 1)
		n.Start(t)
		nodes = append(nodes, n)
	}
	testkit.Join(t, nodes[0].Client, nodes[1].Client, nodes[1].RaftPort)

	ca, err := os.ReadFile(filepath.Join(certs, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	trust := &tls.Config{RootCAs: roots}
	first := shown(t, trust, nodes[0])
	for _, host := range []string{"n1", "localhost", "127.0.0.1", "::1", "kv.example", "10.0.0.1", "fd00::1"} {
		if err := first.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	want("certs/n1 has the certificates of n1, for 397 days.\n", "n1")
	if shown(t, trust, nodes[0]).Equal(first) {
		t.Error("got the former certificate, want the new one")
	}
	nodes[0].WaitMessage(t, "Certificate "+filepath.Join(certs, "n1", "node.crt")+" was read again")
	nodes[1].Set(t, "a", "1")

	for _, name := range []string{"ca.crt", "ca.key"} {
		if err := os.Remove(filepath.Join(certs, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := call("n1"); code != 1 || !strings.Contains(out, "is of another authority") {
		t.Errorf("another authority: got %d %q, want 1 and a line", code, out)
	}
	testkit.CheckReplicas(t, nodes...)
}
