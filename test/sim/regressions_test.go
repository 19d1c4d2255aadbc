package sim

import "testing"

// regressions are seeds that found something, with what it was. A change of what a seed draws takes their meaning away: the
// fault has a test of its own as well, which is named here.
var regressions = []struct {
	seed  uint64
	found string
}{
	{30, "a frontend went round removed members for ever, which seemed well because nobody probed them any more " +
		"(logclient: TestLeavesRemovedMembersForGood)"},
	{1001550, "rot in the version of a segment's header was told as a log of a later program, not as damage " +
		"(logservice/segment: TestEveryDamagedByteIsFound)"},
}

func TestRegressions(t *testing.T) {
	for _, known := range regressions {
		if r := Run(known.seed); r.Failure != "" {
			t.Errorf("once: %s", known.found)
			report(t, r)
		}
	}
}
