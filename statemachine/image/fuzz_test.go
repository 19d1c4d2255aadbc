package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/logmirror/logmirror/statemachine/machinetest"
)

// FuzzVersionRow decodes arbitrary rows under arbitrary keys. What is taken encodes to the same bytes.
func FuzzVersionRow(f *testing.F) {
	row := versionRow{tombstone: true, hasPredecessor: true, predecessor: revision{3, 1}, encoded: []byte("key-value")}
	f.Add(revision{7, 0}.appendTo(nil), seal(revision{7, 0}.appendTo(nil), row.appendTo(nil)))
	f.Add(revision{7, 0}.appendTo(nil), row.appendTo(nil))
	f.Add([]byte{}, []byte{4})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if at, err := revisionOf(key); err == nil && !bytes.Equal(at.appendTo(nil), key) {
			t.Errorf("key %x is %+v", key, at)
		}
		v, err := decodeVersionRow(value)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if err == nil && !bytes.Equal(v.appendTo(nil), value) {
			t.Errorf("row %x encodes to %x", value, v.appendTo(nil))
		}
		if row, err := open(key, value); err == nil && !bytes.Equal(seal(key, bytes.Clone(row)), value) {
			t.Errorf("row %x under %x is not what was sealed", value, key)
		}
		_, _, _ = openVersion(key, value)
	})
}

// FuzzOpen writes over a part of a whole file, or begins with arbitrary bytes. Open either sets it aside or gives a state
// that was committed; a checksum in a page or row makes anything else a collision.
func FuzzOpen(f *testing.F) {
	directory := f.TempDir()
	path := filepath.Join(directory, "whole")
	states := written(f, path, machinetest.NewLog(testIdentity.ClusterID, 11), 40)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{}, false)
	f.Add(uint32(16), binary.LittleEndian.AppendUint32(nil, 1<<31), false)
	f.Add(uint32(0), whole[:512], true)
	f.Add(uint32(2*os.Getpagesize()), make([]byte, 64), false)
	f.Fuzz(func(t *testing.T, at uint32, content []byte, alone bool) {
		damaged := bytes.Clone(content)
		if !alone {
			damaged = bytes.Clone(whole)
			copy(damaged[int(at)%len(whole):], content)
		}
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		im, m, err := Open(testConfig(path))
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close(false)
		if m != nil && machinetest.Dump(t, m) != states[m.Index()] {
			t.Errorf("a state that was never committed, at index %d", m.Index())
		}
	})
}
