#!/usr/bin/env bash
# Starts node n2: HTTP on port 8001, raft on 9001, data in /tmp/node2 (emptied first, unless --keep).
cd "$(dirname "$0")" || exit 1
export HTTP_SERVER_PORT=${HTTP_SERVER_PORT:-8001} RAFT_SERVER_PORT=${RAFT_SERVER_PORT:-9001}
export RAFT_NODE_ID=n2 RAFT_VOLUME_DIR=${RAFT_VOLUME_DIR:-/tmp/node2}
exec ./start.sh node2 "$@"
