package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// ErrCrashed is what every operation returns from a crash of a Memory until its Restart, and what handles that were
// opened before it return for good.
var ErrCrashed = errors.New("disk: crashed")

// Memory is a file system in memory that can fail. It keeps apart what was written and what would survive a crash, and
// counts the operations that change something, so that a test can crash at each of them in turn. All it decides by
// chance comes from its seed, so one seed and one order of operations give one outcome.
//
// It models one machine: Crash takes away all that was not synced, on all files, and every handle and lock with it.
type Memory struct {
	mu     sync.Mutex
	random *rand.Rand
	hook   func(Operation) error

	// names is what a running process sees; durableNames what a crash would leave. Both map full paths to inodes.
	names, durableNames map[string]*inode
	directories         map[string]bool
	// pendingNames are the changes of names since the last SyncDir of their directory, oldest first.
	pendingNames []nameChange
	locks        map[string]*memoryLock

	// life counts crashes and kills: handles of an earlier life are dead.
	life    uint64
	crashed bool

	shortReads bool
	operations uint64
	crashAt    uint64
	capacity   int64
	used       int64
}

// inode is a file without its names.
//
// Invariant: durable with all of pending applied in order equals current, until a sync of the file fails.
type inode struct {
	current, durable content
	pending          []dataChange
	links, handles   int
}

// dataChange is a write or a change of size that was not synced yet.
type dataChange struct {
	offset int64
	data   []byte
	// size is the file's new size for a change of size, else -1.
	size int64
}

// nameChange gives a name to an inode, or takes it away (inode nil). Both halves of a rename are one change.
type nameChange struct {
	directory string
	removed   string
	added     string
	inode     *inode
}

// OperationKind says what an operation does.
type OperationKind string

// The operations that a hook sees.
const (
	OpOpen     OperationKind = "open"
	OpCreate   OperationKind = "create"
	OpRemove   OperationKind = "remove"
	OpRename   OperationKind = "rename"
	OpReadDir  OperationKind = "readdir"
	OpMkdir    OperationKind = "mkdir"
	OpSyncDir  OperationKind = "syncdir"
	OpLock     OperationKind = "lock"
	OpRead     OperationKind = "read"
	OpWrite    OperationKind = "write"
	OpTruncate OperationKind = "truncate"
	OpAllocate OperationKind = "allocate"
	OpSync     OperationKind = "sync"
)

// Operation is one call that is about to happen.
type Operation struct {
	Kind OperationKind
	// Name is the path the call was made with; for a file, the one it was opened under.
	Name string
	// Offset and Length are those of a read or a write; Length is the size for a truncation or an allocation.
	Offset, Length int64
}

// NewMemory returns an empty file system without faults and without a bound on its capacity.
func NewMemory(seed uint64) *Memory {
	return &Memory{
		random:       rand.New(rand.NewPCG(seed, 0x6c6f676d6972726f)),
		names:        make(map[string]*inode),
		durableNames: make(map[string]*inode),
		directories:  map[string]bool{".": true, "/": true},
		locks:        make(map[string]*memoryLock),
	}
}

// begin is the common door of all operations. Where crashed is true the operation is the one at which the disk
// crashes: it must become pending and then crash. The lock is held on return without an error.
func (m *Memory) begin(op Operation, life uint64, changes bool) (crashes bool, err error) {
	m.mu.Lock()
	hook := m.hook
	m.mu.Unlock()
	if hook != nil {
		if err := hook(op); err != nil {
			return false, fmt.Errorf("%s %s: %w", op.Kind, op.Name, err)
		}
	}
	m.mu.Lock()
	if m.crashed || life != m.life {
		m.mu.Unlock()
		return false, fmt.Errorf("%s %s: %w", op.Kind, op.Name, ErrCrashed)
	}
	if changes {
		m.operations++
		crashes = m.operations == m.crashAt
	}
	return crashes, nil
}

// end releases the lock and, where the operation was the one to crash at, crashes.
func (m *Memory) end(op Operation, crashes bool, err error) error {
	defer m.mu.Unlock()
	if crashes {
		m.crash()
		return fmt.Errorf("%s %s: %w", op.Kind, op.Name, ErrCrashed)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", op.Kind, op.Name, err)
	}
	return nil
}

func (m *Memory) currentLife() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

// OpenFile implements FS.
func (m *Memory) OpenFile(name string) (File, error) {
	name = filepath.Clean(name)
	op := Operation{Kind: OpOpen, Name: name}
	if _, err := m.begin(op, m.currentLife(), false); err != nil {
		return nil, err
	}
	node, ok := m.names[name]
	if !ok {
		return nil, m.end(op, false, fs.ErrNotExist)
	}
	node.handles++
	file := &memoryFile{memory: m, name: name, node: node, life: m.life}
	return file, m.end(op, false, nil)
}

// Create implements FS. A file that has the name loses it, and keeps its bytes for those who have it open.
func (m *Memory) Create(name string) (File, error) {
	name = filepath.Clean(name)
	op := Operation{Kind: OpCreate, Name: name}
	crashes, err := m.begin(op, m.currentLife(), true)
	if err != nil {
		return nil, err
	}
	if !m.directories[filepath.Dir(name)] {
		return nil, m.end(op, crashes, fs.ErrNotExist)
	}
	node := &inode{handles: 1}
	m.changeName(nameChange{directory: filepath.Dir(name), added: name, inode: node})
	file := &memoryFile{memory: m, name: name, node: node, life: m.life}
	if err := m.end(op, crashes, nil); err != nil {
		return nil, err
	}
	return file, nil
}

