package logservice

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// countedCluster is three members that hear each other at once and write when told to, and counts what they do.
type countedCluster struct {
	t       *testing.T
	now     time.Time
	members map[uint64]*Member
	storage map[uint64]*memoryStorage
	ids     []uint64
	// writing are the groups that are not durable yet.
	writing map[uint64]*Group
	count   map[string]int
}

func newCountedCluster(t *testing.T) *countedCluster {
	initial := []InitialMember{{Name: "a", Address: "a:1"}, {Name: "b", Address: "b:1"}, {Name: "c", Address: "c:1"}}
	record, id, err := FirstRecord(initial)
	if err != nil {
		t.Fatal(err)
	}
	c := &countedCluster{t: t, now: time.Unix(1000, 0), members: map[uint64]*Member{}, storage: map[uint64]*memoryStorage{},
		writing: map[uint64]*Group{}}
	for i, one := range initial {
		n := id(one.Name)
		c.ids = append(c.ids, n)
		c.storage[n] = &memoryStorage{membership: record}
		if c.members[n], err = NewMember(MemberConfig{ID: n, Storage: c.storage[n], Nonce: uint64(i), ClusterID: 9}); err != nil {
			t.Fatal(err)
		}
	}
	c.step(c.ids[0], Campaign{})
	c.write()
	for range 10 {
		for _, n := range c.ids {
			c.step(n, Tick{})
		}
		c.write()
	}
	if !c.members[c.ids[0]].State().IsLeader {
		t.Fatal("the first member does not lead")
	}
	c.count = map[string]int{}
	return c
}

// step steps a member and delivers what it sends, until nobody has anything more to say.
func (c *countedCluster) step(id uint64, events ...Event) {
	effects := c.members[id].Step(c.now, events...)
	if effects.Failure != nil {
		c.t.Fatal(effects.Failure)
	}
	if effects.Append != nil {
		c.writing[id] = effects.Append
		c.add("group")
	}
	for _, f := range effects.Frames {
		c.add(frameName(c.t, f.Frame))
		c.step(f.To, Received{From: id, Frame: f.Frame})
	}
}

// write makes everything durable.
func (c *countedCluster) write() {
	for len(c.writing) > 0 {
		for _, id := range c.ids {
			if group := c.writing[id]; group != nil {
				delete(c.writing, id)
				c.step(id, StorageDone{c.storage[id].write(*group)})
			}
		}
	}
}

func (c *countedCluster) add(what string) {
	if c.count != nil {
		c.count[what]++
	}
}

func frameName(t *testing.T, frame *logv1.PeerFrame) string {
	data := frame.GetRaftMessage()
	if data == nil {
		return fmt.Sprintf("%T", frame.GetFrame())[len("*logv1.PeerFrame_"):]
	}
	message := &raftpb.Message{}
	if err := proto.Unmarshal(data, message); err != nil {
		t.Fatal(err)
	}
	return message.GetType().String()
}

func (c *countedCluster) expect(want map[string]int) {
	c.t.Helper()
	if got, want := fmt.Sprint(c.count), fmt.Sprint(want); got != want {
		c.t.Errorf("counted %s, want %s", got, want)
	}
	clear(c.count)
}

func (c *countedCluster) published() (least uint64) {
	for i, id := range c.ids {
		if p := c.members[id].State().Published; i == 0 || p < least {
			least = p
		}
	}
	return least
}

// A batch costs each member one group and each pair of members what publication needs: the new commit index has no
// message, no answer and no sync of its own, until a heartbeat carries it and a group is made for it alone.
func TestWhatABatchCosts(t *testing.T) {
	c := newCountedCluster(t)
	before := c.published()
	c.step(c.ids[1], batch(1, 1, 100))
	c.write()
	if c.published() != before+1 {
		t.Errorf("%d is published, was %d", c.published(), before)
	}
	c.expect(map[string]int{"Proposal": 1, "MsgApp": 2, "MsgAppResp": 2, "Ack": 4, "group": 3})
	for range 4 {
		for _, id := range c.ids {
			c.step(id, Tick{})
		}
		c.write()
	}
	c.expect(map[string]int{"MsgHeartbeat": 4, "MsgHeartbeatResp": 4, "group": 3})
	for _, id := range c.ids {
		if commit := c.storage[id].HardState().Commit; commit != before+1 {
			t.Errorf("member %x has commit %d on its disk, want %d", id, commit, before+1)
		}
	}
}

// What comes while the leader writes goes out together, after that or at the next tick.
func TestProposalsWaitForTheGroupBefore(t *testing.T) {
	c := newCountedCluster(t)
	leader := c.ids[0]
	before := c.published()
	c.step(leader, batch(1, 1, 100))
	for seq := uint64(2); seq <= 20; seq++ {
		c.step(leader, batch(1, seq, 100))
	}
	c.write()
	if c.published() != before+20 {
		t.Errorf("%d is published, was %d", c.published(), before)
	}
	c.expect(map[string]int{"MsgApp": 4, "MsgAppResp": 4, "Ack": 8, "group": 6})

	c.step(leader, batch(1, 21, 100))
	c.step(leader, batch(1, 22, 100))
	if got := c.count["MsgApp"]; got != 2 {
		t.Errorf("%d messages while the first group is written, want 2", got)
	}
	c.step(leader, Tick{})
	if got := c.count["MsgApp"]; got != 4 {
		t.Errorf("%d messages after a tick, want 4: a slow disk must not hold proposals", got)
	}
	full := batch(1, 23, 3<<20)
	c.step(leader, full)
	if got := c.count["MsgApp"]; got != 6 {
		t.Errorf("%d messages after a proposal that fills one, want 6", got)
	}
}

// TestBatchAllocations holds what a member that leads allocates for a batch, from the proposal to its publication: raft's
// own messages are most of it.
func TestBatchAllocations(t *testing.T) {
	s := newSoleMember(t, nil)
	s.step(Campaign{})
	payload := make([]byte, 500)
	seq, published := uint64(0), s.m.State().Published
	allocations := testing.AllocsPerRun(1000, func() {
		seq++
		published++
		effects := s.m.Step(s.now, Propose{Stream: 1, Proposal: &logv1.Proposal{
			Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 1, Seq: seq, Payload: payload}})
		if effects.Append == nil {
			t.Fatal("nothing is written")
		}
		if err := s.storage.write(*effects.Append); err != nil {
			t.Fatal(err)
		}
		if effects = s.m.Step(s.now, StorageDone{}); effects.Published != published {
			t.Fatalf("%d is published, want %d", effects.Published, published)
		}
	})
	if allocations > 72 {
		t.Errorf("%v allocations for a batch", allocations)
	}
}
