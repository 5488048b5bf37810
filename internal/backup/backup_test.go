package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// storeOf returns a store that one Update has changed.
func storeOf(change func(tx *kv.Tx)) *kv.Store {
	s := kv.New()
	s.Update(1, 1, nil, func(tx *kv.Tx) {
		tx.RaiseFormat(3) // which leases need
		change(tx)
	})
	return s
}

// receive receives a backup of s.
func receive(t testing.TB, s *kv.Store, limits Limits) (*Backup, error) {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return Receive(t.TempDir(), &b, int64(b.Len()), limits)
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(tx *kv.Tx)
		want   string // in the error; empty: none
	}{
		{name: "empty", change: func(*kv.Tx) {}},
		{
			name: "largest",
			change: func(tx *kv.Tx) {
				tx.Set(strings.Repeat("k", command.MaxKey), make([]byte, command.MaxValue))
				tx.AddRecord(strings.Repeat("k", command.MaxIdempotencyKey), "record")
			},
		},
		{
			name:   "no key",
			change: func(tx *kv.Tx) { tx.Set("", nil) },
			want:   "a key of 0 bytes",
		},
		{
			name:   "long key",
			change: func(tx *kv.Tx) { tx.Set(strings.Repeat("k", command.MaxKey+1), nil) },
			want:   "a key of 1025 bytes",
		},
		{
			name:   "large value, before a good one",
			change: func(tx *kv.Tx) { tx.Set("a", make([]byte, command.MaxValue+1)); tx.Set("b", nil) },
			want:   "a value of 1048577",
		},
		{
			name:   "no idempotency key",
			change: func(tx *kv.Tx) { tx.AddRecord("", "record") },
			want:   "an idempotency key of 0 bytes",
		},
		{
			name: "long idempotency key",
			change: func(tx *kv.Tx) {
				tx.AddRecord(strings.Repeat("k", command.MaxIdempotencyKey+1), "record")
				tx.AddRecord("good", "record")
			},
			want: "an idempotency key of 256 bytes",
		},
		{
			name: "a bad key, and a good idempotency key",
			change: func(tx *kv.Tx) {
				tx.Set("", nil)
				tx.AddRecord("good", "record")
			},
			want: "a key of 0 bytes",
		},
		{
			name:   "a TTL for ever",
			change: func(tx *kv.Tx) { tx.SetLeased("a", nil, kv.Lease{TTL: command.MaxTTL + time.Second}) },
			want:   "a TTL of 720h0m1s",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := receive(t, storeOf(tt.change), Limits{})
			if b != nil {
				defer b.Close()
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// TestCommands: the commands, encoded as entries, bring the content and the idempotency
// records into another store, which had something else before, and no entry is large.
func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		name           string
		keys, records  int
		leases         int // of the first keys
		value          int // bytes
		wantMoreStages int // beyond one for keys and one for records, where there are any
	}{
		{name: "empty"},
		{name: "keys", keys: 100, value: 10},
		{name: "records", records: 100, value: 10},
		{name: "both", keys: 3, records: 2},
		{name: "leases", keys: 10, records: 3, leases: 5},
		{name: "several entries", keys: 1000, records: 10, value: 1000, wantMoreStages: 3},
		{name: "large values", keys: 3, value: command.MaxValue, wantMoreStages: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			backup := storeOf(func(tx *kv.Tx) {
				for i := range tt.keys {
					tx.Set(fmt.Sprintf("key%04d", i), []byte(strings.Repeat("v", tt.value)))
				}
				for i := range tt.leases {
					lease := kv.Lease{TTL: time.Duration(i+1) * time.Second}
					if i > 0 {
						lease.Key = fmt.Sprintf("key%04d", i-1)
					}
					tx.SetLeased(fmt.Sprintf("key%04d", i), nil, lease)
				}
				for i := range tt.records {
					tx.AddRecord(fmt.Sprintf("id%04d", 9999-i), strings.Repeat("r", tt.value))
				}
			})
			s := storeOf(func(tx *kv.Tx) {
				tx.Set("before", nil)
				tx.AddRecord("before", "")
				tx.Stage("left by another restore", nil)
			})
			stages, index, restored := 0, uint64(1), false
			received, err := receive(t, backup, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			defer received.Close()
			for c := range received.Commands() {
				if restored {
					t.Fatalf("got kind %d after the restore", c.Kind)
				}
				if _, ok := s.Get("before"); !ok {
					t.Fatal("the content has changed before the last command")
				}
				entry := command.Append(nil, c)
				if limit := stageBytes + command.MaxValue + 4096; len(entry) > limit {
					t.Errorf("got an entry of %d bytes, want %d at most", len(entry), limit)
				}
				if _, err := command.Decode(entry); err != nil {
					t.Fatal(err)
				}
				index++
				s.Update(index, 1, entry, func(tx *kv.Tx) {
					switch c.Kind {
					case command.Unstage:
						tx.Unstage()
					case command.Stage:
						stages++
						for _, p := range c.Pairs {
							tx.Stage(p.Key, p.Value)
						}
					case command.StageRecords:
						stages++
						for _, p := range c.Pairs {
							tx.StageRecord(p.Key, string(p.Value))
						}
					case command.StageLeases:
						stages++
						for _, p := range c.Pairs {
							lease, ok := command.ParseLease(p.Value)
							if !ok {
								t.Errorf("lease of %s: got %q", p.Key, p.Value)
							}
							tx.StageLease(p.Key, kv.Lease(lease))
						}
					case command.Restore:
						restored = tx.Restore(int(c.Items), int(c.Records))
					}
				})
			}
			if received.err != nil {
				t.Error(received.err)
			}
			if !restored {
				t.Error("the last command restored nothing")
			}
			want := min(tt.keys, 1) + min(tt.records, 1) + min(tt.leases, 1) + tt.wantMoreStages
			if stages != want {
				t.Errorf("got %d commands that stage, want %d", stages, want)
			}
			if got, want := values(s), values(backup); !maps.Equal(got, want) {
				t.Errorf("content: got %.300v, want %.300v", got, want)
			}
			if got, want := leases(s), leases(backup); !maps.Equal(got, want) || len(got) != tt.leases {
				t.Errorf("leases: got %v, want %v", got, want)
			}
			if got, want := records(s), records(backup); got != want {
				t.Errorf("records: got %.300s, want %.300s", got, want)
			}
		})
	}
}

func leases(s *kv.Store) map[string]kv.Lease {
	m := make(map[string]kv.Lease)
	s.AscendLeases(func(key string, l kv.Lease) bool {
		m[key] = l
		return true
	})
	return m
}

// TestCommandsCanBeStopped stops after each number of commands.
func TestCommandsCanBeStopped(t *testing.T) {
	backup := storeOf(func(tx *kv.Tx) {
		tx.Set("a", nil)
		tx.AddRecord("id", "record")
	})
	received, err := receive(t, backup, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer received.Close()
	for n := 1; n <= 4; n++ { // Unstage, Stage, StageRecords, Restore
		got := 0
		for range received.Commands() {
			if got++; got == n {
				break
			}
		}
		if got != n || received.err != nil {
			t.Errorf("got %d commands, want %d", got, n)
		}
	}
}

func values(s *kv.Store) map[string]string {
	all := make(map[string]string)
	s.Ascend("", func(key string, item kv.Item) bool {
		all[key] = item.Value
		return true
	})
	return all
}

// records returns the idempotency records in their order.
func records(s *kv.Store) string {
	var all strings.Builder
	s.AscendRecords(func(key, record string) bool {
		fmt.Fprintf(&all, "%s=%s ", key, record)
		return true
	})
	return all.String()
}

// TestReceive: a backup that is too long is not read at all, one whose data take too much, in memory or on the disk,
// not to its end. It leaves no file behind.
func TestReceive(t *testing.T) {
	data := storeOf(func(tx *kv.Tx) { tx.Set("key", make([]byte, 1000)) })
	var b bytes.Buffer
	if err := data.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	length := int64(b.Len())
	takes := uint64(kv.ItemFootprint("key", 1000, kv.Lease{}))
	for _, tt := range []struct {
		name    string
		length  int64
		limits  Limits
		fits    bool
		mention string
		unread  bool
	}{
		{name: "as much as may be", length: length, limits: Limits{Data: takes, Disk: uint64(length)}, fits: true},
		{name: "of unknown length", length: -1, limits: Limits{Data: takes}, fits: true},
		{name: "no bound", length: 1 << 60, fits: true},
		{name: "a byte more", length: -1, limits: Limits{Data: takes - 1}, mention: "STORE_MAX_BYTES"},
		{name: "too long", length: kv.MaxSnapshotWithin(int(takes)) + 1, limits: Limits{Data: takes},
			mention: "STORE_MAX_BYTES", unread: true},
		{name: "too long for the disk", length: length, limits: Limits{Disk: uint64(length) - 1}, mention: "disk",
			unread: true},
		{name: "the disk is full", length: -1, limits: Limits{Disk: uint64(length) - 1}, mention: "disk"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, from := t.TempDir(), bytes.NewReader(b.Bytes())
			received, err := Receive(dir, from, tt.length, tt.limits)
			if tt.fits != (err == nil) || (err != nil && !errors.Is(err, ErrTooLarge)) {
				t.Fatalf("got %v, want that it fits is %v", err, tt.fits)
			}
			if err != nil && !strings.Contains(err.Error(), tt.mention) {
				t.Errorf("got %q, want what to do: %q", err, tt.mention)
			}
			if tt.unread && from.Len() != b.Len() {
				t.Errorf("got %d bytes read, want none", b.Len()-from.Len())
			}
			if received != nil {
				received.Close()
			}
			if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
				t.Errorf("got %v, %v left, want nothing", left, err)
			}
		})
	}
}

// TestFileIsGone: a backup whose file can't be read any more is not restored, and changes nothing.
func TestFileIsGone(t *testing.T) {
	b, err := receive(t, storeOf(func(tx *kv.Tx) { tx.Set("key", make([]byte, 1000)) }), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.file.Truncate(500); err != nil {
		t.Fatal(err)
	}
	var kinds []command.Kind
	_, unchanged, err := Restore(t.Context(), b, func(_ context.Context, c command.Command) (command.Result, error) {
		kinds = append(kinds, c.Kind)
		return command.Result{}, nil
	})
	if !unchanged || !errors.Is(err, kv.ErrSnapshotDamaged) {
		t.Errorf("got unchanged %v, %v, want true and that it is damaged", unchanged, err)
	}
	if want := []command.Kind{command.Unstage, command.Unstage}; !slices.Equal(kinds, want) {
		t.Errorf("got %v proposed, want %v", kinds, want)
	}
}
