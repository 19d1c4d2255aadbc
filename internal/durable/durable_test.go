package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteThenRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Read of no file: %v, want fs.ErrNotExist", err)
	}
	for _, record := range [][]byte{[]byte("first"), {}, bytes.Repeat([]byte{7}, 5000)} {
		if err := Write(path, record); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil || !bytes.Equal(got, record) {
			t.Fatalf("Read: %d bytes, %v; want %d bytes", len(got), err, len(record))
		}
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Fatalf("directory holds %v, %v; want the record alone", names, err)
	}
	if err := Write(path, make([]byte, RecordBytesMax+1)); err == nil {
		t.Fatal("Write took a record above the bound")
	}
}

// Every cut and every flipped bit of a file is refused, never returned as a record.
func TestDamageIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	if err := Write(path, []byte("incarnation 12")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %q, %v; want ErrDamaged", what, got, err)
		}
	}
	for length := range whole {
		check("cut", whole[:length])
	}
	for position := range whole {
		altered := bytes.Clone(whole)
		altered[position] ^= 0x10
		check("flipped", altered)
	}
}
