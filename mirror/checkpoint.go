package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
)

const (
	// checkpointFile holds a checkpoint on its way to the log. It is of no use after the process has ended.
	checkpointFile = "checkpoint"
	// diskReserveBytes is what must be left on the disk beside a checkpoint: the image needs room too.
	diskReserveBytes = 64 << 20
	// diskCheckBytes is after how many written bytes the room on the disk is looked at again.
	diskCheckBytes = 64 << 20
)

var (
	errSuperseded = errors.New("the log asks for a later one")
	errNoRoom     = errors.New("no room on the disk of the data directory")
)

// checkpoints builds the checkpoints that the log asks this frontend for, one at a time, beside everything else. A failure
// is logged and counted; it concerns nobody here, since the log asks others, or again. But memory that is found damaged on
// the way ends the mirror.
type checkpoints struct {
	mirror *Mirror
	// end ends the build before; ended is closed when it has. They belong to the goroutine that applies.
	end   context.CancelCauseFunc
	ended chan struct{}

	mu       sync.Mutex
	building CheckpointBuild
}

// CheckpointBuild tells how far the making of a checkpoint has come.
type CheckpointBuild struct {
	// Index of the checkpoint; zero while none is made.
	Index uint64
	// Bytes written so far.
	Bytes uint64
	// Uploading: they are all written, and are given to the log.
	Uploading bool
}

func newCheckpoints(m *Mirror) *checkpoints {
	// What is there is from a process that has ended.
	_ = os.Remove(filepath.Join(m.directory.path, checkpointFile))
	return &checkpoints{mirror: m, end: func(error) {}, ended: closedChannel()}
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// requested looks whether an applied CHECKPOINT_REQUEST asks this incarnation's session, and begins if it does: the state
// is pinned before it returns, so that what is built is the state after exactly this entry.
func (c *checkpoints) requested(entry *logclient.Entry, applied *statemachine.Applied) {
	m := c.mirror
	// Zero until this incarnation's Open was applied: what an earlier one was asked for is of no interest any more.
	session := m.session.identity().Session
	request := &logv1.CheckpointRequest{}
	if err := proto.Unmarshal(entry.Envelope.GetPayload(), request); err != nil {
		m.config.Logger.Warn("a request for a checkpoint cannot be read", "index", entry.Index, "error", err)
		return
	}
	if applied.Skipped != statemachine.SkipNone || session == 0 || !slices.Contains(request.GetBuilderSessions(), session) {
		return
	}
	if _, open := m.machine.Session(session); !open {
		return
	}
	if v := request.GetFormatVersion(); v != checkpoint.FormatVersion {
		m.metrics.checkpoints.WithLabelValues("failed").Inc()
		m.config.Logger.Error("a checkpoint is asked for that this build cannot make", "index", entry.Index,
			"format_version", v, "known", checkpoint.FormatVersion)
		return
	}
	_, epoch := m.client.Identity()
	began := time.Now()
	source := checkpoint.Pin(m.machine, epoch)
	m.metrics.checkpointPinSeconds.Observe(time.Since(began).Seconds())
	c.end(errSuperseded)
	before := c.ended
	ctx, end := context.WithCancelCause(m.ctx)
	c.end, c.ended = end, make(chan struct{})
	ended := c.ended
	m.goroutines.Go(func() {
		defer close(ended)
		defer end(nil)
		<-before
		c.run(ctx, source, session)
	})
}

// run makes one checkpoint and gives it to the log.
func (c *checkpoints) run(ctx context.Context, source *checkpoint.Source, session uint64) {
	m := c.mirror
	index, began := source.Header().Index, time.Now()
	c.set(CheckpointBuild{Index: index})
	defer c.set(CheckpointBuild{})
	ctx, cancel := context.WithTimeout(ctx, m.config.CheckpointTimeout)
	defer cancel()
	name, err := c.make(ctx, source, session)
	switch {
	case err == nil:
		m.metrics.checkpoints.WithLabelValues("reported").Inc()
		m.metrics.checkpointSeconds.Observe(time.Since(began).Seconds())
		m.metrics.checkpointBytes.Set(float64(name.GetSizeBytes()))
		m.config.Logger.Info("a checkpoint was made", "index", index, "bytes", name.GetSizeBytes(),
			"sha256", fmt.Sprintf("%x", name.GetSha256()), "duration", time.Since(began).Round(time.Millisecond))
	case m.ctx.Err() != nil:
	case errors.Is(err, checkpoint.ErrRotten):
		m.metrics.checkpoints.WithLabelValues("failed").Inc()
		m.quarantine("memory is damaged: " + err.Error())
	default:
		m.metrics.checkpoints.WithLabelValues("failed").Inc()
		m.config.Logger.Warn("a checkpoint was not made; the log asks again", "index", index, "reason", err)
	}
}

func (c *checkpoints) make(ctx context.Context, source *checkpoint.Source, session uint64) (*logv1.CheckpointName, error) {
	m := c.mirror
	released := false
	release := func() {
		if !released {
			released = true
			source.Release()
		}
	}
	defer release()
	path := filepath.Join(m.directory.path, checkpointFile)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(path)
	}()
	pace := newPace(ctx, m.config.CheckpointBytesPerSecond)
	w := &checkpointWriter{file: file, pace: pace, digest: sha256.New(), written: func(bytes uint64) {
		c.set(CheckpointBuild{Index: source.Header().Index, Bytes: bytes})
	}}
	if _, err := source.Write(w); err != nil {
		return nil, err
	}
	release() // the upload may take long
	name := &logv1.CheckpointName{
		Index: source.Header().Index, Sha256: w.digest.Sum(nil), SizeBytes: w.bytes, FormatVersion: checkpoint.FormatVersion,
	}
	c.set(CheckpointBuild{Index: name.Index, Bytes: name.SizeBytes, Uploading: true})
	return name, m.client.UploadCheckpoint(ctx, &logv1.CheckpointReport{Session: session, Name: name}, pacedReader{file, pace})
}

