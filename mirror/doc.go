// Package mirror joins the log to the state machine: it tails the log, applies every entry in order, and answers whoever
// waits for an entry's apply. One Mirror is one frontend's copy of the state and its voice in the log.
//
// # Writes
//
// Propose hands a command to the log and returns what *this mirror's own apply* decided: there is no other path by
// which a result can arrive, so a result means that the command is durable in the log and readable here. A failure
// says which of two it is. ErrNotApplied: the command was never handed to a log member, or the session it was
// handed over in ended before it applied; it never will be applied. ErrUnknown: it was handed over and this mirror
// cannot tell. The first is never reported for the second.
//
// Commands of one mirror are applied in the order in which Propose took them, each at most once, across changes
// of the leader, lost streams and the end of a session: a session that is seen closed is followed by the next, under which
// is proposed again what still has a caller and is known not to have been applied. A restart opens the next
// incarnation; what the life before it had in flight is applied before that, or never.
//
// With WaitForLog a command waits for the log as long as its context lets it. Without, it fails with ErrUnavailable (and
// ErrNotApplied) once the log has been away for Config.FailFastAfter and the command was not handed over; one that was
// handed over ends with ErrUnknown after Config.UnknownAfter at the latest.
//
// # Reads
//
// Machine's snapshots are the state of this region, at once. Linearize returns when the snapshot acquired next holds
// every write that was acknowledged anywhere before the call: calls that wait at one moment share a read round, and
// a call never rides on a round whose question was asked before it came. WaitApplied and WaitRevision wait for a place
// in the log. Age bounds how old the state may be, by this machine's own clock.
//
// # Restart
//
// The state is that of the image in the data directory (package statemachine/image), and the log from the entry after it
// on; without a usable image it is rebuilt from the log's first entry. Either way it is the same state. Ready is closed when the first read round is applied; before, a
// caller would be served a past of unknown age.
//
// # What it assumes
//
// The data directory is this frontend's alone; two processes on copies of one directory fight for its session, and one
// of them stops with ErrIncarnationTaken. An entry that cannot be applied ends the mirror (Done, Err): it never skips one.
//
// Any goroutine may call a Mirror's methods. Observers are called on the one goroutine that applies, and must not block
// it. Stop ends all goroutines and waits for them.
package mirror
