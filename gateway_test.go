package main

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// inBase64 returns a request to etcd's gateway with all 'texts' in base64.
func inBase64(body string) string {
	parts := strings.Split(body, "'")
	for i := 1; i < len(parts); i += 2 {
		parts[i] = `"` + base64.StdEncoding.EncodeToString([]byte(parts[i])) + `"`
	}
	return strings.Join(parts, "")
}

// TestGatewayIsOff: without ETCD_API there is no gateway, and nothing raises the cluster format.
func TestGatewayIsOff(t *testing.T) {
	s := startOne(t)
	checkUnchanged(t, s, func() {
		for _, path := range []string{"/v3/kv/put", "/v3beta/kv/put", "/version"} {
			a := exchange(t, newRequest(t, "POST", s, path, inBase64(`{"key":'k',"value":'v'}`)))
			if a.status != 404 || strings.Contains(a.body, "/v3/") && !strings.HasPrefix(a.body, "no such path") {
				t.Errorf("%s: got %d %q, want 404", path, a.status, a.body)
			}
		}
	})
	set(t, s, "k", "v")
	if got := s.node.Info().Format; got != 1 {
		t.Errorf("format: got %d, want 1", got)
	}
}

// TestGatewayRights is what each token may do by etcd's gateway: what it may do elsewhere to the same keys.
func TestGatewayRights(t *testing.T) {
	path := tokenFile(t, tokenLine("reader", "reader-token", "read:app/")+
		tokenLine("writer", "writer-token", "write:app/")+
		tokenLine("lessee", "lessee-token", "write:app/ write:_etcd/lease/")+"anonymous read:public/\n")
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.tokens, c.etcd = path, true })
	leads(t, s)
	set(t, s, "app/k", "v")
	set(t, s, "public/k", "v")
	for _, tt := range []struct{ path, body, may string }{
		{path: "kv/put", body: `{"key":'app/k',"value":'1'}`, may: "writer lessee root"},
		{path: "kv/put", body: `{"key":'other',"value":'1'}`, may: "root"},
		{path: "kv/put", body: `{"key":'public/k',"prev_kv":true}`, may: "root"},
		{path: "kv/range", body: `{"key":'app/k'}`, may: "reader writer lessee root"},
		{path: "kv/range", body: `{"key":'app/',"range_end":'app0'}`, may: "reader writer lessee root"},
		{path: "kv/range", body: `{"key":'app/',"range_end":'app1'}`, may: "root"},
		{path: "kv/range", body: `{"key":'app/',"range_end":"AA=="}`, may: "root"},
		{path: "kv/range", body: `{"key":'public/k'}`, may: "- root"},
		{path: "kv/range", body: `{"key":'other',"serializable":true}`, may: "root"},
		{path: "kv/deleterange", body: `{"key":'app/none',"range_end":'app/nonf'}`, may: "writer lessee root"},
		{path: "kv/deleterange", body: `{"key":'app/none',"range_end":'zzz'}`, may: "root"},
		{path: "kv/txn", body: `{"compare":[{"key":'app/k',"version":"9"}]}`, may: "reader writer lessee root"},
		{path: "kv/txn", body: `{"compare":[{"key":'other',"version":"9"}]}`, may: "root"},
		{path: "kv/txn", body: `{"success":[{"request_range":{"key":'app/k'}}]}`, may: "reader writer lessee root"},
		{path: "kv/txn", body: `{"failure":[{"request_range":{"key":'a',"range_end":'b'}}]}`, may: "root"},
		{path: "kv/txn", body: `{"failure":[{"request_delete_range":{"key":'app/none'}}]}`, may: "writer lessee root"},
		{path: "lease/grant", body: `{"ID":"0","TTL":"60"}`, may: "lessee root"},
		{path: "lease/keepalive", body: `{"ID":"9"}`, may: "lessee root"},
		{path: "lease/timetolive", body: `{"ID":"9","keys":true}`, may: "lessee root"},
		{path: "lease/leases", body: `{}`, may: "lessee root"},
		{path: "lease/revoke", body: `{"ID":"9"}`, may: "lessee root"},
		{path: "watch", body: `{"create_request":{"key":'app/k'}}{"cancel_request":{}}`, may: "reader writer lessee root"},
		{path: "watch", body: `{"create_request":{"key":'app/',"range_end":'b'}}{"cancel_request":{}}`, may: "root"},
		{path: "maintenance/status", body: `{}`, may: "reader writer lessee root"},
		{path: "cluster/member/list", body: `{}`, may: "reader writer lessee root"},
		{path: "auth/authenticate", body: `{}`, may: "- wrong reader writer lessee root"},
	} {
		for _, name := range []string{"", "wrong", "reader", "writer", "lessee", "root"} {
			r := newRequest(t, "POST", s, "/v3/"+tt.path, inBase64(tt.body))
			if r.Header.Del("Authorization"); name != "" {
				r.Header.Set("Authorization", "Bearer "+name+"-token")
			}
			a := exchange(t, r)
			may := slices.Contains(strings.Fields(tt.may), name) || name == "" && strings.HasPrefix(tt.may, "- ")
			want, code := http.StatusForbidden, `"code":7`
			if name == "" || name == "wrong" {
				want, code = http.StatusUnauthorized, `"code":16`
			}
			refused := a.status == 401 || a.status == 403
			if may && (refused || a.status >= 500) || !may && (a.status != want || !strings.HasSuffix(a.body, code+"}")) {
				t.Errorf("%s %s as %q: got %d %q", tt.path, tt.body, name, a.status, a.body)
			}
		}
	}
	checkReplicas(t, s)
}

