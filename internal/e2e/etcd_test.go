package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// gateway is a system that answers etcd's v3 JSON API.
type gateway struct {
	t    *testing.T
	name string
	base string

	header string            // the newest revision of a header
	last   map[string][2]any // key: its create_revision and mod_revision, as they were last seen
	labels map[string]string // revision: what stands for it, in the order in which they were seen
}

func newGateway(t *testing.T, name, base string) *gateway {
	return &gateway{t: t, name: name, base: base, last: make(map[string][2]any), labels: make(map[string]string)}
}

// startEtcd starts an etcd, or skips the test where none is installed.
func startEtcd(t *testing.T) *gateway {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("etcd is not installed")
	}
	client, peer := "http://127.0.0.1:"+testkit.FreePort(t), "http://127.0.0.1:"+testkit.FreePort(t)
	cmd := exec.Command(path, "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--listen-client-urls", client,
		"--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default="+peer)
	cmd.Env = testkit.Environ()
	testkit.Start(t, cmd)
	testkit.Eventually(t, "etcd is healthy", func() error {
		response, err := http.Get(client + "/health")
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("got %s", response.Status)
		}
		return nil
	})
	return newGateway(t, "etcd", client)
}

// placeholder is a revision of a key, $create:KEY or $mod:KEY, or the newest one, $now, or the next one, $next.
var placeholder = regexp.MustCompile(`\$(now|next|create:[\w=]+|mod:[\w=]+)`)

// fill puts this system's revisions into a request.
func (g *gateway) fill(body string) string {
	return placeholder.ReplaceAllStringFunc(body, func(name string) string {
		kind, key, _ := strings.Cut(name[1:], ":")
		switch kind {
		case "create":
			return fmt.Sprint(g.last[key][0])
		case "mod":
			return fmt.Sprint(g.last[key][1])
		case "next":
			var now int
			_, _ = fmt.Sscan(g.header, &now)
			return fmt.Sprint(now + 1)
		}
		return g.header
	})
}

// normal returns a message without what differs between two systems: who they are, and which numbers their revisions
// have. Equal revisions stay equal.
func (g *gateway) normal(message any) any {
	switch m := message.(type) {
	case map[string]any:
		if header, ok := m["header"].(map[string]any); ok {
			if revision, ok := header["revision"].(string); ok {
				g.header = revision
			}
			delete(m, "header")
		}
		if key, ok := m["key"].(string); ok && m["create_revision"] != nil {
			g.last[key] = [2]any{m["create_revision"], m["mod_revision"]}
		}
		for _, name := range []string{"create_revision", "mod_revision"} {
			if revision, ok := m[name].(string); ok {
				if g.labels[revision] == "" {
					g.labels[revision] = fmt.Sprintf("#%d", len(g.labels)+1)
				}
				m[name] = g.labels[revision]
			}
		}
		if m["grantedTTL"] != nil && m["TTL"] != "-1" {
			m["TTL"] = "left"
		}
		for _, name := range []string{"leases", "keys"} { // etcd has them in any order
			if list, ok := m[name].([]any); ok {
				slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
		}
		if text, ok := m["error"].(string); ok && !strings.HasPrefix(text, "etcdserver: ") {
			m["error"], m["message"] = "another text", "another text"
		}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			m[name] = g.normal(m[name])
		}
	case []any:
		for i := range m {
			m[i] = g.normal(m[i])
		}
	}
	return message
}

// ask sends a request and returns the normal form of the answer. Of a stream it reads until there are so many events.
func (g *gateway) ask(path, body string, events int) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), testkit.Bound)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, g.base+path, strings.NewReader(g.fill(body)))
	if err != nil {
		g.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		g.t.Fatalf("%s: %s %s: %v", g.name, path, body, err)
	}
	defer func() { _ = response.Body.Close() }()
	var got []any
	stream := json.NewDecoder(response.Body)
	for seen := 0; ; {
		var message map[string]any
		if err := stream.Decode(&message); err != nil {
			if events > 0 {
				g.t.Fatalf("%s: %s %s: %v after %v", g.name, path, body, err, got)
			}
			break
		}
		result, _ := message["result"].(map[string]any)
		if all, ok := result["events"].([]any); ok { // of how many messages they are is not compared
			seen += len(all)
			g.normal(result)
			got = append(got, all...)
		} else {
			got = append(got, g.normal(message))
		}
		if events > 0 && seen >= events || events < 0 && len(got) >= -events {
			break
		}
	}
	text, err := json.Marshal(got)
	if err != nil {
		g.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", response.StatusCode, text)
}

