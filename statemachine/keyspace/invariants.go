package keyspace

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// CheckInvariants checks everything that must hold between the parts of the Space, in time and memory
// proportional to all that it holds. Writer only; for the end of tests.
func (s *Space) CheckInvariants() error {
	c := &checker{s: s, seen: map[uint32]bool{}, liveBytes: map[uint32]int{}}
	for _, check := range []func() error{c.index, c.lookup, c.retired, c.history, c.slots, c.slabs, c.packs} {
		if err := check(); err != nil {
			return fmt.Errorf("keyspace: invariant: %w", err)
		}
	}
	switch {
	case c.keys != s.keys:
		return fmt.Errorf("keyspace: invariant: %d live keys, counted %d", c.keys, s.keys)
	case len(c.seen) != s.versions:
		return fmt.Errorf("keyspace: invariant: %d versions, counted %d", len(c.seen), s.versions)
	case c.logicalBytes != s.LogicalBytes():
		return fmt.Errorf("keyspace: invariant: %d logical bytes, counted %d", c.logicalBytes, s.LogicalBytes())
	}
	return nil
}

type checker struct {
	s            *Space
	seen         map[uint32]bool // slots in use
	liveBytes    map[uint32]int  // by slab
	keys         int
	lookedUp     int    // keys that the lookup has
	aboveCompact uint64 // versions above the compact revision
	logicalBytes int64
}

// index walks the leaves by their links and by the groups at once, and every key's versions.
func (c *checker) index() error {
	r := c.s.index.root.Load()
	var last []byte
	ids := map[uint32]bool{}
	next := r.groups[0].cells[0]
	for gi, g := range r.groups {
		if len(g.cells) == 0 || len(g.cells) > groupCells || len(g.words) != len(g.cells) {
			return fmt.Errorf("group %d of %d cells, %d words", gi, len(g.cells), len(g.words))
		}
		if r.child(g.low()) != gi {
			return fmt.Errorf("group %d is not found by its low bound", gi)
		}
		for ci, cl := range g.cells {
			if cl != next {
				return fmt.Errorf("cell %d/%d is not the next of the one before", gi, ci)
			}
			if g.child(cl.low) != ci || (cl.low == nil) != (gi == 0 && ci == 0) {
				return fmt.Errorf("cell %d/%d is not found by its low bound", gi, ci)
			}
			lf := cl.leaf()
			if len(lf.ids) > leafKeys || len(lf.words) != len(lf.ids) {
				return fmt.Errorf("leaf %d/%d of %d keys, %d words", gi, ci, len(lf.ids), len(lf.words))
			}
			for i, id := range lf.ids {
				key := c.s.keyOf(id)
				if bytes.Compare(key, cl.low) < 0 || len(ids) > 0 && bytes.Compare(key, last) <= 0 || ids[id] ||
					lf.next != nil && bytes.Compare(key, lf.next.low) >= 0 {
					return fmt.Errorf("key %q (%d) out of place in leaf %d/%d", key, id, gi, ci)
				}
				if at, found := c.s.index.seek(lf, key); !found || at != i {
					return fmt.Errorf("key %q is not found in its leaf", key)
				}
				switch found, ok, complete := c.s.lookup.find(c.s.hash(key), key); {
				case ok && found != id, !ok && complete:
					return fmt.Errorf("key %q (%d) is looked up as %d: %t", key, id, found, ok)
				case ok:
					c.lookedUp++
				}
				ids[id], last = true, key
				if err := c.versions(id, key); err != nil {
					return fmt.Errorf("key %q: %w", key, err)
				}
			}
			next = lf.next
		}
	}
	if next != nil {
		return fmt.Errorf("cells beyond the last group")
	}
	return nil
}

