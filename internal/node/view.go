package node

import (
	"cmp"
	"context"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/events"
	"raftkv/internal/peer"
)

// What raft does is seen at the two seams that this package owns: between raft and its transport, and between raft and
// its log and stable store. Each call passes as it is; without a viewer, it costs one atomic load more.

// Frame is what this node knows of itself at one moment (docs/page.md). Nothing in it is inferred from what others
// have.
type Frame struct {
	Version  int            `json:"v"` // of this format
	Node     string         `json:"node"`
	At       int64          `json:"at"` // milliseconds of Unix time
	State    string         `json:"state"`
	Term     uint64         `json:"term"`
	Leader   string         `json:"leader"`             // ID; empty: it knows none
	Vote     string         `json:"vote,omitempty"`     // ID of the member that has the last vote on this disk
	VoteTerm uint64         `json:"voteTerm,omitempty"` // of that vote
	First    uint64         `json:"first"`              // of the log; 0: it is empty
	Last     uint64         `json:"last"`
	Commit   uint64         `json:"commit"`
	Applied  uint64         `json:"applied"`
	Snapshot uint64         `json:"snapshot"` // last index of the newest snapshot; 0: none
	Members  []FrameMember  `json:"members"`
	Cuts     []FrameCut     `json:"cuts,omitempty"`
	Lab      bool           `json:"lab,omitempty"`
	Cells    []Cell         `json:"cells,omitempty"`  // entries that are new since the frame before, in order
	Events   []events.Event `json:"events,omitempty"` // since the frame before, in order
	Dropped  uint64         `json:"dropped,omitempty"`
}

// FrameVersion is that of Frame.
const FrameVersion = 1

// FrameMember is a member, as the log of the node has it.
type FrameMember struct {
	ID       string `json:"id"`
	Nonvoter bool   `json:"nonvoter,omitempty"`
	HTTP     string `json:"http,omitempty"` // URL where clients reach it; empty: it was never heard
}

// FrameCut is a link that the lab has cut at the node.
type FrameCut struct {
	ID  string `json:"id"`
	Out bool   `json:"out,omitempty"`
	In  bool   `json:"in,omitempty"`
}

// Cell is an entry of the log, in one line.
type Cell struct {
	Index uint64 `json:"i"`
	Term  uint64 `json:"t"`
	Kind  string `json:"k"` // set, remove, txn, members, no-op, other
	Text  string `json:"s"` // escaped and cut
}

// Bounds of a Frame.
const (
	FrameCells  = 40   // entries of one
	maxCellData = 4096 // bytes of an entry that is decoded for its text; a greater one is only counted
	maxCellText = 48   // bytes of a key, and of a value
)

// Ending returns a context that ends when this node begins to shut down.
func (n *Node) Ending() context.Context { return n.life.ctx }

// Watch returns a view of what raft does from now on; nil: too many look already.
func (n *Node) Watch() *events.View { return n.events.Watch() }

// Frame returns what this node knows now, without cells and events.
func (n *Node) Frame() Frame {
	i := n.current.Load()
	_, leader := i.raft.LeaderWithID()
	applied, _ := n.machine.Applied()
	f := Frame{
		Version: FrameVersion, Node: n.config.ID, State: i.raft.State().String(), Term: i.raft.CurrentTerm(),
		Leader: string(leader), Last: i.volume.Log.Last(), Commit: i.raft.CommitIndex(), Applied: applied,
		Lab: n.config.Lab,
	}
	f.Snapshot, _ = i.volume.Snapshots.NewestEntry()
	f.First = i.firstIndex()
	f.Vote, f.VoteTerm = i.vote.get()
	n.urls.mu.Lock()
	defer n.urls.mu.Unlock()
	for _, server := range i.servers() {
		m := FrameMember{ID: string(server.ID), Nonvoter: server.Suffrage != raft.Voter,
			HTTP: n.urls.known[string(server.ID)]}
		if m.ID == n.config.ID {
			m.HTTP = n.HTTPURL()
		}
		f.Members = append(f.Members, m)
		if string(server.Address) == f.Vote {
			f.Vote = m.ID
		}
		if cut, ok := n.port.Cuts()[m.ID]; ok {
			f.Cuts = append(f.Cuts, FrameCut{m.ID, cut.Out, cut.In})
		}
	}
	return f
}

