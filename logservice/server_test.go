package logservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/internal/wan"
)

// What does not belong together does not start, says why, and leaves the directory as it was.
func TestStartRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := wan.New(wan.Options{InMemory: true})
		defer network.Close()
		fsys := disk.NewMemory(1)
		start := func(name, dir string, names ...string) (*Server, error) {
			listener, err := network.Region("us").Listen(name + ":0")
			if err != nil {
				t.Fatal(err)
			}
			config := Config{Name: name, DataDir: dir, Listener: listener, Dial: network.Region("us").Dial, FS: fsys}
			for _, n := range names {
				config.InitialCluster = append(config.InitialCluster, InitialMember{Name: n, Address: n + ":1"})
			}
			s, err := Start(config)
			if err == nil {
				return s, nil
			}
			if _, err := listener.Accept(); err == nil {
				t.Error("the listener is still open")
			}
			return nil, err
		}
		refused := func(what string, want error, text string, name, dir string, names ...string) {
			t.Helper()
			s, err := start(name, dir, names...)
			if err == nil {
				s.Kill()
				t.Errorf("%s: started", what)
			} else if (want != nil && !errors.Is(err, want)) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v", what, err)
			}
		}
		first, err := start("a", "/a", "a", "b", "c")
		if err != nil {
			t.Fatal(err)
		}
		refused("a directory in use", disk.ErrLocked, "/a", "a", "/a", "a", "b", "c")
		first.Kill()
		refused("a directory of another member", ErrOtherMember, `"a"`, "b", "/a", "a", "b", "c")
		refused("a directory of another log", ErrOtherMember, "other members", "a", "/a", "a", "b", "x")
		refused("not among the members", errInitialCluster, `"z"`, "z", "/z", "a", "b")
		refused("a name given twice", errInitialCluster, "twice", "a", "/y", "a", "a")
		again, err := start("a", "/a", "c", "b", "a") // the order does not matter
		if err != nil {
			t.Fatal(err)
		}
		again.Kill()

		if err := fsys.Corrupt("/a/member", 50, 1); err != nil {
			t.Fatal(err)
		}
		refused("a damaged identity", ErrDamaged, "/a/member", "a", "/a", "a", "b", "c")
		if err := fsys.Corrupt("/a/member", 50, 1); err != nil {
			t.Fatal(err)
		}
		identity, err := fsys.Bytes("/a/member")
		if err != nil {
			t.Fatal(err)
		}
		if err := fsys.SetBytes("/a/member", identity[:len(identity)/2]); err != nil {
			t.Fatal(err)
		}
		refused("half an identity", ErrDamaged, "/a/member", "a", "/a", "a", "b", "c")
		if err := fsys.Remove("/a/member"); err != nil {
			t.Fatal(err)
		}
		refused("a log without an identity", ErrDamaged, "whose", "a", "/a", "a", "b", "c")
		if err := disk.WriteFile(fsys, "/a/member", identity); err != nil {
			t.Fatal(err)
		}
		names, err := fsys.ReadDir("/a/log")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".segment") {
				if err := fsys.Corrupt("/a/log/"+name, 10, 0xff); err != nil {
					t.Fatal(err)
				}
			}
		}
		refused("a damaged log", nil, "/a/log", "a", "/a", "a", "b", "c")
	})
}

// A member whose disk was replaced by an empty one has lost its votes: the others refuse it, and it says so and ends.
func TestMemberWithEmptyDirectoryIsRefused(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		c.kill("ap")
		c.disks["ap"] = disk.NewMemory(77)
		s := c.start("ap")
		select {
		case <-s.Done():
			if !errors.Is(s.Err(), ErrLostData) {
				t.Errorf("ended with %v", s.Err())
			}
		case <-time.After(10 * time.Second):
			t.Error("it goes on")
		}
		delete(c.servers, "ap")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := c.writer(ctx, "eu", 100)
		time.Sleep(5 * time.Second)
		if w.done.Load() < 10 {
			t.Errorf("the others wrote %d", w.done.Load())
		}
	})
}

