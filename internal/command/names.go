package command

import "sync"

// Names keeps the names of clients (Command.By), which are not in the log, for the entries that this
// process proposes, from the proposal until the state machine has the entry. Raft hands the leader's
// state machine the bytes that were proposed, not a copy (processLogs in raft.go takes the log of the
// future), so an entry is known by where its bytes are; where it were otherwise, names would be
// missing and never wrong. The methods of nil do nothing. They may be called concurrently.
type Names struct{ entries sync.Map } // *byte, the first of an entry: []string, a name for each command

// Put keeps the names of the commands of an entry until forget is called.
func (n *Names) Put(entry []byte, commands []Command) (forget func()) {
	forget = func() {}
	if n == nil {
		return forget
	}
	var names []string
	for i, c := range commands {
		if c.By != "" && names == nil {
			names = make([]string, len(commands))
		}
		if c.By != "" {
			names[i] = c.By
		}
	}
	if names == nil {
		return forget
	}
	key := &entry[0]
	n.entries.Store(key, names)
	return func() { n.entries.Delete(key) }
}

// Get sets By of the commands of an entry, if this process proposes it.
func (n *Names) Get(entry []byte, commands []Command) {
	if n == nil || len(entry) == 0 {
		return
	}
	if names, ok := n.entries.Load(&entry[0]); ok {
		for i, name := range names.([]string) {
			commands[i].By = name
		}
	}
}
