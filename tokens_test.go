package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// rootToken is the token that the helpers of tests send to a node that wants one.
const rootToken = "root-token"

// tokenLine is a line of a file of tokens.
func tokenLine(name, token, rights string) string {
	hash := sha256.Sum256([]byte(token))
	return name + " " + hex.EncodeToString(hash[:]) + " " + rights + "\n"
}

// tokenFile writes a file of tokens, root's among them, and returns its path.
func tokenFile(t testing.TB, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	writeTokens(t, path, lines)
	return path
}

func writeTokens(t testing.TB, path, lines string) {
	t.Helper()
	text := tokenLine("root", rootToken, "write: admin") + lines
	if err := os.WriteFile(path+".next", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

// TestRights is what each token may do on each path: nothing but what its rights name, whether a key is there or not.
func TestRights(t *testing.T) {
	path := tokenFile(t, tokenLine("reader", "reader-token", "read:app/")+
		tokenLine("writer", "writer-token", "write:app/")+
		tokenLine("all", "all-token", "read:")+tokenLine("other", "other-token", "write:other/")+
		tokenLine("admin", "admin-token", "admin")+"anonymous read:public/\n")
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.tokens, c.forward = path, true })
	leads(t, s)
	for _, key := range []string{"app/k", "other/k", "public/k"} {
		set(t, s, key, "v")
	}
	const form = "application/x-www-form-urlencoded"
	everybody := []string{"", "wrong", "reader", "writer", "all", "other", "admin", "root"}
	for _, tt := range []struct {
		method, target, body string
		may                  string // the tokens with which it is answered; - is none
	}{
		{method: "GET", target: "/set?key=app/k&value=1", may: "writer root"},
		{method: "GET", target: "/set?key=app/new&value=1", may: "writer root"},
		{method: "PUT", target: "/set?key=app/k", body: "1", may: "writer root"},
		{method: "POST", target: "/set", body: "key=app/k&value=1", may: "writer root"},
		{method: "POST", target: "/set?key=app/k", body: "value=1&key=other/k&value=2", may: "root"},
		{method: "POST", target: "/set?key=other/k", body: "value=1&key=app/k&value=2", may: "root"},
		{method: "GET", target: "/set?key=app&value=1", may: "root"},
		{method: "GET", target: "/set?key=public/k&value=1", may: "root"},
		{method: "GET", target: "/remove?key=app/none", may: "writer root"},
		{method: "GET", target: "/remove?key=app/none&key=other/none", may: "root"},
		{method: "GET", target: "/remove?prefix=app/none", may: "writer root"},
		{method: "GET", target: "/remove?prefix=app/none/more", may: "writer root"},
		{method: "GET", target: "/remove?prefix=appnone", may: "root"},
		{method: "POST", target: "/txn", body: `{"then":[{"set":"app/k","value":"1"}]}`, may: "writer root"},
		{method: "POST", target: "/txn", body: `{"then":[{"get":"app/k"}]}`, may: "reader writer all root"},
		{method: "POST", target: "/txn", body: `{"if":[{"key":"app/k","absent":true}]}`, may: "reader writer all root"},
		{method: "POST", target: "/txn", body: `{"if":[{"key":"other/k","absent":true}],"then":[{"get":"app/k"}]}`,
			may: "all root"},
		{method: "POST", target: "/txn", body: `{"if":[{"key":"app/k","absent":true}],"then":[{"remove":"other/none"}]}`,
			may: "root"},
		{method: "POST", target: "/txn", body: `{"then":[{"get":"app/k"}],"else":[{"set":"app/k","value":"1"}]}`,
			may: "writer root"},
		{method: "POST", target: "/txn", body: `{"then":[{"get":"app/k"}],"else":[{"get":"other/k"}]}`, may: "all root"},
		{method: "GET", target: "/get?key=app/k", may: "reader writer all root"},
		{method: "GET", target: "/get?key=app/none", may: "reader writer all root"},
		{method: "GET", target: "/get?key=app/k&consistency=stale", may: "reader writer all root"},
		{method: "HEAD", target: "/get?key=app/k", may: "reader writer all root"},
		{method: "POST", target: "/get", body: "key=app/k", may: "reader writer all root"},
		{method: "GET", target: "/get?key=public/k", may: "- all root"},
		{method: "GET", target: "/get?key=other/k", may: "all other root"},
		{method: "GET", target: "/get?key=app/k&key=app/l", may: "reader writer all root"},
		{method: "GET", target: "/get?key=app/k&key=other/k", may: "all root"},
		{method: "GET", target: "/list?prefix=app/&reverse=yes&until=b", may: "reader writer all root"},
		{method: "GET", target: "/list?until=app/k&count=yes", may: "all root"},
		{method: "GET", target: "/watch?key=other/k", may: "all other root"},
		{method: "GET", target: "/list?prefix=app/", may: "reader writer all root"},
		{method: "GET", target: "/list?prefix=app/&after=app/k", may: "reader writer all root"},
		{method: "GET", target: "/list?prefix=app", may: "all root"},
		{method: "GET", target: "/list", may: "all root"},
		{method: "GET", target: "/list?consistency=stale", may: "all root"},
		{method: "GET", target: "/list?prefix=public/", may: "- all root"},
		{method: "GET", target: "/watch?prefix=app/", may: "reader writer all root"},
		{method: "GET", target: "/watch?prefix=app/k", may: "reader writer all root"},
		{method: "GET", target: "/watch", may: "all root"},
		{method: "GET", target: "/watch?prefix=public/", may: "- all root"},
		{method: "GET", target: "/snapshot", may: "admin root"},
		{method: "GET", target: "/snapshot?consistency=stale", may: "admin root"},
		{method: "PUT", target: "/restore", body: "no backup", may: "admin root"},
		{method: "GET", target: "/join?nodeId=n9&raftPort=1", may: "admin root"},
		{method: "GET", target: "/leave?nodeId=n9", may: "admin root"},
		{method: "GET", target: "/transfer?nodeId=n9", may: "admin root"},
		{method: "GET", target: "/debug/pprof/cmdline", may: "admin root"},
		{method: "GET", target: "/status", may: "reader writer all other admin root"},
		{method: "GET", target: "/readyz", may: "- reader writer all other admin root"},
		{method: "GET", target: "/readyz?leader", may: "- reader writer all other admin root"},
		{method: "GET", target: "/metrics", may: "reader writer all other admin root"},
		{method: "GET", target: "/healthz", may: "- wrong reader writer all other admin root"},
	} {
		may := strings.Fields(tt.may)
		for _, name := range everybody {
			request := func() (status int, header http.Header, line string) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel() // of a watch
				r := newRequest(t, tt.method, s, tt.target, tt.body).WithContext(ctx)
				if r.Header.Del("Authorization"); name != "" {
					r.Header.Set("Authorization", "Bearer "+name+"-token")
				}
				if strings.HasPrefix(tt.body, "key=") || strings.HasPrefix(tt.body, "value=") {
					r.Header.Set("Content-Type", form)
				}
				response, err := direct.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				if response.StatusCode == 401 || response.StatusCode == 403 {
					text, err := io.ReadAll(response.Body)
					if err != nil {
						t.Fatal(err)
					}
					line = string(text)
				}
				return response.StatusCode, response.Header, line
			}
			id := fmt.Sprintf("%s %s %s as %q", tt.method, tt.target, tt.body, name)
			if slices.Contains(may, name) || name == "" && slices.Contains(may, "-") {
				if status, _, line := request(); status == 401 || status == 403 || status >= 500 {
					t.Errorf("%s: got %d %q, want that it is answered", id, status, line)
				}
				continue
			}
			want := http.StatusForbidden
			if name == "" || name == "wrong" {
				want = http.StatusUnauthorized
			}
			checkUnchanged(t, s, func() {
				status, header, line := request()
				if status != want || tt.method != "HEAD" && strings.Count(line, "\n") != 1 {
					t.Errorf("%s: got %d %q, want %d and one line", id, status, line, want)
				}
				if got := header.Get("WWW-Authenticate"); (got == "Bearer") != (want == 401) {
					t.Errorf("%s: WWW-Authenticate: got %q with status %d", id, got, want)
				}
			})
		}
	}
}

