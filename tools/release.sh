#!/bin/sh
# Builds static binaries of every part for each platform, their checksums and a bill of materials, into the directory given.
# Nothing of the place or the time of the build gets into them: the same commit and version of Go give the same bytes.
# GO, VERSION and COMMIT are read from the environment; PLATFORMS ("os/arch …") may be.
set -eu
into=${1:?usage: tools/release.sh DIRECTORY}
version=${VERSION:-$(git describe --tags --always --dirty)}
commit=${COMMIT:-$(git rev-parse HEAD)}
platforms=${PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64}
package=github.com/logmirror/logmirror/internal/version
go=${GO:-go}
cd "$(dirname "$0")/.."

rm -rf "$into"
mkdir -p "$into"
into=$(cd "$into" && pwd)
for platform in $platforms; do
	for binary in logsvc frontend kvctl; do
		# No version control stamps: the commit is given, and a tree that is dirty says so in VERSION.
		CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} "$go" build -trimpath -buildvcs=false \
			-ldflags "-s -w -buildid= -X $package.version=$version -X $package.commit=$commit" \
			-o "$into/$binary-${platform%/*}-${platform#*/}" "./cmd/$binary"
	done
done
"$go" run ./tools/sbom "$version" "$into"/*-*-* >"$into/sbom.cdx.json"
cd "$into"
sha256sum -- *-*-* sbom.cdx.json >SHA256SUMS
