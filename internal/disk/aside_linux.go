package disk

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Syncs aside: the kernel is asked to sync by its asynchronous interface (io_submit(2), IOCB_CMD_FDSYNC of Linux 4.18) and a worker of
// its own waits for the device, while the goroutine waits as it would for a socket. A thread that waits in fdatasync(2) holds one of
// Go's processors until the runtime's monitor takes it away, which where timers have slack is milliseconds later.

// asideWaiting bounds the contexts kept for the next syncs; more at once make contexts of their own.
const asideWaiting = 4

// Of linux/aio_abi.h.
const (
	commandDatasync   = 3 // IOCB_CMD_FDSYNC
	flagResultToEvent = 1 // IOCB_FLAG_RESFD
)

// controlBlock is struct iocb.
type controlBlock struct {
	_           uint64 // aio_data
	_           uint64 // aio_key and aio_rw_flags
	command     uint16
	_           int16 // aio_reqprio
	descriptor  uint32
	_           uint64 // aio_buf
	_           uint64 // aio_nbytes
	_           int64  // aio_offset
	_           uint64 // aio_reserved2
	flags       uint32
	resultEvent uint32
}

// completion is struct io_event.
type completion struct {
	_, _   uint64 // data and obj
	result int64
	_      int64 // res2
}

// aside does one sync at a time.
type aside struct {
	context uintptr // aio_context_t
	// event is the kernel's eventfd, which the runtime's poller waits for.
	event           *os.File
	eventDescriptor uint32
	block           controlBlock
	blocks          [1]*controlBlock
	done            completion
}

// errNotAside says that nothing was asked of the kernel: the caller may sync in another way.
var errNotAside = errors.New("the kernel does not sync aside")

// asides are kept for the next syncs.
var asides = make(chan *aside, asideWaiting)

// asideRefused is set once the kernel has shown that it knows no such syncs, or forbids them.
var asideRefused atomic.Bool

// refuses tells whether an error means that it will always be so.
func refuses(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) ||
		errors.Is(err, os.ErrNoDeadline)
}

func newAside() (*aside, error) {
	a := new(aside)
	if _, _, errno := syscall.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&a.context)), 0); errno != 0 {
		return nil, errno
	}
	descriptor, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		a.close()
		return nil, err
	}
	a.event, a.eventDescriptor = os.NewFile(uintptr(descriptor), "eventfd"), uint32(descriptor)
	if err := a.event.SetReadDeadline(time.Time{}); err != nil { // the poller does not wait for it
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *aside) close() {
	// Both can only fail where there is nothing to give back.
	_, _, _ = syscall.Syscall(unix.SYS_IO_DESTROY, a.context, 0, 0)
	if a.event != nil {
		_ = a.event.Close()
	}
}

// sync returns errNotAside, wrapped with the reason, only where nothing was asked. After any other error nothing is known of what was
// written: the kernel tells a failure to write once, so no second sync may be tried.
func (a *aside) sync(descriptor int) error {
	a.block = controlBlock{command: commandDatasync, descriptor: uint32(descriptor), flags: flagResultToEvent, resultEvent: a.eventDescriptor}
	a.blocks[0] = &a.block
	n, _, errno := syscall.Syscall(unix.SYS_IO_SUBMIT, a.context, 1, uintptr(unsafe.Pointer(&a.blocks)))
	if errno != 0 || n != 1 {
		return fmt.Errorf("%w: %w", errNotAside, errno)
	}
	var count [8]byte
	if _, err := a.event.Read(count[:]); err != nil {
		return fmt.Errorf("wait for the sync: %w", err)
	}
	if n, _, errno = syscall.Syscall6(unix.SYS_IO_GETEVENTS, a.context, 1, 1, uintptr(unsafe.Pointer(&a.done)), 0, 0); errno != 0 || n != 1 {
		return fmt.Errorf("learn how the sync went: %w", errno)
	}
	return a.done.err()
}

func (c completion) err() error {
	if c.result < 0 {
		return syscall.Errno(-c.result)
	}
	return nil
}

// syncAside syncs a file's data, or returns errNotAside where nothing was begun.
func syncAside(descriptor int) error {
	if asideRefused.Load() {
		return errNotAside
	}
	var a *aside
	select {
	case a = <-asides:
	default:
		var err error
		if a, err = newAside(); err != nil {
			if refuses(err) {
				asideRefused.Store(true)
			}
			return fmt.Errorf("%w: %w", errNotAside, err)
		}
	}
	if err := a.sync(descriptor); err != nil {
		a.close() // which waits for a sync that is under way
		if errors.Is(err, errNotAside) && refuses(err) {
			asideRefused.Store(true)
		}
		return err
	}
	select {
	case asides <- a:
	default:
		a.close()
	}
	return nil
}

// SyncsAside tells whether Datasync of files in a directory, which must exist, holds no thread while the device works.
func SyncsAside(directory string) bool {
	file, err := os.Open(directory)
	if err != nil {
		return false
	}
	defer file.Close()
	return onceOnDescriptor(file, syncAside) == nil
}