// TestRefusalsAreAlike: by what a token without a right is told, it can't be known whether a key is there.
func TestRefusalsAreAlike(t *testing.T) {
	path := tokenFile(t, tokenLine("other", "other-token", "write:other/"))
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.tokens = path })
	leads(t, s)
	set(t, s, "k", "v")
	for _, target := range []string{"/get?key=KEY", "/set?key=KEY&value=1", "/remove?key=KEY", "/list?prefix=KEY"} {
		var lines []string
		for _, key := range []string{"k", "l"} {
			r := newRequest(t, "GET", s, strings.ReplaceAll(target, "KEY", key), "")
			r.Header.Set("Authorization", "Bearer other-token")
			r.Header.Set("If-Match", "*")
			a := exchange(t, r)
			lines = append(lines, strings.ReplaceAll(a.body, ":"+key+":", ":KEY:"))
			if err := oneLineNaming(a, "other has no right", ":"+key); err != nil || a.status != 403 {
				t.Errorf("%s of %s: got %d (%v), want 403", target, key, a.status, err)
			}
		}
		if lines[0] != lines[1] {
			t.Errorf("%s: got %q and %q, want the same", target, lines[0], lines[1])
		}
	}
}

// TestCredentials: a token comes in one header alone.
func TestCredentials(t *testing.T) {
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.tokens = tokenFile(t, "") })
	leads(t, s)
	for name, change := range map[string]func(r *http.Request){
		"Basic":     func(r *http.Request) { r.SetBasicAuth("root", rootToken) },
		"other":     func(r *http.Request) { r.Header.Set("Authorization", "Token "+rootToken) },
		"no scheme": func(r *http.Request) { r.Header.Set("Authorization", rootToken) },
		"empty":     func(r *http.Request) { r.Header.Set("Authorization", "") },
		"no token":  func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") },
		"twice":     func(r *http.Request) { r.Header.Add("Authorization", "Bearer "+rootToken) },
		"its hash": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Fields(tokenLine("Bearer", rootToken, ""))[1])
		},
		"a beginning": func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+rootToken[:9]) },
		"more":        func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+rootToken+"x") },
		"cookie": func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Set("Cookie", "token="+rootToken)
		},
		"in the address": func(r *http.Request) {
			r.Header.Del("Authorization")
			r.URL.RawQuery += "&access_token=" + rootToken
		},
	} {
		r := newRequest(t, "GET", s, "/set?key=k&value=v", "")
		change(r)
		if a := exchange(t, r); a.status != 401 || strings.Contains(a.body, rootToken) {
			t.Errorf("%s: got %d %q, want 401 without the token", name, a.status, a.body)
		}
	}
	r := newRequest(t, "GET", s, "/set?key=k&value=v", "")
	r.Header.Set("Authorization", "bearer  "+rootToken)
	if a := exchange(t, r); a.status != 200 {
		t.Errorf("a scheme in lower case: got %d %q, want 200", a.status, a.body)
	}
}

