#!/usr/bin/env bash
# cert.sh NAME [HOST…]: makes certs/NAME, a directory for RAFT_CERT_DIR and HTTP_CERT_DIR of one node: ca.crt, node.crt
# and node.key, http.crt and http.key. HOST are the names and IP addresses by which clients reach the node, beside NAME,
# localhost and the loopback addresses. Called again, it puts new ones into the same directory, which a running node takes
# by itself. cert.sh --ca: makes only the authority, as the first call does: certs/ca.crt and certs/ca.key.
set -eu
umask 077
days=397

usage() {
	echo "usage: cert.sh NAME [HOST…]   (NAME of a node; HOST: a name or IP address by which clients reach it)" >&2
	exit 2
}
name=${1:-}
if [ "$name" = --ca ]; then
	[ $# = 1 ] || usage
elif [[ ! $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
	usage
else
	shift
fi
if ! command -v openssl >/dev/null; then
	echo "cert.sh needs openssl: install it and call this again" >&2
	exit 1
fi

names=''
for host in "$name" localhost 127.0.0.1 ::1 "$@"; do
	if [[ $host =~ ^[0-9.]+$ || $host =~ ^[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*$ ]]; then
		names+=,IP:$host
	elif [[ $host =~ ^(\*\.)?[A-Za-z0-9_][A-Za-z0-9._-]*$ && $host != node.raftkv ]]; then
		names+=,DNS:$host
	elif [ "$host" != --ca ]; then
		echo "$host: want a name or an IP address by which clients reach the node, without a port" >&2
		exit 2
	fi
done

mkdir -p certs
work=$(mktemp -d certs/.new.XXXXXX)
trap 'rm -rf "$work"' EXIT

# run COMMAND… is quiet unless the command fails.
run() {
	if ! "$@" >"$work/log" 2>&1; then
		cat "$work/log" >&2
		exit 1
	fi
}

if [ ! -e certs/ca.key ] || [ ! -e certs/ca.crt ]; then
	if [ -e certs/ca.key ] || [ -e certs/ca.crt ]; then
		echo "only one of certs/ca.key and certs/ca.crt is here: bring the other back, or move this one away for a new authority" >&2
		exit 1
	fi
	printf '%s\n' '[req]' distinguished_name=dn x509_extensions=ca '[dn]' '[ca]' subjectKeyIdentifier=hash \
		basicConstraints=critical,CA:TRUE,pathlen:0 keyUsage=critical,keyCertSign >"$work/ca.cnf"
	run openssl req -x509 -config "$work/ca.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 3650 \
		-set_serial "0x01$(openssl rand -hex 15)" -subj "/CN=raftkv authority $(openssl rand -hex 4)" \
		-keyout "$work/ca.key" -out "$work/ca.crt"
	mv "$work/ca.key" "$work/ca.crt" certs
	echo "certs/ca.crt is a new authority. Whoever has certs/ca.key can make nodes: keep it off the machines of the nodes."
fi
if [ "$name" = --ca ]; then exit; fi

if [ -e "certs/$name/ca.crt" ] && [[ $(cat "certs/$name/ca.crt") != *"$(cat certs/ca.crt)"* ]]; then
	echo "certs/$name/ca.crt is of another authority than certs/ca.crt: let all nodes trust both first (docs/operations.md, \"Certificates\")" >&2
	exit 1
fi

# issue FILE NAMES USAGES makes $work/FILE.key and .crt.
issue() {
	printf '%s\n' basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature authorityKeyIdentifier=keyid \
		"subjectAltName=$2" "extendedKeyUsage=$3" >"$work/$1.ext"
	printf '%s\n' '[req]' distinguished_name=dn '[dn]' >"$work/$1.cnf"
	run openssl req -new -config "$work/$1.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
		-subj "/CN=$name" -keyout "$work/$1.key" -out "$work/$1.csr"
	run openssl x509 -req -in "$work/$1.csr" -CA certs/ca.crt -CAkey certs/ca.key -sha256 -days "$days" \
		-set_serial "0x01$(openssl rand -hex 15)" -extfile "$work/$1.ext" -out "$work/$1.crt"
}
issue node DNS:node.raftkv serverAuth,clientAuth
issue http "${names#,}" serverAuth
mkdir -p "certs/$name"
if [ ! -e "certs/$name/ca.crt" ]; then cp certs/ca.crt "certs/$name/ca.crt"; fi
for file in node http; do # a node that reads between the two goes on with the former
	mv "$work/$file.key" "$work/$file.crt" "certs/$name"
done
echo "certs/$name has the certificates of $name, for $days days."
