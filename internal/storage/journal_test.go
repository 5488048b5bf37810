package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/testkit"
)

// The format of the journal, to the byte (README.md, "Journal").
const (
	goldenJournal  = "726166746b766a" + "01" + "00000007" + "0000000000100000" + "af5f2d88"
	goldenPosition = "00000007" + "0000000000000009" + "00000010"
	// goldenSector is the beginning of the only sector of record 9: entry 2 of term 7 with the data "data" and the
	// extensions "ext", which its log has not sealed here, and the end marker.
	goldenSector = "174747cb" + "00000007" + "0000000000000009" + "00000000" + "00000001" + "00000002" +
		"0000000000000002" + "0000000000000007" + "00" + "0000000000000005" + "00000003" + "00000004" + "657874" +
		"64617461" + "ffffffffffffffff" + "0000000000000000" + "00" + "0000000000000000" + "00000000" + "00000008" +
		"0000000000000002"
)

func goldenLogs() []*raft.Log {
	return []*raft.Log{
		{Index: 2, Term: 7, Data: []byte("data"), Extensions: []byte("ext"), AppendedAt: time.Unix(0, 5)},
		{Index: endMarker, Data: binary.BigEndian.AppendUint64(nil, 2)},
	}
}

func TestJournalFormat(t *testing.T) {
	record := appendRecord(nil, 7, 9, goldenLogs())
	for name, c := range map[string]struct {
		got        []byte
		want       string
		size, used int
	}{
		"header":   {got: encodeHeader(7, 1<<20), want: goldenJournal, size: journalPage},
		"position": {got: journalPosition{7, 9, 16}.encode(), want: goldenPosition, size: positionSize},
		"record":   {got: record, want: goldenSector, size: journalPage},
	} {
		n := len(c.want) / 2
		if got := hex.EncodeToString(c.got[:n]); got != c.want || len(c.got) != c.size || !isZero(c.got[n:]) {
			t.Errorf("%s: got %s and %d bytes in all, want\n%s, and zeros up to %d", name, got, len(c.got), c.want, c.size)
		}
	}
	logs, err := decodeRecord(record[sectorHeader:sectorSize])
	if err != nil || len(logs) != 2 || !equalLogs(*logs[0], *goldenLogs()[0]) || !equalLogs(*logs[1], *goldenLogs()[1]) {
		t.Errorf("the record decodes as %v, %v, want %v", logs, err, goldenLogs())
	}
}

func equalLogs(a, b raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// FuzzJournalRecord: no bytes make decodeRecord panic, and what it takes it would have written.
func FuzzJournalRecord(f *testing.F) {
	f.Add(appendRecord(nil, 7, 9, goldenLogs())[sectorHeader:sectorSize])
	f.Add([]byte{0, 0, 0, 1})
	f.Add(bytes.Repeat([]byte{0xff}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		logs, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, errRecord) {
				t.Fatalf("got %v, want an error about the record", err)
			}
			return
		}
		var again []byte
		count, _ := recordSectors(logs)
		sectors := appendRecord(nil, 1, 1, logs)
		for i := range count {
			again = append(again, sectors[i*sectorSize+sectorHeader:(i+1)*sectorSize]...)
		}
		n := min(len(b), len(again))
		if !bytes.Equal(b[:n], again[:n]) || !isZero(b[n:]) || !isZero(again[n:]) {
			t.Errorf("%x is read as %v, which is written as %x", b, logs, again)
		}
	})
}

// FuzzJournalRing: no file makes readRing panic, nor take more records than the ring has room for.
func FuzzJournalRing(f *testing.F) {
	ring := make([]byte, 4*journalPage)
	copy(ring, appendRecord(nil, 7, 1, goldenLogs()))
	copy(ring[journalPage:], appendRecord(nil, 7, 2, goldenLogs()))
	f.Add(ring, uint64(0), uint32(0))
	f.Add(ring, uint64(1), uint32(8))
	f.Fuzz(func(t *testing.T, b []byte, record uint64, sector uint32) {
		b = b[:len(b)/journalPage*journalPage]
		if len(b) == 0 {
			return
		}
		records, err := readRing(journalRing{b, 7}, journalPosition{7, record, sector})
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("got %v, want an error about damage", err)
		}
		if len(records) > len(b)/journalPage {
			t.Errorf("%d records in %d pages", len(records), len(b)/journalPage)
		}
	})
}

