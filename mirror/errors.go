package mirror

import "errors"

var (
	// ErrNotApplied says that a command was not applied and never will be: it was never handed to a log member, or the
	// session it was handed over in ended before it applied.
	ErrNotApplied = errors.New("not applied")
	// ErrUnknown says that a command was handed to the log and that this mirror cannot tell whether it was applied, or
	// will be. It is never reported as ErrNotApplied, nor the other way round.
	ErrUnknown = errors.New("outcome unknown")
	// ErrUnavailable says that the log cannot be reached or takes no commands. Together with ErrNotApplied (both match) it
	// says that the command was not handed over.
	ErrUnavailable = errors.New("the log is unavailable")
	// ErrOverloaded says that a bound on waiting work is reached; trying again later helps.
	ErrOverloaded = errors.New("too much waiting work")
	// ErrTooLarge says that a command is larger than the log takes. It was not applied.
	ErrTooLarge = errors.New("command is too large")
	// ErrStopped says that the mirror was stopped.
	ErrStopped = errors.New("mirror is stopped")

	// ErrOtherFrontend says that a data directory was made by a frontend of another name.
	ErrOtherFrontend = errors.New("data directory belongs to another frontend")
	// ErrDirectoryInUse says that another process uses the data directory.
	ErrDirectoryInUse = errors.New("data directory is in use")
	// ErrIncarnationTaken says that the log knows a later start of this frontend than its data directory does: the
	// directory is an old copy, or another process uses a copy of it.
	ErrIncarnationTaken = errors.New("a later incarnation of this frontend is known to the log")
)
