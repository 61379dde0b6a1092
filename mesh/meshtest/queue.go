package meshtest

import "sync"

// queue hands items to fn in order, from one goroutine, until stop. It has no
// bound: tests that flood it are the ones to bound.
type queue[T any] struct {
	wake chan struct{} // capacity 1
	done chan struct{}
	once sync.Once

	mu    sync.Mutex
	items []T
}

func newQueue[T any](fn func(T)) *queue[T] {
	q := &queue[T]{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run(fn)
	return q
}

func (q *queue[T]) push(v T) {
	q.mu.Lock()
	q.items = append(q.items, v)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue[T]) stop() { q.once.Do(func() { close(q.done) }) }

func (q *queue[T]) run(fn func(T)) {
	for {
		select {
		case <-q.wake:
		case <-q.done:
			return
		}
		for {
			q.mu.Lock()
			if len(q.items) == 0 {
				q.mu.Unlock()
				break
			}
			v := q.items[0]
			q.items = q.items[1:]
			q.mu.Unlock()
			select {
			case <-q.done:
				return
			default:
			}
			fn(v)
		}
	}
}
