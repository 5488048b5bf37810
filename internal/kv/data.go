package kv

import "github.com/tidwall/btree"

// MaxAnswers is how many answers a store remembers.
const MaxAnswers = 100_000

// data is what a restore replaces: the items and the answers.
//
// The trees have no lock of their own. Their copies share nodes, which nobody
// writes to: a tree first replaces a shared node by its own copy.
//
// A node that was split keeps the memory of both halves, and so, for each key of
// the other one, the value it had then: at worst as much again as the live values,
// until an insert into the node or, after a clone, any change of it.
type data struct {
	items   *btree.Map[string, Item]
	answers answers
}

func newData() data {
	return data{new(btree.Map[string, Item]), newAnswers()}
}

func (d *data) clone() data {
	return data{d.items.Copy(), d.answers.clone()}
}

// answers maps idempotency keys to answers, and knows the order in which they
// came. The sequence numbers are no part of what is compared or written: only
// their order is.
type answers struct {
	byKey      *btree.Map[string, answer]
	bySequence *btree.Map[uint64, string]
	next       uint64 // sequence number of the next one
}

type answer struct {
	text     string
	sequence uint64
}

func newAnswers() answers {
	return answers{byKey: new(btree.Map[string, answer]), bySequence: new(btree.Map[uint64, string])}
}

func (a *answers) clone() answers {
	return answers{a.byKey.Copy(), a.bySequence.Copy(), a.next}
}

func (a *answers) len() int { return a.byKey.Len() }

// add makes key the newest, and forgets the oldest of more than MaxAnswers.
func (a *answers) add(key, text string) {
	if old, ok := a.byKey.Set(key, answer{text, a.next}); ok {
		a.bySequence.Delete(old.sequence)
	}
	a.bySequence.Load(a.next, key)
	a.next++
	if a.len() > MaxAnswers {
		_, oldest, _ := a.bySequence.PopMin()
		a.byKey.Delete(oldest)
	}
}

// scan calls yield for each answer, the oldest first, until it returns false.
func (a *answers) scan(yield func(key, text string) bool) {
	a.bySequence.Scan(func(_ uint64, key string) bool {
		found, _ := a.byKey.Get(key)
		return yield(key, found.text)
	})
}
