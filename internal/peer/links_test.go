package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/testkit"
)

// labPort is a port in the lab, of node id.
type labPort struct {
	*Port
	streams raft.StreamLayer
}

func openLab(t testing.TB, id string) labPort {
	t.Helper()
	p, err := Listen("127.0.0.1:0", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	p.NodeID = id
	p.EnableLab()
	p.SetClusterID(ClusterID{1})
	p.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, id) }),
		func(nodeID string) uint64 {
			if nodeID == id {
				return 7
			}
			return 0
		})
	t.Cleanup(func() { _ = p.Close() })
	return labPort{p, p.Stream()}
}

// reach are the ways by which a port reaches another: a stream of raft, a call, and a question for the term.
func (p labPort) reach(t testing.TB, to labPort) (errs [3]error) {
	t.Helper()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		if c, err := to.streams.Accept(); err == nil {
			_ = c.Close()
		}
	}()
	c, err := p.streams.Dial(targetOf(to.Port), 10*time.Second)
	if errs[0] = err; err == nil {
		_ = c.Close()
	} else { // so that Accept returns
		go func() { to.streams.(*stream).put(nopConn{}) }()
	}
	<-accepted
	r, err := p.Client().Get("http://" + to.Address() + "/")
	if errs[1] = err; err == nil {
		_ = r.Body.Close()
	}
	ctx := askLimit(t, 10*time.Second)
	term, err := p.DialTerm(ctx, to.Address())
	if errs[2] = err; err == nil {
		_, errs[2] = AskTerm(ctx, term, to.NodeID)
		_ = term.Close()
	}
	return errs
}

type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

// TestCut: a cut that goes out keeps this node from the other by every way, one that comes in keeps the other from this
// one, and neither keeps it from a third.
func TestCut(t *testing.T) {
	n1, n2, n3 := openLab(t, "n1"), openLab(t, "n2"), openLab(t, "n3")
	for _, test := range []struct {
		name    string
		cut     Cut
		forth   bool // n1 reaches n2
		back    bool // n2 reaches n1
		refused bool // at once
	}{
		{name: "none", cut: Cut{}, forth: true, back: true},
		{name: "out", cut: Cut{Out: true}, forth: false, back: true, refused: true},
		{name: "in", cut: Cut{In: true}, forth: true, back: false},
		{name: "both", cut: Cut{Out: true, In: true}, forth: false, back: false, refused: true},
		{name: "healed", cut: Cut{}, forth: true, back: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cut.Address = n2.Address()
			n1.Cut("n2", test.cut)
			before := n2.Counts().Accepted
			forth := n1.reach(t, n2)
			if came := n2.Counts().Accepted - before; !test.forth && test.refused && came != 0 {
				t.Errorf("n2 took %d connections of n1, want none", came)
			}
			for name, ways := range map[string]struct {
				errs    [3]error
				reaches bool
			}{
				"n1 to n2": {forth, test.forth},
				"n2 to n1": {n2.reach(t, n1), test.back},
				"n1 to n3": {n1.reach(t, n3), true},
				"n3 to n1": {n3.reach(t, n1), true},
			} {
				for way, err := range ways.errs {
					if (err == nil) != ways.reaches {
						t.Errorf("%s, way %d: got %v, want that it is reached: %t", name, way, err, ways.reaches)
					}
					if name == "n1 to n2" && test.refused && !errors.Is(err, errCutOff) {
						t.Errorf("%s, way %d: got %v, want %v", name, way, err, errCutOff)
					}
				}
			}
		})
	}
	for _, p := range []labPort{n1, n2, n3} {
		testkit.Eventually(t, "no connection is kept that is closed", func() error {
			p.links.mu.Lock()
			defer p.links.mu.Unlock()
			for c := range p.links.conns {
				if _, err := c.Conn.Write(nil); errors.Is(err, net.ErrClosed) {
					return fmt.Errorf("%s keeps one of %q, dialed to %q", p.NodeID, c.member, c.address)
				}
			}
			return nil
		})
	}
}

// TestCutCloses: a cut closes the connections that it covers, and a heal what was held, so that it is dialed again.
func TestCutCloses(t *testing.T) {
	n1, n2 := openLab(t, "n1"), openLab(t, "n2")
	open := func(from, to labPort) (near, far net.Conn) {
		t.Helper()
		accepted := make(chan net.Conn)
		go func() {
			c, _ := to.streams.Accept()
			accepted <- c
		}()
		near, err := from.streams.Dial(targetOf(to.Port), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = near.Close() })
		return near, <-accepted
	}
	ends := func(what string, c net.Conn) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err := c.Read(make([]byte, 1))
		if late, ok := errors.AsType[net.Error](err); err == nil || ok && late.Timeout() {
			t.Errorf("%s: got %v, want that the connection ends", what, err)
		}
	}
	goes := func(what string, near, far net.Conn) {
		t.Helper()
		if _, err := near.Write([]byte("x")); err != nil {
			t.Errorf("%s: got %v, want that it goes on", what, err)
		}
		if _, err := far.Read(make([]byte, 1)); err != nil {
			t.Errorf("%s: got %v, want that it goes on", what, err)
		}
	}
	dialed, _ := open(n1, n2)
	taken, takenAt1 := open(n2, n1)
	n1.Cut("n2", Cut{Address: n2.Address(), Out: true})
	ends("what n1 has dialed", dialed)
	goes("what n2 has dialed", taken, takenAt1)
	n1.Cut("n2", Cut{Address: n2.Address(), In: true})
	ends("what n2 has dialed", taken)

	held := make(chan error)
	go func() {
		_, err := n2.streams.Dial(targetOf(n1.Port), 10*time.Second)
		held <- err
	}()
	testkit.Eventually(t, "a connection is held", func() error {
		n1.links.mu.Lock()
		defer n1.links.mu.Unlock()
		for c := range n1.links.conns {
			if c.held {
				return nil
			}
		}
		return errors.New("none")
	})
	n1.Heal()
	if err := <-held; !errors.Is(err, ErrNotRaftkv) { // rather than that no answer has come in time
		t.Errorf("what was held: got %v, want that it ends with the heal", err)
	}
	if n1.Cuts() != nil {
		t.Errorf("after the heal: got %v, want no cuts", n1.Cuts())
	}
	open(n2, n1)
}

// TestNoLab: without the lab nothing is cut, and no call carries the ID of its node.
func TestNoLab(t *testing.T) {
	p := openPort(t, ClusterID{1})
	p.Cut("n2", Cut{Address: p.Address(), Out: true, In: true})
	p.Heal()
	if cuts := p.Cuts(); cuts != nil {
		t.Errorf("got %v, want no cuts", cuts)
	}
	c, err := p.connect(t.Context(), p.Address())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	r, _ := http.NewRequest(http.MethodGet, "http://n2/", nil)
	if got := p.signed(r); got != r {
		t.Errorf("got a call with %v, want it as it was", got.Header)
	}
}
