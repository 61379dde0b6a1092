package queue

import "slices"

// fifo is a queue of tasks or jobs. The zero value is empty.
type fifo struct {
	items []int32
	head  int
}

func (f *fifo) len() int     { return len(f.items) - f.head }
func (f *fifo) push(x int32) { f.items = append(f.items, x) }
func (f *fifo) peek() int32  { return f.items[f.head] }

// pushFirst puts x where the next pop takes it.
func (f *fifo) pushFirst(x int32) {
	if f.head > 0 {
		f.head--
		f.items[f.head] = x
		return
	}
	f.items = slices.Insert(f.items, 0, x)
}

func (f *fifo) pop() int32 {
	x := f.items[f.head]
	f.head++
	f.tidy()
	return x
}

func (f *fifo) popLast() int32 {
	x := f.items[len(f.items)-1]
	f.items = f.items[:len(f.items)-1]
	f.tidy()
	return x
}

// tidy reuses the room of what was popped, at a cost of O(1) for each pop.
func (f *fifo) tidy() {
	switch {
	case f.len() == 0:
		f.items, f.head = f.items[:0], 0
	case f.head > 64 && f.head > len(f.items)/2:
		f.items = append(f.items[:0], f.items[f.head:]...)
		f.head = 0
	}
}

// take empties the queue and gives what was in it.
func (f *fifo) take() []int32 {
	items := f.items[f.head:]
	*f = fifo{}
	return items
}
