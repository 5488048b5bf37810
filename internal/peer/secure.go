package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"

	"raftkv/internal/certs"
)

// Secure has every connection of the port, dialed and accepted, begin with a handshake in which both ends show the
// certificate of a node (mutual TLS 1.3). When the authority changes, all streams are closed, and raft makes them anew;
// calls under way are finished. With any change, calls no longer use connections that have shown the former
// certificate: another node may trust its authority no more by then. It is called before Serve and Stream; nil: it
// changes nothing.
func (p *Port) Secure(c *certs.Node) {
	if c == nil {
		return
	}
	p.certs = c
	c.OnChange(func(authority bool) {
		for _, pool := range p.pools {
			pool.renew()
		}
		if !authority {
			return
		}
		p.mu.Lock()
		s := p.stream
		p.mu.Unlock()
		if s != nil {
			s.closeIf(func(net.Conn, string) bool { return true })
		}
		p.logf("The authority of the nodes' certificates has changed: all connections to other nodes are made anew")
	})
}

// CheckCertificates reads the certificates again, if they have changed. So does every handshake; this is for a time in
// which there is none.
func (p *Port) CheckCertificates() {
	if p.certs != nil {
		p.certs.Check()
	}
}

// dialSecure is connect with the handshake after it. Everything that the port dials goes by it.
func (p *Port) dialSecure(ctx context.Context, address string) (net.Conn, error) {
	c, err := p.connect(ctx, address)
	if err != nil || p.certs == nil {
		return c, err
	}
	secured, err := p.certs.Client(ctx, c)
	if err == nil {
		return secured, nil
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		err = ErrNotRaftkv
	}
	return nil, fmt.Errorf("connect to %s: %w", address, err)
}

// secure is c with the handshake over, within handshakeTimeout.
func (p *Port) secure(c net.Conn) (net.Conn, error) {
	if p.certs == nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	secured, err := p.certs.Server(ctx, c)
	if err == nil {
		return secured, nil
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
		err = errors.New("it does not speak TLS: it is no node, or one without RAFT_CERT_DIR")
	}
	return nil, fmt.Errorf("handshake: %w", err)
}

var errOutdated = errors.New("the authority of the certificates has changed meanwhile")

// outdated reports whether c, which is tracked by now, was verified by an authority that has changed since: Secure may
// have closed the streams before c was one of them.
func (p *Port) outdated(c net.Conn) bool {
	secured := securedOf(c)
	return secured != nil && !p.certs.Current(secured)
}

// securedOf is the connection of the handshake below the layers of c; nil: there was none.
func securedOf(c net.Conn) *certs.Conn {
	if link, ok := c.(*linked); ok {
		c = link.Conn
	}
	secured, _ := c.(*certs.Conn)
	return secured
}

// verified is handler behind a look at the certificate of the caller, if the authority has changed since it was shown.
// A caller whose certificate is of the present authority too goes on; any other is cut off.
func (p *Port) verified(handler http.Handler) http.Handler {
	if p.certs == nil {
		return handler
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(callerKey{}).(*conn)
		if secured := securedOf(c.Conn); secured != nil {
			if err := p.certs.Verify(secured); err != nil {
				host, _, _ := net.SplitHostPort(r.RemoteAddr)
				p.refused(host, err)
				panic(http.ErrAbortHandler) // which closes the connection
			}
		}
		handler.ServeHTTP(w, r)
	})
}
