package lincheck

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"raftkv/client"
)

// NewGo returns package client's client of the nodes with these URLs, for Client.Go. It gives up within about as long
// as a Client does that has Retries.
func NewGo(endpoints ...string) (*client.Client, error) {
	return client.New(client.Config{Endpoints: endpoints, HTTP: &http.Client{Transport: HTTP.Transport},
		AttemptTimeout: 3 * time.Second, RetryFor: 5 * time.Second})
}

// sort sorts what package client has returned.
func (c *Client) sort(in Input, err error) Result {
	var status int
	if e, ok := errors.AsType[*client.Error](err); ok {
		status = e.Status
	}
	switch {
	case err == nil:
		return Done
	case errors.Is(err, client.ErrPreconditionFailed):
		return Failed
	case errors.Is(err, client.ErrUnknown):
		return Unknown
	case in.reads(), errors.Is(err, client.ErrNotApplied):
		if status >= 400 && status < 500 {
			break
		}
		return NotApplied
	}
	c.failf("%s %v by package client: got %v", in.Name(), in.Keys, err)
	return Unknown
}

// goGet is Get by package client.
func (c *Client) goGet(in Input) (answer, Result) {
	item, err := c.Go.Get(context.Background(), in.Keys[0])
	if errors.Is(err, client.ErrNotFound) {
		return answer{status: http.StatusNotFound}, Done
	}
	result := c.sort(in, err)
	if result != Done {
		return answer{}, result
	}
	return answer{status: http.StatusOK, header: http.Header{"Etag": {item.ETag}}, body: string(item.Value)}, Done
}

// goList is List by package client: one consistent view.
func (c *Client) goList(in Input) (out Output) {
	out.Found = make(map[string]string)
	for item, err := range c.Go.List(context.Background(), in.Group, client.PageSize(0)) {
		if e := (*client.Error)(nil); err != nil && !errors.As(err, &e) { // it broke off
			return Output{Result: NotApplied}
		} else if err != nil {
			return Output{Result: c.sort(in, err)}
		}
		out.Found[item.Key] = c.value(string(item.Value))
		c.tags[item.Key] = tag{out.Found[item.Key], item.ETag}
	}
	out.Result = Done
	return out
}

// goWrite is write by package client: with a transaction, where that does the same, half of the time.
func (c *Client) goWrite(in Input) (answer, Result) {
	if (in.IfMatch != "" || in.IfAbsent) && c.random.IntN(2) == 0 {
		return c.goTxn(in)
	}
	var options []client.WriteOption
	if in.IfMatch != "" {
		options = append(options, client.IfMatch(c.tags[in.Keys[0]].etag))
	}
	if in.IfAbsent {
		options = append(options, client.IfAbsent())
	}
	var did client.Result
	var err error
	ctx := context.Background()
	switch {
	case in.Kind == RemoveAll:
		did, err = c.Go.RemovePrefix(ctx, in.Group, options...)
	case in.Kind == Remove:
		did, err = c.Go.Remove(ctx, in.Keys, options...)
	case len(in.Keys) == 1:
		did, err = c.Go.Set(ctx, in.Keys[0], []byte(sent(in.Values[0])), options...)
	default:
		values := make(map[string][]byte)
		for i, key := range in.Keys {
			values[key] = []byte(sent(in.Values[i]))
		}
		did, err = c.Go.SetAll(ctx, values, options...)
	}
	return answer{header: http.Header{"Etag": {did.ETag}}, body: "OK removed=" + strconv.Itoa(did.Removed) + "\n"},
		c.sort(in, err)
}

// goTxn does a conditional write of one key as a transaction.
func (c *Client) goTxn(in Input) (answer, Result) {
	key := in.Keys[0]
	t := client.Txn{If: []client.Compare{client.Absent(key)}, Then: []client.Op{client.RemoveOp(key)}}
	if in.IfMatch != "" {
		t.If[0] = client.HasETag(key, c.tags[key].etag)
	}
	if in.Kind == Set {
		t.Then[0] = client.SetOp(key, []byte(sent(in.Values[0])))
	}
	did, err := c.Go.Txn(context.Background(), t)
	result := c.sort(in, err)
	if result == Done && !did.Held {
		return answer{}, Failed
	}
	a := answer{header: make(http.Header)}
	if result == Done {
		found := slices.ContainsFunc(did.Results, func(r client.OpResult) bool { return r.Found })
		a.header.Set("ETag", did.Results[0].ETag)
		a.body = strings.NewReplacer("true", "OK removed=1\n", "false", "OK removed=0\n").Replace(strconv.FormatBool(found))
	}
	return a, result
}
