package main

import (
	"testing"
	"time"
)

func TestKernelWorkersTimeGrows(t *testing.T) {
	w := &workers{last: map[string]time.Duration{}}
	if began := w.used(); began != 0 {
		t.Errorf("%v were used before it was counted", began)
	}
	if len(w.last) == 0 {
		t.Skip("this kernel shows none of its workers")
	}
	var before time.Duration
	for range 10 {
		now := w.used()
		if now < before {
			t.Errorf("%v after %v", now, before)
		}
		before = now
	}
	for name := range w.last { // one that has come since
		delete(w.last, name)
		break
	}
	for name := range w.last { // and one whose number another had before
		w.last[name] = 1 << 62
		break
	}
	if now := w.used(); now < before {
		t.Errorf("%v after %v", now, before)
	}
}
