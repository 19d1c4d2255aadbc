package mutation

// mutant is a mistake that can be switched on in a copy of the log service.
type mutant struct {
	// name is what switches it on.
	name string
	// rule is what it breaks, as the table shows it.
	rule string
	// also are switched on with it.
	also []string
	// patches plant it. Patches of all mutants are made in one copy.
	patches []patch
	// profile is that of the schedules that find it soonest, within the number of them.
	profile string
	within  int
	// hidden says why it does no harm that outcomes show, where that is so: only the check of facts within finds it.
	hidden string
}

// patch replaces old, which must be there once, in a file of the log service.
type patch struct{ file, old, new string }

var mutants = []mutant{
	{name: "acks-of-other-terms", rule: "publication, rule 1: acks of any term are counted", profile: "split votes", within: 100,
		patches: []patch{{"publication.go", `ack.term == a.term`, `(ack.term == a.term || mutant("acks-of-other-terms"))`}}},
	{name: "no-reset", rule: "publication, rule 1: counts are kept over a change of term", profile: "split votes", within: 100,
		patches: []patch{{"publication.go", "case term > known.term:\n",
			"case term > known.term && mutant(\"no-reset\"):\n\t\tc.acks[voter] = voterAck{term, max(match, known.match)}\n\tcase term > known.term:\n"}}},
	{name: "entry-not-held", rule: "publication, rule 2: the member need not hold the entry", profile: "everything", within: 20,
		patches: []patch{
			{"publication.go", `min(m.acks.durable(m.quorums, term), m.log.last)`,
				`mutantDurable(m, min(m.acks.durable(m.quorums, term), m.log.last), term)`},
			{"publication.go", `err != nil || entryTerm != term {`,
				`err != nil && !mutant("entry-not-held") || err == nil && entryTerm != term && !mutant("entry-of-another-term") {`}}},
	{name: "entry-of-another-term", rule: "publication, rule 2: the entry's own term is not compared", profile: "split votes", within: 100},
	{name: "quorum-minus-one", rule: "publication, rule 3: a majority less one", profile: "everything", within: 20},
	{name: "one-half", rule: "publication, rule 3: only the incoming half of a joint configuration", profile: "halves", within: 100},
	{name: "learners-count", rule: "publication, rule 3: learners' acks are counted", profile: "configurations", within: 100},
	{name: "unapplied-change-ignored", rule: "publication, rule 4: a change that is not applied is ignored", profile: "configurations", within: 100,
		patches: []patch{{"publication.go", `m.confChanges[0] <= index {`, `m.confChanges[0] <= index && !mutant("unapplied-change-ignored") {`}}},
	{name: "restart-forgets-changes", rule: "publication, rule 4: a restarted member does not look for changes in its log", profile: "crashes",
		within: 100,
		hidden: "a member applies what its disk says is committed before it hears anybody; then at most one change lies above, since " +
			"the next one brings the commit of the one before, and neighbouring configurations have common voters in all majorities",
		patches: []patch{{"core.go", `next <= m.log.last; {`, `next <= m.log.last && !mutant("restart-forgets-changes"); {`}}},
	{name: "restart-publishes-all", rule: "a restarted member begins with all that is on its disk", profile: "crashes", within: 50,
		patches: []patch{{"entrylog.go", `published: hard.Commit}`, `published: mutantIndex("restart-publishes-all", hard.Commit, last)}`}}},
	{name: "ack-before-sync", rule: "acks leave before the sync", profile: "crashes", within: 50,
		patches: []patch{{"messages.go", "m.enqueue(message)\n", "m.enqueue(message)\n\t\t\tmutantQueued(m, message)\n"}}},
	{name: "rejections-as-acks", rule: "rejected appends are counted as acks", profile: "split votes", within: 100,
		patches: []patch{
			{"publication.go", `if response.GetReject() || `, `if response.GetReject() && !mutant("rejections-as-acks") || `},
			{"groups.go", "if response.GetReject() {\n\t\treturn acks", "if response.GetReject() && !mutant(\"rejections-as-acks\") {\n\t\treturn acks"}}},
	{name: "acks-of-the-end", rule: "acks of the end of the log on disk in place of the match index (with a raft that probes without entries)",
		also: []string{"probes-are-empty"}, profile: "split votes", within: 100,
		patches: []patch{
			{"publication.go", `MatchIndex: response.GetIndex()}`,
				`MatchIndex: mutantIndex("acks-of-the-end", response.GetIndex(), max(response.GetIndex(), m.log.stable))}`},
			{"publication.go", `if id != target {`, `if id != target || mutant("acks-of-the-end") {`},
			{"messages.go", `proto.Marshal(message)`, `proto.Marshal(mutantProbe(m, message))`}}},
	{name: "cut-within-a-group", rule: "a group holds entries and those that replace them", profile: "split votes", within: 300,
		patches: []patch{{"groups.go", `if last != 0 && entries[0].GetIndex() <= last {`,
			`if last != 0 && entries[0].GetIndex() <= last && !mutant("cut-within-a-group") {`}}},
	{name: "stable-counts-replaced", rule: "entries count as durable while those that replace them are queued", profile: "split votes",
		within: 100, patches: []patch{{"groups.go", `min(group.Entries[n-1].Index, m.uncutIndex())`,
			`mutantIndex("stable-counts-replaced", min(group.Entries[n-1].Index, m.uncutIndex()), group.Entries[n-1].Index)`}}},
	{name: "vote-before-sync", rule: "votes leave before the sync", profile: "crashes", within: 20},
	{name: "request-before-sync", rule: "a candidate asks for votes before its own is durable", profile: "configurations", within: 20,
		patches: []patch{{"messages.go", `message.GetType() == raftpb.MsgVote {`,
			`message.GetType() == raftpb.MsgVote && !mutant("request-before-sync") {`}}},
	{name: "commit-not-durable", rule: "a configuration change is applied before its commit is durable", profile: "configurations", within: 20,
		hidden:  "with groups written in order, whatever a member writes after it has applied the change lies behind the commit",
		patches: []patch{{"groups.go", `m.groups.written < next.after {`, `m.groups.written < next.after && !mutant("commit-not-durable") {`}}},
	{name: "no-panic", rule: "a published entry is replaced without a panic (with acks of any term)", also: []string{"acks-of-other-terms"},
		profile: "split votes", within: 100,
		patches: []patch{{"entrylog.go", `if first <= l.published {`, `if first <= l.published && !mutant("no-panic") {`}}},
	{name: "entries-shared", rule: "entries handed to raft share an array that is cleared", profile: "crashes", within: 300,
		patches: []patch{{"entrylog.go", `slices.Clone(limitSize(l.memory(lo, hi), maxSize))`,
			`mutantClone(slices.Clone(limitSize(l.memory(lo, hi), maxSize)), limitSize(l.memory(lo, hi), maxSize))`}}},

	{name: "configuration-not-compared", rule: "rounds: a round counts though the configuration changed since", profile: "laggards", within: 200,
		patches: []patch{{"rounds.go", `if r.confIndex != m.record.confIndex {`,
			`if r.confIndex != m.record.confIndex && !mutant("configuration-not-compared") {`}}},
	{name: "configuration-of-the-answer", rule: "rounds: the configuration is that of the answering, not of the asking", profile: "laggards",
		within: 200, patches: []patch{{"rounds.go", "if !r.known || r.index > m.log.published {",
			"mutantFinish(m, r)\n\t\tif !r.known || r.index > m.log.published && !mutant(\"answer-before-published\") {"}}},
	{name: "answer-before-published", rule: "rounds: answered before the index is published here", profile: "everything", within: 20},
	{name: "read-index", rule: "rounds: ReadIndex, with the leader's commit", profile: "everything", within: 20,
		patches: []patch{
			{"rounds.go", `if m.config.Publication == PublicationLeader {`,
				`if m.config.Publication == PublicationLeader || mutant("read-index") {`},
			{"messages.go", `m.config.Publication != PublicationLeader {`,
				`m.config.Publication != PublicationLeader && !mutant("read-index") {`}}},
	{name: "published-for-durable", rule: "nearest majority: published indexes in place of durable ones", profile: "everything", within: 20,
		patches: []patch{{"rounds.go", `DurableIndex: m.log.stable,`,
			`DurableIndex: mutantIndex("published-for-durable", m.log.stable, m.log.published),`}}},
	{name: "nearest-minus-one", rule: "nearest majority: fewer than a majority", profile: "everything", within: 20,
		patches: []patch{{"rounds.go", "if r.quorums.VoteResult(votes) == quorum.VoteWon {\n\t\t\treturn end",
			"if mutantWon(r, votes, \"nearest\") {\n\t\t\treturn end"}}},
	{name: "nearest-one-half", rule: "nearest majority: only the incoming half of a joint configuration", profile: "halves", within: 100},
	{name: "published-for-last", rule: "barrier: the leader's published index in place of its last", profile: "everything", within: 50,
		patches: []patch{{"rounds.go", `LastIndex: m.log.last,`, `LastIndex: mutantIndex("published-for-last", m.log.last, m.log.published),`}}},
	{name: "barrier-without-leader", rule: "barrier: no answer of the leader needed", profile: "two leaders", within: 100,
		patches: []patch{{"rounds.go", "\tif leader == nil {\n", "\tleader = mutantLeader(r, leader)\n\tif leader == nil {\n"}}},
	{name: "barrier-terms", rule: "barrier: terms are not compared", profile: "two leaders", within: 200,
		patches: []patch{
			{"rounds.go", `if answer.Term > leader.Term {`, `if answer.Term > leader.Term && !mutant("barrier-terms") {`},
			{"rounds.go", `if answer.Term == leader.Term {`, `if answer.Term == leader.Term || mutant("barrier-terms") {`}}},
	{name: "barrier-minus-one", rule: "barrier: fewer than a majority", profile: "two leaders", within: 100,
		patches: []patch{{"rounds.go", `return leader.LastIndex, r.quorums.VoteResult(votes) == quorum.VoteWon`,
			`return leader.LastIndex, mutantWon(r, votes, "barrier") && !mutant("no-barrier")`}}},
	{name: "barrier-one-half", rule: "barrier: only the incoming half of a joint configuration", profile: "halves", within: 200},
	{name: "never-asked-again", rule: "rounds: a question is never repeated", profile: "everything", within: 50,
		patches: []patch{
			{"rounds.go", `case m.ticks-r.askedAt >=`, `case !mutant("never-asked-again") && m.ticks-r.askedAt >=`},
			{"rounds.go", "if !r.known {\n\t\t\tm.ask(r)", "if !r.known && !mutant(\"never-asked-again\") {\n\t\t\tm.ask(r)"}}},
	{name: "no-barrier", rule: "rounds: no fallback from the nearest majority to the barrier or a fresh question",
		also: []string{"never-asked-again"}, profile: "split votes", within: 50},
	{name: "ids-repeat", rule: "rounds: ids begin anew with each life", profile: "crashes", within: 600,
		patches: []patch{{"core.go", `rounds{nextID: config.Nonce}`, `rounds{nextID: mutantIndex("ids-repeat", config.Nonce, 0)}`}}},

	{name: "log-time-by-wall-clock", rule: "log time: a term begins with the leader's wall clock", profile: "everything", within: 50,
		patches: []patch{{"core.go", `m.clock = startLogClock(stamp, m.now)`, `m.clock = mutantClock(stamp, m.now)`}}},
	{name: "log-time-from-published", rule: "log time: a term begins with the last published stamp", profile: "split votes", within: 300,
		patches: []patch{{"core.go", `for index := m.log.last; index >`,
			`for index := mutantIndex("log-time-from-published", m.log.last, m.log.published); index >`}}},
	{name: "log-time-unbounded", rule: "log time: advances without a bound", profile: "everything", within: 100,
		patches: []patch{{"logtime.go", `min(elapsed, MaxLogTimeAdvance)`, `mutantElapsed(elapsed)`}}},

	{name: "late-additions", rule: "membership: an addition counts whatever configuration it was asked under", profile: "membership", within: 100,
		patches: []patch{{"members.go", `if confIndex != m.record.confIndex {`,
			`if confIndex != m.record.confIndex && !mutant("late-additions") {`}}},

	{name: "trim-not-held", rule: "trimming: below a sealed checkpoint that the member does not hold", profile: "checkpoints", within: 50,
		patches: []patch{{"trim.go", `m.checkpoints.held[s.name] {`, `(m.checkpoints.held[s.name] || mutant("trim-not-held")) {`}}},
	{name: "one-report", rule: "checkpoints: sealed by the word of one of two builders", profile: "checkpoints", within: 100,
		patches: []patch{{"making.go", "for _, session := range request.builders {\n\t\tif reported",
			"for i, session := range request.builders {\n\t\tif i > 0 && mutant(\"one-report\") {\n\t\t\tbreak\n\t\t}\n\t\tif reported"}}},
	{name: "sealed-unheld", rule: "checkpoints: sealed before majorities hold the bytes", profile: "checkpoints", within: 50,
		hidden:  "a checkpoint that is too few is copied further, and its loss needs the loss of disks",
		patches: []patch{{"making.go", `ok && m.majorityHolds(name) && quiet`, `ok && (m.majorityHolds(name) || mutant("sealed-unheld")) && quiet`}}},
	{name: "install-without-entries", rule: "snapshots: the entries above the checkpoint are not installed", profile: "checkpoints", within: 50,
		patches: []patch{{"snapshot.go", `Base: s.checkpoint.point.index,`,
			`Base: mutantIndex("install-without-entries", s.checkpoint.point.index, s.index),`}}},
}
