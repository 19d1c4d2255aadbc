package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// model is what docs/capacity.md computes with: how much of each resource one put, or one thing that is held, takes. Its
// constants are fitted to the scaling curves, so that each can be measured again.
type model struct {
	member   memberModel
	frontend frontendModel
	// Per second, of processes that nobody uses.
	idleLeader, idleFollower, idleFrontend float64 // µs of CPU
	// Bytes of the log: what a put takes beside key and value, what an entry does.
	logPut, logEntry float64
	// A mirror receives so many times the log's bytes, and so much for an entry and a second; so do a leader's followers.
	tailBytes, tailEntry, tailSecond       float64
	followBytes, followEntry, followSecond float64
	// A member writes so many times the log's bytes, and so much for an entry.
	writtenBytes, writtenEntry float64
	held                       heldModel
}

// memberModel is the CPU time of a log member, in µs.
type memberModel struct {
	second      float64 // a second in which it is used at all
	entry       float64 // an entry
	leadEntry   float64 // in addition, at the leader
	takeEntry   float64 // in addition, of one that a frontend brought here
	tailEntry   float64 // in addition, for each tail
	leadByte    float64
	byteOfEntry float64
	tailByte    float64
}

// frontendModel is that of a frontend.
type frontendModel struct {
	second   float64 // a second in which it is used at all
	entry    float64 // applied
	ownEntry float64 // in addition, of an entry that it proposed
	put      float64 // applied
	ownPut   float64 // in addition, of a client of its own: gRPC both ways
	byteOf   float64
	ownByte  float64
}

// heldModel is anonymous memory of a frontend, in bytes, and what checkpoints take.
type heldModel struct {
	key, watcher, stream, connection, lease float64
	imageKey, checkpointKey                 float64 // bytes on disk
	checkpointFixed, checkpointMegabyte     float64 // seconds
	restartKey                              float64 // µs
}

// nonNegative finds the coefficients, none below zero, with which the features come nearest to the wanted values in
// proportion: differences count by the geometric mean of both, so that half as much is as far off as twice as much.
func nonNegative(features [][]float64, wanted []float64) []float64 {
	found := make([]float64, len(features[0]))
	scales := slices.Clone(wanted)
	for range 10 {
		descend(features, wanted, scales, found)
		for i, f := range features {
			scales[i] = math.Sqrt(wanted[i] * max(sum(f, found...), wanted[i]/100))
		}
	}
	return found
}

// descend goes down along one coefficient after the other.
func descend(features [][]float64, wanted, scales, found []float64) {
	rest := make([]float64, len(wanted)) // what is still missing, in units of its scale
	for i, f := range features {
		rest[i] = (wanted[i] - sum(f, found...)) / scales[i]
	}
	for range 2000 {
		for j := range found {
			along, square := 0.0, 0.0
			for i, f := range features {
				x := f[j] / scales[i]
				along += x * rest[i]
				square += x * x
			}
			if square == 0 {
				continue
			}
			next := max(0, found[j]+along/square)
			for i, f := range features {
				rest[i] -= (next - found[j]) * f[j] / scales[i]
			}
			found[j] = next
		}
	}
}

// fit is a regression in the making; what is not above zero says nothing about a cost and is left out.
type fit struct {
	features [][]float64
	wanted   []float64
}

func (f *fit) add(wanted float64, features ...float64) {
	if wanted > 0 {
		f.features, f.wanted = append(f.features, features), append(f.wanted, wanted)
	}
}

func (f *fit) solve(what string, into ...*float64) error {
	if len(f.wanted) < len(into) {
		return fmt.Errorf("%s: %d points for %d constants", what, len(f.wanted), len(into))
	}
	for i, v := range nonNegative(f.features, f.wanted) {
		*into[i] = v
	}
	return nil
}

