package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/etcd"
	"raftkv/internal/version"
)

// config is the configuration of a node, checked. parseConfig makes it.
type config struct {
	nodeID            string
	volume            string
	httpAddress       string // host:port to listen on
	httpNames         []string
	httpCerts         string // directory; empty: HTTP without TLS
	insecure          bool   // the user trusts whatever reaches the ports
	warning           string // of api.Exposure; empty: none
	httpURL           string // where clients reach httpAddress; empty: there
	forward           bool   // of HTTP_FOLLOWERS
	tokens            string // file of the tokens that clients need; empty: they need none
	raftAddress       string // host:port to listen on
	raftCerts         string // directory; empty: the raft port has no certificates
	raftAdvertise     string // host:port or host for other nodes to dial; empty: raftAddress
	join              []string
	nonvoter          bool
	snapshotThreshold uint64
	snapshotBytes     uint64
	journal           bool
	storeMaxBytes     uint64 // 0: as memory.DataLimit has it
	inFlightBytes     uint64 // 0: as memory.InFlightLimit has it
	electionTimeout   time.Duration
	logLevel          string
	logFormat         string // text or json
	hideValues        bool   // from the console
	etcd              bool   // of ETCD_API
	lab               bool   // everything listens on loopback
	gcBallast         bool   // the user has not set the garbage collector by GOGC or GOMEMLIMIT

	dial func(ctx context.Context, address string) (net.Conn, error) // reaches raft ports, for tests; nil: TCP
}

// minFormat is the least cluster format that the node's clients need.
func (c *config) minFormat() int {
	if c.etcd {
		return etcd.Format
	}
	return 0
}

// errUsage is wrapped by an error that the user's environment or arguments cause:
// exit code 2.
var errUsage = errors.New("usage")

// variable is one variable of the environment.
type variable struct {
	name, def, usage string
	set              func(c *config, value string) error
}

