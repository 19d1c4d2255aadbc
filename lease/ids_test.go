package lease

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestOrderedIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ids orderedIDs
		present := make(map[int64]bool)
		// Around the ends of the range too, and enough of them to split chunks and empty them again.
		id := rapid.OneOf(rapid.Int64Range(0, 8*idsPerChunk), rapid.SampledFrom([]int64{math.MinInt64, -1, math.MaxInt64}))
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			adding := rapid.Bool().Draw(t, "adding")
			start, step := id.Draw(t, "start"), rapid.Int64Range(1, 7).Draw(t, "step")
			for range rapid.IntRange(1, 3*idsPerChunk).Draw(t, "count") {
				if adding && !present[start] {
					ids.add(start)
					present[start] = true
				} else if !adding && present[start] {
					ids.remove(start)
					delete(present, start)
				}
				start += step // may wrap around
			}
		}
		for _, chunk := range ids.chunks {
			if len(chunk) == 0 || len(chunk) > idsPerChunk {
				t.Fatalf("a chunk of %d", len(chunk))
			}
		}
		first := id.Draw(t, "first")
		var want []int64
		for id := range present {
			if id >= first {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		var got []int64
		ids.from(first, func(id int64) bool { got = append(got, id); return true })
		if !slices.Equal(got, want) {
			t.Fatalf("%d ids from %d on, want %d", len(got), first, len(want))
		}
	})
}

func BenchmarkGrantRandom(b *testing.B) {
	table := NewTable()
	id := int64(1)
	b.ReportAllocs()
	for i := range b.N {
		id = id*6364136223846793005 + 1442695040888963407
		table.Grant(id, 60, 1, uint64(i)+1)
	}
}
