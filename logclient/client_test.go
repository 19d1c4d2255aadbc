package logclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/directstream"
	"github.com/logmirror/logmirror/internal/wan"
)

// fakeLog is a log whose members do as the test says.
type fakeLog struct {
	t       *testing.T
	net     *wan.Network
	mu      sync.Mutex // guards members against what the members read
	members map[string]*fakeMember
}

// fakeMember serves one address. Its fields are set before it serves, or under mu.
type fakeMember struct {
	logv1.UnimplementedLogServiceServer
	log     *fakeLog
	address string
	server  *directstream.Combined

	mu        sync.Mutex
	clusterID uint64
	published uint64
	// entry makes the entry to send at an index; nil for the right one.
	entry func(index uint64) *logv1.Entry
	// tailError, if set, is what Tail answers.
	tailError error
	// roundFailure, if set, is what rounds answer; "-" for no answer.
	roundFailure string
	tails        int
	appended     []uint64
	rounds       []uint64
	reject       *logv1.AppendRejection
	// deaf members take no proposals.
	deaf bool
	// reporting takes reports; nil for a member that does not know them.
	reporting *reportingMember
}

func bubble(t *testing.T, test func(t *testing.T, l *fakeLog)) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{t: t, members: map[string]*fakeMember{}, net: wan.New(wan.Options{InMemory: true,
			RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: 80 * time.Millisecond, {A: "us", B: "ap"}: 150 * time.Millisecond}})}
		defer func() {
			for _, m := range l.members {
				m.server.Stop()
			}
			l.net.Close()
			time.Sleep(10 * time.Second)
		}()
		test(t, l)
	})
}

// serve starts a member in a region, at the address REGION:1.
func (l *fakeLog) serve(region string, published uint64) *fakeMember {
	l.t.Helper()
	m := &fakeMember{log: l, address: region + ":1", clusterID: 5, published: published, server: directstream.NewCombined(directstream.ServerConfig{}, nil)}
	listener, err := l.net.Region(region).Listen(m.address)
	if err != nil {
		l.t.Fatal(err)
	}
	logv1.RegisterLogServiceServer(m.server, m)
	go func() { _ = m.server.Serve(listener) }()
	l.mu.Lock()
	l.members[region] = m
	l.mu.Unlock()
	return m
}

