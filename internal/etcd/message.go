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

// Messages are in JSON as grpc-gateway has it (protobuf's mapping): bytes in base64, 64-bit numbers as strings, fields
// that are zero left out, in the order of their numbers. In requests, names may be in either form, range_end or
// rangeEnd, numbers with quotes or without, and values of an enumeration names or numbers. Fields that etcd does not know
// are ignored, as it ignores them.

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

// parseEnum returns the number of a value of an enumeration, 0 if it is not given.
func parseEnum(b json.RawMessage, names ...string) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	text := strings.Trim(string(b), `"`)
	if i := slices.Index(names, text); i >= 0 {
		return i, nil
	}
	if i, err := strconv.Atoi(text); err == nil && i >= 0 && i < len(names) {
		return i, nil
	}
	return 0, invalid("unknown value %s; want one of %s", b, strings.Join(names, ", "))
}

// unmarshal parses a message.
func unmarshal(body []byte, into any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil // as etcd: all fields are zero
	}
	var fields any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&fields); err != nil {
		return invalid("%v", err)
	}
	if d.More() {
		return invalid("something follows the message; send one")
	}
	body, err := json.Marshal(snake(fields))
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return invalid("%v", err)
	}
	return nil
}

// snake returns a message whose names are in the form range_end. Upper case alone, as ID, stays.
func snake(message any) any {
	switch m := message.(type) {
	case map[string]any:
		renamed := make(map[string]any, len(m))
		for name, value := range m {
			var b strings.Builder
			for i, r := range []byte(name) {
				if i > 0 && r >= 'A' && r <= 'Z' && name[i-1] >= 'a' && name[i-1] <= 'z' {
					b.WriteByte('_')
					r += 'a' - 'A'
				}
				b.WriteByte(r)
			}
			renamed[b.String()] = snake(value)
		}
		return renamed
	case []any:
		for i := range m {
			m[i] = snake(m[i])
		}
	}
	return message
}

type rangeRequest struct {
	Key         []byte          `json:"key"`
	RangeEnd    []byte          `json:"range_end"`
	Limit       number          `json:"limit"`
	Revision    number          `json:"revision"`
	SortOrder   json.RawMessage `json:"sort_order"`
	SortTarget  json.RawMessage `json:"sort_target"`
	Serial      bool            `json:"serializable"`
	KeysOnly    bool            `json:"keys_only"`
	CountOnly   bool            `json:"count_only"`
	MinMod      number          `json:"min_mod_revision"`
	MaxMod      number          `json:"max_mod_revision"`
	MinCreate   number          `json:"min_create_revision"`
	MaxCreate   number          `json:"max_create_revision"`
	sort, order int             // SortTarget and SortOrder, checked
}

type putRequest struct {
	Key         []byte `json:"key"`
	Value       []byte `json:"value"`
	Lease       number `json:"lease"`
	PrevKV      bool   `json:"prev_kv"`
	IgnoreValue bool   `json:"ignore_value"`
	IgnoreLease bool   `json:"ignore_lease"`
}

type deleteRequest struct {
	Key      []byte `json:"key"`
	RangeEnd []byte `json:"range_end"`
	PrevKV   bool   `json:"prev_kv"`
}

type compare struct {
	Result   json.RawMessage `json:"result"`
	Target   json.RawMessage `json:"target"`
	Key      []byte          `json:"key"`
	RangeEnd []byte          `json:"range_end"`
	Version  number          `json:"version"`
	Create   number          `json:"create_revision"`
	Mod      number          `json:"mod_revision"`
	Value    []byte          `json:"value"`
	Lease    number          `json:"lease"`
}

type requestOp struct {
	Range  *rangeRequest   `json:"request_range"`
	Put    *putRequest     `json:"request_put"`
	Delete *deleteRequest  `json:"request_delete_range"`
	Txn    json.RawMessage `json:"request_txn"`
}

type txnRequest struct {
	Compare []compare   `json:"compare"`
	Success []requestOp `json:"success"`
	Failure []requestOp `json:"failure"`
}

type leaseRequest struct {
	ID   number `json:"ID"`
	TTL  number `json:"TTL"`
	Keys bool   `json:"keys"`
}

type watchRequest struct {
	Create *struct {
		Key      []byte            `json:"key"`
		RangeEnd []byte            `json:"range_end"`
		Start    number            `json:"start_revision"`
		Progress bool              `json:"progress_notify"`
		Filters  []json.RawMessage `json:"filters"`
		PrevKV   bool              `json:"prev_kv"`
		ID       number            `json:"watch_id"`
	} `json:"create_request"`
	Cancel *struct {
		ID number `json:"watch_id"`
	} `json:"cancel_request"`
	Progress *struct{} `json:"progress_request"`
}

// header is that of every response. Those of the responses within a txn have the revision alone.
type header struct {
	Cluster  uint64 `json:"cluster_id,omitempty,string"`
	Member   uint64 `json:"member_id,omitempty,string"`
	Revision uint64 `json:"revision,omitempty,string"`
	Term     uint64 `json:"raft_term,omitempty,string"`
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

type putResponse struct {
	Header header    `json:"header"`
	Prev   *keyValue `json:"prev_kv,omitempty"`
}

type leaseResponse struct {
	Header  header   `json:"header"`
	ID      int64    `json:"ID,omitempty,string"`
	TTL     int64    `json:"TTL,omitempty,string"`
	Granted int64    `json:"grantedTTL,omitempty,string"`
	Keys    [][]byte `json:"keys,omitempty"`
}

type leasesResponse struct {
	Header header    `json:"header"`
	Leases []leaseID `json:"leases,omitempty"`
}

type leaseID struct {
	ID int64 `json:"ID,string"`
}

type statusResponse struct {
	Header  header `json:"header"`
	Version string `json:"version"`
	Size    uint64 `json:"dbSize,omitempty,string"`
	Leader  uint64 `json:"leader,omitempty,string"`
	Index   uint64 `json:"raftIndex,omitempty,string"`
	Term    uint64 `json:"raftTerm,omitempty,string"`
	Applied uint64 `json:"raftAppliedIndex,omitempty,string"`
	InUse   uint64 `json:"dbSizeInUse,omitempty,string"`
}

type member struct {
	ID      uint64   `json:"ID,string"`
	Name    string   `json:"name,omitempty"`
	Peers   []string `json:"peerURLs,omitempty"`
	Clients []string `json:"clientURLs,omitempty"`
	Learner bool     `json:"isLearner,omitempty"`
}

type membersResponse struct {
	Header  header   `json:"header"`
	Members []member `json:"members,omitempty"`
}

type watchResponse struct {
	Header   header  `json:"header"`
	ID       int64   `json:"watch_id,omitempty,string"`
	Created  bool    `json:"created,omitempty"`
	Canceled bool    `json:"canceled,omitempty"`
	Compact  uint64  `json:"compact_revision,omitempty,string"`
	Reason   string  `json:"cancel_reason,omitempty"`
	Events   []event `json:"events,omitempty"`
}

type event struct {
	Type string    `json:"type,omitempty"`
	KV   *keyValue `json:"kv"`
	Prev *keyValue `json:"prev_kv,omitempty"`
}
