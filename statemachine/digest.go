package statemachine

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// DigestVersion names the way digests are made. Only digests of the same version and of the same apply version can be
// compared. Raised with every change of what is hashed, the encoding of the small part of an export included.
const DigestVersion = 1 + keyspace.DigestVersion

// DigestInterval is the log time between two digests.
const DigestInterval = 5 * time.Second

// Digest sums up the state after one entry. Two mirrors that applied the same log have equal ones.
type Digest struct {
	Index        uint64
	ApplyVersion uint32
	// Keys is over the live keys, Events over every change of a key that ever was, Tables over all else.
	Keys           [2]uint64
	Events, Tables uint64
}

// Bytes is what is compared.
func (d Digest) Bytes() []byte {
	b := make([]byte, 0, 32)
	for _, part := range [...]uint64{d.Keys[0], d.Keys[1], d.Events, d.Tables} {
		b = binary.BigEndian.AppendUint64(b, part)
	}
	return b
}

// Digest returns that of the present state. The goroutine that applies calls it after an entry with Applied.DigestDue. It
// costs in proportion to the number of frontends, about 0.1 µs each.
func (m *Machine) Digest() (Digest, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	state := m.exportState()
	encoded, err := json.Marshal(&state)
	if err != nil {
		return Digest{}, err
	}
	tables := xxhash.Sum64(encoded)
	for id, f := range m.sessions.frontends { // thousands, where there are thousands: a sum, since a map has no order
		tables += f.seal(id)
		if f.open != nil {
			tables += f.open.seal()
		}
	}
	return Digest{
		Index: m.index, ApplyVersion: m.applyVersion,
		Keys: state.Digest.Live, Events: state.Digest.Events, Tables: tables,
	}, nil
}

// exportDigest gathers the sums that are kept beside the tables and the key space. The caller holds the lock, shared.
func (m *Machine) exportDigest() exportedDigest {
	keys := m.space.Digest()
	return exportedDigest{Live: keys.Live, Events: keys.Events, Leases: m.leases.Digest(), Requests: m.requests.digest}
}

// digestDue tells whether an entry that moved log time from before is the first of its interval: the same on every
// mirror.
func digestDue(before, now int64) bool {
	return before != 0 && before/int64(DigestInterval) != now/int64(DigestInterval)
}

// Scrubber checks, a slice at a time, that memory still is what apply made it: every retained version and each row of the
// tables against its own checksum, all live keys against the sum that apply has kept. Numbers that each entry writes anew,
// such as the index and log time, have none: they stand in the digest. It belongs to one goroutine, any,
// beside the one that applies.
type Scrubber struct {
	machine  *Machine
	phase    scrubPhase
	verifier *keyspace.Verifier
	summer   *keyspace.Summer
	// leases is where the next step goes on, requests what is left.
	leases   int64
	requests requestQueue
}

type scrubPhase uint8

const (
	scrubVersions scrubPhase = iota
	scrubKeys
	scrubLeases
	scrubRequests
	scrubSmall
)

// NewScrubber returns a Scrubber at the beginning of a pass. Close ends it.
func (m *Machine) NewScrubber() *Scrubber {
	return &Scrubber{machine: m, verifier: m.space.NewVerifier()}
}

// Close gives back what a pass that has not ended holds.
func (s *Scrubber) Close() {
	if s.summer != nil {
		s.summer.Close()
		s.summer = nil
	}
}

// scrubRows is about how many rows of a table, and keys that hang on leases, are checked at once, with the tables locked.
const scrubRows = 1024

// Step checks about budget bytes and returns whether that ended the pass: the next call begins another. An error says
// what is corrupt; the pass begins anew after it.
func (s *Scrubber) Step(budget int) (done bool, err error) {
	done, err = s.step(budget)
	if err != nil {
		s.Close()
		s.verifier, s.phase = s.machine.space.NewVerifier(), scrubVersions
		s.requests = requestQueue{}
	}
	return done, err
}

func (s *Scrubber) step(budget int) (bool, error) {
	m := s.machine
	switch s.phase {
	case scrubVersions:
		done, err := s.verifier.Verify(budget)
		if done {
			s.phase, s.summer = scrubKeys, m.space.NewSummer()
		}
		return false, err
	case scrubKeys:
		done, err := s.summer.Sum(budget)
		if done {
			s.Close()
			s.phase, s.leases = scrubLeases, math.MinInt64
		}
		return false, err
	case scrubLeases:
		m.mu.RLock()
		next, more, err := m.leases.Verify(s.leases, scrubRows)
		if s.leases = next; err == nil && !more {
			s.phase, s.requests = scrubRequests, m.requests.queue.snapshot(0)
		}
		m.mu.RUnlock()
		return false, err
	case scrubRequests:
		for range min(s.requests.count, scrubRows) {
			if r := s.requests.at(0); r.checksum() != r.sum { // never modified once they are in the table
				return false, fmt.Errorf("statemachine: request id %q is corrupt in memory", r.id)
			}
			s.requests.pop()
		}
		if s.requests.count == 0 {
			s.requests, s.phase = requestQueue{}, scrubSmall
		}
		return false, nil
	default:
		m.mu.RLock()
		err := m.verifySmall()
		m.mu.RUnlock()
		s.phase = scrubVersions
		return err == nil, err
	}
}