// machine is a machine whose power can be cut at any time: what a journal and what is below it write is on its disk,
// or, for the journal, in a cache that is lost sector by sector, in any order.
type machine struct {
	mu     sync.Mutex
	ring   []byte
	cache  map[int64][]byte // sectors that were written and not synced
	below  map[uint64]raft.Log
	random *rand.Rand
	at     func(step string) // called with each step, with mu held

	failSync, failBelow error
	block               chan struct{} // nil: below does not wait
}

func newMachine(seed uint64, size int64) *machine {
	return &machine{ring: make([]byte, size), cache: make(map[int64][]byte), below: make(map[uint64]raft.Log),
		random: rand.New(rand.NewPCG(seed, 1)), at: func(string) {}}
}

// cut returns what is on the disk if the power fails now.
func (m *machine) cut() (ring []byte, below mapStore) {
	ring = bytes.Clone(m.ring)
	lose := m.random.IntN(3) // 0: all that is not synced, 1: none of it, 2: any
	for _, at := range slices.Sorted(maps.Keys(m.cache)) {
		if lose == 1 || lose == 2 && m.random.IntN(2) == 0 {
			copy(ring[at:], m.cache[at])
		}
	}
	return ring, mapStore{logs: maps.Clone(m.below)}
}

// machineFile is the file of a journal on a machine.
type machineFile struct{ *machine }

func (m machineFile) WriteAt(b []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := 0; i < len(b); i += sectorSize {
		m.cache[at+int64(i)] = bytes.Clone(b[i : i+sectorSize])
	}
	m.at("written")
	return len(b), nil
}

func (m machineFile) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failSync != nil {
		return m.failSync
	}
	for at, b := range m.cache {
		copy(m.ring[at:], b)
	}
	clear(m.cache)
	m.at("synced")
	return nil
}

func (m machineFile) Close() error { return nil }

// machineDisk is raft.db on a machine: each transaction is on its disk, or not at all.
type machineDisk struct {
	*machine
	raft.StableStore
}

func (d machineDisk) store() mapStore { return mapStore{logs: d.below} }

func (d machineDisk) FirstIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.store().FirstIndex()
}

func (d machineDisk) LastIndex() (uint64, error) { panic("the end marker has it") }

func (d machineDisk) GetLog(index uint64, log *raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.store().GetLog(index, log)
}

func (d machineDisk) StoreLog(log *raft.Log) error { return d.StoreLogs([]*raft.Log{log}) }

func (d machineDisk) StoreLogs(logs []*raft.Log) error {
	if d.block != nil {
		<-d.block
	}
	d.mu.Lock()
	d.at("raft.db begins")
	d.mu.Unlock()
	time.Sleep(time.Duration(len(logs)) * time.Microsecond) // others go on
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failBelow != nil {
		return d.failBelow
	}
	for _, log := range logs {
		d.below[log.Index] = *log
	}
	d.at("raft.db has it")
	return nil
}

func (d machineDisk) DeleteRange(low, high uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at("raft.db deletes")
	maps.DeleteFunc(d.below, func(index uint64, _ raft.Log) bool { return index >= low && index <= high })
	d.at("raft.db has deleted")
	return nil
}

// mapStore is a log in memory.
type mapStore struct {
	raft.StableStore
	logs map[uint64]raft.Log
}

func (s mapStore) FirstIndex() (uint64, error) {
	if len(s.logs) == 0 {
		return 0, nil
	}
	return slices.Min(slices.Collect(maps.Keys(s.logs))), nil
}

func (s mapStore) LastIndex() (uint64, error) { panic("the end marker has it") }

func (s mapStore) GetLog(index uint64, log *raft.Log) error {
	entry, ok := s.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*log = entry
	return nil
}

func (s mapStore) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

func (s mapStore) StoreLogs(logs []*raft.Log) error {
	for _, log := range logs {
		s.logs[log.Index] = *log
	}
	return nil
}

func (s mapStore) DeleteRange(low, high uint64) error {
	maps.DeleteFunc(s.logs, func(index uint64, _ raft.Log) bool { return index >= low && index <= high })
	return nil
}

