package mutation

const (
	mirrors  = "mirror"
	sessions = "TestSessionTranscripts|TestSessionSimulation"
)

var mirrorMutants = []mutant{
	{name: "round-joined-late", rule: "a linearizable read joins a round that is already asked", profile: "network", within: 10, quick: true,
		tests: []unit{{mirrors, "TestReadRoundsAreShared"}},
		patches: []patch{
			{"mirror/rounds.go", "func (r *roundsCore) join() *crowd {\n",
				`func (r *roundsCore) join() *crowd {
	if mutant.On("round-joined-late") && r.underWay > 0 && r.waiting == nil && r.asked != nil {
		r.asked.readers++
		return r.asked
	}
`},
			{"mirror/rounds.go", "\tstarted   bool\n", "\tasked     *crowd\n\tstarted   bool\n"},
			{"mirror/rounds.go", "\treaders, r.waiting = r.waiting, nil\n", "\treaders, r.waiting = r.waiting, nil\n\tr.asked = readers\n"},
			{"mirror/rounds.go", "func (r *roundsCore) ended() { r.underWay-- }", "func (r *roundsCore) ended() { r.underWay--; r.asked = nil }"}}},
	{name: "read-before-apply", rule: "a linearizable read does not wait for the apply of its round's index", profile: "everything", within: 10,
		tests: []unit{{mirrors, "TestLinearizableReadWaitsForItsApply"}},
		patches: []patch{{"mirror/stepper.go", "\t\tif read.Index > applied {\n", "\t\tif read.Index > applied && !mutant.On(\"read-before-apply\") {\n"},
			{"mirror/mirror.go", "\treturn index, m.WaitApplied(ctx, index)\n",
				"\tif mutant.On(\"read-before-apply\") {\n\t\treturn index, nil\n\t}\n\treturn index, m.WaitApplied(ctx, index)\n"}}},
	{name: "incarnation-used-again", rule: "an incarnation is used again", profile: "processes", within: 5, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", "\ts.incarnation++\n", "\tif !mutant.On(\"incarnation-used-again\") || s.incarnation == 0 {\n\t\ts.incarnation++\n\t}\n"}}},
	{name: "open-before-durable", rule: "an incarnation's Open is handed over before it is durable", profile: "processes", within: 20,
		tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", "\ts.effects.persist = s.incarnation\n",
			"\ts.effects.persist = s.incarnation\n\tif mutant.On(\"open-before-durable\") {\n\t\ts.phase = phaseOpening\n\t\ts.openSent, s.openCopies, s.openRefusals = false, 0, 0\n\t\ts.sendOpen()\n\t}\n"}}},
	{name: "open-claims-the-next-version", rule: "an Open claims the next apply version", profile: "versions", within: 20,
		patches: []patch{{"mirror/mirror.go", "\t\tApplyVersionMax: applyVersionMax,\n",
			"\t\tApplyVersionMax: mutant.Pick(\"open-claims-the-next-version\", applyVersionMax, applyVersionMax+1),\n"}}},
	{name: "session-lost-with-its-stream", rule: "a session is given up when its stream is lost", profile: "network", within: 5, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", "\tcase eventDown:\n\t\ts.up = false\n",
			"\tcase eventDown:\n\t\tif s.up = false; mutant.On(\"session-lost-with-its-stream\") {\n\t\t\ts.ended(s.session)\n\t\t}\n"}}},
	{name: "session-kept-after-its-end", rule: "a session is kept after its end", profile: "sessions", within: 5, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `if session == 0 || session != s.session {
		return
	}
	s.requeue()`, `if session == 0 || session != s.session || mutant.On("session-kept-after-its-end") {
		return
	}
	s.requeue()`}}},
	{name: "held-from-now", rule: "a session counts as held from when its batch was applied here, not from when it was sent", profile: "sessions", within: 30,
		tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `s.heldFrom = max(s.heldFrom, b.firstSent)`,
			`s.heldFrom = max(s.heldFrom, mutant.Pick("held-from-now", b.firstSent, s.now))`}}},
	{name: "held-from-the-open", rule: "a session counts as held from when its Open was applied here, not from when it was sent", profile: "sessions",
		within: 30, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `s.heldFrom = s.openSentAt`, `s.heldFrom = mutant.Pick("held-from-the-open", s.openSentAt, s.now)`}}},
	{name: "held-for-longer", rule: "a session is held beyond its time", profile: "sessions", within: 20, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `s.heldFrom + s.sessionTime/10*9, true`,
			`s.heldFrom + mutant.Pick("held-for-longer", s.sessionTime/10*9, s.sessionTime/10*12), true`}}},
	{name: "left-counts-as-refused", rule: "a command that its caller left is told to be not applied, though handed over", profile: "everything", within: 5,
		quick: true, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `s.end(p, proposalLeft, ErrUnknown)`,
			`s.end(p, proposalLeft, mutant.Pick("left-counts-as-refused", ErrUnknown, ErrNotApplied))`}}},
	{name: "unknown-counts-as-refused", rule: "a command that was handed over to a log that is away is told to be not applied", profile: "network", within: 20,
		tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `s.end(p, proposalLeft, fmt.Errorf("%w: %w", ErrUnknown, ErrUnavailable))`,
			`s.end(p, proposalLeft, fmt.Errorf("%w: %w", mutant.Pick("unknown-counts-as-refused", ErrUnknown, ErrNotApplied), ErrUnavailable))`}}},
	{name: "resent-under-a-new-seq", rule: "what is sent again is sent under a new seq", profile: "everything", within: 5, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", "\t\ts.sendBatch(b)\n\t\ts.effects.resent = reason\n",
			"\t\tif mutant.On(\"resent-under-a-new-seq\") {\n\t\t\tb.seq, s.nextSeq = s.nextSeq, s.nextSeq+1\n\t\t}\n\t\ts.sendBatch(b)\n\t\ts.effects.resent = reason\n"},
			{"mirror/session.go", "if session != s.session || len(s.inFlight) == 0 || seq < s.inFlight[0].seq || seq >= s.nextSeq {\n",
				"if mutant.On(\"resent-under-a-new-seq\") {\n\t\tfor _, b := range s.inFlight {\n\t\t\tif session == s.session && b.seq == seq {\n\t\t\t\treturn b\n\t\t\t}\n\t\t}\n\t\treturn nil\n\t}\n\tif session != s.session || len(s.inFlight) == 0 || seq < s.inFlight[0].seq || seq >= s.nextSeq {\n"}}},
	{name: "requeued-in-another-order", rule: "commands of a session that ended go into the next one in another order",
		unseen: "each of its clients waits for an answer before it writes again", tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", "\t\t\t\tp.state = proposalQueued\n\t\t\t\ts.queue.pushFront(p)\n",
			"\t\t\t\tif p.state = proposalQueued; mutant.On(\"requeued-in-another-order\") {\n\t\t\t\t\ts.queue.pushBack(p)\n\t\t\t\t} else {\n\t\t\t\t\ts.queue.pushFront(p)\n\t\t\t\t}\n"}}},
	{name: "results-of-the-neighbour", rule: "a command of a batch gets the result of another", profile: "everything", within: 5, tests: []unit{{mirrors, sessions}},
		patches: []patch{{"mirror/session.go", `appliedProposal{p, event.results[i], event.sync}`,
			`appliedProposal{p, event.results[mutant.Pick("results-of-the-neighbour", i, len(event.results)-1-i)], event.sync}`}}},
	{name: "ready-while-behind", rule: "a frontend counts as ready before a read round is applied", profile: "processes", within: 20,
		tests: []unit{{mirrors, "TestNotReadyWhileFarBehind"}},
		patches: []patch{{"mirror/rounds.go", `if r.known.Load() && !r.ready && r.mirror.config.Clock()`,
			`if r.known.Load() && !r.ready && mutant.On("ready-while-behind") {
		r.ready = true
		close(r.mirror.ready)
	}
	if r.known.Load() && !r.ready && r.mirror.config.Clock()`},
			{"mirror/stepper.go", `func (s *Stepper) Ready() bool { return s.ready }`,
				`func (s *Stepper) Ready() bool { return s.ready || mutant.On("ready-while-behind") }`}}},
	{name: "round-counts-when-answered", rule: "the age of the state is that of an answer, not of what was applied", unseen: "the age is not part of it",
		tests:   []unit{{mirrors, "TestNotReadyWhileFarBehind"}},
		patches: []patch{{"mirror/rounds.go", `if a.index > index {`, `if a.index > index && !mutant.On("round-counts-when-answered") {`}}},
	{name: "quarantine-skipped", rule: "a mirror in the minority goes on", unseen: "what a mirror does on a verdict is not part of it",
		tests: []unit{{mirrors, "TestTheMinorityIsFoundByItsDigest"}},
		patches: []patch{{"mirror/digests.go", "\t\tcase logv1.DigestVerdict_VERDICT_MINORITY:\n",
			"\t\tcase logv1.DigestVerdict_VERDICT_MINORITY:\n\t\t\tif mutant.On(\"quarantine-skipped\") {\n\t\t\t\tbreak\n\t\t\t}\n"}}},
	{name: "quarantined-image-used", rule: "a mirror that was quarantined starts from its image again", unseen: "what a mirror does on a verdict is not part of it",
		tests: []unit{{mirrors, "TestATieIsSettledByTheLog"}},
		patches: []patch{{"mirror/image.go", "\tm.config.Logger.Warn(\"the image is set aside: the state is built anew\"",
			"\tif mutant.On(\"quarantined-image-used\") {\n\t\treturn os.Remove(note)\n\t}\n\tm.config.Logger.Warn(\"the image is set aside: the state is built anew\""}}},
	{name: "replay-proves-nothing", rule: "in a tie the state that the log makes is not compared", unseen: "what a mirror does on a verdict is not part of it",
		tests: []unit{{mirrors, "TestATieIsSettledByTheLog"}},
		patches: []patch{{"mirror/digests.go", `if known && !bytes.Equal(own.Bytes(), digest.Bytes()) {`,
			`if known && !bytes.Equal(own.Bytes(), digest.Bytes()) && !mutant.On("replay-proves-nothing") {`}}},
	{name: "digests-of-other-versions", rule: "digests of other versions are compared", profile: "versions", within: 20,
		tests: []unit{{mirrors, "TestBuildsOfOtherVersionsRaiseNoAlarm"}},
		patches: []patch{
			{"logservice/digests.go", `{uint64(round.applyVersion), uint64(r.GetApplyVersion())},`,
				`{uint64(round.applyVersion), mutant.Pick("digests-of-other-versions", uint64(r.GetApplyVersion()), uint64(round.applyVersion))},`},
			{"logservice/digests.go", `{uint64(round.digestVersion), uint64(r.GetDigestVersion())},`,
				`{uint64(round.digestVersion), mutant.Pick("digests-of-other-versions", uint64(r.GetDigestVersion()), uint64(round.digestVersion))},`}}},
	{name: "majority-in-the-minority", rule: "the majority is told to be in the minority", profile: "disks", within: 20,
		tests: []unit{{"logservice", "TestDigestsAreJudged"}},
		patches: []patch{{"logservice/digests.go", "\t\tif n == most {\n\t\t\tif !shared {",
			"\t\tif (n == most) != mutant.On(\"majority-in-the-minority\") {\n\t\t\tif !shared {"}}},
	{name: "download-not-checked", rule: "a checkpoint that is not the one its name says is restored", unseen: "downloads are its driver's",
		tests: []unit{{mirrors, "TestBootstrapFaults"}},
		patches: []patch{{"mirror/bootstrap.go", `content.bytes != got.Name.GetSizeBytes() || string(sum) != string(got.Name.GetSha256()) {`,
			`(content.bytes != got.Name.GetSizeBytes() || string(sum) != string(got.Name.GetSha256())) && !mutant.On("download-not-checked") {`}}},
	{name: "checkpoint-of-a-later-entry", rule: "a checkpoint is of the state some entries after the one that asked for it",
		unseen: "when it is pinned is its driver's", tests: []unit{{mirrors, "TestCheckpointsAgree"}},
		patches: []patch{{"mirror/checkpoint.go", "\tsource := checkpoint.Pin(m.machine, epoch)\n\tm.metrics.checkpointPinSeconds.Observe(time.Since(began).Seconds())\n",
			"\tvar source *checkpoint.Source\n\tif !mutant.On(\"checkpoint-of-a-later-entry\") {\n\t\tsource = checkpoint.Pin(m.machine, epoch)\n\t\tm.metrics.checkpointPinSeconds.Observe(time.Since(began).Seconds())\n\t}\n"},
			{"mirror/checkpoint.go", "\t\t<-before\n\t\tc.run(ctx, source, session)\n",
				"\t\t<-before\n\t\tif source == nil {\n\t\t\tfor m.machine.Index() < entry.Index+2 && ctx.Err() == nil {\n\t\t\t\ttime.Sleep(time.Millisecond)\n\t\t\t}\n\t\t\tsource = checkpoint.Pin(m.machine, epoch)\n\t\t}\n\t\tc.run(ctx, source, session)\n"}}},
}
