package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/machinetest"
)

func dumpOf(t *testing.T, m *statemachine.Machine) string { return machinetest.Dump(t, m) }

// TestCheckpointsAgree: mirrors with different pasts report the same bytes for the same request.
func TestCheckpointsAgree(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		us, eu := l.serve("us"), l.serve("eu")
		l.config = func(c *Config) { c.Image.NoSync = true }
		a := l.ready("us")
		l.put(a, 200)
		b := l.ready("eu")
		l.put(b, 50)
		b.Kill()
		b = l.ready("eu") // from its image, which is a little behind
		l.put(a, 20)
		first, _, _ := a.SessionHolder()
		second, _, _ := b.SessionHolder()
		for range 2 {
			asked := l.request(1, first, second)
			x, y := l.reported(first), l.reported(second)
			if !logclient.SameCheckpoint(x, y) || x.GetIndex() != asked {
				t.Fatalf("%v and %v, asked for at %d", x, y, asked)
			}
			l.put(b, 30)
		}
		if !bytes.Equal(us.received, eu.received) || len(us.received) == 0 {
			t.Fatal("the members were given other bytes")
		}
		for _, region := range []string{"us", "eu"} {
			if _, err := os.Stat(filepath.Join(l.directory, region, checkpointFile)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the file is left: %v", region, err)
			}
		}
		if b := a.CheckpointBuild(); b != (CheckpointBuild{}) {
			t.Errorf("still building: %+v", b)
		}
	})
}

// TestUploadGoesOn: an upload that breaks goes on where it ended, one that is refused is given up, and one that is not
// asked for is not made.
func TestUploadGoesOn(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us")
		m := l.ready("us")
		for i := range 200 {
			l.put(m, 1)
			if _, err := m.Propose(t.Context(), put(fmt.Sprint("large", i), strings.Repeat("x", 8000)), ProposeOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		session, _, _ := m.SessionHolder()
		l.with(func() { us.breakAfter = 1 << 20 })
		l.request(1, session)
		l.reported(session)
		if us.uploads != 2 {
			t.Errorf("%d uploads", us.uploads)
		}

		l.with(func() { us.uploads, us.uploadError = 0, status.Error(codes.FailedPrecondition, "not yours") })
		l.request(1, session)
		l.await("given up", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return us.uploads >= 3 && m.CheckpointBuild() == CheckpointBuild{}
		})
		l.with(func() { us.uploads, us.uploadError = 0, nil })
		l.request(1, session+1) // of another
		l.request(7, session)   // of a format that nobody knows
		l.put(m, 1)
		time.Sleep(5 * time.Second)
		if us.uploads != 0 || m.Err() != nil {
			t.Errorf("%d uploads, %v", us.uploads, m.Err())
		}

		// While a member takes nothing, a later request takes the place of the earlier one.
		l.with(func() { us.uploadError = status.Error(codes.ResourceExhausted, "no room") })
		l.request(1, session)
		l.await("tried", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return us.uploads > 2 })
		index := l.request(1, session)
		l.with(func() { us.uploadError = nil })
		if name := l.reported(session); name.GetIndex() != index {
			t.Errorf("the checkpoint of %d was reported, the last asked for is %d", name.GetIndex(), index)
		}
	})
}

func noProgress(BootstrapProgress) {}

// trimmed waits for the end of a mirror that is below the log.
func (l *fakeLog) trimmed(m *Mirror) {
	l.t.Helper()
	l.await("ended", func() bool { return m.Err() != nil })
	<-m.Done()
	if !errors.Is(m.Err(), logclient.ErrTrimmed) {
		l.t.Fatalf("ended with %v", m.Err())
	}
}

func (l *fakeLog) bootstrap(region string) error {
	return Bootstrap(l.t.Context(), l.mirrorConfig(region), noProgress)
}

