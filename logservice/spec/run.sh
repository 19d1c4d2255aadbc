#!/bin/sh
# run.sh: search publication.pml for LIMIT seconds (default 45) in each of several bounds, then show that the search finds
# each mutant, within four times as long. What was not searched to the end is said to be so.
set -eu
cd "$(dirname "$0")"
for tool in spin gcc cpp; do
	command -v $tool >/dev/null || { echo "the model needs spin and gcc (Debian: apt-get install spin gcc)" >&2; exit 1; }
done
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# search NAME WANT OPTIONS...: WANT errors, 0 or 1.
search() {
	name=$1 want=$2
	shift 2
	# The long step at the beginning keeps gcc's optimizer busy for minutes.
	case "$*" in *FROM_SECOND*) optimize=-O0 ;; *) optimize=-O2 ;; esac
	# cpp, not spin: line markers inside inlines confuse spin.
	cpp -P "$@" publication.pml >"$directory/model.pml"
	(cd "$directory" && spin -a model.pml >spin.out && gcc $optimize -w -DSAFETY -DCOLLAPSE -DNOREDUCE -DMEMLIM=8000 -o pan pan.c &&
		timeout -s INT "$((${LIMIT:-45} * (1 + 3 * want)))" ./pan -m100000 -w24 >pan.out || [ -s pan.out ]) || { cat "$directory"/*.out; exit 1; }
	errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$directory/pan.out")
	end=
	if [ "$want" = 0 ] && grep -q 'Search not completed' "$directory/pan.out"; then end="; cut off"; fi
	printf '%-28s errors %s, states %s, depth %s, %s s%s%s\n' "$name" "$errors" \
		"$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$directory/pan.out")" \
		"$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' "$directory/pan.out")" \
		"$(sed -n 's/.*elapsed time \([0-9.e+]*\) seconds/\1/p' "$directory/pan.out")" \
		"$(sed -n 's/^pan:[0-9]*: \(.*\)/; \1/p' "$directory/pan.out" | head -1)" "$end"
	[ "$errors" = "$want" ] || { echo "$name: want $want errors" >&2; exit 1; }
}

three="-DN=3 -DTERMS=2 -DLENGTH=2"
terms="-DN=3 -DTERMS=3 -DLENGTH=2"
reads="$three -DREADS"
change="-DN=4 -DTERMS=2 -DLENGTH=2 -DCHANGES=1 -DCRASHES=0"
second="-DN=4 -DTERMS=1 -DLENGTH=3 -DCHANGES=2 -DCRASHES=0 -DFROM_SECOND -DREADS"

echo "Explored:"
search "read round, one entry" 0 -DN=3 -DTERMS=2 -DLENGTH=1 -DREADS -DCRASHES=0
search "joint, just committed" 0 -DN=4 -DTERMS=2 -DLENGTH=2 -DCHANGES=1 -DCRASHES=0 -DFROM_CHANGE
search "read round, two changes" 0 $second
search "two terms, a crash" 0 $three
search "three terms" 0 $terms -DCRASHES=0
search "read round" 0 $reads -DCRASHES=0
search "read round, a crash" 0 $reads
search "a voter added" 0 $change -DSIMPLE
search "joint, read round" 0 $change -DREADS

echo "Mutants:"
search "acks of other terms" 1 $three -DOTHER_TERMS
search "entry of another term" 1 -DN=3 -DTERMS=4 -DLENGTH=1 -DCRASHES=0 -DENTRY_TERM
search "end of the log acked" 1 -DN=3 -DTERMS=3 -DLENGTH=1 -DCRASHES=0 -DACK_PERSISTED
search "quorum minus one" 1 $three -DQUORUM_MINUS_ONE
search "ack before the sync" 1 $three -DACK_BEFORE_SYNC
search "restart publishes all" 1 $three -DRESTART_ALL
search "round with the commit" 1 $reads -DANSWER_COMMIT
search "fewer than a majority" 1 $reads -DFEWER
search "barrier without the leader" 1 $reads -DNO_LEADER
search "barrier of any term" 1 $reads -DANY_TERM
search "one half" 1 $change -DFROM_CHANGE -DONE_HALF
search "configuration not compared" 1 $second -DNOT_COMPARED
search "change not applied ignored" 1 -DN=4 -DTERMS=2 -DLENGTH=3 -DCHANGES=2 -DCRASHES=1 -DFROM_SECOND -DUNAPPLIED_CHANGE
