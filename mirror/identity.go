package mirror

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/logmirror/logmirror/internal/durable"
)

// Identity is who a frontend is, and in which log.
type Identity struct {
	ClusterID uint64
	Epoch     uint64
	// FrontendID is random and kept in the data directory.
	FrontendID uint64
	// Incarnation counts the sessions that this frontend was about to open; a restart always raises it.
	Incarnation uint64
	// Session is the present session's id, zero while there is none.
	Session uint64
	Name    string
	Region  string
}

// identityRecord is what the identity file holds. Epoch and cluster are zero until the frontend first met its log.
type identityRecord struct {
	Name        string `json:"name"`
	FrontendID  uint64 `json:"frontend_id"`
	ClusterID   uint64 `json:"cluster_id"`
	Epoch       uint64 `json:"epoch"`
	Incarnation uint64 `json:"incarnation"`
}

const (
	identityFile = "identity"
	membersFile  = "log-members"
	lockFile     = "lock"
)

// dataDirectory holds the identity of one frontend, locked against other processes.
type dataDirectory struct {
	path   string
	lock   *os.File
	record identityRecord
}

// openDataDirectory makes or opens the directory of the frontend of this name.
func openDataDirectory(path, name string) (*dataDirectory, error) {
	if path == "" {
		return nil, errors.New("mirror: no data directory is configured")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	d := &dataDirectory{path: path, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrDirectoryInUse, path)
		}
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := d.load(name); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dataDirectory) load(name string) error {
	content, err := durable.Read(filepath.Join(d.path, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		var random [8]byte
		for d.record.FrontendID == 0 {
			if _, err := rand.Read(random[:]); err != nil {
				return err
			}
			d.record.FrontendID = binary.LittleEndian.Uint64(random[:])
		}
		d.record.Name = name
		return d.write(d.record)
	}
	if err != nil {
		// Going on with a new id would be safe, but a disk that damages this file is not to be trusted in silence.
		return fmt.Errorf("frontend identity: %w (to start as a new frontend, remove the data directory)", err)
	}
	if err := json.Unmarshal(content, &d.record); err != nil {
		return fmt.Errorf("frontend identity %s: %w", filepath.Join(d.path, identityFile), err)
	}
	if d.record.FrontendID == 0 {
		return fmt.Errorf("frontend identity %s: it names no frontend id", filepath.Join(d.path, identityFile))
	}
	if d.record.Name != name {
		return fmt.Errorf("%w: %s was made by %q, this is %q", ErrOtherFrontend, d.path, d.record.Name, name)
	}
	return nil
}

func (d *dataDirectory) write(record identityRecord) error {
	content, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(d.path, identityFile), content); err != nil {
		return err
	}
	d.record = record
	return nil
}

// begin makes an incarnation durable, together with the log that it is opened in.
func (d *dataDirectory) begin(incarnation, clusterID, epoch uint64) error {
	record := d.record
	if record.ClusterID != 0 && record.ClusterID != clusterID {
		return fmt.Errorf("data directory %s is of cluster %016x, the log is of %016x", d.path, record.ClusterID, clusterID)
	}
	record.Incarnation, record.ClusterID, record.Epoch = incarnation, clusterID, epoch
	return d.write(record)
}

// close gives the lock back.
func (d *dataDirectory) close() { _ = d.lock.Close() }
