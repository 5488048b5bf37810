package storage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// TestReadRecovery has the mistakes that people make in peers.json, each with the line that they get.
func TestReadRecovery(t *testing.T) {
	const own = `{"id": "n1", "address": "127.0.0.1:9000"}`
	for _, test := range []struct{ name, text, want string }{ // want: of the error; empty: none
		{name: "as documented", text: `[{"id": "n1", "address": "127.0.0.1:9000", "non_voter": false}]`},
		{name: "a byte order mark", text: "\ufeff[" + own + "]"},
		{name: "a read replica beside it", text: `[` + own +
			`, {"id": "n2", "address": "127.0.0.1:9001", "non_voter": true}]`},
		{name: "a name", text: `[{"id": "n1", "address": "localhost:9000"}, {"id": "n2", "address": "node2.invalid:9000"}]`},
		{name: "an empty file", text: "", want: "EOF"},
		{name: "an empty list", text: "[]", want: "does not name this node, n1"},
		{name: "not this node", text: `[{"id": "n2", "address": "127.0.0.1:9001"}]`, want: "does not name this node, n1"},
		{name: "a list of addresses", text: `["127.0.0.1:9000"]`, want: "cannot unmarshal string"},
		{name: "another key", text: `[{"node_id": "n1", "address": "127.0.0.1:9000"}]`, want: `unknown field "node_id"`},
		{name: "no id", text: `[{"address": "127.0.0.1:9000"}]`, want: "has no id"},
		{name: "no address", text: `[{"id": "n1"}]`, want: `the address of n1 is "", want host:port`},
		{name: "no port", text: `[{"id": "n1", "address": "127.0.0.1"}]`, want: "want host:port"},
		{name: "no host", text: `[{"id": "n1", "address": ":9000"}]`, want: "want host:port"},
		{name: "port 0", text: `[{"id": "n1", "address": "127.0.0.1:0"}]`, want: "want host:port"},
		{name: "a URL", text: `[{"id": "n1", "address": "http://127.0.0.1:9000"}]`, want: "want host:port"},
		{name: "the HTTP port", text: `[{"id": "n1", "address": "127.0.0.1:8000"}]`, want: "but its raft port is 9000"},
		{name: "one id twice", text: `[` + own + `, {"id": "n1", "address": "127.0.0.1:9001"}]`, want: "n1 is there twice"},
		{name: "one address twice", text: `[` + own + `, {"id": "n2", "address": "localhost:9000"}]`,
			want: "n1 and n2 have the same address"},
		{name: "no voter", text: `[{"id": "n1", "address": "127.0.0.1:9000", "non_voter": true}]`,
			want: "no member is a voter"},
		{name: "two lists", text: `[` + own + `] []`, want: "more than one list"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, RecoveryFile)
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadRecovery(dir, "n1", "127.0.0.1:9000")
			switch {
			case test.want == "" && (err != nil || got.Servers[0].ID != "n1" || got.Servers[0].Suffrage != raft.Voter):
				t.Errorf("got %v, %v, want n1 as a voter", got, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) ||
				!strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), "or take it away")):
				t.Errorf("got %v, want a line with the path, %q and the way out", err, test.want)
			}
		})
	}
	if got, err := ReadRecovery(t.TempDir(), "n1", "127.0.0.1:9000"); got != nil || err != nil {
		t.Errorf("without the file: got %v, %v, want none", got, err)
	}
}

// TestRecoveryIsOfOneCluster: an ID that was chosen stays when the recovery is done again, and the former one is kept
// when it is over; a recovery that is given up before leaves nothing.
func TestRecoveryIsOfOneCluster(t *testing.T) {
	dir, _ := testVolume(t, 3)
	with := func(do func(v *Volume)) {
		t.Helper()
		v := mustOpen(t, dir)
		do(v)
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var former ClusterID
	with(func(v *Volume) {
		former = v.Cluster
		if err := v.ForgetRecovery(); err != nil {
			t.Error(err)
		}
		if _, ok := v.RecoveredFrom(); ok {
			t.Error("never recovered: got a former cluster")
		}
		if err := v.Recover(ClusterID{7}); err != nil {
			t.Error(err)
		}
	})
	with(func(v *Volume) { // after a crash
		from, chosen, err := v.Recovery()
		if from != former || !chosen || err != nil || v.Cluster != (ClusterID{7}) {
			t.Errorf("got %x, %t, %v, cluster %x, want %x, true and 7", from, chosen, err, v.Cluster, former)
		}
		if err := v.Recover(ClusterID{8}); err != nil || v.Cluster != (ClusterID{7}) {
			t.Errorf("again: got %v, cluster %x, want nil, 7", err, v.Cluster)
		}
		if err := v.ForgetRecovery(); err != nil {
			t.Error(err)
		}
	})
	with(func(v *Volume) {
		from, chosen, err := v.Recovery()
		if from != (ClusterID{7}) || chosen || err != nil {
			t.Errorf("once it is over: got %x, %t, %v, want 7, false", from, chosen, err)
		}
		if got, ok := v.RecoveredFrom(); !ok || got != former {
			t.Errorf("recovered from: got %x, %t, want %x", got, ok, former)
		}
	})
}
