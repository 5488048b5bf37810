package etcd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/command"
	"raftkv/internal/flight"
	"raftkv/internal/kv"
)

// alone is a node without raft: it applies what is proposed, by the rules of the state machine's transactions.
type alone struct {
	t     *testing.T
	store *kv.Store
	reads []string // prefixes that were asked for
	limit uint64   // of Version
}

func (a *alone) Version(w http.ResponseWriter) (*kv.Store, http.ResponseWriter, func()) {
	return api.Version(w, a.store, a.limit)
}

func (a *alone) ID() string                                    { return "n1" }
func (a *alone) ClusterID() uint64                             { return 9 }
func (a *alone) ReadIndex(context.Context, bool) error         { return nil }
func (a *alone) TimeLeft(string, uint64) (time.Duration, bool) { return 0, false }
func (a *alone) Serving() context.Context                      { return context.Background() }
func (a *alone) Cluster(context.Context) Cluster               { return Cluster{Leader: "n1", Bytes: 5} }
func (a *alone) MayRead(_ context.Context, prefix string) error {
	a.reads = append(a.reads, prefix)
	return nil
}

func (a *alone) Propose(_ context.Context, c command.Command) (command.Result, error) {
	entry, err := command.Decode(command.Append(nil, c))
	if err != nil {
		a.t.Fatalf("the command can't be an entry: %v", err)
	}
	index, _ := a.store.Applied()
	r := command.Result{Index: index + 1, Txn: &command.TxnResult{Held: true}}
	a.store.Update(index+1, 1, nil, func(tx *kv.Tx) {
		for _, compare := range entry[0].Txn.If {
			f, ok := tx.GetFull(compare.Key)
			r.Txn.Held = r.Txn.Held && compare.Holds(command.Found{Exists: ok, Value: f.Value, Index: f.Index,
				Created: f.Created, Version: f.Version, Lease: f.Lease.Key})
		}
		for _, o := range entry[0].Txn.Branch(r) {
			_, found := tx.GetFull(o.Key)
			done := command.OperationResult{Found: found}
			switch o.Op {
			case command.OpSet:
				if _, ok := tx.Get(o.Lease.Key); o.Lease.Key != "" && !ok {
					return
				}
				tx.SetLeased(o.Key, o.Value, kv.Lease(o.Lease))
			case command.OpRemove:
				tx.Remove(o.Key)
			case command.OpView:
				done.View = tx.View()
			case command.OpRemoveRange:
				done.Removed = tx.RemoveRange(o.Key, o.End)
			case command.OpTouch:
				tx.Touch(o.Key)
			}
			r.Txn.Operations = append(r.Txn.Operations, done)
		}
	})
	return r, nil
}

// newTestGateway returns a server of a gateway alone, and its node.
func newTestGateway(t *testing.T) (*httptest.Server, *alone) {
	node := &alone{t: t, store: kv.New(), limit: 64 << 20}
	node.store.KeepDetails()
	node.store.Update(1, 1, nil, func(tx *kv.Tx) { tx.RaiseFormat(Format) })
	mux := http.NewServeMux()
	add := func(path string, answer Endpoint) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			err := answer(w, r)
			if e, ok := errors.AsType[api.Error](err); ok {
				api.WriteError(w, r, e.Status, e.Message)
			} else if err != nil {
				t.Errorf("%s: %v", path, err)
			}
		})
	}
	New(node, node.store).Routes(add, add, add)
	server := httptest.NewServer(Paths(mux))
	t.Cleanup(server.Close)
	return server, node
}

// cut takes off what is in every header but the revision.
var cut = regexp.MustCompile(`"cluster_id":"9","member_id":"\d+",?|,"raft_term":"1"`)

