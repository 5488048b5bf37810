// Package api makes of an HTTP request what it asks for: parameters, a command
// with its conditions, or one line that says what is wrong with it.
package api

import (
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"raftkv/internal/command"
)

// Max is the limit of a query and of a form, in bytes.
const Max = 2 << 20

// Refusal is the error of all of this package: what the client's request causes.
type Refusal struct {
	Status int
	Text   string // one line that names the parameter, the limit and the way out
}

func (r Refusal) Error() string { return r.Text }

// Refuse returns a Refusal.
func Refuse(status int, format string, args ...any) error {
	return Refusal{status, fmt.Sprintf(format, args...)}
}

// bad is a Refusal with the status that most of them have.
func bad(format string, args ...any) error {
	return Refuse(http.StatusBadRequest, format, args...)
}

func tooLarge(what string, limit int64) error {
	return Refuse(http.StatusRequestEntityTooLarge, "%s: larger than %d bytes; a value may have %d, best sent with PUT (curl -T)", what, limit, command.MaxValue)
}

// Guard lets in what a person or a program sends, and keeps out what a web page
// makes a browser send: sets arrive as GET, so a link or an image could carry one.
// names are the host names of this node, beside localhost.
func Guard(r *http.Request, names []string) error {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "none" && site != "same-origin" {
		return Refuse(http.StatusForbidden, "Sec-Fetch-Site: %q; requests from web pages of other sites are refused", site)
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		return Refuse(http.StatusForbidden, "Origin: %q; requests from web pages of other sites are refused", origin)
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	known := func(name string) bool { return strings.EqualFold(name, host) }
	if net.ParseIP(host) == nil && host != "localhost" && !slices.ContainsFunc(names, known) {
		return Refuse(http.StatusForbidden, "Host: %q is not a name of this node; use its IP address or localhost, or name it in HTTP_SERVER_NAMES at its start", host)
	}
	return nil
}

// Values are the parameters of a request.
type Values struct{ url.Values }

// Parse reads the query and, with POST, the form. A name that is not allowed is
// refused: a misspelt one must not be taken for none.
func Parse(r *http.Request, allowed ...string) (Values, error) {
	if len(r.URL.RawQuery) > Max {
		return Values{}, tooLarge("query", Max)
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Values{}, bad("query: %v; percent-encode it (curl -G --data-urlencode)", err)
	}
	if r.Method == http.MethodPost {
		body, err := readBody(r, "form", Max)
		if err != nil {
			return Values{}, err
		}
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if len(body) > 0 && kind != "application/x-www-form-urlencoded" {
			return Values{}, bad("Content-Type: %q; POST takes application/x-www-form-urlencoded, PUT a raw value", kind)
		}
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return Values{}, bad("form: %v; percent-encode it (curl --data-urlencode)", err)
		}
		for name, given := range form {
			values[name] = append(values[name], given...)
		}
	}
	for name := range values {
		if !slices.Contains(allowed, name) {
			takes := "none"
			if len(allowed) > 0 {
				takes = strings.Join(allowed, ", ")
			}
			return Values{}, bad("%s: unknown parameter; %s takes %s", command.AppendQuoted(nil, name), r.URL.Path, takes)
		}
	}
	return Values{values}, nil
}

// One returns the value of a parameter that must be given once.
func (v Values) One(name string) (string, error) {
	switch given := v.Values[name]; len(given) {
	case 0:
		return "", bad("%s: missing; add %s=…", name, name)
	case 1:
		return given[0], nil
	default:
		return "", bad("%s: given %d times; give it once", name, len(given))
	}
}

// Optional is One, with what stands for none.
func (v Values) Optional(name, fallback string) (string, error) {
	if !v.Has(name) {
		return fallback, nil
	}
	return v.One(name)
}

// Key returns the key of a request that takes one.
func (v Values) Key() (string, error) {
	key, err := v.One("key")
	if err != nil {
		return "", err
	}
	return key, checkKeys([]string{key})
}

