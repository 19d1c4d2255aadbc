package logservice

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// published is what tails read: the newest published entries in memory, shared by all of them, and the older ones from
// storage. Its methods may be called from any goroutine; only the loop calls advance and setMembership.
type published struct {
	storage  Storage
	maxBytes int

	mu         sync.Mutex
	index      uint64
	durable    uint64
	entries    []*logv1.Entry
	bytes      int
	membership *logv1.Membership
	// changed is closed and replaced when anything of this changes.
	changed chan struct{}
}

// publishedView is what a tail needs to know before it reads.
type publishedView struct {
	index      uint64
	membership *logv1.Membership
	// changed is closed when the view is out of date.
	changed <-chan struct{}
}

func newPublished(storage Storage, index uint64, maxBytes int) *published {
	return &published{storage: storage, maxBytes: maxBytes, index: index, durable: index, changed: make(chan struct{})}
}

func (p *published) view() publishedView {
	p.mu.Lock()
	defer p.mu.Unlock()
	return publishedView{index: p.index, membership: p.membership, changed: p.changed}
}

// advance takes what a step has published.
func (p *published) advance(effects *Effects) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.durable = effects.Durable
	if effects.Published > p.index {
		if n := len(effects.Entries); n < int(effects.Published-p.index) {
			// Some are on disk only, so what is in memory before them is no longer contiguous with what comes.
			p.entries, p.bytes = nil, 0
		}
		traced := effects.Traced
		for _, e := range effects.Entries {
			t := tailEntry(e)
			if len(traced) > 0 && traced[0].Index == t.Index {
				t.Traces, traced = traced[0].Contexts, traced[1:]
			}
			p.entries = append(p.entries, t)
			p.bytes += tailEntryBytes(t)
		}
		p.index = effects.Published
		close(p.changed)
		p.changed = make(chan struct{})
	}
	p.evict()
}

// evict gives up the oldest entries beyond the bound, but none that is not on disk yet.
func (p *published) evict() {
	drop := 0
	for p.bytes > p.maxBytes && drop < len(p.entries) && p.entries[drop].Index <= p.durable {
		p.bytes -= tailEntryBytes(p.entries[drop])
		drop++
	}
	clear(p.entries[:drop])
	p.entries = p.entries[drop:]
}

func (p *published) setMembership(m *logv1.Membership) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.membership = m
	close(p.changed)
	p.changed = make(chan struct{})
}

// read returns published entries from an index on, at least one if there is one, else no more than maxBytes of them. The
// entries are shared: nobody may modify them.
func (p *published) read(from uint64, maxBytes int) ([]*logv1.Entry, error) {
	p.mu.Lock()
	end := p.index
	first := end + 1 - uint64(len(p.entries))
	if from >= first || from > end {
		defer p.mu.Unlock()
		if from > end {
			return nil, nil
		}
		entries := p.entries[from-first:]
		n, bytes := 0, 0
		for n < len(entries) && (n == 0 || bytes+tailEntryBytes(entries[n]) <= maxBytes) {
			bytes += tailEntryBytes(entries[n])
			n++
		}
		return append([]*logv1.Entry(nil), entries[:n]...), nil
	}
	p.mu.Unlock()
	stored, err := p.storage.Entries(from, min(first, end+1), maxBytes)
	if err != nil {
		return nil, err
	}
	entries := make([]*logv1.Entry, len(stored))
	for i, e := range stored {
		entries[i] = tailEntry(raftEntry(e))
	}
	return entries, nil
}

// term returns the term of a published entry.
func (p *published) term(index uint64) (uint64, error) {
	p.mu.Lock()
	if first := p.index + 1 - uint64(len(p.entries)); index >= first && index <= p.index {
		defer p.mu.Unlock()
		return p.entries[index-first].Term, nil
	}
	p.mu.Unlock()
	return p.storage.Term(index)
}

func tailEntryBytes(e *logv1.Entry) int {
	return len(e.Envelope) + 64 + traceContextBytes*len(e.Traces)
}

// traceContextBytes is about what one takes in memory.
const traceContextBytes = 64

// tailEntry is an entry as tails send it; it shares the data.
func tailEntry(e *raftpb.Entry) *logv1.Entry {
	t := &logv1.Entry{Index: e.GetIndex(), Term: e.GetTerm()}
	switch {
	case isConfChange(e):
		t.Kind = logv1.EntryKind_ENTRY_KIND_MEMBERSHIP
	case len(e.GetData()) > 0:
		if h, ok := parseEnvelope(e.GetData()); ok {
			t.Kind, t.Envelope = h.kind, e.GetData()
		}
	}
	return t
}
