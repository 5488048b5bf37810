package api

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"raftkv/internal/command"
)

// maxParameters is the limit of the parameters in a query, and of those in a form. It is
// what fits into MaxQuery with short keys and no values, about; net/url's own limit is 10,000.
const maxParameters = 200_000

// MaxQuery is the limit of a query and of a form, in bytes. A value may come in either.
const MaxQuery = 2 << 20

// Values are the parameters of a request.
type Values struct{ url.Values }

// Parse reads the query and, with POST, the form. A name that is not allowed is an
// error: a misspelt parameter must not be taken for a missing one.
func Parse(r *http.Request, allowed ...string) (Values, error) {
	if len(r.URL.RawQuery) > MaxQuery {
		return Values{}, tooLarge("query", MaxQuery)
	}
	query, length := cutLengthMark(r.URL.RawQuery)
	if length != "" && r.Method != http.MethodPut && r.Method != http.MethodPost {
		return Values{}, checkLength(r, 0)
	}
	values := Values{make(url.Values)}
	if err := values.add(query, r.URL.Path, allowed, "query", "curl -G --data-urlencode"); err != nil {
		return Values{}, err
	}
	if r.Method == http.MethodPost {
		body, err := readBody(r, "form", MaxQuery)
		if err != nil {
			return Values{}, err
		}
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if len(body) > 0 && kind != "application/x-www-form-urlencoded" {
			return Values{}, badRequest("Content-Type: %q; POST takes application/x-www-form-urlencoded, PUT a raw value", kind)
		}
		// Not a copy of what may be 2 MiB. Nothing writes to body any more.
		text := unsafe.String(unsafe.SliceData(body), len(body))
		if err := values.add(text, r.URL.Path, allowed, "form", "curl --data-urlencode"); err != nil {
			return Values{}, err
		}
	}
	return values, nil
}

// add adds the parameters of text, which is encoded as a form. (url.ParseQuery refuses more
// than 10,000, and keeps names that are not allowed.) what names text in an error, and tool
// is what encodes it.
func (v Values) add(text, path string, allowed []string, what, tool string) error {
	if strings.Count(text, "&") >= maxParameters {
		return badRequest("%s: more than %d parameters: nothing was done; send the keys in several requests",
			what, maxParameters)
	}
	for pair := range strings.SplitSeq(text, "&") {
		if pair == "" {
			continue
		}
		if strings.Contains(pair, ";") {
			return badRequest("%s: a semicolon that is not percent-encoded; use & between parameters, or encode it (%s)",
				what, tool)
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return badRequest("%s: %v; percent-encode it (%s)", what, err, tool)
		}
		if !slices.Contains(allowed, name) {
			takes := "none"
			if len(allowed) > 0 {
				takes = strings.Join(allowed, ", ")
			}
			return badRequest("%s: unknown parameter; %s takes %s", command.AppendQuoted(nil, name), path, takes)
		}
		v.Values[name] = append(v.Values[name], value)
	}
	return nil
}

// readBody reads a body of at most limit bytes; what names it in the error. A body
// that ends before its declared length is an error, too, and one that a redirect has cost
// its content. An error of GuardBody's check is returned as it is.
func readBody(r *http.Request, what string, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(what, limit)
	}
	if guarded, ok := r.Body.(*guardedBody); ok {
		if err := guarded.begin(); err != nil {
			return nil, err
		}
	}
	most := limit
	if r.ContentLength >= 0 {
		most = r.ContentLength
	}
	own := slotOf(r.Body)
	if own != nil {
		if err := own.hold(r.Context(), &own.body, most, 0); err != nil {
			return nil, err
		}
	}
	body, err := readAll(r.Body, r.ContentLength, limit)
	if err != nil {
		return nil, BodyError(what, fmt.Errorf("the body ends early: %w", err))
	}
	if own != nil && r.ContentLength < 0 {
		own.body.Shrink(copies * int64(len(body)))
	}
	if int64(len(body)) > limit {
		return nil, tooLarge(what, limit)
	}
	return body, checkLength(r, len(body))
}

// readAll reads a body of that length, or of limit+1 bytes at most if it is -1.
func readAll(body io.Reader, length, limit int64) ([]byte, error) {
	if length < 0 {
		return io.ReadAll(io.LimitReader(body, limit+1))
	}
	all := make([]byte, length)
	n, err := io.ReadFull(body, all)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return all[:n], err
}

