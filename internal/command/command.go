// Package command is the encoding of one raft log entry: a batch of commands.
//
// The first byte of an entry is its version. Version 1 is
//
//	entry   = 0x01, uvarint number of commands (>= 1), commands
//	command = kind byte, uvarint number of pairs (>= 1; for Noop 0), pairs
//	pair    = uvarint length of key (>= 1), key
//	          and, for Set only, uvarint length of value, value
//
// with uvarints as in encoding/binary, in their shortest form. A batch has
// exactly one encoding, and whatever else is in a log is refused.
package command

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits of a pair, in bytes. They hold at the door, where a request becomes a
// command; Append and Decode know nothing of them, so that other limits can
// never make an old log unreadable.
const (
	MaxKey   = 1024
	MaxValue = 1 << 20
)

// Kind is what a command does to its pairs. Its values are on disk and are
// never renumbered.
type Kind byte

const (
	Set    Kind = 1
	Remove Kind = 2
	Noop   Kind = 3 // has no pairs and does nothing: that it is applied is all it is for
)

// Pair is a key and, in a Set, its value. In a Remove the value is nil.
type Pair struct {
	Key   string
	Value []byte
}

// Command is one request: all of its pairs take effect, or none.
type Command struct {
	Kind  Kind
	Pairs []Pair
}

var (
	// ErrVersion is returned when an entry has a version that this program does
	// not know: most likely a newer one wrote it.
	ErrVersion = errors.New("unknown version of log entry")

	// ErrMalformed is returned when an entry is not what Append writes.
	ErrMalformed = errors.New("malformed log entry")
)

const version = 1

// The smallest encodings, by which a count is checked before memory is
// allocated for it.
const (
	minCommand = 2
	minSet     = 3
	minRemove  = 2
)

// Append appends the encoding of one entry to dst, which it returns extended.
// It keeps none of its arguments. The batch must have a command, each command but
// Noop a pair and each pair a key, and each Kind must be one of the above: Decode
// refuses the entry otherwise. The value of a pair to remove is ignored.
func Append(dst []byte, batch ...Command) []byte {
	dst = append(dst, version)
	dst = binary.AppendUvarint(dst, uint64(len(batch)))
	for _, c := range batch {
		dst = append(dst, byte(c.Kind))
		dst = binary.AppendUvarint(dst, uint64(len(c.Pairs)))
		for _, p := range c.Pairs {
			dst = binary.AppendUvarint(dst, uint64(len(p.Key)))
			dst = append(dst, p.Key...)
			if c.Kind == Set {
				dst = binary.AppendUvarint(dst, uint64(len(p.Value)))
				dst = append(dst, p.Value...)
			}
		}
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
	if v != version {
		return nil, fmt.Errorf("%w: %d, want %d", ErrVersion, v, version)
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

func (d *decoder) command() (Command, error) {
	k, err := d.byte("kind")
	if err != nil {
		return Command{}, err
	}
	c := Command{Kind: Kind(k)}
	minPair := minSet
	switch c.Kind {
	case Noop:
		if n, err := d.byte("number of pairs"); err != nil {
			return Command{}, err
		} else if n != 0 {
			d.at--
			return Command{}, d.malformed("a no-op with pairs")
		}
		return c, nil
	case Set:
	case Remove:
		minPair = minRemove
	default:
		d.at--
		return Command{}, d.malformed("unknown kind %d", k)
	}
	n, err := d.count("number of pairs", 1, minPair)
	if err != nil {
		return Command{}, err
	}
	c.Pairs = make([]Pair, n)
	for i := range c.Pairs {
		key, err := d.bytes("length of key", 1)
		if err != nil {
			return Command{}, err
		}
		c.Pairs[i].Key = string(key)
		if c.Kind != Set {
			continue
		}
		if c.Pairs[i].Value, err = d.bytes("length of value", 0); err != nil {
			return Command{}, err
		}
	}
	return c, nil
}

func (d *decoder) byte(what string) (byte, error) {
	if d.at == len(d.entry) {
		return 0, d.malformed("ends before %s", what)
	}
	d.at++
	return d.entry[d.at-1], nil
}

// count reads a number of things that are least or more, and take size bytes
// each or more; no more of them than the rest of the entry has room for.
func (d *decoder) count(what string, least uint64, size int) (int, error) {
	v, n := binary.Uvarint(d.entry[d.at:])
	switch {
	case n == 0:
		return 0, d.malformed("ends in %s", what)
	case n < 0:
		return 0, d.malformed("%s is too large", what)
	case n > 1 && d.entry[d.at+n-1] == 0:
		return 0, d.malformed("%s is not in its shortest form", what)
	case v < least:
		return 0, d.malformed("%s is %d", what, v)
	case v > uint64((len(d.entry)-d.at-n)/size):
		return 0, d.malformed("%s is %d, %d bytes are left", what, v, len(d.entry)-d.at-n)
	}
	d.at += n
	return int(v), nil
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
