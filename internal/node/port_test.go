package node

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/kv"
	"raftkv/internal/peer"
)

// What FuzzRaftPort sends before its bytes.
const (
	bare         = iota // nothing
	foreignRaft         // the preface of a raft stream of another cluster
	foreignCalls        // the preface of calls of another cluster
	cutOff              // as much of the own cluster's preface as there are bytes, which follow as they are
	ownRaft             // the preface of a raft stream of the own cluster
	ownTerm             // the preface of questions for a term, of the own cluster
	ownNamed            // the preface of a raft stream of the own cluster for the node that is there
	ownIDs              // the beginning of such a preface, without the IDs
	kinds
)

// FuzzRaftPort: whatever a stranger sends to the raft port, the node goes on, nothing
// enters its log, and its memory stays bounded.
//
// Whoever has the cluster's ID, which /info tells to anybody who reaches the port, may do
// what a member may: have the node vote, and take entries that pass the gate. So ownRaft
// is sent to a transport alone, whose gate is as a node's. TestGate has what a node does.
func FuzzRaftPort(f *testing.F) {
	n := openNode(f, "n1", f.TempDir(), func(c *Config) {
		c.ElectionTimeout, c.SnapshotThreshold = time.Second, 1000
		c.RaftLog, c.Logf = hclog.NewNullLogger(), func(string, ...any) {}
	})
	n.waitLeader(f)
	write := func(t testing.TB) (index uint64) {
		t.Helper()
		result, err := n.Propose(t.Context(), setting("k", "v"))
		if err != nil {
			t.Fatalf("a write: %v, want that it is acknowledged", err)
		}
		return result.Index
	}
	last := write(f)
	id, err := hex.DecodeString(n.Info().ClusterID)
	if err != nil {
		f.Fatal(err)
	}
	member, decoder := listenPeer(f, "new"), listenPeer(f, "old")
	caller := peer.NewTransport(member.Stream(), hclog.NewNullLogger(), time.Second)
	called := peer.NewTransport(decoder.Stream(), hclog.NewNullLogger(), time.Second)
	called.SetGate(&peer.Gate{
		Known:        func() (term uint64, leader string, committed uint64) { return 7, "", 1 },
		TermAt:       func(uint64) (term uint64, ok bool) { return 7, true },
		CheckCommand: command.Check,
		Receive: func(_ *raft.InstallSnapshotRequest, _ raft.Configuration, r io.Reader) (func(), error) {
			_, err := kv.PrepareSnapshot(r)
			return func() {}, err
		},
		Refused: func(string, ...any) {},
	})
	done := make(chan struct{})
	f.Cleanup(func() {
		close(done)
		_ = caller.Close()
		_ = called.Close()
	})
	go func() {
		for {
			select {
			case rpc := <-called.Consumer():
				rpc.Respond(&raft.RequestVoteResponse{Term: 7}, nil)
			case <-done:
				return
			}
		}
	}()

	foreign := strings.Repeat("\x07", 16)
	for _, text := range []string{"", "\x00", "\xb1", "\xb2", "\xb3", "GET / HTTP/1.1\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00", "\xb1" + foreign, "\xb2" + foreign, "\xb3" + foreign, "\xb1" + foreign[1:],
		"\xb4", "\xb4" + foreign, "\xb4" + foreign + "\x02n1\x02n2", "\xb5"} {
		f.Add(byte(bare), []byte(text))
	}
	for size := range 17 {
		f.Add(byte(cutOff), []byte(foreign[:size]))
	}
	for _, text := range []string{
		"GET /info HTTP/1.1\r\nHost: x\r\n\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /adopt HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"POST /removed HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"POST /release HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"POST /leave?nodeId=n1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz",
		"GET /readindex HTTP/1.1\r\nHost: x\r\n\r\n", "GET /committed?index=1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET //info HTTP/1.0\r\n\r\n", "\x00",
	} {
		f.Add(byte(foreignCalls), []byte(text))
	}
	for _, rpc := range rpcs(f) {
		for _, kind := range []byte{foreignRaft, ownRaft, ownNamed} {
			f.Add(kind, rpc)
			f.Add(kind, rpc[:len(rpc)/2])
		}
	}
	for _, text := range []string{"", "\x09", "\x00\xc0", "\x00\x93", "\x00\x81\xa7Entries\x91\xc0",
		"\x00\x81\xa7Entries\xdd\x7f\xff\xff\xff\xc0", "\x00" + strings.Repeat("\x81\xa1x", 5000), "\x00" +
			strings.Repeat("\x91", 5000)} {
		f.Add(byte(ownRaft), []byte(text))
	}

	for _, text := range []string{"", "\x00", "\x02n1", "\x02n1\x02n2\x02n", "\xff" + strings.Repeat("n", 255),
		strings.Repeat("\x02n1", 5000)} {
		f.Add(byte(ownTerm), []byte(text))
	}

	for _, text := range []string{"", "\x00\x00", "\x02n1\x02n2", "\x03old\x00", "\x03old\x02n", "\x03old\x02n2",
		"\x02 \n\x02n2",
		"\x40" + strings.Repeat("n", 64) + "\x40" + strings.Repeat("m", 64), "\x41" + strings.Repeat("n", 65), "\xff"} {
		f.Add(byte(ownIDs), []byte(text))
	}

	f.Fuzz(func(t *testing.T, kind byte, rest []byte) {
		before := totalAlloc() // what one input costs: a fuzzing worker keeps 50 MiB for itself
		address, text := n.RaftAddress(), rest
		switch kind % kinds {
		case foreignRaft:
			text = append([]byte("\xb1"+foreign), rest...)
		case foreignCalls:
			text = append([]byte("\xb2"+foreign), rest...)
		case cutOff:
			text = append([]byte{0xb1}, id[:min(len(rest), len(id)-1)]...)
		case ownTerm:
			text = append(append([]byte{0xb3}, id...), rest...)
		case ownRaft, ownNamed, ownIDs:
			own := peer.ClusterID{1}
			begin := map[byte]string{ownRaft: "\xb1" + string(own[:]), ownNamed: "\xb4" + string(own[:]) + "\x03old\x02n2",
				ownIDs: "\xb4" + string(own[:])}[kind%kinds]
			address, text = decoder.Address(), append([]byte(begin), rest...)
		}
		sendAll(t, address, text)

		index := write(t)
		if index != last+1 {
			t.Errorf("the log went from %d to %d before the write, want no new entry", last, index-1)
		}
		last = index
		if got, err := n.members.ask(t.Context(), n.RaftAddress()); err != nil || got.NodeID != "n1" {
			t.Errorf("/info afterwards: got %+v, %v, want n1", got, err)
		}
		if address == decoder.Address() {
			var response raft.RequestVoteResponse
			request := &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax,
				ID: []byte("new"), Addr: []byte(member.Address())}, Term: 7}
			if err := caller.RequestVote("old", raft.ServerAddress(decoder.Address()), request, &response); err != nil ||
				response.Term != 7 {
				t.Errorf("an RPC of another member: got %+v, %v, want an answer of term 7", response, err)
			}
		}
		if got, most := totalAlloc()-before, uint64(16<<20); got > most {
			t.Errorf("%d bytes were allocated for one input, want %d at most", got, most)
		}
	})
}

func totalAlloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// sendAll sends text, ends the sending side, and waits until the node has closed the
// connection.
func sendAll(t testing.TB, address string, text []byte) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = c.Write(text) // the node may refuse it before it has all
	_ = c.(*net.TCPConn).CloseWrite()
	_, err = io.Copy(io.Discard, c)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		t.Errorf("the connection was not closed after %.200q", text)
	}
}

// rpcs are some calls as raft's own transport sends them.
func rpcs(t testing.TB) (all [][]byte) {
	t.Helper()
	for _, call := range []func(*raft.NetworkTransport, raft.ServerAddress){
		func(n *raft.NetworkTransport, a raft.ServerAddress) {
			_ = n.AppendEntries("n", a, &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3,
				ID: []byte("n9"), Addr: []byte(a)},
				Term: 1 << 60, PrevLogEntry: 1, Entries: []*raft.Log{{Index: 2, Term: 3, Data: []byte("data"),
					AppendedAt: time.Unix(1, 2)}}, LeaderCommitIndex: 9}, new(raft.AppendEntriesResponse))
		},
		func(n *raft.NetworkTransport, a raft.ServerAddress) {
			_ = n.RequestVote("n", a, &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}, Term: 1 << 60,
				LeadershipTransfer: true}, new(raft.RequestVoteResponse))
		},
		func(n *raft.NetworkTransport, a raft.ServerAddress) {
			_ = n.TimeoutNow("n", a, &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}},
				new(raft.TimeoutNowResponse))
		},
		func(n *raft.NetworkTransport, a raft.ServerAddress) {
			_ = n.InstallSnapshot("n", a, &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3},
				Term: 1 << 60, Size: 4}, new(raft.InstallSnapshotResponse), strings.NewReader("data"))
		},
	} {
		wire := &taped{}
		n := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: wire, MaxPool: 1,
			Timeout: time.Second, Logger: hclog.NewNullLogger()})
		call(n, "taped:1")
		_ = n.Close()
		all = append(all, wire.sent.Bytes())
	}
	return all
}

// taped is a raft.StreamLayer whose one connection keeps what is sent, and ends.
type taped struct {
	net.Conn
	sent bytes.Buffer
}

func (w *taped) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return w, nil }
func (w *taped) Accept() (net.Conn, error)                                { return nil, net.ErrClosed }
func (w *taped) Addr() net.Addr                                           { return &net.TCPAddr{} }
func (w *taped) Close() error                                             { return nil }
func (w *taped) Read([]byte) (int, error)                                 { return 0, io.EOF }
func (w *taped) Write(b []byte) (int, error)                              { return w.sent.Write(b) }
func (w *taped) SetDeadline(time.Time) error                              { return nil }
