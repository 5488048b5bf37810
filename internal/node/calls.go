package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"raftkv/internal/peer"
)

// calls are the node-to-node HTTP calls that this node answers on its raft port.
// An error is its text, with a status that answerOf makes the same error of.
func (n *Node) calls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, r *http.Request) {
		answerCall(w, answerJSON(w, n.Info()))
	})
	mux.HandleFunc("POST /adopt", func(w http.ResponseWriter, r *http.Request) {
		answerCall(w, n.beAdopted(peer.Caller(r)))
	})
	member := func(do func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if caller := peer.Caller(r); caller != n.port.ClusterID() {
				answerCall(w, fmt.Errorf("%w: %s belongs to another cluster", ErrConflict, n.config.ID))
				return
			}
			answerCall(w, do(w, r))
		}
	}
	mux.HandleFunc("GET /readindex", member(func(w http.ResponseWriter, r *http.Request) error {
		return n.answerReadIndex(w, r)
	}))
	mux.HandleFunc("GET /committed", member(func(_ http.ResponseWriter, r *http.Request) error {
		return n.answerCommitted(r)
	}))
	mux.HandleFunc("POST /differs", member(func(_ http.ResponseWriter, r *http.Request) error {
		n.ails(&n.health.Replicas, r.URL.Query().Get("text"))
		return nil
	}))
	mux.HandleFunc("POST /release", member(func(http.ResponseWriter, *http.Request) error { return n.beReleased() }))
	mux.HandleFunc("POST /removed", member(func(http.ResponseWriter, *http.Request) error { return n.beRemoved() }))
	mux.HandleFunc("POST /leave", member(func(_ http.ResponseWriter, r *http.Request) error {
		_, err := n.Leave(r.Context(), r.URL.Query().Get("nodeId"))
		return err
	}))
	return mux
}

// callStatus is how the errors of this package cross the raft port.
var callStatus = []struct {
	err    error
	status int
}{
	{ErrConflict, http.StatusConflict},
	{ErrNoSuchNode, http.StatusNotFound},
	{ErrNotLeader, http.StatusMisdirectedRequest},
	{ErrNotApplied, http.StatusServiceUnavailable},
	{ErrUnknown, http.StatusGatewayTimeout},
	{ErrNoRead, http.StatusTooEarly},
}

func answerJSON(w http.ResponseWriter, value any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(value)
}

func answerCall(w http.ResponseWriter, err error) {
	if err == nil {
		return
	}
	for _, row := range callStatus {
		if errors.Is(err, row.err) {
			http.Error(w, strings.TrimPrefix(err.Error(), row.err.Error()+": "), row.status)
			return
		}
	}
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

// call makes a node-to-node call and decodes its answer, if answer is not nil.
func (n *Node) call(ctx context.Context, method, raftAddress, path string, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+raftAddress+path, nil)
	if err != nil {
		return err
	}
	response, err := n.port.Client().Do(request)
	if err != nil {
		var wrapped *url.Error // method and URL mean nothing to who reads it
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return errors.New("no answer in time")
		}
		return err
	}
	defer func() { _ = response.Body.Close() }()
	const limit = 1 << 20
	text, err := io.ReadAll(io.LimitReader(response.Body, limit))
	if err != nil {
		return err
	}
	if response.StatusCode == http.StatusOK {
		if answer == nil {
			return nil
		}
		return json.Unmarshal(text, answer)
	}
	line := strings.TrimSpace(string(text))
	for _, row := range callStatus {
		if row.status == response.StatusCode {
			return fmt.Errorf("%w: %s", row.err, line)
		}
	}
	return errors.New(line)
}
