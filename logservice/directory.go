package logservice

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/logmirror/logmirror/internal/disk"
)

// directory is a member's data directory: whose it is, and which directories the other members were first seen with.
//
//	lock    held while the member runs
//	member  this record: a line with the checksum of the rest, then JSON
//	log/    the segments
type directory struct {
	fs   disk.FS
	path string
	lock io.Closer

	mu     sync.Mutex
	record directoryRecord
}

type directoryRecord struct {
	Format          int    `json:"format"`
	Name            string `json:"name"`
	ClusterHash     uint64 `json:"cluster_hash"`
	MemberID        uint64 `json:"member_id"`
	DataDirectoryID uint64 `json:"data_directory_id"`
	// Seen holds the data directory id that each other member was first seen with.
	Seen map[uint64]uint64 `json:"seen"`
	// Beginning and BeginningTerm are the record and the term that the log starts with, so that a crash before they are in
	// the log costs nothing.
	Beginning     []byte `json:"beginning,omitempty"`
	BeginningTerm uint64 `json:"beginning_term,omitempty"`
	// Removed says that the member was removed from the log: the directory is of no use any more.
	Removed bool `json:"removed,omitempty"`
}

const (
	directoryFormat   = 1
	directoryFile     = "member"
	directoryMaxBytes = 1 << 20
)

// openDirectory locks a data directory and reads whose it is; an empty one becomes the member's that begins there.
func openDirectory(fsys disk.FS, path, name string, begin func() (*beginning, error)) (*directory, error) {
	if err := fsys.MkdirAll(path); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := fsys.Lock(filepath.Join(path, "lock"))
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	d := &directory{fs: fsys, path: path, lock: lock}
	if err := d.load(name, begin); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// load reads whose directory it is, and refuses that of another member.
func (d *directory) load(name string, begin func() (*beginning, error)) error {
	data, err := disk.ReadFile(d.fs, filepath.Join(d.path, directoryFile), directoryMaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return d.create(name, begin)
	}
	if err != nil {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	if err := d.decode(data); err != nil {
		return err
	}
	switch r := d.record; {
	case r.Name != name:
		return fmt.Errorf("%w: %s is of member %q, not of %q", ErrOtherMember, d.path, r.Name, name)
	case r.Removed:
		return fmt.Errorf("%w: %s is of %q (%s); to come back, it has to be added again and begin with an empty directory",
			ErrRemoved, d.path, r.Name, memberName(r.MemberID))
	}
	return nil
}

// create makes an empty directory this member's.
func (d *directory) create(name string, begin func() (*beginning, error)) error {
	switch names, err := d.fs.ReadDir(filepath.Join(d.path, "log")); {
	case err == nil && len(names) > 0:
		return fmt.Errorf("%w: %s has a log but no file %q that says whose it is", ErrDamaged, d.path, directoryFile)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	b, err := begin()
	if err != nil {
		return err
	}
	d.record = directoryRecord{Format: directoryFormat, Name: name, ClusterHash: b.clusterHash, MemberID: b.memberID,
		DataDirectoryID: random64(), Seen: map[uint64]uint64{}, Beginning: b.record.encode(), BeginningTerm: b.term}
	return d.save()
}

func (d *directory) decode(data []byte) error {
	damaged := fmt.Errorf("%w: %s", ErrDamaged, filepath.Join(d.path, directoryFile))
	sum, body, found := bytes.Cut(data, []byte("\n"))
	if !found || string(sum) != checksumLine(body) {
		return fmt.Errorf("%w: checksum mismatch", damaged)
	}
	if err := json.Unmarshal(body, &d.record); err != nil {
		return fmt.Errorf("%w: %w", damaged, err)
	}
	if d.record.Format != directoryFormat || d.record.DataDirectoryID == 0 {
		return fmt.Errorf("%w: unknown format %d", damaged, d.record.Format)
	}
	if d.record.Seen == nil {
		d.record.Seen = map[uint64]uint64{}
	}
	return nil
}

func (d *directory) save() error {
	body, err := json.Marshal(d.record)
	if err != nil {
		return err
	}
	data := append([]byte(checksumLine(body)+"\n"), body...)
	if err := disk.WriteFile(d.fs, filepath.Join(d.path, directoryFile), data); err != nil {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	return nil
}

func checksumLine(body []byte) string {
	return fmt.Sprintf("logmirror-member crc32c=%08x", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// meet compares the data directory of another member with the one it was first seen with, which is kept durably from the
// first time on. It reports whether they are the same.
func (d *directory) meet(member, directoryID uint64) (same bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, ok := d.record.Seen[member]; ok {
		return known == directoryID, nil
	}
	d.record.Seen[member] = directoryID
	if err := d.save(); err != nil {
		delete(d.record.Seen, member)
		return false, err
	}
	return true, nil
}

// setRemoved notes that the member was removed.
func (d *directory) setRemoved() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record.Removed {
		return nil
	}
	d.record.Removed = true
	return d.save()
}

// beginning is what the log starts with.
func (d *directory) beginning() Group {
	return Group{HardState: HardState{Term: d.record.BeginningTerm}, Membership: d.record.Beginning}
}

func (d *directory) identity() Identity {
	return Identity{ClusterHash: d.record.ClusterHash, MemberID: d.record.MemberID, DataDirectoryID: d.record.DataDirectoryID}
}

func (d *directory) close() error { return d.lock.Close() }

// random64 is never zero.
func random64() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if v := binary.BigEndian.Uint64(b[:]); v != 0 {
			return v
		}
	}
}
