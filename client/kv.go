package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Item is a key and what it was last set to. Keys and values may be any bytes.
type Item struct {
	Key   string
	Value []byte
	Index uint64 // of the entry that set it
	ETag  string // for IfMatch and HasETag
}

// Result is what a write did.
type Result struct {
	Index   uint64 // of its entry in the log
	ETag    string // of each key that it set; empty for a remove
	Removed int    // how many keys a remove has removed
}

// WriteOption is a condition of a write, its IdempotencyKey, or what ends the keys of a set.
type WriteOption func(*call)

// IfMatch makes a write of one key depend on what the key was last set by.
func IfMatch(etag string) WriteOption { return header("If-Match", etag) }

// IfExists makes a write depend on all its keys being there.
func IfExists() WriteOption { return header("If-Match", "*") }

// IfAbsent makes a write depend on none of its keys being there.
func IfAbsent() WriteOption { return header("If-None-Match", "*") }

// IdempotencyKey gives a write a key of the caller's in the place of a random one, 1 to 253
// characters of printable ASCII: a write with the same key is done once, also when it is called
// again after an ErrUnknown or a crash of the caller.
func IdempotencyKey(key string) WriteOption {
	return header("Idempotency-Key", `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key)+`"`)
}

func header(name, value string) WriteOption { return func(r *call) { r.header.Set(name, value) } }

// TTL has the keys of a set go when they are not set again in time: 1 s to 30 days, in whole
// milliseconds. They never go early, counted from when Set returned, and somewhat later after an
// election. It is for Set and SetAll only.
func TTL(d time.Duration) WriteOption { return setting("ttl", d.String()) }

// Lease has the keys of a set go when the other key goes, which must be there: ErrConflict. It is
// for Set and SetAll only.
func Lease(key string) WriteOption { return setting("lease", key) }

func setting(name, value string) WriteOption {
	return func(r *call) {
		if r.query == nil {
			r.query = make(url.Values)
		}
		r.query.Set(name, value)
	}
}

// ReadOption is a parameter of a read.
type ReadOption func(url.Values)

// Stale has any node answer at once from its own copy, which may be old. Without it, a read has
// everything that was acknowledged before it was called.
func Stale() ReadOption { return parameter("consistency", "stale") }

// After makes a list begin behind a key.
func After(key string) ReadOption { return parameter("after", key) }

// PageSize is how many keys a list asks for at once; 0: all, so that it is one consistent view.
func PageSize(n int) ReadOption { return parameter("limit", strconv.Itoa(n)) }

func parameter(name, value string) ReadOption { return func(v url.Values) { v.Set(name, value) } }

// Get reads a key. An error may be ErrNotFound.
func (c *Client) Get(ctx context.Context, key string, options ...ReadOption) (Item, error) {
	r := read("/get", url.Values{"key": {key}}, options)
	response, err := c.do(ctx, r)
	if err != nil {
		return Item{}, err
	}
	item := Item{Key: key, ETag: response.Header.Get("ETag")}
	if item.Index, err = indexOf(strings.Trim(item.ETag, `"`)); err != nil {
		return Item{}, &Error{Message: fmt.Sprintf("not an answer of raftkv: ETag %q", item.ETag)}
	}
	item.Value, _ = io.ReadAll(response.Body) // from memory
	return item, nil
}

// read is the call of a read. Without Stale it prefers the leader, which has the shortest way.
func read(path string, query url.Values, options []ReadOption) *call {
	for _, option := range options {
		option(query)
	}
	return &call{method: http.MethodGet, path: path, query: query, header: make(http.Header),
		anywhere: query.Has("consistency")}
}

// Set sets a key. Errors of writes are described at ErrNotApplied and ErrUnknown.
func (c *Client) Set(ctx context.Context, key string, value []byte, options ...WriteOption) (Result, error) {
	if len(value) == 0 { // as a form: what has no body, net/http would send again by itself
		return c.SetAll(ctx, map[string][]byte{key: nil}, options...)
	}
	return c.write(ctx, &call{method: http.MethodPut, path: "/set", query: url.Values{"key": {key}}, body: value}, options)
}

// SetAll sets several keys: all, or none.
func (c *Client) SetAll(ctx context.Context, values map[string][]byte, options ...WriteOption) (Result, error) {
	form := make(url.Values)
	for key, value := range values {
		form.Add("key", key)
		form.Add("value", string(value))
	}
	return c.write(ctx, post("/set", form), options)
}

// Remove removes keys: all, or none. One that is not there is no error.
func (c *Client) Remove(ctx context.Context, keys []string, options ...WriteOption) (Result, error) {
	return c.write(ctx, post("/remove", url.Values{"key": keys}), options)
}

// RemovePrefix removes all keys with a prefix.
func (c *Client) RemovePrefix(ctx context.Context, prefix string, options ...WriteOption) (Result, error) {
	return c.write(ctx, post("/remove", url.Values{"prefix": {prefix}}), options)
}

// post is a call whose parameters are a form: a proxy does not send POST again by itself.
func post(path string, form url.Values) *call {
	return &call{method: http.MethodPost, path: path, body: []byte(form.Encode()),
		header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}}
}

