package segment

import (
	"errors"
	"fmt"
	"slices"
)

// Append writes a group and returns when it is durable. ErrNoSpace: nothing of it counts, and it may be tried again.
// ErrInvalid: nothing was written. After any other error the log takes no more: what of the group is on the disk is not
// known, so the process must acknowledge nothing and end. The group's slices are not kept.
func (l *Log) Append(g Group) error {
	if err := l.acquireWriter(); err != nil {
		return err
	}
	defer l.releaseWriter()
	return l.append(&g)
}

func (l *Log) append(g *Group) error {
	if g.HardState == (HardState{}) && len(g.Entries) == 0 && g.Membership == nil {
		return nil
	}
	header, length, err := l.prepare(g)
	if err != nil {
		return err
	}
	if active := l.active(); l.mustRoll || active.tail.end+length > contentSize(active.bytes) {
		if err := l.roll(length); err != nil {
			return err
		}
	}
	s := l.active()
	digest, err := l.putFrame(s, g, &header, length)
	if errors.Is(err, ErrNoSpace) {
		// A file system that never overwrites may be full even here. What was written of the frame stays behind the
		// segment's end, and the next segment says so.
		l.mustRoll = true
		return fmt.Errorf("segment: append to %s: %w", s.path, err)
	}
	if err != nil {
		return l.fail(err)
	}
	if err := s.file.Datasync(); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.applyFrame(s, g, &header, length, digest)
	return nil
}

// prepare checks that a group fits the log and returns its frame's header, as far as it depends on what is before it,
// and the frame's length.
func (l *Log) prepare(g *Group) (h frameHeader, length int64, err error) {
	state := writerState{base: l.base, last: l.last, hardState: l.hardState}
	if err := state.check(g); err != nil {
		return h, 0, err
	}
	if err := l.checkCut(g); err != nil {
		return h, 0, err
	}
	payload, err := payloadBytes(g)
	if err != nil {
		return h, 0, err
	}
	h, err = l.frameHeader(g)
	return h, frameHeaderBytes + align(payload) + frameTrailerBytes, err
}

// frameHeader returns the header of the frame that the group makes, as far as it depends on the log.
func (l *Log) frameHeader(g *Group) (frameHeader, error) {
	h := frameHeader{hardState: l.hardState, first: l.last.index + 1,
		previousTerm: l.last.term, previousDigest: l.last.digest}
	if g.HardState != (HardState{}) {
		h.hardState = g.HardState
	}
	if len(g.Entries) > 0 && g.Entries[0].Index <= l.last.index {
		h.first = g.Entries[0].Index
		h.previousTerm = l.term(h.first - 1)
		digest, err := l.Digest(h.first - 1)
		if err != nil {
			return h, l.fail(fmt.Errorf("cut the log at %d: %w", h.first, err))
		}
		h.previousDigest = digest
	}
	return h, nil
}

// putFrame builds a group's frame and writes it to the end of a segment, where it has no meaning for this log yet. The write
// takes whole blocks, as the disk does: it begins with what the block holds already in which the segment ends.
func (l *Log) putFrame(s *segmentFile, g *Group, h *frameHeader, length int64) (digest uint64, err error) {
	held := s.tail.end % blockContentBytes
	begin, all := s.tail.end-held, held+length
	need := blockedBytes(begin, all)
	if int64(cap(l.buffer)) < need || cap(l.buffer) > bufferBytesKept && need <= bufferBytesKept {
		l.buffer = make([]byte, max(need, bufferBytesLeast))
	}
	if err := l.lastBlock.of(s, l.buffer[:held]); err != nil {
		return 0, err
	}
	h.previousCRC, h.previousLength = s.tail.crc, s.tail.length
	digest = encodeFrame(l.buffer[held:all], h, g, s.header.salt, s.tail.end)
	l.lastBlock.keep(s, s.tail.end+length, l.buffer[:all])
	return digest, s.content().writeBlocks(l.buffer[:need], begin, all, s.bytes)
}

// lastBlock is what the block holds in which a segment ends, so that it need not be read before it is written again.
type lastBlock struct {
	segment *segmentFile
	// end is where the segment ends if the last write counts.
	end     int64
	content [blockContentBytes]byte
}

// of fills b with the content in front of a segment's end. What is not known is read.
func (k *lastBlock) of(s *segmentFile, b []byte) error {
	held := int64(len(b))
	if held == 0 {
		return nil
	}
	if k.segment == s && k.end == s.tail.end {
		copy(b, k.content[:])
		return nil
	}
	read, err := s.content().read(nil, s.tail.end-held, held)
	copy(b, read)
	return err
}

// keep takes what a segment will end with: the end of what is written, which begins with a block.
func (k *lastBlock) keep(s *segmentFile, end int64, written []byte) {
	k.segment, k.end = s, end
	copy(k.content[:], written[int64(len(written))-end%blockContentBytes:])
}

// applyFrame takes a written frame into the log's state; the caller holds mu.
func (l *Log) applyFrame(s *segmentFile, g *Group, h *frameHeader, length int64, digest uint64) {
	offset := s.tail.end
	s.tail = tail{end: offset + length, crc: h.crc, length: uint32(length), frames: s.tail.frames + 1}
	l.hardState = h.hardState
	if g.Membership != nil {
		l.membership = append([]byte{}, g.Membership...)
	}
	if len(g.Entries) == 0 {
		return
	}
	l.cut(h)
	for i := range g.Entries {
		l.addTerm(g.Entries[i].Index, g.Entries[i].Term)
	}
	l.last = base{index: h.last(), term: g.Entries[len(g.Entries)-1].Term, digest: digest}
	s.addFrame(frameRef{first: h.first, offset: offset, length: uint32(length)}, l.last.index)
}