// TestBootstrap: a new mirror, one that was away for too long, and one that lost its image, come back from a checkpoint.
func TestBootstrap(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us")
		a := l.ready("us")
		away := l.ready("eu")
		l.put(away, 30)
		before := away.Identity()
		away.Stop()
		l.put(a, 300)
		l.checkpoint(a, us)
		l.put(a, 40)

		for _, region := range []string{"eu", "ap"} {
			l.trimmed(l.start(region))
			if err := l.bootstrap(region); err != nil {
				t.Fatal(err)
			}
			m := l.ready(region)
			l.put(m, 20)
			l.sameState(a, m)
		}
		if now := l.mirrors["eu"].Identity(); now.FrontendID != before.FrontendID || now.Incarnation != before.Incarnation+1 {
			t.Errorf("came back as %+v, was %+v", now, before)
		}
		for _, name := range []string{bootstrapFile, bootstrapNameFile, imageFile + ".new"} {
			if _, err := os.Stat(filepath.Join(l.directory, "eu", name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", name, err)
			}
		}
		// What was built is an image like any other.
		m := l.mirrors["eu"]
		m.Stop()
		if err := os.Remove(filepath.Join(l.directory, "ap", imageFile)); err != nil {
			t.Fatal(err)
		}
		l.mirrors["ap"].Kill()
		l.trimmed(l.start("ap"))
		if err := l.bootstrap("ap"); err != nil {
			t.Fatal(err)
		}
		l.sameState(l.ready("eu"), l.ready("ap"))
	})
}

// TestBootstrapFaults: lost streams, a checkpoint that is replaced meanwhile, damage, no checkpoint at all, and crashes.
func TestBootstrapFaults(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us")
		a := l.ready("us")
		l.put(a, 300)

		if err := l.bootstrap("eu"); !errors.Is(err, logclient.ErrNoCheckpoint) {
			t.Fatalf("without a checkpoint: %v", err)
		}
		l.checkpoint(a, us)
		size := len(us.content)

		// A broken stream goes on where it ended.
		l.with(func() { us.breakAfter, us.downloads = 8<<10, nil })
		if err := l.bootstrap("eu"); err != nil {
			t.Fatal(err)
		}
		if len(us.downloads) != 2 || us.downloads[1] == 0 {
			t.Errorf("downloads from %v", us.downloads)
		}
		l.sameState(a, l.ready("eu"))

		// A process that ends in the middle leaves what the next one goes on from.
		ctx, cancel := context.WithCancel(t.Context())
		l.with(func() { us.breakAfter, us.downloads = 8<<10, nil })
		err := Bootstrap(ctx, l.mirrorConfig("ap"), func(p BootstrapProgress) {
			if p.Bytes >= 8<<10 {
				cancel()
			}
		})
		if !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		part, err := os.ReadFile(filepath.Join(l.directory, "ap", bootstrapFile))
		if err != nil || len(part) < 8<<10 || len(part) >= size {
			t.Fatalf("%d bytes are left, %v", len(part), err)
		}
		l.with(func() { us.downloads = nil })
		if err := l.bootstrap("ap"); err != nil {
			t.Fatal(err)
		}
		if len(us.downloads) != 1 || us.downloads[0] != uint64(len(part)) {
			t.Errorf("downloads from %v, %d were there", us.downloads, len(part))
		}
		l.sameState(a, l.ready("ap"))
		l.mirrors["ap"].Stop()

		// What is left of another checkpoint is thrown away.
		if err := os.Remove(filepath.Join(l.directory, "ap", imageFile)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		l.with(func() { us.breakAfter = 8 << 10 })
		_ = Bootstrap(ctx, l.mirrorConfig("ap"), func(p BootstrapProgress) {
			if p.Bytes >= 8<<10 {
				cancel()
			}
		})
		l.put(a, 10)
		l.checkpoint(a, us)
		if err := l.bootstrap("ap"); err != nil {
			t.Fatal(err)
		}
		l.sameState(a, l.ready("ap"))
		l.mirrors["ap"].Stop()

		// Damage is found wherever it is, and what came with it is not kept.
		image := filepath.Join(l.directory, "ap", imageFile)
		whole, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, 9, 40, 100, 5000, size / 2, len(us.content) - 1} {
			l.with(func() { us.flip = at })
			if err := l.bootstrap("ap"); !errors.Is(err, ErrBadCheckpoint) {
				t.Errorf("byte %d altered: %v", at, err)
			}
		}
		// A good one under the name of another, too.
		named := us.held
		l.with(func() {
			us.flip, us.held = -1, proto.CloneOf(named)
			us.held.Sha256[0] ^= 1
		})
		if err := l.bootstrap("ap"); !errors.Is(err, ErrBadCheckpoint) {
			t.Errorf("under the name of another: %v", err)
		}
		if now, err := os.ReadFile(image); err != nil || !bytes.Equal(now, whole) {
			t.Errorf("the image was touched: %v", err)
		}
		l.with(func() { us.held = named })
		if err := l.bootstrap("ap"); err != nil {
			t.Fatal(err)
		}
		l.sameState(a, l.ready("ap"))
	})
}

