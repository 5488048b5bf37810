#!/usr/bin/env bash
# start.sh NAME [--keep]: becomes the node that the four variables describe, its volume removed first unless
# --keep; called by startn1.sh to startn3.sh. A node that can't start, for want of a binary or of a port,
# leaves the volume as it is.
# start.sh --build: only brings ./raftkv up to date; called by cluster.sh.
set -eu

# is_taken PORT: does something listen there?
is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# is_stale: is there no binary, or a source newer than it? (What lies in internal/ may be embedded.)
is_stale() {
	[ ! -x raftkv ] || [ -n "$(find . \( -name .git -o -path ./bench -o -path ./browser \) -prune -o -type f ! -name '*_test.go' \
		\( -name '*.go' -o -name go.mod -o -name go.sum -o -path './internal/*' \) -newer raftkv -print)" ]
}

# build makes ./raftkv. Several may run at once: each works in a directory of its own, and mv replaces the
# binary in one step. It is dated to the start of the build, so that an edit made meanwhile is seen as newer.
build() {
	if ! command -v go >/dev/null; then
		echo "raftkv has to be built and there is no Go here: install Go $(awk '$1 == "go" { print $2 }' go.mod) or newer from https://go.dev/dl/ and start again" >&2
		exit 1
	fi
	echo "building raftkv…" >&2
	work=$(mktemp -d ./.raftkv.XXXXXX)
	trap 'rm -rf "$work"' EXIT
	touch "$work/began"
	go build -o "$work/raftkv" .
	touch -r "$work/began" "$work/raftkv"
	mv -f "$work/raftkv" raftkv
	rm -rf "$work"
	trap - EXIT
}

name=${1:-} keep=${2:-}
if [ "$name" = --build ] && [ $# = 1 ]; then
	if is_stale; then build; fi
	exit 0
fi
if [ -z "$name" ] || [ $# -gt 2 ] || { [ $# = 2 ] && [ "$keep" != --keep ]; }; then
	case $name in node[1-9]) script=${name/node/startn}.sh ;; *) script=startn1.sh ;; esac
	echo "usage: $script [--keep]   (--keep leaves the data of the last run)" >&2
	exit 2
fi
: "${HTTP_SERVER_PORT:?is set by startn1.sh: run that}" "${RAFT_SERVER_PORT:?}" "${RAFT_NODE_ID:?}" "${RAFT_VOLUME_DIR:?}"

echo "Starting $name"
if is_stale; then build; fi
for port in "$HTTP_SERVER_PORT" "$RAFT_SERVER_PORT"; do
	if is_taken "$port"; then
		echo "port $port is taken: $name seems to be running already; stop it (Ctrl-C in its terminal) and start again" >&2
		exit 1
	fi
done
if [ "$keep" != --keep ]; then
	# RAFT_VOLUME_DIR may be anything by mistake: what is no volume stays, and so does what a node has not made.
	if [ -n "$(ls -A "$RAFT_VOLUME_DIR" 2>/dev/null)" ] &&
		[ -z "$(find "$RAFT_VOLUME_DIR/" -maxdepth 1 -type f -name 'raft.db*')" ]; then
		echo "$RAFT_VOLUME_DIR holds something else than a volume, and is not emptied: choose another RAFT_VOLUME_DIR" >&2
		exit 1
	fi
	echo "Cleaning the raft volumes."
	rm -rf "$RAFT_VOLUME_DIR"/raft.db* "$RAFT_VOLUME_DIR/snapshots" "$RAFT_VOLUME_DIR"/peers.json* "$RAFT_VOLUME_DIR/lock"
	rmdir "$RAFT_VOLUME_DIR" 2>/dev/null || true
fi
# The lab, for learning, unless the node may be reached from elsewhere: it is refused there.
if [ -z "${HTTP_SERVER_HOST:-}${RAFT_SERVER_HOST:-}${HTTP_ADVERTISE:-}${RAFT_ADVERTISE:-}" ]; then
	export RAFT_LAB=${RAFT_LAB:-1}
fi
exec ./raftkv
