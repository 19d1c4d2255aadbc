//go:build !linux

package image

import "go.etcd.io/bbolt"

// dropResident leaves it to the kernel which pages of the mapped file stay in memory.
func dropResident(*bbolt.Tx) {}
