// Package keyspace holds the keys of one mirror in memory: ordered, with every version since the last
// compaction, for one writer and any number of readers that never stop it.
//
// # What it promises
//
//  1. A Snapshot is one state of the log: (index, revision, compact revision) are read as one value. Whatever is read
//     through it, at its revision or an older one down to its compact revision, is exact and stays so until Release,
//     whatever the writer does meanwhile: a range at one revision is never torn.
//  2. Readers take no lock and the writer waits for no reader. What readers hold up is only the return of memory:
//     versions, keys and slabs are removed physically when every Snapshot that could see them has been released.
//  3. The slices of a Version point into memory that is written once and never again. They stay valid as long as they
//     are referenced, also after Release, after compaction and after the Space is gone; nobody may modify them.
//     One of them keeps its whole slab (Options.SlabBytes) alive, so what is to be kept for long is to be copied.
//  4. create_revision, mod_revision, version, compaction and history mean what they mean in etcd.
//  5. The same calls give the same state, LogicalBytes included, however far the physical work has come.
//
// # What it assumes
//
// One goroutine is the writer. Only it calls Latest, Expect, Put, Delete, WriterView, Publish, Compact, CompactSome,
// LogicalBytes, Digest, ResumeEvents, Restore, RestoreBlocks and CheckInvariants. It writes in ascending (main, sub)
// order, above the published revision, and publishes after the last write of an entry. Compact only asks for work; the
// writer does it by calling CompactSome, best after each entry, since what waits for readers can only go on in a later call.
// Everything else may be called from any goroutine at any time.
//
// # How it is built
//
// A state that comes from elsewhere is put into Blocks by many goroutines and stored whole by RestoreBlocks, or one version
// at a time by Restore.
//
// Keys stand in an ordered index of leaves of up to 64 keys, and beside it in a hash table (lookup), which finds a single one
// with fewer cache misses. A key has a 32-bit id, under which the number of its newest version's slot stands in a flat
// array; a slot holds the version's revision, the slot of the version before and the place of its record in a slab.
// Records hold the encoded key-value, are written once and need no pointer, so that the garbage collector sees one
// object per slab and a few per leaf instead of several per key. All links that the writer changes under readers are
// single atomic words. Superseded versions, keys and slabs are reused or dropped only after a grace period (see epochs).
// A slab that is mostly dead is emptied by copying what lives.
//
// Leaves that ranges find unchanged are kept packed, up to 32 MiB of them: a range that is asked for again copies nothing key by
// key (see packedLeaf).
package keyspace
