package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/logclient"
)

// fakeLog is a log whose members publish whatever they are given at once, and do with checkpoints what a test says.
type fakeLog struct {
	t         *testing.T
	net       *wan.Network
	directory string
	mirrors   map[string]*Mirror
	config    func(*Config)

	mu      sync.Mutex
	entries []*logv1.Entry
	// withheldFrom is the first entry that is published and sent to nobody; zero for none.
	withheldFrom uint64
	members      map[string]*fakeMember
	// reports are what the builders of the newest request have said, by session.
	reports map[uint64]*logv1.CheckpointName
	changed chan struct{}
}

// fakeMember serves one address. Its fields are guarded by the log's lock.
type fakeMember struct {
	logv1.UnimplementedLogServiceServer
	log    *fakeLog
	region string
	server *directstream.Combined
	// first is the first entry it holds.
	first uint64
	// held is the sealed checkpoint it holds; received is what came of one.
	held     *logv1.CheckpointName
	content  []byte
	received []byte
	// breakAfter, if above zero, ends the next transfers once so many bytes have gone.
	breakAfter int
	// uploadError is what uploads are answered.
	uploadError error
	// flip is a byte of the download that is altered; negative for none.
	flip      int
	downloads []uint64 // offsets asked for
	uploads   int
}

const fakeClusterID = 0xfeed

func fakeBubble(t *testing.T, test func(t *testing.T, l *fakeLog)) {
	directory := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{
			t: t, net: wan.New(wan.Options{InMemory: true, RoundTrips: testRoundTrips}), directory: directory,
			mirrors: map[string]*Mirror{}, members: map[string]*fakeMember{}, reports: map[uint64]*logv1.CheckpointName{},
			changed: make(chan struct{}),
		}
		genesis, _ := proto.Marshal(&logv1.Genesis{ClusterId: fakeClusterID})
		l.append(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, 0, genesis)
		defer func() {
			for _, m := range l.mirrors {
				m.Stop()
			}
			for _, m := range l.members {
				m.server.Stop()
			}
			l.net.Close()
			time.Sleep(40 * time.Second)
		}()
		test(t, l)
	})
}

func (l *fakeLog) serve(region string) *fakeMember {
	l.t.Helper()
	m := &fakeMember{log: l, region: region, server: directstream.NewCombined(directstream.ServerConfig{}, nil), first: 1, flip: -1}
	listener, err := l.net.Region(region).Listen(region + ":1")
	if err != nil {
		l.t.Fatal(err)
	}
	logv1.RegisterLogServiceServer(m.server, m)
	go func() { _ = m.server.Serve(listener) }()
	l.with(func() { l.members[region] = m })
	return m
}

// with changes the log under its lock and wakes who waits.
func (l *fakeLog) with(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *fakeLog) append(kind logv1.EntryKind, session, seq uint64, payload []byte) (index uint64) {
	envelope, err := proto.Marshal(&logv1.Envelope{
		Kind: kind, Session: session, Seq: seq, Payload: payload, LogTimeNanoseconds: uint64(time.Now().UnixNano()),
	})
	if err != nil {
		l.t.Error(err)
	}
	l.with(func() {
		index = uint64(len(l.entries) + 1)
		l.entries = append(l.entries, &logv1.Entry{Index: index, Term: 1, Kind: kind, Envelope: envelope})
	})
	return index
}

// sentUpTo is the last entry that tails are given. The caller holds mu.
func (l *fakeLog) sentUpTo() uint64 {
	if l.withheldFrom > 0 {
		return l.withheldFrom - 1
	}
	return uint64(len(l.entries))
}

// request asks sessions for a checkpoint and returns its index.
func (l *fakeLog) request(format uint32, sessions ...uint64) uint64 {
	payload, err := proto.Marshal(&logv1.CheckpointRequest{BuilderSessions: sessions, FormatVersion: format})
	if err != nil {
		l.t.Fatal(err)
	}
	l.with(func() {
		clear(l.reports)
		for _, m := range l.members {
			m.received = nil
		}
	})
	return l.append(logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST, 0, 0, payload)
}

// seal makes what a member has received the sealed checkpoint of all members, which trim the log to its index.
func (l *fakeLog) seal(from *fakeMember, name *logv1.CheckpointName) {
	l.with(func() {
		for _, m := range l.members {
			m.held, m.content, m.first = name, from.received, name.GetIndex()+1
		}
	})
}