// transcript is what etcd's documentation of its gateway has ("Interacting with etcd: JSON gateway"), and one request
// of each other kind that is here: what is there, is not there, or can't be. It begins with an empty store.
//
// The keys are foo, foo1, bar, a, b and c, in base64.
var transcript = []struct {
	path, body string
	events     int // of a watch: how many to wait for; negative: messages
}{
	{path: "/v3/kv/put", body: `{"key": "Zm9v", "value": "YmFy"}`},
	{path: "/v3/kv/range", body: `{"key": "Zm9v"}`},
	{path: "/v3/kv/range", body: `{"key": "Zm9v", "range_end": "Zm9w"}`},
	{path: "/v3/kv/put", body: `{"key": "Zm9v", "value": "YmFy"}`},
	{path: "/v3/kv/range", body: `{"key": "Zm9v"}`},
	{path: "/v3/watch", body: `{"create_request": {"key":"Zm9v", "start_revision": "$create:Zm9v"}}`, events: 2},
	{path: "/v3/kv/txn", body: `{"compare":[{"createRevision":"$create:Zm9v","target":"CREATE","key":"Zm9v"}],` +
		`"success":[{"requestPut":{"key":"Zm9v","value":"YmFy"}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"version":"4","result":"EQUAL","target":"VERSION","key":"Zm9v"}],` +
		`"success":[{"requestRange":{"key":"Zm9v"}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"version":"3","result":"EQUAL","target":"VERSION","key":"Zm9v"}],` +
		`"success":[{"requestRange":{"key":"Zm9v"}}]}`},

	{path: "/v3/kv/put", body: `{"key":"Zm9v","value":"YQ==","prev_kv":true}`},
	{path: "/v3/kv/put", body: `{"key":"Zm9vMQ==","value":""}`},
	{path: "/v3/kv/put", body: `{"key":"","value":"YQ=="}`},
	{path: "/v3/kv/put", body: `{"key":"YmFy","lease":"77"}`},
	{path: "/v3/kv/put", body: ``},
	{path: "/v3/kv/put", body: `{"key":"Zm9v`},
	{path: "/v3/kv/put", body: `{"key":"Z"}`},
	{path: "/v3/kv/put", body: `{"key":1}`},
	{path: "/v3/kv/put", body: `{"key":"Zm9v","lease":"x"}`},
	{path: "/v3/kv/put", body: `{"key":"Zm9v","value":"YQ==","unknown":{"a":1}}`},

	{path: "/v3/kv/range", body: `{}`},
	{path: "/v3/kv/range", body: `{"key":"YmFy"}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9v","revision":"$now"}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9v","revision":"1000000"}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9v","serializable":true}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9v","range_end":"Zm9w","count_only":true}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9v","range_end":"Zm9w","keysOnly":true}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9w","range_end":"Zm9v"}`},
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"Mg=="}`},
	{path: "/v3/kv/put", body: `{"key":"Yg==","value":"MQ=="}`},
	{path: "/v3/kv/put", body: `{"key":"Yw==","value":"Mw=="}`},
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"Mg=="}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","limit":"2"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","limit":3}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","limit":"2","sort_order":"DESCEND"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","sort_order":"ASCEND","sort_target":"VALUE"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","sort_target":"MOD"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","sort_order":2,"sort_target":2,"limit":"1"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","sort_order":"DESCEND","sort_target":"VERSION"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","sort_order":"SIDEWAYS"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","min_mod_revision":"$mod:Yg=="}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","range_end":"ZA==","max_create_revision":"$create:Yg=="}`},
	{path: "/v3/kv/range", body: `{"key":"AA==","range_end":"AA=="}`},
	{path: "/v3/kv/range", body: `{"key":"Yw==","range_end":"AA=="}`},

	{path: "/v3/kv/txn", body: `{}`},
	{path: "/v3/kv/txn", body: `{"success":[{}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"YmFy","target":"CREATE","create_revision":"0"}],` +
		`"success":[{"request_put":{"key":"YmFy","value":"MQ==","prev_kv":true}}],` +
		`"failure":[{"request_range":{"key":"YmFy"}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"YmFy","target":"CREATE","create_revision":"0"}],` +
		`"success":[{"request_put":{"key":"YmFy","value":"MQ=="}}],"failure":[{"request_range":{"key":"YmFy"}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"YmFy","target":"VALUE","value":"MQ=="},` +
		`{"key":"YmFy","target":"MOD","mod_revision":"$mod:YmFy"},{"key":"YmFy","target":"LEASE","lease":"0"},` +
		`{"key":"YmFy","target":"VERSION","result":"LESS","version":"2"},` +
		`{"key":"YmFy","target":"VALUE","result":"GREATER","value":"MA=="},` +
		`{"key":"bm9uZQ==","target":"VERSION","result":"NOT_EQUAL","version":"1"}],` +
		`"success":[{"request_range":{"key":"YQ==","range_end":"ZA==","count_only":true}},` +
		`{"request_delete_range":{"key":"YmFy","prev_kv":true}},{"request_range":{"key":"YmFy"}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"bm9uZQ==","target":"VALUE","result":"NOT_EQUAL","value":"MQ=="}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"bm9uZQ==","target":"VALUE"}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"bm9uZQ==","target":"LEASE"}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"YQ==","result":"BOGUS"}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"","target":"VALUE"}]}`},
	{path: "/v3/kv/txn", body: `{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}`},
	{path: "/v3/kv/txn", body: `{"success":[{"request_put":{"key":"YQ=="}},` +
		`{"request_delete_range":{"key":"YQ==","range_end":"Yg=="}}]}`},
	{path: "/v3/kv/txn", body: `{"success":[{"request_delete_range":{"key":"eA==","range_end":"AA=="}},` +
		`{"request_delete_range":{"key":"Yg==","range_end":"ZA=="}}]}`},
	{path: "/v3/kv/txn", body: `{"success":[{"request_put":{"key":"YQ==","lease":"77"}}]}`},
	{path: "/v3/kv/txn", body: `{"success":[{"request_range":{"key":"YQ==","revision":"1000000"}}]}`},

	{path: "/v3/lease/grant", body: `{"TTL":"3000","ID":"77"}`},
	{path: "/v3/lease/grant", body: `{"TTL":"3000","ID":"77"}`},
	{path: "/v3/lease/grant", body: `{"TTL":3000,"ID":78}`},
	{path: "/v3/lease/grant", body: `{"TTL":"0","ID":"79"}`},
	{path: "/v3/lease/grant", body: `{"TTL":"9999999999999"}`},
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"MQ==","lease":"77"}`},
	{path: "/v3/kv/put", body: `{"key":"Yg==","lease":77}`},
	{path: "/v3/kv/put", body: `{"key":"Yw==","lease":"77"}`},
	{path: "/v3/kv/put", body: `{"key":"Yw==","value":"MQ=="}`},
	{path: "/v3/kv/range", body: `{"key":"AA==","range_end":"AA=="}`},
	{path: "/v3/lease/timetolive", body: `{"ID":"77","keys":true}`},
	{path: "/v3/kv/lease/timetolive", body: `{"ID":"77"}`},
	{path: "/v3/lease/timetolive", body: `{"ID":"5"}`},
	{path: "/v3/lease/keepalive", body: `{"ID":"77"}`},
	{path: "/v3/lease/keepalive", body: `{"ID":"5"}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"key":"YQ==","target":"LEASE","lease":"77"}],` +
		`"success":[{"request_put":{"key":"Zm9v","lease":"78"}}]}`},
	{path: "/v3/lease/revoke", body: `{"ID":"79"}`},
	{path: "/v3/lease/leases", body: `{}`},
	{path: "/v3/kv/lease/leases", body: `{}`},
	{path: "/v3/kv/lease/revoke", body: `{"ID":"77"}`},
	{path: "/v3/lease/revoke", body: `{"ID":"77"}`},
	{path: "/v3/kv/range", body: `{"key":"AA==","range_end":"AA=="}`},

	{path: "/v3/kv/deleterange", body: `{}`},
	{path: "/v3/kv/deleterange", body: `{"key":"bm9uZQ==","prev_kv":true}`},
	{path: "/v3/kv/deleterange", body: `{"key":"Zm9v","prev_kv":true}`},
	{path: "/v3/kv/put", body: `{"key":"Zm9v","value":"bmV3"}`},
	{path: "/v3/kv/range", body: `{"key":"Zm9v"}`},
	{path: "/v3/kv/deleterange", body: `{"key":"AA==","range_end":"AA=="}`},
	{path: "/v3/kv/range", body: `{"key":"AA==","range_end":"AA=="}`},
	{path: "/v3/lease/leases", body: `{}`},

	{path: "/v3/watch", body: `{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"$create:Zm9v",` +
		`"prev_kv":true,"watch_id":"7"}}`, events: 3},
	{path: "/v3/watch", body: `{"create_request":{"key":"Zm9v","start_revision":"$create:Zm9v","filters":["NOPUT"]}}`,
		events: 1},
	{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","range_end":"ZA==","start_revision":"1",` +
		`"filters":["NODELETE"]}}`, events: 8},
	{path: "/v3/watch", body: `{"create_request":{"key":"Zm9v"}}{"cancel_request":{"watch_id":"0"}}`, events: -2},
	{path: "/v3/watch", body: `{"create_request":{"key":"Zm9v","start_revision":"$next"}}`, events: -1},
	{path: "/v3/auth/authenticate", body: `{"name":"a","password":"b"}`},
}

