package peer

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// The first byte of a request (net_transport.go).
const (
	rpcAppendEntries byte = iota
	rpcRequestVote
	rpcInstallSnapshot
	rpcTimeoutNow
	rpcRequestPreVote
)

// requestName names the request that begins with b, for people; "": there is none.
func requestName(b byte) string {
	switch b {
	case rpcAppendEntries:
		return "AppendEntries"
	case rpcRequestVote:
		return "RequestVote"
	case rpcInstallSnapshot:
		return "InstallSnapshot"
	case rpcTimeoutNow:
		return "TimeoutNow"
	case rpcRequestPreVote:
		return "RequestPreVote"
	}
	return ""
}

// The fields of the structs of raft (commands.go, log.go, configuration.go).
var (
	headerFields = []string{"ProtocolVersion", "ID", "Addr"}
	appendFields = append([]string{"Term", "Leader", "PrevLogEntry", "PrevLogTerm", "Entries", "LeaderCommitIndex"},
		headerFields...)
	voteFields = append([]string{"Term", "Candidate", "LastLogIndex", "LastLogTerm", "LeadershipTransfer"},
		headerFields...)
	preVoteFields = append([]string{"Term", "LastLogIndex", "LastLogTerm"}, headerFields...)
	installFields = append([]string{"SnapshotVersion", "Term", "Leader", "LastLogIndex", "LastLogTerm", "Peers",
		"Configuration", "ConfigurationIndex", "Size"}, headerFields...)
	entryFields  = []string{"Index", "Term", "Type", "Data", "Extensions", "AppendedAt"}
	configFields = []string{"Servers"}
	serverFields = []string{"Suffrage", "ID", "Address"}
)

// request reads the request that begins with kind, which has a requestName: a pointer to raft's struct for it.
func (w *wire) request(kind byte) any {
	switch kind {
	case rpcAppendEntries:
		return w.appendEntries()
	case rpcRequestVote:
		return w.requestVote()
	case rpcRequestPreVote:
		return w.requestPreVote()
	case rpcInstallSnapshot:
		return w.installSnapshot()
	default:
		return w.timeoutNow()
	}
}

// each calls read with the name of each field of a struct; nothing in its place is a struct without fields.
func (w *wire) each(names []string, read func(name string)) {
	var seen uint32
	for n := w.fields(); n > 0 && w.err == nil; n-- {
		if name := w.field(names, &seen); name != "" {
			read(name)
		}
	}
}

// header reads a field that all requests have.
func (w *wire) header(name string, h *raft.RPCHeader) {
	switch name {
	case "ProtocolVersion":
		h.ProtocolVersion = raft.ProtocolVersion(w.uint("the protocol version", 1<<16))
	case "ID":
		h.ID = w.text("the ID of the sender", maxNodeID)
	case "Addr":
		h.Addr = w.text("the address of the sender", maxAddress)
	}
}

func (w *wire) index() uint64 { return w.uint("an index", maxRaftNumber) }
func (w *wire) term() uint64  { return w.uint("a term", maxRaftNumber) }

func (w *wire) appendEntries() *raft.AppendEntriesRequest {
	a := new(raft.AppendEntriesRequest)
	w.each(appendFields, func(name string) {
		switch name {
		case "Term":
			a.Term = w.term()
		case "Leader":
			//lint:ignore SA1019 raft sends it, and reads it where there is no address in the header
			a.Leader = w.text("the address of the leader", maxAddress)
		case "PrevLogEntry":
			a.PrevLogEntry = w.index()
		case "PrevLogTerm":
			a.PrevLogTerm = w.term()
		case "Entries":
			a.Entries = w.entries()
		case "LeaderCommitIndex":
			a.LeaderCommitIndex = w.index()
		default:
			w.header(name, &a.RPCHeader)
		}
	})
	return a
}

// entries reads the entries of the log. A nil one ends a node (raft.go: appendEntries).
func (w *wire) entries() []*raft.Log {
	n := w.elements("the list of entries", maxEntries)
	if n < 0 || w.err != nil {
		return nil
	}
	entries := make([]*raft.Log, n)
	for i := range entries {
		fields := w.fields()
		if fields < 0 {
			w.fail(refuse("it has a nil entry"))
		}
		entries[i] = w.entry(fields)
	}
	return entries
}

func (w *wire) entry(fields int) *raft.Log {
	if w.err != nil || !w.take(160) {
		return nil
	}
	l, seen := new(raft.Log), uint32(0)
	for ; fields > 0 && w.err == nil; fields-- {
		switch w.field(entryFields, &seen) {
		case "Index":
			l.Index = w.index()
		case "Term":
			l.Term = w.term()
		case "Type":
			l.Type = raft.LogType(w.uint("the type of an entry", 255))
		case "Data":
			l.Data = w.bytes("an entry", maxRequest)
		case "Extensions":
			l.Extensions = w.bytes("an entry", maxRequest)
		case "AppendedAt":
			l.AppendedAt = w.time("the time of an entry")
		}
	}
	return l
}

func (w *wire) requestVote() *raft.RequestVoteRequest {
	v := new(raft.RequestVoteRequest)
	w.each(voteFields, func(name string) {
		switch name {
		case "Term":
			v.Term = w.term()
		case "Candidate":
			//lint:ignore SA1019 as above
			v.Candidate = w.text("the address of the candidate", maxAddress)
		case "LastLogIndex":
			v.LastLogIndex = w.index()
		case "LastLogTerm":
			v.LastLogTerm = w.term()
		case "LeadershipTransfer":
			v.LeadershipTransfer = w.bool("whether the leadership is transferred")
		default:
			w.header(name, &v.RPCHeader)
		}
	})
	return v
}

