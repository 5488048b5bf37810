package peer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestPrefaceGolden: the bytes of every preface and of the answers to it. They are the same in every version of the
// program.
func TestPrefaceGolden(t *testing.T) {
	cluster := ClusterID{0: 0xc1, 15: 0xcf}
	const id = "c10000000000000000000000000000cf"
	for _, test := range []struct {
		name    string
		preface preface
		want    string
		answers [3]string // accepted, foreign, another; by node n3
	}{
		{name: "raft's stream, version 1", preface: preface{magic: magicRaft, cluster: cluster}, want: "b1" + id,
			answers: [3]string{"01", "02", "03"}},
		{name: "calls", preface: preface{magic: magicHTTP, cluster: cluster}, want: "b2" + id,
			answers: [3]string{"01", "02", "03"}},
		{name: "questions for the term", preface: preface{magic: magicTerm, cluster: cluster}, want: "b3" + id,
			answers: [3]string{"01", "02", "03"}},
		{name: "raft's stream, version 2", preface: preface{magic: magicNamed, cluster: cluster, to: "n12", from: "a"},
			want: "b4" + id + "036e3132" + "0161", answers: [3]string{"01026e33", "02026e33", "03026e33"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			encoded := test.preface.append(nil)
			if got := hex.EncodeToString(encoded); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			read, err := readPreface(recorded{Reader: bytes.NewReader(encoded)})
			if err != nil || read != test.preface {
				t.Errorf("read again: got %+v, %v, want %+v", read, err, test.preface)
			}
			for i, want := range test.answers {
				if got := hex.EncodeToString(test.preface.appendAnswer(nil, byte(i+1), "n3")); got != want {
					t.Errorf("answer %d: got %s, want %s", i+1, got, want)
				}
			}
		})
	}
}

// recorded is a connection from which given bytes are read.
type recorded struct {
	net.Conn
	io.Reader
}

func (r recorded) Read(b []byte) (int, error)        { return r.Reader.Read(b) }
func (r recorded) SetDeadline(time.Time) error       { return nil }
func (r recorded) Write(b []byte) (n int, err error) { return len(b), nil }

// FuzzReadPreface: what is read as a preface is exactly what is written for it, and has IDs that can be printed.
func FuzzReadPreface(f *testing.F) {
	for _, p := range []preface{{magic: magicRaft}, {magic: magicNamed, to: "n1", from: strings.Repeat("n", maxNodeID)}} {
		f.Add(p.append(nil))
		f.Add(p.append(nil)[:18])
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		p, err := readPreface(recorded{Reader: bytes.NewReader(input)})
		if err != nil {
			return
		}
		if got := p.append(nil); !bytes.HasPrefix(input, got) {
			t.Errorf("%x was read as %+v, which is %x", input, p, got)
		}
		if p.magic == magicNamed && (strings.ContainsAny(p.to+p.from, " \n\x00\x1b\x7f") || p.to == "" || p.from == "") {
			t.Errorf("%x was read as %+v, want IDs of nodes", input, p)
		}
	})
}

