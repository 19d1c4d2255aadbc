// Package segment keeps a log member's Raft log on disk: entries, term, vote, commit and an opaque membership, in one
// stream of frames. FORMAT.md beside it draws the files.
//
// What a caller may rely on:
//
//   - Append writes a group with one write and one sync, and returns when all of it is durable. A group is never seen in
//     part, by a reader or after a crash.
//   - What Open says the log holds is durable, and is at least everything that was acknowledged; of what was not, at most
//     the one group under way at the crash, whole.
//   - Damage of anything that was acknowledged is found and named, with its file and offset: when the log is opened, and
//     again at every read, since a checksum covers each frame and every read checks it.
//   - In the long run each byte is written once: files of trimmed segments become later ones, without being written over.
//   - A full disk takes nothing away: the space for the next segment is reserved ahead, and when there is none Append
//     returns ErrNoSpace and may be tried again, while reads go on.
//   - Any other error of a write or a sync is final: every later change of the log returns it. The process must end, and
//     must acknowledge nothing of the call that failed.
//   - A log is opened only for the member, cluster and data directory that it was made for.
//
// What the package may assume is the promise of internal/disk, and of its caller what Raft guarantees: committed entries
// are never replaced, terms never go back, a commit is not beyond the log's end. Append checks these.
//
// Append, Trim, Reset, Install and Close may be called from any goroutine and take turns. Entries, Term, Digest and the
// other readers may run beside them and never wait for the disk of a writer.
//
// Verify, Dump and OpenReadOnly look at a log that nobody has open.
package segment
