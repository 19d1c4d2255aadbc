// Package logservice is one member of the log: Raft among members of several regions, a log on disk, and the LogService
// and PeerService that frontends, operators and other members speak to.
//
// What it promises, to whoever tails, appends and asks:
//
//   - The log is one sequence of entries. What any member has published at an index is there for ever, the same on every
//     member, whatever crashes, is cut off or restarts, as long as a majority of the voters keep their disks.
//   - Tail sends every published entry from an index on, in order and without gaps. A published entry is durable on a
//     majority of voters; at the member that sends it, it may still be on its way to the disk.
//   - A read round answers with an index at or above everything that was published anywhere before the question.
//   - Append promises nothing but its rejections: a rejected copy of a proposal is not in the log. What is neither in the
//     log nor rejected is unknown; batches may be handed over again (apply takes each session's seq once).
//   - Each entry that a frontend proposed carries log time, which never goes back from one index to the next.
//
// What it does not promise: that an entry appears at all regions at once; that a proposal survives a change of leader;
// that an index a member has published is at once published by all.
//
// The package is in two layers. Member is the passive core: a value that is stepped with events and answers with
// effects, on one goroutine, without clocks, disks or sockets. Everything about terms, acks, publication, rounds, log
// time and elections is there, and SAFETY.md beside it says why it is right. Server is the shell: it runs a Member with a
// ticker, a goroutine that writes, and gRPC.
package logservice
