package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, fsys FS, name string) File {
	t.Helper()
	file, err := fsys.Create(name)
	must(t, err)
	return file
}

func write(t *testing.T, file File, data string, offset int64) {
	t.Helper()
	if n, err := file.WriteAt([]byte(data), offset); err != nil || n != len(data) {
		t.Fatalf("wrote %d bytes: %v", n, err)
	}
}

func readAll(t *testing.T, fsys FS, name string) string {
	t.Helper()
	data, err := ReadFile(fsys, name, 1<<20)
	must(t, err)
	return string(data)
}

// TestBothDisksBehaveAlike runs the same calls on the real disk and on the one in memory.
func TestBothDisksBehaveAlike(t *testing.T) {
	for name, fsys := range map[string]FS{"os": OS(), "memory": NewMemory(1)} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "a", "b")
			must(t, fsys.MkdirAll(dir))
			must(t, fsys.MkdirAll(dir))
			path := func(name string) string { return filepath.Join(dir, name) }

			if _, err := fsys.OpenFile(path("none")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open of a missing file: %v", err)
			}
			if err := fsys.Remove(path("none")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("remove of a missing file: %v", err)
			}
			if err := fsys.Rename(path("none"), path("other")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("rename of a missing file: %v", err)
			}
			if _, err := fsys.ReadDir(filepath.Join(root, "none")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("list of a missing directory: %v", err)
			}
			if _, err := fsys.Create(filepath.Join(root, "none", "file")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("create in a missing directory: %v", err)
			}

			file := create(t, fsys, path("one"))
			must(t, file.Allocate(10000))
			write(t, file, "hello", 5000)
			must(t, file.Datasync())
			must(t, fsys.SyncDir(dir))
			if size, err := file.Size(); err != nil || size != 10000 {
				t.Errorf("size %d, %v", size, err)
			}
			b := bytes.Repeat([]byte{9}, 7)
			if n, err := file.ReadAt(b, 4999); n != 7 || err != nil || string(b) != "\x00hello\x00" {
				t.Errorf("read %d bytes %q: %v", n, b, err)
			}
			if n, err := file.ReadAt(b, 9996); n != 4 || !errors.Is(err, io.EOF) {
				t.Errorf("read %d bytes at the end: %v", n, err)
			}
			must(t, file.Truncate(5003))
			must(t, file.Truncate(5005))
			if got := readAll(t, fsys, path("one"))[4998:]; got != "\x00\x00hel\x00\x00" {
				t.Errorf("after truncation %q", got)
			}

			must(t, fsys.Rename(path("one"), path("two")))
			create2 := create(t, fsys, path("three"))
			must(t, create2.Close())
			if names, err := fsys.ReadDir(dir); err != nil || !slices.Equal(names, []string{"three", "two"}) {
				t.Errorf("names %q, %v", names, err)
			}
			must(t, fsys.Remove(path("two")))
			if n, err := file.ReadAt(b, 4999); n != 6 || !errors.Is(err, io.EOF) {
				t.Errorf("read of a removed file: %d bytes, %v", n, err)
			}
			must(t, file.Close())
			if err := file.Close(); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("closed twice: %v", err)
			}

			must(t, WriteFile(fsys, path("whole"), []byte("first")))
			must(t, WriteFile(fsys, path("whole"), nil))
			must(t, WriteFile(fsys, path("whole"), []byte("second")))
			if got := readAll(t, fsys, path("whole")); got != "second" {
				t.Errorf("whole file %q", got)
			}
			if _, err := ReadFile(fsys, path("whole"), 5); err == nil {
				t.Error("a file beyond the limit was read")
			}

			lock, err := fsys.Lock(path("lock"))
			must(t, err)
			if _, err := fsys.Lock(path("lock")); !errors.Is(err, ErrLocked) {
				t.Errorf("second lock: %v", err)
			}
			must(t, lock.Close())
			lock, err = fsys.Lock(path("lock"))
			must(t, err)
			must(t, lock.Close())
		})
	}
}

