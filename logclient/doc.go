// Package logclient is the log as a caller sees it: where its members are, its entries in order, proposals handed over
// in order, and read rounds. It knows entries and envelopes; what a payload means is its caller's business.
//
// # What it promises
//
// Tail delivers every published entry from an index on, each once, in order. A member that sends a gap, a repeated
// index or a term that goes back is left for another one; nothing it sent beyond that point is delivered. A caller that
// is ahead of a member (the member is catching up) waits or is served by another one: that is no error.
//
// Appender hands proposals to one member at a time over one stream, in the order they were given to Send. It gives no
// answer on success: a proposal's result is its appearance in the tail. It never repeats a proposal. What was given to
// Send before the stream was lost may or may not reach the log, now or later; the handler is told of the loss and of
// the next stream, and it is for the caller to send again.
//
// ReadRound returns an index at or above every write that was acknowledged anywhere before ReadRound was called. It is
// asked again, under a fresh id, at another member when one fails.
//
// UploadCheckpoint and DownloadCheckpoint carry the bytes of a checkpoint to a member and from the nearest one that holds
// it; a transfer that breaks goes on where it ended, also at another member. Whoever downloads checks what came.
//
// The first three use one member at a time: the nearest by measured round trips among those that work. A member that is
// silent, fails a stream, lags behind what others have published, or has lost its leader while others have one, is left
// for the next; a nearer one is returned to once it has been well for a while. The member list is learned from
// the log itself and kept in a file, so that a restart finds a log whose first members are gone.
//
// # What it refuses
//
// A member that is of another cluster or epoch is never used. When every address that the operator configured
// turns out to be of another log, the client ends with ErrOtherLog: that is not a fault that waiting can heal.
//
// # Bounds
//
// Every queue is bounded: proposals given to Send beyond the bound end the stream (the caller sends again on the next),
// entries not yet taken stop the reading of the tail, read rounds beyond the bound are refused.
//
// A Client may be used by any number of goroutines. Close ends all its goroutines and waits for them.
package logclient
