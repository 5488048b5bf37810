package command

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The first byte of an entry is its version. Version 1 is
//
//	entry     = 0x01, uvarint number of commands (>= 1), commands
//	command   = kind byte, body
//	body      = of Set, Remove, RemovePrefix, Stage, StageRecords:
//	                uvarint number of pairs (>= 1), pairs
//	            of Noop, Unstage: 0x00
//	            of Restore: uvarint items, uvarint records
//	pair      = uvarint length of key (>= 1), key
//	            and, for Set, Stage and StageRecords, uvarint length of value, value
//
// A Set, Remove or RemovePrefix with a condition or an idempotency key has 0x40
// added to its kind byte, and before its body
//
//	options   = one byte, the sum of 1: key, 2: match, 4: none-match (>= 1),
//	            then those of the three that it names, in this order
//	key       = uvarint length (>= 1), idempotency key
//	condition = uvarint number of indexes (0: any), uvarint indexes
//
// with uvarints as in encoding/binary, in their shortest form. A batch has
// exactly one encoding, and Decode refuses all other bytes.
//
// Version 2, which needs cluster format 2, differs in its first byte, 0x02, and has two
// more kinds. An entry without a command of these is one of version 1.
//
//	body      = of RaiseFormat: uvarint cluster format (>= 2)
//	            of Txn: uvarint number of conditions, conditions,
//	                then twice: uvarint number of operations, operations
//	condition = what byte, uvarint length of key (>= 1), key
//	            and, for HasIndex, uvarint index; for HasValue, uvarint length of value, value
//	operation = op byte, uvarint length of key (>= 1), key
//	            and, for OpSet, uvarint length of value, value
//
// Of the options, a Txn may have the idempotency key only. Version 3, which needs cluster
// format 3, has these besides:
//
//	options   = of a Set, also 8: TTL, 16: key of the lease, behind the others
//	TTL       = uvarint milliseconds (>= 1)
//	key       = uvarint length (>= 1), key
//	operation = 0x04 for an OpSet with a lease: as OpSet, then the lease
//	lease     = uvarint milliseconds, uvarint length of key, key; not both are 0
//	body      = of Expire: that of a Txn without operations, whose conditions, 1 or more,
//	                are all HasIndex
//	            of StageLeases: that of a Stage, with leases as values
//
// Version 4, which needs cluster format 4, has these in a Txn besides:
//
//	condition = 0x04 for Related, uvarint length of key (>= 1), key, property byte, relation byte,
//	                then, for OfValue and OfLease, uvarint length of text, text; for others, uvarint number
//	operation = op byte of OpView or OpRemoveRange, uvarint length of key (>= 1), key, uvarint length of end, end
//	            op byte of OpTouch, uvarint length of key (>= 1), key

var (
	// ErrVersion is returned when an entry has a version that this program does
	// not know: most likely a newer one wrote it.
	ErrVersion = errors.New("unknown version of log entry")

	// ErrMalformed is returned when an entry is not what Append writes.
	ErrMalformed = errors.New("malformed log entry")
)

// The versions of entries. Append writes the first that has a form for all its commands.
const (
	entryV1 = 1
	entryV2 = 2
	entryV3 = 3
	entryV4 = 4
)

// withOptions is added to the kind byte of a command that has options. The others are
// the bits of the byte after it, one for each option that the command has.
const (
	withOptions = 0x40

	hasKey       = 1
	hasMatch     = 2
	hasNoneMatch = 4
	hasTTL       = 8
	hasLeaseKey  = 16
)

// maxTTL is in milliseconds, a hundred years: beyond it a time.Duration may overflow.
const maxTTL = 100 * 365 * 24 * 3600 * 1000

// opSetLeased is the op byte of an OpSet with a lease.
const opSetLeased = 4

// The smallest encodings, by which a count is checked before memory is
// allocated for it.
const (
	minCommand = 2
	minSet     = 3
	minRemove  = 2
	minCompare = 3
	minOp      = 3
)

func (k Kind) hasPairs() bool {
	switch k {
	case Set, Remove, RemovePrefix, Stage, StageRecords, StageLeases:
		return true
	}
	return false
}

func (k Kind) hasValues() bool {
	return k == Set || k == Stage || k == StageRecords || k == StageLeases
}