// TestIdempotencyKeysOfNames: a name knows nothing of the keys of another, and has its own by each of its tokens.
func TestIdempotencyKeysOfNames(t *testing.T) {
	path := tokenFile(t, tokenLine("alice", "a1-token", "write:")+tokenLine("alice", "a2-token", "write:")+
		tokenLine("bob", "b-token", "write:"))
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.tokens = path })
	leads(t, s)
	longest := strings.Repeat("k", 255)
	for _, key := range []string{"once", longest} {
		send := func(token, value string) answer {
			r := newRequest(t, "GET", s, "/set?key=k&value="+value, "")
			r.Header.Set("Authorization", "Bearer "+token)
			r.Header.Set("Idempotency-Key", key)
			return exchange(t, r)
		}
		first := send("a1-token", "1")
		if again := send("a2-token", "1"); first.status != 200 || again.body != first.body {
			t.Errorf("alice by her other token: got %q, want %q", again.body, first.body)
		}
		if a := send("a2-token", "2"); a.status != 422 {
			t.Errorf("another request of alice: got %d %q, want 422", a.status, a.body)
		}
		if a := send("b-token", "2"); a.status != 200 || a.body == first.body {
			t.Errorf("bob: got %d %q, want 200 and an index of his own", a.status, a.body)
		}
	}
	checkReplicas(t, s)
}

// TestTokensTakenBack: a watch ends when the line of its token does, and new tokens are in force, without a restart.
func TestTokensTakenBack(t *testing.T) {
	path := tokenFile(t, tokenLine("alice", "a-token", "read:"))
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.tokens = path })
	leads(t, s)
	watch := func(token string) (*http.Response, *bufio.Scanner) {
		r := newRequest(t, "GET", s, "/watch", "")
		r.Header.Set("Authorization", "Bearer "+token)
		response, err := direct.Do(r)
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("watch: got %v, %v, want 200", response, err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		lines := bufio.NewScanner(response.Body)
		waitLine(t, lines, ": watching")
		return response, lines
	}
	_, taken := watch("a-token")
	_, kept := watch(rootToken)
	writeTokens(t, path, tokenLine("bob", "b-token", "read:"))
	for taken.Scan() { // until it ends
	}
	for token, want := range map[string]int{"a-token": 401, "b-token": 404} {
		r := newRequest(t, "GET", s, "/get?key=none", "")
		r.Header.Set("Authorization", "Bearer "+token)
		if a := exchange(t, r); a.status != want {
			t.Errorf("%s: got %d %q, want %d", token, a.status, a.body, want)
		}
	}
	set(t, s, "k", "v")
	waitLine(t, kept, "data: ")
}

