package storage

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// The formats on disk, to the byte (README.md). A node must read what every earlier version has written: a change
// here needs another version, and that the former one is read too.
const (
	// goldenExtensions is Log.Extensions on disk of entry 2, term 7, data "data", extensions "ext".
	goldenExtensions = "657874" + "f886a45f"
	// goldenNoExtensions is that of entry 3, term 7, a no-op of raft's without data and extensions.
	goldenNoExtensions = "0afd13b1"
	// goldenEnd is the data of the end marker of a log whose last index is 3, and goldenEndExtensions its checksum.
	goldenEnd           = "0000000000000003"
	goldenEndExtensions = "dd0a9365"
	// goldenTerm is the stable value CurrentTerm 9.
	goldenTerm = "0000000000000009" + "7a5bd70d"
	// goldenHeader is the header of goldenMeta.
	goldenHeader = "\xb4\x01" + `{"Index":300,"Term":7,"Configuration":{"Servers":[` +
		`{"Suffrage":0,"ID":"n1","Address":"127.0.0.1:9000"},{"Suffrage":1,"ID":"n2","Address":"127.0.0.1:9001"}]},` +
		`"ConfigurationIndex":12}`
)

var goldenMeta = raft.SnapshotMeta{
	Version: 1,
	Index:   300,
	Term:    7,
	Configuration: raft.Configuration{Servers: []raft.Server{
		{ID: "n1", Address: "127.0.0.1:9000"},
		{ID: "n2", Address: "127.0.0.1:9001", Suffrage: raft.Nonvoter},
	}},
	ConfigurationIndex: 12,
}

// TestLogFormat: the checksums are where they always were, and read as what was written.
func TestLogFormat(t *testing.T) {
	below := raft.NewInmemStore()
	l := newLog(below, 0, nil, Options{
		Fatal:        func(err error) { t.Errorf("the log failed: %v", err) },
		WriteTimeout: time.Minute,
		OnAppend:     func() {},
		EntryFormat:  func([]byte) int { return 1 },
	})
	logs := []*raft.Log{
		{Index: 2, Term: 7, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("ext")},
		{Index: 3, Term: 7, Type: raft.LogNoop},
	}
	if err := l.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	if err := l.SetUint64(keyCurrentTerm, 9); err != nil {
		t.Fatal(err)
	}
	var entry, noop, end raft.Log
	for index, log := range map[uint64]*raft.Log{2: &entry, 3: &noop, 1<<64 - 1: &end} {
		if err := below.GetLog(index, log); err != nil {
			t.Fatal(err)
		}
	}
	term, err := below.Get([]byte("CurrentTerm"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"extensions of an entry":       {got: entry.Extensions, want: goldenExtensions},
		"extensions of one without":    {got: noop.Extensions, want: goldenNoExtensions},
		"data of the end marker":       {got: end.Data, want: goldenEnd},
		"extensions of the end marker": {got: end.Extensions, want: goldenEndExtensions},
		"CurrentTerm":                  {got: term, want: goldenTerm},
		"data of an entry, as it was":  {got: entry.Data, want: hex.EncodeToString([]byte("data"))},
		"data of an entry without":     {got: noop.Data, want: ""},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
	var read raft.Log
	if err := l.GetLog(2, &read); err != nil || string(read.Extensions) != "ext" {
		t.Errorf("entry 2 reads as %+v, %v, want the extensions ext", read, err)
	}
	if got, err := l.GetUint64(keyCurrentTerm); err != nil || got != 9 {
		t.Errorf("CurrentTerm reads as %d, %v, want 9", got, err)
	}
}

// TestVolumeFormat: the buckets and keys of raft.db.
func TestVolumeFormat(t *testing.T) {
	dir, _ := testVolume(t, 1)
	db, err := bbolt.Open(boltPath(dir), 0o600, boltOptions(true))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	got := make(map[string][]string)
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(key, _ []byte) error {
				text := string(key)
				if string(name) == "logs" {
					text = hex.EncodeToString(key)
				}
				got[string(name)] = append(got[string(name)], text)
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"logs": {"0000000000000001", "0000000000000002", "ffffffffffffffff"},
		"conf": {"ClusterID", "CurrentTerm", "LastVoteCand", "LastVoteTerm", "NodeID", "VolumeID"},
	}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestSnapshotFormat: the header before the state, which is checked against meta.json and taken off.
func TestSnapshotFormat(t *testing.T) {
	header, err := encodeSnapshotHeader(snapshotHeader{
		goldenMeta.Index, goldenMeta.Term, goldenMeta.Configuration, goldenMeta.ConfigurationIndex,
	})
	if got := string(header); err != nil || got != goldenHeader {
		t.Errorf("header: got %q, %v, want %q", got, err, goldenHeader)
	}
	size, err := readSnapshotHeader(bufio.NewReader(strings.NewReader(goldenHeader+"state")), &goldenMeta)
	if err != nil || size != int64(len(goldenHeader)) {
		t.Errorf("read: got %d bytes, %v, want %d", size, err, len(goldenHeader))
	}

	dir := t.TempDir()
	snaps, err := openSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	_, transport := raft.NewInmemTransport("")
	sink, err := snaps.Create(1, goldenMeta.Index, goldenMeta.Term, goldenMeta.Configuration,
		goldenMeta.ConfigurationIndex, transport)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(sink, "state"); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "snapshots", sink.ID(), "state.bin"))
	if want := goldenHeader + "state"; err != nil || string(got) != want {
		t.Errorf("state.bin: got %q, %v, want %q", got, err, want)
	}
	meta, state, err := snaps.Open(sink.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	text, err := io.ReadAll(state)
	if fmt.Sprint(string(text), meta.Size) != "state5" || err != nil {
		t.Errorf("it opens as %q of %d bytes, %v, want state, 5 bytes", text, meta.Size, err)
	}
}
