#!/bin/sh
# Runs the Go benchmarks of this checkout and of a base commit in turns, so that what else the machine does meets both, and
# compares them with benchstat. Arguments: packages.
set -eu
: "${GO:=go}" "${BENCH:=.}" "${COUNT:=6}"
[ -n "${BASE:-}" ] || { echo "bench-compare: say BASE=COMMIT" >&2; exit 2; }
[ -n "$BENCH" ] || BENCH=.
[ -n "$COUNT" ] || COUNT=6

here=$(git rev-parse --show-toplevel)
work=$(mktemp -d)
trap 'git -C "$here" worktree remove --force "$work/base" 2>/dev/null; rm -rf "$work"' EXIT INT TERM
git -C "$here" worktree add --quiet --detach "$work/base" "$BASE"

for round in $(seq "$COUNT"); do
	echo "round $round of $COUNT" >&2
	(cd "$work/base" && "$GO" test -run '^$' -bench "$BENCH" -benchmem "$@") >>"$work/base.txt" || true # a package may be new
	(cd "$here" && "$GO" test -run '^$' -bench "$BENCH" -benchmem "$@") >>"$work/now.txt"
done
"$GO" tool -modfile="$here/tools/bench/go.mod" benchstat "base=$work/base.txt" "now=$work/now.txt"
