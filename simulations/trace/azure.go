package trace

import (
	"iter"
	"strings"
	"time"
)

// Functions reads calls of Azure Functions 2021. The trace says when a call
// ended; its arrival is the duration before that, and 0 for the few that began
// before the trace did. Calls come in the order of their ends.
func Functions(f *File) iter.Seq2[Request, error] {
	t, err := newTable(f, "an Azure functions trace", "app", "func", "end_timestamp", "duration")
	return each(t, err, func() (Request, bool) {
		r := Request{Caller: strings.Clone(t.text("app")), Service: strings.Clone(t.text("func")), Duration: t.seconds("duration")}
		r.Arrival = max(0, t.seconds("end_timestamp")-r.Duration)
		return r, true
	})
}

// LLM reads a trace of Azure's LLM inference service of 2023. Arrivals count from
// the first request.
func LLM(f *File) iter.Seq2[Request, error] {
	t, err := newTable(f, "an Azure LLM trace", "TIMESTAMP", "ContextTokens", "GeneratedTokens")
	var start time.Time
	return each(t, err, func() (Request, bool) {
		r := Request{
			Arrival:   t.since(&start, "TIMESTAMP", "2006-01-02 15:04:05.999999999"),
			TokensIn:  t.whole("ContextTokens", maxCount, "tokens"),
			TokensOut: t.whole("GeneratedTokens", maxCount, "tokens"),
		}
		return r, true
	})
}

// since reads a wall-clock time as the time after the first row's.
func (t *table) since(start *time.Time, column, layout string) time.Duration {
	at := t.clock(column, layout)
	if start.IsZero() {
		*start = at
	}
	d := at.Sub(*start)
	if d < 0 {
		t.fail(column, "a time that is not before the first row's, "+start.Format(layout))
	}
	return d
}
