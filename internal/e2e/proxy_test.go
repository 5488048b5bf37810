package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// proxyConfig returns the configuration of a proxy as docs/http.md has it: the first block that is
// marked with its name.
func proxyConfig(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)\n```" + name + "\n(.*?)\n```\n").FindSubmatch(page)
	if found == nil {
		t.Fatalf("docs/http.md has no block %q", name)
	}
	return string(found[1]) + "\n"
}

// startProxy runs the proxy of docs/http.md before nodes, on a port and in a directory of its own, and
// returns a client that goes through it. The edits are old, new, old and so on, in the configuration.
func startProxy(t *testing.T, name string, nodes []*testkit.Node, edits ...string) testkit.Client {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		t.Skipf("%s is not installed; .ci/run installs it where it can", name)
	}
	config, port, dir := proxyConfig(t, name), testkit.FreePort(t), t.TempDir()
	replace := append(edits, "http://kv.example.org:8080 {", "http://localhost:"+port+" {\n\tbind 127.0.0.1",
		"bind :8080", "bind 127.0.0.1:"+port, "listen 8080", "listen 127.0.0.1:"+port, "kv.example.org", "localhost")
	for i, n := range nodes {
		replace = append(replace, fmt.Sprintf("10.0.0.%d:8000", i+1), "127.0.0.1:"+n.HTTPPort)
	}
	config = strings.NewReplacer(replace...).Replace(config)
	file := filepath.Join(dir, name+".conf")
	var args []string
	switch name {
	case "nginx":
		config = "daemon off;\nworker_processes 1;\npid " + dir + "/pid;\nevents {}\nhttp {\naccess_log off;\n" +
			"client_body_temp_path " + dir + "/body;\nproxy_temp_path " + dir + "/proxy;\nfastcgi_temp_path " + dir +
			"/fastcgi;\nuwsgi_temp_path " + dir + "/uwsgi;\nscgi_temp_path " + dir + "/scgi;\n" + config + "}\n"
		if os.Geteuid() == 0 {
			config = "user root;\n" + config // else its workers could not write to the directory
		}
		args = []string{"-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file}
	case "haproxy":
		args = []string{"-db", "-f", file}
	case "caddy":
		config = "{\n\tadmin off\n\tauto_https off\n}\n" + config
		args = []string{"run", "--adapter", "caddyfile", "--config", file}
	}
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	// nginx has workers, which end with it when it is asked to end, and not when it is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := testkit.Start(t, cmd)
	c := testkit.Client{ID: name, Base: "http://localhost:" + port}
	testkit.Eventually(t, name+" ready", func() error {
		if !p.Running() {
			t.Fatalf("%s has ended", name)
		}
		return c.Ready()
	})
	return c
}