func (l *fakeLog) open(config Config) *Client {
	l.t.Helper()
	if config.Members == nil {
		config.Members = []string{"us:1", "eu:1", "ap:1"}
	}
	config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		return l.net.Region("us").Dial(ctx, address)
	}
	if os.Getenv("LOGMIRROR_TEST_LOG") != "" {
		config.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := Open(config)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (m *fakeMember) with(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *fakeMember) handshake() *logv1.Handshake {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &logv1.Handshake{ClusterId: m.clusterID, Epoch: 1, Name: m.address}
}

func (m *fakeMember) membership() *logv1.Membership {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	membership := &logv1.Membership{Index: 1}
	for i, region := range []string{"us", "eu", "ap"} {
		if m.log.members[region] != nil {
			membership.Members = append(membership.Members, &logv1.Member{Id: uint64(i + 1), Name: region, Address: region + ":1"})
		}
	}
	return membership
}

func (m *fakeMember) Status(context.Context, *logv1.StatusRequest) (*logv1.StatusResponse, error) {
	handshake := m.handshake()
	m.mu.Lock()
	defer m.mu.Unlock()
	return &logv1.StatusResponse{Handshake: handshake, LeaderId: 1, PublishedIndex: m.published, Membership: m.membership()}, nil
}

func (m *fakeMember) Tail(request *logv1.TailRequest, stream logv1.LogService_TailServer) error {
	m.mu.Lock()
	m.tails++
	fails := m.tailError
	m.mu.Unlock()
	if fails != nil {
		return fails
	}
	response := &logv1.TailResponse{Handshake: m.handshake(), Membership: m.membership()}
	for next := request.GetFromIndex(); ; {
		m.mu.Lock()
		response.PublishedIndex = m.published
		if next <= m.published {
			entry := &logv1.Entry{Index: next, Term: 1}
			if m.entry != nil {
				entry = m.entry(next)
			}
			response.Entries = []*logv1.Entry{entry}
			next++
		}
		m.mu.Unlock()
		if err := stream.Send(response); err != nil {
			return err
		}
		more := len(response.Entries) > 0
		response = &logv1.TailResponse{}
		if more {
			continue
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (m *fakeMember) Append(stream logv1.LogService_AppendServer) error {
	if err := stream.Send(&logv1.AppendResponse{Handshake: m.handshake()}); err != nil {
		return err
	}
	if m.deaf {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		m.mu.Lock()
		for _, p := range request.GetProposals() {
			m.appended = append(m.appended, p.GetSeq())
		}
		reject := m.reject
		m.mu.Unlock()
		if reject != nil && len(request.GetProposals()) > 0 {
			if err := stream.Send(&logv1.AppendResponse{Rejections: []*logv1.AppendRejection{reject}}); err != nil {
				return err
			}
		}
	}
}

func (m *fakeMember) ReadRound(stream logv1.LogService_ReadRoundServer) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if request.GetId() == 0 {
			if err := stream.Send(&logv1.ReadRoundResponse{Handshake: m.handshake()}); err != nil {
				return err
			}
			continue
		}
		m.mu.Lock()
		m.rounds = append(m.rounds, request.GetId())
		answer := &logv1.ReadRoundResponse{Id: request.GetId(), Index: m.published, Failure: m.roundFailure}
		m.mu.Unlock()
		switch answer.Failure {
		case "":
		case "-":
			continue
		default:
			answer.Index = 0
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// expect reads the tail up to an index and checks that nothing is missing or repeated.
func expect(t *testing.T, tail *Tail, next *uint64, upTo uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for *next <= upTo {
		batch, err := tail.Next(ctx)
		if err != nil {
			t.Fatalf("waiting for index %d: %v", *next, err)
		}
		for _, e := range batch.Entries {
			if e.Index != *next {
				t.Fatalf("got index %d, want %d", e.Index, *next)
			}
			*next++
		}
	}
}

func current(c *Client) string {
	address, _, _ := c.Current()
	return address
}

// The nearest member is tailed; silence, a broken process and recovery move the tail, and no entry is lost or repeated.
func TestTailChangesOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		for _, region := range []string{"us", "eu", "ap"} {
			l.serve(region, 10)
		}
		c := l.open(Config{})
		defer c.Close()
		tail := c.Tail(1, 0)
		next := uint64(1)
		expect(t, tail, &next, 10)
		if current(c) != "us:1" {
			t.Fatalf("tails %s, the nearest is us:1", current(c))
		}
		publish := func(to uint64) {
			for _, m := range l.members {
				m.with(func() { m.published = to })
			}
		}
		l.members["us"].server.Stop()
		publish(30)
		expect(t, tail, &next, 30)
		if current(c) != "eu:1" {
			t.Errorf("after the end of us:1 tails %s", current(c))
		}
		l.serve("us", 30)
		time.Sleep(15 * time.Second)
		if current(c) != "us:1" {
			t.Errorf("us:1 is back for 15 s, tails %s", current(c))
		}
		publish(40)
		expect(t, tail, &next, 40)
	})
}

// A silent link, not a broken one: packets are lost and nobody says so.
func TestTailLeavesASilentMember(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("eu", 10)
		l.serve("ap", 10)
		c := l.open(Config{})
		defer c.Close()
		tail := c.Tail(1, 0)
		next := uint64(1)
		expect(t, tail, &next, 10)
		if current(c) != "eu:1" {
			t.Fatalf("tails %s", current(c))
		}
		l.net.Cut("us", "eu")
		l.members["ap"].with(func() { l.members["ap"].published = 20 })
		began := time.Now()
		expect(t, tail, &next, 20)
		if took := time.Since(began); took < 1500*time.Millisecond || took > 2500*time.Millisecond {
			t.Errorf("changed over after %v", took)
		}
	})
}