// TestGreetAnswers has all answers to a preface with node IDs.
func TestGreetAnswers(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		want         error // nil: the connection is made
		another      string
	}{
		{name: "accepted", answer: "\x01\x02n1"},
		{name: "foreign", answer: "\x02\x02n1", want: ErrForeignCluster},
		{name: "another node", answer: "\x03\x02n2", another: "n2"},
		{name: "accepted by another node", answer: "\x01\x02n2", another: "n2"},
		{name: "another node with the ID that is meant", answer: "\x03\x02n1", want: ErrNotRaftkv},
		{name: "an answer without an ID", answer: "\x01", want: ErrNotRaftkv},
		{name: "half an ID", answer: "\x01\x02n", want: ErrNotRaftkv},
		{name: "an ID that is none", answer: "\x01\x02\x1b[", want: ErrNotRaftkv},
		{name: "an unknown answer", answer: "\x04\x02n1", want: ErrNotRaftkv},
		{name: "none", answer: "", want: ErrNotRaftkv},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := greet(recorded{Reader: strings.NewReader(test.answer)}, time.Now(),
				preface{magic: magicNamed, to: "n1", from: "n9"})
			wrong, ok := errors.AsType[*AnotherNodeError](err)
			if ok != (test.another != "") || ok && (wrong.There != test.another || wrong.Meant != "n1") {
				t.Errorf("got %v, want another node %q", err, test.another)
			}
			if !ok && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// TestAnotherNodeIsRefused: a connection to another node than the one that is meant is refused by that, and the error
// names both.
func TestAnotherNodeIsRefused(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{1}) // b is n1
	b.Stream()
	address := raft.ServerAddress(b.Address())
	_, err := a.Stream().Dial(Target("n7", address), 10*time.Second)
	if want := "n1 answers at " + b.Address() + ", not n7"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
	waitForLine(t, b, "n1 dials n7, and this is n1") // the next refusal has no line of its own within a second
	c := dialPort(t, b.Port)
	if _, err := c.Write(preface{magic: magicNamed, cluster: ClusterID{1}, to: "n7", from: "n9"}.append(nil)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "\x03\x02n1" || err != nil {
		t.Errorf("the answer to a node that does not look at the ID: got %q, %v, want that it is another", got, err)
	}
	if _, err := a.Stream().Dial(address, 10*time.Second); err == nil {
		t.Error("without an ID: got a connection, want an error")
	}
}

func waitForLine(t testing.TB, p *testPort, want string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := strings.Join(p.logged(), "\n")
		if strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("logged %q, want %q", got, want)
		}
	}
}

// TestOlderProgram: a node of a program without node IDs in the preface is dialed by the older preface, if the member
// that is meant says that it is one; nobody else is.
func TestOlderProgram(t *testing.T) {
	for _, test := range []struct {
		name     string
		older    bool // by its own account
		required bool // RequireNamed at the dialer
		want     bool // that it is dialed by the older preface
	}{
		{name: "older", older: true, want: true},
		{name: "not older, or another node", older: false},
		{name: "older, in a cluster without such members", older: true, required: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			defer func() { _ = l.Close(); <-done }()
			go func() { // as a program that knows version 1 alone
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					if p, err := readPreface(c); err == nil && p.magic == magicRaft {
						_, _ = c.Write([]byte{accepted})
					}
					_ = c.Close()
				}
			}()
			a := openPort(t, ClusterID{1})
			asked := ""
			a.Older = func(_ context.Context, nodeID, address string) bool {
				asked = nodeID + "@" + address
				return test.older
			}
			a.RequireNamed(test.required)
			target := Target("n7", raft.ServerAddress(l.Addr().String()))
			c, err := a.Stream().Dial(target, 10*time.Second)
			if got := err == nil; got != test.want {
				t.Errorf("got %v, want a connection: %v", err, test.want)
			}
			if err == nil {
				_ = c.Close()
			} else if !errors.Is(err, ErrNotRaftkv) {
				t.Errorf("got %v, want ErrNotRaftkv", err)
			}
			if !test.required && asked != string(target) {
				t.Errorf("asked %q, want %q", asked, target)
			}
		})
	}
}

// TestRequireNamed: streams of older programs, those that are open too, end when no member is of such a program.
func TestRequireNamed(t *testing.T) {
	a, b := openPort(t, ClusterID{1}), openPort(t, ClusterID{1})
	to := b.Stream()
	accepted := make(chan struct{}, 2)
	accept := func() {
		if c, err := to.Accept(); err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		accepted <- struct{}{}
	}
	dialOld := func() (net.Conn, error) {
		c := dialPort(t, b.Port)
		return c, greet(c, time.Now().Add(30*time.Second), preface{magic: magicRaft, cluster: ClusterID{1}})
	}
	go accept()
	old, err := dialOld()
	if err != nil {
		t.Fatalf("of an older program, at first: %v", err)
	}
	<-accepted // else it may be refused after all, and accept would take the connection of exchange
	b.RequireNamed(true)
	_ = old.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = old.Read(make([]byte, 1))
	if late, ok := errors.AsType[net.Error](err); err == nil || ok && late.Timeout() {
		t.Errorf("one that is open: got %v, want that it is closed", err)
	}
	if _, err := dialOld(); !errors.Is(err, ErrNotRaftkv) {
		t.Errorf("a further one: got %v, want that it is closed without an answer", err)
	}
	waitForLine(t, b, "its program is too old for this cluster")
	if err := exchange(t, a.Stream(), to); err != nil {
		t.Errorf("one that names the node: %v", err)
	}
	b.RequireNamed(false)
	go accept()
	if _, err := dialOld(); err != nil {
		t.Errorf("when it is not required: %v", err)
	}
}

