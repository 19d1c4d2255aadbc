package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/logmirror/logmirror/internal/disk"
)

const dir = "/member/checkpoints"

// content is the bytes of a checkpoint and its name.
func content(index uint64, size int) (Name, []byte) {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(index), byte(size)}).Read(data)
	return Name{Index: index, SHA256: sha256.Sum256(data), SizeBytes: int64(size), FormatVersion: 3}, data
}

func open(t *testing.T, fsys disk.FS) *Store {
	t.Helper()
	s, err := Open(fsys, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put receives a checkpoint in pieces.
func put(s *Store, name Name, data []byte) error {
	in, err := s.Receive(name)
	if err != nil {
		return err
	}
	for rest := data[in.Offset():]; len(rest) > 0; {
		n := min(len(rest), 100_000)
		if err := in.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return in.Commit()
}

func read(s *Store, name Name) (data []byte, err error) {
	r, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for {
		b, err := r.ReadFrom(int64(len(data)))
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		data = append(data, b...)
	}
}

func TestHoldsWhatWasReceived(t *testing.T) {
	fsys := disk.NewMemory(1)
	s := open(t, fsys)
	var names []Name
	for i, size := range []int{0, 1, chunkBytes - 1, chunkBytes, 3*chunkBytes + 77} {
		name, data := content(uint64(i+1), size)
		if err := put(s, name, data); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		names = append(names, name)
		if _, err := s.Receive(name); !errors.Is(err, ErrHeld) {
			t.Errorf("received again: %v", err)
		}
	}
	slices.Reverse(names)
	for range 2 {
		if got := s.List(); !slices.Equal(got, names) {
			t.Errorf("list %v, want %v", got, names)
		}
		for _, name := range names {
			_, data := content(name.Index, int(name.SizeBytes))
			if got, err := read(s, name); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%v: read %d bytes, %v", name, len(got), err)
			}
		}
		fsys.Crash()
		fsys.Restart()
		s = open(t, fsys)
	}
	if err := s.Remove(names[0]); err != nil {
		t.Fatal(err)
	}
	fsys.Crash()
	fsys.Restart()
	if got := open(t, fsys).List(); !slices.Equal(got, names[1:]) {
		t.Errorf("after a removal: %v", got)
	}
}

func TestAnotherGoesOn(t *testing.T) {
	s := open(t, disk.NewMemory(1))
	name, data := content(7, chunkBytes+1000)
	in, err := s.Receive(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Write(data[:chunkBytes-5]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(name); !errors.Is(err, ErrReceiving) {
		t.Errorf("two at once: %v", err)
	}
	in.Pause()
	again, err := s.Receive(name)
	if err != nil || again.Offset() != chunkBytes-5 {
		t.Fatalf("goes on at %d: %v", again.Offset(), err)
	}
	again.Pause()
	if err := put(s, name, data); err != nil {
		t.Fatal(err)
	}
	if got, err := read(s, name); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

func TestRefuses(t *testing.T) {
	fsys := disk.NewMemory(1)
	s, err := Open(fsys, dir, Options{MaxCheckpointBytes: 1000, MaxBytes: 2500, MaxHeld: 3, MaxIncoming: 2})
	if err != nil {
		t.Fatal(err)
	}
	name, data := content(1, 900)
	wrong := slices.Clone(data)
	wrong[5] ^= 1
	if err := put(s, name, wrong); !errors.Is(err, ErrMismatch) {
		t.Errorf("other bytes: %v", err)
	}
	if err := put(s, name, append(slices.Clone(data), 1)); !errors.Is(err, ErrMismatch) {
		t.Errorf("a byte more: %v", err)
	}
	if err := put(s, name, data[:899]); !errors.Is(err, ErrMismatch) {
		t.Errorf("a byte less: %v", err)
	}
	if got := s.List(); len(got) > 0 || s.Bytes() != 0 || fsys.Used() != 0 {
		t.Errorf("left behind: %v, %d bytes", got, fsys.Used())
	}
	large, _ := content(1, 1001)
	if _, err := s.Receive(large); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large: %v", err)
	}
	for i := range 2 {
		name, data := content(uint64(i+1), 900)
		if err := put(s, name, data); err != nil {
			t.Fatal(err)
		}
	}
	name, _ = content(3, 900)
	if _, err := s.Receive(name); !errors.Is(err, ErrTooLarge) {
		t.Errorf("beyond the bytes of the store: %v", err)
	}
	// Two are received at once; the third takes the place of one that nobody goes on with.
	var received [3]*Incoming
	for i := range 2 {
		name, _ := content(uint64(i+10), 10)
		if received[i], err = s.Receive(name); err != nil {
			t.Fatal(err)
		}
	}
	name, data = content(12, 10)
	if _, err := s.Receive(name); !errors.Is(err, ErrBusy) {
		t.Errorf("a third at once: %v", err)
	}
	received[0].Pause()
	if err := put(s, name, data); err != nil {
		t.Fatal(err)
	}
	name, _ = content(13, 10)
	if _, err := s.Receive(name); !errors.Is(err, ErrBusy) {
		t.Errorf("beyond the number of the store: %v", err)
	}
}

// A flipped bit is found when it is read, or when the store is opened, and what it is in is held no more.
func TestDamageIsSetAside(t *testing.T) {
	for offset := int64(0); offset < chunkBytes+1000+4*2+footerFixedBytes; offset += 9973 {
		fsys := disk.NewMemory(1)
		s := open(t, fsys)
		name, data := content(5, chunkBytes+1000)
		if err := put(s, name, data); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Corrupt(s.path(name.file()), offset, 0x10); err != nil {
			t.Fatal(err)
		}
		if offset%2 == 0 {
			s = open(t, fsys)
		}
		if got, err := read(s, name); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotHeld) {
			t.Fatalf("offset %d: read %d bytes, %v", offset, len(got), err)
		}
		if s.Holds(name) || len(open(t, fsys).List()) > 0 {
			t.Fatalf("offset %d: still held", offset)
		}
		if err := put(s, name, data); err != nil {
			t.Fatalf("offset %d: receive again: %v", offset, err)
		}
	}
}

// script receives two checkpoints, of which the second replaces the first. held is what must be there whatever happens.
func script(s *Store, committed func(Name), removed func(Name)) error {
	for i := range 2 {
		name, data := content(uint64(i+1), 2*chunkBytes+i)
		if err := put(s, name, data); err != nil {
			return err
		}
		committed(name)
	}
	name, _ := content(1, 2*chunkBytes)
	removed(name)
	return s.Remove(name)
}

// TestCrashAtEveryOperation cuts the power in each operation: what was committed and not removed is there, whole.
func TestCrashAtEveryOperation(t *testing.T) {
	dry := disk.NewMemory(0)
	if err := script(open(t, dry), func(Name) {}, func(Name) {}); err != nil {
		t.Fatal(err)
	}
	for at := uint64(1); at <= dry.Operations(); at++ {
		for seed := range uint64(6) {
			fsys := disk.NewMemory(seed)
			fsys.CrashAt(at)
			must := map[Name]bool{}
			s, err := Open(fsys, dir, Options{})
			if err == nil {
				err = script(s, func(n Name) { must[n] = true }, func(n Name) { delete(must, n) })
			}
			if !errors.Is(err, disk.ErrCrashed) {
				t.Fatalf("operation %d: %v", at, err)
			}
			fsys.Restart()
			checkHeld(t, open(t, fsys), must)
		}
	}
}

// TestFailureOfEveryOperation lets each operation fail once: the call says so, what was committed before stays, and the
// same can be done again.
func TestFailureOfEveryOperation(t *testing.T) {
	for _, failure := range []error{syscall.EIO, disk.ErrNoSpace} {
		for at := 1; ; at++ {
			fsys := disk.NewMemory(uint64(at))
			count := 0
			s := open(t, fsys)
			fsys.SetHook(func(op disk.Operation) error {
				if op.Kind == disk.OpRead || op.Kind == disk.OpOpen {
					return nil
				}
				if count++; count == at {
					return failure
				}
				return nil
			})
			must := map[Name]bool{}
			err := script(s, func(n Name) { must[n] = true }, func(n Name) { delete(must, n) })
			fsys.SetHook(nil)
			if count < at {
				break
			}
			if err != nil && !errors.Is(err, failure) {
				t.Fatalf("operation %d: %v", at, err)
			}
			checkHeld(t, s, must)
			for i := range 2 {
				name, data := content(uint64(i+1), 2*chunkBytes+i)
				if err := put(s, name, data); err != nil && !errors.Is(err, ErrHeld) {
					t.Fatalf("operation %d: again: %v", at, err)
				}
				must[name] = true
			}
			fsys.Crash()
			fsys.Restart()
			checkHeld(t, open(t, fsys), must)
		}
	}
}

// checkHeld checks that a store holds at least what it must, and that all it holds is whole.
func checkHeld(t *testing.T, s *Store, must map[Name]bool) {
	t.Helper()
	for name := range must {
		if !s.Holds(name) {
			t.Errorf("%v is gone", name)
		}
	}
	for _, name := range s.List() {
		_, data := content(name.Index, int(name.SizeBytes))
		if got, err := read(s, name); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%v: read %d bytes, %v", name, len(got), err)
		}
	}
}
