package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Info is what a node reports about itself, as far as a program needs it.
type Info struct {
	NodeID       string `json:"nodeId"`
	ClusterID    string `json:"clusterId"`
	Version      string `json:"version"`
	State        string `json:"state"`  // Leader, Follower, Candidate or Shutdown
	Leader       string `json:"leader"` // its node ID; empty: none is known
	Term         uint64 `json:"term"`
	AppliedIndex uint64 `json:"appliedIndex"`
	Hash         string `json:"hash"` // of all entries up to there; empty: not known
	Keys         int    `json:"keys"`
	HTTPURL      string `json:"httpUrl"` // where clients reach it
}

// MemberStatus is one member of the cluster.
type MemberStatus struct {
	NodeID      string `json:"nodeId"`
	RaftAddress string `json:"raftAddress"`
	Suffrage    string `json:"suffrage"` // Voter or Nonvoter
	Reachable   bool   `json:"reachable"`
	Info        *Info  `json:"info"` // nil if it was not reachable
}

// Status is a node and, asked live, all members that it knows of.
type Status struct {
	Info
	Members []MemberStatus `json:"members"`
}

// Status asks a node for its status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	response, err := c.do(ctx, &call{method: http.MethodGet, path: "/status"})
	if err != nil {
		return Status{}, err
	}
	return decodeStatus(response)
}

// statusOf asks one node, once.
func (c *Client) statusOf(ctx context.Context, base string) (Status, error) {
	response, err := c.send(ctx, base+"/status", &call{method: http.MethodGet})
	if err != nil {
		return Status{}, err
	}
	return decodeStatus(response)
}

func decodeStatus(response *http.Response) (s Status, err error) {
	if err = json.NewDecoder(response.Body).Decode(&s); err != nil {
		err = fmt.Errorf("raftkv: status: %w", err)
	}
	return s, err
}

// Member is a node that Join makes a member.
type Member struct {
	ID       string
	Host     string // of its raft port; empty: the machine of the leader
	Port     int    // its raft port
	Nonvoter bool   // a read replica
}

// Join makes a node a member of the cluster, which may take long. Progress, if not nil, is called
// with each line about how far the node has caught up. To join a member again does nothing.
func (c *Client) Join(ctx context.Context, m Member, progress func(line string)) error {
	form := url.Values{"nodeId": {m.ID}, "raftPort": {strconv.Itoa(m.Port)}}
	if m.Host != "" {
		form.Set("raftHost", m.Host)
	}
	if m.Nonvoter {
		form.Set("suffrage", "nonvoter")
	}
	r := post("/join", form)
	r.write, r.once, r.stream, r.timeout = true, true, true, longTimeout
	response, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		switch rest, failed := strings.CutPrefix(line, "ERROR "); {
		case failed:
			number, message, _ := strings.Cut(rest, " ")
			status, _ := strconv.Atoi(number)
			return &Error{Status: status, Message: message, write: true, missing: status == http.StatusNotFound,
				unknown: status >= 500 && status != http.StatusServiceUnavailable}
		case strings.HasPrefix(line, "OK "):
			return nil
		case progress != nil:
			progress(line)
		}
	}
	return &Error{Message: "the answer broke off", write: true, unknown: true, cause: lines.Err()}
}

// Leave removes a node from the cluster.
func (c *Client) Leave(ctx context.Context, nodeID string) error {
	return c.change(ctx, "/leave", url.Values{"nodeId": {nodeID}})
}

// Transfer hands the leadership to a node, or with an empty ID to the voter that has caught up
// best.
func (c *Client) Transfer(ctx context.Context, nodeID string) error {
	form := make(url.Values)
	if nodeID != "" {
		form.Set("nodeId", nodeID)
	}
	return c.change(ctx, "/transfer", form)
}

// change is a change that has no Idempotency-Key: sent again only if it was surely not done.
func (c *Client) change(ctx context.Context, path string, form url.Values) error {
	r := post(path, form)
	r.write, r.once, r.timeout = true, true, longTimeout
	if len(r.body) == 0 {
		r.body = []byte("&") // an empty form; what has no body may be sent again by net/http
	}
	_, err := c.do(ctx, r)
	return err
}

// Snapshot returns a backup of all data, for Restore. The caller closes it. A backup that breaks
// off ends with an error of Read that is not io.EOF.
func (c *Client) Snapshot(ctx context.Context, options ...ReadOption) (io.ReadCloser, error) {
	r := read("/snapshot", make(url.Values), options)
	r.stream, r.timeout = true, longTimeout
	response, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}

// Restore replaces all data by those of a backup, from its beginning: all, or nothing. The backup
// is read once for each node that is asked. The length of a request must be known, hence the
// Seeker: a file will do.
func (c *Client) Restore(ctx context.Context, backup io.ReadSeeker) error {
	size, err := backup.Seek(0, io.SeekEnd)
	if err != nil {
		return &Error{Message: err.Error(), write: true, cause: err}
	}
	// A follower answers before it reads the body, if the body waits for that.
	_, err = c.do(ctx, &call{method: http.MethodPut, path: "/restore", file: backup, size: size, write: true, once: true,
		header: http.Header{"Expect": {"100-continue"}}, timeout: 10 * longTimeout})
	return err
}