func (c *Client) write(ctx context.Context, r *call, options []WriteOption) (Result, error) {
	r.write = true
	if r.header == nil {
		r.header = make(http.Header)
	}
	r.header.Set("Idempotency-Key", newKey())
	for _, option := range options {
		option(r)
	}
	response, err := c.do(ctx, r)
	if err != nil {
		return Result{}, err
	}
	line, _ := io.ReadAll(response.Body) // from memory
	result := Result{ETag: response.Header.Get("ETag")}
	if n, _ := fmt.Sscanf(string(line), "OK index=%d removed=%d", &result.Index, &result.Removed); n == 0 {
		return Result{}, &Error{Message: fmt.Sprintf("not an answer of raftkv: %.100q", line), write: true, unknown: true}
	}
	return result, nil
}

// defaultPage is the PageSize of a list.
const defaultPage = 1000

// List reads the keys with a prefix, in the order of their bytes. Each page is a consistent view,
// newer than the one before; see PageSize. An error is the last that comes.
func (c *Client) List(ctx context.Context, prefix string, options ...ReadOption) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		query := url.Values{"prefix": {prefix}, "limit": {strconv.Itoa(defaultPage)}}
		r := read("/list", query, options)
		r.stream = true
		limit, _ := strconv.Atoi(query.Get("limit"))
		if limit == 0 {
			query.Del("limit")
		}
		for failures := 0; ; {
			n := 0
			_, err := c.page(ctx, r, func(item Item) bool {
				n++
				query.Set("after", item.Key)
				return yield(item, nil)
			})
			switch {
			case err == errStopped:
				return
			case err == nil && (limit == 0 || n < limit):
				return
			case err == nil:
				failures = 0
				continue
			}
			if _, ok := err.(*Error); ok || limit == 0 || failures == 8 || !sleep(ctx, pause(failures)) {
				yield(Item{}, err)
				return
			}
			if failures++; n > 0 { // it broke off; go on behind the last
				failures = 0
			}
		}
	}
}

// errStopped is that the consumer wants no more.
var errStopped = fmt.Errorf("stopped")

// page reads one answer of /list, and returns the ID from which to watch. An error that is not an
// *Error is that the answer broke off.
func (c *Client) page(ctx context.Context, r *call, yield func(Item) bool) (from string, err error) {
	response, err := c.do(ctx, r)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	from = response.Header.Get("Raftkv-Watch-From")
	_, mark, marked := strings.Cut(from, "-")
	lines := json.NewDecoder(response.Body)
	for {
		var line wireItem
		if err := lines.Decode(&line); err == io.EOF {
			return from, nil
		} else if err != nil {
			return "", fmt.Errorf("raftkv: the list broke off: %w", err)
		}
		item := Item{Key: line.key(), Value: line.value(), Index: line.Index}
		item.ETag = strconv.FormatUint(line.Index, 10)
		if marked {
			item.ETag += "-" + mark
		}
		if item.ETag = `"` + item.ETag + `"`; !yield(item) {
			return "", errStopped
		}
	}
}

// wireItem is a key in JSON; Key64 and Value64 are for what is not UTF-8.
type wireItem struct {
	Op      string  `json:"op,omitempty"`
	Key     *string `json:"key,omitempty"`
	Key64   []byte  `json:"key64,omitempty"`
	Value   *string `json:"value,omitempty"`
	Value64 []byte  `json:"value64,omitempty"`
	Index   uint64  `json:"index,omitempty"`
	ETag    string  `json:"etag,omitempty"`
	Found   bool    `json:"found,omitempty"`
}

func (w *wireItem) key() string {
	if w.Key != nil {
		return *w.Key
	}
	return string(w.Key64)
}

func (w *wireItem) value() []byte {
	if w.Value != nil {
		return []byte(*w.Value)
	}
	return w.Value64
}

