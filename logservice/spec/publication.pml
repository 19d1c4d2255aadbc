/*
 * Early publication and read rounds, with one change of the configuration: what SAFETY.md argues, for spin to search.
 *
 * One process takes one atomic step at a time. There are no messages: a step of replication compares a leader's log with a
 * follower's and hands on one entry or none. An election is one step. Terms are durable when taken; entries and the known
 * commit index are durable after a flush. A crash loses what was not flushed.
 *
 * Acks are what each voter has ever said in each term. They reach everybody at once, and everybody publishes at once: nothing
 * but assertions depends on what is published, so whoever hears less or later publishes no more than is published here. What
 * the leader knows to be committed, and its followers learn, is a step of its own: it may be late.
 *
 * The change is C0 = {0,1,2} -> C1 -> C2, made by two entries as raft makes a joint change: C1 needs majorities of both
 * {0,1,2} and {0,2,3}, C2 is {0,2,3}. With -DSIMPLE, C1 is {0,1,2,3} and there is no C2. With -DGROW there are three members:
 * C0 is {0,1}, C1 is {0,1,2} and there is no C2.
 *
 * Bounds: N members, TERMS elections, LENGTH entries, CRASHES crashes, one read round (READS) by member ASKER; CHANGES says how
 * many of the two entries there may be. -DFROM_CHANGE begins where C1 has just been committed, -DFROM_SECOND where C2 has been,
 * by the leader and member 2, and members 1 and 3 have heard of neither change. Mutants are switched on by -D, see run.sh.
 */
#ifndef N
#define N 4
#endif
#ifndef TERMS
#define TERMS 2
#endif
#ifndef LENGTH
#define LENGTH 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef ASKER
#define ASKER 1
#endif
#ifndef CHANGES
#define CHANGES 0
#endif
#define SLOTS (LENGTH + 1) /* index 0 is unused */

/* An entry is its term, and CHANGE * k where it makes Ck. */
#define CHANGE 8
#define TERM_OF(e) ((e) % CHANGE)

typedef member { byte log[SLOTS]; byte ack[TERMS + 1] }
member m[N];
byte term[N], size[N], durable[N], match[N], commit[N], durableCommit[N];
bool leads[N];
byte lastTerm;               /* of all elections so far */
byte published[SLOTS];       /* by anybody; 0 for not yet */
byte highest;                /* of published */
byte crashes;
#ifdef READS
byte phase;                  /* of the round: not asked, asked, over */
byte floor;                  /* highest when it was asked */
byte askedConf, askerPublished;
bool answered[N], answerLeads[N];
byte answerTerm[N], answerLast[N], answerDurable[N];
#endif

/* Scratch. */
hidden byte i, j, k, x, y, z, conf, result, bits;
hidden byte ok;

#define BIT(s) (1 << (s))
#define HAS(set, s) (((set) >> (s)) & 1)
#define COUNT(set) (HAS(set, 0) + HAS(set, 1) + HAS(set, 2) + HAS(set, 3))
#define OF3(set, a, b, c) (HAS(set, a) + HAS(set, b) + HAS(set, c))
#ifdef QUORUM_MINUS_ONE
#define NEED 1
#else
#define NEED 2
#endif
#ifdef GROW
#define MAJORITY_C0(set, need) (HAS(set, 0) + HAS(set, 1) >= (need))
#else
#define MAJORITY_C0(set, need) (OF3(set, 0, 1, 2) >= (need))
#endif
#define MAJORITY_C2(set, need) (OF3(set, 0, 2, 3) >= (need))
#ifdef SIMPLE
#define MAJORITY_C1(set, need) (COUNT(set) >= (need) + 1)
#else
#ifdef GROW
#define MAJORITY_C1(set, need) (OF3(set, 0, 1, 2) >= (need))
#else
#define MAJORITY_C1(set, need) (MAJORITY_C0(set, need) && MAJORITY_C2(set, need))
#endif
#endif
#define MAJORITY(c, set, need) ((c) == 0 && MAJORITY_C0(set, need) || (c) == 1 && MAJORITY_C1(set, need) || (c) == 2 && MAJORITY_C2(set, need))
#ifdef ONE_HALF
#define COUNTED(c, set, need) ((c) == 1 && MAJORITY_C2(set, need) || (c) != 1 && MAJORITY(c, set, need))
#else
#define COUNTED(c, set, need) MAJORITY(c, set, need)
#endif
#ifdef SIMPLE
#define VOTER(c, s) ((s) < 3 || (c) == 1)
#else
#ifdef GROW
#define VOTER(c, s) ((s) < 2 || (c) == 1)
#else
#define VOTER(c, s) ((c) == 0 && (s) < 3 || (c) == 1 || (c) == 2 && (s) != 1)
#endif
#endif

