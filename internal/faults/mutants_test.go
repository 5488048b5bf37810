package faults

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var mutate = flag.Bool("mutants", false, "only the tests of mutants: that each guard which is taken "+
	"out of the node is missed")

// mutant is a node without one of its guards.
type mutant struct {
	name  string
	edits []edit
	flags []string // of the tests that must fail with it, and pass without
}

// edit replaces a text that a file has exactly once.
type edit struct{ file, old, new string } // file: below the module's root or, after raft/, hashicorp/raft's

func tests(run string, flags ...string) []string {
	return append([]string{"-test.run", "^(" + run + ")$"}, flags...)
}

var mutants = []mutant{
	{"heartbeats on the fast path", []edit{{"internal/peer/transport.go",
		"func (*Transport) SetHeartbeatHandler(func(raft.RPC)) {}",
		"var fastPath func(raft.RPC)\nfunc (*Transport) SetHeartbeatHandler(f func(raft.RPC)) { fastPath = f }"},
		{"internal/peer/serve.go",
			"	select {\n	case t.requests <- rpc:",
			"	if a, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && a.PrevLogEntry == 0 && a.LeaderCommitIndex == 0 &&\n" +
				"		len(a.Entries) == 0 {\n		fastPath(rpc)\n		return <-answered, errPassed\n	}\n" +
				"	select {\n	case t.requests <- rpc:"}},
		tests("TestLateTimeoutNow")},
	{"reads by VerifyLeader", []edit{{"internal/node/node.go",
		"n.config.confirmTerm = n.reads.majorityAt",
		"n.config.confirmTerm = func(ctx context.Context, i *instance, _ uint64) error {\n" +
			"return wait(ctx, i.raft.VerifyLeader()) }"}},
		tests("TestLateAnswer")},
	{"writes acknowledged before a majority has them", []edit{{"raft/commitment.go",
		"matched[(len(matched)-1)/2]",
		"matched[len(matched)-1]"}}, tests("TestThreeNodes", "-only", "kill|cut|isolated")},
	{"joins without a look at who joins", []edit{{"internal/node/adopt.go",
		"if err := n.adoptable(i, was); err != nil {",
		"if err := n.adoptable(i, was); false {"}}, tests("TestThreeNodes", "-only",
		"joins that are refused|isolated leader")},
	{"snapshots without their checksums", []edit{
		{"raft/file_snapshot.go", "bytes.Compare(meta.CRC, computed) != 0", "bytes.Compare(meta.CRC, computed) > 1"},
		{"internal/kv/snapshot_decoder.go", "d.err == nil && binary.BigEndian.Uint32(got) != want {",
			"false && got != nil {"},
	}, tests("TestThreeNodes", "-only", "damage to snapshots", "-faults", "-duration", "12m")},
	{"no fsync", []edit{{"internal/storage/volume.go",
		"Path: boltPath(dir),",
		"Path: boltPath(dir), NoSync: true,"}}, tests("TestThreeNodes", "-only", "power cut")},
	{"the journal skips its fsync", []edit{{"internal/storage/journal.go",
		"	return j.file.Sync()",
		"	return nil"}}, tests("TestThreeNodes", "-only", "power cut")},
	{"raft.db counts as moved what the journal alone has", []edit{{"internal/storage/journal.go",
		"last.at); err != nil {",
		"last.at); err != nil || j.storeBelow(last.logs[len(last.logs)-1:], j.next) != nil {"}},
		tests("TestThreeNodes", "-only", "power cut|kill -9 of all")},
}

// unitMutant is a package without one of its guards, and the test of it that must fail.
type unitMutant struct {
	name string
	edit edit
	run  string
}

