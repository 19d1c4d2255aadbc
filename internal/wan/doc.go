// Package wan is a wide-area network for parts that run in one process: listeners and dialers that belong to
// regions, and links between every two regions with a round trip, loss and partitions.
//
// A Network works in one of two ways, with the same delays and failures in both:
//
//   - in memory: connections are buffered pipes that block on condition variables and timers alone, so that
//     whatever speaks over them, gRPC included, runs in the virtual time of a testing/synctest bubble;
//   - over TCP on loopback: the dialing side delays what it sends and what it receives. The listener is a plain
//     one, so a client that is not part of the network connects to it without any delay.
//
// What a connection promises:
//
//   - The bytes of a direction arrive in order, each exactly half a round trip after it was written, unless the
//     link is cut or loses packets. Streams are reliable: a lost packet costs the time of its retransmission and
//     holds up all that was written after it, as TCP does.
//   - Opening a connection takes one round trip. What the listening side writes at once arrives together with
//     the connection.
//   - The end of a stream travels as its bytes do: the other side reads all that was written before, then
//     io.EOF. A reader that is gone is noticed by the writer once the end has reached it.
//   - At most Options.MaxBytesInFlight bytes of a direction are under way or unread. A write beyond that blocks
//     until the other side reads, its deadline passes or the connection is closed.
//   - Deadlines are those of net.Conn.
//
// A cut link is silent. Bytes under way stay under way, an end or a refusal does not arrive, dials wait until
// their context ends; nothing reports an error. When the link is healed, what was held back arrives half a round
// trip later. A link may be cut in one direction: bytes of the other direction still arrive. (Acknowledgements are
// not modelled: a direction that works does not stall because the other is cut.)
//
// Connections within one region have no delay, no loss and are never cut.
//
// All methods of all types may be called from any goroutine. Time is that of package time.
package wan
