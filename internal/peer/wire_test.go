package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// pipes is a raft.StreamLayer over pipes in memory.
type pipes struct {
	accepted chan net.Conn
	closed   context.Context
	close    context.CancelFunc
}

func newPipes() *pipes {
	p := &pipes{accepted: make(chan net.Conn)}
	p.closed, p.close = context.WithCancel(context.Background())
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accepted:
		return c, nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.accepted <- there:
		return here, nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Addr() net.Addr { return address("pipes:1") }
func (p *pipes) Close() error   { p.close(); return nil }

// raftDecodes returns what raft's own transport makes of a request; nil: it refuses it.
func raftDecodes(t testing.TB, text []byte) any {
	t.Helper()
	stream := newPipes()
	n := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream, Logger: hclog.NewNullLogger()})
	defer func() { _ = n.Close() }()
	c, err := stream.Dial("", 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Write(text)
		_, _ = io.Copy(io.Discard, c)
	}()
	go func() {
		time.Sleep(time.Second) // for one that waits for more; only whether it is accepted counts
		_ = c.Close()
	}()
	select {
	case rpc := <-n.Consumer():
		_ = c.Close()
		rpc.Respond(nil, nil)
		return rpc.Command
	case <-ended:
		return nil
	}
}

func decode(text []byte) (request any, left int, err error) {
	if len(text) == 0 || requestName(text[0]) == "" {
		return nil, 0, errors.New("no request")
	}
	in := bytes.NewReader(text[1:])
	r := bufio.NewReader(in)
	w := wire{r: r, left: maxRequest, receiving: new(atomic.Int64)}
	request = w.request(text[0])
	w.release()
	if got := w.receiving.Load(); got != 0 {
		return nil, 0, errors.New("its bytes are counted for ever")
	}
	return request, in.Len() + r.Buffered(), w.err
}

// sentBy returns what raft's own transport sends by call.
func sentBy(t testing.TB, call func(*raft.NetworkTransport)) []byte {
	t.Helper()
	stream := newPipes()
	n := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: &sendOnlyPipes{stream},
		Logger: hclog.NewNullLogger(), Timeout: 10 * time.Second})
	done := make(chan struct{})
	go func() {
		defer close(done)
		call(n)
	}()
	c := <-stream.accepted
	var text bytes.Buffer
	chunk := make([]byte, 1<<20)
	for {
		size, err := c.Read(chunk) // raft's buffer holds a whole request
		text.Write(chunk[:size])
		if request, left, decoded := decode(text.Bytes()); decoded == nil && request != nil && left == 0 || err != nil {
			break
		}
	}
	_ = c.Close()
	<-done
	_ = n.Close()
	return text.Bytes()
}

type sendOnlyPipes struct{ *pipes }

func (p *sendOnlyPipes) Accept() (net.Conn, error) {
	<-p.closed.Done()
	return nil, net.ErrClosed
}

var sampleHeader = raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n1"), Addr: []byte("127.0.0.1:9000")}

// samples are requests as raft sends them, of every kind.
func samples() []any {
	return []any{
		//lint:ignore SA1019 raft sends it
		&raft.AppendEntriesRequest{RPCHeader: sampleHeader, Term: 300, Leader: []byte("127.0.0.1:9000")},
		&raft.AppendEntriesRequest{RPCHeader: sampleHeader, Term: 70000, PrevLogEntry: 1 << 40, PrevLogTerm: 127,
			LeaderCommitIndex: 129, Entries: []*raft.Log{
				{Index: 1<<40 + 1, Term: 128, Type: raft.LogCommand, Data: []byte("data"), AppendedAt: time.Unix(1, 2)},
				{Index: 1<<40 + 2, Term: 256, Type: raft.LogNoop, Extensions: []byte{}},
				{Index: 1<<40 + 3, Term: 65536, Type: raft.LogConfiguration, Data: make([]byte, 300)},
				{Index: 1<<40 + 4, Term: 70000, Type: raft.LogBarrier, Data: make([]byte, 70000)},
			}},
		//lint:ignore SA1019 raft sends it
		&raft.RequestVoteRequest{RPCHeader: sampleHeader, Term: 7, Candidate: []byte("127.0.0.1:9000"), LastLogIndex: 6,
			LastLogTerm: 5, LeadershipTransfer: true},
		&raft.RequestPreVoteRequest{RPCHeader: sampleHeader, Term: 7, LastLogIndex: 6, LastLogTerm: 5},
		&raft.InstallSnapshotRequest{RPCHeader: sampleHeader, SnapshotVersion: 1, Term: 9, Leader: []byte("127.0.0.1:9000"),
			LastLogIndex: 8, LastLogTerm: 7, Peers: []byte{0x90}, Configuration: raft.EncodeConfiguration(members),
			ConfigurationIndex: 1, Size: 1 << 33},
		&raft.TimeoutNowRequest{RPCHeader: sampleHeader},
	}
}