/* conf becomes what a member has applied. */
#ifdef COMMIT_NOT_DURABLE
#define APPLIED(s) commit[s]
#else
#define APPLIED(s) durableCommit[s]
#endif
inline configuration(s) {
	conf = 0; i = 1;
	do
	:: i <= size[s] && i <= APPLIED(s) -> if :: m[s].log[i] >= CHANGE -> conf = m[s].log[i] / CHANGE :: else fi; i++
	:: else -> break
	od
}

/* result becomes the highest index that a member may publish by its own count, with conf as configuration(s) gives it. */
inline publishable(s) {
	configuration(s);
	result = 0; i = size[s];
	do
	:: i == 0 -> break
	:: else ->
		bits = 0; j = 0;
		do
		:: j < N ->
#ifdef OTHER_TERMS
			k = 1; do :: k <= TERMS -> if :: m[j].ack[k] >= i -> bits = bits | BIT(j) :: else fi; k++ :: else -> break od;
#else
			if :: m[j].ack[term[s]] >= i -> bits = bits | BIT(j) :: else fi;
#endif
			j++
		:: else -> break
		od;
		ok = term[s] > 0 && COUNTED(conf, bits, NEED);
#ifndef ENTRY_TERM
		ok = ok && TERM_OF(m[s].log[i]) == term[s];
#endif
#ifndef UNAPPLIED_CHANGE
		k = APPLIED(s) + 1;
		do :: k <= i -> if :: m[s].log[k] >= CHANGE -> ok = false :: else fi; k++ :: else -> break od;
#endif
		if :: ok -> result = i; break :: else -> i-- fi
	od;
	if
	:: result < durableCommit[s] -> result = durableCommit[s]
	:: else
	fi
}

inline publish(s) {
	i = 1;
	do
	:: i <= result ->
		assert(published[i] == 0 || published[i] == m[s].log[i]); /* two entries published at one index */
		published[i] = m[s].log[i];
		i++
	:: else -> break
	od;
	if :: highest < result -> highest = result :: else fi
}

/* A log is cut: nothing published may go. */
inline cutAbove(s, keep) {
	i = keep + 1;
	do
	:: i <= size[s] ->
		assert(i > durable[s] || published[i] == 0 || published[i] != m[s].log[i]); /* a published entry is replaced */
		m[s].log[i] = 0; i++
	:: else -> break
	od;
	size[s] = keep
}

/* ok tells whether c's log is at least as up to date as v's. */
#define LAST(s) TERM_OF(m[s].log[size[s]])
#define UP_TO_DATE(c, v) (LAST(c) > LAST(v) || LAST(c) == LAST(v) && size[c] >= size[v])

/* c is elected by set, which holds c. */
#define ELECT(c, set) \
	:: d_step { lastTerm < TERMS && \
	   (!HAS(set, 0) || UP_TO_DATE(c, 0)) && (!HAS(set, 1) || UP_TO_DATE(c, 1)) && \
	   (!HAS(set, 2) || UP_TO_DATE(c, 2)) && (N < 4 || !HAS(set, N - 1) || UP_TO_DATE(c, N - 1)) -> \
		elect(c, set); settle() }

inline elect(c, set) {
	configuration(c);
	i = APPLIED(c) + 1; ok = MAJORITY(conf, set, 2);
	do :: i <= commit[c] -> if :: m[c].log[i] >= CHANGE -> ok = false :: else fi; i++ :: else -> break od;
	if
	:: ok ->
		lastTerm++;
		i = 0;
		do
		:: i < N -> if :: HAS(set, i) -> term[i] = lastTerm; leads[i] = false; match[i] = 0 :: else fi; i++
		:: else -> break
		od;
		leads[c] = true; match[c] = size[c];
		i = 1;
		do
		:: i <= LENGTH -> assert(published[i] == 0 || published[i] == m[c].log[i]); i++ /* a leader holds what is published */
		:: else -> break
		od
	:: else
	fi
}

inline appendEntry(l, e) { size[l]++; m[l].log[size[l]] = e; match[l] = size[l] }

/* A leader may append a change where none is under way: ok. k is the one that comes next. */
inline changeable(l) {
	k = 1; i = 1; ok = true;
	do
	:: i <= size[l] ->
		if :: m[l].log[i] >= CHANGE -> k = m[l].log[i] / CHANGE + 1; ok = ok && i <= APPLIED(l) :: else fi; i++
	:: else -> break
	od;
	if :: k > CHANGES -> ok = false :: else fi
}

