#!/usr/bin/env bash
# cluster.sh [--keep]: a cluster of n1, n2 and n3 in one terminal. Starts them, joins n2 and n3 through n1, sets
# 1000 keys, shows that all three hold the same, and stays up until Ctrl-C. --keep leaves the data of the last run.
# However it ends, the nodes it started have ended before it; it ends no other process.
# Exit: 0 stopped once all was shown, 1 a step failed, 2 wrong argument, 130 stopped before.
set -u
cd "$(dirname "$0")" || exit 1

keep=${1:-}
if [ $# -gt 1 ] || { [ $# = 1 ] && [ "$keep" != --keep ]; }; then
	echo "usage: cluster.sh [--keep]   (--keep leaves the data of the last run)" >&2
	exit 2
fi

bold='' plain='' colour=('' '' '' '')
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	bold=$'\033[1m' plain=$'\033[0m' colour=('' $'\033[36m' $'\033[33m' $'\033[35m')
fi
say() { printf '%s\n' "$bold== $1$plain"; }
fail() {
	printf '%s\n' "== $1" >&2
	exit 1
}

node=('' '' '' '')     # by number: the process id of node n1, n2, n3 while it runs, else empty
prefixer=('' '' '' '') # by number: the process id of what prints its lines
child=''               # the process id of what is waited for at the moment
leader=''              # the number of the leader, as compare saw it
running=''             # what await found still running
tmp=''                 # a directory for the pipes and answers
http() { echo "http://localhost:$((7999 + $1))"; }

# stop ends and awaits everything that this script started, in about 8 s at most.
stop() {
	local status=$? i pids=''
	trap - EXIT
	trap '' INT TERM HUP PIPE
	if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi
	for i in 1 2 3; do
		if [ -n "${node[i]}" ] && kill -TERM "${node[i]}" 2>/dev/null; then pids+=" ${node[i]}"; fi
	done
	if [ -n "$pids" ]; then say "stopping the nodes" 2>/dev/null; fi
	await 60 "$pids"
	finish_off
	await 20 "${prefixer[*]} $child"
	finish_off
	if [ -n "$tmp" ]; then rm -rf "$tmp"; fi
	exit "$status"
}

# await TENTHS PIDS waits until none of PIDS runs, so many tenths of a second at most; $running is what still does.
await() {
	local tenths=0 pid
	while :; do
		running=''
		for pid in $2; do
			if kill -0 "$pid" 2>/dev/null; then running+=" $pid"; fi
		done
		if [ -z "$running" ] || [ "$tenths" -ge "$1" ]; then return; fi
		tenths=$((tenths + 1))
		sleep 0.1
	done
}

finish_off() {
	local pid
	for pid in $running; do
		kill -KILL "$pid"
		wait "$pid"
	done 2>/dev/null
}

# prefix I prints the lines of node I behind "nI | " as they come, and leaves the last one in nI.last. Each is one
# write (so ORS), that those of several nodes don't mix. It ends when the node closes the pipe and not by a signal,
# or the node's last lines would be lost.
prefix() {
	trap '' INT TERM HUP
	local interactive=''
	case $(awk -W version 2>&1 </dev/null) in mawk*) interactive=yes ;; esac # else it reads in blocks
	LC_ALL=C exec awk ${interactive:+-W interactive} -v before="${colour[$1]}n$1 |$plain " -v last="$tmp/n$1.last" \
		'BEGIN { ORS = "" } { line = $0; print before line "\n"; fflush() } END { print line >last }'
}

# launch I starts node I. It gets a process group of its own (set -m): Ctrl-C then reaches this script alone, and
# the node only its SIGTERM. A node takes a second signal as "end at once".
launch() {
	local pipe="$tmp/n$1"
	mkfifo "$pipe" || exit 1
	prefix "$1" <"$pipe" &
	prefixer[$1]=$!
	set -m
	"./startn$1.sh" ${keep:+"$keep"} >"$pipe" 2>&1 </dev/null &
	node[$1]=$!
	set +m
}

# has_ended I: has node I ended since this was last asked? Then $ending says how.
has_ended() {
	local status
	if [ -z "${node[$1]}" ] || kill -0 "${node[$1]}" 2>/dev/null; then return 1; fi
	wait "${node[$1]}" 2>/dev/null
	status=$?
	node[$1]=''
	await 20 "${prefixer[$1]}"
	ending="exit code $status"
	if [ "$status" -gt 128 ]; then ending="signal $((status - 128))"; fi
}

# need_all fails if a node has ended.
need_all() {
	local i
	for i in 1 2 3; do
		if has_ended "$i"; then fail "n$i has ended ($ending); its last line: $(cat "$tmp/n$i.last" 2>/dev/null)"; fi
	done
}

