package etcd

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"raftkv/internal/kv"
)

// watching is a watch whose client may still send.
type watching struct {
	t        *testing.T
	messages *json.Decoder
	body     *io.PipeWriter
	close    func()
}

// watch begins a watch by this first message.
func watch(t *testing.T, url, message string) *watching {
	t.Helper()
	reader, body := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v3/watch", reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{t: t, body: body}
	go w.send(message)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	w.messages = json.NewDecoder(response.Body)
	w.close = func() { _, _ = response.Body.Close(), body.Close() }
	t.Cleanup(w.close)
	return w
}

func (w *watching) send(message string) { _, _ = io.WriteString(w.body, message) }

// want reads as many messages, without what is in each header but the revision.
func (w *watching) want(messages ...string) {
	w.t.Helper()
	for _, want := range messages {
		var got json.RawMessage
		if err := w.messages.Decode(&got); err != nil {
			w.t.Fatalf("got %v, want %s", err, want)
		}
		if got := cut.ReplaceAllString(string(got), ""); got != want {
			w.t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
}

// wantEnd checks that nothing follows, and that nobody watches any more.
func (w *watching) wantEnd(store *kv.Store) {
	w.t.Helper()
	more, err := io.ReadAll(w.messages.Buffered())
	if err != nil || strings.TrimSpace(string(more)) != "" {
		w.t.Errorf("got %q, %v, want the end", more, err)
	}
	for deadline := time.Now().Add(20 * time.Second); store.OpenWatchers() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%d watchers are left", store.OpenWatchers())
		}
	}
}

func put(store *kv.Store, key, value string) {
	index, term := store.Applied()
	store.Update(index+1, max(term, 1), nil, func(tx *kv.Tx) { tx.Set(key, []byte(value)) })
}

// TestWatch: a watch has the changes of its range from its revision on, and of no lease, until the client cancels it.
func TestWatch(t *testing.T) {
	server, node := newTestGateway(t)
	put(node.store, "a", "1") // revision 2
	put(node.store, "ab", "2")
	put(node.store, "b", "3")
	w := watch(t, server.URL, `{"create_request":{"key":"YQ==","range_end":"Yg==","startRevision":"3","prev_kv":true}}`)
	w.want(`{"result":{"header":{"revision":"4"},"created":true}}`,
		`{"result":{"header":{"revision":"3"},"events":[{"kv":{"key":"YWI=","create_revision":"3","mod_revision":"3",`+
			`"version":"1","value":"Mg=="}}]}}`)
	put(node.store, leasePrefix+"0000000000000001", "")
	put(node.store, "a", "4")
	w.want(`{"result":{"header":{"revision":"6"},"events":[{"kv":{"key":"YQ==","create_revision":"2","mod_revision":"6",` +
		`"version":"2","value":"NA=="},"prev_kv":{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1",` +
		`"value":"MQ=="}}]}}`)
	go w.send(`{"progress_request":{}}`)
	w.want(`{"result":{"header":{"revision":"6"},"watch_id":"-1"}}`)
	go w.send(`{"cancel_request":{"watch_id":"3"}}{"cancelRequest":{"watchId":0}}`)
	w.want(`{"result":{"header":{"revision":"6"},"canceled":true}}`)
	w.wantEnd(node.store)
}

// TestWatchOfAllHasNoLeases: also a watch of all keys.
func TestWatchOfAllHasNoLeases(t *testing.T) {
	server, node := newTestGateway(t)
	w := watch(t, server.URL, `{"create_request":{"key":"AA==","range_end":"AA==","watch_id":"5","filters":["NOPUT"]}}`)
	w.want(`{"result":{"header":{"revision":"1"},"watch_id":"5","created":true}}`)
	put(node.store, leasePrefix+"0000000000000001", "")
	put(node.store, "a", "1")
	index, term := node.store.Applied()
	node.store.Update(index+1, term, nil, func(tx *kv.Tx) { tx.RemovePrefix("") })
	w.want(`{"result":{"header":{"revision":"4"},"watch_id":"5","events":[{"type":"DELETE","kv":{"key":"YQ==",` +
		`"mod_revision":"4"}}]}}`)
	w.close()
	w.wantEnd(node.store)
}

// TestWatchEnds: what ends a watch but the client, or does not let it begin.
func TestWatchEnds(t *testing.T) {
	server, node := newTestGateway(t)
	create := func(more string) string { return `{"create_request":{"key":"YQ=="` + more + `}}` }
	w := watch(t, server.URL, create(""))
	w.want(`{"result":{"header":{"revision":"1"},"created":true}}`)
	node.store.Reset() // as a restore does
	w.want(`{"result":{"header":{},"canceled":true,"cancel_reason":"` + errCompacted.Message + `"}}`)
	w.wantEnd(node.store)

	for range 3 {
		put(node.store, "b", "")
	}
	var snapshot strings.Builder
	if err := node.store.Clone().WriteSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	if err := node.store.ReadSnapshot(strings.NewReader(snapshot.String())); err != nil {
		t.Fatal(err)
	}
	w = watch(t, server.URL, create(`,"start_revision":"2"`)) // the history begins behind it
	w.want(`{"result":{"header":{"revision":"3"},"created":true}}`,
		`{"result":{"header":{"revision":"3"},"canceled":true,"compact_revision":"3","cancel_reason":"`+
			errCompacted.Message+`"}}`)
	w.wantEnd(node.store)

	w = watch(t, server.URL, create(""))
	w.want(`{"result":{"header":{"revision":"3"},"created":true}}`)
	go w.send(create("")) // a second one
	w.wantEnd(node.store)

	for body, want := range map[string]string{
		"":                                  "want a create_request first",
		`{"cancel_request":{}}`:             "want a create_request first",
		"{":                                 "unexpected EOF",
		`{"create_request":{"key":1}}`:      "cannot unmarshal",
		create(`,"filters":["NOTHING"]`):    "want one of NOPUT, NODELETE",
		create(strings.Repeat(" ", 64<<10)): "unexpected EOF",
	} {
		status, got := post(t, server, "/v3/watch", body)
		if status != http.StatusBadRequest || !strings.Contains(got, want) {
			t.Errorf("%.100s: got %d %s, want %s", body, status, got, want)
		}
	}
}

// TestSorted: a range by another order than that of keys has all of its keys in memory, so that they are bounded.
func TestSorted(t *testing.T) {
	server, node := newTestGateway(t)
	value := strings.Repeat("v", 1<<20)
	for i := range 33 {
		put(node.store, fmt.Sprintf("k%02d", i), value)
	}
	status, got := post(t, server, "/v3/kv/range", `{"key":"AA==","range_end":"AA==","sort_order":"DESCEND"}`)
	if status != http.StatusTooManyRequests || !strings.Contains(got, `"code":8`) {
		t.Errorf("got %d %.200s, want 429", status, got)
	}
	status, got = post(t, server, "/v3/kv/range", `{"key":"AA==","range_end":"AA==","limit":"1","keys_only":true}`)
	if status != http.StatusOK || !strings.HasSuffix(got, `"more":true,"count":"33"}`) {
		t.Errorf("in the order of keys: got %d %.200s, want one of 33", status, got)
	}
}
