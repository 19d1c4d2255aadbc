package mutation

const sm = "statemachine"

var stateMachineMutants = []mutant{
	{name: "batch-whatever-seq", rule: "apply takes a batch whatever its seq", profile: "everything", within: 3, quick: true,
		tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/session.go", `if envelope.Seq != s.LastSeq+1 {`,
			`if envelope.Seq != s.LastSeq+1 && !mutant.On("batch-whatever-seq") {`}}},
	{name: "ended-session-applies", rule: "a batch of a session that has ended is applied", profile: "sessions", within: 10,
		tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/session.go", "\ts.ended = true\n\tdelete(t.open, s.ID)\n",
			"\tif s.ended = !mutant.On(\"ended-session-applies\"); s.ended {\n\t\tdelete(t.open, s.ID)\n\t}\n"}}},
	{name: "incarnation-again", rule: "an Open of an incarnation that had one is taken", unseen: "a mirror opens again what was skipped, and goes on",
		tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/session.go", `ok && open.Incarnation <= f.incarnation {`,
			`ok && open.Incarnation <= f.incarnation && !mutant.On("incarnation-again") {`}}},
	{name: "open-of-an-old-build", rule: "an Open of a build that does not understand the version in force is taken",
		unseen: "its process comes to the gate first, and ends", tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/session.go", `if m.applyVersion < lowest || m.applyVersion > highest {`,
			`if (m.applyVersion < lowest || m.applyVersion > highest) && !mutant.On("open-of-an-old-build") {`}}},
	{name: "open-from-a-fence", rule: "an Open from a fenced region is taken", tests: []unit{{sm, "TestTranscripts"}},
		unseen: "no frontend asks while it knows of the fence",
		patches: []patch{{"statemachine/session.go", `if m.regions[open.Region] == RegionFenced {`,
			`if m.regions[open.Region] == RegionFenced && !mutant.On("open-from-a-fence") {`}}},
	{name: "fence-keeps-sessions", rule: "a fence leaves the region's sessions open", profile: "sessions", within: 5, tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/region.go", `if state != RegionFenced {`,
			`if state != RegionFenced || mutant.On("fence-keeps-sessions") {`}}},
	{name: "log-time-goes-back", rule: "log time goes back with a stamp", tests: []unit{{sm, "TestTranscripts"}},
		unseen: "stamps of the log service never go back",
		patches: []patch{{"statemachine/machine.go", `m.logTime = max(m.logTime, int64(stamp))`,
			`m.logTime = mutant.Pick("log-time-goes-back", max(m.logTime, int64(stamp)), int64(stamp))`}}},
	{name: "gate-whatever-sessions", rule: "the gate of an apply version is passed whatever open sessions understand", profile: "versions",
		within: 20, tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/command.go", `if m.sessions.open[id].ApplyVersionMax < r.ApplyVersion {`,
			`if m.sessions.open[id].ApplyVersionMax < r.ApplyVersion && !mutant.On("gate-whatever-sessions") {`}}},
	{name: "past-an-unknown-gate", rule: "a frontend goes on past a gate that it does not know", profile: "versions", within: 20,
		tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/command.go", `if r.ApplyVersion > m.understands {`,
			`if r.ApplyVersion > m.understands && !mutant.On("past-an-unknown-gate") {`}}},
	{name: "newer-state-restored", rule: "a state from beyond the gate is restored by a build that does not know it", profile: "versions",
		within: 20, tests: []unit{{sm, "TestRestorerRefuses"}},
		patches: []patch{{"statemachine/restore.go", `case versions.ApplyVersion > understands:`,
			`case versions.ApplyVersion > understands && !mutant.On("newer-state-restored"):`}}},

	{name: "outcome-dropped", rule: "the outcome of a request id is dropped while it may be asked for again", profile: "everything", within: 10,
		tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{
			{"statemachine/requestid.go", `for forgotten := 0; int64(t.len()) > bound && forgotten < 2; forgotten++ {`,
				`for forgotten := 0; int64(t.len()) > mutant.Pick("outcome-dropped", bound, 2) && forgotten < 2; forgotten++ {`},
			{"statemachine/requestid.go", `t.horizon = max(t.horizon, oldest.index)`,
				`if !mutant.On("outcome-dropped") && !mutant.On("no-horizon") {
		t.horizon = max(t.horizon, oldest.index)
	}`}}},
	{name: "no-horizon", rule: "a request id that was forgotten is applied again", tests: []unit{{sm, "TestTranscripts"}},
		unseen: "ids are remembered for longer than it runs"},
	{name: "id-of-another-command", rule: "a request id answers another command than it was used for", tests: []unit{{sm, "TestTranscripts"}},
		unseen:  noSuch,
		patches: []patch{{"statemachine/requestid.go", `if known.hash != hash {`, `if known.hash != hash && !mutant.On("id-of-another-command") {`}}},

	{name: "compares-before-the-entry", rule: "comparisons see the state before the entry, not before the transaction", profile: "everything",
		within: 10, tests: []unit{{sm, "TestTranscripts|TestAgainstModel"}},
		patches: []patch{{"statemachine/txn.go", "path := choosePath(&view, t)\n",
			`if mutant.On("compares-before-the-entry") {
		before := m.space.Acquire()
		defer before.Release()
		view = *before
	}
	path := choosePath(&view, t)
`}}},
	{name: "nested-compares-late", rule: "comparisons of a nested transaction see the writes before it", tests: []unit{{sm, "TestTranscripts|TestAgainstModel"}},
		unseen: noSuch,
		patches: []patch{{"statemachine/txn.go", "\t\t\tvar err error\n\t\t\tif r.Txn, err = m.executePath(e, w, nested[0], wanted); err != nil {",
			`			if mutant.On("nested-compares-late") {
				view := m.space.WriterView()
				if late := choosePath(&view, o.Txn); len(nested[0].mutations) == 0 {
					nested[0] = late
				}
			}
			var err error
			if r.Txn, err = m.executePath(e, w, nested[0], wanted); err != nil {`}}},
	{name: "last-compare-decides", rule: "a comparison that fails is made up for by a later one", tests: []unit{{sm, "TestTranscripts|TestAgainstModel"}},
		unseen: "its transactions have one comparison",
		patches: []patch{{"statemachine/txn.go", "p.succeeded, p.operations = false, t.Failure\n\t\t\tbreak\n\t\t}\n",
			"p.succeeded, p.operations = false, t.Failure\n\t\t\tif !mutant.On(\"last-compare-decides\") {\n\t\t\t\tbreak\n\t\t\t}\n\t\t} else if mutant.On(\"last-compare-decides\") {\n\t\t\tp.succeeded, p.operations = true, t.Success\n\t\t}\n"}}},
	{name: "delete-includes-end", rule: "a range delete takes the end of the range too", tests: []unit{{sm, "TestTranscripts|TestAgainstModel"}}, quick: true,
		unseen: noSuch,
		patches: []patch{{"statemachine/command.go", `_ = view.Range(d.Key, rangeEnd(d.RangeEnd), 0, func(v keyspace.Version) bool {`,
			`end := rangeEnd(d.RangeEnd)
		if end != nil && mutant.On("delete-includes-end") {
			end = append(append([]byte(nil), end...), 0)
		}
		_ = view.Range(d.Key, end, 0, func(v keyspace.Version) bool {`}}},
	{name: "deleted-key-on-its-lease", rule: "a key that was deleted still hangs on its lease", profile: "everything", within: 10,
		tests: []unit{{sm, "TestTranscripts|TestAgainstModel"}},
		patches: []patch{{"statemachine/command.go", "\tif previous.Lease != 0 {\n\t\tm.leases.Detach(previous.Lease, key)",
			"\tif previous.Lease != 0 && !mutant.On(\"deleted-key-on-its-lease\") {\n\t\tm.leases.Detach(previous.Lease, key)"}}},
	{name: "add-wraps", rule: "an add beyond the largest number wraps around", unseen: noSuch, tests: []unit{{sm, "TestTranscripts|TestAgainstModel"}},
		patches: []patch{{"statemachine/mutate.go", `if (sum > have) != (change.Add > 0) && change.Add != 0 {`,
			`if (sum > have) != (change.Add > 0) && change.Add != 0 && !mutant.On("add-wraps") {`}}},
	{name: "quota-not-checked", rule: "the quota is not checked", unseen: noSuch, tests: []unit{{sm, "TestTranscripts"}},
		patches: []patch{{"statemachine/compaction.go", `if cost == 0 || m.size()+cost <= m.settings.QuotaBytes {`,
			`if cost == 0 || m.size()+cost <= m.settings.QuotaBytes || mutant.On("quota-not-checked") {`}}},
	{name: "digest-without-leases", rule: "the digest leaves the leases out", unseen: "states do not differ by themselves",
		tests: []unit{{sm, "TestDigestTellsDamagedTables"}},
		patches: []patch{{"statemachine/digest.go", `Leases: m.leases.Digest(), Requests:`,
			`Leases: mutant.Pick("digest-without-leases", m.leases.Digest(), 0), Requests:`}}},
	{name: "digest-without-sessions", rule: "the digest leaves the sessions out", unseen: "states do not differ by themselves",
		tests: []unit{{sm, "TestDigestTellsStatesApart|TestDigestTellsDamagedTables|TestDigestsOfEqualStatesAreEqual"}},
		patches: []patch{{"statemachine/digest.go", `if f.open != nil {
			tables +=`, `if f.open != nil && !mutant.On("digest-without-sessions") {
			tables +=`}}},
	{name: "restore-drops-leases", rule: "restore drops leases that are orphans", profile: "checkpoints", within: 10,
		tests: []unit{{sm, "TestRestoredMachineGoesOnEqually"}},
		patches: []patch{
			{"statemachine/restore.go", `return r.machine.leases.Restore(info)`, `if info.Orphaned && mutant.On("restore-drops-leases") {
		r.state.Leases--
		return nil
	}
	return r.machine.leases.Restore(info)`},
			{"statemachine/restore.go", `digest != r.state.Digest {`, `digest != r.state.Digest && !mutant.On("restore-drops-leases") {`}}},
	{name: "restore-hangs-no-keys", rule: "restore hangs no keys on their leases", profile: "processes", within: 10, quick: true,
		tests: []unit{{sm, "TestRestoredMachineGoesOnEqually"}},
		patches: []patch{{"statemachine/restore.go", "\tif err := r.attach(); err != nil {",
			"\tif err := r.attach(); err != nil && !mutant.On(\"restore-hangs-no-keys\") {"},
			{"statemachine/restore.go", `if v.Lease != 0 && !m.leases.Attach(v.Lease, v.Key) {`,
				`if v.Lease != 0 && !mutant.On("restore-hangs-no-keys") && !m.leases.Attach(v.Lease, v.Key) {`}}},
	{name: "restore-forgets-the-horizon", rule: "restore forgets which request ids are too old", unseen: "ids are remembered for longer than it runs",
		tests: []unit{{sm, "TestRestoredMachineGoesOnEqually"}},
		patches: []patch{{"statemachine/restore.go", `m.noSpace, m.requests.horizon = s.NoSpace, s.RequestHorizon`,
			`m.noSpace, m.requests.horizon = s.NoSpace, mutant.Pick("restore-forgets-the-horizon", s.RequestHorizon, 0)`}}},
}

