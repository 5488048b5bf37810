package api

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// CheckOrigin rejects what a web page of another site makes a browser send, with an
// Error of status 403. It lets in what a person or a program sends. names are the host
// names of this node, beside localhost and IP addresses; *.suffix is all names below suffix,
// at any depth, and not suffix itself.
//
// Against cross-site request forgery (CSRF) it goes by Sec-Fetch-Site and Origin, which
// a page can't change. http.CrossOriginProtection does not do here: it exempts GET as a
// safe method, and sets arrive as GET, so that a link or an image could carry one. Over
// HTTPS, an Origin must be of https too: a page of the same host and port that came over
// http may have been replaced on its way. Over HTTP it may have either scheme: behind a proxy that ends TLS the page is
// at https, and this node can't know. The host and the port are what a foreign page can't have, and a
// browser that holds the two schemes for different sites says so by Sec-Fetch-Site.
//
// To a name over plain http, browsers send no Sec-Fetch-Site (Fetch Metadata, section 3: only to
// potentially trustworthy URLs), and with a GET that no script may read no Origin. They are known
// by Accept-Language then, which all of them send and curl, wget, Go and Python do not: such a
// request may read, which the page can't see, and change nothing. See fromBrowser.
//
// Against DNS rebinding, where a page has its own name resolve to this node and so becomes
// of the same origin, the Host must be a name that only this node has. A request without a
// Host, which HTTP/1.0 allows, is no browser's: the health checks of load balancers are
// such, and from this machine it may be anything.
func CheckOrigin(r *http.Request, names []string) error {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "none" && site != "same-origin" {
		return Errorf(http.StatusForbidden, "Sec-Fetch-Site: %q; requests from web pages of other sites are refused", site)
	}
	origin, plain := r.Header.Get("Origin"), r.TLS == nil
	if origin != "" && origin != "https://"+r.Host && !(plain && origin == "http://"+r.Host) {
		return Errorf(http.StatusForbidden, "Origin: %q; requests from web pages of other sites are refused", origin)
	}
	if !reads(r) && fromBrowser(r) {
		scheme := "https"
		if plain {
			scheme = "http"
		}
		return Errorf(http.StatusForbidden, "Accept-Language: with neither Sec-Fetch-Site nor Origin, it is sent by "+
			"a browser, and maybe for a web page of another site: nothing was done; use curl, or a client that leaves it out, "+
			"or sends Origin: %s://%s", scheme, r.Host)
	}
	return CheckHostName(r, names)
}

// CheckHostName is CheckOrigin for a request that may come from a page of another site.
func CheckHostName(r *http.Request, names []string) error {
	probe := r.URL.Path == "/healthz" || r.URL.Path == "/readyz"
	if r.Host == "" && (probe || fromLoopback(r)) {
		return nil
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	known := func(name string) bool {
		if suffix, ok := strings.CutPrefix(strings.ToLower(name), "*"); ok {
			return strings.HasSuffix(host, suffix) && len(host) > len(suffix)
		}
		return strings.EqualFold(name, host)
	}
	if net.ParseIP(host) == nil && host != "localhost" && !slices.ContainsFunc(names, known) {
		return Errorf(http.StatusForbidden, "Host: %q is not a name of this node; "+
			"use its IP address or localhost, or name it in HTTP_SERVER_NAMES at its start", host)
	}
	return nil
}

// OriginChecker returns the middleware around every endpoint that protects the node from web pages (CheckOrigin), and
// web pages from values that a browser would run as a script. What lets returns true for may come from another origin,
// and its Host alone is checked. writeError answers a request with an error.
func OriginChecker(names []string, lets func(http.ResponseWriter, *http.Request) bool,
	writeError func(http.ResponseWriter, *http.Request, error)) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Cache-Control", "no-store") // a cache would answer for the node: sets arrive as GET
			check := CheckOrigin
			if lets(w, r) {
				check = CheckHostName
			}
			if err := check(r, names); err != nil {
				writeError(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// readPaths change nothing for anybody. A path that is not among them is taken for one that does.
var readPaths = map[string]bool{"/": true, "/get": true, "/list": true, "/watch": true, "/events": true, "/relay": true,
	"/status": true, "/healthz": true, "/readyz": true, "/metrics": true}

// reads reports whether r changes nothing, so that any page may have a browser send it.
func reads(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && readPaths[r.URL.Path]
}

// fromBrowser reports whether r, which has neither Sec-Fetch-Site nor Origin, is a browser's.
//
// fetch of Node.js (undici) sends "Accept-Language: *" too. A page can have a browser send that
// value, because Accept-Language is among the headers that any script may set, but not the
// Sec-Fetch-Mode that undici sends with it: no script may set that, and a browser sends it
// only together with Sec-Fetch-Site.
func fromBrowser(r *http.Request) bool {
	if r.Header.Get("Sec-Fetch-Site") != "" || r.Header.Get("Origin") != "" {
		return false // CheckOrigin goes by these
	}
	language, sent := r.Header["Accept-Language"]
	undici := len(language) == 1 && language[0] == "*" && r.Header.Get("Sec-Fetch-Mode") != ""
	return sent && !undici
}

// OwnNames returns the host names that requests to this node may use: names, and those that
// it gives to others, in a URL (empty: none) and in addresses, host:port or a host.
func OwnNames(names []string, httpURL string, addresses ...string) []string {
	names = slices.Clone(names)
	add := func(host string) {
		if host != "" {
			names = append(names, host)
		}
	}
	if u, err := url.Parse(httpURL); err == nil {
		add(u.Hostname())
	}
	for _, address := range addresses {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		add(host)
	}
	return names
}

func fromLoopback(r *http.Request) bool {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return net.ParseIP(host).IsLoopback()
}
