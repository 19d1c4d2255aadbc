package keyspace

import (
	"bytes"
	"encoding/binary"
)

// fences narrows a search among n ascending keys without touching them: the prefix that all of them share, and
// the eight bytes of each that follow it. In real key spaces neighbours differ there.
type fences struct {
	common []byte
	words  []uint64
}

// word is the eight bytes after the first skip ones, zero-padded: keys in ascending order have words that do
// not descend.
func word(key []byte, skip int) uint64 {
	key = key[skip:]
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var w uint64
	for i, b := range key {
		w |= uint64(b) << (56 - 8*i)
	}
	return w
}

// narrow returns lo ≤ hi such that the keys before lo are less than key, those from hi on greater, and those in
// [lo, hi) unknown: they agree with key in all that the fences hold.
func (f *fences) narrow(key []byte) (lo, hi int) {
	c := len(f.common)
	if c > 0 {
		switch order := bytes.Compare(key[:min(c, len(key))], f.common); {
		case order < 0: // also a key that is a proper prefix of the common one
			return 0, 0
		case order > 0:
			return len(f.words), len(f.words)
		}
	}
	w := word(key, c)
	lo, hi = 0, len(f.words)
	for lo < hi {
		middle := int(uint(lo+hi) >> 1)
		if f.words[middle] < w {
			lo = middle + 1
		} else {
			hi = middle
		}
	}
	for hi < len(f.words) && f.words[hi] == w {
		hi++
	}
	return lo, hi
}

// makeFences computes the fences of n ascending keys.
func makeFences(n int, key func(int) []byte) fences {
	f := fences{words: make([]uint64, n)}
	f.fill(key)
	return f
}

// fill computes the fences of len(f.words) ascending keys.
func (f *fences) fill(key func(int) []byte) {
	n := len(f.words)
	if n == 0 {
		return
	}
	first := key(0)
	c := sharedPrefix(first, key(n-1))
	f.common = append([]byte(nil), first[:c]...)
	for i := range f.words {
		f.words[i] = word(key(i), c)
	}
}

func sharedPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
