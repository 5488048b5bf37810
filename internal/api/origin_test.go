package api

import (
	"cmp"
	"crypto/tls"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestCheckOrigin: sets arrive as GET, so no web page of another site may send one
// (docs/design.md, "Browsers"). That a rejected request does nothing, on whatever path,
// is tested in handler_test.go at the top.
func TestCheckOrigin(t *testing.T) {
	const own, port = "127.0.0.1:8000", "8000"
	for _, tt := range []struct {
		name, host string
		target     string // default /set?key=k&value=v
		remote     string // default 192.0.2.1:1234
		secure     bool   // over HTTPS
		header     http.Header
		rejected   string // what the error names; empty: the request is let in
	}{
		{name: "curl", host: own},
		{name: "typed into a browser", host: own, header: http.Header{"Sec-Fetch-Site": {"none"}}},
		{
			name: "own page", host: own,
			header: http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://" + own}},
		},
		{name: "own page, older browser", host: own, header: http.Header{"Origin": {"http://" + own}}},
		{
			name: "link on another page", host: own,
			header:   http.Header{"Sec-Fetch-Site": {"cross-site"}},
			rejected: `Sec-Fetch-Site: "cross-site"`,
		},
		{
			name: "page of another port", host: own,
			header:   http.Header{"Sec-Fetch-Site": {"same-site"}},
			rejected: `Sec-Fetch-Site: "same-site"`,
		},
		{
			name: "unknown site", host: own,
			header:   http.Header{"Sec-Fetch-Site": {"None"}},
			rejected: "Sec-Fetch-Site",
		},
		{
			name: "foreign origin", host: own,
			header:   http.Header{"Origin": {"http://evil.example"}},
			rejected: `Origin: "http://evil.example"`,
		},
		{name: "null origin", host: own, header: http.Header{"Origin": {"null"}}, rejected: `Origin: "null"`},
		{
			name: "other port's origin", host: own,
			header:   http.Header{"Origin": {"http://127.0.0.1:1"}},
			rejected: "Origin",
		},
		{
			name: "own page behind a proxy that ends TLS", host: "kv.example",
			header: http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"https://kv.example"}},
		},
		{
			name: "own page behind such a proxy, older browser", host: "kv.example:8443",
			header: http.Header{"Origin": {"https://kv.example:8443"}},
		},
		{name: "own page over HTTPS", host: own, secure: true, header: http.Header{"Origin": {"https://" + own}}},
		{
			name: "page of http over HTTPS", host: own, secure: true,
			header: http.Header{"Origin": {"http://" + own}}, rejected: "Origin",
		},
		{
			name: "other port's origin behind such a proxy", host: "kv.example:8443",
			header: http.Header{"Origin": {"https://kv.example"}}, rejected: "Origin",
		},
		{
			name: "page of the other scheme", host: "kv.example:8443",
			header:   http.Header{"Sec-Fetch-Site": {"cross-site"}, "Origin": {"http://kv.example:8443"}},
			rejected: "Sec-Fetch-Site",
		},
		{
			name: "another scheme's origin", host: own,
			header: http.Header{"Origin": {"ftp://" + own}}, rejected: "Origin",
		},
		{
			name: "foreign origin that calls itself the same", host: own,
			header:   http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://evil.example"}},
			rejected: "Origin",
		},
		{name: "foreign name", host: "evil.example", rejected: `Host: "evil.example"`},
		{name: "foreign name with the port", host: "evil.example:" + port, rejected: "HTTP_SERVER_NAMES"},
		{
			name: "foreign name, own page", host: "evil.example:" + port,
			header:   http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://evil.example:" + port}},
			rejected: "Host",
		},
		{name: "foreign name that begins well", host: "127.0.0.1.evil.example", rejected: "Host"},
		{name: "foreign name that ends well", host: "evil.localhost", rejected: "Host"},
		{name: "configured name within another", host: "kv.example.evil.example", rejected: "Host"},
		{name: "no host, as HTTP/1.0 may have it", host: "", rejected: "Host"},
		{name: "no host, a probe", host: "", target: "/readyz"},
		{name: "no host, another probe", host: "", target: "/healthz"},
		{
			name: "no host, a probe of a web page", host: "", target: "/readyz",
			header: http.Header{"Origin": {"http://evil.example"}}, rejected: "Origin",
		},
		{name: "no host, from this machine", host: "", remote: "127.0.0.1:4321"},
		{name: "no host, from this machine, IPv6", host: "", remote: "[::1]:4321"},
		{name: "no host, from nowhere", host: "", remote: "@", rejected: "Host"},
		{name: "foreign name, a probe", host: "evil.example", target: "/readyz", rejected: "Host"},
		{name: "foreign name, from this machine", host: "evil.example", remote: "127.0.0.1:4321", rejected: "Host"},
		{name: "localhost", host: "localhost"},
		{name: "localhost with the port", host: "LocalHost:" + port},
		{name: "IPv4", host: "127.0.0.1"},
		{name: "another IPv4", host: "192.0.2.1:" + port},
		{name: "IPv6", host: "[::1]"},
		{name: "IPv6 with the port", host: "[::1]:" + port},
		{name: "configured name", host: "KV.Example"},
		{name: "configured name in lower case, with the port", host: "kv.example:" + port},
		{name: "subdomain", host: "Eu-1.Nodes.Example:" + port},
		{name: "subdomain of a subdomain", host: "a.b.nodes.example"},
		{name: "the suffix of subdomains itself", host: "nodes.example", rejected: "Host"},
		{name: "the suffix of subdomains with an empty one", host: ".nodes.example", rejected: "Host"},
		{name: "another name that ends in the suffix", host: "evilnodes.example", rejected: "Host"},
		{name: "subdomain within another", host: "a.nodes.example.evil.example", rejected: "Host"},
		{
			name: "configured name, own page", host: "kv.example:" + port,
			header: http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://kv.example:" + port}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, cmp.Or(tt.target, "/set?key=k&value=v"), nil)
			r.Host, r.RemoteAddr = tt.host, cmp.Or(tt.remote, r.RemoteAddr)
			if maps.Copy(r.Header, tt.header); tt.secure {
				r.TLS = new(tls.ConnectionState)
			}
			err := CheckOrigin(r, []string{"KV.Example", "*.Nodes.Example"})
			if tt.rejected == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			e, ok := errors.AsType[Error](err)
			if !ok || e.Status != http.StatusForbidden || !strings.Contains(e.Message, tt.rejected) ||
				strings.Contains(e.Message, "\n") {
				t.Errorf("got %v, want one line with status 403 that names %s", err, tt.rejected)
			}
		})
	}
}

