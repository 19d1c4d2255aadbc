package main

import "testing"

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{4, 2}, spread{3, 2, 4}},
		{[]float64{9, 1, 2}, spread{2, 1, 9}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("spread of %v: %v, want %v", c.values, got, c.want)
		}
	}
}

// The ratio is taken round by round: a round in which the machine was slow for both does not move it.
func TestRatioPairsRounds(t *testing.T) {
	r := result{
		Base:      []sample{{OperationsPerSecond: 100, CPUMicrosPerOp: 50}, {OperationsPerSecond: 10, CPUMicrosPerOp: 500}},
		Logmirror: []sample{{OperationsPerSecond: 200, CPUMicrosPerOp: 25}, {OperationsPerSecond: 20, CPUMicrosPerOp: 250}},
	}
	r.finish()
	if want := (spread{2, 2, 2}); r.OperationsRatio != want {
		t.Errorf("ratio of operations: %v", r.OperationsRatio)
	}
	if want := (spread{0.5, 0.5, 0.5}); r.CPURatio != want {
		t.Errorf("ratio of CPU time: %v", r.CPURatio)
	}
}