// TestTransportMeansOneMember: every call of raft is of the member that raft means, also over a connection that is kept
// from a call of another member at the same address.
func TestTransportMeansOneMember(t *testing.T) {
	receiver := NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), 0) // n2
	t.Cleanup(func() { _ = receiver.Close() })
	receiver.SetGate(&Gate{
		Known:  func() (term uint64, leader string, committed uint64) { return 1, "", 0 },
		TermAt: func(uint64) (term uint64, ok bool) { return 0, false },
		Receive: func(_ *raft.InstallSnapshotRequest, _ raft.Configuration, r io.Reader) (func(), error) {
			_, err := io.Copy(io.Discard, r)
			return func() {}, err
		},
		Refused: t.Errorf,
	})
	go func() {
		for {
			select {
			case rpc := <-receiver.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
			case <-receiver.closed.Done():
				return
			}
		}
	}()
	sender := NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), time.Millisecond)
	t.Cleanup(func() { _ = sender.Close() })
	sender.SetStillLeads(func(uint64, raft.ServerID, raft.ServerAddress) bool { return true })
	to := receiver.LocalAddr()
	header := headerOf("n2")
	heartbeat := &raft.AppendEntriesRequest{RPCHeader: header, Term: 1}
	members := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n2", Address: "127.0.0.1:9001"}}})
	for name, call := range map[string]func(id raft.ServerID) error{
		"AppendEntries": func(id raft.ServerID) error {
			return sender.AppendEntries(id, to, heartbeat, new(raft.AppendEntriesResponse))
		},
		"AppendEntriesOnce": func(id raft.ServerID) error {
			return sender.AppendEntriesOnce(id, to, heartbeat, new(raft.AppendEntriesResponse))
		},
		"RequestVote": func(id raft.ServerID) error {
			return sender.RequestVote(id, to, &raft.RequestVoteRequest{RPCHeader: header, Term: 1},
				new(raft.RequestVoteResponse))
		},
		"RequestPreVote": func(id raft.ServerID) error {
			return sender.RequestPreVote(id, to, &raft.RequestPreVoteRequest{RPCHeader: header, Term: 1},
				new(raft.RequestPreVoteResponse))
		},
		"InstallSnapshot": func(id raft.ServerID) error {
			return sender.InstallSnapshot(id, to, &raft.InstallSnapshotRequest{RPCHeader: header, Term: 1,
				SnapshotVersion: 1, LastLogIndex: 1, LastLogTerm: 1, Configuration: members, Size: 1},
				new(raft.InstallSnapshotResponse), strings.NewReader("x"))
		},
		"TimeoutNow": func(id raft.ServerID) error {
			return sender.TimeoutNow(id, to, &raft.TimeoutNowRequest{RPCHeader: header}, new(raft.TimeoutNowResponse))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := call("n2"); err != nil {
				t.Fatalf("the member that is there: %v", err)
			}
			err := call("n7")
			if wrong, ok := errors.AsType[*AnotherNodeError](err); !ok || wrong.There != "n2" || wrong.Meant != "n7" {
				t.Errorf("another one: got %v, want that n2 answers, not n7", err)
			}
		})
	}
}

// TestTimeoutNowReturns: raft takes no entries until it has, whatever the member does.
func TestTimeoutNowReturns(t *testing.T) {
	receiver := NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), 0) // nothing takes its calls
	t.Cleanup(func() { _ = receiver.Close() })
	receiver.SetGate(&Gate{Known: func() (term uint64, leader string, committed uint64) { return 1, "", 0 }})
	sender := NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), 0)
	returned := make(chan error, 1)
	go func() {
		returned <- sender.TimeoutNow("n2", receiver.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: headerOf("n2")},
			new(raft.TimeoutNowResponse))
	}()
	begin := time.Now()
	if err := <-returned; err == nil || time.Since(begin) > 8*time.Second { // raft's own limit is 10 s
		t.Errorf("got %v after %v, want an error after about %v", err, time.Since(begin), TimeoutNowLimit)
	}
	_ = sender.Close()
}
