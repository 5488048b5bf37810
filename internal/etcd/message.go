package etcd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"raftkv/internal/kv"
)

// Messages are in JSON as grpc-gateway has it: bytes in base64, 64-bit numbers as strings, and what is zero left out.
// In requests, names may be range_end or rangeEnd, numbers with quotes or without, values of enumerations names or
// numbers. What etcd does not know is ignored, as it does.

// number is a 64-bit number.
type number int64

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	if err != nil {
		return fmt.Errorf("%s is not a whole number of 64 bits", b)
	}
	*n = number(v)
	return nil
}

// enum is a value of an enumeration, a name or a number; none is the first one.
type enum string

func (e *enum) UnmarshalJSON(b []byte) error {
	*e = enum(strings.Trim(string(b), `"`))
	return nil
}

func (e enum) of(names ...string) (int, error) {
	if e == "" {
		return 0, nil
	}
	i := slices.Index(names, string(e))
	if n, err := strconv.Atoi(string(e)); i < 0 && err == nil && n >= 0 && n < len(names) {
		i = n
	}
	if i < 0 {
		return 0, invalid("unknown value %q; want one of %s", e, strings.Join(names, ", "))
	}
	return i, nil
}

// request has the fields of all messages that a client sends.
type request struct {
	Key, Value                      []byte
	RangeEnd                        []byte `json:"range_end"`
	Lease, Limit, Revision, Version number
	ID, TTL                         number
	Keys, Serializable              bool
	Create                          number `json:"create_revision"`
	Mod                             number `json:"mod_revision"`
	MinCreate                       number `json:"min_create_revision"`
	MaxCreate                       number `json:"max_create_revision"`
	MinMod                          number `json:"min_mod_revision"`
	MaxMod                          number `json:"max_mod_revision"`
	SortOrder                       enum   `json:"sort_order"`
	SortTarget                      enum   `json:"sort_target"`
	KeysOnly                        bool   `json:"keys_only"`
	CountOnly                       bool   `json:"count_only"`
	PrevKV                          bool   `json:"prev_kv"`
	IgnoreValue                     bool   `json:"ignore_value"`
	IgnoreLease                     bool   `json:"ignore_lease"`

	// Of a txn, and of the comparisons and requests in it.
	Compare, Success, Failure []request
	Result, Target            enum
	Range                     *request `json:"request_range"`
	Put                       *request `json:"request_put"`
	Delete                    *request `json:"request_delete_range"`
	Txn                       *request `json:"request_txn"`

	// Of a stream of a watch, and of the watch in it.
	Watch    *request `json:"create_request"`
	Cancel   *request `json:"cancel_request"`
	Progress *request `json:"progress_request"`
	WatchID  number   `json:"watch_id"`
	Start    number   `json:"start_revision"`
	Notify   bool     `json:"progress_notify"`
	Filters  []enum

	sort, order int // SortTarget and SortOrder, once they are checked
}

// parse parses a message; nothing at all is one whose fields are zero, as for etcd.
func parse(body []byte) (*request, error) {
	q := new(request)
	if len(bytes.TrimSpace(body)) == 0 {
		return q, nil
	}
	var fields any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	err := d.Decode(&fields)
	if err == nil && d.More() {
		err = fmt.Errorf("something follows the message; send one")
	}
	if err == nil {
		body, err = json.Marshal(snake(fields))
	}
	if err == nil {
		err = json.Unmarshal(body, q)
	}
	if err != nil {
		return nil, invalid("%v", err)
	}
	return q, nil
}

// snake returns a message whose names are as range_end. Those in upper case alone, as ID, stay.
func snake(message any) any {
	switch m := message.(type) {
	case map[string]any:
		renamed := make(map[string]any, len(m))
		for name, value := range m {
			b := []byte(name[:min(1, len(name))])
			for i := 1; i < len(name); i++ {
				c := name[i]
				if c >= 'A' && c <= 'Z' && name[i-1] >= 'a' && name[i-1] <= 'z' {
					b, c = append(b, '_'), c+'a'-'A'
				}
				b = append(b, c)
			}
			renamed[string(b)] = snake(value)
		}
		return renamed
	case []any:
		for i := range m {
			m[i] = snake(m[i])
		}
	}
	return message
}

// header is that of every response. Those of the responses within a txn have the revision alone.
type header struct {
	Cluster  uint64 `json:"cluster_id,omitempty,string"`
	Member   uint64 `json:"member_id,omitempty,string"`
	Revision uint64 `json:"revision,omitempty,string"`
	Term     uint64 `json:"raft_term,omitempty,string"`
}

// response has the fields of all messages to a client but those that list keys.
type response struct {
	Header   header    `json:"header"`
	Prev     *keyValue `json:"prev_kv,omitempty"`
	WatchID  int64     `json:"watch_id,omitempty,string"`
	Created  bool      `json:"created,omitempty"`
	Canceled bool      `json:"canceled,omitempty"`
	Compact  uint64    `json:"compact_revision,omitempty,string"`
	Reason   string    `json:"cancel_reason,omitempty"`
	Events   []event   `json:"events,omitempty"`
	ID       int64     `json:"ID,omitempty,string"`
	TTL      int64     `json:"TTL,omitempty,string"`
	Granted  int64     `json:"grantedTTL,omitempty,string"`
	Keys     [][]byte  `json:"keys,omitempty"`
	Leases   []leaseID `json:"leases,omitempty"`
	Version  string    `json:"version,omitempty"`
	Size     uint64    `json:"dbSize,omitempty,string"`
	Leader   uint64    `json:"leader,omitempty,string"`
	Index    uint64    `json:"raftIndex,omitempty,string"`
	Term     uint64    `json:"raftTerm,omitempty,string"`
	Applied  uint64    `json:"raftAppliedIndex,omitempty,string"`
	InUse    uint64    `json:"dbSizeInUse,omitempty,string"`
	Members  []Member  `json:"members,omitempty"`
}

type leaseID struct {
	ID int64 `json:"ID,string"`
}

type event struct {
	Type string    `json:"type,omitempty"`
	KV   *keyValue `json:"kv"`
	Prev *keyValue `json:"prev_kv,omitempty"`
}

type keyValue struct {
	Key     []byte `json:"key,omitempty"`
	Create  uint64 `json:"create_revision,omitempty,string"`
	Mod     uint64 `json:"mod_revision,omitempty,string"`
	Version uint64 `json:"version,omitempty,string"`
	Value   []byte `json:"value,omitempty"`
	Lease   int64  `json:"lease,omitempty,string"`
}

func newKeyValue(key string, f kv.Full) *keyValue {
	return &keyValue{[]byte(key), f.Created, f.Index, f.Version, []byte(f.Value), leaseOf(f.Lease.Key)}
}

// marshal returns a message, which has nothing that could fail.
func marshal(message any) []byte {
	b, _ := json.Marshal(message)
	return b
}
