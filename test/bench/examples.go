package main

import (
	"fmt"
	"strings"
)

// example is a configuration on paper. All regions write alike; the leader and each follower serve the tails that are named,
// and every frontend hands its proposals to the member that it tails.
type example struct {
	title                                   string
	regions, voters, learners               int
	leaderTails, memberTails                float64
	putsPerSecond, valueBytes, keys, leases float64
	watchers, connections                   float64 // of one region
	commitSeconds                           float64 // of the region that is farthest from the leader
}

// A frontend has at most so many batches under way, and while one is, hands over the next after a while: mirror.Config.
const (
	batchesInFlight  = 16
	batchHoldSeconds = 0.003
)

var examples = []example{
	{"3 regions, 3 voters", 3, 3, 0, 1, 1, 3000, 256, 1e6, 1e5, 1e4, 1e3, 0.15},
	{"9 regions, 3 voters", 9, 3, 0, 3, 3, 3000, 256, 1e6, 1e5, 1e4, 1e3, 0.25},
	{"50 regions, 3 voters", 50, 3, 0, 17, 17, 5000, 256, 1e6, 1e5, 1e4, 1e3, 0.3},
	{"50 regions, 5 voters", 50, 5, 0, 10, 10, 5000, 256, 1e6, 1e5, 1e4, 1e3, 0.3},
	{"50 regions, 5 voters and 5 learners", 50, 5, 5, 0, 5.6, 5000, 256, 1e6, 1e5, 1e4, 1e3, 0.3},
}

// entriesPerSecond is what all frontends propose at most: one an operation, one in each hold, or what may be under way.
func (e example) entriesPerSecond() float64 {
	return float64(e.regions) * min(e.putsPerSecond/float64(e.regions), 1/batchHoldSeconds, batchesInFlight/e.commitSeconds)
}

// examplesTable is what the model says of the examples.
func (m *model) examplesTable() string {
	var b strings.Builder
	b.WriteString("| ")
	for _, e := range examples {
		b.WriteString("| " + e.title + " ")
	}
	b.WriteString("|\n|---" + strings.Repeat("|---", len(examples)) + "|\n")
	row := func(name string, digits int, of func(example) float64) {
		fmt.Fprintf(&b, "| %s ", name)
		for _, e := range examples {
			fmt.Fprintf(&b, "| %.*f ", digits, of(e))
		}
		b.WriteString("|\n")
	}
	point := func(e example) *scalePoint {
		return &scalePoint{Members: e.voters + e.learners, Driven: e.regions, ValueBytes: int(e.valueBytes), OperationsPerSecond: e.putsPerSecond,
			EntriesPerOp: e.entriesPerSecond() / e.putsPerSecond}
	}
	member := func(e example, leader bool, tails float64) float64 {
		p := point(e)
		p.LogBytesPerOp = m.logBytes(p)
		return e.putsPerSecond * m.memberCPU(p, memberCost{Leader: leader, Tails: tails, Intake: tails / float64(e.regions)}) / 1e6
	}
	perSecond := func(e example) (log, link, follow float64) {
		p := point(e)
		log = e.putsPerSecond * m.logBytes(p)
		link = m.tailBytes*log + m.tailEntry*e.entriesPerSecond() + m.tailSecond
		return log, link, m.followBytes*log + m.followEntry*e.entriesPerSecond() + m.followSecond
	}
	row("puts a second, all regions", 0, func(e example) float64 { return e.putsPerSecond })
	row("entries a second, at most", 0, example.entriesPerSecond)
	row("tails of the leader", 0, func(e example) float64 { return e.leaderTails })
	row("tails of another member", 1, func(e example) float64 { return e.memberTails })
	row("leader, cores", 2, func(e example) float64 { return member(e, true, e.leaderTails) })
	row("another member, cores", 2, func(e example) float64 { return member(e, false, e.memberTails) })
	row("a frontend, cores", 2, func(e example) float64 {
		return e.putsPerSecond * m.frontendCPU(point(e), frontendCost{Driven: true}) / 1e6
	})
	row("link to a mirror, Mbit/s", 1, func(e example) float64 { _, link, _ := perSecond(e); return link * 8 / 1e6 })
	row("out of the leader, Mbit/s", 0, func(e example) float64 {
		_, link, follow := perSecond(e)
		return (float64(e.voters+e.learners-1)*follow + e.leaderTails*link) * 8 / 1e6
	})
	row("out of another member, Mbit/s", 0, func(e example) float64 { _, link, _ := perSecond(e); return e.memberTails * link * 8 / 1e6 })
	row("written by a member, MB/s", 1, func(e example) float64 {
		log, _, _ := perSecond(e)
		return (m.writtenBytes*log + m.writtenEntry*e.entriesPerSecond()) / 1e6
	})
	row("memory of a frontend, MB", 0, func(e example) float64 {
		return (e.keys*m.held.key + e.leases*m.held.lease + e.watchers*m.held.watcher + e.connections*m.held.connection) / 1e6
	})
	row("256 MiB of log, a checkpoint's worth, in min", 0, func(e example) float64 { log, _, _ := perSecond(e); return (256 << 20) / log / 60 })
	row("checkpoint sealed after, s", 0, func(e example) float64 {
		return m.held.checkpointFixed + m.held.checkpointMegabyte*e.keys*m.held.checkpointKey/1e6
	})
	return b.String()
}
