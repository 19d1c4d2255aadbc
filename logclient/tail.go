package logclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Entry is one published entry of the log, decoded. The receiver owns it.
type Entry struct {
	Index, Term uint64
	Kind        logv1.EntryKind
	// Envelope is nil for the kinds that have none.
	Envelope *logv1.Envelope
	// Traces are those that the member knew the entry to be part of.
	Traces []*logv1.TraceContext
}

// Batch is what one answer of a member carried. Without entries it tells that there is nothing new.
type Batch struct {
	Entries []Entry
	// PublishedIndex and FirstIndex are the member's when it sent the answer.
	PublishedIndex, FirstIndex uint64
	// Member is the address that sent it.
	Member string
}

// cursor checks that entries continue what came before. It is passive.
//
// Invariant: every entry below next was accepted, in order, and the last of them was of term previousTerm.
type cursor struct {
	next, previousTerm uint64
}

// accept takes the next entry or says why it is not the next.
func (c *cursor) accept(index, term uint64) error {
	if index != c.next || term < c.previousTerm {
		return &DiscontinuityError{WantIndex: c.next, GotIndex: index, PreviousTerm: c.previousTerm, GotTerm: term}
	}
	c.next, c.previousTerm = index+1, term
	return nil
}

// Tail follows the log from one index on, from whichever member is best.
type Tail struct {
	client  *Client
	ctx     context.Context
	cancel  context.CancelCauseFunc
	batches chan Batch
	stopped chan struct{}
	cursor  cursor
	// trimmed holds the members that no longer have the entry at cursor.next.
	trimmed map[string]bool
}

// Tail starts to follow the log at index from, which is at least 1. previousTerm is the term of the entry before it,
// which the caller has applied; zero where from is 1. Close ends it.
func (c *Client) Tail(from, previousTerm uint64) *Tail {
	ctx, cancel := context.WithCancelCause(c.ctx)
	t := &Tail{
		client:  c,
		ctx:     ctx,
		cancel:  cancel,
		batches: make(chan Batch, c.config.TailAnswers),
		stopped: make(chan struct{}),
		cursor:  cursor{next: max(from, 1), previousTerm: previousTerm},
		trimmed: make(map[string]bool),
	}
	c.position(t.cursor.next - 1)
	c.goroutines.Go(t.run)
	return t
}

// Next returns the next batch, in order, waiting for it. The error is ctx's, ErrClosed, or what ended the client.
func (t *Tail) Next(ctx context.Context) (Batch, error) {
	select {
	case batch := <-t.batches:
		return batch, nil
	default:
	}
	select {
	case batch := <-t.batches:
		return batch, nil
	case <-t.ctx.Done():
		return Batch{}, context.Cause(t.ctx)
	case <-ctx.Done():
		return Batch{}, ctx.Err()
	}
}

// Close ends the tail and waits for its goroutine.
func (t *Tail) Close() {
	t.cancel(ErrClosed)
	<-t.stopped
}

// run reads from one member after another until the tail is closed or can never go on.
func (t *Tail) run() {
	defer close(t.stopped)
	c := t.client
	for t.ctx.Err() == nil {
		address, roundTrip, err := c.await(t.ctx)
		if err != nil {
			return
		}
		err = t.stream(address, roundTrip)
		if t.ctx.Err() != nil {
			return
		}
		c.config.Logger.Info("tail ends", "member", address, "next_index", t.cursor.next, "reason", err)
		c.metrics.streamFailures.WithLabelValues("tail").Inc()
		if final := t.ended(address, err); final != nil {
			c.fail(final)
			return
		}
	}
}

// ended decides what the end of a stream means. A returned error is final.
func (t *Tail) ended(address string, err error) error {
	c := t.client
	switch {
	case errors.Is(err, errMemberChanged):
		return nil
	case errors.Is(err, ErrMalformedEntry):
		return err
	case status.Code(err) == codes.OutOfRange:
		t.trimmed[address] = true
		c.mu.Lock()
		untried := false
		for _, m := range c.tracker.members {
			// One that does not answer may never come back: the wanted entry is not waited for.
			untried = untried || (m.listed && m.refused == nil && m.probeFailures < goneAfterProbes && !t.trimmed[m.address])
		}
		c.mu.Unlock()
		if !untried {
			return fmt.Errorf("%w: index %d: %w", ErrTrimmed, t.cursor.next, err)
		}
	}
	return c.streamFailed(address, err)
}

// goneAfterProbes is how many probes in a row a member leaves unanswered before nobody waits for the entries it may hold.
const goneAfterProbes = 3

// silentBytesMax is what a connection may carry in one period of silence beside the tail: answers to probes and rounds.
const silentBytesMax = 16 << 10

