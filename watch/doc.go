// Package watch tells clients of every change of the keys they watch, from any revision that is not compacted,
// live and from history through the same ordered stream.
//
// # What a watch may rely on
//
//   - Complete: every event at or above the start revision that falls into the watch's range and passes its
//     filters comes exactly once, until the watch is canceled. Whoever watches again from the last revision
//     seen + 1, here or in another region, misses nothing and sees nothing twice.
//   - Ordered: events come in order of (revision, place within the revision).
//   - Atomic: all events of one revision come in one response, unless the watch asked for fragments; then they
//     come in consecutive responses, all but the last marked Fragment.
//   - Told: a watch ends with a Canceled response that says why, or with its stream. It never goes silent.
//   - Bookmarked: after a response that is no fragment, no event at or below its Revision comes any more on
//     that watch.
//
// Between two watches, even of one stream, there is no order.
//
// # Slow readers
//
// A stream buffers a bounded number of responses and bytes. A watch whose response finds no room leaves the
// live path and reads history again from the first event it could not deliver, at the pace of the stream's
// reader. A slow reader is therefore its own business: it costs its buffer, never delays Applied, other streams
// or other watches, and loses nothing, unless history is compacted under it; then the watch is canceled and
// told the lowest revision that can still be watched.
//
// # The hand-over from history to live
//
// This is where events get lost or doubled, so here is the rule that everything in this package keeps. Each
// watch has a revision next:
//
//	Invariant: every matching event in [start, next) is in the stream's queue or was taken from it; none at or above
//	next is.
//
// A watch is live when it is in the hub's index, else it lags. The hub's revision is that of the last entry
// that went through Applied. A lagging watch becomes live only under the hub's lock and only if next >
// hub.revision: whatever Applied brings later is above hub.revision, is offered to the index, and is skipped
// where it is below next. A live watch begins to lag only under the lock as well, with next set to the first
// revision of the response that found no room. For a live watch next is kept lazily: it stands for max(next,
// hub.revision+1).
//
// The key space publishes an entry before Applied tells the hub of it, so history read under the lock reaches
// at least to hub.revision; it may reach further, which the rule allows.
//
// # Who calls what
//
// Applied is for the goroutine that applies entries, in order. Each Stream has one goroutine at a time
// that takes responses (TakeAll) and one that makes requests (Watch, Cancel, RequestProgress, Refuse, Admit);
// Close is for anyone. The hub has two goroutines of its own, which Close ends: one reads history, one sends
// progress notifications.
package watch