// put puts text into a JSON object under name, or under name and 64 in base64.
func put(object map[string]any, name, text string) {
	if utf8.ValidString(text) {
		object[name] = text
	} else {
		object[name+"64"] = []byte(text)
	}
}

// indexOf returns the index of an ID, such as 12-93e28155.
func indexOf(id string) (uint64, error) {
	digits, _, _ := strings.Cut(id, "-")
	return strconv.ParseUint(digits, 10, 64)
}

// Compare is a condition of a Txn on one key.
type Compare struct{ object map[string]any }

// Op is an operation of a Txn on one key.
type Op struct {
	object map[string]any
	kind   string
}

// Txn is a transaction: if all conditions of If hold, the operations of Then are done, and else
// those of Else, in their order, at once. Each list has at most 128 elements.
type Txn struct {
	If         []Compare
	Then, Else []Op
}

// HasETag holds if the key was last set by that entry.
func HasETag(key, etag string) Compare { return compare(key, "etag", strings.Trim(etag, `"`)) }

// Exists holds if the key is there.
func Exists(key string) Compare { return compare(key, "absent", false) }

// Absent holds if the key is not there.
func Absent(key string) Compare { return compare(key, "absent", true) }

// HasValue holds if the key has that value.
func HasValue(key string, value []byte) Compare {
	o := make(map[string]any)
	put(o, "key", key)
	put(o, "value", string(value))
	return Compare{o}
}

func compare(key, name string, value any) Compare {
	o := map[string]any{name: value}
	put(o, "key", key)
	return Compare{o}
}

// SetOp sets a key.
func SetOp(key string, value []byte) Op {
	o := operation("set", key)
	put(o.object, "value", string(value))
	return o
}

// RemoveOp removes a key.
func RemoveOp(key string) Op { return operation("remove", key) }

// GetOp reads a key.
func GetOp(key string) Op { return operation("get", key) }

func operation(kind, key string) Op {
	o := make(map[string]any)
	put(o, kind, key)
	return Op{o, kind}
}

// TxnResult is what a Txn did.
type TxnResult struct {
	Held    bool       // the conditions: Then was done, and not Else
	Index   uint64     // of its entry in the log
	Results []OpResult // one for each operation of what was done
}

// OpResult is what an operation did.
type OpResult struct {
	Key   string
	Found bool   // of a get or a remove: the key was there
	Value []byte // of a get
	ETag  string // of the key, after a set or in a get
}

// Txn carries out a transaction. Conditions that do not hold are no error: see TxnResult.Held.
//
// A node keeps what a transaction did for its IdempotencyKey, but not what it read. So one with
// gets and other operations is not sent again when its outcome is unknown.
func (c *Client) Txn(ctx context.Context, t Txn, options ...WriteOption) (TxnResult, error) {
	body := make(map[string][]map[string]any)
	for _, condition := range t.If {
		body["if"] = append(body["if"], condition.object)
	}
	reads, writes := false, false
	for name, list := range map[string][]Op{"then": t.Then, "else": t.Else} {
		for _, o := range list {
			body[name] = append(body[name], o.object)
		}
		reads = reads || slices.ContainsFunc(list, func(o Op) bool { return o.kind == "get" })
		writes = writes || slices.ContainsFunc(list, func(o Op) bool { return o.kind != "get" })
	}
	r := &call{method: http.MethodPost, path: "/txn", write: writes, once: reads && writes,
		header: http.Header{"Content-Type": {"application/json"}}}
	if !reads {
		r.header.Set("Idempotency-Key", newKey())
	}
	for _, option := range options {
		option(r)
	}
	var err error
	if r.body, err = json.Marshal(body); err != nil {
		return TxnResult{}, err
	}
	response, err := c.do(ctx, r)
	if err != nil {
		return TxnResult{}, err
	}
	var wire struct {
		Branch  string
		Index   uint64
		Results []wireItem
	}
	if err := json.NewDecoder(response.Body).Decode(&wire); err != nil || wire.Branch == "" {
		return TxnResult{}, &Error{Message: fmt.Sprintf("not an answer of raftkv: %v", err), write: writes, unknown: true}
	}
	result := TxnResult{Held: wire.Branch == "then", Index: wire.Index}
	for _, w := range wire.Results {
		o := OpResult{Key: w.key(), Found: w.Found, Value: w.value()}
		if w.ETag != "" {
			o.ETag = `"` + w.ETag + `"`
		}
		result.Results = append(result.Results, o)
	}
	return result, nil
}
