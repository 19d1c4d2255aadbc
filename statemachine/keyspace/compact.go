package keyspace

import "fmt"

// compaction is the physical side of Compact: which part of the history may be removed, and how far that has come.
//
// A reader that acquired its snapshot before a compaction may still read below it, so removal up to a revision
// begins when all readers of earlier states are gone. Requests that come meanwhile are merged into one that
// waits for its turn.
type compaction struct {
	published int64 // the compact revision that new readers see

	waiting      int64  // the next target, once the readers registered at or before waitingEpoch are gone; zero: none
	waitingEpoch uint64 // all readers of later epochs see at least waiting

	target int64  // removal may go on up to here: no reader sees less
	done   int64  // removal has come up to here
	cursor uint64 // number of the next change to look at
	// atTarget counts the changes at the target itself that were looked at. They are still history; the next removal
	// looks at them again.
	atTarget uint64
}

// evacuation is the slab being emptied.
type evacuation struct {
	slab   *slab
	offset int
}

// Compact makes revision the lowest that can be read, and where history begins: for the writer at once; for new snapshots too if the
// revision is published, else with the next Publish. A revision at or below the present compact revision does
// nothing. It panics on a revision above all written and published ones. The memory is freed by CompactSome.
func (s *Space) Compact(revision int64) {
	if revision <= s.compactRevision {
		return
	}
	st := s.state.Load()
	if newest := max(st.revision, s.newestMain); revision > newest {
		panic(fmt.Sprintf("keyspace: compact at %d above the newest revision %d", revision, newest))
	}
	freedBefore := s.compactFreedBytes
	v := s.history.view.Load()
	if n := v.after(revision, s.history.count); n > v.firstChunk*historyChunk {
		s.compactFreedBytes = s.history.freedBytes(n - 1)
	}
	s.compactRevision = revision
	if revision <= st.revision {
		compacted := *st
		compacted.compactRevision = revision
		compacted.logicalBytes -= s.compactFreedBytes - freedBefore
		s.state.Store(&compacted)
		s.compactionPublished()
	}
}

// compactionPublished notes that readers from now on see the present compact revision.
func (s *Space) compactionPublished() {
	c := &s.compaction
	if s.compactRevision == c.published {
		return
	}
	c.published = s.compactRevision
	if c.waiting == 0 {
		c.waiting, c.waitingEpoch = c.published, s.epochs.current.Load()
	}
}

// CompactSome does up to budget steps of the work that compactions have left, a step being about one version
// removed, one record of a mostly dead slab looked at, or 4 KiB copied: well under a microsecond each. It
// returns whether more can be done at once. If not, there may still be work that waits for readers: call it
// again after a later entry. A call with nothing to do costs a few nanoseconds.
func (s *Space) CompactSome(budget int) (more bool) {
	if !s.compactionPending() {
		return false
	}
	defer func() {
		s.history.trim(s.compaction.cursor - s.compaction.atTarget)
		s.storeFigures()
	}()
	for budget > 0 {
		left := s.removeVersions(s.reclaim(budget))
		left = s.evacuate(left)
		if left == budget && (!s.graceAwaited() || !s.epochs.advance()) {
			return false
		}
		budget = left
		s.compaction.proceed(&s.epochs)
	}
	return s.compactionPending()
}

func (s *Space) compactionPending() bool {
	return s.compaction.done < s.compaction.target || s.graceAwaited() ||
		s.evacuation.slab != nil || len(s.slabs.candidates) > 0
}

// graceAwaited reports whether anything waits for readers to go.
func (s *Space) graceAwaited() bool {
	_, retired := s.retirees.peek()
	return retired || s.compaction.waiting != 0
}

// proceed lets the removal go on to what waited, if the readers are gone.
func (c *compaction) proceed(e *epochs) {
	if c.waiting == 0 || !e.passed(c.waitingEpoch) {
		return
	}
	c.target, c.waiting = c.waiting, 0
	c.cursor, c.atTarget = c.cursor-c.atTarget, 0
	if c.published > c.target {
		c.waiting, c.waitingEpoch = c.published, e.current.Load()
	}
}

// reclaim frees numbers whose grace period is over. Like the other steps it returns what is left of the budget.
func (s *Space) reclaim(budget int) int {
	for ; budget > 0; budget-- {
		r, ok := s.retirees.peek()
		if !ok || !s.epochs.passed(r.epoch) {
			break
		}
		s.retirees.pop()
		switch r.kind {
		case retiredSlot:
			s.free(r.number)
		case retiredKey:
			s.heads.release(r.number)
		case retiredSlab:
			s.slabs.drop(r.number)
		}
	}
	return budget
}

