package statemachine

import "slices"

// requestsPerChunk is how many records a chunk of a requestQueue has room for. So many at most are kept beyond their time.
const requestsPerChunk = 256

type requestChunk [requestsPerChunk]*requestRecord

// requestQueue holds records in the order in which they came. A place is written once and stays: copying the list of chunks,
// 8 bytes for 256 records, gives a queue that shows what this one does now, whatever comes and goes here later.
type requestQueue struct {
	chunks []*requestChunk
	// first is where the oldest record stands in the first chunk.
	first int
	count int
}

// at returns a record; the oldest has the number zero.
func (q *requestQueue) at(n int) *requestRecord {
	n += q.first
	return q.chunks[n/requestsPerChunk][n%requestsPerChunk]
}

func (q *requestQueue) push(r *requestRecord) {
	end := q.first + q.count
	if end == len(q.chunks)*requestsPerChunk {
		q.chunks = append(q.chunks, new(requestChunk))
	}
	q.chunks[end/requestsPerChunk][end%requestsPerChunk] = r
	q.count++
}

// pop takes the oldest record away. Its place still names it, for who reads a copy, until the chunk goes.
func (q *requestQueue) pop() {
	q.first++
	if q.count--; q.first < requestsPerChunk {
		return
	}
	q.chunks[0], q.chunks = nil, q.chunks[1:]
	q.first = 0
}

// snapshot returns a queue of the records from the number on that shows what is there now.
func (q *requestQueue) snapshot(from int) requestQueue {
	at := q.first + from
	chunk := at / requestsPerChunk
	return requestQueue{chunks: slices.Clone(q.chunks[chunk:]), first: at % requestsPerChunk, count: q.count - from}
}

// above returns the number of the first record that was decided above an index. It looks at those only.
func (q *requestQueue) above(index uint64) int {
	if index == 0 {
		return 0 // all of them, which is known without a look
	}
	n := q.count
	for n > 0 && q.at(n-1).index > index {
		n--
	}
	return n
}
