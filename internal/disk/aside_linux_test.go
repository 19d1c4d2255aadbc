package disk

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// needAside skips where the kernel does not sync aside, and gives back what a test does to the package.
func needAside(t *testing.T) {
	t.Helper()
	if !SyncsAside(t.TempDir()) {
		t.Skip("this kernel does not sync aside")
	}
	t.Cleanup(func() { asideRefused.Store(false) })
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestManySyncsAside(t *testing.T) {
	needAside(t)
	before := openDescriptors(t)
	directory := t.TempDir()
	var syncing sync.WaitGroup
	for n := range 4 * asideWaiting {
		syncing.Go(func() {
			file, err := OS().Create(filepath.Join(directory, string(rune('a'+n))))
			if err != nil {
				t.Error(err)
				return
			}
			defer file.Close()
			for i := range int64(20) {
				if _, err := file.WriteAt([]byte("x"), i); err != nil {
					t.Error(err)
				}
				if err := file.Datasync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	syncing.Wait()
	if asideRefused.Load() {
		t.Error("the kernel refused")
	}
	if kept := len(asides); kept == 0 || kept > asideWaiting {
		t.Errorf("%d contexts are kept", kept)
	}
	if after := openDescriptors(t); after > before+asideWaiting {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// A descriptor that can't be synced is refused before anything is begun, and Datasync goes the other way, which says why.
func TestNothingIsBegun(t *testing.T) {
	needAside(t)
	reader, writer, err := os.Pipe()
	must(t, err)
	defer reader.Close()
	if err := onceOnDescriptor(writer, syncAside); !errors.Is(err, errNotAside) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("sync of a pipe: %v", err)
	}
	if !asideRefused.Load() {
		t.Error("a kernel that says EINVAL is asked again")
	}
	if err := datasync(writer); !errors.Is(err, unix.EINVAL) {
		t.Errorf("sync of a pipe: %v", err)
	}
	must(t, writer.Close())

	asideRefused.Store(false)
	if err := syncAside(1 << 20); !errors.Is(err, errNotAside) || !errors.Is(err, unix.EBADF) {
		t.Errorf("sync of no descriptor: %v", err)
	}
	if asideRefused.Load() {
		t.Error("one descriptor that is bad ends all syncs aside")
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	must(t, err)
	defer file.Close()
	if err := onceOnDescriptor(file, syncAside); err != nil {
		t.Errorf("a sync after one that was refused: %v", err)
	}
}

func TestSyncWhereTheKernelRefuses(t *testing.T) {
	needAside(t)
	asideRefused.Store(true)
	directory := t.TempDir()
	if SyncsAside(directory) {
		t.Error("a refusal is forgotten")
	}
	file := create(t, OS(), filepath.Join(directory, "file"))
	write(t, file, "content", 0)
	must(t, file.Datasync())
}

// What the device says must come out as what it is, and never as an invitation to sync once more: the second would say that all
// is well.
func TestFailedSyncAside(t *testing.T) {
	err := completion{result: -int64(unix.EIO)}.err()
	if !errors.Is(err, syscall.EIO) || errors.Is(err, errNotAside) {
		t.Error(err)
	}
	if err := (completion{}).err(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		err    error
		always bool
	}{
		{unix.ENOSYS, true}, {unix.EPERM, true}, {unix.EACCES, true}, {unix.EINVAL, true}, {os.ErrNoDeadline, true},
		{unix.EAGAIN, false}, {unix.ENOMEM, false}, {unix.EMFILE, false}, {unix.EBADF, false},
	} {
		if refuses(c.err) != c.always {
			t.Errorf("%v is taken for always so: %v", c.err, !c.always)
		}
	}
}