// unitMutants are the guards that no process shows in reasonable time.
var unitMutants = []unitMutant{
	{name: "a member moves that answers where it is", run: "TestMovedNode",
		edit: edit{"internal/node/moved.go",
			`	if _, err := n.members.askMember(ctx, *member); err == nil {`,
			`	if false {`}},
	{name: "a join gives a node that left its vote", run: "TestMembersChangeDuringAJoin",
		edit: edit{"internal/node/join.go",
			`	for _, server := range r.GetConfiguration().Configuration().Servers {`,
			`	return raft.Nonvoter, true
	for _, server := range r.GetConfiguration().Configuration().Servers {`}},
	{name: "a node that starts answers pages", run: "TestStarting",
		edit: edit{"internal/api/starting.go",
			`	if err := CheckOrigin(r, s.names); err != nil {`,
			`	if err := CheckOrigin(r, s.names); false {`}},
	{name: "an aborted start is damage", run: "TestOpenReportsProgress",
		edit: edit{"internal/storage/boltcheck.go",
			`	if c.stopped != nil {
		return 0, c.stopped
	}
	if _,`,
			`	if _,`}},
	{name: "a start that was aborted goes on", run: "TestStartAborted",
		edit: edit{"internal/node/progress.go",
			`		s.aborted = fmt.Errorf(`,
			`		_ = fmt.Errorf(`}},
	{name: "a node that stops finishes its snapshot", run: "TestStopInASnapshot",
		edit: edit{"internal/node/node.go",
			`	i.volume.Snapshots.Abort()`,
			`	_ = i.volume.Snapshots.Abort`}},
	{name: "a volume that is gone", run: "TestVolumeGone",
		edit: edit{"internal/node/health.go",
			`	if err != nil && n.life.now() != replacing &&`,
			`	if false && n.life.now() != replacing &&`}},
	{name: "a volume that the node replaces is gone", run: "TestVolumeReplacedByTheNode",
		edit: edit{"internal/node/health.go",
			`	if err != nil && n.life.now() != replacing &&`,
			`	if err != nil &&`}},
	{name: "another raft.db counts as the one that is open", run: "TestVolumeCheck",
		edit: edit{"internal/storage/volume.go",
			`		case !os.SameFile(info, v.opened[k]):`,
			`		case !os.SameFile(info, v.opened[k]) && false:`}},
	{name: "failed snapshots are not remembered", run: "TestSnapshotsThatFail",
		edit: edit{"internal/node/health.go",
			`	if err := i.volume.Snapshots.Failure(); err != nil {`,
			`	if err := i.volume.Snapshots.Failure(); false {`}},
	{name: "a name that ends in a suffix is below it", run: "TestCheckOrigin",
		edit: edit{"internal/api/origin.go", `strings.ToLower(name), "*")`, `strings.ToLower(name), "*.")`}},
	{name: "a suffix is a name below itself", run: "TestCheckOrigin",
		edit: edit{"internal/api/origin.go", ` && len(host) > len(suffix)`, ``}},
	{name: "a value on the console is not escaped for JSON", run: "TestAppendCommandJSON",
		edit: edit{"internal/console/format.go",
			`		case strconv.IsPrint(r):`,
			`		case true:`}},
	{name: "the lock is on a file that older versions do not know", run: "TestLockIsThatOfOlderVersions",
		edit: edit{"internal/storage/volume.go",
			`	if runtime.GOOS == "windows" {
		lock = flock`,
			`	if true {
		lock = flock`}},
	{name: "a difference is forgotten when the member is away", run: "TestReplicasThatDiffer",
		edit: edit{"internal/node/health.go",
			`		case Equal:
			n.health.setReplica(id, "")`,
			`		case Equal, Unknown:
			n.health.setReplica(id, "")`}},

	// The console.
	{name: "each line about a member that is away counts alone", run: "TestAMemberThatIsAway",
		edit: edit{"internal/console/raft.go",
			`		key = "away " + r.member(args)`,
			`		key = message + r.member(args)`}},
	{name: "all members that are away count as one", run: "TestAMemberThatIsAway",
		edit: edit{"internal/console/raft.go",
			`		key = "away " + r.member(args)`,
			`		key = "away"`}},
	{name: "a member that was back is not new", run: "TestAMemberThatIsAway",
		edit: edit{"internal/console/raft.go",
			`		away && now.Sub(known.last) >= backAfter {`,
			`		false {`}},
	{name: "events of their own are folded", run: "TestRepeatedElections",
		edit: edit{"internal/console/raft.go",
			`	case level == hclog.Info && arg(args, "term") == nil:`,
			`	case false:`}},
	{name: "lines of raft are remembered without a bound", run: "TestRepeatedElections",
		edit: edit{"internal/console/raft.go",
			`		if len(r.repeats) >= maxRepeats {`,
			`		if false {`}},
	{name: "no answer counts as denied", run: "TestVotesAreTrue",
		edit: edit{"internal/console/raft.go",
			`		r.silent[r.member(args)] = true`,
			`		_ = r.silent`}},
	{name: "no answer to an earlier campaign counts", run: "TestVotesAreTrue",
		edit: edit{"internal/console/raft.go",
			`		r.unanswered = 0`,
			`		_ = r.unanswered`}},
	{name: "a member that is away is an error", run: "TestLevels",
		edit: edit{"internal/console/raft.go",
			`	case level == hclog.Error && (isAway(message, args) ||`,
			`	case level == hclog.Error && (false ||`}},
	{name: "a connection that is closed is an error", run: "TestLevels",
		edit: edit{"internal/console/raft.go",
			`	case level == hclog.Error && isClosed(arg(args, "error")):`,
			`	case false:`}},
	{name: "raft prints on after the last line", run: "TestSilence",
		edit: edit{"internal/console/raft.go",
			`	l.lines.silenced = true`,
			`	l.lines.silenced = false`}},
	{name: "a vote is printed before it is on disk", run: "TestVoteIsReported",
		edit: edit{"internal/storage/log.go",
			`	l.write("save "+string(key), func() error { return setStable(l.disk, key, value) })
	switch {`,
			`	defer l.write("save "+string(key), func() error { return setStable(l.disk, key, value) })
	switch {`}},
	{name: "a change of leader is printed again", run: "TestTerms",
		edit: edit{"internal/node/terms.go",
			`	if t.term == term && t.leader == leader {`,
			`	if false {`}},
	{name: "a difference that is known is not in the status", run: "TestReplicasThatDiffer",
		edit: edit{"internal/node/health.go",
			`	if known := n.Health().Replicas; len(different) == 0 && known != "" {`,
			`	if known := n.Health().Replicas; false && known != "" {`}},
	{name: "a difference outlives its member", run: "TestReplicasThatDiffer",
		edit: edit{"internal/node/health.go",
			`		return !slices.ContainsFunc(differing,`,
			`		return false && !slices.ContainsFunc(differing,`}},
	{name: "a member without a hash is equal", run: "TestReplicasThatCannotBeCompared",
		edit: edit{"internal/node/health.go",
			`		return Unknown, info.NodeID + " has no hash`,
			`		return Equal, info.NodeID + " has no hash`}},
	{name: "a member that is down is equal", run: "TestReplicasThatCannotBeCompared",
		edit: edit{"internal/node/health.go",
			`				c.state, c.detail = Unknown, fmt`,
			`				c.state, c.detail = Equal, fmt`}},
	{name: "members are compared one by one", run: "TestStatusComparesAtOnce",
		edit: edit{"internal/node/health.go",
			`		done.Go(func() {
			c := &all[k]`,
			`		func(f func()) { f() }(func() {
			c := &all[k]`}},
	{name: "each survivor makes a cluster of its own", run: "TestRecoveryOfSeveral",
		edit: edit{"internal/node/recovery.go",
			`	if string(first.ID) == n.config.ID {`,
			`	if first.ID != "" {`}},
	{name: "a survivor is recovered with another file", run: "TestRecoveryWaits",
		edit: edit{"internal/node/recovery.go",
			`		case !slices.Contains(info.MemberIDs, n.config.ID):`,
			`		case false && !slices.Contains(info.MemberIDs, n.config.ID):`}},
	{name: "a recovery that is done again makes another cluster", run: "TestRecoveryIsOfOneCluster",
		edit: edit{"internal/storage/recover.go",
			`	if err != nil || chosen {`,
			`	if err != nil {`}},
	{name: "a node joins itself", run: "TestJoinRefuses",
		edit: edit{"internal/node/join.go",
			`	if j.ID == n.config.ID && len(servers) == 1 &&`,
			`	if false &&`}},
	{name: "an AppendEntries of any size", run: "TestShorten",
		edit: edit{"internal/peer/transport.go",
			`		if k > 0 && size > maxAppendBytes {`,
			`		if k > 99 && size > maxAppendBytes {`}},
	{name: "a log cache of any size", run: "TestCache",
		edit: edit{"internal/storage/cache.go",
			`	for c.bytes > c.limit &&`,
			`	for false &&`}},
	{name: "a log cache has what was deleted", run: "TestCache",
		edit: edit{"internal/storage/cache.go",
			`	clear(c.entries)`,
			``}},
	{name: "no snapshot is due for the bytes of the log", run: "TestLogIsBoundedInBytes",
		edit: edit{"internal/node/logsize.go",
			`	if i.logAboveSnapshot() > limit {`,
			`	if false {`}},
	{name: "the log behind a snapshot has any size", run: "TestLogIsBoundedInBytes",
		edit: edit{"internal/node/logsize.go",
			`	if last := log.Last(); log.BytesAbove(0) > behind {`,
			`	if last := log.Last(); false {`}},
	{name: "a volume of another user is opened", run: "TestOwner",
		edit: edit{"internal/storage/volume.go",
			`	if err := protect(dir); err != nil {`,
			`	if err := protect(dir); false {`}},
	{name: "a volume that has forgotten is opened", run: "TestForgottenVolume",
		edit: edit{"internal/node/forgotten.go",
			`known.VolumeID == i.volume.ID && known.Index > last {`,
			`known.VolumeID == i.volume.ID && known.Index > last && false {`}},
	{name: "a new volume has forgotten what the former one had", run: "TestAcknowledged",
		edit: edit{"internal/node/forgotten.go",
			`!ok || was.VolumeID != info.VolumeID ||`,
			`!ok ||`}},
	{name: "a node that was joined again is removed", run: "TestLateRemoval",
		edit: edit{"internal/node/adopt.go",
			`		if was == removed || ctx.Err() != nil {`,
			`		if was == removed {`}},
	{name: "a command is proposed that an older member does not know", run: "TestFormatGate",
		edit: edit{"internal/node/format.go",
			`	if old := n.versions.tooOld(servers, format); len(old) > 0 {`,
			`	if old := n.versions.tooOld(servers, format); false {`}},
	{name: "the format is raised while a member is away", run: "TestFormatGate",
		edit: edit{"internal/node/format.go",
			`	if len(silent) > 0 {`,
			`	if false {`}},
	{name: "an older node joins after the format has risen", run: "TestFormatGate",
		edit: edit{"internal/node/format.go",
			`formatOf(info) < format && format > 1 {`,
			`formatOf(info) < 0 && format > 1 {`}},
	{name: "the first programs get conditions", run: "TestFirstPrograms",
		edit: edit{"internal/node/format.go",
			`	if old := n.versions.tooOld(i.servers(), format); len(old) > 0 {`,
			`	if old := n.versions.tooOld(nil, format); len(old) > 0 {`}},
	{name: "a newer volume is opened", run: "TestFormat",
		edit: edit{"internal/storage/volume.go",
			`format > uint64(maxFormat) {`,
			`false {`}},
	{name: "the format is stated after the entry", run: "TestFormatFirst",
		edit: edit{"internal/storage/log.go",
			`	l.raiseFormat(logs)
	l.write("append to the log", func() error { return appendLogs(l.disk, logs, last) })`,
			`	l.write("append to the log", func() error { return appendLogs(l.disk, logs, last) })
	l.raiseFormat(logs)`}},
	{name: "why a snapshot can't be read is not told", run: "TestUnreadableSnapshot",
		edit: edit{"internal/node/node.go",
			`			if err != nil && restoring.err != nil {`,
			`			if false {`}},
	{name: "an ETag of another history matches", run: "TestHistory",
		edit: edit{"internal/api/conditions.go",
			`(marked && mark != h.Mark) {`,
			`(marked && mark == "") {`}},
	{name: "an ETag is taken for that of any of several keys", run: "TestETagsOfSeveralKeys",
		edit: edit{"internal/api/conditions.go",
			`	if len(c.Pairs) < 2 || c.Options == nil {`,
			`	if true {`}},
	{name: "an event ID of another history resumes a watch", run: "TestForeignEventID",
		edit: edit{"internal/api/request.go",
			`	if q.foreign != "" {`,
			`	if false {`}},
	{name: "one condition of a transaction is enough", run: "TestTransact",
		edit: edit{"fsm.go",
			`result.Held = result.Held && c.Holds`,
			`result.Held = c.Holds`}},
	{name: "a proposal waits beyond its context", run: "TestProposalWhileReplacing",
		edit: edit{"internal/node/life.go",
			`		case <-ctx.Done():
			return fmt.Errorf("%w: this node is moving`,
			`		case <-context.Background().Done():
			return fmt.Errorf("%w: this node is moving`}},
	{name: "an instance is replaced under a proposal", run: "TestPauseWaitsForProposals",
		edit: edit{"internal/node/life.go",
			`	for l.proposals > 0 && l.state == replacing {`,
			`	for false && l.state == replacing {`}},
	{name: "a closing node runs again", run: "TestStates",
		edit: edit{"internal/node/life.go",
			`	if l.state == replacing {
		l.move(to)`,
			`	if true {
		l.move(to)`}},
	{name: "a read waits beyond its context", run: "TestReadGivenUp",
		edit: edit{"internal/node/readindex.go",
			`	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", ErrNotLinearizable, ctx.Err())`,
			`	case <-context.Background().Done():
		return 0, fmt.Errorf("%w: %w", ErrNotLinearizable, ctx.Err())`}},
	{name: "a term of the former instance", run: "TestAdoptionIsSeenWhole",
		edit: edit{"internal/node/readindex.go",
			`|| n.life.now() == replacing {`,
			`|| false {`}},
	{name: "an Info of two instances", run: "TestAdoptionIsSeenWhole",
		edit: edit{"internal/node/status.go",
			`peer.ClusterID(i.volume.Cluster).String()`,
			`peer.ClusterID(n.port.ClusterID()).String()`}},
	{name: "voters are not forgotten", run: "TestReadIndexForgetsVoters",
		edit: edit{"internal/node/readindex.go",
			`	if len(x.voters) > len(others) {`,
			`	if false {`}},
	{name: "connections to former voters stay", run: "TestReadIndexForgetsVoters",
		edit: edit{"internal/node/readindex.go",
			`				v.forget()
`,
			``}},
	{name: "a lost quorum is waited for", run: "TestQuorum",
		edit: edit{"internal/node/readindex.go",
			`		if left < need {
			return errNoQuorum
		}`,
			``}},
	{name: "every voter is asked every time", run: "TestQuorum",
		edit: edit{"internal/node/readindex.go",
			`	start(voters[:need])`,
			`	start(voters)`}},
	{name: "a damaged entry ends the goroutine of a call", run: "TestReadOfADamagedEntry",
		edit: edit{"internal/node/commit.go",
			`	go func() {
		defer close(done)`,
			`	func() {
		defer close(done)`}},
	{name: "errors cross the raft port without their code", run: "TestErrorsCrossTheRaftPort",
		edit: edit{"internal/node/rpc.go",
			`		answer = Error{Code: code,`,
			`		_ = code
		answer = Error{`}},
	{name: "another node answers for a member", run: "TestAskAll",
		edit: edit{"internal/node/rpc.go",
			`info.NodeID != string(server.ID) ||`,
			`false ||`}},
	{name: "a batch without an answer holds up all", run: "TestBatchWithoutAnAnswer",
		edit: edit{"internal/node/batch.go",
			`		case <-limit.C:
`,
			`		case <-make(chan bool):
`}},
	{name: "the console queue has no bound", run: "TestBlockedConsole",
		edit: edit{"internal/console/writer.go",
			`	if len(w.queued)+len(p) > maxQueued {`,
			`	if false {`}},
	{name: "a copy is taken for a snapshot", run: "TestCopyInSnapshots",
		edit: edit{"internal/storage/snapshots.go",
			`if len(found.copies) > 0 {`,
			`if false {`}},
	{name: "strangers go with the snapshots", run: "TestSnapshotsOnADiskOfTheirOwn",
		edit: edit{"internal/storage/volume.go",
			`os.RemoveAll(filepath.Join(snapshots, name))`,
			`os.RemoveAll(snapshots + name[:0])`}},
	{name: "a volume without raft.db is new", run: "TestSnapshotsOnADiskOfTheirOwn",
		edit: edit{"internal/storage/volume.go",
			`len(left) > 0 {`,
			`len(left) > 99 {`}},
	{name: "two members at one address", run: "TestReadRecovery",
		edit: edit{"internal/storage/recover.go",
			`ok := addresses[address]; ok {`,
			`ok := addresses[address]; ok && host == "" {`}},
	{name: "a recovery at another port", run: "TestReadRecovery",
		edit: edit{"internal/storage/recover.go",
			`own != port {`,
			`own == "" {`}},
	{name: "advice to take a running member out", run: "TestSecondNodeOfAName",
		edit: edit{"internal/node/join.go",
			`case present != nil && n.runs(ctx, *present):`,
			`case present != nil && !n.runs(ctx, *present):`}},
	{name: "profiles for everyone", run: "TestProfilesAreForThisMachine",
		edit: edit{"internal/metrics/metrics.go",
			`!ip.IsLoopback() || proxied`,
			`false && proxied`}},
	{name: "profiles through a proxy", run: "TestProfilesAreForThisMachine",
		edit: edit{"internal/metrics/metrics.go",
			`proxied := r.Header.Get("X-Forwarded-For") != ""`,
			`proxied := false`}},
	{name: "a leader counts twice in a term", run: "TestLeadersAreCountedOnce",
		edit: edit{"internal/node/observe.go",
			`leader == "" || leader == o.leader && term == o.leaderTerm {`,
			`leader == "" {`}},
	{name: "former members are seen", run: "TestViewsAreOfMembers",
		edit: edit{"internal/node/observe.go",
			`return !leads || !slices.ContainsFunc`,
			`return !leads && !slices.ContainsFunc`}},
	{name: "a value that is replaced counts", run: "TestSize",
		edit: edit{"internal/kv/store.go",
			`d.size += len(item.Value) - len(was.Value)`,
			`d.size += len(item.Value) - len(was.Value[:0])`}},
	{name: "caches keep answers", run: "TestOriginChecker",
		edit: edit{"internal/api/origin.go",
			`w.Header().Set("Cache-Control", "no-store")`,
			`w.Header().Set("Cache-Control", "")`}},
	{name: "proxies hold streams back", run: "TestStreamsPassProxies",
		edit: edit{"internal/api/stream.go",
			`{ w.Header().Set("X-Accel-Buffering", "no") }`,
			`{}`}},
	{name: "a path is mended by a redirect", run: "TestRefusedRequests",
		edit: edit{"handler.go",
			`mux.NewRouter().SkipClean(true)`,
			`mux.NewRouter()`}},
	{name: "a probe needs a host", run: "TestCheckOrigin",
		edit: edit{"internal/api/origin.go",
			`r.Host == "" && (probe || fromLoopback(r))`,
			`r.Host == "" && (probe || fromLoopback(r)) && false`}},
	{name: "no host is let in from everywhere", run: "TestCheckOrigin",
		edit: edit{"internal/api/origin.go",
			`r.Host == "" && (probe || fromLoopback(r))`,
			`r.Host == "" && (probe || fromLoopback(r) || true)`}},
	{name: "another node accepts a stream", run: "TestAnotherNodeIsRefused",
		edit: edit{"internal/peer/port.go",
			`hello.to != p.NodeID:`,
			`hello.to == "":`}},
	{name: "a stream that another node accepts is used", run: "TestGreetAnswers",
		edit: edit{"internal/peer/preface.go",
			`	case there != p.to:`,
			`	case false && there != p.to:`}},
	{name: "every node is dialed without its ID", run: "TestOlderProgram",
		edit: edit{"internal/peer/stream.go",
			` && s.port.Older(ctx, id, address) {`,
			` {`}},
	{name: "streams without an ID are accepted for ever", run: "TestRequireNamed",
		edit: edit{"internal/peer/port.go",
			`hello.magic == magicRaft && p.requiresNamed():`,
			`hello.magic == magicRaft && false:`}},
	{name: "streams without an ID stay open", run: "TestRequireNamed",
		edit: edit{"internal/peer/port.go",
			`return ok && accepted.magic == magicRaft`,
			`return false && ok && accepted.magic == magicRaft`}},
	{name: "TimeoutNow has no bound", run: "TestTimeoutNowReturns",
		edit: edit{"internal/peer/transport.go",
			`case <-time.After(TimeoutNowLimit):`,
			`case <-make(chan bool):`}},
	{name: "a call that is meant for another node is answered", run: "TestCallMeantForAnotherNode",
		edit: edit{"internal/node/rpc.go",
			`to != "" && to != n.config.ID {`,
			`to != "" && to == "" {`}},
	{name: "calls do not name the node", run: "TestCallMeantForAnotherNode",
		edit: edit{"internal/node/rpc.go",
			`if to.ID != "" {`,
			`if false {`}},
	{name: "reads need voters of a new program", run: "TestTermOfAnOlderProgram",
		edit: edit{"internal/node/readindex.go",
			`if errors.Is(err, peer.ErrNotRaftkv) {`,
			`if errors.Is(err, peer.ErrNotRaftkv) && false {`}},
	{name: "any Info is an answer to a question for the term", run: "TestTermOfAnOlderProgram",
		edit: edit{"internal/node/readindex.go",
			`if err == nil && !info.older() {`,
			`if false && !info.older() {`}},
	{name: "leadership for a voter whose disk hangs", run: "TestTransferToAVoterWhoseDiskHangs",
		edit: edit{"internal/node/transfer.go",
			`	case best.LastIndex < index:`,
			`	case false:`}},
	{name: "a node that refuses all writes goes on", run: "TestTransferThatNeverEnds",
		edit: edit{"internal/node/transfer.go",
			`case time.Since(since) > 2*timeout`,
			`case false && time.Since(since) > 2*timeout`}},
	{name: "a joiner that does not reach the leader", run: "TestJoinerDoesNotReachTheLeader",
		edit: edit{"internal/node/join.go",
			`j.server(), path, nil); err != nil {`,
			`j.server(), path, nil); err != nil && false {`}},
	{name: "a joiner that reaches another node", run: "TestJoinerDoesNotReachTheLeader",
		edit: edit{"internal/node/join.go",
			`if err == nil && (info.NodeID != id ||`,
			`if err == nil && false && (info.NodeID != id ||`}},
	{name: "a body that is gone is redirected", run: "TestRedirect",
		edit: edit{"internal/api/redirect.go",
			`r.ContentLength < 0 && !awaitsContinue(r) {`,
			`r.ContentLength < 0 && !awaitsContinue(r) && false {`}},
	{name: "a body that was asked for is redirected", run: "TestRedirect",
		edit: edit{"internal/api/redirect.go",
			`&& !(ok && guarded.begun)`,
			`&& !(ok && guarded.begun && false)`}},
	{name: "a loopback address for another machine", run: "TestRedirect",
		edit: edit{"internal/api/redirect.go",
			`!(l.SameMachine && fromThisMachine(r))`,
			`!(l.SameMachine || fromThisMachine(r))`}},
	{name: "a proxy is this machine", run: "TestRedirect",
		edit: edit{"internal/api/redirect.go",
			`r.Header.Get("Forwarded") != "" {`,
			`false {`}},
	{name: "a lost body is an empty value", run: "TestLostBody",
		edit: edit{"internal/api/parameters.go",
			`return body, checkLength(r, len(body))`,
			`return body, nil`}},
	{name: "a form that became a GET", run: "TestLostBody",
		edit: edit{"internal/api/parameters.go",
			`if length != "" && r.Method`,
			`if length == "?" && r.Method`}},
	{name: "a body is read by a follower", run: "TestFollowerLeavesTheBody",
		edit: edit{"handler.go",
			`			if !h.node.Leads() {
				return node.ErrNotLeader
			}
			return nil
		})`,
			`			return nil
		})`}},
	{name: "a follower takes what is sent on", run: "TestForward",
		edit: edit{"internal/node/forward.go",
			`	case !i.leads():`,
			`	case false:`}},
	{name: "a stranger sends a request on", run: "TestForward",
		edit: edit{"internal/node/forward.go",
			`if peer.Caller(r) != i.volume.Cluster {`,
			`if peer.Caller(r) != i.volume.Cluster && false {`}},
	{name: "a lost outcome is no outcome", run: "TestForwardedAndLost",
		edit: edit{"internal/node/forward.go",
			`	if !begun {`,
			`	if true {`}},
	{name: "what was not sent is unknown", run: "TestForwardedAndLost",
		edit: edit{"internal/node/forward.go",
			`		code = ErrNotApplied`,
			`		code = ErrUnknown`}},
	{name: "an older leader is an error", run: "TestForwardToAnOlderProgram",
		edit: edit{"internal/node/forward.go",
			`	if response.StatusCode == http.StatusNotFound {`,
			`	if false {`}},
	{name: "a body that was read is sent on again", run: "TestForwardedBodyEndsEarly",
		edit: edit{"internal/api/forward.go",
			`	if f.read {`,
			`	if false {`}},
	{name: "a body that broke off is the leader's fault", run: "TestForwardedBodyEndsEarly",
		edit: edit{"internal/api/forward.go",
			`	if f.err == nil || f.err == io.EOF {`,
			`	if f.err != nil || f.err == nil {`}},
	{name: "headers of a connection are sent on", run: "TestForwardingIsTheRequest",
		edit: edit{"internal/api/forward.go",
			`"Upgrade": true, "Expect": true,`,
			``}},
	{name: "a guess is where clients are sent", run: "TestMayRedirect",
		edit: edit{"internal/api/redirect.go",
			`return !l.Guessed && !leadsAstray(r, l)`,
			`return !leadsAstray(r, l)`}},
	{name: "a request is sent on twice", run: "TestNoSecondHop",
		edit: edit{"handler.go",
			`forwards && !api.IsForwarded(r) && !h.node.Leads()`,
			`forwards && !h.node.Leads()`}},
	{name: "the node that got a request redirects", run: "TestNoSecondHop",
		edit: edit{"handler.go",
			`		if api.IsForwarded(r) { // one hop, never two`,
			`		if false {`}},
	{name: "an answer breaks off with its connection", run: "TestErrorBeforeTheBody",
		edit: edit{"internal/api/redirect.go",
			`io.CopyN(io.Discard, drained.Body, drainBytes)`,
			`io.CopyN(io.Discard, body, 0)`}},
	{name: "a body is taken for the next request", run: "TestErrorIsNotHeldBack",
		edit: edit{"internal/api/redirect.go",
			`w.Header().Set("Connection", "close")`,
			`w.Header().Set("Connection", "keep-alive")`}},
	{name: "a node refuses its own name", run: "TestAdvertisedAddress",
		edit: edit{"main.go",
			`api.OwnNames(c.httpNames, c.httpURL, c.httpAddress, c.raftAddress, c.raftAdvertise)`,
			`api.OwnNames(c.httpNames, "")`}},
	{name: "any port's page", run: "TestCheckOrigin",
		edit: edit{"internal/api/origin.go",
			`origin != "https://"+r.Host &&`,
			`!strings.HasPrefix(origin, "https://") &&`}},
	{name: "a watch outlives what its node learns", run: "TestWatchEnds",
		edit: edit{"internal/api/stream.go",
			`		stop := context.AfterFunc(serving, cancel)`,
			`		stop := func() bool { return serving == nil }`}},
	{name: "a browser is sent away for good", run: "TestEventSource",
		edit: edit{"internal/api/stream.go",
			`reset.Status == http.StatusGone && q.eventSource`,
			`reset.Status == http.StatusGone && false`}},
	{name: "curl gets the events of a browser", run: "TestEventSource",
		edit: edit{"internal/api/stream.go",
			`return r.Header.Get("Accept") == "text/event-stream" }`,
			`return r.Header.Get("Accept") != "" }`}},
	{name: "a removed node serves watches", run: "TestServing",
		edit: edit{"internal/node/serving.go",
			`			member = errNoMember`,
			`			member = nil`}},
	{name: "a node without a leader serves watches", run: "TestServing",
		edit: edit{"internal/node/serving.go",
			`			leaderless = fmt.Errorf(`,
			`			_ = fmt.Errorf(`}},
	{name: "a node that stops serves watches", run: "TestServing",
		edit: edit{"internal/node/serving.go",
			`			n.serving.set(errStopping, nil)
`,
			``}},
	{name: "a list that breaks off looks whole", run: "TestStreamsHaveAnEnd",
		edit: edit{"internal/api/list.go",
			`q.sized = needsLength(r)`,
			`q.sized = false`}},
	{name: "a backup that breaks off looks whole", run: "TestStreamsHaveAnEnd",
		edit: edit{"internal/api/stream.go",
			`if needsLength(r) {`,
			`if false {`}},
	{name: "parameters without a limit", run: "TestManyParameters",
		edit: edit{"internal/api/parameters.go",
			`strings.Count(text, "&") >= maxParameters {`,
			`strings.Count(text, "&") < 0 {`}},
	{name: "a slow body is a wrong request", run: "TestSlowBody",
		edit: edit{"internal/api/parameters.go",
			`errors.Is(err, os.ErrDeadlineExceeded) {`,
			`errors.Is(err, os.ErrDeadlineExceeded) && false {`}},
	{name: "a read ignores If-Match", run: "TestGetHonorsIfMatch",
		edit: edit{"handler.go",
			`api.CheckIfMatch(r, h.history(), key, item.Index); err != nil {`,
			`api.CheckIfMatch(r, h.history(), key, item.Index); false {`}},
	{name: "a follower is ready as the leader", run: "TestReadyLeader",
		edit: edit{"handler.go",
			`if leader && !h.node.Leads() {`,
			`if leader && false {`}},
	{name: "a voter that is away is not missed", run: "TestVoterWarning",
		edit: edit{"internal/node/health.go",
			`		line = voterWarning(all)`,
			`		line = voterWarning(all)[:0]`}},
	{name: "a difference of a stranger is kept", run: "TestDifferenceOfAStranger",
		edit: edit{"internal/node/health.go",
			`if !slices.ContainsFunc(i.servers(), isMember) {`,
			`if !slices.ContainsFunc(i.servers(), isMember) && false {`}},
	{name: "a node begins a cluster before all have answered", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case len(silent) > 0:`,
			`case false:`}},
	{name: "a node begins a cluster beside one that is there", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case s.info.Waiting == "":`,
			`case false:`}},
	{name: "a node begins a cluster by another list", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`if s.identity() != own && !slices.Equal(s.info.Seen, d.seen) {`,
			`if s.identity() != own && false {`}},
	{name: "any node begins a cluster", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case first.identity() != own:`,
			`case false:`}},
	{name: "a node alone begins a cluster", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case len(nodes) < 2:`,
			`case false:`}},
	{name: "a node begins a cluster beside one of its name", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case sameName != "":`,
			`case false:`}},
	{name: "a node joins any of two clusters", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case len(clusters) > 1:`,
			`case len(clusters) > 9:`}},
	{name: "a node that was removed counts as one that waits", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case len(removed) > 0:`,
			`case false:`}},
	{name: "a nonvoter begins a cluster", run: "TestDecide",
		edit: edit{"internal/node/autojoin.go",
			`case first == nil && !s.info.Nonvoter:`,
			`case first == nil:`}},
	{name: "a node begins a cluster by old answers", run: "TestBootstrapTooLate",
		edit: edit{"internal/node/autojoin.go",
			`|| time.Since(began) > decisionLimit {`,
			`{`}},
	{name: "a member begins a cluster", run: "TestBootstrapTooLate",
		edit: edit{"internal/node/autojoin.go",
			`if len(i.servers()) > 0 || time.Since`,
			`if time.Since`}},
	{name: "a node that is to join bootstraps itself", run: "TestReleasedWaits|TestJoinByItself",
		edit: edit{"internal/node/autojoin.go",
			`	if len(n.config.Join) == 0 {
		return n.bootstrap()
	}`,
			`	if true {
		return n.bootstrap()
	}`}},
	{name: "a node without a cluster serves stale reads", run: "TestJoinByItself",
		edit: edit{"internal/node/status.go",
			`	if err := n.errWaiting(); err != nil {
		return Freshness{}, err
	}`,
			``}},
	{name: "a node waits for ever for its vote", run: "TestVoteIsAskedFor",
		edit: edit{"internal/node/autojoin.go",
			`case n.lacksVote(i):`,
			`case false:`}},
	{name: "an address that is not advertised", run: "TestAdvertise",
		edit: edit{"internal/node/node.go",
			`	port.Advertise(config.Advertise)
`,
			``}},
	{name: "a call comes from the former cluster", run: "TestCallUnderWay",
		edit: edit{"internal/peer/port.go",
			`c.transport.Swap(c.open()).CloseIdleConnections()`,
			`c.transport.Load().CloseIdleConnections()`}},
	{name: "the client forgets that an attempt was unclear", run: "TestOutcomeOfWrites",
		edit: edit{"client/client.go",
			`		maybe := unknown || failure.unknown`,
			`		maybe := failure.unknown`}},
	{name: "the client takes a broken connection for one that sent nothing", run: "TestOutcomeOfWrites",
		edit: edit{"client/client.go",
			`		dialing := ok && op.Op == "dial" // never sent`,
			`		dialing := !ok || op.Op != ""`}},
	{name: "the client takes any refusal for the answer to an unclear write", run: "TestOutcomeOfWrites",
		edit: edit{"client/client.go",
			`maybe && failure.Status != http.StatusPreconditionFailed`,
			`maybe && failure.Status/100 != 4`}},
	{name: "net/http sends a write of the client again by itself", run: "TestReusedConnection",
		edit: edit{"client/client.go",
			`	request.ContentLength, request.GetBody = size, nil`,
			`	request.ContentLength = size`}},
	{name: "the client follows a redirect to its own machine", run: "TestRedirectsThatAreNotFollowed",
		edit: edit{"client/client.go",
			` && (!loopback(to) || loopback(from))`,
			` && (!loopback(to) || loopback(to))`}},
	{name: "a transaction that reads is sent again when it is unclear", run: "TestTxn",
		edit: edit{"client/kv.go",
			`write: writes, once: reads && writes,`,
			`write: writes, once: reads && writes && false,`}},
	{name: "an event that is cut off counts for the client", run: "TestWatch",
		edit: edit{"client/watch.go",
			`				id = value`,
			`				id, w.id = value, value`}},
	{name: "a silent watch of the client is kept", run: "TestWatchThatIsSilent",
		edit: edit{"client/client.go",
			`	timer := time.AfterFunc(idleTimeout, `,
			`	timer := time.AfterFunc(time.Hour, `}},
	// Bounds of the data.
	{name: "data without a bound", run: "TestMaxBytes",
		edit: edit{"internal/node/room.go",
			`	if grows > 0 && a.size+grows > a.max {`,
			`	if false {`}},
	{name: "what a batch adds is forgotten", run: "TestAdmission",
		edit: edit{"internal/node/room.go",
			`	a.size += max(grows, 0)`,
			`	_ = grows`}},
	{name: "a remove in the batch is taken for none", run: "TestAdmissionKeepsTheBound",
		edit: edit{"internal/node/room.go",
			`		a.least[key] = min(a.now(key), bytes)`,
			`		a.least[key] = max(a.now(key), bytes)`}},
	{name: "a repetition needs room", run: "TestAdmission",
		edit: edit{"internal/node/room.go",
			`	if a.repeats(c) {`,
			`	if false {`}},
	{name: "a new leader forgets what is under way", run: "TestMaxBytesOfANewLeader",
		edit: edit{"internal/node/room.go",
			`	if !settled {
		n.settled = 0
	}`,
			`	n.settled = i.raft.CurrentTerm()`}},
	{name: "a follower refuses for its own bound", run: "TestMaxBytesIsTheLeaders",
		edit: edit{"internal/node/room.go",
			`	if !i.leads() {`,
			`	if false {`}},
	{name: "a restore shares its batch", run: "TestNextBatch",
		edit: edit{"internal/node/batch.go",
			`(i > 0 && (alone || size+p.size > maxBytes))`,
			`(i > 0 && (false && alone || size+p.size > maxBytes))`}},
	{name: "a restore of more than may be", run: "TestAdmissionOfARestore",
		edit: edit{"internal/node/room.go",
			`staged > a.max {`,
			`staged < 0 {`}},
	{name: "a full disk is no reason to refuse", run: "TestDiskIsShort",
		edit: edit{"internal/node/room.go",
			`	if a.disk != nil && takesRoom(c, grows) {`,
			`	if false {`}},
	{name: "removes are refused for a full disk", run: "TestTakesRoom",
		edit: edit{"internal/node/diskroom.go",
			`	return false
}

// answerInfo`,
			`	return true
}

// answerInfo`}},
	{name: "what was proposed since takes no room", run: "TestShort",
		edit: edit{"internal/node/diskroom.go",
			`seen.room.left(d.proposed - seen.proposed)`,
			`seen.room.left(0)`}},
	{name: "full disks of a majority are none of the leader's business", run: "TestDisksOfAMajority",
		edit: edit{"internal/node/diskroom.go",
			`		if !self && voters-len(lines) > voters/2 {`,
			`		if !self && voters > 0 {`}},
	{name: "a full disk that was seen long ago", run: "TestShort",
		edit: edit{"internal/node/diskroom.go",
			`time.Since(seen.at) > roomKnown {`,
			`false {`}},
	{name: "no snapshot makes room", run: "TestRoomIsMade",
		edit: edit{"internal/node/diskroom.go",
			`		n.takeSnapshot(i)`,
			`		_ = n.takeSnapshot`}},
	{name: "a leader with a full disk stays", run: "TestDiskOfTheLeader",
		edit: edit{"internal/node/diskroom.go",
			`		n.handOverForRoom(i)`,
			`		_ = n.handOverForRoom`}},
	{name: "a snapshot of any size is read", run: "TestReadSnapshotWithinReadsLittle",
		edit: edit{"internal/kv/snapshot_decoder.go",
			`	d.within(min(count, math.MaxUint32) * Overhead)`,
			`	_ = math.MaxUint32`}},
	{name: "a snapshot is counted at its end", run: "TestReadSnapshotWithinReadsLittle",
		edit: edit{"internal/kv/snapshot_decoder.go",
			`			into.set(into.items.Load, key, item)
			d.within(uint64(into.footprint()))`,
			`			into.set(into.items.Load, key, item)`}},
	{name: "idempotency records of any size", run: "TestReadSnapshotWithin",
		edit: edit{"internal/kv/snapshot_decoder.go",
			`d.max > 0 && bytes > maxRecordBytes {`,
			`false {`}},
	{name: "a backup that is too long is read", run: "TestReceive",
		edit: edit{"internal/backup/restore.go",
			`	if limits.Data > 0 && length > kv`,
			`	if false && length > kv`}},
	{name: "the limit of a cgroup above is passed over", run: "TestCgroupLimit",
		edit: edit{"internal/memory/memory.go",
			`		if dir == "/" {`,
			`		if true {`}},
	// The gate before raft.
	{name: "a nil entry is decoded", run: "TestLengthsAreNotBelieved",
		edit: edit{"internal/peer/request.go",
			`		if fields < 0 {`,
			`		if fields < -1 {`}},
	{name: "a field that comes twice", run: "TestLengthsAreNotBelieved",
		edit: edit{"internal/peer/wire.go",
			`		if *seen&(1<<i) != 0 {`,
			`		if false {`}},
	{name: "a request of any length", run: "TestRequestIsBounded",
		edit: edit{"internal/peer/wire.go",
			`	if w.err == nil && n > uint64(w.left) {`,
			`	if false {`}},
	{name: "a string is allocated before it comes", run: "TestLengthsAreNotBelieved",
		edit: edit{"internal/peer/wire.go",
			`	growFrom      = 256 << 10`,
			`	growFrom      = 256 << 20`}},
	{name: "values in values without end", run: "TestLengthsAreNotBelieved",
		edit: edit{"internal/peer/wire.go",
			`	if depth == 0 {`,
			`	if false {`}},
	{name: "all requests together have no bound", run: "TestReceivingIsBounded",
		edit: edit{"internal/peer/wire.go",
			`	if w.receiving.Add(more) > maxReceiving {`,
			`	if w.receiving.Add(more) < 0 {`}},
	{name: "the bytes of a request are counted for ever", run: "TestReceivingIsBounded",
		edit: edit{"internal/peer/wire.go",
			`		w.receiving.Add(-w.counted)`,
			`		w.receiving.Add(0)`}},
	{name: "answers of any length", run: "TestLengthsAreNotBelieved",
		edit: edit{"internal/peer/serve.go",
			`w := wire{r: a.r, left: maxAnswer, record: &a.buf}`,
			`w := wire{r: a.r, left: 100 << 20, record: &a.buf}`}},
	{name: "entries with gaps", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`		if index++; l.Index != index {`,
			`		if index++; false {`}},
	{name: "entries of a later term", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`l.Term > a.Term || l.Term == 0 {`,
			`l.Term == 0 {`}},
	{name: "terms of entries that go back", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`		if l.Term < term || l.Term`,
			`		if l.Term`}},
	{name: "commands that can't be decoded", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`			if err := g.CheckCommand(l.Data); err != nil {`,
			`			if err := g.CheckCommand(l.Data); false {`}},
	{name: "members in an entry that can't be decoded", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`			if _, err := configurationOf(l.Data); err != nil {`,
			`			if _, err := configurationOf(l.Data); false {`}},
	{name: "members in a snapshot that can't be decoded", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`	if _, err := configurationOf(s.Configuration); err != nil {`,
			`	if _, err := configurationOf(s.Configuration); false {`}},
	{name: "a member that is there twice", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`		if ids[s.ID] || addresses[s.Address] {`,
			`		if false {`}},
	{name: "members without a vote", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`	if voters == 0 {`,
			`	if voters < 0 {`}},
	{name: "entries of an unknown type", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`		case raft.LogNoop, raft.LogBarrier:
		default:`,
			`		case raft.LogNoop, raft.LogBarrier:
		case 255:`}},
	{name: "entries that contradict what is committed", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`		if index <= committed {`,
			`		if false {`}},
	{name: "terms of any height", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`requested-own > maxTermJump:`,
			`requested-own > 1<<62:`}},
	{name: "two leaders in a term", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`		if requested == term && leader != ""`,
			`		if false && leader != ""`}},
	{name: "requests in the name of another", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`	if from != "" && string(header.ID) != from {`,
			`	if false {`}},
	{name: "votes for one that is ahead of itself", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`	if lastTerm > term || (`,
			`	if (`}},
	{name: "snapshots of former terms", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`	case s.Term < term:`,
			`	case s.Term < 0:`}},
	{name: "snapshots that are older than what is committed", run: "TestGate",
		edit: edit{"internal/peer/gate.go",
			`	case s.LastLogIndex < committed:`,
			`	case s.LastLogIndex < 0:`}},
	{name: "raft gets what was refused", run: "TestRefused",
		edit: edit{"internal/peer/serve.go",
			`	if err := t.gate.check(request, from); err != nil {
		return raft.RPCResponse{}, err`,
			`	if err := t.gate.check(request, from); false {
		return raft.RPCResponse{}, err`}},
	{name: "a line for every refusal", run: "TestRefusalsArePrintedOnce",
		edit: edit{"internal/peer/gate.go",
			`ok && now.Sub(last) < refusedAgain {`,
			`ok && now.Sub(last) < 0 {`}},
	{name: "refusals of any number of senders are kept", run: "TestRefusalsArePrintedOnce",
		edit: edit{"internal/peer/gate.go",
			`r.last == nil || len(r.last) >= 1024 {`,
			`r.last == nil {`}},
	{name: "raft reads a snapshot off the wire", run: "TestInstallBesideRaft",
		edit: edit{"internal/peer/serve.go",
			`	if install, ok := request.(*raft.InstallSnapshotRequest); ok {`,
			`	if install, ok := request.(*raft.InstallSnapshotRequest); ok && false {`}},
	{name: "a sender of a snapshot that is silent", run: "TestSilentInstall",
		edit: edit{"internal/peer/serve.go",
			`	s.silence = snapshotSilence
	defer func() { s.silence = 0 }()
	discard,`,
			`	s.until = time.Time{}
	discard,`}},
	{name: "a snapshot of an older term takes the place", run: "TestInstallTakesThePlace",
		edit: edit{"internal/peer/serve.go",
			`		if other != nil && other.term > term {`,
			`		if other != nil && other.term > term+9 {`}},
	{name: "a snapshot waits for one that never comes", run: "TestInstallTakesThePlace",
		edit: edit{"internal/peer/serve.go",
			`		now := i.now
		now.stop()`,
			`		now := i.now`}},
	{name: "a snapshot is installed again", run: "TestInstallAgain",
		edit: edit{"internal/peer/serve.go",
			`ok && own == request.LastLogTerm {`,
			`ok && own == 0 {`}},
	{name: "a snapshot that is received in part", run: "TestReceive",
		edit: edit{"internal/storage/received.go",
			`	if err == nil && counted.n != size {`,
			`	if false {`}},
	{name: "a snapshot that was refused stays", run: "TestReceive",
		edit: edit{"internal/storage/received.go",
			`		return nil, errors.Join(err, sink.Cancel())
	}
	received`,
			`		return nil, err
	}
	received`}},
	{name: "raft writes a snapshot that was received", run: "TestReceive",
		edit: edit{"internal/storage/received.go",
			`	r := s.received.Load()
	if r == nil`,
			`	r := s.received.Load()
	if r != nil`}},
	{name: "a snapshot that was received with other members", run: "TestReceive",
		edit: edit{"internal/storage/received.go",
			`!reflect.DeepEqual(r.meta, meta) ||`,
			`reflect.DeepEqual(nil, meta) ||`}},
	{name: "the state machine writes to a snapshot that was received", run: "TestReceive",
		edit: edit{"internal/storage/received.go",
			`	return 0, errors.New("this snapshot was received`,
			`	return s.pacedSink.Write(nil)
	return 0, errors.New("this snapshot was received`}},
	{name: "snapshots of later entries than they state", run: "TestFaultyMember",
		edit: edit{"internal/node/gate.go",
			`index > request.LastLogIndex || term`,
			`false || term`}},
	{name: "a snapshot that raft has not restored is restored later", run: "TestDiscardedState",
		edit: edit{"internal/storage/received.go",
			`	r.snapshots.prepared.CompareAndSwap(r, nil)`,
			``}},
	{name: "a snapshot that was received is read once more", run: "TestReceive",
		edit: edit{"internal/storage/received.go",
			`		s.snapshots.prepared.Store(s.received)`,
			`		_ = s.snapshots`}},
	{name: "commands are not checked", run: "TestFaultyMember",
		edit: edit{"internal/node/gate.go",
			`		CheckCommand: command.Check,`,
			`		CheckCommand: func(data []byte) error { _ = command.Check; return nil },`}},
	{name: "lines of another node are printed as they come", run: "TestDifferenceOfAStranger",
		edit: edit{"internal/node/health.go",
			`oneLine(r.URL.Query().Get("text"))`,
			`r.URL.Query().Get("text")`}},

	// Lists.
	{name: "a list goes on behind its end", run: "TestListOptions",
		edit: edit{"internal/api/list.go",
			`, q.Until != "" && key >= q.Until:`,
			`:`}},
	{name: "a list does not tell that more follows", run: "TestListOptions",
		edit: edit{"internal/api/list.go",
			`		if n > q.Limit {`,
			`		if n > q.Limit+1 {`}},
	{name: "a condition of several keys that are read is ignored", run: "TestGetSeveral",
		edit: edit{"internal/api/request.go",
			`rejectHeaders(r, "If-Match", "If-None-Match"); err`,
			`rejectHeaders(r); err`}},
	{name: "a watch of one key has others", run: "TestWatchOfOneKey",
		edit: edit{"internal/api/stream.go",
			`			if q.Key == "" {`,
			`			if true {`}},

	// certificates
	{name: "any certificate of the authority is a node's", run: "TestNodesAlone",
		edit: edit{"internal/certs/certs.go",
			`if !slices.Contains(leaf.DNSNames, NodeName) {`,
			`if false {`}},
	{name: "a certificate for any usage is a node's", run: "TestNodesAlone",
		edit: edit{"internal/certs/certs.go",
			`if !slices.Contains(leaf.ExtKeyUsage, usage) {`,
			`if false {`}},
	{name: "a key that all may read", run: "TestOpenRefuses",
		edit: edit{"internal/certs/mode_unix.go",
			`if info.Mode().Perm()&^allowed&0o077 != 0 {`,
			`if info.Mode().Perm()&^allowed&0o077 != 0 && false {`}},
	{name: "streams outlast their authority", run: "TestAuthorityChanges",
		edit: edit{"internal/peer/secure.go",
			`s.closeIf(func(net.Conn, string) bool { return true })`,
			`s.closeIf(func(net.Conn, string) bool { return false })`}},
	{name: "connections for calls outlast their authority", run: "TestAuthorityChanges",
		edit: edit{"internal/peer/secure.go",
			`if err := p.certs.Verify(secured); err != nil {`,
			`if err := p.certs.Verify(secured); err != nil && false {`}},
	{name: "calls use connections that have shown the former certificate", run: "TestAuthorityChanges",
		edit: edit{"internal/peer/secure.go",
			`			pool.renew()`,
			`			_ = pool`}},
	{name: "a raft port beyond loopback without certificates", run: "TestExposure",
		edit: edit{"internal/api/exposure.go",
			`!IsLoopback(address) && !e.RaftCerts {`,
			`!IsLoopback(address) && !e.RaftCerts && false {`}},
	{name: "an HTTP port beyond loopback without tokens", run: "TestExposure",
		edit: edit{"internal/api/exposure.go",
			`!(e.HTTPS && e.Tokens) {`,
			`!e.HTTPS {`}},
	{name: "a volume that every user may write", run: "TestDangerousVolumes",
		edit: edit{"internal/storage/owner_unix.go",
			`perm&0o002 != 0 ||`,
			`false ||`}},
	{name: "a volume with symbolic links", run: "TestDangerousVolumes",
		edit: edit{"internal/storage/owner_unix.go",
			`if mode&fs.ModeSymlink != 0 {`,
			`if false {`}},
	{name: "a volume that every user may read stays so", run: "TestPrivate",
		edit: edit{"internal/storage/owner_unix.go",
			`if mode.Perm()&^private != 0 {`,
			`if mode.Perm()&^private != 0 && false {`}},
	{name: "an origin of http over https", run: "TestCheckOrigin",
		edit: edit{"internal/api/origin.go",
			`!(plain && origin == "http://"+r.Host)`,
			`!((plain || !plain) && origin == "http://"+r.Host)`}},
	{name: "connections of TLS are always idle", run: "TestTLS",
		edit: edit{"internal/connlimit/connlimit.go",
			`		c = secure.NetConn()`,
			`		_ = secure`}},
	// Keys that end.
	{name: "a key that was set again expires", run: "TestExpire",
		edit: edit{"internal/kv/leases.go",
			`return item.Index == index && lease.TTL`,
			`return item.Index <= 1<<63 && lease.TTL`}},
	{name: "a key without a TTL expires", run: "TestExpire",
		edit: edit{"internal/kv/leases.go",
			`lease.TTL != 0 && tx.Remove(key)`,
			`lease.TTL >= 0 && tx.Remove(key)`}},
	{name: "what goes with a key stays", run: "TestLeaseEndsWithItsKey",
		edit: edit{"internal/kv/tx.go",
			`range tx.state.leases.ownedBy(tx.changes[i].Key) {`,
			`range tx.state.leases.ownedBy("") {`}},
	{name: "a new leader goes on with the time of its last term", run: "TestExpiry",
		edit: edit{"internal/node/expiry.go",
			`if !e.leading || e.term != term || `,
			`if !e.leading || `}},
	{name: "a leader that was stopped gives no time", run: "TestExpiry",
		edit: edit{"internal/node/expiry.go",
			` || e.now().Sub(e.looked) > e.pause {`,
			` {`}},
	{name: "a restored key goes with the time of the former", run: "TestExpiry",
		edit: edit{"internal/node/expiry.go",
			`		if epoch != e.epoch {`,
			`		if false {`}},
	{name: "keys that were removed are timed for ever", run: "TestExpiryOfMany",
		edit: edit{"internal/node/expiry.go",
			`	if len(e.upcoming) > 2*e.machine.TimedLen()+expiryBatch {`,
			`	if false {`}},
	{name: "a key of a lease that is not there is set", run: "TestLeases",
		edit: edit{"fsm.go",
			`	if lease := c.Lease(); lease.Key != "" {`,
			`	if lease := c.Lease(); false {`}},
	{name: "a transaction does half without its lease", run: "TestLeases",
		edit: edit{"fsm.go",
			`	if !leasesHold(tx, branch) {`,
			`	if false {`}},
	{name: "a backup has no leases", run: "TestCommands",
		edit: edit{"internal/backup/backup.go",
			`					return stage(command.StageLeases,`,
			`					if true {
						return nil
					}
					return stage(command.StageLeases,`}},
	// Strangers over HTTP.
	{name: "a link changes what it leads to by a name", run: "TestFromBrowser",
		edit: edit{"internal/api/origin.go",
			`	if !reads(r) && fromBrowser(r) {`,
			`	if false {`}},
	{name: "a page passes for Node.js", run: "TestFromBrowser",
		edit: edit{"internal/api/origin.go",
			` && r.Header.Get("Sec-Fetch-Mode") != ""`,
			``}},
	{name: "a POST to the path of a read is a read", run: "TestFromBrowser",
		edit: edit{"internal/api/origin.go",
			`	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && readPaths`,
			`	return readPaths`}},
	{name: "a request that waits for its body does not give way", run: "TestLongestWaitingGivesWay",
		edit: edit{"internal/flight/bound.go",
			`		if now.Sub(h.since) < grace {`,
			`		if true {`}},
	{name: "the one that has waited shortest gives way", run: "TestLongestWaitingGivesWay",
		edit: edit{"internal/flight/bound.go",
			`	for e := b.idle.Front(); e != nil`,
			`	for e := b.idle.Back(); e != nil`}},
	{name: "a request whose body comes gives way", run: "TestGraceOfAWait",
		edit: edit{"internal/flight/bound.go",
			`		if now.Sub(h.since) < grace {`,
			`		if false {`}},
	{name: "a slow reader holds its place", run: "TestSlowReaderGivesWay",
		edit: edit{"internal/api/slots.go",
			`	return &slotWriter{w, own, c, r.Context()}, `,
			`	return w, `}},
	{name: "one host has all places", run: "TestShareOfAHost",
		edit: edit{"internal/flight/bound.go",
			`share: int64(connlimit.PerHost(int(max)))`,
			`share: max`}},
	{name: "one host takes the place of another", run: "TestShareOfAHost",
		edit: edit{"internal/flight/bound.go",
			`		if freed >= b.wanted && (own == nil`,
			`		if false && (own == nil`}},
	{name: "what waits for a place is not bounded", run: "TestQueueIsBounded",
		edit: edit{"internal/flight/bound.go",
			` || b.held+heldBytes > b.maxHeld
`,
			`
`}},
	{name: "what waits for a place is bounded for all hosts alone", run: "TestQueueIsBounded",
		edit: edit{"internal/flight/bound.go",
			`	if full || hostFull {`,
			`	if full || (hostFull && false) {`}},
	{name: "one host has all connections", run: "TestOneHostHasAQuarter",
		edit: edit{"internal/connlimit/connlimit.go",
			`of != nil && of.open >= PerHost(l.maxConns) {`,
			`of != nil && false {`}},
	{name: "one host has all bytes of headers", run: "TestHeaderBytesOfOneHost",
		edit: edit{"internal/connlimit/connlimit.go",
			`			limit = PerHost(limit)`,
			``}},
	{name: "raft streams without end", run: "TestSilentStreamsKeepNoMemberOut",
		edit: edit{"internal/peer/stream.go",
			`	case count < limit:
		return`,
			`	default:
		return`}},
	{name: "one host has all raft streams", run: "TestOneHostHasAQuarterOfTheRaftPort",
		edit: edit{"internal/peer/stream.go",
			`	case ofHost >= connlimit.PerHost(limit):`,
			`	case false:`}},
	{name: "one host has all awaited prefaces", run: "TestOneHostHasAQuarterOfTheRaftPort",
		edit: edit{"internal/peer/port.go",
			`	case count >= connlimit.PerHost(limit):`,
			`	case false:`}},
	{name: "bounds beyond the file descriptors", run: "TestOfFiles",
		edit: edit{"internal/connlimit/host.go",
			`min(n, maxFiles()*part/whole)`,
			`n`}},

	// Tokens.
	{name: "a right is for every key", run: "TestHolds",
		edit: edit{"internal/auth/table.go",
			`		return strings.HasPrefix(r.Prefix, has.Prefix)`,
			`		return true`}},
	{name: "a right is for the keys above it", run: "TestHolds",
		edit: edit{"internal/auth/table.go",
			`strings.HasPrefix(r.Prefix, has.Prefix)`,
			`strings.HasPrefix(has.Prefix, r.Prefix)`}},
	{name: "read is write", run: "TestHolds",
		edit: edit{"internal/auth/table.go",
			`		case r.Kind == Write && has.Kind == Read:
			return false
`,
			``}},
	{name: "admin is everything", run: "TestHolds",
		edit: edit{"internal/auth/table.go",
			`			return r.Kind == has.Kind`,
			`			return has.Kind == Admin`}},
	{name: "a token is what hashes to no line", run: "TestFind",
		edit: edit{"internal/auth/table.go",
			`subtle.ConstantTimeCompare(h.hash[:], hash[:]) == 1 {`,
			`subtle.ConstantTimeCompare(h.hash[:], hash[:]) <= 1 {`}},
	{name: "a token has two lines", run: "TestParseRefuses",
		edit: edit{"internal/auth/table.go",
			`ok := lines[h.hash]; ok {`,
			`ok := lines[h.hash]; ok && false {`}},
	{name: "others may read the tokens", run: "TestOpenRefuses",
		edit: edit{"internal/auth/mode_unix.go",
			`mode&others != 0 {`,
			`mode&others &^ others != 0 {`}},
	{name: "another user gives the tokens", run: "TestOpenRefuses",
		edit: edit{"internal/auth/mode_unix.go",
			`ok && s.Uid != 0 &&`,
			`ok && false &&`}},
	{name: "tokens that can not be used are in force", run: "TestReadAgain",
		edit: edit{"internal/auth/tokens.go",
			`			t.logf("HTTP_TOKENS: %s can't be used; the former`,
			`			t.current.Store(new(table))
			t.logf("HTTP_TOKENS: %s can't be used; the former`}},
	{name: "a stream outlives its token", run: "TestReadAgain",
		edit: edit{"internal/auth/tokens.go",
			`	for b := range t.bound {`,
			`	for b := range map[*binding]struct{}(nil) {`}},
	{name: "a stream begins with a token of before", run: "TestReadAgain",
		edit: edit{"internal/auth/tokens.go",
			`	t.check(b) // the file`,
			`	// the file`}},
	{name: "a path that is not known needs no right", run: "TestCheckByPath",
		edit: edit{"internal/api/access.go",
			`needOf(r) == needAdmin {`,
			`false {`}},
	{name: "a status needs no token", run: "TestCheckByPath",
		edit: edit{"internal/api/access.go",
			`"/status": needToken`,
			`"/status": needNone`}},
	{name: "anonymous may see the status", run: "TestRightsOfAnonymous",
		edit: edit{"internal/api/access.go",
			`needs == needRights || needs == needProbe {`,
			`needs != needAdmin {`}},
	{name: "no probe without a token", run: "TestRightsOfAnonymous",
		edit: edit{"internal/api/access.go",
			`needs == needRights || needs == needProbe {`,
			`needs == needRights {`}},
	{name: "a probe needs no token", run: "TestCheckByPath",
		edit: edit{"internal/api/access.go",
			`"/readyz": needProbe`,
			`"/readyz": needNone`}},
	{name: "the second key of a set needs no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`			require(auth.Write, p.Key)
`,
			`			require(auth.Write, c.Pairs[0].Key)
			_ = p
`}},
	{name: "conditions need no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`			require(auth.Read, condition.Key)`,
			`			_ = condition`}},
	{name: "what else does needs no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`[][]command.Operation{c.Txn.Then, c.Txn.Else}`,
			`[][]command.Operation{c.Txn.Then}`}},
	{name: "a get of a transaction needs no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`					require(auth.Read, o.Key)
`,
			``}},
	{name: "a set of a transaction needs no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`					require(auth.Write, o.Key)
`,
			``}},
	{name: "a lease needs no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`			require(auth.Read, l.Key)
`,
			``}},
	{name: "a restore needs no right", run: "TestCommandAccess",
		edit: edit{"internal/api/access.go",
			`		require(auth.Admin, "")
`,
			``}},
	{name: "a request that was not checked has rights", run: "TestHolds",
		edit: edit{"internal/auth/table.go",
			`	return h != nil && slices`,
			`	return h == nil || slices`}},
	{name: "names share idempotency keys", run: "TestKeysOfNames",
		edit: edit{"internal/api/access.go",
			`[]byte(name + "\x00" + key)`,
			`[]byte(key)`}},
	{name: "values are not hidden", run: "TestNamesAndHiddenValues",
		edit: edit{"internal/console/format.go",
			`		by()
		if prefix.HideValues {`,
			`		by()
		if false {`}},
	{name: "values are not hidden in JSON", run: "TestNamesAndHiddenValues",
		edit: edit{"internal/console/format.go",
			`		line = appendField(line, "key", key)
		if prefix.HideValues {`,
			`		line = appendField(line, "key", key)
		if false {`}},
	{name: "a get needs no right", run: "TestRights",
		edit: edit{"handler.go",
			`h.access.Read(r.Context(), keys...)`,
			`error(nil)`}},
	{name: "a command needs no right", run: "TestRights",
		edit: edit{"handler.go",
			`	c, err := h.access.Command(ctx, c)
`,
			`	_, err := h.access.Command(ctx, c)
	err = nil
`}},
	{name: "the leader does not check again", run: "TestForwardingWithTokens",
		edit: edit{"handler.go",
			`	h.leaders.Use(h.checkAccess)
`,
			``}},
	{name: "refusals are logged one by one", run: "TestRefusalsAreFew",
		edit: edit{"internal/api/access.go",
			`	recent := now.Sub(a.logged[host]) < time.Second`,
			`	recent := now.Sub(a.logged[host]) < 0`}},
	{name: "a join shows what listens where", run: "TestJoinIsNoScanner",
		edit: edit{"internal/node/join.go",
			`	if net.ParseIP(host).IsLoopback() {
		return`,
			`	if net.ParseIP(host).IsLoopback() || host != "" {
		return`}},
	{name: "a join shows by its time what listens where", run: "TestJoinIsNoScanner",
		edit: edit{"internal/node/join.go",
			`time.Until(began.Add(memberTimeout))`,
			`0`}},
	{name: "Basic is Bearer", run: "TestBearerAlone",
		edit: edit{"internal/api/access.go",
			`!strings.EqualFold(scheme, "Bearer") {`,
			`scheme == "" {`}},
	// A start in bounded memory, of a volume that may change.
	{name: "a closing node waits for what a fault has left locked", run: "TestChangedWhileOpen",
		edit: edit{"internal/storage/volume.go",
			`	if err := v.guarded.faulted.Load(); err != nil {`,
			`	if err := v.guarded.faulted.Load(); false {`}},
	{name: "a replay is read far ahead of the state machine", run: "TestReplayIsReadInPieces",
		edit: edit{"internal/node/replay.go",
			`index <= raft.CommitIndex() {`,
			`index > raft.CommitIndex() {`}},
	{name: "a copy of raft.db is renamed unseen", run: "TestCompactCopyDiffers",
		edit: edit{"internal/storage/compact.go",
			`		{"compare", func() error { return compareBolt(dir, o) }},`,
			`		{"compare", func() error { return nil }},`}},
	{name: "a copy of raft.db is renamed before it is on disk", run: "TestCompactCrash",
		edit: edit{"internal/storage/compact.go",
			`		{"sync", func() error { return syncFile(compactPath(dir)) }},`,
			``}},
	{name: "a copy that a crash has left stays", run: "TestCompactCrash",
		edit: edit{"internal/storage/volume.go",
			`	if err := removeCompacted(dir); err != nil {`,
			`	if false {`}},
	{name: "a compaction fills the disk", run: "TestCompact",
		edit: edit{"internal/storage/compact.go",
			`	case left < used+compactSpare:`,
			`	case left < 0:`}},
	// Snapshots that are installed over other entries.
	{name: "entries before an installed snapshot stay", run: "TestDiscard|TestDiscardOnInstall",
		edit: edit{"internal/storage/log.go",
			`	case first == 0 || first > index:`,
			`	case true:`}},
	{name: "the cache has entries before an installed snapshot", run: "TestDiscardOnInstall",
		edit: edit{"internal/storage/cache.go",
			`	c.empty()
	log.Discard(index, term)`,
			`	log.Discard(index, term)`}},
	{name: "what follows an installed snapshot is refused", run: "TestInstalledSnapshotHasItsLastEntry",
		edit: edit{"internal/node/replay.go",
			`	if index != at || !errors.Is`,
			`	if index == at || !errors.Is`}},
	{name: "a follower takes its own entries for committed", run: "TestCommitIndexOfAnAppend",
		edit: edit{"internal/peer/transport.go",
			`	args.LeaderCommitIndex = min(args.LeaderCommitIndex, args.PrevLogEntry+uint64(len(args.Entries)))`,
			``}},
	{name: "a member is sent a log that is larger than the data", run: "TestMemberGetsWhatIsLess",
		edit: edit{"internal/node/logsize.go",
			`	i.log.hidden.Store(hidden)`,
			`	i.log.hidden.Store(0 * hidden)`}},
	{name: "what was retried shows the log again", run: "TestHiddenUpTo",
		edit: edit{"internal/node/logsize.go",
			`max(served, was))`,
			`served)`}},
	// The lab.
	{name: "a cut leaves what is dialed", run: "TestCut",
		edit: edit{"internal/peer/links.go", `	if p.links.covers(address, "") {`, `	if false {`}},
	{name: "a cut leaves calls of a member", run: "TestCut",
		edit: edit{"internal/peer/links.go",
			`	if c.member = member; !c.links.covers("", member) {`,
			`	if c.member = member; true {`}},
	{name: "a cut leaves streams of a member", run: "TestCut",
		edit: edit{"internal/peer/links.go", `	link.held = l.covers("", member)`, `	link.held = false`}},
	{name: "a cut leaves open connections", run: "TestCutCloses",
		edit: edit{"internal/peer/links.go",
			`		if c.held || l.covers(c.address, c.member) {`,
			`		if c.held {`}},
	{name: "a heal leaves what was held", run: "TestCutCloses",
		edit: edit{"internal/peer/links.go",
			`		if c.held || l.covers(c.address, c.member) {`,
			`		if l.covers(c.address, c.member) {`}},
	{name: "the lab beyond loopback", run: "TestConfigRefuses",
		edit: edit{"config.go", `		if c.lab && !api.IsLoopback(reached) {`, `		if c.lab && false {`}},
	{name: "the lab without RAFT_LAB", run: "TestLabIsOff",
		edit: edit{"handler.go", `	if !h.labOn {`, `	if false {`}},
	{name: "the lab through a proxy", run: "TestLabRequests",
		edit: edit{"internal/api/request.go", `	if !fromThisMachine(r) {`, `	if false {`}},
	{name: "the size of the log is looked at every 2 s", run: "TestLogIsBoundedInBytes",
		edit: edit{"internal/node/commit.go",
			`	n.logGrew()`,
			``}},
	{name: "snapshots write at the same time", run: "TestPacer",
		edit: edit{"internal/storage/snapshots.go",
			`	p.mu.Lock()
	defer p.mu.Unlock()
	began := time.Now()`,
			`	began := time.Now()`}},

	// The page.
	{name: "a page of any origin reads frames", run: "TestPageOrigins",
		edit: edit{"handler.go", `OriginChecker(names, h.page.Lets,`,
			`OriginChecker(names, func(w http.ResponseWriter, r *http.Request) bool {
				return h.page.Lets(w, r) || r.URL.Path == "/events"
			},`}},
	{name: "a member's page does more than read frames", run: "TestPageOrigins",
		edit: edit{"handler.go", `OriginChecker(names, h.page.Lets,`,
			`OriginChecker(names, func(w http.ResponseWriter, r *http.Request) bool {
				return h.page.Lets(w, r) || r.Header.Get("Sec-Fetch-Site") == "same-site"
			},`}},
	{name: "a page of a member comes by any name", run: "TestOriginChecker",
		edit: edit{"internal/api/origin.go", `check = CheckHostName`,
			`check = func(*http.Request, []string) error { return nil }`}},
	{name: "views without a bound", run: "TestTooManyViews",
		edit: edit{"internal/events/events.go", `	if len(r.wake) >= MaxViews {`, `	if false {`}},
	{name: "frames without a bound", run: "TestRecorder",
		edit: edit{"internal/events/events.go", `min(count, maxBatch); kept < count {`, `min(count, size); kept < count {`}},
	{name: "repaired entries are not sent again", run: "TestRepairedCells",
		edit: edit{"internal/page/frames.go",
			`			f.cells = min(f.cells, e.From-1)`,
			`			_ = e.From`}},
	{name: "a volume is closed while frames read it", run: "TestCellsOfAClosedVolume",
		edit: edit{"internal/node/view.go", `	if i.closed {
		return nil`, `	if false {
		return nil`}},

	// Requests that travel together.
	{name: "requests are sent before the leader takes them", run: "TestPipelineReads",
		edit: edit{"internal/node/together.go", `(!p.open || len(p.part)`, `(len(p.part)`}},
	{name: "an answer to nothing", run: "TestPipelineReads",
		edit: edit{"internal/node/together.go", `	if len(p.sent) == 0 {
		return false
	}`, `	if len(p.sent) == 0 {
		return true
	}`}},
	{name: "what was lost in a pipeline was not done", run: "TestPipelineThatIsLost",
		edit: edit{"internal/node/together.go", `	for _, s := range p.sent {
		s.finish(nil, err)`, `	for _, s := range p.sent {
		s.finish(nil, ErrNotApplied)`}},
	{name: "what was not read is unknown", run: "TestPipelineThatIsLost",
		edit: edit{"internal/node/together.go", `	if errors.Is(err, ErrUnknown) {`, `	if false {`}},
	{name: "requests without a bound", run: "TestPipelineBounds",
		edit: edit{"internal/node/together.go", `	case len(p.queue)+len(p.sent) >= maxTogether:`, `	case false:`}},
	{name: "a pipeline for ever", run: "TestPipelineBounds",
		edit: edit{"internal/node/together.go", `time.Since(p.born) > pipelineAge`, `false`}},
	{name: "answers without a bound", run: "TestPipelineBounds",
		edit: edit{"internal/node/together.go", `answer.ContentLength < 0 || answer.ContentLength > maxTogetherAnswer`,
			`answer.ContentLength < 0`}},
	{name: "a pipeline that ends in order is unknown", run: "TestForwardTogether",
		edit: edit{"internal/node/together.go", `err == io.EOF {`, `err == io.EOF && false {`}},
	{name: "a pipeline that breaks off has done nothing", run: "TestForwardTogetherAndLost",
		edit: edit{"internal/node/together.go", `			return lostForward(p.ctx, p.to, err, true)`,
			`			return lostForward(p.ctx, p.to, err, false)`}},
	{name: "an older leader is asked again and again", run: "TestForwardTogetherToAnOlderProgram",
		edit: edit{"internal/node/together.go", `	if to == t.alone && `, `	if false && `}},
	{name: "an older leader waits for the body", run: "TestForwardTogetherToAnOlderProgram",
		edit: edit{"internal/node/together.go", `	call.Header.Set("Expect", "100-continue")`, `	call.Header.Del("Expect")`}},
	{name: "a transaction that reads travels with others", run: "TestWhole",
		edit: edit{"internal/api/forward.go", `		if transaction && (bytes`, `		if false && (bytes`}},
	{name: "a part of a body is a body", run: "TestWhole",
		edit: edit{"internal/api/forward.go", `io.ReadFull(f.body, body); err != nil {`, `f.body.Read(body); err != nil {`}},
	{name: "a request in a request", run: "TestRequestIsOne",
		edit: edit{"internal/api/forward.go", `strings.ReplaceAll(r.URL.RequestURI(), " ", "%20")`,
			`strings.TrimSpace(r.URL.RequestURI())`}},
	{name: "answers as they are done", run: "TestServeTogether",
		edit: edit{"internal/api/forward.go", `	for a := range answers {
		select {
		case <-a.done:`, `	for a := range answers {
		select {
		case <-time.After(0):`}},
	{name: "a node that does not lead takes requests", run: "TestServeTogetherEnds",
		edit: edit{"internal/api/forward.go", `		if !goOn() {`, `		if false {`}},
	{name: "a pipeline that is broken ends in order", run: "TestServeTogetherEnds",
		edit: edit{"internal/api/forward.go", `	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// takeRequests`, `}

// takeRequests`}},
	{name: "requests that came together are sent on again", run: "TestServeTogether",
		edit: edit{"internal/api/forward.go", `context.WithCancel(context.WithValue(call.Context(), forwardedKey{}, true))`,
			`context.WithCancel(call.Context())`}},
	// What requests have in memory.
	{name: "bodies are not counted", run: "TestMemoryOfRequests",
		edit: edit{"internal/api/parameters.go",
			`	if own != nil {
`,
			`	if own != nil && false {
`}},
	{name: "what a body takes is held after the request", run: "TestMemoryOfRequests",
		edit: edit{"internal/api/slots.go",
			`		h.Release()`,
			`		if h != &own.body {
			h.Release()
		}`}},
	{name: "a list that has begun ends with a status", run: "TestMemoryOfAnswers",
		edit: edit{"internal/api/list.go",
			`ok && s.begun {`,
			`ok && false {`}},
	{name: "the file of a backup has no bound", run: "TestReceive",
		edit: edit{"internal/backup/restore.go",
			`l.bounded && uint64(len(p)) > l.left {`,
			`l.bounded && false {`}},
	{name: "what is staged of a broken file is restored", run: "TestFileIsGone",
		edit: edit{"internal/backup/backup.go",
			`		if b.err == nil {
			yield(`,
			`		if true {
			yield(`}},
	{name: "a backup is scanned without a bound", run: "TestScanSnapshot",
		edit: edit{"internal/kv/snapshot_decoder.go",
			`			d.err = d.scan.item(key, value)
			d.within(uint64(d.scan.size))`,
			`			d.err = d.scan.item(key, value)`}},
	{name: "a version that is read is held for ever", run: "TestPin",
		edit: edit{"internal/kv/pin.go",
			`s.dropped() > e.Value.(*pin).until;`,
			`false;`}},
	{name: "a slow reader is given up only when it reads on", run: "TestSlowReaderIsGivenUp",
		edit: edit{"internal/api/version.go",
			`	_ = v.controller.SetWriteDeadline(past) // an`,
			`	// an`}},
	// The journal.
	{name: "a record is acknowledged before it is on disk", run: "TestJournalPowerCut",
		edit: edit{"internal/storage/journal.go", `	return j.file.Sync()`, `	return nil`}},
	{name: "raft.db states records that it lacks", run: "TestJournalPowerCut",
		edit: edit{"internal/storage/journal.go",
			`last.at); err != nil {`,
			`last.at); err != nil || j.storeBelow(last.logs[len(last.logs)-1:], j.next) != nil {`}},
	{name: "a full journal is written over", run: "TestJournalIsBounded",
		edit: edit{"internal/storage/journal.go",
			`j.failed == nil && j.used+padded > j.sectors {`,
			`false {`}},
	{name: "the room of records is free before raft.db has them", run: "TestJournalPowerCut",
		edit: edit{"internal/storage/journal.go",
			`	taken := j.records[:n]
`,
			`	taken := j.records[:n]
	for _, r := range taken {
		j.used -= r.sectors
		defer func() { j.used += r.sectors }()
	}
`}},
	{name: "what was deleted comes back from the journal", run: "TestJournalPowerCut",
		edit: edit{"internal/storage/journal.go",
			`	if err := j.move(); err != nil {
		return err
	}
	return j.LogAndStable.DeleteRange`,
			`	return j.LogAndStable.DeleteRange`}},
	{name: "a large append passes what is in the journal", run: "TestJournalPowerCut",
		edit: edit{"internal/storage/journal.go",
			`		if err := j.move(); err != nil {
			return err
		}
		if err := j.storeBelow`,
			`		if err := j.storeBelow`}},
	{name: "damage is a torn record", run: "TestDamagedJournal",
		edit: edit{"internal/storage/journalfile.go",
			`		case r.older(s, record):`,
			`		case true:`}},
	{name: "a damaged record ends the journal", run: "TestDamagedJournal",
		edit: edit{"internal/storage/journalfile.go",
			`s.epoch == r.epoch && s.record > record {`,
			`false {`}},
	{name: "a sector counts without its checksum", run: "TestDamagedJournal|TestJournalPowerCut",
		edit: edit{"internal/storage/journalfile.go",
			`	return s.whole && s.epoch == r.epoch && s.record == record`,
			`	return s.epoch == r.epoch && s.record == record`}},
	{name: "a record of another epoch counts", run: "TestJournalOfAnotherEpoch",
		edit: edit{"internal/storage/journalfile.go",
			`	return s.whole && s.epoch == r.epoch && s.record == record`,
			`	return s.whole && s.record == record`}},
	{name: "a journal that is cut short is read", run: "TestDamagedJournal",
		edit: edit{"internal/storage/journalfile.go",
			`want != size {`,
			`false {`}},
	{name: "another journal is read", run: "TestJournalIsNamed",
		edit: edit{"internal/storage/journalfile.go",
			`got != epoch {`,
			`got != epoch && false {`}},
	{name: "a volume without its journal is opened", run: "TestJournalIsNamed",
		edit: edit{"internal/storage/journalfile.go",
			`	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf(`,
			`	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf(`}},
	{name: "a program that knows no journal opens a volume with one", run: "TestJournalIsNamed",
		edit: edit{"internal/storage/volume.go",
			`return uint64(journal)<<32 | format }`,
			`return uint64(journal)*0 | format }`}},
	{name: "the journal is not named any more when the format rises", run: "TestJournalKeepsTheFormat",
		edit: edit{"internal/storage/log.go",
			`joinFormat(format, l.journal)`,
			`joinFormat(format, 0)`}},
	{name: "a journal that is still named is begun anew", run: "TestJournalCrashAtTheStart",
		edit: edit{"internal/storage/volume.go",
			`	if found.epoch != 0 {
		if err := v.name`,
			`	if false {
		if err := v.name`}},
	{name: "a journal is removed before raft.db has what it holds", run: "TestJournalReplay",
		edit: edit{"internal/storage/volume.go",
			`errors.Join(newJournal(v.guarded, found.records).move(), o.`,
			`errors.Join(newJournal(v.guarded, nil).move(), o.`}},
	{name: "a journal without raft.db is a new volume", run: "TestJournalIsNamed",
		edit: edit{"internal/storage/volume.go",
			`	if _, err := os.Lstat(journalPath(dir)); err == nil {`,
			`	if _, err := os.Lstat(journalPath(dir)); err == nil && false {`}},
	{name: "the journal goes on after a failed write", run: "TestJournalFails",
		edit: edit{"internal/storage/journal.go",
			`	if j.failed == nil {
		j.failed = err
	}`,
			`	if false {
		j.failed = err
	}`}},
	{name: "what came while raft.db took others stays in the journal", run: "TestJournalMovesAlone",
		edit: edit{"internal/storage/journal.go",
			`	if len(j.records) == 0 {
		time`,
			`	if false {
		time`}},
	// Clusters without a person.
	{name: "a leader that is being closed takes a joiner out", run: "TestLeaderIsClosedDuringAJoin",
		edit: edit{"internal/node/join.go", `err != nil && n.life.ctx.Err() != nil {`, `false {`}},
	// Watches that share their events.
	{name: "every event is sent by itself", run: "TestEventsAreSentTogether",
		edit: edit{"internal/api/stream.go",
			`			pause = WatchPause(store.OpenWatchers())`,
			`			pause = 0`}},
	{name: "events that all have taken are kept", run: "TestTakenEventsAreNotHeld",
		edit: edit{"internal/kv/watch_index.go",
			`		taken = min(taken, w.next)`,
			`		taken = min(taken, w.next, g.first)`}},
	{name: "events that were handed out are written to", run: "TestTakenEventsAreNotHeld",
		edit: edit{"internal/kv/watch_index.go",
			`slices.Clone(g.pending[drop:])`,
			`append(g.pending[:0], g.pending[drop:]...)`}},
	{name: "a watcher that has just caught up is not woken", run: "TestNextWaits",
		edit: edit{"internal/kv/watch.go",
			`		case wake == nil: // it read the history`,
			`		case wake == nil && !w.live: // it read the history`}},
	// etcd's gateway, and cluster format 4.
	{name: "an entry of format 4 is written as one of an older format", run: "TestFormat",
		edit: edit{"internal/command/command.go",
			`	case c.Kind == Txn && c.Txn.hasRange():`,
			`	case false:`}},
	{name: "a key that is not there has a value that differs", run: "TestRelated",
		edit: edit{"internal/command/command.go",
			`return f.Exists && c.Is.holds(strings.Compare(f.Value, string(c.Value)))`,
			`return c.Is.holds(strings.Compare(f.Value, string(c.Value)))`}},
	{name: "versions count before every member counts them", run: "TestLives",
		edit: edit{"internal/kv/lives.go",
			`if found && tx.state.format >= livesFormat {`,
			`if found {`}},
	{name: "a removed key keeps its life", run: "TestLives",
		edit: edit{"internal/kv/store.go",
			`		d.removeLife(key)
	}
}`,
			`	}
}`}},
	{name: "a life of no key is read", run: "TestGoldenV5",
		edit: edit{"internal/kv/snapshot_decoder.go",
			`case l.version < 2 || d.scan == nil && (!found || l.created > item.Index):`,
			`case l.version < 2 || d.scan == nil && l.created > item.Index:`}},
	{name: "a scan wants the items of the lives", run: "TestScanLives",
		edit: edit{"internal/kv/snapshot_decoder.go",
			`d.scan == nil && (!found || l.created > item.Index)`,
			`(!found || l.created > item.Index)`}},
	{name: "a former revision of what has changed is answered", run: "TestGateway",
		edit: edit{"internal/etcd/txn.go",
			`	case !g.store.UnchangedSince(uint64(revision), s.prefix(), s.has):`,
			`	case false:`}},
	{name: "a future revision is answered", run: "TestGateway",
		edit: edit{"internal/etcd/txn.go",
			`	case uint64(revision) > applied:`,
			`	case false:`}},
	{name: "leases are among the keys", run: "TestGateway",
		edit: edit{"internal/etcd/txn.go",
			`	if before.until == "" || before.until > leasePrefix {`,
			`	if false {`}},
	{name: "leases are among the events", run: "TestWatch",
		edit: edit{"internal/etcd/txn.go",
			`return key >= s.from && (s.until == "" || key < s.until) && !isReserved(key)`,
			`return key >= s.from && (s.until == "" || key < s.until)`}},
	{name: "a key may be put among the leases", run: "TestGateway",
		edit: edit{"internal/etcd/txn.go",
			`	if err == nil && isReserved(s.from) {`,
			`	if false {`}},
	{name: "a key is removed and put in one txn", run: "TestGateway",
		edit: edit{"internal/etcd/txn.go",
			`		if slices.ContainsFunc(deletes, func(s span) bool { return s.has(key) }) {`,
			`		if false {`}},
	{name: "a range sorts what it likes", run: "TestSorted",
		edit: edit{"internal/etcd/txn.go",
			`	if size > maxSorted {
		return Error`,
			`	if false {
		return Error`}},
	{name: "a message of a watch has no bound", run: "TestWatchEnds",
		edit: edit{"internal/etcd/watch.go",
			`R: r.Body, N: maxMessage}`,
			`R: r.Body, N: 1 << 40}`}},
	{name: "requests of etcd's clients are redirected", run: "TestGatewayForwards",
		edit: edit{"handler.go",
			`forwards := h.forwards || api.IsGateway(r)`,
			`forwards := h.forwards`}},
	{name: "the gateway needs no rights", run: "TestGatewayRights",
		edit: edit{"handler.go",
			`	c, err := g.access.Command(ctx, c)
	if err == nil {`,
			`	var err error
	if err == nil {`}},
	{name: "the gateway is open without ETCD_API", run: "TestGatewayIsOff",
		edit: edit{"handler.go",
			`	if etcdAPI {`,
			`	if true {`}},
	{name: "what is left of a key's time is that of its former entry", run: "TestTimeLeft",
		edit: edit{"internal/node/expiry.go",
			`	if d == nil || d.Index != index {`,
			`	if d == nil {`}},
	{name: "keys that are set again are not reckoned with", run: "TestAdmissionKeepsTheBound",
		edit: edit{"internal/node/room.go",
			` + kv.LifeFootprint(format, key)`,
			` + 0*kv.LifeFootprint(format, key)`}},
	{name: "values that the gateway answers take no memory", run: "TestMemoryOfARange",
		edit: edit{"internal/etcd/gateway.go",
			`api.HoldAnswer(o.w, copies*len(f.Value))`,
			`api.HoldAnswer(o.w, 0)`}},
	{name: "a slow reader of a range holds a version for ever", run: "TestSlowReaderOfARange",
		edit: edit{"internal/etcd/gateway.go",
			`	o.Reset(api.DeadlineWriter(to))`,
			`	o.Reset(api.DeadlineWriter(o.w))
	release()
	release, _ = func() {}, to`}},
	{name: "what a transaction of the gateway has read is held for ever", run: "TestSlowReaderOfARange",
		edit: edit{"internal/etcd/txn.go",
			`	g.keep(out, t.Branch(result))
`, ``}},
}

// TestMutants builds each mutant, and runs the suite against it: a suite that does not
// fail would not miss the guard. Then the same against the node as it is.
func TestMutants(t *testing.T) {
	if !*mutate {
		t.Skip("needs -mutants")
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			finding, took := findingOf(t, build(t, m.edits), m.flags)
			if finding == "" {
				t.Fatalf("nothing was found in %v", took)
			}
			t.Logf("after %v: %s", took, finding)
		})
	}
	for _, m := range mutants {
		t.Run("without "+m.name, func(t *testing.T) {
			finding, took := findingOf(t, build(t, nil), m.flags)
			if finding != "" {
				t.Fatalf("after %v: %s", took, finding)
			}
			t.Logf("nothing in %v", took)
		})
	}
}

// TestMutantsOfUnits runs the test of each guard without the guard.
func TestMutantsOfUnits(t *testing.T) {
	if !*mutate {
		t.Skip("needs -mutants")
	}
	root := filepath.Dir(output(t, "go", "env", "GOMOD"))
	for _, m := range unitMutants {
		t.Run(m.name, func(t *testing.T) {
			list, err := overlay(root, "", t.TempDir(), []edit{m.edit})
			if err != nil {
				t.Fatal(err)
			}
			test := exec.Command("go", "test", "-count=1", "-timeout", "2m", "-overlay", list, "-run", "^"+m.run+"$",
				"./"+filepath.Dir(m.edit.file))
			test.Dir = root
			out, err := test.CombinedOutput()
			switch failed := strings.Contains(string(out), "--- FAIL") || strings.Contains(string(out), "panic:"); {
			case err == nil:
				t.Errorf("%s passes without the guard", m.run)
			case !failed:
				t.Errorf("%s: %v\n%s", test, err, out)
			}
		})
	}
}

// TestMutantsApply: each guard is where its mutant looks for it. It is for those who move one, and takes no time.
func TestMutantsApply(t *testing.T) {
	raft := output(t, "go", "list", "-m", "-f", "{{.Dir}}", raftModule)
	for _, m := range mutants {
		for _, e := range m.edits {
			if _, _, err := e.apply(filepath.Join("..", ".."), raft); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	}
	for _, m := range unitMutants {
		if _, _, err := m.edit.apply(filepath.Join("..", ".."), raft); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

const raftModule = "github.com/hashicorp/raft"

// apply returns the path of the file, below the roots of this module or of raft, and its text with the edit.
func (e edit) apply(root, raft string) (path, text string, err error) {
	path = filepath.Join(root, e.file)
	if name, ok := strings.CutPrefix(e.file, "raft/"); ok {
		path = filepath.Join(raft, name)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return "", "", fmt.Errorf("the guard has moved: %w", err)
	}
	if got := strings.Count(string(old), e.old); got != 1 {
		return "", "", fmt.Errorf("the guard has moved: %s has %q %d times, want once", e.file, e.old, got)
	}
	return path, strings.Replace(string(old), e.old, e.new, 1), nil
}

// build returns the path of the node with these edits. Nothing on disk is touched.
func build(t *testing.T, edits []edit) string {
	t.Helper()
	root, dir := filepath.Dir(output(t, "go", "env", "GOMOD")), t.TempDir()
	raft := filepath.Join(dir, "raft") // a copy: no overlay may be of what is in the module cache
	err := errors.Join(
		os.CopyFS(raft, os.DirFS(output(t, "go", "list", "-m", "-f", "{{.Dir}}", raftModule))),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte(output(t, "go", "mod", "edit", "-print",
			"-replace", raftModule+"="+raft, filepath.Join(root, "go.mod"))), 0o644),
		os.Symlink(filepath.Join(root, "go.sum"), filepath.Join(dir, "go.sum")))
	list, editErr := overlay(root, raft, dir, edits)
	if err := errors.Join(err, editErr); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "raftkv")
	output(t, "go", "build", "-modfile", filepath.Join(dir, "go.mod"), "-overlay", list,
		"-o", path, "raftkv")
	return path
}

// overlay writes the edited files to dir, and returns the path of a list of them for go's flag -overlay.
func overlay(root, raft, dir string, edits []edit) (list string, err error) {
	replace := make(map[string]string)
	for i, e := range edits {
		path, text, err := e.apply(root, raft)
		if err != nil {
			return "", err
		}
		replace[path] = filepath.Join(dir, fmt.Sprint("edit", i, ".go"))
		if err := os.WriteFile(replace[path], []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	text, _ := json.Marshal(map[string]any{"Replace": replace}) // of strings: no error
	list = filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, text, 0o644)
}

// output returns what a command prints, which must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return strings.TrimSpace(string(out))
}

// foundLine matches the line in which a test reports a finding.
var foundLine = regexp.MustCompile(`^ +\w+\.go:\d+: (seed \d+, .*)`)

// findingOf runs this suite against a node until it finds something, and returns that;
// nothing, when it passes.
func findingOf(t *testing.T, binary string, flags []string) (finding string, took time.Duration) {
	t.Helper()
	suite := exec.Command(os.Args[0], append([]string{"-test.v", "-test.timeout", "20m", "-seed", "1", "-binary",
		binary}, flags...)...)
	suite.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // for what it leaves when it is killed
	out, err := suite.StdoutPipe()
	began := time.Now()
	if err := errors.Join(err, suite.Start()); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20) // a finding may hold a value
	for lines.Scan() {
		all.WriteString(lines.Text() + "\n")
		if line := foundLine.FindStringSubmatch(lines.Text()); line != nil && finding == "" {
			finding, took = line[1], time.Since(began)
			_ = suite.Process.Kill() // the nodes die with it
		}
	}
	if err := suite.Wait(); finding == "" && (err != nil || strings.Contains(all.String(), "WITHOUT FAULTS")) {
		t.Fatalf("%s: %v\n%s", suite, err, all.String())
	}
	return finding, cmp.Or(took, time.Since(began)).Round(time.Second / 10)
}