func (w *wire) requestPreVote() *raft.RequestPreVoteRequest {
	v := new(raft.RequestPreVoteRequest)
	w.each(preVoteFields, func(name string) {
		switch name {
		case "Term":
			v.Term = w.term()
		case "LastLogIndex":
			v.LastLogIndex = w.index()
		case "LastLogTerm":
			v.LastLogTerm = w.term()
		default:
			w.header(name, &v.RPCHeader)
		}
	})
	return v
}

func (w *wire) installSnapshot() *raft.InstallSnapshotRequest {
	s := new(raft.InstallSnapshotRequest)
	w.each(installFields, func(name string) {
		switch name {
		case "SnapshotVersion":
			s.SnapshotVersion = raft.SnapshotVersion(w.uint("the version of the snapshot", 1<<16))
		case "Term":
			s.Term = w.term()
		case "Leader":
			s.Leader = w.text("the address of the leader", maxAddress)
		case "LastLogIndex":
			s.LastLogIndex = w.index()
		case "LastLogTerm":
			s.LastLogTerm = w.term()
		case "Peers":
			s.Peers = w.bytes("the list of peers", 1<<20)
		case "Configuration":
			s.Configuration = w.bytes("the configuration", 1<<20)
		case "ConfigurationIndex":
			s.ConfigurationIndex = w.index()
		case "Size":
			s.Size = int64(w.uint("the size of the snapshot", maxRaftNumber))
		default:
			w.header(name, &s.RPCHeader)
		}
	})
	return s
}

func (w *wire) timeoutNow() *raft.TimeoutNowRequest {
	n := new(raft.TimeoutNowRequest)
	w.each(headerFields, func(name string) { w.header(name, &n.RPCHeader) })
	return n
}

// configuration reads the members of a cluster.
func (w *wire) configuration() (c raft.Configuration) {
	w.each(configFields, func(string) {
		n := w.elements("the list of members", maxServers)
		for ; n > 0 && w.err == nil; n-- {
			var s raft.Server
			w.each(serverFields, func(name string) {
				switch name {
				case "Suffrage":
					s.Suffrage = raft.ServerSuffrage(w.uint("the suffrage of a member", uint64(raft.Staging)))
				case "ID":
					s.ID = raft.ServerID(w.text("the ID of a member", maxNodeID))
				case "Address":
					s.Address = raft.ServerAddress(w.text("the address of a member", maxAddress))
				}
			})
			c.Servers = append(c.Servers, s)
		}
	})
	return c
}

// appendAnswer appends what raft's transport expects of an answer to dst: the text of an error, "" for none, and raft's
// struct, nil for none (net_transport.go: decodeResponse).
func appendAnswer(dst []byte, response any, failure error) []byte {
	text := ""
	if failure != nil {
		text = failure.Error()
		text = text[:min(len(text), maxAnswer/2)]
	}
	begin := len(dst)
	dst = appendRaw(dst, text)
	header := func(fields byte, h raft.RPCHeader) {
		dst = append(dst, 0x80|fields+3)
		for i, b := range [][]byte{h.ID, h.Addr} {
			if dst = appendRaw(dst, headerFields[1+i]); b == nil {
				dst = append(dst, 0xc0)
			} else {
				dst = appendRaw(dst, b)
			}
		}
		dst = appendUint(appendRaw(dst, "ProtocolVersion"), uint64(h.ProtocolVersion))
	}
	number := func(name string, v uint64) { dst = appendUint(appendRaw(dst, name), v) }
	yes := func(name string, v bool) {
		dst = append(appendRaw(dst, name), 0xc2)
		if v {
			dst[len(dst)-1] = 0xc3
		}
	}
	switch r := response.(type) {
	case nil:
		return append(dst, 0xc0)
	case *raft.AppendEntriesResponse:
		header(4, r.RPCHeader)
		number("Term", r.Term)
		number("LastLog", r.LastLog)
		yes("Success", r.Success)
		yes("NoRetryBackoff", r.NoRetryBackoff)
	case *raft.RequestVoteResponse: // without Peers, which protocol version 3 does not have
		header(2, r.RPCHeader)
		number("Term", r.Term)
		yes("Granted", r.Granted)
	case *raft.RequestPreVoteResponse:
		header(2, r.RPCHeader)
		number("Term", r.Term)
		yes("Granted", r.Granted)
	case *raft.InstallSnapshotResponse:
		header(2, r.RPCHeader)
		number("Term", r.Term)
		yes("Success", r.Success)
	case *raft.TimeoutNowResponse:
		header(0, r.RPCHeader)
	default: // of another version of raft
		return appendAnswer(dst[:begin], nil, fmt.Errorf("raft answers with a %T", response))
	}
	return dst
}

// appendRaw appends a string of bytes.
func appendRaw[T string | []byte](dst []byte, b T) []byte {
	switch n := len(b); {
	case n < 32:
		dst = append(dst, 0xa0|byte(n))
	case n < 1<<16:
		dst = append(dst, 0xda, byte(n>>8), byte(n))
	default:
		dst = append(dst, 0xdb, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(dst, b...)
}

// appendUint appends a number.
func appendUint(dst []byte, v uint64) []byte {
	if v < 128 {
		return append(dst, byte(v))
	}
	return append(dst, 0xcf, byte(v>>56), byte(v>>48), byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8),
		byte(v))
}