// TestEtcdTranscript compares the answers of a raftkv alone, and of a follower among three, with etcd's own.
func TestEtcdTranscript(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t)
	one := testkit.StartCluster(t, binary(t), 1, "RAFT_ELECTION_TIMEOUT=100ms", "ETCD_API=on")
	three := testkit.StartCluster(t, binary(t), 3, "ETCD_API=on")
	_, followers := testkit.Leader(t, three...)
	alone, follower := newGateway(t, "one", one[0].Base), newGateway(t, "a follower", followers[0].Base)
	for i, tt := range transcript {
		want := etcd.ask(tt.path, tt.body, tt.events)
		for _, g := range []*gateway{alone, follower} {
			if got := g.ask(tt.path, tt.body, tt.events); got != want {
				t.Errorf("%d: %s %s\n%s: %s\netcd: %s", i, tt.path, tt.body, g.name, got, want)
			}
		}
	}
	testkit.CheckReplicas(t, three...)
}

// TestEtcdLeases: what a lease has goes with it, through any node, over the death of the leader that timed it, and a
// watch of a follower has it. Beside the gateway, the lease is a key as others.
func TestEtcdLeases(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 3, "ETCD_API=on")
	leader, followers := testkit.Leader(t, nodes...)
	g := newGateway(t, "a follower", followers[0].Base)
	other := newGateway(t, "another", followers[1].Base)
	g.ask("/v3/lease/grant", `{"TTL":"3","ID":"9"}`, 0)
	other.ask("/v3/kv/put", `{"key":"YQ==","value":"MQ==","lease":"9"}`, 0)
	begin := time.Now()
	list := leader.Ask(t, "/list?values=no").Body
	if want := `"_etcd/lease/0000000000000009"`; !strings.Contains(list, want) || strings.Count(list, "\n") != 2 {
		t.Errorf("list: got %s, want a and %s", list, want)
	}
	leader.Kill(t)
	testkit.Eventually(t, "a new leader renews the lease", func() error {
		if got := g.ask("/v3/lease/keepalive", `{"ID":"9"}`, 0); !strings.Contains(got, `"TTL":"3"`) {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	want := `200 [{"result":{"created":true}},` +
		`{"kv":{"create_revision":"#1","key":"YQ==","lease":"9","mod_revision":"#1",` +
		`"value":"MQ==","version":"1"}},{"kv":{"key":"YQ==","mod_revision":"#2"},"type":"DELETE"}]`
	if got := other.ask("/v3/watch", `{"create_request":{"key":"YQ==","start_revision":"1"}}`, 2); got != want {
		t.Errorf("watch: got %s, want %s", got, want)
	}
	if took := time.Since(begin); took < 3*time.Second {
		t.Errorf("the lease went after %v, want 3 s or more", took)
	}
	if got, want := g.ask("/v3/lease/leases", `{}`, 0), "200 [{}]"; got != want {
		t.Errorf("leases: got %s, want %s", got, want)
	}
	leader.Start(t)
	leader.WaitReady(t)
	if got := testkit.CheckReplicas(t, nodes...); len(got) != 0 {
		t.Errorf("got %v, want no keys", got)
	}
}