// variables are all that configure a node, in the order of the -h text. The error of set
// is what the value should be; parseConfig adds the name and the value.
var variables = []variable{
	{"HTTP_SERVER_PORT", "8000", "port of the HTTP API; 0: any free one",
		func(c *config, v string) error { return setPort(&c.httpAddress, v) }},
	{"RAFT_SERVER_PORT", "9000", "port for the other nodes; 0: any free one",
		func(c *config, v string) error { return setPort(&c.raftAddress, v) }},
	{"RAFT_NODE_ID", "n1", "name of this node in the cluster", func(c *config, v string) error {
		c.nodeID = v
		return api.CheckNodeID(v)
	}},
	{"RAFT_VOLUME_DIR", "data/<node id>", "directory of this node's log and snapshots", func(c *config, v string) error {
		c.volume = v
		return nil
	}},
	{"HTTP_SERVER_HOST", "127.0.0.1", "address the HTTP API listens on; 0.0.0.0: all of them",
		func(c *config, v string) error { return setHost(&c.httpAddress, v) }},
	{"HTTP_SERVER_NAMES", "", "host names that requests may use beside localhost and IP addresses, with commas between",
		func(c *config, v string) error {
			c.httpNames = strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
			for _, name := range c.httpNames {
				if strings.Contains(name, ":") || api.CheckHost(strings.TrimPrefix(name, "*.")) != nil {
					return errors.New("want host names without ports, or *.suffix for all below one, with commas between")
				}
			}
			return nil
		}},
	{"HTTP_ADVERTISE", "", "URL by which clients reach this node, http://HOST:PORT, if not where it listens",
		func(c *config, v string) error { c.httpURL = v; return api.CheckURL(v) }},
	{"HTTP_CERT_DIR", "", "directory of http.crt and http.key: clients reach this node by https",
		func(c *config, v string) error { c.httpCerts = v; return nil }},
	{"HTTP_FOLLOWERS", "redirect", "a follower sends clients to the leader (redirect), or their requests (forward)",
		func(c *config, v string) error {
			if c.forward = v == "forward"; !c.forward && v != "redirect" {
				return errors.New("want redirect or forward")
			}
			return nil
		}},
	{"HTTP_TOKENS", "", "file with the clients' tokens and rights (token.sh), of mode 600; then followers forward",
		func(c *config, v string) error { c.tokens = v; return nil }},
	{"ETCD_API", "off", "on: clients of etcd's v3 JSON gateway may use this node, under /v3/",
		func(c *config, v string) error {
			if c.etcd = v == "on"; !c.etcd && v != "off" {
				return errors.New("want on or off")
			}
			return nil
		}},
	{"RAFT_ADVERTISE", "", "host:port, or host, that the other nodes dial, if not where the raft port listens",
		func(c *config, v string) error {
			if c.raftAdvertise = v; v == "" {
				return nil
			}
			return api.CheckDial(v, true)
		}},
	{"RAFT_CERT_DIR", "", "directory of ca.crt, node.crt and node.key: only nodes with such reach the raft port",
		func(c *config, v string) error { c.raftCerts = v; return nil }},
	{"RAFT_JOIN", "", "host:port of all nodes, or one DNS name and port: they form a cluster, or join it",
		func(c *config, v string) (err error) { c.join, err = api.SplitJoin(v); return err }},
	{"RAFT_SUFFRAGE", "voter", "how this node joins by RAFT_JOIN: voter or nonvoter", func(c *config, v string) error {
		if c.nonvoter = v == "nonvoter"; v != "voter" && v != "nonvoter" {
			return errors.New("want voter or nonvoter")
		}
		return nil
	}},
	{"RAFT_SERVER_HOST", "127.0.0.1", "address or name the raft port listens on and the other nodes dial",
		func(c *config, v string) error {
			if net.ParseIP(v).IsUnspecified() && c.raftAdvertise == "" {
				return errors.New("want an address that the other nodes can dial, or set RAFT_ADVERTISE to one")
			}
			return setHost(&c.raftAddress, v)
		}},
	{"RAFT_ELECTION_TIMEOUT", "500ms", "without a leader for this long, a node stands for election",
		func(c *config, v string) (err error) {
			c.electionTimeout, err = time.ParseDuration(v)
			if err != nil || c.electionTimeout < 50*time.Millisecond || c.electionTimeout > time.Minute {
				return errors.New("want a duration from 50ms to 1m")
			}
			return nil
		}},
	{"RAFT_SNAPSHOT_THRESHOLD", "8192", "raft entries since the last snapshot before the next is taken",
		func(c *config, v string) (err error) {
			c.snapshotThreshold, err = strconv.ParseUint(v, 10, 64)
			if err != nil || c.snapshotThreshold < 1 || c.snapshotThreshold > math.MaxInt64 {
				return errors.New("want a whole number of at least 1")
			}
			return nil
		}},
	{"RAFT_SNAPSHOT_BYTES", "67108864", "bytes of such entries, or of the data if those are more, that do the same",
		func(c *config, v string) (err error) {
			c.snapshotBytes, err = strconv.ParseUint(v, 10, 63)
			if err != nil || c.snapshotBytes < 1<<20 {
				return errors.New("want a number of bytes of at least 1048576")
			}
			return nil
		}},
	{"RAFT_JOURNAL", "on", "entries are synced in a file before raft.db (on), or in raft.db alone (off)",
		func(c *config, v string) error {
			if c.journal = v == "on"; !c.journal && v != "off" {
				return errors.New("want on or off")
			}
			return nil
		}},
	{"STORE_MAX_BYTES", "memory/4", "bytes that keys and values may take, with 128 for each key; beyond: 507",
		func(c *config, v string) (err error) {
			if v == "memory/4" { // of what the process may use
				return nil
			}
			c.storeMaxBytes, err = strconv.ParseUint(v, 10, 62)
			if err != nil || c.storeMaxBytes < 1<<20 {
				return errors.New("want a number of bytes of at least 1048576, or memory/4")
			}
			return nil
		}},
	{"INFLIGHT_MAX_BYTES", "memory/4", "bytes of memory for requests under way, by default 268435456 at most; beyond: 503",
		func(c *config, v string) (err error) {
			if v == "memory/4" { // of what the process may use
				return nil
			}
			c.inFlightBytes, err = strconv.ParseUint(v, 10, 40)
			if err != nil || c.inFlightBytes < 16<<20 {
				return errors.New("want a number of bytes from 16777216 to 1099511627775, or memory/4")
			}
			return nil
		}},
	{"INSECURE", "no", "yes: the ports may be reached from other machines without certificates",
		func(c *config, v string) error {
			if c.insecure = v == "yes"; !c.insecure && v != "no" {
				return errors.New("want yes or no")
			}
			return nil
		}},
	{"LOG_LEVEL", "debug", "what the console shows: debug, info, warn or error", func(c *config, v string) error {
		c.logLevel = v
		if !slices.Contains([]string{"debug", "info", "warn", "error"}, v) {
			return errors.New("want debug, info, warn or error")
		}
		return nil
	}},
	{"LOG_FORMAT", "text", "how the console shows it: text or json, one object a line", func(c *config, v string) error {
		if c.logFormat = v; v != "text" && v != "json" {
			return errors.New("want text or json")
		}
		return nil
	}},
	{"LOG_VALUES", "on", "values on the console (on), or how long they are (off); off with HTTP_TOKENS",
		func(c *config, v string) error {
			if c.hideValues = v == "off"; v != "on" && v != "off" {
				return errors.New("want on or off")
			}
			return nil
		}},
	{"RAFT_LAB", "0", "1: /lab cuts links to other nodes and kills this one, for learning; on loopback alone",
		func(c *config, v string) error {
			if c.lab = v == "1"; !c.lab && v != "0" {
				return errors.New("want 0 or 1")
			}
			return nil
		}},
}

