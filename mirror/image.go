package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/image"
)

// imageFile holds the durable copy of the state machine, beside the frontend's identity.
const imageFile = "image"

// imageConfig says where the image of the frontend of this data directory is.
func (c *Config) imageConfig(directory *dataDirectory) image.Config {
	config, record := c.Image, &directory.record
	config.Path = filepath.Join(directory.path, imageFile)
	config.Identity = image.Identity{ClusterID: record.ClusterID, Epoch: record.Epoch, FrontendID: record.FrontendID}
	config.StateMachine = c.StateMachine
	if config.Logger == nil {
		config.Logger = c.Logger
	}
	if config.Room == nil {
		config.Room = requireRoomForImage
	}
	return config
}

// requireRoomForImage checks that there is room for so much of an image that is made beside the present one. It leaves an
// eighth of a small file system, where the reserve beside checkpoints would be most of it.
func requireRoomForImage(path string, bytes uint64) error {
	return requireRoomBeside(filepath.Dir(path), bytes, func(total uint64) uint64 { return min(total/8, diskReserveBytes) })
}

// openImage makes the state machine: the one that the image holds or, where there is none that can be used, a new one.
func (m *Mirror) openImage() error {
	config := m.config.imageConfig(m.directory)
	if err := m.setQuarantinedAside(config.Path); err != nil {
		return err
	}
	began := m.config.Clock()
	opened, machine, err := image.Open(config)
	if err != nil {
		return err
	}
	m.image = opened
	if machine == nil {
		m.machine = statemachine.New(m.config.StateMachine)
		return nil
	}
	m.machine = machine
	stats := machine.Space().Stats()
	m.config.Logger.Info("the state was restored from the image", "index", machine.Index(), "revision", stats.Revision,
		"keys", stats.Keys, "duration", m.config.Clock()-began)
	m.indexes.reach(machine.Index())
	m.revisions.reach(uint64(stats.Revision))
	return nil
}

// startImage begins to write the image, once the client can tell the log's identity.
func (m *Mirror) startImage() {
	frontendID := m.directory.record.FrontendID
	m.image.Start(m.machine, func() (image.Identity, bool) {
		clusterID, epoch := m.client.Identity()
		return image.Identity{ClusterID: clusterID, Epoch: epoch, FrontendID: frontendID},
			clusterID != 0 && clusterID == m.machine.ClusterID()
	})
}

// setQuarantinedAside moves an image away that a quarantine says is not to be used, and ends the quarantine.
func (m *Mirror) setQuarantinedAside(path string) error {
	note := filepath.Join(m.directory.path, quarantineFile)
	reason, err := os.ReadFile(note)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m.config.Logger.Warn("the image is set aside: the state is built anew", "file", path+".bad", "reason", strings.TrimSpace(string(reason)))
	if err := os.Rename(path, path+".bad"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the image aside: %w", err)
	}
	return os.Remove(note)
}