// Prefix returns the prefix that keys are to have, empty for all keys.
func (v Values) Prefix() (string, error) {
	prefix, err := v.Optional("prefix", "")
	if err == nil && len(prefix) > command.MaxKey {
		err = bad("prefix: %d bytes; a key has at most %d", len(prefix), command.MaxKey)
	}
	return prefix, err
}

func checkKeys(keys []string) error {
	if len(keys) == 0 {
		return bad("key: missing; add key=NAME")
	}
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		switch {
		case key == "":
			return bad("key: empty; a key has 1 to %d bytes", command.MaxKey)
		case len(key) > command.MaxKey:
			return bad("key: %d bytes; a key has 1 to %d bytes", len(key), command.MaxKey)
		case seen[key]:
			return bad("key: %s is given twice in one request; give it once", command.AppendQuoted(nil, key))
		}
		seen[key] = true
	}
	return nil
}

// Set makes the command of keys and values in the query and, with POST, a form; with
// PUT the body is the value.
func Set(r *http.Request) (command.Command, error) {
	c := command.Command{Kind: command.Set}
	values, err := Parse(r, "key", "value")
	if err != nil {
		return c, err
	}
	keys, given := values.Values["key"], values.Values["value"]
	if err := checkKeys(keys); err != nil {
		return c, err
	}
	if c.Options, err = options(r); err != nil {
		return c, err
	}
	if r.Method == http.MethodPut {
		if len(given) > 0 {
			return c, bad("value: with PUT the body is the value; leave the parameter out, or use GET or POST")
		}
		if len(keys) > 1 {
			return c, bad("key: %d given; PUT takes one key, whose value is the body", len(keys))
		}
		body, err := readBody(r, "value", command.MaxValue)
		if err != nil {
			return c, err
		}
		c.Pairs = []command.Pair{{Key: keys[0], Value: body}}
		return c, nil
	}
	if len(given) != len(keys) {
		return c, bad("value: %d given for %d of key; each key needs one value (value= for an empty one)", len(given), len(keys))
	}
	c.Pairs = make([]command.Pair, len(keys))
	for i, key := range keys {
		if len(given[i]) > command.MaxValue {
			return c, tooLarge("value", command.MaxValue)
		}
		c.Pairs[i] = command.Pair{Key: key, Value: []byte(given[i])}
	}
	return c, nil
}

// Remove makes the command of the keys to remove, or of their prefix.
func Remove(r *http.Request) (command.Command, error) {
	c := command.Command{Kind: command.Remove}
	values, err := Parse(r, "key", "prefix")
	if err != nil {
		return c, err
	}
	if c.Options, err = options(r); err != nil {
		return c, err
	}
	keys := values.Values["key"]
	if !values.Has("prefix") {
		c.Pairs = make([]command.Pair, len(keys))
		for i, key := range keys {
			c.Pairs[i].Key = key
		}
		return c, checkKeys(keys)
	}
	prefix, err := values.Prefix()
	switch {
	case err != nil:
		return c, err
	case len(keys) > 0:
		return c, bad("prefix: given together with key; remove them in two requests")
	case prefix == "":
		return c, bad("prefix: empty, which would remove every key; name at least the first byte of the keys")
	case c.Options != nil && !(c.Match.IsNone() && c.NoneMatch.IsNone()):
		return c, bad("prefix: with If-Match or If-None-Match; conditions are for keys: remove by key, or leave them out")
	}
	c.Kind, c.Pairs = command.RemovePrefix, []command.Pair{{Key: prefix}}
	return c, nil
}

// readBody reads a body of at most limit bytes.
func readBody(r *http.Request, what string, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(what, limit)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, bad("%s: the body ends early: %v", what, err)
	}
	if int64(len(body)) > limit {
		return nil, tooLarge(what, limit)
	}
	return body, nil
}
