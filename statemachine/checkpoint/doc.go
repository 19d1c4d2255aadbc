// Package checkpoint writes the whole state of a mirror after one entry as a stream of bytes, and builds a state machine
// from such a stream. The format is in FORMAT.md.
//
// What the package promises:
//  1. Canonical: the same index, epoch and format version give the same bytes on every mirror, however it came to the
//     state: replayed, restarted from an image, built from another checkpoint, compacted sooner or later. Two mirrors
//     that disagree about the bytes disagree about the state.
//  2. Pin is short: it costs in proportion to leases, request ids and sessions, not to keys. Versions are read afterwards,
//     beside the writer and the readers, from the revision that was pinned; until Release, what was compacted
//     meanwhile keeps its memory.
//  3. Each version's checksum, made when it was applied, is checked before it is written: memory that rotted does not get
//     into a checkpoint.
//  4. Bounded memory: a block at a time on both sides. Whatever bytes a Reader is given, it returns an error or a
//     state that a machine could be in; it allocates in proportion to what it was given.
//
// A backup is a checkpoint followed by the SHA-256 of its bytes.
//
// The package knows no disk and no network. Any goroutine may call Pin; the rest belongs to one goroutine, any.
package checkpoint
