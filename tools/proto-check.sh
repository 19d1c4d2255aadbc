#!/usr/bin/env bash
# Generates the code of api/proto into a scratch directory and compares; then, where git knows an earlier main, checks
# that no change breaks the wire format.
set -euo pipefail
cd "$(dirname "$0")/.."
buf() { go tool -modfile=tools/buf/go.mod buf "$@"; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
buf generate -o "$scratch"
if ! diff -r --exclude='*.proto' "$scratch/api/proto" api/proto; then
	echo "The generated code is not current: run 'make proto'." >&2
	exit 1
fi
if base=$(git rev-parse --verify --quiet "${BREAKING_BASE:-HEAD~1}") && git cat-file -e "$base:api/proto" 2>/dev/null; then
	mkdir "$scratch/base"
	git archive "$base" buf.yaml api/proto | tar -x -C "$scratch/base"
	buf breaking --against "$scratch/base"
fi
