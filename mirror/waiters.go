package mirror

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// waiters are calls that wait until a number has been reached. The number never goes back. Reaching it costs one atomic
// load while nobody waits.
type waiters struct {
	max int
	// reached is the present number; lowest the least one that is waited for.
	reached atomic.Uint64
	waiting atomic.Int64

	mu   sync.Mutex
	heap waiterHeap
}

type waiter struct {
	target   uint64
	position int
	done     chan struct{}
}

// reach raises the number and wakes whoever waited for it. One goroutine calls it.
func (w *waiters) reach(number uint64) {
	w.reached.Store(number)
	if w.waiting.Load() == 0 {
		return
	}
	w.mu.Lock()
	for len(w.heap) > 0 && w.heap[0].target <= number {
		close(heap.Pop(&w.heap).(*waiter).done)
		w.waiting.Add(-1)
	}
	w.mu.Unlock()
}

// wait returns when target is reached, ctx ends or stopped is closed.
func (w *waiters) wait(ctx context.Context, target uint64, stopped <-chan struct{}) error {
	if w.reached.Load() >= target {
		return nil
	}
	w.mu.Lock()
	if len(w.heap) >= w.max {
		w.mu.Unlock()
		return fmt.Errorf("%w: %d calls wait", ErrOverloaded, w.max)
	}
	one := &waiter{target: target, done: make(chan struct{})}
	heap.Push(&w.heap, one)
	w.waiting.Add(1)
	// reach stores first and looks for waiters second, this goroutine the other way round: one of the two sees it.
	if w.reached.Load() >= target {
		w.remove(one)
		w.mu.Unlock()
		return nil
	}
	w.mu.Unlock()
	select {
	case <-one.done:
		return nil
	case <-ctx.Done():
		w.giveUp(one)
		return context.Cause(ctx)
	case <-stopped:
		w.giveUp(one)
		return ErrStopped
	}
}

func (w *waiters) giveUp(one *waiter) {
	w.mu.Lock()
	w.remove(one)
	w.mu.Unlock()
}

func (w *waiters) remove(one *waiter) {
	if one.position >= 0 {
		heap.Remove(&w.heap, one.position)
		w.waiting.Add(-1)
	}
}

type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].target < h[j].target }
func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].position, h[j].position = i, j
}
func (h *waiterHeap) Push(x any) {
	one := x.(*waiter)
	one.position = len(*h)
	*h = append(*h, one)
}
func (h *waiterHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.position = -1
	return last
}