// packs checks that they are counted as they should be, and that those of the present leaves are what their leaves hold, unless a key
// has changed since.
func (c *checker) packs() error {
	k := &c.s.packs
	k.mu.Lock()
	defer k.mu.Unlock()
	bytes := 0
	for i, p := range k.leaves {
		if p.at != i || p.room.packed.Load() != p {
			return fmt.Errorf("packed leaf %d stands at %d, or is not its room's", i, p.at)
		}
		bytes += len(p.bytes)
	}
	if bytes != k.bytes || bytes > k.limit {
		return fmt.Errorf("packed leaves of %d bytes, counted %d, at most %d", bytes, k.bytes, k.limit)
	}
	for _, g := range c.s.index.root.Load().groups {
		for _, cl := range g.cells {
			if err := c.packed(cl.room.Load()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) packed(room *leafRoom) error {
	p, lf := room.packed.Load(), room.filled()
	if p == nil {
		return nil
	}
	changes := uint64(1)
	var want []byte
	for _, id := range lf.ids {
		changes += c.s.heads.changes(id).Load()
		if ref := recordRef(c.s.slots.at(c.s.heads.at(id).Load()).ref.Load()); !ref.tombstone() {
			want = protowire.AppendBytes(append(want, p.tag), c.s.slabs.record(ref).encoded())
		}
	}
	if changes == p.changes && !bytes.Equal(p.bytes, want) {
		return fmt.Errorf("a leaf of %d keys is packed as %d bytes, should be %d or has others", len(lf.ids), len(p.bytes), len(want))
	}
	return nil
}

// lookup checks that it has no more than the keys of the index that it finds, and lists each segment as it should.
func (c *checker) lookup() error {
	d := c.s.lookup.directory.Load()
	entries := 0
	for i := range d.segments {
		sg, local := d.segments[i].Load(), d.localDepth(uint64(i))
		for j := i & (1<<local - 1); j < len(d.segments); j += 1 << local {
			if d.segments[j].Load() != sg {
				return fmt.Errorf("segment %d of depth %d is not listed at %d", i, local, j)
			}
		}
		if i < 1<<local {
			sg.visit(func(uint32) { entries++ })
		}
	}
	if entries != c.s.lookup.entries || entries != c.lookedUp {
		return fmt.Errorf("lookup of %d entries, %d of them found, counted %d", entries, c.lookedUp, c.s.lookup.entries)
	}
	return nil
}

// versions checks one key's chain, newest first.
func (c *checker) versions(id uint32, key []byte) error {
	var newer Version
	kept := false // the newest at or below the compact revision has been seen
	for number := c.s.heads.at(id).Load(); number != 0; number = c.s.slots.prev(number) {
		v, err := c.use(number)
		if err != nil {
			return err
		}
		if !bytes.Equal(v.Key, key) {
			return fmt.Errorf("version %d of another key", number)
		}
		if newer.Encoded == nil && !v.Tombstone {
			c.keys++
		}
		if newer.Encoded != nil {
			continues := newer.Tombstone && !v.Tombstone ||
				!newer.Tombstone && v.Tombstone && newer.Version == 1 && newer.CreateRevision == newer.ModRevision ||
				!newer.Tombstone && !v.Tombstone && newer.Version == v.Version+1 && newer.CreateRevision == v.CreateRevision
			ordered := v.ModRevision < newer.ModRevision || v.ModRevision == newer.ModRevision && v.Sub < newer.Sub
			if !continues || !ordered {
				return fmt.Errorf("%d/%d does not precede %d/%d", v.ModRevision, v.Sub, newer.ModRevision, newer.Sub)
			}
		}
		switch {
		case v.ModRevision > c.s.compactRevision:
			c.aboveCompact++
			c.logicalBytes += v.LogicalBytes()
		case !kept:
			kept = true
			if !v.Tombstone {
				c.logicalBytes += v.LogicalBytes()
			}
		}
		newer = v
	}
	if newer.Encoded == nil {
		return fmt.Errorf("no version")
	}
	return nil
}

// use marks a slot as in use and checks its record.
func (c *checker) use(number uint32) (Version, error) {
	if number >= c.s.slots.next || c.seen[number] {
		return Version{}, fmt.Errorf("slot %d is unallocated or used twice", number)
	}
	c.seen[number] = true
	sl := c.s.slots.at(number)
	ref := recordRef(sl.ref.Load())
	if ref == 0 {
		return Version{}, fmt.Errorf("slot %d is used and free", number)
	}
	r := c.s.slabs.record(ref)
	if what := r.fault(ref, sl.main.Load(), number); what != "" {
		return Version{}, fmt.Errorf("slot %d: %s", number, what)
	}
	c.liveBytes[ref.slab()] += r.room()
	return r.version(), nil
}

func (c *checker) retired() error {
	for _, r := range c.s.retirees.queue[c.s.retirees.first:] {
		if r.kind != retiredSlot {
			continue
		}
		if _, err := c.use(r.number); err != nil {
			return fmt.Errorf("retired: %w", err)
		}
	}
	return nil
}

func (c *checker) history() error {
	v := c.s.history.view.Load()
	above := v.after(c.s.compactRevision, c.s.history.count)
	if got := c.s.history.count - above; got != c.aboveCompact {
		return fmt.Errorf("history of %d changes for %d versions above the compact revision", got, c.aboveCompact)
	}
	var lastMain, lastSub, lastFreed int64 = 0, -1, 0
	for n := c.s.compaction.cursor - c.s.compaction.atTarget; n < c.s.history.count; n++ {
		change := v.at(n)
		sl := c.s.slots.at(change.slot)
		if !c.seen[change.slot] || sl.main.Load() != change.main {
			return fmt.Errorf("change %d at %d: slot %d is of another version", n, change.main, change.slot)
		}
		sub := c.s.slabs.record(recordRef(sl.ref.Load())).sub()
		freed := c.s.history.freedBytes(n)
		if change.main < lastMain || change.main == lastMain && sub <= lastSub || freed < lastFreed {
			return fmt.Errorf("change %d at %d/%d out of order", n, change.main, sub)
		}
		lastMain, lastSub, lastFreed = change.main, sub, freed
	}
	return nil
}

// slots checks that a slot is either in use or free.
func (c *checker) slots() error {
	s := &c.s.slots
	if int(s.next)-1 != len(s.free)+len(c.seen) {
		return fmt.Errorf("%d slots, %d free and %d in use", s.next-1, len(s.free), len(c.seen))
	}
	for _, number := range s.free {
		if c.seen[number] || s.at(number).ref.Load() != 0 {
			return fmt.Errorf("slot %d is free and in use", number)
		}
	}
	return nil
}

func (c *checker) slabs() error {
	var total int64
	table := *c.s.slabs.table.Load()
	for i := range table {
		sl := table[i].Load()
		if sl == nil {
			if c.liveBytes[uint32(i)] != 0 {
				return fmt.Errorf("slab %d is gone and in use", i)
			}
			continue
		}
		total += int64(len(sl.bytes))
		if sl.liveBytes != c.liveBytes[uint32(i)] {
			return fmt.Errorf("slab %d: %d live bytes, counted %d", i, c.liveBytes[uint32(i)], sl.liveBytes)
		}
		if !sl.sealed && sl != c.s.slabs.incoming && sl != c.s.slabs.survivors {
			return fmt.Errorf("slab %d is open and forgotten", i)
		}
	}
	if total != c.s.slabs.totalBytes {
		return fmt.Errorf("%d bytes of slabs, counted %d", total, c.s.slabs.totalBytes)
	}
	return nil
}