// TestDirect writes blocks, parts of blocks and from memory that begins anywhere, into a file that takes blocks past the page
// cache and into one that does not: both hold the same, at once and after opening again.
func TestDirect(t *testing.T) {
	for name, fsys := range map[string]FS{"os": OS(), "memory": NewMemory(1)} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			must(t, fsys.MkdirAll(filepath.Dir(path)))
			const blocks = 16
			file := create(t, fsys, path)
			file.Direct()
			must(t, file.Allocate(blocks*BlockBytes+BlockBytes/2))
			want := make([]byte, blocks*BlockBytes+BlockBytes/2)
			random := rand.New(rand.NewPCG(1, 2))
			check := func() {
				t.Helper()
				got := make([]byte, len(want))
				if _, err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("the file does not hold what was written: %v", err)
				}
			}
			memory := make([]byte, 64<<10) // begins with a page of memory
			for n := range 300 {
				begin, length := random.IntN(blocks), 1+random.IntN(4)
				from, offset, size := 0, begin*BlockBytes, min(length, blocks-begin)*BlockBytes
				switch n % 4 {
				case 1:
					from = 1 + random.IntN(100)
				case 2:
					offset += random.IntN(BlockBytes)
					size = 1 + random.IntN(len(want)-offset)
				case 3:
					offset, size = len(want)-size, size-random.IntN(BlockBytes)
				}
				p := memory[from:][:min(size, len(memory)-from)]
				for i := range p {
					p[i] = byte(random.Uint32())
				}
				write(t, file, string(p), int64(offset)) // mostly the usual way, as memory of that size begins anywhere
				if written, err := file.WriteAt(p, int64(offset)); written != len(p) || err != nil {
					t.Fatalf("wrote %d bytes: %v", written, err)
				}
				copy(want[offset:], p)
				if n%7 == 0 {
					check()
				}
				if n%50 == 49 {
					must(t, file.Datasync())
					must(t, file.Close())
					var err error
					if file, err = fsys.OpenFile(path); err != nil {
						t.Fatal(err)
					}
					if n%100 == 99 {
						file.Direct()
					}
					check()
				}
			}
			check()
			must(t, file.Close())
		})
	}
}

// TestCrashKeepsWhatWasSynced looks at what a crash may leave of a synced and an unsynced write, over many seeds, and
// that each way of tearing happens.
func TestCrashKeepsWhatWasSynced(t *testing.T) {
	seen := map[string]bool{}
	old, fresh := bytes.Repeat([]byte{'o'}, 3*sectorBytes), bytes.Repeat([]byte{'n'}, 3*sectorBytes)
	for seed := range uint64(200) {
		m := NewMemory(seed)
		file := create(t, m, "file")
		write(t, file, string(old), 0)
		must(t, file.Datasync())
		must(t, m.SyncDir("."))
		write(t, file, string(fresh), 0)
		m.Crash()
		if _, err := m.OpenFile("file"); !errors.Is(err, ErrCrashed) {
			t.Fatalf("open while crashed: %v", err)
		}
		m.Restart()
		if _, err := file.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrCrashed) {
			t.Fatalf("read through an old handle: %v", err)
		}
		got := readAll(t, m, "file")
		if len(got) != len(old) {
			t.Fatalf("%d bytes left", len(got))
		}
		cut := bytes.IndexByte([]byte(got), 'o')
		switch {
		case got == string(old):
			seen["none"] = true
		case got == string(fresh):
			seen["all"] = true
		case !bytes.Contains([]byte(got)[max(cut, 0):], []byte{'n'}):
			seen["prefix"] = true
		default:
			seen["sectors"] = true
			for i := range 3 {
				if sector := got[i*sectorBytes:][:sectorBytes]; sector != string(old[:sectorBytes]) && sector != string(fresh[:sectorBytes]) {
					t.Fatalf("seed %d: sector %d is torn", seed, i)
				}
			}
		}
	}
	if len(seen) != 4 {
		t.Errorf("only these outcomes: %v", seen)
	}
}

// TestCrashKeepsNamesInOrder checks that of unsynced changes of names a beginning survives, and synced ones all do.
func TestCrashKeepsNamesInOrder(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(100) {
		m := NewMemory(seed)
		must(t, create(t, m, "a").Close())
		must(t, m.SyncDir("."))
		must(t, create(t, m, "b").Close())
		must(t, m.Rename("a", "c"))
		must(t, m.Remove("b"))
		m.Crash()
		m.Restart()
		names, err := m.ReadDir(".")
		must(t, err)
		seen[fmt.Sprint(names)] = true
	}
	want := map[string]bool{"[a]": true, "[a b]": true, "[b c]": true, "[c]": true}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", seen, want)
	}
}

