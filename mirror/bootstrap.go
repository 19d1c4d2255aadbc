package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/durable"
	"github.com/logmirror/logmirror/logclient"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/checkpoint"
	"github.com/logmirror/logmirror/statemachine/image"
)

const (
	// bootstrapFile holds what has come of the checkpoint that bootstrapNameFile names.
	bootstrapFile     = "bootstrap"
	bootstrapNameFile = "bootstrap-name"
)

// ErrBadCheckpoint is returned for a downloaded checkpoint that is not what it was said to be.
var ErrBadCheckpoint = errors.New("the checkpoint is not what its name says")

// BootstrapProgress tells how far a bootstrap has come.
type BootstrapProgress struct {
	// Member is the log member that the checkpoint comes from; empty while one is looked for.
	Member string
	// Index of the checkpoint, and how many of its bytes have come.
	Index             uint64
	Bytes, BytesTotal uint64
	// Building: all bytes are there, and the image is made of them.
	Building bool
}

// String says it for people.
func (p BootstrapProgress) String() string {
	const mebibyte = 1 << 20
	switch {
	case p.Building:
		return fmt.Sprintf("building the state from the checkpoint of index %d", p.Index)
	case p.Member != "":
		return fmt.Sprintf("%.1f of %.1f MiB of the checkpoint of index %d from %s",
			float64(p.Bytes)/mebibyte, float64(p.BytesTotal)/mebibyte, p.Index, p.Member)
	default:
		return "looking for a log member that holds a checkpoint"
	}
}

// Bootstrap makes the image in the data directory anew from the newest sealed checkpoint, of the nearest member that holds
// one, so that the next Start goes on from there: for a mirror whose Err matches logclient.ErrTrimmed, after its Done. It
// makes one attempt, in which the download goes on after lost streams; what was downloaded is kept for the next one. Size, sha256
// and every block are checked before the image, if there is one, is replaced. The error matches
// logclient.ErrNoCheckpoint, ErrBadCheckpoint, ErrStopped (ctx ended) or statemachine.ErrNewer, which no further attempt
// mends, or is that of the data directory.
func Bootstrap(ctx context.Context, config Config, progress func(BootstrapProgress)) error {
	config, err := config.withDefaults()
	if err != nil {
		return err
	}
	directory, err := openDataDirectory(config.DataDir, config.Name)
	if err != nil {
		return err
	}
	defer directory.close()
	config.Log.Registerer = nil // the mirror's own client counts; this one is short-lived
	client, err := logclient.Open(logConfig(&config, directory, image.Identity{}))
	if err != nil {
		return err
	}
	defer client.Close()
	b := newBootstrap(ctx, &config, directory, client, bootstrapFile, bootstrapNameFile)
	b.tell = progress
	if err := b.run(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ErrStopped, err)
		}
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

type bootstrap struct {
	config    *Config
	directory *dataDirectory
	client    *logclient.Client
	tell      func(BootstrapProgress)

	pace *pace
	// files are the names of those that hold what was downloaded, and whose it is.
	files    struct{ content, name string }
	file     *os.File
	name     *logv1.CheckpointName
	bytes    uint64
	progress BootstrapProgress
}

func newBootstrap(ctx context.Context, config *Config, directory *dataDirectory, client *logclient.Client, content, name string) *bootstrap {
	b := &bootstrap{config: config, directory: directory, client: client, tell: func(BootstrapProgress) {},
		pace: newPace(ctx, config.BootstrapBytesPerSecond)}
	b.files.content, b.files.name = content, name
	return b
}

// checkpointRecord is what bootstrapNameFile holds.
type checkpointRecord struct {
	Index     uint64 `json:"index"`
	SHA256    []byte `json:"sha256"`
	SizeBytes uint64 `json:"size_bytes"`
	Format    uint32 `json:"format"`
}

func (b *bootstrap) path(name string) string { return filepath.Join(b.directory.path, name) }

func (b *bootstrap) run(ctx context.Context) error {
	b.tell(b.progress)
	if err := b.open(); err != nil {
		return err
	}
	defer func() { _ = b.file.Close() }()
	got, err := b.client.DownloadCheckpoint(ctx, b)
	if err != nil {
		return err
	}
	b.progress.Building = true
	b.tell(b.progress)
	if err := b.build(ctx, got); err != nil {
		if errors.Is(err, ErrBadCheckpoint) {
			err = errors.Join(fmt.Errorf("from %s: %w", got.Member, err), b.forget())
		}
		return err
	}
	return b.forget()
}

