package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

func TestSetLease(t *testing.T) {
	for _, tt := range []struct {
		name, query string
		want        command.Lease
		refused     string // empty: it is not
	}{
		{name: "none", query: "key=a&value=1"},
		{name: "ttl", query: "key=a&value=1&ttl=30s", want: command.Lease{TTL: 30 * time.Second}},
		{name: "minutes", query: "key=a&value=1&ttl=1h30m", want: command.Lease{TTL: 90 * time.Minute}},
		{name: "least", query: "key=a&value=1&ttl=1s", want: command.Lease{TTL: time.Second}},
		{name: "most", query: "key=a&value=1&ttl=30d", want: command.Lease{TTL: command.MaxTTL}},
		{name: "lease", query: "key=a&value=1&lease=s", want: command.Lease{Key: "s"}},
		{name: "both", query: "key=a&value=1&lease=s&ttl=5s", want: command.Lease{Key: "s", TTL: 5 * time.Second}},
		{name: "too short", query: "key=a&value=1&ttl=999ms", refused: "ttl: want 1s to 30d"},
		{name: "too long", query: "key=a&value=1&ttl=31d", refused: "ttl: want 1s to 30d"},
		{name: "overflows", query: "key=a&value=1&ttl=65535d", refused: "ttl: want 1s to 30d"},
		{name: "no unit", query: "key=a&value=1&ttl=30", refused: "ttl: want 1s to 30d"},
		{name: "part of a millisecond", query: "key=a&value=1&ttl=1.0001s", refused: "ttl: want 1s to 30d"},
		{name: "negative", query: "key=a&value=1&ttl=-5s", refused: "ttl: want 1s to 30d"},
		{name: "empty ttl", query: "key=a&value=1&ttl=", refused: "ttl: want 1s to 30d"},
		{name: "two", query: "key=a&value=1&ttl=5s&ttl=6s", refused: "ttl: given 2 times"},
		{name: "empty lease", query: "key=a&value=1&lease=", refused: "lease: 0 bytes"},
		{name: "of itself", query: "key=b&value=1&key=a&value=1&lease=a", refused: `lease: "a" is the key itself`},
		{name: "long lease", query: "key=a&value=1&lease=" + strings.Repeat("k", 1025), refused: "lease: 1025 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Set(httptest.NewRequest(http.MethodGet, "/set?"+tt.query, nil), History{Mark: "m"})
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("got %v, want %q in it", err, tt.refused)
				}
				return
			}
			if got := c.Lease(); err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestTxnLease(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       command.Lease
		refused    string
	}{
		{name: "both", body: `{"set":"a","value":"1","ttl":"5s","lease":"s"}`, want: command.Lease{TTL: 5e9, Key: "s"}},
		{name: "any bytes", body: `{"set":"a","value":"1","lease64":"/w=="}`, want: command.Lease{Key: "\xff"}},
		{name: "of a remove", body: `{"remove":"a","ttl":"5s"}`, refused: "then[0]: ttl and lease: only a set takes them"},
		{name: "of itself", body: `{"set":"a","value":"1","lease":"a"}`, refused: "then[0]: lease: "},
		{name: "no unit", body: `{"set":"a","value":"1","ttl":"5"}`, refused: "then[0]: ttl: want"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := strings.NewReader(`{"then":[` + tt.body + `]}`)
			c, err := Txn(httptest.NewRequest(http.MethodPost, "/txn", body), History{Mark: "m"})
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("got %v, want %q in it", err, tt.refused)
				}
				return
			}
			if err != nil || c.Txn.Then[0].Lease != tt.want {
				t.Errorf("got %+v, %v, want %+v", c.Txn, err, tt.want)
			}
		})
	}
}

// TestLeaseIsShown: in headers and lists a lease is there, and cannot be taken for anything else.
func TestLeaseIsShown(t *testing.T) {
	w := httptest.NewRecorder()
	SetLeaseHeaders(w, kv.Lease{TTL: 90 * time.Second, Key: "a\r\nb\xff"})
	if got, want := w.Header().Get("Raftkv-Lease"), "a%0D%0Ab%FF"; got != want {
		t.Errorf("header: got %q, want %q", got, want)
	}
	if got := w.Header().Get("Raftkv-TTL"); got != "1m30s" {
		t.Errorf("header: got %q, want 1m30s", got)
	}
	s := kv.New()
	s.Update(1, 1, nil, func(tx *kv.Tx) {
		tx.SetLeased("a\xff", nil, kv.Lease{TTL: time.Minute})
		tx.SetLeased("b", nil, kv.Lease{Key: "a\xff"})
		tx.SetLeased("c", nil, kv.Lease{Key: "b"})
		tx.Set("d", nil)
	})
	var b bytes.Buffer
	if err := (ListRequest{}).write(newLines(&b, answerMemory{}), s); err != nil {
		t.Fatal(err)
	}
	var got []string
	for d := json.NewDecoder(&b); d.More(); {
		var line struct {
			TTL, Lease string
			Lease64    []byte
		}
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		got = append(got, line.TTL+"|"+line.Lease+"|"+string(line.Lease64))
	}
	if got, want := strings.Join(got, " "), "1m0s|| ||a\xff |b| ||"; got != want {
		t.Errorf("list: got %q, want %q", got, want)
	}
}

func TestLeaseGone(t *testing.T) {
	c := command.Command{Kind: command.Set, Pairs: []command.Pair{{Key: "a"}}}
	c.Options = &command.Options{Lease: command.Lease{Key: "s"}}
	for _, tt := range []struct {
		name    string
		command command.Command
		result  command.Result
		want    string
	}{
		{name: "set", command: c, result: command.Result{Failed: 2}, want: `lease: key "s" is not there: nothing was done`},
		{
			name: "transaction",
			command: command.Command{Kind: command.Txn, Txn: &command.Transaction{
				Then: []command.Operation{{Op: command.OpSet, Key: "a", Lease: command.Lease{Key: "s"}}},
			}},
			result: command.Result{Txn: &command.TxnResult{Held: true}},
			want:   "a lease of the transaction is not there: nothing was done",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := ResultError(tt.command, tt.result, History{Mark: "m"})
			if e, ok := err.(Error); !ok || e.Status != http.StatusPreconditionFailed || !strings.Contains(e.Message, tt.want) {
				t.Errorf("got %v, want 412 and %q in it", err, tt.want)
			}
		})
	}
}
