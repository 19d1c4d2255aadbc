package logservice

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/quorum"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

func TestLogClock(t *testing.T) {
	start := time.Unix(1000, 0)
	c := startLogClock(77, start)
	for _, step := range []struct {
		at   time.Duration
		want uint64
	}{
		{0, 77},
		{10, 87},
		{10, 87},           // stands still
		{5, 87},            // a clock that goes back moves nothing
		{20, 97},           // and what it went back is not counted twice
		{time.Hour, 0},     // advances by the bound, below
		{time.Hour + 3, 0}, // and by no more afterwards
	} {
		want := step.want
		switch step.at {
		case time.Hour:
			want = 97 + uint64(MaxLogTimeAdvance)
		case time.Hour + 3:
			want = 100 + uint64(MaxLogTimeAdvance)
		}
		if got := c.next(start.Add(step.at)); got != want {
			t.Errorf("at %v: stamp %d, want %d", step.at, got, want)
		}
	}
}

func TestEnvelopeIsWhatProtobufReads(t *testing.T) {
	for _, want := range []*logv1.Envelope{
		{Kind: logv1.EntryKind_ENTRY_KIND_TICK, LogTimeNanoseconds: 1},
		{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: 1 << 60, Session: 300, Seq: 1, Payload: []byte("payload")},
		{Kind: logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, Payload: make([]byte, 1000)},
	} {
		data := encodeEnvelope(envelopeHeader{want.Kind, want.LogTimeNanoseconds, want.Session, want.Seq, want.Payload})
		got := &logv1.Envelope{}
		if err := proto.Unmarshal(data, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%v became %v (%v)", want, got, err)
		}
		data, _ = proto.Marshal(want)
		h, ok := parseEnvelope(data)
		if !ok || h.kind != want.Kind || h.stamp != want.LogTimeNanoseconds || h.session != want.Session || h.seq != want.Seq ||
			string(h.payload) != string(want.Payload) {
			t.Errorf("%v was read as %+v", want, h)
		}
		for cut := range data {
			parseEnvelope(data[:cut]) // must not panic
		}
	}
}

func joint(old, next []uint64) (c quorum.JointConfig) {
	for half, ids := range [][]uint64{next, old} {
		if len(ids) > 0 {
			c[half] = quorum.MajorityConfig{}
			for _, id := range ids {
				c[half][id] = struct{}{}
			}
		}
	}
	return c
}

