#!/bin/sh
# run.sh: explore publication.pml within bounds of minutes, then show that the search finds each mutant.
# "run.sh quick" leaves out the two larger explorations.
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
	# cpp, not spin: line markers inside inlines confuse spin.
	cpp -P "$@" publication.pml >"$directory/model.pml"
	(cd "$directory" && spin -a model.pml >spin.out && gcc -O2 -w -DSAFETY -DCOLLAPSE -DNOREDUCE -DMEMLIM=8000 -o pan pan.c &&
		./pan -m100000 -w24 >pan.out) || { cat "$directory"/*.out; exit 1; }
	errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$directory/pan.out")
	complete=yes
	! grep -q 'Search not completed' "$directory/pan.out" || complete=no
	printf '%-28s errors %s, states %s, depth %s, %s s%s\n' "$name" "$errors" \
		"$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$directory/pan.out")" \
		"$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' "$directory/pan.out")" \
		"$(sed -n 's/.*elapsed time \([0-9.e+]*\) seconds/\1/p' "$directory/pan.out")" \
		"$(sed -n 's/^pan:[0-9]*: \(.*\)/; \1/p' "$directory/pan.out" | head -1)"
	[ "$errors" = "$want" ] || { echo "$name: want $want errors" >&2; exit 1; }
	[ "$want" = 1 ] || [ $complete = yes ] || { echo "$name: the search was cut off" >&2; exit 1; }
}

fixed="-DN=3 -DTERMS=3 -DLENGTH=2"
reads="-DN=3 -DTERMS=2 -DLENGTH=2 -DREADS"
change="-DN=4 -DTERMS=2 -DLENGTH=2 -DCHANGES=1"
joint="-DN=4 -DTERMS=2 -DLENGTH=3 -DCHANGES=2 -DCRASHES=0"

echo "Explored:"
search "fixed configuration" 0 $fixed
search "read round" 0 $reads
search "one voter added" 0 $change -DSIMPLE -DCRASHES=0
search "into a joint one" 0 $change -DCRASHES=0
if [ "${1:-}" != quick ]; then
	search "joint, and reads" 0 $change -DREADS -DCRASHES=0
	search "joint, in and out" 0 $joint
fi

echo "Mutants:"
search "acks of other terms" 1 $fixed -DOTHER_TERMS
search "entry of another term" 1 $fixed -DENTRY_TERM
search "quorum minus one" 1 $fixed -DQUORUM_MINUS_ONE
search "ack before the sync" 1 $fixed -DACK_BEFORE_SYNC
search "restart publishes all" 1 $fixed -DRESTART_ALL
search "persisted, not match index" 1 $fixed -DLENGTH=3 -DACK_PERSISTED
search "one half" 1 $joint -DONE_HALF
search "unapplied change ignored" 1 $joint -DREADS -DUNAPPLIED_CHANGE
search "round with the commit" 1 $reads -DANSWER_COMMIT
search "fewer than a majority" 1 $reads -DFEWER
search "barrier without the leader" 1 $reads -DNO_LEADER
search "barrier of any term" 1 $reads -DANY_TERM
search "configuration not compared" 1 $joint -DREADS -DNOT_COMPARED