// startMachine returns a log with a journal on a machine, which has an end marker.
func startMachine(t testing.TB, m *machine, o Options) (*Log, *journal) {
	t.Helper()
	disk := machineDisk{machine: m, StableStore: raft.NewInmemStore()}
	if err := appendLogs(disk, nil, 0); err != nil {
		t.Fatal(err)
	}
	j := newJournal(disk, nil)
	j.open(machineFile{m}, int64(len(m.ring))+journalPage, 7)
	l := newLog(j, 0, func() uint64 { return 1 << 60 }, o)
	go j.run(func(move func() error) { l.watched("move", move) })
	t.Cleanup(func() { _ = j.abandon(); <-j.stopped })
	return l, j
}

// recovered returns the entries that a start finds on a disk, each as text, by their index.
func recovered(ring []byte, below mapStore) (entries map[uint64]string, err error) {
	_, moved, err := readEnd(below)
	if err != nil {
		return nil, err
	}
	records, err := readRing(journalRing{ring, 7}, moved)
	if err != nil {
		return nil, err
	}
	if err := newJournal(below, records).move(); err != nil { // as openFiles does
		return nil, err
	}
	end, _, err := readEnd(below)
	if err != nil {
		return nil, err
	}
	entries = make(map[uint64]string)
	for index := range below.logs {
		if index > end {
			continue // a truncation that was under way
		}
		var log raft.Log
		if err := readLog(below, index, &log); err != nil {
			return nil, err
		}
		entries[index] = fmt.Sprintf("%d %x", log.Term, log.Data)
	}
	return entries, nil
}

// TestJournalPowerCut cuts the power at every step of a journal, which goes round its ring many times, and of raft.db:
// what is found has all that was acknowledged, and nothing but that or what was under way.
func TestJournalPowerCut(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			m := newMachine(seed, 24*journalPage)
			o := testOptions(t)
			l, _ := startMachine(t, m, o)
			random := rand.New(rand.NewPCG(seed, 2))
			acknowledged, after := make(map[uint64]string), make(map[uint64]string)
			cuts, steps := 0, make(map[string]int)
			m.mu.Lock()
			m.at = func(step string) {
				if steps[step]++; m.random.IntN(3) != 0 {
					return
				}
				cuts++
				got, err := recovered(m.cut())
				if err != nil {
					t.Errorf("cut %d, %s: %v", cuts, step, err)
				} else if !maps.Equal(got, acknowledged) && !maps.Equal(got, after) {
					t.Errorf("cut %d, %s: got %d entries, want the %d that were acknowledged, or %d as it was under way",
						cuts, step, len(got), len(acknowledged), len(after))
				}
			}
			m.mu.Unlock()
			under := func(change func(map[uint64]string), do func() error) {
				t.Helper()
				m.mu.Lock()
				after = maps.Clone(acknowledged)
				change(after)
				m.mu.Unlock()
				if err := do(); err != nil {
					t.Error(err)
				}
				m.mu.Lock()
				acknowledged = after
				m.at("acknowledged")
				m.mu.Unlock()
			}
			first := uint64(1)
			for term := uint64(1); term < 250 && !t.Failed(); term++ {
				last := l.Last()
				switch random.IntN(12) {
				case 0: // a new leader has other entries
					if low := last - min(last, random.Uint64N(4)); low > first {
						under(func(e map[uint64]string) {
							maps.DeleteFunc(e, func(index uint64, _ string) bool { return index >= low })
						}, func() error { return l.DeleteRange(low, last) })
					}
				case 1: // a snapshot has them
					if high := first + random.Uint64N(4); high < last {
						under(func(e map[uint64]string) {
							maps.DeleteFunc(e, func(index uint64, _ string) bool { return index <= high })
						}, func() error { return l.DeleteRange(first, high) })
						first = high + 1
					}
				default:
					var logs []*raft.Log
					for range 1 + random.IntN(4) {
						data := make([]byte, random.IntN(1<<random.IntN(14)))
						for i := range data {
							data[i] = byte(random.Uint32())
						}
						if last++; random.IntN(40) == 0 {
							data = append(data, make([]byte, 60<<10)...) // more than half of the ring
						}
						logs = append(logs, &raft.Log{Index: last, Term: term, Type: raft.LogNoop, Data: data})
					}
					under(func(e map[uint64]string) {
						for _, log := range logs {
							e[log.Index] = fmt.Sprintf("%d %x", log.Term, log.Data)
						}
					}, func() error { return l.StoreLogs(logs) })
				}
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, step := range []string{"written", "synced", "raft.db begins", "raft.db has it", "raft.db deletes",
				"raft.db has deleted", "acknowledged"} {
				if steps[step] < 5 {
					t.Errorf("got %d steps of %s, want 5", steps[step], step)
				}
			}
		})
	}
}

