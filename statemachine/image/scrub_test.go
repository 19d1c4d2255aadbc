package image

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/logmirror/logmirror/statemachine/machinetest"
)

func noPause(int) error { return nil }

// TestScrubBesideTheWriter scrubs again and again while the file is written and compacted, and finds nothing.
func TestScrubBesideTheWriter(t *testing.T) {
	c := testConfig(filepath.Join(t.TempDir(), "image"))
	im, m := begin(t, c)
	defer im.Close(false)
	log := machinetest.NewLog(testIdentity.ClusterID, 4)
	stop, scrubbed := make(chan struct{}), make(chan int)
	go func() {
		passes := 0
		for {
			if err := im.Scrub(noPause); err != nil {
				t.Error(err)
			}
			passes++
			select {
			case <-stop:
				scrubbed <- passes
				return
			default:
			}
		}
	}()
	for range 400 {
		im.Applied(machinetest.Apply(t, m, m.Index()+1, log.Next()))
		if m.Index()%5 == 0 {
			im.cut()
		}
	}
	close(stop)
	if n := <-scrubbed; n < 3 {
		t.Errorf("only %d passes", n)
	}
	if im.Abandoned() {
		t.Error("the image was given up")
	}
}

// TestScrubFindsDamage alters the file beneath an image that is in use.
func TestScrubFindsDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	path := filepath.Join(t.TempDir(), "image")
	im, m := begin(t, testConfig(path))
	defer im.Close(false)
	log := machinetest.NewLog(testIdentity.ClusterID, 5)
	for range 300 {
		im.Applied(machinetest.Apply(t, m, m.Index()+1, log.Next()))
	}
	im.cut()
	for im.CommittedIndex() != m.Index() {
		runtime.Gosched() // the writer commits in its own time
	}
	if err := im.Scrub(noPause); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, _ := file.Stat()
	found := 0
	const rounds = 300
	for range rounds {
		at := r.Int64N(info.Size())
		var before [1]byte
		if _, err := file.ReadAt(before[:], at); err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt([]byte{before[0] ^ byte(1<<r.IntN(8))}, at); err != nil {
			t.Fatal(err)
		}
		switch err := im.Scrub(noPause); {
		case errors.Is(err, ErrCorrupt):
			found++
		case err != nil:
			t.Errorf("byte %d: %v", at, err)
		}
		if _, err := file.WriteAt(before[:], at); err != nil {
			t.Fatal(err)
		}
		if err := im.Scrub(noPause); err != nil {
			t.Fatalf("after byte %d was put right: %v", at, err)
		}
	}
	// The rest of the file is free pages, and room within pages.
	if found < rounds/10 {
		t.Errorf("found %d of %d", found, rounds)
	}
	stopped := errors.New("stop")
	if err := im.Scrub(func(int) error { return stopped }); !errors.Is(err, stopped) {
		t.Errorf("a scrub that is stopped: %v", err)
	}
}
