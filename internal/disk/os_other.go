//go:build !linux

package disk

import (
	"errors"
	"os"
	"syscall"
)

// datasync syncs the metadata too where nothing smaller is portable.
func datasync(file *os.File) error { return file.Sync() }

// openDirect leaves all writes to the page cache.
func openDirect(*os.File) *os.File { return nil }

// preallocate leaves the reservation to the zeros written afterwards.
func preallocate(*os.File, int64) error { return nil }

func lockFile(file *os.File) error {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}
