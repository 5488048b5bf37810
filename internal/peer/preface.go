package peer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
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
	magicRaft byte = 0xB1
	magicHTTP byte = 0xB2
	magicTerm byte = 0xB3

	accepted byte = 0x01
	foreign  byte = 0x02

	prefaceLen = 1 + len(ClusterID{})

	// handshakeTimeout bounds both sides of the preface.
	handshakeTimeout = 3 * time.Second
)

var (
	// ErrForeignCluster is returned when the other side of a raft stream belongs to another cluster.
	ErrForeignCluster = errors.New("it belongs to another cluster")
	// ErrNotRaftkv is returned when what listens at the address does not answer the preface.
	ErrNotRaftkv = errors.New("what listens there is not the raft port of a raftkv node")
)

// conn is a connection whose preface was exchanged.
type conn struct {
	net.Conn
	cluster ClusterID // of the dialing side, by its own account
}

// Dialer connects to the raft port at address, within ctx.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// dial connects to address and exchanges the preface, within ctx.
func dial(ctx context.Context, connect Dialer, address string, magic byte, cluster ClusterID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c, err := connect(ctx, address)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // ctx may end before its deadline
	deadline, _ := ctx.Deadline()
	if err := greet(c, deadline, magic, cluster); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return c, nil
}

// greet sends the preface and reads the answer, until deadline.
func greet(c net.Conn, deadline time.Time, magic byte, cluster ClusterID) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(append([]byte{magic}, cluster[:]...)); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return ErrNotRaftkv
		}
		return err
	}
	switch answer[0] {
	case accepted:
		return c.SetDeadline(time.Time{})
	case foreign:
		return ErrForeignCluster
	default:
		return ErrNotRaftkv
	}
}

// readPreface reads what the dialing side must send first.
func readPreface(c net.Conn) (magic byte, cluster ClusterID, err error) {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return 0, cluster, err
	}
	var b [prefaceLen]byte
	// The magic byte alone gives a stranger away (a web browser, a port scanner), which may never send the rest: it
	// is refused without waiting for that.
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return 0, cluster, err
	}
	if b[0] != magicRaft && b[0] != magicHTTP && b[0] != magicTerm {
		return 0, cluster, fmt.Errorf("unknown magic byte 0x%02x", b[0])
	}
	if _, err := io.ReadFull(c, b[1:]); err != nil {
		return 0, cluster, err
	}
	return b[0], ClusterID(b[1:]), nil
}
