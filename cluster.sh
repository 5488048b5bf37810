#!/usr/bin/env bash
# cluster.sh [--keep]: a cluster of n1, n2 and n3 in one terminal. Starts them, joins n2 and n3 through n1, sets
# 1000 keys, shows that all three hold the same, and stays up until Ctrl-C. --keep leaves the data of the last run.
# HTTP_SERVER_PORT (8000) and RAFT_SERVER_PORT (9000) are those of n1, n2 and n3 have the next two; RAFT_VOLUME_DIR
# (/tmp/node) is the start of the volumes' names, their number is the end.
# However it ends, the nodes it started have ended before it; it ends no other process.
# Exit: 0 stopped once all was shown, 1 a step failed, 2 wrong argument, 130 stopped before.
set -u
cd "$(dirname "$0")" || exit 1

keep=${1:-}
if [ $# -gt 1 ] || { [ $# = 1 ] && [ "$keep" != --keep ]; }; then
	echo "usage: cluster.sh [--keep]   (--keep leaves the data of the last run)" >&2
	exit 2
fi
http_port=${HTTP_SERVER_PORT:-8000} raft_port=${RAFT_SERVER_PORT:-9000} volume=${RAFT_VOLUME_DIR:-/tmp/node}

bold='' plain='' color=('' '' '' '')
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	bold=$'\033[1m' plain=$'\033[0m' color=('' $'\033[36m' $'\033[33m' $'\033[35m')
fi
say() { printf '%s\n' "$bold== $1$plain"; }
fail() {
	printf '%s\n' "== $1" >&2
	exit 1
}

node=('' '' '' '') # the process ID of n1, n2, n3 by number, while it runs
leader=1           # its number, as compare saw it
tmp=''             # a directory for pipes and answers
url() { echo "http://localhost:$((http_port + $1 - 1))"; }

# prefix I prints each line of node I behind "nI | "; of sets that come without a pause only the first and the last. It
# ends when the node closes the pipe: not by a signal, or the last lines would be lost.
prefix() {
	trap '' INT TERM HUP
	local line last='' status sets=0 begin="${color[$1]}n$1 |$plain"
	while IFS= read -r -t 1 line; status=$?; [ "$status" = 0 ] || [ "$status" -gt 128 ]; do # 128: a pause
		case $line in
		*'] Set handler called' | *'] set key='*)
			if [ $((sets += 1)) -gt 4 ]; then last=$line && continue; fi
			;;
		*)
			if [ "$sets" -gt 4 ]; then printf '%s\n' "$begin … $((sets - 4)) more lines like these, the last:" "$begin $last"; fi
			sets=0
			;;
		esac
		if [ "$status" = 0 ]; then printf '%s\n' "$begin $line"; fi
	done
}

# launch I starts node I, in a process group of its own (set -m): Ctrl-C then reaches this script alone, and the node
# only its SIGTERM. A node takes a second signal as "end at once".
launch() {
	mkfifo "$tmp/n$1" || exit 1
	prefix "$1" <"$tmp/n$1" &
	set -m
	HTTP_SERVER_PORT=$((http_port + $1 - 1)) RAFT_SERVER_PORT=$((raft_port + $1 - 1)) RAFT_VOLUME_DIR=$volume$1 \
		"./startn$1.sh" ${keep:+"$keep"} >"$tmp/n$1" 2>&1 </dev/null &
	node[$1]=$!
	set +m
}

# ended I: has node I ended since this was last asked? Then $how says how.
ended() {
	if [ -z "${node[$1]}" ] || kill -0 "${node[$1]}" 2>/dev/null; then return 1; fi
	wait "${node[$1]}" 2>/dev/null
	how="exit code $?"
	node[$1]=''
}

# stop ends all nodes, by force what still runs after 8 s, and waits for them and for what prints their lines.
stop() {
	local status=$? i tenths=0
	trap - EXIT
	trap '' INT TERM HUP PIPE
	for i in 1 2 3; do ended "$i"; done # the process ID may be another's by now
	if [ -n "${node[1]}${node[2]}${node[3]}" ]; then say "stopping the nodes"; fi
	local pids="${node[*]}" # of those that run: the others are empty
	# shellcheck disable=SC2086 # several
	kill -TERM $pids
	# shellcheck disable=SC2086
	while kill -0 $pids; do
		if [ $((tenths += 1)) -gt 80 ]; then kill -KILL $pids; fi
		sleep 0.1
	done
	wait
	if [ -n "$tmp" ]; then rm -rf "$tmp"; fi
	exit "$status"
} 2>/dev/null

