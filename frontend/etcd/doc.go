// Package etcd serves etcd's v3 API (KV, Watch, Lease, Cluster, Maintenance) from one region's mirror, so that etcd's
// own clients, its concurrency package and etcdctl work against any region without change.
//
// # What is promised
//
// Requests, answers, error codes and error texts are those of etcd 3.7. Where the two systems differ, the difference is
// one that etcd's API leaves room for:
//
//   - The header's cluster_id is the log's, member_id is the id of the answering frontend, raft_term is the log's term at
//     the last applied entry, and revision is that of the state that answered.
//   - MemberList names every frontend with an open session. Client URLs are given only for the frontends of the answering
//     region: etcd's clients balance over every URL that they are given, and would cross an ocean for a read.
//   - Membership of the log is not changed through this API. MemberAdd, MemberRemove, MemberUpdate, MemberPromote,
//     MoveLeader, Downgrade and Snapshot answer UNIMPLEMENTED with a text that says what to use instead. Defragment
//     succeeds and does nothing: there is nothing to defragment.
//   - Hash and HashKV hash what the state says, not how it is stored: the same revision has the same hash in every region
//     and whatever its compaction progress. The values are not comparable to those of an etcd server.
//   - "No leader" (clientv3.WithRequireLeader) means that this region has lost the log: calls that ask for a leader are
//     refused, and watch streams that did end some time later. Other watches go on in silence until the log is back.
//   - KeepAlive ends its stream with UNAVAILABLE when this frontend cannot vouch for a renewal. A TTL of zero is only ever
//     said of a lease that does not exist, because clients take it for the lease's end.
//
// # Outcome of a failed write
//
// A write that was not applied and never will be fails with UNAVAILABLE ("etcdserver: no leader", or RESOURCE_EXHAUSTED
// "etcdserver: too many requests" where the log is overloaded, with a google.rpc.RetryInfo that says when to come again) and
// carries a google.rpc.ErrorInfo with the domain "logmirror" and the reason NOT_APPLIED: it may be sent again. In a drained or fenced region the text of that UNAVAILABLE,
// and a logmirror.kv.v1.RegionRefusal beside it, name frontends of other regions to go to. A write whose outcome is not
// known fails with DEADLINE_EXCEEDED or CANCELED when the caller's own deadline or cancellation ended the wait, else with
// UNKNOWN, and carries the reason OUTCOME_UNKNOWN. UNKNOWN was chosen over etcd's own UNAVAILABLE ("request timed out")
// because no client and no proxy repeats a request by itself on UNKNOWN.
//
// # Metadata of requests
//
// What etcd's messages have no field for is asked for by gRPC metadata:
//
//	logmirror-consistency                "serializable" or "linearizable": overrides the request's own field on reads
//	logmirror-min-revision               a revision; the read waits until this region has reached it
//	logmirror-token                      a token, "<cluster id in hex>-<epoch>-<log index>"; the read waits for it
//	logmirror-max-staleness-milliseconds with serializable: UNAVAILABLE if the state may be older than this
//	logmirror-request-id                 makes a write safe to repeat through any region: "<log index last seen>-<unique>"
//	logmirror-wait-for-log               "true": while the log is out of reach, wait up to the caller's deadline
//	logmirror-sync-regions               regions, by commas, or "*": answer once their live mirrors have applied the write
//	logmirror-sync-timeout-milliseconds  how long to wait for them; 10,000 where it is not given
//
// A value that cannot be read is INVALID_ARGUMENT and names its key.
//
// # Metadata of answers
//
// Response headers (unary calls, and the first answer of a stream):
//
//	logmirror-token   a token of the state that answered, "<cluster id in hex>-<epoch>-<log index>", to be handed to a read in any
//	                  region: the log index is that of the last log entry that this state had applied
//	logmirror-answer  "incarnation=<number> age-microseconds=<number> region=<name>": a count of the starts of the frontend
//	                  that answered, within one of which serializable reads never go backwards; how long before the answer the
//	                  state held every write acknowledged anywhere, rounded up to a millisecond, -1 while unknown; its region,
//	                  which ends the value, since a name may have spaces
package etcd
