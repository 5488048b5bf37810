package api

import (
	"net/http"

	"raftkv/internal/command"
)

// CheckIfMatch returns an Error of status 412 if the read r has an If-Match that does not
// hold for key, which was last set by the entry at index. For a key that is not there, the
// condition does not count: the request fails anyway (RFC 9110, 13.2.1).
func CheckIfMatch(r *http.Request, h History, key string, index uint64) error {
	match, err := condition(r, h, "If-Match")
	if err != nil || match.IsNone() || match.Holds(index) {
		return err
	}
	return Errorf(http.StatusPreconditionFailed, "If-Match: key %s has ETag %s: it was changed; get it without If-Match",
		command.AppendQuoted(nil, key), h.ETag(index))
}
