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
//     error of the file, the image is given up until the next start: the file keeps what it had.
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
