package node

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// The data are bounded: all of them are in memory, and a node that was killed for its memory would be killed at each
// start again. Config.MaxBytes bounds what StateMachine.Footprint counts. It is the leader that refuses a command,
// before it is proposed: the state machine itself applies whatever is in the log, as all replicas must do the same,
// with whatever bound each of them has.
//
// A batch is looked at when all batches before it are applied, so that only its own commands are to be reckoned with.
// Which of them take effect is not known yet, as conditions may fail, so each is taken at its worst.

// sizer is the part of a StateMachine by which commands are admitted.
type sizer interface {
	// Footprint is what the content takes, in bytes, and what is staged beside it.
	Footprint() (content, staged int)
	// ItemFootprint is what one key takes of that, 0 if there is none, and whether it has a lease.
	ItemFootprint(key string) (bytes int, leased bool)
	// Format is the cluster format, which a RaiseFormat command raises.
	Format() int
	// HasRecord reports whether a command with this idempotency key was applied: another has no effect.
	HasRecord(idempotencyKey string) bool
}

const (
	// entryRatio is how many times its bytes in the log an entry may add to the Footprint: a key of one byte with
	// an empty value is three bytes in an entry, and kv.Overhead more in the store.
	entryRatio = 64
	// warnFraction of MaxBytes is from where on a node warns.
	warnFraction = 0.8
)

// admission reckons how large the data become if the commands of a batch are proposed, in their order.
type admission struct {
	machine sizer
	format  int            // of the cluster
	max     int            // of the Footprint
	size    int            // the Footprint when all that was admitted is applied, at most
	least   map[string]int // key: what it takes at least when the next command is applied; absent: what it takes now
	removed []string       // prefixes that are removed
	ends    bool           // keys may end, and with them those that go with them (kv.Lease)
	records map[string]*command.Command

	disk error // for commands that take room on the disks; nil: there is room
}

// newAdmission returns an admission at which nothing that was proposed before is still to be applied.
func newAdmission(machine sizer, max int) *admission {
	content, _ := machine.Footprint()
	return &admission{machine: machine, format: machine.Format(), max: max, size: content,
		least: make(map[string]int), records: make(map[string]*command.Command)}
}

// now returns what key takes at least when the next command is applied.
func (a *admission) now(key string) int {
	bytes, known := a.least[key]
	if !known {
		var leased bool
		if bytes, leased = a.machine.ItemFootprint(key); leased && a.ends {
			return 0
		}
		for _, prefix := range a.removed {
			if strings.HasPrefix(key, prefix) {
				return 0
			}
		}
	}
	return bytes
}

// effect is that of a command on one key: it then takes so many bytes.
type effect struct {
	key    string
	bytes  int
	leased bool // or may end, or goes with another key
}

// alternatives returns the effects that c has in a cluster of this format: one of several lists of them, or nothing.
func alternatives(c *command.Command, format int) (lists [][]effect) {
	setTo := func(key string, value []byte, lease command.Lease) effect {
		bytes := kv.ItemFootprint(key, len(value), kv.Lease(lease)) + kv.LifeFootprint(format, key)
		return effect{key, bytes, lease != command.Lease{}}
	}
	switch c.Kind {
	case command.Set, command.Remove:
		list := make([]effect, len(c.Pairs))
		for i, p := range c.Pairs {
			if list[i].key = p.Key; c.Kind == command.Set {
				list[i] = setTo(p.Key, p.Value, c.Lease())
			}
		}
		lists = append(lists, list)
	case command.Expire:
		var list []effect
		for _, compare := range c.Txn.If {
			list = append(list, effect{key: compare.Key})
		}
		lists = append(lists, list)
	case command.Txn:
		for _, branch := range [][]command.Operation{c.Txn.Then, c.Txn.Else} {
			var list []effect
			for _, o := range branch {
				switch o.Op {
				case command.OpSet:
					list = append(list, setTo(o.Key, o.Value, o.Lease))
				case command.OpRemove:
					list = append(list, effect{key: o.Key})
				}
			}
			lists = append(lists, list)
		}
	}
	return lists
}

// worst returns by how much c may make the data grow, whatever they are.
func worst(c *command.Command, format int) (grows int) {
	for _, list := range alternatives(c, format) {
		for _, to := range list {
			grows += to.bytes
		}
	}
	return grows
}

// removedBy returns prefixes of which c may remove all keys.
func removedBy(c *command.Command) (prefixes []string) {
	switch c.Kind {
	case command.RemovePrefix:
		prefixes = append(prefixes, c.Pairs[0].Key)
	case command.Txn:
		for _, o := range slices.Concat(c.Txn.Then, c.Txn.Else) {
			if o.Op == command.OpRemoveRange {
				prefixes = append(prefixes, command.RangePrefix(o.Key, o.End))
			}
		}
	}
	return prefixes
}

// repeats reports whether c has no effect because of its idempotency key: a command with that was applied, or is the
// same and comes before it in this batch.
func (a *admission) repeats(c *command.Command) bool {
	if c.Options == nil || c.IdempotencyKey == "" {
		return false
	}
	if a.machine.HasRecord(c.IdempotencyKey) {
		return true
	}
	first, ok := a.records[c.IdempotencyKey]
	return ok && first.Identity() == c.Identity()
}

