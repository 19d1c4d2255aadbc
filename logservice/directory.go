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
}

const (
	directoryFormat   = 1
	directoryFile     = "member"
	directoryMaxBytes = 1 << 20
)

// openDirectory locks a data directory and reads whose it is; an empty one becomes this member's.
func openDirectory(fsys disk.FS, path string, name string, clusterHash, memberID uint64) (*directory, error) {
	if err := fsys.MkdirAll(path); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := fsys.Lock(filepath.Join(path, "lock"))
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	d := &directory{fs: fsys, path: path, lock: lock}
	if err := d.load(name, clusterHash, memberID); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// load reads whose directory it is, and refuses that of another member.
func (d *directory) load(name string, clusterHash, memberID uint64) error {
	data, err := disk.ReadFile(d.fs, filepath.Join(d.path, directoryFile), directoryMaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return d.create(name, clusterHash, memberID)
	}
	if err != nil {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	if err := d.decode(data); err != nil {
		return err
	}
	switch r := d.record; {
	case r.ClusterHash != clusterHash:
		return fmt.Errorf("%w: %s is of member %q of a log that began with other members", ErrOtherMember, d.path, r.Name)
	case r.MemberID != memberID:
		return fmt.Errorf("%w: %s is of member %q, not of %q", ErrOtherMember, d.path, r.Name, name)
	}
	return nil
}

// create makes an empty directory this member's.
func (d *directory) create(name string, clusterHash, memberID uint64) error {
	switch names, err := d.fs.ReadDir(filepath.Join(d.path, "log")); {
	case err == nil && len(names) > 0:
		return fmt.Errorf("%w: %s has a log but no file %q that says whose it is", ErrDamaged, d.path, directoryFile)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	d.record = directoryRecord{Format: directoryFormat, Name: name, ClusterHash: clusterHash, MemberID: memberID,
		DataDirectoryID: random64(), Seen: map[uint64]uint64{}}
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