// fitModel makes the model of the curves; that of the check is not looked at.
func fitModel(curves map[string]*scaleCurve) (*model, error) {
	m := new(model)
	var puts []*scalePoint
	for _, name := range []string{"clients", "value", "frontends", "regions", "tails"} {
		if curves[name] == nil {
			return nil, fmt.Errorf("there is no curve %q", name)
		}
		for i := range curves[name].Points {
			p := &curves[name].Points[i]
			if p.Series != "idle" {
				puts = append(puts, p)
				continue
			}
			m.idleLeader = p.ofLog(true, func(c memberCost) float64 { return c.CPUMicrosPerOp })
			m.idleFollower = p.ofLog(false, func(c memberCost) float64 { return c.CPUMicrosPerOp })
			m.idleFrontend = p.ofFrontends(false, func(c frontendCost) float64 { return c.CPUMicrosPerOp })
		}
	}
	var member, frontend, log, tail, follow, written fit
	for _, p := range puts {
		seconds := 1 / p.OperationsPerSecond
		log.add(p.LogBytesPerOp-keyBytes-float64(p.ValueBytes), 1, p.EntriesPerOp)
		for _, c := range p.Log {
			member.add(c.CPUMicrosPerOp, memberFeatures(p, c)...)
			written.add(c.WrittenPerOp, p.LogBytesPerOp, p.EntriesPerOp)
			if c.Leader {
				followers := float64(p.Members - 1)
				follow.add(c.SentToMembers, p.LogBytesPerOp*followers, p.EntriesPerOp*followers, seconds*followers)
			}
		}
		for _, c := range p.Mirrors {
			frontend.add(c.CPUMicrosPerOp, frontendFeatures(p, c)...)
			if !c.Driven {
				tail.add(c.ReceivedPerOp, p.LogBytesPerOp, p.EntriesPerOp, seconds)
			}
		}
	}
	for _, err := range []error{
		member.solve("members", &m.member.second, &m.member.entry, &m.member.leadEntry, &m.member.takeEntry, &m.member.tailEntry,
			&m.member.byteOfEntry, &m.member.leadByte, &m.member.tailByte),
		frontend.solve("frontends", &m.frontend.second, &m.frontend.entry, &m.frontend.ownEntry, &m.frontend.put, &m.frontend.ownPut,
			&m.frontend.byteOf, &m.frontend.ownByte),
		log.solve("log bytes", &m.logPut, &m.logEntry),
		tail.solve("tails", &m.tailBytes, &m.tailEntry, &m.tailSecond),
		follow.solve("followers", &m.followBytes, &m.followEntry, &m.followSecond),
		written.solve("disk", &m.writtenBytes, &m.writtenEntry),
		m.held.fit(curves),
	} {
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// keyBytes is the length of the keys that the curves put.
var keyBytes = float64(len(key(0)))

func memberFeatures(p *scalePoint, c memberCost) []float64 {
	lead := 0.0
	if c.Leader {
		lead = 1
	}
	e, b := p.EntriesPerOp, p.LogBytesPerOp
	return []float64{1 / p.OperationsPerSecond, e, e * lead, e * c.Intake, e * c.Tails, b, b * lead, b * c.Tails}
}

func frontendFeatures(p *scalePoint, c frontendCost) []float64 {
	own := 0.0 // share of the puts that come through it
	if c.Driven {
		own = 1 / float64(p.Driven)
	}
	bytes := float64(p.ValueBytes)
	return []float64{1 / p.OperationsPerSecond, p.EntriesPerOp, p.EntriesPerOp * own, 1, own, bytes, bytes * own}
}

func sum(features []float64, constants ...float64) (total float64) {
	for i, f := range features {
		total += f * constants[i]
	}
	return total
}

// memberCPU is the µs of a put at a member of a configuration.
func (m *model) memberCPU(p *scalePoint, c memberCost) float64 {
	k := m.member
	return sum(memberFeatures(p, c), k.second, k.entry, k.leadEntry, k.takeEntry, k.tailEntry, k.byteOfEntry, k.leadByte, k.tailByte)
}

// frontendCPU is that at a frontend.
func (m *model) frontendCPU(p *scalePoint, c frontendCost) float64 {
	k := m.frontend
	return sum(frontendFeatures(p, c), k.second, k.entry, k.ownEntry, k.put, k.ownPut, k.byteOf, k.ownByte)
}

// logBytes are those of a put.
func (m *model) logBytes(p *scalePoint) float64 {
	return keyBytes + float64(p.ValueBytes) + m.logPut + m.logEntry*p.EntriesPerOp
}

// line is the straight line through points, by least squares.
func line(xs, ys []float64) (at0, slope float64, err error) {
	if len(xs) < 2 {
		return 0, 0, fmt.Errorf("a line through %d points", len(xs))
	}
	n, sx, sy, sxx, sxy := float64(len(xs)), 0.0, 0.0, 0.0, 0.0
	for i, x := range xs {
		sx, sy, sxx, sxy = sx+x, sy+ys[i], sxx+x*x, sxy+x*ys[i]
	}
	slope = (n*sxy - sx*sy) / (n*sxx - sx*sx)
	return (sy - slope*sx) / n, slope, nil
}

// fit takes slopes, so that what a process takes without anything held does not count.
func (h *heldModel) fit(curves map[string]*scaleCurve) error {
	slope := func(curve, series, x, y string, unit float64, at0, into *float64) error {
		if curves[curve] == nil {
			return fmt.Errorf("there is no curve %q", curve)
		}
		var xs, ys []float64
		ofImage := y == "image_megabytes" || y == "restart_seconds"
		for i := range curves[curve].Points {
			p := &curves[curve].Points[i]
			v, ok := p.Counted[y]
			if p.Series != series || !ok || ofImage && imageStands(curves[curve].Points, i) {
				continue
			}
			if x == "" {
				xs = append(xs, p.X)
			} else {
				xs = append(xs, p.Counted[x])
			}
			ys = append(ys, v)
		}
		from, rising, err := line(xs, ys)
		if err != nil {
			return fmt.Errorf("curve %s, %s: %w", curve, y, err)
		}
		if *into = rising * unit; at0 != nil {
			*at0 = from * unit
		}
		return nil
	}
	const anonymous = "held_anonymous_megabytes"
	for _, err := range []error{
		slope("keys", "", "", anonymous, 1e6, nil, &h.key),
		slope("keys", "", "", "image_megabytes", 1e6, nil, &h.imageKey),
		slope("keys", "", "", "checkpoint_megabytes", 1e6, nil, &h.checkpointKey),
		slope("keys", "", "checkpoint_megabytes", "checkpoint_seconds", 1, &h.checkpointFixed, &h.checkpointMegabyte),
		slope("keys", "", "", "restart_seconds", 1e6, nil, &h.restartKey),
		slope("watchers", "a key each, 100 streams", "", anonymous, 1e6, nil, &h.watcher),
		slope("watchers", "a stream each", "", anonymous, 1e6, nil, &h.stream),
		slope("watchers", "idle connections", "", anonymous, 1e6, nil, &h.connection),
		slope("leases", "", "", anonymous, 1e6, nil, &h.lease),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// imageStands says whether the image had been given up by this point: then it no longer grows, and a restart reads the log
// from there on, which is another cost than that of the keys.
func imageStands(points []scalePoint, i int) bool {
	const image = "image_megabytes"
	return i > 0 && points[i].Counted[image] > 0 && points[i].Counted[image] == points[i-1].Counted[image]
}

// constants is the table of docs/capacity.md.
func (m *model) constants() string {
	var b strings.Builder
	b.WriteString("| Constant | Value | Unit | Curve |\n|---|---|---|---|\n")
	row := func(name string, value float64, unit, curve string) {
		if value == 0 {
			fmt.Fprintf(&b, "| %s | 0 | %s | %s |\n", name, unit, curve)
			return
		}
		digits := max(0, 2-int(math.Floor(math.Log10(max(math.Abs(value), 1e-9)))))
		fmt.Fprintf(&b, "| %s | %.*f | %s | %s |\n", name, min(digits, 6), value, unit, curve)
	}
	const puts = "clients, value, frontends, regions, tails"
	row("`member_second`", m.member.second/1e3, "ms of CPU a second, every member in use", puts)
	row("`member_entry`", m.member.entry, "µs an entry, every member", puts)
	row("`leader_entry`", m.member.leadEntry, "µs more at the leader", puts)
	row("`take_entry`", m.member.takeEntry, "µs more where a frontend hands it over", puts)
	row("`tail_entry`", m.member.tailEntry, "µs more for each tail", puts)
	row("`member_byte`", m.member.byteOfEntry, "µs a byte of log, every member", puts)
	row("`leader_byte`", m.member.leadByte, "µs more at the leader", puts)
	row("`tail_byte`", m.member.tailByte, "µs more for each tail", puts)
	row("`frontend_second`", m.frontend.second/1e3, "ms of CPU a second, every frontend in use", puts)
	row("`apply_entry`", m.frontend.entry, "µs an entry, every frontend", puts)
	row("`own_entry`", m.frontend.ownEntry, "µs more at the frontend that proposed it", puts)
	row("`apply_put`", m.frontend.put, "µs a put, every frontend", puts)
	row("`own_put`", m.frontend.ownPut, "µs more at the frontend of its client", puts)
	row("`apply_byte`", m.frontend.byteOf, "µs a byte of value, every frontend", puts)
	row("`own_byte`", m.frontend.ownByte, "µs more at the frontend of its client", puts)
	row("`idle_leader`", m.idleLeader/1e3, "ms of CPU a second, unused", "clients, idle")
	row("`idle_follower`", m.idleFollower/1e3, "ms of CPU a second, unused", "clients, idle")
	row("`idle_frontend`", m.idleFrontend/1e3, "ms of CPU a second, unused", "clients, idle")
	row("`log_put`", m.logPut, "bytes of log a put, beside key and value", puts)
	row("`log_entry`", m.logEntry, "bytes of log an entry", puts)
	row("`link_byte`", m.tailBytes, "bytes to a mirror for a byte of log", puts)
	row("`link_entry`", m.tailEntry, "bytes to a mirror an entry", puts)
	row("`link_second`", m.tailSecond, "bytes to a mirror a second", puts)
	row("`follow_byte`", m.followBytes, "bytes from the leader to a follower for a byte of log", puts)
	row("`follow_entry`", m.followEntry, "bytes from the leader to a follower an entry", puts)
	row("`follow_second`", m.followSecond, "bytes from the leader to a follower a second", puts)
	row("`disk_byte`", m.writtenBytes, "bytes that a member writes for a byte of log", puts)
	row("`disk_entry`", m.writtenEntry, "bytes that a member writes an entry", puts)
	row("`key_memory`", m.held.key, "bytes of a frontend a key of 256 bytes", "keys")
	row("`key_image`", m.held.imageKey, "bytes of image a key", "keys")
	row("`key_checkpoint`", m.held.checkpointKey, "bytes of checkpoint a key", "keys")
	row("`key_restart`", m.held.restartKey, "µs of a restart a key", "keys")
	row("`checkpoint_fixed`", m.held.checkpointFixed, "s of any checkpoint", "keys")
	row("`checkpoint_megabyte`", m.held.checkpointMegabyte, "s of a checkpoint a MB", "keys")
	row("`watcher_memory`", m.held.watcher, "bytes of a frontend a watch, on a shared stream", "watchers")
	row("`stream_memory`", m.held.stream, "bytes of a frontend a stream with one watch", "watchers")
	row("`connection_memory`", m.held.connection, "bytes of a frontend a connection", "watchers")
	row("`lease_memory`", m.held.lease, "bytes of a frontend a lease", "leases")
	return b.String()
}

// checks is the table of what the model says of the configurations that it was not fitted to, beside what was measured.
func (m *model) checks(curves map[string]*scaleCurve) (table string, worst float64) {
	var b strings.Builder
	b.WriteString("| Configuration | | predicted | measured | error |\n|---|---|---|---|---|\n")
	if curves["check"] == nil {
		return b.String(), math.Inf(1)
	}
	for i := range curves["check"].Points {
		p := &curves["check"].Points[i]
		load := "as fast as they go"
		if p.DuePerSec > 0 {
			load = fmt.Sprintf("%.0f puts/s", p.DuePerSec)
		}
		title := fmt.Sprintf("%d voters, %d frontends; %d clients of %d of these, values of %d bytes, %s: %.0f puts/s, %.1f an entry",
			p.Members, p.Frontends, p.Clients, p.Driven, p.ValueBytes, load, p.OperationsPerSecond, 1/p.EntriesPerOp)
		row := func(what, unit string, predicted, measured float64) {
			if measured == 0 {
				return
			}
			off := predicted/measured - 1
			worst = max(worst, math.Abs(off))
			fmt.Fprintf(&b, "| %s | %s | %.0f | %.0f %s | %+.0f %% |\n", title, what, predicted, measured, unit, 100*off)
			title = ""
		}
		all := 0.0
		mirrors, driven := make([]float64, 0, p.Frontends), make([]float64, 0, p.Frontends)
		var leader, followers []float64
		for _, c := range p.Log {
			cpu := m.memberCPU(p, c)
			if all += cpu; c.Leader {
				leader = append(leader, cpu)
			} else {
				followers = append(followers, cpu)
			}
		}
		for _, c := range p.Mirrors {
			cpu := m.frontendCPU(p, c)
			if all += cpu; c.Driven {
				driven = append(driven, cpu)
			} else {
				mirrors = append(mirrors, cpu)
			}
		}
		anyOf := func(float64) bool { return true }
		itself := func(v float64) float64 { return v }
		row("CPU of all processes", "µs a put", all, p.CPUMicrosPerOp)
		row("leader", "µs", mean(leader, anyOf, itself), p.ofLog(true, func(c memberCost) float64 { return c.CPUMicrosPerOp }))
		row("a follower, mean", "µs", mean(followers, anyOf, itself), p.ofLog(false, func(c memberCost) float64 { return c.CPUMicrosPerOp }))
		row("a frontend with clients", "µs", mean(driven, anyOf, itself), p.ofFrontends(true, func(c frontendCost) float64 { return c.CPUMicrosPerOp }))
		row("a mirror", "µs", mean(mirrors, anyOf, itself), p.ofFrontends(false, func(c frontendCost) float64 { return c.CPUMicrosPerOp }))
		log := m.logBytes(p)
		row("log", "bytes a put", log, p.LogBytesPerOp)
		row("link to a mirror", "bytes", m.tailBytes*log+m.tailEntry*p.EntriesPerOp+m.tailSecond/p.OperationsPerSecond,
			p.ofFrontends(false, func(c frontendCost) float64 { return c.ReceivedPerOp }))
		row("leader to its followers", "bytes", float64(p.Members-1)*(m.followBytes*log+m.followEntry*p.EntriesPerOp+m.followSecond/p.OperationsPerSecond),
			p.ofLog(true, func(c memberCost) float64 { return c.SentToMembers }))
		row("written by a member", "bytes", m.writtenBytes*log+m.writtenEntry*p.EntriesPerOp,
			mean(p.Log, func(memberCost) bool { return true }, func(c memberCost) float64 { return c.WrittenPerOp }))
	}
	return b.String(), worst
}