// A member that sends something else than the next entry is left; what it sent is not delivered.
func TestTailRefusesDiscontinuity(t *testing.T) {
	for name, wrong := range map[string]*logv1.Entry{
		"gap": {Index: 7, Term: 1}, "repeat": {Index: 4, Term: 1}, "term": {Index: 5, Term: 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, l *fakeLog) {
				l.serve("us", 10).entry = func(index uint64) *logv1.Entry {
					if index == 5 {
						return wrong
					}
					return &logv1.Entry{Index: index, Term: 1}
				}
				l.serve("eu", 10)
				c := l.open(Config{})
				defer c.Close()
				next := uint64(1)
				expect(t, c.Tail(1, 0), &next, 10)
			})
		})
	}
}

// A member behind its caller is no error: it is waited for, or another one serves.
func TestMirrorAheadOfAMember(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 5)
		c := l.open(Config{Members: []string{"us:1"}})
		defer c.Close()
		tail := c.Tail(11, 1)
		next := uint64(11)
		time.Sleep(10 * time.Second)
		if c.Err() != nil || current(c) != "us:1" {
			t.Fatalf("a member that is behind: %v, in use %q", c.Err(), current(c))
		}
		l.serve("eu", 15)
		expect(t, tail, &next, 15)
	})
}

// An entry that does not decode is final: every member would send the same.
func TestMalformedEntryIsFinal(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 3).entry = func(index uint64) *logv1.Entry {
			return &logv1.Entry{Index: index, Term: 1, Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Envelope: []byte{0xff}}
		}
		c := l.open(Config{})
		defer c.Close()
		tail := c.Tail(1, 0)
		for {
			batch, err := tail.Next(t.Context())
			if err != nil {
				if !errors.Is(err, ErrMalformedEntry) || !errors.Is(c.Err(), ErrMalformedEntry) {
					t.Errorf("%v, client %v", err, c.Err())
				}
				return
			}
			if len(batch.Entries) > 0 {
				t.Fatalf("delivered %v", batch.Entries)
			}
		}
	})
}

// A trimmed log is final only when no member has the entry.
func TestTrimmedLog(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		trimmed := status.Error(codes.OutOfRange, "first index is 100")
		l.serve("us", 200).tailError = trimmed
		eu := l.serve("eu", 200)
		c := l.open(Config{})
		defer c.Close()
		tail := c.Tail(1, 0)
		next := uint64(1)
		expect(t, tail, &next, 200)
		eu.with(func() { eu.tailError = trimmed })
		second := c.Tail(1, 0)
		for {
			if _, err := second.Next(t.Context()); err != nil {
				if !errors.Is(err, ErrTrimmed) {
					t.Errorf("both trimmed: %v", err)
				}
				return
			}
		}
	})
}

func TestAnotherClusterIsFinal(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 1)
		c := l.open(Config{Members: []string{"us:1"}, ClusterID: 6})
		defer c.Close()
		select {
		case <-c.Done():
		case <-time.After(time.Minute):
		}
		if !errors.Is(c.Err(), ErrOtherLog) {
			t.Errorf("another cluster: %v", c.Err())
		}
	})
}

// One wrong address among right ones is left alone.
func TestOneWrongAddress(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 5).clusterID = 6
		l.serve("eu", 5)
		c := l.open(Config{ClusterID: 5})
		defer c.Close()
		next := uint64(1)
		expect(t, c.Tail(1, 0), &next, 5)
		if c.Err() != nil || l.members["us"].tails != 0 {
			t.Errorf("client %v, tails at the wrong member %d", c.Err(), l.members["us"].tails)
		}
	})
}