// TestProxies runs the configurations of docs/http.md by the real programs: what is set and got, what a
// watch sees at once, and what happens while a node is away.
func TestProxies(t *testing.T) {
	slow(t)
	for _, name := range []string{"nginx", "haproxy", "caddy"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startThree(t)
			proxy := startProxy(t, name, nodes)

			if a := proxy.Definite(t, "POST", "/set", "key=k&value=1"); a.Status != http.StatusOK {
				t.Fatalf("set: got %d %q, want 200", a.Status, a.Body)
			}
			value := strings.Repeat("v", 1<<20)
			for _, a := range []testkit.Answer{
				proxy.Definite(t, "PUT", "/set?key=big", value),
				proxy.Definite(t, "POST", "/txn", `{"if":[{"key":"k","value":"1"}],"then":[{"set":"k","value":"2"}]}`),
			} {
				if a.Status != http.StatusOK {
					t.Errorf("got %d %q, want 200", a.Status, a.Body)
				}
			}
			if a := proxy.Definite(t, "GET", "/get?key=big", ""); a.Body != value {
				t.Errorf("get: got %d, %d bytes, want what was set", a.Status, len(a.Body))
			}
			if a := proxy.Definite(t, "GET", "/list", ""); strings.Count(a.Body, "\n") != 2 {
				t.Errorf("list: got %d lines, want 2", strings.Count(a.Body, "\n"))
			}
			// The Host of a client reaches the node: a page that is served here may write, others may not.
			if a := proxy.Definite(t, "GET", "/get?key=k", "", "Origin", proxy.Base); a.Status != http.StatusOK {
				t.Errorf("a page of this host: got %d %q, want 200", a.Status, a.Body)
			}
			a := proxy.Definite(t, "GET", "/get?key=k", "", "Origin", "http://other.example.org")
			if a.Status != http.StatusForbidden {
				t.Errorf("a page of another host: got %d %q, want 403", a.Status, a.Body)
			}
			proxyWatch(t, proxy)

			// While the leader is away, the proxy finds the next.
			leader, others := testkit.Leader(t, nodes...)
			leader.Kill(t)
			testkit.Leader(t, others...)
			if a := proxy.Definite(t, "POST", "/set", "key=k&value=3"); a.Status != http.StatusOK {
				t.Errorf("set after the leader's end: got %d %q, want 200", a.Status, a.Body)
			}
			if a := proxy.Definite(t, "GET", "/get?key=k", ""); a.Body != "3" {
				t.Errorf("get after the leader's end: got %d %q, want 3", a.Status, a.Body)
			}
			leader.Start(t)
			testkit.CheckReplicas(t, nodes...)
		})
	}
}

// TestProxiesBeforeFollowers: a change that a proxy brings to a follower is led to the leader, by an address that the
// client reaches, or sent on. Either way a body comes whole, and is stored.
func TestProxiesBeforeFollowers(t *testing.T) {
	slow(t)
	// A name of each node, as its DNS would have it.
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, _ := net.SplitHostPort(address)
		if strings.HasSuffix(host, ".kv.test") {
			address = net.JoinHostPort("127.0.0.1", port)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	for _, name := range []string{"nginx", "haproxy", "caddy"} {
		for _, mode := range []string{"redirect", "forward"} {
			t.Run(name+" "+mode, func(t *testing.T) {
				t.Parallel()
				var nodes []*testkit.Node
				for i := range 3 {
					n := testkit.NewNode(t, binary(t), fmt.Sprint("n", i+1), "HTTP_FOLLOWERS="+mode)
					n.Env = append(n.Env, "HTTP_ADVERTISE=http://"+n.ID+".kv.test:"+n.HTTPPort)
					n.Start(t)
					if nodes = append(nodes, n); i > 0 {
						testkit.Join(t, nodes[0].Client, n.Client, n.RaftPort)
					}
				}
				first, others := testkit.Leader(t, nodes...)
				proxy := startProxy(t, name, append(others, others[0]), "/readyz?leader", "/readyz")
				client := &http.Client{Transport: &http.Transport{DialContext: dial}}
				defer client.CloseIdleConnections()
				direct := &http.Client{Transport: client.Transport, CheckRedirect: testkit.Direct.CheckRedirect}
				value := strings.Repeat("v", 1<<20)
				testkit.Eventually(t, "a change by a follower", func() error {
					leader, _ := testkit.Leader(t, nodes...)
					if leader != first { // the proxy would lead to it
						_, _ = testkit.Send(testkit.Direct, leader.Request(t, "POST", "/transfer?nodeId="+first.ID, ""))
						return fmt.Errorf("%s leads, want %s", leader.ID, first.ID)
					}
					a, err := testkit.Send(direct, proxy.Request(t, "PUT", "/set?key=k", value))
					location, by := a.Header.Get("Location"), a.Header.Get("Raftkv-Forwarded-By")
					switch {
					case err != nil:
						return err
					case mode == "forward" && (a.Status != http.StatusOK || by == ""):
						return fmt.Errorf("got %d %q by %q, want 200, sent on", a.Status, a.Body, by)
					case mode == "redirect" && (a.Status != http.StatusTemporaryRedirect ||
						!strings.HasPrefix(location, "http://"+leader.ID+".kv.test:"+leader.HTTPPort+"/set?key=k")):
						return fmt.Errorf("got %d %q to %q, want 307 to %s", a.Status, a.Body, location, leader.ID)
					}
					a, err = testkit.Send(client, proxy.Request(t, "PUT", "/set?key=k", value))
					if err != nil || a.Status != http.StatusOK {
						return fmt.Errorf("got %d %q, %v, want 200", a.Status, a.Body, err)
					}
					chunked := proxy.Request(t, "PUT", "/set?key=chunked", "")
					chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader(value)), -1
					if a, err = testkit.Send(direct, chunked); mode == "forward" && (err != nil || a.Status != http.StatusOK) {
						return fmt.Errorf("in chunks: got %d %q, %v, want 200", a.Status, a.Body, err)
					}
					return nil
				})
				if mode == "forward" {
					proxyWatch(t, proxy)
				}
				has := testkit.CheckReplicas(t, nodes...)
				chunked := has["chunked"]
				if has["k"] != value || mode == "forward" && chunked != value || chunked != "" && chunked != value {
					t.Errorf("got values of %d and %d bytes, want %d", len(has["k"]), len(chunked), len(value))
				}
			})
		}
	}
}

