// Package sim runs whole systems from a seed, single-threaded and in virtual time: three or five log members, three to five
// frontends and about three dozen clients, through every fault that its kind has met, and gives what the clients were told to
// the models of test/check. The same seed gives the same run, byte for byte: Result.Trace sums up every event of it.
//
// # What is real, and what is the driver's
//
// Real, the code that ships, called as its shell calls it:
//
//   - logservice.Member: Raft, publication, read rounds, proposals, membership, checkpoints, snapshots
//   - the log in segments (logservice/segment) and the store of checkpoints (logservice/checkpoint), on disk.Memory
//   - logclient.Stepper: which member is used, when it is left, and that a tail has no gap
//   - mirror.Stepper: apply in its order, sessions, batches and resends, shared read rounds, ticks
//   - statemachine.Machine with its key space, and statemachine/checkpoint for what members hold and frontends restart from
//   - keeper.Stepper, watch.Stepper, idgen.Stepper
//
// The driver's, written once more without goroutines: the loop around a member (logservice.Server), the streams for tails,
// proposals, rounds and copies, a frontend's streams and probes, the translation of a client's call into a command, and
// waiting for an index. Not here at all: gRPC and TLS, the image in bbolt (a frontend restarts from a checkpoint of its own
// that it wrote to its disk: bbolt maps a file of the system, and cannot stand on a disk in memory), a frontend's drain of
// clients, authorization, what a mirror does on a verdict, reports on applies, the age of reads. Round trips and times are
// measured in test/cluster, which runs the real shells; real processes are test/e2e's.
//
// In the profile "versions" frontends of two builds run beside each other: this one, and one of the next apply version, which is
// this one with a translation before apply (versions.go). They are upgraded one by one, rolled back in time and too late,
// and the gate is asked for in time and too early. Log members are of one build: nothing that they say has a second version.
//
// # What a seed draws
//
// A seed draws the distances, a profile (see profiles), the load, and a schedule of faults for 35 virtual seconds. Then all is
// healed; everybody must work again within a bound; clients stop, leases end, and all is compared at rest. Power losses may
// come in the middle of a write, of a snapshot and after a trim. Bits rot in one member's log at a time, in the
// segment that is being written to as well: the format tells rot from a torn write there too (logservice/segment/FORMAT.md).
// Clocks drift by up to half a per cent either way. Clocks that must never step do so in one profile only, in which nothing
// is held that rests on them (leases, the hold on a session); wall clocks step anywhere.
//
// # What is checked
//
// While it runs: members publish the same bytes at an index; no state differs at an index (every 8th one); checkpoints of one
// index are the same bytes; no session expires while its frontend holds it; no panic, and no end of a process without a fault;
// no verdict on a digest that was right; no gate passed while a session of a build that does not know what is behind it is
// open, and no such build that goes on beyond it.
// At the end: everything that test/check has, members' logs and frontends' states at rest, and that each of them scrubs clean.
//
// test/mutation plants mistakes in the code that runs here, and docs/mutants.md says which of these checks finds each.
//
// Each kind of fault counts how often it came, and so does what must come of faults; TestSeeds fails where one stays below
// its floor. A failing seed prints the last things that happened, and is kept in regressions.
package sim