var members = raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:9000"},
	{Suffrage: raft.Nonvoter, ID: "n2", Address: "127.0.0.1:9001"}}}

// send has n send request.
func send(n *raft.NetworkTransport, request any) {
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		_ = n.AppendEntries("n2", "n2", r, new(raft.AppendEntriesResponse))
	case *raft.RequestVoteRequest:
		_ = n.RequestVote("n2", "n2", r, new(raft.RequestVoteResponse))
	case *raft.RequestPreVoteRequest:
		_ = n.RequestPreVote("n2", "n2", r, new(raft.RequestPreVoteResponse))
	case *raft.InstallSnapshotRequest:
		_ = n.InstallSnapshot("n2", "n2", r, new(raft.InstallSnapshotResponse), strings.NewReader(""))
	case *raft.TimeoutNowRequest:
		_ = n.TimeoutNow("n2", "n2", r, new(raft.TimeoutNowResponse))
	}
}

// TestDecodesWhatRaftSends: every request that raft sends is decoded as it was.
func TestDecodesWhatRaftSends(t *testing.T) {
	for _, request := range samples() {
		got, left, err := decode(sentBy(t, func(n *raft.NetworkTransport) { send(n, request) }))
		if err != nil || left != 0 {
			t.Errorf("%T: %v, and %d bytes are left", request, err, left)
			continue
		}
		checkSame(t, got, request)
	}
}

