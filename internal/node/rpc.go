package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// memberTimeout is how long a member may take to answer a short call, such as /info.
const memberTimeout = 500 * time.Millisecond

// maxRPCAnswer bounds the answer to a call, in bytes.
const maxRPCAnswer = 1 << 20

// headerTo is a header of a call: the ID of the node that is meant. Another node refuses the
// call. Older programs neither send it nor look at it.
const headerTo = "Raftkv-To"

// rpcHandler answers the node-to-node HTTP calls that arrive at the raft port. /info, /reach,
// /joinme and /adopt may come from another cluster; all others must come from a member of the cluster
// that the present instance of raft is in. A call that is meant for another node is refused. An error is answered as an
// Error.
func (n *Node) rpcHandler() http.Handler {
	mux := http.NewServeMux()
	meant := func(pattern string, serve http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if to := r.Header.Get(headerTo); to != "" && to != n.config.ID {
				writeRPC(w, nil, fmt.Errorf("%w: %s answers at %s, not %s", ErrConflict, n.config.ID, r.Host, to))
				return
			}
			serve(w, r)
		})
	}
	handle := func(pattern string, do func(i *instance, r *http.Request) (answer any, err error)) {
		meant(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := do(n.current.Load(), r)
			writeRPC(w, answer, err)
		})
	}
	member := func(pattern string, do func(i *instance, r *http.Request) (answer any, err error)) {
		handle(pattern, func(i *instance, r *http.Request) (any, error) {
			if peer.Caller(r) != i.volume.Cluster {
				return nil, fmt.Errorf("%w: %s belongs to another cluster", ErrConflict, n.config.ID)
			}
			return do(i, r)
		})
	}
	handle("GET /info", func(*instance, *http.Request) (any, error) { return n.answerInfo(), nil })
	handle("POST /adopt", func(_ *instance, r *http.Request) (any, error) { return nil, n.handleAdopt(peer.Caller(r)) })
	handle("GET /reach", func(_ *instance, r *http.Request) (any, error) { return nil, n.handleReach(r) })
	handle("POST /joinme", func(_ *instance, r *http.Request) (any, error) { return nil, n.handleJoinMe(r) })
	member("GET /readindex", n.handleReadIndex)
	member("GET /committed", n.handleCommitted)
	member("POST /differs", n.handleDiffers)
	member("POST /moved", n.handleMoved)
	member("POST /release", func(*instance, *http.Request) (any, error) { return nil, n.handleRelease() })
	member("POST /removed", func(_ *instance, r *http.Request) (any, error) { return nil, n.handleRemoved(r.Context()) })
	member("POST /leave", func(_ *instance, r *http.Request) (any, error) {
		_, err := n.Leave(r.Context(), r.URL.Query().Get("nodeId"))
		return nil, err
	})
	meant("POST /forward", func(w http.ResponseWriter, r *http.Request) {
		if err := n.handleForward(n.current.Load(), w, r); err != nil {
			writeRPC(w, nil, err)
		}
	})
	pipelines := make(chan struct{}, maxPipelines)
	meant("POST "+TogetherPath, func(w http.ResponseWriter, r *http.Request) {
		select {
		case pipelines <- struct{}{}:
			defer func() { <-pipelines }()
			if err := n.handleForward(n.current.Load(), w, r); err != nil {
				writeRPC(w, nil, err)
			}
		default:
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	return mux
}

// writeRPC answers a call: 200 with the JSON of answer, or 500 with that of an Error.
func writeRPC(w http.ResponseWriter, answer any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code, _ := CodeOf(err)
		w.WriteHeader(http.StatusInternalServerError)
		answer = Error{Code: code, Message: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// members is the client for calls to other nodes. Its methods may be called by several
// goroutines at once.
type members struct {
	self      string // ID of this node, which is not asked
	client    *http.Client
	clusterID func() peer.ClusterID
	heard     func(*Info) // called with the Info of a member, when it has answered; nil: nothing is
}

// call makes a call to the node to and decodes its answer, if answer is not nil. An error
// of the other node comes back as an *Error, with its code and its whole line. If another
// node answers at the address of to, the error wraps ErrConflict. An empty ID means
// whichever node is there.
func (m *members) call(ctx context.Context, method string, to raft.Server, path string, answer any) error {
	raftAddress := string(to.Address)
	request, err := http.NewRequestWithContext(ctx, method, "http://"+raftAddress+path, nil)
	if err != nil {
		return err
	}
	if to.ID != "" {
		request.Header.Set(headerTo, string(to.ID))
	}
	response, err := m.client.Do(request)
	if err != nil {
		return withoutURL(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return decodeRPCError(response, raftAddress, path)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxRPCAnswer))
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(body, answer)
}

// withoutURL is an error of a call without its method and URL, which mean nothing to its reader.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	if isDeadline(err) {
		return errors.New("no answer in time")
	}
	return err
}

// decodeRPCError returns the error that the answer to a call has.
func decodeRPCError(response *http.Response, raftAddress, path string) error {
	body, err := io.ReadAll(io.LimitReader(response.Body, maxRPCAnswer))
	if err != nil {
		return err
	}
	remote := new(Error)
	if json.Unmarshal(body, remote) != nil || remote.Message == "" {
		return fmt.Errorf("%s answers %s to %s", raftAddress, response.Status, path)
	}
	return remote
}

// ask asks the node at a raft address for its Info, within memberTimeout.
func (m *members) ask(ctx context.Context, raftAddress string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	var info Info
	return info, m.call(ctx, http.MethodGet, raft.Server{Address: raft.ServerAddress(raftAddress)}, "/info", &info)
}

// askMember asks a member for its Info, within memberTimeout. If another node or another
// cluster answers there, it is an error.
func (m *members) askMember(ctx context.Context, server raft.Server) (*Info, error) {
	info, err := m.ask(ctx, string(server.Address))
	if err != nil {
		return nil, err
	}
	if info.NodeID != string(server.ID) || info.ClusterID != m.clusterID().String() {
		return nil, fmt.Errorf("%s of cluster %s answers at %s, not %s", info.NodeID, info.ClusterID, server.Address,
			server.ID)
	}
	if m.heard != nil {
		m.heard(&info)
	}
	return &info, nil
}

// older reports whether a node is of a program that knows neither the preface with node
// IDs nor, perhaps, questions for the term.
func (i *Info) older() bool { return i.MaxFormat < 2 }

// isOlder is peer.Port's Older.
func (m *members) isOlder(ctx context.Context, nodeID, address string) bool {
	info, err := m.askMember(ctx, raft.Server{ID: raft.ServerID(nodeID), Address: raft.ServerAddress(address)})
	return err == nil && info.older()
}

// askAll asks all of servers but this node for their Info, at once, within memberTimeout.
// The result is nil for a member without a right answer, and for this node itself.
func (m *members) askAll(ctx context.Context, servers []raft.Server) []*Info {
	infos := make([]*Info, len(servers))
	var asked sync.WaitGroup
	for i, server := range servers {
		if string(server.ID) != m.self {
			asked.Go(func() { infos[i], _ = m.askMember(ctx, server) })
		}
	}
	asked.Wait()
	return infos
}

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// wait is future.Error() that ends with ctx.
func wait(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