// A disk that fails once ends the member: it acknowledges nothing after that.
func TestFailedSyncEndsTheMember(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.writer(ctx, "ap", 100)
		time.Sleep(time.Second)
		failure := errors.New("input/output error")
		c.disks["eu"].SetHook(func(o disk.Operation) error {
			if o.Kind == disk.OpSync && strings.Contains(o.Name, "/log/") {
				return failure
			}
			return nil
		})
		select {
		case <-c.servers["eu"].Done():
			if !errors.Is(c.servers["eu"].Err(), failure) {
				t.Errorf("ended with %v", c.servers["eu"].Err())
			}
		case <-time.After(5 * time.Second):
			t.Error("it goes on")
		}
	})
}

// A full disk of the leader refuses appends by name; tails and rounds go on, and so do appends when there is room.
func TestFullDisk(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		for _, region := range c.regions {
			c.disks[region].SetCapacity(c.disks[region].Used() + 10<<10)
		}
		a := c.appender(t.Context(), "us")
		seq := uint64(0)
		full := func() bool {
			return slices.ContainsFunc(a.rejections(), func(r *logv1.AppendRejection) bool {
				return r.Reason == logv1.AppendRejection_REASON_NO_SPACE && r.RetryAfterMilliseconds > 0
			})
		}
		for range 200 {
			if full() {
				break
			}
			seq++
			a.batch(1, seq, strings.Repeat("x", 4000))
			time.Sleep(200 * time.Millisecond)
		}
		if !full() {
			t.Fatalf("no rejection after %d batches: %v", seq, a.rejections())
		}
		if alarms := c.servers["us"].Status().Alarms; len(alarms) == 0 {
			t.Error("no alarm")
		}
		r, err := c.reader(t.Context(), "us")
		if err != nil {
			t.Fatal(err)
		}
		if answer := r.ask(); answer.GetFailure() != "" {
			t.Errorf("read round: %v", answer)
		}
		seen := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_ = c.tail(ctx, "us", 1, 0, func(*logv1.Entry) bool { seen++; return true })
		cancel()
		if seen < 5 {
			t.Errorf("tail of %d entries", seen)
		}
		for _, region := range c.regions {
			c.disks[region].SetCapacity(0)
		}
		time.Sleep(15 * time.Second)
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		w := c.writer(ctx, "eu", 100)
		time.Sleep(5 * time.Second)
		if w.done.Load() < 10 {
			t.Errorf("wrote %d after there was room", w.done.Load())
		}
	})
}

func TestTail(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		a := c.appender(t.Context(), "us")
		for seq := range 10 {
			a.batch(1, uint64(seq+1), "payload")
		}
		time.Sleep(time.Second)
		cluster := c.servers["us"].clusterID.Load()
		open := func(r *logv1.TailRequest) (logv1.LogService_TailClient, *logv1.TailResponse, error) {
			t.Helper()
			stream, err := c.client("eu").Tail(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			first, err := stream.Recv()
			return stream, first, err
		}
		stream, first, err := open(&logv1.TailRequest{Handshake: &logv1.Handshake{ClusterId: cluster, Epoch: 1}, FromIndex: 1})
		if err != nil {
			t.Fatal(err)
		}
		if first.Handshake.GetClusterId() != cluster || first.Handshake.GetEpoch() != 1 || len(first.Membership.GetMembers()) != 3 || first.FirstIndex != 1 {
			t.Errorf("first answer %v", first)
		}
		for _, m := range first.Membership.Members {
			if m.Region != m.Name || m.Role != logv1.Member_ROLE_VOTER || m.Address != m.Name+":1" {
				t.Errorf("member %v", m)
			}
		}
		last := first.Entries[len(first.Entries)-1]
		// Silence is told every half second.
		for range 3 {
			began := time.Now()
			beat, err := stream.Recv()
			if err != nil || len(beat.Entries) > 0 || beat.PublishedIndex != last.Index {
				t.Errorf("heartbeat %v, %v", beat, err)
			}
			within(t, "a heartbeat", time.Since(began), 500*time.Millisecond)
		}
		hello := &logv1.Handshake{ClusterId: cluster}
		for _, refused := range []struct {
			name    string
			request *logv1.TailRequest
			code    codes.Code
		}{
			{"no handshake", &logv1.TailRequest{FromIndex: 1}, codes.InvalidArgument},
			{"no index", &logv1.TailRequest{Handshake: hello}, codes.InvalidArgument},
			{"another log", &logv1.TailRequest{Handshake: &logv1.Handshake{ClusterId: cluster + 1}, FromIndex: 1}, codes.FailedPrecondition},
			{"another epoch", &logv1.TailRequest{Handshake: &logv1.Handshake{Epoch: 2}, FromIndex: 1}, codes.FailedPrecondition},
			{"another history", &logv1.TailRequest{Handshake: hello, FromIndex: last.Index, PreviousTerm: last.Term + 5}, codes.FailedPrecondition},
		} {
			if _, _, err := open(refused.request); status.Code(err) != refused.code {
				t.Errorf("%s: %v", refused.name, err)
			}
		}
		_, first, err = open(&logv1.TailRequest{Handshake: hello, FromIndex: last.Index, PreviousTerm: last.Term, MaxBytes: 1})
		if err != nil || len(first.Entries) != 1 || first.Entries[0].Index != last.Index {
			t.Errorf("continued tail: %v, %v", first, err)
		}
		// A mirror that is ahead waits, and its history is compared when this member gets there.
		ahead, first, err := open(&logv1.TailRequest{Handshake: hello, FromIndex: last.Index + 3, PreviousTerm: last.Term})
		if err != nil || len(first.Entries) > 0 {
			t.Errorf("a tail that is ahead: %v, %v", first, err)
		}
		for seq := range 5 {
			a.batch(1, uint64(11+seq), "payload")
		}
		for {
			next, err := ahead.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if len(next.Entries) > 0 {
				if next.Entries[0].Index != last.Index+3 {
					t.Errorf("entry %d", next.Entries[0].Index)
				}
				break
			}
		}
	})
}

