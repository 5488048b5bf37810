package testkit

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Direct takes a redirect for an answer; Following goes where it leads. With "Expect: 100-continue", both send a body
// only when the node asks for it. No proxy of the environment is between, and certificates are not looked at.
var (
	transport = &http.Transport{ExpectContinueTimeout: time.Minute, MaxIdleConnsPerHost: 16,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	Direct = &http.Client{Transport: transport, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	Following = &http.Client{Transport: transport, Timeout: time.Minute}
)

// Answer is what a node has answered.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Send sends r and reads the whole answer.
func Send(c *http.Client, r *http.Request) (Answer, error) {
	response, err := c.Do(r)
	if err != nil {
		return Answer{}, err
	}
	body, err := io.ReadAll(response.Body)
	return Answer{response.StatusCode, response.Header, string(body)}, errors.Join(err, response.Body.Close())
}

// Acknowledged sends r where it leads; an answer other than 200 is an error.
func Acknowledged(r *http.Request) (Answer, error) {
	a, err := Send(Following, r)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", a.Status, a.Body)
	}
	return a, err
}

var okIndex = regexp.MustCompile(`^OK index=([1-9][0-9]*)(?: removed=[0-9]+)?\n$`)

// Index is the index in the answer to a write.
func (a Answer) Index() (uint64, error) {
	found := okIndex.FindStringSubmatch(a.Body)
	if found == nil {
		return 0, fmt.Errorf("answer %q, want OK index=N", a.Body)
	}
	return strconv.ParseUint(found[1], 10, 64)
}

// OneLine returns an error unless the body is one line of text that contains all that it should name.
func (a Answer) OneLine(names ...string) error {
	if strings.Count(a.Body, "\n") != 1 || !strings.HasSuffix(a.Body, "\n") {
		return fmt.Errorf("body: got %.500q, want one line", a.Body)
	}
	if got := a.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
		return fmt.Errorf("Content-Type: got %q, want plain text", got)
	}
	for _, name := range names {
		if !strings.Contains(a.Body, name) {
			return fmt.Errorf("body: got %.500q, want %q in it", a.Body, name)
		}
	}
	return nil
}

// Pair is a query that sets key to value.
func Pair(key, value string) string { return url.Values{"key": {key}, "value": {value}}.Encode() }

// Client reaches one node over HTTP. Its methods may be called concurrently.
type Client struct {
	ID    string
	Base  string // of the node's URLs, such as http://127.0.0.1:8000
	Token string // that is sent with each request; empty: none
}

// authorize puts the token into r.
func (c Client) authorize(r *http.Request) {
	if c.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.Token)
	}
}

// At makes a Client, and what embeds one, a Peer.
func (c Client) At() Client { return c }

// Request is a request for a path with a query. Its headers are given as name, value, name and so on.
func (c Client) Request(t testing.TB, method, target, body string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, c.Base+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	c.authorize(r)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// Ask sends a GET, and takes a redirect for an answer.
func (c Client) Ask(t testing.TB, target string) Answer {
	t.Helper()
	a, err := Send(Direct, c.Request(t, http.MethodGet, target, ""))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Definite sends a request where it leads, again until there is an answer below 500, or
// 507, which it returns.
func (c Client) Definite(t testing.TB, method, target, body string, headers ...string) (a Answer) {
	t.Helper()
	Eventually(t, target, func() (err error) {
		a, err = Send(Following, c.Request(t, method, target, body, headers...))
		if err == nil && a.Status >= 500 && a.Status != http.StatusInsufficientStorage {
			err = fmt.Errorf("status %d: %s", a.Status, a.Body)
		}
		return err
	})
	return a
}

// Write sends a GET that changes the data where it leads, again until it is acknowledged, and returns the index in the
// answer.
func (c Client) Write(t testing.TB, target string) (index uint64) {
	t.Helper()
	Eventually(t, target, func() error {
		a, err := Acknowledged(c.Request(t, http.MethodGet, target, ""))
		if err == nil {
			index, err = a.Index()
		}
		return err
	})
	return index
}

// Set is Write of one key.
func (c Client) Set(t testing.TB, key, value string) (index uint64) {
	t.Helper()
	return c.Write(t, "/set?"+Pair(key, value))
}

// Ready returns an error unless /readyz answers OK.
func (c Client) Ready() error {
	_, err := c.get("/readyz")
	return err
}

// Status is of /status what tests use.
type Status struct {
	NodeID, ClusterID, State, Leader           string
	RaftAddress, HTTPAddress                   string
	Term, LastIndex, CommitIndex, AppliedIndex uint64
	Hash                                       string `json:"hash"` // of the hash chain over all entries applied
	Keys, Format                               int
	Members                                    []struct{ NodeID, Suffrage string }
}

// Status asks the node for its own.
func (c Client) Status() (s Status, err error) {
	body, err := c.get("/status")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(body), &s)
}

// List is /list of all that the node itself holds: one line for each key, with its value and index.
func (c Client) List() (string, error) { return c.get("/list?consistency=stale") }

// Values is List as a map of values by key.
func (c Client) Values() (map[string]string, error) {
	list, err := c.List()
	if err != nil {
		return nil, err
	}
	return valuesOf(list)
}

func valuesOf(list string) (map[string]string, error) {
	values := make(map[string]string)
	for line := range strings.Lines(list) {
		var l struct {
			Key, Value     string
			Key64, Value64 []byte // in place of those that are not UTF-8
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			return nil, fmt.Errorf("list: %w in %q", err, line)
		}
		values[l.Key+string(l.Key64)] = l.Value + string(l.Value64)
	}
	return values, nil
}

// get is a GET whose error has any answer but 200.
func (c Client) get(target string) (body string, err error) {
	r, err := http.NewRequest(http.MethodGet, c.Base+target, nil)
	if err != nil {
		return "", err
	}
	c.authorize(r)
	a, err := Acknowledged(r)
	if err != nil {
		return "", fmt.Errorf("%s: %w", c.ID, err)
	}
	return a.Body, nil
}
