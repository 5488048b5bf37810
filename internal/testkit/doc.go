// Package testkit is for tests only. It starts nodes as processes of the built binary, on free ports and with volumes
// of their own, and asks them over HTTP, as users do: Node, Process, Client. It waits for conditions: Eventually. It
// finds the leader and compares replicas: Leader, CheckReplicas. Network is between nodes of one process; its links can
// be cut and held.
package testkit
