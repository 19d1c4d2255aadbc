// Package statemachine is the deterministic state of one mirror: keys with their history, sessions, leases, request
// ids, settings, regions and alarms. It turns log entries, one after another, into results and events.
//
// # What it promises
//
//  1. Determinism. The state after an entry is a function of the entries up to it and of nothing else: Apply reads no
//     clock, random source, environment, flag or map order, and what is only wanted by the proposer (see `wanted`)
//     changes no state. Options say nothing that the state could depend on; what does is in the replicated Settings.
//  2. All or nothing. A command that is refused has changed nothing. A transaction is checked whole before its first
//     write, and all of its writes have one revision.
//  3. Nothing is skipped for not being understood. An entry, command or field that this build does not know makes
//     Apply return an error, and so does every later call: the mirror has to stop and say so.
//  4. No input panics. What apply's correctness rests on is checked in apply, whatever the proposer has checked before.
//  5. A snapshot of Space() shows the state after one whole entry, never a part of one. The tables that are read
//     through the Machine's own methods are at least as new as any snapshot that was acquired before.
//
// # What it assumes
//
// One goroutine calls Apply and Maintain, with every index of the log, in order. All other methods are for any
// goroutine; those that read tables wait for an entry that is being applied. Mirrors hand over the entries as they
// were published, envelope decoded, payload as it is.
//
// # The rules, in the order in which an entry is taken
//
// Log time becomes the entry's stamp; a stamp that is not above the last one leaves it where it is. Then:
//
//  1. Sessions end whose last entry is at least their session time ago. Their leases become orphans.
//  2. Orphans end whose TTL has passed since their orphan stamp, at most 128 per entry, each under its own revision.
//  3. Request ids are forgotten that are older than their bound.
//  4. The entry itself is applied, or skipped with a reason.
//  5. History is compacted, by age and by count, as the settings say.
//  6. The new state is published.
//
// A session is opened by a frontend's incarnation that is above its last one. That ends the frontend's session before,
// if it is still open, and makes the new one the owner of its leases, in the same step. (Where the session before had
// already ended, its leases are orphans, which any session may adopt.) A batch is taken only of an open session, only
// with the seq after the session's last.
//
// The transcripts in testdata document each rule by example.
package statemachine
