package processes

import (
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
)

// A process that has ended by itself is seen to be gone before anybody waits for it.
func TestGone(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	for _, test := range []struct {
		seconds string
		gone    bool
	}{{"0", true}, {"600", false}} {
		p := &Process{Name: "sleeper", Arguments: []string{"sleep", test.seconds}, Output: filepath.Join(t.TempDir(), "output")}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		for deadline := time.Now().Add(10 * time.Second); test.gone && !p.Gone() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // until it has ended
		}
		if p.Gone() != test.gone {
			t.Errorf("sleep %s: gone is %v", test.seconds, p.Gone())
		}
	}
}

// What does not end in time is killed, and said to have gone on.
func TestWaitIsBounded(t *testing.T) {
	p := &Process{Name: "sleeper", Arguments: []string{"sleep", "600"}, Output: filepath.Join(t.TempDir(), "output")}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(time.Millisecond); !errors.Is(err, ErrStillRuns) {
		t.Errorf("%v", err)
	}
	if p.Running() {
		t.Error("it is said to run")
	}
}

func TestFreePortsDiffer(t *testing.T) {
	addresses, err := FreePorts(100)
	if err != nil || len(addresses) != 100 {
		t.Fatal(addresses, err)
	}
	slices.Sort(addresses)
	if len(slices.Compact(addresses)) != 100 {
		t.Error("a port was given twice")
	}
}