func post(t *testing.T, server *httptest.Server, path, body string) (status int, answer string) {
	t.Helper()
	response, err := http.Post(server.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, cut.ReplaceAllString(strings.TrimSpace(string(b)), "")
}

// TestGateway is a story: each request finds what those before it have left. What etcd itself answers to these is
// compared in package e2e, where it is installed.
func TestGateway(t *testing.T) {
	server, _ := newTestGateway(t)
	for _, tt := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{name: "put", path: "/v3/kv/put", body: `{"key":"YQ==","value":"MQ=="}`, want: `{"header":{"revision":"2"}}`},
		{
			name: "put with the value before", path: "/v3/kv/put", body: `{"key":"YQ==","value":"Mg==","prevKv":true}`,
			want: `{"header":{"revision":"3"},"prev_kv":{"key":"YQ==","create_revision":"2","mod_revision":"2",` +
				`"version":"1","value":"MQ=="}}`,
		},
		{
			name: "range", path: "/v3beta/kv/range", body: `{"key":"YQ=="}`,
			want: `{"header":{"revision":"3"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"3","version":"2",` +
				`"value":"Mg=="}],"count":"1"}`,
		},
		{
			name: "former revision", path: "/v3/kv/range", body: `{"key":"YQ==","revision":"2"}`, status: 400,
			want: `{"error":"etcdserver: mvcc: required revision has been compacted",` +
				`"message":"etcdserver: mvcc: required revision has been compacted","code":11}`,
		},
		{
			name: "former revision of what has not changed", path: "/v3/kv/range", body: `{"key":"Yg==","revision":2}`,
			want: `{"header":{"revision":"3"}}`,
		},
		{
			name: "future revision", path: "/v3alpha/kv/range", body: `{"key":"YQ==","revision":4}`, status: 400,
			want: `{"error":"etcdserver: mvcc: required revision is a future revision",` +
				`"message":"etcdserver: mvcc: required revision is a future revision","code":11}`,
		},
		{
			name: "grant", path: "/v3/lease/grant", body: `{"ID":7,"TTL":30}`,
			want: `{"header":{"revision":"4"},"ID":"7","TTL":"30"}`,
		},
		{
			name: "granted before", path: "/v3/lease/grant", body: `{"ID":7,"TTL":30}`, status: 412,
			want: `{"error":"etcdserver: lease already exists","message":"etcdserver: lease already exists","code":9}`,
		},
		{name: "attach", path: "/v3/kv/put", body: `{"key":"Yg==","lease":"7"}`, want: `{"header":{"revision":"6"}}`},
		{
			name: "all keys", path: "/v3/kv/range", body: `{"key":"AA==","range_end":"AA==","keys_only":true}`,
			want: `{"header":{"revision":"6"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"3","version":"2"},` +
				`{"key":"Yg==","create_revision":"6","mod_revision":"6","version":"1","lease":"7"}],"count":"2"}`,
		},
		{
			name: "lease", path: "/v3/kv/lease/timetolive", body: `{"ID":"7","keys":true}`,
			want: `{"header":{"revision":"6"},"ID":"7","TTL":"30","grantedTTL":"30","keys":["Yg=="]}`,
		},
		{
			name: "keep alive", path: "/v3/lease/keepalive", body: `{"ID":"7"}`,
			want: `{"result":{"header":{"revision":"7"},"ID":"7","TTL":"30"}}`,
		},
		{
			name: "leases", path: "/v3/kv/lease/leases", body: `{}`,
			want: `{"header":{"revision":"7"},"leases":[{"ID":"7"}]}`,
		},
		{
			name: "compared", path: "/v3/kv/txn",
			body: `{"compare":[{"key":"YQ==","target":"VERSION","version":"2"},{"key":"YQ==","target":"CREATE",` +
				`"create_revision":"2"},{"key":"YQ==","target":"MOD","result":"GREATER","modRevision":"2"},{"key":"Yg==",` +
				`"target":"LEASE","lease":"7"},{"key":"YQ==","target":3,"value":"Mg=="}],` +
				`"success":[{"requestDeleteRange":{"key":"YQ==","range_end":"AA==","prev_kv":true}},` +
				`{"request_range":{"key":"YQ==","rangeEnd":"eg=="}},{"request_put":{"key":"YWE=","value":"Mw=="}}]}`,
			status: 400,
			want: `{"error":"etcdserver: duplicate key given in txn request",` +
				`"message":"etcdserver: duplicate key given in txn request","code":3}`,
		},
		{
			name: "compared, and nothing twice", path: "/v3/kv/txn",
			body: `{"compare":[{"key":"YQ==","target":"VERSION","version":"2"},{"key":"YQ==","target":"CREATE",` +
				`"create_revision":"2"},{"key":"YQ==","target":"MOD","result":"GREATER","modRevision":"2"},{"key":"Yg==",` +
				`"target":"LEASE","lease":"7"},{"key":"YQ==","target":3,"value":"Mg=="}],` +
				`"success":[{"requestDeleteRange":{"key":"YQ==","range_end":"AA==","prev_kv":true}},` +
				`{"request_range":{"key":"YQ==","rangeEnd":"eg=="}},{"request_put":{"key":"WA==","value":"Mw=="}}]}`,
			want: `{"header":{"revision":"8"},"succeeded":true,"responses":[{"response_delete_range":` +
				`{"header":{"revision":"8"},"deleted":"2","prev_kvs":[{"key":"YQ==","create_revision":"2",` +
				`"mod_revision":"3","version":"2","value":"Mg=="},{"key":"Yg==","create_revision":"6","mod_revision":"6",` +
				`"version":"1","lease":"7"}]}},{"response_range":{"header":{"revision":"8"}}},` +
				`{"response_put":{"header":{"revision":"8"}}}]}`,
		},
		{
			name: "not equal", path: "/v3/kv/txn", body: `{"compare":[{"key":"WA==","target":"VERSION"}]}`,
			want: `{"header":{"revision":"9"}}`,
		},
		{name: "revoke", path: "/v3/lease/revoke", body: `{"ID":"7"}`, want: `{"header":{"revision":"10"}}`},
		{
			name: "revoked before", path: "/v3/kv/lease/revoke", body: `{"ID":"7"}`, status: 404,
			want: `{"error":"etcdserver: requested lease not found","message":"etcdserver: requested lease not found","code":5}`,
		},
		{
			name: "no such lease", path: "/v3/kv/put", body: `{"key":"YQ==","lease":7}`, status: 404,
			want: `{"error":"etcdserver: requested lease not found","message":"etcdserver: requested lease not found","code":5}`,
		},
		{
			name: "lease of a name that is kept", path: "/v3/kv/put", body: `{"key":"X2V0Y2QvbGVhc2UvMQ=="}`, status: 400,
			want: `{"error":"key: those that begin with _etcd/lease/ are leases; choose another",` +
				`"message":"key: those that begin with _etcd/lease/ are leases; choose another","code":3}`,
		},
		{
			name: "txn in a txn", path: "/v3/kv/txn", body: `{"success":[{"request_txn":{}}]}`, status: 501,
			want: `{"error":"request_txn: a txn within a txn: not in this gateway",` +
				`"message":"request_txn: a txn within a txn: not in this gateway","code":12}`,
		},
	} {
		status, got := post(t, server, tt.path, tt.body)
		if want := max(tt.status, 200); status != want && tt.status != 0 || got != tt.want {
			t.Errorf("%s:\ngot  %d %s\nwant %d %s", tt.name, status, got, want, tt.want)
		}
	}
}

