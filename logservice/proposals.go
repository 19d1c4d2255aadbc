package logservice

import (
	"errors"
	"hash/fnv"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// proposalOrigin says who gets the rejection of a proposal: a stream of this member, or of another one.
type proposalOrigin struct {
	member uint64
	stream uint64
}

// queuedProposal waits to be stamped and handed to raft with those beside it, since a tick.
type queuedProposal struct {
	proposal *logv1.Proposal
	origin   proposalOrigin
	tick     int
}

// envelopeOverheadBytes is about what an envelope adds to its payload.
const envelopeOverheadBytes = 32

const (
	retryNoLeaderMilliseconds   = 100
	retryOverloadedMilliseconds = 50
	retryNoSpaceMilliseconds    = 1000
)

// propose takes a proposal from a stream of this member.
func (m *Member) propose(stream uint64, p *logv1.Proposal) {
	origin := proposalOrigin{m.config.ID, stream}
	if reason := m.unacceptable(p); reason != 0 {
		m.reject(origin, p, reason)
		return
	}
	leader := m.raft.BasicStatus().Lead
	if leader == 0 {
		m.reject(origin, p, logv1.AppendRejection_REASON_NO_LEADER)
		return
	}
	if !m.inFlight.add(stream, p, m.ticks, m.now) {
		m.reject(origin, p, logv1.AppendRejection_REASON_OVERLOADED)
		return
	}
	if leader == m.config.ID {
		m.queueProposal(p, origin)
		return
	}
	m.send(leader, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Proposal{
		Proposal: &logv1.ForwardedProposal{Proposal: p, Stream: stream}}})
}

// receiveProposal takes a proposal that another member forwards to the leader.
func (m *Member) receiveProposal(from uint64, f *logv1.ForwardedProposal) {
	p, origin := f.GetProposal(), proposalOrigin{from, f.GetStream()}
	if p == nil {
		return
	}
	switch reason := m.unacceptable(p); {
	case reason != 0:
		m.reject(origin, p, reason)
	case m.raft.BasicStatus().RaftState != raft.StateLeader:
		m.reject(origin, p, logv1.AppendRejection_REASON_NO_LEADER)
	default:
		m.queueProposal(p, origin)
	}
}

// unacceptable says why a proposal can't be taken by any leader, zero where it can.
func (m *Member) unacceptable(p *logv1.Proposal) logv1.AppendRejection_Reason {
	switch p.GetKind() {
	case logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, logv1.EntryKind_ENTRY_KIND_TICK:
	case logv1.EntryKind_ENTRY_KIND_BATCH:
		if p.GetSession() == 0 || p.GetSeq() == 0 {
			return logv1.AppendRejection_REASON_INVALID
		}
	default:
		return logv1.AppendRejection_REASON_INVALID
	}
	if len(p.GetPayload()) > m.config.MaxPayloadBytes {
		return logv1.AppendRejection_REASON_TOO_LARGE
	}
	return 0
}

// holdsProposals tells whether proposals wait for company. While a leader writes one group, what comes meanwhile waits
// for the end of that, or the next tick: it would wait for the disks anyway, here as at the followers, and the cost of a
// message, a group and an ack is per piece. A full message gains nothing by waiting.
func (m *Member) holdsProposals() bool {
	return len(m.proposals) > 0 && m.groups.writing != nil && m.groups.retryAt == 0 && m.leading &&
		m.proposals[0].tick == m.ticks && m.proposalBytes < m.config.MaxMessageBytes
}

func (m *Member) queueProposal(p *logv1.Proposal, origin proposalOrigin) {
	m.proposals = append(m.proposals, queuedProposal{p, origin, m.ticks})
	m.proposalBytes += len(p.GetPayload()) + envelopeOverheadBytes
}