// open takes up what an earlier attempt has left.
func (b *bootstrap) open() error {
	file, err := os.OpenFile(b.path(b.files.content), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	b.file = file
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	content, err := durable.Read(b.path(b.files.name))
	record := checkpointRecord{}
	if err != nil || json.Unmarshal(content, &record) != nil || uint64(size) > record.SizeBytes ||
		record.Index == 0 || len(record.SHA256) != sha256.Size {
		return nil //nolint:nilerr // what is there cannot be told: the download begins anew
	}
	b.bytes = uint64(size)
	b.name = &logv1.CheckpointName{
		Index: record.Index, Sha256: record.SHA256, SizeBytes: record.SizeBytes, FormatVersion: record.Format,
	}
	b.progress = BootstrapProgress{Index: record.Index, Bytes: b.bytes, BytesTotal: record.SizeBytes}
	return nil
}

// forget removes what was downloaded.
func (b *bootstrap) forget() error {
	var failed error
	for _, name := range []string{b.files.name, b.files.content} {
		if err := os.Remove(b.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// Partial implements logclient.CheckpointSink.
func (b *bootstrap) Partial() (*logv1.CheckpointName, uint64) { return b.name, b.bytes }

// Begin implements logclient.CheckpointSink.
func (b *bootstrap) Begin(c logclient.Checkpoint) error {
	name := c.Name
	if v := name.GetFormatVersion(); v != checkpoint.FormatVersion {
		return fmt.Errorf("%w: %d, known is %d", checkpoint.ErrFormat, v, checkpoint.FormatVersion)
	}
	// The image takes up to twice as much as the checkpoint; the old one stays until the new one is whole.
	if err := requireRoom(b.directory.path, 3*name.GetSizeBytes()); err != nil {
		return err
	}
	// The name follows the bytes: what is under it is always its own.
	b.name, b.bytes = nil, 0
	if err := b.file.Truncate(0); err != nil {
		return err
	}
	if err := b.file.Sync(); err != nil {
		return err
	}
	record, err := json.Marshal(checkpointRecord{name.GetIndex(), name.GetSha256(), name.GetSizeBytes(), name.GetFormatVersion()})
	if err != nil {
		return err
	}
	if err := durable.Write(b.path(b.files.name), record); err != nil {
		return err
	}
	b.name = name
	b.progress = BootstrapProgress{Member: c.Member, Index: name.GetIndex(), BytesTotal: name.GetSizeBytes()}
	b.tell(b.progress)
	return nil
}

// Append implements logclient.CheckpointSink.
func (b *bootstrap) Append(data []byte) error {
	if err := b.pace.wait(len(data)); err != nil {
		return err
	}
	n, err := b.file.WriteAt(data, int64(b.bytes))
	b.bytes += uint64(n)
	b.progress.Bytes = b.bytes
	if address, _, ok := b.client.Current(); ok && b.progress.Member == "" {
		b.progress.Member = address
	}
	b.tell(b.progress)
	return err
}

// build makes the image of what was downloaded.
func (b *bootstrap) build(ctx context.Context, got logclient.Checkpoint) error {
	var builder *image.Builder
	defer func() {
		if builder != nil {
			builder.Abort()
		}
	}()
	machine, counts, err := b.restore(ctx, got, func(h checkpoint.Header) (observer checkpoint.Observer, err error) {
		c := b.config.imageConfig(b.directory)
		c.Identity.ClusterID, c.Identity.Epoch = h.ClusterID, h.Epoch
		builder, err = image.NewBuilder(c, h.CompactRevision)
		return builder, err
	})
	if err != nil {
		return err
	}
	if err := builder.Finish(machine.ExportAll()); err != nil {
		return err
	}
	stats := machine.Space().Stats()
	b.config.Logger.Info("the state was built from a checkpoint", "index", machine.Index(), "revision", stats.Revision,
		"keys", stats.Keys, "versions", counts.Base+counts.History, "member", got.Member)
	return nil
}

// restore makes a machine of what was downloaded, once all of it has proved to be what was said. observe returns who is
// told of each version before that, and may return nil.
func (b *bootstrap) restore(
	ctx context.Context, got logclient.Checkpoint, observe func(checkpoint.Header) (checkpoint.Observer, error),
) (*statemachine.Machine, checkpoint.Counts, error) {
	if _, err := b.file.Seek(0, io.SeekStart); err != nil {
		return nil, checkpoint.Counts{}, err
	}
	digest := sha256.New()
	content := &countingReader{ctx: ctx, r: io.TeeReader(b.file, digest)}
	r, err := checkpoint.NewReader(content)
	if err != nil {
		return nil, checkpoint.Counts{}, badCheckpoint(content, err)
	}
	h := r.Header()
	clusterID, epoch := b.client.Identity()
	if h.Index != got.Name.GetIndex() || h.Term != got.Term || h.ClusterID != clusterID || h.Epoch != epoch {
		return nil, checkpoint.Counts{}, fmt.Errorf("%w: it is of index %d, term %d, cluster %016x, epoch %d; said was %d, %d, %016x, %d",
			ErrBadCheckpoint, h.Index, h.Term, h.ClusterID, h.Epoch, got.Name.GetIndex(), got.Term, clusterID, epoch)
	}
	observer, err := observe(h)
	if err != nil {
		return nil, checkpoint.Counts{}, err
	}
	machine, counts, err := r.Restore(b.config.StateMachine, observer)
	if err != nil {
		return nil, counts, badCheckpoint(content, err)
	}
	if sum := digest.Sum(nil); content.bytes != got.Name.GetSizeBytes() || string(sum) != string(got.Name.GetSha256()) {
		return nil, counts, fmt.Errorf("%w: %d bytes with sha256 %x, said was %d and %x", ErrBadCheckpoint,
			content.bytes, sum, got.Name.GetSizeBytes(), got.Name.GetSha256())
	}
	return machine, counts, nil
}

// badCheckpoint tells damage from a disk that cannot be read, and from what is only too new for this build.
func badCheckpoint(content *countingReader, err error) error {
	if content.failed != nil || errors.Is(err, statemachine.ErrNewer) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrBadCheckpoint, err)
}

// countingReader counts, and ends with the context.
type countingReader struct {
	ctx    context.Context
	r      io.Reader
	bytes  uint64
	failed error
}

func (c *countingReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		c.failed = context.Cause(c.ctx)
		return 0, c.failed
	}
	n, err := c.r.Read(p)
	c.bytes += uint64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.failed = err
	}
	return n, err
}
