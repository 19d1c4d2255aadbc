// Package image keeps a state machine's durable copy in a bbolt file, so that a mirror that restarts need not read the
// whole log again. The log is the write-ahead log: an image may be behind, and losing it costs time and never data.
//
// What the package promises:
//  1. What the file holds is the state after one entry, whole: versions of keys, tables, index, term and identity change
//     in the same transaction, and a crash leaves the transaction before.
//  2. Open gives that state exactly, or none. Each row carries a checksum, and the rows of a bucket together a count
//     and a sum, kept up to date with every change: a row that is altered, missing, doubled or out of an older
//     transaction is found. The structure of the file is walked before bbolt may follow it.
//  3. Writing is behind. Applied collects, and hands over at most every Interval or CommitBytes; one goroutine
//     writes. When it falls behind by BacklogCommits, Applied waits for it, up to StallTimeout; after that, and after any
//     error of the file, the image is abandoned: the file keeps what it had, and is a valid start still.
//  4. An abandoned image comes back by itself: a new one is made of the state in memory, see Rebuild. Applied waits for no
//     disk meanwhile, and for none of the work but one pin of the state (statemachine.Machine.Pin), in proportion to leases and
//     request ids. What was found damaged does not come back: Scrub tells it, and whose image it is decides.
//
// # Rebuild
//
// The new image is made in a file beside the old one, which stays as it is until one rename, of a file that is whole and
// durable, puts the new one in its place; then the directory is synced. So a crash at any point leaves the old image or the new
// one, under the name of the image, and at most a file beside it that Open removes.
//
// What is in the file is the state after one entry, as promised above. The rows of versions stand in the order of revisions
// from the start, and come in passes:
//
//  1. From a first snapshot: the keys that exist at its compact revision and were changed last below it, then all history.
//     That is the image of that snapshot, whose compaction has come to the end: rows of the compact revision itself name no
//     predecessor below it, since that is not there.
//  2. From each next snapshot what was written after the one before (keyspace.Snapshot.HistorySince), also what was compacted
//     meanwhile, until a pass has no more than CommitBytes. The one before is held until then, so that all of it is in
//     memory. A row names the live version that it superseded, which the snapshot before could read, or which was written
//     after it: so it is in the file, and the compaction that comes to the row finds it. With it, the rows are those that
//     commits of the same entries would have appended.
//  3. At the last, the machine is pinned: tables and key space after one entry, as for a checkpoint. In the same step Applied
//     begins to collect what comes after exactly that entry, in the queue of promise 3. What the last pass has not
//     is written, then the tables whole, and the head, which makes the file an image. After the rename, the queue goes on
//     where the pin was.
//
// Nothing of it is for ever, or without bound:
//   - Versions are read at RebuildBytesPerSecond, looked-at ones included. Memory holds three pieces of CommitBytes at most, by
//     reference; twice RebuildRows versions of 40 bytes that are brought into order; the tables once; and the queue,
//     whose bound is that of promise 3. Where the queue is full, Applied does not wait: the attempt has failed, and the new file,
//     if it was put into place, is an older image.
//   - Each pass is smaller than the one before, and there are at most 16: entries that come faster than they are written
//     end the attempt.
//   - What compaction would have freed and the snapshots hold is at most RebuildHeldBytes. Snapshots are released while the
//     disk hangs, after RebuildStallTimeout: another goroutine reads the state than the one that writes.
//   - An attempt that failed is followed by a pause that doubles, from RebuildPause to RebuildPauseMax, as is one whose image
//     was abandoned again before it was written for RebuildPauseMax.
//
// A pass over the keys is made for each RebuildRows of them that were changed last below the compact revision, since the
// index has them by key: memory is bought with time.
//
// # The file
//
// Integers in keys and heads are big-endian. Each row is: key → row, CRC32C of key and row (4 bytes).
//
//	versions   main (8) sub (8)   → flags (1: bit 0 tombstone, bit 1 has a predecessor), the predecessor's main (8) and
//	                                sub (8) where it has one, the encoded key-value
//	leases     id (8)             → the lease's row
//	requests   ordinal (8)        → the request id's row; ordinals rise without a gap
//	meta       "state"            → the small part of the state
//	           "head"             → JSON: format, identity, index, term, how far compaction has come, counts and sums
//
// Versions stand in the order of revisions, so that writing appends. Compaction walks the rows it has not seen up to the
// compact revision, in slices: each takes its predecessor away, a tombstone itself too. The rows of the compact revision
// itself are history still, and their turn comes with the next compaction. That is the key space's own rule, and the
// cursor is part of the same transaction.
//
// # How it is opened
//
// The pages are read here and not by bbolt: the branches first, then runs of leaves by all processors at once, each page
// once. A leaf's structure, its rows' checksums and what becomes of them are one pass; the versions of about a mebibyte of
// pages become a block of the key space (keyspace.Block), and the blocks its index in one step at the end. bbolt, which looks
// at every page once more to find the free ones, opens the file when the first commit or scrub wants it: by then the machine
// is in use.
package image
