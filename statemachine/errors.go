package statemachine

import (
	"errors"
	"fmt"

	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// What a command can be refused with. A refused command has changed nothing, except where its error says otherwise.
// The errors in Result.Err and those of ValidateCommand match these with errors.Is; their text may say more.
var (
	// ErrCompacted: the revision asked for is below what has been compacted, or, for a Compact, at it.
	ErrCompacted = keyspace.ErrCompacted
	// ErrFutureRevision: the revision asked for has not been reached.
	ErrFutureRevision = keyspace.ErrFuture
	// ErrKeyNotFound: ignore_value or ignore_lease on a key that does not exist.
	ErrKeyNotFound = errors.New("key not found")
	// ErrLeaseNotFound: there is no such lease.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrLeaseExists: there is a lease of that id.
	ErrLeaseExists = errors.New("lease already exists")
	// ErrLeaseTTLTooLarge: the TTL is above lease.MaxTTLSeconds.
	ErrLeaseTTLTooLarge = errors.New("lease TTL too large")
	// ErrNotLeaseOwner: a LeaseExpire of a session that does not own the lease, or no longer by the entry it names.
	// The lease lives on.
	ErrNotLeaseOwner = errors.New("not the owner of the lease")
	// ErrNoSpace: the quota is used up, or its alarm is raised. Deletes and compactions are still taken.
	ErrNoSpace = errors.New("quota of the key space exceeded")
	// ErrEmptyKey: a key of no bytes.
	ErrEmptyKey = errors.New("key is not provided")
	// ErrDuplicateKey: a transaction writes one key twice.
	ErrDuplicateKey = errors.New("duplicate key given in transaction")
	// ErrTooManyOperations: a transaction has more operations, or is nested deeper, than is taken.
	ErrTooManyOperations = errors.New("too many operations in transaction")
	// ErrTooLarge: a command, key or id of more bytes than are taken.
	ErrTooLarge = errors.New("request is too large")
	// ErrValueProvided: a value beside ignore_value.
	ErrValueProvided = errors.New("value is provided")
	// ErrLeaseProvided: a lease beside ignore_lease.
	ErrLeaseProvided = errors.New("lease is provided")
	// ErrInvalidSortOption: a sort order or target that does not exist.
	ErrInvalidSortOption = errors.New("invalid sort option")
	// ErrInvalidCommand: a command that says nothing, or something that can mean nothing.
	ErrInvalidCommand = errors.New("invalid command")
	// ErrInvalidSettings: a setting outside its bounds.
	ErrInvalidSettings = errors.New("invalid settings")
	// ErrTooManyRegions: more regions would not be open than the table holds.
	ErrTooManyRegions = errors.New("too many regions")
	// ErrApplyVersion: a process with an open session does not understand the apply version, or it is not the next.
	ErrApplyVersion = errors.New("apply version cannot be raised")
	// ErrRegionFenced: the session of the command was ended by a fence earlier in its own batch. Not applied.
	ErrRegionFenced = errors.New("region is fenced")
	// ErrNotInteger: the value of a key whose integer is to be changed is none.
	ErrNotInteger = errors.New("value is not an integer")
	// ErrIntegerRange: the sum is not within 64 bits.
	ErrIntegerRange = errors.New("integer is out of range")
	// ErrNotSet: the value of a key whose set is to be changed is none.
	ErrNotSet = errors.New("value is not a set")
	// ErrEmptyMember: a member of a set that has no bytes.
	ErrEmptyMember = errors.New("member of a set is empty")
	// ErrOverLimit: a set or value would grow beyond the bound that the mutation names.
	ErrOverLimit = errors.New("limit of the mutation would be exceeded")
	// ErrValueTooLarge: a mutation would make a value larger than mutations may.
	ErrValueTooLarge = errors.New("value would be too large")
	// ErrRequestIDMalformed: a request id is not "<log index>-<unique>".
	ErrRequestIDMalformed = errors.New("malformed request id")
	// ErrRequestIDFuture: a request id names an index that is not below its own entry's.
	ErrRequestIDFuture = errors.New("request id names a log index not yet reached")
	// ErrRequestIDMismatch: another request under a known id.
	ErrRequestIDMismatch = errors.New("request id was used for another request")
	// ErrRequestIDTooOld: the id is older than what is remembered; whether it was applied cannot be told.
	ErrRequestIDTooOld = errors.New("request id is too old to tell whether it was applied")
)

// What Apply returns when it must not go on. The machine then refuses every further entry.
var (
	// ErrUnknown: the entry says something that this build does not understand. Skipping it would let this copy differ
	// from the others, so it has to stop.
	ErrUnknown = errors.New("statemachine: entry not understood by this version")
	// ErrMalformed: an entry's payload does not decode.
	ErrMalformed = errors.New("statemachine: malformed entry")
	// ErrOutOfOrder: the entry is not the one after the last that was applied.
	ErrOutOfOrder = errors.New("statemachine: entry out of order")
)

// InvalidError is a command that is refused for what it says, whatever the state.
type InvalidError struct {
	// Field is the path of the field, as in the proto: "put.key", "txn.success[2].put.value".
	Field string
	// Limit is the bound that Value exceeds; both zero where the fault is none of size.
	Limit, Value int64
	// Err is the sentinel.
	Err error
}

// Error names the field, the fault and, for a bound, both sides of it.
func (e *InvalidError) Error() string {
	if e.Limit != 0 || e.Value != 0 {
		return fmt.Sprintf("%s: %v: %d, limit %d", e.Field, e.Err, e.Value, e.Limit)
	}
	return fmt.Sprintf("%s: %v", e.Field, e.Err)
}

// Unwrap returns the sentinel.
func (e *InvalidError) Unwrap() error { return e.Err }

// errorCode numbers the errors that the request id table may have to remember. Part of the replicated state: numbers
// are never used again for another error.
type errorCode uint8

var outcomeErrors = [...]error{
	1:  ErrCompacted,
	2:  ErrFutureRevision,
	3:  ErrKeyNotFound,
	4:  ErrLeaseNotFound,
	5:  ErrLeaseExists,
	6:  ErrLeaseTTLTooLarge,
	7:  ErrNotLeaseOwner,
	8:  ErrNoSpace,
	9:  ErrEmptyKey,
	10: ErrDuplicateKey,
	11: ErrTooManyOperations,
	12: ErrTooLarge,
	13: ErrValueProvided,
	14: ErrLeaseProvided,
	15: ErrInvalidSortOption,
	16: ErrInvalidCommand,
	17: ErrInvalidSettings,
	18: ErrTooManyRegions,
	19: ErrApplyVersion,
	20: errRefused,
	21: ErrIDNodesUsedUp,
	22: ErrIDNodeNotHeld,
	23: ErrIDTime,
	24: ErrIDRangeUsedUp,
	25: ErrIDRangeMaximum,
	26: ErrIDSequenceUsedUp,
	27: ErrIDNames,
	28: ErrIDName,
	29: ErrIDCount,
	30: ErrNotInteger,
	31: ErrIntegerRange,
	32: ErrNotSet,
	33: ErrEmptyMember,
	34: ErrOverLimit,
	35: ErrValueTooLarge,
}

// codeRefused is the code of errRefused.
const codeRefused errorCode = 20

// errRefused stands for a refusal whose reason was not remembered.
var errRefused = errors.New("refused")

func encodeError(err error) errorCode {
	if err == nil {
		return 0
	}
	for code := 1; code < len(outcomeErrors); code++ {
		if errors.Is(err, outcomeErrors[code]) {
			return errorCode(code)
		}
	}
	// Every error that a command can be refused with is in the list: see TestEveryErrorHasACode. Were one forgotten, all
	// mirrors would still agree on this.
	return codeRefused
}

func (c errorCode) err() error {
	if c == 0 {
		return nil
	}
	return outcomeErrors[c]
}
