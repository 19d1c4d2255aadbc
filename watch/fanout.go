package watch

import (
	"sort"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of kv.v1.Event, which are those of etcd's mvccpb.Event.
const (
	eventTypeField     protowire.Number = 1
	eventKVField       protowire.Number = 2
	eventPreviousField protowire.Number = 3

	eventTypeDelete = 1
)

// event is one change on its way to watches. Its slices belong to the key space and are never written.
type event struct {
	revision int64
	put      bool
	key      []byte
	// kv is the encoded key-value.
	kv []byte
	// previous is the encoded version before, nil if there is none. It is set from the start for live events,
	// and looked up when first wanted for events from history.
	previous      []byte
	previousKnown bool
	// plain and full are the event's encodings without and with the previous version, made when first wanted and
	// shared by all who get the event.
	plain, full []byte
}

func encodeEvent(put bool, kv, previous []byte) []byte {
	size := 2 + protowire.SizeTag(eventKVField) + protowire.SizeBytes(len(kv))
	if previous != nil {
		size += protowire.SizeTag(eventPreviousField) + protowire.SizeBytes(len(previous))
	}
	b := make([]byte, 0, size)
	if !put {
		b = protowire.AppendTag(b, eventTypeField, protowire.VarintType)
		b = protowire.AppendVarint(b, eventTypeDelete)
	}
	b = protowire.AppendTag(b, eventKVField, protowire.BytesType)
	b = protowire.AppendBytes(b, kv)
	if previous != nil {
		b = protowire.AppendTag(b, eventPreviousField, protowire.BytesType)
		b = protowire.AppendBytes(b, previous)
	}
	return b
}

// fanout takes a run of events in order and says which watches of an index get which of them. The work per
// event is finding the groups that contain its key; the work per watch is handing over a bundle that its whole
// group shares. One fanout is used again and again, to keep its memory.
type fanout struct {
	events []event
	hits   []hit
	// previous looks up the encoded version before an event; nil where every event knows it.
	previous func(*event) []byte
	// encoded counts the encodings made.
	encoded uint64
}

// hit is a group and the events that fall into its span, as places in fanout.events.
type hit struct {
	group  *group
	events []int32
}

// bundle is what one watch gets: encoded events, shared with others, not to be modified.
type bundle struct {
	events [][]byte
	bytes  int
	// first is the revision of the first event.
	first int64
	// made tells a bundle that was worked out and is empty from one that was not.
	made bool
}

// add offers one event to an index and keeps it if any group contains its key.
func (f *fanout) add(ix *index, e event) (matched bool) {
	place := int32(len(f.events))
	ix.find(e.key, func(g *group) {
		matched = true
		if g.slot == 0 {
			if len(f.hits) < cap(f.hits) {
				f.hits = f.hits[:len(f.hits)+1]
			} else {
				f.hits = append(f.hits, hit{})
			}
			h := &f.hits[len(f.hits)-1]
			h.group, h.events = g, h.events[:0]
			g.slot = int32(len(f.hits))
		}
		h := &f.hits[g.slot-1]
		h.events = append(h.events, place)
	})
	if matched {
		f.events = append(f.events, e)
	}
	return matched
}

// each calls deliver for every watch that gets something, and empties the fanout. deliver may take the watch
// that it is called with out of its group, and no other.
func (f *fanout) each(deliver func(*watch, bundle)) {
	for i := range f.hits {
		h := &f.hits[i]
		g := h.group
		first := f.events[h.events[0]].revision
		var shared [classes]bundle
		// Backwards: a watch that leaves the group is replaced by the last one, which had its turn.
		for j := len(g.watches) - 1; j >= 0; j-- {
			w := g.watches[j]
			var b bundle
			if w.next > first {
				b = f.bundle(h.events[f.firstAt(h.events, w.next):], w.options)
			} else {
				c := w.options.class()
				if !shared[c].made {
					shared[c] = f.bundle(h.events, w.options)
				}
				b = shared[c]
			}
			if len(b.events) > 0 {
				deliver(w, b)
			}
		}
		g.slot = 0
		h.group = nil
	}
	f.reset()
}

// firstAt returns how many of the places hold events below the revision.
func (f *fanout) firstAt(places []int32, revision int64) int {
	return sort.Search(len(places), func(i int) bool { return f.events[places[i]].revision >= revision })
}

func (f *fanout) bundle(places []int32, o options) bundle {
	b := bundle{made: true}
	for _, place := range places {
		e := &f.events[place]
		if e.put && o&noPut != 0 || !e.put && o&noDelete != 0 {
			continue
		}
		encoded := f.encode(e, o&previousKV != 0)
		if b.events == nil {
			b.first = e.revision
			b.events = make([][]byte, 0, len(places))
		}
		b.events = append(b.events, encoded)
		b.bytes += len(encoded)
	}
	return b
}

func (f *fanout) encode(e *event, withPrevious bool) []byte {
	if withPrevious && !e.previousKnown {
		e.previous, e.previousKnown = f.previous(e), true
	}
	if !withPrevious || e.previous == nil {
		if e.plain == nil {
			f.encoded++
			e.plain = encodeEvent(e.put, e.kv, nil)
		}
		return e.plain
	}
	if e.full == nil {
		f.encoded++
		e.full = encodeEvent(e.put, e.kv, e.previous)
	}
	return e.full
}

// keptCapacity bounds what a fanout keeps between uses.
const keptCapacity = 4096

func (f *fanout) reset() {
	clear(f.events)
	f.events, f.hits = f.events[:0], f.hits[:0]
	if cap(f.events) > keptCapacity {
		f.events = nil
	}
	if cap(f.hits) > keptCapacity {
		f.hits = nil
	}
}
