package image

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/machinetest"
)

// BenchmarkRestart compares a restart of 200,000 keys, each put four times and then compacted: from the image, and by
// applying the log, whose transfer and decoding come on top in a real restart.
func BenchmarkRestart(b *testing.B) {
	const keys, times = 200_000, 4
	entries := machinetest.Puts(testIdentity.ClusterID, keys, times)
	path := filepath.Join(b.TempDir(), "image")
	config := testConfig(path)
	config.StallTimeout = 1 << 40
	applyAll := func(m *statemachine.Machine, applied func(*statemachine.Applied)) {
		for i, e := range entries {
			a, err := m.Apply(uint64(i+1), 1, e.Kind, e, false)
			if err != nil {
				b.Fatal(err)
			}
			if applied != nil {
				applied(a)
			}
		}
	}
	im, m := begin(b, config)
	applyAll(m, im.Applied)
	im.Close(true)
	// The rest of the compaction, which a process that lives on does in the background.
	im, _, err := Open(config)
	for err == nil && !im.head.compactionDone() {
		err = im.commit(nil)
	}
	if err != nil {
		b.Fatal(err)
	}
	im.Close(false)
	b.Run("image", func(b *testing.B) {
		for b.Loop() {
			im, m, err := Open(config)
			if err != nil || m == nil || m.Space().Stats().Keys != keys {
				b.Fatalf("%v, %v", m, err)
			}
			im.Close(false)
		}
	})
	b.Run("log", func(b *testing.B) {
		for b.Loop() {
			applyAll(statemachine.New(statemachine.Options{}), nil)
		}
	})
}

// BenchmarkRebuild makes a new image of 200,000 keys of 256 bytes, each put four times and then compacted, as fast as it goes.
func BenchmarkRebuild(b *testing.B) {
	const keys, times = 200_000, 4
	config := testConfig(filepath.Join(b.TempDir(), "image"))
	config.NoSync, config.RebuildPause, config.RebuildPauseMax, config.RebuildBytesPerSecond = false, 1, 1, 1<<40
	config.RebuildRows = keys / 2 // as for a million keys
	im, m := begin(b, config)
	im.abandon(errDisk)
	for i, e := range machinetest.Puts(testIdentity.ClusterID, keys, times) {
		machinetest.Apply(b, m, uint64(i+1), e)
	}
	for m.Maintain() {
	}
	defer im.Close(false)
	var bytes uint64
	for b.Loop() {
		im.abandon(errDisk)
		for im.Abandoned() {
			bytes = max(bytes, im.Rebuilds().Bytes)
			time.Sleep(time.Millisecond)
		}
	}
	if stats := m.Space().Stats(); stats.Keys != keys || im.CommittedIndex() != m.Index() {
		b.Fatalf("%+v, image of %d of %d", stats, im.CommittedIndex(), m.Index())
	}
	b.SetBytes(int64(bytes))
}