// ringWith returns a small ring, of more than one pass, in which records 12 to 14 are what raft.db is to take, its
// position, the entries of the three, and what was in the ring before the last one was written.
func ringWith(t *testing.T) (ring, before []byte, behind journalPosition, texts []string) {
	t.Helper()
	m := newMachine(1, 12*journalPage)
	_, j := startMachine(t, m, testOptions(t))
	for i := range 14 {
		before = bytes.Clone(m.ring)
		size := 300
		if i >= 10 {
			size = 3000 + i // two pages behind one another, and round the end of the ring
		}
		log := &raft.Log{Index: uint64(i + 1), Term: 3, Data: bytes.Repeat([]byte{byte(i + 1)}, size)}
		seal(log)
		marker := &raft.Log{Index: endMarker, Data: binary.BigEndian.AppendUint64(nil, uint64(i+1))}
		seal(marker)
		if err := j.StoreLogs([]*raft.Log{log, marker}); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			if err := j.move(); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ring = bytes.Clone(m.ring)
	_, behind, err := readEnd(mapStore{logs: m.below})
	if err != nil || behind.record != 11 {
		t.Fatalf("raft.db is at %v, %v, want record 11", behind, err)
	}
	records, err := readRing(journalRing{ring, 7}, behind)
	if texts = textsOf(records); err != nil || len(texts) != 3 {
		t.Fatalf("got %d records, %v, want 3", len(texts), err)
	}
	return ring, before, behind, texts
}

func textsOf(records []journalRecord) (texts []string) {
	for _, r := range records {
		for _, log := range r.logs {
			if log.Index != endMarker {
				texts = append(texts, fmt.Sprintf("%d %x", log.Index, log.Data))
			}
		}
	}
	return texts
}

// TestDamagedJournal flips a bit of every byte of a journal, cuts it to every length and loses every sector: it holds
// all that was acknowledged, or is refused in one line. The newest record alone may be lost, where a sector of it is
// what it was before it was written: so it would be if the power had failed while it was.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	ring, before, behind, want := ringWith(t)
	dir := t.TempDir()
	size := int64(journalPage + len(ring))
	whole := append(encodeHeader(7, size), ring...)
	check := func(what string, records []journalRecord, err error) (lost bool) {
		t.Helper()
		switch got := textsOf(records); {
		case err != nil && (!errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%s: got %v, want one line about damage", what, err)
		case err != nil || slices.Equal(got, want):
		case slices.Equal(got, want[:2]):
			return true
		default:
			t.Errorf("%s: got %d records, want %d", what, len(got), len(want))
		}
		return false
	}
	read := func(b []byte) ([]journalRecord, error) {
		if err := checkHeader(b, 7, int64(len(b))); err != nil {
			return nil, err
		}
		return readRing(journalRing{b[journalPage:], 7}, behind)
	}
	damaged := bytes.Clone(whole)
	refused := 0
	for i := range whole {
		damaged[i] ^= 1 << (i % 8)
		records, err := read(damaged)
		if check(fmt.Sprintf("byte %d flipped", i), records, err) {
			t.Errorf("byte %d flipped: a record is lost", i)
		}
		if err != nil {
			refused++
		}
		damaged[i] = whole[i]
	}
	if refused < 9000 {
		t.Errorf("%d of %d flipped bytes were refused, want those of 18 sectors and a header", refused, len(whole))
	}
	onDisk := func() ([]journalRecord, error) { return readJournal(dir, 7, behind) }
	for n := range whole {
		records, err := read(whole[:n])
		if n%(3*journalPage/2) == 0 {
			if err := os.WriteFile(journalPath(dir), whole[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			records, err = onDisk()
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: got %d records, %v, want damage", n, len(records), err)
		}
	}
	if err := os.Remove(journalPath(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := onDisk(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("no journal: got %v, want that it is gone", err)
	}
	lost := 0
	for i := journalPage; i < len(whole); i += sectorSize {
		for name, was := range map[string][]byte{"zeros": make([]byte, sectorSize),
			"as it was": before[i-journalPage : i-journalPage+sectorSize]} {
			copy(damaged[i:], was)
			records, err := read(damaged)
			if check(fmt.Sprintf("sector at %d, %s", i, name), records, err) {
				lost++
			}
			copy(damaged[i:i+sectorSize], whole[i:])
		}
	}
	if newest := 7; lost != 2*newest { // 3,013 bytes and what is around them
		t.Errorf("the newest record was lost with %d sectors of two kinds, want %d", lost, 2*newest)
	}
}

// TestJournalOfAnotherEpoch: what a former journal has left in the same file is no record, wherever it lies.
func TestJournalOfAnotherEpoch(t *testing.T) {
	ring := make([]byte, 4*journalPage)
	for i := range 4 {
		copy(ring[i*journalPage:], appendRecord(nil, 6, uint64(i+1), goldenLogs()))
	}
	for own := range 4 {
		if own > 0 {
			copy(ring[(own-1)*journalPage:], appendRecord(nil, 7, uint64(own), goldenLogs()))
		}
		records, err := readRing(journalRing{ring, 7}, journalPosition{6, 2, 16}) // of the former one
		if err != nil || len(records) != own {
			t.Errorf("got %d records, %v, want %d", len(records), err, own)
		}
	}
}

// journalOptions are testOptions with a journal.
func journalOptions(t testing.TB) Options {
	o := testOptions(t)
	o.JournalBytes = minJournal
	return o
}

// crashedVolume makes a volume whose process has ended with entries in the journal alone, and returns its directory and
// what is in it.
func crashedVolume(t *testing.T) (dir string, entries []string) {
	t.Helper()
	running, _ := testVolume(t, 5)
	v, err := Open(running, journalOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		log := &raft.Log{Index: v.Log.Last() + 1, Term: 3, Data: bytes.Repeat([]byte{'x'}, 100*i)}
		if err := v.Log.StoreLog(log); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			if err := v.journal.move(); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries = readAll(t, v.Log)
	dir = t.TempDir()
	v.journal.moving.Lock() // as a copy of raft.db that is being written is none
	err = os.CopyFS(dir, os.DirFS(running))
	v.journal.moving.Unlock()
	if err := errors.Join(err, v.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, entries
}

// TestJournalReplay: after a crash, a start finds the entries of the journal, with a journal or without one.
func TestJournalReplay(t *testing.T) {
	for name, bytes := range map[string]int64{"with a journal": minJournal, "with one of another size": 2 * minJournal,
		"without": 0} {
		t.Run(name, func(t *testing.T) {
			dir, want := crashedVolume(t)
			o := testOptions(t)
			o.JournalBytes = bytes
			for _, when := range []string{"after the crash", "again"} {
				v, err := Open(dir, o)
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if got := readAll(t, v.Log); !slices.Equal(got, want) {
					t.Errorf("%s: got %d entries, want %d", when, len(got), len(want))
				}
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
				info, err := os.Stat(journalPath(dir))
				if bytes > 0 && (err != nil || info.Size() != bytes) || bytes == 0 && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: the journal is %v, %v, want %d bytes", when, info, err, bytes)
				}
			}
			if err := os.RemoveAll(journalPath(dir)); err != nil {
				t.Fatal(err)
			}
			v := mustOpen(t, dir) // as a program does that knows no journal
			defer v.Close()
			if got := readAll(t, v.Log); !slices.Equal(got, want) {
				t.Errorf("raft.db alone: got %d entries, want %d", len(got), len(want))
			}
			if got, want := stated(t, v), uint64(1); got != want {
				t.Errorf("raft.db states %d, want %d", got, want)
			}
		})
	}
}

// TestJournalCrashAtTheStart ends a start between its steps: the next one has all, whether it has a journal or not.
func TestJournalCrashAtTheStart(t *testing.T) {
	ended := errors.New("ended here")
	for _, step := range []string{"moved", "named none", "file", "named"} {
		for _, after := range []int64{minJournal, 0} {
			t.Run(fmt.Sprintf("%s, %d", step, after), func(t *testing.T) {
				dir, want := crashedVolume(t)
				o := journalOptions(t)
				o.atJournal = func(at string) error {
					if at == step {
						return ended
					}
					return nil
				}
				if _, err := Open(dir, o); !errors.Is(err, ended) {
					t.Fatalf("got %v, want that it ends at %s", err, step)
				}
				o = testOptions(t)
				o.JournalBytes = after
				v, err := Open(dir, o)
				if err != nil {
					t.Fatal(err)
				}
				if got := readAll(t, v.Log); !slices.Equal(got, want) {
					t.Errorf("got %d entries, want %d", len(got), len(want))
				}
				if err := v.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// stated returns the value of keyFormat.
func stated(t *testing.T, v *Volume) uint64 {
	t.Helper()
	value, err := getStable(v.bolt, keyFormat)
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint64(value)
}

// TestJournalIsNamed: as long as raft.db may lack what is in the journal, it states a format that no program knows
// which knows no journal; and what it lacks must be there.
func TestJournalIsNamed(t *testing.T) {
	for _, c := range []struct {
		name, want string
		damage     func(dir string) error
	}{
		{name: "no journal", want: "is gone", damage: func(dir string) error { return os.Remove(journalPath(dir)) }},
		{name: "another journal", want: "another one", damage: func(dir string) error {
			file, err := createJournal(dir, minJournal, 1)
			return errors.Join(err, file.Close())
		}},
		{name: "a byte of the newest record", want: "fails its checksum", damage: func(dir string) error {
			return flipIn(dir, "xxxxxxxx")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := crashedVolume(t)
			if err := c.damage(dir); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(boltPath(dir))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range []Options{journalOptions(t), testOptions(t)} {
				_, err := Open(dir, o)
				text := fmt.Sprint(err)
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(text, c.want) || strings.Contains(text, "\n") {
					t.Errorf("got %v, want damage: … %s", err, c.want)
				}
			}
			if after, err := os.ReadFile(boltPath(dir)); err != nil || !bytes.Equal(before, after) {
				t.Errorf("raft.db was changed (%v)", err)
			}
		})
	}
	dir, _ := crashedVolume(t)
	db, err := openBolt(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := stated(t, &Volume{bolt: db}); got <= 1<<32 {
		t.Errorf("raft.db states %d, want more than any format of a program without a journal", got)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(boltPath(dir)); err != nil {
		t.Fatal(err)
	}
	if isNew, err := IsNew(dir); isNew || !errors.Is(err, ErrCorrupt) {
		t.Errorf("a journal without raft.db: got %v, %v, want damage", isNew, err)
	}
}

// flipIn flips a bit in the last place of a text in the journal.
func flipIn(dir, text string) error {
	b, err := os.ReadFile(journalPath(dir))
	if at := bytes.LastIndex(b, []byte(text)); at > 0 {
		b[at] ^= 1
	}
	return errors.Join(err, os.WriteFile(journalPath(dir), b, 0o600))
}

// TestJournalKeepsTheFormat: an entry of a higher format raises what the volume states, and the journal stays named.
func TestJournalKeepsTheFormat(t *testing.T) {
	dir, _ := testVolume(t, 1)
	v, err := Open(dir, journalOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	named := stated(t, v) >> 32
	entry := &raft.Log{Index: v.Log.Last() + 1, Term: 9, Type: raft.LogCommand, Data: []byte{2}}
	if err := v.Log.StoreLog(entry); err != nil {
		t.Fatal(err)
	}
	if got, want := stated(t, v), named<<32|2; named == 0 || got != want {
		t.Errorf("got %d, want %d", got, want)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v = mustOpen(t, dir)
	defer v.Close()
	if got, want := stated(t, v), uint64(2); got != want {
		t.Errorf("closed in order: got %d, want %d", got, want)
	}
}

// TestJournalIsBounded: a full journal has StoreLogs wait until raft.db has taken what is in it, and holds no more than
// its file.
func TestJournalIsBounded(t *testing.T) {
	m := newMachine(1, 16*journalPage)
	m.block = make(chan struct{}, 1)
	m.block <- struct{}{} // for the end marker of startMachine
	l, j := startMachine(t, m, testOptions(t))
	release := sync.OnceFunc(func() { close(m.block) })
	t.Cleanup(release)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range uint64(40) {
			_ = l.StoreLog(&raft.Log{Index: i + 1, Term: 1, Data: make([]byte, 3000)})
		}
	}()
	full := uint64(len(m.ring))
	testkit.Eventually(t, "the journal is full", func() error {
		if got := j.pendingBytes(); got != full {
			return fmt.Errorf("%d bytes of %d", got, full)
		}
		return nil
	})
	if got := l.Last(); got != 16 { // of a page each
		t.Errorf("with raft.db waiting: got %d entries, want 16", got)
	}
	release()
	<-done
	var log raft.Log
	for i := range uint64(40) {
		if err := l.GetLog(i+1, &log); err != nil || len(log.Data) != 3000 {
			t.Errorf("entry %d: got %d bytes, %v, want 3000", i+1, len(log.Data), err)
		}
	}
}

// TestJournalMovesAlone: what is appended is in raft.db soon, without another append, and free in memory.
func TestJournalMovesAlone(t *testing.T) {
	m := newMachine(1, 16*journalPage)
	l, j := startMachine(t, m, testOptions(t))
	for i := range uint64(2) {
		if err := l.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "it is moved", func() error {
			j.mu.Lock()
			defer j.mu.Unlock()
			if len(j.entries) > 0 || j.used > 0 || len(j.records) > 0 {
				return fmt.Errorf("%d entries, %d sectors", len(j.entries), j.used)
			}
			return nil
		})
		m.mu.Lock()
		if m.below[i+1].Index != i+1 {
			t.Errorf("raft.db lacks entry %d", i+1)
		}
		m.mu.Unlock()
	}
}

// TestLargeEntryWithAJournal: one that does not fit into the journal is in raft.db at once, behind all that came
// before.
func TestLargeEntryWithAJournal(t *testing.T) {
	dir, _ := testVolume(t, 1)
	v, err := Open(dir, journalOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, 3 << 20, 10, 300 << 10, 600 << 10, 10} {
		entry := &raft.Log{Index: v.Log.Last() + 1, Term: 2, Data: bytes.Repeat([]byte{1}, size)}
		if err := v.Log.StoreLog(entry); err != nil {
			t.Fatal(err)
		}
	}
	want := readAll(t, v.Log)
	copied := filepath.Join(t.TempDir(), "copy")
	v.journal.moving.Lock()
	err = os.CopyFS(copied, os.DirFS(dir))
	v.journal.moving.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v = mustOpen(t, copied)
	defer v.Close()
	if got := readAll(t, v.Log); !slices.Equal(got, want) {
		t.Errorf("after a crash: got %d entries, want %d", len(got), len(want))
	}
}

// TestJournalFails: the first failed write of the journal, or of raft.db in the background, ends the node, and nothing
// is written after it.
func TestJournalFails(t *testing.T) {
	failure := errors.New("no space left on device")
	for _, c := range []struct {
		name, want string
		fail       func(m *machine)
	}{
		{name: "fsync of the journal", want: "append to the log: journal: no space", fail: func(m *machine) {
			m.failSync = failure
		}},
		{name: "raft.db", want: "move: no space", fail: func(m *machine) { m.failBelow = failure }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(1, 8*journalPage)
			failed := make(chan error, 100)
			o := testOptions(t)
			o.Fatal = func(err error) { failed <- err }
			l, j := startMachine(t, m, o)
			m.mu.Lock()
			c.fail(m)
			m.mu.Unlock()
			done := make(chan struct{})
			go func() { // which the log ends
				defer close(done)
				for i := uint64(1); ; i++ {
					_ = l.StoreLog(&raft.Log{Index: i, Term: 1})
				}
			}()
			<-done
			testkit.Eventually(t, "the node is told", func() error {
				select {
				case err := <-failed:
					if errors.Is(err, failure) && strings.Contains(err.Error(), c.want) {
						return nil
					}
					return err
				default:
					return errors.New("not yet")
				}
			})
			m.mu.Lock()
			m.failSync, m.failBelow = nil, nil
			m.mu.Unlock()
			if err := errors.Join(j.StoreLogs(goldenLogs()), j.DeleteRange(1, 1)); !errors.Is(err, failure) {
				t.Errorf("after that: got %v, want %v", err, failure)
			}
		})
	}
}
