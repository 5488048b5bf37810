#!/bin/sh
# token.sh NAME RIGHT…: makes a token for a client, and prints two lines: the token, which is kept nowhere, and the
# line for the file of HTTP_TOKENS, which has its SHA-256. A right is read:PREFIX, write:PREFIX (which includes read) or
# admin (backups, restores, members); an empty prefix is for all keys, and a space or a percent sign in one is %20 or %25.
# Exit: 0 printed, 1 no random bits or no SHA-256, 2 wrong arguments.
set -eu

refuse() {
	echo "token.sh: $1" >&2
	exit 2
}
if [ $# -lt 2 ]; then refuse "usage: token.sh NAME RIGHT…, for instance token.sh alice read: write:app/"; fi
name=$1
shift
case $name in
anonymous) refuse "anonymous is the name of clients without a token: write its line, anonymous RIGHT…, by hand" ;;
'' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*)
	refuse "the name: want letters, digits, dots, dashes and underscores, the first a letter or digit" ;;
esac
if [ ${#name} -gt 64 ]; then refuse "the name: want 64 characters at most"; fi
for right in "$@"; do
	case $right in
	*[[:space:]]*) refuse "'$right': write a space in a prefix as %20" ;;
	read:* | write:* | admin) ;;
	*) refuse "'$right': want read:PREFIX, write:PREFIX or admin" ;;
	esac
done

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
token=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
hash=$(printf %s "$token" | sha256 | cut -d' ' -f1)
if [ ${#token} != 64 ] || [ ${#hash} != 64 ]; then
	echo "token.sh: 32 random bytes and their SHA-256 could not be made: it needs od, and sha256sum or shasum" >&2
	exit 1
fi
echo "$token"
echo "$name $hash $*"
