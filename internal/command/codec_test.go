package command

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

func set(pairs ...string) Command {
	c := Command{Kind: Set}
	for i := 0; i < len(pairs); i += 2 {
		c.Pairs = append(c.Pairs, Pair{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return c
}

func remove(keys ...string) Command {
	c := Command{Kind: Remove}
	for _, k := range keys {
		c.Pairs = append(c.Pairs, Pair{Key: k})
	}
	return c
}

// optioned is a batch with every combination of options.
var optioned = func() (batch []Command) {
	any, some := Condition{Any: true}, Condition{Indexes: []uint64{300, 0, 1<<64 - 1}}
	for _, o := range []Options{
		{IdempotencyKey: "8e03"}, {Match: any}, {Match: some}, {NoneMatch: any}, {NoneMatch: some},
		{IdempotencyKey: "k", Match: some}, {IdempotencyKey: "k", NoneMatch: any}, {Match: some, NoneMatch: some},
		{IdempotencyKey: strings.Repeat("k", MaxIdempotencyKey), Match: any, NoneMatch: some},
	} {
		c := set("a", "1", "b", "2")
		c.Options = &o
		d := remove("a")
		d.Options = &o
		batch = append(batch, c, d)
	}
	return batch
}()

func TestRoundTrip(t *testing.T) {
	many := make([]Command, 300)
	for i := range many {
		many[i] = set("k", strings.Repeat("v", i))
	}
	for _, tt := range []struct {
		name  string
		batch []Command
	}{
		{name: "set", batch: []Command{set("a", "1")}},
		{name: "set to nothing", batch: []Command{set("a", "")}},
		{name: "set several", batch: []Command{set("a", "1", "b", "2", "a", "3")}},
		{name: "remove", batch: []Command{remove("a")}},
		{name: "remove several", batch: []Command{remove("a", "b", "a")}},
		{name: "batch", batch: []Command{set("a", "1"), remove("a", "b"), set("c", "3", "d", "")}},
		{name: "any bytes", batch: []Command{set("\x00\xff\n", "\x00\xfe\x01")}},
		{name: "largest", batch: []Command{set(strings.Repeat("k", MaxKey), strings.Repeat("v", MaxValue))}},
		{
			name:  "beyond the limits",
			batch: []Command{set(strings.Repeat("k", MaxKey+1), strings.Repeat("v", MaxValue+1))},
		},
		{name: "many", batch: many},
		{name: "remove a prefix", batch: []Command{{Kind: RemovePrefix, Pairs: []Pair{{Key: "a"}}}}},
		{name: "options", batch: optioned},
		{name: "transaction", batch: []Command{
			transaction, {Kind: Txn, Txn: &Transaction{}}, set("a", "1"), {Kind: RaiseFormat, To: 1 << 40},
		}},
		{name: "leases", batch: leased},
		{name: "ranges", batch: ranged},
		{name: "restore", batch: []Command{{Kind: Unstage}, {Kind: Stage, Pairs: set("a", "1", "b", "").Pairs},
			{Kind: StageRecords, Pairs: set("key", "record").Pairs}, {Kind: Restore, Items: 1 << 40, Records: 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			prefix := []byte("before")
			entry, ok := bytes.CutPrefix(Append(prefix, tt.batch...), prefix)
			if !ok {
				t.Fatal("Append changed what was in dst")
			}
			got, err := Decode(entry)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.batch) {
				t.Errorf("got %.200v, want %.200v", got, tt.batch)
			}
		})
	}
}

func TestRemoveHasNoValue(t *testing.T) {
	c := remove("a")
	c.Pairs[0].Value = []byte("ignored")
	got, err := Decode(Append(nil, c))
	if want := []Command{remove("a")}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestNoOptions(t *testing.T) {
	c := set("a", "1")
	want := Append(nil, c)
	c.Options = &Options{}
	if got := Append(nil, c); !bytes.Equal(got, want) {
		t.Errorf("empty options: got %x, want %x", got, want)
	}
	restore := Command{Kind: Restore, Options: &Options{IdempotencyKey: "k"}}
	if got, err := Decode(Append(nil, restore)); err != nil || got[0].Options != nil {
		t.Errorf("options of a restore: got %v, %v, want none", got, err)
	}
}

// TestGolden fails when the encoding changes: logs on disk would become
// unreadable. A change needs a new version.
func TestGolden(t *testing.T) {
	conditional := set("a", "1")
	conditional.Options = &Options{
		IdempotencyKey: "id",
		Match:          Condition{Indexes: []uint64{300}},
		NoneMatch:      Condition{Any: true},
	}
	batch := []Command{
		set("key", "value", "k", ""), remove("a", "bc"), {Kind: Noop}, conditional,
		{Kind: RemovePrefix, Pairs: []Pair{{Key: "a"}}, Options: &Options{IdempotencyKey: "id"}},
		{Kind: Unstage}, {Kind: Stage, Pairs: set("a", "1").Pairs}, {Kind: StageRecords, Pairs: set("a", "1").Pairs},
		{Kind: Restore, Items: 300, Records: 2},
	}
	const want = "01" + "09" +
		"01" + "02" + "036b6579" + "0576616c7565" + "016b" + "00" +
		"02" + "02" + "0161" + "026263" +
		"03" + "00" +
		"41" + "07" + "026964" + "01ac02" + "00" + "01" + "0161" + "0131" +
		"44" + "01" + "026964" + "01" + "0161" +
		"05" + "00" +
		"06" + "01" + "0161" + "0131" +
		"07" + "01" + "0161" + "0131" +
		"08" + "ac02" + "02"
	if got := hex.EncodeToString(Append(nil, batch...)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	entry, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(entry); err != nil || !reflect.DeepEqual(got, batch) {
		t.Errorf("got %v, %v, want %v", got, err, batch)
	}
}

// TestGoldenV2 is TestGolden for the entries of cluster format 2.
func TestGoldenV2(t *testing.T) {
	batch := []Command{{Kind: RaiseFormat, To: 2}, transaction, with(transaction, Options{IdempotencyKey: "id"})}
	const body = "04" +
		"00" + "0161" +
		"01" + "0162" +
		"02" + "0163" + "ac02" +
		"03" + "0164" + "0131" +
		"03" +
		"01" + "0161" + "0576616c7565" +
		"02" + "0162" +
		"03" + "0163" +
		"01" +
		"03" + "0161"
	const want = "02" + "03" + "09" + "02" + "0a" + body + "4a" + "01" + "026964" + body
	if got := hex.EncodeToString(Append(nil, batch...)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	entry, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(entry); err != nil || !reflect.DeepEqual(got, batch) {
		t.Errorf("got %v, %v, want %v", got, err, batch)
	}
}

// transaction has every condition and every operation.
var transaction = Command{Kind: Txn, Txn: &Transaction{
	If: []Compare{
		{Key: "a", What: Absent}, {Key: "b", What: Exists},
		{Key: "c", What: HasIndex, Index: 300}, {Key: "d", What: HasValue, Value: []byte("1")},
	},
	Then: []Operation{
		{Op: OpSet, Key: "a", Value: []byte("value")}, {Op: OpRemove, Key: "b"}, {Op: OpGet, Key: "c"},
	},
	Else: []Operation{{Op: OpGet, Key: "a"}},
}}

// leased has every form of a lease.
var leased = []Command{
	with(set("a", "1"), Options{Lease: Lease{TTL: 30 * time.Second}}),
	with(set("b", "2"), Options{IdempotencyKey: "id", Lease: Lease{TTL: time.Second, Key: "a"}}),
	with(set("c", ""), Options{Lease: Lease{Key: "a"}}),
	{Kind: Txn, Txn: &Transaction{Then: []Operation{
		{Op: OpSet, Key: "d", Value: []byte("4"), Lease: Lease{TTL: time.Second}},
		{Op: OpSet, Key: "e", Value: []byte{}, Lease: Lease{Key: "d"}},
	}}},
	{Kind: Expire, Txn: &Transaction{If: []Compare{{Key: "a", What: HasIndex, Index: 300}}}},
	{Kind: StageLeases, Pairs: []Pair{{Key: "b", Value: AppendLease(nil, Lease{TTL: time.Second, Key: "a"})}}},
}

// TestGoldenV3 is TestGolden for the entries of cluster format 3.
func TestGoldenV3(t *testing.T) {
	const want = "03" + "06" +
		"41" + "08" + "b0ea01" + "01" + "0161" + "0131" +
		"41" + "19" + "026964" + "e807" + "0161" + "01" + "0162" + "0132" +
		"41" + "10" + "0161" + "01" + "0163" + "00" +
		"0a" + "00" + "02" + "04" + "0164" + "0134" + "e807" + "00" + "04" + "0165" + "00" + "00" + "0164" + "00" +
		"0b" + "01" + "02" + "0161" + "ac02" + "00" + "00" +
		"0c" + "01" + "0162" + "03" + "e80761"
	if got := hex.EncodeToString(Append(nil, leased...)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	entry, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(entry); err != nil || !reflect.DeepEqual(got, leased) {
		t.Errorf("got %v, %v, want %v", got, err, leased)
	}
}

// ranged has all that a transaction may have since cluster format 4.
var ranged = []Command{
	{Kind: Txn, Txn: &Transaction{If: []Compare{
		{Key: "a", What: Related, Of: OfIndex, Is: Equal, Index: 300},
		{Key: "b", What: Related, Of: OfCreated, Is: NotEqual},
		{Key: "c", What: Related, Of: OfVersion, Is: Greater, Index: 2},
		{Key: "d", What: Related, Of: OfValue, Is: Less, Value: []byte("1")},
		{Key: "e", What: Related, Of: OfLease, Is: Equal, Value: []byte{}},
	}}},
	{Kind: Txn, Txn: &Transaction{
		Then: []Operation{{Op: OpView, Key: "a", End: "b"}, {Op: OpRemoveRange, Key: "a"}},
		Else: []Operation{{Op: OpRemoveRange, Key: "a", End: "bc"}},
	}},
	{Kind: Txn, Txn: &Transaction{Then: []Operation{{Op: OpTouch, Key: "a"}}}},
}

// TestGoldenV4 is TestGolden for the entries of cluster format 4.
func TestGoldenV4(t *testing.T) {
	const want = "04" + "03" +
		"0a" + "05" +
		"04" + "0161" + "01" + "01" + "ac02" +
		"04" + "0162" + "02" + "02" + "00" +
		"04" + "0163" + "03" + "03" + "02" +
		"04" + "0164" + "04" + "04" + "0131" +
		"04" + "0165" + "05" + "01" + "00" +
		"00" + "00" +
		"0a" + "00" + "02" + "05" + "0161" + "0162" + "06" + "0161" + "00" + "01" + "06" + "0161" + "026263" +
		"0a" + "00" + "01" + "07" + "0161" + "00"
	if got := hex.EncodeToString(Append(nil, ranged...)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	entry, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(entry); err != nil || !reflect.DeepEqual(got, ranged) {
		t.Errorf("got %v, %v, want %v", got, err, ranged)
	}
	for n := range entry {
		if got, err := Decode(entry[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("first %d bytes: got %v, %v, want %v", n, got, err, ErrMalformed)
		}
	}
}

// TestRelated: every relation of every property, and what a key that does not exist has of them.
func TestRelated(t *testing.T) {
	there := Found{Exists: true, Value: "m", Index: 7, Created: 5, Version: 3, Lease: "lease"}
	relations := func(less, equal, greater bool) map[Relation]bool {
		return map[Relation]bool{Less: less, Equal: equal, Greater: greater, NotEqual: less || greater}
	}
	for _, tt := range []struct {
		name  string
		found Found
		of    Property
		index uint64
		value string
		want  map[Relation]bool
	}{
		{name: "index", found: there, of: OfIndex, index: 7, want: relations(false, true, false)},
		{name: "lower index", found: there, of: OfIndex, index: 8, want: relations(true, false, false)},
		{name: "higher index", found: there, of: OfIndex, index: 6, want: relations(false, false, true)},
		{name: "created", found: there, of: OfCreated, index: 5, want: relations(false, true, false)},
		{name: "created after", found: there, of: OfCreated, index: 0, want: relations(false, false, true)},
		{name: "version", found: there, of: OfVersion, index: 3, want: relations(false, true, false)},
		{name: "lower version", found: there, of: OfVersion, index: 4, want: relations(true, false, false)},
		{name: "value", found: there, of: OfValue, value: "m", want: relations(false, true, false)},
		{name: "value before", found: there, of: OfValue, value: "n", want: relations(true, false, false)},
		{name: "value behind", found: there, of: OfValue, value: "a", want: relations(false, false, true)},
		{name: "lease", found: there, of: OfLease, value: "lease", want: relations(false, true, false)},
		{name: "other lease", found: there, of: OfLease, value: "lease2", want: relations(true, false, false)},
		{name: "not there, index", of: OfIndex, want: relations(false, true, false)},
		{name: "not there, created", of: OfCreated, index: 1, want: relations(true, false, false)},
		{name: "not there, version", of: OfVersion, want: relations(false, true, false)},
		{name: "not there, lease", of: OfLease, want: relations(false, true, false)},
		{name: "not there, value", of: OfValue, want: relations(false, false, false)},
	} {
		for is, want := range tt.want {
			c := Compare{What: Related, Of: tt.of, Is: is, Index: tt.index, Value: []byte(tt.value)}
			if is == NotEqual && !tt.found.Exists && tt.of == OfValue {
				want = false
			}
			if got := c.Holds(tt.found); got != want {
				t.Errorf("%s, relation %d: got %t, want %t", tt.name, is, got, want)
			}
		}
	}
}

func TestRangePrefix(t *testing.T) {
	for _, tt := range []struct{ from, end, want string }{
		{from: "k", end: "k\x00", want: "k"},
		{from: "app/", end: "app0", want: "app/"},
		{from: "app/a", end: "app0", want: "app/"},
		{from: "app/a", end: "app/c", want: "app/"},
		{from: "a", end: "c", want: ""},
		{from: "ab", end: "b", want: "a"},
		{from: "a", end: "", want: ""},
		{from: "\xff", end: "", want: ""},
		{from: "a", end: "a", want: "a"},
		{from: "ab\x00", end: "ab\x01", want: "ab\x00"},
	} {
		if got := RangePrefix(tt.from, tt.end); got != tt.want {
			t.Errorf("from %q to %q: got %q, want %q", tt.from, tt.end, got, tt.want)
		}
	}
}

// TestFormat: the cluster format that a command needs is what its entry's version gives.
func TestFormat(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command Command
		want    int
	}{
		{name: "set", command: set("a", "1"), want: 0},
		{name: "remove", command: remove("a"), want: 0},
		{name: "no-op", command: Command{Kind: Noop}, want: 0},
		{name: "conditional set", command: optioned[0], want: 1},
		{name: "remove a prefix", command: Command{Kind: RemovePrefix, Pairs: remove("a").Pairs}, want: 1},
		{name: "restore", command: Command{Kind: Restore}, want: 1},
		{name: "raise the format", command: Command{Kind: RaiseFormat, To: 2}, want: 2},
		{name: "transaction", command: transaction, want: 2},
		{name: "set with a TTL", command: leased[0], want: 3},
		{name: "transaction with a lease", command: leased[3], want: 3},
		{name: "expiry", command: leased[4], want: 3},
		{name: "leases of a backup", command: leased[5], want: 3},
		{name: "transaction with a relation", command: ranged[0], want: 4},
		{name: "transaction with a range", command: ranged[1], want: 4},
		{name: "transaction that touches", command: ranged[2], want: 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.command.Format(); got != tt.want || got > Format {
				t.Errorf("got %d, want %d", got, tt.want)
			}
			entry := Append(nil, set("a", "1"), tt.command)
			if got, want := EntryFormat(entry), max(1, tt.want); got != want {
				t.Errorf("of the entry: got %d, want %d", got, want)
			}
		})
	}
	if got := EntryFormat(nil); got != 0 {
		t.Errorf("of no bytes: got %d, want 0", got)
	}
}

func TestMalformed(t *testing.T) {
	const huge = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" // 1<<64 - 1
	for _, tt := range []struct {
		name, entry string
		want        error
		message     string
	}{
		{name: "empty", want: ErrMalformed, message: "ends before version"},
		{name: "version 0", entry: "\x00\x01\x02\x01\x01a", want: ErrVersion, message: "0, want 1"},
		{name: "version 5", entry: "\x05\x01\x02\x01\x01a", want: ErrVersion, message: "5, want 1 to 4"},
		{
			name:    "version 3 of what needs version 4",
			entry:   "\x03\x01\x0a\x00\x01\x07\x01a\x00",
			want:    ErrMalformed,
			message: "at byte 0: version 3, but its commands are those of 4",
		},
		{
			name:    "unknown property",
			entry:   "\x04\x01\x0a\x01\x04\x01a\x06\x01\x00\x00\x00",
			want:    ErrMalformed,
			message: "unknown property 6 or relation 1",
		},
		{
			name:    "unknown relation",
			entry:   "\x04\x01\x0a\x01\x04\x01a\x01\x05\x00\x00\x00",
			want:    ErrMalformed,
			message: "unknown property 1 or relation 5",
		},
		{
			name:    "range without an end",
			entry:   "\x04\x01\x0a\x00\x01\x06\x01a",
			want:    ErrMalformed,
			message: "ends in length of end",
		},
		{
			name:    "version 2 of what needs version 3",
			entry:   "\x02\x01\x41\x08\xe8\x07\x01\x01a\x00",
			want:    ErrMalformed,
			message: "at byte 0: version 2, but its commands are those of 3",
		},
		{
			name:    "lease of a remove",
			entry:   "\x03\x01\x42\x08\xe8\x07\x01\x01a",
			want:    ErrMalformed,
			message: "a lease that only a set can have",
		},
		{name: "TTL of 0", entry: "\x03\x01\x41\x08\x00\x01\x01a\x00", want: ErrMalformed, message: "TTL"},
		{name: "huge TTL", entry: "\x03\x01\x41\x08" + huge + "\x01\x01a\x00", want: ErrMalformed, message: "TTL"},
		{
			name:    "lease without a key",
			entry:   "\x03\x01\x41\x10\x00\x01\x01a\x00",
			want:    ErrMalformed,
			message: "length of the key of the lease is 0",
		},
		{
			name:    "operation with no lease",
			entry:   "\x03\x01\x0a\x00\x01\x04\x01a\x00\x00\x00\x00",
			want:    ErrMalformed,
			message: "no lease",
		},
		{
			name:    "expiry by another condition",
			entry:   "\x03\x01\x0b\x01\x01\x01a\x00\x00",
			want:    ErrMalformed,
			message: "conditions or operations that an expiry can't have",
		},
		{
			name:    "expiry of nothing",
			entry:   "\x03\x01\x0b\x00\x00\x00",
			want:    ErrMalformed,
			message: "conditions or operations that an expiry can't have",
		},
		{name: "staged lease that is none", entry: "\x03\x01\x0c\x01\x01a\x01\x00", want: ErrMalformed, message: "no lease"},
		{
			name:    "version 2 of what has version 1",
			entry:   "\x02\x01\x02\x01\x01a",
			want:    ErrMalformed,
			message: "at byte 0: version 2, but its commands are those of 1",
		},
		{
			name:    "version 1 of what needs version 2",
			entry:   "\x01\x01\x09\x02",
			want:    ErrMalformed,
			message: "at byte 0: version 1, but its commands are those of 2",
		},
		{name: "format 1", entry: "\x02\x01\x09\x01", want: ErrMalformed, message: "cluster format is 1"},
		{name: "no format", entry: "\x02\x01\x09", want: ErrMalformed, message: "is 1, 1 bytes are left"},
		{
			name:    "format with options",
			entry:   "\x02\x01\x49\x01\x01k\x02",
			want:    ErrMalformed,
			message: "at byte 2: unknown kind 73",
		},
		{
			name:    "transaction with a condition among its options",
			entry:   "\x02\x01\x4a\x03\x01k\x00\x00\x00\x00",
			want:    ErrMalformed,
			message: "options that a transaction can't have",
		},
		{
			name:    "unknown condition",
			entry:   "\x02\x01\x0a\x01\x05\x01a\x00\x00",
			want:    ErrMalformed,
			message: "at byte 4: unknown condition 5",
		},
		{
			name:    "unknown operation",
			entry:   "\x02\x01\x0a\x00\x01\x08\x01a\x00",
			want:    ErrMalformed,
			message: "at byte 5: unknown operation 8",
		},
		{
			name:    "huge number of operations",
			entry:   "\x02\x01\x0a\x00" + huge + "\x01\x01a\x00",
			want:    ErrMalformed,
			message: "bytes are left",
		},
		{
			name:    "operation without a key",
			entry:   "\x02\x01\x0a\x00\x01\x03\x00\x00",
			want:    ErrMalformed,
			message: "length of key is 0",
		},
		{
			name:    "no number of commands",
			entry:   "\x01",
			want:    ErrMalformed,
			message: "ends in number of commands",
		},
		{name: "no commands", entry: "\x01\x00", want: ErrMalformed, message: "number of commands is 0"},
		{
			name:    "too many commands",
			entry:   "\x01\x03\x02\x01\x01a",
			want:    ErrMalformed,
			message: "number of commands is 3, 4 bytes are left",
		},
		{
			name:    "huge number of commands",
			entry:   "\x01" + huge + "\x02\x01\x01a",
			want:    ErrMalformed,
			message: "bytes are left",
		},
		{
			name:    "overflowing number of commands",
			entry:   "\x01" + huge[:9] + "\x02\x02\x01\x01a",
			want:    ErrMalformed,
			message: "too large",
		},
		{
			name:    "longer number of commands",
			entry:   "\x01\x81\x00\x02\x01\x01a",
			want:    ErrMalformed,
			message: "at byte 1: number of commands is not in its shortest form",
		},
		{
			name:    "one command of two",
			entry:   "\x01\x02\x02\x01\x05abcde",
			want:    ErrMalformed,
			message: "ends before kind",
		},
		{
			name:    "kind 0",
			entry:   "\x01\x01\x00\x01\x01a",
			want:    ErrMalformed,
			message: "at byte 2: unknown kind 0",
		},
		{name: "kind 13", entry: "\x01\x01\x0d\x01\x01a", want: ErrMalformed, message: "unknown kind 13"},
		{
			name:    "no-op with pairs",
			entry:   "\x01\x01\x03\x01\x01a",
			want:    ErrMalformed,
			message: "at byte 3: pairs of a kind that has none",
		},
		{
			name:    "no-op with options",
			entry:   "\x01\x01\x43\x01\x01k\x00",
			want:    ErrMalformed,
			message: "at byte 2: unknown kind 67",
		},
		{
			name:    "no options",
			entry:   "\x01\x01\x42\x00\x01\x01a",
			want:    ErrMalformed,
			message: "at byte 3: options are 0",
		},
		{
			name:    "unknown options",
			entry:   "\x01\x01\x42\x20\x01\x01a",
			want:    ErrMalformed,
			message: "at byte 3: options are 32",
		},
		{
			name:    "empty idempotency key",
			entry:   "\x01\x01\x42\x01\x00\x01\x01a",
			want:    ErrMalformed,
			message: "length of idempotency key is 0",
		},
		{
			name:    "too many indexes",
			entry:   "\x01\x01\x42\x02\x06\x01\x01\x01\x01a",
			want:    ErrMalformed,
			message: "number of indexes is 6, 5 bytes are left",
		},
		{
			name:    "longer index",
			entry:   "\x01\x01\x42\x02\x01\x81\x00\x01\x01a",
			want:    ErrMalformed,
			message: "index is not in its shortest form",
		},
		{
			name:    "no records",
			entry:   "\x01\x01\x08\x01",
			want:    ErrMalformed,
			message: "ends in number of records",
		},
		{name: "no pairs", entry: "\x01\x01\x02\x00\x01a", want: ErrMalformed, message: "number of pairs is 0"},
		{
			name:    "too many pairs",
			entry:   "\x01\x01\x02\x02\x01a",
			want:    ErrMalformed,
			message: "number of pairs is 2",
		},
		{
			name:    "too many pairs to set",
			entry:   "\x01\x01\x01\x02\x01a\x00\x01b",
			want:    ErrMalformed,
			message: "number of pairs is 2",
		},
		{
			name:    "huge number of pairs",
			entry:   "\x01\x01\x02" + huge + "\x01a",
			want:    ErrMalformed,
			message: "bytes are left",
		},
		{
			name:    "longer number of pairs",
			entry:   "\x01\x01\x02\x81\x00\x01a",
			want:    ErrMalformed,
			message: "shortest form",
		},
		{name: "empty key", entry: "\x01\x01\x02\x01\x00a", want: ErrMalformed, message: "length of key is 0"},
		{
			name:    "longer length of key",
			entry:   "\x01\x01\x02\x01\x81\x00a",
			want:    ErrMalformed,
			message: "shortest form",
		},
		{
			name:    "short key",
			entry:   "\x01\x01\x02\x01\x02a",
			want:    ErrMalformed,
			message: "length of key is 2, 1 bytes are left",
		},
		{
			name:    "huge key",
			entry:   "\x01\x01\x02\x01" + huge + "a",
			want:    ErrMalformed,
			message: "bytes are left",
		},
		{
			name:    "no value",
			entry:   "\x01\x01\x01\x01\x02aa",
			want:    ErrMalformed,
			message: "ends in length of value",
		},
		{
			name:    "short value",
			entry:   "\x01\x01\x01\x01\x01a\x02v",
			want:    ErrMalformed,
			message: "length of value is 2, 1 bytes are left",
		},
		{
			name:    "longer length of value",
			entry:   "\x01\x01\x01\x01\x01a\x80\x00",
			want:    ErrMalformed,
			message: "shortest form",
		},
		{
			name:    "trailing byte",
			entry:   "\x01\x01\x02\x01\x01a\x00",
			want:    ErrMalformed,
			message: "1 bytes after the last command",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode([]byte(tt.entry))
			if got != nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("got %v, %v, want %v: … %s", got, err, tt.want, tt.message)
			}
			if got := Check([]byte(tt.entry)); fmt.Sprint(got) != fmt.Sprint(err) {
				t.Errorf("Check: got %v, want %v", got, err)
			}
		})
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	entry := Append(nil, append(optioned, set("key", "value", "k", ""), Command{Kind: Restore}, transaction,
		Command{Kind: RaiseFormat, To: 2}, remove("a", "bc"))...)
	for n := range entry {
		if got, err := Decode(entry[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("first %d bytes: got %v, %v, want %v", n, got, err, ErrMalformed)
		}
	}
}

func TestWhoOwnsTheBytes(t *testing.T) {
	entry := Append(nil, set("a", "1", "b", "2"))
	batch, err := Decode(entry)
	if err != nil {
		t.Fatal(err)
	}
	pairs := batch[0].Pairs
	if _ = append(pairs[0].Value, "overwritten"...); string(pairs[1].Value) != "2" {
		t.Errorf("after an append to another value got %q, want 2", pairs[1].Value)
	}
	clear(entry)
	if got, want := pairs[0].Key, "a"; got != want {
		t.Errorf("key after the entry has changed: got %q, want %q", got, want)
	}
	if got, want := string(pairs[0].Value), "\x00"; got != want {
		t.Errorf("value after the entry has changed: got %q, want %q", got, want)
	}
}

func TestDecodeAllocatesNoMoreThanTheEntryIsWorth(t *testing.T) {
	// As many pairs as the entry has room for, the first of them already wrong.
	entry := append([]byte("\x01\x01\x02\xff\x3f\x00"), make([]byte, 1<<14)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Decode(entry)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v, want %v", err, ErrMalformed)
	}
	if got, want := after.TotalAlloc-before.TotalAlloc, uint64(32*len(entry)); got > want {
		t.Errorf("allocated %d bytes, want %d at most", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	for _, batch := range [][]Command{
		{set("a", "1")},
		{remove("a")},
		{set("key", "value", "k", ""), remove("a", "bc")},
		{set("k", strings.Repeat("v", 200))},
		optioned,
		{{Kind: Unstage}, {Kind: Restore, Items: 300}},
		leased,
		ranged,
	} {
		f.Add(Append(nil, batch...))
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		batch, err := Decode(entry)
		if got := Check(entry); fmt.Sprint(got) != fmt.Sprint(err) {
			t.Fatalf("Check: got %v, want %v", got, err)
		}
		if err != nil {
			if !errors.Is(err, ErrVersion) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %v, want one of the documented errors", err)
			}
			return
		}
		again := Append(nil, batch...)
		if !bytes.Equal(again, entry) {
			t.Fatalf("got %x, want %x", again, entry)
		}
		if got, err := Decode(again); err != nil || !reflect.DeepEqual(got, batch) {
			t.Fatalf("got %v, %v, want %v", got, err, batch)
		}
	})
}

func benchmarkBatch() []Command {
	batch := make([]Command, 64)
	for i := range batch {
		batch[i] = set("a key of twenty byte", strings.Repeat("v", 100))
	}
	return batch
}

func BenchmarkAppend(b *testing.B) {
	batch := benchmarkBatch()
	dst := Append(nil, batch...)
	b.SetBytes(int64(len(dst)))
	b.ReportAllocs()
	for b.Loop() {
		dst = Append(dst[:0], batch...)
	}
}

func BenchmarkDecode(b *testing.B) {
	entry := Append(nil, benchmarkBatch()...)
	b.SetBytes(int64(len(entry)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(entry); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	entry := Append(nil, benchmarkBatch()...)
	b.SetBytes(int64(len(entry)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(entry); err != nil {
			b.Fatal(err)
		}
	}
}
