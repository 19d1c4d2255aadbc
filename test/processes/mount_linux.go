package processes

import (
	"fmt"
	"syscall"
)

func mountTemporary(directory string, bytes int64) error {
	return syscall.Mount("tmpfs", directory, "tmpfs", 0, fmt.Sprintf("size=%d", bytes))
}

func unmount(directory string) error { return syscall.Unmount(directory, 0) }