// One that does not read its tail holds up nobody, and gets everything when it reads again.
func TestSlowTail(t *testing.T) {
	config := func(_ string, c *Config) { c.TailMemoryBytes = 100 << 10 }
	bubble(t, config, func(t *testing.T, c *testCluster) {
		c.lead("us")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		slow, err := c.client("us").Tail(ctx, &logv1.TailRequest{Handshake: &logv1.Handshake{}, FromIndex: 1})
		if err != nil {
			t.Fatal(err)
		}
		w := c.writer(ctx, "us", 100)
		a := c.appender(ctx, "us")
		for seq := range 300 {
			a.batch(7, uint64(seq+1), strings.Repeat("x", 50_000))
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if got := time.Duration(w.slowest.Load()); got > 200*time.Millisecond {
			t.Errorf("a write took %v beside a slow tail", got)
		}
		tails := c.servers["us"].published
		tails.mu.Lock()
		published, kept := tails.index, tails.bytes
		tails.mu.Unlock()
		if kept > 300<<10 {
			t.Errorf("%d bytes kept for tails", kept)
		}
		for next := uint64(1); next <= published; {
			response, err := slow.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range response.Entries {
				if e.Index != next {
					t.Fatalf("entry %d, want %d", e.Index, next)
				}
				next++
			}
		}
	})
}

// Leadership goes to the region that the policy names, stays there, and comes back after a failure.
func TestLeaderPolicy(t *testing.T) {
	config := func(_ string, c *Config) { c.LeaderPolicy = LeaderPolicy{Region: "ap"} }
	bubble(t, config, func(t *testing.T, c *testCluster) {
		c.until(10*time.Second, "a leader in ap", func() bool { return c.leader() == "ap" })
		c.kill("ap")
		c.until(3*time.Second, "another leader", func() bool { return c.leader() == "us" || c.leader() == "eu" })
		c.start("ap")
		c.until(10*time.Second, "a leader in ap again", func() bool { return c.leader() == "ap" })
		term := c.servers["ap"].Status().Term
		time.Sleep(30 * time.Second)
		if got := c.servers["ap"].Status(); got.Term != term {
			t.Errorf("term %d became %d", term, got.Term)
		}
	})
}

func TestTransferAndStatus(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		target := c.servers["ap"].id
		answer, err := c.client("eu").TransferLeadership(t.Context(), &logv1.TransferLeadershipRequest{TargetId: target})
		if err != nil || answer.LeaderId != target {
			t.Fatalf("transfer: %v, %v", answer, err)
		}
		if _, err := c.client("eu").TransferLeadership(t.Context(), &logv1.TransferLeadershipRequest{TargetId: 5}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("transfer to nobody: %v", err)
		}
		time.Sleep(3 * time.Second)
		got, err := c.client("ap").Status(t.Context(), &logv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got.LeaderId != target || got.Publication != "quorum" || got.PublishedIndex != got.LastIndex || got.FirstIndex != 1 ||
			got.LogTimeNanoseconds == 0 || got.DiskUsedBytes == 0 || len(got.Alarms) > 0 {
			t.Errorf("status %v", got)
		}
		for _, m := range got.Members {
			want := map[uint64]int64{c.servers["us"].id: 150_000, c.servers["eu"].id: 100_000, target: 0}[m.Id]
			if m.RoundTripMicroseconds != want || m.LastHeardMilliseconds > 1000 || m.LastHeardMilliseconds < 0 || m.MatchIndex != got.LastIndex {
				t.Errorf("member %v, round trip should be %d", m, want)
			}
		}
		if ended := c.servers["ap"]; true {
			began := time.Now()
			ended.Stop()
			if took := time.Since(began); took > time.Second {
				t.Errorf("stopping a leader took %v", took)
			}
			delete(c.servers, "ap")
			c.until(500*time.Millisecond, "a new leader at once", func() bool { return c.leader() != "" })
			if ended.Err() != nil || ended.Status().GetHandshake().GetName() != "ap" {
				t.Errorf("afterwards: %v, %v", ended.Err(), ended.Status())
			}
		}
	})
}