// TestGatewayForwards: a follower's gateway has the leader do what only that can, also where followers redirect and the
// leader has no gateway for its own clients; what came from another node is not sent on again.
func TestGatewayForwards(t *testing.T) {
	var nodes []*service
	for i, id := range []string{"n1", "n2"} {
		s := startNode(t, id, t.TempDir(), func(c *config) {
			c.etcd, c.electionTimeout = i > 0, 2*time.Second // no other leader comes on a busy machine
		})
		leads(t, s)
		if nodes = append(nodes, s); i > 0 {
			join(t, nodes[0], s)
		}
	}
	leader, follower := nodes[0], nodes[1]
	if a := exchange(t, newRequest(t, "POST", leader, "/v3/kv/put", inBase64(`{"key":'k'}`))); a.status != 404 {
		t.Errorf("the leader: got %d %q, want 404", a.status, a.body)
	}
	for _, tt := range []struct{ path, body, want string }{
		{path: "kv/put", body: `{"key":'k',"value":'1'}`, want: `"revision":"`},
		{path: "kv/range", body: `{"key":'k'}`, want: `"version":"1","value":"MQ=="`},
		{path: "kv/put", body: `{"key":'large',"value":'` + strings.Repeat("v", mebi) + `'}`, want: `"revision":"`},
		{path: "kv/put", body: `{"key":'large',"value":'` + strings.Repeat("v", mebi+1) + `'}`, want: `"code":3`},
		{path: "kv/put", body: `{"key":'k',"lease":"5"}`, want: `"code":5`},
		{path: "kv/deleterange", body: `{"key":'k'}`, want: `"deleted":"1"`},
		{path: "lease/grant", body: `{"ID":"5","TTL":"60"}`, want: `"TTL":"60"`},
		{path: "lease/timetolive", body: `{"ID":"5"}`, want: `"grantedTTL":"60"`},
	} {
		a := exchange(t, newRequest(t, "POST", follower, "/v3/"+tt.path, inBase64(tt.body)))
		if !strings.Contains(a.body, tt.want) {
			t.Errorf("%s: got %d %.200q, want %s", tt.path, a.status, a.body, tt.want)
		}
	}
	r := newRequest(t, "POST", follower, "/v3/kv/put", inBase64(`{"key":'k'}`))
	r.Header.Set("Idempotency-Key", "once")
	if a := exchange(t, r); a.status != 400 || !strings.Contains(a.body, `Idempotency-Key`) {
		t.Errorf("with an idempotency key: got %d %q, want 400", a.status, a.body)
	}
	r = newRequest(t, "POST", follower, "/v3/kv/put", inBase64(`{"key":'k'}`))
	r.Header.Set("Origin", "http://evil.example")
	if a := exchange(t, r); a.status != 403 || !strings.Contains(a.body, `"code":7`) {
		t.Errorf("from a page of another site: got %d %q, want 403", a.status, a.body)
	}
	testkit.CheckReplicas(t, nodes...)
}
