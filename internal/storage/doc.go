// Package storage is what a node has on disk, and why that is trusted.
//
// Raft is safe only as long as a node never forgets what it acknowledged: its term, its vote, and every entry that it
// stored. Hashicorp/raft, raft-boltdb and bbolt leave three holes there, and this package closes them:
//
//   - Damage is not noticed. Neither raft-boltdb nor bbolt has a checksum for an entry, and raft has none for the
//     metadata of a snapshot. Here everything has one. [Open] verifies all of it before anything is written or
//     served, and each later read verifies what it reads.
//   - After a failed write raft goes on, and loses entries or stands still. Here the first failed write, damaged read
//     or hung disk ends the node ([Log]).
//   - A crash may fall between two steps. Every operation of more than one step is ordered so that the next [Open]
//     finds the state before it or after it, or finishes it.
//
// A [Volume] is the directory of one node: [Log] is raft's log and stable store, [Snapshots] its snapshots. A caller
// takes [Lock], checks [IsNew], calls [Create] for a node that has no volume, and then [Open]:
//
//	lock, err := storage.Lock(dir)
//	fresh, err := storage.IsNew(dir)
//	if fresh {
//		err = storage.Create(dir, "n1", cluster, &configuration)
//	}
//	volume, err := storage.Open(dir, storage.Options{NodeID: "n1", …})
//
// The package knows nothing of the network, of the state machine, or of commands. Its caller
// takes the lock, and adds to ErrCorrupt what an operator can do. README.md beside it has the
// formats to the byte, the steps between which a crash may fall, and a table of what is found
// and what is done then.
package storage
