package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

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

// A picture is well-formed, holds a median and a percentile of both systems, and nothing lies outside of it.
func TestPlot(t *testing.T) {
	c := curve{Name: "put", Title: "put", Points: []point{
		{1, sample{OperationsPerSecond: 400, P50Milliseconds: 2, P99Milliseconds: 9}, sample{OperationsPerSecond: 300, P50Milliseconds: 0.3, P99Milliseconds: 4}},
		{1000, sample{OperationsPerSecond: 9000, P50Milliseconds: 80, P99Milliseconds: 300}, sample{OperationsPerSecond: 12000, P50Milliseconds: 70, P99Milliseconds: 1200}},
	}}
	lines := 0
	for decoder := xml.NewDecoder(strings.NewReader(c.svg("etcd"))); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if element, ok := token.(xml.StartElement); ok && element.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 4 {
		t.Errorf("%d lines, want 4", lines)
	}
	x, y := newScale([]float64{300, 12000}, plotLeft, 100), newScale([]float64{0.3, 1200}, 100, -100)
	for got, want := range map[float64]float64{x.at(100): plotLeft, x.at(100000): plotLeft + 100, y.at(0.1): 100, y.at(10000): 0} {
		if got != want {
			t.Errorf("a value is drawn at %v, want %v", got, want)
		}
	}
}