// With a hundred clients in each region, writing and reading, the medians stay near those of one.
func TestLatencyUnderLoad(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		puts, reads := map[string][]time.Duration{}, map[string][]time.Duration{}
		for i, region := range c.regions {
			var waiting sync.Map
			go func() {
				_ = c.tail(ctx, region, 1, 0, func(e *logv1.Entry) bool {
					if h, ok := parseEnvelope(e.Envelope); ok {
						if seen, ok := waiting.LoadAndDelete([2]uint64{h.session, h.seq}); ok {
							close(seen.(chan struct{}))
						}
					}
					return true
				})
			}()
			a := c.appender(ctx, region)
			r, err := c.reader(ctx, region)
			if err != nil {
				t.Fatal(err)
			}
			var sending sync.Mutex
			for client := range 100 {
				go func() {
					for seq := uint64(1); ctx.Err() == nil; seq++ {
						session := uint64(1000*(i+1) + client)
						seen := make(chan struct{})
						waiting.Store([2]uint64{session, seq}, seen)
						began := time.Now()
						sending.Lock()
						a.batch(session, seq, "payload")
						sending.Unlock()
						select {
						case <-seen:
						case <-ctx.Done():
							return
						}
						put := time.Since(began)
						began = time.Now()
						if r.ask() == nil {
							return
						}
						mu.Lock()
						puts[region] = append(puts[region], put)
						reads[region] = append(reads[region], time.Since(began))
						mu.Unlock()
						time.Sleep(time.Duration(client) * time.Millisecond)
					}
				}()
			}
		}
		time.Sleep(3 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		for region, want := range map[string][2]time.Duration{"us": {80, 80}, "eu": {80, 80}, "ap": {150, 100}} {
			for kind, took := range [][]time.Duration{puts[region], reads[region]} {
				slices.Sort(took)
				median := took[len(took)/2]
				t.Logf("%s: %s: median %v, slowest %v of %d", region, []string{"put", "read"}[kind], median, took[len(took)-1], len(took))
				if median > want[kind]*time.Millisecond*13/10 {
					t.Errorf("%s: median of %s %v, want %v ms", region, []string{"put", "read"}[kind], median, fmt.Sprint(int64(want[kind])))
				}
			}
		}
		cancel()
	})
}

// A caller that has said all it wants to gets its answers, and then the end of the stream.
func TestHalfClosedStreamsEnd(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		stream, err := c.client("eu").ReadRound(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&logv1.ReadRoundRequest{Handshake: &logv1.Handshake{}, Id: 1})
		_ = stream.Send(&logv1.ReadRoundRequest{Id: 2})
		_ = stream.CloseSend()
		got := []uint64{}
		for {
			answer, err := stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				break
			}
			got = append(got, answer.Id)
		}
		if fmt.Sprint(got) != "[0 1 2]" { // the handshake first
			t.Errorf("answers %v", got)
		}
		appends, err := c.client("eu").Append(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = appends.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{}})
		_ = appends.CloseSend()
		if _, err := appends.Recv(); err != nil {
			t.Error(err)
		}
		if _, err := appends.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("append ended with %v", err)
		}
	})
}