// flushProposals stamps the proposals that wait and hands them to raft as one, unless they are to wait for more. It
// reports whether it did.
func (m *Member) flushProposals() bool {
	if len(m.proposals) == 0 || m.holdsProposals() {
		return false
	}
	queued := m.proposals
	m.proposalBytes = 0
	m.proposals = nil
	status := m.raft.BasicStatus()
	reason := logv1.AppendRejection_REASON_NO_LEADER
	if status.RaftState == raft.StateLeader && status.LeadTransferee == 0 && m.leading {
		reason = logv1.AppendRejection_REASON_NO_SPACE
		if !m.noSpace {
			queued = m.appendWhatFits(queued)
			reason = logv1.AppendRejection_REASON_OVERLOADED
		}
	}
	for _, q := range queued {
		m.reject(q.origin, q.proposal, reason)
	}
	return true
}

// appendWhatFits puts proposals into the log and returns those that go beyond the bound on what is not committed, or beyond
// their stream's fair share of it. Where one of a stream is refused, so are those behind it.
func (m *Member) appendWhatFits(queued []queuedProposal) (refused []queuedProposal) {
	admitted := queued[:0]
	var full map[proposalOrigin]bool
	for _, q := range queued {
		bytes := len(q.proposal.GetPayload()) + envelopeOverheadBytes
		if full[q.origin] || !m.uncommitted.share.admits(q.origin, bytes) {
			if full == nil {
				full = map[proposalOrigin]bool{}
			}
			full[q.origin] = true
			refused = append(refused, q)
			continue
		}
		m.uncommitted.add(q.origin, bytes)
		admitted = append(admitted, q)
	}
	if len(admitted) > 0 && !m.appendProposals(admitted) {
		m.uncommitted.takeBack(len(admitted))
		refused = append(admitted, refused...)
	}
	return refused
}

// fairShare divides a bound on bytes among those who use it. Whoever holds some already is admitted as long as it holds no more
// than is left free: one flood takes half of the bound, n floods that begin together 1/(n+1) each, and as much is left for
// whoever brings something next. One that begins among others gets half of what they left, and more as they are served: shares
// meet as what is held is committed. Whoever holds nothing is admitted where there is room, and always where nobody holds any.
type fairShare[K comparable] struct {
	maxBytes, bytes int
	used            map[K]int
}

func newFairShare[K comparable](maxBytes int) fairShare[K] {
	return fairShare[K]{maxBytes: maxBytes, used: map[K]int{}}
}

func (f *fairShare[K]) admits(key K, bytes int) bool {
	used, free := f.used[key], f.maxBytes-f.bytes
	return f.bytes == 0 || bytes <= free && (used == 0 || used+bytes <= free)
}

func (f *fairShare[K]) add(key K, bytes int) {
	f.used[key] += bytes
	f.bytes += bytes
}

func (f *fairShare[K]) remove(key K, bytes int) {
	f.bytes -= bytes
	if f.used[key] -= bytes; f.used[key] <= 0 {
		delete(f.used, key)
	}
}

// uncommitted accounts for the proposals that this leader has appended in its term and not applied yet, in the order of the log.
type uncommitted struct {
	share fairShare[proposalOrigin]
	queue []uncommittedProposal
	// first is the index in queue of the first that is not applied.
	first int
}

type uncommittedProposal struct {
	origin proposalOrigin
	bytes  int
}

func (u *uncommitted) add(origin proposalOrigin, bytes int) {
	u.share.add(origin, bytes)
	u.queue = append(u.queue, uncommittedProposal{origin, bytes})
}

// takeBack forgets the last n.
func (u *uncommitted) takeBack(n int) {
	for _, p := range u.queue[len(u.queue)-n:] {
		u.share.remove(p.origin, p.bytes)
	}
	u.queue = u.queue[:len(u.queue)-n]
}

// applied forgets the first one.
func (u *uncommitted) applied() {
	if u.first == len(u.queue) {
		return
	}
	u.share.remove(u.queue[u.first].origin, u.queue[u.first].bytes)
	u.first++
	if 2*u.first >= len(u.queue) {
		u.queue = append(u.queue[:0], u.queue[u.first:]...)
		u.first = 0
	}
}

func (u *uncommitted) reset() {
	*u = uncommitted{share: newFairShare[proposalOrigin](u.share.maxBytes)}
}

