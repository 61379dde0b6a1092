package build

import (
	"context"
	"sync"
)

// flight is one step that runs for everybody who waits for its key. It ends
// early only when the last of them has gone.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed with root, err set
	root   string
	err    error

	waiting int // Builder.mu

	mu    sync.Mutex
	tail  []string // for those who come late, <= tailLines
	heard map[int]func(string)
	next  int
}

// tailLines is what an error shows and a late listener gets.
const tailLines = 30

// once runs the job, or waits for one of the same key that runs already.
func (b *Builder) once(ctx context.Context, j job, line func(string)) (string, error) {
	b.mu.Lock()
	f := b.running[j.key]
	if f == nil {
		run, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.StepTime)
		f = &flight{cancel: cancel, done: make(chan struct{}), heard: map[int]func(string){}}
		b.running[j.key] = f
		b.serial++
		j.serial = b.serial
		go func() {
			defer cancel()
			root, err := b.run(run, j, f)
			if err == nil {
				// Kept before anybody is told, so that the next one finds it.
				err = b.cfg.Cache.Put(run, j.key, root)
			}
			b.mu.Lock()
			f.root, f.err = root, err
			if b.running[j.key] == f {
				delete(b.running, j.key)
			}
			b.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiting++
	b.mu.Unlock()
	mute := f.listen(line)
	defer mute()
	select {
	case <-f.done:
		return f.root, f.err
	case <-ctx.Done():
	}
	b.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	if last && b.running[j.key] == f {
		delete(b.running, j.key) // whoever comes now starts anew
	}
	b.mu.Unlock()
	if last {
		f.cancel()
		<-f.done // its container is gone when we return
	}
	return "", ctx.Err()
}

// listen gives line what was said last and what comes, until mute.
func (f *flight) listen(line func(string)) (mute func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.tail {
		line(l)
	}
	id := f.next
	f.next++
	f.heard[id] = line
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.heard, id)
	}
}

func (f *flight) say(l string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.tail) == tailLines {
		f.tail = append(f.tail[:0], f.tail[1:]...)
	}
	f.tail = append(f.tail, l)
	for _, line := range f.heard {
		line(l)
	}
}

func (f *flight) last() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.tail...)
}
