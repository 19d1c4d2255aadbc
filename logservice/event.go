package logservice

import (
	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Event is one thing that happens to a Member. The types below are all there are.
type Event interface{ event() }

// Tick says that one tick interval has passed. Ticks must go on whatever the disk does.
type Tick struct{}

// Received is a frame from another member, in the order in which that member sent its frames. Frames may be lost.
// The member keeps references to the frame.
type Received struct {
	From  uint64
	Frame *logv1.PeerFrame
}

// StorageDone says that the group of the latest Effects.Append has been written and synced; or, with ErrNoSpace, that
// nothing of it was written and that it is to be handed out again later. Any other failure of storage must end the
// process instead.
type StorageDone struct{ Err error }

// Propose is a proposal that a frontend handed to this member on one of its streams.
type Propose struct {
	// Stream names the frontend's stream in rejections and in the account of bytes in flight. Unique for the
	// life of the member, not zero.
	Stream   uint64
	Proposal *logv1.Proposal
}

// StreamClosed says that no more comes from a stream, and that rejections for it have no reader.
type StreamClosed struct{ Stream uint64 }

// AskRound asks for a read round. Tokens are the caller's, and each is answered once, in Effects.Rounds.
type AskRound struct{ Token uint64 }

// Transfer asks to move leadership to a voter. Each token is answered once, in Effects.Transfers.
type Transfer struct {
	Token  uint64
	Target uint64
}

// Measured tells every second or so how far other members are: all that are known, and of those the ones that are connected and
// were heard of late.
type Measured struct{ RoundTrips, Near []*logv1.RoundTrip }

// ChangeMembership asks to add, promote or remove a member. What is added comes with a new random id. Each token is answered
// once, in Effects.Changes.
type ChangeMembership struct {
	Token  uint64
	Change *logv1.MembershipChange
}

// Reconfigure proposes any configuration change that raft knows, for simulations and tests: if this member leads and no other
// one is under way. The change's context is an encoded logv1.Member that says what a member it adds is known by.
type Reconfigure struct{ Change *raftpb.ConfChangeV2 }

// Unreachable says that frames to a member are being lost.
type Unreachable struct{ Member uint64 }

// Unsent returns frames that never left for their target and never will.
type Unsent struct {
	To     uint64
	Frames []*logv1.PeerFrame
}

// Introduced tells the region that another member names as its own.
type Introduced struct {
	Member uint64
	Region string
}

// OfferCheckpoint says that a builder has come with a checkpoint. Each token is answered once, in Effects.Offers.
type OfferCheckpoint struct {
	Token   uint64
	Session uint64
	Name    CheckpointName
}

// HeldCheckpoints tells what this member's store of checkpoints holds durably, all of it.
type HeldCheckpoints struct{ Names []CheckpointName }

// FetchedCheckpoint answers Effects.Fetch. Where Err is nil, the store holds the checkpoint (HeldCheckpoints came before).
type FetchedCheckpoint struct {
	Name CheckpointName
	Err  error
}

// AskCheckpoint asks for a checkpoint of the log as it is now. Each token is answered once, in Effects.Checkpoints.
type AskCheckpoint struct{ Token uint64 }

// Pinned tells the first index that somebody still needs who reads from this member; zero for nothing.
type Pinned struct{ Index uint64 }

// SnapshotStaged answers Effects.Stage.
type SnapshotStaged struct {
	Index uint64
	// Entries are the staged entries of the kinds CHECKPOINT_REQUEST and CHECKPOINT_SEALED, Stamp is the log time at Index.
	Entries []StagedEntry
	Stamp   uint64
	Err     error
}

// StagedEntry is an entry and the running digest of the log up to it.
type StagedEntry struct {
	Entry  Entry
	Digest uint64
}

// Campaign starts an election at once, for simulations and tests.
type Campaign struct{}

func (Tick) event()             {}
func (Received) event()         {}
func (StorageDone) event()      {}
func (Propose) event()          {}
func (StreamClosed) event()     {}
func (AskRound) event()         {}
func (Transfer) event()         {}
func (Measured) event()         {}
func (ChangeMembership) event() {}
func (Reconfigure) event()      {}
func (Unreachable) event()      {}
func (Unsent) event()           {}
func (Introduced) event()       {}
func (Campaign) event()         {}

func (OfferCheckpoint) event()   {}
func (HeldCheckpoints) event()   {}
func (FetchedCheckpoint) event() {}
func (AskCheckpoint) event()     {}
func (Pinned) event()            {}
func (SnapshotStaged) event()    {}

// Effects is what a Member wants done after a Step, all of it, by whoever drives it. The receiver owns the slices;
// what they point to is shared with the member and must not be modified.
type Effects struct {
	// Frames are to be sent; those to one target in this order.
	Frames []OutgoingFrame
	// Append is to be written to the log with one sync; nil for nothing. It is answered by StorageDone, and no other
	// comes before that answer.
	Append *Group
	// Install is to be done to the log in one durable step, in place of an Append; nil for nothing. What it needs was staged
	// before. It is answered by StorageDone as an Append is.
	Install *InstallSnapshot
	// Stage is to be fetched from other members and kept apart until Install asks for it or Unstage gives it up. It is
	// answered by SnapshotStaged; where that has an error, nothing is kept.
	Stage *StageSnapshot
	// Unstage is the index of a staged snapshot that is needed no more; zero for none.
	Unstage uint64
	// SnapshotsSent and SnapshotsInstalled count.
	SnapshotsSent, SnapshotsInstalled int
	// Published is the index up to which this member publishes, after this step. It never goes back.
	Published uint64
	// Durable is the index up to which this member's log, as it is now, is on its disk.
	Durable uint64
	// Entries are the newly published entries, ending at Published. The first ones may be missing where they are no
	// longer in memory (after a restart); they can be read from storage.
	Entries []*raftpb.Entry
	// Slow are batches of streams of this member that took Config.SlowBatchAfter or longer to be published here.
	Slow []SlowBatch
	// AppendTraces are the traces of the batches in Append, one of each batch that is part of any.
	AppendTraces [][]*logv1.TraceContext
	// Traced are those of Entries that are part of traces, in the order of the log.
	Traced []TracedEntry
	// Rejections are for streams of this member.
	Rejections []StreamRejection
	// Rounds are answers to AskRound.
	Rounds []RoundResult
	// Transfers are answers to Transfer.
	Transfers []TransferResult
	// Changes are answers to ChangeMembership.
	Changes []ChangeResult
	// Removed says that this member has applied its own removal: it is to end.
	Removed bool
	// Offers are answers to OfferCheckpoint.
	Offers []OfferResult
	// Checkpoints are answers to AskCheckpoint.
	Checkpoints []CheckpointResult
	// Fetch is a checkpoint that is to be fetched from another member; nil for none. It is answered by FetchedCheckpoint,
	// and no other comes before that answer.
	Fetch *FetchCheckpoint
	// Remove are checkpoints that are needed no more.
	Remove []CheckpointName
	// Trim is the index up to which the log may be trimmed; zero for nothing new. A write of the log and a trim may take
	// turns in any order.
	Trim uint64
	// Verdicts are for the mirrors of the sessions they name, if they listen at this member.
	Verdicts []*logv1.DigestVerdict
	// MembershipChanged says that Member.Membership has a new value.
	MembershipChanged bool
	// Failure, where it is not nil, is why this member can't go on. It must not be stepped again.
	Failure error
}

// OutgoingFrame is a frame and the member it is for.
type OutgoingFrame struct {
	To    uint64
	Frame *logv1.PeerFrame
}

// StreamRejection tells a frontend's stream that a proposal was not put into the log.
type StreamRejection struct {
	Stream    uint64
	Rejection *logv1.AppendRejection
}

// RoundResult answers AskRound: every write acknowledged anywhere before the question lies at or below Index. Index
// is zero where the round failed, and Failure says why.
type RoundResult struct {
	Token   uint64
	Index   uint64
	Failure string
}

// OfferResult answers OfferCheckpoint.
type OfferResult struct {
	Token uint64
	// Held says that this member holds the bytes already.
	Held bool
	// Err says why the offer is not taken.
	Err error
}

// CheckpointResult answers AskCheckpoint.
type CheckpointResult struct {
	Token uint64
	Name  CheckpointName
	Err   error
}

// FetchCheckpoint names a checkpoint and the members that hold it.
type FetchCheckpoint struct {
	Name    CheckpointName
	Holders []uint64
}

// StageSnapshot says what a snapshot needs: a checkpoint, and the entries above it up to Index.
type StageSnapshot struct {
	// Index and Term are those of the last entry, Digest is that of the log up to it.
	Index, Term, Digest uint64
	Checkpoint          CheckpointName
	// CheckpointTerm, CheckpointDigest and CheckpointStamp are those of the log at the checkpoint's index.
	CheckpointTerm, CheckpointDigest, CheckpointStamp uint64
	// Sources are the members to ask, in this order.
	Sources []uint64
}

// InstallSnapshot says with what the log begins anew: after Base, with the staged entries up to Index, then Group. Its
// entries, if there are any, follow Index.
type InstallSnapshot struct {
	Base, BaseTerm, BaseDigest uint64
	Index                      uint64
	Group                      Group
}

// TransferResult answers Transfer with the leader that this member knows by then.
type TransferResult struct {
	Token  uint64
	Leader uint64
	Err    error
}

// ChangeResult answers ChangeMembership: with the membership that this member has applied by then, with the leader's
// refusal, or, where neither came in time, with TimedOut: then whether the change is made is not known.
type ChangeResult struct {
	Token      uint64
	Membership *logv1.Membership
	Refusal    *logv1.ChangeRefusal
	TimedOut   bool
}
