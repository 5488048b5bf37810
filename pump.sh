#!/usr/bin/env bash
# pump.sh [COUNT] [URL]: sets key 1 to 1, key 2 to 2 … up to COUNT, one after the other, at the node at URL
# (any node: redirects to the leader are followed). Ends with one line on stdout, "1000 set, 0 failed in 2.1 s".
# Exit: 0 all set, 1 some not, 2 wrong argument, 130 Ctrl-C, 143 SIGTERM.
set -u
export LC_ALL=C

count=${1:-1000} url=${2:-http://localhost:8000}
refuse() {
	echo "pump.sh: $1" >&2
	exit 2
}

if [ $# -gt 2 ]; then refuse "usage: pump.sh [COUNT] [URL]"; fi
if ! [[ $count =~ ^[1-9][0-9]{0,6}$ && $count -le 1000000 ]]; then
	refuse "COUNT is '$count': it must be a whole number from 1 to 1000000"
fi
url_form='^https?://[^/:?#[:space:]"\][^/?#[:space:]"\]*(/[^?#[:space:]"\]*)?$'
if ! [[ $url =~ $url_form ]]; then
	refuse "URL is '$url': it must be http:// or https:// and a host, such as http://localhost:8000"
fi
while [[ $url == */ ]]; do url=${url%/}; done
if ! command -v curl >/dev/null; then
	echo "pump.sh needs curl: install it and start again" >&2
	exit 1
fi

# now sets $now, in microseconds; of whole seconds where bash has no better clock (macOS's own bash).
now() { if [ -n "${EPOCHREALTIME:-}" ]; then now=${EPOCHREALTIME/./}; else now=${SECONDS}000000; fi; }

# answers prints curl's process id, then one HTTP status for each request, 000 for one without an answer.
# One curl makes all the requests, so they share one connection. (It writes a status to stderr, because
# there it doesn't hold lines back.)
answers() {
	awk -v count="$count" -v url="$url" \
		'BEGIN { for (i = 1; i <= count; i++) printf "url = \"%s/set?key=%d&value=%d\"\n", url, i, i }' |
		sh -c 'echo $$; exec "$@" 2>&1 >/dev/null' sh \
			curl -q --silent --location --globoff --noproxy localhost,127.0.0.1,::1 --connect-timeout 5 \
			--max-time 15 --write-out '%{stderr}%{http_code}\n' --config -
}

ok=0 failed=0 curl=''
say() { if [ -t 2 ]; then printf '\r%s\n' "$1" >&2; else printf '%s\n' "$1" >&2; fi; }

# finish STATUS [NOTE] prints where things stand and ends.
finish() {
	trap '' INT TERM
	if [ "$1" -gt 2 ]; then kill "$curl" 2>/dev/null; fi
	say "set $ok of $count, $failed failed"
	now
	local tenths=$(((now - start + 50000) / 100000))
	echo "$ok set, $failed failed in $((tenths / 10)).$((tenths % 10)) s${2:-}"
	exit "$1"
}
trap 'finish 130 ", stopped by Ctrl-C"' INT
trap 'finish 143 ", stopped"' TERM

now
start=$now shown=$now
exec 3< <(answers)
read -r curl <&3
while read -r status <&3; do
	case $status in
	2[0-9][0-9]) ok=$((ok + 1)) ;;
	[0-9][0-9][0-9])
		failed=$((failed + 1)) key=$((ok + failed))
		if [ "$key $status" = "1 000" ]; then
			say "nothing answers at $url: start a node first, e.g. ./startn1.sh"
		elif [ "$failed" = 1 ]; then
			say "key $key is the first that failed, with status $status; to see why: curl -L '$url/set?key=$key&value=$key'"
		fi
		;;
	*) say "$status" ;;
	esac
	now
	if [ -t 2 ] && [ $((now - shown)) -ge 100000 ]; then
		printf '\r%s' "set $ok of $count, $failed failed" >&2
		shown=$now
	fi
done
failed=$((count - ok))
if [ "$failed" -gt 0 ]; then finish 1; fi
finish 0