// TestOwnNames: what a node gives to others as its address, it answers to.
func TestOwnNames(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		addresses []string
		want      []string
	}{
		{name: "none", want: []string{"kv"}},
		{name: "no hosts", addresses: []string{":8000", ""}, want: []string{"kv"}},
		{name: "all", url: "https://kv-1.example:8443", addresses: []string{"0.0.0.0:8000", "kv-1:9000"},
			want: []string{"kv", "kv-1.example", "0.0.0.0", "kv-1"}},
	} {
		if got := OwnNames([]string{"kv"}, tt.url, tt.addresses...); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestFromBrowser: a request without Sec-Fetch-Site and Origin is a browser's by its Accept-Language, unless it is that
// of Node.js. A read is let in in any case.
func TestFromBrowser(t *testing.T) {
	for _, tt := range []struct {
		name, method, target string
		header               http.Header
		refused              bool
	}{
		{name: "a language", header: http.Header{"Accept-Language": {"en-US,en;q=0.9"}}, refused: true},
		{name: "any language, which a page may ask for", header: http.Header{"Accept-Language": {"*"}}, refused: true},
		{name: "no language, which a page may ask for", header: http.Header{"Accept-Language": {""}}, refused: true},
		{name: "Node.js", header: http.Header{"Accept-Language": {"*"}, "Sec-Fetch-Mode": {"cors"}}},
		{name: "Node.js with a language", header: http.Header{"Accept-Language": {"de"}, "Sec-Fetch-Mode": {"cors"}},
			refused: true},
		{name: "two languages", header: http.Header{"Accept-Language": {"*", "de"}, "Sec-Fetch-Mode": {"cors"}},
			refused: true},
		{name: "typed by a person, where browsers say so",
			header: http.Header{"Accept-Language": {"de"}, "Sec-Fetch-Site": {"none"}}},
		{name: "own page", header: http.Header{"Accept-Language": {"de"}, "Origin": {"http://127.0.0.1"}}},
		{name: "a read", target: "/get?key=k", header: http.Header{"Accept-Language": {"de"}}},
		{name: "HEAD of a read", method: "HEAD", target: "/get?key=k", header: http.Header{"Accept-Language": {"de"}}},
		{name: "POST to the path of a read", method: "POST", target: "/get?key=k",
			header: http.Header{"Accept-Language": {"de"}}, refused: true},
		{name: "a backup", target: "/snapshot", header: http.Header{"Accept-Language": {"de"}}, refused: true},
		{name: "a path that is not known", target: "/new", header: http.Header{"Accept-Language": {"de"}}, refused: true},
	} {
		r := httptest.NewRequest(cmp.Or(tt.method, http.MethodGet), cmp.Or(tt.target, "/set?key=k&value=v"), nil)
		r.Host = "127.0.0.1"
		maps.Copy(r.Header, tt.header)
		err := CheckOrigin(r, nil)
		if refused := err != nil; refused != tt.refused {
			t.Errorf("%s: got %v, want refused: %t", tt.name, err, tt.refused)
		}
	}
}

// TestOriginChecker: what is let in and what is refused have the headers that keep answers out of caches and scripts.
func TestOriginChecker(t *testing.T) {
	lets := func(_ http.ResponseWriter, r *http.Request) bool { return r.URL.Path == "/page" }
	check := OriginChecker([]string{"kv.example"}, lets, func(w http.ResponseWriter, r *http.Request, err error) {
		e, _ := errors.AsType[Error](err)
		WriteError(w, r, e.Status, e.Message)
	})
	answers := check(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { WriteLine(w, "OK") }))
	for host, want := range map[string]int{"kv.example": http.StatusOK, "evil.example": http.StatusForbidden} {
		r := httptest.NewRequest(http.MethodGet, "/get?key=k", nil)
		r.Host = host
		w := httptest.NewRecorder()
		answers.ServeHTTP(w, r)
		if w.Code != want || w.Header().Get("Cache-Control") != "no-store" ||
			w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: got %d %v, want %d, no-store and nosniff", host, w.Code, w.Header(), want)
		}
		r = httptest.NewRequest(http.MethodGet, "/page", nil)
		r.Host = host
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		w = httptest.NewRecorder()
		if answers.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s, let in from another origin: got %d, want %d", host, w.Code, want)
		}
	}
}