func (o Op) hasEnd() bool { return o == OpView || o == OpRemoveRange }

func (k Kind) hasOptions() bool {
	return k == Set || k == Remove || k == RemovePrefix || k == Txn
}

// Append appends the encoding of one entry to dst, which it returns extended.
// It keeps none of its arguments. The batch must have a command, each command that
// has pairs one at least and each pair a key, and each Kind must be one of the
// above: Decode refuses the entry otherwise. What a kind does not have, as the
// value of a pair to remove, is ignored.
func Append(dst []byte, batch ...Command) []byte {
	version := byte(entryV1)
	for i := range batch {
		version = max(version, byte(batch[i].Format()))
	}
	dst = append(dst, version)
	dst = binary.AppendUvarint(dst, uint64(len(batch)))
	for i := range batch {
		dst = batch[i].append(dst)
	}
	return dst
}

// append appends the encoding of c, which is the same in every version of entries that
// has a form for it. Its bytes must never change, as the canonical forms are made of them,
// too.
func (c *Command) append(dst []byte) []byte {
	if options := c.options(); options != 0 {
		dst = append(dst, byte(c.Kind)|withOptions, options)
		if options&hasKey != 0 {
			dst = appendBytes(dst, c.IdempotencyKey)
		}
		if options&hasMatch != 0 {
			dst = c.Match.append(dst)
		}
		if options&hasNoneMatch != 0 {
			dst = c.NoneMatch.append(dst)
		}
		if options&hasTTL != 0 {
			dst = binary.AppendUvarint(dst, milliseconds(c.Options.Lease.TTL))
		}
		if options&hasLeaseKey != 0 {
			dst = appendBytes(dst, c.Options.Lease.Key)
		}
	} else {
		dst = append(dst, byte(c.Kind))
	}
	switch {
	case c.Kind == Restore:
		dst = binary.AppendUvarint(dst, c.Items)
		return binary.AppendUvarint(dst, c.Records)
	case c.Kind == RaiseFormat:
		return binary.AppendUvarint(dst, c.To)
	case c.Kind == Txn, c.Kind == Expire:
		return c.Txn.append(dst)
	case !c.Kind.hasPairs():
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.Pairs)))
	for _, p := range c.Pairs {
		dst = appendBytes(dst, p.Key)
		if c.Kind.hasValues() {
			dst = appendBytes(dst, p.Value)
		}
	}
	return dst
}

func appendBytes[T string | []byte](dst []byte, b T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func (t *Transaction) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(t.If)))
	for _, c := range t.If {
		dst = appendBytes(append(dst, byte(c.What)), c.Key)
		switch c.What {
		case HasIndex:
			dst = binary.AppendUvarint(dst, c.Index)
		case HasValue:
			dst = appendBytes(dst, c.Value)
		case Related:
			if dst = append(dst, byte(c.Of), byte(c.Is)); c.Of.isText() {
				dst = appendBytes(dst, c.Value)
			} else {
				dst = binary.AppendUvarint(dst, c.Index)
			}
		}
	}
	for _, branch := range [][]Operation{t.Then, t.Else} {
		dst = binary.AppendUvarint(dst, uint64(len(branch)))
		for _, o := range branch {
			op := byte(o.Op)
			if o.Op == OpSet && o.Lease != (Lease{}) {
				op = opSetLeased
			}
			dst = appendBytes(append(dst, op), o.Key)
			if o.Op == OpSet {
				dst = appendBytes(dst, o.Value)
			}
			if o.Op.hasEnd() {
				dst = appendBytes(dst, o.End)
			}
			if op == opSetLeased {
				dst = binary.AppendUvarint(dst, milliseconds(o.Lease.TTL))
				dst = appendBytes(dst, o.Lease.Key)
			}
		}
	}
	return dst
}

func milliseconds(ttl time.Duration) uint64 { return uint64(ttl / time.Millisecond) }

// AppendLease appends a lease, as the value of a StageLeases has it.
func AppendLease(dst []byte, l Lease) []byte {
	return append(binary.AppendUvarint(dst, milliseconds(l.TTL)), l.Key...)
}