func (c *checkpoints) set(b CheckpointBuild) {
	c.mu.Lock()
	c.building = b
	c.mu.Unlock()
}

// CheckpointBuild tells of the checkpoint that this frontend makes at present.
func (m *Mirror) CheckpointBuild() CheckpointBuild {
	c := m.checkpoints
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.building
}

// checkpointWriter writes to the file, at a bounded rate, as long as there is room.
type checkpointWriter struct {
	file    *os.File
	pace    *pace
	digest  hash.Hash
	bytes   uint64
	checked uint64
	written func(bytes uint64)
}

func (w *checkpointWriter) Write(p []byte) (int, error) {
	if w.bytes == 0 || w.bytes-w.checked >= diskCheckBytes {
		if err := requireRoom(w.file.Name(), diskCheckBytes); err != nil {
			return 0, err
		}
		w.checked = w.bytes
	}
	if err := w.pace.wait(len(p)); err != nil {
		return 0, err
	}
	_, _ = w.digest.Write(p)
	n, err := w.file.Write(p)
	w.bytes += uint64(n)
	w.written(w.bytes)
	return n, err
}

// requireRoom checks that a number of bytes and the reserve are free where the path is.
func requireRoom(path string, bytes uint64) error {
	return requireRoomBeside(path, bytes, func(uint64) uint64 { return diskReserveBytes })
}

// requireRoomBeside checks that a number of bytes are free where the path is, beside a reserve, which is told how many bytes
// the file system has.
func requireRoomBeside(path string, bytes uint64, reserve func(total uint64) uint64) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return fmt.Errorf("statfs %s: %w", path, err)
	}
	block := uint64(stat.Bsize)
	wanted := bytes + reserve(stat.Blocks*block)
	if free := stat.Bavail * block; free < wanted {
		return fmt.Errorf("%w: %d bytes free, %d wanted", errNoRoom, free, wanted)
	}
	return nil
}

// pacedReader reads at a bounded rate.
type pacedReader struct {
	file *os.File
	pace *pace
}

func (r pacedReader) ReadAt(p []byte, offset int64) (int, error) {
	if err := r.pace.wait(len(p)); err != nil {
		return 0, err
	}
	return r.file.ReadAt(p, offset)
}

// pace bounds a rate, so that what goes on in the background leaves processor, disk and network to the requests.
type pace struct {
	ctx            context.Context
	bytesPerSecond int
	// next is when the bytes so far would have been done at the rate.
	next time.Time
}

// paceSlack is how far the work may be ahead of the rate before it waits, and how much idle time it may make up for.
const paceSlack = 20 * time.Millisecond

func newPace(ctx context.Context, bytesPerSecond int) *pace {
	return &pace{ctx: ctx, bytesPerSecond: bytesPerSecond, next: time.Now()}
}

// wait returns when n more bytes may be worked on. The error is the context's.
func (p *pace) wait(n int) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	now := time.Now()
	if earliest := now.Add(-paceSlack); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(time.Duration(int64(n) * int64(time.Second) / int64(p.bytesPerSecond)))
	ahead := p.next.Sub(now)
	if ahead < paceSlack {
		return nil
	}
	timer := time.NewTimer(ahead)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}