// HTTPURL is where clients reach this node, as it gives it to others.
func (n *Node) HTTPURL() string {
	return cmp.Or(n.config.HTTPURL, n.httpURL())
}

// Cells returns the entries above index, the newest FrameCells of them at most. With hidden, values are left out.
func (n *Node) Cells(above uint64, hidden bool) (cells []Cell) {
	i := n.current.Load()
	i.reading.RLock() // the volume is not closed meanwhile
	defer i.reading.RUnlock()
	if i.closed {
		return nil
	}
	first, _ := i.volume.Log.FirstIndex() // it has no errors
	last := i.volume.Log.Last()
	if last > FrameCells {
		above = max(above, last-FrameCells)
	}
	for index := max(above+1, first); first > 0 && index <= last; index++ {
		var entry raft.Log
		// Not as raft reads it, which may wait for the state machine and has what a snapshot stands for.
		if !i.cache.Cached(index, &entry) && i.volume.Log.GetLog(index, &entry) != nil { // it is gone by now
			continue
		}
		kind, text := describe(&entry, hidden)
		cells = append(cells, Cell{index, entry.Term, kind, text})
	}
	return cells
}

// describe returns the kind of an entry and a line of text about it, with what is no plain character escaped.
func describe(entry *raft.Log, hidden bool) (kind, text string) {
	switch entry.Type {
	case raft.LogConfiguration:
		var members []string
		for _, s := range raft.DecodeConfiguration(entry.Data).Servers {
			id := string(s.ID)
			if s.Suffrage != raft.Voter {
				id += " (no vote)"
			}
			members = append(members, id)
		}
		return "members", strings.Join(members, ", ")
	case raft.LogNoop:
		return "no-op", ""
	case raft.LogCommand:
	default:
		return "other", ""
	}
	if len(entry.Data) > maxCellData {
		return "other", strconv.Itoa(len(entry.Data)) + " bytes"
	}
	commands, err := command.Decode(entry.Data)
	if err != nil || len(commands) == 0 {
		return "other", ""
	}
	c := commands[0]
	more := len(commands) + max(len(c.Pairs), 1) - 2
	switch c.Kind {
	case command.Set:
		kind, text = "set", escaped(c.Pairs[0].Key)+"="
		if hidden {
			text += "…"
		} else {
			text += escaped(string(c.Pairs[0].Value))
		}
	case command.Remove, command.RemovePrefix:
		kind, text = "remove", escaped(c.Pairs[0].Key)
		if c.Kind == command.RemovePrefix {
			text += "…"
		}
	case command.Txn:
		kind, text = "txn", strconv.Itoa(len(c.Txn.If))+" conditions"
	case command.Noop:
		kind = "no-op"
	case command.RaiseFormat:
		kind, text = "other", "format "+strconv.FormatUint(c.To, 10)
	default:
		kind, text = "other", "restore"
	}
	if more > 0 {
		text += " +" + strconv.Itoa(more)
	}
	return kind, text
}

// escaped returns s, with what is no plain character (a line's end, an override of the writing direction) escaped, and
// cut to maxCellText bytes.
func escaped(s string) string {
	cut := len(s) > maxCellText
	if cut {
		s = s[:maxCellText]
	}
	quoted := strconv.Quote(s)
	s = strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
	if cut {
		s += "…"
	}
	return s
}

// MemberURLs returns where clients reach the members, this node included, as far as they were heard.
func (n *Node) MemberURLs() (all []string) {
	for _, m := range n.Frame().Members {
		if m.HTTP != "" {
			all = append(all, m.HTTP)
		}
	}
	return all
}

// HearMembers asks the members for where clients reach them, if that of one is not known yet, within memberTimeout.
func (n *Node) HearMembers(ctx context.Context) {
	if servers := n.current.Load().servers(); len(n.MemberURLs()) < len(servers) {
		n.members.askAll(ctx, servers)
	}
}

