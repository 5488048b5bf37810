package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// A connection for terms carries one question after another. A question is the length of an ID, one byte, and the ID
// of the node that is asked. The answer is the term of that node in 8 bytes, big-endian; when it is another node that
// answers, 0, a term in which nobody leads. A question that begins with an @ is an introduction (links.go).

// DialTerm connects to the raft port at address for AskTerm, within ctx. The connection is closed with the raft
// instance that is attached now, or by CloseStreams. It is ErrNotRaftkv if a node of a program that answers no such
// questions is there.
func (p *Port) DialTerm(ctx context.Context, address string) (net.Conn, error) {
	p.mu.Lock()
	s := p.stream
	p.mu.Unlock()
	if s == nil {
		return nil, errDetached
	}
	c, err := s.dial(ctx, address, preface{magic: magicTerm, cluster: p.ClusterID()})
	if err != nil {
		return nil, err
	}
	if err := p.introduce(c); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// AskTerm asks the node at the other end of c, which DialTerm returned, for its term, within ctx, which has a
// deadline. One question at a time. After an error c is closed, so that an answer that comes late is never taken for
// that to the next question.
func AskTerm(ctx context.Context, c net.Conn, nodeID string) (term uint64, err error) {
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := c.Write(append([]byte{byte(len(nodeID))}, nodeID...)); err != nil {
		return 0, err
	}
	var answer [8]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return 0, err
	}
	if term = binary.BigEndian.Uint64(answer[:]); term == 0 {
		return 0, fmt.Errorf("it is not %s that answers at %s", nodeID, c.RemoteAddr())
	}
	return term, nil
}

// answerTerms answers the questions that come over c until it is closed.
func (p *Port) answerTerms(c net.Conn) {
	defer func() { _ = c.Close() }()
	questions := bufio.NewReaderSize(c, 256)
	for {
		size, err := questions.ReadByte()
		if err != nil {
			return
		}
		id := make([]byte, size)
		if _, err := io.ReadFull(questions, id); err != nil {
			return
		}
		if from, ok := strings.CutPrefix(string(id), introduction); ok && linkOf(c).from(from) {
			return
		}
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, p.term(string(id)))); err != nil {
			return
		}
	}
}