// TestSlowReaderOfARange: what a client reads more slowly than the data change is given up, and can't be taken for
// whole: neither of a range nor of a transaction that has read.
func TestSlowReaderOfARange(t *testing.T) {
	for path, body := range map[string]string{
		"kv/range": `{"key":"AA==","range_end":"AA=="}`,
		"kv/txn":   `{"success":[{"request_range":{"key":"AA==","range_end":"AA=="}}]}`,
	} {
		t.Run(path, func(t *testing.T) {
			server, node := newTestGateway(t)
			node.limit = 1 << 20
			index, _ := node.store.Applied()
			value := []byte(strings.Repeat("v", 1<<20))
			set := func(of []byte) {
				index, _ = node.store.Applied()
				node.store.Update(index+1, 1, nil, func(tx *kv.Tx) {
					for key := range 32 {
						tx.Set(string(rune('a'+key)), of)
					}
				})
			}
			set(value)
			response, err := http.Post(server.URL+"/v3/"+path, "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			set(nil) // while most of the answer waits for its reader
			if n, err := io.Copy(io.Discard, response.Body); err == nil {
				t.Errorf("got all of %d bytes, want an answer that breaks off", n)
			}
		})
	}
}

// TestMemoryOfARange: a value is written when there is memory for it; when there is none in time, the answer breaks off.
func TestMemoryOfARange(t *testing.T) {
	t.Parallel()
	server, node := newTestGateway(t)
	memory := api.NewMemory(1 << 20)
	gateway := server.Config.Handler
	slots := api.NewSlots(10, memory)
	server.Config.Handler = slots.Handler(func(w http.ResponseWriter, r *http.Request) error {
		gateway.ServeHTTP(w, r)
		return nil
	}, nil)
	node.store.Update(2, 1, nil, func(tx *kv.Tx) { tx.Set("k", []byte(strings.Repeat("v", 100<<10))) })
	read := func() error {
		response, err := http.Post(server.URL+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"aw=="}`))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	var others flight.Hold
	if err := memory.Acquire(t.Context(), &others, "", 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	if read() == nil {
		t.Error("got an answer, want none: all memory is taken")
	}
	others.Release()
	if err := read(); err != nil {
		t.Errorf("got %v, want an answer", err)
	}
	if held, _, _ := memory.Counts(); held != 0 {
		t.Errorf("%d bytes are held, want none", held)
	}
}
