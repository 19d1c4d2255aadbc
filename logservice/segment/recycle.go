package segment

import (
	"errors"
	"strings"

	"github.com/logmirror/logmirror/internal/disk"
)

// recycledFilesMax bounds the files that wait to become the next spare. Where the log is trimmed by more at once, the rest
// of the space goes back to the disk.
const recycledFilesMax = 4

// retire gives up the file of a segment that is no longer part of the log: its space becomes that of a later segment where
// it fits, or the disk's again. Either is durable on return.
func (l *Log) retire(s *segmentFile) error {
	recycled, err := l.recycle(s)
	if err == nil && !recycled {
		err = l.fs.Remove(s.path)
	}
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return l.fail(err)
	}
	l.options.Logger.Debug("gave up segment", "file", s.path, "recycled", recycled)
	if recycled && l.ReserveError() != nil {
		l.wantSpare()
	}
	return nil
}

// recycle keeps the file open under a name that means nothing, if nobody reads it any more and it has the size of the
// segments that are made now.
func (l *Log) recycle(s *segmentFile) (bool, error) {
	if s.references.Add(-1) > 0 {
		return false, nil // the last reader closes it
	}
	size, err := s.file.Size()
	if err != nil {
		return false, errors.Join(err, s.file.Close())
	}
	l.mu.RLock()
	room := len(l.recycled) < recycledFilesMax
	l.mu.RUnlock()
	// A footer may have made the file larger than it was asked for.
	if most := l.options.SegmentBytes + l.options.SegmentBytes/4; !room || size < l.options.SegmentBytes || size > most {
		return false, s.file.Close()
	}
	name := recycledName(s.header.sequence)
	if err := l.fs.Rename(s.path, l.path(name)); err != nil {
		return false, errors.Join(err, s.file.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recycled = append(l.recycled, &spareFile{name: name, file: s.file, bytes: l.options.SegmentBytes})
	return true, nil
}

// takeRecycled returns one of the recycled files, nil where there is none.
func (l *Log) takeRecycled() *spareFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.recycled) == 0 {
		return nil
	}
	taken := l.recycled[0]
	l.recycled = l.recycled[1:]
	return taken
}

// dropRecycled gives the space of the recycled files back to the disk, and tells whether there was any.
func (l *Log) dropRecycled() (dropped bool, err error) {
	for {
		file := l.takeRecycled()
		if file == nil {
			return dropped, err
		}
		dropped = true
		err = errors.Join(err, file.file.Close(), l.fs.Remove(l.path(file.name)))
	}
}

func recycledName(sequence uint64) string {
	return strings.TrimSuffix(segmentName(sequence), segmentSuffix) + recycledSuffix
}

func isRecycledName(name string) bool {
	digits, ok := strings.CutSuffix(name, recycledSuffix)
	if !ok {
		return false
	}
	_, ok = parseSegmentName(digits + segmentSuffix)
	return ok
}

// spareFile is space reserved for a segment, durable, of which no sector is stamped for a segment to come: a file of zeros,
// or one that was a segment. It means nothing under its name.
type spareFile struct {
	name  string
	file  disk.File
	bytes int64
}
