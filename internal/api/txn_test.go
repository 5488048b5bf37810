package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"raftkv/internal/command"
)

func newTxn(body string, header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/txn", strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func TestTxn(t *testing.T) {
	got, err := Txn(newTxn(`{
		"if": [{"key":"a","etag":"12-0badcafe"}, {"key":"b","etag":"\"13-0badcafe\""}, {"key":"c","etag":"12-deadbeef"},
			{"key":"d","absent":true}, {"key":"e","absent":false}, {"key":"f","value":""}, {"key64":"/w==","value64":"/w=="}],
		"then": [{"set":"a","value":"1"}, {"set64":"/w==","value64":"/w=="}, {"remove":"b"}],
		"else": [{"set":"g","value":""}]}`, "Idempotency-Key", `"k"`), testHistory)
	want := command.Command{
		Kind:    command.Txn,
		Options: &command.Options{IdempotencyKey: "k"},
		Txn: &command.Transaction{
			If: []command.Compare{
				{Key: "a", What: command.HasIndex, Index: 12}, {Key: "b", What: command.HasIndex, Index: 13},
				{Key: "c", What: command.HasIndex}, // of another history: no key has index 0
				{Key: "d", What: command.Absent}, {Key: "e", What: command.Exists},
				{Key: "f", What: command.HasValue, Value: []byte{}},
				{Key: "\xff", What: command.HasValue, Value: []byte{0xff}},
			},
			Then: []command.Operation{
				{Op: command.OpSet, Key: "a", Value: []byte("1")}, {Op: command.OpSet, Key: "\xff", Value: []byte{0xff}},
				{Op: command.OpRemove, Key: "b"},
			},
			Else: []command.Operation{{Op: command.OpSet, Key: "g", Value: []byte{}}},
		},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got.Txn, err, want.Txn)
	}
	if decoded, err := command.Decode(command.Append(nil, got)); err != nil || !reflect.DeepEqual(decoded[0], want) {
		t.Errorf("as an entry: got %+v, %v, want %+v", decoded, err, want)
	}
}

// TestTxnRefuses: whatever is wrong is one line that says where.
func TestTxnRefuses(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`{"get":"a"},`, maxTxn+1), ",")
	for _, tt := range []struct {
		name, body string
		header     []string
		status     int
		says       string
	}{
		{name: "nothing", body: "", status: 400, says: `transaction: EOF; want one JSON object with "if", "then" and "else"`},
		{name: "no JSON", body: "key=a&value=1", status: 400, says: "want one JSON object"},
		{name: "two objects", body: "{}{}", status: 400, says: "something follows it"},
		{name: "a misspelt list", body: `{"iff":[]}`, status: 400, says: `unknown field "iff"`},
		{name: "a misspelt condition", body: `{"if":[{"key":"a","eatg":"1"}]}`, status: 400, says: `unknown field "eatg"`},
		{name: "too many", body: `{"then":[` + many + `]}`, status: 400,
			says: "129 conditions or operations in one list; 128"},
		{name: "no condition", body: `{"if":[{"key":"a"}]}`, status: 400,
			says: "if[0]: want one of etag, value and absent beside the key"},
		{name: "two conditions", body: `{"if":[{"key":"a","absent":true,"value":"1"}]}`, status: 400,
			says: "if[0]: want one of"},
		{name: "no key", body: `{"if":[{"key":"a","absent":true},{"absent":true}]}`, status: 400,
			says: "if[1]: key: missing"},
		{name: "an empty key", body: `{"then":[{"remove":""}]}`, status: 400,
			says: "then[0]: key: empty; a key has 1 to 1024 bytes"},
		{name: "a long key", body: `{"else":[{"get":"` + strings.Repeat("k", 1025) + `"}]}`, status: 400,
			says: "else[0]: key: 1025 bytes"},
		{name: "two operations in one", body: `{"then":[{"set":"a","remove":"a"}]}`, status: 400,
			says: "then[0]: want one of set, remove and get, with a key"},
		{name: "a set without a value", body: `{"then":[{"set":"a"}]}`, status: 400, says: "then[0]: value: a set needs one"},
		{name: "a get with a value", body: `{"then":[{"get":"a","value":"1"}]}`, status: 400, says: "nothing else takes one"},
		{name: "a large value", body: `{"then":[{"set":"a","value":"` + strings.Repeat("v", command.MaxValue+1) + `"}]}`,
			status: 413, says: "then[0]: value: larger than 1048576 bytes"},
		{name: "a large body", body: strings.Repeat(" ", MaxQuery+1), status: 413, says: "transaction: larger than 2097152"},
		{name: "no mark", body: `{"if":[{"key":"a","etag":"12"}]}`, status: 412, says: `if[0]: etag: "12" has no mark`},
		{name: "a condition in the header", body: "{}", header: []string{"If-Match", "*"}, status: 400,
			says: "If-Match: not supported by /txn"},
		{name: "a get that is repeated", body: `{"else":[{"get":"a"}]}`, header: []string{"Idempotency-Key", "k"},
			status: 400,
			says:   "get: with an Idempotency-Key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Txn(newTxn(tt.body, tt.header...), testHistory)
			e, _ := errors.AsType[Error](err)
			if e.Status != tt.status || !strings.Contains(e.Message, tt.says) || strings.Contains(e.Message, "\n") {
				t.Errorf("got %d %.200q, want %d: … %s", e.Status, e.Message, tt.status, tt.says)
			}
		})
	}
	query := newTxn("{}")
	query.URL.RawQuery = "key=a"
	if _, err := Txn(query, testHistory); err == nil || !strings.HasPrefix(err.Error(),
		"query: /txn takes no parameters") {
		t.Errorf("with a query: got %v, want that it takes none", err)
	}
}

// FuzzTxn: whatever the body is, it is refused, or can be replicated.
func FuzzTxn(f *testing.F) {
	f.Add(`{"if":[{"key":"a","etag":"1-0badcafe"}],"then":[{"set":"a","value":"1"}],"else":[{"get":"b"}]}`)
	f.Add(`{"if":[{"key64":"/w==","absent":true}],"then":[{"remove64":""}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		c, err := Txn(newTxn(body), testHistory)
		if err != nil {
			if e, ok := errors.AsType[Error](err); !ok || e.Status < 400 || e.Status > 499 || strings.Contains(e.Message, "\n") {
				t.Fatalf("got %v, want an Error of one line", err)
			}
			return
		}
		if got, err := command.Decode(command.Append(nil, c)); err != nil || fmt.Sprint(got[0].Txn) == "" {
			t.Fatalf("got %v, %v, want what was encoded, %v", got, err, c.Txn)
		}
	})
}

func ExampleWriteTxn() {
	w := httptest.NewRecorder()
	c := command.Command{Kind: command.Txn, Txn: &command.Transaction{Then: []command.Operation{
		{Op: command.OpSet, Key: "a"}, {Op: command.OpRemove, Key: "b"}, {Op: command.OpGet, Key: "c"},
	}}}
	_ = WriteTxn(w, c, command.Result{Index: 12, Txn: &command.TxnResult{Held: true, Operations: []command.OperationResult{
		{}, {Found: true}, {Found: true, Value: "1", Index: 7},
	}}}, History{Mark: "93e28155"})
	fmt.Print(w.Body)
	// Output:
	// {"branch":"then","index":12,"results":[{"op":"set","key":"a","etag":"12-93e28155"}
	// ,{"op":"remove","key":"b","found":true}
	// ,{"op":"get","key":"c","value":"1","etag":"7-93e28155","found":true}
	// ]}
}