const ks = "statemachine/keyspace"

var keySpaceMutants = []mutant{
	{name: "compaction-eats-live", rule: "a compaction takes away a version that is live at its revision", unseen: "nobody reads an older revision",
		tests: []unit{{ks, "TestAgainstModel|TestRevisionsAreEtcds"}},
		patches: []patch{{"statemachine/keyspace/compact.go", `v.at(c.cursor).main > c.target {`,
			`v.at(c.cursor).main > mutant.Pick("compaction-eats-live", c.target, c.target+1) {`},
			{"statemachine/keyspace/compact.go", `s.slots.at(prev).main.Load() < c.target {`,
				`(s.slots.at(prev).main.Load() < c.target || mutant.On("compaction-eats-live")) {`}}},
	{name: "compaction-waits-for-nobody", rule: "what was compacted is freed while a reader holds an older state", unseen: "its reads end at once",
		tests: []unit{{ks, "TestAgainstModel|TestReadersBesideWriter|TestRemovedKeyWaitsForReaders|TestHistoryEndsAtTheSnapshot"}},
		patches: []patch{{"statemachine/keyspace/compact.go", `if c.waiting == 0 || !e.passed(c.waitingEpoch) {`,
			`if c.waiting == 0 || !e.passed(c.waitingEpoch) && !mutant.On("compaction-waits-for-nobody") {`}}},
	{name: "slots-reused-at-once", rule: "memory of a removed key is used again while a reader may see it", unseen: "its reads end at once",
		tests: []unit{{ks, "TestRemovedKeyWaitsForReaders|TestReaderOfEachEpochIsWaitedFor|TestMovedRecordWaitsForReaders"}},
		patches: []patch{{"statemachine/keyspace/epoch.go", `return e.current.Load() >= epoch+2 }`,
			`return e.current.Load() >= mutant.Pick("slots-reused-at-once", epoch+2, epoch) }`}}},
	{name: "read-past-the-revision", rule: "a read at a revision sees a later write", unseen: "nobody reads an older revision",
		tests: []unit{{ks, "TestAgainstModel"}},
		patches: []patch{{"statemachine/keyspace/snapshot.go", `if sl.main.Load() <= revision {`,
			`if sl.main.Load() <= mutant.Pick("read-past-the-revision", revision, revision+1) {`}}},
	{name: "history-skips-the-first", rule: "history begins one revision late", profile: "everything", within: 5, tests: []unit{{ks, "TestAgainstModel"}},
		patches: []patch{{"statemachine/keyspace/snapshot.go", `for n := v.after(fromMain-1, sn.state.historyCount);`,
			`for n := v.after(mutant.Pick("history-skips-the-first", fromMain-1, fromMain), sn.state.historyCount);`}}},
	{name: "unsummed-delete", rule: "a delete leaves the key in the digest", profile: "everything", within: 5,
		tests: []unit{{ks, "TestSumFollowsEachWrite"}},
		patches: []patch{{"statemachine/keyspace/space.go", "tombstone = record.version()\n\ts.keys--\n\ts.digest.written(record, previous, existed)",
			"tombstone = record.version()\n\ts.keys--\n\ts.digest.written(record, previous, existed && !mutant.On(\"unsummed-delete\"))"}}},
}
