#!/usr/bin/env bash
# Starts node n1: HTTP on port 8000, raft on 9000, data in /tmp/node1 (emptied first, unless --keep).
cd "$(dirname "$0")" || exit 1
export HTTP_SERVER_PORT=${HTTP_SERVER_PORT:-8000} RAFT_SERVER_PORT=${RAFT_SERVER_PORT:-9000}
export RAFT_NODE_ID=n1 RAFT_VOLUME_DIR=${RAFT_VOLUME_DIR:-/tmp/node1}
exec ./start.sh node1 "$@"
