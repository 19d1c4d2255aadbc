package mirror

import "time"

// cutMin is for how long no read round is answered until this frontend counts as cut off; one is asked each second.
const cutMin = 3 * time.Second

// convergence measures how long the state takes to be whole again after a cut has healed: from the first answer of a read
// round after it until everything is applied that the answer stands for.
type convergence struct {
	answeredAt time.Duration
	known      bool
	// healedAt and target are of the cut that ended last, while converging.
	healedAt   time.Duration
	target     uint64
	converging bool
}

// answered notes a round that was answered at now with index.
func (c *convergence) answered(now time.Duration, index uint64) {
	if c.known && now-c.answeredAt >= cutMin && !c.converging {
		c.converging, c.healedAt, c.target = true, now, index
	}
	c.known, c.answeredAt = true, now
}

// applied tells how long convergence took, once, when the entry at index has been applied by now.
func (c *convergence) applied(now func() time.Duration, index uint64) (took time.Duration, done bool) {
	if !c.converging || index < c.target {
		return 0, false
	}
	c.converging = false
	return now() - c.healedAt, true
}
