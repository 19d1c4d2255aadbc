// Package keeper is the clocked side of leases: it renews the leases that one frontend's session owns, without
// an entry in the log, and proposes their end when the time has come.
//
// # The promise
//
// With clocks that drift by at most 1 % and no undetected pause of the machine: a lease never ends before its
// TTL after its last confirmed renewal. A renewal counts as confirmed when the keeper decides it, not when the
// client hears of it. Locks and elections must not rest on this alone; they are safe by revisions (fencing).
//
// What the keeper does for it:
//
//   - It confirms a renewal only while its session is held for certain (SessionHolder, on Config.Clock), only
//     of a lease whose present owner is that session, and not between proposing the lease's end and learning
//     what became of the proposal. A process that was frozen finds its hold lapsed when it wakes up, because
//     the clock went on.
//   - A lease that is granted starts at its TTL. One that changes its owner starts at TTL + S, where S is the
//     session time of the old owner: so long, at most, may the old one have confirmed renewals after the entry
//     that took the lease away. A renewal never brings a deadline nearer.
//   - The deadline is measured by this process's own clock, from the moment when the entry that made it the
//     owner was applied here, which is after it was committed. Being late is safe.
//   - LeaseExpire names the entry that made the session the owner, so that a proposal that comes late is void.
//
// Where the keeper cannot vouch for a renewal it says ErrUnavailable, never that the lease is gone: etcd's
// clients take that for expiry. It says ErrLeaseNotFound only when the log has said so.
//
// # Who calls what
//
// Applied is for the goroutine that applies entries, in order; it never waits for a proposal. Renew, TimeToLive
// and Owned may be called by any number of goroutines at once. Close ends the keeper's goroutines and waits for
// them. When the mirror begins to hold another session, the keeper takes that session's leases from the table.
//
// The rules are in core, a value stepped with an event and a moment; Keeper puts a mutex, a timer and the
// proposing goroutines around it.
package keeper
