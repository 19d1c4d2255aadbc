package logservice

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// fakeState is what a builder of the tests makes a checkpoint of: the running hash of all entries, blown up.
func fakeState(index uint64, sum [32]byte, size int) (*logv1.CheckpointName, []byte) {
	data := bytes.Repeat(fmt.Appendf(nil, "%d %x\n", index, sum), size/64+1)
	hash := sha256.Sum256(data)
	return &logv1.CheckpointName{Index: index, Sha256: hash[:], SizeBytes: uint64(len(data)), FormatVersion: checkpointFormat}, data
}

// fakeFrontend opens a session in a region, renews it, tails, and builds the checkpoints that it is asked for.
type fakeFrontend struct {
	c      *testCluster
	region string
	// spoil changes what it builds; nil for the truth.
	spoil func(name *logv1.CheckpointName, data []byte) (*logv1.CheckpointName, []byte)
	// honest takes spoil away, mute lets it build nothing.
	honest, mute atomic.Bool
	// bytes is the size of a checkpoint.
	bytes int

	session, applied atomic.Uint64
	built            atomic.Int64
	failed           atomic.Pointer[error]
	sum              [32]byte
	term             uint64
}

// run tails until ctx ends. It survives the loss of streams.
func (f *fakeFrontend) run(ctx context.Context) {
	id := uint64(len(f.region)) + uint64(f.region[0])<<8 + uint64(f.region[1])<<16
	open, _ := proto.Marshal(&logv1.OpenSession{FrontendId: id, Incarnation: 1, Region: f.region})
	var seq atomic.Uint64
	for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		stream, err := f.c.client(f.region).Append(ctx)
		if err != nil || stream.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{}}) != nil {
			continue
		}
		tailCtx, cancel := context.WithCancel(ctx)
		go func() {
			defer cancel()
			for tailCtx.Err() == nil {
				p := &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, Payload: open}
				if session := f.session.Load(); session != 0 {
					p = &logv1.Proposal{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: session, Seq: seq.Add(1)}
				}
				if stream.Send(&logv1.AppendRequest{Proposals: []*logv1.Proposal{p}}) != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		err = f.c.tail(tailCtx, f.region, f.applied.Load()+1, f.term, func(e *logv1.Entry) bool { f.apply(ctx, id, e); return true })
		cancel()
		if status.Code(err) == codes.OutOfRange {
			if err := f.bootstrap(ctx); err != nil {
				f.failed.Store(&err)
			}
		}
	}
}

func (f *fakeFrontend) apply(ctx context.Context, id uint64, e *logv1.Entry) {
	f.sum = sha256.Sum256(fmt.Appendf(f.sum[:], "%d %d %s", e.Index, e.Term, e.Envelope))
	f.term = e.Term
	f.applied.Store(e.Index)
	envelope := &logv1.Envelope{}
	if proto.Unmarshal(e.Envelope, envelope) != nil {
		return
	}
	switch e.Kind {
	case logv1.EntryKind_ENTRY_KIND_OPEN_SESSION:
		open := &logv1.OpenSession{}
		if proto.Unmarshal(envelope.Payload, open) == nil && open.FrontendId == id {
			f.session.Store(e.Index)
		}
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST:
		request := &logv1.CheckpointRequest{}
		if proto.Unmarshal(envelope.Payload, request) != nil || f.mute.Load() {
			return
		}
		for _, session := range request.BuilderSessions {
			if session == f.session.Load() {
				name, data := fakeState(e.Index, f.sum, f.bytes)
				if f.spoil != nil && !f.honest.Load() {
					name, data = f.spoil(name, data)
				}
				f.built.Add(1)
				go func() {
					for ctx.Err() == nil {
						err := f.c.upload(ctx, f.region, session, name, data)
						if err == nil || status.Code(err) == codes.FailedPrecondition {
							return
						}
						time.Sleep(time.Second)
					}
				}()
			}
		}
	}
}

