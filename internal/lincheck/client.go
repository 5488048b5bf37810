package lincheck

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"raftkv/client"
)

// Client is a client of one node, over HTTP, which follows it to the leader. What it
// asks for and is told goes into a history. It is used by one goroutine.
type Client struct {
	// These may be changed between two operations.
	Base      string         // of the node's URLs
	OnlyReads bool           // Act does
	Large     bool           // some values that Set makes up are of up to 1 MiB
	Stale     bool           // its reads ask for what the node has
	Go        *client.Client // not nil: in the place of requests of its own to Base; see NewGo
	Retries   int            // so often a write of Act is sent again, by its Idempotency-Key, while its outcome is unknown

	id      int
	history *Recorder
	random  *rand.Rand
	failf   func(format string, args ...any)
	values  int // how many it has made up
	tags    map[string]tag
	retried int
}

// tag is what the client knows of a key.
type tag struct{ value, etag string }

// NewClient returns a client. An answer that is in no table goes to failf.
func NewClient(id int, base string, history *Recorder, random *rand.Rand,
	failf func(format string, args ...any)) *Client {
	return &Client{Base: base, id: id, history: history, random: random, failf: failf, tags: make(map[string]tag)}
}

// Record makes the client go on in another history.
func (c *Client) Record(history *Recorder) {
	c.history = history
	clear(c.tags)
}

// Retried is how many writes were sent again and then done, or failed their condition.
func (c *Client) Retried() int { return c.retried }

// Act does one thing, or two, with keys of a group, and returns what came of the last.
func (c *Client) Act(group string) (out Output) {
	all := []string{group + "a", group + "b", group + "c"}
	c.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	key := all[0]
	switch dice := c.random.IntN(100); {
	case c.OnlyReads && dice < 20:
		out = c.List(group)
	case c.OnlyReads || dice < 35:
		out = c.Get(group, key)
	case dice < 50:
		out = c.Set(group, all[:1], "", false)
	case dice < 62:
		out = c.Set(group, all[:2+c.random.IntN(2)], "", false)
	case dice < 66:
		out = c.Remove(group, all[:1], "")
	case dice < 70:
		out = c.Remove(group, all[:2], "")
	case dice < 80:
		out = c.List(group)
	case dice < 82:
		out = c.RemoveAll(group)
	case dice < 86:
		out = c.Set(group, all[:1], "", true)
	default:
		if _, known := c.tags[key]; !known || c.random.IntN(2) == 0 {
			out = c.Get(group, key)
		}
		if known := c.tags[key]; known.value == "" {
			break
		} else if c.random.IntN(2) == 0 {
			out = c.Remove(group, all[:1], known.value)
		} else {
			out = c.Set(group, all[:1], known.value, false)
		}
	}
	return out
}

// Get reads one key.
func (c *Client) Get(group, key string) Output {
	return c.history.Do(c.id, Input{Kind: Get, Group: group, Keys: []string{key}}, func() (out Output) {
		var a answer
		var result Result
		if c.Go != nil {
			a, result = c.goGet(Input{Kind: Get, Keys: []string{key}})
		} else {
			a, result = c.ask("/get", url.Values{"key": {key}}, nil)
		}
		out = Output{Result: result, Found: make(map[string]string)}
		if delete(c.tags, key); a.status == http.StatusOK {
			out.Found[key] = c.value(a.body)
			c.tags[key] = tag{out.Found[key], a.header.Get("ETag")}
		}
		return out
	})
}

// List reads all keys of the group; their names begin with its own.
func (c *Client) List(group string) Output {
	return c.history.Do(c.id, Input{Kind: List, Group: group}, func() Output {
		if c.Go != nil {
			return c.goList(Input{Kind: List, Group: group})
		}
		a, result := c.ask("/list", url.Values{"prefix": {group}}, nil)
		out := Output{Result: result, Found: make(map[string]string)}
		if result != Done {
			return out
		}
		_, mark, _ := strings.Cut(a.header.Get("Raftkv-Watch-From"), "-")
		lines := bufio.NewScanner(strings.NewReader(a.body))
		for lines.Buffer(nil, 2<<20); lines.Scan(); {
			var item struct {
				Key, Value string
				Index      uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &item); err != nil {
				c.failf("list: %v in %q", err, a.body)
			}
			out.Found[item.Key] = c.value(item.Value)
			c.tags[item.Key] = tag{out.Found[item.Key], fmt.Sprintf(`"%d-%s"`, item.Index, mark)}
		}
		return out
	})
}

// Set sets the keys to new values; the conditions are as those of Input.
func (c *Client) Set(group string, keys []string, ifMatch string, ifAbsent bool) Output {
	values := make([]string, len(keys))
	for i := range keys {
		between := "-"
		if c.Large && i == 0 && c.random.IntN(24) == 0 { // of one key only: a request takes 2 MiB at most
			between = large
		}
		values[i] = c.made(between)
	}
	return c.SetTo(group, keys, values, ifMatch, ifAbsent)
}

