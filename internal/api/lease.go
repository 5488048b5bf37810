package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// lease returns what ends the keys of a request to set them: the parameters ttl and lease.
func (v Values) lease(keys []string) (l command.Lease, err error) {
	if v.Has("ttl") {
		ttl, err := v.Required("ttl")
		if err == nil {
			l.TTL, err = parseTTL(ttl)
		}
		if err != nil {
			return l, err
		}
	}
	if v.Has("lease") {
		if l.Key, err = v.Required("lease"); err != nil {
			return l, err
		}
		return l, checkLeaseKey(l.Key, keys...)
	}
	return l, nil
}

func checkLeaseKey(lease string, keys ...string) error {
	switch {
	case len(lease) == 0 || len(lease) > command.MaxKey:
		return badRequest("lease: %d bytes; it is the key that this one goes with, and a key has 1 to %d", len(lease),
			command.MaxKey)
	case slices.Contains(keys, lease):
		return badRequest("lease: %s is the key itself; name another one, or leave it out",
			command.AppendQuoted(nil, lease))
	}
	return nil
}

// parseTTL reads a TTL such as 30s, 90m or 7d.
func parseTTL(text string) (time.Duration, error) {
	ttl, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, daysErr := strconv.ParseUint(days, 10, 16)
		ttl, err = time.Duration(n)*24*time.Hour, daysErr
	}
	if err == nil && ttl%time.Millisecond != 0 {
		err = errors.New("not whole milliseconds")
	}
	if err != nil || ttl < command.MinTTL || ttl > command.MaxTTL {
		return 0, badRequest("ttl: want %v to %dd, such as 30s, 90m or 7d; leave it out for a key that stays",
			command.MinTTL, command.MaxTTL/(24*time.Hour))
	}
	return ttl, nil
}

// SetLeaseHeaders sets the headers that tell what ends a key: Raftkv-TTL, and Raftkv-Lease, which is percent-encoded.
func SetLeaseHeaders(w http.ResponseWriter, l kv.Lease) {
	if l.TTL != 0 {
		w.Header().Set("Raftkv-TTL", l.TTL.String())
	}
	if l.Key != "" {
		w.Header().Set("Raftkv-Lease", url.QueryEscape(l.Key))
	}
}

// leaseGone is the Error for a lease whose key is not there.
func leaseGone(c *command.Command, r command.Result) error {
	what := "a lease of the transaction"
	if r.Txn == nil {
		what = fmt.Sprintf("lease: key %s", command.AppendQuoted(nil, c.Lease().Key))
	}
	return Errorf(http.StatusPreconditionFailed, "%s is not there: nothing was done; set it first, with a ttl", what)
}
