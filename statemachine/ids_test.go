package statemachine

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// idScript is a log of several frontends that ask for node numbers.
type idScript struct {
	t       testing.TB
	m       *Machine
	index   uint64
	logTime uint64
	seqs    map[uint64]uint64 // of open sessions
}

func newIDScript(t testing.TB) *idScript {
	s := &idScript{t: t, m: New(Options{}), logTime: 1e9, seqs: make(map[uint64]uint64)}
	s.apply(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, &logv1.Genesis{ClusterId: 7})
	return s
}

func (s *idScript) apply(kind logv1.EntryKind, session uint64, payload proto.Message) *Applied {
	s.t.Helper()
	s.index++
	envelope := &logv1.Envelope{Kind: kind, LogTimeNanoseconds: s.logTime, Session: session, Payload: encode(s.t, payload)}
	if session != 0 {
		envelope.Seq = s.seqs[session] + 1
	}
	applied, err := s.m.Apply(s.index, 1, kind, envelope, true)
	if err != nil {
		s.t.Fatal(err)
	}
	if session != 0 && applied.Skipped == SkipNone {
		s.seqs[session]++
	}
	for _, ended := range applied.SessionsEnded {
		delete(s.seqs, ended.ID)
	}
	return applied
}

func (s *idScript) open(frontend uint64) (session uint64) {
	s.t.Helper()
	s.apply(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, &logv1.OpenSession{FrontendId: frontend, Incarnation: s.index + 1})
	s.seqs[s.index] = 0
	return s.index
}

func (s *idScript) command(session uint64, c *commandv1.Command) (Result, bool) {
	s.t.Helper()
	applied := s.apply(logv1.EntryKind_ENTRY_KIND_BATCH, session, &commandv1.CommandBatch{Commands: []*commandv1.Command{c}})
	if applied.Skipped != SkipNone {
		return Result{}, false
	}
	return applied.Results[0], true
}

func nodeGrant(kind commandv1.IdKind, until int64) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_IdNodeGrant{
		IdNodeGrant: &commandv1.IdNodeGrant{Kind: kind, Until: until},
	}}
}

// TestIDNodesAreHeldByOne: whatever frontends ask for and however their sessions end, the times of two grants of a number
// never meet, and nobody is granted a number, or goes on with one, that an open session of another holds.
func TestIDNodesAreHeldByOne(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newIDScript(t)
		type node struct{ holder, until int64 }
		nodes := make(map[int64]node)
		var sessions []uint64
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			s.logTime += uint64(rapid.SampledFrom([]int64{0, 1e9, 6e9}).Draw(rt, "passes"))
			if len(sessions) == 0 || rapid.IntRange(0, 5).Draw(rt, "open") == 0 {
				sessions = append(sessions, s.open(rapid.Uint64Range(1, 4).Draw(rt, "frontend")))
				continue
			}
			session := rapid.SampledFrom(sessions).Draw(rt, "session")
			number := rapid.Int64Range(0, 3).Draw(rt, "number")
			c := nodeGrant(commandv1.IdKind_ID_KIND_RAINDROP, rapid.Int64Range(1, 100).Draw(rt, "until"))
			extend := rapid.Bool().Draw(rt, "extend")
			if extend {
				from := nodes[number].until - rapid.SampledFrom([]int64{0, 0, 1}).Draw(rt, "stale")
				c.Operation = &commandv1.Command_IdNodeExtend{IdNodeExtend: &commandv1.IdNodeExtend{
					Kind: commandv1.IdKind_ID_KIND_RAINDROP, Node: uint32(number), From: from, Until: c.GetIdNodeGrant().Until,
				}}
			}
			result, taken := s.command(session, c)
			if !taken || result.Err != nil {
				continue
			}
			id := result.ID
			before := nodes[id.Node]
			if _, open := s.seqs[uint64(before.holder)]; open && before.holder != int64(session) {
				rt.Fatalf("%v: number %d is held by session %d", c, id.Node, before.holder)
			}
			if id.After != before.until || id.Until < before.until || !extend && id.Until == before.until {
				rt.Fatalf("%v: (%d, %d] after %d", c, id.After, id.Until, before.until)
			}
			if extend && before.holder != int64(session) {
				rt.Fatalf("%v: session %d goes on with what session %d was granted", c, session, before.holder)
			}
			if !extend {
				for number, n := range nodes {
					if n.holder == int64(session) {
						nodes[number] = node{until: n.until}
					}
				}
			}
			nodes[id.Node] = node{holder: int64(session), until: id.Until}
		}
	})
}

// TestIDNodesUsedUp: every number can be held, the next who asks is told that none is free, and gets the one that is
// used up least far once sessions end.
func TestIDNodesUsedUp(t *testing.T) {
	for kind, of := range map[commandv1.IdKind]IDKind{
		commandv1.IdKind_ID_KIND_SNOWFLAKE: IDSnowflake, commandv1.IdKind_ID_KIND_RAINDROP: IDRaindrop,
	} {
		s := newIDScript(t)
		count := of.Layout().Nodes()
		var sessions []uint64
		for i := range count {
			sessions = append(sessions, s.open(uint64(i+1)))
			result, _ := s.command(sessions[i], nodeGrant(kind, 1000+int64(i)))
			if result.Err != nil || result.ID.Node != int64(i) || result.ID.After != 0 {
				t.Fatalf("%s %d: %+v, %v", of, i, result.ID, result.Err)
			}
		}
		last := s.open(uint64(count + 1))
		if result, _ := s.command(last, nodeGrant(kind, 5000)); !errors.Is(result.Err, ErrIDNodesUsedUp) {
			t.Fatalf("%s: %+v, %v", of, result.ID, result.Err)
		}
		s.open(8) // the session of number 7 ends
		s.open(6) // and that of number 5
		if result, _ := s.command(last, nodeGrant(kind, 1005)); !errors.Is(result.Err, ErrIDNodesUsedUp) {
			t.Fatalf("%s, times that are used up: %+v, %v", of, result.ID, result.Err)
		}
		result, _ := s.command(last, nodeGrant(kind, 5000))
		if result.Err != nil || *result.ID != (IDResult{Node: 5, After: 1005, Until: 5000}) {
			t.Fatalf("%s: %+v, %v", of, result.ID, result.Err)
		}
	}
}
