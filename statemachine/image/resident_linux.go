package image

import (
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// dropResident gives back the memory that reading the file through its mapping has taken: what bbolt has looked at, which is
// every page when it opens the file, stays resident in this process, beside the state in memory, until the kernel needs the room. What is read again comes
// from the page cache. The mapping stays as it is while the transaction is open, so nothing moves meanwhile.
func dropResident(tx *bbolt.Tx) {
	size := uintptr(tx.Size()) // at most as much as is mapped
	if data := tx.DB().Info().Data; data != 0 && size > 0 {
		// An error leaves the pages resident, which is no harm.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, data, size, unix.MADV_DONTNEED)
	}
}
