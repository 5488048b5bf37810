package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"raftkv/internal/command"
)

// maxTxn bounds the conditions, and the operations of either branch, of a transaction. With
// MaxQuery for the body and command.MaxValue for what an operation reads, they bound its bytes.
const maxTxn = 128

// txn is the body of a transaction. Each name of a key has a twin with 64 behind it, for a key
// that is not UTF-8, in base64; so does value.
type txn struct {
	If         []txnCondition `json:"if"`
	Then, Else []txnOperation
}

type txnCondition struct {
	Key     *string `json:"key"`
	Key64   []byte  `json:"key64"`
	ETag    *string `json:"etag"`
	Absent  *bool   `json:"absent"`
	Value   *string `json:"value"`
	Value64 *[]byte `json:"value64"`
}

type txnOperation struct {
	Set      *string `json:"set"`
	Set64    []byte  `json:"set64"`
	Remove   *string `json:"remove"`
	Remove64 []byte  `json:"remove64"`
	Get      *string `json:"get"`
	Get64    []byte  `json:"get64"`
	Value    *string `json:"value"`
	Value64  *[]byte `json:"value64"`
	TTL      *string `json:"ttl"`
	Lease    *string `json:"lease"`
	Lease64  []byte  `json:"lease64"`
}

// Txn returns the command of the transaction that is r's body, in JSON. ETags are of the
// history h.
func Txn(r *http.Request, h History) (c command.Command, err error) {
	if query, _ := cutLengthMark(r.URL.RawQuery); query != "" {
		return c, badRequest("query: /txn takes no parameters; the transaction is the body, in JSON")
	}
	if err := rejectHeaders(r, "If-Match", "If-None-Match", "If-Unmodified-Since", "If-Modified-Since",
		"Content-Range"); err != nil {
		return c, err
	}
	key, err := idempotencyKey(r)
	if err != nil {
		return c, err
	}
	body, err := readBody(r, "transaction", MaxQuery)
	if err != nil {
		return c, err
	}
	t, err := parseTxn(body, h)
	if err != nil {
		return c, err
	}
	c = command.Command{Kind: command.Txn, Txn: t}
	if key == "" {
		return c, nil
	}
	c.Options = &command.Options{IdempotencyKey: key}
	for _, o := range append(t.Then[:len(t.Then):len(t.Then)], t.Else...) {
		if o.Op == command.OpGet {
			return c, badRequest("get: with an Idempotency-Key, as what it has read is not kept for a repetition; " +
				"leave one of the two out")
		}
	}
	return c, nil
}

func parseTxn(body []byte, h History) (*command.Transaction, error) {
	var in txn
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(&in)
	if err == nil {
		if _, next := d.Token(); next != io.EOF {
			err = errors.New("something follows it")
		}
	}
	if err != nil {
		return nil, badRequest(`transaction: %v; want one JSON object with "if", "then" and "else"`, err)
	}
	if n := max(len(in.If), len(in.Then), len(in.Else)); n > maxTxn {
		return nil, badRequest("transaction: %d conditions or operations in one list; %d at most", n, maxTxn)
	}
	t := new(command.Transaction)
	for i, c := range in.If {
		compare, err := c.compare(h)
		if err != nil {
			return nil, inList("if", i, err)
		}
		t.If = append(t.If, compare)
	}
	for _, branch := range []struct {
		name string
		in   []txnOperation
		out  *[]command.Operation
	}{{"then", in.Then, &t.Then}, {"else", in.Else, &t.Else}} {
		for i, o := range branch.in {
			operation, err := o.operation()
			if err != nil {
				return nil, inList(branch.name, i, err)
			}
			*branch.out = append(*branch.out, operation)
		}
	}
	return t, nil
}

// inList says where in a transaction an Error is.
func inList(list string, i int, err error) error {
	e, _ := errors.AsType[Error](err)
	return Errorf(e.Status, "%s[%d]: %s", list, i, e.Message)
}

// given returns the bytes of a parameter and its twin in base64, and whether either is there.
func given(text *string, base64 []byte) (value string, ok bool) {
	if text != nil {
		return *text, true
	}
	return string(base64), base64 != nil
}

func checkTxnKey(key string, ok bool) error {
	if !ok {
		return badRequest("key: missing")
	}
	return checkKeys([]string{key})
}

func checkTxnValue(text *string, base64 *[]byte) (value []byte, ok bool, err error) {
	switch {
	case text != nil && base64 != nil:
		return nil, true, badRequest("value: given together with value64")
	case text != nil:
		value = []byte(*text)
	case base64 != nil:
		value = *base64
	default:
		return nil, false, nil
	}
	if len(value) > command.MaxValue {
		return nil, true, tooLarge("value", command.MaxValue)
	}
	return value, true, nil
}