// checkSame fails the test unless got is request, with times that are equal.
func checkSame(t testing.TB, got, want any) {
	t.Helper()
	for _, request := range []any{got, want} {
		if a, ok := request.(*raft.AppendEntriesRequest); ok {
			for _, l := range a.Entries {
				l.AppendedAt = l.AppendedAt.UTC()
				if len(l.Data) == 0 {
					l.Data = nil // raft's decoder makes it empty, or nil, by what was in its place
				}
				if len(l.Extensions) == 0 {
					l.Extensions = nil
				}
			}
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestAnswers: raft's transport decodes the answers.
func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		request, response, got any
		failure                error
	}{
		{request: samples()[0], response: &raft.AppendEntriesResponse{RPCHeader: sampleHeader, Term: 1 << 40, LastLog: 127,
			Success: true, NoRetryBackoff: true}, got: new(raft.AppendEntriesResponse)},
		{request: samples()[2], response: &raft.RequestVoteResponse{RPCHeader: sampleHeader, Term: 128, Granted: true},
			got: new(raft.RequestVoteResponse)},
		{request: samples()[3], response: &raft.RequestPreVoteResponse{RPCHeader: sampleHeader, Term: 128, Granted: true},
			got: new(raft.RequestPreVoteResponse)},
		{request: samples()[4], response: &raft.InstallSnapshotResponse{Term: 3, Success: true},
			got: new(raft.InstallSnapshotResponse)},
		{request: samples()[5], response: &raft.TimeoutNowResponse{RPCHeader: sampleHeader},
			got: new(raft.TimeoutNowResponse)},
		{request: samples()[0], failure: errors.New(strings.Repeat("no ", 50)), got: new(raft.AppendEntriesResponse)},
		{request: samples()[0], response: 5, failure: errors.New("raft answers with a int"),
			got: new(raft.AppendEntriesResponse)},
	} {
		stream := newPipes()
		n := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: &sendOnly{
			StreamLayer: &sendOnlyPipes{stream}, closed: stream.closed, close: stream.close}, Timeout: 10 * time.Second,
			Logger: hclog.NewNullLogger()})
		go func() {
			c := <-stream.accepted
			go func() { _, _ = io.Copy(io.Discard, c) }()
			_, _ = c.Write(appendAnswer(nil, test.response, test.failure))
		}()
		var err error
		switch r := test.request.(type) {
		case *raft.AppendEntriesRequest:
			err = n.AppendEntries("n2", "n2", r, test.got.(*raft.AppendEntriesResponse))
		case *raft.RequestVoteRequest:
			err = n.RequestVote("n2", "n2", r, test.got.(*raft.RequestVoteResponse))
		case *raft.RequestPreVoteRequest:
			err = n.RequestPreVote("n2", "n2", r, test.got.(*raft.RequestPreVoteResponse))
		case *raft.InstallSnapshotRequest:
			err = n.InstallSnapshot("n2", "n2", r, test.got.(*raft.InstallSnapshotResponse), strings.NewReader(""))
		case *raft.TimeoutNowRequest:
			err = n.TimeoutNow("n2", "n2", r, test.got.(*raft.TimeoutNowResponse))
		}
		_ = n.Close()
		if test.failure != nil {
			if err == nil || err.Error() != test.failure.Error() {
				t.Errorf("got %v, want %v", err, test.failure)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(test.got, test.response) {
			t.Errorf("%T: got %+v, %v, want %+v", test.request, test.got, err, test.response)
		}
	}
}

// lies are requests, and parts of them, that announce more than they have: what they announce must not be allocated.
var lies = map[string]string{
	"a time":                          "\x00\x81\xa7Entries\x91\x81\xaaAppendedAt\xc9\xff\xff\xff\xf0\xff",
	"a time as a string":              "\x00\x81\xa7Entries\x91\x81\xaaAppendedAt\xdb\xff\xff\xff\xf0",
	"a field that raft does not know": "\x01\x81\xa5Other\xc9\xff\xff\xff\xf0\xff",
	"a string that is skipped":        "\x01\x81\xa5Other\xdb\xff\xff\xff\xf0",
	"an entry of 600 MiB":             "\x00\x81\xa7Entries\x91\x81\xa4Data\xdb\x25\x80\x00\x00",
	"an entry of 79 MiB":              "\x00\x81\xa7Entries\x91\x81\xa4Data\xdb\x04\xf0\x00\x00",
	"entries without number":          "\x00\x81\xa7Entries\xdd\x7f\xff\xff\xff\xc0",
	"an address":                      "\x01\x81\xa4Addr\xdb\x10\x00\x00\x00",
	"peers":                           "\x02\x81\xa5Peers\xdb\x10\x00\x00\x00",
	"a configuration":                 "\x02\x81\xadConfiguration\xdb\x00\x0f\x00\x00",
	"fields without number":           "\x03\xdf\xff\xff\xff\xff",
	"the name of a field":             "\x03\x81\xdb\xff\xff\xff\xff",
	"a nil entry":                     "\x00\x81\xa7Entries\x91\xc0",
	"a field twice":                   "\x00\x82\xa4Term\x01\xa4Term\x01",
	"values in values":                "\x03\x81\xa1x" + strings.Repeat("\x91", 1000) + "\xc0",
}

// TestLengthsAreNotBelieved: not by the decoder of requests, and not by that of answers.
func TestLengthsAreNotBelieved(t *testing.T) {
	for name, text := range lies {
		t.Run(name, func(t *testing.T) {
			if _, _, err := decode([]byte(text)); err == nil {
				t.Error("it was decoded")
			}
			if got := allocatedBy(func() { _, _, _ = decode([]byte(text)) }); got > 4<<20 {
				t.Errorf("decoding it allocates %d bytes", got)
			}
			a := &answers{r: bufio.NewReader(strings.NewReader("\xa0" + text[1:]))}
			if got := allocatedBy(func() { _, _ = io.ReadAll(a) }); got > 4<<20 {
				t.Errorf("reading it as an answer allocates %d bytes", got)
			}
		})
	}
}

// allocatedBy returns how many bytes f allocates, or what runs beside it.
func allocatedBy(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestRequestIsBounded: one of more bytes than a request may have is refused, though no part of it is too large.
func TestRequestIsBounded(t *testing.T) {
	text := sentBy(t, func(n *raft.NetworkTransport) { send(n, samples()[1]) })
	for _, left := range []int{0, 1, len(text) / 2, len(text) - 2, len(text) - 1} {
		w := wire{r: bufio.NewReader(bytes.NewReader(text[1:])), left: left}
		w.request(text[0])
		if want := left < len(text)-1; (w.err != nil) != want {
			t.Errorf("%d bytes of %d: got %v, want that it is refused: %v", left, len(text)-1, w.err, want)
		}
	}
}

// TestReceivingIsBounded: many large requests at once are refused beyond maxReceiving, and what they took is given
// back.
func TestReceivingIsBounded(t *testing.T) {
	var receiving atomic.Int64
	text := "\x81\xa7Entries\x91\x81\xa4Data\xdb" + string(binary.BigEndian.AppendUint32(nil, 70<<20))
	begin := func() *wire {
		w := &wire{r: bufio.NewReader(io.MultiReader(strings.NewReader(text), &zeros{70 << 20})), left: maxRequest,
			receiving: &receiving}
		w.request(rpcAppendEntries)
		return w
	}
	one, two := begin(), begin()
	if one.err != nil || two.err != nil {
		t.Fatalf("two of them: %v, %v", one.err, two.err)
	}
	three := begin()
	if three.err == nil {
		t.Errorf("three of them are received: %d bytes", receiving.Load())
	}
	for _, w := range []*wire{one, two, three} {
		w.release()
	}
	if again := begin(); again.err != nil {
		t.Errorf("another one, afterwards: %v", again.err)
	}
}

type zeros struct{ left int }

func (z *zeros) Read(b []byte) (int, error) {
	n := min(z.left, len(b))
	if z.left -= n; n == 0 {
		return 0, io.EOF
	}
	clear(b[:n])
	return n, nil
}

// FuzzRequest: what is decoded is what raft would decode, and allocates within bounds. Configurations likewise.
func FuzzRequest(f *testing.F) {
	for _, request := range samples() {
		f.Add(sentBy(f, func(n *raft.NetworkTransport) { send(n, request) }))
	}
	for _, text := range lies {
		f.Add([]byte(text))
	}
	f.Add([]byte("\x00\x81\xa7Entries\x91\x81\xaaAppendedAt\xd7\xff\x00\x00\x00\x08\x00\x00\x00\x01"))
	f.Add([]byte("\x00\x81\xa7Entries\x91\x81\xaaAppendedAt\xd6\xff\x00\x00\x00\x08"))
	f.Add([]byte("\x00\x81\xa7Entries\x91\x81\xaaAppendedAt\xc7\x0c\xff\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte("\x00\x82\xa7Entries\x90\xa5Other\x82\xa1x\x93\xc0\xc2" +
		"\xcb\x00\x00\x00\x00\x00\x00\x00\x00\xa1y\xd4\x01\x01"))
	f.Add(append([]byte{0xff}, raft.EncodeConfiguration(members)...))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 0 && text[0] == 0xff {
			c, err := configurationOf(text[1:])
			if err == nil && !reflect.DeepEqual(raft.DecodeConfiguration(text[1:]), c) {
				t.Errorf("got %v, want %v", c, raft.DecodeConfiguration(text[1:]))
			}
			return
		}
		request, _, err := decode(text)
		if err != nil {
			return
		}
		want := raftDecodes(t, text)
		if want == nil {
			t.Fatalf("raft does not decode %q", text)
		}
		checkSame(t, request, want)
	})
}