// The learned members are found again when the configured address is gone.
func TestMembersFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "members")
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 1)
		l.serve("eu", 1)
		c := l.open(Config{Members: []string{"us:1"}, MembersFile: file})
		time.Sleep(3 * time.Second)
		c.Close()
		l.members["us"].server.Stop()
		c = l.open(Config{Members: []string{"us:1"}, MembersFile: file, ClusterID: 5, Epoch: 1})
		defer c.Close()
		time.Sleep(3 * time.Second)
		if current(c) != "eu:1" {
			t.Errorf("in use %q, want the saved eu:1", current(c))
		}
		if other, err := readMembers(file, 6, 1); err != nil || len(other) != 0 {
			t.Errorf("the list of another cluster: %v, %v", other, err)
		}
	})
}

// recorder is an AppendHandler that keeps what it is told.
type recorder struct {
	mu       sync.Mutex
	ups      int
	downs    int
	rejected []uint64
	onUp     func()
}

func (r *recorder) AppendUp() {
	r.mu.Lock()
	r.ups++
	onUp := r.onUp
	r.mu.Unlock()
	if onUp != nil {
		onUp()
	}
}

func (r *recorder) AppendDown(error) {
	r.mu.Lock()
	r.downs++
	r.mu.Unlock()
}

func (r *recorder) AppendRejected(rejections []*logv1.AppendRejection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rejection := range rejections {
		r.rejected = append(r.rejected, rejection.GetSeq())
	}
}

// Proposals arrive in order, once; the loss of the stream and rejections are told.
func TestAppendsInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 1)
		l.serve("eu", 1)
		c := l.open(Config{})
		defer c.Close()
		r := &recorder{}
		a := c.Appender(r)
		a.Send(&logv1.Proposal{Seq: 99}) // no stream yet: dropped
		time.Sleep(time.Second)
		const count = 2000
		for seq := uint64(1); seq <= count; seq++ {
			a.Send(&logv1.Proposal{Seq: seq, Payload: make([]byte, 2000)})
		}
		time.Sleep(time.Second)
		us := l.members["us"]
		us.with(func() {
			if len(us.appended) != count {
				t.Fatalf("%d proposals arrived, want %d", len(us.appended), count)
			}
			for i, seq := range us.appended {
				if seq != uint64(i+1) {
					t.Fatalf("seq %d at place %d", seq, i+1)
				}
			}
		})
		us.server.Stop()
		time.Sleep(time.Second)
		r.mu.Lock()
		if r.ups != 2 || r.downs != 1 {
			t.Errorf("%d streams, %d losses; want 2 and 1", r.ups, r.downs)
		}
		r.mu.Unlock()
		eu := l.members["eu"]
		eu.with(func() { eu.reject = &logv1.AppendRejection{Seq: 7, Reason: logv1.AppendRejection_REASON_NO_LEADER} })
		a.Send(&logv1.Proposal{Seq: 7})
		time.Sleep(time.Second)
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.rejected) != 1 || r.rejected[0] != 7 {
			t.Errorf("rejected %v", r.rejected)
		}
	})
}

// What waited for a stream that was lost does not go to the next one: its mirror knows of the loss, and sends it again itself.
func TestProposalsStayOnTheirStream(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us", 1)
		us.deaf = true
		eu := l.serve("eu", 1)
		c := l.open(Config{})
		defer c.Close()
		a := c.Appender(&recorder{})
		time.Sleep(time.Second)
		a.Send(&logv1.Proposal{Seq: 1, Payload: make([]byte, 900<<10)}) // more than the member takes unread
		time.Sleep(time.Second)
		a.Send(&logv1.Proposal{Seq: 2}) // waits for the member to read
		time.Sleep(time.Second)
		a.Send(&logv1.Proposal{Seq: 3}) // waits behind it
		us.server.Stop()
		time.Sleep(time.Second)
		a.Send(&logv1.Proposal{Seq: 4})
		time.Sleep(time.Second)
		eu.with(func() {
			if !slices.Equal(eu.appended, []uint64{4}) {
				t.Errorf("the next stream carried %v", eu.appended)
			}
		})
	})
}

