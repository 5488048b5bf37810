// Package faults holds the node to what Jepsen holds databases to: processes of the
// built binary, clients on all of them at once, faults by a seeded schedule, and a
// check that nothing that was acknowledged is lost and every answer is linearizable.
// It is tests only:
//
//	go test ./internal/faults                                      about two minutes
//	go test ./internal/faults -v -faults -duration 10m -seed 7     longer, and a table of what was done
//
// As root, or where user namespaces are allowed, each node has a network namespace and
// an address of its own, and its packets go through a switch in the test, which cuts,
// delays, loses, doubles and reorders them. Elsewhere the nodes are on loopback and no
// fault of the network is tried; the output says so.
package faults