// ParseLease returns the lease that AppendLease has appended. It returns false if there is none.
func ParseLease(b []byte) (l Lease, ok bool) {
	d := decoder{entry: b}
	if l.TTL, ok = d.ttl(); !ok {
		return Lease{}, false
	}
	l.Key = string(b[d.at:])
	return l, l != Lease{}
}

// ttl reads a TTL in milliseconds.
func (d *decoder) ttl() (time.Duration, bool) {
	v, err := d.uvarint("TTL")
	if err != nil || v > maxTTL {
		return 0, false
	}
	return time.Duration(v) * time.Millisecond, true
}

func (c *Command) options() (options byte) {
	if c.Options == nil || !c.Kind.hasOptions() {
		return 0
	}
	if c.IdempotencyKey != "" {
		options |= hasKey
	}
	if c.Kind == Txn {
		return options
	}
	if !c.Match.IsNone() {
		options |= hasMatch
	}
	if !c.NoneMatch.IsNone() {
		options |= hasNoneMatch
	}
	if lease := c.Lease(); lease.TTL != 0 {
		options |= hasTTL
	}
	if c.Lease().Key != "" {
		options |= hasLeaseKey
	}
	return options
}

func (c Condition) append(dst []byte) []byte {
	if c.Any {
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.Indexes)))
	for _, index := range c.Indexes {
		dst = binary.AppendUvarint(dst, index)
	}
	return dst
}

// Decode returns the batch that Append encoded as entry. Its error wraps
// ErrVersion or ErrMalformed, and then there is no batch. Whatever the entry
// claims, the memory allocated is at most a small multiple of its length.
//
// Keys are copies. Values are parts of entry, which the caller still owns: they
// are good for as long as entry is not changed, and are not to be written to.
// The value of a Set is never nil.
func Decode(entry []byte) ([]Command, error) {
	d := decoder{entry: entry}
	return d.batch()
}

// Check returns the error of Decode for entry, and keeps nothing of it. For sets and removes it takes a fraction of the
// time, and allocates nothing.
func Check(entry []byte) error {
	d := decoder{entry: entry, check: true}
	_, err := d.batch()
	return err
}

// decoder reads an entry; the next byte is entry[at].
type decoder struct {
	entry []byte
	at    int
	check bool // pairs are not kept: see Check
}

func (d *decoder) batch() (batch []Command, err error) {
	v, err := d.byte("version")
	if err != nil {
		return nil, err
	}
	if v < entryV1 || v > entryV4 {
		return nil, fmt.Errorf("%w: %d, want %d to %d", ErrVersion, v, entryV1, entryV4)
	}
	n, err := d.count("number of commands", 1, minCommand)
	if err != nil {
		return nil, err
	}
	if !d.check {
		batch = make([]Command, 0, n)
	}
	needs := byte(entryV1)
	for range n {
		c, err := d.command()
		if err != nil {
			return nil, err
		}
		if needs = max(needs, byte(c.Format())); !d.check {
			batch = append(batch, c)
		}
	}
	if d.at != len(d.entry) {
		return nil, d.malformed("%d bytes after the last command", len(d.entry)-d.at)
	}
	if d.at = 0; v != needs {
		return nil, d.malformed("version %d, but its commands are those of %d", v, needs)
	}
	return batch, nil
}

func (d *decoder) malformed(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrMalformed, d.at, fmt.Sprintf(format, args...))
}