// TestConsoleWithTokens: the node that proposes a command shows whose it is, no node shows a value, and refusals come
// at most once a second for each host.
func TestConsoleWithTokens(t *testing.T) {
	out := new(logBuffer)
	c := config{nodeID: "n1", volume: t.TempDir(), httpAddress: "127.0.0.1:0", raftAddress: "127.0.0.1:0",
		snapshotThreshold: 8192, electionTimeout: 250 * time.Millisecond, logLevel: "debug", hideValues: true,
		tokens: tokenFile(t, tokenLine("alice", "a-token", "write:app/"))}
	s, err := start(t.Context(), c, out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.stop() })
	leads(t, s)
	send := func(method, target, body string) answer {
		r := newRequest(t, method, s, target, body)
		r.Header.Set("Authorization", "Bearer a-token")
		return exchange(t, r)
	}
	for _, target := range []string{"/set?key=app/k&value=secret1", "/remove?key=app/k", "/remove?prefix=app/"} {
		if a := send("GET", target, ""); a.status != 200 {
			t.Fatalf("%s: got %d %q, want 200", target, a.status, a.body)
		}
	}
	if a := send("POST", "/txn", `{"then":[{"set":"app/t","value":"secret2!"}]}`); a.status != 200 {
		t.Fatalf("/txn: got %d %q, want 200", a.status, a.body)
	}
	before, refused := time.Now(), 0
	for range 50 {
		if a := send("GET", "/get?key=other", ""); a.status == 403 {
			refused++
		}
	}
	took := time.Since(before)
	waitFor(t, "the lines", func() error {
		for _, want := range []string{`set key="app/k" by=alice value=(7 bytes) index=`, `remove key="app/k" by=alice index=`,
			`remove prefix="app/" removed=0 by=alice index=`, `set key="app/t" by=alice value=(8 bytes) index=`,
			"refused /get from 127.0.0.1: alice has no right read:other"} {
			if !strings.Contains(out.String(), want) {
				return fmt.Errorf("no line has %q", want)
			}
		}
		return nil
	})
	if strings.Contains(out.String(), "secret") || strings.Contains(out.String(), "a-token") {
		t.Errorf("the console has a value or a token: %s", out)
	}
	if got, most := strings.Count(out.String(), "refused /get"), 1+int(took/time.Second); refused != 50 || got > most {
		t.Errorf("got %d lines of %d refusals within %v, want %d at most", got, refused, took, most)
	}
	checkReplicas(t, s)
}

// TestForwardingWithTokens: a follower sends the token on, and the leader goes by its own file.
func TestForwardingWithTokens(t *testing.T) {
	paths := make(map[*service]string)
	var nodes []*service
	for _, id := range []string{"n1", "n2", "n3"} {
		path := tokenFile(t, tokenLine("alice", "a-token", "write:app/"))
		s := startNode(t, id, t.TempDir(), func(c *config) {
			c.tokens, c.forward, c.electionTimeout = path, true, 2*time.Second
		})
		leads(t, s)
		paths[s] = path
		if nodes = append(nodes, s); len(nodes) > 1 {
			join(t, nodes[0], s)
		}
	}
	leader, followers := testkit.Leader(t, nodes...)
	send := func(target string) answer {
		r := newRequest(t, "GET", followers[0], target, "")
		r.Header.Set("Authorization", "Bearer a-token")
		return exchange(t, r)
	}
	if a := send("/set?key=app/k&value=1"); a.status != 200 {
		t.Errorf("alice through a follower: got %d %q, want 200", a.status, a.body)
	}
	if a := send("/set?key=other&value=1"); a.status != 403 {
		t.Errorf("beyond the right of alice: got %d %q, want 403", a.status, a.body)
	}
	if a := send("/leave?nodeId=n9"); a.status != 403 {
		t.Errorf("/leave by alice: got %d %q, want 403", a.status, a.body)
	}
	writeTokens(t, paths[leader], "") // now alice is nobody there
	waitFor(t, "the new file of the leader", func() error {
		r := newRequest(t, "GET", leader, "/status", "")
		r.Header.Set("Authorization", "Bearer a-token")
		if a := exchange(t, r); a.status != 401 {
			return fmt.Errorf("got %d, want 401", a.status)
		}
		return nil
	})
	if a := send("/set?key=app/k&value=2"); a.status != 401 {
		t.Errorf("alice, whom the leader does not know: got %d %q, want 401", a.status, a.body)
	}
	if got := checkReplicas(t, nodes...); got["app/k"] != "1" || got["other"] != "" {
		t.Errorf("the nodes hold %v, want app/k=1 alone", got)
	}
}
