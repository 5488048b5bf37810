package peer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// ClusterID is the identity of a cluster: random, made when a node bootstraps itself, and kept in the stable store of
// every member.
type ClusterID [16]byte

// NewClusterID returns a random ClusterID.
func NewClusterID() ClusterID {
	var id ClusterID
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails
	return id
}

// String returns the ID as 32 hexadecimal digits.
func (id ClusterID) String() string { return hex.EncodeToString(id[:]) }

const (
	magicRaft  byte = 0xB1 // version 1: of programs that do not know magicNamed
	magicHTTP  byte = 0xB2
	magicTerm  byte = 0xB3
	magicNamed byte = 0xB4 // version 2 of magicRaft

	accepted byte = 0x01
	foreign  byte = 0x02
	another  byte = 0x03

	// maxNodeID bounds the ID of a node in a preface and in its answer, in bytes. No node has a longer one.
	maxNodeID = 64

	// handshakeTimeout bounds both sides of the preface.
	handshakeTimeout = 3 * time.Second
)

var (
	// ErrForeignCluster is returned when the other side of a raft stream belongs to another cluster.
	ErrForeignCluster = errors.New("it belongs to another cluster")
	// ErrNotRaftkv is returned when what listens at the address does not answer the preface, or not as a node does: it
	// is no raftkv node, or one of a program that does not know this preface.
	ErrNotRaftkv = errors.New("what listens there is not the raft port of a raftkv node, or only one of the two nodes " +
		"has RAFT_CERT_DIR")
)

// AnotherNodeError is returned when the node that answers at an address is not the one that is meant.
type AnotherNodeError struct {
	Address      string
	Meant, There string // node IDs
}

// Error implements error.
func (e *AnotherNodeError) Error() string {
	return fmt.Sprintf("%s answers at %s, not %s", e.There, e.Address, e.Meant)
}

// preface is what the dialing side sends first.
type preface struct {
	magic   byte
	cluster ClusterID // of the dialing side, by its own account
	// Of magicNamed alone: the ID of the node that is meant, and that of the node that dials.
	to, from string
}

// append appends the encoding of p to b: the magic byte, the cluster ID and, of magicNamed, the two IDs, each after its
// length in one byte.
func (p preface) append(b []byte) []byte {
	b = append(append(b, p.magic), p.cluster[:]...)
	if p.magic == magicNamed {
		b = appendNodeID(appendNodeID(b, p.to), p.from)
	}
	return b
}

// appendAnswer appends the answer to p: a byte and, to magicNamed, the ID of the node that answers.
func (p preface) appendAnswer(b []byte, answer byte, nodeID string) []byte {
	b = append(b, answer)
	if p.magic == magicNamed {
		b = appendNodeID(b, nodeID)
	}
	return b
}

func appendNodeID(b []byte, id string) []byte { return append(append(b, byte(len(id))), id...) }

// readNodeID reads what appendNodeID has written. It refuses an ID that no node can have, before it reads all of it.
func readNodeID(r io.Reader) (string, error) {
	var b [1 + maxNodeID]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return "", err
	}
	size := int(b[0])
	if size == 0 || size > maxNodeID {
		return "", fmt.Errorf("a node ID of %d bytes, want 1 to %d", size, maxNodeID)
	}
	id := b[1 : 1+size]
	if _, err := io.ReadFull(r, id); err != nil {
		return "", err
	}
	for _, c := range id { // it is printed
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("%q is not the ID of a node", id)
		}
	}
	return string(id), nil
}

// Target is the address that raft's network transport is given for a member: ID@host:port. With the ID in it, every
// connection that the transport makes, and keeps for the next call, is of that member alone.
func Target(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(string(id) + "@" + string(address))
}

// splitTarget takes a Target apart. ok is false if target is none. No address has an @ in it.
func splitTarget(target raft.ServerAddress) (id, address string, ok bool) {
	at := strings.LastIndexByte(string(target), '@')
	if at < 1 || at > maxNodeID {
		return "", "", false
	}
	return string(target[:at]), string(target[at+1:]), true
}

// conn is an accepted connection whose preface was exchanged.
type conn struct {
	net.Conn
	preface              // of the dialing side
	heard   atomic.Int64 // when something came over it last, in nanoseconds of Unix time
}

func newConn(c net.Conn, p preface) *conn {
	accepted := &conn{Conn: c, preface: p}
	accepted.heard.Store(time.Now().UnixNano())
	return accepted
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Dialer connects to the raft port at address, within ctx.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// dial connects to address and exchanges the preface, within ctx.
func dial(ctx context.Context, connect Dialer, address string, p preface) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c, err := connect(ctx, address)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // ctx may end before its deadline
	deadline, _ := ctx.Deadline()
	if err := greet(c, deadline, p); err != nil {
		_ = c.Close()
		if wrong, ok := errors.AsType[*AnotherNodeError](err); ok {
			wrong.Address = address
			return nil, wrong
		}
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return c, nil
}

// greet sends the preface and reads the answer, until deadline.
func greet(c net.Conn, deadline time.Time, p preface) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(p.append(nil)); err != nil {
		return unanswered(err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return unanswered(err)
	}
	if answer[0] != accepted && answer[0] != foreign && answer[0] != another {
		return ErrNotRaftkv
	}
	there := p.to
	if p.magic == magicNamed {
		var err error
		if there, err = readNodeID(c); err != nil {
			return unanswered(err)
		}
	}
	switch {
	case answer[0] == foreign:
		return ErrForeignCluster
	case there != p.to:
		return &AnotherNodeError{Meant: p.to, There: there}
	case answer[0] == another:
		return ErrNotRaftkv
	}
	return c.SetDeadline(time.Time{})
}

// unanswered is ErrNotRaftkv, if err is that the other side has closed the connection. It may come as an end or as a
// reset, depending on what it has not read. In TLS 1.3 the side that dials hears only now that its certificate is
// refused.
func unanswered(err error) error {
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
		return fmt.Errorf("it refuses the certificate of this node: %w", alert.Err)
	}
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() || errors.Is(err, net.ErrClosed) {
		return err
	}
	return ErrNotRaftkv
}

// readPreface reads what the dialing side must send first.
func readPreface(c net.Conn) (p preface, err error) {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return p, err
	}
	// The magic byte alone gives a stranger away (a web browser, a port scanner), which may never send the rest: it
	// is refused without waiting for that.
	var magic [1]byte
	if _, err := io.ReadFull(c, magic[:]); err != nil {
		return p, err
	}
	p.magic = magic[0]
	if p.magic < magicRaft || p.magic > magicNamed {
		return p, fmt.Errorf("unknown magic byte 0x%02x", p.magic)
	}
	if _, err := io.ReadFull(c, p.cluster[:]); err != nil || p.magic != magicNamed {
		return p, err
	}
	if p.to, err = readNodeID(c); err != nil {
		return p, err
	}
	p.from, err = readNodeID(c)
	return p, err
}