func (l *fakeLog) handshake(region string) *logv1.Handshake {
	return &logv1.Handshake{ClusterId: fakeClusterID, Epoch: 1, Name: region, Region: region}
}

func (l *fakeLog) membership() *logv1.Membership {
	membership := &logv1.Membership{Index: 1}
	for i, region := range testRegions {
		if l.members[region] != nil {
			membership.Members = append(membership.Members, &logv1.Member{
				Id: uint64(i + 1), Name: region, Region: region, Address: region + ":1", Role: logv1.Member_ROLE_VOTER,
			})
		}
	}
	return membership
}

func (m *fakeMember) Status(context.Context, *logv1.StatusRequest) (*logv1.StatusResponse, error) {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	return &logv1.StatusResponse{
		Handshake: m.log.handshake(m.region), LeaderId: 1, PublishedIndex: uint64(len(m.log.entries)), FirstIndex: m.first,
		Membership: m.log.membership(),
	}, nil
}

func (m *fakeMember) Tail(request *logv1.TailRequest, stream logv1.LogService_TailServer) error {
	l := m.log
	for next, first := request.GetFromIndex(), true; ; first = false {
		l.mu.Lock()
		answer := &logv1.TailResponse{PublishedIndex: uint64(len(l.entries)), FirstIndex: m.first}
		var failed error
		if next < m.first {
			failed = status.Errorf(codes.OutOfRange, "first index is %d", m.first)
		} else if end := min(l.sentUpTo(), next+99); next <= end {
			answer.Entries = l.entries[next-1 : end]
		}
		if first {
			answer.Handshake, answer.Membership = l.handshake(m.region), l.membership()
		}
		changed := l.changed
		l.mu.Unlock()
		if failed != nil {
			return failed
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		if next += uint64(len(answer.Entries)); len(answer.Entries) > 0 {
			continue
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (m *fakeMember) Append(stream logv1.LogService_AppendServer) error {
	if err := stream.Send(&logv1.AppendResponse{Handshake: m.log.handshake(m.region)}); err != nil {
		return err
	}
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, p := range request.GetProposals() {
			m.log.append(p.GetKind(), p.GetSession(), p.GetSeq(), p.GetPayload())
		}
	}
}

func (m *fakeMember) ReadRound(stream logv1.LogService_ReadRoundServer) error {
	answer := &logv1.ReadRoundResponse{Handshake: m.log.handshake(m.region)}
	for {
		if err := stream.Send(answer); err != nil {
			return err
		}
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		m.log.mu.Lock()
		answer = &logv1.ReadRoundResponse{Id: request.GetId(), Index: uint64(len(m.log.entries))}
		m.log.mu.Unlock()
	}
}

var errBroken = status.Error(codes.Unavailable, "the fake member breaks the transfer")

func (m *fakeMember) UploadCheckpoint(stream logv1.LogService_UploadCheckpointServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	l, name := m.log, request.GetReport().GetName()
	l.mu.Lock()
	m.uploads++
	refused, offset := m.uploadError, uint64(len(m.received))
	l.mu.Unlock()
	if refused != nil {
		return refused
	}
	if err := stream.Send(&logv1.UploadCheckpointResponse{
		Handshake: l.handshake(m.region), Wanted: offset < name.GetSizeBytes(), OffsetBytes: offset,
	}); err != nil {
		return err
	}
	for offset < name.GetSizeBytes() {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		broken := false
		l.with(func() {
			m.received = append(m.received, request.GetData()...)
			offset = uint64(len(m.received))
			if broken = m.breakAfter > 0 && len(m.received) >= m.breakAfter; broken {
				m.breakAfter = 0
			}
		})
		if broken {
			return errBroken
		}
	}
	l.mu.Lock()
	sum := sha256.Sum256(m.received)
	l.mu.Unlock()
	if !bytes.Equal(sum[:], name.GetSha256()) {
		return status.Error(codes.InvalidArgument, "these bytes have another sha256")
	}
	l.with(func() { l.reports[request.GetReport().GetSession()] = name })
	return stream.Send(&logv1.UploadCheckpointResponse{Done: true})
}

func (m *fakeMember) DownloadCheckpoint(
	request *logv1.DownloadCheckpointRequest, stream logv1.LogService_DownloadCheckpointServer,
) error {
	l := m.log
	l.mu.Lock()
	m.downloads = append(m.downloads, request.GetOffsetBytes())
	name, content, flip, breakAfter := m.held, bytes.Clone(m.content), m.flip, m.breakAfter
	m.breakAfter = 0
	l.mu.Unlock()
	if name == nil || request.GetName() != nil && !logclient.SameCheckpoint(name, request.GetName()) {
		return status.Error(codes.NotFound, "no such checkpoint here")
	}
	if flip >= 0 {
		content[flip] ^= 1
	}
	answer := &logv1.DownloadCheckpointResponse{Handshake: l.handshake(m.region), Name: name, Term: 1}
	for sent, rest := 0, content[request.GetOffsetBytes():]; ; {
		n := min(len(rest), 4<<10)
		answer.Data = rest[:n]
		if err := stream.Send(answer); err != nil {
			return err
		}
		answer, rest, sent = &logv1.DownloadCheckpointResponse{}, rest[n:], sent+n
		if len(rest) == 0 {
			return nil
		}
		if breakAfter > 0 && sent >= breakAfter {
			time.Sleep(time.Second) // what was sent arrives first
			return errBroken
		}
	}
}

// mirrorConfig is that of the mirror of a region.
func (l *fakeLog) mirrorConfig(region string) Config {
	c := Config{
		Name: region + "-1", Region: region, DataDir: filepath.Join(l.directory, region),
		Log:    logclient.Config{Dial: l.net.Region(region).Dial},
		Clock:  func() time.Duration { return time.Duration(time.Now().UnixNano()) },
		Logger: testLogger(),
	}
	for _, r := range testRegions {
		c.Log.Members = append(c.Log.Members, r+":1")
	}
	if l.config != nil {
		l.config(&c)
	}
	return c
}

func (l *fakeLog) start(region string) *Mirror {
	l.t.Helper()
	m, err := Start(l.mirrorConfig(region))
	if err != nil {
		l.t.Fatal(err)
	}
	l.mirrors[region] = m
	return m
}

// ready starts a mirror and waits until it serves and has a session.
func (l *fakeLog) ready(region string) *Mirror {
	l.t.Helper()
	m := l.start(region)
	l.await("ready", func() bool {
		_, _, ok := m.SessionHolder()
		_, known := m.Age()
		return ok && known
	})
	return m
}

func (l *fakeLog) await(what string, condition func() bool) {
	l.t.Helper()
	for began := time.Now(); !condition(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			for region, m := range l.mirrors {
				l.t.Logf("%s: %v, %v, err %v", region, m.Identity(), m.Health(), m.Err())
			}
			l.t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (l *fakeLog) put(m *Mirror, count int) {
	l.t.Helper()
	for i := range count {
		r, err := m.Propose(l.t.Context(), put(fmt.Sprintf("key-%d", i%97), fmt.Sprintf("%0200d", i)), ProposeOptions{WaitForLog: true})
		if err != nil || r.Err != nil {
			l.t.Fatal(err, r.Err)
		}
	}
}

// checkpoint has a mirror build a checkpoint, and the members seal it and trim the log.
func (l *fakeLog) checkpoint(builder *Mirror, at *fakeMember) *logv1.CheckpointName {
	l.t.Helper()
	session, _, _ := builder.SessionHolder()
	index := l.request(1, session)
	name := l.reported(session)
	if name.GetIndex() != index {
		l.t.Fatalf("asked for %d, reported was %v", index, name)
	}
	l.seal(at, name)
	return name
}

func (l *fakeLog) reported(session uint64) (name *logv1.CheckpointName) {
	l.t.Helper()
	l.await("checkpoint reported", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		name = l.reports[session]
		return name != nil
	})
	return name
}

// sameState waits until two mirrors are at one index and compares them.
func (l *fakeLog) sameState(a, b *Mirror) {
	l.t.Helper()
	l.await("both at one index", func() bool { return a.AppliedIndex() == b.AppliedIndex() })
	if x, y := dumpOf(l.t, a.Machine()), dumpOf(l.t, b.Machine()); x != y {
		l.t.Errorf("the states differ:\n%s\n%s", x, y)
	}
}
