package keyspace

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"sync"
)

// RestoreBlocks stores all versions that another Space had, in ascending order of (main, sub) from the first block to the
// last: what Restore takes one by one, with the same result. It uses all processors. The live versions that name a lease
// are returned, in the order of keys. After an error, which matches ErrInconsistent, the Space is of no use.
// Writer only, into a new Space, instead of Restore; then Publish.
//
// The versions are sorted once by (key, revision), where Restore looks for the place of each. What is left, to chain the
// versions of each key and to cut leaves of keys, goes through them in order.
func (s *Space) RestoreBlocks(blocks []*Block) (leased []Version, err error) {
	if s.versions != 0 || s.state.Load().index != 0 {
		return nil, errors.New("keyspace: blocks are restored into a new space only")
	}
	b := &bulk{space: s, blocks: slices.DeleteFunc(slices.Clone(blocks), func(b *Block) bool { return len(b.versions) == 0 })}
	if len(b.blocks) == 0 {
		return nil, nil
	}
	if err := b.adopt(); err != nil {
		return nil, err
	}
	b.sort()
	if err := b.chain(); err != nil {
		return nil, err
	}
	b.sumHistory()
	b.buildIndex()
	for i := range b.ranges {
		leased = append(leased, b.ranges[i].leased...)
	}
	return leased, nil
}

// bulk is a restoring of blocks under way.
type bulk struct {
	space  *Space
	blocks []*Block
	// entries are all versions: before they are sorted, the i-th has slot firstSlot+i.
	entries   []bulkEntry
	firstSlot uint32
	// base counts the versions below the compact revision, which are no part of the history.
	base int
	// freedBytes is what each change of the history frees.
	freedBytes []int64
	ranges     []bulkRange
}

// bulkEntry is one version.
type bulkEntry struct {
	word  uint64 // see keySorter
	slot  uint32
	facts versionFacts
}

// bulkRange is a run of keys that one goroutine works on.
type bulkRange struct {
	// entries in the order of (key, revision), of which chaining leaves the newest of each key.
	entries []bulkEntry
	live    [2]uint64 // to be taken from the digest
	keys    int       // that are live
	leased  []Version
	firstID uint32 // of the first key
	cells   []cell
	err     error
}

// parallel calls work for each number below n, on all processors and in no order.
func parallel(n int, work func(i int)) {
	var running sync.WaitGroup
	numbers := make(chan int, n)
	for i := range n {
		numbers <- i
	}
	close(numbers)
	for range min(runtime.GOMAXPROCS(0), n) {
		running.Go(func() {
			for i := range numbers {
				work(i)
			}
		})
	}
	running.Wait()
}

// adopt checks that the blocks follow each other, and gives their versions slots.
func (b *bulk) adopt() error {
	s, total := b.space, 0
	starts, slabs := make([]int, len(b.blocks)), make([]*slab, len(b.blocks))
	lastMain, lastSub := int64(0), int64(0)
	for i, block := range b.blocks {
		n := len(block.versions)
		first, last := &block.versions[0], &block.versions[n-1]
		if main, sub := first.main, block.record(0).sub(); main < lastMain || main == lastMain && sub <= lastSub {
			return fmt.Errorf("%w: (%d, %d) after (%d, %d)", ErrInconsistent, main, sub, lastMain, lastSub)
		}
		lastMain, lastSub = last.main, block.record(n-1).sub()
		b.base += sort.Search(n, func(i int) bool { return block.versions[i].main >= s.compactRevision })
		starts[i] = total
		total += n
		s.writtenBytes += block.logicalBytes
		s.digest.Live[0] += block.live[0]
		s.digest.Live[1] += block.live[1]
		slabs[i] = s.slabs.adopt(block.slab)
		slabs[i].used, slabs[i].liveBytes, slabs[i].sealed = len(block.slab), len(block.slab), true
	}
	if b.base < total {
		s.newestMain, s.newestSub, s.written = lastMain, lastSub, true
	}
	s.versions = total
	b.firstSlot = s.slots.reserve(total)
	b.freedBytes = make([]int64, total-b.base)
	b.entries = make([]bulkEntry, total)
	shared := len(b.sharedPrefix())
	parallel(len(b.blocks), func(i int) { b.place(b.blocks[i], slabs[i], starts[i], shared) })
	return nil
}

