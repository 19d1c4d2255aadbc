package logservice

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// entryLog is the member's whole log as its raft sees it: the newest entries in memory, whether they are on disk yet
// or not, the older ones read from storage. It is the raft.Storage of the member's raft node.
//
// Invariants:
//   - entries is contiguous, and its last one is the last of the log; where it is empty the log ends on disk
//   - every entry that is not in entries is durable
//   - published never goes back, and no entry at or below it is ever replaced
type entryLog struct {
	storage  Storage
	hard     HardState
	conf     *raftpb.ConfState
	maxBytes int

	entries []*raftpb.Entry
	// last is the index of the last entry, in memory or on disk.
	last uint64
	// stable is the last index known to be durable with the entry that the log has now.
	stable    uint64
	published uint64
	bytes     int
	// restoring is set from restore to installed: what lies between storage's end and memory is nowhere then.
	restoring bool
	// snapshot makes a snapshot of the log.
	snapshot func() (*raftpb.Snapshot, error)
	// failure is the first error of storage, after which raft can't be used any more.
	failure error
}

func newEntryLog(storage Storage, conf *raftpb.ConfState, maxBytes int) *entryLog {
	last := storage.LastIndex()
	hard := storage.HardState()
	return &entryLog{storage: storage, hard: hard, conf: conf, maxBytes: maxBytes,
		last: last, stable: last, published: hard.Commit}
}

// firstInMemory is the index of entries[0], or last+1.
func (l *entryLog) firstInMemory() uint64 { return l.last + 1 - uint64(len(l.entries)) }

// append takes entries that raft has put at the end of its log, or over the end of it.
func (l *entryLog) append(entries []*raftpb.Entry) {
	if len(entries) == 0 {
		return
	}
	first := entries[0].GetIndex()
	if first <= l.published {
		panic(fmt.Sprintf("logservice: published index %d would be replaced from %d on", l.published, first))
	}
	if first > l.last+1 {
		panic(fmt.Sprintf("logservice: entry %d follows %d", first, l.last))
	}
	l.cut(first)
	for _, e := range entries {
		l.entries = append(l.entries, e)
		l.bytes += entryBytes(e)
	}
	l.last = entries[len(entries)-1].GetIndex()
}

// cut forgets the entries from an index on.
func (l *entryLog) cut(first uint64) {
	for len(l.entries) > 0 && l.last >= first {
		end := len(l.entries) - 1
		l.bytes -= entryBytes(l.entries[end])
		l.entries[end] = nil
		l.entries = l.entries[:end]
		l.last--
	}
	if l.last >= first {
		l.last = first - 1
	}
	l.stable = min(l.stable, l.last)
}

// setStable says that all entries up to an index are durable, and gives up the oldest of them beyond the bound.
func (l *entryLog) setStable(index uint64) {
	l.stable = max(l.stable, min(index, l.last))
	drop := 0
	for l.bytes > l.maxBytes && drop < len(l.entries) && l.entries[drop].GetIndex() <= l.stable {
		l.bytes -= entryBytes(l.entries[drop])
		drop++
	}
	if drop > 0 {
		clear(l.entries[:drop])
		l.entries = l.entries[drop:]
	}
}

// memory returns the entries of [lo, hi) that are in memory: a suffix of the range, possibly empty. The slice is valid
// until the log changes.
func (l *entryLog) memory(lo, hi uint64) []*raftpb.Entry {
	first := l.firstInMemory()
	hi = min(hi, l.last+1)
	lo = max(lo, first)
	if lo >= hi {
		return nil
	}
	return l.entries[lo-first : hi-first : hi-first]
}

func entryBytes(e *raftpb.Entry) int { return len(e.GetData()) + 64 }

// InitialState implements raft.Storage.
func (l *entryLog) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	h := l.hard
	return &raftpb.HardState{Term: &h.Term, Vote: &h.Vote, Commit: &h.Commit}, l.conf, nil
}

// Entries implements raft.Storage.
func (l *entryLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if lo < l.storage.FirstIndex() {
		return nil, raft.ErrCompacted
	}
	if hi > l.last+1 || l.restoring && lo < l.firstInMemory() {
		return nil, raft.ErrUnavailable
	}
	if first := l.firstInMemory(); lo < first {
		stored, err := l.storage.Entries(lo, min(hi, first), int(min(maxSize, 1<<30)))
		if errors.Is(err, errTrimmed) {
			return nil, raft.ErrCompacted
		}
		if err != nil {
			return nil, l.fail(fmt.Errorf("read entries [%d,%d): %w", lo, hi, err))
		}
		entries := make([]*raftpb.Entry, len(stored))
		for i := range stored {
			entries[i] = raftEntry(stored[i])
		}
		return limitSize(entries, maxSize), nil
	}
	// A copy: raft keeps what it gets, and the array of entries is reused when its ends are cut off.
	return slices.Clone(limitSize(l.memory(lo, hi), maxSize)), nil
}

// Term implements raft.Storage.
func (l *entryLog) Term(index uint64) (uint64, error) {
	switch {
	case index == 0:
		return 0, nil
	case index > l.last:
		return 0, raft.ErrUnavailable
	case index >= l.firstInMemory():
		return l.entries[index-l.firstInMemory()].GetTerm(), nil
	case l.restoring:
		return 0, raft.ErrUnavailable
	}
	term, err := l.storage.Term(index)
	if errors.Is(err, errTrimmed) {
		return 0, raft.ErrCompacted
	}
	if err != nil {
		return 0, l.fail(fmt.Errorf("read term of entry %d: %w", index, err))
	}
	return term, nil
}

// FirstIndex implements raft.Storage.
func (l *entryLog) FirstIndex() (uint64, error) { return l.storage.FirstIndex(), nil }

// LastIndex implements raft.Storage.
func (l *entryLog) LastIndex() (uint64, error) { return l.last, nil }

// Snapshot implements raft.Storage.
func (l *entryLog) Snapshot() (*raftpb.Snapshot, error) { return l.snapshot() }

// restore begins the log anew after an index that is not in storage yet.
func (l *entryLog) restore(index uint64) {
	clear(l.entries)
	l.entries, l.bytes, l.last, l.restoring = nil, 0, index, true
	// What is on the disk up to there stays there, or is replaced by what others have: it is no less durable.
	l.stable = min(l.stable, index)
}

// installed says that storage has the log after a snapshot, all of it up to index.
func (l *entryLog) installed(index uint64) {
	l.restoring = false
	l.stable = max(l.stable, index)
	l.published = max(l.published, index)
}

// fail remembers the first failure: raft panics on what it gets back, and Step turns that panic into the failure.
func (l *entryLog) fail(err error) error {
	if l.failure == nil {
		l.failure = err
	}
	return err
}

func raftEntry(e Entry) *raftpb.Entry {
	kind := raftpb.EntryType(e.Type)
	return &raftpb.Entry{Term: &e.Term, Index: &e.Index, Type: &kind, Data: e.Data}
}

func storageEntries(entries []*raftpb.Entry) []Entry {
	out := make([]Entry, len(entries))
	for i, e := range entries {
		out[i] = Entry{Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.GetData()}
	}
	return out
}

// limitSize returns the longest prefix of entries of at most maxSize encoded bytes, and at least one entry.
func limitSize(entries []*raftpb.Entry, maxSize uint64) []*raftpb.Entry {
	size := uint64(0)
	for i, e := range entries {
		size += uint64(proto.Size(e))
		if size > maxSize && i > 0 {
			return entries[:i:i]
		}
	}
	return entries
}
