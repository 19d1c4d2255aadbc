package main

import (
	"math"
	"testing"
)

// TestNonNegative finds constants that were put in, and none below zero where the data would have one.
func TestNonNegative(t *testing.T) {
	features := [][]float64{{1, 0, 1}, {1, 10, 2}, {1, 100, 0}, {1, 1000, 5}, {1, 3, 3}}
	put := []float64{7, 0.25, 2}
	var wanted []float64
	for _, f := range features {
		wanted = append(wanted, sum(f, put...))
	}
	for i, v := range nonNegative(features, wanted) {
		if math.Abs(v-put[i]) > 1e-6 {
			t.Errorf("constant %d is %v, not %v", i, v, put[i])
		}
	}
	falling := nonNegative([][]float64{{1, 0}, {1, 1}, {1, 2}}, []float64{3, 2, 1})
	if falling[1] != 0 || falling[0] < 1 || falling[0] > 3 {
		t.Errorf("falling values give %v", falling)
	}
}

// TestModelRecovers makes curves of a known model and finds its constants again.
func TestModelRecovers(t *testing.T) {
	known := &model{member: memberModel{20000, 90, 20, 15, 9, 0.001, 0.002, 0.0005}, frontend: frontendModel{15000, 40, 30, 4, 50, 0.002, 0.004},
		idleLeader: 8000, idleFollower: 9000, idleFrontend: 6000, logPut: 9, logEntry: 18}
	curves := map[string]*scaleCurve{}
	for _, name := range []string{"value", "frontends", "regions", "tails"} {
		curves[name] = &scaleCurve{Name: name}
	}
	idle := scalePoint{Series: "idle", Log: []memberCost{{Leader: true, CPUMicrosPerOp: 8000}, {CPUMicrosPerOp: 9000}},
		Mirrors: []frontendCost{{CPUMicrosPerOp: 6000}}}
	curves["clients"] = &scaleCurve{Name: "clients", Points: []scalePoint{idle}}
	for i, entries := range []float64{1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.3, 0.7} {
		p := scalePoint{Members: 3, Frontends: 3, Driven: 1 + i%2, ValueBytes: 16 << (2 * i % 14), EntriesPerOp: entries, OperationsPerSecond: 100 * float64(i+3)}
		p.LogBytesPerOp = known.logBytes(&p)
		p.Log = []memberCost{{Leader: true, Tails: float64(i), Intake: float64(i%3) / 2}, {Tails: 3, Intake: 0.5}, {Tails: float64(i * i), Intake: 0}}
		p.Mirrors = []frontendCost{{Driven: true}, {Driven: p.Driven > 1}, {}}
		for j := range p.Log {
			p.Log[j].CPUMicrosPerOp = known.memberCPU(&p, p.Log[j])
			p.Log[j].WrittenPerOp, p.Log[j].SentToMembers = 4096*entries+p.LogBytesPerOp, 2*(p.LogBytesPerOp+30*entries)
		}
		for j := range p.Mirrors {
			p.Mirrors[j].CPUMicrosPerOp = known.frontendCPU(&p, p.Mirrors[j])
			p.Mirrors[j].ReceivedPerOp = p.LogBytesPerOp + 25*entries
		}
		curves["value"].Points = append(curves["value"].Points, p)
	}
	for _, name := range []string{"keys", "watchers", "leases"} {
		curves[name] = &scaleCurve{Name: name}
		for _, series := range []string{"", "a key each, 100 streams", "a stream each", "idle connections"} {
			for _, x := range []float64{1000, 2000, 5000} {
				curves[name].Points = append(curves[name].Points, scalePoint{X: x, Series: series, Counted: map[string]float64{
					"held_anonymous_megabytes": 20 + x*400/1e6, "image_megabytes": x / 1e3, "checkpoint_megabytes": x / 1e3,
					"checkpoint_seconds": 2 + x/1e5, "restart_seconds": x / 1e6, "pin_milliseconds": x / 1e3}})
			}
		}
	}
	found, err := fitModel(curves)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]float64{
		"entry": {found.member.entry, 90}, "tail": {found.member.tailEntry, 9}, "lead": {found.member.leadEntry, 20},
		"tail byte": {found.member.tailByte, 0.0005}, "own put": {found.frontend.ownPut, 50}, "put": {found.frontend.put, 4},
		"log put": {found.logPut, 9}, "log entry": {found.logEntry, 18}, "link entry": {found.tailEntry, 25},
		"disk entry": {found.writtenEntry, 4096}, "key": {found.held.key, 400}, "checkpoint": {found.held.checkpointFixed, 2},
	} {
		if math.Abs(pair[0]-pair[1]) > 0.02*pair[1] {
			t.Errorf("%s is %v, not %v", name, pair[0], pair[1])
		}
	}
}
