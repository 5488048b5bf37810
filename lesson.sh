#!/usr/bin/env bash
# lesson.sh N [--go]: runs lesson N of docs/lessons, 1 to 9, on three nodes that it starts and ends: shows a paragraph and
# a command, runs it when you press Enter (--go: at once), and compares what is printed with what the page has. The test
# TestLessons, which runs the same pages, does the work. A cluster that runs already is left alone.
# Exit: 0 all was as the page has it, 1 something was not, or Ctrl-C, 2 wrong argument.
set -u
cd "$(dirname "$0")" || exit 1

lesson=${1:-} mode=-lesson.ask
pages=(docs/lessons/"$lesson"-*.md)
if [ $# = 2 ] && [ "$2" = --go ]; then mode=-lesson.ask=false; fi
if ! [[ $lesson =~ ^[1-9]$ && -f ${pages[0]} ]] || [ $# -gt 2 ] || { [ $# = 2 ] && [ "$2" != --go ]; }; then
	echo "usage: lesson.sh N [--go]   (N is 1 to 9: see docs/lessons)" >&2
	exit 2
fi
for tool in go curl; do
	if ! command -v "$tool" >/dev/null; then
		echo "lesson.sh needs $tool: install it and start again" >&2
		exit 1
	fi
done
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap : INT # the test ends its nodes, then this ends
go test -c -o "$work/lesson" ./internal/e2e || exit 1
cd internal/e2e || exit 1
"$work/lesson" -test.run "^TestLessons\$/^$lesson-" -test.timeout 2h -lesson.show "$mode"