// isProposal tells the kinds of entries that streams propose from those of the log service's own.
func isProposal(kind logv1.EntryKind) bool {
	switch kind {
	case logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, logv1.EntryKind_ENTRY_KIND_TICK, logv1.EntryKind_ENTRY_KIND_BATCH:
		return true
	}
	return false
}

// appendProposals stamps proposals and hands them to raft as one. It reports false where raft takes none of them.
func (m *Member) appendProposals(queued []queuedProposal) bool {
	entries := make([]*raftpb.Entry, len(queued))
	for i, q := range queued {
		p := q.proposal
		entries[i] = &raftpb.Entry{Data: encodeEnvelope(envelopeHeader{kind: p.GetKind(),
			stamp: m.clock.next(m.now), session: p.GetSession(), seq: p.GetSeq(), payload: p.GetPayload()})}
	}
	err := m.raft.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: &m.config.ID, Entries: entries})
	if err == nil {
		for _, q := range queued {
			m.inFlight.appended(q.proposal, m.now)
		}
		m.noteTraffic(queued)
		m.noteTraces(queued)
		return true
	}
	if !errors.Is(err, raft.ErrProposalDropped) {
		m.config.Logger.Warn("raft refused proposals", "error", err)
	}
	return false
}

// reject tells the stream that a proposal came on that it was not put into the log.
func (m *Member) reject(origin proposalOrigin, p *logv1.Proposal, reason logv1.AppendRejection_Reason) {
	rejection := &logv1.AppendRejection{Kind: p.GetKind(), Session: p.GetSession(), Seq: p.GetSeq(), Reason: reason}
	switch reason {
	case logv1.AppendRejection_REASON_NO_LEADER:
		rejection.RetryAfterMilliseconds = retryNoLeaderMilliseconds
	case logv1.AppendRejection_REASON_OVERLOADED:
		rejection.RetryAfterMilliseconds = retryOverloadedMilliseconds
	case logv1.AppendRejection_REASON_NO_SPACE:
		rejection.RetryAfterMilliseconds = retryNoSpaceMilliseconds
	}
	if origin.member == m.config.ID {
		m.inFlight.rejected(origin.stream, rejection)
		m.effects.Rejections = append(m.effects.Rejections, StreamRejection{origin.stream, rejection})
		return
	}
	m.send(origin.member, &logv1.PeerFrame{Frame: &logv1.PeerFrame_Rejection{
		Rejection: &logv1.ForwardedRejection{Rejection: rejection, Stream: origin.stream}}})
}

// receiveRejection takes the leader's rejection of a proposal that this member forwarded.
func (m *Member) receiveRejection(f *logv1.ForwardedRejection) {
	if r := f.GetRejection(); r != nil {
		m.inFlight.rejected(f.GetStream(), r)
		m.effects.Rejections = append(m.effects.Rejections, StreamRejection{f.GetStream(), r})
	}
}

// unsent rejects the proposals among frames that never left.
func (m *Member) unsent(to uint64, frames []*logv1.PeerFrame) {
	for _, frame := range frames {
		if f := frame.GetProposal(); f != nil {
			m.reject(proposalOrigin{m.config.ID, f.GetStream()}, f.GetProposal(), logv1.AppendRejection_REASON_NO_LEADER)
		}
	}
	m.raft.ReportUnreachable(to)
}

// proposalKey finds a proposal again when its entry is published or its rejection comes.
type proposalKey struct {
	kind         logv1.EntryKind
	session, seq uint64
	// payload tells proposals without a seq apart.
	payload uint64
}

func keyOf(kind logv1.EntryKind, session, seq uint64, payload []byte) proposalKey {
	k := proposalKey{kind: kind, session: session, seq: seq}
	if seq == 0 {
		h := fnv.New64a()
		_, _ = h.Write(payload)
		k.payload = h.Sum64()
	}
	return k
}

