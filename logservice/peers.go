package logservice

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// guests are members that this one does not know of yet, because its configuration is older than theirs: they are taken at
// their word, so that whoever was away while all others were replaced can follow the new ones.
type guests struct {
	mu    sync.Mutex
	byID  map[uint64]guest
	known map[uint64]string
}

type guest struct {
	address string
	// index is of the configuration that the guest has applied.
	index uint64
}

// maxGuests bounds those that are taken at their word.
const maxGuests = 16

// membershipChanged tells the transport and the tails.
func (s *Server) membershipChanged() error {
	membership := s.member.Membership()
	s.published.setMembership(membership)
	g := &s.guests
	g.mu.Lock()
	defer g.mu.Unlock()
	g.known = map[uint64]string{}
	for _, m := range membership.Members {
		if m.Id != s.id {
			g.known[m.Id] = m.Address
		}
	}
	for id, guest := range g.byID {
		if _, ok := g.known[id]; ok || guest.index <= membership.Index {
			delete(g.byID, id)
		}
	}
	return s.connectMembers()
}

// connectMembers has the transport reach members and guests. The caller holds the lock of the guests.
func (s *Server) connectMembers() error {
	addresses := map[uint64]string{}
	for id, guest := range s.guests.byID {
		addresses[id] = guest.address
	}
	for id, address := range s.guests.known {
		addresses[id] = address
	}
	return s.transport.SetMembers(addresses)
}

// checkMember refuses what is no member of the configuration that this member has applied, unless the other one's is newer.
func (s *Server) checkMember(p *logv1.PeerHandshake) error {
	g := &s.guests
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.known[p.GetMemberId()]; known {
		return nil
	}
	mine := s.published.view().membership.GetIndex()
	if p.GetMembershipIndex() <= mine {
		refusal := status.Newf(codes.FailedPrecondition, "%q (%s) is not a member of this log", p.GetHandshake().GetName(),
			memberName(p.GetMemberId()))
		if detailed, err := refusal.WithDetails(&logv1.NotMember{MembershipIndex: mine}); err == nil {
			refusal = detailed
		}
		return refusal.Err()
	}
	if p.GetHandshake().GetClusterId() == 0 || p.GetAddress() == "" || len(p.GetAddress()) > maxAddressBytes {
		return status.Errorf(codes.FailedPrecondition, "%q says that it was added, but not to which log or where it is",
			p.GetHandshake().GetName())
	}
	if _, ok := g.byID[p.GetMemberId()]; !ok && len(g.byID) >= maxGuests {
		return status.Error(codes.ResourceExhausted, "too many members that this one does not know of yet")
	}
	if g.byID == nil {
		g.byID = map[uint64]guest{}
	}
	s.logger.Info("another member was added without this one having heard of it yet", "name", p.GetHandshake().GetName(),
		"id", memberName(p.GetMemberId()), "address", p.GetAddress())
	g.byID[p.GetMemberId()] = guest{p.GetAddress(), p.GetMembershipIndex()}
	if err := s.connectMembers(); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

// saysRemoved tells whether a refusal means that this member was removed: it is in no configuration that the other one
// knows, and the one that this member is in is not newer. Ids are never used again, so it will not come back.
func (s *Server) saysRemoved(err error) bool {
	mine := s.published.view().membership
	if addressIn(mine, s.id) == "" {
		return false
	}
	for _, detail := range status.Convert(err).Details() {
		if d, ok := detail.(*logv1.NotMember); ok && d.GetMembershipIndex() >= mine.GetIndex() {
			return true
		}
	}
	return false
}

// removed ends this member for good.
func (s *Server) removed() {
	if err := s.directory.setRemoved(); err != nil {
		s.logger.Error("could not note in the data directory that this member was removed", "error", err)
	}
	s.fail(fmt.Errorf("%w: %q (%s)", ErrRemoved, s.config.Name, memberName(s.id)))
}

// addressIn is where a membership has a member; empty where it has not.
func addressIn(membership *logv1.Membership, id uint64) string {
	for _, m := range membership.GetMembers() {
		if m.Id == id {
			return m.Address
		}
	}
	return ""
}

// measureTicks is how often the core is told how far the others are.
const measureTicks = 20

// heardLately is how long ago something must have come from a member for it to be relied upon: there are pings every second.
const heardLately = 2500 * time.Millisecond

// measure tells, now and then, how far the others are.
func (s *Server) measure(events []Event) []Event {
	if s.ticks++; s.ticks%measureTicks != 0 {
		return events
	}
	var measured Measured
	for _, m := range s.published.view().membership.GetMembers() {
		if h := s.transport.Health(m.Id); m.Id != s.id && h.RoundTrip >= 0 {
			roundTrip := &logv1.RoundTrip{MemberId: m.Id, Microseconds: uint64(h.RoundTrip.Microseconds())}
			measured.RoundTrips = append(measured.RoundTrips, roundTrip)
			if h.Connected && time.Since(h.LastHeard) < heardLately {
				measured.Near = append(measured.Near, roundTrip)
			}
		}
	}
	return append(events, measured)
}
