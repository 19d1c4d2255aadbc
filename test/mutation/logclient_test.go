package mutation

const clients = "logclient"

var logClientMutants = []mutant{
	{name: "tail-skips-an-entry", rule: "a tail that begins anew skips an entry", profile: "network", within: 5, quick: true,
		tests: []unit{{clients, "TestTailChangesOver|TestTailLeavesASilentMember"}},
		patches: []patch{
			{"logclient/stepper.go", `return s.cursor.next, s.cursor.previousTerm }`,
				`return mutant.Pick("tail-repeats-an-entry", mutant.Pick("tail-skips-an-entry", s.cursor.next, s.cursor.next+1), max(s.cursor.next-1, 1)), s.cursor.previousTerm }`},
			{"logclient/tail.go", "\t\tFromIndex:    t.cursor.next,\n",
				"\t\tFromIndex:    mutant.Pick(\"tail-repeats-an-entry\", mutant.Pick(\"tail-skips-an-entry\", t.cursor.next, t.cursor.next+1), max(t.cursor.next-1, 1)),\n"},
			{"logclient/tail.go", `if index != c.next || term < c.previousTerm {`,
				`if (index != c.next || term < c.previousTerm) && !mutant.On("tail-skips-an-entry") && !mutant.On("tail-repeats-an-entry") && !mutant.On("cursor-takes-anything") {`}}},
	{name: "tail-repeats-an-entry", rule: "a tail that begins anew repeats an entry", profile: "network", within: 5,
		tests: []unit{{clients, "TestTailChangesOver|TestTailLeavesASilentMember"}}},
	{name: "cursor-takes-anything", rule: "what a member sends is not checked to continue what came before", unseen: "its members send what continues",
		tests: []unit{{clients, "TestCursor|TestTailRefusesDiscontinuity"}}},
	{name: "removed-members-preferred", rule: "members that were removed are used as long as they seem near", profile: "disks", within: 10,
		tests: []unit{{clients, "TestLeavesRemovedMembersForGood"}},
		patches: []patch{{"logclient/tracker.go", `if best == nil || m.listed && !best.listed || m.listed == best.listed && m.roundTrip < best.roundTrip {`,
			`if best == nil || m.listed && !best.listed && !mutant.On("removed-members-preferred") ||
			(m.listed == best.listed || mutant.On("removed-members-preferred")) && m.roundTrip < best.roundTrip {`}}},
	{name: "cut-off-member-kept", rule: "a member that has nothing new while others have is kept", profile: "network", within: 10,
		tests:   []unit{{clients, "TestLeavesWhatLags|TestLeavesWhatHasNoLeader"}},
		patches: []patch{{"logclient/tracker.go", `if lags || headless {`, `if (lags || headless) && !mutant.On("cut-off-member-kept") {`}}},
	{name: "failed-member-kept", rule: "a member whose stream broke is not left", profile: "network", within: 10,
		tests: []unit{{clients, "TestAvoidsWhatFails"}},
		patches: []patch{{"logclient/tracker.go", `m.avoidUntil = now.Add(t.config.jitter(pause))`,
			`if !mutant.On("failed-member-kept") {
		m.avoidUntil = now.Add(t.config.jitter(pause))
	}`}}},
	{name: "old-membership-taken", rule: "an older membership replaces a newer one", tests: []unit{{clients, "TestLearnsMembers"}}, profile: "members", within: 10,
		patches: []patch{{"logclient/tracker.go", `(t.learned && membership.GetIndex() < t.membershipIndex) {`,
			`(t.learned && membership.GetIndex() < t.membershipIndex && !mutant.On("old-membership-taken")) {`}}},
	{name: "another-log-accepted", rule: "a member of another cluster is used", unseen: "handshakes are its driver's",
		tests: []unit{{clients, "TestAnotherClusterIsFinal|TestOneWrongAddress"}},
		patches: []patch{{"logclient/client.go", `if clusterID != 0 && h.GetClusterId() != 0 && h.GetClusterId() != clusterID {`,
			`if clusterID != 0 && h.GetClusterId() != 0 && h.GetClusterId() != clusterID && !mutant.On("another-log-accepted") {`}}},
	{name: "trimmed-by-one", rule: "the log counts as trimmed by the word of one member", unseen: "its driver asks the members",
		tests:   []unit{{clients, "TestTrimmedLog"}},
		patches: []patch{{"logclient/tail.go", `if !untried {`, `if !untried || mutant.On("trimmed-by-one") {`}}},
	{name: "round-answer-of-another", rule: "a read round takes the answer to another question", unseen: "its streams are its driver's",
		tests: []unit{{clients, "TestReadRoundsShareAStream"}},
		patches: []patch{{"logclient/rounds.go", "\tq := s.open[answer.GetId()]\n\tdelete(s.open, answer.GetId())\n",
			"\tid := answer.GetId()\n\tif mutant.On(\"round-answer-of-another\") {\n\t\tfor other := range s.open {\n\t\t\tid = max(id, other)\n\t\t}\n\t}\n\tq := s.open[id]\n\tdelete(s.open, id)\n"}}},
	{name: "proposals-cross-streams", rule: "what was proposed on a stream that was lost goes to the next one as well", unseen: "its streams are its driver's",
		tests: []unit{{clients, "TestProposalsStayOnTheirStream"}},
		patches: []patch{{"logclient/append.go", "\ta.up, a.queue, a.queueBytes, a.overflow = true, nil, 0, cancel\n",
			"\tif a.up, a.overflow = true, cancel; !mutant.On(\"proposals-cross-streams\") {\n\t\ta.queue, a.queueBytes = nil, 0\n\t}\n"},
			{"logclient/append.go", "\ta.up, a.queue, a.queueBytes = false, nil, 0\n",
				"\tif a.up = false; !mutant.On(\"proposals-cross-streams\") {\n\t\ta.queue, a.queueBytes = nil, 0\n\t}\n"}}},
}
