#!/bin/sh
# Builds a release of the present commit in two checkouts at different places, and compares every byte.
set -eu
cd "$(dirname "$0")/.."
commit=$(git rev-parse HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for place in one two/deeper; do
	mkdir -p "$work/$place"
	git archive "$commit" | tar -x -C "$work/$place"
	COMMIT=$commit "$work/$place/tools/release.sh" "$work/$place/dist"
done
diff "$work/one/dist/SHA256SUMS" "$work/two/deeper/dist/SHA256SUMS"
(cd "$work/one/dist" && sha256sum --check --quiet SHA256SUMS)
echo "two builds of $commit are equal, byte by byte"
