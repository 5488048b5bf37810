package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"raftkv/internal/version"
)

// environment is a getenv of the variables in it.
type environment map[string]string

func (e environment) get(name string) string { return e[name] }

func TestConfig(t *testing.T) {
	defaults := config{
		nodeID:            "n1",
		volume:            filepath.Join("data", "n1"),
		httpAddress:       "127.0.0.1:8000",
		raftAddress:       "127.0.0.1:9000",
		snapshotThreshold: 8192, snapshotBytes: 64 << 20, journal: true,
		electionTimeout: 500 * time.Millisecond,
		logLevel:        "debug",
		logFormat:       "text",
		gcBallast:       true,
	}
	unset := make(environment)
	for _, v := range variables {
		unset[v.name] = ""
	}
	with := func(change func(*config)) config {
		c := defaults
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name string
		env  environment
		want config
	}{
		{name: "defaults", env: nil, want: defaults},
		{name: "empty is unset", env: unset, want: defaults},
		{name: "the four", env: environment{"HTTP_SERVER_PORT": "8001", "RAFT_SERVER_PORT": "9001", "RAFT_NODE_ID": "n2",
			"RAFT_VOLUME_DIR": "/tmp/node2"},
			want: with(func(c *config) {
				c.nodeID, c.volume, c.httpAddress, c.raftAddress = "n2", "/tmp/node2", "127.0.0.1:8001", "127.0.0.1:9001"
			})},
		{name: "GOGC", env: environment{"GOGC": "50"}, want: with(func(c *config) { c.gcBallast = false })},
		{name: "GOMEMLIMIT", env: environment{"GOMEMLIMIT": "1GiB"}, want: with(func(c *config) { c.gcBallast = false })},
		{name: "volume of another node", env: environment{"RAFT_NODE_ID": "Eu-1.a_b"}, want: with(func(c *config) {
			c.nodeID, c.volume = "Eu-1.a_b", filepath.Join("data", "Eu-1.a_b")
		})},
		{name: "any ports", env: environment{"HTTP_SERVER_PORT": "0", "RAFT_SERVER_PORT": "0"}, want: with(func(c *config) {
			c.httpAddress, c.raftAddress = "127.0.0.1:0", "127.0.0.1:0"
		})},
		{name: "highest ports", env: environment{"HTTP_SERVER_PORT": "65535", "RAFT_SERVER_PORT": "65534"},
			want: with(func(c *config) {
				c.httpAddress, c.raftAddress = "127.0.0.1:65535", "127.0.0.1:65534"
			})},
		{name: "one port on two hosts", env: environment{"HTTP_SERVER_PORT": "80", "RAFT_SERVER_PORT": "80",
			"RAFT_SERVER_HOST": "10.0.0.1", "RAFT_CERT_DIR": "certs/n1"}, want: with(func(c *config) {
			c.httpAddress, c.raftAddress, c.raftCerts = "127.0.0.1:80", "10.0.0.1:80", "certs/n1"
		})},
		{name: "hosts", env: environment{"HTTP_SERVER_HOST": "0.0.0.0", "RAFT_SERVER_HOST": "node-1.example",
			"INSECURE": "yes"}, want: with(func(c *config) {
			c.httpAddress, c.raftAddress, c.insecure = "0.0.0.0:8000", "node-1.example:9000", true
		})},
		{name: "IPv6", env: environment{"HTTP_SERVER_HOST": "::", "RAFT_SERVER_HOST": "::1", "INSECURE": "yes"},
			want: with(func(c *config) {
				c.httpAddress, c.raftAddress, c.insecure = "[::]:8000", "[::1]:9000", true
			})},
		{name: "names", env: environment{"HTTP_SERVER_NAMES": "kv.example, kv,,"},
			want: with(func(c *config) { c.httpNames = []string{"kv.example", "kv"} })},
		{name: "address for clients", env: environment{"HTTP_ADVERTISE": "https://kv-1.example"},
			want: with(func(c *config) { c.httpURL = "https://kv-1.example" })},
		{name: "names of subdomains", env: environment{"HTTP_SERVER_NAMES": "*.kv.example,kv.example"},
			want: with(func(c *config) { c.httpNames = []string{"*.kv.example", "kv.example"} })},
		{name: "behind NAT", env: environment{"RAFT_SERVER_HOST": "0.0.0.0", "RAFT_ADVERTISE": "kv-1.example:9100",
			"INSECURE": "yes"}, want: with(func(c *config) {
			c.raftAddress, c.raftAdvertise, c.insecure = "0.0.0.0:9000", "kv-1.example:9100", true
		})},
		{name: "to be dialed at the same port", env: environment{"RAFT_ADVERTISE": "fd00::1"},
			want: with(func(c *config) { c.raftAdvertise = "fd00::1" })},
		{name: "join by itself", env: environment{"RAFT_JOIN": "n2:9000,n1:9000, n2:9000", "RAFT_SUFFRAGE": "nonvoter"},
			want: with(func(c *config) { c.join, c.nonvoter = []string{"n1:9000", "n2:9000"}, true })},
		{name: "join by one name", env: environment{"RAFT_JOIN": "kv.example:9000"},
			want: with(func(c *config) { c.join = []string{"kv.example:9000"} })},
		{name: "lab", env: environment{"RAFT_LAB": "1", "HTTP_SERVER_HOST": "localhost", "RAFT_SERVER_HOST": "::1",
			"HTTP_ADVERTISE": "http://127.0.0.2:80", "RAFT_ADVERTISE": "127.0.0.3"}, want: with(func(c *config) {
			c.lab, c.httpAddress, c.raftAddress = true, "localhost:8000", "[::1]:9000"
			c.httpURL, c.raftAdvertise = "http://127.0.0.2:80", "127.0.0.3"
		})},
		{name: "least", env: environment{"RAFT_ELECTION_TIMEOUT": "50ms", "RAFT_SNAPSHOT_THRESHOLD": "1",
			"LOG_LEVEL": "error", "LOG_FORMAT": "json"}, want: with(func(c *config) {
			c.electionTimeout, c.snapshotThreshold, c.logLevel, c.logFormat = 50*time.Millisecond, 1, "error", "json"
		})},
		{name: "tokens", env: environment{"HTTP_TOKENS": "tokens"},
			want: with(func(c *config) { c.tokens, c.forward, c.hideValues = "tokens", true, true })},
		{name: "tokens and redirects", env: environment{"HTTP_TOKENS": "tokens", "HTTP_FOLLOWERS": "redirect",
			"LOG_VALUES": "on"}, want: with(func(c *config) { c.tokens, c.hideValues = "tokens", true })},
		{name: "no values", env: environment{"LOG_VALUES": "off"}, want: with(func(c *config) { c.hideValues = true })},
		{name: "most", env: environment{"RAFT_ELECTION_TIMEOUT": "1m", "RAFT_SNAPSHOT_THRESHOLD": "9223372036854775807",
			"LOG_LEVEL": "warn"}, want: with(func(c *config) {
			c.electionTimeout, c.snapshotThreshold, c.logLevel = time.Minute, 1<<63-1, "warn"
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseConfig(tt.env.get)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.httpNames) == 0 {
				got.httpNames = nil
			}
			if (got.warning != "") != got.insecure {
				t.Errorf("warning: got %q, want one: %v", got.warning, got.insecure)
			}
			got.warning = ""
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestConfigRefuses(t *testing.T) {
	bad := map[string][]string{
		"HTTP_SERVER_PORT": {"-1", "65536", "http", "080", "+80", " 80", "80 ", "8_0", "0x50", "80.0", ":80",
			"8000\n"},
		"RAFT_SERVER_PORT": {"-1", "65536", "raft", "09000", "9000\x00"},
		"RAFT_NODE_ID": {" ", "a b", "a/b", "../n1", ".n1", "-n1", "_", "n1\n", "é", strings.Repeat("n", 65),
			"n1;x", "\x1b[2J"},
		"HTTP_SERVER_HOST": {"127.0.0.1:80", "a b", "http://a", "-a", "a.", "[::1]", "a\nb", strings.Repeat("a", 254)},
		"HTTP_FOLLOWERS":   {"Forward", "proxy", "on"},
		"HTTP_ADVERTISE":   {"kv-1:8000", "http://0.0.0.0:8000", "http://kv-1:8000/", "http://"},
		"RAFT_ADVERTISE": {"0.0.0.0", "0.0.0.0:9000", "[::]:9000", ":9000", "n1:", "n1:0", "n1:65536", "n1:raft", "a b",
			"http://n1:9000", "n1:9000,n2:9000"},
		"RAFT_JOIN": {"n1,n2", "n1:9000,n2", "n1:0,n2:9000", "n1:9000,0.0.0.0:9000", "10.0.0.1:9000", ",",
			"n1"},
		"RAFT_SUFFRAGE":           {"Voter", "none", "read"},
		"RAFT_SERVER_HOST":        {"0.0.0.0", "::", "127.0.0.1:9000", "a b", "a/b"},
		"RAFT_ELECTION_TIMEOUT":   {"500", "49ms", "61s", "-1s", "soon", "0"},
		"RAFT_JOURNAL":            {"ON", "yes", "1"},
		"RAFT_SNAPSHOT_BYTES":     {"0", "1048575", "64MiB", "-1", "9223372036854775808"},
		"RAFT_SNAPSHOT_THRESHOLD": {"0", "-1", "1.5", "many", "9223372036854775808", "18446744073709551616"},
		"STORE_MAX_BYTES":         {"0", "1048575", "64MiB", "-1", "memory/2", "4611686018427387904"},
		"INFLIGHT_MAX_BYTES":      {"0", "16777215", "256MiB", "-1", "memory/2", "1099511627776"},
		"INSECURE":                {"YES", "true", "1"},
		"LOG_LEVEL":               {"INFO", "trace", "panic", "loud", "info "},
		"LOG_FORMAT":              {"JSON", "logfmt", "json "},
		"LOG_VALUES":              {"ON", "no", "false"},
		"ETCD_API":                {"ON", "yes", "1"},
		"RAFT_LAB":                {"yes", "true", "2", " 1"},
		"HTTP_SERVER_NAMES":       {"*", "*.", "*kv.example", "kv.*.example", "*.*.example", "a.example,kv.*", "*.kv:80"},
	}
	free := map[string]bool{ // any value is good here
		"RAFT_VOLUME_DIR": true, "RAFT_CERT_DIR": true, "HTTP_CERT_DIR": true, "HTTP_TOKENS": true,
	}
	for _, v := range variables {
		if len(bad[v.name]) == 0 && !free[v.name] {
			t.Errorf("%s: no bad values in this test", v.name)
		}
		for _, value := range bad[v.name] {
			_, err := parseConfig(environment{v.name: value}.get)
			if !errors.Is(err, errUsage) {
				t.Errorf("%s=%q: got %v, want an error of usage", v.name, value, err)
				continue
			}
			quoted := strings.Contains(err.Error(), strconv.Quote(value))
			if !strings.Contains(err.Error(), v.name+"=") || !quoted || !strings.Contains(err.Error(), "want ") ||
				strings.Contains(err.Error(), "\n") {
				t.Errorf("%s=%q: got %q, want one line with the variable, the value and what it may be", v.name, value, err)
			}
		}
	}

	for name, value := range map[string]string{"HTTP_SERVER_HOST": "0.0.0.0", "RAFT_SERVER_HOST": "node-1.example",
		"HTTP_ADVERTISE": "https://kv.example", "RAFT_ADVERTISE": "10.0.0.1:9000"} {
		_, err := parseConfig(environment{"RAFT_LAB": "1", name: value}.get)
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "RAFT_LAB=1 with "+value) {
			t.Errorf("RAFT_LAB=1 with %s=%s: got %v, want an error of usage that names the address", name, value, err)
		}
	}

	for _, env := range []environment{
		{"HTTP_SERVER_PORT": "9000"},
		{"RAFT_SERVER_PORT": "8000"},
		{"RAFT_SERVER_PORT": "8000", "RAFT_SERVER_HOST": "0.0.0.0", "RAFT_ADVERTISE": "10.0.0.1"},
		{"HTTP_SERVER_PORT": "7000", "RAFT_SERVER_PORT": "7000", "HTTP_SERVER_HOST": "::1", "RAFT_SERVER_HOST": "::1"},
	} {
		_, err := parseConfig(env.get)
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "HTTP_SERVER_PORT") ||
			!strings.Contains(err.Error(), "RAFT_SERVER_PORT") {
			t.Errorf("%v: got %v, want an error of usage that names both ports", env, err)
		}
	}
}

func TestUsageNamesEveryVariable(t *testing.T) {
	for _, flag := range []string{"-h", "-help", "--help"} {
		var out, errs bytes.Buffer
		if err := run(t.Context(), []string{flag}, &out, &errs); err != nil {
			t.Errorf("%s: got %v, want no error", flag, err)
		}
		if errs.Len() > 0 {
			t.Errorf("%s: got %q on the error output, want nothing", flag, errs.String())
		}
		for _, v := range variables {
			def := cmp.Or(v.def, "none")
			found := false
			for line := range strings.Lines(out.String()) {
				name := strings.Fields(line + " -")[0]
				found = found || name == v.name && strings.Contains(line, v.usage) && strings.HasSuffix(line, "(default "+def+")\n")
			}
			if !found {
				t.Errorf("%s: got %q, want a line for %s with its default %s", flag, out.String(), v.name, def)
			}
		}
	}
}

func TestVersionFlag(t *testing.T) {
	for _, flag := range []string{"-version", "--version"} {
		var out bytes.Buffer
		err, want := run(t.Context(), []string{flag}, &out, io.Discard), "raftkv "+version.String()+"\n"
		if err != nil || out.String() != want {
			t.Errorf("%s: got %q, %v, want %q", flag, out.String(), err, want)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	// Nothing of this may get as far as starting a node.
	t.Setenv("RAFT_VOLUME_DIR", filepath.Join(t.TempDir(), "unused"))
	t.Setenv("HTTP_SERVER_PORT", "none")
	for _, args := range [][]string{{"n1"}, {"--port=1"}, {""}, {"a\nb", "-h"}} {
		err := run(t.Context(), args, io.Discard, io.Discard)
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), strconv.Quote(args[0])) {
			t.Errorf("%q: got %v, want an error of usage that names it", args, err)
		}
	}
	if err := run(t.Context(), nil, io.Discard, io.Discard); !errors.Is(err, errUsage) || !strings.Contains(err.Error(),
		`HTTP_SERVER_PORT="none"`) {
		t.Errorf("a bad variable: got %v, want an error of usage that names it", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Setenv("HTTP_SERVER_PORT", "0")
	t.Setenv("RAFT_SERVER_PORT", "0")
	t.Setenv("RAFT_VOLUME_DIR", filepath.Join(t.TempDir(), "new", "volume"))
	for _, name := range []string{"RAFT_NODE_ID", "HTTP_SERVER_HOST", "HTTP_SERVER_NAMES", "RAFT_SERVER_HOST",
		"RAFT_ELECTION_TIMEOUT", "RAFT_SNAPSHOT_THRESHOLD", "RAFT_SNAPSHOT_BYTES", "STORE_MAX_BYTES", "INFLIGHT_MAX_BYTES",
		"LOG_LEVEL"} {
		t.Setenv(name, "")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := new(logBuffer)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, nil, io.Discard, out) }()
	waitFor(t, "a node that serves", func() error {
		if !strings.Contains(out.String(), "Node n1 (version "+version.String()+"): HTTP on 127.0.0.1:") {
			return errors.New(out.String())
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if got := out.String(); !strings.Contains(got, "Shutting down; interrupt again to exit immediately") {
		t.Errorf("got %q, want that it is shutting down", got)
	}
}

// TestPortTaken covers both ports: the error names the port and the way out, and
// is not one of usage.
func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []config{
		{httpAddress: taken.Addr().String(), raftAddress: "127.0.0.1:0"},
		{httpAddress: "127.0.0.1:0", raftAddress: taken.Addr().String()},
	} {
		c.nodeID, c.volume, c.snapshotThreshold, c.electionTimeout, c.logLevel = "n1", t.TempDir(), 8192, time.Second, "error"
		s, err := start(t.Context(), c, io.Discard)
		if err == nil {
			_ = s.stop()
			t.Fatalf("a taken port: got no error")
		}
		if errors.Is(err, errUsage) || !strings.Contains(err.Error(), port(taken.Addr().String())) ||
			!strings.Contains(err.Error(), "choose another ") {
			t.Errorf("a taken port: got %v, want its address and the way out", err)
		}
		if entries, err := filepath.Glob(filepath.Join(c.volume, "*")); err != nil || len(entries) > 0 {
			t.Errorf("a taken port: the volume has %v (%v), want nothing", entries, err)
		}
	}
}
