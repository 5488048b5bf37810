#!/bin/sh
# Before a removal; an upgrade leaves the node running until postinst restarts it.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now raftkv.service
fi
