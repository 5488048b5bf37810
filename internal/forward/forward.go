// Package forward has a follower send the requests on that only the leader can carry out, and
// the leader answer them. Package api has their form on the wire, package node the call.
package forward

import (
	"errors"
	"fmt"
	"net/http"

	"raftkv/internal/api"
	"raftkv/internal/node"
)

// Header is a header of every answer to a request that was sent on: the ID of the node that
// has sent it on.
const Header = "Raftkv-Forwarded-By"

// Kind is what is sent on.
type Kind int

// The kinds of requests.
const (
	Command     Kind = iota // a set or a remove: short ones travel together
	Transaction             // so do those that read nothing
	Change                  // of the cluster, which takes a while; and what etcd's clients ask
	Long                    // takes as long as it takes
)

// Request has the leader answer r, whose body was not read. If the error wraps node.ErrOlderLeader,
// r is as it was. With any other error the client is to get one more line if its answer was sent in
// part, and else all of its answer. An answer that has no place for such a line breaks off.
func Request(w http.ResponseWriter, r *http.Request, n *node.Node, kind Kind,
	logf func(format string, args ...any)) (sent bool, err error) {
	long := kind == Long
	if long {
		if err := api.ClearDeadlines(w); err != nil {
			return false, err
		}
	}
	request := api.NewForwarding(w, r, long)
	var whole []byte
	if kind == Command || kind == Transaction {
		if whole, err = request.Whole(kind == Transaction); err != nil {
			return false, err
		}
	}
	w.Header().Set(Header, n.ID())
	response, err := n.Forward(r.Context(), request, node.ForwardOptions{
		Length: request.Length, Ask: request.Ask, Long: long, Whole: whole,
		To: func(id string) { logf("Not the leader: sending %s on to %s", r.URL.Path, id) },
	})
	if err == nil {
		if sent, err = request.WriteAnswer(r, response); err != nil {
			err = fmt.Errorf("%w: the leader's answer broke off: %w", node.ErrUnknown, err)
		}
	}
	broken := request.BodyError()
	switch {
	case err == nil:
	case errors.Is(err, node.ErrOlderLeader):
		w.Header().Del(Header)
	case !sent && broken != nil: // the leader has not got all of it, and has done nothing
		err = broken
	case sent && !long:
		panic(http.ErrAbortHandler) // the status is sent: only a connection that breaks off shows the error
	}
	return sent, err
}

// Handler answers the requests that other nodes send on to this one, by leaders. leads reports
// whether this node may take them.
func Handler(leaders http.Handler, leads func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, call *http.Request) {
		if call.URL.Path == node.TogetherPath {
			api.ServeTogether(w, call, leaders, leads)
			return
		}
		r, err := api.ReadForwarded(w, call)
		if err != nil {
			api.WriteError(w, call, http.StatusBadRequest, err.Error())
			return
		}
		leaders.ServeHTTP(w, r)
	})
}
