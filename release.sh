#!/usr/bin/env bash
# release.sh: builds the programs and packages of a release from the commit that is checked out, reproducibly: the
# same commit, Go and nfpm (deploy/tools/go.mod) give the same bytes, on whatever machine and in whatever directory.
#
#   ./release.sh [DIR [TARGET…]]   into DIR (default: dist), for the TARGETs as goos/goarch (default: all)
#   ./release.sh --list            prints all targets
#
# DIR then holds raftkv-VERSION-GOOS-GOARCH (static; .exe for Windows), a .deb for each of linux/amd64 and
# linux/arm64, and SHA256SUMS. It must not exist, or be empty.
set -euo pipefail
cd "$(dirname "$0")"

all=(linux/amd64 linux/arm64 linux/arm linux/386 darwin/amd64 darwin/arm64 freebsd/amd64 windows/amd64)
if [ "${1:-}" = --list ]; then
	printf '%s\n' "${all[@]}"
	exit
fi
dir=${1:-dist}
if [ $# -gt 0 ]; then shift; fi
targets=("${@:-${all[@]}}")
if [ -e "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
	echo "release.sh: $dir is not empty: remove what is in it, or give another directory" >&2
	exit 1
fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# The time of the commit stands for every time: of files in a package, and of the package.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
# Environment variables that would change the code that is built.
unset GOFLAGS GOEXPERIMENT GOAMD64 GOARM GOARM64 GO386
umask 022
version=$(git describe --tags --match 'v[0-9]*' --dirty --always)
version=${version#v}
# That of a package begins with a digit and has no hyphen: before the first tag it is 0.0.0, the day and the commit.
case $version in
[0-9]*.*) deb_version=${version//-/+} ;;
*) deb_version=0.0.0+git$(git log -1 --format=%cd --date=format:%Y%m%d).${version//-/.} ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nfpm=''
for target in "${targets[@]}"; do
	goos=${target%/*} goarch=${target#*/} suffix=''
	if [ "$goos" = windows ]; then suffix=.exe; fi
	program=$dir/raftkv-$version-$goos-$goarch$suffix
	echo "release.sh: $target"
	CGO_ENABLED=0 GOOS=$goos GOARCH=$goarch go build -trimpath -buildvcs=true -ldflags '-s -w' -o "$program" .
	touch -d "@$SOURCE_DATE_EPOCH" "$program"
	case $target in linux/amd64 | linux/arm64) ;; *) continue ;; esac

	# nfpm takes files as they are: the modes and times of a checkout are whatever they happen to be.
	if [ -z "$nfpm" ]; then
		nfpm=$work/nfpm
		go build -C deploy/tools -o "$nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm
		mkdir "$work/files"
		cp deploy/raftkv.service deploy/raftkv.sysusers deploy/raftkv.env deploy/deb/* cert.sh README.md CHANGELOG.md LICENSE \
			docs/*.md "$work/files"
	fi
	cp "$program" "$work/files/raftkv"
	find "$work/files" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
	(cd "$work/files" && ARCH=$goarch VERSION=$deb_version "$nfpm" package --config nfpm.yaml --packager deb \
		--target "$dir/raftkv_${deb_version}_$goarch.deb")
	touch -d "@$SOURCE_DATE_EPOCH" "$dir/raftkv_${deb_version}_$goarch.deb"
done
(cd "$dir" && sha256sum -- raftkv* >"$work/SHA256SUMS" && cp "$work/SHA256SUMS" .)
echo "release.sh: $dir holds version $version"
