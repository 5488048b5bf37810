package api

import (
	"strings"
	"testing"
)

// TestExposure: a node beyond loopback needs certificates at both ports and tokens, or the word of its user.
func TestExposure(t *testing.T) {
	const here, there = "127.0.0.1:8000", "10.0.0.1:8000"
	const raft, https, tokens = "RAFT_CERT_DIR", "HTTP_CERT_DIR", "HTTP_TOKENS"
	for _, test := range []struct {
		name string
		e    Exposure
		want []string // in the error, or in the warning with Insecure; none: it may start
	}{
		{name: "loopback", e: Exposure{RaftAddress: here, HTTPAddress: here}},
		{name: "IPv6", e: Exposure{RaftAddress: "[::1]:9000", HTTPAddress: "[::1]:8000"}},
		{name: "another loopback", e: Exposure{RaftAddress: "127.0.0.11:9000", HTTPAddress: "LocalHost:8000"}},
		{name: "raft", e: Exposure{RaftAddress: there, HTTPAddress: here}, want: []string{raft, there}},
		{name: "raft with certificates", e: Exposure{RaftAddress: there, HTTPAddress: here, RaftCerts: true}},
		{name: "all addresses", e: Exposure{RaftAddress: "0.0.0.0:9000", HTTPAddress: here}, want: []string{raft}},
		{name: "all of IPv6", e: Exposure{RaftAddress: "[::]:9000", HTTPAddress: here}, want: []string{raft}},
		{name: "a name", e: Exposure{RaftAddress: "n1:9000", HTTPAddress: here}, want: []string{raft}},
		{name: "a name that looks like loopback", e: Exposure{RaftAddress: "localhost.example:9000", HTTPAddress: here},
			want: []string{raft}},
		{name: "HTTP", e: Exposure{RaftAddress: here, HTTPAddress: there}, want: []string{https, tokens, there}},
		{name: "HTTPS", e: Exposure{RaftAddress: here, HTTPAddress: there, HTTPS: true}, want: []string{tokens}},
		{name: "tokens", e: Exposure{RaftAddress: here, HTTPAddress: there, Tokens: true}, want: []string{https}},
		{name: "HTTPS and tokens", e: Exposure{RaftAddress: here, HTTPAddress: there, HTTPS: true, Tokens: true}},
		{name: "both", e: Exposure{RaftAddress: there, HTTPAddress: there}, want: []string{raft, https, tokens}},
		{name: "certificates of the other port", want: []string{raft},
			e: Exposure{RaftAddress: there, HTTPAddress: here, HTTPS: true, Tokens: true}},
	} {
		for _, insecure := range []bool{false, true} {
			test.e.Insecure = insecure
			warning, err := test.e.Check()
			line := warning
			if !insecure && err != nil {
				line = err.Error()
				test.want = append(test.want, "INSECURE=yes")
			}
			if insecure && err != nil || !insecure && warning != "" || (len(test.want) > 0) != (line != "") ||
				strings.Contains(line, "\n") {
				t.Errorf("%s, insecure=%v: got %q, %v, want one line with %q", test.name, insecure, warning, err, test.want)
			}
			for _, want := range test.want {
				if !strings.Contains(line, want) {
					t.Errorf("%s, insecure=%v: got %q, want %q in it", test.name, insecure, line, want)
				}
			}
			for _, variable := range []string{raft, https, tokens} {
				if strings.Contains(line, variable) && !strings.Contains(strings.Join(test.want, " "), variable) {
					t.Errorf("%s, insecure=%v: got %q, want nothing of %s", test.name, insecure, line, variable)
				}
			}
		}
	}
}