// memberURLs is where the other members answer HTTP, by ID. Frame leaves out those that are no members any more, and
// heard bounds what is kept.
type memberURLs struct {
	mu    sync.Mutex // guards what follows
	known map[string]string
}

// maxURLs bounds the members whose URL is kept.
const maxURLs = 256

func (u *memberURLs) heard(info *Info) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil || len(u.known) >= maxURLs {
		u.known = make(map[string]string)
	}
	if info.HTTPURL != "" {
		u.known[info.NodeID] = info.HTTPURL
	}
}

// vote is the last vote of this node, as it is on disk.
type vote struct {
	mu        sync.Mutex // guards what follows
	candidate string     // address of a raft port
	term      uint64
}

func (v *vote) get() (candidate string, term uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.candidate, v.term
}

// closeVolume closes the volume of an instance that was stopped, when nobody reads the log for a frame.
func (i *instance) closeVolume() error {
	i.reading.Lock()
	defer i.reading.Unlock()
	i.closed = true
	return i.volume.Close()
}

// The keys of raft's stable store (raft.go).
const (
	keyVoteTerm  = "LastVoteTerm"
	keyCandidate = "LastVoteCand"
)

// seenStable is raft's stable store.
type seenStable struct {
	raft.StableStore
	vote   *vote
	events *events.Recorder
	idAt   func(address string) string // ID of the member there
}

func newSeenStable(store raft.StableStore, v *vote, e *events.Recorder, idAt func(string) string) *seenStable {
	s := &seenStable{store, v, e, idAt}
	if candidate, err := store.Get([]byte(keyCandidate)); err == nil {
		term, _ := store.GetUint64([]byte(keyVoteTerm))
		v.candidate, v.term = string(candidate), term
	}
	return s
}

// SetUint64 implements raft.StableStore.
func (s *seenStable) SetUint64(key []byte, value uint64) error {
	err := s.StableStore.SetUint64(key, value)
	if string(key) == keyVoteTerm && err == nil { // the candidate comes next
		s.vote.mu.Lock()
		s.vote.term, s.vote.candidate = value, ""
		s.vote.mu.Unlock()
	}
	return err
}

// Set implements raft.StableStore.
func (s *seenStable) Set(key, value []byte) error {
	err := s.StableStore.Set(key, value)
	if string(key) == keyCandidate && err == nil {
		s.vote.mu.Lock()
		s.vote.candidate = string(value)
		term := s.vote.term
		s.vote.mu.Unlock()
		if s.events.Watched() {
			s.events.Add(events.Event{Kind: events.Voted, Member: s.idAt(string(value)), Term: term})
		}
	}
	return err
}

// seenLog is raft's log store.
type seenLog struct {
	raft.LogStore
	disk   raft.LogStore
	events *events.Recorder
}

