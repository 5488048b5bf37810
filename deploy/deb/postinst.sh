#!/bin/sh
# After an installation or upgrade: the user, and a restart if the node runs. A new one is not started: it would
# bootstrap a cluster of its own before anybody has given it its variables.
set -e
systemd-sysusers raftkv.conf
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart raftkv.service
fi