# fetch URL [SECONDS] sets $answer, also kept in the file answer, and $status, 000 for no answer in SECONDS (else 5).
# A 503 says that nothing was done, as there is no leader yet: it is tried again for 30 s. A signal is heeded at
# once, not when curl is done.
fetch() {
	local deadline=$((SECONDS + 30))
	while :; do
		: >"$tmp/answer"
		curl -q -sSL --noproxy localhost --max-time "${2:-5}" -o "$tmp/answer" -w '%{http_code}' "$1" \
			>"$tmp/status" 2>"$tmp/error" &
		child=$!
		wait "$child"
		child=''
		status=$(cat "$tmp/status")
		answer=$(cat "$tmp/answer" "$tmp/error")
		if [ "$status" != 503 ] || [ "$SECONDS" -ge "$deadline" ]; then return; fi
		need_all
		sleep 0.3
	done
}

# field NAME prints a top-level field of the /status just fetched: those are indented by two spaces.
field() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$tmp/answer"; }

# await_up I returns once node I answers and knows a leader; fails 60 s after the script's start.
await_up() {
	while :; do
		need_all
		fetch "$(http "$1")/readyz"
		if [ "$status" = 200 ]; then return; fi
		if [ "$SECONDS" -ge 60 ]; then fail "n$1 does not answer after 60 s: $answer"; fi
		sleep 0.1
	done
}

# join I joins node I through n1.
join() {
	local url
	url="$(http 1)/join?nodeId=n$1&raftPort=$((8999 + $1))"
	say "curl -L \"$url\""
	fetch "$url" 90
	if [ "$status" != 200 ]; then fail "n$1 could not be joined, status $status: $answer"; fi
	printf '%s\n' "$answer"
}

# compare prints what each node says of its data once all say the same; fails, printing it too, after 30 s.
compare() {
	local i first rows keys applied state same deadline=$((SECONDS + 30))
	while :; do
		same=yes first='' rows=''
		for i in 1 2 3; do
			fetch "$(http "$i")/status"
			keys=$(field keys) applied=$(field appliedIndex) state=$(field state)
			first=${first:-$keys $applied}
			if [ -z "$keys" ] || [ -z "$applied" ] || [ "$keys $applied" != "$first" ]; then same=''; fi
			if [ "$state" = Leader ]; then leader=$i; fi
			rows+="n$i $((7999 + i)) ${keys:--} ${applied:--} ${state:--}"$'\n'
		done
		if [ -n "$same" ] || [ "$SECONDS" -ge "$deadline" ]; then break; fi
		need_all
		sleep 0.2
	done
	printf '%s' "$rows" | awk '
		BEGIN { printf "%-4s  %4s  %7s  %13s  %s\n", "node", "port", "keys", "applied index", "state" }
		{ printf "%-4s  %4s  %7s  %13s  %s\n", $1, $2, $3, $4, $5 }'
	if [ -z "$same" ]; then fail "the nodes do not hold the same after 30 s"; fi
}

# compare_key KEY prints what each node has under KEY; fails unless it is the same.
compare_key() {
	local i first='' line=
	for i in 1 2 3; do
		fetch "$(http "$i")/get?key=$1"
		line+="${line:+, }n$i has $answer"
		first=${first:-$status $answer}
		if [ "$status" != 200 ] || [ "$status $answer" != "$first" ]; then
			fail "key $1: $line (status $status)"
		fi
	done
	printf '%s\n' "key $1: $line"
}

if ! command -v curl >/dev/null; then fail "cluster.sh needs curl: install it and start again"; fi
for port in 8000 8001 8002 9000 9001 9002; do
	if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
		fail "port $port is taken: a node seems to be running already; stop it (Ctrl-C in its terminal) and start again"
	fi
done

when_stopped=130
trap stop EXIT
trap 'exit "$when_stopped"' INT TERM HUP
trap 'exit 1' PIPE
./start.sh --build || fail "raftkv could not be built"
tmp=$(mktemp -d) || exit 1

say "starting n1, n2 and n3"
for i in 1 2 3; do launch "$i"; done
for i in 1 2 3; do await_up "$i"; done

join 2
join 3

say "./pump.sh"
./pump.sh 2>"$tmp/pump" &
child=$!
if ! wait "$child"; then
	cat "$tmp/pump" >&2
	fail "not all keys were set"
fi
child=''

say "what each node holds"
compare
for key in 1 500 1000; do compare_key "$key"; done

leader=${leader:-1}
follower=$((leader % 3 + 1))
say "all three hold the same; try next, in another terminal:"
try() { printf '%-60s # %s\n' "$1" "$2"; }
try "curl \"$(http "$follower")/get?key=500\"" "read at another node"
try "curl -L \"$(http "$follower")/set?key=hello&value=world\"" "set at a follower: -L goes on to the leader"
try "curl -L -T README.md \"$(http "$leader")/set?key=readme\"" "store a file"
try "kill -9 ${node[leader]}" "end n$leader, the leader: another is elected"
try "curl \"$(http "$follower")/status\"" "see who leads now"
try "./startn$leader.sh --keep" "bring n$leader back"
when_stopped=0
say "Ctrl-C stops all three"

while :; do
	for i in 1 2 3; do
		if has_ended "$i"; then say "n$i has ended ($ending); to bring it back, in another terminal: ./startn$i.sh --keep"; fi
	done
	sleep 0.5
done 2>/dev/null # where bash would report a killed job in words of its own