// BodyError returns the Error for a body that could not be read because of err; what names
// the body. A client that was too slow may try again, so that is no 400.
func BodyError(what string, err error) error {
	if errors.Is(err, errGaveWay) {
		return Errorf(http.StatusServiceUnavailable, "%s: too many requests are under way, and of all of them it was "+
			"longest in coming: nothing was done; it is safe to send it again", what)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Errorf(http.StatusRequestTimeout, "%s: the body did not come in time, which is %v: nothing was done; "+
			"send it faster, or in smaller parts", what, bodyTimeout)
	}
	return badRequest("%s: %v", what, err)
}

// Required returns the value of a parameter that must be given exactly once.
func (v Values) Required(name string) (string, error) {
	switch given := v.Values[name]; len(given) {
	case 0:
		return "", badRequest("%s: missing; add %s=… (in a shell, quote the address: an & without quotes ends it)", name,
			name)
	case 1:
		return given[0], nil
	default:
		return "", badRequest("%s: given %d times; give it once", name, len(given))
	}
}

// StringOr returns the value of a parameter that may be given once, and def if it is
// not given.
func (v Values) StringOr(name, def string) (string, error) {
	if !v.Has(name) {
		return def, nil
	}
	return v.Required(name)
}

// key returns the key of a request that takes one.
func (v Values) key() (string, error) {
	key, err := v.Required("key")
	if err != nil {
		return "", err
	}
	return key, checkKeys([]string{key})
}

// prefix returns the prefix of the keys that a request is about; empty: all keys.
func (v Values) prefix() (string, error) {
	prefix, err := v.StringOr("prefix", "")
	if err == nil && len(prefix) > command.MaxKey {
		err = badRequest("prefix: %d bytes; a key has at most %d", len(prefix), command.MaxKey)
	}
	return prefix, err
}

// stale reports whether a read accepts what this node has, be it old.
func (v Values) stale() (bool, error) {
	consistency, err := v.StringOr("consistency", "linearizable")
	if err == nil && consistency != "linearizable" && consistency != "stale" {
		err = badRequest("consistency: want linearizable (the default) or stale")
	}
	return consistency == "stale", err
}

// nodeID returns the ID of the node that a request is about.
func (v Values) nodeID() (string, error) {
	id, err := v.Required("nodeId")
	if err != nil {
		return "", err
	}
	if err := CheckNodeID(id); err != nil {
		return "", badRequest("nodeId: %v", err)
	}
	return id, nil
}

func checkKeys(keys []string) error {
	if len(keys) == 0 {
		return badRequest("key: missing; add key=NAME (in a shell, quote the address: an & without quotes ends it)")
	}
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		switch {
		case key == "":
			return badRequest("key: empty; a key has 1 to %d bytes", command.MaxKey)
		case len(key) > command.MaxKey:
			return badRequest("key: %d bytes; a key has 1 to %d bytes", len(key), command.MaxKey)
		case seen[key]:
			return badRequest("key: %s is given twice in one request; give it once", command.AppendQuoted(nil, key))
		}
		seen[key] = true
	}
	return nil
}

var (
	nodeIDPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	hostNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)
)

// CheckNodeID returns an error unless id may be the ID of a node: it becomes part of
// paths and of console lines.
func CheckNodeID(id string) error {
	if !nodeIDPattern.MatchString(id) {
		return errors.New("want 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit")
	}
	return nil
}

// CheckDial returns an error unless address is host:port that other nodes can dial: a host as of CheckHost, not an
// unspecified one such as 0.0.0.0, and a port from 1 to 65535. With hostAlone, it may be a host without a port.
func CheckDial(address string, hostAlone bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil && hostAlone {
		host, port, err = address, "1", nil
	}
	number, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || number == 0 || CheckHost(host) != nil || net.ParseIP(host).IsUnspecified() {
		return errors.New("want host:port that the other nodes can dial, with a port from 1 to 65535")
	}
	return nil
}

// SplitJoin splits the addresses of the nodes that make a cluster, host:port with commas between: two or more, or one
// DNS name that stands for several. Empty: none are given.
func SplitJoin(list string) (addresses []string, err error) {
	if list == "" {
		return nil, nil
	}
	addresses = strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	for _, address := range addresses {
		if err := CheckDial(address, false); err != nil {
			return nil, fmt.Errorf("%q: %w", address, err)
		}
	}
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	if len(addresses) < 2 {
		host, _, _ := net.SplitHostPort(strings.Join(addresses, ""))
		if host == "" || net.ParseIP(host) != nil {
			return nil, errors.New("want host:port of all nodes, with commas between, or one DNS name of several addresses")
		}
	}
	return addresses, nil
}

// CheckHost returns an error unless host is an IP address or a host name. A port behind
// it is an error.
func CheckHost(host string) error {
	if net.ParseIP(host) == nil && !hostNamePattern.MatchString(host) {
		return errors.New("want an IP address or a host name, without a port")
	}
	return nil
}