func (d *decoder) command() (c Command, err error) {
	k, err := d.byte("kind")
	if err != nil {
		return Command{}, err
	}
	c.Kind = Kind(k &^ withOptions)
	if k&withOptions != 0 {
		if !c.Kind.hasOptions() {
			d.at--
			return Command{}, d.malformed("unknown kind %d", k)
		}
		if c.Options, err = d.options(); err != nil {
			return Command{}, err
		}
		if c.Kind == Txn && (c.IdempotencyKey == "" || !c.Match.IsNone() || !c.NoneMatch.IsNone()) {
			return Command{}, d.malformed("options that a transaction can't have")
		}
		if c.Kind != Set && c.Options.Lease != (Lease{}) {
			return Command{}, d.malformed("a lease that only a set can have")
		}
	}
	switch {
	case c.Kind.hasPairs():
		c.Pairs, err = d.pairs(c.Kind)
		for _, p := range c.Pairs {
			if _, ok := ParseLease(p.Value); c.Kind == StageLeases && !ok && err == nil {
				err = d.malformed("no lease")
			}
		}
	case c.Kind == Noop, c.Kind == Unstage:
		var n byte
		if n, err = d.byte("number of pairs"); err == nil && n != 0 {
			d.at--
			err = d.malformed("pairs of a kind that has none")
		}
	case c.Kind == Restore:
		if c.Items, err = d.uvarint("number of items"); err == nil {
			c.Records, err = d.uvarint("number of records")
		}
	case c.Kind == RaiseFormat:
		if c.To, err = d.uvarint("cluster format"); err == nil && c.To < 2 {
			err = d.malformed("cluster format is %d", c.To)
		}
	case c.Kind == Txn:
		c.Txn, err = d.transaction()
	case c.Kind == Expire:
		if c.Txn, err = d.transaction(); err == nil && !c.Txn.expires() {
			err = d.malformed("conditions or operations that an expiry can't have")
		}
	default:
		d.at--
		err = d.malformed("unknown kind %d", k)
	}
	if err != nil {
		return Command{}, err
	}
	return c, nil
}

func (d *decoder) options() (*Options, error) {
	has, err := d.byte("options")
	if err != nil {
		return nil, err
	}
	if has == 0 || has > hasKey|hasMatch|hasNoneMatch|hasTTL|hasLeaseKey {
		d.at--
		return nil, d.malformed("options are %d", has)
	}
	o := new(Options)
	if has&hasKey != 0 {
		key, err := d.bytes("length of idempotency key", 1)
		if err != nil {
			return nil, err
		}
		o.IdempotencyKey = string(key)
	}
	if has&hasMatch != 0 {
		if o.Match, err = d.condition(); err != nil {
			return nil, err
		}
	}
	if has&hasNoneMatch != 0 {
		if o.NoneMatch, err = d.condition(); err != nil {
			return nil, err
		}
	}
	if has&hasTTL != 0 {
		ttl, ok := d.ttl()
		if o.Lease.TTL = ttl; !ok || ttl == 0 {
			return nil, d.malformed("TTL")
		}
	}
	if has&hasLeaseKey != 0 {
		key, err := d.bytes("length of the key of the lease", 1)
		if err != nil {
			return nil, err
		}
		o.Lease.Key = string(key)
	}
	return o, nil
}

func (d *decoder) condition() (Condition, error) {
	n, err := d.count("number of indexes", 0, 1)
	if err != nil {
		return Condition{}, err
	}
	if n == 0 {
		return Condition{Any: true}, nil
	}
	indexes := make([]uint64, n)
	for i := range indexes {
		if indexes[i], err = d.uvarint("index"); err != nil {
			return Condition{}, err
		}
	}
	return Condition{Indexes: indexes}, nil
}

// pairs reads the pairs of a command of that kind. Check needs none of them, but for leases.
func (d *decoder) pairs(kind Kind) ([]Pair, error) {
	minPair := minRemove
	if kind.hasValues() {
		minPair = minSet
	}
	n, err := d.count("number of pairs", 1, minPair)
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	keep := !d.check || kind == StageLeases
	if keep {
		pairs = make([]Pair, 0, n)
	}
	for range n {
		key, err := d.bytes("length of key", 1)
		if err != nil {
			return nil, err
		}
		var value []byte
		if kind.hasValues() {
			if value, err = d.bytes("length of value", 0); err != nil {
				return nil, err
			}
		}
		if keep {
			pairs = append(pairs, Pair{string(key), value})
		}
	}
	return pairs, nil
}

func (d *decoder) transaction() (*Transaction, error) {
	t := new(Transaction)
	n, err := d.count("number of conditions", 0, minCompare)
	for ; n > 0 && err == nil; n-- {
		var c Compare
		if c, err = d.compare(); err == nil {
			t.If = append(t.If, c)
		}
	}
	for _, branch := range []*[]Operation{&t.Then, &t.Else} {
		if err == nil {
			*branch, err = d.operations()
		}
	}
	return t, err
}

func (d *decoder) compare() (c Compare, err error) {
	what, err := d.byte("condition")
	if err != nil {
		return c, err
	}
	if c.What = What(what); c.What > Related {
		d.at--
		return c, d.malformed("unknown condition %d", what)
	}
	key, err := d.bytes("length of key", 1)
	if err != nil {
		return c, err
	}
	c.Key = string(key)
	switch c.What {
	case HasIndex:
		c.Index, err = d.uvarint("index")
	case HasValue:
		c.Value, err = d.bytes("length of value", 0)
	case Related:
		err = d.related(&c)
	}
	return c, err
}