// stream reads from one member until it fails, is silent, or is not to be used any more.
func (t *Tail) stream(address string, roundTrip time.Duration) error {
	c := t.client
	connection, err := c.connect(address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(t.ctx)
	defer cancel(nil)
	c.cancelWhenMoved(ctx, cancel, address)
	silence := c.config.SilenceTimeout + roundTrip
	var heard atomic.Uint64
	var watchdog *time.Timer
	armed := make(chan struct{})
	watchdog = time.AfterFunc(silence, func() {
		<-armed
		// A long answer on a slow link is no silence: something came since, and more than answers to probes.
		received := connection.received.Load()
		if received-heard.Swap(received) > silentBytesMax {
			watchdog.Reset(silence)
			return
		}
		cancel(errSilent)
	})
	close(armed)
	defer watchdog.Stop()

	stream, err := connection.service.Tail(ctx, &logv1.TailRequest{
		Handshake:    c.handshake(),
		FromIndex:    t.cursor.next,
		PreviousTerm: t.cursor.previousTerm,
		MaxBytes:     c.config.TailAnswerBytes,
	})
	if err != nil {
		return streamError(ctx, err)
	}
	began := time.Now()
	first, forgiven := true, false
	var behindSince time.Time
	for {
		answer, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return streamError(ctx, err)
		}
		watchdog.Stop()
		if first {
			if answer.GetHandshake() == nil {
				return errHandshake
			}
			if err := c.checkHandshake(answer.GetHandshake()); err != nil {
				return err
			}
			first = false
		}
		if answer.GetMembership() != nil {
			c.learn(answer.GetMembership())
		}
		if err := t.take(ctx, address, answer); err != nil {
			return err
		}
		if !forgiven && time.Since(began) > 2*c.config.SilenceTimeout {
			forgiven = true
			c.update(func(tr *tracker, _ time.Time) { tr.lived(address) })
		}
		if t.isBehind(address, answer.GetPublishedIndex(), &behindSince) {
			return errBehind
		}
		heard.Store(connection.received.Load())
		watchdog.Reset(silence)
	}
}

// take checks and decodes the entries of one answer and hands them over, waiting for room. What was checked before a
// failure is handed over.
func (t *Tail) take(ctx context.Context, address string, answer *logv1.TailResponse) error {
	batch := Batch{PublishedIndex: answer.GetPublishedIndex(), FirstIndex: answer.GetFirstIndex(), Member: address}
	var failure error
	bytes := 0
	if len(answer.GetEntries()) > 0 {
		batch.Entries = make([]Entry, 0, len(answer.GetEntries()))
	}
	for _, sent := range answer.GetEntries() {
		decoded, err := decode(sent)
		if err == nil {
			err = t.cursor.accept(sent.GetIndex(), sent.GetTerm())
		}
		if err != nil {
			failure = err
			break
		}
		bytes += len(sent.GetEnvelope())
		batch.Entries = append(batch.Entries, decoded)
	}
	if len(batch.Entries) > 0 {
		t.client.metrics.tailEntries.Add(float64(len(batch.Entries)))
		t.client.metrics.tailBytes.Add(float64(bytes))
		clear(t.trimmed)
	}
	select {
	case t.batches <- batch:
	case <-ctx.Done():
		// The batch was accepted by the cursor: it must not be lost with the stream that carried it.
		select {
		case t.batches <- batch:
		case <-t.ctx.Done():
		}
		return context.Cause(ctx)
	}
	t.client.position(t.cursor.next - 1)
	return failure
}

// position tells the tracker how far the tail has come.
func (c *Client) position(index uint64) {
	c.mu.Lock()
	c.tracker.advanced(index, time.Now())
	c.mu.Unlock()
}

func decode(sent *logv1.Entry) (Entry, error) {
	entry := Entry{Index: sent.GetIndex(), Term: sent.GetTerm(), Kind: sent.GetKind(), Traces: sent.GetTraces()}
	switch entry.Kind {
	case logv1.EntryKind_ENTRY_KIND_UNSPECIFIED, logv1.EntryKind_ENTRY_KIND_MEMBERSHIP:
		return entry, nil
	}
	entry.Envelope = &logv1.Envelope{}
	if err := proto.Unmarshal(sent.GetEnvelope(), entry.Envelope); err != nil {
		return entry, fmt.Errorf("%w: index %d: %w", ErrMalformedEntry, entry.Index, err)
	}
	return entry, nil
}

// isBehind tells whether a member has not published what this tail has delivered, for long enough, while another one
// has: after a restart a member publishes from its durable commit on, and catches up by itself.
func (t *Tail) isBehind(address string, published uint64, since *time.Time) bool {
	if published+1 >= t.cursor.next {
		*since = time.Time{}
		return false
	}
	now := time.Now()
	if since.IsZero() {
		*since = now
	}
	if now.Sub(*since) < t.client.config.SilenceTimeout {
		return false
	}
	t.client.mu.Lock()
	defer t.client.mu.Unlock()
	other := t.client.tracker.best(now, address)
	return other != nil && other.published > published
}

// TryNext returns the next batch if one has arrived. The error is as that of Next.
func (t *Tail) TryNext() (batch Batch, ok bool, err error) {
	select {
	case batch := <-t.batches:
		return batch, true, nil
	default:
	}
	if t.ctx.Err() != nil {
		return Batch{}, false, context.Cause(t.ctx)
	}
	return Batch{}, false, nil
}
