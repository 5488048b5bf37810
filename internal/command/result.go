package command

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
)

// Result is what one command did, for the client that sent it.
type Result struct {
	Index   uint64 // of the entry that did it: of an earlier one, when the command is a repeated one
	Removed int    // keys that were there
	Failed  int    // the pair whose key did not meet the condition, counted from 1; 0: none
	Current uint64 // what that key has: the index that set it; 0: it is not there
	Reused  bool   // the idempotency key is another command's: nothing was done
	Counted bool   // a restore found staged what it should
}

// Identity returns what tells c from other commands with the same idempotency key.
func (c Command) Identity() [sha256.Size]byte {
	options := *c.Options
	options.IdempotencyKey = ""
	c.Options = &options
	return sha256.Sum256(Append(nil, c))
}

// Answer is what the state machine remembers for an idempotency key:
//
//	identity of the command, uvarint index, uvarint removed, uvarint failed, uvarint current
func (r Result) Answer(identity [sha256.Size]byte) string {
	b := append(make([]byte, 0, len(identity)+4*binary.MaxVarintLen64), identity[:]...)
	for _, v := range []uint64{r.Index, uint64(r.Removed), uint64(r.Failed), r.Current} {
		b = binary.AppendUvarint(b, v)
	}
	return string(b)
}

// ParseAnswer returns the Result in an answer, if it is one of that command.
func ParseAnswer(answer string, identity [sha256.Size]byte) (r Result, ok bool) {
	rest, ok := strings.CutPrefix(answer, string(identity[:]))
	if !ok {
		return Result{}, false
	}
	var v [4]uint64
	for i := range v {
		var n int
		if v[i], n = binary.Uvarint([]byte(rest)); n <= 0 {
			return Result{}, false
		}
		rest = rest[n:]
	}
	return Result{Index: v[0], Removed: int(v[1]), Failed: int(v[2]), Current: v[3]}, rest == ""
}
