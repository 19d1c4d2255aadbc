package logservice

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// record is what a member keeps beside its entries: the configuration it has applied and up to where. It is written to
// storage with or after the commit index that covers applied.
type record struct {
	conf *raftpb.ConfState
	// members are those of conf, voters and learners, with what people know them by. Regions may be empty.
	members []*logv1.Member
	// confIndex is the index of the configuration change that made conf; zero for the first configuration.
	confIndex uint64
	// applied is the index up to which configuration changes have been applied.
	applied uint64
	// clusterID is the log's, zero while no GENESIS has been published here.
	clusterID uint64
	// stamp is the log time at applied: that of the last envelope up to there.
	stamp uint64
	// sealed are the newest sealed checkpoints at applied, newest first: sealedKept, and one more where none of these is held.
	sealed []sealedCheckpoint
	// request is the checkpoint that was asked for last at applied and is not sealed; nil for none.
	request *checkpointRequest
}

func (r *record) encode() []byte {
	conf, err := proto.Marshal(r.conf)
	if err != nil {
		panic(fmt.Sprintf("logservice: encode a configuration: %v", err))
	}
	membership, err := proto.Marshal(&logv1.Membership{Members: r.members, Index: r.confIndex})
	if err != nil {
		panic(fmt.Sprintf("logservice: encode a membership: %v", err))
	}
	var b []byte
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, conf)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, membership)
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	b = protowire.AppendVarint(b, r.applied)
	b = protowire.AppendTag(b, 4, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, r.clusterID)
	b = protowire.AppendTag(b, 5, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, r.stamp)
	for i := range r.sealed {
		b = protowire.AppendTag(b, 6, protowire.BytesType)
		b = protowire.AppendBytes(b, r.sealed[i].encode())
	}
	if r.request != nil {
		b = protowire.AppendTag(b, 7, protowire.BytesType)
		b = protowire.AppendBytes(b, r.request.encode())
	}
	return b
}

var errBadRecord = errors.New("logservice: the membership record in the log can't be read")

func decodeRecord(b []byte) (*record, error) {
	r := &record{conf: &raftpb.ConfState{}}
	membership := &logv1.Membership{}
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, errBadRecord
		}
		b = b[n:]
		var field []byte
		var err error
		switch {
		case number == 1 && wire == protowire.BytesType:
			field, n = protowire.ConsumeBytes(b)
			err = proto.Unmarshal(field, r.conf)
		case number == 2 && wire == protowire.BytesType:
			field, n = protowire.ConsumeBytes(b)
			err = proto.Unmarshal(field, membership)
		case number == 3 && wire == protowire.VarintType:
			r.applied, n = protowire.ConsumeVarint(b)
		case number == 4 && wire == protowire.Fixed64Type:
			r.clusterID, n = protowire.ConsumeFixed64(b)
		case number == 5 && wire == protowire.Fixed64Type:
			r.stamp, n = protowire.ConsumeFixed64(b)
		case number == 6 && wire == protowire.BytesType:
			var sealed sealedCheckpoint
			field, n = protowire.ConsumeBytes(b)
			sealed, err = decodeSealed(field)
			r.sealed = append(r.sealed, sealed)
		case number == 7 && wire == protowire.BytesType:
			field, n = protowire.ConsumeBytes(b)
			r.request, err = decodeRequest(field)
		default:
			n = protowire.ConsumeFieldValue(number, wire, b)
		}
		if n < 0 || err != nil {
			return nil, errBadRecord
		}
		b = b[n:]
	}
	r.members, r.confIndex = membership.Members, membership.Index
	r.conf = raftpb.EnsureConfState(r.conf)
	if len(r.conf.Voters) == 0 {
		return nil, errBadRecord
	}
	return r, nil
}

// quorums returns the majorities of the configuration: one, or two while it is joint.
func (r *record) quorums() quorum.JointConfig {
	var c quorum.JointConfig
	for half, ids := range [][]uint64{r.conf.Voters, r.conf.VotersOutgoing} {
		if len(ids) == 0 {
			continue
		}
		c[half] = quorum.MajorityConfig{}
		for _, id := range ids {
			c[half][id] = struct{}{}
		}
	}
	return c
}