// Remove implements FS.
func (m *Memory) Remove(name string) error {
	name = filepath.Clean(name)
	op := Operation{Kind: OpRemove, Name: name}
	crashes, err := m.begin(op, m.currentLife(), true)
	if err != nil {
		return err
	}
	if m.names[name] == nil {
		return m.end(op, crashes, fs.ErrNotExist)
	}
	m.changeName(nameChange{directory: filepath.Dir(name), removed: name})
	return m.end(op, crashes, nil)
}

// Rename implements FS. Both names must be in one directory: no caller needs more.
func (m *Memory) Rename(from, to string) error {
	from, to = filepath.Clean(from), filepath.Clean(to)
	op := Operation{Kind: OpRename, Name: from}
	crashes, err := m.begin(op, m.currentLife(), true)
	if err != nil {
		return err
	}
	node := m.names[from]
	switch {
	case node == nil:
		return m.end(op, crashes, fs.ErrNotExist)
	case filepath.Dir(from) != filepath.Dir(to):
		return m.end(op, crashes, fmt.Errorf("to another directory: %w", errors.ErrUnsupported))
	case from == to:
		return m.end(op, crashes, nil)
	}
	m.changeName(nameChange{directory: filepath.Dir(from), removed: from, added: to, inode: node})
	return m.end(op, crashes, nil)
}

func (m *Memory) changeName(change nameChange) {
	replaced := m.names[change.added]
	if change.removed != "" {
		if change.inode == nil {
			replaced = m.names[change.removed]
		}
		delete(m.names, change.removed)
	}
	if change.added != "" {
		m.names[change.added] = change.inode
	}
	m.pendingNames = append(m.pendingNames, change)
	if change.added != "" && change.removed == "" {
		change.inode.links++
	}
	if replaced != nil {
		replaced.links--
		m.release(replaced)
	}
}

// release gives back the room of a file that has neither a name nor a handle.
func (m *Memory) release(node *inode) {
	if node.links == 0 && node.handles == 0 {
		m.used -= node.current.size
	}
}

func (c nameChange) applyTo(names map[string]*inode) {
	if c.removed != "" {
		delete(names, c.removed)
	}
	if c.added != "" {
		names[c.added] = c.inode
	}
}

// ReadDir implements FS.
func (m *Memory) ReadDir(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	op := Operation{Kind: OpReadDir, Name: dir}
	if _, err := m.begin(op, m.currentLife(), false); err != nil {
		return nil, err
	}
	if !m.directories[dir] {
		return nil, m.end(op, false, fs.ErrNotExist)
	}
	var found []string
	for name := range maps.Keys(m.names) {
		if filepath.Dir(name) == dir {
			found = append(found, filepath.Base(name))
		}
	}
	for name := range maps.Keys(m.directories) {
		if filepath.Dir(name) == dir && name != dir {
			found = append(found, filepath.Base(name))
		}
	}
	slices.Sort(found)
	return found, m.end(op, false, nil)
}

// MkdirAll implements FS.
func (m *Memory) MkdirAll(dir string) error {
	dir = filepath.Clean(dir)
	op := Operation{Kind: OpMkdir, Name: dir}
	crashes, err := m.begin(op, m.currentLife(), true)
	if err != nil {
		return err
	}
	for path := dir; !m.directories[path]; path = filepath.Dir(path) {
		m.directories[path] = true
	}
	return m.end(op, crashes, nil)
}

// SyncDir implements FS.
func (m *Memory) SyncDir(dir string) error {
	dir = filepath.Clean(dir)
	op := Operation{Kind: OpSyncDir, Name: dir}
	crashes, err := m.begin(op, m.currentLife(), true)
	if err != nil {
		return err
	}
	if crashes {
		return m.end(op, crashes, nil)
	}
	rest := m.pendingNames[:0]
	for _, change := range m.pendingNames {
		if change.directory == dir {
			change.applyTo(m.durableNames)
		} else {
			rest = append(rest, change)
		}
	}
	clear(m.pendingNames[len(rest):])
	m.pendingNames = rest
	return m.end(op, false, nil)
}

type memoryLock struct {
	memory *Memory
	name   string
}

// Lock implements FS.
func (m *Memory) Lock(name string) (io.Closer, error) {
	name = filepath.Clean(name)
	op := Operation{Kind: OpLock, Name: name}
	if _, err := m.begin(op, m.currentLife(), false); err != nil {
		return nil, err
	}
	if !m.directories[filepath.Dir(name)] {
		return nil, m.end(op, false, fs.ErrNotExist)
	}
	if m.locks[name] != nil {
		return nil, m.end(op, false, ErrLocked)
	}
	lock := &memoryLock{memory: m, name: name}
	m.locks[name] = lock
	return lock, m.end(op, false, nil)
}

func (l *memoryLock) Close() error {
	l.memory.mu.Lock()
	defer l.memory.mu.Unlock()
	if l.memory.locks[l.name] == l {
		delete(l.memory.locks, l.name)
	}
	return nil
}

// Files returns the paths of all files under a directory, sorted.
func (m *Memory) Files(dir string) []string {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []string
	for name := range maps.Keys(m.names) {
		if strings.HasPrefix(name, dir+string(filepath.Separator)) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}