// SetTo is Set to values that the history does not have yet.
func (c *Client) SetTo(group string, keys, values []string, ifMatch string, ifAbsent bool) Output {
	in := Input{Kind: Set, Group: group, Keys: keys, Values: values, IfMatch: ifMatch, IfAbsent: ifAbsent}
	return c.history.Do(c.id, in, func() Output {
		var values []string
		for _, value := range in.Values {
			values = append(values, sent(value))
		}
		a, result := c.write("/set", url.Values{"key": keys, "value": values}, in)
		for i, key := range keys {
			if delete(c.tags, key); result == Done {
				c.tags[key] = tag{in.Values[i], a.header.Get("ETag")}
			}
		}
		return Output{Result: result}
	})
}

// Remove removes the keys, on a condition as that of Input.
func (c *Client) Remove(group string, keys []string, ifMatch string) Output {
	in := Input{Kind: Remove, Group: group, Keys: keys, IfMatch: ifMatch}
	return c.history.Do(c.id, in, func() Output { return c.removed(c.write("/remove", url.Values{"key": keys}, in)) })
}

// RemoveAll removes all keys of the group.
func (c *Client) RemoveAll(group string) Output {
	in := Input{Kind: RemoveAll, Group: group}
	return c.history.Do(c.id, in, func() Output {
		return c.removed(c.write("/remove", url.Values{"prefix": {group}}, in))
	})
}

func (c *Client) removed(a answer, result Result) Output {
	out := Output{Result: result}
	if result == Done {
		if _, err := fmt.Sscanf(a.body[strings.LastIndex(a.body, " ")+1:], "removed=%d\n", &out.Removed); err != nil {
			c.failf("remove: %v in %q", err, a.body)
		}
	}
	return out
}

// large is in a value that is sent with a filler, and stands for it in the history.
const large = "+"

// sent returns what is sent for a value: with large in it, the value and a filler, up to 1 MiB in all, with as many of
// each size as of twice that size.
func sent(value string) string {
	if !strings.Contains(value, large) {
		return value
	}
	size := crc32.ChecksumIEEE([]byte(value))
	size = 1<<(size%21) + size/21%(1<<(size%21)) // of 1 to 2 MiB
	return value + "~" + strings.Repeat("x", max(int(size/2)-len(value)-1, 0))
}

// value takes the filler off what was read, which must be all that was sent.
func (c *Client) value(read string) string {
	value, _, _ := strings.Cut(read, "~")
	if want := sent(value); read != want {
		c.failf("the value %.50q has %d bytes, want the %d that were set", read, len(read), len(want))
	}
	return value
}

// made returns what the client has not made up before.
func (c *Client) made(between string) string {
	c.values++
	return fmt.Sprintf("%d%s%d", c.id, between, c.values)
}

// write asks for a write, again while Retries allows and its outcome is unknown: then
// all of them are one operation, which is done once.
func (c *Client) write(path string, form url.Values, in Input) (a answer, result Result) {
	if c.Go != nil {
		return c.goWrite(in)
	}
	header := make(http.Header)
	if in.IfMatch != "" {
		header.Set("If-Match", c.tags[in.Keys[0]].etag)
	}
	if in.IfAbsent {
		header.Set("If-None-Match", "*")
	}
	if c.Retries > 0 {
		header.Set("Idempotency-Key", `"`+in.Group+c.made("#")+`"`)
	}
	a, result = c.ask(path, form, header)
	unknown := false
	for again := 0; again < c.Retries && (result == Unknown || unknown && result == NotApplied); again++ {
		unknown = true // also when a later one was surely not applied
		time.Sleep(50 * time.Millisecond)
		a, result = c.ask(path, form, header)
	}
	if unknown && result == NotApplied {
		result = Unknown
	}
	if unknown && result != Unknown {
		c.retried++
	}
	return a, result
}

// HTTP takes a redirect for an answer.
var HTTP = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 16, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext},
	Timeout:       3 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

type answer struct {
	status int
	header http.Header
	body   string
}

func send(r *http.Request) (answer, error) {
	response, err := HTTP.Do(r)
	if err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(body)}, errors.Join(err, response.Body.Close())
}

// ask sends a POST to the client's node and where it leads, and sorts the answer.
func (c *Client) ask(path string, form url.Values, header http.Header) (answer, Result) {
	if c.Stale {
		form.Set("consistency", "stale")
	}
	target := c.Base + path
	for range 4 {
		r, err := http.NewRequest(http.MethodPost, target, strings.NewReader(form.Encode()))
		if err != nil {
			c.failf("%s: %v", target, err)
			return answer{}, NotApplied
		}
		for name, values := range header {
			r.Header[name] = values
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		// When a connection breaks, net/http sends again what has an Idempotency-Key, if
		// it can; the error would then be that of the second, not of the first.
		r.GetBody = nil
		a, err := send(r)
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return answer{}, NotApplied // never sent
		}
		if err != nil {
			return answer{}, Unknown
		}
		switch a.status {
		case http.StatusOK:
			return a, Done
		case http.StatusPreconditionFailed:
			return a, Failed
		case http.StatusServiceUnavailable, http.StatusInsufficientStorage:
			return a, NotApplied
		case http.StatusGatewayTimeout:
			return a, Unknown
		case http.StatusTemporaryRedirect:
			target = a.header.Get("Location")
			continue
		case http.StatusNotFound:
			if path == "/get" {
				return a, Done
			}
		}
		c.failf("%s %v %v: got %d %q", path, form, header, a.status, a.body)
		return a, Unknown
	}
	return answer{}, NotApplied // led around, while the leadership moved
}
