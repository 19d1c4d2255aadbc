// Package idgen gives out ids that are unique in the cluster, in a frontend, from what the log has granted to it.
//
// # What it promises
//
// No id is given twice, by any generator of any frontend, whatever clocks do. A snowflake or a raindrop is made of a time, a
// node number and a sequence. The log grants a number together with the times that may be used with it, above all those
// that it was ever granted for, so the promise rests on the log alone: the clock only decides which of the granted times
// are used, and when more are asked for. A process that was frozen and wakes up finds its grant used up or goes on within
// it; a restart gets a number of its own again.
//
// Within one generator, ids of these kinds ascend, and they follow the clock: they run ahead of it by at most
// Config.SnowflakeAhead and Config.RaindropAhead, which is how many can be had at once, and lag behind it by nothing. When
// the wall clock steps back, ids go on from where they were by the clock that never steps. Where the times granted begin
// further ahead of the clock than that, ids are waited for, at most Config.WaitMax, and then refused with a
// *ClockBehindError.
//
// The numbers of a segment come from blocks that the log grants of a named range. They have no gap within a block; a block
// that this process held when it ended is one.
//
// The numbers of a sequence are those of commands in the order of the log; calls of the same moment share one.
//
// # How it is built
//
// nodeCore and segmentCore are passive: they are given the time and what the log has decided, and say which ids may be given
// and what to propose. The Generator runs one of each, with the clocks, the proposals and those who wait around it.
// Everything exported may be called from any goroutine until Close.
package idgen