/* x becomes the length of what two logs have in common. */
inline common(l, f) {
	x = 0;
	do
	:: x < size[l] && x < size[f] && m[l].log[x + 1] == m[f].log[x + 1] -> x++
	:: else -> break
	od
}

/* The leader l gives f its next entry (more), or compares what they have. */
inline replicate(l, f, more) {
	common(l, f);
	if :: term[f] < term[l] -> match[f] = 0 :: else fi;
	term[f] = term[l]; leads[f] = false;
	if
	:: more && x < size[l] ->
		if
		:: x < size[f] -> cutAbove(f, x); if :: durable[f] > x -> durable[f] = x :: else fi
		:: else
		fi;
		x++; size[f] = x; m[f].log[x] = m[l].log[x]
	:: else
	fi;
	if :: match[f] < x -> match[f] = x :: else fi;
	/* The commit index travels with it. */
	y = commit[l];
	if :: y > x -> y = x :: else fi;
	if :: commit[f] < y -> commit[f] = y :: else fi
}
#define CAN_REPLICATE(l, f) (leads[l] && term[f] <= term[l])

inline acknowledge(s) {
#ifdef ACK_BEFORE_SYNC
	x = match[s];
#else
#ifdef ACK_PERSISTED
	x = durable[s];
#else
	x = match[s];
	if :: x > durable[s] -> x = durable[s] :: else fi;
#endif
#endif
	if :: term[s] > 0 && m[s].ack[term[s]] < x -> m[s].ack[term[s]] = x :: else fi
}

/* The leader commits by its own count what is of its term. */
inline commitEntries(l) {
	configuration(l);
	y = size[l];
	do
	:: y > commit[l] && TERM_OF(m[l].log[y]) == term[l] ->
		bits = 0; j = 0;
		do :: j < N -> if :: m[j].ack[term[l]] >= y -> bits = bits | BIT(j) :: else fi; j++ :: else -> break od;
		if
		:: MAJORITY(conf, bits, 2) -> commit[l] = y; break
		:: else -> y--
		fi
	:: else -> break
	od
}

inline crash(s) {
	crashes++;
	cutAbove(s, durable[s]);
	leads[s] = false; match[s] = 0; commit[s] = durableCommit[s];
#ifdef RESTART_ALL
	result = durable[s]; publish(s);
#endif
#ifdef READS
	if :: s == ASKER -> if :: phase == 1 -> phase = 2 :: else fi; askerPublished = durableCommit[s] :: else fi
#endif
}

#ifdef READS
inline answer(s) {
	answered[s] = true; answerLeads[s] = leads[s]; answerTerm[s] = term[s]; answerLast[s] = size[s]; answerDurable[s] = durable[s];
#ifdef ANSWER_COMMIT
	answerLast[s] = commit[s]; answerDurable[s] = commit[s];
#endif
}

#ifdef FEWER
#define ANSWERS 1
#else
#define ANSWERS 2
#endif

/* A round with index x: over if the asker has published x. */
inline over(x) {
	if
	:: askerPublished >= x ->
		configuration(ASKER);
#ifndef NOT_COMPARED
		if :: conf == askedConf -> assert(x >= floor) /* a round below what was published */ :: else fi;
#else
		assert(x >= floor);
#endif
		phase = 2
	:: else
	fi
}

inline nearest() {
	y = 0;
	do
	:: y <= LENGTH ->
		bits = 0; j = 0;
		do
		:: j < N -> if :: answered[j] && VOTER(askedConf, j) && answerDurable[j] <= y -> bits = bits | BIT(j) :: else fi; j++
		:: else -> break
		od;
		if :: COUNTED(askedConf, bits, ANSWERS) -> break :: else -> y++ fi
	:: else -> break
	od;
	if :: y <= LENGTH -> over(y) :: else fi
}

inline barrier() {
	/* k is the leader of the latest term among those that answered. */
	k = N; j = 0;
	do
	:: j < N ->
#ifdef NO_LEADER
		ok = answered[j];
#else
		ok = answered[j] && answerLeads[j];
#endif
		if :: ok -> if :: k == N -> k = j :: else -> if :: answerTerm[j] > answerTerm[k] -> k = j :: else fi fi :: else fi; j++
	:: else -> break
	od;
	if
	:: k < N ->
		bits = 0; j = 0; ok = true;
		do
		:: j < N ->
			if
			:: answered[j] && VOTER(askedConf, j) ->
#ifdef ANY_TERM
				bits = bits | BIT(j);
#else
				if :: answerTerm[j] == answerTerm[k] -> bits = bits | BIT(j) :: else fi;
				if :: answerTerm[j] > answerTerm[k] -> ok = false :: else fi;
#endif
			:: else
			fi;
			j++
		:: else -> break
		od;
		if :: ok && COUNTED(askedConf, bits, ANSWERS) -> y = answerLast[k]; over(y) :: else fi
	:: else
	fi
}
#endif