// bootstrap takes the newest checkpoint in place of what was applied.
func (f *fakeFrontend) bootstrap(ctx context.Context) error {
	first, data, err := f.c.download(ctx, f.region, nil)
	if err != nil {
		return err
	}
	var index uint64
	if _, err := fmt.Sscanf(string(data), "%d %x\n", &index, new([]byte)); err != nil || index != first.Name.Index {
		return fmt.Errorf("checkpoint %v begins with %.80s: %w", first.Name, data, err)
	}
	var sum []byte
	_, _ = fmt.Sscanf(string(data), "%d %x\n", &index, &sum)
	f.sum, f.term = [32]byte(sum), first.Term
	f.applied.Store(index)
	return nil
}

func (c *testCluster) upload(ctx context.Context, region string, session uint64, name *logv1.CheckpointName, data []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.client(region).UploadCheckpoint(ctx)
	if err != nil {
		return err
	}
	_ = stream.Send(&logv1.UploadCheckpointRequest{Handshake: &logv1.Handshake{}, Report: &logv1.CheckpointReport{Session: session, Name: name}})
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	for rest := data[answer.OffsetBytes:]; answer.Wanted && len(rest) > 0; {
		n := min(len(rest), 50_000)
		if err := stream.Send(&logv1.UploadCheckpointRequest{Data: rest[:n]}); err != nil {
			break
		}
		rest = rest[n:]
	}
	for !answer.Done {
		if answer, err = stream.Recv(); err != nil {
			return err
		}
	}
	return nil
}

func (c *testCluster) download(ctx context.Context, region string, name *logv1.CheckpointName) (first *logv1.DownloadCheckpointResponse, data []byte, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.client(region).DownloadCheckpoint(ctx, &logv1.DownloadCheckpointRequest{Handshake: &logv1.Handshake{}, Name: name})
	if err != nil {
		return nil, nil, err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			sum := sha256.Sum256(data)
			if !bytes.Equal(sum[:], first.Name.Sha256) {
				return nil, nil, fmt.Errorf("%d bytes of another checkpoint than %v", len(data), first.Name)
			}
			return first, data, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if first == nil {
			first = response
		}
		data = append(data, response.Data...)
	}
}

// load appends entries at a region's member until ctx ends.
func (c *testCluster) load(ctx context.Context, region string, bytesEach int, every time.Duration) {
	for ; ctx.Err() == nil; time.Sleep(time.Second) {
		stream, err := c.client(region).Append(ctx)
		if err != nil || stream.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{}}) != nil {
			continue
		}
		for ctx.Err() == nil {
			if stream.Send(&logv1.AppendRequest{Proposals: []*logv1.Proposal{{Kind: logv1.EntryKind_ENTRY_KIND_TICK,
				Payload: make([]byte, bytesEach)}}}) != nil {
				break
			}
			time.Sleep(every)
		}
	}
}

// small makes checkpoints and trimming happen within a short test.
func small(_ string, c *Config) {
	c.SegmentBytes, c.TailBytes, c.CheckpointLogBytes, c.CheckpointTimeout = 64<<10, 256<<10, 200<<10, 20*time.Second
	c.TailMemoryBytes = 64 << 10
}