// related reads what a Related has behind its key.
func (d *decoder) related(c *Compare) error {
	of, err := d.byte("property")
	if err != nil {
		return err
	}
	is, err := d.byte("relation")
	if err != nil {
		return err
	}
	c.Of, c.Is = Property(of), Relation(is)
	if c.Of < OfIndex || c.Of > OfLease || c.Is < Equal || c.Is > Less {
		d.at -= 2
		return d.malformed("unknown property %d or relation %d", of, is)
	}
	if c.Of.isText() {
		c.Value, err = d.bytes("length of text", 0)
	} else {
		c.Index, err = d.uvarint("number")
	}
	return err
}

func (d *decoder) operations() (ops []Operation, err error) {
	n, err := d.count("number of operations", 0, minOp)
	for ; n > 0 && err == nil; n-- {
		var op byte
		if op, err = d.byte("operation"); err != nil {
			break
		}
		o := Operation{Op: Op(op)}
		if op == opSetLeased {
			o.Op = OpSet
		}
		if o.Op < OpSet || o.Op > OpGet && o.Op < OpView || o.Op > OpTouch {
			d.at--
			return nil, d.malformed("unknown operation %d", op)
		}
		var key []byte
		if key, err = d.bytes("length of key", 1); err == nil && o.Op == OpSet {
			o.Value, err = d.bytes("length of value", 0)
		}
		if o.Key = string(key); o.Op.hasEnd() && err == nil {
			key, err = d.bytes("length of end", 0)
			o.End = string(key)
		}
		if op == opSetLeased && err == nil {
			o.Lease, err = d.lease()
		}
		ops = append(ops, o)
	}
	return ops, err
}

// lease reads the lease of an operation, which is not none.
func (d *decoder) lease() (l Lease, err error) {
	ttl, ok := d.ttl()
	if !ok {
		return l, d.malformed("TTL")
	}
	key, err := d.bytes("length of the key of the lease", 0)
	if l = (Lease{TTL: ttl, Key: string(key)}); err == nil && l == (Lease{}) {
		err = d.malformed("no lease")
	}
	return l, err
}

// expires reports whether t is the transaction of an Expire.
func (t *Transaction) expires() bool {
	other := func(c Compare) bool { return c.What != HasIndex }
	return len(t.If) > 0 && !slices.ContainsFunc(t.If, other) && len(t.Then)+len(t.Else) == 0
}

func (d *decoder) byte(what string) (byte, error) {
	if d.at == len(d.entry) {
		return 0, d.malformed("ends before %s", what)
	}
	d.at++
	return d.entry[d.at-1], nil
}

func (d *decoder) uvarint(what string) (uint64, error) {
	v, n := binary.Uvarint(d.entry[d.at:])
	switch {
	case n == 0:
		return 0, d.malformed("ends in %s", what)
	case n < 0:
		return 0, d.malformed("%s is too large", what)
	case n > 1 && d.entry[d.at+n-1] == 0:
		return 0, d.malformed("%s is not in its shortest form", what)
	}
	d.at += n
	return v, nil
}

// count reads a number of things that are least or more, and take size bytes
// each or more; no more of them than the rest of the entry has room for.
func (d *decoder) count(what string, least uint64, size int) (int, error) {
	at := d.at
	v, err := d.uvarint(what)
	if err != nil {
		return 0, err
	}
	left := len(d.entry) - d.at
	if v >= least && v <= uint64(left/size) {
		return int(v), nil
	}
	d.at = at
	if v < least {
		return 0, d.malformed("%s is %d", what, v)
	}
	return 0, d.malformed("%s is %d, %d bytes are left", what, v, left)
}

// bytes reads a length of least or more and as many bytes. They can't be
// appended to in place.
func (d *decoder) bytes(what string, least uint64) ([]byte, error) {
	n, err := d.count(what, least, 1)
	if err != nil {
		return nil, err
	}
	d.at += n
	return d.entry[d.at-n : d.at : d.at], nil
}
