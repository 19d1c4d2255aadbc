// Package lease is the replicated table of leases: which exist, which session owns each, which keys hang on them, and
// which have lost their owner and until when they may be adopted. The state machine is its only writer.
//
// A lease has an owner: the session of the frontend whose clients renew it. Renewals never reach this table, and the
// table knows no deadline of an owned lease: the owner counts by its own clock and proposes the end. What the table
// decides by itself is the end of an orphan, a lease whose owner's session has ended: at its orphan stamp plus its
// TTL, in log time.
//
// What the package promises:
//  1. The same calls in the same order give the same table and the same answers. Nothing here reads a clock, and
//     where a list of leases or keys is given out it is sorted.
//  2. A change of owner is told with the session time of the owner before, because the new one must let the lease
//     begin at its TTL plus that: the old owner may have confirmed a renewal that nobody else has heard of.
//  3. Ending the session of n leases costs n steps, once. Nothing else depends on the number of leases by more than
//     its logarithm, and a lease holds no timer and no goroutine.
//  4. The table can be pinned: a Pin tells what it was while it goes on changing. Taking one copies nothing; while it is
//     held, the first change of each row after it keeps what the row was, about 100 bytes.
//
// Log times are nanoseconds as in the envelope of a log entry. A Table is not safe for concurrent use: whoever holds
// it guards it.
package lease