// StoreLog implements raft.LogStore.
func (l *seenLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (l *seenLog) StoreLogs(logs []*raft.Log) error {
	err := l.LogStore.StoreLogs(logs)
	if len(logs) == 0 || err != nil {
		return err
	}
	if l.events.Watched() {
		last := logs[len(logs)-1]
		l.events.Add(events.Event{Kind: events.Stored, From: logs[0].Index, To: last.Index, Term: last.Term})
	}
	return nil
}

// DeleteRange implements raft.LogStore. What it does not delete, as package storage keeps it for a snapshot, is not in
// the event.
func (l *seenLog) DeleteRange(low, high uint64) error {
	if !l.events.Watched() {
		return l.LogStore.DeleteRange(low, high)
	}
	before, _ := l.disk.FirstIndex() // it has no errors
	if err := l.LogStore.DeleteRange(low, high); err != nil {
		return err
	}
	first, _ := l.disk.FirstIndex()
	switch {
	case low > before:
		l.events.Add(events.Event{Kind: events.Repair, From: low, To: high})
	case first > before:
		l.events.Add(events.Event{Kind: events.Compact, From: before, To: first - 1})
	case first == 0:
		l.events.Add(events.Event{Kind: events.Compact, From: before, To: high})
	}
	return nil
}

// seenTransport is raft's transport.
type seenTransport struct {
	*peer.Transport
	events *events.Recorder
}

func (t *seenTransport) called(e events.Event, id raft.ServerID, ok bool, answer uint64, err error) {
	if e.Member = string(id); err != nil {
		e.Error = err.Error()
	} else {
		e.OK, e.Answer = ok, answer
	}
	t.events.Add(e)
}

// AppendEntries implements raft.Transport.
func (t *seenTransport) AppendEntries(id raft.ServerID, address raft.ServerAddress, args *raft.AppendEntriesRequest,
	response *raft.AppendEntriesResponse) error {
	err := t.Transport.AppendEntries(id, address, args, response)
	if t.events.Watched() && !(err == nil && response.Term == 0) { // a heartbeat that was not sent is none
		e := events.Event{Kind: events.Append, Term: args.Term}
		if count := len(args.Entries); count > 0 { // what was sent: peer.Transport may have shortened it
			e.From, e.To = args.Entries[0].Index, args.Entries[count-1].Index
		}
		t.called(e, id, response.Success, response.Term, err)
	}
	return err
}

// RequestVote implements raft.Transport.
func (t *seenTransport) RequestVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestVoteRequest,
	response *raft.RequestVoteResponse) error {
	err := t.Transport.RequestVote(id, address, args, response)
	if t.events.Watched() {
		t.called(events.Event{Kind: events.Vote, Term: args.Term}, id, response.Granted, response.Term, err)
	}
	return err
}

// RequestPreVote implements raft.WithPreVote.
func (t *seenTransport) RequestPreVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestPreVoteRequest,
	response *raft.RequestPreVoteResponse) error {
	err := t.Transport.RequestPreVote(id, address, args, response)
	if t.events.Watched() {
		t.called(events.Event{Kind: events.PreVote, Term: args.Term}, id, response.Granted, response.Term, err)
	}
	return err
}

// InstallSnapshot implements raft.Transport.
func (t *seenTransport) InstallSnapshot(id raft.ServerID, address raft.ServerAddress,
	args *raft.InstallSnapshotRequest, response *raft.InstallSnapshotResponse, data io.Reader) error {
	err := t.Transport.InstallSnapshot(id, address, args, response, data)
	if t.events.Watched() {
		t.called(events.Event{Kind: events.Install, Term: args.Term, To: args.LastLogIndex}, id, response.Success,
			response.Term, err)
	}
	return err
}

// TimeoutNow implements raft.Transport.
func (t *seenTransport) TimeoutNow(id raft.ServerID, address raft.ServerAddress, args *raft.TimeoutNowRequest,
	response *raft.TimeoutNowResponse) error {
	err := t.Transport.TimeoutNow(id, address, args, response)
	if t.events.Watched() {
		t.called(events.Event{Kind: events.Handover}, id, err == nil, 0, err)
	}
	return err
}

// watchStates has the changes of raft's state among the events. Raft calls the filter in its own goroutine; nothing is
// sent.
func (n *Node) watchStates(r *raft.Raft) {
	r.RegisterObserver(raft.NewObserver(nil, false, func(seen *raft.Observation) bool {
		if !n.events.Watched() {
			return false
		}
		switch data := seen.Data.(type) {
		case raft.RaftState:
			n.events.Add(events.Event{Kind: events.State, Text: data.String(), Term: r.CurrentTerm()})
		case raft.LeaderObservation:
			n.events.Add(events.Event{Kind: events.LeaderIs, Member: string(data.LeaderID), Term: r.CurrentTerm()})
		}
		return false
	}))
}

// firstIndex is that of the log on disk; 0: it is empty, or the volume is closed.
func (i *instance) firstIndex() uint64 {
	i.reading.RLock()
	defer i.reading.RUnlock()
	if i.closed {
		return 0
	}
	first, _ := i.volume.Log.FirstIndex() // it has no errors
	return first
}

// idAt returns the ID of the member at an address of a raft port; the address itself, if there is none.
func (n *Node) idAt(address string) string {
	if i := n.current.Load(); i != nil {
		for _, server := range i.servers() {
			if string(server.Address) == address {
				return string(server.ID)
			}
		}
	}
	return address
}
