package logservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
)

// beginning is what a member starts its log with.
type beginning struct {
	clusterHash, memberID uint64
	// term is one that is at or above that of the entry that made the membership.
	term   uint64
	record *record
}

var errJoin = errors.New("logservice: join")

// Join waits until the log has a member with this configuration's name, and returns the configuration to Start it with.
// addresses are those of live members; one is enough. It returns at once where the data directory is a member's already.
// It ends with ctx, or when waiting can't help.
func Join(ctx context.Context, config Config, addresses []string) (Config, error) {
	c, err := config.withDefaults()
	if err != nil {
		return config, err
	}
	if _, err := disk.ReadFile(c.FS, filepath.Join(c.DataDir, directoryFile), directoryMaxBytes); !errors.Is(err, fs.ErrNotExist) {
		return config, nil // Start looks at it, and says what is wrong with it
	}
	if len(addresses) == 0 {
		return config, fmt.Errorf("%w: no address of a member", errJoin)
	}
	j := &joiner{config: c, addresses: slices.Clone(addresses)}
	const restMin, restMax = 100 * time.Millisecond, 2 * time.Second
	for rest := restMin; ; rest = min(2*rest, restMax) {
		for _, address := range j.addresses {
			answer, err := j.ask(ctx, address)
			if err == nil {
				config.joined, err = j.read(answer)
			}
			if err == nil {
				return config, nil
			}
			if final := (finalError{}); errors.As(err, &final) {
				return config, fmt.Errorf("%w: %s: %w", errJoin, address, err)
			}
			c.Logger.Info("waiting to join the log", "member", c.Name, "asked", address, "answer", err)
		}
		timer := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			timer.Stop()
			return config, fmt.Errorf("%w: %w", errJoin, context.Cause(ctx))
		case <-timer.C:
		}
	}
}

// finalError is one that asking again does not heal.
type finalError struct{ error }

type joiner struct {
	config    Config
	addresses []string
}

// joinTimeout bounds one question.
const joinTimeout = 3 * time.Second

func (j *joiner) ask(ctx context.Context, address string) (*logv1.GetMembershipResponse, error) {
	credentials := j.config.PeerCredentials
	if credentials == nil {
		credentials = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return j.config.Dial(ctx, address) }),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	return logv1.NewLogServiceClient(conn).GetMembership(ctx, &logv1.GetMembershipRequest{})
}

// read finds this member in an answer, and learns where the others are.
func (j *joiner) read(answer *logv1.GetMembershipResponse) (*beginning, error) {
	var self *logv1.Member
	var names []string
	for _, m := range answer.GetMembership().GetMembers() {
		names = append(names, m.GetName())
		if m.GetName() == j.config.Name {
			self = m
		} else if !slices.Contains(j.addresses, m.GetAddress()) && len(j.addresses) < maxGuests {
			j.addresses = append(j.addresses, m.GetAddress())
		}
	}
	switch {
	case answer.GetHandshake().GetEpoch() != epoch:
		return nil, finalError{fmt.Errorf("the log is in epoch %d, and this build knows %d", answer.GetHandshake().GetEpoch(), epoch)}
	case answer.GetPublication() != j.config.Publication.String():
		return nil, finalError{fmt.Errorf("the log publishes by %s, and this member by %s: all members must do alike",
			answer.GetPublication(), j.config.Publication)}
	case self == nil:
		return nil, fmt.Errorf("the log has no member %q yet: add it; it has %q", j.config.Name, names)
	}
	return newBeginning(answer, self.GetId())
}

// newBeginning is what a member with this id begins with.
//
// It is a configuration with no log beneath it: the configuration changes up to it are in the log that the leader sends,
// and not applied again. This is safe because the term comes with it: the member takes nothing from a leader that was
// elected before the configuration was made (SAFETY.md).
func newBeginning(answer *logv1.GetMembershipResponse, id uint64) (*beginning, error) {
	membership := answer.GetMembership()
	r := &record{conf: raftpb.EnsureConfState(nil), members: membership.GetMembers(), confIndex: membership.GetIndex(),
		clusterID: answer.GetHandshake().GetClusterId()}
	for _, m := range membership.GetMembers() {
		switch m.GetRole() {
		case logv1.Member_ROLE_VOTER:
			r.conf.Voters = append(r.conf.Voters, m.GetId())
		case logv1.Member_ROLE_LEARNER:
			r.conf.Learners = append(r.conf.Learners, m.GetId())
		}
	}
	if len(r.conf.Voters) == 0 || r.clusterID == 0 || answer.GetTerm() == 0 || r.member(id) == nil {
		return nil, fmt.Errorf("the answer lacks voters, a term, the log's name, or member %s", memberName(id))
	}
	return &beginning{clusterHash: answer.GetInitialMembershipHash(), memberID: id, term: answer.GetTerm(), record: r}, nil
}

// joining is what a member that joins begins with, but for what the shell knows; nil while this member can't tell.
func (m *Member) joining() *logv1.GetMembershipResponse {
	if m.record.clusterID == 0 || len(m.record.conf.VotersOutgoing) > 0 {
		return nil
	}
	return &logv1.GetMembershipResponse{Membership: proto.CloneOf(m.Membership()), Term: m.state.term}
}

// Joining returns what a member that joins begins with, as this member knows it; nil while it can't tell. For simulations: a
// Server answers GetMembership with it.
func (m *Member) Joining() *logv1.GetMembershipResponse {
	answer := m.joining()
	if answer != nil {
		answer.Handshake = &logv1.Handshake{ClusterId: m.record.clusterID, Epoch: epoch}
	}
	return answer
}

// FirstGroup is what the storage of a member that joins with this answer must hold before its first start.
func FirstGroup(answer *logv1.GetMembershipResponse, id uint64) (Group, error) {
	b, err := newBeginning(answer, id)
	if err != nil {
		return Group{}, err
	}
	return Group{HardState: HardState{Term: b.term}, Membership: b.record.encode()}, nil
}
