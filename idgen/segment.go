package idgen

import (
	"slices"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// segmentCore gives the numbers of one range from the blocks that the log granted, one after the other. It is stepped by
// one goroutine at a time.
type segmentCore struct {
	name string
	// blockSize is how many numbers are asked for at least.
	blockSize int64
	// blocks are what is left of the grants.
	blocks []Block
	// wanted is what those who wait still want.
	wanted int64
	// max is what was asked for with the range; see IdSegmentGrant.
	max int64
}

// take appends at most count numbers to blocks and returns how many are still wanted.
func (c *segmentCore) take(_ reading, count int64, blocks []Block) (taken []Block, left int64, wait time.Duration) {
	for count > 0 && len(c.blocks) > 0 {
		block := &c.blocks[0]
		run := min(count, block.Count)
		if last := len(blocks) - 1; last >= 0 && blocks[last].First+blocks[last].Count == block.First {
			blocks[last].Count += run
		} else {
			blocks = append(blocks, Block{First: block.First, Count: run})
		}
		block.First, block.Count, count = block.First+run, block.Count-run, count-run
		if block.Count == 0 {
			c.blocks = c.blocks[1:]
		}
	}
	return blocks, count, 0
}

// propose returns what to propose, if anything: the next block is asked for when half of one is left, so that nobody has to
// wait for it. Then decided must follow, whatever comes of it, before the next call.
func (c *segmentCore) propose() (*commandv1.Command, bool) {
	held := int64(0)
	for _, block := range c.blocks {
		held += block.Count
	}
	if held >= c.blockSize/2 && c.wanted <= held {
		return nil, false
	}
	return &commandv1.Command{Operation: &commandv1.Command_IdSegmentGrant{IdSegmentGrant: &commandv1.IdSegmentGrant{
		Range: c.name, Size: min(max(c.wanted, c.blockSize), statemachine.MaxIDsPerCommand), Max: c.max,
	}}}, true
}

// decided takes what became of a proposal.
func (c *segmentCore) decided(_ *commandv1.Command, result *statemachine.IDResult, err error) error {
	if err == nil {
		c.blocks = append(c.blocks, Block{First: result.First, Count: result.Count})
	}
	return err
}

// giveBack takes numbers that nobody has seen, to be given next.
func (c *segmentCore) giveBack(blocks []Block) { c.blocks = slices.Concat(blocks, c.blocks) }

// want adds to what those who wait still want.
func (c *segmentCore) want(count int64) { c.wanted += count }
