package queue

import (
	"math/bits"
	"time"
)

// latencies counts durations in buckets that are at most 1/1024 of their value
// wide, so that millions of them take a few hundred kilobytes.
type latencies struct {
	count []int64
	total int64
}

// fine is the number of bits of a value that its bucket keeps.
const fine = 10

func (l *latencies) add(d time.Duration) {
	i := bucket(uint64(max(d, 0)))
	for i >= len(l.count) {
		l.count = append(l.count, make([]int64, 1<<fine)...)
	}
	l.count[i]++
	l.total++
}

func bucket(v uint64) int {
	shift := max(bits.Len64(v)-fine-1, 0)
	return shift<<fine + int(v>>shift)
}

// least is the smallest value of a bucket.
func least(bucket int) time.Duration {
	if bucket < 2<<fine {
		return time.Duration(bucket)
	}
	shift := bucket>>fine - 1
	return time.Duration(bucket-shift<<fine) << shift
}

// quantile is the value that permille of a thousand values are below; 0 when
// there are none.
func (l *latencies) quantile(permille int64) time.Duration {
	rank := min(l.total*permille/1000, l.total-1)
	for i, n := range l.count {
		if rank < n {
			return least(i)
		}
		rank -= n
	}
	return 0
}