const (
	// bufferBytesKept bounds the memory that the writer keeps between groups of common size.
	bufferBytesKept = 16 << 20
	// bufferBytesLeast is so much that the buffer begins where a page of memory does, as disk.File's Direct asks.
	bufferBytesLeast = 64 << 10
)

// cut takes away the live entries that a frame replaces; the caller holds mu. A cut at or below the base happens only
// while a log is recovered whose older segments were trimmed.
func (l *Log) cut(h *frameHeader) {
	if h.first > l.last.index {
		return
	}
	for i := len(l.segments) - 1; i >= 0; i-- {
		s := l.segments[i]
		if s.live() && s.last < h.first {
			break
		}
		s.cut(h.first)
	}
	for n := len(l.runs); n > 0 && l.runs[n-1].first >= h.first; n-- {
		l.runs = l.runs[:n-1]
	}
	l.last = base{index: h.first - 1, term: h.previousTerm, digest: h.previousDigest}
	if l.base.index > l.last.index {
		l.base = l.last
	}
}

func (l *Log) addTerm(index, term uint64) {
	if n := len(l.runs); n == 0 || l.runs[n-1].term != term {
		l.runs = append(l.runs, termRun{first: index, term: term})
	}
}

// writerState is what a group has to fit.
type writerState struct {
	base, last base
	hardState  HardState
}

// check tells whether a group may follow, and moves the state behind it where it may.
func (s *writerState) check(g *Group) error {
	if h := g.HardState; h != (HardState{}) {
		if h.Term < s.hardState.Term || h.Commit < s.hardState.Commit {
			return fmt.Errorf("%w: hard state %+v follows %+v", ErrInvalid, h, s.hardState)
		}
		s.hardState = h
	}
	if len(g.Entries) > 0 {
		first := g.Entries[0].Index
		switch {
		case first > s.last.index+1 || first >= indexMax:
			return fmt.Errorf("%w: entry %d follows entry %d", ErrInvalid, first, s.last.index)
		case first <= s.base.index:
			return fmt.Errorf("%w: entry %d is replaced, the log begins after %d", ErrInvalid, first, s.base.index)
		}
		for i := range g.Entries {
			if e := &g.Entries[i]; e.Index != first+uint64(i) || i > 0 && e.Term < g.Entries[i-1].Term {
				return fmt.Errorf("%w: entry %d of term %d is at place %d of a group that begins with entry %d",
					ErrInvalid, e.Index, e.Term, i, first)
			}
		}
		last := &g.Entries[len(g.Entries)-1]
		s.last = base{index: last.Index, term: last.Term}
	}
	if s.hardState.Commit > max(s.last.index, s.base.index) {
		return fmt.Errorf("%w: commit %d lies beyond the last entry %d", ErrInvalid, s.hardState.Commit, s.last.index)
	}
	return nil
}

// checkCut is the part of the check that needs the terms of the log: what a group replaces must not be committed, and
// terms never go back from one entry to the next.
func (l *Log) checkCut(g *Group) error {
	if len(g.Entries) == 0 {
		return nil
	}
	first := g.Entries[0].Index
	if first <= l.hardState.Commit && first <= l.last.index {
		return fmt.Errorf("%w: entry %d is committed (%d) and would be replaced", ErrInvalid, first, l.hardState.Commit)
	}
	if term := l.term(first - 1); g.Entries[0].Term < term {
		return fmt.Errorf("%w: entry %d of term %d follows one of term %d", ErrInvalid, first, g.Entries[0].Term, term)
	}
	return nil
}

// Trim removes segments whose entries all lie at or below index. The segment that is written to stays.
func (l *Log) Trim(index uint64) error {
	if err := l.acquireWriter(); err != nil {
		return err
	}
	defer l.releaseWriter()
	if index > l.hardState.Commit {
		return fmt.Errorf("%w: trim to %d, committed is %d", ErrInvalid, index, l.hardState.Commit)
	}
	for len(l.segments) > 1 {
		oldest := l.segments[0]
		if oldest.live() && oldest.last > index {
			break
		}
		if err := l.dropOldest(oldest); err != nil {
			return err
		}
	}
	return nil
}

// dropOldest takes one segment out of the log and gives up its file. That is durable before the next one, so that a crash
// never leaves a gap.
func (l *Log) dropOldest(oldest *segmentFile) error {
	next := l.base
	if oldest.live() {
		if next = l.segments[1].header.base; next.index != oldest.last {
			digest, err := l.Digest(oldest.last)
			if err != nil {
				return fmt.Errorf("segment: trim: %w", err)
			}
			next = base{index: oldest.last, term: l.term(oldest.last), digest: digest}
		}
	}
	l.mu.Lock()
	l.segments = slices.Clone(l.segments[1:])
	l.base = next
	for len(l.runs) > 1 && l.runs[1].first <= next.index+1 {
		l.runs = l.runs[1:]
	}
	l.mu.Unlock()
	return l.retire(oldest)
}
