#!/usr/bin/env bash
# Starts node n3: HTTP on port 8002, raft on 9002, data in /tmp/node3 (emptied first, unless --keep).
cd "$(dirname "$0")" || exit 1
export HTTP_SERVER_PORT=${HTTP_SERVER_PORT:-8002} RAFT_SERVER_PORT=${RAFT_SERVER_PORT:-9002}
export RAFT_NODE_ID=n3 RAFT_VOLUME_DIR=${RAFT_VOLUME_DIR:-/tmp/node3}
exec ./start.sh node3 "$@"