// voters returns the voters of all majorities of the configuration, sorted.
func (r *record) voters() []uint64 {
	ids := slices.Concat(r.conf.Voters, r.conf.VotersOutgoing)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// all returns voters and learners, sorted.
func (r *record) all() []uint64 {
	ids := slices.Concat(r.conf.Voters, r.conf.VotersOutgoing, r.conf.Learners, r.conf.LearnersNext)
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (r *record) member(id uint64) *logv1.Member {
	for _, m := range r.members {
		if m.Id == id {
			return m
		}
	}
	return nil
}

// adopt makes members agree with conf after a change. What the change says of the member it adds is in its context.
func (r *record) adopt(conf *raftpb.ConfState, index uint64, context []byte) {
	members := make([]*logv1.Member, 0, len(r.members)+1)
	added := &logv1.Member{}
	if len(context) == 0 || proto.Unmarshal(context, added) != nil {
		added = &logv1.Member{}
	}
	r.conf, r.confIndex = raftpb.EnsureConfState(conf), index
	voters := r.voters()
	for _, id := range r.all() {
		m := &logv1.Member{Id: id}
		if known := r.member(id); known != nil {
			m = proto.CloneOf(known)
		}
		if added.Id == id {
			m.Name, m.Address, m.Region = added.Name, added.Address, added.Region
		}
		m.Role = logv1.Member_ROLE_LEARNER
		if slices.Contains(voters, id) {
			m.Role = logv1.Member_ROLE_VOTER
		}
		members = append(members, m)
	}
	r.members = members
}

// InitialMember is a member of the first configuration of a log.
type InitialMember struct {
	// Name is unique among the members.
	Name string
	// Region may be empty: members tell each other theirs.
	Region string
	// Address is where the others reach it. It may change between starts.
	Address string
}

// ParseInitialCluster reads the members of a first configuration as flags have them: NAME=HOST:PORT, with commas between.
func ParseInitialCluster(text string) (members []InitialMember, err error) {
	for _, item := range strings.Split(text, ",") {
		name, address, found := strings.Cut(strings.TrimSpace(item), "=")
		if !found || name == "" {
			return nil, fmt.Errorf("%q is not NAME=ADDRESS", item)
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("member %q: %w", name, err)
		}
		members = append(members, InitialMember{Name: name, Address: address})
	}
	return members, nil
}

var errInitialCluster = errors.New("initial cluster")

// initialCluster is what members that are to form one log must have been started with alike: the names.
type initialCluster struct {
	members []InitialMember
	// hash tells one set of names from another.
	hash uint64
}

func newInitialCluster(members []InitialMember) (initialCluster, error) {
	c := initialCluster{members: slices.Clone(members)}
	if len(members) == 0 {
		return c, fmt.Errorf("%w: no members", errInitialCluster)
	}
	slices.SortFunc(c.members, func(a, b InitialMember) int { return strings.Compare(a.Name, b.Name) })
	var list strings.Builder
	for i, m := range c.members {
		switch {
		case m.Name == "" || m.Address == "":
			return c, fmt.Errorf("%w: a member needs a name and an address", errInitialCluster)
		case strings.ContainsAny(m.Name, "=,\n"):
			return c, fmt.Errorf("%w: name %q must not hold = or ,", errInitialCluster, m.Name)
		case i > 0 && c.members[i-1].Name == m.Name:
			return c, fmt.Errorf("%w: name %q is given twice", errInitialCluster, m.Name)
		}
		list.WriteString(m.Name)
		list.WriteByte('\n')
	}
	c.hash = hash64("membership\n" + list.String())
	return c, nil
}

// id is the raft id of a member of the first configuration, the same wherever it is computed.
func (c initialCluster) id(name string) uint64 {
	return hash64(fmt.Sprintf("member\n%016x\n%s", c.hash, name))
}

// record is the first configuration: all of them vote.
func (c initialCluster) record() *record {
	r := &record{conf: raftpb.EnsureConfState(nil)}
	for _, m := range c.members {
		id := c.id(m.Name)
		r.conf.Voters = append(r.conf.Voters, id)
		r.members = append(r.members, &logv1.Member{Id: id, Name: m.Name, Region: m.Region, Address: m.Address,
			Role: logv1.Member_ROLE_VOTER})
	}
	slices.Sort(r.conf.Voters)
	slices.SortFunc(r.members, func(a, b *logv1.Member) int {
		if a.Id < b.Id {
			return -1
		}
		return 1
	})
	return r
}

// hash64 is never zero and never one of the ids that raft keeps for itself.
func hash64(text string) uint64 {
	sum := sha256.Sum256([]byte(text))
	return binary.BigEndian.Uint64(sum[:8])>>1 | 1
}