// More than the bound waiting to be sent ends the stream instead of growing the queue.
func TestAppendQueueIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us", 1)
		c := l.open(Config{AppendQueueBytes: 100_000})
		defer c.Close()
		r := &recorder{}
		a := c.Appender(r)
		time.Sleep(time.Second)
		for range 100 {
			a.Send(&logv1.Proposal{Payload: make([]byte, 2000)})
		}
		time.Sleep(2 * time.Second)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.downs != 1 || r.ups != 2 {
			t.Errorf("%d losses, %d streams", r.downs, r.ups)
		}
	})
}

// A round is asked again under a fresh id elsewhere when a member cannot answer, says nothing, or is gone.
func TestReadRoundIsRetriedElsewhere(t *testing.T) {
	for _, failure := range []string{"no leader", "-"} {
		t.Run(failure, func(t *testing.T) {
			bubble(t, func(t *testing.T, l *fakeLog) {
				l.serve("us", 3).roundFailure = failure
				l.serve("eu", 9)
				c := l.open(Config{})
				defer c.Close()
				time.Sleep(3 * time.Second)
				began := time.Now()
				round, err := c.ReadRound(t.Context())
				if err != nil || round.Index != 9 {
					t.Fatalf("%+v, %v", round, err)
				}
				if round.Began.Before(began) || round.Began.Equal(began) {
					t.Errorf("a retried round began at %v, the call at %v", round.Began, began)
				}
				if current(c) != "eu:1" {
					t.Errorf("in use %s, which failed a round that eu:1 answered", current(c))
				}
			})
		})
	}
}

// Many rounds are under way on one stream, and their number is bounded.
func TestReadRoundsShareAStream(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		eu := l.serve("eu", 9)
		c := l.open(Config{Members: []string{"eu:1"}, Rounds: 50})
		defer c.Close()
		time.Sleep(3 * time.Second)
		if _, err := c.ReadRound(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var group sync.WaitGroup
		errs := make(chan error, 60)
		for range 60 {
			group.Go(func() {
				_, err := c.ReadRound(t.Context())
				errs <- err
			})
		}
		group.Wait()
		if took := time.Since(began); took != 80*time.Millisecond {
			t.Errorf("fifty rounds at once took %v, want one round trip", took)
		}
		refused := 0
		for range 60 {
			if errors.Is(<-errs, ErrTooManyRounds) {
				refused++
			}
		}
		if refused != 10 {
			t.Errorf("%d refused, want 10", refused)
		}
		eu.with(func() {
			seen := map[uint64]bool{}
			for _, id := range eu.rounds {
				if seen[id] {
					t.Errorf("id %d was used twice", id)
				}
				seen[id] = true
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		eu.with(func() { eu.roundFailure = "no majority" })
		if _, err := c.ReadRound(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("round without a majority: %v", err)
		}
	})
}

func TestStatus(t *testing.T) {
	bubble(t, func(t *testing.T, l *fakeLog) {
		for _, region := range []string{"us", "eu", "ap"} {
			l.serve(region, 4)
		}
		c := l.open(Config{})
		defer c.Close()
		time.Sleep(3 * time.Second)
		l.members["eu"].server.Stop()
		l.net.Cut("us", "ap")
		got := ""
		for _, s := range c.Status(t.Context()) {
			got += fmt.Sprintf("%s %v %v %v %v\n", s.Address, s.InUse, s.Status.GetPublishedIndex(), s.Err != nil, s.RoundTrip)
		}
		want := "us:1 true 4 false 0s\neu:1 false 0 true 80ms\nap:1 false 0 true 150ms\n"
		if got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}
