package mutation

import "regexp"

// kinds name the checks of the simulation by what they say.
var kinds = []struct{ pattern, name string }{
	{`^panic: keyspace: `, "panic: key space"},
	{`^panic: `, "panic"},
	{`acknowledged, and the log has no such change`, "operations: acknowledged, and not in the log"},
	{`was applied at revision \d+ and again`, "operations: a value applied twice"},
	{`the same change was answered to another`, "operations: one change answered to two"},
	{`the log has it at revision`, "operations: refused, and in the log"},
	{`began after the answer to`, "operations: an answer older than one before it"},
	{`in the log at that revision|the log has another change there|the value before was`, "operations: an answer that is not the log's"},
	{`^operations against the log`, "operations: a change that is of nobody"},
	{`^serializable reads: .*went back`, "serializable reads go back"},
	{`^serializable reads`, "a serializable read of no revision"},
	{`^sessions:`, "a token's reader sees an older state"},
	{`^request ids:`, "a request id with two outcomes"},
	{`^locks:`, "a lock that two hold"},
	{`^ids: .*given twice`, "ids: one is given twice"},
	{`^ids:`, "ids: not ascending"},
	{`^watches: .*leg \d+ begins`, "watches: a leg begins elsewhere than the one before ended"},
	{`^watches: .*came in parts`, "watches: a revision in parts"},
	{`^watches: .*bookmark`, "watches: a bookmark that is not true"},
	{`^watches: .*ends with fragments`, "watches: fragments without an end"},
	{`^watches: .*has an event of`, "watches: an event above its response's revision"},
	{`^watches: .*was to come`, "watches: another event than the next"},
	{`^watches:`, "watches: an event is missing"},
	{`^leases: .*was to end by`, "leases: one does not end"},
	{`^leases:`, "leases: one ends before its time"},
	{`^liveness:|has not come about`, "liveness after all was healed"},
	{`^linearizability:`, "linearizability (porcupine)"},
	{`ends .* before it stops to hold it`, "a session ends while it is held"},
	{`published logs differ|logs differ`, "members' logs differ"},
	{`checkpoints differ`, "checkpoints of one index differ"},
	{`false alarm`, "a verdict on a digest that was right"},
	{`the gate is passed at|the gate was passed although`, "the gate passed while an old build is in session"},
	{`is opened for a build`, "a session of a build that was left behind"},
	{`ends after entry \d+, the gate is`, "a build goes on past the gate"},
	{`the state restored at`, "a restored state differs"},
	{`the state at \d+:|^\S+ has |: at \d+ `, "states differ at one index"},
	{`corrupt in memory|sum up to`, "a scrub finds damage"},
	{`failed without a fault`, "a member ends without a fault"},
	{`does not start`, "a member does not start"},
	{`tail from|has applied entry \d+ of term`, "a tail that does not continue"},
	{`out of order|cannot be applied`, "an entry that does not follow"},
	{`incarnation`, "the log refuses the frontend"},
	{`the log changes .* twice|the log deletes|comes after`, "a log that contradicts itself"},
	{`was canceled`, "a watch is canceled"},
	{`^\S+: entry \d+:`, "a log that cannot be read"},
}

// kindOf names the check that failed.
func kindOf(text string) string {
	for _, kind := range kinds {
		if regexp.MustCompile(kind.pattern).MatchString(text) {
			return kind.name
		}
	}
	return text
}