func TestKillKeepsAllAndFreesLocks(t *testing.T) {
	m := NewMemory(1)
	_, err := m.Lock("lock")
	must(t, err)
	file := create(t, m, "file")
	write(t, file, "written", 0)
	m.Kill()
	_, err = m.Lock("lock")
	must(t, err)
	if got := readAll(t, m, "file"); got != "written" {
		t.Errorf("after the kill %q", got)
	}
	if _, err := file.WriteAt([]byte("x"), 0); !errors.Is(err, ErrCrashed) {
		t.Errorf("write through an old handle: %v", err)
	}
}

// TestFailedSyncLosesWhatWasWritten checks that a sync that failed can't be made good by another one.
func TestFailedSyncLosesWhatWasWritten(t *testing.T) {
	m := NewMemory(1)
	file := create(t, m, "file")
	must(t, file.Datasync())
	must(t, m.SyncDir("."))
	write(t, file, "lost", 0)
	m.SetHook(func(op Operation) error {
		if op.Kind == OpSync {
			return syscall.EIO
		}
		return nil
	})
	if err := file.Datasync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	m.SetHook(nil)
	must(t, file.Datasync())
	if got := readAll(t, m, "file"); got != "lost" {
		t.Errorf("before the crash %q", got)
	}
	m.Crash()
	m.Restart()
	if got := readAll(t, m, "file"); got != "" {
		t.Errorf("after the crash %q", got)
	}
}

func TestCapacity(t *testing.T) {
	m := NewMemory(1)
	m.SetCapacity(10000)
	file := create(t, m, "file")
	must(t, file.Allocate(8000))
	write(t, file, "within", 7994)
	if n, err := file.WriteAt(make([]byte, 3000), 8000); n != 2000 || !errors.Is(err, ErrNoSpace) {
		t.Errorf("wrote %d bytes: %v", n, err)
	}
	other := create(t, m, "other")
	if err := other.Allocate(1); !errors.Is(err, ErrNoSpace) {
		t.Errorf("allocated on a full disk: %v", err)
	}
	if err := other.Truncate(1); !errors.Is(err, ErrNoSpace) {
		t.Errorf("grew on a full disk: %v", err)
	}
	must(t, m.Remove("file"))
	if m.Used() != 10000 {
		t.Errorf("%d bytes used while the removed file is open", m.Used())
	}
	must(t, file.Close())
	if m.Used() != 0 {
		t.Errorf("%d bytes used after all is gone", m.Used())
	}
	must(t, other.Allocate(10000))
}

func TestPartialWrite(t *testing.T) {
	m := NewMemory(1)
	file := create(t, m, "file")
	m.SetHook(func(op Operation) error {
		if op.Kind == OpWrite {
			return &PartialWrite{Bytes: 2, Err: syscall.EIO}
		}
		return nil
	})
	if n, err := file.WriteAt([]byte("abc"), 0); n != 2 || !errors.Is(err, syscall.EIO) {
		t.Errorf("wrote %d bytes: %v", n, err)
	}
	if got := readAll(t, m, "file"); got != "ab" {
		t.Errorf("read %q", got)
	}
}

func TestCrashAtAndCorruption(t *testing.T) {
	m := NewMemory(3)
	file := create(t, m, "file")
	write(t, file, "abc", 0)
	must(t, file.Datasync())
	must(t, m.SyncDir("."))
	m.CrashAt(m.Operations() + 2)
	write(t, file, "d", 3)
	if err := file.Datasync(); !errors.Is(err, ErrCrashed) {
		t.Fatalf("sync at the crash: %v", err)
	}
	m.Restart()
	must(t, m.Corrupt("file", 1, 0x01))
	if got := readAll(t, m, "file")[:3]; got != "acc" {
		t.Errorf("after corruption %q", got)
	}
	offset, err := m.FlipBit("file")
	if err != nil || offset < 0 || readAll(t, m, "file")[:3] == "acc" && offset < 3 {
		t.Errorf("bit at %d: %v", offset, err)
	}
	m.SetShortReads(true)
	if _, err := ReadFile(m, "file", 100); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short read: %v", err)
	}
}
