package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Cut is a link to another member that the lab has cut: a partition of the network that one request makes and another
// heals. A link is cut by the side that opens the connections, as requests of raft go one way over a connection and
// their answers the other: without Out, this node still asks the member and hears its answers.
type Cut struct {
	Address string // of the member's raft port, as the members are told it
	Out     bool   // this node opens no connection to the member
	In      bool   // this node takes none that the member opens
}

// links are the connections of a port, each with the member at its other end, so that those of one member can be
// closed. Its methods may be called by several goroutines at once.
type links struct {
	cuts atomic.Pointer[map[string]Cut] // by member ID; replaced as a whole; nil: none

	mu    sync.Mutex // guards what follows, and member and held of every linked
	conns map[*linked]struct{}
}

// linked is a connection in links.
type linked struct {
	net.Conn
	links   *links
	address string // that was dialed; empty: the other side has dialed
	member  string // ID of the node that has dialed; empty: not known, or not yet
	held    bool
}

// errCutOff is returned for a connection that the lab does not let pass.
var errCutOff = errors.New("cut off by the lab")

// headerFrom is a header of every call of a node in the lab: its ID, which the preface of calls does not carry. Nodes
// that are not in the lab do not look at it.
const headerFrom = "Raftkv-From"

// introduction begins a question for the term that asks nothing and gives the ID of the node that asks. No ID of a node
// begins like that, so a program that does not know it answers that it is another node (answerTerms).
const introduction = "@"

// EnableLab makes Cut possible. It is called before Serve and Stream. Until then no connection costs more than a look
// at a nil pointer.
func (p *Port) EnableLab() { p.links = &links{conns: make(map[*linked]struct{})} }

// Cut cuts the link to the member with that ID, instead of what was cut of it before, and closes the connections that
// it covers; without Out and In, it heals the link. What the member dials is taken for the member's only if that is in
// the lab too. Cut does nothing without EnableLab.
func (p *Port) Cut(id string, c Cut) {
	if p.links == nil {
		return
	}
	p.links.set(func(all map[string]Cut) {
		if delete(all, id); c.Out || c.In {
			all[id] = c
		}
	})
	for _, pool := range p.pools {
		pool.CloseIdleConnections()
	}
}

// Heal heals all links.
func (p *Port) Heal() {
	if p.links != nil {
		p.links.set(func(all map[string]Cut) { clear(all) })
	}
}

// Cuts returns the links that are cut, by the ID of the member. It must not be changed. nil: none.
func (p *Port) Cuts() map[string]Cut {
	if p.links == nil {
		return nil
	}
	if all := p.links.cuts.Load(); all != nil {
		return *all
	}
	return nil
}

// set changes the cuts, and closes what is cut by then. What was held is closed too: it is dialed again at once, if it
// may be, rather than when the dialer gives it up.
func (l *links) set(change func(map[string]Cut)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[string]Cut)
	if was := l.cuts.Load(); was != nil {
		all = maps.Clone(*was)
	}
	change(all)
	if l.cuts.Store(&all); len(all) == 0 {
		l.cuts.Store(nil)
	}
	for c := range l.conns {
		if c.held || l.covers(c.address, c.member) {
			_ = c.Conn.Close()
		}
	}
}

// covers reports whether a connection is cut that this node has dialed to address or that, if address is empty, the
// given member has dialed.
func (l *links) covers(address, member string) bool {
	all := l.cuts.Load()
	if all == nil {
		return false
	}
	if address == "" {
		return (*all)[member].In
	}
	for _, c := range *all {
		if c.Out && c.Address == address {
			return true
		}
	}
	return false
}

// add returns c as one of the links, or closes it with errCutOff.
func (l *links) add(c net.Conn, address, member string) (*linked, error) {
	link := &linked{Conn: c, links: l, address: address, member: member}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.covers(address, member) {
		_ = c.Close()
		return nil, errCutOff
	}
	l.conns[link] = struct{}{}
	return link, nil
}

// Close implements net.Conn.
func (c *linked) Close() error {
	c.links.mu.Lock()
	delete(c.links.conns, c)
	c.links.mu.Unlock()
	return c.Conn.Close()
}

// from sets which member has dialed c, and reports whether its link is cut: then c is closed. Nil is no link.
func (c *linked) from(member string) (cut bool) {
	if c == nil {
		return false
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	if c.member = member; !c.links.covers("", member) {
		return false
	}
	_ = c.Conn.Close()
	return true
}

// linkOf returns the linked below the layers of a connection; nil: there is none.
func linkOf(c net.Conn) *linked {
	for {
		switch layer := c.(type) {
		case *linked:
			return layer
		case *tracked:
			c = layer.Conn
		case *conn:
			c = layer.Conn
		case interface{ NetConn() net.Conn }:
			c = layer.NetConn()
		default:
			return nil
		}
	}
}

// connect is Dial, but for addresses that are cut off.
func (p *Port) connect(ctx context.Context, address string) (net.Conn, error) {
	if p.links == nil {
		return p.Dial(ctx, address)
	}
	if p.links.covers(address, "") {
		return nil, errCutOff
	}
	c, err := p.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	link, err := p.links.add(c, address, "")
	if err != nil {
		return nil, err
	}
	return link, nil
}

// arrived returns an accepted connection as one of the links; member is empty if the preface does not name the dialer.
// From a member that is cut off it is held, unanswered as over a network that loses everything, until the dialer gives
// up, handshakeTimeout is over, or the cuts change.
func (p *Port) arrived(c net.Conn, member string) (net.Conn, error) {
	if p.links == nil {
		return c, nil
	}
	l := p.links
	link := &linked{Conn: c, links: l, member: member}
	l.mu.Lock()
	link.held = l.covers("", member)
	l.conns[link] = struct{}{}
	l.mu.Unlock()
	if !link.held {
		return link, nil
	}
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	_, _ = io.ReadFull(c, make([]byte, 1))
	_ = link.Close()
	return nil, errCutOff
}

type linkKey struct{}

// lab is the handler of calls in the lab: a call of a member that is cut off is not answered.
func (p *Port) lab(next http.Handler) http.Handler {
	if p.links == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		link, _ := r.Context().Value(linkKey{}).(*linked)
		if member := r.Header.Get(headerFrom); member != "" && link.from(member) {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}

// signed is a call as one of this node, in the lab.
func (p *Port) signed(r *http.Request) *http.Request {
	if p.links == nil {
		return r
	}
	r = r.Clone(r.Context()) // which a RoundTripper must not change
	r.Header.Set(headerFrom, p.NodeID)
	return r
}

// introduce gives the ID of this node over a connection for terms, in the lab, within handshakeTimeout.
func (p *Port) introduce(c net.Conn) error {
	if p.links == nil {
		return nil
	}
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	question := introduction + p.NodeID
	if _, err := c.Write(append([]byte{byte(len(question))}, question...)); err != nil {
		return err
	}
	var answer [8]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if term := binary.BigEndian.Uint64(answer[:]); term != 0 {
		return fmt.Errorf("term %d is the answer to no question", term)
	}
	return c.SetDeadline(time.Time{})
}
