package keeper

import "errors"

type result struct{ Err error }

type info struct {
	TTLSeconds  int64
	Owner       uint64
	OwnerIndex  uint64
	Orphaned    bool
	OrphanStamp int64
}

var errLeaseNotFound = errors.New("lease not found")