// TestLogStaysWithinItsSize runs constant load for long enough to fill the bound many times over: the log is trimmed
// everywhere, and every region's frontend goes on.
func TestLogStaysWithinItsSize(t *testing.T) {
	bubble(t, small, func(t *testing.T, c *testCluster) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.lead("us")
		frontends := []*fakeFrontend{{c: c, region: "us", bytes: 300_000}, {c: c, region: "eu", bytes: 300_000}, {c: c, region: "ap", bytes: 300_000}}
		for _, f := range frontends {
			go f.run(ctx)
		}
		go c.load(ctx, "eu", 1000, 5*time.Millisecond)
		var highest int64
		for range 20 {
			time.Sleep(time.Second)
			for _, s := range c.servers {
				highest = max(highest, s.storage.DiskBytes())
			}
		}
		// The tail, one checkpoint's worth of log that is not sealed yet, what comes in while it is made (3 s), and the
		// segments at both ends.
		if bound := int64(256+200+3*210+4*64) << 10; highest > bound {
			t.Errorf("the log has grown to %d bytes, at most %d were expected", highest, bound)
		}
		for region, s := range c.servers {
			state := s.Status()
			t.Logf("%s: entries %d to %d, checkpoints %d, log at most %d bytes", region, state.FirstIndex, state.LastIndex,
				len(state.Checkpoints), highest)
			if state.FirstIndex < 1000 || len(state.Checkpoints) != 2 || !state.Checkpoints[0].Held && !state.Checkpoints[1].Held || len(s.store.List()) > 3 {
				t.Errorf("%s: first %d, checkpoints %v, store %v", region, state.FirstIndex, state.Checkpoints, s.store.List())
			}
			for _, alarm := range state.Alarms {
				t.Errorf("%s: alarm %q", region, alarm)
			}
		}
		for _, f := range frontends {
			if f.built.Load() == 0 || f.failed.Load() != nil {
				t.Errorf("%s built %d checkpoints, errors %v", f.region, f.built.Load(), f.failed.Load())
			}
		}
		// A new frontend finds the log trimmed and begins with a checkpoint.
		err := c.tail(t.Context(), "ap", 1, 0, func(*logv1.Entry) bool { return false })
		if status.Code(err) != codes.OutOfRange {
			t.Errorf("tail from the start: %v", err)
		}
		fresh := &fakeFrontend{c: c, region: "ap"}
		if err := fresh.bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		go fresh.run(ctx)
		c.until(10*time.Second, "a new frontend that has caught up", func() bool { return fresh.applied.Load()+500 > frontends[2].applied.Load() })
	})
}

// TestWrongAndMissingCheckpoints has one builder that makes other bytes, and one that makes none.
func TestWrongAndMissingCheckpoints(t *testing.T) {
	bubble(t, small, func(t *testing.T, c *testCluster) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.lead("us")
		wrong := &fakeFrontend{c: c, region: "us", bytes: 1000}
		wrong.spoil = func(name *logv1.CheckpointName, _ []byte) (*logv1.CheckpointName, []byte) {
			return fakeState(name.Index, [32]byte{1, 2, 3}, 1000)
		}
		frontends := []*fakeFrontend{wrong, {c: c, region: "eu", bytes: 1000}, {c: c, region: "ap", bytes: 1000}}
		for _, f := range frontends {
			go f.run(ctx)
		}
		c.until(10*time.Second, "sessions", func() bool {
			return frontends[0].session.Load()*frontends[1].session.Load()*frontends[2].session.Load() != 0
		})
		for range 4 {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
			answer, err := c.client("ap").RequestCheckpoint(ctx, &logv1.RequestCheckpointRequest{})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if bad, _ := fakeState(answer.Checkpoint.Index, [32]byte{1, 2, 3}, 1000); bytes.Equal(bad.Sha256, answer.Checkpoint.Sha256) {
				t.Fatal("the wrong one was sealed")
			}
			frontends[2].mute.Store(true)
			wrong.honest.Store(true)
		}
		if wrong.built.Load() == 0 {
			t.Error("the wrong one was never asked")
		}
	})
}