// parseConfig reads the environment. Its error wraps errUsage and names the
// variable, what it holds and what it may hold. An empty variable counts as unset.
func parseConfig(getenv func(string) string) (config, error) {
	var c config
	for _, v := range variables {
		value := cmp.Or(getenv(v.name), v.def)
		if err := v.set(&c, value); err != nil {
			return c, fmt.Errorf("%w: %s=%q: %w", errUsage, v.name, value, err)
		}
	}
	if getenv("RAFT_VOLUME_DIR") == "" {
		c.volume = filepath.Join("data", c.nodeID)
	}
	if c.tokens != "" {
		c.forward = getenv("HTTP_FOLLOWERS") != "redirect"
		c.hideValues = true
	}
	c.gcBallast = getenv("GOGC") == "" && getenv("GOMEMLIMIT") == ""
	httpHost, httpPort, _ := net.SplitHostPort(c.httpAddress)
	raftHost, raftPort, _ := net.SplitHostPort(c.raftAddress)
	ip := net.ParseIP(httpHost)
	overlap := httpHost == raftHost || ip.IsUnspecified() || net.ParseIP(raftHost).IsUnspecified()
	if httpPort == raftPort && httpPort != "0" && overlap {
		return c, fmt.Errorf("%w: HTTP_SERVER_PORT and RAFT_SERVER_PORT are the same: give each its own", errUsage)
	}
	for _, reached := range []string{c.httpAddress, c.raftAddress, c.raftAdvertise, c.httpURL} {
		if c.lab && !api.IsLoopback(reached) {
			return c, fmt.Errorf("%w: RAFT_LAB=1 with %s: whoever reaches the node could kill it; "+
				"want loopback addresses alone, such as 127.0.0.1, or RAFT_LAB=0", errUsage, reached)
		}
	}
	exposure := api.Exposure{RaftAddress: c.raftAddress, HTTPAddress: c.httpAddress, RaftCerts: c.raftCerts != "",
		HTTPS: c.httpCerts != "", Tokens: c.tokens != "", Insecure: c.insecure}
	var err error
	if c.warning, err = exposure.Check(); err != nil {
		return c, fmt.Errorf("%w: %w", errUsage, err)
	}
	return c, nil
}

// usage returns the -h text.
func usage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "raftkv %s: an HTTP key/value node, replicated by raft. It takes no arguments; "+
		"the environment configures it:\n\n", version.String())
	for _, v := range variables {
		fmt.Fprintf(&b, "  %-23s  %s (default %s)\n", v.name, v.usage, cmp.Or(v.def, "none"))
	}
	b.WriteString("\n-h prints this, -version the version. " +
		"Exit code: 0 stopped by SIGINT, SIGTERM or SIGHUP, 1 failed, 2 wrong usage.\n")
	return b.String()
}

// setPort sets the port of a host:port; it comes before setHost.
func setPort(address *string, value string) error {
	if port, err := strconv.ParseUint(value, 10, 16); err != nil || strconv.FormatUint(port, 10) != value {
		return errors.New("want a port, 0 to 65535")
	}
	*address = ":" + value
	return nil
}

func setHost(address *string, value string) error {
	*address = net.JoinHostPort(value, strings.TrimPrefix(*address, ":"))
	return api.CheckHost(value)
}