func (s *Space) retire(kind retireKind, number uint32) {
	s.retirees.push(retiree{epoch: s.epochs.current.Load(), number: number, kind: kind})
}

// removeVersions walks the history up to the target. Each change takes away the version that it superseded, and
// a tombstone below the target that nothing superseded takes away its key. So the work is in proportion to what
// changed, not to the number of keys.
//
// The changes at the target are where history begins, so they all stay until the next compaction.
//
// A tombstone that was superseded stays until its successor is reached. If that lies above the target, it stays for
// longer, and does no harm: it says what its absence would.
func (s *Space) removeVersions(budget int) int {
	c := &s.compaction
	if c.done == c.target {
		return budget
	}
	v := s.history.view.Load()
	for ; budget > 0; budget-- {
		if c.cursor == s.history.count || v.at(c.cursor).main > c.target {
			c.done = c.target
			break
		}
		changed := v.at(c.cursor)
		number := changed.slot
		c.cursor++
		sl := s.slots.at(number)
		// No reader is, or comes, behind this slot: all read at the target or above, and stop here or before.
		if prev := s.slots.prev(number); prev != 0 && s.slots.at(prev).main.Load() < c.target {
			s.slots.setPrev(number, 0)
			s.free(prev)
		}
		if changed.main == c.target {
			c.atTarget++
			continue
		}
		if ref := recordRef(sl.ref.Load()); ref.tombstone() {
			s.removeKey(s.slabs.record(ref).key(), number)
		}
	}
	return budget
}

// removeKey takes a key out of the index whose only version is a tombstone that no reader needs, unless there is a newer
// one. Readers may still hold its leaf, and find the tombstone through it.
func (s *Space) removeKey(key []byte, slot uint32) {
	id, found := s.find(key)
	if !found || s.heads.at(id).Load() != slot {
		return // or rotten memory: the key no longer says where it stands. The verifier reports it.
	}
	p := s.index.locate(key)
	if !p.found || p.leaf.ids[p.position] != id {
		return
	}
	s.index.remove(p)
	s.lookup.remove(s.hash(key), id)
	s.retire(retiredKey, id)
	s.retire(retiredSlot, slot)
}

// free gives back the slot of a version that no reader can reach. Its record is dead from now on.
func (s *Space) free(number uint32) {
	s.slabs.kill(recordRef(s.slots.at(number).ref.Load()))
	s.slots.release(number)
	s.versions--
}

// evacuate copies the living records out of mostly dead slabs, and retires the slabs.
func (s *Space) evacuate(budget int) int {
	e := &s.evacuation
	for budget > 0 {
		if e.slab == nil {
			n := len(s.slabs.candidates)
			if n == 0 {
				break
			}
			*e = evacuation{slab: s.slabs.candidates[n-1]}
			s.slabs.candidates = s.slabs.candidates[:n-1]
		}
		if e.slab.liveBytes == 0 {
			s.retire(retiredSlab, e.slab.number)
			e.slab = nil
			budget--
			continue
		}
		moved, ok := s.evacuateRecord(e)
		if !ok {
			e.slab = nil // rotten memory: left as it is, for the verifier to report
		}
		budget -= 1 + moved>>12
	}
	return max(budget, 0)
}

// evacuateRecord moves the next record if it lives. It copies the checksum as it is: rot stays visible.
func (s *Space) evacuateRecord(e *evacuation) (bytesMoved int, ok bool) {
	if e.offset+recordHeaderBytes > e.slab.used {
		return 0, false
	}
	r := recordAt(e.slab.bytes[e.offset:e.slab.used])
	n := r.room()
	old := recordRef(e.slab.number)<<32 | recordRef(e.offset)
	if r.tombstone() {
		old |= 1
	}
	e.offset += n
	if number := r.slot(); number >= s.slots.next || recordRef(s.slots.at(number).ref.Load()) != old {
		return 0, true
	}
	moved, room := s.slabs.allocate(&s.slabs.survivors, n)
	copy(room, r)
	s.slots.at(r.slot()).ref.Store(uint64(moved | old&1))
	e.slab.liveBytes -= n
	return n, true
}
