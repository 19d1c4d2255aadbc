package processes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// smallDiskBytes is the size of the file systems that are filled.
const smallDiskBytes = 16 << 20

// ErrNoMount says that no file system can be mounted here: that takes root, on Linux.
var ErrNoMount = errors.New("a file system to be filled can't be mounted here, which takes root on Linux")

// SmallDisk is a file system of its own for one process's data.
type SmallDisk struct{ directory string }

// MountSmall puts a process's data directory on a small file system, before it is started for the first time. Unmount it
// when the process has ended. The error is ErrNoMount where it is not allowed.
func (c *Cluster) MountSmall(p *Process) (*SmallDisk, error) {
	d := &SmallDisk{filepath.Join(c.Data, p.Name)}
	if err := os.Mkdir(d.directory, 0o700); err != nil {
		return nil, err
	}
	if err := mountTemporary(d.directory, smallDiskBytes); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoMount, err)
	}
	return d, nil
}

func (d *SmallDisk) ballast() string { return filepath.Join(d.directory, "ballast") }

// Fill takes all room that is left.
func (d *SmallDisk) Fill() (err error) {
	file, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	block := make([]byte, 4096)
	for {
		if _, err := file.Write(block); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Free gives the room back.
func (d *SmallDisk) Free() error { return os.Remove(d.ballast()) }

// Unmount ends the file system, and what is on it.
func (d *SmallDisk) Unmount() error { return unmount(d.directory) }
