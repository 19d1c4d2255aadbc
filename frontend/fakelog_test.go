package frontend

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
)

// fakeLog is a log of one member that commits whatever it is given at once, and that can go away and come back.
type fakeLog struct {
	logv1.UnimplementedLogServiceServer
	t       *testing.T
	address string
	started time.Time

	mu      sync.Mutex
	entries []*logv1.Entry
	away    bool
	// first is the first entry that is still there; checkpoint holds what came before, once held is closed.
	first      uint64
	checkpoint []byte
	name       *logv1.CheckpointName
	held       chan struct{}
	// swallow takes proposals and loses them.
	swallow bool
	// changed is closed and replaced with every change of the above.
	changed chan struct{}
}

const fakeClusterID, fakeTerm = 0xfeed, 3

func newFakeLog(t *testing.T) *fakeLog {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &fakeLog{t: t, address: listener.Addr().String(), started: time.Now(), changed: make(chan struct{}), first: 1}
	genesis, err := proto.Marshal(&logv1.Genesis{ClusterId: fakeClusterID})
	if err != nil {
		t.Fatal(err)
	}
	l.append(&logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_GENESIS, Payload: genesis})
	server := directstream.NewCombined(directstream.ServerConfig{}, nil)
	logv1.RegisterLogServiceServer(server, l)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return l
}

// change changes the log's state and tells everyone who waits for it.
func (l *fakeLog) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *fakeLog) setAway(away bool)       { l.change(func() { l.away = away }) }
func (l *fakeLog) setSwallow(swallow bool) { l.change(func() { l.swallow = swallow }) }

func (l *fakeLog) append(p *logv1.Proposal) {
	l.change(func() {
		if l.swallow {
			return
		}
		envelope, err := proto.Marshal(&logv1.Envelope{
			Kind: p.GetKind(), Session: p.GetSession(), Seq: p.GetSeq(), Payload: p.GetPayload(),
			LogTimeNanoseconds: uint64(time.Since(l.started)) + 1,
		})
		if err != nil {
			l.t.Error(err)
			return
		}
		l.entries = append(l.entries, &logv1.Entry{
			Index: uint64(len(l.entries) + 1), Term: fakeTerm, Kind: p.GetKind(), Envelope: envelope,
		})
	})
}

var errAway = status.Error(codes.Unavailable, "the fake log is away")

// state returns entries from an index on, and what tells of the next change; an error while the log is away.
func (l *fakeLog) state(from uint64) (entries []*logv1.Entry, published uint64, changed <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return nil, 0, l.changed, errAway
	}
	published = uint64(len(l.entries))
	if from > 0 && from < l.first {
		return nil, 0, l.changed, status.Errorf(codes.OutOfRange, "the first entry is %d", l.first)
	}
	if from > 0 && from <= published {
		entries = l.entries[from-1 : published : published]
	}
	return entries, published, l.changed, nil
}

func (l *fakeLog) handshake() *logv1.Handshake {
	return &logv1.Handshake{ClusterId: fakeClusterID, Epoch: 1, Name: "fake", Region: "us", Id: 1}
}

func (l *fakeLog) membership() *logv1.Membership {
	return &logv1.Membership{Members: []*logv1.Member{
		{Id: 1, Name: "fake", Region: "us", Address: l.address, Role: logv1.Member_ROLE_VOTER},
	}}
}

func (l *fakeLog) Tail(r *logv1.TailRequest, stream logv1.LogService_TailServer) error {
	next, first := r.GetFromIndex(), true
	for {
		entries, published, changed, err := l.state(next)
		if err != nil {
			return err
		}
		answer := &logv1.TailResponse{Entries: entries, PublishedIndex: published, FirstIndex: 1}
		if first {
			answer.Handshake, answer.Membership, first = l.handshake(), l.membership(), false
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		next += uint64(len(entries))
		select {
		case <-changed:
		case <-time.After(200 * time.Millisecond):
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// whileThere ends a stream with an error when the log goes away.
func (l *fakeLog) whileThere(stream grpc.ServerStream, serve func() error) error {
	served := make(chan error, 1)
	go func() { served <- serve() }()
	for {
		_, _, changed, err := l.state(0)
		if err != nil {
			return err
		}
		select {
		case err := <-served:
			return err
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (l *fakeLog) Append(stream logv1.LogService_AppendServer) error {
	return l.whileThere(stream, func() error {
		if err := stream.Send(&logv1.AppendResponse{Handshake: l.handshake()}); err != nil {
			return err
		}
		for {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			for _, proposal := range request.GetProposals() {
				l.append(proposal)
			}
		}
	})
}

func (l *fakeLog) ReadRound(stream logv1.LogService_ReadRoundServer) error {
	return l.whileThere(stream, func() error {
		if err := stream.Send(&logv1.ReadRoundResponse{Handshake: l.handshake()}); err != nil {
			return err
		}
		for {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			if request.GetId() == 0 {
				continue
			}
			_, published, _, err := l.state(0)
			if err != nil {
				return err
			}
			if err := stream.Send(&logv1.ReadRoundResponse{Id: request.GetId(), Index: published}); err != nil {
				return err
			}
		}
	})
}

func (l *fakeLog) Status(context.Context, *logv1.StatusRequest) (*logv1.StatusResponse, error) {
	_, published, _, err := l.state(0)
	if err != nil {
		return nil, err
	}
	return &logv1.StatusResponse{
		Handshake: l.handshake(), LeaderId: 1, Term: fakeTerm, CommitIndex: published, PublishedIndex: published,
		FirstIndex: 1, LastIndex: published, Membership: l.membership(),
	}, nil
}