// TestMemberThatWasAwayComesBackThroughASnapshot keeps a voter away for longer than the tail. It comes back through a
// snapshot, to the same log, and nobody is stopped meanwhile.
func TestMemberThatWasAwayComesBackThroughASnapshot(t *testing.T) {
	missed, ways := uint64(5000), []bool{false, true}
	if raceEnabled {
		missed, ways = 1000, ways[1:] // what is under way to one cut off may save it a snapshot of so few
	}
	for _, crash := range ways {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			bubble(t, small, func(t *testing.T, c *testCluster) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c.lead("us")
				frontends := []*fakeFrontend{{c: c, region: "us", bytes: 300_000}, {c: c, region: "eu", bytes: 300_000}}
				for _, f := range frontends {
					go f.run(ctx)
				}
				go c.load(ctx, "eu", 1000, 5*time.Millisecond)
				time.Sleep(time.Second)
				before, applied := c.servers["ap"].Status().LastIndex, frontends[1].applied.Load()
				if crash {
					c.kill("ap")
				} else {
					c.net.Isolate("ap")
				}
				c.until(time.Minute, "a log that begins above what the one away has", func() bool {
					return c.servers["us"].Status().FirstIndex > before+missed && c.servers["eu"].Status().FirstIndex > before+missed
				})
				if frontends[1].applied.Load() < applied+missed {
					t.Errorf("eu's frontend has come from %d to %d only", applied, frontends[1].applied.Load())
				}
				if crash {
					c.start("ap")
				} else {
					c.net.Rejoin("ap")
				}
				ap := c.servers["ap"]
				c.until(30*time.Second, "the one away to catch up", func() bool {
					return ap.Status().PublishedIndex+500 > c.servers["us"].Status().PublishedIndex
				})
				state := ap.Status()
				if state.FirstIndex <= before {
					t.Errorf("it has entries from %d on: no snapshot was needed", state.FirstIndex)
				}
				if len(state.Checkpoints) == 0 || len(ap.store.List()) == 0 {
					t.Errorf("checkpoints %v, store %v", state.Checkpoints, ap.store.List())
				}
				// Its log is the others' (tail checks), a mirror finds a checkpoint there, and a restart finds it all again.
				fresh := &fakeFrontend{c: c, region: "ap", bytes: 300_000}
				if err := fresh.bootstrap(ctx); err != nil {
					t.Fatal(err)
				}
				go fresh.run(ctx)
				c.until(10*time.Second, "a frontend at ap that has caught up", func() bool { return fresh.applied.Load()+500 > frontends[1].applied.Load() })
				c.kill("ap")
				ap = c.start("ap")
				c.until(10*time.Second, "ap after a restart", func() bool {
					return ap.Status().PublishedIndex+500 > c.servers["us"].Status().PublishedIndex
				})
				c.lead("ap") // and it can lead
			})
		})
	}
}

// TestCrashInEachStepOfASnapshot cuts the power of a member at operations of its disk spread over the staging and the
// installation of a snapshot. Each time it starts again, with the old log or the new one, and catches up.
func TestCrashInEachStepOfASnapshot(t *testing.T) {
	apart := uint64(1)
	if raceEnabled {
		apart = 4
	}
	for point := uint64(0); point < 8; point += apart {
		t.Run(fmt.Sprint(point), func(t *testing.T) {
			bubble(t, small, func(t *testing.T, c *testCluster) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c.lead("us")
				for _, region := range []string{"us", "eu"} {
					go (&fakeFrontend{c: c, region: region, bytes: 300_000}).run(ctx)
				}
				go c.load(ctx, "eu", 1000, 10*time.Millisecond)
				before := c.servers["ap"].Status().LastIndex
				c.kill("ap")
				c.until(time.Minute, "a log that begins above what the one away has", func() bool {
					return c.servers["us"].Status().FirstIndex > before+100 && c.servers["eu"].Status().FirstIndex > before+100
				})
				ap := c.start("ap")
				c.until(10*time.Second, "a snapshot to be staged", func() bool { return len(ap.store.List()) > 0 || ap.store.Bytes() > 0 })
				c.disks["ap"].CrashAt(c.disks["ap"].Operations() + 1 + 4*point)
				// A member whose staging fails goes on; only its log's disk ends it. Either way nothing of it works any more.
				time.Sleep(2 * time.Second)
				c.kill("ap")
				c.disks["ap"].CrashAt(0)
				ap = c.start("ap")
				c.until(30*time.Second, "the one that crashed to catch up", func() bool {
					return ap.Status().PublishedIndex+500 > c.servers["us"].Status().PublishedIndex
				})
				if state := ap.Status(); state.FirstIndex <= before {
					t.Errorf("it has entries from %d on", state.FirstIndex)
				}
				// All that it has above its checkpoint is what the others have: tail checks.
				fresh := &fakeFrontend{c: c, region: "ap"}
				if err := fresh.bootstrap(ctx); err != nil {
					t.Fatal(err)
				}
				end := ap.Status().PublishedIndex
				if err := c.tail(ctx, "ap", fresh.applied.Load()+1, fresh.term, func(e *logv1.Entry) bool { return e.Index < end }); err != nil {
					t.Errorf("tail of ap: %v", err)
				}
			})
		})
	}
}
