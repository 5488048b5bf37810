// Package page shows what raft does on real nodes: the page at /, and /events, from which it and anybody else has it.
// Only handler.go uses it: without its lines there, the node is the same otherwise.
//
// The page asks each member itself, so that it sees also what the raft ports are cut off from. What it does as a client
// goes by /relay of the node that is meant, in a frame: no page of another origin, not even one of another member, may
// use anything but /events and /status (package api, CheckOrigin).
package page

import (
	"bufio"
	"context"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"raftkv/internal/api"
	"raftkv/internal/node"
)

//go:embed page.html
var pageHTML []byte

//go:embed relay.html
var relayHTML []byte

const (
	minInterval = 60 * time.Millisecond // between two frames
	maxInterval = time.Second           // the same, without news
)

// Page is that of one node.
type Page struct {
	// HideValues leaves the values of keys out of every frame. It is set before Route.
	HideValues bool

	node          *node.Node
	pageP, relayP string // Content-Security-Policy, up to the members
}

// New returns the page of a node.
func New(n *node.Node) *Page {
	return &Page{node: n, pageP: policy(pageHTML), relayP: policy(relayHTML)}
}

// Route adds the page. limit makes a handler of an endpoint with the bound of streams.
func (p *Page) Route(router *mux.Router, stream func(func(http.ResponseWriter, *http.Request) error) http.Handler) {
	router.HandleFunc("/", p.serve).Methods(http.MethodGet, http.MethodHead)
	router.HandleFunc("/relay", p.relay).Methods(http.MethodGet, http.MethodHead)
	router.Handle("/events", stream(p.events)).Methods(http.MethodGet)
}

// Lets reports whether r, from a page of another origin, is let in: to be shown the page, which does nothing by itself,
// and, for the page of a member, /events and /status. For the latter it lets the browser give the answer to that page.
// The Host must be checked all the same.
func (p *Page) Lets(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	switch r.URL.Path {
	case "/", "/relay":
		return r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Origin") == ""
	case "/events", "/status":
		origin := r.Header.Get("Origin")
		if origin == "" || !p.isMember(r.Context(), origin) {
			return false
		}
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Add("Vary", "Origin")
		return true
	}
	return false
}

// isMember reports whether origin is that of a member's page. A node that has just joined may not have heard the
// others.
func (p *Page) isMember(ctx context.Context, origin string) bool {
	if slices.Contains(p.node.MemberURLs(), origin) {
		return true
	}
	p.node.HearMembers(ctx)
	return slices.Contains(p.node.MemberURLs(), origin)
}

var inline = regexp.MustCompile(`(?s)<(script|style)>(.*?)</`)

// policy returns the Content-Security-Policy of a page with its scripts and styles by their hashes, and nothing else.
func policy(html []byte) string {
	sources := map[string]string{}
	for _, part := range inline.FindAllSubmatch(html, -1) {
		sum := sha256.Sum256(part[2])
		sources[string(part[1])] += " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	policy := "default-src 'none'; base-uri 'none'; form-action 'none'; script-src" + sources["script"]
	if sources["style"] != "" {
		policy += "; style-src" + sources["style"] + "; img-src data:"
	}
	return policy
}

// members are the origins of the members. Where the node is on loopback, any port there may become that of a member.
func (p *Page) members() string {
	all := p.node.MemberURLs()
	if slices.ContainsFunc(all, api.IsLoopback) {
		all = append(all, "http://127.0.0.1:*", "http://localhost:*")
	}
	return strings.Join(all, " ")
}

func (p *Page) serve(w http.ResponseWriter, r *http.Request) {
	if to := p.byIP(r.Host); to != "" {
		w.Header().Set("Location", to+"/")
		api.WriteText(w, http.StatusTemporaryRedirect, "the page is at "+to+"/, the origin that the other members know")
		return
	}
	members := p.members()
	w.Header().Set("Content-Security-Policy", p.pageP+"; connect-src 'self' "+members+"; frame-src 'self' "+members+
		"; frame-ancestors 'none'")
	write(w, pageHTML)
}

// byIP returns the URL of this node if the host of a request is another name of loopback with the same port: the other
// members know this node's page by that URL alone. Empty: the host is as good.
func (p *Page) byIP(host string) string {
	own, err := url.Parse(p.node.HTTPURL())
	name, port, split := net.SplitHostPort(host)
	if err != nil || split != nil || own.Port() != port || own.Host == host || !api.IsLoopback(own.Host) ||
		!api.IsLoopback(name) {
		return ""
	}
	return own.String()
}

func (p *Page) relay(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Security-Policy", p.relayP+"; connect-src 'self'; frame-ancestors 'self' "+p.members())
	write(w, relayHTML)
}

func write(w http.ResponseWriter, html []byte) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(html)
}

// events answers frames as server-sent events until the client goes or the node ends.
func (p *Page) events(w http.ResponseWriter, r *http.Request) error {
	if _, err := api.Parse(r); err != nil {
		return err
	}
	view := p.node.Watch()
	if view == nil {
		return api.Errorf(http.StatusServiceUnavailable, "too many look at this node already: close a page")
	}
	defer view.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(p.node.Ending(), cancel)()

	f := frames{node: p.node, hidden: p.HideValues}
	out := bufio.NewWriterSize(api.DeadlineWriter(w), 32<<10)
	controller := http.NewResponseController(w)
	tick := time.NewTicker(minInterval)
	defer tick.Stop()
	var sent time.Time
	for {
		all, dropped := view.Since()
		if frame, news := f.next(all, dropped); news || time.Since(sent) >= maxInterval {
			sent = time.Now()
			frame.At = sent.UnixMilli()
			data, _ := json.Marshal(frame) // strings and numbers always encode
			_, _ = out.WriteString("data: ")
			_, _ = out.Write(data)
			_, _ = out.WriteString("\n\n")
			if errors.Join(out.Flush(), controller.Flush()) != nil {
				return nil // the client has gone
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
