package peer

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Requests to raft are MessagePack, a map of the fields of a struct by their names. They are decoded here and not by
// raft's own transport, because its decoder allocates whatever length is announced, before a byte of it has come
// (go-msgpack: ioDecReader.readx, by which it reads a time or what it skips): 45 bytes end a node. Here memory is taken
// as the bytes come, within a bound for each request and one for all that are being received.

// The bounds of what comes over a raft stream. Raft sends up to 64 entries at once, those of older programs whatever
// their size; entries of a request of a client have up to 2 MiB and a little.
const (
	maxRequest    = 80 << 20  // bytes of a request, without the state of a snapshot
	maxReceiving  = 160 << 20 // bytes of all requests that are received or with raft, beyond freeRequest of each
	freeRequest   = 64 << 10
	maxAnswer     = 64 << 10 // bytes of an answer, whose error has a line of text
	maxEntries    = 1024     // raft's own bound of MaxAppendEntries
	maxServers    = 1024     // of a configuration
	maxFields     = 64       // of a struct: raft's largest has 12
	maxDepth      = 8        // of what is skipped
	maxAddress    = 512      // bytes of a host and its port
	growFrom      = 256 << 10
	maxRaftNumber = 1 << 62 // no term and no index gets there
)

// refusal is why a request is not passed on to raft.
type refusal struct {
	reason string // the same for all of one kind
	text   string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

// refuse returns a refusal of the kind format.
func refuse(format string, args ...any) *refusal {
	return &refusal{reason: format, text: fmt.Sprintf(format, args...)}
}

// wire reads one message. After its first error, err, it reads nothing more, and what its methods return is of no
// meaning.
type wire struct {
	r    *bufio.Reader
	left int   // bytes that the message may yet have
	err  error // a refusal, or that of r

	receiving *atomic.Int64 // bytes, of all messages; nil: they are not counted
	size      int64         // bytes that were allocated
	counted   int64         // those of them that are in receiving
	record    *[]byte       // what was read is appended to it; nil: it is not kept
	key       [64]byte
}

func (w *wire) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// release gives back what the message has taken of receiving.
func (w *wire) release() {
	if w.receiving != nil {
		w.receiving.Add(-w.counted)
		w.counted = 0
	}
}

// spend takes n bytes of what the message may have. It returns false when there are not as many.
func (w *wire) spend(n uint64) bool {
	if w.err == nil && n > uint64(w.left) {
		w.fail(refuse("it is larger than any request may be"))
	}
	if w.err != nil {
		return false
	}
	w.left -= int(n)
	return true
}

// take counts n bytes that are about to be allocated.
func (w *wire) take(n int) bool {
	if w.size += int64(n); w.receiving == nil || w.size <= freeRequest {
		return true
	}
	more := w.size - w.counted
	w.counted = w.size
	if w.receiving.Add(more) > maxReceiving {
		w.fail(refuse("too many large requests are being received"))
		return false
	}
	return true
}

func (w *wire) byte() byte {
	if !w.spend(1) {
		return 0
	}
	b, err := w.r.ReadByte()
	if err != nil {
		w.fail(err)
		return 0
	}
	if w.record != nil {
		*w.record = append(*w.record, b)
	}
	return b
}

// full reads len(b) bytes.
func (w *wire) full(b []byte) {
	if !w.spend(uint64(len(b))) {
		return
	}
	if _, err := io.ReadFull(w.r, b); err != nil {
		w.fail(err)
	}
	if w.record != nil {
		*w.record = append(*w.record, b...)
	}
}

// number reads a big-endian number of so many bytes, 1 to 8.
func (w *wire) number(size int) uint64 {
	var b [8]byte
	w.full(b[8-size:])
	return binary.BigEndian.Uint64(b[:])
}

func (w *wire) unexpected(what string, b byte) {
	w.fail(refuse("it can't be decoded: 0x%02x where %s should be", b, what))
}

// count reads the number of elements of a map or an array, of which the first bytes are fix to fix+15 and, with longer
// numbers, long and long+1. Nothing is -1.
func (w *wire) count(what string, fix, long byte, most int) int {
	b := w.byte()
	var n uint64
	switch {
	case w.err != nil:
		return 0
	case b == 0xc0:
		return -1
	case b&0xf0 == fix:
		n = uint64(b & 0x0f)
	case b == long:
		n = w.number(2)
	case b == long+1:
		n = w.number(4)
	default:
		w.unexpected(what, b)
	}
	if n > uint64(most) {
		w.fail(refuse("%s has too many elements", what))
		return 0
	}
	return int(n)
}

func (w *wire) fields() int                        { return w.count("a struct", 0x80, 0xde, maxFields) }
func (w *wire) elements(what string, most int) int { return w.count(what, 0x90, 0xdc, most) }

// field reads the name of a field. It returns "" for one that is not among names, whose value it skips. Which fields
// were seen is in seen: no field comes twice.
func (w *wire) field(names []string, seen *uint32) string {
	n, none := w.length("the name of a field", false)
	if w.err == nil && (none || n > uint64(len(w.key))) {
		w.fail(refuse("it has a field with a name of no field"))
	}
	if w.err != nil {
		return ""
	}
	key := w.key[:n]
	w.full(key)
	for i, name := range names {
		if string(key) != name || w.err != nil {
			continue
		}
		if *seen&(1<<i) != 0 {
			w.fail(refuse("it has a field twice"))
		}
		*seen |= 1 << i
		return name
	}
	w.skip(maxDepth)
	return ""
}

// length reads the length of a string of bytes, which may be of MessagePack's newer kind if binary; none: there is
// nothing in its place.
func (w *wire) length(what string, binary bool) (n uint64, none bool) {
	b := w.byte()
	switch {
	case w.err != nil:
	case b == 0xc0:
		none = true
	case b&0xe0 == 0xa0:
		n = uint64(b & 0x1f)
	case b == 0xd9, b == 0xc4 && binary:
		n = w.number(1)
	case b == 0xda, b == 0xc5 && binary:
		n = w.number(2)
	case b == 0xdb, b == 0xc6 && binary:
		n = w.number(4)
	default:
		w.unexpected(what, b)
	}
	return n, none
}

// bytes reads a string of at most so many bytes; nil for nothing.
func (w *wire) bytes(what string, most int) []byte {
	n, none := w.length(what, true)
	if n > uint64(most) {
		w.fail(refuse("%s is larger than it may be", what))
	}
	if w.err != nil || none {
		return nil
	}
	var b []byte
	for size := 0; w.err == nil; {
		size = max(min(int(n), growFrom), min(int(n), 2*size))
		if !w.take(size - len(b)) {
			break
		}
		at := len(b)
		grown := make([]byte, size)
		copy(grown, b)
		b = grown
		if w.full(b[at:]); size == int(n) {
			return b // of no meaning after an error
		}
	}
	return nil
}

// text reads what names a node or an address, which may be printed.
func (w *wire) text(what string, most int) []byte {
	b := w.bytes(what, most)
	if !printable(b) {
		w.fail(refuse("%s is not one: %.64q", what, b))
	}
	return b
}

// printable reports whether b is of ASCII characters alone that are visible.
func printable[T string | []byte](b T) bool {
	for i := range len(b) {
		if b[i] <= ' ' || b[i] > '~' {
			return false
		}
	}
	return true
}

// uint reads a number that is at most most.
func (w *wire) uint(what string, most uint64) uint64 {
	b := w.byte()
	var v uint64
	switch {
	case w.err != nil:
		return 0
	case b <= 0x7f:
		v = uint64(b)
	case b >= 0xcc && b <= 0xcf:
		v = w.number(1 << (b - 0xcc))
	case b >= 0xd0 && b <= 0xd3: // a signed one, which go-msgpack makes of small ones
		size := 1 << (b - 0xd0)
		if v = w.number(size); v>>(8*size-1) != 0 {
			w.fail(refuse("%s is less than 0", what))
		}
	default:
		w.unexpected(what, b)
	}
	if v > most {
		w.fail(refuse("%s is %d, which none ever is", what, v))
	}
	return v
}

func (w *wire) bool(what string) bool {
	b := w.byte()
	if b != 0xc2 && b != 0xc3 && w.err == nil {
		w.unexpected(what, b)
	}
	return b == 0xc3
}

// time reads a time in one of the forms of go-msgpack: a string, as time.Time marshals itself, or an extension of type
// -1. Nothing is the time zero.
func (w *wire) time(what string) (t time.Time) {
	b := w.byte()
	switch {
	case w.err != nil, b == 0xc0:
	case b&0xe0 == 0xa0:
		text := w.key[:b&0x1f]
		if w.full(text); w.err == nil && t.UnmarshalBinary(text) != nil {
			w.unexpected(what, b)
		}
	case b == 0xd6 && w.byte() == 0xff:
		return time.Unix(int64(w.number(4)), 0).UTC()
	case b == 0xd7 && w.byte() == 0xff:
		v := w.number(8)
		return time.Unix(int64(v&(1<<34-1)), int64(v>>34)).UTC()
	case b == 0xc7 && w.byte() == 12 && w.byte() == 0xff:
		nanoseconds := w.number(4)
		return time.Unix(int64(w.number(8)), int64(nanoseconds)).UTC()
	default:
		w.unexpected(what, b)
	}
	return t
}

// skip reads a value of whatever kind, of at most so many levels.
func (w *wire) skip(depth int) {
	b := w.byte()
	if depth == 0 {
		w.fail(refuse("it has values in values in values"))
	}
	if w.err != nil {
		return
	}
	elements := func(n uint64) {
		for ; n > 0 && w.err == nil; n-- {
			w.skip(depth - 1)
		}
	}
	switch {
	case b <= 0x7f, b >= 0xe0, b == 0xc0, b == 0xc2, b == 0xc3:
	case b <= 0x8f:
		elements(2 * uint64(b&0x0f))
	case b <= 0x9f:
		elements(uint64(b & 0x0f))
	case b <= 0xbf:
		w.discard(uint64(b & 0x1f))
	case b >= 0xc4 && b <= 0xc6:
		w.discard(w.number(1 << (b - 0xc4)))
	case b >= 0xc7 && b <= 0xc9:
		w.discard(w.number(1<<(b-0xc7)) + 1)
	case b == 0xca:
		w.discard(4)
	case b == 0xcb:
		w.discard(8)
	case b >= 0xcc && b <= 0xcf:
		w.discard(1 << (b - 0xcc))
	case b >= 0xd0 && b <= 0xd3:
		w.discard(1 << (b - 0xd0))
	case b >= 0xd4 && b <= 0xd8:
		w.discard(1<<(b-0xd4) + 1)
	case b >= 0xd9 && b <= 0xdb:
		w.discard(w.number(1 << (b - 0xd9)))
	case b == 0xdc, b == 0xdd:
		elements(w.number(2 << (b - 0xdc)))
	case b == 0xde, b == 0xdf:
		elements(2 * w.number(2<<(b-0xde)))
	default:
		w.unexpected("a value", b)
	}
}

// discard reads n bytes.
func (w *wire) discard(n uint64) {
	if w.record != nil && n <= uint64(w.left) {
		w.full(make([]byte, n))
		return
	}
	if w.spend(n) {
		if _, err := w.r.Discard(int(n)); err != nil {
			w.fail(err)
		}
	}
}
