package certs

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
)

// Node is the certificate of a node and its authority: ca.crt, node.crt and node.key. Its methods may be called by
// several goroutines at once.
type Node struct{ files files }

// OpenNode reads the files in dir; empty: it returns nil. logf and warnf print what happens to them later.
func OpenNode(dir string, logf, warnf func(format string, args ...any)) (*Node, error) {
	if dir == "" {
		return nil, nil
	}
	n := &Node{files: files{dir: dir, name: "node", authority: true, logf: logf, warnf: warnf}}
	return n, n.files.open()
}

// OnChange has f called each time that other files are in use, and whether the authority is another one. It is set
// before all else.
func (n *Node) OnChange(f func(authority bool)) { n.files.changed = f }

// Check reads the files again, if they have changed. So does every handshake.
func (n *Node) Check() { _ = n.files.current() }

// Warning returns a line about files that can't be used, or about a certificate that ends soon; empty: there is
// nothing. n may be nil.
func (n *Node) Warning() string {
	if n == nil {
		return ""
	}
	return n.files.warning()
}

// Conn is a connection between two nodes that have shown their certificates to each other.
type Conn struct {
	*tls.Conn
	raw        net.Conn
	generation atomic.Uint64 // of the authority by which the other end was last verified
}

// Close closes the connection below at once. (That of tls.Conn may wait 5 s for the other end to take an alert. What
// crosses the raft port has lengths of its own, so that its end need not be authentic.)
func (c *Conn) Close() error { return c.raw.Close() }

// Client shakes hands over c, within ctx, as the end that has dialed. After an error c is closed.
func (n *Node) Client(ctx context.Context, c net.Conn) (*Conn, error) {
	l := n.files.current()
	config := l.config()
	config.RootCAs, config.ServerName = l.pool, NodeName
	return l.shake(ctx, c, tls.Client(c, config))
}

// Server shakes hands over c, within ctx, as the end that was dialed. After an error c is closed.
func (n *Node) Server(ctx context.Context, c net.Conn) (*Conn, error) {
	l := n.files.current()
	config := l.config()
	config.ClientCAs, config.ClientAuth = l.pool, tls.RequireAndVerifyClientCert
	return l.shake(ctx, c, tls.Server(c, config))
}

func (l *loaded) config() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{l.certificate},
		// The certificate is sent whichever authorities the other end names, or its error would be that there is none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &l.certificate, nil },
		VerifyConnection:     func(s tls.ConnectionState) error { return checkNode(s.PeerCertificates, l.pool) },
		// A handshake costs less than a millisecond and is rare; a ticket would outlast the authority.
		SessionTicketsDisabled: true,
		// The first 128 KiB would go in records of one packet each, which is for browsers.
		DynamicRecordSizingDisabled: true,
	}
}

func (l *loaded) shake(ctx context.Context, raw net.Conn, c *tls.Conn) (*Conn, error) {
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	shaken := &Conn{Conn: c, raw: raw}
	shaken.generation.Store(l.generation)
	return shaken, nil
}

// Current reports whether the authority is still that by which the other end of c was verified.
func (n *Node) Current(c *Conn) bool { return c.generation.Load() == n.files.current().generation }

// Verify is for a connection that is used again: it returns an error if the authority has changed and the certificate
// that the other end has shown is not of the present one.
func (n *Node) Verify(c *Conn) error {
	l := n.files.current()
	if c.generation.Load() == l.generation {
		return nil
	}
	if err := checkNode(c.ConnectionState().PeerCertificates, l.pool); err != nil {
		return err
	}
	c.generation.Store(l.generation)
	return nil
}
