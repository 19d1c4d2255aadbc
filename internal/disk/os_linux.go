package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// onDescriptor calls a function with the file's descriptor, again when a signal interrupted it.
func onDescriptor(file *os.File, call func(descriptor int) error) error {
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = connection.Control(func(descriptor uintptr) {
		for {
			if result = call(int(descriptor)); !errors.Is(result, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, result)
}

func datasync(file *os.File) error {
	if err := onDescriptor(file, unix.Fdatasync); err != nil {
		return &os.PathError{Op: "fdatasync", Path: file.Name(), Err: err}
	}
	return nil
}

// openDirect opens a file once more, for writes past the page cache; nil where the file system has no such thing, and where the
// name has become another file's.
func openDirect(file *os.File) *os.File {
	direct, err := os.OpenFile(file.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	have, err := file.Stat()
	if err == nil {
		var opened os.FileInfo
		if opened, err = direct.Stat(); err == nil && os.SameFile(have, opened) {
			return direct
		}
	}
	_ = direct.Close() // nothing was written through it
	return nil
}

// preallocate reserves room where the file system can; where it can't, the zeros written afterwards do.
func preallocate(file *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	err := onDescriptor(file, func(descriptor int) error { return unix.Fallocate(descriptor, 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

func lockFile(file *os.File) error {
	err := onDescriptor(file, func(descriptor int) error {
		return unix.Flock(descriptor, unix.LOCK_EX|unix.LOCK_NB)
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}
