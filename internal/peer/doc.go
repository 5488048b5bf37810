// Package peer is what crosses the raft port: the connections between the nodes of a cluster.
//
// Every connection begins with a preface of its dialer: a magic byte, for the purpose of the connection, and the 16
// bytes of the caller's cluster ID. The answer is one byte, accepted or foreign. So two clusters never mix, whatever
// is restarted, wiped or mistyped: raft itself knows a node by its ID and address alone (docs/design.md, "What
// hashicorp/raft leaves to its users").
//
//	magic byte   what follows                          from another cluster
//	0xB1         raft's own stream, of older programs  refused
//	0xB2         node-to-node HTTP calls (port.go)     the handler decides
//	0xB3         questions for the term (term.go)      refused
//	0xB4         raft's own stream (stream.go)         refused
//
// The preface of 0xB4 goes on with the ID of the node that is meant and that of the node that dials; its answer has the
// ID of the node that answers behind the byte. Raft credits what it hears to the member that it has dialed, so a node
// that is not the one that is meant refuses: an address or a name may lead to another member. Questions for the term
// name the node that is asked, and calls to a member do so in a header.
//
// With certificates, a handshake comes before the preface (secure.go).
//
// A call of another cluster is let through because a node that is to be joined has to give its identity before it
// belongs to the cluster.
//
// A [Port] outlives the raft instances of its node; each of them has a [Port.Stream] and, over it, a [Transport],
// which holds all that raft's network transport needs help with: it decodes what other nodes send (wire.go, request.go),
// checks it (gate.go) and receives snapshots (serve.go) before raft has it.
package peer
