package command

import (
	"encoding/binary"
	"errors"
	"fmt"
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

var (
	// ErrVersion is returned when an entry has a version that this program does
	// not know: most likely a newer one wrote it.
	ErrVersion = errors.New("unknown version of log entry")

	// ErrMalformed is returned when an entry is not what Append writes.
	ErrMalformed = errors.New("malformed log entry")
)

// entryVersion is that of the entries which Append writes. Decode reads older ones, too,
// as they are in logs on disk: with version 1, the first, there are none.
const entryVersion = 1

// withOptions is added to the kind byte of a command that has options. The others are
// the bits of the byte after it, one for each option that the command has.
const (
	withOptions = 0x40

	hasKey       = 1
	hasMatch     = 2
	hasNoneMatch = 4
)

// The smallest encodings, by which a count is checked before memory is
// allocated for it.
const (
	minCommand = 2
	minSet     = 3
	minRemove  = 2
)

func (k Kind) hasPairs() bool {
	switch k {
	case Set, Remove, RemovePrefix, Stage, StageRecords:
		return true
	}
	return false
}

func (k Kind) hasValues() bool { return k == Set || k == Stage || k == StageRecords }

func (k Kind) hasOptions() bool { return k == Set || k == Remove || k == RemovePrefix }

// Append appends the encoding of one entry to dst, which it returns extended.
// It keeps none of its arguments. The batch must have a command, each command that
// has pairs one at least and each pair a key, and each Kind must be one of the
// above: Decode refuses the entry otherwise. What a kind does not have, as the
// value of a pair to remove, is ignored.
func Append(dst []byte, batch ...Command) []byte {
	dst = append(dst, entryVersion)
	dst = binary.AppendUvarint(dst, uint64(len(batch)))
	for _, c := range batch {
		dst = c.appendV1(dst)
	}
	return dst
}

// appendV1 appends the encoding of c in an entry of version 1. Its bytes must never
// change, as version 1 of the canonical form is made of them, too: a new version of
// entries gets a function of its own.
func (c *Command) appendV1(dst []byte) []byte {
	if options := c.options(); options != 0 {
		dst = append(dst, byte(c.Kind)|withOptions, options)
		if options&hasKey != 0 {
			dst = binary.AppendUvarint(dst, uint64(len(c.IdempotencyKey)))
			dst = append(dst, c.IdempotencyKey...)
		}
		if options&hasMatch != 0 {
			dst = c.Match.append(dst)
		}
		if options&hasNoneMatch != 0 {
			dst = c.NoneMatch.append(dst)
		}
	} else {
		dst = append(dst, byte(c.Kind))
	}
	switch {
	case c.Kind == Restore:
		dst = binary.AppendUvarint(dst, c.Items)
		return binary.AppendUvarint(dst, c.Records)
	case !c.Kind.hasPairs():
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.Pairs)))
	for _, p := range c.Pairs {
		dst = binary.AppendUvarint(dst, uint64(len(p.Key)))
		dst = append(dst, p.Key...)
		if c.Kind.hasValues() {
			dst = binary.AppendUvarint(dst, uint64(len(p.Value)))
			dst = append(dst, p.Value...)
		}
	}
	return dst
}

func (c *Command) options() (options byte) {
	if c.Options == nil || !c.Kind.hasOptions() {
		return 0
	}
	if c.IdempotencyKey != "" {
		options |= hasKey
	}
	if !c.Match.IsNone() {
		options |= hasMatch
	}
	if !c.NoneMatch.IsNone() {
		options |= hasNoneMatch
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
	v, err := d.byte("version")
	if err != nil {
		return nil, err
	}
	if v != entryVersion {
		return nil, fmt.Errorf("%w: %d, want %d", ErrVersion, v, entryVersion)
	}
	n, err := d.count("number of commands", 1, minCommand)
	if err != nil {
		return nil, err
	}
	batch := make([]Command, n)
	for i := range batch {
		if batch[i], err = d.command(); err != nil {
			return nil, err
		}
	}
	if d.at != len(entry) {
		return nil, d.malformed("%d bytes after the last command", len(entry)-d.at)
	}
	return batch, nil
}

// decoder reads an entry; the next byte is entry[at].
type decoder struct {
	entry []byte
	at    int
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
	}
	switch {
	case c.Kind.hasPairs():
		c.Pairs, err = d.pairs(c.Kind.hasValues())
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
	if has == 0 || has > hasKey|hasMatch|hasNoneMatch {
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

func (d *decoder) pairs(values bool) ([]Pair, error) {
	minPair := minRemove
	if values {
		minPair = minSet
	}
	n, err := d.count("number of pairs", 1, minPair)
	if err != nil {
		return nil, err
	}
	pairs := make([]Pair, n)
	for i := range pairs {
		key, err := d.bytes("length of key", 1)
		if err != nil {
			return nil, err
		}
		pairs[i].Key = string(key)
		if !values {
			continue
		}
		if pairs[i].Value, err = d.bytes("length of value", 0); err != nil {
			return nil, err
		}
	}
	return pairs, nil
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