// admit returns nil if the data stay within their bound with c, or c does not make them larger, and then reckons with
// it. Else the error wraps ErrFull.
func (a *admission) admit(c *command.Command) error {
	if a.repeats(c) {
		return nil
	}
	if c.Kind == command.Restore {
		if _, staged := a.machine.Footprint(); staged > a.max {
			return fmt.Errorf("%w: the backup takes %d bytes of the %d that STORE_MAX_BYTES allows: nothing was changed; "+
				"raise it on every node", ErrFull, staged, a.max)
		}
		return nil // it has a batch to itself
	}
	grows := 0                    // by the list that makes it the most; may be negative
	least := make(map[string]int) // as a.least, after c
	removed := removedBy(c)
	ends := len(removed) > 0
	for k, list := range alternatives(c, a.format) {
		sum, after := 0, make(map[string]int)
		for _, to := range list {
			was, seen := after[to.key]
			if !seen {
				was = a.now(to.key)
			}
			sum += to.bytes - was
			if after[to.key] = to.bytes; to.leased || to.bytes == 0 {
				ends = true
				least[to.key] = 0
			}
		}
		for key, bytes := range after {
			if known, ok := least[key]; !ok || bytes < known {
				least[key] = bytes
			}
		}
		if k == 0 || sum > grows {
			grows = sum
		}
	}
	if a.disk != nil && takesRoom(c, grows) {
		return a.disk
	}
	if grows > 0 && a.size+grows > a.max {
		return a.full(grows)
	}
	a.ends = a.ends || ends
	for key, bytes := range least {
		a.least[key] = min(a.now(key), bytes)
	}
	for _, prefix := range removed {
		a.removed = append(a.removed, prefix)
		for key := range a.least {
			if strings.HasPrefix(key, prefix) {
				a.least[key] = 0
			}
		}
	}
	if c.Options != nil && c.IdempotencyKey != "" {
		a.records[c.IdempotencyKey] = c
	}
	a.size += max(grows, 0)
	return nil
}

func (a *admission) full(more int) error {
	return fmt.Errorf("%w: the data take %d of the %d bytes that STORE_MAX_BYTES allows, and this needs %d more: "+
		"nothing was done; remove keys, or raise it on every node", ErrFull, a.size, a.max, more)
}

// size is about how many bytes the entries of b are.
func (b batch) size() (bytes int) {
	for _, entry := range b {
		for _, p := range entry {
			bytes += p.size
		}
	}
	return bytes
}

// keep finishes those commands of b for which refuse returns an error with that error, and returns the others.
func (b batch) keep(refuse func(c *command.Command) error) (kept batch) {
	for _, entry := range b {
		var rest []*proposal
		for _, p := range entry {
			if err := refuse(&p.command); err != nil {
				p.finish(command.Result{}, err)
			} else {
				rest = append(rest, p)
			}
		}
		if len(rest) > 0 {
			kept = append(kept, rest)
		}
	}
	return kept
}

// admit is the batcher's: it refuses what there is no room for. settled is true if all batches before were answered.
func (n *Node) admit(b batch, settled bool) batch {
	i := n.current.Load()
	if !settled {
		n.settled = 0
	}
	if !i.leads() { // as raft would answer: it is not for this node to refuse it
		return b.keep(func(*command.Command) error { return ErrNotLeader })
	}
	term := i.raft.CurrentTerm()
	most := math.MaxInt
	if n.config.MaxBytes > 0 {
		most = int(n.config.MaxBytes)
	}
	content, staged := n.machine.Footprint()
	format := n.machine.Format()
	if term != n.settled {
		// What earlier leaders have proposed may still be on its way into the state machine.
		applied, _ := n.machine.Applied()
		content = max(content, staged) + entryRatio*int(i.volume.Log.BytesAbove(applied))
	}
	for _, entry := range b {
		for _, p := range entry {
			content += worst(&p.command, format)
			if p.command.Kind == command.Restore {
				content = max(content, staged)
			}
		}
	}
	disk := n.errDisk(i.servers())
	if disk == nil && content <= most { // whatever becomes of each command
		n.rooms.add(b.size())
		return b
	}
	if term != n.settled {
		ctx, cancel := context.WithTimeout(n.life.ctx, enqueueLimit)
		defer cancel()
		if err := wait(ctx, i.raft.Barrier(enqueueLimit)); err != nil {
			if err = outcome(err); err != ErrNotLeader {
				err = fmt.Errorf("%w: whether there is room for it can't be determined yet: %v", ErrNotApplied, err)
			}
			return b.keep(func(*command.Command) error { return err })
		}
		n.settled = term
	}
	a := newAdmission(n.machine, most)
	a.disk = disk
	kept := b.keep(a.admit)
	n.rooms.add(kept.size())
	return kept
}

// MaxBytes is how many bytes the data may take, as StateMachine.Footprint counts them; 0: there is no bound.
func (n *Node) MaxBytes() uint64 { return n.config.MaxBytes }

// checkData looks how much of their bound the data take.
func (n *Node) checkData() {
	content, _ := n.machine.Footprint()
	line := ""
	if most := n.config.MaxBytes; most > 0 && float64(content) >= warnFraction*float64(most) {
		line = fmt.Sprintf("the data take %d %% of the %d bytes that STORE_MAX_BYTES allows: beyond it sets are refused; "+
			"remove keys, or raise it on every node", uint64(content)*100/most, most)
	}
	if n.health.set(&n.health.data, line) {
		n.config.Warnf("%s", line)
	}
}
