package serving

import (
	"crypto/rand"
	"encoding/binary"
	"math"
)

// DrawLeaseID returns a positive id that no other frontend draws, but for a chance that the log then refuses as a lease
// that exists already.
func DrawLeaseID() int64 {
	var random [8]byte
	for {
		rand.Read(random[:]) // never fails
		if id := int64(binary.LittleEndian.Uint64(random[:]) & math.MaxInt64); id != 0 {
			return id
		}
	}
}
