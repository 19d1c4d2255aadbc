// Package durable keeps one small file whole: a reader finds all of what was last written, or all of what was written
// before it, whatever was interrupted. It is for records of a few kilobytes that a process must not lose or misread: an
// identity, a counter, a list of addresses.
//
// A file holds a magic line, the CRC32C of what follows it, and the record. Write returns when the record is on the
// disk under its name. Read refuses what does not match its checksum; it never returns part of a record. Two processes
// must not write the same file; the package takes no lock.
package durable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// ErrDamaged is returned by Read for a file that is not what Write left: cut short, altered, or of another kind.
var ErrDamaged = errors.New("file is damaged")

// RecordBytesMax bounds what Write accepts and Read loads.
const RecordBytesMax = 1 << 20

// header is the magic of the format followed by a CRC32C, little-endian, of the record.
const (
	magic       = "logmirror-record-1\n"
	headerBytes = len(magic) + 4
)

// Write replaces the file at path with record. On return without an error the new record is durable, and so is its
// name; after an error the file holds either record, whole.
func Write(path string, record []byte) (err error) {
	if len(record) > RecordBytesMax {
		return fmt.Errorf("write %s: record of %d bytes, at most %d", path, len(record), RecordBytesMax)
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	content := make([]byte, 0, headerBytes+len(record))
	content = append(content, magic...)
	content = binary.LittleEndian.AppendUint32(content, checksum(record))
	content = append(content, record...)
	if _, err = file.Write(content); err != nil {
		return err
	}
	if err = file.Sync(); err != nil {
		return err
	}
	if err = file.Close(); err != nil {
		return err
	}
	if err = os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

// Read returns the record at path. The error is fs.ErrNotExist where there is no file and ErrDamaged where there is
// something else than a whole record.
func Read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, int64(headerBytes+RecordBytesMax)+1))
	if err != nil {
		return nil, err
	}
	if len(content) < headerBytes || !bytes.HasPrefix(content, []byte(magic)) {
		return nil, fmt.Errorf("%s: %w: no record header", path, ErrDamaged)
	}
	record := content[headerBytes:]
	if len(record) > RecordBytesMax {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", path, ErrDamaged, RecordBytesMax)
	}
	if binary.LittleEndian.Uint32(content[len(magic):]) != checksum(record) {
		return nil, fmt.Errorf("%s: %w: checksum does not match", path, ErrDamaged)
	}
	return record, nil
}

func checksum(record []byte) uint32 {
	return crc32.Checksum(record, crc32.MakeTable(crc32.Castagnoli))
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := directory.Sync(); err != nil {
		_ = directory.Close()
		return err
	}
	return directory.Close()
}