// A linearizable read waits until what its round stands for is applied here, not only until the round is answered.
func TestLinearizableReadWaitsForItsApply(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		l.serve("us")
		m := l.ready("us")
		applied := m.AppliedIndex()
		l.with(func() { l.withheldFrom = uint64(len(l.entries) + 1) })
		index := l.append(logv1.EntryKind_ENTRY_KIND_TICK, 0, 0, nil)
		type answer struct {
			index, applied uint64
			err            error
		}
		answers := make(chan answer, 1)
		go func() {
			index, err := m.Linearize(t.Context())
			answers <- answer{index, m.AppliedIndex(), err}
		}()
		time.Sleep(time.Second)
		select {
		case a := <-answers:
			t.Fatalf("%+v, nothing above %d was delivered", a, applied)
		default:
		}
		l.with(func() { l.withheldFrom = 0 })
		if a := <-answers; a.err != nil || a.index < index || a.applied < a.index {
			t.Errorf("%+v, want the entry %d applied", a, index)
		}
	})
}

// Reads that wait for a round when the mirror stops are told so, whether their round is asked already or not.
func TestReadersLearnThatTheMirrorStops(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us")
		m := l.ready("us")
		us.server.Stop()
		const readers = 3
		errs := make(chan error, readers)
		for i := range readers {
			go func() {
				// The spacing keeps the later ones from the round of the first.
				time.Sleep(time.Duration(i) * m.config.ReadRoundSpacing / readers)
				_, err := m.Linearize(t.Context())
				errs <- err
			}()
		}
		time.Sleep(m.config.ReadRoundSpacing * 9 / 10)
		m.Kill()
		for range readers {
			if err := <-errs; !errors.Is(err, ErrStopped) {
				t.Errorf("a reader was told %v", err)
			}
		}
		if _, err := m.Linearize(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("a later reader was told %v", err)
		}
	})
}

// TestImageBeforeTheFirstSession: an image that was written before this frontend ever had a session is used.
func TestImageBeforeTheFirstSession(t *testing.T) {
	fakeBubble(t, func(t *testing.T, l *fakeLog) {
		us := l.serve("us")
		a := l.ready("us")
		l.put(a, 100)
		l.checkpoint(a, us)
		if err := l.bootstrap("ap"); err != nil {
			t.Fatal(err)
		}
		m := l.start("ap")
		if m.Machine().Index() == 0 || m.Machine().ClusterID() != fakeClusterID {
			t.Fatalf("begins at %d", m.Machine().Index())
		}
		m.Kill()
	})
}

// TestNotReadyWhileFarBehind: a mirror that catches up for longer than it may be old says so, and is ready once it has.
func TestNotReadyWhileFarBehind(t *testing.T) {
	r := &rounds{mirror: &Mirror{ready: make(chan struct{})}}
	now := time.Duration(0)
	r.mirror.config.Clock = func() time.Duration { return now }
	r.mirror.config.ReadyAgeMax = 10 * time.Second
	r.answered = []answeredRound{{index: 5, began: 0}, {index: 9, began: 8 * time.Second}}
	isReady := func() bool {
		select {
		case <-r.mirror.ready:
			return true
		default:
			return false
		}
	}
	now = 12 * time.Second
	if r.applied(7); isReady() {
		t.Error("ready with a state of 12 s ago")
	}
	if r.applied(9); !isReady() {
		t.Error("not ready with a state of 4 s ago")
	}
}