// sharedPrefix is what all keys begin with.
func (b *bulk) sharedPrefix() []byte {
	prefix := b.blocks[0].prefix
	for _, block := range b.blocks[1:] {
		prefix = prefix[:sharedPrefix(prefix, block.prefix)]
	}
	return prefix
}

// place fills in the slots and the entries of a block's versions, of which the first is the one with the given
// number among all.
func (b *bulk) place(block *Block, sl *slab, start, shared int) {
	s := b.space
	for i := range block.versions {
		v, r := &block.versions[i], block.record(i)
		ordinal := start + i
		slot := b.firstSlot + uint32(ordinal)
		r.setSlot(slot)
		at := s.slots.at(slot)
		at.main.Store(v.main)
		ref := recordRef(sl.number)<<32 | recordRef(v.offset)
		if v.facts&factTombstone != 0 {
			ref |= 1
		}
		at.ref.Store(uint64(ref))
		b.entries[ordinal] = bulkEntry{word: word(r.key(), shared), slot: slot, facts: v.facts}
	}
}

func (b *bulk) record(slot uint32) record {
	s := b.space
	return s.slabs.record(recordRef(s.slots.at(slot).ref.Load()))
}

func (b *bulk) keyOf(slot uint32) []byte { return b.record(slot).key() }

func (b *bulk) sort() {
	sortByKey(b.entries, b.keyOf, len(b.sharedPrefix()))
	// More ranges than processors, so that those with more to do hold nobody up. A range ends where a key does.
	const rangeEntries = 1 << 14
	for rest := b.entries; len(rest) > 0; {
		n := min(rangeEntries, len(rest))
		for n < len(rest) && b.sameKey(&rest[n-1], &rest[n]) {
			n++
		}
		b.ranges = append(b.ranges, bulkRange{entries: rest[:n:n]})
		rest = rest[n:]
	}
}

// sameKey tells whether two neighbours are versions of one key.
func (b *bulk) sameKey(x, y *bulkEntry) bool {
	return x.word == y.word && bytes.Equal(b.keyOf(x.slot), b.keyOf(y.slot))
}

// chain links the versions of each key, and checks that they fit each other.
func (b *bulk) chain() error {
	parallel(len(b.ranges), func(i int) { b.ranges[i].err = b.chainRange(&b.ranges[i]) })
	s := b.space
	for i := range b.ranges {
		r := &b.ranges[i]
		if r.err != nil {
			return r.err
		}
		s.keys += r.keys
		s.digest.Live[0] -= r.live[0]
		s.digest.Live[1] -= r.live[1]
	}
	return nil
}

func (b *bulk) chainRange(r *bulkRange) error {
	all := r.entries
	r.entries = all[:0]
	for begin := 0; begin < len(all); {
		end := begin + 1
		for end < len(all) && b.sameKey(&all[end-1], &all[end]) {
			end++
		}
		if err := b.chainKey(all[begin:end], r); err != nil {
			return err
		}
		newest := all[end-1]
		if newest.facts&factTombstone == 0 {
			r.keys++
			if newest.facts&factLeased != 0 {
				r.leased = append(r.leased, b.record(newest.slot).version())
			}
		}
		r.entries = append(r.entries, newest)
		begin = end
	}
	return nil
}