func (c *txnCondition) compare(h History) (compare command.Compare, err error) {
	key, ok := given(c.Key, c.Key64)
	if err := checkTxnKey(key, ok); err != nil {
		return compare, err
	}
	compare.Key = key
	value, hasValue, err := checkTxnValue(c.Value, c.Value64)
	if err != nil {
		return compare, err
	}
	n := 0
	if hasValue {
		n++
		compare.What, compare.Value = command.HasValue, value
	}
	if c.Absent != nil {
		n++
		if compare.What = command.Exists; *c.Absent {
			compare.What = command.Absent
		}
	}
	if c.ETag != nil {
		n++
		tag := *c.ETag
		if quoted, ok := strings.CutPrefix(tag, `"`); ok {
			tag = strings.TrimSuffix(quoted, `"`)
		}
		index, unmarked := h.index(tag)
		if unmarked {
			return compare, errUnmarked("etag", tag)
		}
		compare.What, compare.Index = command.HasIndex, index
	}
	if n != 1 {
		return compare, badRequest("want one of etag, value and absent beside the key")
	}
	return compare, nil
}

func (o *txnOperation) operation() (operation command.Operation, err error) {
	n := 0
	for _, kind := range []struct {
		op     command.Op
		text   *string
		base64 []byte
	}{{command.OpSet, o.Set, o.Set64}, {command.OpRemove, o.Remove, o.Remove64}, {command.OpGet, o.Get, o.Get64}} {
		if key, ok := given(kind.text, kind.base64); ok {
			n++
			operation.Op, operation.Key = kind.op, key
		}
	}
	if n != 1 {
		return operation, badRequest("want one of set, remove and get, with a key")
	}
	if err := checkTxnKey(operation.Key, true); err != nil {
		return operation, err
	}
	value, ok, err := checkTxnValue(o.Value, o.Value64)
	switch {
	case err != nil:
		return operation, err
	case ok != (operation.Op == command.OpSet):
		return operation, badRequest("value: a set needs one, and nothing else takes one")
	}
	operation.Value = value
	if operation.Lease, err = o.lease(operation.Key); err == nil && operation.Lease != (command.Lease{}) && !ok {
		err = badRequest("ttl and lease: only a set takes them")
	}
	return operation, err
}

func (o *txnOperation) lease(key string) (l command.Lease, err error) {
	if o.TTL != nil {
		if l.TTL, err = parseTTL(*o.TTL); err != nil {
			return l, err
		}
	}
	if lease, ok := given(o.Lease, o.Lease64); ok {
		l.Key = lease
		return l, checkLeaseKey(lease, key)
	}
	return l, nil
}

// WriteTxn answers what a transaction did: which branch, and what came of each operation of it.
func WriteTxn(w http.ResponseWriter, c command.Command, r command.Result, h History) error {
	branch := "else"
	if r.Txn.Held {
		branch = "then"
	}
	w.Header().Set("Content-Type", "application/json")
	// One operation at a time: together, what they have read may be large.
	_, _ = fmt.Fprintf(w, "{\"branch\":%q,\"index\":%d,\"results\":[", branch, r.Index)
	memory := memoryOf(w)
	if memory.w != nil {
		memory.w.slot.body.Release() // it is not needed any more
	}
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	for i, o := range c.Txn.Branch(r) {
		if i > 0 {
			_, _ = io.WriteString(w, ",")
		}
		done, result := r.Txn.Operations[i], txnResult{}
		switch result.setKey(o.Key); o.Op {
		case command.OpSet:
			result.Op, result.ETag = "set", h.ID(r.Index)
		case command.OpRemove:
			result.Op, result.Found = "remove", &done.Found
		case command.OpGet:
			result.Op, result.Found = "get", &done.Found
			if done.Found {
				result.setValue(done.Value)
				result.ETag = h.ID(done.Index)
			}
		}
		if err := memory.hold(lineSize(done.Value)); err != nil {
			return errors.New(err.Error()) // no Error: the transaction was carried out
		}
		err := out.Encode(result)
		memory.release()
		if err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "]}\n")
	return err
}

// txnResult is what came of one operation.
type txnResult struct {
	item
	ETag  string `json:"etag,omitempty"`  // without the quotes that it has in a header
	Found *bool  `json:"found,omitempty"` // of a remove or a get: the key was there
}
