package command

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"
)

func with(c Command, o Options) Command {
	c.Options = &o
	return c
}

// TestGoldenIdentity fails when the canonical form of a command changes, for instance
// with the version of entries: a client that repeats a command across an upgrade would
// get an error, and replicas of both versions would differ. Commands that version 1 of
// the canonical form can't express need a new version of it; those here never do.
func TestGoldenIdentity(t *testing.T) {
	match, none := Condition{Indexes: []uint64{300, 1}}, Condition{Any: true}
	for _, tt := range []struct {
		name      string
		command   Command
		canonical string // hex
		identity  string // hex, the beginning; as written by the first version that had it
	}{
		{
			name:      "set",
			command:   with(set("key", "value", "k", ""), Options{IdempotencyKey: "id"}),
			canonical: "0101" + "01" + "02" + "036b6579" + "0576616c7565" + "016b" + "00",
			identity:  "b5b9e0c5cdabccd4",
		},
		{
			name:      "conditional set",
			command:   with(set("a", "1"), Options{IdempotencyKey: "id", Match: match, NoneMatch: none}),
			canonical: "0101" + "41" + "06" + "02ac0201" + "00" + "01" + "0161" + "0131",
			identity:  "e9c19194e7e2beef",
		},
		{
			name:      "remove",
			command:   with(remove("a", "bc"), Options{IdempotencyKey: "id"}),
			canonical: "0101" + "02" + "02" + "0161" + "026263",
			identity:  "1315864451702b03",
		},
		{
			name: "remove a prefix",
			command: with(Command{Kind: RemovePrefix, Pairs: remove("a").Pairs},
				Options{IdempotencyKey: "id", NoneMatch: none}),
			canonical: "0101" + "44" + "04" + "00" + "01" + "0161",
			identity:  "eb8fdf1a15e4dbe4",
		},
		{
			name: "transaction, in version 2",
			command: with(Command{Kind: Txn, Txn: &Transaction{If: []Compare{{Key: "a", What: Absent}}}},
				Options{IdempotencyKey: "id"}),
			canonical: "0201" + "0a" + "01" + "00" + "0161" + "00" + "00",
			identity:  "682456e450e55678",
		},
		{
			name:      "set with a lease, in version 3",
			command:   with(set("a", "1"), Options{IdempotencyKey: "id", Lease: Lease{TTL: time.Second, Key: "b"}}),
			canonical: "0301" + "41" + "18" + "e807" + "0162" + "01" + "0161" + "0131",
			identity:  "c2d5cba802e3c1a4",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := hex.EncodeToString(tt.command.appendCanonical(nil)); got != tt.canonical {
				t.Errorf("canonical form: got %s, want %s", got, tt.canonical)
			}
			identity := tt.command.Identity()
			if got := hex.EncodeToString(identity[:8]); got != tt.identity {
				t.Errorf("identity: got %s, want %s", got, tt.identity)
			}
			other := *tt.command.Options
			other.IdempotencyKey = "another"
			if with(tt.command, other).Identity() != identity {
				t.Error("the identity depends on the idempotency key")
			}
			if tt.command.IdempotencyKey != "id" {
				t.Errorf("Identity changed the command: its key is %q", tt.command.IdempotencyKey)
			}
		})
	}
}

const goldenRecord = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" +
	"ac02" + "03" + "02" + "ff7f"

func goldenIdentity() (identity [sha256.Size]byte) {
	for i := range identity {
		identity[i] = byte(i)
	}
	return identity
}

// TestGoldenTxnRecord is TestGoldenRecord for version 2, of a transaction.
func TestGoldenTxnRecord(t *testing.T) {
	identity := goldenIdentity()
	want := Result{Index: 300, Txn: &TxnResult{Held: true, Operations: []OperationResult{{}, {Found: true}}}}
	golden := string(identity[:]) + "\x00\x02" + "\xac\x02" + "\x01" + "\x02" + "\x00\x01"
	if got := want.Record(identity); got != golden {
		t.Errorf("got %x, want %x", got, golden)
	}
	if got, ok := ParseRecord(golden, identity); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %t, want %+v", got, ok, want)
	}
	for n := range golden {
		if got, ok := ParseRecord(golden[:n], identity); ok {
			t.Errorf("the first %d bytes are read as %+v", n, got)
		}
	}
	for _, bad := range []string{golden + "\x00", golden[:len(golden)-1] + "\x02", golden[:36] + "\x03" + golden[37:]} {
		if got, ok := ParseRecord(bad, identity); ok {
			t.Errorf("%x is read as %+v", bad, got)
		}
	}
}

// TestGoldenRecord fails when the form of idempotency records changes: those in
// snapshots and backups would become unreadable, and replicas of different versions
// would write different ones.
func TestGoldenRecord(t *testing.T) {
	want := Result{Index: 300, Removed: 3, Failed: 2, Current: 16383}
	if got := hex.EncodeToString([]byte(want.Record(goldenIdentity()))); got != goldenRecord {
		t.Errorf("got %s, want %s", got, goldenRecord)
	}
	record, err := hex.DecodeString(goldenRecord)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := ParseRecord(string(record), goldenIdentity()); !ok || got != want {
		t.Errorf("got %+v, %v, want %+v", got, ok, want)
	}
}

func TestRefusedRecords(t *testing.T) {
	identity := goldenIdentity()
	golden := Result{Index: 300, Removed: 3, Failed: 2, Current: 16383}.Record(identity)
	for n := range golden {
		if got, ok := ParseRecord(golden[:n], identity); ok {
			t.Errorf("first %d bytes: got %+v, want none", n, got)
		}
	}
	for _, tt := range []struct {
		name, record string
	}{
		{name: "another command's", record: "\xff" + golden[1:]},
		{name: "bytes after it", record: golden + "\x00"},
		{name: "no index", record: string(identity[:]) + "\x00\x03\x02\x01"},
		{name: "later version", record: string(identity[:]) + "\x00\x02\xac\x02\x03\x02\x01"},
		{name: "longer index", record: string(identity[:]) + "\xac\x82\x00\x03\x02\x01"},
		{name: "overflowing index", record: string(identity[:]) + strings.Repeat("\xff", 10) + "\x03\x02\x01"},
	} {
		if got, ok := ParseRecord(tt.record, identity); ok {
			t.Errorf("%s: got %+v, want none", tt.name, got)
		}
	}
}

// FuzzParseRecord: whatever is read is what Record writes.
func FuzzParseRecord(f *testing.F) {
	golden, err := hex.DecodeString(goldenRecord)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(golden[:sha256.Size])
	f.Add(append(bytes.Clone(golden[:sha256.Size]), laterRecord, 2, 1, 1))
	f.Add(append(bytes.Clone(golden[:sha256.Size]), laterRecord, recordV2, 1, 1, 2, 0, 1))
	f.Fuzz(func(t *testing.T, record []byte) {
		var identity [sha256.Size]byte
		copy(identity[:], record)
		r, ok := ParseRecord(string(record), identity)
		if !ok {
			if r != (Result{}) {
				t.Fatalf("got %+v of a record that was refused, want none", r)
			}
			return
		}
		if r.Index == 0 || r.Record(identity) != string(record) {
			t.Fatalf("got %+v of %x, written as %x", r, record, r.Record(identity))
		}
	})
}
