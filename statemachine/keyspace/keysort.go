package keyspace

import (
	"bytes"
	"cmp"
	"math"
	"math/bits"
	"runtime"
	"slices"
	"sync"
)

// keySorter sorts entries by (key, slot), on all processors. It compares eight bytes of each key at a time, which stand
// beside the entry as a word: keys themselves lie all over memory, and are looked at again only where words are equal. Two
// entries of one key have equal words at the end.
type keySorter struct {
	keyOf func(slot uint32) []byte
	// spare holds a token for each goroutine beside the first.
	spare   chan struct{}
	running sync.WaitGroup
}

const (
	// fewEntries are compared key by key.
	fewEntries = 12
	// spreadEntries are worth a goroutine.
	spreadEntries = 1 << 12
)

// sortByKey sorts entries whose keys share their first bytes; each entry's word is of what follows these.
func sortByKey(entries []bulkEntry, keyOf func(slot uint32) []byte, shared int) {
	k := &keySorter{keyOf: keyOf, spare: make(chan struct{}, runtime.GOMAXPROCS(0)-1)}
	if slices.ContainsFunc(entries, func(e bulkEntry) bool { return e.word == 0 && len(keyOf(e.slot)) == shared }) {
		k.byKey(entries, shared)
	} else {
		k.byWord(entries, shared, bits.Len(uint(len(entries))))
	}
	k.running.Wait()
}

// spawn lets work go on beside the caller if it is worth it and a processor may be idle.
func (k *keySorter) spawn(entries int, work func()) {
	if entries >= spreadEntries {
		select {
		case k.spare <- struct{}{}:
			k.running.Go(func() {
				work()
				<-k.spare
			})
			return
		default:
		}
	}
	work()
}

// byKey sorts entries whose keys share their first bytes.
func (k *keySorter) byKey(e []bulkEntry, shared int) {
	if len(e) <= fewEntries {
		slices.SortFunc(e, func(x, y bulkEntry) int {
			if order := bytes.Compare(k.keyOf(x.slot)[shared:], k.keyOf(y.slot)[shared:]); order != 0 {
				return order
			}
			return cmp.Compare(x.slot, y.slot)
		})
		return
	}
	// A key that ends here comes before all others, also before one that goes on with zeros and so has the same word.
	ended := 0
	for i := range e {
		key := k.keyOf(e[i].slot)
		e[i].word = word(key, shared)
		if len(key) == shared {
			e[i], e[ended] = e[ended], e[i]
			ended++
		}
	}
	slices.SortFunc(e[:ended], func(x, y bulkEntry) int { return cmp.Compare(x.slot, y.slot) })
	k.byWord(e[ended:], shared, bits.Len(uint(len(e))))
}

// byWord sorts entries with words of what follows the shared bytes, which no key ends with. It takes many apart before they
// are sorted, so that several goroutines can; splits bounds that where it does not get on.
func (k *keySorter) byWord(e []bulkEntry, shared, splits int) {
	for ; len(e) > spreadEntries && splits > 0; splits-- {
		pivot := middleWord(e)
		n := partition(e, pivot)
		if n > 0 {
			below, splits := e[:n], splits-1
			k.spawn(n, func() { k.byWord(below, shared, splits) })
			e = e[n:]
			continue
		}
		// The pivot is the least.
		if n = len(e); pivot < math.MaxUint64 {
			n = partition(e, pivot+1)
		}
		equal := e[:n]
		k.spawn(n, func() { k.ties(equal, shared) })
		e = e[n:]
	}
	slices.SortFunc(e, func(x, y bulkEntry) int { return cmp.Compare(x.word, y.word) })
	for len(e) > 0 {
		n := 1
		for n < len(e) && e[n].word == e[0].word {
			n++
		}
		k.ties(e[:n], shared)
		e = e[n:]
	}
}

// ties sorts entries with equal words by the rest of their keys.
func (k *keySorter) ties(e []bulkEntry, shared int) {
	if len(e) > fewEntries {
		prefix := k.keyOf(e[0].slot)
		for i := range e {
			prefix = prefix[:sharedPrefix(prefix, k.keyOf(e[i].slot))]
		}
		shared = len(prefix)
	}
	k.byKey(e, shared)
}

// middleWord is the median of some words.
func middleWord(e []bulkEntry) uint64 {
	var some [9]uint64
	for i := range some {
		some[i] = e[(2*i+1)*len(e)/(2*len(some))].word
	}
	slices.Sort(some[:])
	return some[len(some)/2]
}

// partition brings the entries whose words are below the bound before all others, and returns how many they are. Entries
// that are in order already stay so.
func partition(e []bulkEntry, bound uint64) int {
	low, high := 0, len(e)
	for {
		for low < high && e[low].word < bound {
			low++
		}
		for low < high && e[high-1].word >= bound {
			high--
		}
		if low == high {
			return low
		}
		e[low], e[high-1] = e[high-1], e[low]
	}
}
