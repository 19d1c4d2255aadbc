package playground

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/logmirror/logmirror/internal/disk"
)

// layoutVersion is raised when an older playground could not use the directory any more.
const layoutVersion = 1

// layoutBytesMax bounds the file that describes a data directory.
const layoutBytesMax = 64 << 10

// layout is what a data directory remembers of its cluster, in the file playground.json.
type layout struct {
	Version int            `json:"version"`
	Regions []string       `json:"regions"`
	Log     []layoutMember `json:"log"`
	// Changed is set once a log member was added or removed: then all that are left know the others by themselves.
	Changed bool `json:"changed,omitempty"`
}

type layoutMember struct {
	Name    string `json:"name"`
	Region  string `json:"region"`
	Address string `json:"address"` // where it listened last; tried first at the next start
}

// dataDir is a locked data directory.
type dataDir struct {
	path   string
	lock   io.Closer
	layout layout
}

// ErrDataDirInUse is returned by Start for a data directory that another playground serves from.
var ErrDataDirInUse = errors.New("another playground is using the data directory")

// openDataDir locks the directory and reads its layout, or makes both. The members' addresses of a new one are empty.
func openDataDir(path string, regions []string) (_ *dataDir, err error) {
	system := disk.OS()
	if err := system.MkdirAll(path); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := system.Lock(filepath.Join(path, "lock"))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("%w %s: stop it, or use another directory", ErrDataDirInUse, path)
	} else if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = lock.Close() // the error before it says more
		}
	}()
	d := &dataDir{path: path, lock: lock}
	content, err := disk.ReadFile(system, d.layoutFile(), layoutBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.refuseForeign(); err != nil {
			return nil, err
		}
		d.layout = newLayout(regions)
		return d, d.save()
	} else if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := json.Unmarshal(content, &d.layout); err != nil {
		return nil, fmt.Errorf("data directory: %s is damaged: %w", d.layoutFile(), err)
	}
	return d, d.check(regions)
}

// refuseForeign keeps a playground out of a directory that holds something else.
func (d *dataDir) refuseForeign() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "playground.json") {
			return fmt.Errorf("data directory %s holds %s and is not a playground's: use an empty one", d.path, e.Name())
		}
	}
	return nil
}

func (d *dataDir) check(regions []string) error {
	if d.layout.Version != layoutVersion {
		return fmt.Errorf("data directory %s has layout version %d; this build knows %d",
			d.path, d.layout.Version, layoutVersion)
	}
	if !slices.Equal(d.layout.Regions, regions) {
		return fmt.Errorf("data directory %s holds a cluster of the regions %s, not %s: name those, or use another directory",
			d.path, strings.Join(d.layout.Regions, ","), strings.Join(regions, ","))
	}
	if !d.layout.Changed && !slices.EqualFunc(d.layout.Log, newLayout(regions).Log, func(a, b layoutMember) bool {
		return a.Name == b.Name && a.Region == b.Region
	}) {
		return fmt.Errorf("data directory: %s is damaged: it names other log members", d.layoutFile())
	}
	return nil
}

func newLayout(regions []string) layout {
	l := layout{Version: layoutVersion, Regions: regions}
	for _, region := range regions {
		l.Log = append(l.Log, layoutMember{Name: "log-" + region, Region: region})
	}
	if len(regions) == 2 {
		l.Log = append(l.Log, layoutMember{Name: "log-" + regions[0] + ".2", Region: regions[0]})
	}
	return l
}

func (d *dataDir) layoutFile() string { return filepath.Join(d.path, "playground.json") }

func (d *dataDir) save() error {
	content, err := json.MarshalIndent(d.layout, "", "  ")
	if err != nil {
		return err
	}
	if err := disk.WriteFile(disk.OS(), d.layoutFile(), append(content, '\n')); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

func (d *dataDir) member(name string) string   { return filepath.Join(d.path, "log", name) }
func (d *dataDir) frontend(name string) string { return filepath.Join(d.path, "frontend", name) }
func (d *dataDir) close() error                { return d.lock.Close() }
