package segment

import (
	"errors"
	"fmt"

	"github.com/logmirror/logmirror/internal/disk"
)

var (
	// ErrCorrupt says that what is on disk is not what was acknowledged. Errors of this kind are *CorruptError.
	ErrCorrupt = errors.New("segment: the log on disk is damaged")
	// ErrOtherMember says that the directory belongs to another member, cluster or data directory. Errors of this kind
	// are *OtherMemberError.
	ErrOtherMember = errors.New("segment: the log belongs to another member")
	// ErrLocked says that another process has the log open.
	ErrLocked = disk.ErrLocked
	// ErrNoSpace says that there is no room for the next segment. Nothing was written and reads go on; the same call may
	// be repeated when there is room.
	ErrNoSpace = disk.ErrNoSpace
	// ErrTrimmed says that an index lies before the log's first entry.
	ErrTrimmed = errors.New("segment: entry was trimmed")
	// ErrUnavailable says that an index lies behind the log's last entry.
	ErrUnavailable = errors.New("segment: entry is beyond the end of the log")
	// ErrInvalid says that a group can't follow the log as it is: a gap, a term that goes back, a cut of committed
	// entries. Nothing was written. It is an error of the caller.
	ErrInvalid = errors.New("segment: group does not fit the log")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("segment: log is closed")
)

// CorruptError names the place of damage. The member must not go on with this log: what it has acknowledged may be lost,
// so it has to rejoin under a new id.
type CorruptError struct {
	// File is the path of the damaged segment.
	File string
	// Offset is where the frame begins that is not as it was written, in bytes from the start of the file.
	Offset int64
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("segment: %s is damaged at offset %d: %s", e.File, e.Offset, e.Reason)
}

// Is reports ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// OtherMemberError tells whose log was found.
type OtherMemberError struct {
	// File is the path of the segment that says so.
	File string
	// Want is the identity the log was opened with, Have the one on disk.
	Want, Have Identity
}

func (e *OtherMemberError) Error() string {
	return fmt.Sprintf("segment: %s belongs to %v, this is %v", e.File, e.Have, e.Want)
}

// Is reports ErrOtherMember.
func (e *OtherMemberError) Is(target error) bool { return target == ErrOtherMember }