// chainKey links the versions of one key. The rules are those of Restore.
func (b *bulk) chainKey(versions []bulkEntry, r *bulkRange) error {
	s := b.space
	if len(versions) == 1 && versions[0].facts&(factTombstone|factFirst) == factFirst {
		return nil // as most: nothing precedes it, and nothing should
	}
	var previous Version
	before, existed := uint32(0), false
	for i := range versions {
		slot := versions[i].slot
		v := b.record(slot).version()
		base, first := v.ModRevision < s.compactRevision, v.ModRevision == s.compactRevision
		why := ""
		switch {
		case base && v.Tombstone:
			why = "a compacted tombstone"
		case base && i > 0:
			why = "a compacted version after another of its key"
		case first && i > 0 && previous.ModRevision < s.compactRevision:
			why = "a version that it superseded is compacted"
		case base, first && i == 0:
		default:
			why = follows(&v, &previous, existed)
		}
		if why != "" {
			return inconsistentVersion(v.Key, v.ModRevision, v.Sub, why)
		}
		freed := int64(0)
		if existed {
			freed = previous.LogicalBytes()
			one, two := hashEncoded(previous.Encoded)
			r.live[0] += one
			r.live[1] += two
		}
		if v.Tombstone {
			freed += v.LogicalBytes()
		}
		if !base {
			b.freedBytes[int(slot-b.firstSlot)-b.base] = freed
		}
		s.slots.setPrev(slot, before)
		previous, before, existed = v, slot, !v.Tombstone
	}
	return nil
}

// sumHistory enters the versions into the history, with sums of what each change frees.
func (b *bulk) sumHistory() {
	s, sum := b.space, int64(0)
	for i, freedBytes := range b.freedBytes {
		sum += freedBytes
		slot := b.firstSlot + uint32(b.base+i)
		c := change{main: s.slots.at(slot).main.Load(), slot: slot}
		s.history.append(c, sum)
		if c.main == s.compactRevision {
			s.compactFreedBytes = sum
		}
	}
	s.freedBytes = sum
}

// buildIndex gives each key an id, in the order of keys, and makes leaves of them and entries of the lookup.
func (b *bulk) buildIndex() {
	s, keys := b.space, 0
	for i := range b.ranges {
		keys += len(b.ranges[i].entries)
	}
	id := s.heads.reserve(keys)
	for i := range b.ranges {
		b.ranges[i].firstID = id
		id += uint32(len(b.ranges[i].entries))
	}
	hashes := make([]uint64, keys)
	first := b.ranges[0].firstID
	parallel(len(b.ranges), func(i int) {
		r := &b.ranges[i]
		b.buildLeaves(r, hashes[r.firstID-first:][:len(r.entries)])
	})
	s.lookup.fill(first, hashes)
	b.ranges[0].cells[0].low = nil
	var cells []*cell
	for i := range b.ranges {
		for j := range b.ranges[i].cells {
			c := &b.ranges[i].cells[j]
			if n := len(cells); n > 0 {
				cells[n-1].room.Load().next = c
			}
			cells = append(cells, c)
		}
	}
	var groups []*group
	for group := range slices.Chunk(cells, groupCells) {
		groups = append(groups, newGroup(group))
	}
	s.index.root.Store(newRoot(groups))
}

// buildLeaves makes the leaves of a range and their cells, and the hashes of its keys. Which leaf is next is filled in later.
func (b *bulk) buildLeaves(r *bulkRange, hashes []uint64) {
	s, id := b.space, r.firstID
	r.cells = make([]cell, 0, (len(r.entries)+leafKeys-1)/leafKeys)
	for run := range slices.Chunk(r.entries, leafKeys) {
		room := allocateLeaf(len(run), nil)
		for i := range run {
			s.heads.at(id).Store(run[i].slot)
			room.ids[i] = id
			hashes[id-r.firstID] = s.hash(b.keyOf(run[i].slot))
			id++
		}
		room.fill(func(i int) []byte { return b.keyOf(run[i].slot) })
		r.cells = append(r.cells, cell{low: bytes.Clone(b.keyOf(run[0].slot))})
		r.cells[len(r.cells)-1].room.Store(room)
	}
}
