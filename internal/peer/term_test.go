package peer

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// openTermPort is a port of node n1, whose term is what term returns.
func openTermPort(t testing.TB, cluster ClusterID, term func() uint64) *Port {
	t.Helper()
	p, err := Listen("127.0.0.1:0", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	p.NodeID = "n1"
	p.SetClusterID(cluster)
	p.Serve(nil, func(nodeID string) uint64 {
		if nodeID != "n1" {
			return 0
		}
		return term()
	})
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func askLimit(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestAskTerm(t *testing.T) {
	var term atomic.Uint64
	to := openTermPort(t, ClusterID{1}, term.Load)
	from := openTermPort(t, ClusterID{1}, term.Load)
	ctx := askLimit(t, 30*time.Second)
	if _, err := from.DialTerm(ctx, to.Address()); err == nil {
		t.Error("without a raft instance: got a connection, want an error")
	}
	from.Stream()
	stream := to.Stream()
	c, err := from.DialTerm(ctx, to.Address())
	if err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want < 100; want++ {
		term.Store(want)
		if got, err := AskTerm(ctx, c, "n1"); err != nil || got != want {
			t.Fatalf("got %d, %v, want %d", got, err, want)
		}
	}
	if got, err := AskTerm(ctx, c, "n2"); err == nil {
		t.Errorf("the term of n2, asked of n1: got %d, want an error", got)
	}

	c, err = from.DialTerm(ctx, to.Address())
	if err != nil {
		t.Fatal(err)
	}
	from.CloseStreams(to.Address())
	if _, err := AskTerm(ctx, c, "n1"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after CloseStreams: got %v, want ErrClosed", err)
	}

	c, err = from.DialTerm(ctx, to.Address())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Close()
	if got, err := AskTerm(ctx, c, "n1"); err == nil {
		t.Errorf("of a raft instance that is gone: got %d, want an error", got)
	}

	foreign := openTermPort(t, ClusterID{2}, term.Load)
	foreign.Stream()
	if _, err := from.DialTerm(ctx, foreign.Address()); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("of another cluster: got %v, want ErrForeignCluster", err)
	}
}

// TestLateTermIsNoAnswer: an answer that comes after the deadline must not be taken for that to the next question, as
// it may be older than the read that is asked for.
func TestLateTermIsNoAnswer(t *testing.T) {
	asked, answer := make(chan struct{}, 2), make(chan uint64)
	defer close(answer)
	to := openTermPort(t, ClusterID{1}, func() uint64 { asked <- struct{}{}; return <-answer })
	from := openTermPort(t, ClusterID{1}, nil)
	from.Stream()
	to.Stream()
	c, err := from.DialTerm(askLimit(t, 30*time.Second), to.Address())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if got, err := AskTerm(ctx, c, "n1"); err == nil {
		t.Errorf("without an answer: got %d, want an error", got)
	}
	<-asked
	answer <- 7
	if got, err := AskTerm(askLimit(t, 30*time.Second), c, "n1"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the next question: got %d, %v, want ErrClosed", got, err)
	}
}