func TestDurableNeedsBothHalves(t *testing.T) {
	c := ackCount{acks: map[uint64]voterAck{}}
	for voter, match := range map[uint64]uint64{1: 10, 2: 20, 3: 30, 4: 40} {
		c.add(voter, 5, match)
	}
	c.add(1, 4, 99) // older terms and lower matches change nothing
	c.add(3, 5, 3)
	for _, test := range []struct {
		name      string
		old, next []uint64
		term      uint64
		want      uint64
	}{
		{"majority of three", nil, []uint64{1, 2, 3}, 5, 20},
		{"another majority", nil, []uint64{2, 3, 4}, 5, 30},
		{"joint: the old half is lower", []uint64{1, 2}, []uint64{3, 4}, 5, 10},
		{"joint: the new half is lower", []uint64{3, 4}, []uint64{1, 2}, 5, 10},
		{"a voter that was never heard", nil, []uint64{1, 2, 9}, 5, 10},
		{"another term", nil, []uint64{1, 2, 3}, 6, 0},
	} {
		if got := c.durable(joint(test.old, test.next), test.term); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
	c.add(4, 6, 1)
	if got := c.durable(joint(nil, []uint64{3, 4}), 5); got != 0 {
		t.Errorf("a voter of a later term still counts in the earlier one: %d", got)
	}
}

func TestRoundOutcome(t *testing.T) {
	type answers = map[uint64]*logv1.RoundAnswer
	answer := func(term, last uint64, leader bool) *logv1.RoundAnswer {
		return &logv1.RoundAnswer{Term: term, LastIndex: last, DurableIndex: last, Leader: leader}
	}
	three := joint(nil, []uint64{1, 2, 3})
	five := joint(nil, []uint64{1, 2, 3, 4, 5})
	const none = ^uint64(0)
	for _, test := range []struct {
		name             string
		conf             quorum.JointConfig
		answers          answers
		barrier, nearest uint64
	}{
		{"one answer is none", three, answers{1: answer(5, 10, true)}, none, none},
		{"leader and one more", three, answers{1: answer(5, 10, true), 2: answer(5, 9, false)}, 10, 10},
		{"no leader among them", three, answers{2: answer(5, 8, false), 3: answer(5, 9, false)}, none, 9},
		{"leader is not with the majority", three,
			answers{1: answer(5, 10, true), 2: answer(6, 9, false), 3: answer(6, 11, false)}, none, 10},
		{"one is in a later term", five,
			answers{1: answer(5, 10, true), 2: answer(5, 9, false), 3: answer(5, 9, false), 4: answer(6, 9, false)}, none, 9},
		{"one is in an earlier term", five,
			answers{1: answer(5, 10, true), 2: answer(5, 9, false), 3: answer(4, 30, false), 4: answer(5, 30, false)}, 10, 30},
		{"only the leader is in its term", three, answers{1: answer(5, 10, true), 2: answer(4, 9, false)}, none, 10},
		{"two leaders, the later counts", five,
			answers{1: answer(5, 10, true), 2: answer(6, 8, true), 3: answer(6, 8, false), 4: answer(6, 8, false)}, 8, 8},
		{"an orphan at the end of one log", three,
			answers{1: answer(5, 10, true), 2: answer(5, 10, false), 3: answer(5, 99, false)}, 10, 10},
		{"the leader's disk is behind", three, answers{1: {Term: 5, LastIndex: 10, DurableIndex: 7, Leader: true}, 2: answer(5, 8, false)}, 10, 8},
		{"joint, one half is missing", joint([]uint64{1, 2, 3}, []uint64{1, 4, 5}),
			answers{1: answer(5, 10, true), 2: answer(5, 9, false)}, none, none},
		{"joint, both halves", joint([]uint64{1, 2, 3}, []uint64{1, 4, 5}),
			answers{1: answer(5, 10, true), 2: answer(5, 9, false), 4: answer(5, 12, false)}, 10, 12},
		{"not a voter", three, answers{1: answer(5, 10, true), 7: answer(5, 10, false)}, none, none},
	} {
		r := &round{quorums: test.conf, answers: test.answers}
		got := func(index uint64, ok bool) uint64 {
			if !ok {
				return none
			}
			return index
		}
		if barrier := got(r.barrier()); barrier != test.barrier {
			t.Errorf("%s: barrier %d, want %d", test.name, barrier, test.barrier)
		}
		if nearest := got(r.nearestMajority()); nearest != test.nearest {
			t.Errorf("%s: nearest majority %d, want %d", test.name, nearest, test.nearest)
		}
	}
}

// soleMember is a log of one member that writes at once.
type soleMember struct {
	t       *testing.T
	m       *Member
	storage *memoryStorage
	now     time.Time
	effects []Effects
}

func newSoleMember(t *testing.T, change func(*MemberConfig)) *soleMember {
	record, id, err := FirstRecord([]InitialMember{{Name: "a", Address: "a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &soleMember{t: t, storage: &memoryStorage{membership: record}, now: time.Unix(1000, 0)}
	config := MemberConfig{ID: id("a"), Storage: s.storage, Nonce: 1, ClusterID: 99}
	if change != nil {
		change(&config)
	}
	if s.m, err = NewMember(config); err != nil {
		t.Fatal(err)
	}
	return s
}

// step steps the member until it wants nothing written any more.
func (s *soleMember) step(events ...Event) (rejections []StreamRejection) {
	for len(events) > 0 {
		effects := s.m.Step(s.now, events...)
		s.effects = append(s.effects, effects)
		rejections = append(rejections, effects.Rejections...)
		events = nil
		if effects.Append != nil {
			events = []Event{StorageDone{s.storage.write(*effects.Append)}}
		}
	}
	return rejections
}

func batch(session, seq uint64, bytes int) Propose {
	return Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: session, Seq: seq,
		Payload: make([]byte, bytes)}}
}

func TestFirstLeaderNamesTheLog(t *testing.T) {
	s := newSoleMember(t, nil)
	s.step(Campaign{})
	if got := s.m.ClusterID(); got != 99 {
		t.Fatalf("cluster id %d", got)
	}
	s.now = s.now.Add(time.Minute)
	s.step(batch(1, 1, 10))
	s.step(Tick{}, Tick{}) // the commit index had no entries to travel with
	again, err := NewMember(MemberConfig{ID: s.m.config.ID, Storage: s.storage, Nonce: 2, ClusterID: 55})
	if err != nil {
		t.Fatal(err)
	}
	if again.ClusterID() != 99 || again.State().Published != s.m.State().Published {
		t.Errorf("after a restart: %+v, cluster %d", again.State(), again.ClusterID())
	}
	kinds, stamps := []string{}, []uint64{}
	for _, e := range s.storage.entries {
		h, _ := parseEnvelope(e.Data)
		kinds, stamps = append(kinds, strings.TrimPrefix(h.kind.String(), "ENTRY_KIND_")), append(stamps, h.stamp)
	}
	if got := fmt.Sprint(kinds); got != "[UNSPECIFIED GENESIS BATCH]" {
		t.Errorf("log %s", got)
	}
	if stamps[1] != uint64(time.Unix(1000, 0).UnixNano()) || stamps[2] != stamps[1]+uint64(MaxLogTimeAdvance) {
		t.Errorf("stamps %v", stamps)
	}
}

// A sole voter that publishes by raft's commit index answers no round after a restart before it knows again what is committed:
// the commit index on its disk may be an older one.
func TestSoleVoterReadsAfterRestart(t *testing.T) {
	stock := func(c *MemberConfig) { c.Publication = PublicationLeader }
	s := newSoleMember(t, stock)
	s.step(Campaign{})
	s.step(batch(1, 1, 10))
	published := s.m.State().Published
	if durable := s.storage.HardState().Commit; durable >= published {
		t.Fatalf("commit index %d is durable, %d is published: the test shows nothing", durable, published)
	}
	config := MemberConfig{ID: s.m.config.ID, Storage: s.storage, Nonce: 2, ClusterID: 55}
	stock(&config)
	again, err := NewMember(config)
	if err != nil {
		t.Fatal(err)
	}
	s.m, s.effects = again, nil
	first := s.m.Step(s.now, Campaign{})
	for !s.m.State().IsLeader && first.Append != nil {
		first = s.m.Step(s.now, StorageDone{s.storage.write(*first.Append)})
	}
	if answers := s.m.Step(s.now, AskRound{Token: 7}).Rounds; len(answers) > 0 || first.Append == nil {
		t.Fatalf("with nothing of the term committed it answers %+v", answers)
	}
	s.step(StorageDone{s.storage.write(*first.Append)})
	for range s.m.config.RoundRetryTicks {
		s.step(Tick{})
	}
	var answers []RoundResult
	for _, e := range s.effects {
		answers = append(answers, e.Rounds...)
	}
	if len(answers) != 1 || answers[0].Token != 7 || answers[0].Failure != "" || answers[0].Index < published {
		t.Errorf("answers %+v, %d was published", answers, published)
	}
}

// Log time goes on where it stopped, however late the next leader comes and whatever its wall clock says.
func TestLogTimeStandsOverAChangeOfLeader(t *testing.T) {
	s := newSoleMember(t, nil)
	s.step(Campaign{})
	s.step(batch(1, 1, 10))
	before := s.m.State().LogTime
	again, err := NewMember(MemberConfig{ID: s.m.config.ID, Storage: s.storage, Nonce: 2, ClusterID: 55})
	if err != nil {
		t.Fatal(err)
	}
	s.m, s.now = again, time.Unix(7, 0)
	s.step(Campaign{})
	s.now = s.now.Add(time.Second)
	s.step(batch(1, 2, 10))
	if got := s.m.State().LogTime; got != before+uint64(time.Second) {
		t.Errorf("log time %d after %d", got, before)
	}
}

func TestRejections(t *testing.T) {
	s := newSoleMember(t, func(c *MemberConfig) { c.MaxPayloadBytes, c.MaxStreamBytes = 1000, 3000 })
	only := func(name string, got []StreamRejection, want logv1.AppendRejection_Reason) {
		t.Helper()
		if len(got) != 1 || got[0].Rejection.Reason != want || got[0].Stream != 1 {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	only("before an election", s.step(batch(1, 1, 1)), logv1.AppendRejection_REASON_NO_LEADER)
	s.step(Campaign{})
	only("too large", s.step(batch(1, 1, 1001)), logv1.AppendRejection_REASON_TOO_LARGE)
	only("no seq", s.step(batch(1, 0, 1)), logv1.AppendRejection_REASON_INVALID)
	only("another kind", s.step(Propose{Stream: 1, Proposal: &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_GENESIS}}),
		logv1.AppendRejection_REASON_INVALID)
	if got := s.step(batch(1, 1, 1000)); len(got) > 0 {
		t.Errorf("rejected: %v", got)
	}
	// Four of a thousand bytes at once are more than a stream may have in flight.
	got := s.step(batch(1, 2, 1000), batch(1, 3, 1000), batch(1, 4, 1000), batch(1, 5, 1000))
	if len(got) != 2 || got[0].Rejection.Seq != 4 || got[0].Rejection.Reason != logv1.AppendRejection_REASON_OVERLOADED ||
		got[0].Rejection.RetryAfterMilliseconds == 0 {
		t.Errorf("overload: %v", got)
	}
	if got := s.step(batch(1, 4, 1000)); len(got) > 0 {
		t.Errorf("rejected after the others were published: %v", got)
	}
	if s.m.inFlight.bytes != 0 {
		t.Errorf("%d bytes in flight of nothing", s.m.inFlight.bytes)
	}
}

// A disk without room stops appends, not rounds, and goes on when there is room.
func TestNoSpace(t *testing.T) {
	s := newSoleMember(t, nil)
	s.step(Campaign{})
	published := s.m.State().Published
	effects := s.m.Step(s.now, batch(1, 1, 10))
	if effects.Append == nil {
		t.Fatal("nothing to write")
	}
	s.m.Step(s.now, StorageDone{fmt.Errorf("group: %w", ErrNoSpace)})
	if got := s.m.Step(s.now, batch(1, 2, 10)).Rejections; len(got) != 1 || got[0].Rejection.Reason != logv1.AppendRejection_REASON_NO_SPACE {
		t.Errorf("rejections %v", got)
	}
	if !s.m.State().NoSpace {
		t.Error("no alarm")
	}
	var again *Group
	for range 100 {
		if effects := s.m.Step(s.now, Tick{}); effects.Append != nil {
			again = effects.Append
			break
		}
	}
	if again == nil || len(again.Entries) != len(effects.Append.Entries) {
		t.Fatalf("the group was not handed out again: %v", again)
	}
	s.step(StorageDone{s.storage.write(*again)})
	if state := s.m.State(); state.NoSpace || state.Published != published+1 || !state.IsLeader {
		t.Errorf("afterwards: %+v", state)
	}
}

func TestPublishedEntryIsNeverReplaced(t *testing.T) {
	s := newSoleMember(t, nil)
	s.step(Campaign{})
	s.step(batch(1, 1, 1))
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "published index") {
			t.Errorf("replaced a published entry: %v", r)
		}
	}()
	e := raftEntry(Entry{Index: s.m.log.published, Term: 9})
	s.m.log.append(append(s.m.log.memory(1, 1), e))
}

// A member that gets nonsense from another one drops it.
func TestNonsenseFromAnotherMember(t *testing.T) {
	s := newSoleMember(t, nil)
	s.step(Campaign{})
	for _, frame := range []*logv1.PeerFrame{
		{}, {Frame: &logv1.PeerFrame_RaftMessage{RaftMessage: []byte{1, 2, 3}}},
		{Frame: &logv1.PeerFrame_RaftMessage{}},
		{Frame: &logv1.PeerFrame_Ack{}}, {Frame: &logv1.PeerFrame_Ack{Ack: &logv1.VoterAck{VoterId: 7, Term: 1, MatchIndex: 1 << 60}}},
		{Frame: &logv1.PeerFrame_Proposal{}}, {Frame: &logv1.PeerFrame_Proposal{Proposal: &logv1.ForwardedProposal{}}},
		{Frame: &logv1.PeerFrame_Rejection{}}, {Frame: &logv1.PeerFrame_Rejection{Rejection: &logv1.ForwardedRejection{}}},
		{Frame: &logv1.PeerFrame_Question{}}, {Frame: &logv1.PeerFrame_Answer{}},
		{Frame: &logv1.PeerFrame_Answer{Answer: &logv1.RoundAnswer{Id: 1, Leader: true, Term: 1 << 60}}},
	} {
		s.step(Received{From: 5, Frame: frame})
	}
	if state := s.m.State(); !state.IsLeader || state.Published != state.Last {
		t.Errorf("afterwards: %+v", state)
	}
}