# ask URL sets $answer to what is there once the status is 200. For 30 s it tries again: a node that has just started
# does not answer, and one that has no leader yet answers 503.
ask() {
	local status i deadline=$((SECONDS + 30))
	while :; do
		status=$(curl -q -sSL --noproxy localhost --max-time 60 -o "$tmp/answer" -w '%{http_code}' "$1" 2>"$tmp/error")
		answer=$(cat "$tmp/answer" "$tmp/error" 2>/dev/null)
		if [ "$status" = 200 ]; then return; fi
		for i in 1 2 3; do
			if ended "$i"; then fail "n$i has ended ($how): its last lines say why"; fi
		done
		case $status in 000 | 503) ;; *) fail "$1 answered $status: $answer" ;; esac
		if [ "$SECONDS" -ge "$deadline" ]; then fail "$1 has not answered for 30 s: $answer"; fi
		sleep 0.1
	done
}

# field NAME prints a top-level field of the /status in $answer: those are indented by two spaces.
field() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" <<<"$answer"; }

# compare prints what each node holds once all hold the same, which must be within 30 s. It sets $leader.
compare() {
	local i rows state holds first same='' deadline=$((SECONDS + 30))
	until [ -n "$same" ]; do
		if [ "$SECONDS" -ge "$deadline" ]; then fail "the nodes do not hold the same after 30 s: $rows"; fi
		rows='' first='' same=yes
		for i in 1 2 3; do
			ask "$(url "$i")/status"
			holds="$(field keys) $(field appliedIndex)" state=$(field state)
			first=${first:-$holds}
			# replicas, in the answer, compares a hash over all entries
			if [ "$holds" != "$first" ] || ! grep -q '^    "state": "equal"' <<<"$answer"; then same=''; fi
			if [ "$state" = Leader ]; then leader=$i; fi
			rows+=$'\n'$(printf '%-4s  %5s  %7s  %13s  %s' "n$i" "$((http_port + i - 1))" "${holds% *}" "${holds#* }" "$state")
		done
	done
	printf '%-4s  %5s  %7s  %13s  %s%s\n' node port keys 'applied index' state "$rows"
}

if ! command -v curl >/dev/null; then fail "cluster.sh needs curl: install it and start again"; fi
for i in 0 1 2; do
	for port in $((http_port + i)) $((raft_port + i)); do
		if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			fail "port $port is taken: a node seems to be running already; stop it (Ctrl-C in its terminal) and start again"
		fi
	done
done

when_stopped=130
trap stop EXIT
trap 'exit "$when_stopped"' INT TERM HUP
trap 'exit 1' PIPE
./start.sh --build || fail "raftkv could not be built"
tmp=$(mktemp -d) || exit 1

say "starting n1, n2 and n3"
for i in 1 2 3; do launch "$i"; done
for i in 1 2 3; do ask "$(url "$i")/readyz"; done

for i in 2 3; do
	say "curl -L \"$(url 1)/join?nodeId=n$i&raftPort=$((raft_port + i - 1))\""
	ask "$(url 1)/join?nodeId=n$i&raftPort=$((raft_port + i - 1))"
	printf '%s\n' "$answer"
	if ! grep -q "^OK n$i " <<<"$answer"; then fail "n$i could not be joined"; fi
done

say "./pump.sh"
./pump.sh 1000 "$(url 1)" 2>"$tmp/pump" || fail "not all keys were set: $(cat "$tmp/pump")"

say "what each node holds"
compare
follower=$((leader % 3 + 1))
say "all three hold the same; watch them: http://127.0.0.1:$((http_port + leader - 1))/"
say "try next, in another terminal:"
try() { printf '%-60s # %s\n' "$1" "$2"; }
try "curl \"$(url "$follower")/get?key=500\"" "read at another node"
try "curl -L \"$(url "$follower")/set?key=hello&value=world\"" "set at a follower: -L goes on to the leader"
try "curl -L -T README.md \"$(url "$leader")/set?key=readme\"" "store a file"
try "kill -9 ${node[leader]}" "end n$leader, the leader: another is elected"
try "curl \"$(url "$follower")/status\"" "see who leads now"
try "./startn$leader.sh --keep" "bring n$leader back"
when_stopped=0
say "Ctrl-C stops all three"

while :; do
	for i in 1 2 3; do
		if ended "$i"; then say "n$i has ended ($how); to bring it back, in another terminal: ./startn$i.sh --keep"; fi
	done
	sleep 0.5
done 2>/dev/null # where bash would report a killed job in words of its own
