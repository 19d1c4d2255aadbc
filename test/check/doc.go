// Package check holds what must be true of a history, as models that know nothing of the code that made it.
//
// A history is what clients, watchers and holders of leases and locks saw, and the truth is Log: the changes of keys in
// the order that the log gave them, however it was obtained (from the published entries in a simulation, from a watch
// from the first revision, or two that agree, where the processes are real). Nothing here reads a clock, a network or a
// disk, and nothing imports the code under test, so the same checkers serve the seeded simulation, whole clusters in
// virtual time, and real processes under chaos.
//
// # What a recorder owes
//
//   - One clock: Call and Return of all operations of a history are on one clock that never steps (of the simulation, or
//     of the one machine that runs the clients). Call is read before anything is sent, Return after the answer came.
//   - Three outcomes: Done, NotApplied and Unknown. What was answered with an error that does not promise that nothing
//     happened is Unknown, and so is what was never answered. NotApplied is checked to be true.
//   - Unique values: each Put and CompareAndSwap of a history writes a value that no other one writes. That is how a
//     change in the log is told to be of one operation and no other. A key is either of values, or a counter that only
//     Add changes.
//
// # What there is
//
//   - Linearizable: writes, swaps and linearizable reads, by porcupine, with unknown outcomes. Needs no Log.
//   - Log.Operations: the same histories against the log, in n log n: each answer is the log's at its revision, revisions
//     follow real time, what was acknowledged is there, once, what was refused is not, and nothing is there that nobody
//     wrote.
//   - Log.Reads: serializable reads: of one life of a frontend never backwards, and each a state that the log passed
//     through, whole.
//   - Sessions: reads and writes of one client, with its token, across frontends: its own writes and what it has read.
//   - Log.Watches: each event once, in order, atomic by revision, none missing, resumable, bookmarks true.
//   - Leases: no lease ends before its time after its last confirmed renewal, and each ends at some time.
//   - Log.Locks: what is written under a lock is written while it is held, by whoever holds it; fences ascend.
//   - IDs: no id twice, ascending where that is promised.
//   - Retries: one request id, one outcome.
//   - Agreement: what several replicas say of one place is one thing (digests at an index, entries at an index).
//   - Liveness: after the last fault each that should make progress did so within a bound.
//
// Each returns nil, or an error that names the first few things that must not be. ErrInconclusive, which only
// Linearizable returns, says that the search was too large: count these, a history that is never decided checks nothing.
package check