// proxyWatch checks that an event comes through while the watch is open and nothing follows it.
func proxyWatch(t *testing.T, proxy testkit.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	response, err := testkit.Following.Do(proxy.Request(t, "GET", "/watch", "").WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewScanner(response.Body)
	begun, done := false, make(chan struct{})
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "id: ") && !begun:
			begun = true
			go func() {
				defer close(done)
				for ctx.Err() == nil { // a busy machine may lose its leader for a moment
					a, err := testkit.Send(testkit.Following, proxy.Request(t, "POST", "/set", "key=watched&value=1"))
					if err == nil && a.Status == http.StatusOK {
						return
					}
				}
			}()
		case strings.Contains(line, "keep-alive"):
			select {
			case <-done:
				t.Errorf("got a keep-alive, want the event at once, not with what comes behind it")
				return
			default:
			}
		case strings.HasPrefix(line, "data: "):
			if !strings.Contains(line, `"watched"`) {
				t.Errorf("got %s, want the set", line)
			}
			return
		}
	}
	t.Errorf("the watch has ended without an event: %v", lines.Err())
}

// TestWhatNginxSendsAgain: by its default, nginx sends a GET whose connection breaks to the next node, and a
// POST not. It is why changes go by POST, and why the page has another line for them.
func TestWhatNginxSendsAgain(t *testing.T) {
	slow(t)
	t.Parallel()
	for _, tt := range []struct {
		name, method string
		edits        []string
		want         int
	}{
		{name: "the page", method: "GET", want: 1},
		{name: "the page", method: "POST", want: 1},
		{name: "default", method: "GET", edits: []string{"proxy_next_upstream http_503 non_idempotent;", ""}, want: 3},
		{name: "default", method: "POST", edits: []string{"proxy_next_upstream http_503 non_idempotent;", ""}, want: 1},
	} {
		t.Run(tt.name+" "+tt.method, func(t *testing.T) {
			var sent atomic.Int32
			var breaking []*testkit.Node // each breaks the connection in the place of an answer
			for range 3 {
				port := testkit.FreePort(t)
				server := &http.Server{Addr: "127.0.0.1:" + port, Handler: http.HandlerFunc(
					func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == "/set" {
							sent.Add(1)
							panic(http.ErrAbortHandler)
						}
					})}
				go func() { _ = server.ListenAndServe() }()
				t.Cleanup(func() { _ = server.Close() })
				breaking = append(breaking, &testkit.Node{HTTPPort: port})
			}
			proxy := startProxy(t, "nginx", breaking, tt.edits...)
			a, err := testkit.Send(testkit.Direct, proxy.Request(t, tt.method, "/set?key=k&value=1", ""))
			if err != nil || a.Status != http.StatusBadGateway {
				t.Errorf("got %d, %v, want 502", a.Status, err)
			}
			if got := int(sent.Load()); got != tt.want {
				t.Errorf("sent %d times, want %d", got, tt.want)
			}
		})
	}
}
