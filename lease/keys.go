package lease

import (
	"slices"

	"github.com/cespare/xxhash/v2"
)

// smallKeySet is how many keys are searched one by one before a map pays.
const smallKeySet = 8

// keySet is the keys of one lease. Nearly every lease has one key or a few, so they stand in a slice; a lease with
// many keys holds them in a map. Neither has an order that anyone sees: sorted gives one.
type keySet struct {
	few  []string
	many map[string]struct{}
	// sum is that of the hashes of all keys, made as they come and go.
	sum uint64
}

func (s *keySet) len() int { return len(s.few) + len(s.many) }

func (s *keySet) add(key string) {
	if s.has(key) {
		return
	}
	s.sum += xxhash.Sum64String(key)
	if s.many != nil {
		s.many[key] = struct{}{}
		return
	}
	if len(s.few) < smallKeySet {
		s.few = append(s.few, key)
		return
	}
	s.many = make(map[string]struct{}, 2*smallKeySet)
	for _, k := range s.few {
		s.many[k] = struct{}{}
	}
	s.many[key] = struct{}{}
	s.few = nil
}

func (s *keySet) has(key string) bool {
	if s.many != nil {
		_, ok := s.many[key]
		return ok
	}
	return slices.Contains(s.few, key)
}

// intact tells whether the keys are still those that were added.
func (s *keySet) intact() bool {
	var sum uint64
	for _, key := range s.few {
		sum += xxhash.Sum64String(key)
	}
	for key := range s.many {
		sum += xxhash.Sum64String(key)
	}
	return sum == s.sum
}

func (s *keySet) remove(key []byte) {
	if !s.has(string(key)) {
		return
	}
	s.sum -= xxhash.Sum64(key)
	if s.many != nil {
		if delete(s.many, string(key)); len(s.many) == 0 {
			s.many = nil
		}
		return
	}
	for i := range s.few {
		if s.few[i] == string(key) {
			last := len(s.few) - 1
			s.few[i], s.few[last] = s.few[last], ""
			if s.few = s.few[:last]; last == 0 {
				s.few = nil
			}
			return
		}
	}
}

// sorted returns copies of the keys in order.
func (s *keySet) sorted() [][]byte {
	keys := make([]string, 0, s.len())
	keys = append(keys, s.few...)
	for k := range s.many {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	copies := make([][]byte, len(keys))
	for i, k := range keys {
		copies[i] = []byte(k)
	}
	return copies
}
