package disk

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
)

// SetHook has every operation pass through a function first, without any lock held: it may wait (a slow disk, in
// virtual time too), look, or return an error, which then is the operation's, without effect but for PartialWrite and a failed sync. Nil takes it away.
func (m *Memory) SetHook(hook func(Operation) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

// PartialWrite is an error for a hook to return from a write: the first Bytes of it are written before it fails.
type PartialWrite struct {
	Bytes int
	Err   error
}

func (e *PartialWrite) Error() string { return fmt.Sprintf("after %d bytes: %v", e.Bytes, e.Err) }

func (e *PartialWrite) Unwrap() error { return e.Err }

// SetShortReads has every read stop short of its end, at a byte chosen by the seed, with io.ErrUnexpectedEOF.
func (m *Memory) SetShortReads(short bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shortReads = short
}

// SetCapacity bounds the sum of the files' sizes in bytes; zero takes the bound away. What is there already stays.
func (m *Memory) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Used returns the sum of the files' sizes in bytes.
func (m *Memory) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// Operations returns how many operations that change something were begun so far.
func (m *Memory) Operations() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.operations
}

// CrashAt has the disk crash in the middle of the operation that Operations will count as number; zero: never. A write
// crashed at may have reached the disk in part; a sync crashed at has promised nothing.
func (m *Memory) CrashAt(number uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashAt = number
}

// Crash cuts the power: what was not synced is lost, kept or torn by chance, every handle and lock is dead, and every
// operation fails with ErrCrashed until Restart.
func (m *Memory) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crash()
}

// Restart makes a crashed disk usable again.
func (m *Memory) Restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = false
}

// Kill ends the process but not the machine: handles and locks are dead, all that was written is still there, and what
// was not synced is still at risk. The disk is usable at once.
func (m *Memory) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	clear(m.locks)
	m.account()
}

// crash decides for everything that was not synced whether it survived.
func (m *Memory) crash() {
	m.crashed = true
	m.life++
	clear(m.locks)
	kept := m.random.IntN(len(m.pendingNames) + 1)
	for _, change := range m.pendingNames[:kept] {
		change.applyTo(m.durableNames)
	}
	m.pendingNames = nil
	m.names = maps.Clone(m.durableNames)
	done := make(map[*inode]bool)
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		node := m.names[name]
		if done[node] {
			continue
		}
		done[node] = true
		for _, change := range node.pending {
			m.tear(change, &node.durable)
		}
		node.pending = nil
		node.current = node.durable.clone()
	}
	m.account()
}

// tear applies what survived of one unsynced change: all, nothing, the bytes before some offset (a write that was cut
// short), or some of its sectors (a disk that wrote them in its own order).
func (m *Memory) tear(change dataChange, to *content) {
	if change.size >= 0 {
		if m.random.IntN(2) == 0 {
			change.applyTo(to)
		}
		return
	}
	switch m.random.IntN(4) {
	case 0:
	case 1:
		change.applyTo(to)
	case 2:
		to.write(change.data[:m.random.IntN(len(change.data)+1)], change.offset)
	case 3:
		for data, offset := change.data, change.offset; len(data) > 0; {
			n := min(int64(len(data)), sectorBytes-offset%sectorBytes)
			if m.random.IntN(2) == 0 {
				to.write(data[:n], offset)
			}
			data, offset = data[n:], offset+n
		}
	}
}

// account counts links, handles and used bytes anew, after the handles died.
func (m *Memory) account() {
	m.used = 0
	for _, node := range m.names {
		node.links, node.handles = 0, 0
	}
	for _, node := range m.names {
		if node.links++; node.links == 1 {
			m.used += node.current.size
		}
	}
}

// Corrupt changes one byte of a file at rest, by exclusive or with mask: 1, 2, 4 ... 128 flip one bit. Nobody is told.
func (m *Memory) Corrupt(name string, offset int64, mask byte) error {
	return m.alter(name, func(c *content) error {
		if offset < 0 || offset >= c.size {
			return fmt.Errorf("corrupt %s at %d of %d bytes: %w", name, offset, c.size, fs.ErrInvalid)
		}
		var b [1]byte
		c.read(b[:], offset)
		b[0] ^= mask
		c.write(b[:], offset)
		return nil
	})
}

// FlipBit flips one bit of a file at rest, chosen by the seed among those of its bytes that are not zero, and returns
// the byte's offset. A file of zeros is left as it is and -1 returned.
func (m *Memory) FlipBit(name string) (offset int64, err error) {
	offset = -1
	data, err := m.Bytes(name)
	if err != nil {
		return offset, err
	}
	var used []int64
	for i, b := range data {
		if b != 0 {
			used = append(used, int64(i))
		}
	}
	if len(used) == 0 {
		return offset, nil
	}
	m.mu.Lock()
	offset = used[m.random.IntN(len(used))]
	mask := byte(1) << m.random.IntN(8)
	m.mu.Unlock()
	return offset, m.Corrupt(name, offset, mask)
}

// Bytes returns a copy of a file as a running process sees it.
func (m *Memory) Bytes(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node := m.names[filepath.Clean(name)]
	if node == nil {
		return nil, fmt.Errorf("bytes of %s: %w", name, fs.ErrNotExist)
	}
	data := make([]byte, node.current.size)
	node.current.read(data, 0)
	return data, nil
}

// SetBytes replaces what is at rest in an existing file, durably, without counting as an operation.
func (m *Memory) SetBytes(name string, data []byte) error {
	return m.alter(name, func(c *content) error {
		c.resize(0)
		c.write(data, 0)
		return nil
	})
}

// alter changes a file both as seen and as durable. What was not synced is taken as synced.
func (m *Memory) alter(name string, change func(*content) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node := m.names[filepath.Clean(name)]
	if node == nil {
		return fmt.Errorf("alter %s: %w", name, fs.ErrNotExist)
	}
	before := node.current.size
	if err := change(&node.current); err != nil {
		return err
	}
	m.used += node.current.size - before
	node.durable, node.pending = node.current.clone(), nil
	return nil
}