// inFlight accounts for the bytes of proposals that this member has handed to a leader and whose fate it does not
// know yet. A change of term forgets them all: their fate may never be known. So does the passing of time.
type inFlight struct {
	maxStreamBytes, maxBytes int
	expiryTicks              int

	bytes    int
	streams  map[uint64]int
	pending  map[proposalKey]*pendingProposal
	arrivals []*pendingProposal
}

type pendingProposal struct {
	key    proposalKey
	stream uint64
	bytes  int
	at     int
	gone   bool
	// came is when this member took it; appended when it put it into the log as leader, zero at the others.
	came, appended time.Time
}

func newInFlight(maxStreamBytes, maxBytes, expiryTicks int) *inFlight {
	return &inFlight{maxStreamBytes: maxStreamBytes, maxBytes: maxBytes, expiryTicks: expiryTicks,
		streams: map[uint64]int{}, pending: map[proposalKey]*pendingProposal{}}
}

// add reports false where the bounds leave no room. One proposal always fits into an idle stream.
func (f *inFlight) add(stream uint64, p *logv1.Proposal, tick int, now time.Time) bool {
	bytes := proto.Size(p)
	used := f.streams[stream]
	if used > 0 && used+bytes > f.maxStreamBytes {
		return false
	}
	if share := (fairShare[uint64]{f.maxBytes, f.bytes, f.streams}); !share.admits(stream, bytes) {
		return false
	}
	key := keyOf(p.GetKind(), p.GetSession(), p.GetSeq(), p.GetPayload())
	f.remove(f.pending[key])
	entry := &pendingProposal{key: key, stream: stream, bytes: bytes, at: tick, came: now}
	f.pending[key] = entry
	f.arrivals = append(f.arrivals, entry)
	f.streams[stream] += bytes
	f.bytes += bytes
	return true
}

func (f *inFlight) remove(p *pendingProposal) {
	if p == nil || p.gone {
		return
	}
	p.gone = true
	if f.pending[p.key] == p {
		delete(f.pending, p.key)
	}
	f.bytes -= p.bytes
	if left := f.streams[p.stream] - p.bytes; left > 0 {
		f.streams[p.stream] = left
	} else {
		delete(f.streams, p.stream)
	}
	f.trim()
}

// trim forgets the settled proposals at the head of the order of arrival.
func (f *inFlight) trim() {
	for len(f.arrivals) > 0 && f.arrivals[0].gone {
		f.arrivals[0] = nil
		f.arrivals = f.arrivals[1:]
	}
}

// appended notes when a leader put a batch into its log.
func (f *inFlight) appended(p *logv1.Proposal, now time.Time) {
	if known := f.pending[proposalKey{kind: p.GetKind(), session: p.GetSession(), seq: p.GetSeq()}]; known != nil {
		known.appended = now
	}
}

// published settles a proposal, and returns it; nil for one of others.
func (f *inFlight) published(h envelopeHeader) *pendingProposal {
	if len(f.pending) == 0 {
		return nil
	}
	p := f.pending[keyOf(h.kind, h.session, h.seq, h.payload)]
	f.remove(p)
	return p
}

// rejected settles a batch. Other kinds are named by nothing in a rejection; they are small and expire.
func (f *inFlight) rejected(stream uint64, r *logv1.AppendRejection) {
	if p := f.pending[proposalKey{kind: r.GetKind(), session: r.GetSession(), seq: r.GetSeq()}]; p != nil && p.stream == stream {
		f.remove(p)
	}
}

func (f *inFlight) tick(tick int) {
	for len(f.arrivals) > 0 && (f.arrivals[0].gone || tick-f.arrivals[0].at >= f.expiryTicks) {
		f.remove(f.arrivals[0])
		f.trim()
	}
}

func (f *inFlight) closeStream(stream uint64) {
	for _, p := range f.arrivals {
		if p.stream == stream && !p.gone {
			p.gone = true
			f.bytes -= p.bytes
			if f.pending[p.key] == p {
				delete(f.pending, p.key)
			}
		}
	}
	delete(f.streams, stream)
	f.trim()
}

func (f *inFlight) reset() {
	f.bytes, f.arrivals = 0, nil
	clear(f.streams)
	clear(f.pending)
}