/* After each step: say, publish and answer all that can be. */
inline settle() {
	z = 0;
	do :: z < N -> acknowledge(z); z++ :: else -> break od;
	z = 0;
	do
	:: z < N ->
		publishable(z); publish(z);
#ifdef READS
		if :: z == ASKER && result > askerPublished -> askerPublished = result :: else fi;
#endif
		z++
	:: else -> break
	od;
#ifdef READS
	if :: phase == 1 -> nearest() :: else fi;
	if :: phase == 1 -> barrier() :: else fi;
	if
	:: phase == 2 -> /* what it knew makes no difference any more */
		z = 0;
		do
		:: z < N -> answered[z] = false; answerLeads[z] = false; answerTerm[z] = 0; answerLast[z] = 0; answerDurable[z] = 0; z++
		:: else -> break
		od;
		floor = 0; askedConf = 0; askerPublished = 0
	:: else
	fi;
#endif
	skip
}

#define MEMBER(s) \
	:: d_step { leads[s] && size[s] < LENGTH -> appendEntry(s, term[s]); settle() } \
	:: d_step { leads[s] && size[s] < LENGTH && CHANGES > 0 -> changeable(s); if :: ok -> appendEntry(s, term[s] + CHANGE * k) :: else fi; settle() } \
	:: d_step { durable[s] < size[s] || durableCommit[s] < commit[s] -> durable[s] = size[s]; durableCommit[s] = commit[s]; settle() } \
	:: d_step { leads[s] && commit[s] < size[s] -> commitEntries(s); settle() } \
	:: d_step { crashes < CRASHES && (durable[s] < size[s] || leads[s] || match[s] > 0) -> crash(s); settle() }

#define PAIR(l, f) \
	:: d_step { CAN_REPLICATE(l, f) -> replicate(l, f, true); settle() } \
	:: d_step { CAN_REPLICATE(l, f) -> replicate(l, f, false); settle() }

#define ANSWER(s) \
	:: d_step { phase == 1 && !answered[s] && VOTER(askedConf, s) -> answer(s); settle() }

init {
#ifdef FROM_CHANGE
	/* The first leader alone knows that the change to C1 is committed, by itself and member 1. */
	d_step {
		elect(0, 3); appendEntry(0, 1 + CHANGE); durable[0] = 1; replicate(0, 1, true); durable[1] = 1; settle();
		commitEntries(0); durableCommit[0] = commit[0]; settle()
	}
#endif
#ifdef FROM_SECOND
	d_step {
		elect(0, 3); appendEntry(0, 1 + CHANGE); durable[0] = 1; replicate(0, 2, true); durable[2] = 1; settle();
		commitEntries(0); durableCommit[0] = commit[0]; settle();
		appendEntry(0, 1 + CHANGE * 2); durable[0] = 2; replicate(0, 2, true); durable[2] = 2; settle();
		commitEntries(0); durableCommit[0] = commit[0]; replicate(0, 2, false); durableCommit[2] = commit[2]; settle();
		assert(durableCommit[0] == 2 && durableCommit[2] == 2)
	}
#endif
end:
	do
	ELECT(0, 3) ELECT(0, 5) ELECT(0, 7) ELECT(1, 3) ELECT(1, 6) ELECT(1, 7) ELECT(2, 5) ELECT(2, 6) ELECT(2, 7)
	MEMBER(0) MEMBER(1) MEMBER(2)
	PAIR(0, 1) PAIR(0, 2) PAIR(1, 0) PAIR(1, 2) PAIR(2, 0) PAIR(2, 1)
#if N > 3
	ELECT(0, 9) ELECT(0, 11) ELECT(0, 13) ELECT(0, 15) ELECT(1, 11) ELECT(1, 14) ELECT(1, 15)
	ELECT(2, 12) ELECT(2, 13) ELECT(2, 14) ELECT(2, 15) ELECT(3, 9) ELECT(3, 11) ELECT(3, 12) ELECT(3, 13) ELECT(3, 14) ELECT(3, 15)
	MEMBER(3)
	PAIR(0, 3) PAIR(1, 3) PAIR(2, 3) PAIR(3, 0) PAIR(3, 1) PAIR(3, 2)
#endif
#ifdef READS
	:: d_step { phase == 0 && highest > 0 -> phase = 1; floor = highest; configuration(ASKER); askedConf = conf; settle() }
	ANSWER(0) ANSWER(1) ANSWER(2)
#if N > 3
	ANSWER(3)
#endif
#endif
	od
}
