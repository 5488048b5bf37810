package command

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
)

// Result is what one command did, for the client that sent it.
type Result struct {
	Index   uint64 // of the entry that applied the command: an earlier one if it is a repetition
	Removed int    // keys that existed
	Failed  int    // the pair for whose key a condition did not hold, counted from 1; 0: none; one more: see LeaseGone
	Current uint64 // index that last set that key; 0: the key does not exist
	Reused  bool   // the idempotency key is another command's: nothing was applied
	Counted bool   // a Restore found as much staged as its counts require
	Txn     *TxnResult
}

// LeaseGone reports whether c was not applied because the key of a Lease was not there.
func (r Result) LeaseGone(c *Command) bool {
	if r.Txn != nil {
		return len(r.Txn.Operations) < len(c.Txn.Branch(r))
	}
	return r.Failed > len(c.Pairs)
}

// TxnResult is what a Transaction did.
type TxnResult struct {
	Held       bool              // all conditions: Then was selected, not Else
	Operations []OperationResult // of the selected ones; none if the key of a Lease was not there; of an Expire: its keys
}

// OperationResult is what one Operation of the branch that ran did.
type OperationResult struct {
	Found bool // OpGet, OpRemove, OpTouch: the key was there; of an Expire: it has gone

	// Not kept in a record.
	Value   string // of an OpGet that found its key, as the next one
	Index   uint64
	Removed int // of an OpRemoveRange: keys that were there
	View    any // of an OpView: a *kv.Store that is not changed any more
}

// The canonical form of a command is what Identity hashes. Version 1 is
//
//	0x01, 0x01, the command as in an entry of version 1, without its idempotency key
//
// Its version is its own: another version of entries changes nothing here. So a client
// may repeat a command across an upgrade, and replicas of different versions of this
// program agree on which commands are the same. For that, a command for which version 1
// has a form must always use it; a later version is for those only that it can't
// express, such as commands of new kinds or with new options. Version 2, of a Txn, is
//
//	0x02, 0x01, the command as in an entry of version 2, without its idempotency key
//
// and version 3, of a command with a lease, is the same with 3 for 2; version 4, of a Txn
// with what format 4 has brought, has 4 there.

// Identity returns the SHA-256 of the canonical form of c. Commands with the same
// idempotency key are the same command if they have the same identity.
func (c Command) Identity() [sha256.Size]byte {
	return sha256.Sum256(c.appendCanonical(nil))
}

func (c Command) appendCanonical(dst []byte) []byte {
	if c.Options != nil {
		options := *c.Options
		options.IdempotencyKey = ""
		c.Options = &options
	}
	return c.append(append(dst, max(1, byte(c.Format())), 1))
}

// An idempotency record is, in version 1,
//
//	identity of the command, 32 bytes
//	uvarint index (>= 1), uvarint removed, uvarint failed, uvarint current
//
// with uvarints in their shortest form. It is replicated state: every replica makes it
// when it applies the entry, and it travels in snapshots and backups. So all replicas
// must write the same bytes, those of older versions of this program included, which
// have version 1 without a version byte: that version keeps its bytes. In all others,
// 0x00 and a version byte (>= 2) come after the identity; version 1 can't be taken for
// one of them, as no entry has index 0.
//
// Version 2, of a Txn, which has no operation that reads, goes on after that with
//
//	uvarint index, 1 if its conditions held and else 0,
//	uvarint number of operations, for each of them 1 if its key was there and else 0
//
// A replica that finds a record of a version it does not know refuses the command as
// one with a reused key: a client may get an error for a command that was applied, but
// none is applied twice because of it. The hash chain by which replicas are compared is
// over entries, not records.
const (
	laterRecord = 0x00
	recordV2    = 0x02
)

// Record returns the idempotency record of r, which a command with the given identity
// had. Reused and Counted are no part of it: the former has no record of its own, and a
// Restore has no idempotency key.
func (r Result) Record(identity [sha256.Size]byte) string {
	b := append(make([]byte, 0, len(identity)+4*binary.MaxVarintLen64), identity[:]...)
	if r.Txn != nil {
		b = binary.AppendUvarint(append(b, laterRecord, recordV2), r.Index)
		b = appendBool(b, r.Txn.Held)
		b = binary.AppendUvarint(b, uint64(len(r.Txn.Operations)))
		for _, o := range r.Txn.Operations {
			b = appendBool(b, o.Found)
		}
		return string(b)
	}
	for _, v := range []uint64{r.Index, uint64(r.Removed), uint64(r.Failed), r.Current} {
		b = binary.AppendUvarint(b, v)
	}
	return string(b)
}

// ParseRecord returns the Result of an idempotency record. It returns false if the
// record is another command's than that of the identity, or none that Record returns.
func ParseRecord(record string, identity [sha256.Size]byte) (r Result, ok bool) {
	rest, ok := strings.CutPrefix(record, string(identity[:]))
	if ok && strings.HasPrefix(rest, string([]byte{laterRecord, recordV2})) {
		if r, ok = parseTxnRecord([]byte(rest[2:])); !ok || r.Record(identity) != record {
			return Result{}, false
		}
		return r, true
	}
	if !ok || rest == "" || rest[0] == laterRecord {
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
	r = Result{Index: v[0], Removed: int(v[1]), Failed: int(v[2]), Current: v[3]}
	if r.Record(identity) != record { // bytes follow, or a uvarint is longer than it need be
		return Result{}, false
	}
	return r, true
}

// parseTxnRecord reads version 2 from behind its version byte.
func parseTxnRecord(b []byte) (r Result, ok bool) {
	d := decoder{entry: b}
	index, err := d.uvarint("index")
	held, heldErr := d.byte("conditions")
	n, countErr := d.count("number of operations", 0, 1)
	if err != nil || heldErr != nil || countErr != nil || n != len(b)-d.at || index == 0 {
		return Result{}, false
	}
	r = Result{Index: index, Txn: &TxnResult{Held: held == 1, Operations: make([]OperationResult, n)}}
	for i, found := range b[d.at:] {
		r.Txn.Operations[i].Found = found == 1
	}
	return r, true
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}
