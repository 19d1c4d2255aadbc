package processes

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice/segment"
)

// CompareLogs reads the logs of members that do not run, from their files, and checks that they hold the same entries as far
// as each says that they are committed. It returns how many were compared with the first one's.
func CompareLogs(members []*Process) (compared int, err error) {
	logs := make([]fileLog, len(members))
	for i, p := range members {
		if logs[i], err = readLog(p); err != nil {
			return 0, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	first := logs[0]
	for i, other := range logs[1:] {
		for index, mine := range first.entries {
			theirs, ok := other.entries[index]
			if !ok || index > first.commit || index > other.commit {
				continue
			}
			if compared++; mine != theirs {
				err = errors.Join(err, fmt.Errorf("%s and %s differ at entry %d", members[0].Name, members[i+1].Name, index))
			}
		}
	}
	return compared, err
}

type fileLog struct {
	commit  uint64
	entries map[uint64]fileEntry
}

type fileEntry struct {
	term uint64
	hash [sha256.Size]byte
}

func readLog(p *Process) (l fileLog, err error) {
	directory, _ := p.Flag("--data-dir")
	directory = filepath.Join(directory, "log")
	report, err := segment.Verify(disk.OS(), directory)
	if err != nil {
		return l, err
	}
	l = fileLog{commit: report.HardState.Commit, entries: make(map[uint64]fileEntry)}
	return l, segment.Dump(disk.OS(), directory, func(record segment.DumpRecord) error {
		if record.Frame != nil {
			for _, e := range record.Frame.Entries {
				l.entries[e.Index] = fileEntry{e.Term, sha256.Sum256(append([]byte{e.Type}, e.Data...))}
			}
		}
		return nil
	})
}
