package processors

import (
	"runtime"
	"testing"
)

func TestUseHalf(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "")
	for _, c := range []struct{ may, uses int }{{1, 1}, {2, 1}, {3, 1}, {4, 2}, {64, 32}} {
		runtime.GOMAXPROCS(c.may)
		UseHalf()
		if uses := runtime.GOMAXPROCS(0); uses != c.uses {
			t.Errorf("of %d processors %d are used, not %d", c.may, uses, c.uses)
		}
	}
	runtime.GOMAXPROCS(7)
	t.Setenv("GOMAXPROCS", "7")
	UseHalf()
	if uses := runtime.GOMAXPROCS(0); uses != 7 {
		t.Errorf("of the 7 that GOMAXPROCS says %d are used", uses)
	}
}
